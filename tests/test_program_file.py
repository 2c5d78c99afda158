"""A program saved and loaded is the same; saved twice, the same bytes; damage is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chip_programs import claims_of, everything
from numpy.typing import NDArray

from openlpu._base import text
from openlpu._base.errors import ProgramError
from openlpu.place.emplace import Source
from openlpu.schedule.program import Program, Resident, Rows, Segment
from openlpu.schedule.program_file import load, save
from openlpu.target.chip.machine import resolve


def example() -> Program:
    board, words = everything()
    queues = board.queues()
    claims = claims_of(resolve(board.chip, queues), words)
    slices, addresses = (np.array(column, np.int32) for column in np.array(words[:8]).T)
    rows = Rows(slices.reshape(2, 4), addresses[:2], np.arange(512, dtype=np.int32).reshape(2, 256))
    origin = (1, "embed"), (7, "logits")
    segments = tuple(
        Segment(context, queues, {"x": rows, "logits": rows}, 100 + context, claims, origin)
        for context in (16, 64)
    )
    sources = Source("zeros"), Source("bytes", data=np.arange(512, dtype=np.uint8).reshape(2, 1, 256))
    resident = tuple(Resident(f"host.{i}", slices, addresses, source) for i, source in enumerate(sources))
    return Program(board.chip, resident, ("0", "1"), 4, 512, segments)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    program = example()
    save(program, tmp_path / "deep" / "folder")
    assert text.dump(load(tmp_path / "deep" / "folder")) == text.dump(program)


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    digests = [save(example(), tmp_path / name) for name in "ab"]
    assert digests[0] == digests[1]
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["manifest.json", "resident.safetensors", "segment-16.safetensors", "segment-64.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert save(replace(example(), vocab=511), tmp_path / "c") != digests[0]


def flip(data: bytes) -> bytes:
    changed: NDArray[np.uint8] = np.frombuffer(data, np.uint8).copy()
    changed[-1] ^= 1
    return changed.tobytes()


def test_damage_is_named(tmp_path: Path) -> None:
    save(example(), tmp_path)
    part, manifest = tmp_path / "segment-64.safetensors", tmp_path / "manifest.json"
    whole, text_ = part.read_bytes(), manifest.read_bytes()
    part.write_bytes(flip(whole))
    with pytest.raises(ProgramError, match=r"segment-64.safetensors: this file of the program differs"):
        load(tmp_path)
    part.unlink()
    with pytest.raises(ProgramError, match=r"segment-64.safetensors: this file of the program is missing"):
        load(tmp_path)
    part.write_bytes(whole)
    for data, message in ((b"{", "not a manifest"), (b"{}", "not in the format"), (None, "no program here")):
        if data is None:
            manifest.unlink()
        else:
            manifest.write_bytes(data)
        with pytest.raises(ProgramError, match=rf"manifest.json: .*{message}"):
            load(tmp_path)
    manifest.write_bytes(text_)
    load(tmp_path)
