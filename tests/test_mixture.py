"""A mixture of experts on the CPU: the reference's bits however tokens meet, and no byte of an expert nobody chose."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import BASE, LLAMA, MIXTURES, assert_neighbours_do_not_matter, random_graph, same, tokens
from safetensors.numpy import load_file

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.evaluate import evaluate
from openlpu.graph.shapes import shape
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.partition.split import Split
from openlpu.target import TARGETS
from openlpu.target.base import Chunk
from openlpu.target.cpu import cost
from openlpu.target.cpu import path as paths
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu.linear import LinearStage
from openlpu.target.cpu.plan import Planner
from openlpu.target.ref import run as ref
from openlpu.tokens.check import Case, check


@pytest.fixture(scope="module")
def mixture():
    """Two layers of seven experts, three for a token, and the logits of more tokens than a native step has."""
    config = replace(BASE, experts=7, experts_per_token=3, context=140)
    graph = random_graph(config, LLAMA, Scheme())
    ids = tokens(140, config)
    return graph, ids, ref.load(graph).run([Chunk(0, 0, ids, every=True)])[0]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_cut(mixture, threads):
    graph, ids, want = mixture
    target = cpu.load(graph, threads=threads)
    for size in (1, 7, 64, 140):
        for start in range(0, 140, size):
            part = ids[start : start + size]
            (got,) = target.run([Chunk(0, start, part)])
            assert same([got], [want[start + len(part) - 1 : start + len(part)]]), f"chunks of {size}, at {start}"
    target.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_neighbours_do_not_matter(mixture, threads):
    """Rows with and without logits at eight positions; whoever else chose an expert is of no account."""
    graph, ids, want = mixture
    target = cpu.load(graph, slots=8, threads=threads)
    assert_neighbours_do_not_matter(target, ids, want, (0, 1, 5, 17, 64, 90, 100, 130))
    target.close()


PROTECTED = """
import ctypes, sys
from dataclasses import replace
import numpy as np
from random_models import BASE, LLAMA, random_graph, same
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref.run import trace

graph = random_graph(replace(BASE, layers=1, intermediate=512, experts=4, experts_per_token=2), LLAMA, Scheme())
seen = {}
want = trace(graph, (9,), lambda node, value: seen.update({node.output: value}))
chosen = set(np.flatnonzero(seen["layers.0.mlp.route"][0]).tolist())
target = cpu.load(graph, threads=2)
image, closed = target.layout.image, set()
for place in image.places:
    words = place.operand.name.split(".")
    if words[2:3] == ["mlp"] and words[3].isdigit() and (int(words[3]) in chosen) == (sys.argv[1] == "chosen"):
        first = -(-(image.streamed.ctypes.data + place.offset) // 4096) * 4096
        size = (image.streamed.ctypes.data + place.offset + place.size - first) // 4096 * 4096
        if size > 0:
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(first), ctypes.c_size_t(size), 0) == 0
            closed.add(words[3])
assert len(closed) == 2
assert same(target.run([Chunk(0, 0, (9,))]), [want])
print("the same bits")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes pages away")
@pytest.mark.parametrize(("closed", "ends"), [("others", "the same bits\n"), ("chosen", "")])
def test_a_token_reads_only_the_experts_it_chose(closed, ends):
    """Whoever touches the pages of the experts that are closed is stopped by the system."""
    done = subprocess.run([sys.executable, "-c", PROTECTED, closed], capture_output=True, text=True,
                          cwd=Path(__file__).parent, env={"PYTHONPATH": ":".join(["../src", "."])}, check=False)
    assert done.stdout == ends, done.stderr
    assert (done.returncode == 0) == bool(ends)


def test_what_a_step_reads_is_counted():
    """A token meets two of eight experts of a known shape, many tokens meet all."""
    config = replace(shape("mixtral-8x7b", 64), layers=2, hidden=64, intermediate=96, vocab=50)
    plan, path = Planner(draw(config), 64).plan(), paths.choose("portable")
    experts = [s.spec for s in plan.stages if isinstance(s.spec, LinearStage) and s.spec.experts]
    assert len(experts) == 4 and {spec.met(1) for spec in experts} == {(2, 1)}
    assert [experts[0].met(rows) for rows in (2, 4, 5, 64)] == [(4, 1), (8, 1), (8, 2), (8, 16)]
    one, many = (cost.weight_bytes(plan, path, rows) for rows in (1, 64))
    assert many - one == 2 * 6 * 3 * 64 * 96
    setting = cost.Setting(path, 1, cost.Reach(1 << 20, ((8 << 20, 1e-11), (64 << 20, 3e-11))))
    token, prompt = cost.work(plan, setting, cost.decode(1)), cost.work(plan, setting, *cost.prefill(0, 64))
    assert prompt["linear: silu"] / token["linear: silu"] == (64 + 1) / 2  # the last layer's for the last token only


def test_what_has_no_room_is_reported_before_it_is_packed(monkeypatch):
    graph = random_graph(*MIXTURES["experts"])
    monkeypatch.setattr("openlpu.target.cpu.image.available", lambda: 100_000)
    with pytest.raises(DoesNotFit, match="not enough memory: the weights take .* kB, 100 kB are available"):
        cpu.load(graph)


def test_experts_of_different_formats_are_refused():
    graph = random_graph(*MIXTURES["experts in blocks"])
    nodes = tuple(replace(n, params={w: k for w, k in n.params.items() if w != "blocks"})
                  if n.where == "layers.1.mlp.2.down" else n for n in graph.nodes)
    with pytest.raises(Unsupported, match=r"layers\.1\.mlp\.0\.down: the experts have weights of different formats"):
        cpu.load(replace(graph, nodes=nodes))


def test_check_finds_one_hash_on_every_target(models, monkeypatch):
    """With short prompts: `openlpu check` has longer ones, and more splits."""
    monkeypatch.setattr("openlpu.tokens.check.PROMPTS", (2, 1, 1, 3, 1, 1, 1, 1))
    monkeypatch.setattr("openlpu.tokens.check.TOKENS", 1)
    graph = lower(build(load(models / "mixtral")), Scheme())
    cases = [Case("ref"), Case("cpu", batch=8, threads=2, path="auto"), Case("chip"), Case("chip", split=Split(2))]
    verdict = check(graph, cases, {case.target: TARGETS.get(case.target) for case in cases})
    assert verdict.distinct == 1 and [row.case for row in verdict.rows] == cases and not verdict.skipped


def test_integers_are_near_the_floats_until_a_choice_differs(models):
    """A choice between nearly equal experts may differ; up to there the logits are those of fp32, nearly."""
    graph = build(load(models / "mixtral"))
    golden = load_file(models / "mixtral" / "golden.safetensors")
    ids = golden["ids"].tolist()
    chosen: list[dict[str, np.ndarray]] = []
    integer = lower(prepare(graph, Scheme(), ref.trace), Scheme())
    for run, level in ((evaluate, graph), (ref.trace, integer)):
        seen: dict[str, Any] = {}
        logits = run(level, ids, lambda node, value, seen=seen: seen.update({node.output: value}))
        chosen.append({name: value != 0 for name, value in seen.items() if name.endswith(".route")})
    other = np.sum([(chosen[0][name] != chosen[1][name]).any(axis=1) for name in chosen[0]], axis=0)
    first = int(np.flatnonzero(other)[0]) if other.any() else len(ids)
    assert first >= 5 and np.count_nonzero(other) <= 4, f"choices differ at {np.flatnonzero(other)}"
    want = golden["logits"][:first]
    assert np.linalg.norm(logits[:first] - want) < 0.06 * np.linalg.norm(want)
