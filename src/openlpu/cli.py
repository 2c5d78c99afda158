"""Command line in, text or one JSON object out.

Nothing heavy is imported before a command runs, so ``openlpu --help`` answers at once.  Exit status: 0 done,
1 a check failed, 2 the input was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import (
    __version__,
    cli_bench,
    cli_encoder,
    cli_options,
    cli_program,
    cli_promise,
    cli_run,
    cli_show,
    cli_systems,
    cli_validate,
    cli_verify,
    cli_weights,
)
from openlpu._base import units
from openlpu._base.errors import BadRequest, OpenLpuError, Unsupported, of_system
from openlpu._base.progress import Progress
from openlpu.target import TARGETS

if TYPE_CHECKING:
    from openlpu.graph.ir import Graph
    from openlpu.target.base import F32

WINDOW = 256  # tokens that `openlpu accuracy` scores together
DOCUMENT_END = "<|endoftext|>"
MODEL = "a Hugging Face folder, a model on its hub (owner/name), a .gguf or .onnx file, or demo, the embedded model"
JSON = "print one JSON object"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _arguments(argv)
    if _computes_in_numpy(args):  # a token at a time: threads of NumPy's own would mostly wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        return args.command(args)
    except BrokenPipeError:  # whoever read our output went away; nothing can be flushed to it any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OpenLpuError as error:
        print(f"openlpu {args.name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file that cannot be read or written
        print(f"openlpu {args.name}: {of_system(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        fix = "end what else takes memory, or use a smaller model or --context"
        print(f"openlpu {args.name}: there is not enough memory\n  fix: {fix}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nopenlpu: interrupted", file=sys.stderr)
        return 130


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; prompts of ``run`` may stand behind options too, where argparse takes none."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (args.name != "run" or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.prompts = [*args.prompts, *rest]
    return args


def _computes_in_numpy(args: argparse.Namespace) -> bool:
    """Whether the chip model or the reference does the work."""
    return cli_run.in_numpy(args) if args.name == "run" else args.name in ("check", "verify")


def check(args: argparse.Namespace) -> int:
    """One row per case, as they come, and the count of distinct hashes, which must be one."""
    from openlpu import compile as pipeline
    from openlpu._base.cores import usable_cores
    from openlpu.target.cpu.path import available
    from openlpu.tokens import check as checks

    def say(case: checks.Case, row: checks.Row | str) -> None:
        if isinstance(row, str):
            print(f"{'skipped':16}  {'':>14}  {case}: {row}", flush=True)
        else:
            print(f"{row.digest[:16]}  {units.wall(row.wall_s):>14}  {case}", flush=True)

    with _bars() as progress:
        compiled = pipeline.compile(args.model, scheme=cli_options.scheme(args), progress=progress)
        if pipeline.is_encoder(compiled.graph):
            return cli_encoder.check(args, compiled, progress)
        loaders = {name: TARGETS.get(name) for name in TARGETS}
        cases = checks.cases(tuple(available()), True, compiled.graph.config.layers if args.splits else 0)
        quiet: dict[str, Any] = {} if args.json else {"told": say}
        verdict = checks.check(compiled.graph, cases, loaders, progress, usable_cores(), **quiet)
    if args.json:
        print(json.dumps({"model": args.model} | verdict.to_json()))
    else:
        hint = "" if args.splits else "; --splits runs it on 2 to 16 chips too"
        print(f"{units.count(len(verdict.rows), 'case')}, {verdict.distinct} distinct{hint}")
        if verdict.difference:
            print(verdict.difference)
    return 0 if verdict.distinct == 1 else 1


def accuracy(args: argparse.Namespace) -> int:
    """Perplexity of fp32 and of each number format on a text, and the error of each layer."""
    from openlpu.checkpoint.encoder import EncoderConfig
    from openlpu.checkpoint.folder import load
    from openlpu.compile import runners
    from openlpu.graph import build
    from openlpu.numerics import report
    from openlpu.numerics.scheme import Scheme
    from openlpu.target.base import Chunk
    from openlpu.target.cpu.run import load as load_native

    def native(graph: Graph) -> Callable[[Sequence[int]], F32]:
        executable = load_native(graph)
        return lambda ids: executable.run([Chunk(0, 0, tuple(ids), every=True)])[0]

    try:
        documents = [part.strip("\n") for part in args.text.read_text("utf-8").split(DOCUMENT_END)]
    except UnicodeDecodeError as error:
        raise BadRequest(f"not UTF-8: {error.reason} at byte {error.start}", where=str(args.text),
                         fix="name a text file") from error
    with _bars() as progress:
        checkpoint = load(args.model, progress=progress)
        if isinstance(checkpoint.config, EncoderConfig):
            raise Unsupported("an encoder has no perplexity", where=args.model, fix="name a model that writes text")
        ids = [checkpoint.tokenizer.encode(document, special=False) for document in documents if document]
        size = min(WINDOW, checkpoint.config.context)
        windows = report.windows(ids, checkpoint.config.bos, size)[: args.windows]
        asked = [*(Scheme(weight_bits=bits) for bits in args.bits), *(Scheme(prune=how) for how in args.prune)]
        formats = [*asked, *report.FORMATS]
        found = report.measure(build(checkpoint), windows, runners(), formats, progress=progress, run=native)
    if args.json:
        print(json.dumps({
            "model": args.model, "text": str(args.text), "windows": len(windows), "tokens": found.tokens,
            "fp32": found.perplexity,
            "formats": [
                {"format": str(f.scheme), "bits": f.bits, "perplexity": f.perplexity, "excess": f.excess}
                for f in found.formats
            ],
            "layers": [{"layer": layer.where, "error": layer.error} for layer in found.layers],
        }))
        return 0
    print(f"{units.count(found.tokens, 'token')} in {units.count(len(windows), 'window')} of at most {size}\n")
    print(f"{'perplexity':>10}  {'over fp32':>9}  {'bits':>6}  format\n{found.perplexity:10.4f}  {'':9}  {'':6}  fp32")
    for f in found.formats:
        print(f"{f.perplexity:10.4f}  {f.excess:+9.3%}  {f.bits:6.3f}  {f.scheme}")
    print(f"\n{'error':>10}  after, as a share of its length ({found.formats[0].scheme})")
    for layer in found.layers:
        print(f"{layer.error:10.4f}  {layer.where}")
    return 0


def conformance(args: argparse.Namespace) -> int:
    """Write the vectors that define the arithmetic for anybody's implementation."""
    from openlpu.arch.truepoint.conformance import export

    hashes = export(args.folder)
    if args.json:
        print(json.dumps({"folder": str(args.folder), "files": hashes}))
        return 0
    for name, digest in hashes.items():
        print(f"{digest[:16]}  {name}")
    return 0


@contextmanager
def _bars() -> Iterator[Progress]:
    """A progress bar on standard error while work reports to it; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("")
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="openlpu", description="A language model in, tokens out: the same bits "
                                     "on a processor and on a cycle-exact model of an LPU.")
    parser.add_argument("--version", action="version", version=f"openlpu {__version__}")
    commands = parser.add_subparsers(title="commands", dest="name", required=True, metavar="COMMAND")
    cli_run.add_command(commands, _bars, MODEL)
    cli_program.add_commands(commands, _bars, MODEL)
    cli_show.add_commands(commands)
    cli_verify.add_commands(commands, _bars)
    cli_weights.add_commands(commands, _bars, MODEL)
    one = commands.add_parser("check", help="run one workload every way there is and compare the bits")
    one.set_defaults(command=check)
    one.add_argument("--splits", action="store_true", help="also on 2 to 16 chips, in several splits (minutes)")
    _model_argument(one)
    cli_options.add_bits(one)
    one.add_argument("--json", action="store_true", help=JSON)
    one = commands.add_parser("accuracy", help="perplexity of fp32 and of each number format")
    one.set_defaults(command=accuracy)
    one.add_argument("model", metavar="MODEL", help=MODEL)
    one.add_argument("text", metavar="TEXT", type=Path, help=f"a text file; {DOCUMENT_END} separates documents")
    one.add_argument("--windows", type=_positive, default=1000, metavar="N", help=f"most windows of {WINDOW} tokens "
                     "to score (default 1000): a document's first, or consecutive ones of a single document")
    one.add_argument("--bits", type=cli_options.bits, action="append", default=[], metavar="B",
                     help="also a format of B bits per weight, 4.5 to 8; may be repeated")
    one.add_argument("--prune", type=cli_options.prune, action="append", default=[], metavar="HOW",
                     help="also with weights dropped: 2:4, blocks or blocks:SHARE; may be repeated")
    one.add_argument("--json", action="store_true", help=JSON)
    cli_bench.add_commands(commands, _bars, _positive, MODEL)
    cli_promise.add_commands(commands, _bars, _positive)
    cli_systems.add_commands(commands)
    cli_validate.add_commands(commands, _bars)
    one = commands.add_parser("conformance", help="test vectors of the arithmetic")
    one.set_defaults(command=conformance)
    one.add_argument("action", choices=("export",), help="write them as safetensors files")
    one.add_argument("folder", metavar="DIR", type=Path, help="where to")
    one.add_argument("--json", action="store_true", help=JSON)
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _model_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", default="demo",
                        help=f"{MODEL} (default)")
