"""A graph in, JSON and arrays out; and back.  Parameters keep their names.

Without the arrays, their types and shapes make the same graph with parameters that take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from openlpu.checkpoint.config import ModelConfig, Rope
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node, Value


def pack(graph: Graph) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What :func:`unpack` makes the same graph of."""
    return words(graph), {name: np.ascontiguousarray(graph.params[name]) for name in graph.params}


def words(graph: Graph) -> dict[str, Any]:
    """Everything but the parameters."""
    return {
        "level": graph.level, "output": graph.output, "config": asdict(graph.config),
        "nodes": [asdict(node) for node in graph.nodes], "values": [asdict(value) for value in graph.values.values()],
    }


def shapes(graph: Graph) -> dict[str, list[Any]]:
    """Type and shape of each parameter, by name in the graph's order: ``["|i8", [64, 172]]``."""
    return {name: [array.dtype.str, list(array.shape)] for name, array in graph.params.items()}


def hollow(packed: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters of these :func:`shapes`: one zero seen from everywhere."""
    return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (dtype, shape) in packed.items()}


def unpack(packed: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Graph:
    """The graph that was packed."""
    c = packed["config"]
    lists = {name: tuple(c.get(name, ())) for name in ("eos", "full_layers")}
    kind = EncoderConfig if "activation" in c else ModelConfig
    config = kind(**{**c, **lists, "rope": Rope(**c["rope"])})
    nodes = tuple(Node(**{**node, "inputs": tuple(node["inputs"])}) for node in packed["nodes"])
    values = {value["name"]: Value(**value) for value in packed["values"]}
    return Graph(packed["level"], config, nodes, values, arrays, packed["output"])
