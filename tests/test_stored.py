"""Models stored for this processor: the same parameters, the same bits, before and after the copy to huge pages."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from random_models import CASES, random_graph, same, tokens

import openlpu
from openlpu import compile as pipeline
from openlpu._base.errors import BadRequest, ProgramError
from openlpu.target.base import Chunk
from openlpu.target.cpu import path as paths
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu import stored
from openlpu.target.cpu.plan import Planner
from openlpu.target.ref import run as ref


@pytest.fixture
def small(tmp_path):
    """The embedded model, stored."""
    folder = tmp_path / "demo"
    compiled = pipeline.compile("demo", context=64)
    pipeline.store(compiled, folder, threads=[1])
    return compiled, folder


@pytest.mark.parametrize(
    "name", ["tied", "untied", "odd sizes", "every bias", "blocks", "tied blocks", "pairs", "tiles", "odd tiles"]
)
@pytest.mark.parametrize("path", paths.available())
def test_parameters_come_back(tmp_path, name, path):
    graph = random_graph(*CASES[name])
    chosen, plan = paths.choose(path), Planner(graph, 64).plan()
    stored.save(tmp_path, graph, stored.build(plan, chosen, graph.params), chosen, plan, {})
    back = stored.read(tmp_path)
    assert set(back.params) == set(graph.params)
    for key, array in graph.params.items():
        got = back.params[key]
        assert got.dtype == array.dtype and np.array_equal(got, array), key
    ids = tokens(20, graph.config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])
    for threads in (1, 2):
        executable = cpu.load(back, threads=threads, path=path)
        while executable.moving:
            assert same(executable.run([Chunk(0, 0, ids, every=True)]), want)
            time.sleep(0.001)
        assert same(executable.run([Chunk(0, 0, ids, every=True)]), want)
        executable.close()


def test_another_path_repacks(tmp_path):
    graph = random_graph(*CASES["blocks"])
    chosen, plan = paths.choose("auto"), Planner(graph, 64).plan()
    stored.save(tmp_path, graph, stored.build(plan, chosen, graph.params), chosen, plan, {})
    ids = tokens(5, graph.config)
    executable = cpu.load(stored.read(tmp_path), threads=1, path="portable")
    assert same(executable.run([Chunk(0, 0, ids)]), ref.load(graph).run([Chunk(0, 0, ids)]))
    executable.close()


def test_run_from_a_folder(small):
    compiled, folder = small
    answers = []
    for source, target in ((folder, "cpu"), (folder, "ref"), ("demo", "ref")):
        with openlpu.load(source, target=target, context=64) as model:
            answer = model.generate("KING:", max_tokens=5).finish()
            answers.append((answer.text, answer.logits_sha256, model.fingerprint))
    assert len(set(answers)) == 1


def test_code_is_not_made_again(small, monkeypatch):
    _, folder = small
    monkeypatch.setattr(cpu.kernels, "module", lambda *_: pytest.fail("machine code was generated again"))
    with openlpu.load(folder, threads=1) as model:
        model.generate("KING:", max_tokens=2).finish()


def test_context(small):
    _, folder = small
    with openlpu.load(folder, context=16) as model:
        assert model.generate("KING:", max_tokens=40).finish().finish_reason == "context"
    with pytest.raises(BadRequest, match="compiled for 64 positions"):
        openlpu.load(folder, context=65)


def test_refused_folders(small):
    compiled, folder = small
    with pytest.raises(ProgramError, match="something here already"):
        pipeline.store(compiled, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"truepoint": 0}))
    with pytest.raises(ProgramError, match="numerics version 0"):
        openlpu.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ProgramError, match="manifest is missing"):
        openlpu.load(folder)


def test_damaged_files(small):
    _, folder = small
    (folder / "weights.bin").write_bytes(b"short")
    with pytest.raises(ProgramError, match="damaged"):
        openlpu.load(folder)
