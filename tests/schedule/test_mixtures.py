"""A mixture of experts on chips: the reference's bits, whichever experts a token chooses, in the same cycles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_models import BASE, LLAMA, MIXTURES, random_graph, same, tokens

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import BY_NAME
from openlpu.arch.system import load_system
from openlpu.graph.ir import Graph
from openlpu.numerics.scheme import Scheme
from openlpu.partition.experts import routed
from openlpu.partition.shard import shard
from openlpu.partition.split import Split
from openlpu.place.bound import bound
from openlpu.place.layout import place
from openlpu.schedule.step import schedule
from openlpu.schedule.system import cables, schedule_system
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.chip.system import SystemExecutable
from openlpu.target.ref import run as ref

TINY = load_chip("tiny")


@pytest.mark.parametrize("name", MIXTURES, ids=lambda name: name.replace(" ", "-"))
def test_random_mixtures_give_the_reference_bits_above_the_bound(name: str) -> None:
    graph = random_graph(*MIXTURES[name])
    chunk = Chunk(0, 0, tokens(4, graph.config), every=True)
    machine = chip.load(graph, chip=TINY)
    assert same(machine.run([chunk]), ref.load(graph).run([chunk]))
    assert bound(graph, TINY, graph.config.context).cycles <= machine.cycles < 5 * bound(graph, TINY, 64).cycles


def test_the_real_geometry_gives_the_reference_bits() -> None:
    """Long enough runs of weights that each plane reads from slices of its own; ascending order of four matters."""
    config = replace(BASE, layers=1, hidden=700, intermediate=2600, experts=6, experts_per_token=4)
    graph = random_graph(config, LLAMA, Scheme())
    chunk = Chunk(0, 0, tokens(3, graph.config), every=True)
    assert same(chip.load(graph, chip="lpu-v1").run([chunk]), ref.load(graph).run([chunk]))


@pytest.mark.parametrize(("split", "name"), [
    (Split(2, 3, halves=True), "experts"), (Split(4, exchange="codes"), "gpt-oss"), (Split(8), "experts"),
    (Split(2), "gpt-oss wide"), (Split(4, exchange="sums"), "gpt-oss"), (Split(2, exchange="sums"), "experts"),
], ids=str)
def test_every_split_gives_the_reference_bits(split: Split, name: str) -> None:
    graph = random_graph(*MIXTURES[name])
    system = load_system("tiny-node")
    system = replace(system, spec=replace(system.spec, chip=replace(TINY, c2c_links=16)))
    program = schedule_system(shard(graph, split), system.chip, *cables(system, split), contexts=[64])
    chunk = Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(SystemExecutable(program, graph.params, system).run([chunk]), ref.load(graph).run([chunk]))


def with_logits(logits: list[float]) -> Graph:
    """A model of one layer whose router has these logits for every token."""
    config = replace(BASE, layers=1, hidden=32, tied=False, experts=len(logits), experts_per_token=3)
    graph = random_graph(config, LLAMA, Scheme())
    at = "layers.0.mlp.router"
    codes = np.zeros_like(graph.params[f"{at}.codes"])
    bias = {f"{at}.codes": codes, f"{at}.bias": np.array(logits, np.float32)}
    nodes = tuple(replace(n, params={**n.params, "bias": f"{at}.bias"}) if n.where == at and n.op == "linear" else n
                  for n in graph.nodes)
    return replace(graph, nodes=nodes, params={**graph.params, **bias})


@pytest.mark.parametrize("logits", [
    [0.0, -0.0, 0.0, -0.0, 0.0], [-3.0, -1.0, -1.0, -2.0, -1.0], [1e12, -1e12, 0.0, 1e12, -5.0],
    [-200.0, 3.0, -300.0, 2.0, -400.0], [-1e-40, 1e-40, 0.0, -1e-40, 2e-40],
], ids=["zeros", "ties", "far", "weight 0", "subnormal"])
def test_ties_zeros_and_weights_that_vanish(logits: list[float]) -> None:
    """An order on integers is the order on floats; an expert chosen with the weight 0 takes no part."""
    graph = with_logits(logits)
    chunk = Chunk(0, 0, (0,), every=True)
    assert same(chip.load(graph, chip=TINY).run([chunk]), ref.load(graph).run([chunk]))


def test_a_chosen_expert_is_looked_up() -> None:
    """Queues hold gathers of as many experts as a token chooses: more experts are as many instructions."""
    counts = []
    for experts in (4, 8):
        config = replace(BASE, layers=1, tied=False, experts=experts, experts_per_token=2)
        graph = random_graph(config, LLAMA, Scheme())
        (segment,) = schedule(graph, place(graph, TINY), [64]).segments
        counts.append(sum(int((q["op"] == BY_NAME["gather"].opcode).sum()) for q in segment.queues.values()))
    assert counts[0] == counts[1] > 100


def test_experts_that_nearly_fill_a_chip_give_the_reference_bits() -> None:
    """Tiles lie in several runs of groups, and rests of tiles share a group."""
    config, variant, scheme = MIXTURES["gpt-oss wide"]
    more = {"experts": 24, "experts_per_token": 2, "hidden": 340, "intermediate": 200}
    graph = random_graph(replace(config, layers=1, context=16, **more), variant, scheme)
    full = replace(load_chip("lpu-v1"), words_per_slice=488)
    runs = place(graph, full).homes.runs.values()
    assert any(len(own) > 1 and sum(home.count for _, home in own) == full.superlanes for own in runs)
    assert any(home.slices != tuple(sorted(home.slices)) for own in runs for _, home in own)
    chunk = Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(chip.load(graph, chip=full).run([chunk]), ref.load(graph).run([chunk]))


def test_names_of_the_chosen() -> None:
    graph = routed(random_graph(*MIXTURES["experts"]))
    names = [node.where for node in graph.nodes if node.where.startswith("layers.1.mlp.chosen")]
    assert names[:3] == ["layers.1.mlp.chosen0", "layers.1.mlp.chosen0.gate", "layers.1.mlp.chosen0.up"]
    (gate,) = (node for node in graph.nodes if node.where == "layers.1.mlp.chosen1.gate")
    assert gate.inputs == ("layers.1.mlp.chosen1.select", "layers.1.mlp.route")
    assert [gate.params[f"codes{e}"] for e in ("", ".1", ".4")] == [f"layers.1.mlp.{e}.gate.codes" for e in (0, 1, 4)]
