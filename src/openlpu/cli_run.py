"""``openlpu run``: prompts in, answers out, on this processor, the reference or the chip model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu import cli_encoder, cli_options, cli_prefill, cli_promise, cli_together
from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.manifest import MANIFEST
from openlpu._base.progress import Progress
from openlpu.target import TARGETS

if TYPE_CHECKING:
    from openlpu.compile import Compiled
    from openlpu.tokens.model import Generation, Model, Prompt
    from openlpu.tokens.promise import Promise

Bars = Callable[[], AbstractContextManager[Progress]]
PROMPT = "ROMEO:\n"
REPLAY = 8  # tokens that a bare `openlpu run` repeats on the chip model
THREADS = "threads (default: all cores, or one for a small model)"
CHOICES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
DECIDED = ("threads", "chunk", "speculate", "context", "bits", "prune", "dump")  # when a program was compiled


def add_command(commands: Any, bars: Bars, model_help: str) -> None:
    """Add run to a parser's commands; ``bars`` gives it its progress."""
    parser = commands.add_parser("run", help="answer a prompt, or several at once")
    add = parser.add_argument
    parser.set_defaults(command=lambda args: run(args, bars))
    add("model", metavar="MODEL", nargs="?", help=f"{model_help}, or a folder that `openlpu compile -o` wrote; left "
        f"out, demo answers and {REPLAY} of its tokens are replayed on the chip model")
    add("prompts", metavar="PROMPT", nargs="*", help=f"text to continue (default: {PROMPT!r}); several are under way "
        "at once")
    add("--max-tokens", type=int, default=64, metavar="N", help="most tokens to generate (default 64)")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own, else 0)")
    add("--top-k", type=int, metavar="K", help="keep the K best tokens")
    add("--top-p", type=float, metavar="P", help="keep the best tokens that reach this probability")
    add("--min-p", type=float, metavar="P", help="keep tokens of at least this share of the best one's probability")
    add("--repetition-penalty", type=float, metavar="R", help="above 1: tokens seen before become less likely")
    add("--seed", type=int, metavar="S", help="selects the random numbers (default 0); no effect on greedy choice")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--target", choices=tuple(TARGETS), help="what runs it (default cpu; of a program for chips: chip)")
    add("--threads", type=int, default=0, metavar="N", help=f"of the cpu target: {THREADS}")
    cli_prefill.add_option(parser)
    add("--speculate", action=argparse.BooleanOptionalAction, help="check guessed tokens beside the next one, which "
        "changes no bit (default: on the cpu target, as far as it pays)")
    add("--context", type=int, metavar="N", help="positions of KV cache (default: the model's own)")
    cli_options.add_bits(parser)
    add("--chat", action="store_true", help="the prompt is a user's message; use the model's chat template")
    add("--dump", type=Path, metavar="DIR", help="write what each pass of the pipeline returned as text")
    add("--json", action="store_true", help="print one JSON object")


def in_numpy(args: argparse.Namespace) -> bool:
    """Whether the chip model or the reference does some of the work."""
    return args.model is None or args.target not in (None, "cpu") or _for_chips(args.model)


def _for_chips(name: str) -> bool:
    return (Path(name) / "program" / MANIFEST).is_file()


def run(args: argparse.Namespace, bars: Bars) -> int:
    """Answer; without a model, replay the answer's start on the chip model and compare."""
    from openlpu import compile as pipeline

    args.prompts = args.prompts or [PROMPT]
    _check(args)
    prompts: list[Prompt] = [[{"role": "user", "content": text}] if args.chat else text for text in args.prompts]
    if args.model is not None and _for_chips(args.model):
        return _run_program(args, prompts, bars)
    args.target = args.target or "cpu"
    compiled = _compiled(args, bars)
    if pipeline.is_encoder(compiled.graph):
        return cli_encoder.run(args, compiled)
    with bars():
        model = pipeline.start(compiled, args.target, slots=len(prompts), threads=args.threads,
                               speculate=args.speculate, chunks=args.chunk)
    replayed = compiled if args.model is None else None
    del compiled  # the model keeps what it needs
    with model:
        if len(prompts) > 1:
            return cli_together.run(model, prompts, _options(args), args, bars)
        answer, promise = _say(args, model, prompts[0], bars)
        result = _result(args, model, answer)
        result["promise"] = cli_promise.after_run(promise, model.executable.context, answer)
        if replayed:
            result |= _replay(args, replayed, model, prompts[0], bars)
    print(json.dumps(result) if args.json else "\n\n" + "\n".join(_summary(result)))
    return 0 if result.get("same", True) else 1


def _check(args: argparse.Namespace) -> None:
    """Refuse what no model takes, before the minutes that a large one takes to load."""
    from openlpu.tokens.request import Request, Sampling

    given = {name: getattr(args, name) for name in CHOICES if name != "stop"}
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    Request((), sampling, args.max_tokens, (), tuple(args.stop))


def _compiled(args: argparse.Namespace, bars: Bars) -> Compiled:
    from openlpu import compile as pipeline

    with bars() as progress:
        name = "demo" if args.model is None else args.model
        scheme = cli_options.scheme(args)
        return pipeline.compile(name, scheme=scheme, context=args.context, dump=args.dump, progress=progress)


def _run_program(args: argparse.Namespace, prompts: Sequence[Prompt], bars: Bars) -> int:
    """On the chips that a program is for, all prompts at once, then each alone on the reference."""
    from openlpu import compile as pipeline
    from openlpu.schedule import bundle

    if args.target not in (None, "chip"):
        raise BadRequest("this program is for chips", where="target", fix="leave it out, or name the model")
    for name in DECIDED:
        if getattr(args, name) is False or getattr(args, name):
            raise BadRequest("this was decided when the program was compiled", where=name, fix="leave it out")
    args.target = "chip"
    if bundle.load(Path(args.model)).encoder:
        return cli_encoder.run(args, *pipeline.encoder_on_chip(Path(args.model)))
    with bars() as progress:
        progress("load", 0, 1)
        compiled, model = pipeline.on_chips(Path(args.model))
    with model:
        return cli_together.run(model, prompts, _options(args), args, bars, compiled)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in (*CHOICES, "max_tokens")}


def _say(args: argparse.Namespace, model: Model, prompt: Prompt, bars: Bars) -> tuple[Generation, Promise | None]:
    """Promise, then run the answer to its end, piece by piece on standard output unless that is for JSON."""
    with bars() as progress:
        answer = model.generate(prompt, progress=progress, **_options(args))
        promise = cli_promise.before_run(model, answer, quiet=args.json)
        pieces = iter(answer)
        first = next(pieces, "")
        for _ in pieces if args.json else ():
            progress("generate", len(answer.token_ids), args.max_tokens)
    if not args.json:
        print(end=first if args.chat else f"{prompt}{first}", flush=True)
        for piece in pieces:
            print(end=piece, flush=True)
    return answer, promise


def _result(args: argparse.Namespace, model: Model, answer: Generation) -> dict[str, Any]:
    """What ``run --json`` prints; every time sits beside the name of its clock."""
    fingerprint = model.fingerprint if args.json else ""
    return {"model": model.name, "target": args.target, "fingerprint": fingerprint} | cli_together.said(answer)


def _replay(args: argparse.Namespace, compiled: Compiled, model: Model, prompt: Prompt, bars: Bars) -> dict[str, Any]:
    """The first tokens again on the chip model: its cycles, and whether ids and logits are the same."""
    from openlpu import compile as pipeline

    count = min(REPLAY, args.max_tokens)
    options = _options(args)
    options["max_tokens"] = count
    with bars() as progress:
        native = model.generate(prompt, progress=progress, **options).finish()
        progress("compile for the chip", 0, 1)
        with pipeline.start(compiled, "chip") as chip:
            replay = chip.generate(prompt, progress=progress, **options)
            for _ in replay:
                progress("replay on the chip model", len(replay.token_ids), count)
    same = (replay.token_ids, replay.logits_sha256) == (native.token_ids, native.logits_sha256)
    return {"replayed": len(replay.token_ids), "same": same, "cycles": cli_together.cycles(replay)}


def _summary(result: dict[str, Any]) -> Iterator[str]:
    m, c = result["measured"], result["cycles"]
    yield (f"{units.count(m['tokens'], 'token')} on {result['target']}, ended by {result['finish_reason']}")
    yield f"first token  {units.wall(m['first_token_s'])} for a prompt of {m['prompt_tokens']}"
    if m["tokens"] > 1:
        yield f"per token    {units.wall(m['token_p50_s'])} median, {units.wall(m['token_p99_s'])} p99"
    if promise := result["promise"]:
        yield cli_promise.verdict(promise)
    if guesses := m["guessed"]:
        yield (f"guesses      {m['accepted']} of {units.count(guesses, 'checked token')} were right: "
               f"{units.count(m['steps'], 'step')}")
    if c:
        yield f"on the chip  {units.cycles(c['p50'])} per token"
    if "same" in result:
        verdict = "the same tokens and logits, bit for bit" if result["same"] else "DIFFERENT tokens or logits"
        yield f"replayed     {units.count(result['replayed'], 'token')} on the chip model: {verdict}"
