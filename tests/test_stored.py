"""Models stored for this processor: the same parameters, the same bits, before and after the copy to huge pages."""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
from random_models import CASES, MIXTURES, random_graph, same, tokens

import openlpu
from openlpu import compile as pipeline
from openlpu._base.errors import BadRequest, ProgramError
from openlpu.graph.shapes import shape
from openlpu.numerics.draw import draw
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import mover, stored
from openlpu.target.cpu import path as paths
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu.image import build
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
    "name",
    ["tied", "untied", "odd sizes", "every bias", "blocks", "tied blocks", "pairs", "tiles", "odd tiles", "experts"],
)
@pytest.mark.parametrize("path", paths.available())
def test_parameters_come_back(tmp_path, name, path):
    graph = random_graph(*(CASES | MIXTURES)[name])
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


def test_a_changed_byte_is_found_where_it_could_crash(small):
    """Graph, places, machine code and tokenizer; only the weights are no more than measured."""
    _, folder = small
    for path in [folder / "graph.json", folder / "stored.json", folder / "tokenizer.json", *folder.glob("code-*.o")]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(ProgramError, match=f"{path.name}: this file is damaged"):
            openlpu.load(folder)
        path.write_bytes(whole)
    openlpu.load(folder).close()


@pytest.mark.parametrize("change", [
    {"files": None}, {"sha256": 3}, {"scheme": {"bytes": 1}}, {"scheme": []}, {"format": "openlpu stored 1"},
])
def test_a_manifest_of_another_version_is_refused(small, change):
    _, folder = small
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ProgramError, match=r"manifest\.json.*\n.*compile the model again"):
        openlpu.load(folder)


def test_packed_bytes_are_those_of_their_format(golden):
    """What stored files mean.  When this changes, ``stored.FORMAT`` needs a new number, or old folders run wrong."""
    config = replace(shape("smollm2-135m", 64), layers=1, vocab=64)
    lines = [stored.FORMAT]
    for scheme in (Scheme(), Scheme(weight_bits=4.5), Scheme(prune="2:4"), Scheme(prune="blocks:0.5")):
        graph = draw(config, scheme)
        for name, (_, path) in paths.known("x86_64").items():
            made = build(Planner(graph, 64).plan(), path, graph.params)
            lines.append(f"{scheme}, {name}: {hashlib.sha256(made.streamed).hexdigest()}")
    golden("\n".join(lines) + "\n")


def test_a_copy_that_appears_between_two_looks_is_not_lost():
    class Late(mover.Mover):
        """Its copy is complete right after the first look."""

        @property
        def _copy(self):
            found, self.made = self.made, "copy"
            return found

        @_copy.setter
        def _copy(self, value):
            self.made = value

    late = Late(None)
    assert (late.finished(), late.finished()) == (None, "copy")


def test_without_room_for_a_copy_the_map_stays(small, monkeypatch):
    compiled, folder = small

    def full(size):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mover, "Arena", full)
    ids = tokens(9, compiled.graph.config)
    want = ref.load(compiled.graph).run([Chunk(0, 0, ids)])
    executable = cpu.load(stored.read(folder), context=64, threads=1)
    for _ in range(3):
        assert same(executable.run([Chunk(0, 0, ids)]), want)
    executable._mover._thread.join()
    assert executable.moving
    executable.close()


@pytest.mark.parametrize("name", ["tied", "untied", "every bias", "blocks", "tied blocks", "pairs", "tiles"])
def test_an_executable_gives_its_parameters_back(name):
    graph = random_graph(*CASES[name])
    for path in paths.available():
        executable = cpu.load(graph, threads=1, path=path)
        assert list(executable.params) == list(graph.params)
        for key, array in graph.params.items():
            got = executable.params[key]
            assert got.dtype == array.dtype and np.array_equal(got, array), key
        executable.close()


def test_a_loaded_model_holds_its_weights_once():
    compiled = pipeline.compile("demo")
    known, matrix = compiled.fingerprint(), weakref.ref(compiled.graph.params["layers.1.mlp.up.codes"])
    with pipeline.start(compiled, "cpu") as model:
        del compiled
        assert matrix() is None, "the integer graph's matrices are still there"
        assert model.fingerprint == known
