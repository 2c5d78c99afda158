"""Any value of the pipeline in, stable text out: the one printer behind ``--dump``, goldens and hashes.

Equal values give equal text on every machine: mappings keep their order, arrays appear as dtype, shape and
content hash, floats as Python's shortest exact form, and nothing prints an address or a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


PLAIN = frozenset((str, int, float, bool, type(None)))


def dump(value: Any) -> str:
    """The text of a value, a line per field, mapping entry or element that has parts of its own."""
    return "\n".join(_lines(value, "")) + "\n"


def array(value: np.ndarray) -> str:
    """``int8[64,172] sha256:…``: little-endian bytes in C order, so one hash per content, not per layout."""
    import numpy as np

    plain = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    digest = hashlib.sha256(plain.reshape(-1).view(np.uint8).data).hexdigest()
    shape = ",".join(map(str, value.shape))
    return f"{value.dtype.name}[{shape}] sha256:{digest}"


def atom(value: Any) -> str:
    """One-line form of a value without parts worth a line; dataclasses read like their constructor."""
    if type(value) in PLAIN:  # most are
        return repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f"{name}={atom(getattr(value, name))}" for name in _shown(type(value)))
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {atom(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(atom, value)) + ")"
    if isinstance(value, PurePath):
        return value.name  # where a file lies is no part of what it is
    if hasattr(value, "dtype"):  # an array or a NumPy scalar, without importing NumPy to ask
        numeric: Any = value
        return array(numeric) if numeric.shape else repr(numeric.item())
    assert value is None or isinstance(value, (str, int, float, bool)), f"no stable text for {type(value)}"
    return repr(value)


def _lines(value: Any, pad: str) -> Iterator[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{pad}{type(value).__name__}"
        for name in _shown(type(value)):
            yield from _named(name, getattr(value, name), pad + "  ")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(str(key), item, pad)
    elif isinstance(value, (tuple, list)):
        yield from (pad + atom(item) for item in value)
    else:
        yield pad + atom(value)


@cache
def _shown(kind: type) -> tuple[str, ...]:
    """Names of the fields of a dataclass that are printed."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.repr)


def _named(name: str, value: Any, pad: str) -> Iterator[str]:
    """``name: value`` on a line, or a heading and the parts below it when there are several."""
    if isinstance(value, (Mapping, tuple, list)) and any(map(_has_parts, _items(value))):
        yield f"{pad}{name}:"
        yield from _lines(value, pad + "  ")
    else:
        yield f"{pad}{name}: {atom(value)}"


def _items(value: Mapping[Any, Any] | tuple[Any, ...] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else list(value)


def _has_parts(value: Any) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(value, "dtype") or isinstance(value, (Mapping, tuple, list))
