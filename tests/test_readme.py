"""The README's Python example runs, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openlpu.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_the_python_example_prints_an_answer(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 40


def test_run_prints_what_the_readme_shows(capsys):
    """All but the times of the wall clock, which are of one machine and one day."""
    shown = re.search(r"openlpu run\n\n```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert shown and main(["run"]) == 0
    fixed = [[line for line in text.splitlines() if " wall" not in line]
             for text in (shown.group(1), capsys.readouterr().out)]
    assert fixed[0] == fixed[1]
    assert fixed[1][-1] == "replayed     8 tokens on the chip model: the same tokens and logits, bit for bit"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8"))
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing, missing
