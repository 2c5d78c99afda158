"""Tensors in, operators out: one graph of per-token operators, shared by every later stage."""
