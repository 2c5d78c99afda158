"""What crosses chips.  A split value in, the whole one out; a scale in, the largest out; the residual in and out.

Slot 0 of a gathered value is the chip's own part and slot p that of the role that arch/group.py names, put together
as place/packing.py says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openlpu.graph.ir import Node
from openlpu.place.packing import Packing
from openlpu.schedule.select.build import I32, Build, Coded, Floats
from openlpu.schedule.select.cache import joined
from openlpu.schedule.select.codes import chain, stored
from openlpu.schedule.select.codes import scale as scale_of
from openlpu.schedule.values import Vec


def gather(b: Build, node: Node, place: int) -> None:
    """File the whole value, fp32 or codes; a scale is whole already."""
    (name,), lanes, how, out = node.inputs, b.lanes(node.output), b.layout.packings[node.output], (node.output, place)
    if (name, place) in b.floats:
        b.floats[out] = Floats(lanes, _present(_gathered(b, how, b.floats[name, place].vecs)))
        return
    own = b.coded[name, place]
    b.coded[out] = Coded(lanes, _present(_gathered(b, how, own.low)), _gathered(b, how, own.high), own.scale)


def _present(vecs: Sequence[Vec | None]) -> list[Vec]:
    present = [vec for vec in vecs if vec is not None]
    assert len(present) == len(vecs), "what every vector has, every gathered one has"
    return present


def _gathered(b: Build, how: Packing, vecs: Sequence[Vec | None]) -> list[Vec | None]:
    """The gathered vectors, in the order of their slots; None where no vector has what is gathered (a high plane)."""
    roles = b.stage.tensor
    sent = [_sent(b, how.turns(k, roles), vecs) for k in range(len(how.pieces))]
    slots = [None if own is None else [own, *b.c2c.exchange(own)] for own in sent]
    return [None if (found := slots[k]) is None else _sum(b, found[span]) for k, span in how.slots(roles)]


def _sent(b: Build, turns: Sequence[tuple[int, I32]], vecs: Sequence[Vec | None]) -> Vec | None:
    """Vectors turned, each chip its own way, and put together."""
    lanes = np.arange(b.chip.lanes, dtype=np.int32)
    turned = []
    for v, by in turns:
        if (vec := vecs[v]) is not None:
            maps = b.lane_map((lanes - by[:, None]) % b.chip.lanes) if by.any() else None
            turned.append(b.sxm.permute(vec, maps) if maps else vec)
    return _sum(b, turned) if turned else None


def _sum(b: Build, vecs: Sequence[Vec]) -> Vec:
    """Vectors with no lane in common as one."""
    if len(vecs) == 1:
        return vecs[0]
    total = b.vxm.evaluate(joined(b, vecs))
    return total if len(vecs[0].slices) > 1 else total.plane(0)


def scale(b: Build, node: Node, place: int) -> Floats:
    """The scale that codes of the chip's own part would have, in every lane."""
    (name,) = node.inputs
    own = scale_of(b, b.floats[name, place], b.graph.values[name].size, node.attrs["wide"])
    return Floats(b.lanes(node.output), [b.vxm.evaluate(own)])


def largest(b: Build, node: Node, place: int) -> Floats:
    """The largest of the chips' scales."""
    (own,) = b.floats[node.inputs[0], place].vecs
    return Floats(b.lanes(node.output), [stored(b, chain("max", [own, *b.c2c.exchange(own)]))])


def take_over(b: Build, node: Node) -> None:
    """File the residual of the stage before, of one token after the other."""
    lanes, name = b.lanes(node.output), node.output
    vecs = b.c2c.take_over([(i, v) for i in range(b.chunk) for v in range(lanes.vectors)])
    b.floats |= {(name, i): Floats(lanes, [vecs[i, v] for v in range(lanes.vectors)]) for i in range(b.chunk)}


def hand_over(b: Build, node: Node) -> int:
    """The chip's part of the residual of all tokens to the stage behind; the cycle of the last send."""
    (name,), count = node.inputs, b.lanes(node.output).vectors
    vecs = {i: b.floats[name, i].vecs[:count] for i in range(b.chunk)}
    return b.c2c.hand_over({(i, v): vec for i, own in vecs.items() for v, vec in enumerate(own)})
