"""A graph in the making and the tensors that it takes in; the operators that layers of all architectures share out."""

from __future__ import annotations

from openlpu.graph.ir import Builder
from openlpu.graph.parameters import Parameters


class Layers:
    """Each method appends operators and returns the name of the value they write."""

    def __init__(self, graph: Builder, params: Parameters) -> None:
        self.graph, self.params = graph, params

    def linear(self, where: str, source: str, x: str, size: int, *, bias: bool = False, name: str = "") -> str:
        """A matrix of ``size`` rows times a value, plus a bias where there is one."""
        params = {"weight": self.params.take(f"{source}.weight", size, self.graph.values[x].size)}
        if bias:
            params["bias"] = self.params.take(f"{source}.bias", size)
        return self.graph.add("linear", where, (x,), size, name=name, params=params)
