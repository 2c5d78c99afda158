"""Splits of models: the bits of the whole one, work shared out evenly, equal stages equal, a golden text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import BASE, CASES, LLAMA, QWEN3, random_graph, same, tokens
from shard_runs import run_shards

from openlpu._base.errors import Unsupported
from openlpu._base.text import dump
from openlpu.checkpoint.folder import load
from openlpu.compile import compile
from openlpu.graph import build
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.partition.channels import head_channels, spread
from openlpu.partition.names import shift
from openlpu.partition.shard import balanced, shard
from openlpu.partition.split import CODES, EXCHANGES, VALUES, Shards, Split
from openlpu.target.base import Chunk
from openlpu.target.ref import run as ref

MIXED = [(t, s) for t in (1, 2, 4, 8) for s in (1, 2, 4)]


def bits(graph, splits, count: int = 4) -> None:
    """Every split gives the reference's logits, in two chunks."""
    ids = tokens(count, graph.config)
    chunks = [Chunk(0, 0, ids[:-1], every=True), Chunk(0, count - 1, ids[-1:], every=True)]
    want = ref.load(graph, context=count).run(chunks)
    for tensor, stages, exchange in splits:
        if stages <= graph.config.layers:
            shards = shard(graph, Split(tensor, stages, exchange))
            assert same(run_shards(shards, chunks, count), want), shards.split


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))
def test_random_graphs_keep_their_bits(name: str) -> None:
    graph = random_graph(*CASES[name])
    bits(graph, [(t, s, e) for t in (1, 2, 4, 8) for s in (1, 2) for e in EXCHANGES])


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_the_demo_keeps_its_bits(exchange: str) -> None:
    bits(compile("demo").graph, [(t, s, exchange) for t, s in MIXED])


def test_stories260k_keeps_its_bits(shared: Path) -> None:
    graph = compile(shared / "models" / "stories260K").graph
    bits(graph, [(t, s, e) for t, s in MIXED for e in EXCHANGES])


def test_drawn_graphs_keep_their_bits() -> None:
    config = replace(BASE, layers=4, hidden=96, heads=6, kv_heads=3, head_dim=16, intermediate=200, vocab=77)
    for scheme in (Scheme(outlier_share=0.05), Scheme(kv_bits=4)):
        bits(draw(config, scheme), [(t, s, "values") for t, s in MIXED])


@settings(max_examples=15, deadline=None)
@given(kv=st.integers(1, 9), group=st.integers(1, 9), hidden=st.integers(1, 70), inner=st.integers(1, 90),
       tensor=st.sampled_from([2, 4, 8]), exchange=st.sampled_from(EXCHANGES))
def test_any_shape_keeps_its_bits(kv: int, group: int, hidden: int, inner: int, tensor: int, exchange: str) -> None:
    config = replace(BASE, layers=1, hidden=max(hidden, 4), heads=kv * group, kv_heads=kv, head_dim=4,
                     intermediate=inner)
    bits(random_graph(config, QWEN3, Scheme(outlier_share=0.05)), [(tensor, 1, exchange)], 2)


def test_channels_go_round() -> None:
    assert spread(7, 4).tolist() == [[0, 4], [1, 5], [2, 6], [3, -1]]
    assert spread(3, 8).tolist() == [[0], [1], [2], [-1], [-1], [-1], [-1], [-1]]
    assert spread(6, 1).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("heads", "kv_heads", "chips", "query", "kv"), [
    (8, 4, 2, [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1], [2, 3]]),
    (8, 4, 8, [[0], [1], [2], [3], [4], [5], [6], [7]], [[0], [0], [1], [1], [2], [2], [3], [3]]),
    (4, 2, 8, [[0], [0], [1], [1], [2], [2], [3], [3]], [[0], [0], [0], [0], [1], [1], [1], [1]]),
    (9, 3, 2, [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]], [[0, 1], [1, 2]]),
    (3, 1, 2, [[0, 1], [1, 2]], [[0], [0]]),
])
def test_heads_are_shared_out(heads: int, kv_heads: int, chips: int, query: list, kv: list) -> None:
    made = head_channels(heads, kv_heads, 1, chips)
    assert [m.tolist() for m in made] == [query, kv]


@given(kv=st.integers(1, 40), group=st.integers(1, 12), chips=st.sampled_from([1, 2, 4, 8]))
def test_every_head_is_made_beside_its_keys(kv: int, group: int, chips: int) -> None:
    query, keys = head_channels(kv * group, kv, 1, chips)
    assert set(query.ravel().tolist()) == set(range(kv * group)) and set(keys.ravel().tolist()) == set(range(kv))
    per = query.shape[1] // keys.shape[1]
    assert (query // group == np.repeat(keys, per, axis=1)).all()
    if kv % chips == 0 or (chips % kv == 0 and group % (chips // kv) == 0):
        assert query.size == kv * group, "no copies where heads divide"


def test_one_chip_has_the_graph_itself() -> None:
    graph = random_graph(*CASES["tied"])
    (stage,) = shard(graph, Split()).stages
    assert stage.graph is graph and not stage.parts


def test_equal_stages_have_one_signature() -> None:
    graph = draw(replace(BASE, layers=8))
    signatures = [stage.signature() for stage in shard(graph, Split(2, 4)).stages]
    assert len(set(signatures)) == 3 and signatures[1] == signatures[2]
    windows = draw(replace(BASE, layers=8, window=5, full_layers=(2, 3)))
    assert len({stage.signature() for stage in shard(windows, Split(2, 4)).stages}) == 4


@given(costs=st.lists(st.integers(0, 20), min_size=1, max_size=9), data=st.data())
def test_runs_are_as_even_as_can_be(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    runs = balanced(costs, stages)
    assert len(runs) == stages and [k for a, b in runs for k in range(a, b + 1)] == list(range(len(costs)))
    assert all(a <= b for a, b in runs)
    best = min(max(sum(costs[a:b]) for a, b in zip((0, *cut), (*cut, len(costs)), strict=True))
               for cut in combinations(range(1, len(costs)), stages - 1))
    assert max(sum(costs[a : b + 1]) for a, b in runs) == best


def test_stages_may_end_inside_a_layer() -> None:
    graph = draw(replace(BASE, layers=4, intermediate=300, tied=False))
    shards = shard(graph, Split(2, 3, halves=True))
    assert [(s.first, s.last) for s in shards.stages] == [(0, 1), (1, 2), (3, 3)]
    assert [sum(n.op == "attention" for n in s.graph.nodes) for s in shards.stages] == [2, 1, 1]
    assert shards.stages[1].graph.nodes[0].output == "layers.0.attn.add"
    chunk = Chunk(0, 0, tokens(3, graph.config), every=True)
    for split in (Split(2, 3, halves=True), Split(1, 8, halves=True), Split(4, 5, "codes", True)):
        assert same(run_shards(shard(graph, split), [chunk], 3), ref.load(graph).run([chunk])), split


def test_a_stage_names_the_models_parameters() -> None:
    graph = draw(replace(BASE, layers=5))
    shards = shard(graph, Split(2, 2))
    assert [(s.first, s.last) for s in shards.stages] == [(0, 2), (3, 4)]
    last = shards.stages[1]
    assert {shift(key, last.first) for key in last.graph.params} <= set(graph.params)
    assert last.graph.params["layers.0.attn.q.codes"] is graph.params["layers.3.attn.q.codes"]
    assert last.graph.nodes[0].output == "layers.-1.out" and shift("layers.-1.out", 3) == "layers.2.out"
    assert [n.attrs["layer"] for n in last.graph.nodes if n.op == "attention"] == [0, 1]


@pytest.mark.parametrize("split", [Split(3), Split(32), Split(2, 3), Split(1, 0), Split(2, 1, "bytes")])
def test_what_cannot_be_names_the_field(split: Split) -> None:
    field = "tensor" if split.tensor in (3, 32) else "exchange" if split.exchange == "bytes" else "stages"
    with pytest.raises(Unsupported, match=f"^{field}: .*\n  fix: "):
        shard(random_graph(BASE, LLAMA, Scheme()), split)


def exchanged(shards: Shards) -> int:
    """Bytes that each chip receives."""
    total = 0
    for stage in shards.stages:
        for node in (n for n in stage.graph.nodes if n.op in ("gather", "max")):
            source = node.inputs[0]
            width = stage.parts[source].shape[1] if source in stage.parts else 1
            wide = [n.attrs["wide"] for n in stage.graph.nodes if n.output == source and n.op == "quantize"]
            total += (stage.tensor - 1) * width * (4 if not wide else 2 if wide[0] else 1)
    return total


def test_codes_are_fewer_bytes() -> None:
    graph = random_graph(replace(BASE, hidden=512, intermediate=1024), LLAMA, Scheme(outlier_share=0.0))
    values, coded = (exchanged(shard(graph, Split(4, 1, e))) for e in (VALUES, CODES))
    assert coded < 0.4 * values


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_arrow(exchange: str, models: Path, golden: Callable[[str], None]) -> None:
    graph = lower(build(load(models / "smollm")).truncate(2), Scheme(outlier_share=0.0))
    golden(dump(shard(graph, Split(2, 2, exchange)).show()))
