"""The script that measures starting: that it runs, and that its account of memory adds up.  Never how fast."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "start.py"
MB = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is resident")
def test_times_and_memory_of_the_embedded_model():
    done = subprocess.run([sys.executable, str(SCRIPT), "demo", "--runs", "1"], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    times, folder, packed = done.stdout.splitlines()
    assert times.startswith("demo, 8 bits") and "first token" in times
    for line in (folder, packed):
        total, weights, kv, rest, before, first, peak = (
            float(number) * MB[unit] for number, unit in re.findall(r"([\d.]+) (kB|MB|GB)", line))
        assert total == pytest.approx(weights + kv + rest, rel=0.02) and weights > 3 and kv > 0
        assert 0 < before < first <= peak and total <= peak
