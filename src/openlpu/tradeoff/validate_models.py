"""Published rates of language models in; rows that compile each model from its shape out.

Every figure of ours is that of a scheduled program.  Most publications name neither the split nor the length of a
prompt; ours are in the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

from openlpu.arch.energy import FJ_PER_JOULE
from openlpu.arch.system import load_system
from openlpu.graph.models import shapes
from openlpu.graph.shapes import shape
from openlpu.numerics.outline import outline
from openlpu.partition.shard import shard
from openlpu.partition.split import SUMS, Split
from openlpu.schedule.joules import energy
from openlpu.schedule.kinds import Programs
from openlpu.schedule.prefill import first_token
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.search import lined_up
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.schedule.tracks import of_system
from openlpu.tradeoff.validate import Kind, Row

RACK = 72  # chips of a rack; systems are of whole ones
PROMPT = 1024  # tokens, where no length is published
LAYER = "published: token time by layers, head included; ours: from the first stage's start to the last's"


@dataclass(frozen=True)
class Model:
    """A shape by its name on the chips of ``rack``, split so, with room for ``context`` positions; a token at the end
    of it, and of each of the ``shorter`` ones."""

    name: str
    split: Split
    context: int
    shorter: tuple[int, ...] = ()

    def __str__(self) -> str:
        halves = " of half layers" if self.split.halves else ""
        return (f"ours: {self.split.chips} chips, {self.split.stages} stages{halves} of {self.split.tensor}, "
                f"context {self.context:,}")


LAST = -1  # segment, that of the longest context
SHORT = 1024  # positions, of a token early in a context
LLAMA_2_70B = Model("llama-2-70b", Split(8, 72, SUMS, halves=True), 4096, (SHORT,))
LLAMA_2_7B = Model("llama-2-7b", Split(8, 16, SUMS), 2048)
LLAMA_3_8B = Model("llama-3-8b", Split(8, 16, SUMS), 2048)
MISTRAL = Model("mistral-7b", Split(8, 18, SUMS, halves=True), 8192)
MIXTRAL = Model("mixtral-8x7b", Split(8, 36, SUMS, halves=True), 4096, (SHORT,))


def rows() -> list[Row]:
    """Tokens per second of one request, then times, then joules."""
    return [
        _row("L1", "Llama-2-70B, one request", LLAMA_2_70B, 300, 300, "tok/s", "press", rate,
             "tensor width not published"),
        _row("L1.2", "a layer of it", LLAMA_2_70B, 41.7, 41.7, "µs", "press", layer_us, LAYER),
        _row("L1.3", f"one request, a token within {SHORT:,}", LLAMA_2_70B, 300, 300, "tok/s", "press", early_rate,
             "published for contexts up to 4,096"),
        _row("L2", "Llama-2-7B, one request", LLAMA_2_7B, 750, 750, "tok/s", "press", rate, "chips not published"),
        _row("L2.2", "a layer of it", LLAMA_2_7B, 41.7, 41.7, "µs", "press", layer_us, LAYER),
        _row("L4", "Mixtral 8x7B, one request", MIXTRAL, 480, 500, "tok/s", "press", rate,
             "published on 576 chips, batch about 3"),
        _row("L4.2", "a layer of it", MIXTRAL, 62.5, 65.1, "µs", "press", layer_us, LAYER),
        _row("L5", "Llama-3-8B, one request", LLAMA_3_8B, 1300, None, "tok/s", "press", rate, "chips not published"),
        _row("L5.2", "a layer of it", LLAMA_3_8B, 24.0, 35.6, "µs", "press", layer_us, LAYER),
        Row("L8.3", "SRAM beside the weights of gpt-oss-120b", "576 chips, experts in 4.25 bits, all else in 8", 69.7,
            69.7, "GB", "SHIP", beside_weights, Kind.PREDICTED,
            missing="ours would take 8 bits everywhere, and 640 chips: 4-bit weights lie expanded in a chip"),
        _row("P1", "time to the first token", LLAMA_2_70B, None, 100, "ms", "press", first_ms,
             f"prompt not published; {PROMPT:,} tokens here"),
        _row("P2", "Mistral-7B, a token at 8k context", MISTRAL, None, 10, "ms", "press", token_ms,
             "model not published"),
        _row("P3", "energy per token, pipeline full", LLAMA_2_70B, 1, 3, "J", "press", full_joules,
             "no primary source; 10 to 30 J on GPUs are not modelled"),
        _row("P4", "energy per token, one request alone", LLAMA_2_70B, 1, 3, "J", "press", alone_joules,
             "no primary source; see X5"),
    ]


def beside_weights() -> float:
    """GB of SRAM that the published formats of weights leave; MXFP4 has a byte of scale for every 32 codes."""
    sizes = {name: prod(size) for name, size in shapes(shape("gpt-oss-120b")).items() if name.endswith("weight")}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    weights = experts * (4 + 8 / 32) / 8 + sum(sizes.values()) - experts
    return (load_system("rack", 576).sram_bytes - weights) / 1e9


def _row(
    name: str, what: str, model: Model, low: float | None, high: float | None, unit: str, source: str,
    ours: Callable[[Model], float], missing: str,
) -> Row:
    return Row(name, what, str(model), low, high, unit, source, lambda: ours(model), Kind.PREDICTED, missing=missing,
               long=True, share=model.name)


@cache
def compiled(model: Model) -> SystemProgram:
    """The program of a model, its longest context last."""
    system, graph = load_system("rack", RACK * -(-model.split.chips // RACK)), outline(shape(model.name, model.context))
    wired = lined_up(system, model.split)
    local, hops = cables(wired, model.split)
    programs = Programs(system.chip, model.context)  # in this process: rows share the cores
    return schedule_system(shard(graph, model.split), system.chip, local, hops, context=model.context,
                           contexts=[*model.shorter, model.context], pace=paced(wired, model.split), programs=programs)


def layers_before(model: Model) -> float:
    """Layers of all stages but the last; each half of one ends with an addition to the residual."""
    stages = shard(outline(shape(model.name, model.context)), model.split).stages
    return sum(node.op == "add" for stage in stages[:-1] for node in stage.graph.nodes) / 2


def layer_us(model: Model) -> float:
    """Microseconds from layer to layer, on average: from the start of the first stage to that of the last."""
    starts = compiled(model).starts(LAST)
    return 1000 * _ms(model, starts[-1] - starts[0]) / layers_before(model)


def rate(model: Model) -> float:
    """Tokens per second of one request, at the end of the context."""
    return 1000 / token_ms(model)


def early_rate(model: Model) -> float:
    """The same at the end of the shortest context."""
    return 1000 / _ms(model, compiled(model).cycles(0))


def token_ms(model: Model) -> float:
    """Milliseconds of a token."""
    return _ms(model, compiled(model).cycles(LAST))


def first_ms(model: Model) -> float:
    """Milliseconds from a prompt to its first token."""
    return _ms(model, first_token(compiled(model), PROMPT))


def alone_joules(model: Model) -> float:
    """Joules of a token of one request alone."""
    return energy(of_system(compiled(model), LAST).chips).alone / FJ_PER_JOULE


def full_joules(model: Model) -> float:
    """Joules of a token with the pipeline full."""
    return energy(of_system(compiled(model), LAST).chips).full / FJ_PER_JOULE


def _ms(model: Model, cycles: int) -> float:
    return cycles / compiled(model).stage(0).program.chip.clock_hz * 1000
