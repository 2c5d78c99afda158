"""The promise about wall time: counts of work from a plan, a machine's file, and what is said before a token runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openlpu import cli, cli_promise
from openlpu._base.text import dump
from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.graph.shapes import shape
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.cpu import calibrate, cost, machine, native
from openlpu.target.cpu.image import build
from openlpu.target.cpu.path import available, choose
from openlpu.target.cpu.plan import Plan, Planner
from openlpu.tokens import promise
from openlpu.tokens.bench import works

PORTABLE = available()["portable"]
LOOP = ((4 << 20, 1e-11), (16 << 20, 1.5e-11), (64 << 20, 3e-11), (256 << 20, 3.1e-11))
SETTING = cost.Setting(PORTABLE, 1, cost.Reach(1 << 20, LOOP))
SMALL = ModelConfig("llama", hidden=96, layers=3, heads=6, kv_heads=2, head_dim=16, intermediate=160, vocab=300,
                    context=1024, norm_eps=1e-5, rope=Rope(1e4), tied=True)


def plan(config: ModelConfig = SMALL, bits: float = 8) -> Plan:
    return Planner(draw(config, Scheme(weight_bits=bits)), config.context).plan()


def known(path: str = "portable", threads: int = 1, spread: float = 1.1) -> machine.Machine:
    """A machine whose prices are simple numbers: a nanosecond, plus a tenth for each letter of the kind's name."""
    kinds: set[str] = set()
    for bits in (8, 4.5):
        for rows in (1, 2, 4, 8, 16):
            step = cost.Step(tuple(range(1, rows + 1)))
            kinds |= set(cost.work(plan(bits=bits), cost.Setting(choose(path), threads, SETTING.reach), step))
    prices = {kind: 1e-9 + len(kind) * 1e-10 for kind in sorted(kinds)}
    prices |= {f"engine: {way} {vocab}": seconds * vocab for way, seconds in (("likeliest", 1e-9), ("drawn", 2e-7))
               for vocab in (256, 1024, 65536)}
    prices |= {"start: call": 2e-4, "start: late call": 3e-4,
               "start: mapped byte": 1e-10, "start: late mapped byte": 2e-10}
    spreads = (machine.Spread(1e-4, (1.0, 1.01, 1.02, 1.03, 1.05, spread)),
               machine.Spread(5e-3, (1.0, 1.01, 1.02, 1.03, 1.04, 1.05)))
    return machine.Machine(machine.processor(), path, threads, SETTING.reach, prices, spreads,
                           native.kernels_hash())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's cache folder of our own."""
    monkeypatch.setattr(machine, "folder", lambda: tmp_path / "openlpu")
    yield tmp_path / "openlpu"


@pytest.mark.parametrize("bits", [8, 4.5])
def test_weights_are_counted_as_they_lie_in_memory(bits):
    graph = draw(SMALL, Scheme(weight_bits=bits))
    made = Planner(graph, 64).plan()
    assert cost.weight_bytes(made, PORTABLE) == build(made, PORTABLE, graph.params).weight_bytes


def test_counts_follow_rows_context_and_threads_and_no_name():
    one, two = (cost.work(plan(), SETTING, cost.Step((16,) * rows, rows)) for rows in (2, 4))
    for kind in ("linear: dot 2", "rows: quantize", "attention: score", "step: logit", "linear: silu"):
        assert two[kind] == 2 * one[kind] > 0, kind
    assert two["linear: stage"] == one["linear: stage"]
    near, far = (cost.work(plan(), SETTING, cost.decode(seen)) for seen in (64, 640))
    assert far["attention: value"] == 10 * near["attention: value"]
    assert far["linear: dot 1"] == near["linear: dot 1"]
    shared = cost.work(plan(), replace(SETTING, threads=2), cost.decode(64))
    assert 0.45 < shared["linear: dot 1"] / near["linear: dot 1"] < 0.65
    assert shared["rows: quantize"] == near["rows: quantize"]  # one row is one tile


def test_a_step_without_logits_leaves_the_last_stages_out():
    with_logits, without = (cost.work(plan(), SETTING, cost.Step((1, 2, 3), wanted)) for wanted in (1, 0))
    assert without["linear: stage"] < with_logits["linear: stage"] and not without["step: logit"]


@pytest.mark.parametrize(("start", "end", "chunk"), [(0, 1, 0), (0, 64, 0), (0, 200, 0), (5, 700, 256), (0, 513, 256)])
def test_prefill_runs_every_position_once(start, end, chunk):
    steps = cost.prefill(start, end, chunk)
    assert [seen for step in steps for seen in step.seen] == list(range(start + 1, end + 1))
    assert sum(step.wanted for step in steps) == -(-(end - start) // (chunk or end))
    assert max(len(step.seen) for step in steps) <= 64


def test_bytes_come_from_farther_away_the_more_there_are():
    shares = [SETTING.reach.shares(mb * 2**20, 1) for mb in (0.1, 0.75, 4, 16, 40, 64, 1000)]
    assert shares[0] == (0, 0) and shares[-1] == (0, 1)
    assert [far for _, far in shares] == sorted(far for _, far in shares)
    assert all(0 <= near <= 1 and near + far <= 1 for near, far in shares)


def test_prices_are_found_and_never_negative():
    random.seed(3)
    a = np.array([[random.random() for _ in range(6)] for _ in range(40)])
    prices = np.array([2.0, 0.0, 0.5, 0.0, 3.0, 1.0])
    assert np.allclose(calibrate.nonnegative(a, a @ prices), prices, atol=1e-9)
    noisy = calibrate.nonnegative(a, a @ prices - 0.3 * a[:, 1])
    assert noisy.min() == 0 and abs(noisy[0] - 2) < 0.5


def test_the_promise_is_a_function_of_machine_file_and_plan(golden):
    forecast = promise.Forecast(machine.parse(known().text()), plan(shape("smollm2-135m", 2048)), chunk=256)
    said = promise.Promise(forecast, 100, 50)
    golden(dump({"text": str(said), "json": said.to_json(2048)}))


def test_time_grows_with_context_prompt_and_sampling():
    forecast = promise.Forecast(known(), plan(), chunk=256)
    times = [forecast.token(seen).median for seen in (1, 100, 300, 1000)]
    first = [forecast.first(count).median for count in (1, 10, 100, 1000)]
    assert times == sorted(times) and first == sorted(first) and first[-1] > 50 * first[0]
    assert promise.Forecast(known(), plan(), engine=False).token(1).median < times[0]


def test_a_first_token_pays_for_a_cold_start():
    warm, cold, mapped = (promise.Forecast(known(), plan(), **how).first(9) for how in (
        {"engine": False}, {}, {"mapped": True}))
    assert cold.median - warm.median == pytest.approx(2e-4) and cold.limit - warm.limit == pytest.approx(3e-4)
    assert mapped.median - cold.median == pytest.approx(1e-10 * cost.weight_bytes(plan(), PORTABLE))
    assert mapped.limit - cold.limit == pytest.approx(2e-10 * cost.weight_bytes(plan(), PORTABLE))
    found = promise.start_prices([3e-4, 1e-4, 2e-4], [4e-4, 5e-4, 8e-4], 1000)
    assert found == pytest.approx({"start: call": 2e-4, "start: late call": 3e-4,
                                   "start: mapped byte": 3e-7, "start: late mapped byte": 6e-7})
    assert set(promise.start_prices([-1e-5], [-1e-5], 1).values()) == {0.0}


def test_the_engine_is_priced_along_a_line_between_vocabularies():
    prices = {**known().prices, **{f"engine: likeliest {n}": t for n, t in ((256, 1e-5), (1024, 2e-5), (65536, 1e-4))}}
    for vocab, want in ((128, 1e-5 * 5 / 6), (640, 1.5e-5), (1024, 2e-5), (33280, 6e-5), (98304, 1.4e-4 + 2e-5 / 63)):
        made = plan(replace(SMALL, vocab=vocab))
        whole, bare = (promise.Forecast(replace(known(), prices=prices), made, engine=on).token(9).median
                       for on in (True, False))
        assert whole - bare == pytest.approx(want, rel=0.01), vocab


@pytest.mark.parametrize(("spread", "percent"), [(1.1, 99), (1.3, 95), (9.0, 95)])
def test_a_limit_is_worth_having_or_says_less(spread, percent):
    made = promise.limit(known(spread=spread), 1e-3)
    assert made.percent == percent and 1 < made.limit / made.median <= promise.MOST
    unsteady = replace(known(), spreads=(machine.Spread(0.0, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),))
    assert promise.limit(unsteady, 1.0) == promise.Limit(1.0, 1.25, 50)


def test_kept_counts_each_token_against_its_own_context():
    said = promise.Promise(promise.Forecast(known(), plan()), 10, 1000)
    late = said.forecast.token(1000).median
    assert said.kept([late] * 990) < 1 and said.kept([said.token.limit / 2] * 3) == 1 and said.kept([]) == 1


def test_a_file_comes_back_as_it_was(cache):
    made = known()
    file = made.save()
    assert file.parent == cache and [path.name for path in cache.iterdir()] == [file.name]
    assert machine.load(PORTABLE, 1) == made


@pytest.mark.parametrize(("change", "words"), [
    ({"kernels": "0"}, "another version of openlpu"),
    ({"processor": "Z80"}, "another processor: Z80"),
    ({"prices": None, "reach": 3}, "not a file that `openlpu calibrate` wrote"),
])
def test_a_file_that_does_not_hold_is_refused_with_a_way_out(cache, change, words):
    file = known().save()
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(machine.NotCalibrated, match=words) as refused:
        machine.load(PORTABLE, 1)
    assert "openlpu calibrate" in str(refused.value)


def test_no_file_is_one_line_and_no_failure(cache, capsys):
    assert cli.main(["run", "demo", "KING", "--max-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert "openlpu calibrate" in err and err.count("\n") == 1 and "promised" not in out


def test_json_carries_the_promise_beside_the_measured(cache, capsys):
    path = choose("auto").name
    known(path).save()
    assert cli.main(["run", "demo", "KING", "--max-tokens", "6", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    said = result["promise"]
    assert err == "" and said["clock"] == result["measured"]["clock"] == "wall"
    assert said["prompt_tokens"] == result["measured"]["prompt_tokens"]
    assert 0 < said["token_p50_s"] < said["token_limit_s"] and 0 <= said["kept"] <= 1
    times = [point["token_p50_s"] for point in said["at_context"]]
    assert times == sorted(times) and said["at_context"][0]["context"] == 1
    assert cli.main(["run", "demo", "KING", "--max-tokens", "6"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("promised ") and "in 100 below" in err and err.count(" wall") == 3
    assert out.count("promised ") == 1


def test_bench_says_before_what_it_sets_beside_the_measured(cache, capsys):
    graph, todo = draw(SMALL), works(SMALL.context)
    assert cli_promise.before_bench(graph, 0, todo, quiet=True) is None
    known(choose("auto").name).save()
    said = cli_promise.before_bench(graph, 0, todo, quiet=False)
    assert said is not None and set(said) == {"clock", *(work.name for work in todo)}
    assert capsys.readouterr().err.count("promised ") == len(todo)
    one = said["decode"]
    kept, broken = (cli_promise.beside("decode", one, {"p50_s": one["p50_s"], "p99_s": one["limit_s"] * share})
                    for share in (0.9, 1.1))
    assert kept.endswith(": kept") and "1.00 times" in kept and "p99 was" in broken


def test_calibrate_measures_and_its_file_promises(cache, capsys, monkeypatch):
    few = {name: calibrate.SPECIMENS[name] for name in ("tiny", "square", "words", "vocabulary")}
    deep = calibrate.SPECIMENS["deep"]
    few["deep"] = replace(deep, config=replace(deep.config, layers=2), steps=((1, 16),))
    monkeypatch.setattr(calibrate, "SPECIMENS", few)
    monkeypatch.setattr(calibrate, "STEADY", {"tiny": 0.05})
    monkeypatch.setattr(cli_promise, "STARTS", 1)
    monkeypatch.setattr(cli_promise, "LAYERS", 2)
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(calibrate, "SIZES_MB", (1, 2, 4))
    assert cli.main(["calibrate", "--threads", "1", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["clock"] == "wall" and Path(said["file"]).parent == cache
    made = machine.load(choose("auto"), 1)
    assert min(made.prices.values()) >= 0 and made.prices["engine: drawn 256"] > 0
    assert made.prices["start: late call"] >= made.prices["start: call"]
    tiny = plan(few["tiny"].config)
    assert 1e-6 < made.seconds(tiny, cost.decode(16)) < 1
    assert promise.Forecast(made, tiny, drawn=True).token(10).median > promise.Forecast(made, tiny).token(10).median
