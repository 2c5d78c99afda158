"""Sends and receives in; which vector each receive takes, and what leaves and enters the group, out.

A link has no addresses: a port delivers vectors in the order in which they were sent, so the k-th receive of a port
takes the k-th vector sent to it.  All rules here are about aligned time, in which every chip's cycle 0 is the same
moment; :mod:`openlpu.target.chip.clocks` shows that real clocks keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from openlpu.arch.link import Link
from openlpu.target.chip.code import Code, Ints


@dataclass(frozen=True)
class Port:
    """Where the link of a queue comes from, at every chip of a group.

    ``peer`` p, which tells links apart: role r takes what role ``source[r]`` (none given: r XOR p) sent by its port of
    the queue ``sender`` (none given: the same).  0: out of the group, to the next stage, or ``inward`` from the one
    before; nothing goes the other way.  ``misaligned``: most cycles between the clocks of the two ends.
    """

    link: Link
    peer: int = 0
    misaligned: int = 0
    inward: bool = False
    source: tuple[int, ...] = ()
    sender: str = ""

    def sources(self, roles: int) -> Ints:
        """The role from which each role takes."""
        return np.array(self.source) if self.source else np.arange(roles) ^ self.peer

    @property
    def depth(self) -> int:
        """Vectors that the buffer at the receiving end holds."""
        return self.link.buffer(self.misaligned)


Ports = Mapping[str, Port]
Packet = tuple[int, int]  # the row of a receive, and the role of its chip


@dataclass(frozen=True)
class Passing:
    """Receive ``receives[i]`` of role r takes what send ``sends[i]`` of its peer sent over link ``peer[i]``.

    ``handed``: sends to another stage; ``arriving``: receives from one; both by queue, then cycle.
    """

    receives: Ints
    sends: Ints
    peer: Ints
    handed: Ints
    arriving: Ints


def resolve(code: Code, ports: Ports) -> Passing:
    """Pair sends with receives; refuses a link that over- or underflows."""
    rows = code.unit("c2c")
    wired = np.array([name in ports for name in code.names], bool)
    code.refuse(rows[~wired[code.queue[rows]]], "there is no link at this port" if ports else NO_LINK)
    receives, sends, peer, handed, arriving = ([np.zeros(0, np.int64)] for _ in range(5))
    for port, out, into in _by_port(code, ports):
        code.refuse(out[1:][np.diff(code.cycle[out]) < port.link.cycles], BUSY.format(port.link.cycles))
        if port.peer:
            pair(code, out, code, into, port)
            receives.append(into)
            sends.append(out)
            peer.append(np.full(len(into), port.peer))
        elif port.inward:
            code.refuse(out, "the stage before takes nothing")
            arriving.append(into)
        else:
            code.refuse(into, "the next stage sends nothing back")
            handed.append(out)
    return Passing(*(np.concatenate(parts) for parts in (receives, sends, peer, handed, arriving)))


NO_LINK = "there is no link: this is a single chip"
BUSY = "the link takes a vector every {} cycles and is still busy with the one before"


def _by_port(code: Code, ports: Ports) -> Iterator[tuple[Port, Ints, Ints]]:
    """Each link, that of the first receiving queue first, with its sends and its receives in order."""
    out, into = code.rows("send"), code.rows("receive")
    number = {name: k for k, name in enumerate(code.names)}
    for name, port in sorted(ports.items(), key=lambda item: number.get(item[0], -1)):
        there, here = number.get(port.sender or name, -1), number.get(name, -1)
        yield port, out[code.queue[out] == there], into[code.queue[into] == here]


def pair(sender: Code, out: Ints, receiver: Code, into: Ints, port: Port, shift: int = 0) -> None:
    """Check that the k-th of ``into`` can take the vector of the k-th of ``out``.

    ``shift`` is the sender's cycle in which the receiver's cycle 0 falls.  A vector is certain to be there
    ``latency`` cycles after it was sent, but may be early by what the link's latency and the clocks vary; it must not
    find the buffer full even then.
    """
    n = min(len(out), len(into))
    receiver.refuse(into[n:], "no vector is sent for it")
    sender.refuse(out[n:], "its vector is never received and stays in the buffer of the link")
    sent, taken = sender.cycle[out] - shift, receiver.cycle[into]
    for k in np.flatnonzero(taken < sent + port.link.latency)[:1]:
        what = f"its vector, sent by [{sender.where(int(out[k]))}], arrives in cycle {sent[k] + port.link.latency}"
        receiver.refuse(into[[k]], what)
    _room(sender, out, sent, taken, port)


def again(
    sender: Code, out: Ints, receiver: Code, into: Ints, port: Port, interval: int, shift: int = 0
) -> None:
    """Check the same of programs that run every ``interval`` cycles: several tokens may be on the link at once."""
    if len(out):
        start = interval * np.arange(port.depth // len(out) + 2)[:, None]
        sent, taken = ((start + cycles).ravel() for cycles in (sender.cycle[out] - shift, receiver.cycle[into]))
        crowded(sender, np.tile(out, len(start)), sent, taken, port)


def crowded(sender: Code, out: Ints, sent: Ints, taken: Ints, port: Port) -> None:
    """Check vectors of several steps, ``sent`` and ``taken`` in these cycles; ``out`` are the sends of the last."""
    known = len(sent) - len(out)
    tight = np.flatnonzero(np.diff(sent) < port.link.cycles) + 1 - known
    sender.refuse(out[tight[tight >= 0]], BUSY.format(port.link.cycles))
    _room(sender, out, sent, taken, port)


def _room(sender: Code, out: Ints, sent: Ints, taken: Ints, port: Port) -> None:
    """No vector finds the buffer full, however early it comes: the one ``depth`` before it was taken."""
    first, known = sent[port.depth :] + port.link.minimum - port.misaligned, len(sent) - len(out)
    for k in np.flatnonzero(first < taken[: len(first)])[:1]:
        what = f"its vector can find the buffer of the link full: {port.depth} vectors wait there, the first until " \
               f"cycle {taken[k]}"
        sender.refuse(out[[max(k + port.depth - known, 0)]], what)
