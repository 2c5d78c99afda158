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
    words = {
        "level": graph.level, "output": graph.output, "config": asdict(graph.config),
        "nodes": [asdict(node) for node in graph.nodes], "values": [asdict(value) for value in graph.values.values()],
    }
    return words, {name: np.ascontiguousarray(graph.params[name]) for name in graph.params}


def unpack(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Graph:
    """The graph that was packed."""
    c = words["config"]
    config = ModelConfig(**{**c, "rope": Rope(**c["rope"]), "eos": tuple(c["eos"])})
    nodes = tuple(Node(**{**node, "inputs": tuple(node["inputs"])}) for node in words["nodes"])
    values = {value["name"]: Value(**value) for value in words["values"]}
    return Graph(words["level"], config, nodes, values, arrays, words["output"])
