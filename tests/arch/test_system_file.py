"""A system file is read strictly: what is wrong is named by file and field."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from openlpu._base.errors import Unsupported
from openlpu.arch.system import load_system
from openlpu.arch.system_file import system_names

NODE = (files("openlpu.arch") / "systems" / "node.toml").read_text("utf-8")


@pytest.mark.parametrize(("old", "new", "says"), [
    ("latency = 270", "latency = 252", r"links\.local\] latency: is 252: .* 228 cycles, between clocks 24 apart"),
    ("latency = 270", "", r"\[links\.local\] latency: this field is missing"),
    ("cycles = 24", "cycles = 0", r"\[links\.local\] cycles: is 0, not an integer from 1"),
    ("cycles = 24", "cycles = 23.6", r"\[links\.local\] cycles: is 23\.6"),
    ("sigma = 2.8", "sigma = -1", r"\[links\.local\] sigma: is -1"),
    ("mean = 216.7", "mean = 300", r"mean: the mean lies outside"),
    ("packet_bytes = 328", "packet_bytes = 319", r"a vector alone has 320 bytes"),
    ("epoch = 252", "epoch = true", r", epoch: is True"),
    ("chips = 8", "chips = 6", r"\[size\] chips: is 6"),
    ("chips = 8", "chips = 8\nnodes = 1", r"\[size\]: there is no field nodes"),
    ("[size]", "spare = 1\n[size]", r"there is no field spare"),
    ('topology = "node"', 'topology = "torus"', r"unknown topology 'torus'"),
    ('topology = "node"', "", r"topology: a system needs this field"),
    ("[links.local]", "[links.global]", r"\[links\]: there is no field global"),
    ("[links.local]", "[cables.local]", r"there is no field cables"),
    ('chip = "lpu-v1"', 'chip = "lpu-v9"', r"unknown chip 'lpu-v9'"),
    ('name = "node"', "name = node", r"not a TOML file"),
])
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in NODE
    path = tmp_path / "mine.toml"
    path.write_text(NODE.replace(old, new, 1), "utf-8")
    with pytest.raises(Unsupported, match=says):
        load_system(str(path))


def test_a_missing_class_of_links_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(NODE.partition("[links.local]")[0], "utf-8")
    with pytest.raises(Unsupported, match=r"mine\.toml, \[links\.local\]: this section is missing"):
        load_system(str(path))


def test_a_chip_with_too_few_links_is_refused(tmp_path: Path) -> None:
    chip = (files("openlpu.arch") / "chips" / "lpu_v1.toml").read_text("utf-8")
    (tmp_path / "small.toml").write_text(chip.replace("c2c_links = 16", "c2c_links = 4"), "utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(NODE.replace('"lpu-v1"', '"small.toml"'), "utf-8")
    with pytest.raises(Unsupported, match=r"topology: uses port 7; a lpu-v1 has ports 0 to 3"):
        load_system(str(path))


def test_a_users_own_system(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(NODE.replace('"node"', '"mine"', 1), "utf-8")
    assert load_system(str(path)).spec.name == "mine" and load_system(str(path), 4).chips == 4


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(Unsupported, match="dragonfly, groqrack, lpx, node, quadfour, rack, scale-out, single, tiny-"):
        load_system("torus")


@pytest.mark.parametrize("name", system_names())
def test_every_file_bears_its_name(name: str) -> None:
    assert load_system(name).spec.name == name


@pytest.mark.parametrize("name", system_names())
def test_every_number_says_where_it_is_from(name: str) -> None:
    """In its own comment, in one above that names it after "also", or where the same number stood before."""
    text = (files("openlpu.arch") / "systems" / f"{name.replace('-', '_')}.toml").read_text("utf-8")
    said, numbers = set[str](), 0
    for section in text.split("\n\n"):
        also = set[str]()
        for line in section.splitlines():
            entry, _, comment = (part.strip() for part in line.partition("#"))
            if not re.match(r"\w+ = \d", entry):
                continue
            if any(mark in comment for mark in ("chosen", "[S", "ISCA", "[N]", "brief")):
                said.add(entry)
                also |= set(re.findall(r"\w+", comment.partition("also ")[2].partition(":")[0]))
            numbers += 1
            assert {entry, entry.split()[0]} & (said | also) or "Every number is chosen" in text, f"{line}: from where?"
    assert numbers
