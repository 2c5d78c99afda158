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
    cli_options,
    cli_prefill,
    cli_program,
    cli_promise,
    cli_show,
    cli_systems,
    cli_validate,
    cli_verify,
    cli_weights,
)
from openlpu._base import units
from openlpu._base.errors import BadRequest, OpenLpuError
from openlpu._base.progress import Progress
from openlpu.target import TARGETS

if TYPE_CHECKING:
    from openlpu.compile import Compiled
    from openlpu.graph.ir import Graph
    from openlpu.target.base import F32
    from openlpu.tokens.model import Generation, Model, Prompt
    from openlpu.tokens.promise import Promise

PROMPT = "ROMEO:\n"
REPLAY = 8  # tokens that a bare `openlpu run` repeats on the chip model
WINDOW = 256  # tokens that `openlpu accuracy` scores together
DOCUMENT_END = "<|endoftext|>"
MODEL = "a Hugging Face folder, a model on its hub (owner/name), a .gguf or .onnx file, or demo, the embedded model"
JSON = "print one JSON object"
THREADS = "threads (default: all cores, or one for a small model)"
CHOICES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
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
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"openlpu {args.name}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nopenlpu: interrupted", file=sys.stderr)
        return 130


def _computes_in_numpy(args: argparse.Namespace) -> bool:
    """Whether the chip model or the reference does the work: check, verify, ``--target``, a bare ``run``."""
    bare_run = args.name == "run" and args.model is None
    return bare_run or args.name in ("check", "verify") or getattr(args, "target", "cpu") != "cpu"


def run(args: argparse.Namespace) -> int:
    """Stream an answer; without a model, replay its start on the chip model and compare."""
    from openlpu import compile as pipeline

    prompt: Prompt = [{"role": "user", "content": args.prompt}] if args.chat else args.prompt
    with _bars() as progress:
        name = "demo" if args.model is None else args.model
        scheme = cli_options.scheme(args)
        compiled = pipeline.compile(name, scheme=scheme, context=args.context, dump=args.dump, progress=progress)
        model = pipeline.start(compiled, args.target, threads=args.threads, speculate=args.speculate,
                               chunks=args.chunk)
    replayed = compiled if args.model is None else None
    del compiled  # the model keeps what it needs
    with model:
        answer, promise = _say(args, model, prompt)
        result = _result(args, model, answer)
        result["promise"] = cli_promise.after_run(promise, model.executable.context, answer)
        if replayed:
            result |= _replay(args, replayed, model, prompt)
    print(json.dumps(result) if args.json else "\n\n" + "\n".join(_summary(result)))
    return 0 if result.get("same", True) else 1


def check(args: argparse.Namespace) -> int:
    """One row per case and the count of distinct hashes, which must be one."""
    from openlpu import compile as pipeline
    from openlpu.target.cpu.path import available
    from openlpu.tokens import check as checks

    with _bars() as progress:
        compiled = pipeline.compile(args.model, scheme=cli_options.scheme(args), progress=progress)
        loaders = {name: TARGETS.get(name) for name in TARGETS}
        cases = checks.cases(tuple(available()), True, compiled.graph.config.layers if args.splits else 0)
        verdict = checks.check(compiled.graph, cases, loaders, progress)
    if args.json:
        print(json.dumps({"model": args.model} | verdict.to_json()))
    else:
        for row in verdict.rows:
            print(f"{row.digest[:16]}  {units.wall(row.wall_s):>14}  {row.case}")
        for case, reason in verdict.skipped.items():
            print(f"{'skipped':16}  {'':>14}  {case}: {reason}")
        print(f"{len(verdict.rows)} cases, {verdict.distinct} distinct")
        if verdict.difference:
            print(verdict.difference)
    return 0 if verdict.distinct == 1 else 1


def accuracy(args: argparse.Namespace) -> int:
    """Perplexity of fp32 and of each number format on a text, and the error of each layer."""
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
        raise BadRequest(f"not UTF-8: {error.reason} at byte {error.start}", where=str(args.text)) from error
    with _bars() as progress:
        checkpoint = load(args.model, progress=progress)
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
    print(f"{found.tokens} tokens in {len(windows)} windows of at most {size}\n")
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


def _say(args: argparse.Namespace, model: Model, prompt: Prompt) -> tuple[Generation, Promise | None]:
    """Promise, then run the answer to its end, piece by piece on standard output unless that is for JSON."""
    with _bars() as progress:
        answer = _answer(args, model, prompt, args.max_tokens, progress)
        promise = cli_promise.before_run(model, answer, quiet=args.json)
        pieces = iter(answer)
        first = next(pieces, "")
        for _ in pieces if args.json else ():
            progress("generate", len(answer.token_ids), args.max_tokens)
    if not args.json:
        print(end=first if args.chat else args.prompt + first, flush=True)
        for piece in pieces:
            print(end=piece, flush=True)
    return answer, promise


def _answer(
    args: argparse.Namespace, model: Model, prompt: Prompt, max_tokens: int, progress: Progress
) -> Generation:
    options = {name: getattr(args, name) for name in CHOICES}
    return model.generate(prompt, max_tokens=max_tokens, progress=progress, **options)


def _result(args: argparse.Namespace, model: Model, answer: Generation) -> dict[str, Any]:
    """What ``run --json`` prints; every time sits beside the name of its clock."""
    return {
        "model": model.name,
        "target": args.target,
        "prompt_ids": list(answer.request.prompt),
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "logits_sha256": answer.logits_sha256,
        "fingerprint": model.fingerprint if args.json else "",
        "measured": answer.measured(),
        "cycles": _cycles(answer),
    }


def _cycles(answer: Generation) -> dict[str, Any] | None:
    counted = answer.cycles
    if not counted:
        return None
    return {"clock": "cycles", "per_token": counted, "p50": units.percentile(counted, 50), "max": max(counted)}


def _replay(args: argparse.Namespace, compiled: Compiled, model: Model, prompt: Prompt) -> dict[str, Any]:
    """The first tokens again on the chip model: its cycles, and whether ids and logits are the same."""
    from openlpu import compile as pipeline

    count = min(REPLAY, args.max_tokens)
    with _bars() as progress:
        native = _answer(args, model, prompt, count, progress).finish()
        progress("compile for the chip", 0, 1)
        with pipeline.start(compiled, "chip") as chip:
            replay = _answer(args, chip, prompt, count, progress)
            for _ in replay:
                progress("replay on the chip model", len(replay.token_ids), count)
    same = (replay.token_ids, replay.logits_sha256) == (native.token_ids, native.logits_sha256)
    return {"replayed": len(replay.token_ids), "same": same, "cycles": _cycles(replay)}


def _summary(result: dict[str, Any]) -> Iterator[str]:
    m, c = result["measured"], result["cycles"]
    yield f"{m['tokens']} tokens on {result['target']}, ended by {result['finish_reason']}"
    yield f"first token  {units.wall(m['first_token_s'])} for a prompt of {m['prompt_tokens']}"
    if m["tokens"] > 1:
        yield f"per token    {units.wall(m['token_p50_s'])} median, {units.wall(m['token_p99_s'])} p99"
    if promise := result["promise"]:
        yield cli_promise.verdict(promise)
    if guesses := m["guessed"]:
        yield f"guesses      {m['accepted']} of {guesses} checked tokens were right: {m['steps']} steps"
    if c:
        yield f"on the chip  {units.cycles(c['p50'])} per token"
    if "same" in result:
        verdict = "the same tokens and logits, bit for bit" if result["same"] else "DIFFERENT tokens or logits"
        yield f"replayed     {result['replayed']} tokens on the chip model: {verdict}"


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
    _run_arguments(commands.add_parser("run", help="answer a prompt"))
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
    cli_validate.add_commands(commands)
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


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(command=run)
    add("model", metavar="MODEL", nargs="?", help=f"{MODEL}; left out, "
        f"demo answers and {REPLAY} of its tokens are replayed on the chip model")
    add("prompt", metavar="PROMPT", nargs="?", default=PROMPT, help=f"text to continue (default: {PROMPT!r})")
    add("--max-tokens", type=int, default=64, metavar="N", help="most tokens to generate (default 64)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own, else 0)")
    add("--top-k", type=int, metavar="K", help="keep the K best tokens")
    add("--top-p", type=float, metavar="P", help="keep the best tokens that reach this probability")
    add("--min-p", type=float, metavar="P", help="keep tokens of at least this share of the best one's probability")
    add("--repetition-penalty", type=float, metavar="R", help="above 1: tokens seen before become less likely")
    add("--seed", type=int, metavar="S", help="selects the random numbers (default 0); no effect on greedy choice")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--target", choices=tuple(TARGETS), default="cpu", help="what runs it (default cpu)")
    add("--threads", type=int, default=0, metavar="N", help=f"of the cpu target: {THREADS}")
    cli_prefill.add_option(parser)
    add("--speculate", action=argparse.BooleanOptionalAction, help="check guessed tokens beside the next one, which "
        "changes no bit (default: on the cpu target, as far as it pays)")
    add("--context", type=int, metavar="N", help="positions of KV cache (default: the model's own)")
    cli_options.add_bits(parser)
    add("--chat", action="store_true", help="the prompt is a user's message; use the model's chat template")
    add("--dump", type=Path, metavar="DIR", help="write what each pass of the pipeline returned as text")
    add("--json", action="store_true", help=JSON)
