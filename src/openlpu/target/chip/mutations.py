"""A program in, programs that differ from it in one instruction out.

A mutant has one instruction with another cycle, stream, direction, address, kind of operand or flag, two neighbours in
the other order, or one instruction less; on the queue of a link also an instruction at another port, once more, or in
place of another port's.  Opcodes and constants are left alone: such a mutant is another legal program.

Of what passes between stages two vectors trade places, so that each program alone still does all it claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.isa import ALU, BYTE, IMM, QUAD, TABLE, unit_of_queue
from openlpu.schedule.program import RESIDENT, Claims

Queues = dict[str, NDArray]


@dataclass(frozen=True)
class Mutant:
    """What was changed, in words, and the changed queues."""

    kind: str
    text: str
    queues: Queues


def mutants(queues: Queues, count: int, seed: int, among: str = "") -> Iterator[Mutant]:
    """``count`` mutants, the same for the same seed; every queue is hit as often as any other.

    ``among``: how the names of the queues that are broken begin.
    """
    rng = np.random.default_rng(seed)
    names = sorted(name for name in queues if len(queues[name]) and name.startswith(among))
    while count:
        name = names[rng.integers(len(names))]
        kinds = KINDS + LINK_KINDS if unit_of_queue(name) == "c2c" else KINDS
        kind = kinds[rng.integers(len(kinds))]
        i = int(rng.integers(len(queues[name])))
        changed = _changed(queues, name, kind, i, rng)
        if changed is not None:
            text = f"{kind} of instruction {queues[name]['id'][i]} in {name}"
            yield Mutant(kind, text, queues | changed)
            count -= 1


def _changed(queues: Queues, name: str, kind: str, i: int, rng: np.random.Generator) -> Queues | None:
    """The queues that instruction ``i`` of one, changed, makes others; None where it has nothing of this kind."""
    if kind in _MUTATIONS:
        columns = _MUTATIONS[kind](queues[name].copy(), i, rng)
        return None if columns is None else {name: columns}
    return _LINK_MUTATIONS[kind](queues, name, i, rng)


Mutation = Callable[[NDArray, int, np.random.Generator], NDArray | None]


def _cycle(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray:
    delta = int(rng.integers(1, 5))
    earlier = rng.random() < 0.5 and columns["cycle"][i] >= delta
    columns["cycle"][i] = int(columns["cycle"][i]) + (-delta if earlier else delta)
    return columns


def _stream_fields(row: NDArray) -> list[str]:
    """Fields of an instruction that name a stream."""
    i = TABLE[row["op"]]
    if i.unit == "vxm":
        kinds = (("a", "a_kind"), ("b", "b_kind"), ("dst", "dst_kind"))
        return [name for name, kind in kinds if row[kind] in (QUAD, BYTE)]
    return [f.name for f in i.fields if f.name in ("stream", "dst", "map")]


def _pick(names: list[str], rng: np.random.Generator) -> str | None:
    return names[rng.integers(len(names))] if names else None


def _stream(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another stream of the same direction: a neighbour, the next quad or any."""
    name = _pick(_stream_fields(columns[i]), rng)
    if name is None:
        return None
    value = int(columns[name][i])
    step = (1, -1, 4, -4, int(rng.integers(1, 32)))[rng.integers(5)]
    columns[name][i] = value // 32 * 32 + (value + step) % 32
    return columns


def _direction(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    name = _pick(_stream_fields(columns[i]), rng)
    if name is None:
        return None
    columns[name][i] ^= 32
    return columns


def _address(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another SRAM word, weight buffer group, accumulator or ALU latch."""
    row = columns[i]
    instruction = TABLE[row["op"]]
    names = [f.name for f in instruction.fields if f.name in ("address", "group", "slot")]
    if instruction.unit == "vxm":
        names = [side for side in ("a", "b") if row[f"{side}_kind"] == ALU]
    name = _pick(names, rng)
    if name is None:
        return None
    width = next(f.bits for f in instruction.fields if f.name == name)
    step = (1, -1, int(rng.integers(1, 1 << width)))[rng.integers(3)]
    columns[name][i] = (row[name] + step) % (1 << width)
    return columns


def _kind(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Another kind of VXM operand or destination."""
    if TABLE[columns[i]["op"]].unit != "vxm":
        return None
    name = ("a_kind", "b_kind", "dst_kind")[rng.integers(3)]
    kinds = IMM if name == "dst_kind" else IMM + 1
    columns[name][i] = (columns[name][i] + rng.integers(1, kinds)) % kinds
    return columns


def _flag(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """The other value of a bit: clear or emit of accumulate, step of load_weights."""
    fields = TABLE[columns[i]["op"]].fields
    name = _pick([f.name for f in fields if f.name in ("clear", "emit", "step")], rng)
    if name is None:
        return None
    columns[name][i] ^= 1
    return columns


def _swap(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray | None:
    """Two neighbours trade places; the cycles stay."""
    if i + 1 == len(columns):
        return None
    cycles = columns["cycle"].copy()
    columns[[i, i + 1]] = columns[[i + 1, i]]
    columns["cycle"] = cycles
    return columns


def _drop(columns: NDArray, i: int, rng: np.random.Generator) -> NDArray:
    return np.delete(columns, i)


_MUTATIONS: Mapping[str, Mutation] = {
    "cycle": _cycle, "stream": _stream, "direction": _direction, "address": _address, "kind": _kind, "flag": _flag,
    "order": _swap, "drop": _drop,
}
KINDS = tuple(_MUTATIONS)


# Of links: a program sends to the wrong chip, twice, or what was meant for another.


def _move(queues: Queues, name: str, i: int, rng: np.random.Generator) -> Queues | None:
    """The instruction at another port, in the same cycle."""
    other = _other_link(queues, name, rng)
    if other is None:
        return None
    moved = np.concatenate([queues[other], queues[name][i : i + 1]])
    return {name: np.delete(queues[name], i), other: moved[np.argsort(moved["cycle"], kind="stable")]}


def _again(queues: Queues, name: str, i: int, rng: np.random.Generator) -> Queues:
    """The instruction once more, some cycles behind itself."""
    twice = np.insert(queues[name], i + 1, queues[name][i])
    twice["cycle"][i + 1] += rng.integers(1, 64)
    twice["id"][i + 1] = 1 + max(int(columns["id"].max()) for columns in queues.values() if len(columns))
    return {name: twice[np.argsort(twice["cycle"], kind="stable")]}


def _cross(queues: Queues, name: str, i: int, rng: np.random.Generator) -> Queues | None:
    """All instructions of two ports trade places."""
    other = _other_link(queues, name, rng)
    return None if other is None else {name: queues[other], other: queues[name]}


def _other_link(queues: Queues, name: str, rng: np.random.Generator) -> str | None:
    return _pick(sorted(q for q in queues if unit_of_queue(q) == "c2c" and q != name and len(queues[q])), rng)


LinkMutation = Callable[[Queues, str, int, np.random.Generator], Queues | None]
_LINK_MUTATIONS: Mapping[str, LinkMutation] = {"port": _move, "again": _again, "cross": _cross}
LINK_KINDS = tuple(_LINK_MUTATIONS)


# Of what passes between stages.


def trades(queues: Queues, claims: Claims, name: str, count: int, seed: int) -> Iterator[Mutant]:
    """``count`` mutants in which two instructions of the queue ``name`` that pass something to or from another stage
    trade cycles; with a send goes the read of what it sends, with a receive the write of what it takes."""
    rng, reads = np.random.default_rng(seed), claims.reads
    passing = np.flatnonzero(np.isin(queues[name]["id"], claims.passed["instruction"]))
    for _ in range(count):
        two = queues[name][rng.choice(passing, 2, replace=False)]
        by = int(two["cycle"][1]) - int(two["cycle"][0])
        moves: dict[int, int] = {}
        for number, move in zip(two["id"].tolist(), (by, -by), strict=True):
            beside = reads["writer"][reads["reader"] == number], reads["reader"][reads["writer"] == number]
            moves |= dict.fromkeys([number, *np.concatenate(beside).tolist()], move)
        moves.pop(RESIDENT, None)
        yield Mutant("trade", f"trade of instructions {two['id'].tolist()} in {name}", _moved(queues, moves))


def _moved(queues: Queues, moves: Mapping[int, int]) -> Queues:
    """The queues with some instructions, by id, so many cycles later."""
    out = {}
    for name, rows in queues.items():
        by = np.array([moves.get(number, 0) for number in rows["id"].tolist()], np.int64)
        moved = rows.copy()
        moved["cycle"] = rows["cycle"] + by
        out[name] = moved[np.argsort(moved["cycle"], kind="stable")] if by.any() else rows
    return out
