"""The examples in ``docs/`` print what the pages say they print."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from openlpu.cli import main

SOURCE = Path(__file__).resolve().parents[1] / "src" / "openlpu"
PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", [p for p in PAGES if ">>> " in p.read_text("utf-8")], ids=lambda p: p.stem)
def test_examples_print_what_the_page_says(page: Path) -> None:
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried and not failed


def test_the_worked_example_is_what_the_tool_prints(tmp_path: Path, capsys, request: pytest.FixtureRequest) -> None:
    """The demo's first bucket on the page about scheduling; ``--update-golden`` writes it."""
    assert main(["compile", "demo", "-o", str(tmp_path / "demo")]) == 0
    capsys.readouterr()
    assert main(["show", str(tmp_path / "demo")]) == 0
    first = capsys.readouterr().out.partition("\n\ncontext 512")[0] + "\n"
    page = next(p for p in PAGES if p.stem == "08-schedule")
    text = page.read_text("utf-8")
    if request.config.getoption("--update-golden"):
        text = re.sub(r"(first bucket:\n\n```text\n).*?```", lambda found: f"{found[1]}{first}```", text, flags=re.S)
        page.write_text(text, "utf-8")
    assert f"```text\n{first}```" in text, "if the change is meant: pytest --update-golden"


def test_every_file_is_in_the_table_of_its_folder_s_page() -> None:
    """And every file that a table names is there; ``*`` stands for a file of each kind."""
    files = {path.relative_to(SOURCE) for kind in ("*.py", "*.toml", "*.js", "*.css", "*.html")
             for path in SOURCE.rglob(kind) if path.name != "__init__.py"}
    tables: dict[str, set[str]] = {}  # page, without its number: what the first cells of its rows name
    for page in PAGES:
        cells = [line.split("|")[1:3] for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
        tables[re.sub(r"^\d+-", "", page.stem)] = set(re.findall(r"`([\w./*]+)`", " ".join(map("".join, cells))))
    for path in sorted(files):
        folder, *inside = path.parts
        about = [page for page in tables if page in inside or page.partition("-")[0] == folder.lstrip("_")]
        named = {name for page in (about if inside else ["README"]) for name in tables[page]}
        assert any(path.match(name.removeprefix("../")) for name in named), f"no page has a row for {path}"
    for page, named in tables.items():
        missing = [name for name in named if name.endswith((".py", ".js", ".html"))
                   and not any(path.match(name.removeprefix("../")) for path in files)]
        assert not missing, f"{page}: {missing}"
