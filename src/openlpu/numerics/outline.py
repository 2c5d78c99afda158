"""A shape in, the integer graph of a model of that shape without weights out: what is compiled from sizes alone.

A program depends on shapes and numerics only.  Parameters are one number seen from everywhere: they have shapes and
types and take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.ir import Graph
from openlpu.graph.models import of_tensors, shapes
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme


def outline(config: ModelConfig, scheme: Scheme | None = None) -> Graph:
    """The integer graph of a shape under a scheme (None: the default), its parameters without memory."""
    params = {name: np.broadcast_to(np.float32(0), size) for name, size in shapes(config).items()}
    return lower(of_tensors(config, params), scheme or Scheme(), _codes)


def _codes(graph: Graph, weight: str, gain: str | None) -> Mapping[str, np.ndarray]:
    """Codes of a weight, whatever the gain: 8 bits, which every chip holds."""
    shape = graph.params[weight].shape
    return {"codes": np.broadcast_to(np.int8(0), shape), "scale": np.broadcast_to(np.float32(1), shape[:1])}
