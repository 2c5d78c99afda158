"""Conformance vectors: pinned hashes, an implementation that differs is caught, every target passes every graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openlpu._base.errors import NumericsError
from openlpu.arch.truepoint import conformance
from openlpu.numerics.conformance import GraphCase, graph_cases, refused_cases, spared_case
from openlpu.target import TARGETS
from openlpu.target.base import Chunk
from openlpu.target.ref.run import trace

CASES = list(graph_cases())
INT_OPERATORS = {"embed", "quantize", "rms", "headnorm", "linear", "rope", "attention", "silu_mul", "add", "mul",
                 "route", "select", "mix"}


def reference(op: str, inputs: conformance.Tensors) -> conformance.Tensors:
    return conformance.OPERATIONS[op](inputs)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    conformance.export(folder)
    return folder


def test_exported_files_are_pinned(vectors: Path, golden: Callable[[str], None]) -> None:
    golden((vectors / "index.json").read_text("utf-8"))


def test_the_reference_passes(vectors: Path) -> None:
    assert conformance.check(vectors, reference) == []


def test_every_operation_has_cases_and_finite_edges() -> None:
    made = conformance.cases()
    assert {case.op for case in made} == set(conformance.OPERATIONS)
    assert all(np.isfinite(v).all() for case in made for v in case.outputs.values())


@pytest.mark.parametrize("op", list(conformance.OPERATIONS))
def test_one_wrong_bit_is_caught(vectors: Path, op: str) -> None:
    def nudged(name: str, inputs: conformance.Tensors) -> conformance.Tensors:
        outputs = dict(reference(name, inputs))
        if name == op:
            word, value = next(iter(outputs.items()))
            flipped = value.copy()
            flipped.reshape(-1)[-1:].view(np.uint8)[0] ^= 1
            outputs[word] = flipped
        return outputs

    wrong = conformance.check(vectors, nudged)
    assert wrong and all(name.startswith(f"{op}.") for name in wrong)


def test_an_altered_file_is_refused(vectors: Path, tmp_path: Path) -> None:
    for file in vectors.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "exp.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "exp.safetensors").write_bytes(data)
    with pytest.raises(NumericsError, match="exp.safetensors"):
        conformance.check(tmp_path, reference)


def test_graphs_use_every_integer_operator() -> None:
    assert {node.op for case in CASES for node in case.graph.nodes} == INT_OPERATORS


def test_graph_logits_are_pinned(golden: Callable[[str], None]) -> None:
    golden("".join(f"{case.name} {hashlib.sha256(expected(case).tobytes()).hexdigest()}\n" for case in CASES))


RUNS = [(target, case) for case in [*CASES, spared_case()] for target in TARGETS]


@pytest.mark.parametrize(("target", "case"), RUNS, ids=lambda value: getattr(value, "name", value))
def test_every_target_passes(target: str, case: GraphCase) -> None:
    tokens = case.tokens[: CHIP_TOKENS if "kv8" in case.name else 24] if target == "chip" else case.tokens
    executable = TARGETS.get(target)(case.graph, slots=1, context=case.graph.config.context)
    try:
        (logits,) = executable.run([Chunk(0, 0, tokens, every=True)])
    finally:
        executable.close()
    assert conformance.same_bits(logits, expected(case)[: len(tokens)])


REFUSALS = [(target, case) for case in refused_cases() for target in TARGETS]


@pytest.mark.parametrize(("target", "case"), REFUSALS, ids=lambda value: getattr(value, "name", value))
def test_targets_refuse(target: str, case: GraphCase) -> None:
    executable = TARGETS.get(target)(case.graph, slots=1, context=case.graph.config.context)
    try:
        with pytest.raises(NumericsError):
            executable.run([Chunk(0, 0, case.tokens)])
    finally:
        executable.close()


CHIP_TOKENS = 259  # into the second block of positions; the cycle-exact chip takes its time


def expected(case: GraphCase) -> np.ndarray:
    return trace(case.graph, case.tokens, lambda node, value: None)
