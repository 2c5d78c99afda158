"""Several prompts under way at once in, their answers and what the chips made of them together out."""

from __future__ import annotations

import argparse
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.errors import BadRequest
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.compile import Compiled
    from openlpu.tokens.engine import Running
    from openlpu.tokens.model import Generation, Model, Prompt

Bars = Callable[[], AbstractContextManager[Progress]]
Arrival = tuple["Running", int]  # a request got a token, and when by the chips' clock


def run(
    model: Model, prompts: Sequence[Prompt], options: Mapping[str, Any], args: argparse.Namespace, bars: Bars,
    compiled: Compiled | None = None,
) -> int:
    """Answer all prompts; of a ``compiled`` program also each alone on the reference.  Exit status 1 if bits differ."""
    with bars() as progress:
        answers = _begun(model, prompts, options)
        arrivals = _finish(model, answers, progress)
        same = _alone(compiled, prompts, options, answers, progress) if compiled else None
    result = {"model": model.name, "target": args.target, "answers": [said(answer) for answer in answers],
              "chips": _chips(model, answers, arrivals)} | ({} if same is None else {"same": same})
    if args.json:
        print(json.dumps(result | {"fingerprint": model.fingerprint}))
    else:
        print("\n".join(_lines(result, args.prompts, args.chat)))
    return 0 if same is not False else 1


def _begun(model: Model, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Generation]:
    """All answers, of which nothing has run; an error says which of several prompts it is about."""
    answers = []
    for number, prompt in enumerate(prompts, 1):
        try:
            answers.append(model.generate(prompt, **options))
        except BadRequest as error:
            if error.where != "prompt" or len(prompts) == 1:
                raise
            where = f"prompt {number} of {len(prompts)}"
            raise BadRequest(error.what, where=where, fix=error.fix) from error
    return answers


def said(answer: Generation) -> dict[str, Any]:
    """What ``--json`` says of an answer."""
    return {
        "prompt_ids": list(answer.request.prompt), "text": answer.text, "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason, "logits_sha256": answer.logits_sha256, "measured": answer.measured(),
        "cycles": cycles(answer),
    }


def cycles(answer: Generation) -> dict[str, Any] | None:
    """Of its tokens' steps; None on targets that count none."""
    counted = answer.cycles
    if not counted:
        return None
    return {"clock": "cycles", "per_token": counted, "p50": units.percentile(counted, 50), "max": max(counted)}


def _finish(model: Model, answers: Sequence[Generation], progress: Progress) -> list[Arrival]:
    """Run all answers to their ends; who got a token when."""
    running, flow = [answer.running for answer in answers], getattr(model.executable, "flow", None)
    arrivals: list[Arrival] = []
    total = sum(one.request.max_tokens for one in running)
    while not model.engine.idle:
        progress("generate", len(arrivals), total)
        arrivals += [(one, flow.now if flow else 0) for one in model.engine.step()]
    for answer in answers:
        answer.finish()  # its text
    return arrivals


def _alone(
    compiled: Compiled, prompts: Sequence[Prompt], options: Mapping[str, Any], answers: Sequence[Generation],
    progress: Progress,
) -> bool:
    """Whether the reference gives each prompt the same tokens and logits when nothing else is under way."""
    from openlpu import compile as pipeline

    with pipeline.start(compiled, "ref") as reference:
        for done, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            progress("each alone on the reference", done, len(answers))
            want = reference.generate(prompt, **options).finish()
            if (want.token_ids, want.logits_sha256) != (answer.token_ids, answer.logits_sha256):
                return False
    return True


def _chips(model: Model, answers: Sequence[Generation], arrivals: Sequence[Arrival]) -> dict[str, Any] | None:
    """What the stages of a pipeline did: all of it, and while every request was making tokens.  None elsewhere."""
    from openlpu.target.chip.system import SystemExecutable

    executable = model.executable
    if not isinstance(executable, SystemExecutable):
        return None
    program, times = executable.program, [now for _, now in arrivals]
    own = [[now for one, now in arrivals if one is answer.running] for answer in answers]
    first, last = max(now[0] for now in own), min(now[-1] for now in own)
    together = bisect_right(times, last) - bisect_right(times, first)
    longest = max(len(answer.running.ids) for answer in answers)
    segments = program.stage(0).program.segments
    segment = next(i for i, s in enumerate(segments) if s.chunk == 1 and longest <= s.context + 1)
    interval = program.interval(segment)
    return {
        "clock": "cycles", "clock_hz": program.programs[0].program.chip.clock_hz, "chips": program.split.chips,
        "stages": program.split.stages, "requests": min(len(answers), executable.slots),
        "steps": executable.flow.steps, "cycles": executable.flow.now,
        "together": {"tokens": together, "cycles": last - first} if together > 0 else None,
        "interval": interval, "filled_by": -(-program.cycles(segment) // interval),
    }


def _lines(result: dict[str, Any], prompts: Sequence[str], chat: bool) -> Iterator[str]:
    for prompt, answer in zip(prompts, result["answers"], strict=True):
        yield f"{'' if chat else prompt}{answer['text']}\n"
    for number, answer in enumerate(result["answers"]):
        took = f", {units.cycles(answer['cycles']['p50'])} each" if answer["cycles"] else ""
        made, why = units.count(len(answer["token_ids"]), "token"), answer["finish_reason"]
        yield (f"answer {number + 1:<5} {made} on {result['target']}, ended by {why}{took}; "
               f"logits {answer['logits_sha256'][:16]}")
    if result["chips"]:
        yield from _pipeline(result["chips"])
    if "same" in result:
        yield ("alone        " + ("the reference gives each the same tokens and logits, bit for bit" if result["same"]
                                  else "the reference gives DIFFERENT tokens or logits"))


def _pipeline(c: dict[str, Any]) -> Iterator[str]:
    hz = c["clock_hz"]
    yield (f"on the chips {units.count(c['steps'], 'step')} of {units.count(c['requests'], 'request')} in "
           f"{units.cycles(c['cycles'])}, prompts among them")
    if together := c["together"]:
        rate = together["tokens"] * hz / together["cycles"]
        yield (f"all at once  {units.count(together['tokens'], 'token')} in {units.cycles(together['cycles'])}: "
               f"{rate:,.0f} tokens/s; {hz / c['interval']:,.0f} with the pipeline full, by "
               f"{units.count(c['filled_by'], 'request')} or more")
