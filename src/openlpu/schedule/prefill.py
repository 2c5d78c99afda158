"""A program and the length of a prompt in; which segment runs which positions, and when the first token is known, out.

A segment of several tokens takes those that a prompt has in one aligned run of positions, be they fewer than it has
places.  Which of them are worth it is a sum of cycles, all known before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from openlpu.schedule.program import Program, Segment, SystemProgram

PROMPTS = (128, 512, 2048)  # lengths that reports print


@dataclass(frozen=True)
class Part:
    """Positions ``start`` to ``end`` of a prompt, which the segment of that number runs together."""

    segment: int
    start: int
    end: int


def parts(segments: Sequence[Segment], cost: Sequence[int], start: int, end: int) -> list[Part]:
    """The parts of least cost that cover positions ``start`` to ``end``; ``cost`` is that of each segment's step.

    Of equal costs the part of more tokens is taken first.
    """
    assert start >= 0 and end <= segments[-1].context, f"position {end - 1} is outside the context"
    best: dict[int, tuple[int, Part | None]] = {end: (0, None)}
    for at in range(end - 1, start - 1, -1):
        found: list[tuple[int, int, Part]] = []
        for chunk in {s.chunk for s in segments}:
            stop = min(at - at % chunk + chunk, end)
            number = next(i for i, s in enumerate(segments) if s.chunk == chunk and stop <= s.context)
            found.append((cost[number] + best[stop][0], -stop, Part(number, at, stop)))
        total, _, part = min(found, key=lambda item: item[:2])
        best[at] = total, part
    out = []
    while part := best[start][1]:
        out.append(part)
        start = part.end
    return out


def prompt_parts(program: Program | SystemProgram, start: int, end: int) -> list[Part]:
    """:func:`parts` by the cycles that a step keeps the chips busy."""
    if isinstance(program, Program):
        return parts(program.segments, [s.cycles for s in program.segments], start, end)
    segments = program.stage(0).program.segments
    return parts(segments, [program.interval(i) for i in range(len(segments))], start, end)


def first_token(program: Program | SystemProgram, prompt: int) -> int:
    """Cycles from the first dispatch of a prompt to the logits behind its last token."""
    steps = [part.segment for part in prompt_parts(program, 0, prompt)]
    if isinstance(program, Program):
        return sum(program.segments[i].cycles for i in steps)
    gaps = {pair: program.gap(*pair) for pair in set(pairwise(steps))}
    return sum(gaps[pair] for pair in pairwise(steps)) + program.cycles(steps[-1])


def prompts(context: int) -> list[int]:
    """Lengths of prompts to report for a context."""
    return [n for n in PROMPTS if n <= context] or [context]
