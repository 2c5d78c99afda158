"""Bytes do not depend on the processor: the same hashes with NumPy's vector paths switched off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import __cpu_features__ as features  # pyright: ignore

HASHES = """
import hashlib, sys
from pathlib import Path
from openlpu.arch.truepoint import conformance
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.compile import runners
from openlpu.numerics import integer as numerics
from openlpu.numerics.scheme import Scheme
from openlpu.target.ref.run import trace
total = hashlib.sha256()
for case in conformance.cases():
    for value in case.outputs.values():
        total.update(value.tobytes())
numerics.TEXTS, numerics.LENGTH, numerics.PROBE = 4, 24, 8
schemes = [*(Scheme(weight_bits=bits) for bits in (8, 6, 4.5)), Scheme(prune="2:4"), Scheme(prune="blocks:0.5")]
for scheme in schemes:
    graph = numerics.integer(build(load(Path(sys.argv[1]))), scheme, runners())
    for name in sorted(graph.params):
        total.update(name.encode() + graph.params[name].tobytes())
    total.update(trace(graph, list(range(20)), lambda node, value: None).tobytes())
print(total.hexdigest())
"""


def digest(model: Path, disabled: list[str]) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if disabled:
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(disabled)
        environment["OPENBLAS_CORETYPE"] = "Nehalem"  # the matrix product's kernels as well
    done = subprocess.run(
        [sys.executable, "-c", HASHES, str(model)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def optional() -> list[str]:
    """Features that this processor has and that this NumPy can be told not to use."""
    from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched  # pyright: ignore

    return [name for name in dispatched if features.get(name)]


def test_same_bytes_without_vector_features(models: Path) -> None:
    wide = [name for name in optional() if "AVX512" in name or name == "X86_V4"]
    every = optional()
    if not every:
        pytest.skip("this NumPy dispatches on no feature of this processor")
    model = models / "qwen2"
    choices = [choice for choice in (wide, every) if choice]
    assert {digest(model, choice) for choice in choices} == {digest(model, [])}
