"""Large tables in stretches: each row is found, by one stretch alone; a model that needs them has the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_models import BASE, LLAMA, random_graph, same

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import NO_ADDRESS
from openlpu.numerics.scheme import Scheme
from openlpu.place import host
from openlpu.place.layout import place
from openlpu.place.tables import address, stretches
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip_target
from openlpu.target.ref import run as ref

TINY = load_chip("tiny")
VOCAB = TINY.words_per_slice + 10


@given(st.integers(1, 5 * TINY.words_per_slice), st.data())
def test_one_stretch_has_each_row(rows: int, data: st.DataObject) -> None:
    cut = stretches(rows, TINY)
    assert [s.start for s in cut] == list(np.cumsum([0, *(s.count for s in cut)])[:-1])
    assert sum(s.count for s in cut) == rows and all(s.count <= TINY.words_per_slice for s in cut)
    if len(cut) > 1:
        row = data.draw(st.integers(0, rows - 1))
        at = [address(s.map("token"), row) for s in cut]
        (here,) = (i for i, a in enumerate(at) if a != NO_ADDRESS)
        assert cut[here].start + (at[here] or 0) == row


def test_the_host_s_row_names_no_address_where_the_row_is_not() -> None:
    there, elsewhere = (host.row(name, TINY, host.Step(0, (513,)), 1) for name in ("token512n512", "token0n512.1"))
    assert there[0, :2].tolist() == [1, 0] and elsewhere[0, :2].tolist() == [255, 255]


def test_a_vocabulary_larger_than_a_slice_has_the_reference_s_bits() -> None:
    graph = random_graph(replace(BASE, vocab=VOCAB, layers=1), LLAMA, Scheme())
    homes = place(graph, TINY).homes.homes
    assert sum(name.startswith("embedding.codes.0.rows") for name in homes) == len(stretches(VOCAB, TINY)) > 8
    chunk = [Chunk(0, 0, (VOCAB - 1, 0, 511, 512), every=True)]
    assert same(chip_target.load(graph, chip=TINY).run(chunk), ref.load(graph).run(chunk))
