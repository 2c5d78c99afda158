"""A program's queues in, one flat table of its instructions out: columns over all queues, in queue order.

An instruction is a row number from here on; :meth:`Code.refuse` turns it into the error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.chip import Chip
from openlpu.arch.isa import BY_NAME, TABLE

Ints = NDArray[np.int64]
FIELDS: tuple[str, ...] = tuple(dict.fromkeys(f.name for i in TABLE for f in i.fields))


@dataclass(frozen=True)
class Code:
    """Rows are instructions.  ``queue`` indexes ``names``; ``field`` holds an array per field, 0 where it is absent."""

    chip: Chip
    names: tuple[str, ...]
    queue: Ints
    cycle: Ints
    op: Ints
    id: Ints
    field: Mapping[str, Ints]

    def __len__(self) -> int:
        return len(self.cycle)

    @cached_property
    def position(self) -> Ints:
        """Stream register of each instruction's unit."""
        return np.array([self.chip.queue_position(name) for name in self.names], np.int64)[self.queue]

    @cached_property
    def number(self) -> Ints:
        """MEM slice, ALU number, MXM plane (both hemispheres counted) of each instruction, else 0."""
        return np.array([_number(name) for name in self.names], np.int64)[self.queue]

    @cached_property
    def latency(self) -> Ints:
        """Cycles from dispatch to result, 0 for instructions without one."""
        table = np.array([self.chip.latency[i.latency] if i.latency else 0 for i in TABLE], np.int64)
        return table[self.op]

    @cached_property
    def done(self) -> Ints:
        """The cycle in which nothing of each instruction is left."""
        return self.cycle + np.maximum(self.latency, 1) + self.field["delay"]

    def rows(self, *ops: str) -> Ints:
        """Rows of the named instructions, in queue order."""
        order, start = self._by_op
        found = [order[start[code] : start[code + 1]] for code in (BY_NAME[name].opcode for name in ops)]
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    @cached_property
    def _by_op(self) -> tuple[Ints, Ints]:
        """Rows sorted by opcode, and where each opcode starts."""
        order = np.argsort(self.op, kind="stable")
        return order, np.searchsorted(self.op[order], np.arange(len(TABLE) + 1))

    def unit(self, unit: str) -> Ints:
        """Rows of a unit's instructions, in queue order."""
        return self.rows(*(i.name for i in TABLE if i.unit == unit))

    def where(self, row: int, role: int | None = None) -> str:
        """``cycle 120, mem3, read (instruction 17)``; of a group, `` on role 2`` behind it."""
        op = int(self.op[row])
        name = TABLE[op].name if op < len(TABLE) else f"opcode {op}"
        chip = "" if role is None else f" on role {role}"
        return f"cycle {self.cycle[row]}, {self.names[self.queue[row]]}, {name} (instruction {self.id[row]}){chip}"

    def refuse(self, rows: NDArray, what: str) -> None:
        """Raise :class:`ProgramError` for the earliest of ``rows``, if there is one."""
        if len(rows):
            row = rows[np.argmin(self.cycle[rows])]
            raise ProgramError(what, where=self.where(int(row)))


def _number(queue: str) -> int:
    if queue.startswith("mxm"):
        return 2 * int(queue[4 : queue.index(".")]) + "we".index(queue[3])
    return int(queue[3:]) if queue[:3] in ("mem", "vxm") else 0


def flatten(chip: Chip, queues: Mapping[str, NDArray]) -> Code:
    """One table from all queues; a queue the chip does not have is refused."""
    known = {name: i for i, name in enumerate(chip.queues)}
    for name in queues:
        if name not in known:
            raise ProgramError(f"{chip.name} has no queue of this name", where=name)
    used = sorted((name for name in queues if len(queues[name])), key=known.__getitem__)
    size = [len(queues[name]) for name in used]
    column = {name: np.zeros(sum(size), np.int64) for name in ("cycle", "op", "id", *FIELDS)}
    for name, end, n in zip(used, np.cumsum(size), size, strict=True):
        for key in queues[name].dtype.names or ():
            column[key][end - n : end] = queues[name][key]
    queue = np.repeat(np.arange(len(used)), size)
    fields = {name: column[name] for name in FIELDS}
    return Code(chip, tuple(used), queue, column["cycle"], column["op"], column["id"], fields)
