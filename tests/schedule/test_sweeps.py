"""Encoders on the chip model: the reference's bits for any chunk and length, and nothing of what was there before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from encoders import drawn

from openlpu import compile
from openlpu._base.errors import BadRequest, DoesNotFit, ProgramError, Unsupported
from openlpu.arch.chip import load_chip
from openlpu.checkpoint.config import Rope
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph import models
from openlpu.graph.shapes import shape
from openlpu.numerics.calibrate import prepare
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.outline import outline
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split, alone
from openlpu.partition.sweeps import sweeps
from openlpu.place.layout import place
from openlpu.schedule import joules, program_file, report, sequences, step, tracks
from openlpu.schedule import sweeps as schedule
from openlpu.schedule.units.c2c import Cabling
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.chip.value_free import check_chip
from openlpu.target.ref import run as ref
from openlpu.tokens.verify import verify

SMALL = EncoderConfig("bert", 64, 3, 4, 4, 16, 96, 50, 40, 1e-12, Rope(1.0, "none"), True, positions=40)


def graph_of(config: EncoderConfig, scheme: Scheme = Scheme()):  # noqa: B008
    tensors = {name: drawn(name, size) for name, size in models.shapes(config).items()}
    return lower(prepare(models.of_tensors(config, tensors), scheme, ref.trace), scheme)


def sequence(length: int, types: int = 2) -> Chunk:
    rng = np.random.default_rng(length)
    kinds = tuple(rng.integers(0, types, length).tolist()) if types else ()
    return Chunk(0, 0, tuple(rng.integers(0, 50, length).tolist()), every=True, types=kinds)


def same(a, b) -> bool:
    return all(np.array_equal(x.view(np.int32), y.view(np.int32)) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def small():
    graph = graph_of(SMALL)
    return graph, chip.load(graph, chunks=(4,))


def test_sequences_of_any_length_have_the_references_bits(small):
    """Long ones first: what a short one finds in caches and states is another's, and must not show."""
    graph, made = small
    chunks = [sequence(n) for n in (40, 1, 17, 4, 7)]
    assert same(made.run(chunks), ref.load(graph).run(chunks))
    assert made.cycles == schedule.cycles(made.program, 7) == 2 * sum(s.cycles for s in made.program.segments)


def test_equal_sweeps_are_scheduled_once_and_moved(small):
    """What is moved has the same cycles and, but for addresses, the same instructions."""
    one, two = small[1].program.segments[1:3]
    assert one.cycles == two.cycles and ("layers.0.out" in one.tensors, "layers.1.out" in two.tensors) == (True, True)
    assert all(rows is two.queues[name] for name, rows in one.queues.items() if name[:3] != "mem")
    words = [{(name, a) for name, rows in s.queues.items() if name[:3] == "mem" for a in rows["address"].tolist()}
             for s in (one, two)]
    assert words[0] - words[1] and words[1] - words[0]


def test_a_schedule_that_does_not_serve_another_sweep_is_not_moved():
    graph = outline(SMALL)
    stages, layout = sweeps(alone(graph)), place(graph, load_chip("lpu-v1"))
    one, parts = step.sweep(stages[2], 2, layout, 40, Cabling(), 4, 3), [stage.graph for stage in stages]
    assert one.moved(parts[1], 1, layout)
    assert one.moved(parts[3], 3, layout) is None, "the last one remembers nothing"
    nodes = tuple(replace(node, attrs={**node.attrs, "kv_bits": 16}) for node in parts[1].nodes)
    assert one.moved(replace(parts[1], nodes=nodes), 1, layout) is None
    homes, half, page = layout.homes.homes, layout.chip.words_per_slice // 2, one.pages[0]
    own = {name: home for name, home in homes.items() if ".layers.0." in name}
    homes |= {name: replace(home, address=home.address + half) for name, home in own.items()}
    assert one.moved(parts[1], 1, layout) is None, "a slice would read and write one bank in a cycle"
    homes |= {name: replace(home, slices=home.slices[::-1]) for name, home in own.items()}
    assert one.moved(parts[1], 1, layout) is None, "it would be read from other slices"
    homes |= own
    layout.homes.sram.top[page.slice_] = layout.homes.sram.bottom[page.slice_]
    assert one.moved(parts[1], 1, layout) is None, "its instructions have no room"


def test_a_second_block_and_another_chunk_change_no_bit():
    """Blocks of positions that a sequence does not reach take no part."""
    config = replace(SMALL, context=258, positions=258, layers=1, hidden=32, heads=2, kv_heads=2, intermediate=24)
    graph, chunks = graph_of(config), [sequence(n) for n in (258, 9)]
    want = ref.load(graph).run(chunks)
    assert same(chip.load(graph, chunks=(4,)).run(chunks), want)
    assert same(chip.load(graph, context=9, chunks=(1,)).run(chunks[1:]), want[1:])
    assert same(ref.load(graph, context=9).run(chunks[1:]), want[1:])


ONE = replace(SMALL, layers=1)


@pytest.mark.parametrize(("config", "scheme"), [
    (replace(ONE, architecture="distilbert", types=0, hidden=48, heads=3, kv_heads=3, activation="tanh"), Scheme()),
    (replace(ONE, architecture="roberta", types=1, first_position=2, positions=42), Scheme(kv_bits=16)),
    (replace(ONE, hidden=330, heads=3, kv_heads=3, head_dim=110, intermediate=350), Scheme(outlier_share=0)),
], ids=["distilbert", "roberta, 16-bit cache", "two vectors"])
def test_every_shape(config, scheme):
    graph, chunks = graph_of(config, scheme), [sequence(5, config.types)]
    assert same(chip.load(graph, chunks=(2,)).run(chunks), ref.load(graph).run(chunks))


def test_a_program_is_stored_verified_and_checked_without_values(small, tmp_path: Path):
    graph, made = small
    program_file.save(made.program, tmp_path / "program")
    stored = program_file.load(tmp_path / "program")
    assert [s.name for s in stored.segments] == ["40x4.0", "40x4.1", "40x4.2", "40x4.3"]
    assert verify(graph, stored, 6).difference == ""
    assert [checked.chunk for checked in check_chip(stored, [40])] == [4, 4, 4, 4]
    other = replace(graph, params={name: x + (name == "embed.norm.bias") for name, x in graph.params.items()})
    broken = chip.EncoderExecutable(stored, other.params)
    assert not same(broken.run([sequence(3)]), ref.load(graph).run([sequence(3)]))


def test_every_cycle_of_a_sequence_has_one_kind_and_one_operator(small):
    made = small[1].program
    turns = schedule.turns(made, 40)
    each = [(report.report(made.chip, part), times) for part, times in turns]
    assert all(sum(use.path.values()) == use.cycles == part.cycles
               for (use, _), (part, _) in zip(each, turns, strict=True))
    use = report.in_turn(made.chip, each)
    assert use.cycles == schedule.cycles(made, 40) and use.pieces[0].start == 0
    assert all(a.start + a.cycles == b.start for a, b in pairwise(use.pieces))
    assert sum(use.path.values()) == sum(use.operators.values()) == use.cycles
    assert use.path["MXM"] == sum(times * one.path["MXM"] for one, times in each)
    token = sequences.of_sequence(made, 40)
    assert token.path == use.pieces and token.cycles == token.chips[0].cycles == use.cycles
    one = joules.energy([tracks.single(made, made.segments[1])])
    ten = joules.in_turn([(tracks.single(made, made.segments[1]), 10)])
    assert ten.dynamic == {name: 10 * spent for name, spent in one.dynamic.items()}
    assert 0 <= ten.static_alone - 10 * one.static_alone < 10 and ten.alone == ten.full


def test_the_referee_refuses_a_sweep_whose_read_comes_too_early(small):
    made = small[1].program
    part = made.segments[1]
    queues = {name: rows.copy() for name, rows in part.queues.items()}
    name = next(name for name in queues if name.startswith("vxm") and len(queues[name]) > 9)
    queues[name]["cycle"][5:] += 1
    with pytest.raises(ProgramError):
        list(check_chip(replace(made, segments=(replace(part, queues=queues),)), [40]))


def test_sweeps_cut_a_graph_behind_keys_and_values():
    parts = [part.graph for part in sweeps(alone(outline(shape("bert-base-uncased", 128))))]
    assert len(parts) == 13
    assert [node.op for node in parts[0].nodes][-3:] == ["linear", "remember", "keep"]
    assert [node.op for node in parts[12].nodes][:4] == ["recall", "quantize", "linear", "attend"]
    linears = [node.where for part in parts for node in part.nodes if node.op == "linear"]
    assert len(linears) == len(set(linears)) == 12 * 6


def test_the_same_graph_gives_the_same_program_with_and_without_weights():
    config = replace(SMALL, layers=1)
    graphs = outline(config), draw(config)
    first, second = (schedule.schedule(g, place(g, load_chip("lpu-v1")), 1) for g in graphs)
    for a, b in zip(first.segments, second.segments, strict=True):
        assert a.cycles == b.cycles and all((a.queues[name] == b.queues[name]).all() for name in a.queues)
    assert 0 < schedule.utilisation(graphs[0], first.chip, 40, first.segments[0].cycles) < 1


def test_what_a_chip_cannot_do():
    graph = outline(SMALL)
    with pytest.raises(BadRequest, match="a chunk of 3 positions"):
        chip.load(graph, chunks=(3,))
    with pytest.raises(Unsupported, match="half layers of an encoder"):
        shard(graph, Split(1, 6, halves=True))
    with pytest.raises(Unsupported, match="3 layers do not make 4 stages"):
        shard(graph, Split(1, 4))
    with pytest.raises(DoesNotFit, match=r"(?s)weights.*3 chips, which have room for it.*a larger chip"):
        compile.program(outline(shape("bert-large-uncased", 128)))
    long = replace(SMALL, context=7000, positions=7000)
    with pytest.raises(Unsupported, match="a sequence of 7000 positions"):
        place(outline(long), load_chip("lpu-v1"))
