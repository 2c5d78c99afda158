"""Chip files: the bundled ones, a user's own, and files that say something openlpu cannot build for."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from random_models import BASE, LLAMA, random_graph, same, tokens

from openlpu._base.errors import Unsupported
from openlpu.arch.chip import load_chip
from openlpu.cli import main
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.chip import run as chip
from openlpu.target.ref import run as ref

TEXT = (files("openlpu.arch") / "chips" / "tiny.toml").read_text("utf-8")


def test_the_real_chip_is_the_published_one() -> None:
    c = load_chip("lpu-v1")
    assert (c.lanes, c.slices, c.groups, c.positions, len(c.queues)) == (320, 88, 11, 27, 144)
    assert c.slices * c.words_per_slice * c.lanes == 220 * 2**20


@pytest.mark.parametrize(
    "before, after, message",
    [
        ("superlanes = 16", "superlanes = 33", r"mine.toml, \[geometry\] superlanes: is 33; .* from 16 to 32"),
        ("superlanes = 16", "superlanes = 8", r"\[geometry\] superlanes: is 8"),
        ("lanes_per_superlane = 16", "lanes_per_superlane = 32", r"\[geometry\] lanes_per_superlane: is 32; .* 16"),
        ("slices_per_hemisphere = 20", "slices_per_hemisphere = 18", r"slices_per_hemisphere: .* a multiple of 4"),
        ("streams_per_direction = 32", "streams_per_direction = 16", r"streams_per_direction: is 16"),
        ("weight_streams = 16\n", "", r"mine.toml, \[geometry\] weight_streams: this field is missing"),
        ("banks = 2", "banks = 3", r"\[geometry\] banks: 4096 words do not divide into 3 banks"),
        ("accumulators = 64", "accumulators = true", r"\[mxm\] accumulators: is True"),
        ("read = 3", "read = 2.5", r"\[latency\] read: is 2.5"),
        ("read = 3", "reed = 3", r"\[latency\]: there is no field reed"),
        ("permute = 18", "permute = 0", r"\[latency\] permute: is 0"),
        ("clock_hz = 900_000_000", "", r"mine.toml, clock_hz: this field is missing"),
        ('name = "tiny"', "name = 3", r"mine.toml, name: a chip needs a name"),
        ("[queue]", "[queues]", r"mine.toml: there is no field queues"),
        ("[mxm]", "[[mxm]]", r"mine.toml, \[mxm\]: not a table"),
        ("[mxm]", "[mxm", r"mine.toml: not a TOML file"),
    ],
)
def test_a_bad_file_is_refused_by_file_and_field(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in TEXT
    (tmp_path / "mine.toml").write_text(TEXT.replace(before, after, 1))
    with pytest.raises(Unsupported, match=message):
        load_chip(str(tmp_path / "mine.toml"))


def test_an_unknown_chip_is_refused(tmp_path: Path) -> None:
    for name in ("huge", str(tmp_path / "absent.toml"), "../chips/tiny"):
        with pytest.raises(Unsupported, match=r"(unknown chip|there is no file) .*(?s:.)*lpu-v1, tiny or a .toml file"):
            load_chip(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"superlanes = 16": "superlanes = 32", "slices_per_hemisphere = 20": "slices_per_hemisphere = 16",
         "ifetch_bytes = 512": "ifetch_bytes = 1024"},
        {"superlanes = 16": "superlanes = 17", "banks = 2": "banks = 1", "accumulators = 64": "accumulators = 2",
         "ifetch_bytes = 512": "ifetch_bytes = 544", "queue_bytes = 2048": "queue_bytes = 2176"},
        {"mxm_planes_per_hemisphere = 1": "mxm_planes_per_hemisphere = 3", "read = 3": "read = 1",
         "write = 2": "write = 9", "vxm = 2": "vxm = 1", "vxm_special = 8": "vxm_special = 1"},
    ],
    ids=["512 lanes", "one bank", "latencies"],
)
def test_other_chips_give_the_reference_bits(tmp_path: Path, changes: dict[str, str]) -> None:
    text = TEXT
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "mine.toml").write_text(text)
    graph = random_graph(replace(BASE, layers=1, hidden=300), LLAMA, Scheme(kv_bits=16, outlier_share=0.1))
    ids = tokens(2, graph.config)
    got = chip.load(graph, chip=str(tmp_path / "mine.toml")).run([Chunk(0, 0, ids, every=True)])
    assert same(got, ref.load(graph).run([Chunk(0, 0, ids, every=True)]))


def test_compile_takes_a_file(models: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.toml").write_text(TEXT.replace('"tiny"', '"mine"'))
    assert main(["compile", str(models / "smollm"), "--chip", str(tmp_path / "mine.toml")]) == 0
    assert "on mine:" in capsys.readouterr().out
