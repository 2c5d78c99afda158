"""Real clocks and links: over a thousand draws a program ends in time with the same bits, or an error says why not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from chip_programs import Board, exchange

from openlpu._base.errors import ProgramError
from openlpu.arch.link import Link, port_queue
from openlpu.arch.system import System, load_system
from openlpu.target.chip import clocks, pipeline
from openlpu.target.chip.links import Ports
from openlpu.target.chip.machine import Trace
from openlpu.target.chip.packets import packets, stretches

DRAWS = 1000


def ports_of(system: System, roles: int) -> Ports:
    """The links of the first chips of a node."""
    return {port_queue(p): pipeline.wired(system, [(0, p)], p, p, p) for p in range(1, roles)}


def simulate(
    system: System, trace: Trace, ports: Ports, roles: int, draws: int = DRAWS, seed: int = 0,
    drift: float = clocks.DRIFT,
) -> clocks.Timing:
    found = packets(system, [trace], [0], [ports], roles)
    return clocks.simulate(system, found, stretches([trace], [0], roles), draws, seed, drift)


def with_link(system: System, **changes: float) -> System:
    """The same wires with other hardware."""
    links = tuple(replace(link, **changes) for link in system.spec.links)
    return replace(system, spec=replace(system.spec, links=links))


@pytest.mark.parametrize(("name", "count"), [("tiny-node", 6), ("node", 8)])
def test_a_program_ends_in_time_in_every_draw(name: str, count: int) -> None:
    system = load_system(name)
    ports = ports_of(system, 8)
    board, kept, sent = exchange(8, count, ports=ports, chip=system.chip)
    trace = board.machine.resolve(board.queues())
    timing = simulate(system, trace, ports, 8)
    assert timing.cycles == int((trace.code.cycle + trace.code.latency).max())
    assert timing.bound <= 12 + 2 * clocks.DRIFT * timing.cycles
    assert timing.startup == 1, "one hop, one epoch"
    assert (timing.end <= timing.cycles + timing.bound).all() and np.ptp(timing.end) > 1
    assert 0 < timing.slack.min() < timing.slack.max(), "every vector is there before it is received"
    assert timing.misaligned.max() <= 12, "within the link's jitter, rounding and an epoch's drift"
    board.machine.execute(trace)
    names = list(ports)
    for queue, k, (slice_, address) in kept:
        for role in range(8):
            got = board.machine.peek(np.array([slice_]), np.array([address]), role)[0]
            assert (got == sent[role ^ ports[queue].peer, names.index(queue), k]).all()


@pytest.mark.parametrize("name", ["tiny-node", "node"])
def test_every_draw_gives_the_same_bits(name: str) -> None:
    """Event by event: a packet enters its link's buffer when it arrives, a receive takes the oldest one there.

    Each draw has an order of events of its own; what every receive gets is what the machine computed.
    """
    system = load_system(name)
    ports = ports_of(system, 8)
    board, kept, sent = exchange(8, 4, ports=ports, chip=system.chip)
    trace = board.machine.resolve(board.queues())
    board.machine.execute(trace)
    p = packets(system, [trace], [0], [ports], 8)
    number = np.arange(len(p.link)) - np.searchsorted(p.link, p.link)  # of a packet on its link
    words = {(ports[queue].peer, k): word for queue, k, word in kept}
    vectors, results = [], []
    for source, target, k in zip(p.source.tolist(), p.target.tolist(), number.tolist(), strict=True):
        slice_, address = words[source ^ target, k]
        vectors.append(sent[source, (source ^ target) - 1, k])
        results.append(board.machine.peek(np.array([slice_]), np.array([address]), target)[0])
    vectors, results = np.array(vectors), np.array(results)
    model = clocks.Clocks(system, DRAWS, seed=7)
    model.settle()
    model.start()
    arrivals, receives = clocks.Passage(model, p, stretches([trace], [0], 8)).times(slice(0, DRAWS))
    orders = set()
    for arrival, receive in zip(arrivals, receives, strict=True):
        order = np.argsort(np.concatenate([arrival, receive]), kind="stable")
        orders.add(order.tobytes())
        buffers: dict[int, list[int]] = {link: [] for link in p.link.tolist()}
        got = np.zeros(len(number), np.int64)
        for packet, received in zip((order % len(got)).tolist(), (order >= len(got)).tolist(), strict=True):
            buffer = buffers[int(p.link[packet])]
            if received:
                got[packet] = buffer.pop(0)
            else:
                buffer.append(packet)
        assert (vectors[got] == results).all()
    assert len(orders) == DRAWS


def test_draws_repeat_and_differ() -> None:
    system = load_system("tiny-node")
    ports = ports_of(system, 2)
    board = exchange(2, ports=ports)[0]
    trace = board.machine.resolve(board.queues())
    first, again, other = (simulate(system, trace, ports, 2, draws=50, seed=seed) for seed in (1, 1, 2))
    assert (first.end == again.end).all() and (first.slack == again.slack).all()
    assert (first.end != other.end).any()


def test_latencies_are_the_published_ones() -> None:
    link = load_system("node").links[0]
    drawn = clocks.Latencies(link).draw(np.random.Generator(np.random.Philox(0)), (200_000,))
    assert abs(drawn.mean() - link.mean) < 0.1 and abs(drawn.std() - link.sigma) < 0.15
    assert drawn.min() >= link.minimum and drawn.max() <= link.maximum
    assert drawn.max() - drawn.min() > 12
    one = replace(link, mean=220, sigma=0.0, minimum=220, maximum=220)
    assert set(clocks.Latencies(one).draw(np.random.default_rng(0), (99,)).tolist()) == {220}


@pytest.mark.parametrize("name", ["tiny-node", "groqrack", "dragonfly"])
def test_clocks_stay_within_the_bound(name: str) -> None:
    """From any offset, each chip within the sum of `align` over its path; and all start in the stated epoch."""
    system = load_system(name)
    model = clocks.Clocks(system, 40, seed=3)
    assert np.abs(model.late[:, 1:]).max() > 100
    model.settle()
    chips = np.arange(system.chips)
    limit = system.tree.path_sums(chips, np.zeros_like(chips), [link.align for link in system.links])
    for _ in range(20):
        model.align()
        assert (np.abs(model.late[:, chips]) <= limit).all()
    assert model.start() >= system.tree.depth.max()


def test_a_latency_above_the_maximum() -> None:
    """A program made for links that take 232 cycles at most, on links that take up to 240."""
    ports = ports_of(with_link(load_system("tiny-node"), latency=232), 2)
    board = exchange(2, count=9, ports=ports)[0]
    trace = board.machine.resolve(board.queues())
    slow = with_link(load_system("tiny-node"), mean=225, sigma=5.0, maximum=240)
    message = (
        r"draw \d+ of system tiny-node, packet \d from chip [01] to [01], stage 0, cycle \d+, c2ce0, receive "
        r"\(instruction \d+\): comes in cycle \d+\.\d, \d+\.\d cycles after its receive"
    )
    with pytest.raises(ProgramError, match=message):
        simulate(slow, trace, ports, 2)


def test_a_clock_that_drifts_too_far() -> None:
    system = load_system("tiny-node")
    ports = ports_of(system, 2)
    board = exchange(2, count=3, ports=ports, gap=40_000)[0]
    trace = board.machine.resolve(board.queues())
    simulate(system, trace, ports, 2)
    message = r"packet 2 from chip . to .*: comes in cycle 80\d+\.\d, .* after its receive"
    with pytest.raises(ProgramError, match=message):
        simulate(system, trace, ports, 2, drift=5e-4)


def long_program(system: System, ports: Ports, wait: int, rounds: int = 12, gap: int = 50_000) -> Trace:
    """A vector every ``gap`` cycles, and a RUNTIME_DESKEW of ``wait`` cycles (0: none) in the middle of each gap."""
    board: Board = exchange(2, count=rounds, ports=ports, gap=gap)[0]
    for k in range(rounds - 1 if wait else 0):
        board.put(port_queue(1), gap * k + gap // 2, "runtime_deskew", delay=wait)
    return board.machine.resolve(board.queues())


def test_runtime_deskew_keeps_a_long_program_right() -> None:
    system = load_system("tiny-node")
    ports = ports_of(system, 2)
    with pytest.raises(ProgramError, match=r"from chip . to .*, stage 0, cycle \d{6}, .*comes in cycle \d{6}\.\d"):
        simulate(system, long_program(system, ports, 0), ports, 2)
    timing = simulate(system, long_program(system, ports, 64), ports, 2)
    assert timing.bound <= 12 + 2 * clocks.DRIFT * 60_000
    message = r"chip 1 of system tiny-node, cycle \d+: its clock is [+-]\d+\.\d cycles off; runtime_deskew has 2 to"
    with pytest.raises(ProgramError, match=message):
        simulate(system, long_program(system, ports, 2), ports, 2)


def test_a_buffer_smaller_than_the_links_need() -> None:
    """A chip built for links that are never early, at links that are."""
    system = load_system("tiny-node")
    stated = with_link(system, minimum=265)
    ports = {queue: replace(port, misaligned=0) for queue, port in ports_of(stated, 2).items()}
    board = exchange(2, count=9, ports=ports)[0]
    trace = board.machine.resolve(board.queues())
    message = r"packet \d .*: comes in cycle .* and finds the buffer of the link full for"
    with pytest.raises(ProgramError, match=message):
        simulate(system, trace, ports, 2)


def test_a_start_signal_in_the_wrong_epoch() -> None:
    system = with_link(load_system("tiny-node"), mean=240, sigma=6.0, minimum=225, maximum=262)
    model = clocks.Clocks(system, DRAWS, seed=0)
    model.settle()
    message = r"draw \d+, chip \d of system tiny-node: the start signal comes 2\d\d cycles"
    with pytest.raises(ProgramError, match=message):
        model.start()


def test_a_chip_alone_has_no_packets() -> None:
    system = load_system("single")
    board = Board(system.chip)
    board.put("mem0", 0, "read", address=0, stream=3)
    timing = simulate(system, board.machine.resolve(board.queues()), {}, 1, draws=3)
    assert timing.end.tolist() == [3, 3, 3] and timing.bound == 0 + 2 * clocks.DRIFT * 3
    assert np.isinf(timing.slack).all()


def test_links_of_other_systems() -> None:
    """Every bundled system's links keep their own margins: jitter and misalignment inside the latency."""
    for name in ("node", "rack", "dragonfly", "tiny-line"):
        system = load_system(name)
        for level, link in enumerate(system.links):
            assert isinstance(link, Link)
            assert link.maximum + system.misaligned[level] < link.latency
