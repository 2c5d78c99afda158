"""The stable printer, the registry and the units: one text per value, on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from openlpu._base import units
from openlpu._base.errors import Unsupported
from openlpu._base.registry import Registry
from openlpu._base.text import atom, dump


@dataclass(frozen=True)
class Leaf:
    name: str
    size: int
    secret: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Tree:
    title: str
    leaves: tuple[Leaf, ...]
    params: dict[str, np.ndarray]
    path: Path


def test_a_dump_has_a_line_per_part_and_hashes_arrays():
    codes = np.arange(6, dtype=np.int16).reshape(2, 3)
    tree = Tree("t", (Leaf("a", 1, 9), Leaf("b", 2)), {"codes": codes}, Path("/somewhere/else/model"))
    digest = hashlib.sha256(codes.tobytes()).hexdigest()
    assert dump(tree) == (
        "Tree\n  title: 't'\n  leaves:\n    Leaf(name='a', size=1)\n    Leaf(name='b', size=2)\n"
        f"  params:\n    codes: int16[2,3] sha256:{digest}\n  path: model\n"
    )


def test_equal_content_has_equal_text_whatever_its_layout():
    x = np.arange(12, dtype="<f4").reshape(3, 4)
    assert atom(x) == atom(np.asfortranarray(x)) == atom(x.astype(">f4")) == atom(np.repeat(x, 2, axis=0)[::2])
    assert atom(x) != atom(x.reshape(4, 3))
    assert atom(np.float32(0.1)) == "0.10000000149011612" and atom(np.zeros((0, 2))).startswith("float64[0,2]")


def test_what_has_no_stable_text_is_refused():
    with pytest.raises(AssertionError, match="no stable text for"):
        dump({"x": object()})


def test_registry_imports_lazily_and_lists_what_it_knows():
    registry = Registry("tool", {"hash": "hashlib:sha256", "gone": "no_such_module_here:thing"})
    assert registry.get("hash") is hashlib.sha256 and list(registry) == ["hash", "gone"]
    with pytest.raises(Unsupported, match=r"unknown tool 'saw'\n.*hash, gone"):
        registry.get("saw")
    with pytest.raises(Unsupported, match=r"needs the module no_such_module_here.*\n.*hash"):
        registry.get("gone")


def test_every_number_says_its_unit():
    assert [units.wall(s) for s in (12.345, 0.00421, 0.000813)] == ["12.3 s wall", "4.21 ms wall", "813 µs wall"]
    assert [units.wall(s) for s in (1234.5, 0.9996)] == ["1,234 s wall", "1,000 ms wall"]
    assert units.cycles(45120) == "45,120 cycles"
    assert [units.size(n) for n in (7, 1040, 6.8e6, 2.5e12)] == ["7 B", "1.04 kB", "6.8 MB", "2.5 TB"]
    values = [5, 1, 4, 2, 3]
    assert [units.percentile(values, p) for p in (1, 50, 99, 100)] == [1, 3, 5, 5]
    assert units.percentile([], 50) == 0.0
