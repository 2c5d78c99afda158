"""Hand-written programs for the tests of the chip model: queues from lists of (cycle, name, fields)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.encoding import encode
from openlpu.arch.isa import ALU, BY_NAME, BYTE, IMM, QUAD
from openlpu.arch.link import Link
from openlpu.schedule.program import CLAIM_OUTPUT, CLAIM_READ, RESIDENT, Claims, queue_dtype
from openlpu.target.chip.links import Port, Ports
from openlpu.target.chip.machine import Machine, Trace

Line = tuple[int, str, Mapping[str, int]]
TINY = load_chip("tiny")
# A fast link: its packets are under way 16 to 24 cycles, and 30 suffice with clocks that are 4 apart.
LINK = Link("test", cycles=3, packet_bytes=264, mean=20, sigma=1.5, minimum=16, maximum=24, align=2, latency=30)
PORTS = {"c2cw0": Port(LINK, 1, 4), "c2ce0": Port(LINK, 2, 4), "c2cw1": Port(LINK, 3, 4), "c2ce1": Port(LINK, 4, 4)}


def assemble(lines: Mapping[str, Sequence[Line]]) -> dict[str, NDArray]:
    """Queues; ids count from 1 in the order of the lines."""
    queues, number = {}, 0
    for name, queue in lines.items():
        columns = np.zeros(len(queue), queue_dtype(name))
        for i, (cycle, op, fields) in enumerate(queue):
            number += 1
            columns["cycle"][i], columns["op"][i], columns["id"][i] = cycle, BY_NAME[op].opcode, number
            for field, value in fields.items():
                columns[field][i] = value
        queues[name] = columns
    return queues


def make_claims(reads: Sequence[tuple[Any, ...]], outputs: Sequence[tuple[Any, ...]] = ()) -> Claims:
    """Claims from rows of CLAIM_READ and of CLAIM_OUTPUT."""
    return Claims(np.array(list(reads), CLAIM_READ), np.array(list(outputs), CLAIM_OUTPUT))


class Board:
    """A chip, or a group, whose west slices feed vectors to a unit and whose east slices catch its results.

    Feeds flow from slices 0..19, east to any unit but those at the west edge; catches are in slices 20..39, on streams
    of either direction.
    """

    def __init__(self, chip: Chip = TINY, roles: int = 1, links: Ports | None = None) -> None:
        self.chip = chip
        self.machine = Machine(chip, roles, links)
        self.lines: dict[str, list[Line]] = defaultdict(list)
        self.fed = self.caught = 0
        self.pages: list[tuple[str, list[tuple[int, int]]]] = []

    def put(self, queue: str, cycle: int, op: str, **fields: int) -> None:
        """One instruction; queues are sorted by cycle when the program is made."""
        self.lines[queue].append((cycle, op, fields))

    def store(self, slice_: int, address: int, vector: NDArray) -> None:
        """The host writes one vector of bytes, or one for each role."""
        rows = np.broadcast_to(vector, (self.machine.roles, self.chip.lanes))
        for role, row in enumerate(rows):
            self.machine.load(np.array([slice_]), np.array([address]), row[None], role)

    def feed(self, queue: str, cycle: int, stream: int, vector: NDArray) -> None:
        """A vector (or one for each role) that is on ``stream`` at the unit of ``queue`` in ``cycle``."""
        slice_, address = self.fed % 20, self.fed // 20
        self.fed += 1
        self.store(slice_, address, vector)
        hops = abs(self.chip.queue_position(queue) - self.chip.slice_position(slice_))
        self.put(f"mem{slice_}", cycle - hops - self.chip.latency["read"], "read", address=address, stream=stream)

    def catch(self, queue: str, cycle: int, stream: int) -> tuple[int, int]:
        """Write what the unit of ``queue`` posts on ``stream`` in ``cycle``; returns the word."""
        slice_, address = 20 + self.caught % 20, 3000 + self.caught // 20
        self.caught += 1
        hops = abs(self.chip.slice_position(slice_) - self.chip.queue_position(queue))
        self.put(f"mem{slice_}", cycle + hops, "write", address=address, stream=stream)
        return slice_, address

    def fetch(self, queue: str, cycle: int, stream: int = 31) -> None:
        """An ``ifetch`` and what feeds it, in the order of the pages of the queue."""
        at = self.fed
        for i in range(2):
            self.feed(queue, cycle + i, stream, np.zeros(self.chip.lanes, np.uint8))
        self.put(queue, cycle, "ifetch", stream=stream)
        self.pages.append((queue, [(k % 20, k // 20) for k in (at, at + 1)]))

    def queues(self) -> dict[str, NDArray]:
        """The program so far; its pages are stored where they are fetched from."""
        queues = assemble({name: sorted(lines, key=lambda line: line[0]) for name, lines in self.lines.items()})
        left: dict[str, bytes] = {}
        for name, words in self.pages:
            code = left.get(name, encode(name, queues[name])[self.chip.queue_bytes :])
            for i, word in enumerate(words):
                part = code[i * self.chip.lanes :][: self.chip.lanes].ljust(self.chip.lanes, b"\0")
                self.store(*word, np.frombuffer(part, np.uint8))
            left[name] = code[self.chip.ifetch_bytes :]
        return queues

    def run(self, words: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Run, and the vectors at ``words``."""
        self.machine.run(self.queues())
        slices, addresses = np.array(words).T
        return self.machine.peek(slices, addresses)


def vxm_program(
    op: str, a: NDArray, b: NDArray | int | None, kinds: tuple[int, int] = (QUAD, QUAD), dst_kind: int = QUAD
) -> NDArray:
    """One VXM instruction on vectors (int32, or int8 for BYTE kinds); ``b`` may be an immediate.  Returns bytes."""
    board, cycle = Board(), 60
    fields: dict[str, int] = {"dst_kind": dst_kind, "dst": 8}
    for name, value, kind, stream in (("a", a, kinds[0], 0), ("b", b, kinds[1], 4)):
        if value is None:
            continue
        if isinstance(value, int):
            fields |= {f"{name}_kind": IMM, "imm": value}
            continue
        fields |= {f"{name}_kind": kind, name: stream}
        planes = value.reshape(1, -1) if kind == BYTE else value.view(np.uint8).reshape(-1, 4).T
        for k, plane in enumerate(planes):
            board.feed("vxm3", cycle, stream + k, plane)
    board.put("vxm3", cycle, op, **fields)
    done = cycle + board.chip.latency[BY_NAME[op].latency]
    out = board.run([board.catch("vxm3", done, 8 + k) for k in range(4 if dst_kind == QUAD else 1)])
    assert dst_kind != ALU, "a latch is not caught"
    return np.ascontiguousarray(out.T).view(np.int32).ravel() if dst_kind == QUAD else out[0]


def claims_of(trace: Trace, outputs: Sequence[tuple[int, int]], or_resident: int = 0) -> Claims:
    """Claims that say of a program what it does; a word that only values can tell is ``or_resident``'s or older."""
    code, operands = trace.code, trace.operands
    reads = np.zeros(len(operands.row), CLAIM_READ)
    reads["reader"], reads["operand"] = code.id[operands.row], operands.number
    reads["writer"] = np.where(operands.writer >= 0, code.id[operands.writer], RESIDENT)
    reads["part"] = operands.part
    dynamic = (operands.writer < RESIDENT) & (code.op[operands.row] == BY_NAME["read"].opcode)
    reads["writer"][dynamic], reads["or_resident"][dynamic] = or_resident, True
    last = {(int(code.number[r]), int(code.field["address"][r])): int(code.id[r]) for r in operands.memory.last}
    rows = [(*word, last[word], False) for word in outputs]
    rows += [(code.number[r], code.field["address"][r], code.id[r], True) for r in code.rows("scatter")]
    return Claims(reads, np.array(rows, CLAIM_OUTPUT))


SHORT = replace(TINY, queue_bytes=2 * TINY.ifetch_bytes)


def long_sum(count: int = 130, fetches: Sequence[int] = (147, 233)) -> tuple[Board, list[tuple[int, int]]]:
    """1 + 2 + … + ``count`` on one ALU, an addition every second cycle from 60: more bytes than its queue holds.

    Returns the board, a chip of short queues, and the words of the sum.
    """
    board = Board(SHORT)
    for cycle in fetches:
        board.fetch("vxm0", cycle)
    board.put("vxm0", 60, "add_mod", a_kind=IMM, b_kind=IMM, imm=0, dst_kind=ALU)
    for k in range(1, count + 1):
        last = {"dst_kind": QUAD, "dst": 8} if k == count else {"dst_kind": ALU}
        board.put("vxm0", 60 + 2 * k, "add_mod", a_kind=ALU, a=0, b_kind=IMM, imm=k, **last)
    return board, [board.catch("vxm0", 62 + 2 * count, 8 + k) for k in range(4)]


def everything(seed: int = 0) -> tuple[Board, list[tuple[int, int]]]:
    """A program with most instructions: a matrix times a vector, dequantised, quantised, permuted, kept and looked up.

    Returns the board and the words of its results.
    """
    board, rng, chip = Board(), np.random.default_rng(seed), TINY
    lanes, mxm, vxm, sxm = chip.lanes, "mxme0", "vxm0", "sxme"

    def vector() -> NDArray[np.uint8]:
        return rng.integers(0, 256, lanes).astype(np.uint8)

    # Two arrays of eight groups each, two vectors, one sum that flows west to the VXM.
    for tile in range(2):
        start = 60 + 30 * tile
        for group in range(8):
            for k in range(16):
                board.feed(f"{mxm}.weights", start + group, k, vector())
            board.put(f"{mxm}.weights", start + group, "load_weights", stream=0, group=2 * group, step=1)
        board.put(f"{mxm}.weights", start + 8, "install_weights")
        board.feed(f"{mxm}.activations", start + 12, 16, vector())
        board.put(f"{mxm}.activations", start + 12, "activate", stream=16)
        board.put(f"{mxm}.accumulate", start + 32, "accumulate", slot=5, clear=1 - tile, emit=tile, stream=32)
    at = 60 + 30 + 32 + 2 + chip.mxm_position(1) - chip.vxm_position
    board.put(vxm, at, "to_float", a_kind=QUAD, a=32, dst_kind=ALU)
    scale = int(np.float32(0.0003).view(np.int32))
    for k in range(4):
        board.feed(vxm, at + 2, k, np.full(lanes, np.float32(0.5).view(np.int32) >> 8 * k & 255, np.uint8))
    board.put("vxm1", at + 2, "mul", a_kind=ALU, a=0, b_kind=IMM, imm=scale, dst_kind=QUAD, dst=8)
    board.put("vxm2", at + 2, "add", a_kind=ALU, a=0, b_kind=QUAD, b=0, dst_kind=ALU)
    words = [board.catch(vxm, at + 4, 8 + k) for k in range(4)]
    board.put("vxm3", at + 4, "mul", a_kind=ALU, a=2, b_kind=IMM, imm=scale, dst_kind=ALU)
    board.put("vxm4", at + 6, "to_int", a_kind=ALU, a=3, dst_kind=BYTE, dst=12)
    # The codes go to a word, come back, are permuted and distributed at the east SXM, and flow west.
    kept = at + 8 + chip.slice_position(30) - chip.vxm_position
    board.put("mem30", kept, "write", address=77, stream=12)
    board.put("mem30", kept + 4, "read", address=77, stream=13)
    there = kept + 7 + chip.sxm_position(1) - chip.slice_position(30)
    order = rng.permutation(lanes)
    for k in range(2):
        board.feed(f"{sxm}.permute", there, 14 + k, (order >> 8 * k & 255).astype(np.uint8))
    board.put(f"{sxm}.permute", there, "permute", stream=13, dst=40, map=14, count=1)
    words.append(board.catch(f"{sxm}.permute", there + chip.latency["permute"], 40))
    board.feed(f"{sxm}.distribute", there, 20, rng.integers(0, 16, lanes).astype(np.uint8))
    board.put(f"{sxm}.distribute", there, "distribute", stream=13, dst=44, map=20, count=1)
    words.append(board.catch(f"{sxm}.distribute", there + 2, 44))
    for k in range(16):
        board.feed(f"{sxm}.transpose0", there + 30, k, vector())
    board.put(f"{sxm}.transpose0", there + 30, "transpose", stream=0, dst=48)
    words += [board.catch(f"{sxm}.transpose0", there + 34, 48 + k) for k in range(16)]
    board.put(f"{sxm}.shift", there + 30, "shift", stream=3, dst=35, amount=9, north=1, count=2)
    words += [board.catch(f"{sxm}.shift", there + 48, 35 + k) for k in range(2)]
    # A row is looked up by a map and scattered into a cache, of which two rows are read.
    maps = np.zeros((chip.superlanes, 16), np.uint8)
    maps[:, 2] = rng.integers(0, 4, chip.superlanes)
    for i in range(4):
        board.store(19, 500 + i, vector())
        board.store(25, 500 + i, vector())
    look = there + 60
    board.feed("mem19", look, 21, maps.reshape(-1))
    board.put("mem19", look, "gather", address=500, stream=22, map=21, pair=1)
    keep = look + 3 + chip.slice_position(25) - chip.slice_position(19)
    board.put("mem25", keep, "scatter", address=500, stream=22, map=21, pair=1)
    board.feed("mem25", keep, 21, maps.reshape(-1))
    for i in range(2):
        board.put("mem25", keep + 2 + i, "read", address=501 + i, stream=23)
        done = keep + 5 + i + chip.slice_position(39) - chip.slice_position(25)
        board.put("mem39", done, "write", address=i, stream=23)
        words.append((39, i))
    return board, words


def group_ports(roles: int) -> Ports:
    """The links of a group of tiny chips, as far as their four ports reach."""
    return {queue: port for queue, port in PORTS.items() if port.peer < roles}


def exchange(
    roles: int, count: int = 3, late: int = 0, ports: Ports | None = None, chip: Chip = TINY, gap: int = 0
) -> tuple[Board, list[tuple[str, int, tuple[int, int]]], NDArray]:
    """Each chip sends ``count`` vectors of its own by every port, every ``gap`` cycles, and keeps what comes.

    Receives are ``late`` cycles behind the earliest time.  Returns the board, and per vector received its port, its
    number and its word; and the vectors sent, [roles, ports, count, lanes].
    """
    ports = group_ports(roles) if ports is None else ports
    board, rng = Board(chip, roles, ports), np.random.default_rng(roles)
    sent = rng.integers(0, 256, (roles, len(ports), count, chip.lanes)).astype(np.uint8)
    kept = []
    for i, (queue, port) in enumerate(ports.items()):
        for k in range(count):
            out, into = (i + 32, i + 8) if queue[3] == "w" else (i, i + 40)
            cycle = 40 + i + (gap or port.link.cycles) * k
            board.feed(queue, cycle, out, sent[:, i, k])
            board.put(queue, cycle, "send", stream=out)
            there = cycle + port.link.latency + late
            board.put(queue, there, "receive", stream=into)
            kept.append((queue, k, board.catch(queue, there + chip.latency["c2c"], into)))
    return board, kept, sent
