"""Linears of many tiles: the bits, the rate of their weights, what their instructions take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_models import BASE, LLAMA, random_graph, same, tokens

from openlpu.arch.chip import load_chip
from openlpu.arch.encoding import extents
from openlpu.arch.isa import BY_NAME
from openlpu.numerics.outline import outline
from openlpu.numerics.scheme import Scheme
from openlpu.place.layout import place, steady
from openlpu.schedule.step import schedule
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.chip.machine import resolve
from openlpu.target.ref import run as ref

REAL = load_chip("lpu-v1")
LOAD = BY_NAME["load_weights"].opcode


@pytest.mark.parametrize("machine", ["tiny", "lpu-v1"])
def test_runs_of_tiles_give_the_reference_bits(machine):
    config = replace(BASE, layers=1, hidden=1030, heads=2, kv_heads=1, intermediate=1100, tied=False)
    assert steady(20, load_chip("tiny")) and not steady(15, load_chip("tiny"))
    graph = random_graph(config, LLAMA, Scheme())
    ids = tokens(2, config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    assert same(chip.load(graph, chip=machine).run([Chunk(0, 0, ids, every=True)]), want)


@pytest.fixture(scope="module")
def layer():
    """A layer of a large model on one of several chips, from shapes alone: its graph and its segment."""
    config = replace(BASE, layers=1, hidden=4096, heads=4, kv_heads=1, head_dim=128, intermediate=2560, tied=False)
    graph = outline(config)
    return graph, schedule(graph, place(graph, REAL), [64]).segments[0]


def test_each_plane_loads_nearly_every_cycle(layer):
    """From the first activations of gate to the end of up, planes never wait for a port or a stream."""
    _, segment = layer
    names = [name for _, name in segment.origin]
    starts = [first for first, _ in segment.origin]
    first, last = names.index("layers.0.mlp.gate.linear"), names.index("layers.0.mlp.up.linear") + 1
    rates = []
    for name, queue in segment.queues.items():
        if name.endswith(".weights"):
            own = queue[(queue["op"] == LOAD) & (queue["id"] >= starts[first]) & (queue["id"] < starts[last])]
            cycles = own["cycle"].astype(np.int64)[40:]  # two tiles wait in front of the first activation
            rates.append(len(cycles) / (cycles[-1] - cycles[0] + 1))
    assert len(rates) == 4 and min(rates) > 0.93, rates


def test_the_referee_accepts_it(layer):
    _, segment = layer
    assert resolve(REAL, segment.queues, segment.claims).cycles == segment.cycles


def test_a_read_of_weights_costs_about_a_byte(layer):
    """20 reads in a row are an instruction, a repeat and the delay in front; 4 bytes each if they were written out."""
    _, segment = layer
    for name in ("mem0", "mem16", "mem60", "mem87"):
        queue = segment.queues[name]
        assert len(queue) > 1000 and extents(queue)[1][-1] < 1.5 * len(queue)
