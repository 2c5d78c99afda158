"""What travels from partition to place and schedule: a split, and the stages that it makes of a graph."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openlpu._base.text import dump
from openlpu.graph.ir import Graph
from openlpu.partition.experts import routed

I32 = NDArray[np.int32]
VALUES, CODES, SUMS = EXCHANGES = ("values", "codes", "sums")


@dataclass(frozen=True)
class Split:
    """``tensor`` chips (1, 2, 4, 8 or 16) share each of ``stages`` pipeline stages.

    ``exchange``: a value that all need whole is gathered as fp32 ``values``, or after one maximum over the chips as
    integer ``codes``, one byte or two a channel.  With ``sums`` a linear takes the columns of what its chip made, and
    exact partial sums are added across chips, where these are fewer bytes than its input's values.  ``halves``: stages
    may also end between attention and MLP of a layer.
    """

    tensor: int = 1
    stages: int = 1
    exchange: str = VALUES
    halves: bool = False

    def __str__(self) -> str:
        exchange = f", {self.exchange} exchanged" if self.tensor > 1 else ""
        return f"{self.tensor} chips x {self.stages} stages{exchange}{', half layers' if self.halves else ''}"

    @property
    def chips(self) -> int:
        """Chips in all."""
        return self.tensor * self.stages


@dataclass(frozen=True)
class Stage:
    """The nodes that the ``tensor`` chips of a pipeline stage execute: the model's layers ``first`` to ``last``.

    Names and ``layer`` attributes count layers from 0 (:func:`openlpu.partition.names.shift` by ``first`` gives the
    model's); parameters and channel numbers are the model's own, none is cut.  ``parts`` maps a split value's name to
    int32 [tensor, width]: the channels that each role makes, -1 where it has fewer; several roles may make the same
    one.  A value not in ``parts`` is whole on every chip.
    """

    graph: Graph
    parts: Mapping[str, I32]
    tensor: int
    first: int
    last: int

    def signature(self) -> str:
        """Hash of all that place and schedule see: equal stages have one program."""
        g, c = self.graph, self.graph.config
        keys = sorted({key for node in g.nodes for key in node.params.values()})
        seen: dict[str, Any] = {
            "nodes": g.nodes, "values": g.values, "output": g.output, "parts": self.parts, "tensor": self.tensor,
            "params": {key: g.params[key].shape for key in keys},
            "config": (c.heads, c.kv_heads, c.head_dim, c.vocab, c.context),
        }
        return hashlib.sha256(dump(seen).encode()).hexdigest()


@dataclass(frozen=True)
class Shards:
    """The stages of a split, in the order in which a token passes them."""

    split: Split
    stages: tuple[Stage, ...]

    def show(self) -> dict[str, Any]:
        """What a dump prints: per stage its layers, its nodes and the parts of its split values."""
        out: dict[str, Any] = {"split": self.split}
        for i, stage in enumerate(self.stages):
            out[f"stage {i}"] = f"layers {stage.first} to {stage.last} of the model"
            out[f"stage {i} nodes"] = stage.graph.nodes
            out[f"stage {i} parts"] = stage.parts
        return out


def alone(graph: Graph) -> Stage:
    """A whole graph as the one stage of one chip."""
    return Stage(routed(graph), {}, 1, 0, graph.config.layers - 1)
