"""The house rules a machine can check: short files and functions, docstrings, one vocabulary, one arithmetic."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted((REPOSITORY / "src" / "openlpu").rglob("*.py"))
FORBIDDEN = re.compile(
    r"\b(TODO|FIXME|XXX|HACK|NotImplementedError|getenv|environ(?!\.setdefault))\b|# type: ignore"
    r"|/(home|root|tmp|Users)/"
)
# Their last bits change with the processor; TruePoint defines its own.
TRANSCENDENTAL = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "arctan", "arctan2", "sinh",
    "cosh", "tanh", "power", "pow", "cbrt", "hypot", "fma",
}
EXACT = ("arch", "place", "schedule", "target", "tokens")  # folders whose numbers reach a program or a token


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(REPOSITORY / "src" / "openlpu").parts


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(parts(p)))
def test_house_rules(path):
    text = path.read_text("utf-8")
    lines = text.splitlines()
    assert len(lines) <= 400, f"{len(lines)} lines"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what goes in and what comes out"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), "mutable globals"
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert isinstance(node, ast.ClassDef) or length < 60, f"{node.name} has {length} lines"
    found = [f"line {i}: {m.group()}" for i, line in enumerate(lines, 1) if (m := FORBIDDEN.search(line))]
    assert not found, found
    assert not re.search(r"(^|_)(utils?|new|v\d+|helpers?|misc)(_|$)", path.stem), "a name that says nothing"


@pytest.mark.parametrize("path", [p for p in FILES if parts(p)[0] in EXACT], ids=lambda p: "/".join(parts(p)))
def test_no_libm_where_bits_count(path):
    calls = [
        f"line {node.lineno}: {node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id in ("np", "numpy", "math") and node.attr in TRANSCENDENTAL
    ]
    assert not calls, calls


def test_every_public_function_is_documented():
    missing = []
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{'/'.join(parts(path))}: {node.name}")
    assert not missing, missing
