"""Tensors in, operators out: one graph of per-token operators, shared by every later stage."""

from openlpu.graph.models import build

__all__ = ["build"]
