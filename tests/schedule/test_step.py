"""Whole decode steps on the chip model against the reference: bits, cycles, claims, segments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import BASE, CASES, LLAMA, QWEN2, QWEN3, random_graph, same, tokens

from openlpu._base.errors import DoesNotFit, ProgramError
from openlpu.arch.chip import load_chip
from openlpu.arch.isa import BY_NAME
from openlpu.graph.shapes import SHAPES
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.place.bound import Shortest, bound
from openlpu.place.layout import place
from openlpu.schedule.report import report
from openlpu.schedule.step import buckets, schedule
from openlpu.schedule.temporaries import Temporaries
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.chip.code import flatten
from openlpu.target.chip.rules import partners
from openlpu.target.chip.run import ChipExecutable
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


def test_sums_that_cannot_go_on_straight_are_added_up_once():
    """Three vectors of two planes and their squares do not find room at once: what was stored for that is not again."""
    graph = random_graph(replace(BASE, layers=1, hidden=541, intermediate=32), LLAMA, Scheme(outlier_share=1))
    chunk = Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(chip.load(graph, chip=TINY).run([chunk]), ref.load(graph).run([chunk]))


MANY = replace(QWEN3, qkv_bias=True, mlp_bias=True, sinks=True, swiglu=(1.702, 7.0))


def test_a_tree_of_more_alus_than_there_are_is_made_in_parts():
    """Four heads side by side, with sinks, in four blocks."""
    config = replace(BASE, layers=1, kv_heads=4, context=1024, window=260, intermediate=32, tied=False)
    graph = random_graph(config, MANY, Scheme(kv_bits=4, wide_head=False))
    chunk = Chunk(0, 1000, (1,), every=True)
    machine = ChipExecutable(program(graph, contexts=[1024]), graph.params)
    assert same(machine.run([chunk]), ref.load(graph).run([chunk]))


@pytest.mark.parametrize("unit", ["permute", "shift"])
def test_shifts_that_take_another_time_than_permutations_give_the_reference_bits(unit):
    """Then nothing is shifted beside what is permuted: it would not come back with it."""
    graph = random_graph(replace(BASE, layers=1), LLAMA, Scheme())
    slow, chunk = replace(TINY, latency={**TINY.latency, unit: TINY.latency[unit] + 5}), Chunk(0, 0, (1, 2), every=True)
    assert same(chip.load(graph, chip=slow).run([chunk]), ref.load(graph).run([chunk]))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]), dim=st.sampled_from([4, 8, 24, 64]),
    hidden=st.integers(4, 300), inner=st.integers(1, 300), kv_bits=st.sampled_from([4, 8, 16]),
    share=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 100),
)
def test_any_shape_gives_the_reference_bits_above_the_bound(heads, dim, hidden, inner, kv_bits, share, seed):
    config = replace(BASE, layers=1, hidden=hidden, heads=heads[0], kv_heads=heads[1], head_dim=dim, intermediate=inner)
    graph = random_graph(config, LLAMA, Scheme(kv_bits=kv_bits, outlier_share=share), seed)
    ids = tokens(2, config, seed)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    machine = chip.load(graph, chip=TINY)
    assert same(machine.run([Chunk(0, 0, ids, every=True)]), want)
    assert bound(graph, TINY, config.context).cycles <= machine.cycles


def test_scales_of_a_large_vocabulary_lie_side_by_side():
    """In all lanes they would take half of the chip; the token's is brought from its lane to all."""
    config = replace(BASE, layers=1, vocab=20700, tied=False, hidden=16, intermediate=16, heads=2, head_dim=8)
    graph = random_graph(config, LLAMA, Scheme())
    machine, chunk = chip.load(graph, chip=TINY), Chunk(0, 0, (5, 20699, 300, 256), every=True)
    assert same(machine.run([chunk]), ref.load(graph).run([chunk]))
    assert {"tokenfold", "tokenlane"} <= set(machine.program.host)


@pytest.mark.parametrize("window", [0, 3])
def test_a_longer_bucket_takes_over_with_the_same_cache(window):
    """Positions 0-2 and 250-259: segment 256, then segment 300; both read what either wrote, or what a window shows."""
    config = replace(BASE, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=16, intermediate=16, context=300,
                     window=window)
    graph = random_graph(config, LLAMA, Scheme())
    ids = tokens(13, config)
    chunks = [Chunk(0, 0, ids[:3], every=True), Chunk(0, 250, ids[3:], every=True)]
    machine = chip.load(graph, chip=TINY)
    assert [s.context for s in machine.program.segments] == [256, 300]
    got = machine.run(chunks)
    assert machine.cycles == machine.program.segments[1].cycles
    assert same(got, ref.load(graph).run(chunks))


def test_overwriting_positions_forgets_what_was_there():
    graph = random_graph(replace(BASE, layers=1), LLAMA, Scheme())
    first, second = tokens(4, graph.config, 1), tokens(3, graph.config, 2)
    machine, reference = chip.load(graph, chip=TINY), ref.load(graph)
    for ids in (first, second):
        assert same(machine.run([Chunk(0, 0, ids)]), reference.run([Chunk(0, 0, ids)]))


def test_scores_as_far_below_zero_as_they_get_are_above_those_not_seen():
    """Queries and keys near the largest magnitude, and opposed: scores of -4e30 are the largest a query sees."""
    config = replace(BASE, layers=1, heads=2, kv_heads=2, head_dim=64, context=16, tied=False)
    drawn, size = random_graph(config, QWEN2, Scheme()), np.float32(7e14)
    params = {name: np.full_like(x, size if "q.bias" in name else -size) if name.endswith(("q.bias", "k.bias"))
              else x for name, x in drawn.params.items()}
    graph, chunk = replace(drawn, params=params), Chunk(0, 0, tokens(3, config), every=True)
    want = ref.load(graph).run([chunk])
    assert not same(want, ref.load(drawn).run([chunk])), "the biases are there"
    assert same(chip.load(graph).run([chunk]), want)


def test_a_window_of_the_whole_context_is_the_same_program():
    config = replace(BASE, layers=1)
    plain, all_seen = (random_graph(replace(config, window=w), LLAMA, Scheme()) for w in (0, config.context))
    assert program(plain).host == program(all_seen).host
    assert program(plain).segments[0].cycles == program(all_seen).segments[0].cycles


def test_a_position_outside_the_context_is_named():
    graph = random_graph(replace(BASE, layers=1, context=5), LLAMA, Scheme())
    machine = chip.load(graph, chip=TINY)
    with pytest.raises(AssertionError, match="position 5 is outside the context"):
        machine.run([Chunk(0, 4, (1, 2))])


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
@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "-"))
def test_no_schedule_beats_the_bound(name, machine):
    graph = random_graph(*CASES[name])
    for segment in program(graph, load_chip(machine)).segments:
        limit = bound(graph, load_chip(machine), segment.context)
        assert limit.cycles <= segment.cycles < 5 * limit.cycles


def test_the_bound_knows_that_a_product_does_not_wait_for_its_scale():
    """What rms makes is a scale: later norms lengthen the path by less than all of their own cycles."""
    graph = random_graph(BASE, LLAMA, Scheme())
    shortest = Shortest(TINY)
    assert shortest.over_lanes(1) == 0 < shortest.over_lanes(16) < shortest.over_lanes(17) < shortest.over_lanes(257)
    slow = replace(TINY, latency={**TINY.latency, "read": 1000, "write": 1000})
    assert bound(graph, slow, 64).path - bound(graph, TINY, 64).path == 997, "only the embedding must be read"
    assert bound(graph, TINY, 256).path > bound(graph, TINY, 1).path, "a maximum over positions"


def test_every_cycle_of_the_report_is_accounted_for():
    graph = random_graph(BASE, LLAMA, Scheme())
    segment = program(graph).segments[0]
    r = report(TINY, segment)
    assert sum(r.path.values()) == sum(r.operators.values()) == r.cycles == segment.cycles
    assert min(r.path.values()) >= 0
    assert r.instructions == sum(len(q) for q in segment.queues.values())


def test_a_model_too_large_says_what_takes_the_room():
    """All of what was asked, what there is, the gap, where the room goes, and only levers there are."""
    config = replace(BASE, layers=1, vocab=70000, context=4096)
    report = (r"(?s)chip tiny: 47.4 MB are asked of 41.9 MB of SRAM, and slice \d+ has 4,096 rows and would need .*; "
              r"what takes the room: embedding 18.2 MB, weights 18.1 MB, rope 8.39 MB, kv .*fix: a larger chip .*"
              r"; or a shorter context \(--context\); or fewer bits")
    with pytest.raises(DoesNotFit, match=report) as wide:
        place(random_graph(config, LLAMA, Scheme(kv_bits=16)), TINY)
    with pytest.raises(DoesNotFit) as narrow:
        place(random_graph(config, LLAMA, Scheme()), TINY)
    assert "--kv-bits" in str(wide.value) and "--kv-bits" not in str(narrow.value)


@pytest.mark.parametrize("words", [90, 122, 126])
def test_values_inside_the_token_need_room_too(words):
    """What is placed fits, what the scheduler adds does not: the same report, not a search without end."""
    graph = random_graph(replace(BASE, layers=2), LLAMA, Scheme())
    with pytest.raises(DoesNotFit, match=r"are asked of .* of SRAM, and .*(row is left|would need)"):
        program(graph, replace(TINY, words_per_slice=words))


def test_rows_are_used_again_after_their_last_read(monkeypatch):
    """With little room results take rows that are free again; one taken too early is refused."""
    graph, machine = random_graph(replace(BASE, layers=2), LLAMA, Scheme()), replace(TINY, words_per_slice=150)
    made = program(graph, machine)
    words = np.concatenate([np.stack([np.full(len(rows), int(name[3:])), rows["address"]], axis=1)
                            for name, queue in made.segments[-1].queues.items() if name.startswith("mem")
                            for rows in [queue[queue["op"] == BY_NAME["write"].opcode]]])
    assert len(np.unique(words, axis=0)) < len(words) * 2 / 3
    ids = tokens(3, graph.config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    assert same(ChipExecutable(made, graph.params).run([Chunk(0, 0, ids, every=True)]), want)
    monkeypatch.setattr(Temporaries, "use", lambda self, slice_, address, cycle: None)
    with pytest.raises(ProgramError, match="read"):
        ChipExecutable(program(graph, machine), graph.params).run([Chunk(0, 0, ids, every=True)])


def test_a_larger_known_model_is_reported_without_its_weights():
    """SmolLM2-135M: 8-bit weights would nearly fill the chip, its tables do not lie in one slice."""
    graph = draw(SHAPES["smollm2-135m"])
    with pytest.raises(DoesNotFit, match="lpu-v1: .* are asked of 231 MB of SRAM") as report:
        place(graph, load_chip("lpu-v1"))
    page = Path(__file__).resolve().parents[2] / "docs" / "07-place.md"
    what, _ = str(report.value).splitlines()
    assert what in page.read_text("utf-8"), f"put into the page:\n{what}"


def test_a_map_decides_the_bank_so_nothing_shares_its_cycle():
    """The rows that a gather or scatter meets may lie in both banks of a slice."""
    for name in ("tied", "wide odd cache"):
        segment = program(random_graph(*CASES[name])).segments[0]
        code = flatten(TINY, segment.queues)
        rows = code.rows("gather", "scatter")
        assert len(rows) > 100 and (partners(code)[rows] < 0).all()
