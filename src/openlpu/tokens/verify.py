"""A compiled model in; whether its program does what its graph says, tensor by tensor, out.

Claims catch a program whose data flow is not what the scheduler meant.  A changed opcode or constant is another legal
program: only comparing values with the reference finds it, and the first tensor that differs says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.arch.truepoint import BLOCK
from openlpu.graph.ir import Graph, Node
from openlpu.schedule.program import Program
from openlpu.target.base import Chunk
from openlpu.target.chip.run import ChipExecutable
from openlpu.target.ref.run import load as load_reference


@dataclass(frozen=True)
class Verdict:
    """``tokens`` were run; ``difference`` is empty when every tensor of each had the reference's bits."""

    tokens: int
    tensors: int
    difference: str


def verify(graph: Graph, program: Program, tokens: int = 4, progress: Progress = silent) -> Verdict:
    """Run the first tokens on the chip model, claims compared, and every fp32 tensor against the reference.

    Each segment takes part: the last token runs in every one that has room for it.  Raises
    :class:`~openlpu._base.errors.ProgramError` when the referee refuses the program.
    """
    if not 1 <= tokens <= program.context:
        raise BadRequest(f"{tokens} is out of range", where="tokens", fix=f"tokens is 1 to {program.context}")
    chip = ChipExecutable(program, graph.params)
    reference = load_reference(graph, context=program.context)
    compared = 0
    ids = [(7919 * i + 1) % graph.config.vocab for i in range(tokens)]
    for position, token in enumerate(ids):
        progress("verify", position, tokens)
        want: dict[str, np.ndarray] = {}
        reference.run([Chunk(0, position, (token,))], _collect(want))
        segments = [segment for segment in program.segments if position < segment.context]
        for segment in segments if position == tokens - 1 else segments[:1]:
            chip.step(token, position, segment)
            for name, rows in segment.tensors.items():
                compared += 1
                if not np.array_equal(chip.value(rows).view(np.int32), want[name].view(np.int32)):
                    where = f"position {position}, segment {segment.context} ({position // BLOCK} blocks before it)"
                    return Verdict(position + 1, compared, f"{name} differs from the reference at {where}")
    return Verdict(tokens, compared, "")


def _collect(into: dict[str, np.ndarray]) -> Callable[[Node, object], None]:
    def observe(node: Node, value: object) -> None:
        if isinstance(value, np.ndarray):
            into[node.output] = value.reshape(-1)

    return observe
