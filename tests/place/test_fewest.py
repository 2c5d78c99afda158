"""How many chips a model needs, by placing: no fewer have room, and the search for the fewest chips finds as many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from random_models import BASE

from openlpu._base.errors import DoesNotFit
from openlpu.arch.chip import load_chip
from openlpu.arch.system import load_system
from openlpu.numerics.draw import draw
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.fewest import fewest, reported
from openlpu.place.layout import place, place_stage
from openlpu.schedule.search import CHIPS, Wanted, search

GRAPH = draw(replace(BASE, layers=6, hidden=64, heads=2, kv_heads=2, head_dim=32, intermediate=128, context=64))
SMALL = replace(load_chip("tiny"), words_per_slice=148)


def holds(split: Split) -> bool:
    try:
        for stage in shard(GRAPH, split).stages:
            place_stage(stage, SMALL)
    except DoesNotFit:
        return False
    return True


def test_no_fewer_chips_have_room() -> None:
    found = fewest(GRAPH, SMALL)
    assert found and holds(found) and found.chips > 1
    fewer = [Split(t, s) for t in (1, 2, 4, 8) for s in range(1, 7) if t * s < found.chips]
    assert not any(map(holds, fewer))


def test_the_report_says_how_many_would_do() -> None:
    found = fewest(GRAPH, SMALL)
    with pytest.raises(DoesNotFit) as error:
        place(GRAPH, SMALL)
    assert found and f"fix: {found.chips} chips, which have room" in str(reported(error.value, GRAPH, SMALL))
    none = replace(SMALL, words_per_slice=16)
    assert fewest(GRAPH, none) is None
    assert "no number of chips tiny would do" in str(reported(error.value, GRAPH, none))


def test_the_aim_of_fewest_chips_is_met_between_powers_of_two() -> None:
    system = load_system("tiny-line", 6)
    system = replace(system, spec=replace(system.spec, chip=SMALL))
    found = search(GRAPH, system, Wanted(CHIPS))
    chips = found.program.split.chips
    assert [c.split.chips for c in found.choices if not c.why] == [chips] * sum(not c.why for c in found.choices)
    assert all(c.split.chips <= chips for c in found.choices) and chips == 3
