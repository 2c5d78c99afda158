"""The check: it covers all pairs, passes on equal targets, and names the layer of an unequal one."""

from __future__ import annotations

import dataclasses
from itertools import combinations, product

import numpy as np
import pytest

from openlpu._base.errors import DoesNotFit
from openlpu.graph.ir import Graph
from openlpu.target.ref import run as ref
from openlpu.tokens.check import APART, MIXED, PROMPTS, Case, cases, check, run_case

FACTORS = {"threads": (1, 2), "chunk": (0, 1, 7, 64), "batch": (1, 3, 8), "order": (MIXED, APART),
           "guess": (0, 3), "path": ("avx512", "avx2", "portable")}


def native(graph: Graph, *, slots: int, context: int, threads: int, path: str) -> ref.RefExecutable:
    """A stand-in for a native target: the same bits, with its options."""
    return ref.load(graph, slots=slots, context=context)


def broken_in(layer: int, key: str):
    """A target whose weights differ in one code of one tensor."""
    def load(graph: Graph, *, slots: int, context: int, threads: int = 0, path: str = "") -> ref.RefExecutable:
        params = dict(graph.params)
        if threads == 2 and layer < graph.config.layers:
            codes = params[key].copy()
            codes.flat[0] = -codes.flat[0] - 1
            params[key] = codes
        return ref.load(dataclasses.replace(graph, params=params), slots=slots, context=context)
    return load


def test_every_factor_alone_and_every_pair():
    listed = cases(FACTORS["path"], chip=True)
    assert len(listed) >= 12 and len(set(listed)) == len(listed)
    cpu = [vars(case) for case in listed if case.target == "cpu"]
    base = cpu[0]
    for name, values in FACTORS.items():
        for value in values:
            assert base | {name: value} in cpu
    for x, y in combinations(FACTORS, 2):
        met = {(case[x], case[y]) for case in cpu}
        assert met == set(product(FACTORS[x], FACTORS[y]))
    assert [c for c in listed if c.target == "chip"] == [Case("chip"), Case("chip", together=8)]
    assert max(PROMPTS) > 64, "a chunk of 64 would be a whole prompt"


def test_equal_targets_give_one_hash(tiny):
    some = [Case("ref"), Case("ref", chunk=7, guess=3), Case("cpu", 8, 64, APART, 2, 1, "portable")]
    verdict = check(tiny, some, {"ref": ref.load, "cpu": native})
    assert (verdict.distinct, verdict.difference) == (1, "")
    assert [c["sha256"] for c in verdict.to_json()["cases"]] == [verdict.rows[0].digest] * 3


def test_a_case_with_guesses_checks_right_and_wrong_ones(tiny):
    rows: list[int] = []

    class Counting(ref.RefExecutable):
        def run(self, chunks, observe=None):
            rows.extend(len(chunk.tokens) for chunk in chunks if chunk.every)
            return super().run(chunks, observe)

    def load(graph: Graph, *, slots: int, context: int) -> ref.RefExecutable:
        return Counting(graph, slots, context)

    assert run_case(Case("ref", guess=3), tiny, load) == run_case(Case("ref"), tiny, load)
    # Two right guesses and a wrong one behind each request's second token; a prompt of one token is guessed on too.
    assert rows == [4] * 9


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_first_different_layer_is_named(tiny, layer):
    load = broken_in(layer, f"layers.{layer}.mlp.up.codes")
    some = [Case("cpu", 8, 0, threads=1, path="a"), Case("cpu", 8, 0, threads=2, path="a")]
    verdict = check(tiny, some, {"cpu": load})
    assert verdict.distinct == 2
    assert verdict.difference.endswith(f"first in layers.{layer}")
    assert "threads=2" in verdict.difference


def test_a_difference_outside_the_layers_is_named(tiny):
    load = broken_in(-1, "embed.codes")
    verdict = check(tiny, [Case("cpu", 8, threads=1), Case("cpu", 8, threads=2)], {"cpu": load})
    assert "outside the layers" in verdict.difference


def test_a_difference_that_does_not_come_back_is_said_so(tiny):
    runs = iter(range(100))

    def flaky(graph: Graph, *, slots: int, context: int) -> ref.RefExecutable:
        params = dict(graph.params)
        if next(runs) == 1:
            params["embed.scale"] = params["embed.scale"] * np.float32(2)
        return ref.load(dataclasses.replace(graph, params=params), slots=slots, context=context)

    verdict = check(tiny, [Case("ref", 8), Case("ref", 8, chunk=7)], {"ref": flaky})
    assert verdict.distinct == 2 and "not reproducible" in verdict.difference


def test_a_case_without_room_is_skipped_with_its_reason(tiny):
    def full(graph: Graph, **_: object) -> ref.RefExecutable:
        raise DoesNotFit("needs 3 GB, has 2", where="chip")

    verdict = check(tiny, [Case("ref", 8), Case("chip")], {"ref": ref.load, "chip": full})
    assert verdict.distinct == 1 and len(verdict.rows) == 1
    assert verdict.to_json()["skipped"] == {str(Case("chip")): "chip: needs 3 GB, has 2"}


def test_cases_share_processes(tiny):
    """Rows are told when they are there, and listed as asked; a second process gives the same hash."""
    told: list[Case] = []
    some = [Case("ref"), Case("ref", chunk=7), Case("ref", batch=8, order=APART)]
    verdict = check(tiny, some, {"ref": ref.load}, processes=2, told=lambda case, row: told.append(case))
    assert verdict.distinct == 1 and [row.case for row in verdict.rows] == some == sorted(told, key=some.index)
