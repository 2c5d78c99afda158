"""Llama 2 and 3, SmolLM (its checkpoints say ``llama``): the plain decoder."""

from __future__ import annotations

from openlpu.graph.decoder import Variant

VARIANT = Variant()
