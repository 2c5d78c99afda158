"""A graph in, JSON and arrays out; and back.  Parameters keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from openlpu.checkpoint.config import ModelConfig, Rope
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


def unpack(packed: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Graph:
    """The graph that was packed."""
    c = packed["config"]
    lists = {name: tuple(c.get(name, ())) for name in ("eos", "full_layers")}
    config = ModelConfig(**{**c, **lists, "rope": Rope(**c["rope"])})
    nodes = tuple(Node(**{**node, "inputs": tuple(node["inputs"])}) for node in packed["nodes"])
    values = {value["name"]: Value(**value) for value in packed["values"]}
    return Graph(packed["level"], config, nodes, values, arrays, packed["output"])
