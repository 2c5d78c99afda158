"""A compiled model in; whether its program does what its graph says, tensor by tensor, out.

Claims catch a program whose data flow is not what the scheduler meant.  A changed opcode or constant is another legal
program: only comparing values with the reference finds it, and the first tensor that differs says where.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.partition.names import shift
from openlpu.place.host import Step
from openlpu.schedule.program import Program, Segment
from openlpu.schedule.search import Found
from openlpu.schedule.sweeps import is_encoder
from openlpu.target.base import F32, Chunk
from openlpu.target.chip.encoders import SystemEncoder
from openlpu.target.chip.run import ChipExecutable, EncoderExecutable
from openlpu.target.chip.system import SystemExecutable
from openlpu.target.ref.run import load as load_reference

WHOLE = ".whole"  # of a value's name: gathered on every chip


@dataclass(frozen=True)
class Verdict:
    """``tokens`` were run of each of ``requests``; ``difference`` is empty when every tensor of each had the
    reference's bits."""

    requests: int
    tokens: int
    tensors: int
    difference: str


class Runner(Protocol):
    """Chips that run a step in a segment and can then be looked into."""

    segments: tuple[Segment, ...]

    def step(self, step: Step, segment: int) -> None:
        """Run a step in the segment of that number."""
        ...

    def tensors(self, segment: int, known: Container[str]) -> Iterator[tuple[str, F32]]:
        """Every fp32 value of the step's last token under the graph's name for it, if it is ``known``."""
        ...


class OneChip:
    """A program of one chip."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.chip = ChipExecutable(program, graph.params)
        self.segments = program.segments

    def step(self, step: Step, segment: int) -> None:
        """As :class:`Runner`."""
        self.chip.step(step, self.segments[segment])

    def tensors(self, segment: int, known: Container[str]) -> Iterator[tuple[str, F32]]:
        """As :class:`Runner`."""
        for name, rows in self.segments[segment].tensors.items():
            if name in known:
                yield name, self.chip.value(rows)


class ManyChips:
    """The programs of a system's stages."""

    def __init__(self, graph: Graph, found: Found) -> None:
        self.chips = SystemExecutable(found.program, graph.params, found.system)
        self.segments = found.program.stage(0).program.segments

    def step(self, step: Step, segment: int) -> None:
        """As :class:`Runner`."""
        self.chips.step(step, segment)

    def tensors(self, segment: int, known: Container[str]) -> Iterator[tuple[str, F32]]:
        """As :class:`Runner`; what only exchanges know, a chip's own scale say, has no name in the graph."""
        program = self.chips.program
        for s, first in enumerate(program.first):
            for name in program.stage(s).program.segments[segment].tensors:
                if (meant := shift(name, first).removesuffix(WHOLE)) in known:
                    yield meant, self.chips.value(s, segment, name)


def verify(graph: Graph, program: Program | Found, tokens: int = 4, progress: Progress = silent) -> Verdict:
    """Run the first tokens of every request on the chip model, other ones of each and by turns, claims compared, and
    every fp32 tensor against the reference.

    Each segment takes part: the last token runs in every one that has room for it, in those of several tokens with the
    ones before it.  Raises
    :class:`~openlpu._base.errors.ProgramError` when the referee refuses the program.
    """
    first = program if isinstance(program, Program) else program.program.stage(0).program
    context, requests = first.context, first.requests
    if not 1 <= tokens <= context:
        raise BadRequest(f"{tokens} is out of range", where="tokens", fix=f"tokens is 1 to {context}")
    if is_encoder(first):
        return _sequence(graph, program, [(7919 * i + 1) % graph.config.vocab for i in range(tokens)], progress)
    chips: Runner = OneChip(graph, program) if isinstance(program, Program) else ManyChips(graph, program)
    reference = load_reference(graph, slots=requests, context=context)
    compared = 0
    for position, request in product(range(tokens), range(requests)):
        progress("verify", position * requests + request, tokens * requests)
        ids = tuple((7919 * (i + 31 * request) + 1) % graph.config.vocab for i in range(position + 1))
        want: dict[str, np.ndarray] = {}
        reference.run([Chunk(request, position, ids[position:])], _collect(want))
        able = [i for i, s in enumerate(chips.segments) if position < s.context]
        for segment in able if position == tokens - 1 else able[:1]:
            chunk, name = chips.segments[segment].chunk, chips.segments[segment].name
            start = position - position % chunk
            chips.step(Step(start, ids[start:], chunk, request), segment)
            for tensor, value in chips.tensors(segment, want):
                compared += 1
                if not np.array_equal(value.view(np.int32), want[tensor].view(np.int32)):
                    where = f"position {position}, segment {name} ({position // BLOCK} blocks before it)"
                    where += f", request {request} of {requests}" if requests > 1 else ""
                    return Verdict(requests, position + 1, compared, f"{tensor} differs from the reference at {where}")
    return Verdict(requests, tokens, compared, "")


def _sequence(graph: Graph, program: Program | Found, ids: list[int], progress: Progress) -> Verdict:
    """An encoder's hidden states: of the whole sequence, and of its first token alone."""
    chip = (EncoderExecutable(program, graph.params) if isinstance(program, Program)
            else SystemEncoder(program.program, graph.params, program.system))
    reference = load_reference(graph, context=chip.context)
    for done, length in enumerate(lengths := sorted({1, len(ids)})):
        progress("verify", done, len(lengths))
        chunk = [Chunk(0, 0, tuple(ids[:length]), every=True)]
        (got,), (want,) = chip.run(chunk), reference.run(chunk)
        wrong = np.flatnonzero((got.view(np.int32) != want.view(np.int32)).any(axis=1))
        if len(wrong):
            return Verdict(1, len(ids), done + 1, f"the hidden state of position {wrong[0]} of {length} differs")
    return Verdict(1, len(ids), len(lengths), "")


def _collect(into: dict[str, np.ndarray]) -> Callable[[Node, object], None]:
    def observe(node: Node, value: object) -> None:
        if isinstance(value, np.ndarray):
            into[node.output] = value.reshape(-1)

    return observe
