"""Instruction queues in; what they do that costs energy, and the femtojoules that costs, out.

Every count is exact and every constant an integer, so energies add up exactly, over units as over chips.  Nothing
depends on the values that flow: a byte costs what a byte costs on average, a product with an idle row of the MXM what
any product does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.encoding import SIZES
from openlpu.arch.isa import ACCUMULATES, BY_NAME, BYTE, LOADED, POSTS, QUAD, TABLE, unit_of_queue

Ints = NDArray[np.int64]
FJ_PER_JOULE = 10**15

OF_FIELD = {"emit": lambda n: 4 * n, "size": lambda n: n * n, "count": lambda n: n}
SPECIAL = "vxm_special"
MEMORY = ("read", "gather", "write", "scatter")


@dataclass(frozen=True)
class Constants:
    """Femtojoules of each thing counted in a process called ``name``; static power in milliwatts per MiB of SRAM."""

    name: str
    sram_byte: int
    stream_hop: int
    int8_mac: int
    alu_operation: int
    alu_special: int
    link_bit: int
    static_mw_per_mib: int


@cache
def load_constants(chip: str = "") -> Constants:
    """The constants of ``energy.toml`` for a chip's name, where each has its source; the first process's by default."""
    processes = tomllib.loads((files("openlpu.arch") / "energy.toml").read_text("utf-8"))
    named = {name: words.pop("chips", ()) for name, words in processes.items()}
    process = next((name for name, chips in named.items() if chip in chips), next(iter(named)))
    return Constants(process, **processes[process])


@dataclass(frozen=True)
class Counts:
    """What instructions did: ``stream_hops`` are bytes times the registers they passed, their first one included."""

    sram_bytes: int = 0
    stream_hops: int = 0
    int8_macs: int = 0
    alu_operations: int = 0
    alu_specials: int = 0
    link_bits: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Counts:
        return Counts(*(getattr(self, f.name) * times for f in fields(self)))


def count(chip: Chip, queues: Mapping[str, NDArray], packet_bytes: int = 0) -> Counts:
    """What all instructions of one chip's queues do; ``packet_bytes`` are those of a vector on a link."""
    done = np.zeros(len(TABLE), np.int64)
    for rows in queues.values():
        done += np.bincount(rows["op"], minlength=len(TABLE))
    number = {i.name: int(done[i.opcode]) for i in TABLE}
    lanes = chip.lanes
    assert packet_bytes or not number["send"], "a chip that sends has links"
    return Counts(
        sram_bytes=lanes * sum(number[name] for name in MEMORY),
        stream_hops=lanes * sum(_stream_hops(chip, queues)) + _register_bytes(chip, queues, number),
        int8_macs=lanes**2 * (number["activate"] + 2 * number["activate_fp16"]),
        alu_operations=lanes * (sum(number[name] for name in ACCUMULATES) + sum(
            number[i.name] for i in TABLE if i.unit == "vxm" and i.latency != SPECIAL)),
        alu_specials=lanes * sum(number[i.name] for i in TABLE if i.latency == SPECIAL),
        link_bits=8 * packet_bytes * number["send"],
    )


def _register_bytes(chip: Chip, queues: Mapping[str, NDArray], number: Mapping[str, int]) -> int:
    """Bytes into registers that are not on a stream: weights into buffer and array, vectors on their way through an
    SXM, instructions to all tiles of their unit."""
    weights = LOADED * chip.lanes * number["load_weights"] + chip.lanes**2 * number["install_weights"]
    inside = sum(
        chip.latency[TABLE[op].latency] * int(width[rows["op"] == op].sum())
        for queue, rows in queues.items() if queue.startswith("sxm")
        for width in [_width(queue, rows)] for op in np.unique(rows["op"]).tolist()
    )
    instructions = sum(int(SIZES[rows["op"]].sum()) for rows in queues.values())
    return weights + chip.lanes * inside + chip.superlanes * instructions


def _stream_hops(chip: Chip, queues: Mapping[str, NDArray]) -> Iterator[int]:
    """Registers passed by the values put on each stream: to the edge, or until another value takes their place."""
    every = (p for queue, rows in queues.items() if len(rows) for p in _posts(chip, queue, rows))
    posts = [p for p in every if len(p[0])]
    if not posts:
        return
    stream, position, cycle = (np.concatenate(column) for column in zip(*posts, strict=True))
    east = stream < chip.streams_per_direction
    along = np.where(east, position, chip.positions - 1 - position)  # registers from where its streams begin
    diagonal = along - cycle
    diagonal -= diagonal.min()
    lane = stream * (int(diagonal.max()) + 1) + diagonal  # what meets on one follows each other on a stream
    both = lane * chip.positions + along  # one number, as short as can be: sorting is what takes the time
    lane, along = np.divmod(np.sort(both.astype(np.min_scalar_type(both.max()))).astype(np.int64), chip.positions)
    replaced = lane[1:] == lane[:-1]
    end = np.append(np.where(replaced, along[1:], chip.positions), chip.positions)
    yield int((end - along).sum())


def _posts(chip: Chip, queue: str, rows: NDArray) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(stream, position, cycle) of every byte stream that a queue's instructions put a vector on."""
    latency = np.array([chip.latency[i.latency] if i.latency else 0 for i in TABLE])
    width, first = _width(queue, rows), _first(rows)
    which = np.repeat(np.arange(len(rows)), width)
    k = np.arange(len(which)) - np.repeat(np.cumsum(width) - width, width)
    cycle = rows["cycle"].astype(np.int64) + latency[rows["op"]]
    yield first[which] + k, np.full(len(which), chip.queue_position(queue), np.int64), cycle[which]


def _width(queue: str, rows: NDArray) -> Ints:
    """Byte streams that each instruction of a queue puts a result on."""
    if unit_of_queue(queue) == "vxm":
        return np.array([{QUAD: 4, BYTE: 1}.get(kind, 0) for kind in range(8)])[rows["dst_kind"]]
    out = np.zeros(len(rows), np.int64)
    for name, _, many in POSTS:
        of = rows["op"] == BY_NAME[name].opcode
        if of.any():
            out[of] = OF_FIELD[many](rows[many][of].astype(np.int64)) if isinstance(many, str) else many
    return out


def _first(rows: NDArray) -> Ints:
    """The first of them."""
    names = rows.dtype.names or ()
    return rows["dst" if "dst" in names else "stream" if "stream" in names else "cycle"].astype(np.int64)


def dynamic(counts: Counts, of: Constants) -> dict[str, int]:
    """Femtojoules by what they were spent on."""
    return {
        "SRAM": counts.sram_bytes * of.sram_byte,
        "streams": counts.stream_hops * of.stream_hop,
        "MXM": counts.int8_macs * of.int8_mac,
        "ALUs": counts.alu_operations * of.alu_operation + counts.alu_specials * of.alu_special,
        "links": counts.link_bits * of.link_bit,
    }


def static(chip: Chip, of: Constants, cycles: int) -> int:
    """Femtojoules that a chip takes in so many cycles whatever it does, rounded down."""
    sram = chip.slices * chip.words_per_slice * chip.lanes
    return of.static_mw_per_mib * sram * cycles * (FJ_PER_JOULE // 1000) // (2**20 * chip.clock_hz)
