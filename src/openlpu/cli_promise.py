"""The command that measures this machine, and what ``run`` and ``bench`` promise from it before they start."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu._base import units
from openlpu._base.progress import Progress

if TYPE_CHECKING:
    from openlpu.graph.ir import Graph
    from openlpu.target.cpu.machine import Machine
    from openlpu.tokens.bounds import Work
    from openlpu.tokens.model import Generation, Model
    from openlpu.tokens.promise import Promise

Bars = Callable[[], AbstractContextManager[Progress]]
JSON = "print one JSON object"
STARTS = 7  # processes whose first token is measured, from memory and from files
LAYERS = 40  # of the model in files: some 70 MB


def add_commands(commands: Any, bars: Bars, positive: Callable[[str], int]) -> None:
    """Add calibrate to a parser's commands; ``bars`` gives it its progress."""
    one = commands.add_parser("calibrate", help="measure this machine, so that times can be promised")
    one.set_defaults(command=lambda args: calibrate(args, bars))
    one.add_argument("--threads", type=positive, metavar="N", help="threads (default: once 1, once all cores)")
    one.add_argument("--json", action="store_true", help=JSON)


def calibrate(args: argparse.Namespace, bars: Bars) -> int:
    """Measure, and write a file per number of threads."""
    from openlpu.target.cpu.calibrate import calibrate as measure
    from openlpu.target.cpu.run import SMALL_STEP, usable_threads
    from openlpu.tokens.promise import answers

    made = []
    counts = [args.threads] if args.threads else sorted({1, usable_threads(SMALL_STEP)})
    for threads in counts:
        with bars() as progress:
            machine = measure(threads, answers=answers, progress=progress)
            machine = replace(machine, prices={**machine.prices, **_starts(machine, progress)})
        made.append((machine, machine.save()))
    if args.json:
        print(json.dumps([{"file": str(file), "clock": "wall", **asdict(machine)} for machine, file in made]))
        return 0
    for machine, file in made:
        print(_steady(machine))
        print(f"written to {file}")
    return 0


def _starts(machine: Machine, progress: Progress) -> dict[str, float]:
    """What a cold start costs: first tokens of new processes, of the embedded model and of one in files."""
    from openlpu import compile as pipeline
    from openlpu.numerics.draw import draw
    from openlpu.target.cpu import cost
    from openlpu.target.cpu.calibrate import SPECIMENS
    from openlpu.target.cpu.plan import Planner
    from openlpu.tokens.promise import start_prices

    demo = pipeline.compile("demo")
    large = draw(replace(SPECIMENS["deep"].config, layers=LAYERS))
    plans = [Planner(graph, graph.config.context).plan() for graph in (demo.graph, large)]
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "model"
        pipeline.store(pipeline.Compiled("", demo.checkpoint, large, demo.options, "drawn"), stored,
                       threads=[machine.threads], progress=progress)
        beyond: list[list[float]] = [[], []]
        for turn in range(STARTS):
            progress("start processes", turn, STARTS)
            for found, plan, source in zip(beyond, plans, ("demo", str(stored)), strict=True):
                prompt, seconds = _first(source, machine.threads)
                warm = sum(machine.seconds(plan, step) for step in cost.prefill(0, prompt, pipeline.PREFILL_CHUNK))
                found.append(seconds - warm)
    return start_prices(*beyond, weights=cost.weight_bytes(plans[1], machine.setting.path))


def _first(source: str, threads: int) -> tuple[int, float]:
    """The tokens of a prompt and the seconds to the first token of a process that answers it with one."""
    command = [sys.executable, "-m", "openlpu", "run", source, "--max-tokens", "1", "--threads", str(threads), "--json"]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["measured"]
    return said["prompt_tokens"], said["first_token_s"]


def _steady(machine: Machine) -> str:
    from openlpu.tokens.promise import limit

    said = limit(machine, machine.spreads[-1].seconds)
    return (f"{machine.processor}, {machine.path}, {machine.threads} thread{'s' * (machine.threads > 1)}: "
            f"{said.percent} tokens in 100 are promised below {said.limit / said.median:.2f} times the median")


def before_run(model: Model, answer: Generation, *, quiet: bool) -> Promise | None:
    """The promise for an answer, said on standard error unless ``quiet``; None, and how to get one, without a
    measurement."""
    from openlpu.target.cpu import machine
    from openlpu.target.cpu.run import CpuExecutable
    from openlpu.tokens.promise import Forecast, Promise

    loaded, request = model.executable, answer.request
    if not isinstance(loaded, CpuExecutable):
        return None
    try:
        known = machine.load(loaded.path, loaded.threads)
    except machine.NotCalibrated as error:
        _say(error.short, quiet)
        return None
    forecast = Forecast(known, loaded.plan, model.engine.chunk, drawn=request.sampling.temperature > 0,
                        mapped=loaded.moving)
    room = loaded.context - len(request.prompt)
    promise = Promise(forecast, len(request.prompt), max(1, min(request.max_tokens, room)))
    _say(str(promise), quiet)
    return promise


def after_run(promise: Promise | None, context: int, answer: Generation) -> dict[str, Any] | None:
    """What ``run --json`` says of the promise, and whether it was kept."""
    if promise is None:
        return None
    first, kept = answer.measured()["first_token_s"], promise.kept(answer.gaps)
    said = promise.to_json(context)
    return said | {"kept": kept, "kept_first": first <= said["first_token_limit_s"]}


def verdict(said: dict[str, Any]) -> str:
    """A line of a run's summary."""
    word = "kept" if said["kept"] * 100 >= said["kept_percent"] else "NOT kept"
    return (f"promised     {units.wall(said['token_p50_s'])} per token, {said['kept_percent']} in 100 below "
            f"{units.wall(said['token_limit_s'])}: {said['kept']:.1%} were, {word}")


def before_bench(graph: Graph, threads: int, works: Sequence[Work], *, quiet: bool) -> dict[str, Any] | None:
    """What each kind of work of a benchmark is promised, said on standard error unless ``quiet``; None without a
    measurement."""
    from openlpu.target.cpu import cost, machine
    from openlpu.target.cpu.path import choose
    from openlpu.target.cpu.plan import Planner
    from openlpu.target.cpu.run import usable_threads
    from openlpu.tokens.promise import Forecast

    path, plan = choose("auto"), Planner(graph, graph.config.context).plan()
    try:
        known = machine.load(path, threads or usable_threads(cost.weight_bytes(plan, path)))
    except machine.NotCalibrated as error:
        _say(error.short, quiet)
        return None
    forecast, said = Forecast(known, plan, engine=False), {}
    for work in works:
        one = forecast.first(work.tokens) if work.together else forecast.token(work.context + (work.tokens + 1) // 2)
        said[work.name] = {"p50_s": one.median, "limit_s": one.limit, "kept_percent": one.percent}
        each = f"for {work.tokens} tokens" if work.together else f"per token behind {work.context}"
        _say(f"{units.wall(one.median)} {each} ({one.percent} in 100 below {units.wall(one.limit)})", quiet)
    return {"clock": "wall", **said}


def beside(title: str, said: dict[str, Any], took: dict[str, Any]) -> str:
    """A line of a benchmark's summary: what was promised over what was measured."""
    kept = "kept" if took["p99_s"] <= said["limit_s"] else f"p99 was {units.wall(took['p99_s'])}"
    return (f"{title:18}promised {units.wall(said['p50_s'])}, {said['p50_s'] / took['p50_s']:.2f} times the median; "
            f"{said['kept_percent']} in 100 below {units.wall(said['limit_s'])}: {kept}")


def _say(text: str, quiet: bool) -> None:
    """One line on standard error."""
    if not quiet:
        print(f"promised     {text}", file=sys.stderr, flush=True)
