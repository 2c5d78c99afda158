"""The script that writes docs/peers.md: one run against a stand-in, and the page made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "peers.py"


def test_every_file_becomes_a_row(llama_bench: Path, tmp_path: Path):
    models, page = tmp_path / "models", tmp_path / "peers.md"
    models.mkdir()
    for file in ("demo-Q8_0.gguf", "demo-Q5_1.gguf"):  # nothing of ours is beside Q5_1
        (models / file).touch()
    command = [sys.executable, str(SCRIPT), str(models), "--llama-bench", str(llama_bench), "--threads", "1",
               "--pairs", "2", "--llama-cpp", "llama.cpp b7", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["demo Q8_0.gguf threads=1"]
    text = page.read_text("utf-8")
    (result,) = [json.loads(line) for line in (models / "results.jsonl").read_text().splitlines()]
    peer, ours = result["said"]["against"][0]["measured"], result["said"]["measured"]
    ratio = peer["decode"]["ratio"]
    cells = f"| 32,000 | {ours['decode']['tokens_per_s']:,.0f} | {ratio['median']:.2f} "
    assert "## demo" in text and "| llama-bench | Q8_0 | 1 |" in text and cells in text
    assert "llama.cpp b7" in text and text.count("\n| 8 | 1 |") == 2  # prefill and decode beside the bounds
    subprocess.run([*command, "--only", "none"], capture_output=True, check=True)
    assert page.read_text("utf-8") == text


def test_a_run_that_fails_is_named_and_the_others_go_on(llama_bench: Path, tmp_path: Path):
    models, page = tmp_path / "models", tmp_path / "peers.md"
    models.mkdir()
    for file in ("demo-Q8_0.gguf", "demo-openvino-int8"):
        (models / file).touch()
    command = [sys.executable, str(SCRIPT), str(models), "--llama-bench", str(llama_bench), "--python", "/no/python",
               "--threads", "1", "--pairs", "1", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed: demo openvino-int8 threads=1" in done.stderr
    assert "/no/python" in done.stderr and page.read_text("utf-8").count("| llama-bench |") == 1
