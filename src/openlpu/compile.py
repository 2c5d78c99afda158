"""A model's name or folder in, something that runs out: the pipeline as one list of named passes.

Each pass is one folder of this package and turns one frozen type into the next; ``dump`` writes what every
pass returned as a numbered text file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu._base import manifest, text
from openlpu._base.errors import BadRequest, DoesNotFit, ProgramError, TooManyPositions, Unsupported
from openlpu._base.manifest import MANIFEST, new_file, new_folder
from openlpu._base.progress import Progress, silent
from openlpu.arch import truepoint
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.checkpoint.folder import Checkpoint, read_texts
from openlpu.checkpoint.folder import load as read_checkpoint
from openlpu.checkpoint.tensors import Tensors
from openlpu.graph.ir import Graph
from openlpu.numerics.scheme import Scheme
from openlpu.target import TARGETS
from openlpu.target.base import Executable
from openlpu.tokens.model import Model
from openlpu.tokens.request import Sampling
from openlpu.tokens.speculate import Adaptive

if TYPE_CHECKING:
    from openlpu.arch.system import System
    from openlpu.numerics.integer import Runners
    from openlpu.schedule.bundle import Bundle
    from openlpu.schedule.program import Program
    from openlpu.schedule.search import Found, Wanted

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
    run: Callable[[Any, Options, Progress], Any]
    show: Callable[[Any], Any] = lambda result: result


def _show_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "config": checkpoint.config, "sampling": checkpoint.sampling, "tokens": checkpoint.tokenizer.size,
        "chat": checkpoint.chat and checkpoint.chat.source, "tensors": checkpoint.tensors,
    }


def _build(checkpoint: Checkpoint) -> Graph:
    from openlpu.graph import build

    return build(checkpoint)


def runners() -> Runners:
    """What numerics runs: the reference to look at values, the cpu to write texts and to round rows."""
    from openlpu.numerics.integer import Runners
    from openlpu.target.cpu.rounding import Rounder
    from openlpu.target.ref.run import trace
    from openlpu.tokens.write import write

    return Runners(trace, lambda graph, count, length, p: write(TARGETS.get("cpu"), graph, count, length, p), Rounder)


def _integer(graph: Graph, options: Options, progress: Progress) -> Graph:
    from openlpu.numerics.integer import integer

    return integer(graph, options.scheme, runners(), progress)


PIPELINE = (
    Pass("checkpoint", lambda source, o, p: read_checkpoint(source, context=o.context, progress=p), _show_checkpoint),
    Pass("graph", lambda checkpoint, o, p: _build(checkpoint)),
    Pass("numerics", _integer),
)


@dataclass(frozen=True)
class Compiled:
    """The results of the pipeline that later stages need: the checkpoint and the integer graph."""

    name: str
    checkpoint: Checkpoint
    graph: Graph
    options: Options
    known: str = ""  # the fingerprint, where it was computed before

    @property
    def context(self) -> int:
        """Positions that a request may have."""
        return min(self.options.context or self.graph.config.context, self.graph.config.context)

    def fingerprint(self) -> str:
        """Hash of model, program and numerics: the integer graph, its parameters and the arithmetic's version.

        The graph is the program of every target (each must give its bits), so targets share a fingerprint.
        """
        if self.known:
            return self.known
        parts = {"truepoint": truepoint.VERSION, "scheme": str(self.options.scheme), "graph": self.graph}
        return hashlib.sha256(text.dump(parts).encode()).hexdigest()


def compile(
    source: str | Path, *, scheme: Scheme | None = None, context: int | None = None, dump: Path | None = None,
    progress: Progress = silent,
) -> Compiled:
    """Run the pipeline on a model folder, a model on the hub, or an embedded one; ``dump`` is a folder for text files.

    Raises :class:`openlpu._base.errors.OpenLpuError` naming file and field when the model cannot be used.
    """
    if is_stored(source):
        if dump:
            raise BadRequest("no pass runs: this model was compiled before", where="dump", fix="leave it out")
        return _stored(Path(source), scheme, context)
    options = Options(scheme or Scheme(), context)
    results: list[Any] = [source]
    for at, step in enumerate(PIPELINE):
        progress(step.folder, at, len(PIPELINE))
        results.append(step.run(results[-1], options, progress))
        if dump:
            _dump(dump, at + 1, {step.folder: step.show(results[-1])})
    progress("ready", len(PIPELINE), len(PIPELINE))
    return Compiled(str(source), results[1], results[-1], options)


def _dump(folder: Path, first: int, results: Mapping[str, Any]) -> None:
    """Write what passes returned, the first of them number ``first``."""
    manifest.make_folder(folder)
    for at, (name, result) in enumerate(results.items(), first):
        with new_file(folder / f"{at:02}-{name}.txt") as made:
            made.write_text(text.dump(result), "utf-8")


def store(compiled: Compiled, folder: Path, *, threads: Sequence[int] = (), progress: Progress = silent) -> None:
    """Write a compiled model into a new folder from which the cpu target starts at once.

    Machine code is made for ``threads`` (none given: one, and this machine's own choice); another number, or another
    processor, gets its own when it loads.
    """
    from openlpu.target.cpu import stored
    from openlpu.target.cpu.run import usable_threads

    counts = threads or sorted({1, usable_threads(sum(p.nbytes for p in compiled.graph.params.values()))})
    with new_folder(folder) as made:
        stored.write(made, compiled.graph, compiled.context, counts, progress)
        for name, content in compiled.checkpoint.texts().items():
            (made / name).write_bytes(content)
        manifest.write(made, manifest.sealed({
            "format": stored.FORMAT, "model": compiled.name, "scheme": vars(compiled.options.scheme),
            "truepoint": truepoint.VERSION, "fingerprint": compiled.fingerprint(),
            "files": {path.name: path.stat().st_size for path in sorted(made.iterdir())},
            "sha256": {path.name: manifest.sha256(path) for path in stored.hashed(made)},
        }))


def is_stored(source: str | Path) -> bool:
    """Whether :func:`store` wrote this folder."""
    return (Path(source) / "stored.json").is_file()


def _stored(folder: Path, scheme: Scheme | None, context: int | None) -> Compiled:
    from openlpu.target.cpu import stored

    words = manifest.read(folder / MANIFEST, stored.FORMAT, "the manifest is missing", "compile the model again")
    if words.get("truepoint") != truepoint.VERSION:
        what = f"made for numerics version {words.get('truepoint')}; this is version {truepoint.VERSION}"
        raise ProgramError(what, where=str(folder), fix="compile the model again")
    manifest.require_sealed(words, folder / MANIFEST)
    try:
        damaged = stored.damaged(folder, words["files"], words["sha256"])
        made_as, fingerprint = Scheme(**words["scheme"]), str(words["fingerprint"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ProgramError("not a manifest that this version wrote", where=str(folder / MANIFEST),
                           fix="compile the model again") from error
    if damaged:
        raise ProgramError("this file is damaged", where=str(damaged), fix="compile the model again")
    graph = stored.read(folder)
    if context is not None and not 0 < context <= graph.config.context:
        raise BadRequest(f"this model was compiled for {graph.config.context} positions", where="context",
                         fix="ask for fewer, or compile it again with --context")
    options = Options(made_as, context)
    if scheme not in (None, options.scheme):
        raise BadRequest(f"this model was compiled as {options.scheme}", where="bits",
                         fix="leave the format out, or compile the model again")
    return Compiled(str(folder), read_texts(folder, graph.config), graph, options, fingerprint)


def program(
    graph: Graph, chip: str = "lpu-v1", chunks: Sequence[int] = (), *, dump: Path | None = None,
    progress: Progress = silent, requests: int = 1,
) -> Program:
    """Place and schedule an integer graph on a chip (a name or a .toml file), a segment per context bucket: of one
    token, and of each of ``chunks`` tokens of a prompt; ``requests`` have a KV cache each.  Of an encoder, a segment
    per sweep and bucket, in chunks of one size.

    Raises :class:`openlpu._base.errors.DoesNotFit` with what takes the room.
    """
    from openlpu.arch.chip import load_chip
    from openlpu.place.fewest import reported
    from openlpu.place.layout import place
    from openlpu.schedule import sweeps
    from openlpu.schedule.step import buckets, schedule

    progress("place", 0, 2)
    kind = load_chip(chip)
    try:
        layout = place(graph, kind, requests=requests)
    except DoesNotFit as error:
        raise reported(error, graph, kind, requests=requests) from error
    progress("schedule", 1, 2)
    if is_encoder(graph):
        made = sweeps.schedule(graph, layout, max(chunks, default=0))
    else:
        made = schedule(graph, layout, buckets(layout.context), chunks)
    if dump:
        _dump(dump, len(PIPELINE) + 1, {"place": layout.homes.homes, "schedule": made})
    return made


def outlined(source: str, *, scheme: Scheme | None = None, context: int | None = None) -> Graph:
    """The integer graph of a shape, without weights: of a ``config.json``, its folder, or a shape by its name."""
    from openlpu.checkpoint.folder import read_shape
    from openlpu.graph.shapes import shape
    from openlpu.numerics.outline import outline

    path = Path(source)
    known = path.name == "config.json" or (path / "config.json").is_file()
    config = read_shape(path, context) if known else shape(source, 4096 if context is None else context)
    if context not in (None, config.context):
        raise TooManyPositions(context, config.context)
    return outline(config, scheme)


def programs(
    graph: Graph, system: System, wanted: Wanted, chunks: Sequence[int] = (), *, dump: Path | None = None,
    progress: Progress = silent, requests: int = 1,
) -> Found:
    """Split, place and schedule an integer graph over the chips of a system, as the split that was found best, or of
    an encoder the one that was asked for; ``chunks`` and ``requests`` as in :func:`program`.

    Raises :class:`openlpu._base.errors.DoesNotFit` when no split that was asked for fits.
    """
    from openlpu.partition.shard import shard
    from openlpu.schedule.encoders import asked, spread
    from openlpu.schedule.search import search

    if is_encoder(graph):
        found = spread(graph, system, asked(graph, system, wanted), chunk=max(chunks, default=0))
    else:
        found = search(graph, system, wanted, chunks=chunks, progress=progress, requests=requests)
    if dump:
        _dump(dump, len(PIPELINE) + 1, {"partition": shard(graph, found.program.split).show(),
                                        "schedule": found.program})
    return found


def is_encoder(graph: Graph) -> bool:
    """Whether a model reads sequences and writes none."""
    return isinstance(graph.config, EncoderConfig)


def start(
    compiled: Compiled, target: str, *, slots: int = 1, threads: int = 0, speculate: bool | None = None,
    chunks: Sequence[int] = (),
) -> Model:
    """Load a compiled model on a target with ``slots`` KV caches; ``threads`` (0: all cores) is the cpu's.

    ``speculate`` lets a step check guessed tokens, which changes no bit; None: where it pays, on the cpu.
    ``chunks``: how many tokens of a prompt the chip may take in a step, beside one.
    """
    if chunks and target != "chip":
        raise BadRequest(f"target '{target}' takes a prompt as it comes", where="chunk", fix="leave it out")
    if threads and target != "cpu":
        raise BadRequest(f"target '{target}' cannot run on {threads} threads", where="threads", fix="leave it out")
    if slots < 1:
        raise BadRequest(f"target '{target}' cannot run {slots} requests at once", where="slots", fix="use 1")
    if speculate and target == "chip":
        raise BadRequest("target 'chip' runs one token a step", where="speculate", fix="leave it out")
    _decoder(compiled)
    options: dict[str, Any] = {"cpu": {"threads": threads}, "chip": {"chunks": chunks}}.get(target, {})
    executable = TARGETS.get(target)(compiled.graph, slots=slots, context=compiled.context, **options)
    speculation = Adaptive() if speculate or (speculate is None and target == "cpu") else None
    return _model(compiled, executable, max(chunks, default=1) if target == "chip" else PREFILL_CHUNK, speculation)


def on_chips(folder: Path) -> tuple[Compiled, Model]:
    """What ``openlpu compile MODEL -o DIR`` wrote, loaded on the chips that it is for: on the chip model.

    Raises :class:`openlpu._base.errors.ProgramError` when the folder is damaged or has no weights.
    """
    from openlpu.target.chip.run import ChipExecutable
    from openlpu.target.chip.system import SystemExecutable

    made, compiled = _written(folder)
    graph = compiled.graph
    if made.found:
        return compiled, _model(compiled, SystemExecutable(made.found.program, graph.params, made.found.system))
    chunk = max(segment.chunk for segment in made.program.segments)
    return compiled, _model(compiled, ChipExecutable(made.program, graph.params), chunk)


def encoder_on_chip(folder: Path) -> tuple[Compiled, Executable]:
    """As :func:`on_chips`, of an encoder."""
    from openlpu.target.chip.encoders import SystemEncoder
    from openlpu.target.chip.run import EncoderExecutable

    made, compiled = _written(folder)
    if made.found:
        return compiled, SystemEncoder(made.found.program, compiled.graph.params, made.found.system)
    return compiled, EncoderExecutable(made.program, compiled.graph.params)


def _written(folder: Path) -> tuple[Bundle, Compiled]:
    """A folder with a program for chips, whose hashes are compared."""
    from openlpu.schedule import bundle

    made = bundle.load(folder)
    graph = made.graph
    for name in (name for name in made.manifest["sha256"] if "/" not in name):
        made.file(name)  # compares its hash
    return made, Compiled(str(folder), read_texts(folder, graph.config), graph, Options(made.scheme))


def _model(
    compiled: Compiled, executable: Executable, chunk: int = 0, speculation: Adaptive | None = None
) -> Model:
    """Something loaded, with the model's texts; ``chunk`` as of an engine."""
    config, checkpoint = _decoder(compiled), compiled.checkpoint
    return Model(
        compiled.name, executable, checkpoint.tokenizer, vocab=config.vocab, eos=config.eos, chat=checkpoint.chat,
        defaults=_defaults(checkpoint), fingerprint=_kept(compiled, executable).fingerprint, chunk=chunk,
        speculation=speculation,
    )


def _decoder(compiled: Compiled) -> ModelConfig:
    config = compiled.graph.config
    if is_encoder(compiled.graph):
        raise Unsupported(f"'{config.architecture}' is an encoder: it writes no text", where=compiled.name,
                          fix="`openlpu run MODEL TEXT --target ref` or chip gives its hidden states")
    return config


def _kept(compiled: Compiled, executable: Executable) -> Compiled:
    """What a loaded model needs of a compiled one: parameters that an executable can give back it alone keeps."""
    checkpoint = replace(compiled.checkpoint, tensors=Tensors(compiled.checkpoint.path, {}))
    params = getattr(executable, "params", compiled.graph.params)
    return replace(compiled, checkpoint=checkpoint, graph=replace(compiled.graph, params=params))


def load(
    source: str | Path = "demo", *, target: str = "cpu", threads: int = 0, slots: int = 1,
    context: int | None = None, scheme: Scheme | None = None, speculate: bool | None = None,
    progress: Progress = silent,
) -> Model:
    """A model ready to generate: ``openlpu.load("demo").generate("…")``.

    ``slots`` requests can run at once, each of up to ``context`` positions (None: the model's own); ``speculate``
    as in :func:`start`.  Raises :class:`openlpu._base.errors.OpenLpuError` when the model, the target or an option
    cannot be used.
    """
    compiled = compile(source, scheme=scheme, context=context, progress=progress)
    return start(compiled, target, slots=slots, threads=threads, speculate=speculate)


def _defaults(checkpoint: Checkpoint) -> Sampling:
    """What ``generation_config.json`` asks for; greedy when it does not ask to sample."""
    s = checkpoint.sampling
    if not s.sample:
        return Sampling(repetition_penalty=s.repetition_penalty)
    return Sampling(s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty)
