"""Programs of several chips: one for all roles, the reference's bits, links to the cycle, stages that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_models import BASE, CASES, LLAMA, random_graph, same, tokens

from openlpu._base.errors import ProgramError, Unsupported
from openlpu.arch.chip import Chip, load_chip
from openlpu.arch.isa import BY_NAME
from openlpu.arch.link import Link
from openlpu.arch.system import System, load_system
from openlpu.compile import compile
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.partition.shard import shard
from openlpu.partition.split import EXCHANGES, SUMS, Split, alone
from openlpu.place import emplace
from openlpu.place.layout import place, place_stage
from openlpu.schedule import program_file
from openlpu.schedule.program import SystemProgram
from openlpu.schedule.step import schedule
from openlpu.schedule.system import cables, paced, schedule_system
from openlpu.target.base import Chunk
from openlpu.target.chip.pipeline import inside
from openlpu.target.chip.system import SystemExecutable
from openlpu.target.ref import run as ref

TINY = replace(load_chip("tiny"), c2c_links=16)
SEND, RECEIVE = (BY_NAME[name].opcode for name in ("send", "receive"))
SPLITS = [(2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (2, 4), (1, 4)]


def node(chip: Chip = TINY) -> System:
    """A node of eight chips."""
    system = load_system("tiny-node")
    return replace(system, spec=replace(system.spec, chip=chip))


def made(graph, split: Split, chip: Chip = TINY, contexts: Sequence[int] = (64,)) -> SystemProgram:
    local, hops = cables(node(chip), split)
    return schedule_system(shard(graph, split), chip, local, hops, contexts=contexts, pace=paced(node(chip), split))


def agrees(graph, split: Split, chip: Chip = TINY, count: int = 3, contexts: Sequence[int] = (64,)) -> SystemProgram:
    """All claims hold and the logits are the reference's."""
    program = made(graph, split, chip, contexts)
    chunk = Chunk(0, 0, tokens(count, graph.config), every=True)
    got = SystemExecutable(program, graph.params, node(chip)).run([chunk])
    assert same(got, ref.load(graph).run([chunk])), split
    return program


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(("tensor", "stages"), SPLITS)
def test_every_split_gives_the_reference_bits(tensor: int, stages: int, exchange: str) -> None:
    graph = random_graph(replace(BASE, layers=4 if stages > 1 else 1), LLAMA, Scheme())
    agrees(graph, Split(tensor, stages, exchange), count=2)


ODD = ["odd sizes", "head_dim 6", "wide odd cache", "biases", "head norms", "4-bit odd cache"]


@pytest.mark.parametrize("name", ODD)
def test_odd_models_give_the_reference_bits(name: str) -> None:
    agrees(random_graph(*CASES[name]), Split(4, 2))


def test_the_real_geometry_gives_the_reference_bits() -> None:
    graph = random_graph(replace(BASE, hidden=400, heads=6, kv_heads=3, head_dim=64, intermediate=700), LLAMA, Scheme())
    agrees(graph, Split(2, 2), load_chip("lpu-v1"))


@pytest.mark.parametrize("split", [Split(8, 1), Split(2, 4)])
def test_stories260k_gives_the_reference_bits(split: Split, shared: Path) -> None:
    graph = compile(shared / "models" / "stories260K").graph
    agrees(graph, split, load_chip("lpu-v1") if split.stages == 1 else TINY, count=1, contexts=(256,))


def test_a_line_of_chips_gives_the_reference_bits() -> None:
    """What leaves by port 1 arrives by port 2."""
    graph, line = random_graph(replace(BASE, layers=4), LLAMA, Scheme()), load_system("tiny-line")
    local, hops = cables(line, Split(1, 4))
    assert local is None and [(hop.leaves, hop.arrives) for hop in hops] == [(1, 2)] * 3
    program = schedule_system(shard(graph, Split(1, 4)), line.spec.chip, local, hops, contexts=[64])
    chunk = Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(SystemExecutable(program, graph.params, line).run([chunk]), ref.load(graph).run([chunk]))


WIRED = [("tiny-ring", 4, Split(4), 2), ("tiny-ring", 4, Split(4, exchange="codes"), 2), ("tiny-ring", 8, Split(8), 4),
         ("tiny-ring", 4, Split(4, exchange="sums"), 2), ("dragonfly", 16, Split(16), 2),
         ("rack", 16, Split(16, exchange="sums"), 2)]


@pytest.mark.parametrize(("name", "chips", "split", "hops"), WIRED)
def test_vectors_sent_on_by_chips_in_between_give_the_reference_bits(
    name: str, chips: int, split: Split, hops: int
) -> None:
    """Round a ring, and over two nodes: as few hops as the wires have, real clocks kept."""
    wired = load_system(name, chips)
    wired = replace(wired, spec=replace(wired.spec, chip=TINY))
    graph = random_graph(replace(BASE, layers=split.stages), LLAMA, Scheme())
    (local, to_next), pace = cables(wired, split), paced(wired, split)
    assert local
    far = {0: 0}
    for slot, (source, _) in sorted(enumerate(local.moves, 1), key=lambda item: item[1][0] != 0):
        far[slot] = 1 + (far[source] if source in far else 1 + far[local.moves[source - 1][0]])
    assert max(far.values()) == hops
    loads = [sum(way == i for _, way in local.moves) for i in range(len(local.ways))]
    assert max(loads) - min(loads) <= 1, "no way has more to carry than it must"
    program = schedule_system(shard(graph, split), TINY, local, to_next, contexts=(64,), pace=pace)
    executable, chunk = SystemExecutable(program, graph.params, wired), Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(executable.run([chunk]), ref.load(graph).run([chunk]))
    assert executable.timing(0, draws=100).slack.min() > 0


def test_no_buffer_is_deeper_because_a_program_says_so() -> None:
    """A way may count on the slowest cable of the system, not on one that the system does not have."""
    rack = load_system("rack", 16)
    local, _ = cables(rack, Split(8, 2))
    assert local
    slowest, link = max(link.latency for link in rack.links), local.ways[0].link
    for claimed, counted in ((link.latency, link.latency), (slowest, slowest), (10 * slowest, slowest)):
        ways = tuple(replace(way, link=replace(link, latency=claimed)) for way in local.ways)
        ports = inside(rack, replace(local, ways=ways), 8).values()
        assert {port.link.latency for port in ports} == {counted}
        assert max(port.depth for port in ports) <= link.buffer(0) + (counted - link.latency) + max(rack.misaligned)


def test_stages_of_half_layers_give_the_reference_bits() -> None:
    """The second stage begins with the MLP of the layer whose attention the first one ends with."""
    graph = random_graph(replace(BASE, layers=4, intermediate=300), LLAMA, Scheme())
    program = agrees(graph, Split(2, 3, halves=True))
    assert program.first == (0, 1, 3)


def test_a_longer_bucket_takes_over() -> None:
    config = replace(BASE, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=16, intermediate=16, context=300)
    graph = random_graph(config, LLAMA, Scheme())
    ids = tokens(13, config)
    chunks = [Chunk(0, 0, ids[:3], every=True), Chunk(0, 250, ids[3:], every=True)]
    machine = SystemExecutable(made(graph, Split(2, 2), contexts=(256, 300)), graph.params, node())
    assert same(machine.run(chunks), ref.load(graph).run(chunks))


def test_one_chip_has_the_program_it_had() -> None:
    graph = random_graph(*CASES["tied"])
    (stage,) = schedule_system(shard(graph, Split()), TINY, contexts=[64]).programs
    layout = place(graph, TINY)
    alone_ = schedule(graph, layout, [64])
    ours, theirs = stage.program.segments[0], alone_.segments[0]
    assert all(np.array_equal(ours.queues[q], theirs.queues[q]) for q in theirs.queues)
    assert stage.residents == (stage.program.resident,) and (stage.ports, stage.next, stage.previous) == ((), "", "")
    assert ours.tensors["logits"].channel.ndim == 2
    assert alone(graph).tensor == 1


def test_roles_differ_in_what_fills_their_homes_only() -> None:
    graph = random_graph(*CASES["outliers"])
    (stage,) = made(graph, Split(4)).programs
    assert len(stage.residents) == 4
    different = set()
    for role, items in enumerate(stage.residents):
        for item, first in zip(items, stage.residents[0], strict=True):
            assert (item.name, item.source.kind) == (first.name, first.source.kind)
            assert np.array_equal(item.slices, first.slices) and np.array_equal(item.addresses, first.addresses)
            count, planes = item.slices.shape
            mine, theirs = (emplace.vectors(i.source, count, planes, TINY.lanes, graph.params) for i in (item, first))
            if role and not np.array_equal(mine, theirs):
                different.add(item.name.split(".")[0])
    assert {"weights", "scale", "embedding", "constants"} <= different, "masks differ too: where outliers are"
    assert not different & {"host", "kv", "rope", "instructions"}


def test_other_weights_have_the_same_program() -> None:
    one, two = (made(random_graph(BASE, LLAMA, Scheme(), seed), Split(2)).programs[0].program for seed in (0, 1))
    assert all(np.array_equal(one.segments[0].queues[q], two.segments[0].queues[q]) for q in TINY.queues)


def test_saved_twice_the_same_bytes_and_loaded_the_same(tmp_path: Path) -> None:
    graph = random_graph(*CASES["untied"])
    split = Split(2, 3)
    digests = [program_file.save_system(made(graph, split), tmp_path / name) for name in "ab"]
    assert digests[0] == digests[1]
    loaded = program_file.load_system(tmp_path / "a")
    assert program_file.save_system(loaded, tmp_path / "c") == digests[0]
    assert (loaded.split, loaded.stages, loaded.first) == (split, (0, 1, 2), (0, 1, 2))
    chunk = Chunk(0, 0, tokens(2, graph.config), every=True)
    assert same(SystemExecutable(loaded, graph.params, node()).run([chunk]), ref.load(graph).run([chunk]))
    manifest = tmp_path / "b" / "stage-1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(ProgramError, match="damaged"):
        program_file.load_system(tmp_path / "b")


def local_link() -> Link:
    return node().links[0]


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_links_are_used_to_the_cycle(exchange: str) -> None:
    """A receive comes exactly a latency after its send, of what all want on all ports of an edge at once; sends keep
    their distance."""
    (stage,) = made(random_graph(*CASES["tied"]), Split(8, 1, exchange)).programs
    link, segment = local_link(), stage.program.segments[0]
    sends = {}
    for port in stage.ports:
        queue = segment.queues[port]
        sent, received = (queue["cycle"][queue["op"] == op].astype(int) for op in (SEND, RECEIVE))
        assert len(sent) and np.array_equal(sent + link.latency, received)
        assert np.diff(sent).min() >= link.cycles
        sends[port] = sent
    for edge in "we" * (exchange != SUMS):
        own = [sent for port, sent in sends.items() if port[3] == edge]
        assert all(np.array_equal(own[0], other) for other in own)


def test_stages_fit_each_other() -> None:
    """A burst leaves and arrives a vector every slot, whatever the stage; times add up over the links."""
    graph = random_graph(replace(BASE, layers=8), LLAMA, Scheme())
    system = made(graph, Split(2, 4))
    assert system.stages == (0, 1, 1, 2) and system.first == (0, 2, 4, 6)
    link, bursts = local_link(), set()
    for stage in system.programs:
        queues = stage.program.segments[0].queues
        if stage.next:
            sent = queues[stage.next]["cycle"][queues[stage.next]["op"] == SEND].astype(int)
            assert (np.diff(sent) == link.cycles).all() and stage.program.segments[0].cycles == sent[-1] + 1
            bursts.add(len(sent))
        if stage.previous:
            taken = queues[stage.previous]["cycle"][queues[stage.previous]["op"] == RECEIVE].astype(int)
            head = stage.taken(stage.program.segments[0])
            assert (taken == head + np.arange(len(taken)) * link.cycles).all()
            bursts.add(len(taken))
    assert len(bursts) == 1
    starts = system.starts(0)
    sent = [stage.handed_over(stage.program.segments[0]) for stage in map(system.stage, range(3))]
    head = system.stage(1).taken(system.stage(1).program.segments[0])
    assert np.diff(starts).tolist() == [cycle + link.latency - head for cycle in sent]
    assert system.cycles(0) == starts[-1] + system.stage(3).program.segments[0].cycles
    assert system.interval(0) == max(stage.busy(stage.program.segments[0]) for stage in system.programs)
    assert system.interval(0) < system.cycles(0) / 3


def test_stages_of_one_program_use_their_own_ports() -> None:
    system = made(random_graph(replace(BASE, layers=8), LLAMA, Scheme()), Split(2, 4))
    seen = []
    for s in range(4):
        queues = system.queues(s, 0)
        assert list(queues) == list(TINY.queues)
        used = {name: q for name, q in queues.items() if name.startswith("c2c") and len(q)}
        seen.append({name: int((q["op"] == SEND).sum()) for name, q in used.items()})
    assert [sorted(ports) for ports in seen] == [
        ["c2ce0", "c2cw1"], ["c2ce0", "c2cw1", "c2cw3"], ["c2ce0", "c2cw1", "c2cw3"], ["c2ce0", "c2cw1"]]
    assert seen[1]["c2cw1"] == seen[2]["c2cw3"] == 0 and seen[1]["c2cw3"] == seen[2]["c2cw1"] > 0


def test_too_few_links_or_chips_name_what_is_missing() -> None:
    graph = random_graph(*CASES["tied"])
    with pytest.raises(Unsupported, match=r"chip tiny, c2c_links: 8 chips of a stage .* need 7 links"):
        made(graph, Split(8), replace(TINY, c2c_links=4))
    with pytest.raises(Unsupported, match="it has 8 chips and the split needs 16"):
        cables(node(), Split(8, 2))
    with pytest.raises(Unsupported, match="no port leads from every chip of stage 0 to stage 1"):
        cables(load_system("dragonfly"), Split(8, 2))
    for name, chips, tensor, why in (
        ("tiny-ring", 4, 2, "the first and the last of them have one neighbour among them, at opposite edges"),
        ("tiny-line", 4, 4, "the first and the last of them have one neighbour among them, at opposite edges"),
        ("groqrack", None, 16, "only 4 of the 8 chips of a node are wired to the next node"),
        ("groqrack", 16, 16, "the wires from a node to the next leave some chips at one edge and others at the other"),
    ):
        message = rf"system {name}: its local .*do not join {tensor} chips .*, all of them alike: {why}.*\n  fix: use "
        with pytest.raises(Unsupported, match=message):
            cables(load_system(name, chips), Split(tensor))


def test_a_hop_is_by_wires_that_are_all_alike() -> None:
    """All roles leave and arrive by one port, over one class of cable."""
    local, hops = cables(node(), Split(2, 2))
    assert local and [(hop.leaves, hop.arrives) for hop in hops] == [(2, 2)]
    for name, value in (("arrival", 5),):
        system = node()
        column = getattr(system.wires, name).copy()
        column[1, 2] = value
        system.__dict__["wires"] = replace(system.wires, **{name: column})
        with pytest.raises(Unsupported, match="no port leads from every chip of stage 0 to stage 1"):
            cables(system, Split(2, 2))


def test_more_chips_need_less_room() -> None:
    config = replace(BASE, hidden=1024, heads=16, kv_heads=8, head_dim=64, intermediate=2048, vocab=1024, tied=False)
    graph, rows = draw(config), []
    for tensor in (1, 2, 4):
        layout = place_stage(shard(graph, Split(tensor)).stages[0], replace(TINY, words_per_slice=8192))
        rows.append(sum(home.count for name, home in layout.homes.homes.items() if name.startswith("weights")))
    assert rows[0] > 1.9 * rows[1] > 3.4 * rows[2]
