"""``--chunk``: prompts several tokens a step; ``--requests``: several prompts; and the time to the first token, as any
compiled program prints it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu.schedule.program import Program, SystemProgram


def add_option(parser: argparse.ArgumentParser) -> None:
    """How many tokens of a prompt a step may take."""
    parser.add_argument("--chunk", type=chunks, default=(), metavar="N[,M]", help="of chips: steps of up to N "
                        "(and M) tokens of a prompt too: 2, 4, 8 or 16 (default: one token a step)")


def chunks(text: str) -> tuple[int, ...]:
    """The value of ``--chunk``."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens, or several with commas")
    return tuple(sorted({int(part) for part in parts}))


def requests(text: str) -> int:
    """The value of ``--requests``."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests")
    return int(text)


def first_tokens(program: Program | SystemProgram, prompt: int | None = None) -> list[dict[str, int]]:
    """Cycles until the logits behind a prompt of that length are known, or behind prompts of a few lengths."""
    from openlpu.schedule.prefill import first_token, prompts
    from openlpu.schedule.program import Program

    context = program.context if isinstance(program, Program) else program.stage(0).program.context
    if prompt is not None and not 0 < prompt <= context:
        raise BadRequest(f"{prompt} is out of range", where="prompt", fix=f"use 1 to {context}, the program's context")
    lengths = prompts(context) if prompt is None else [prompt]
    return [{"prompt": n, "cycles": first_token(program, n)} for n in lengths]


def summary(result: dict[str, Any]) -> Iterator[str]:
    """A line for each length of prompt."""
    for one in result["first_token"]:
        seconds = one["cycles"] / result["clock_hz"]
        tokens = f"{one['prompt']:>5} token{'s' * (one['prompt'] != 1)}"
        yield f"first token behind {tokens} of a prompt: {units.cycles(one['cycles'])}, {units.duration(seconds)}"


def step(segment: dict[str, Any]) -> str:
    """What a segment's cycles are for."""
    return "per token" if segment["chunk"] == 1 else f"for {segment['chunk']} tokens of a prompt"


def title(segment: dict[str, Any]) -> str:
    """Which segment it is."""
    return f"context {segment['context']}" + (f", {segment['chunk']} tokens a step" if segment["chunk"] > 1 else "")


def unit(segment: dict[str, Any]) -> str:
    """What a segment runs."""
    return "token" if segment["chunk"] == 1 else "step"
