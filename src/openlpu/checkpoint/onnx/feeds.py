"""What each input of a decoder's graph is for in, arrays for a window of tokens out.

The names of a graph's inputs are its interface, so they are read here; the names of its nodes are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openlpu._base.errors import Unsupported
from openlpu.checkpoint.onnx.file import OnnxGraph, Port

# A part of a name, the rank, and what the input then is; the first that fits counts.
_ROLES = (
    ("mask", 2, "mask"), ("mask", 4, "mask"), ("position", 1, "positions"), ("position", 2, "positions"),
    ("write_ind", 1, "start"), ("start", 1, "start"), ("nonpad", 1, "length"), ("seqlen", 1, "length"),
    ("seq_len", 1, "length"), ("length", 1, "length"), ("", 2, "tokens"),
)
_KNOWN = "input_ids, position_ids, attention_mask, a key and a value cache per layer, write_indices, nonpad_kv_seqlen"


@dataclass(frozen=True)
class Interface:
    """The inputs of a decoder by what they are for; ``caches`` are float [1, G, positions, D]."""

    roles: tuple[tuple[Port, str], ...]
    tokens: str
    caches: tuple[Port, ...]

    @property
    def slots(self) -> int:
        """Positions of a cache of fixed size; 0 where caches grow."""
        return next((size for port in self.caches if isinstance(size := port.shape[2], int)), 0)

    def window(self, most: int) -> int:
        """How many tokens go in at once: ``most``, or what the graph is fixed to."""
        size = next(port.shape[1] for port, role in self.roles if role == "tokens")
        return size if isinstance(size, int) else most

    def feeds(
        self, tokens: Sequence[int], past: int = 0, caches: Sequence[np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """All inputs for ``tokens`` behind ``past`` others, whose caches are zero unless given."""
        given = [np.zeros(self._cache(port, past), port.dtype) for port in self.caches] if caches is None else caches
        found = {port.name: array for port, array in zip(self.caches, given, strict=True)}
        count = len(tokens)
        made = {
            "tokens": np.asarray([tokens]), "start": np.array([past]), "length": np.array([past + count]),
            "positions": np.arange(past, past + count)[None],
        }
        for port, role in self.roles:
            array = _mask(past, count, port) if role == "mask" else made[role]
            found[port.name] = (array.reshape(-1) if len(port.shape) == 1 else array).astype(port.dtype)
        return found

    def _cache(self, port: Port, past: int) -> tuple[int, ...]:
        heads, _, size = port.shape[1:]
        assert isinstance(heads, int) and isinstance(size, int), "checked when the interface was read"
        return (1, heads, self.slots or past, size)


def read(graph: OnnxGraph) -> Interface:
    """What the inputs are for; :class:`Unsupported` naming one that no decoder openlpu knows has."""
    caches = tuple(port for port in graph.inputs if port.dtype.kind == "f" and _role(port) != "mask")
    for port in caches:
        shape = port.shape
        if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise _unknown(graph, port, "is no cache: those are [batch, heads, positions, channels]")
    roles = []
    for port in graph.inputs:
        if port not in caches:
            role = _role(port)
            if not role:
                raise _unknown(graph, port, "is none of a decoder's inputs")
            roles.append((port, role))
    tokens = [port.name for port, role in roles if role == "tokens"]
    if len(tokens) != 1:
        what = f"{len(tokens)} inputs for token ids, where a decoder has one [batch, tokens]"
        raise Unsupported(what, where=str(graph.path), fix=f"inputs are {_KNOWN}")
    for port, _ in roles:
        if isinstance(port.shape[0], int) and port.shape[0] != 1 and len(port.shape) > 1:
            raise _unknown(graph, port, f"has a batch of {port.shape[0]}, where 1 is wanted")
    return Interface(tuple(roles), tokens[0], caches)


def _role(port: Port) -> str:
    name, rank = port.name.lower(), len(port.shape)
    for part, size, role in _ROLES:
        if part in name and rank == size and (port.dtype.kind in "iub" or role == "mask"):
            return role
    return ""


def _unknown(graph: OnnxGraph, port: Port, what: str) -> Unsupported:
    shown = ", ".join(str(size or "?") for size in port.shape)
    return Unsupported(f"the input '{port.name}' {port.dtype}[{shown}] {what}", where=str(graph.path),
                       fix=f"inputs are {_KNOWN}")


def _mask(past: int, count: int, port: Port) -> np.ndarray:
    """The positions there are [1, positions], or what each token sees [1, 1, T, positions]: truths, or 0 and -inf."""
    width = port.shape[-1]
    at = np.arange(width if isinstance(width, int) else past + count)
    if len(port.shape) == 2:
        return (at < past + count)[None]
    seen = at <= np.arange(past, past + count)[:, None]
    return (np.where(seen, 0.0, -np.inf) if port.dtype.kind == "f" else seen)[None, None]
