"""A plan in, addresses out: weights, caches, values and arguments, all placed once.

Weights are packed in the order the stages read them, so a step is one walk through memory.  Values are placed by
lifetime: a value's bytes are free for others after the last stage that reads it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openlpu.graph.ir import Graph, Value
from openlpu.target.cpu.attention import shared_bytes
from openlpu.target.cpu.attention_block import AttentionStage
from openlpu.target.cpu.image import Image
from openlpu.target.cpu.linear import code_stride, padded, value_stride
from openlpu.target.cpu.memory import Arena
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Operand, Plan, Stage
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT

MAX_ROWS = 64  # token rows of one native step; longer work is cut, which cannot change a bit


class Layout:
    """Owns all memory of an executable; ``args[i]`` is the address of stage i's argument slots."""

    def __init__(self, graph: Graph, plan: Plan, path: Path, slots: int, image: Image) -> None:
        self.plan, self.path, self.image = plan, path, image
        self.params = image.addresses()
        self.values = self._values(graph)
        per_layer = plan.cache.layer_bytes(slots)
        layers = {o.name for stage in plan.stages for o in stage.operands if o.kind == "cache"}
        self.cache = Arena(per_layer * len(layers))
        self.caches = {name: self.cache.address + self.cache.take(per_layer) for name in sorted(layers, key=int)}
        attentions = [stage.spec for stage in plan.stages if isinstance(stage.spec, AttentionStage)]
        self.parts = Arena(max(map(shared_bytes, attentions), default=0))
        words = sum(1 + len(stage.operands) for stage in plan.stages)
        self._table = Arena(64 * len(plan.stages) + 8 * words + ROWS_AT + ROW_BYTES * MAX_ROWS + 64)
        at = self._table.take(ROWS_AT + ROW_BYTES * MAX_ROWS)
        self.step = self._table.view(at, ROWS_AT + ROW_BYTES * MAX_ROWS)
        self.step_address = self._table.address + at
        self.args = [self._arguments(i, stage) for i, stage in enumerate(plan.stages)]

    def _arguments(self, number: int, stage: Stage) -> int:
        slots = [number, *(self._resolve(operand) for operand in stage.operands)]
        at = self._table.take(8 * len(slots))
        self._table.view(at, 8 * len(slots)).view(np.int64)[:] = slots
        return self._table.address + at

    def _resolve(self, operand: Operand) -> int:
        if operand.kind == "cache":
            return self.caches[operand.name]
        if operand.kind == "parts":
            return self.parts.address
        if operand.kind in ("value", "meta"):
            name = operand.name
            if operand.kind == "value":
                name = self.plan.alias.get(name, name)
            # A value that fusion made superfluous has no place and is not read.
            offset = self.values.get((operand.kind, name))
            return 0 if offset is None else self.buffer.address + offset
        return self.params[operand]

    def _value_bytes(self, name: str, values: Mapping[str, Value]) -> dict[tuple[str, str], int]:
        """What a value needs for MAX_ROWS tokens: numbers, or codes and their scales and sums."""
        rows = MAX_ROWS * self.plan.experts.get(name, (1, 1))[0]
        if name not in self.plan.codes:
            size = self.plan.tables[name] if name in self.plan.tables else values[name].size
            return {("value", name): rows * 4 * value_stride(size)}
        sizes = {("meta", name): 16 * rows}
        if name not in self.plan.alias:
            sizes["value", name] = rows * code_stride(self.path, *self.plan.codes[name])
        return sizes

    def _values(self, graph: Graph) -> dict[tuple[str, str], int]:
        """Offsets of all values in one buffer: bytes that no later stage reads are given out again."""
        stages = self.plan.stages
        last = {name: i for i, stage in enumerate(stages) for name in stage.reads + stage.writes}
        last[graph.output] = len(stages)
        free: dict[int, list[int]] = {}  # size -> offsets
        sizes: dict[tuple[str, str], int] = {}
        places: dict[tuple[str, str], int] = {}
        end = 0
        for i, stage in enumerate(stages):
            for key, size in [item for name in stage.writes for item in self._value_bytes(name, graph.values).items()]:
                sizes[key] = size = padded(size, 64)
                if free.get(size):
                    places[key] = free[size].pop()
                else:
                    places[key], end = end, end + size
            for key in [key for key in places if last[key[1]] == i]:
                free.setdefault(sizes[key], []).append(places[key])
        self.buffer = Arena(end)
        return places

    def move(self, image: Image) -> None:
        """Read the parameters from another copy of the image from now on."""
        self.image, self.params = image, image.addresses()
        for stage, address in zip(self.plan.stages, self.args, strict=True):
            for slot, operand in enumerate(stage.operands, 1):
                if operand in self.params:
                    ctypes.c_int64.from_address(address + 8 * slot).value = self.params[operand]

    def value(self, name: str, size: int) -> NDArray[np.uint8]:
        """The bytes of a value."""
        return self.buffer.view(self.values["value", name], size)
