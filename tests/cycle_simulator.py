"""The obvious simulator: every stream register of every chip moves every cycle.  Slow, and independent of the chip
model's tricks.  A value is [roles, lanes]: what each chip of the group has there.

It knows what instructions do, not what is forbidden; :func:`random_program` only makes instructions that it sees to
be possible, so the chip model must accept them and agree on every word of SRAM.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping

import numpy as np
from chip_programs import Line
from numpy.typing import NDArray

from openlpu.arch.chip import Chip
from openlpu.arch.isa import ALU, BY_NAME, BYTE, IMM, QUAD
from openlpu.target.chip.links import Port

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
ALU_OPS: dict[str, Callable[[I32, I32], I32]] = {
    "pass": lambda a, b: a, "add_mod": lambda a, b: a + b, "sub_mod": lambda a, b: a - b, "mask": lambda a, b: a & b,
    "max_int": lambda a, b: np.where(a > b, a, b),
}


class Simulator:
    """State of all chips in cycle ``now``."""

    def __init__(self, chip: Chip, roles: int) -> None:
        self.chip, self.roles, self.now = chip, roles, 0
        self.words: dict[tuple[int, int], U8] = {}
        self.landing: dict[int, list[tuple[tuple[int, int], U8, NDArray]]] = defaultdict(list)
        self.streams: dict[tuple[int, int], U8] = {}  # (stream, position)
        self.posts: dict[int, dict[tuple[int, int], U8]] = defaultdict(dict)
        self.latch: dict[tuple[int, int], I32] = {}  # (ALU, cycle)
        self.buffer: dict[int, U8] = {}  # of plane mxme0: group -> 16 rows
        self.arrays: list[tuple[int, NDArray]] = []  # (ready, array)
        self.sums: dict[int, I32] = {}
        self.slots: dict[int, I32] = {}
        # By port and receiving role: when each vector arrives, and the vector.
        self.wires: dict[tuple[str, int], deque[tuple[int, U8]]] = defaultdict(deque)
        self.last: dict[str, int] = {}  # when each port sent last

    def advance(self) -> None:
        """One cycle: streams hop, results appear, writes land."""
        self.now += 1
        moved = {(s, x + (1 if s < 32 else -1)): v for (s, x), v in self.streams.items()}
        self.streams = {k: v for k, v in moved.items() if 0 <= k[1] < self.chip.positions}
        self.streams |= self.posts.pop(self.now, {})
        for word, vector, part in self.landing.pop(self.now, []):
            self.words[word] = np.where(part, vector, self.words.get(word, vector))

    def free(self, x: int, streams: range, cycle: int) -> bool:
        """Whether nothing else appears on these streams at ``x`` in ``cycle``."""
        return all((s, x) not in self.posts[cycle] for s in streams)

    def post(self, x: int, cycle: int, stream: int, vectors: list[U8]) -> None:
        """Results for later."""
        for k, vector in enumerate(vectors):
            self.posts[cycle][stream + k, x] = vector

    def in_flight(self, slice_: int) -> set[int]:
        """Addresses of a slice being written."""
        return {a for writes in self.landing.values() for (s, a), _, _ in writes if s == slice_}


def addresses(vectors: U8, base: int) -> NDArray[np.int64]:
    """Word per role and superlane of a map in lanes 0 and 1, -1: none."""
    lanes = vectors.reshape(len(vectors), -1, 16).astype(np.int64)
    offset = lanes[..., 0] + 256 * lanes[..., 1]
    return np.where(offset == 0xFFFF, -1, base + offset)


def planes_of(value: I32) -> list[U8]:
    """The four bytes of numbers, each [roles, lanes]."""
    planes = np.ascontiguousarray(value).view(np.uint8).reshape(*value.shape, 4)
    return [np.ascontiguousarray(planes[..., k]) for k in range(4)]


class Generator:
    """Makes a random program of a group of chips while simulating it."""

    def __init__(self, chip: Chip, seed: int, roles: int = 1, links: Mapping[str, Port] | None = None) -> None:
        self.chip, self.rng, self.links = chip, np.random.default_rng(seed), links or {}
        self.sim = Simulator(chip, roles)
        self.lines: dict[str, list[Line]] = defaultdict(list)
        for slice_ in range(chip.slices):
            for address in range(6):
                vector = self.rng.integers(0, 256, (roles, chip.lanes)).astype(np.uint8)
                if address < 3:  # maps of words 0..5 and of nothing
                    tiles = vector.reshape(-1, 16)
                    tiles[:, 0], tiles[:, 1] = self.rng.integers(0, 6, len(tiles)), 0
                    tiles[self.rng.random(len(tiles)) < 0.2, :2] = 255
                self.sim.words[slice_, address] = vector

    def run(self, cycles: int) -> None:
        """``cycles`` with random instructions, then until nothing is under way."""
        for _ in range(cycles):
            for slice_ in self.rng.permutation(self.chip.slices)[:12]:
                self._mem(int(slice_))
            for alu in range(self.chip.vxm_alus):
                self._alu(alu)
            self._sxm()
            self._mxm(True)
            for port in self.links:
                self._link(port, True)
            self.sim.advance()
        while self.sim.sums or self.sim.landing or any(self.sim.wires.values()):
            self._mxm(False)
            for port in self.links:
                self._link(port, False)
            self.sim.advance()

    def _put(self, queue: str, op: str, **fields: int) -> None:
        self.lines[queue].append((self.sim.now, op, fields))

    def _stream(self, x: int) -> int | None:
        """A stream that carries something at ``x``."""
        there = [s for s, at in self.sim.streams if at == x]
        return int(there[self.rng.integers(len(there))]) if there else None

    def _target(self, x: int, cycle: int, count: int, align: int = 1) -> int | None:
        """First of ``count`` streams on which nothing else appears at ``x`` in ``cycle``."""
        first = int(self.rng.integers(0, 64 // align)) * align
        run = range(first, first + count)
        inside = first // 32 == run[-1] // 32
        return first if inside and self.sim.free(x, run, cycle) else None

    def _mem(self, slice_: int) -> None:
        sim, chip = self.sim, self.chip
        queue, x = f"mem{slice_}", chip.slice_position(slice_)
        address, source, map_ = int(self.rng.integers(0, 6)), self._stream(x), self._stream(x)
        done = sim.now + chip.latency["read"]
        target = self._target(x, done, 1)
        kind = ("read", "read", "write", "gather", "scatter")[self.rng.integers(5)]
        flying = sim.in_flight(slice_)
        if kind == "read" and target is not None and address not in flying:
            self._put(queue, "read", address=address, stream=target)
            sim.post(x, done, target, [sim.words[slice_, address]])
        elif kind == "write" and source is not None:
            self._put(queue, "write", address=address, stream=source)
            everywhere = np.ones(chip.lanes, bool)
            sim.landing[sim.now + 2].append(((slice_, address), sim.streams[source, x], everywhere))
        elif kind in ("gather", "scatter") and map_ is not None:
            words = addresses(sim.streams[map_, x], 0)
            if words.max() > 5:
                return
            if kind == "gather" and target is not None and not flying & set(words.ravel().tolist()):
                self._put(queue, "gather", address=0, stream=target, map=map_)
                rows = [[sim.words[slice_, a][r].reshape(-1, 16)[k] if a >= 0 else np.zeros(16, np.uint8)
                         for k, a in enumerate(row)] for r, row in enumerate(words.tolist())]
                sim.post(x, done, target, [np.array(rows).reshape(sim.roles, -1)])
            elif kind == "scatter" and source is not None:
                self._put(queue, "scatter", address=0, stream=source, map=map_)
                for a in set(words.ravel().tolist()) - {-1}:
                    part = np.repeat(words == a, 16, axis=1)
                    sim.landing[sim.now + 2].append(((slice_, a), sim.streams[source, x], part))

    def _operand(self, name: str, x: int) -> tuple[dict[str, int], I32] | None:
        sim, choice = self.sim, self.rng.integers(4)
        if choice == 0:
            value = int(self.rng.integers(-(2**31), 2**31))
            return {f"{name}_kind": IMM, "imm": value}, np.full((self.sim.roles, self.chip.lanes), value, np.int32)
        if choice == 1:
            alu = int(self.rng.integers(self.chip.vxm_alus))
            held = sim.latch.get((alu, sim.now))
            return None if held is None else ({f"{name}_kind": ALU, name: alu}, held)
        stream = self._stream(x)
        if stream is None:
            return None
        if choice == 2:
            return {f"{name}_kind": BYTE, name: stream}, sim.streams[stream, x].view(np.int8).astype(np.int32)
        first = stream // 4 * 4
        planes = [sim.streams.get((first + k, x)) for k in range(4)]
        if any(p is None for p in planes):
            return None
        word = np.stack([p for p in planes if p is not None], axis=-1)
        return {f"{name}_kind": QUAD, name: first}, np.ascontiguousarray(word).view(np.int32)[..., 0]

    def _alu(self, alu: int) -> None:
        sim, x = self.sim, self.chip.vxm_position
        op = list(ALU_OPS)[self.rng.integers(len(ALU_OPS))]
        a, b = self._operand("a", x), self._operand("b", x)
        kind = (QUAD, BYTE, ALU)[self.rng.integers(3)]
        done = sim.now + self.chip.latency[BY_NAME[op].latency]
        count = {QUAD: 4, BYTE: 1, ALU: 0}[kind]
        target = self._target(x, done, max(count, 1), 4 if kind == QUAD else 1)
        if a is None or (b is None and op != "pass") or target is None:
            return
        fields = a[0] | {"dst_kind": kind, "dst": target}
        value = a[1]
        if op != "pass" and b is not None:
            if a[0]["a_kind"] == IMM and b[0]["b_kind"] == IMM:
                b = b[0], value  # there is one immediate
            fields = b[0] | fields
            value = ALU_OPS[op](a[1], b[1])
        self._put(f"vxm{alu}", op, **fields)
        sim.latch[alu, done] = value
        sim.post(x, done, target, planes_of(value)[:count])

    def _sxm(self) -> None:
        sim, chip = self.sim, self.chip
        x = chip.sxm_position(1)
        source = self._stream(x)
        done = sim.now + chip.latency["shift"]
        target = self._target(x, done, 1)
        if source is not None and target is not None:
            amount = int(self.rng.integers(0, chip.lanes))
            self._put("sxme.shift", "shift", stream=source, dst=target, amount=amount, north=1, count=1)
            moved = np.zeros((sim.roles, chip.lanes), np.uint8)
            moved[:, amount:] = sim.streams[source, x][:, : chip.lanes - amount]
            sim.post(x, done, target, [moved])

    def _mxm(self, new: bool) -> None:
        sim, chip = self.sim, self.chip
        x, queue = chip.queue_position("mxme0.weights"), "mxme0"
        if sim.now in sim.sums:
            self._accumulate(x)
        source = self._stream(x)
        if not new or source is None:
            return
        group = int(self.rng.integers(0, chip.lanes // 16))
        if sim.buffer and self.rng.random() < 0.3:
            array = np.zeros((sim.roles, chip.lanes, chip.lanes), np.int64)
            for g, row in sim.buffer.items():
                array[:, 16 * g : 16 * g + 16] = row.view(np.int8)[:, None]
            self._put(f"{queue}.weights", "install_weights")
            sim.arrays.append((sim.now + chip.latency["install"], array))
            sim.buffer = {}
        elif group not in sim.buffer:
            self._put(f"{queue}.weights", "load_weights", stream=source, group=group, step=0)
            sim.buffer[group] = sim.streams[source, x]
        ready = [array for cycle, array in sim.arrays if cycle <= sim.now]
        if ready and self.rng.random() < 0.5:
            self._put(f"{queue}.activations", "activate", stream=source)
            vector = sim.streams[source, x].view(np.int8).astype(np.int64)
            sums = [array @ v for array, v in zip(ready[-1], vector, strict=True)]
            sim.sums[sim.now + chip.latency["matmul"]] = np.stack(sums).astype(np.int32)

    def _accumulate(self, x: int) -> None:
        sim = self.sim
        total, slot = sim.sums.pop(sim.now), int(self.rng.integers(0, 3))
        add = slot in sim.slots and self.rng.random() < 0.6
        total = total + sim.slots[slot] if add else total
        done = sim.now + self.chip.latency["accumulate"]
        target = self._target(x, done, 4, 4)
        fields = {"slot": slot, "clear": int(not add), "emit": int(target is not None), "stream": target or 0}
        self._put("mxme0.accumulate", "accumulate", **fields)
        sim.slots[slot] = total
        if target is not None:
            sim.post(x, done, target, planes_of(total))

    def _link(self, queue: str, new: bool) -> None:
        """Receive what has come, or send something that the buffer at the other end is certain to have room for."""
        sim, port, x = self.sim, self.links[queue], self.chip.queue_position(queue)
        wires = [sim.wires[queue, r] for r in range(sim.roles)]
        done = sim.now + self.chip.latency["c2c"]
        target, source = self._target(x, done, 1), self._stream(x)
        here = wires[0] and wires[0][0][0] <= sim.now
        room = sim.now >= sim.last.get(queue, -port.link.cycles) + port.link.cycles and len(wires[0]) < port.depth
        if here and target is not None and (not new or self.rng.random() < 0.7):
            self._put(queue, "receive", stream=target)
            sim.post(x, done, target, [np.stack([wire.popleft()[1] for wire in wires])])
        elif new and source is not None and room and self.rng.random() < 0.5:
            self._put(queue, "send", stream=source)
            sim.last[queue] = sim.now
            for r in range(sim.roles):
                wires[r ^ port.peer].append((sim.now + port.link.latency, sim.streams[source, x][r]))
