"""How split values are put together around a gather: every channel once, in as few vectors as whole ones make."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import BASE

from openlpu.arch.chip import load_chip
from openlpu.arch.group import relative
from openlpu.graph.shapes import SHAPES
from openlpu.numerics.draw import draw
from openlpu.numerics.outline import outline
from openlpu.partition.channels import head_channels, spread
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.lanes import head_lanes, packed
from openlpu.place.layout import place_stage
from openlpu.place.packing import dense, gathered, loose, meeting, pieces

LPU, TINY = load_chip("lpu-v1"), load_chip("tiny")


def whole(lanes, size: int) -> bool:
    """Whether every role has every channel in exactly one lane."""
    return all(sorted(own[own >= 0].tolist()) == list(range(size)) for own in lanes.channel)


@given(size=st.integers(1, 3000), chips=st.sampled_from([2, 4, 8]))
def test_channels_are_gathered_once(size: int, chips: int) -> None:
    parts = spread(size, chips)
    own = packed(parts.shape[1], LPU).of(parts)
    for how in (loose(own), dense(own)):
        assert whole(gathered(own, how, relative(len(own.channel))), size)
    assert len(dense(own).slots(chips)) <= len(loose(own).slots(chips)) == chips * own.vectors


@given(kv=st.integers(1, 12), group=st.integers(1, 8), dim=st.sampled_from([4, 10, 64, 128]),
       chips=st.sampled_from([2, 4, 8]))
def test_heads_are_gathered_once(kv: int, group: int, dim: int, chips: int) -> None:
    query, keys = head_channels(kv * group, kv, dim, chips)
    heads = head_lanes(query.shape[1] // dim, keys.shape[1] // dim, dim, LPU)
    own = heads.query.of(query)
    for how in (loose(own), dense(own)):
        assert whole(gathered(own, how, relative(len(own.channel))), kv * group * dim)


@pytest.mark.parametrize(("width", "vectors"), [(320, 8), (160, 4), (80, 2), (40, 1), (64, 2), (1024, 26), (330, 9)])
def test_remainders_of_eight_chips_meet(width: int, vectors: int) -> None:
    parts = spread(8 * width, 8)
    own = packed(width, LPU).of(parts)
    assert gathered(own, dense(own), relative(len(own.channel))).vectors == vectors


@pytest.mark.parametrize(("size", "roles", "cut"), [
    (512, 8, (320, 160, 32)), (1792, 8, (320,) * 5 + (160, 32)), (512, 2, (320, 192)),
    (1024, 8, (320, 320, 320, 64)), (160, 8, (160,)), (290, 4, (290,)), (320, 4, (320,)), (7, 8, (7,)),
])
def test_what_full_vectors_leave_meets_that_of_other_chips(size: int, roles: int, cut: tuple[int, ...]) -> None:
    """A part of Mixtral's residual on eight chips makes 13 gathered vectors, not 16."""
    assert pieces(size, roles, LPU.lanes) == cut
    own = packed(size, LPU, cut).of(spread(roles * size, roles))
    assert whole(gathered(own, dense(own), relative(roles)), roles * size)
    assert len(dense(own).slots(roles)) == sum(roles // meeting(s, roles, LPU.lanes) for s in cut)


def test_heads_side_by_side_are_sent_together() -> None:
    """A chip of Llama-2-70B on eight: eight queries of 128 lanes, one to a vector; two of them make one."""
    query, keys = head_channels(64, 8, 128, 8)
    heads = head_lanes(8, 1, 128, LPU)
    how = dense(heads.query.of(query))
    assert how.pieces == (((0, 0), (1, 128)), ((2, 0), (3, 128)), ((4, 0), (5, 128)), ((6, 0), (7, 128)))
    assert how.shared == (1, 1, 1, 1) and keys.shape == (8, 128)


def test_what_is_sent_comes_first_from_the_chip_itself() -> None:
    own = packed(384, LPU).of(spread(384 * 4, 4))
    assert dense(own).slots(4) == [
        (0, slice(0, 1)), (1, slice(0, 4)), (0, slice(1, 2)), (0, slice(2, 3)), (0, slice(3, 4))]
    assert [turn.tolist() for _, turn in dense(own).turns(1, 4)] == [[0, 64, 128, 192]]


def test_decisions_are_the_same_for_all_roles() -> None:
    """Homes hold what any role needs: sizes that do not divide leave lanes idle on some chips only."""
    config = replace(BASE, hidden=133, heads=5, kv_heads=5, head_dim=12, intermediate=301, vocab=97)
    stage = shard(draw(config), Split(4)).stages[0]
    layout = place_stage(stage, TINY)
    for item in layout.homes.resident.values():
        shapes = {tuple(np.shape(getattr(item.source.of(r), word)) for word in ("rows", "cols")) for r in range(4)}
        assert len(shapes) == 1
    assert layout.lanes["logits"].channel.shape[0] == 4
    assert {layout.lanes[f"layers.0.attn.{x}"].channel.max() for x in ("q.linear", "k.linear")} == {59}


def test_small_savings_are_left_alone() -> None:
    """A turn and a sum take longer than the loads of a few rows."""
    stage = shard(draw(replace(BASE, hidden=320, vocab=50)), Split(2)).stages[0]
    small, large = (place_stage(s, TINY).packings["embed.out.whole"] for s in (
        stage, shard(draw(replace(BASE, hidden=320, intermediate=3000)), Split(8)).stages[0]))
    assert small.shared == (1,) and large.shared == (4,)


def test_the_residual_lies_alike_in_all_stages_of_a_mixture() -> None:
    """One with the embedding and attention, one with experts, one with the head alone: each fits the next."""
    config = replace(SHAPES["gpt-oss-120b"], layers=2, vocab=64, context=256, experts=4, full_layers=())
    stages = [place_stage(stage, LPU) for stage in shard(outline(config), Split(16, 5, halves=True)).stages]
    for here, there in pairwise(stages):
        handed = [lanes for name, lanes in here.lanes.items() if name.endswith(".pass")]
        assert handed[0].vectors == 2 and np.array_equal(handed[0].channel, next(iter(there.lanes.values())).channel)
