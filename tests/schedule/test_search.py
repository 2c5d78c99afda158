"""The search for a split: what is dearer is given up without a change of what is found, and the next best takes the
place of a best that has no room."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from random_models import BASE, LLAMA, random_graph

from openlpu._base.errors import DoesNotFit, Unsupported
from openlpu._base.processes import Workers
from openlpu.arch.system import load_system
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.schedule import search as module
from openlpu.schedule.kinds import Part
from openlpu.schedule.limit import Dearer, cost
from openlpu.schedule.search import AIMS, CHIPS, LATENCY, Found, Wanted, search
from openlpu.schedule.system import cables, schedule_system

SYSTEM = load_system("tiny-node", 4)
GRAPH = random_graph(replace(BASE, layers=4, context=32), LLAMA, Scheme())


def test_stages_that_are_not_scheduled_yet_count_for_less() -> None:
    split = Split(2, 2)
    stages, (local, hops) = shard(GRAPH, split).stages, cables(SYSTEM, split)
    program = schedule_system(shard(GRAPH, split), SYSTEM.chip, local, hops, contexts=(32,))
    exact = program.cycles(0), program.interval(0)
    there = [Part(program.stage(s)) for s in range(2)]
    assert cost(there, SYSTEM.chip, hops) == exact
    work = [Part(stage) for stage in stages]
    for part in ([work[0], there[1]], [there[0], work[1]], work):
        cycles, interval = cost(part, SYSTEM.chip, hops)
        assert 0 < cycles < exact[0] and 0 < interval <= exact[1]


@dataclass(frozen=True)
class Made:
    """As much of a program as the search looks at; its cost has nothing to do with its split."""

    split: Split
    chunks: int

    @property
    def cost(self) -> int:
        return hash((self.split.tensor, self.split.stages, len(self.split.exchange), self.split.halves)) % 1000 + 1

    def cycles(self, segment: int) -> int:
        return self.cost

    def interval(self, segment: int) -> int:
        return self.cost // 2

    def moved(self, segment: int) -> int:
        return 0


def found(monkeypatch: pytest.MonkeyPatch, aim: str, full: set[Split], *, large: bool, limit: int = 0) -> Found:
    """The search with made-up costs; ``full``: splits with no room for chunks."""

    def schedule(graph, system, split, contexts, chunks, programs, worth):
        made = Made(split, len(chunks))
        if chunks and split in full:
            raise DoesNotFit("full", where="chip", fix="another")
        if worth and not worth(made.cost - 1, made.cost // 2):
            raise Dearer(made.cost - 1, made.cost // 2)
        return made

    monkeypatch.setattr(module, "_schedule", schedule)
    monkeypatch.setattr(module, "LARGE", 0 if large else 1 << 60)
    return search(GRAPH, SYSTEM, Wanted(aim, limit), chunks=(2,))


@pytest.mark.parametrize("aim", AIMS)
def test_giving_up_what_is_dearer_changes_nothing_that_is_found(aim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor who comes next, where the best have no room for all: splits given up for these are looked at again."""
    full: set[Split] = set()
    for _ in range(5):
        every, some = (found(monkeypatch, aim, full, large=large) for large in (False, True))
        assert every.program == some.program and every.program.split not in full
        assert [c.split for c in some.choices] == [c.split for c in every.choices]
        assert aim == CHIPS or any(c.why.startswith("at least") for c in some.choices)
        exact = {c.split: c for c in every.choices}
        for choice in some.choices:
            if choice.why.startswith("at least"):
                assert int(choice.why.split()[2].replace(",", "")) < exact[choice.split].cycles
        assert all(next(c for c in some.choices if c.split == split).why == "chip: full" for split in full)
        able = [c for c in every.choices if not c.why]
        assert every.program.split == min(able, key=lambda c: c.rank(aim)).split
        full.add(every.program.split)


@pytest.mark.parametrize("aim", AIMS)
def test_no_token_exceeds_the_limit(aim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is the best of those within it, in every context; where none is, the shortest token is named."""
    free = found(monkeypatch, aim, set(), large=False)
    costs = sorted(c.cycles for c in free.choices)
    for limit in (costs[0], costs[len(costs) // 2]):
        some = [found(monkeypatch, aim, set(), large=large, limit=limit) for large in (False, True)]
        assert some[0].program == some[1].program
        able = [c for c in some[0].choices if not c.why]
        assert able and all(c.cycles <= limit for c in able)
        assert some[0].program.split == min(able, key=lambda c: c.rank(aim)).split
        assert all("are allowed" in c.why for c in some[0].choices if c.cycles > limit)
    with pytest.raises(Unsupported, match="the shortest token found takes .* are allowed"):
        found(monkeypatch, aim, set(), large=True, limit=1)


def test_the_limit_holds_in_every_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer context may exceed it where the shortest one does not."""
    longer = 2 * found(monkeypatch, LATENCY, set(), large=False).program.cycles(0)
    monkeypatch.setattr(Made, "cycles", lambda self, segment: self.cost * (1 + segment))
    monkeypatch.setattr(module, "buckets", lambda context: [16, 32])
    assert found(monkeypatch, LATENCY, set(), large=False, limit=longer).program.cycles(1) == longer
    with pytest.raises(Unsupported, match="where .* are allowed"):
        found(monkeypatch, LATENCY, set(), large=False, limit=longer - 1)


def test_what_other_splits_take_tells_which_are_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes go once a stage inside is there, at no more than they would have cost; a full search chooses the same."""
    system, wanted = load_system("tiny-node", 8), Wanted(tensor=2, stages=4)
    monkeypatch.setattr(module, "workers_for", lambda weights: Workers(1))
    every = search(GRAPH, system, wanted)
    monkeypatch.setattr(module, "LARGE", 0)
    some = search(GRAPH, system, wanted)
    assert some.program.split == every.program.split
    exact = {c.split.exchange: c for c in every.choices}
    given = [c for c in some.choices if c.why]
    assert "codes" in [c.split.exchange for c in given]
    for choice in given:
        assert choice.why.startswith("likely over")
        assert int(choice.why.split()[2].replace(",", "")) < exact[choice.split.exchange].cycles
