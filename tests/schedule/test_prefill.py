"""Prefill of several tokens a step: the bits of token by token, on one chip and several; which steps are best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import BASE, CASES, LLAMA, MIXTURES, random_graph, same, tokens

from openlpu._base import text
from openlpu._base.errors import BadRequest
from openlpu.arch.chip import load_chip
from openlpu.arch.system import load_system
from openlpu.graph.ir import Graph
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place import host
from openlpu.place.layout import place
from openlpu.schedule.prefill import first_token, parts, prompt_parts
from openlpu.schedule.program import Claims, Rows, Segment, SystemProgram
from openlpu.schedule.step import schedule
from openlpu.schedule.system import cables, schedule_system
from openlpu.target.base import Chunk
from openlpu.target.chip.host import fill
from openlpu.target.chip.machine import Machine
from openlpu.target.chip.mutants import run_mutants, step_of
from openlpu.target.chip.run import ChipExecutable
from openlpu.target.chip.system import SystemExecutable
from openlpu.target.ref import run as ref
from openlpu.tokens.verify import verify

TINY, NODE = load_chip("tiny"), load_system("tiny-node")
GRAPH, DEEP = (random_graph(replace(BASE, layers=layers), LLAMA, Scheme()) for layers in (1, 2))
IDS = tokens(11, GRAPH.config)


def cache(machine: Machine, residents: Sequence, role: int = 0) -> list[np.ndarray]:
    return [machine.peek(r.slices, r.addresses[:, None], role) for r in residents if r.name.startswith("kv.")]


def loaded(graph: Graph, chunks: tuple[int, ...] = ()) -> ChipExecutable:
    return ChipExecutable(schedule(graph, place(graph, TINY), [64], chunks), graph.params)


@pytest.fixture(scope="module")
def executable() -> ChipExecutable:
    return loaded(GRAPH, (2, 4))


@pytest.fixture(scope="module")
def wanted() -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Token by token: logits after each token, and what the cache holds then."""
    one = loaded(GRAPH)
    logits, caches = [], []
    for i, token in enumerate(IDS):
        logits += one.run([Chunk(0, i, (token,))])
        caches.append(cache(one.machine, one.program.resident))
    return np.concatenate(logits), caches


@settings(max_examples=5, deadline=None)
@given(cuts=st.sets(st.integers(1, len(IDS))))
def test_a_prompt_cut_anywhere_has_the_bits_of_token_by_token(executable, wanted, cuts) -> None:
    """Idle places write nothing: the cache has its bytes too, zeros where no token was."""
    executable.machine.state.sram[:] = 0
    fill(executable.machine, executable.program.resident, GRAPH.params)
    for start, end in pairwise([0, *sorted(cuts)]):
        (got,) = executable.run([Chunk(0, start, IDS[start:end])])
        assert same([got], [wanted[0][end - 1 : end]])
        mine = cache(executable.machine, executable.program.resident)
        assert all(map(np.array_equal, mine, wanted[1][end - 1]))


KINDS = {"4-bit odd cache": 2, "wide odd cache": 2, "head_dim 6": 16, "experts": 2, "a head of all lanes": 2}
WIDEST = {"a head of all lanes": (replace(BASE, heads=1, kv_heads=1, head_dim=TINY.lanes), LLAMA, Scheme())}


@pytest.mark.parametrize(("name", "chunk"), KINDS.items())
def test_every_kind_of_cache_and_operator(name: str, chunk: int) -> None:
    config, variant, scheme = (CASES | MIXTURES | WIDEST)[name]
    graph = random_graph(replace(config, layers=1), variant, scheme)
    ids = tokens(5, graph.config)
    one, many = loaded(graph), loaded(graph, (chunk,))
    assert same(many.run([Chunk(0, 0, ids)]), one.run([Chunk(0, 0, ids)]))
    assert all(map(np.array_equal, *(cache(e.machine, e.program.resident) for e in (one, many))))


def test_the_first_segments_are_those_without_chunks(executable: ChipExecutable) -> None:
    """To prefill costs a token nothing; twice the same bytes."""
    alone, beside = schedule(GRAPH, place(GRAPH, TINY), [64]).segments[0], executable.program.segments[0]
    assert alone.cycles == beside.cycles and text.dump(alone.tensors) == text.dump(beside.tensors)
    again = schedule(GRAPH, place(GRAPH, TINY), [64], (2, 4))
    assert text.dump(again) == text.dump(executable.program)
    cycles = [s.cycles / s.chunk for s in again.segments]
    assert cycles[0] > 1.5 * cycles[1] > 2.5 * cycles[2], "tiles are installed once for all tokens of a step"


def test_verify_looks_at_every_tensor_of_the_last_token_of_a_chunk(executable: ChipExecutable) -> None:
    verdict = verify(GRAPH, executable.program, 3)
    tensors = len(executable.program.segments[0].tensors)
    assert (verdict.difference, verdict.tensors) == ("", 5 * tensors)


def test_no_mutant_of_a_chunk_ends_with_other_bits(executable: ChipExecutable) -> None:
    executable.run([Chunk(0, 0, IDS[:5])])
    report = run_mutants(step_of(executable, host.Step(5, IDS[5:6], 2)), 20)
    assert report.escaped == [] and report.outcome("claims") > 0


@pytest.mark.parametrize("split", [Split(2, 2, "codes"), Split(4, exchange="sums"), Split(1, 2)], ids=str)
def test_several_chips(split: Split) -> None:
    local, hops = cables(NODE, split)
    program = schedule_system(shard(DEEP, split), TINY, local, hops, contexts=(64,), chunks=(4,))
    executable = SystemExecutable(program, DEEP.params, NODE)
    (want,) = ref.load(DEEP).run([Chunk(0, 0, IDS[:9], every=True)])
    assert same(executable.run([Chunk(0, 0, IDS[:7])]), [want[6:7]])
    assert same(executable.run([Chunk(0, 7, IDS[7:9])]), [want[8:9]])
    _follows(program)
    assert [part.segment for part in prompt_parts(program, 0, 9)] == [1, 1, 0]
    assert first_token(program, 9) == program.interval(1) + program.gap(1, 0) + program.cycles(0)


def _follows(program: SystemProgram) -> None:
    """Behind a step no stage begins another too early, and one of them at once."""
    for a in (0, 1):
        for b in (0, 1):
            stages = [program.stage(s) for s in range(program.split.stages)]
            done = [t + s.busy(s.program.segments[a]) for t, s in zip(program.starts(a), stages, strict=True)]
            begin = [program.gap(a, b) + t for t in program.starts(b)]
            assert min(there - here for here, there in zip(done, begin, strict=True)) == 0
    assert program.gap(1, 1) == program.interval(1)


@given(
    chunks=st.sets(st.sampled_from([2, 4, 8, 16]), max_size=3), start=st.integers(0, 40), count=st.integers(1, 12),
    costs=st.lists(st.integers(1, 50), min_size=8, max_size=8),
)
def test_no_other_parts_cost_less(chunks: set[int], start: int, count: int, costs: list[int]) -> None:
    rows, none = Rows(*[np.zeros((0, 4), np.int32)] * 3), np.zeros(0)
    sizes = [(n, context) for n in sorted({1} | chunks) for context in (16, 64)]
    segments = [Segment(context, {}, {"x": rows}, 1, Claims(none, none), (), n) for n, context in sizes]
    end = start + count

    def least(at: int) -> int:
        if at == end:
            return 0
        options = []
        for i, (n, context) in enumerate(sizes):
            stop = min((at // n + 1) * n, end)
            if stop <= context:
                smaller = i > 0 and sizes[i - 1][0] == n and stop <= sizes[i - 1][1]
                options += [] if smaller else [costs[i] + least(stop)]
        return min(options)

    found = parts(segments, costs, start, end)
    assert [p.end for p in found] == [p.start for p in found[1:]] + [end] and found[0].start == start
    assert sum(costs[p.segment] for p in found) == least(start)
    for p in found:
        n, context = sizes[p.segment]
        assert p.start // n == (p.end - 1) // n and p.end <= context


@pytest.mark.parametrize("chunks", [(3,), (32,), (1,), (4, 2), (2, 2)])
def test_chunks_that_cannot_be(chunks: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match="chunk"):
        schedule(GRAPH, place(GRAPH, TINY), [64], chunks)
