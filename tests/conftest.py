"""Fixtures every test may use: real models and texts where present, tiny models to break, golden texts."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from openlpu.schedule.program import Program
    from openlpu.schedule.tracks import Token

# NumPy's matrix products here are small: a pool of threads only gets in the way of other work on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden texts that tests compare with")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and texts beside the checkout; tests that need it skip without it."""
    folder = HERE.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared folder of real models beside the checkout")
    return folder


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of tiny models, one of each architecture, that ``make_golden.py`` wrote."""
    return HERE / "golden" / "models"


@pytest.fixture
def edited(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny model to break: ``edited("qwen2", hidden_act="gelu")`` sets fields of its config.json.

    A field set to ``...`` is removed.
    """

    def copy(name: str = "smollm", **fields: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(models / name, folder, ignore=shutil.ignore_patterns("golden.safetensors"))
        config = json.loads((folder / "config.json").read_text()) | fields
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return copy


@pytest.fixture(scope="session")
def program() -> Program:
    """A small model on a tiny chip: what pictures are drawn of."""
    from random_models import CASES, random_graph

    from openlpu.arch.chip import load_chip
    from openlpu.place.layout import place
    from openlpu.schedule.step import buckets, schedule

    graph = random_graph(*CASES["tied"])
    layout = place(graph, load_chip("tiny"))
    return schedule(graph, layout, buckets(layout.context))


@pytest.fixture(scope="session")
def token(program: Program) -> Token:
    """A token of it."""
    from openlpu.schedule.tracks import of_chip

    return of_chip(program, program.segments[0])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compares a text with ``tests/golden/<test file>/<test>.txt``; ``--update-golden`` writes it instead."""
    name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
    path = HERE / "golden" / request.path.stem / f"{name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: run pytest --update-golden, then read what it wrote"
        assert text == path.read_text(encoding="utf-8"), "if the change is meant: pytest --update-golden"

    return check


@pytest.fixture
def llama_bench(tmp_path: Path) -> Path:
    """An executable that answers like llama.cpp's ``llama-bench``, and notes what it was asked beside itself."""
    path = tmp_path / "llama-bench"
    path.write_text(f"#!{sys.executable}\n" + (HERE / "fake_llama_bench.py").read_text())
    path.chmod(0o755)
    return path
