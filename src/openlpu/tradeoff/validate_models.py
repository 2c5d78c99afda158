"""Published rates of language models in; rows that compile each model from its shape out.

Every figure of ours is that of a scheduled program.  Most publications name neither the split nor the length of a
prompt; ours are in the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from openlpu.arch.energy import FJ_PER_JOULE
from openlpu.arch.system import load_system
from openlpu.graph.shapes import shape
from openlpu.numerics.outline import outline
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.fewest import codes
from openlpu.schedule.joules import energy
from openlpu.schedule.kinds import Programs, workers_for
from openlpu.schedule.prefill import first_token
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.search import lined_up
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.schedule.tracks import of_system
from openlpu.tradeoff.validate import Kind, Row

RACK = 72  # chips of a rack; systems are of whole ones
PROMPT = 1024  # tokens, where no length is published


@dataclass(frozen=True)
class Model:
    """A shape by its name on the chips of ``rack``, split so, at a context."""

    name: str
    split: Split
    context: int

    def __str__(self) -> str:
        halves = " of half layers" if self.split.halves else ""
        return (f"ours: {self.split.chips} chips, {self.split.stages} stages{halves} of {self.split.tensor}, "
                f"context {self.context:,}")


LLAMA_2_70B = Model("llama-2-70b", Split(8, 72, halves=True), 4096)
LLAMA_2_7B = Model("llama-2-7b", Split(8, 16), 2048)
LLAMA_3_8B = Model("llama-3-8b", Split(8, 16), 2048)
MISTRAL = Model("mistral-7b", Split(8, 16), 8192)
MIXTRAL = Model("mixtral-8x7b", Split(8, 36, halves=True), 4096)


def rows() -> list[Row]:
    """Tokens per second of one request, then times, then joules."""
    return [
        _row("L1", "Llama-2-70B, one request", LLAMA_2_70B, 300, 300, "tok/s", "press", rate,
             "tensor width not published"),
        _row("L2", "Llama-2-7B, one request", LLAMA_2_7B, 750, 750, "tok/s", "press", rate, "chips not published"),
        _row("L4", "Mixtral 8x7B, one request", MIXTRAL, 480, 500, "tok/s", "press", rate,
             "published on 576 chips, batch about 3"),
        _row("L5", "Llama-3-8B, one request", LLAMA_3_8B, 1300, None, "tok/s", "press", rate, "chips not published"),
        _row("P1", "time to the first token", LLAMA_2_70B, None, 100, "ms", "press", first_ms,
             f"prompt not published; {PROMPT:,} tokens here"),
        _row("P2", "Mistral-7B, a token at 8k context", MISTRAL, None, 10, "ms", "press", token_ms,
             "model not published"),
        _row("P3", "energy per token, pipeline full", LLAMA_2_70B, 1, 3, "J", "press", full_joules,
             "no primary source; 10 to 30 J on GPUs are not modelled"),
        _row("P4", "energy per token, one request alone", LLAMA_2_70B, 1, 3, "J", "press", alone_joules,
             "no primary source; see X5"),
    ]


def _row(
    name: str, what: str, model: Model, low: float | None, high: float | None, unit: str, source: str,
    ours: Callable[[Model], float], missing: str,
) -> Row:
    return Row(name, what, str(model), low, high, unit, source, lambda: ours(model), Kind.PREDICTED, missing=missing,
               long=True)


@cache
def compiled(model: Model) -> SystemProgram:
    """The program of a model for one context."""
    system, graph = load_system("rack", RACK * -(-model.split.chips // RACK)), outline(shape(model.name, model.context))
    wired = lined_up(system, model.split)
    local, hops = cables(wired, model.split)
    with workers_for(codes(graph)) as workers:
        return schedule_system(shard(graph, model.split), system.chip, local, hops, contexts=[model.context],
                               pace=paced(wired, model.split), programs=Programs(system.chip, workers=workers))


def rate(model: Model) -> float:
    """Tokens per second of one request."""
    return 1000 / token_ms(model)


def token_ms(model: Model) -> float:
    """Milliseconds of a token."""
    return _ms(model, compiled(model).cycles(0))


def first_ms(model: Model) -> float:
    """Milliseconds from a prompt to its first token."""
    return _ms(model, first_token(compiled(model), PROMPT))


def alone_joules(model: Model) -> float:
    """Joules of a token of one request alone."""
    return energy(of_system(compiled(model), 0).chips).alone / FJ_PER_JOULE


def full_joules(model: Model) -> float:
    """Joules of a token with the pipeline full."""
    return energy(of_system(compiled(model), 0).chips).full / FJ_PER_JOULE


def _ms(model: Model, cycles: int) -> float:
    return cycles / compiled(model).stage(0).program.chip.clock_hz * 1000
