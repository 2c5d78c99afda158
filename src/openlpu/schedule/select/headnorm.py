"""Query or key heads in, each divided by its own rms and times a gain, out.  See ``_headnorm`` in target/ref/run.py.

A head's Σcode² is the product of the vector's codes with the codes of that head alone, other lanes zero.
"""

from __future__ import annotations

import numpy as np

from openlpu.arch.truepoint.codes import INV_WIDE
from openlpu.graph.ir import Node
from openlpu.schedule.expression import Op
from openlpu.schedule.select.build import Build, Floats
from openlpu.schedule.select.cache import joined
from openlpu.schedule.select.codes import amax, code_of, high_plane, reciprocal, rms_factor, scale_of, squares
from openlpu.schedule.units.vxm import Want
from openlpu.schedule.values import Vec


def headnorm(b: Build, node: Node, x: Floats) -> Floats:
    """(x * factor of its head) * gain."""
    vecs = []
    for v, vec in enumerate(x.vecs):
        starts = [int(lane) for lane in np.flatnonzero(x.lanes.used(v))[:: b.heads.dim]]
        factor = joined(b, _factors(b, node, vec, starts))
        vecs.append(b.vxm.evaluate(Op("mul", Op("mul", vec, factor), b.home(f"gain.{node.where}.{v}"))))
    return Floats(x.lanes, vecs)


def _factors(b: Build, node: Node, vec: Vec, starts: list[int]) -> list[Op]:
    """1/rms of each head, in that head's lanes only."""
    masks = [b.mask(b.heads.mask(lane)) for lane in starts]
    tree = scale_of(amax(b, [vec], span=b.heads.dim, each=True), INV_WIDE)
    code, scale = b.vxm.results([Want(code_of(vec, reciprocal(tree))), Want(tree)])
    own = [b.vxm.evaluate(Op("mask", code, mask)).plane(0) for mask in masks]
    own_high = [b.vxm.evaluate(Op("mask", Op("add_mod", code, 128), mask)).plane(1) for mask in masks]
    ll = _products(b, code.plane(0), [*own, *own_high])
    hh = _products(b, high_plane(b, code), own_high)
    factors = []
    for i, mask in enumerate(masks):
        total = squares(*(Op("to_float", x) for x in (hh[i], ll[len(own) + i], ll[i])))
        factor = b.vxm.evaluate(rms_factor(total, scale, b.heads.dim, node.attrs["eps"]))
        factors.append(Op("mask", factor, mask))
    return factors


def _products(b: Build, weight: Vec, rows: list[Vec]) -> list[Vec]:
    """Σ over lanes of weight * row, in every lane, for each row."""
    plane = b.mxm.pick()
    b.mxm.load(plane, 0, weight, b.chip.superlanes)
    b.mxm.install(plane)
    sums = [b.mxm.activate(plane, row, b.mxm.new_slot(plane), clear=True, emit=True) for row in rows]
    return [s for s in sums if s is not None]
