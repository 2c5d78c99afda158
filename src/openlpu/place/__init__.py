"""Tensors in; slices, rows and lifetimes out."""
