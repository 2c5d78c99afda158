"""Whole decode steps on the chip model against the reference: bits, cycles, claims, segments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import BASE, CASES, LLAMA, QWEN3, random_graph, same, tokens

from openlpu._base.errors import DoesNotFit
from openlpu.arch.chip import load_chip
from openlpu.numerics.scheme import Scheme
from openlpu.place.bound import bound
from openlpu.place.layout import place
from openlpu.schedule.report import report
from openlpu.schedule.step import buckets, schedule
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.ref import run as ref

TINY = load_chip("tiny")


def program(graph, machine=TINY, contexts=None):
    layout = place(graph, machine)
    return schedule(graph, layout, contexts or buckets(layout.context))


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))
def test_random_graphs_give_the_reference_bits(name):
    graph = random_graph(*CASES[name])
    ids = tokens(3, graph.config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    assert same(chip.load(graph, chip=TINY).run([Chunk(0, 0, ids, every=True)]), want)


def test_the_real_geometry_gives_the_reference_bits():
    graph = random_graph(replace(BASE, hidden=400, heads=6, kv_heads=3, head_dim=64, intermediate=700), QWEN3, Scheme())
    ids = tokens(3, graph.config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    assert same(chip.load(graph, chip="lpu-v1").run([Chunk(0, 0, ids, every=True)]), want)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]), dim=st.sampled_from([4, 8, 24, 64]),
    hidden=st.integers(4, 300), inner=st.integers(1, 300), kv_bits=st.sampled_from([8, 16]),
    share=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 100),
)
def test_any_shape_gives_the_reference_bits(heads, dim, hidden, inner, kv_bits, share, seed):
    config = replace(BASE, layers=1, hidden=hidden, heads=heads[0], kv_heads=heads[1], head_dim=dim, intermediate=inner)
    graph = random_graph(config, LLAMA, Scheme(kv_bits=kv_bits, outlier_share=share), seed)
    ids = tokens(2, config, seed)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    assert same(chip.load(graph, chip=TINY).run([Chunk(0, 0, ids, every=True)]), want)


def test_a_longer_bucket_takes_over_with_the_same_cache():
    """Positions 0-259: segment 256, then segment 300; both read what either wrote."""
    config = replace(BASE, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=16, intermediate=16, context=300)
    graph = random_graph(config, LLAMA, Scheme())
    ids = tokens(260, config)
    machine = chip.load(graph, chip=TINY)
    assert [s.context for s in machine.program.segments] == [256, 300]
    got = machine.run([Chunk(0, 0, ids, every=True)])
    assert machine.cycles == machine.program.segments[1].cycles
    assert same(got, ref.load(graph).run([Chunk(0, 0, ids, every=True)]))


def test_overwriting_positions_forgets_what_was_there():
    graph = random_graph(replace(BASE, layers=1), LLAMA, Scheme())
    first, second = tokens(4, graph.config, 1), tokens(3, graph.config, 2)
    machine, reference = chip.load(graph, chip=TINY), ref.load(graph)
    for ids in (first, second):
        assert same(machine.run([Chunk(0, 0, ids)]), reference.run([Chunk(0, 0, ids)]))


def test_compiling_twice_gives_the_same_program():
    graph = random_graph(replace(BASE, layers=1), LLAMA, Scheme())
    one, two = program(graph), program(graph)
    for a, b in zip(one.segments, two.segments, strict=True):
        assert all(np.array_equal(a.queues[q], b.queues[q]) for q in a.queues)
        assert np.array_equal(a.claims.reads, b.claims.reads)
    homes = [[(r.name, r.addresses.tolist()) for r in p.resident] for p in (one, two)]
    assert homes[0] == homes[1]


def test_other_weights_of_the_same_shape_have_the_same_program():
    one, two = (program(random_graph(replace(BASE, layers=1), LLAMA, Scheme(), seed)).segments[0] for seed in (0, 1))
    assert all(np.array_equal(one.queues[q], two.queues[q]) for q in one.queues)


@pytest.mark.parametrize("machine", ["tiny", "lpu-v1"])
def test_no_schedule_beats_the_bound(machine):
    graph = random_graph(BASE, LLAMA, Scheme())
    segment = program(graph, load_chip(machine)).segments[0]
    limit = bound(graph, load_chip(machine), 256)
    assert limit.cycles <= segment.cycles < 3 * limit.cycles


def test_every_cycle_of_the_report_is_accounted_for():
    graph = random_graph(BASE, LLAMA, Scheme())
    segment = program(graph).segments[0]
    r = report(TINY, segment)
    assert sum(r.path.values()) == sum(r.operators.values()) == r.cycles == segment.cycles
    assert min(r.path.values()) >= 0
    assert r.instructions == sum(len(q) for q in segment.queues.values())


def test_a_model_too_large_says_what_takes_the_room():
    config = replace(BASE, layers=1, hidden=256, heads=4, head_dim=64, intermediate=40000)
    graph = random_graph(config, LLAMA, Scheme())
    with pytest.raises(DoesNotFit, match=r"(?s)chip tiny: weights needs \d+ more rows.*weights \d+%.*larger chip"):
        place(graph, TINY)
