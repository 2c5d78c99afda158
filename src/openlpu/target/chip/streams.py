"""Instructions in; for every stream operand the instruction whose result it takes out.

A value on eastward stream s moves along one diagonal (s, position - cycle), on a westward one along
(s, position + cycle).  A reader sees the value posted nearest upstream on its own diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BYTE, LOADED, POSTS, QUAD
from openlpu.target.chip.code import Code, Ints

WEST = 32  # streams from here on flow west
MAP = 16  # operand number of an SXM map

# Streams an instruction takes: (instruction, field of the first, how many or the field that says so, operand number
# of the first); those it posts stand in arch/isa.py.  The VXM's depend on kinds and are added below.
_READS: tuple[tuple[str, str, int | str, int], ...] = (
    ("write", "stream", 1, 0), ("gather", "map", 1, 1), ("scatter", "stream", 1, 0), ("scatter", "map", 1, 1),
    ("load_weights", "stream", LOADED, 0), ("activate", "stream", 1, 0), ("activate_fp16", "stream", 1, 0),
    ("shift", "stream", "count", 0), ("permute", "stream", "count", 0), ("permute", "map", 2, MAP),
    ("distribute", "stream", "count", 0), ("distribute", "map", 1, MAP),
    ("rotate", "stream", "size", 0), ("transpose", "stream", 16, 0), ("send", "stream", 1, 0),
)
_POSTS = tuple((*post, 0) for post in POSTS)


@dataclass(frozen=True)
class Uses:
    """Byte streams: of instruction ``row`` the operand or result ``part``; ``first`` is the first of its run.

    An operand is taken ``late`` cycles after dispatch."""

    row: Ints
    part: Ints
    stream: Ints
    first: Ints
    late: Ints


def _run(rows: Ints, first: Ints, count: Ints, part: int, step: Ints | None = None, late: int = 0) -> Uses:
    """``count`` streams from ``first`` for each row."""
    which = np.repeat(np.arange(len(rows)), count)
    k = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    stride = k if step is None else k * step[which]
    return Uses(rows[which], part + k, first[which] + stride, first[which], np.full(len(which), late))


def _join(runs: list[Uses]) -> Uses:
    return Uses(*(np.concatenate([getattr(u, f.name) for u in runs]) for f in fields(Uses)))


def _table(code: Code, table: tuple[tuple[str, str, int | str, int], ...]) -> list[Uses]:
    runs = []
    for name, field, count, part in table:
        rows = code.rows(name)
        many = code.field[count][rows] if isinstance(count, str) else np.full(len(rows), count)
        many = many * 4 if count == "emit" else many
        many = many * many if name == "rotate" and field == "dst" else many
        step = code.field["step"][rows] if name == "load_weights" else None
        runs.append(_run(rows, code.field[field][rows], many, part, step))
    return runs


def _vxm(code: Code, kind: str, field: str, part: int) -> Uses:
    rows = code.unit("vxm")
    width = np.zeros(8, np.int64)
    width[QUAD], width[BYTE] = 4, 1
    return _run(rows, code.field[field][rows], width[code.field[kind][rows]], part)


def _fetches(code: Code) -> list[Uses]:
    """The two vectors of an ``ifetch`` follow each other on one stream."""
    rows = code.rows("ifetch")
    stream, one = code.field["stream"][rows], np.ones(len(rows), np.int64)
    return [_run(rows, stream, one, part, late=part) for part in range(2)]


def reads(code: Code) -> Uses:
    """Every stream operand of every instruction."""
    vxm = [_vxm(code, "a_kind", "a", 0), _vxm(code, "b_kind", "b", 4)]
    return _join([*_table(code, _READS), *vxm, *_fetches(code)])


def posts(code: Code) -> Uses:
    """Every stream result of every instruction."""
    return _join([*_table(code, _POSTS), _vxm(code, "dst_kind", "dst", 0)])


def match(code: Code, taken: Uses, posted: Uses) -> Ints:
    """For each entry of ``taken`` the index of the entry of ``posted`` whose value it carries."""
    width = code.chip.positions
    key = _key(code, posted, code.cycle[posted.row] + code.latency[posted.row], width)
    order = np.argsort(key, kind="stable")
    key = key[order]
    _collisions(code, posted, order[1:][key[1:] == key[:-1]], order[:-1][key[1:] == key[:-1]])
    wanted = _key(code, taken, code.cycle[taken.row] + taken.late, width)
    found = np.searchsorted(key, wanted, side="right") - 1
    lost = (found < 0) | (key[found] // width != wanted // width) if len(key) else np.ones(len(wanted), bool)
    if lost.any():
        first = np.flatnonzero(lost)[np.argmin(code.cycle[taken.row[lost]])]
        code.refuse(taken.row[[first]], f"stream {taken.stream[first]} carries nothing here")
    return order[found]


def _key(code: Code, uses: Uses, cycle: Ints, width: int) -> Ints:
    """One number per place on a diagonal: equal diagonals share ``key // width``; it grows downstream."""
    x = code.position[uses.row]
    east = uses.stream < WEST
    diagonal = np.where(east, cycle - x + width, cycle + x)
    return (diagonal * 64 + uses.stream) * width + np.where(east, x, width - 1 - x)


def _collisions(code: Code, posted: Uses, late: Ints, early: Ints) -> None:
    if len(late):
        a, b = late[0], early[0]
        row = int(posted.row[a])
        raise ProgramError(
            f"its result meets that of {code.where(int(posted.row[b]))} on stream {posted.stream[a]} in cycle "
            f"{code.cycle[row] + code.latency[row]}",
            where=code.where(row),
        )
