"""A model's name or folder in, something that runs out: the pipeline as one list of named passes.

Each pass is one folder of this package and turns one frozen type into the next; ``dump`` writes what every
pass returned as a numbered text file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openlpu._base import text
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress, silent
from openlpu.arch import truepoint
from openlpu.arch.chip import load_chip
from openlpu.checkpoint.folder import Checkpoint
from openlpu.checkpoint.folder import load as read_checkpoint
from openlpu.graph import build as build_graph
from openlpu.graph.ir import Graph
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.place.layout import place
from openlpu.schedule.program import Program
from openlpu.schedule.step import buckets, schedule
from openlpu.target import TARGETS
from openlpu.target.ref.run import trace
from openlpu.tokens.model import Model
from openlpu.tokens.request import Sampling

PREFILL_CHUNK = 256  # prompt tokens a step: enough for full speed, few enough to show progress


@dataclass(frozen=True)
class Options:
    """What can be chosen between a model file and its integer graph; ``context`` None is the model's own."""

    scheme: Scheme = field(default_factory=Scheme)
    context: int | None = None


@dataclass(frozen=True)
class Pass:
    """One arrow of the pipeline: ``folder`` does it, ``run`` maps the previous result to the next.

    ``show`` picks what a dump prints of the result, where not all of it has a text.
    """

    folder: str
    run: Callable[[Any, Options], Any]
    show: Callable[[Any], Any] = lambda result: result


def _show_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "config": checkpoint.config, "sampling": checkpoint.sampling, "tokens": checkpoint.tokenizer.size,
        "chat": checkpoint.chat and checkpoint.chat.source, "tensors": checkpoint.tensors,
    }


PIPELINE = (
    Pass("checkpoint", lambda source, o: read_checkpoint(source, context=o.context), _show_checkpoint),
    Pass("graph", lambda checkpoint, o: build_graph(checkpoint)),
    Pass("numerics", lambda graph, o: lower(prepare(graph, o.scheme, trace), o.scheme)),
)


@dataclass(frozen=True)
class Compiled:
    """The results of the pipeline that later stages need: the checkpoint and the integer graph."""

    name: str
    checkpoint: Checkpoint
    graph: Graph
    options: Options

    def fingerprint(self) -> str:
        """Hash of model, program and numerics: the integer graph, its parameters and the arithmetic's version.

        The graph is the program of every target (each must give its bits), so targets share a fingerprint.
        """
        parts = {"truepoint": truepoint.VERSION, "scheme": str(self.options.scheme), "graph": self.graph}
        return hashlib.sha256(text.dump(parts).encode()).hexdigest()


def compile(
    source: str | Path, *, scheme: Scheme | None = None, context: int | None = None, dump: Path | None = None,
    progress: Progress = silent,
) -> Compiled:
    """Run the pipeline on a model folder or an embedded model's name; ``dump`` is a folder for text files.

    Raises :class:`openlpu._base.errors.OpenLpuError` naming file and field when the model cannot be used.
    """
    options = Options(scheme or Scheme(), context)
    results: list[Any] = [source]
    for at, step in enumerate(PIPELINE):
        progress(step.folder, at, len(PIPELINE))
        results.append(step.run(results[-1], options))
        if dump:
            dump.mkdir(parents=True, exist_ok=True)
            (dump / f"{at + 1:02}-{step.folder}.txt").write_text(text.dump(step.show(results[-1])), "utf-8")
    progress("ready", len(PIPELINE), len(PIPELINE))
    return Compiled(str(source), results[1], results[-1], options)


def program(
    compiled: Compiled, chip: str = "lpu-v1", *, dump: Path | None = None, progress: Progress = silent
) -> Program:
    """Place and schedule a compiled model on a chip (a name or a .toml file), a segment per context bucket.

    Raises :class:`openlpu._base.errors.DoesNotFit` with what takes the room.
    """
    progress("place", 0, 2)
    layout = place(compiled.graph, load_chip(chip))
    progress("schedule", 1, 2)
    made = schedule(compiled.graph, layout, buckets(layout.context))
    if dump:
        dump.mkdir(parents=True, exist_ok=True)
        first = len(PIPELINE) + 1
        for at, (name, result) in enumerate((("place", layout.homes.homes), ("schedule", made)), first):
            (dump / f"{at:02}-{name}.txt").write_text(text.dump(result), "utf-8")
    return made


def start(compiled: Compiled, target: str, *, slots: int = 1, threads: int = 0) -> Model:
    """Load a compiled model on a target with ``slots`` KV caches; ``threads`` (0: all cores) is the cpu's."""
    if threads and target != "cpu":
        raise BadRequest(f"target '{target}' cannot run on {threads} threads", where="threads", fix="leave it out")
    if slots < 1 or (slots > 1 and target == "chip"):
        raise BadRequest(f"target '{target}' cannot run {slots} requests at once", where="slots", fix="use 1")
    config, checkpoint = compiled.graph.config, compiled.checkpoint
    native = {"threads": threads} if target == "cpu" else {}
    executable = TARGETS.get(target)(compiled.graph, slots=slots, context=config.context, **native)
    return Model(
        compiled.name, executable, checkpoint.tokenizer, vocab=config.vocab, eos=config.eos,
        chat=checkpoint.chat, defaults=_defaults(checkpoint), fingerprint=compiled.fingerprint,
        chunk=1 if target == "chip" else PREFILL_CHUNK,
    )


def load(
    source: str | Path = "demo", *, target: str = "cpu", threads: int = 0, slots: int = 1,
    context: int | None = None, scheme: Scheme | None = None, progress: Progress = silent,
) -> Model:
    """A model ready to generate: ``openlpu.load("demo").generate("…")``.

    ``slots`` requests can run at once, each of up to ``context`` positions (None: the model's own).  Raises
    :class:`openlpu._base.errors.OpenLpuError` when the model, the target or an option cannot be used.
    """
    compiled = compile(source, scheme=scheme, context=context, progress=progress)
    return start(compiled, target, slots=slots, threads=threads)


def _defaults(checkpoint: Checkpoint) -> Sampling:
    """What ``generation_config.json`` asks for; greedy when it does not ask to sample."""
    s = checkpoint.sampling
    if not s.sample:
        return Sampling(repetition_penalty=s.repetition_penalty)
    return Sampling(s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty)
