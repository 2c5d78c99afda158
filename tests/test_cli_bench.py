"""The bench command: that it runs, what it counts, and its arithmetic.  Never how fast anything is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from openlpu.cli import main
from openlpu.graph.shapes import shape
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.cpu import rate
from openlpu.target.cpu.path import available
from openlpu.target.cpu.run import load
from openlpu.tokens import bench
from openlpu.tokens.bounds import Need, Rates, Work, need


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "BLOCK_S", 0.01)
    monkeypatch.setattr(bench, "PASSES", 1)
    monkeypatch.setattr(rate, "TILES", 8)


def output(capsys, *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bench_measures_beside_the_bounds(capsys):
    result = output(capsys, "bench", "demo", "--threads", "2", "--pairs", "2", "--at-context", "300")
    assert (result["model"], result["threads"], result["against"]) == ("demo", 2, [])
    assert result["weight_bytes"] == 1024 * 256 + 4 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 768)  # a byte each
    machine, measured = result["machine"], result["measured"]
    assert machine["clock"] == measured.pop("clock") == "wall" and measured.pop("load_s") > 0
    assert {name: (m["tokens"], m["context"]) for name, m in measured.items()} == {
        "prefill": (256, 0), "decode": (32, 0), "decode_at_context": (32, 300)}
    for m in measured.values():
        bounds = {"memory": m["bytes"] / machine["read_bytes_per_s"],
                  "integer": m["products"] / machine["products_per_s"]}
        assert m["bound_s"] == pytest.approx(bounds)
        assert m["share"] == pytest.approx(max(bounds.values()) / m["p50_s"])
        assert 0 < m["p50_s"] <= m["p99_s"] and m["tokens_per_s"] > 0
    assert measured["prefill"]["runs"] == 2 and measured["decode"]["runs"] >= 64


def test_bench_against_a_peer_prints_ratios_and_their_spread(capsys, llama_bench, tmp_path):
    words = ["bench", "--threads", "1", "--pairs", "2", "--against", f"llama-bench={llama_bench}"]
    words += ["--peer-model", str(tmp_path)]
    result = output(capsys, *words)
    (peer,) = result["against"]
    assert (peer["peer"], peer["version"], peer["model"]) == ("llama-bench", "7 (abc)", tmp_path.name)
    for name, theirs in peer["measured"].items():
        ours, ratio = result["measured"][name]["tokens_per_s"], theirs["ratio"]
        assert theirs["tokens_per_s"] == 1000.0 * result["measured"][name]["tokens"]
        assert ratio["median"] == pytest.approx(ours / theirs["tokens_per_s"])
        assert 0 < ratio["low"] <= ratio["median"] * 1.001 and ratio["high"] >= ratio["low"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "against llama-bench 7 (abc)" in out and out.count("ours is") == 2 and " wall" in out


@pytest.mark.parametrize(("words", "message"), [
    (["--shape", "gpt-9"], "llama-3.2-1b"),
    (["--at-context", "500"], "do not fit the context of 512"),
    (["--against", "abacus=/bin/true"], "names no peer"),
    (["no.gguf", "--against", "llama-bench=/bin/true"], "there is no model no.gguf"),
])
def test_what_cannot_be_measured(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("bits", ["3", "9", "nan", "four"])
def test_bits_that_no_format_has(bits, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--bits", bits])
    assert "4.5 to 8" in capsys.readouterr().err


def test_a_ratio_is_one_of_medians_and_its_spread_that_of_pairs():
    work = Work("decode", 2, 0, False)
    ours = bench.Measured(work, Need(8.0, 6.0), ((0.5, 0.5), (0.25, 0.25), (1.0, 1.0)))
    theirs = bench.Against("other", {"version": "1"}, {"decode": (1.0, 4.0, 2.0)}).to_json([ours])
    assert ours.rates == [2.0, 4.0, 1.0]
    assert theirs["measured"]["decode"] == {"tokens_per_s": 2.0, "ratio": {"median": 1.0, "low": 0.5, "high": 2.0}}
    said = ours.to_json(Rates(16.0, 24.0))
    assert (said["bound_s"], said["p50_s"], said["share"]) == ({"memory": 0.5, "integer": 0.25}, 0.5, 1.0)


def test_needs_are_counted_from_the_shape():
    config = replace(shape("smollm2-135m", 128), layers=2, vocab=1024)
    graph = draw(config, Scheme(wide_head=False, outlier_share=0.0))
    executable = load(graph, threads=1)
    matrices = 2 * 576 * (576 + 192 + 192 + 576 + 3 * 1536)  # of both layers
    codes = matrices + 1024 * 576
    one, prompt = (need(graph, executable, Work("", 3, 62, together)) for together in (False, True))
    executable.close()
    # The middle one of the three tokens looks at 64 positions, each 2 layers * 3 heads * (K, V: 64 codes; 2 scales).
    position = 2 * 3 * (2 * 64 + 8)
    attention = 4 * 2 * 9 * 64 * 64
    assert one.products == codes + attention and prompt.products == 3 * (matrices + attention) + 1024 * 576
    assert one.bytes == codes + 64 * position
    assert position <= prompt.bytes - one.bytes <= 64 * position  # 65 positions are reached, in whole blocks


@pytest.mark.parametrize("path", available())
def test_the_multiplying_loop_multiplies(path):
    """Its code has the instructions of a whole block, and every path gives a rate."""
    loop = rate.DotLoop(2, path)
    assert loop.measure() > 0
    assembly = loop._module.assembly()
    loop.close()
    body = assembly[assembly.index("multiply:") : assembly.index("prepare:")]
    name = {"avx512vbmi2": "vpdpbusd", "avx512vnni": "vpdpbusd", "avx2": "vpmaddwd"}.get(path)
    assert name is None or body.count(name) >= loop.path.blocks[0] * (loop.path.panel // 16)
