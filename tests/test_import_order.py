"""`ls src/openlpu` is the architecture: a folder imports only from folders that sort before it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "src" / "openlpu"
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}


def imported(tree: ast.AST) -> list[list[str]]:
    """The parts after ``openlpu`` of every module the tree imports, wherever the import stands."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "openlpu"]


def wrong(source: str, place: tuple[str, ...]) -> list[str]:
    """The imports that a file at ``place`` (parts below the package) may not have."""
    found = []
    for parts in imported(ast.parse(source)):
        top = parts[0] if parts else ""
        target_of = place[1] if place[0] == "target" and len(place) > 2 else ""
        cousin = top == "target" and target_of and parts[1:] and parts[1] not in ("base", target_of)
        if top not in FOLDERS or top > place[0] or cousin:
            found.append(f"{'/'.join(place)} imports openlpu.{'.'.join(parts)}")
    return found


def test_folders_import_only_from_folders_before_them():
    bad = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        bad += wrong(path.read_text("utf-8"), path.relative_to(ROOT).parts)
    assert not bad, bad


def test_the_rule_sees_what_it_forbids():
    assert wrong("from openlpu.tokens.engine import Engine", ("graph", "ir.py"))
    assert wrong("def f():\n    import openlpu.compile", ("tokens", "engine.py"))
    assert wrong("from openlpu import compile", ("tokens", "engine.py"))
    assert wrong("from openlpu.target.ref import run", ("target", "cpu", "run.py"))
    assert not wrong("from openlpu.target.base import Chunk", ("target", "cpu", "run.py"))
    assert not wrong("import openlpu._base.errors", ("arch", "chip.py"))
