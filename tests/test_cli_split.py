"""A model over several chips as a user compiles, looks at and verifies it; what cannot be is said in one error."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from openlpu import cli_split
from openlpu._base.errors import ProgramError, Unsupported
from openlpu.arch.system import load_system
from openlpu.cli import main
from openlpu.compile import compile as prepare
from openlpu.partition.shard import TENSOR
from openlpu.partition.split import EXCHANGES, Split
from openlpu.schedule import bundle
from openlpu.schedule.search import AIMS, CHIPS, LATENCY, THROUGHPUT, Choice, Wanted, search, splits
from openlpu.target import TARGETS
from openlpu.tokens import check
from openlpu.tokens.check import SPLITS, WIRED, Case, cases, run_case

MODEL = str(Path(__file__).resolve().parent / "golden" / "models" / "smollm")
NODE = ["--system", "tiny-node", "--chips", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split") / "model"
    assert main(["compile", MODEL, *NODE, "-o", str(folder)]) == 0
    return folder


def test_the_split_found_is_the_best_of_those_considered(made: Path, capsys) -> None:
    assert main(["show", str(made), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (chosen,) = (c for c in said["choices"] if c["chosen"])
    assert chosen["cycles"] == min(c["cycles"] for c in said["choices"] if not c["why"])
    assert {(c["tensor"], c["stages"]) for c in said["choices"]} == {(1, 1), (1, 2), (2, 1)}
    assert said["segments"][0]["cycles"] == chosen["cycles"] == sum(said["segments"][0]["path"].values())
    assert bundle.load(made).manifest["cycles_per_token"] == {"64": chosen["cycles"]}


def test_two_chips_have_the_reference_s_tensors(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "model"
    assert main(["compile", MODEL, *NODE, "--tensor", "2", "--exchange", "values", "-o", str(folder)]) == 0
    assert "* " in capsys.readouterr().out
    assert main(["verify", str(folder), "--tokens", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["same"] and said["tensors"] > 20
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    assert main(["show", str(folder), "--html", str(page), "--perfetto", str(trace)]) == 0
    assert "2 chips of tiny-node" in capsys.readouterr().out
    assert page.stat().st_size and json.loads(trace.read_text())["traceEvents"]


def test_spare_nodes_take_the_place_of_dead_ones(made: Path, tmp_path: Path, capsys) -> None:
    """The same program on the chips that are left, with the reference's tensors; too many dead are one error."""
    folder = str(tmp_path / "model")
    rack = ["--system", "groqrack", "--tensor", "2", "--stages", "2", "--exchange", "values"]
    assert main(["compile", MODEL, *rack, "-o", folder]) == 0
    capsys.readouterr()
    assert main(["verify", folder, "--tokens", "1", "--dead", "3"]) == 0
    assert capsys.readouterr().out.endswith("every claim holds\non chips 8 to 11 of the machine\n")
    assert main(["verify", folder, "--tokens", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["physical"] == [0, 1, 2, 3]
    for options, said in ((f"{folder} --dead 3,8", "56 of 72"), (f"{made} --stage 0 --dead 1", "without values")):
        assert main(["verify", *options.split()]) == 2 and said in capsys.readouterr().err


def test_the_system_is_in_the_folder(made: Path) -> None:
    found = bundle.load(made).found
    assert found
    assert found.system.spec.shape == load_system("tiny-node", 2).spec.shape
    assert found.system.wires.same(load_system("tiny-node", 2).wires)
    with pytest.raises(ProgramError, match="compiled for several chips"):
        _ = bundle.load(made).program


def test_splits_that_one_reason_excludes_are_one_line() -> None:
    """With what is said of the largest of them; the others stay, in their order."""
    reasons = {1: "system node: weights take 9 GB, and there are 2 GB on 1 chip", 8: "", 2: "at least 5,000 cycles",
               4: "system node: weights take 9 GB, and there are 8 GB on 4 chips"}
    few, lines = cli_split.folded([{"chips": chips, "why": why} for chips, why in reasons.items()])
    assert [choice["chips"] for choice in few] == [8, 2]
    assert lines == ["2 splits of 1 to 4 chips: system node: weights take 9 GB, and there are 8 GB on 4 chips"]


def test_each_aim_ranks_by_its_own_measure() -> None:
    fast, full, small = Choice(Split(8), 10, 10), Choice(Split(1, 8), 80, 2), Choice(Split(1, 1), 60, 60)
    for aim, best in ((LATENCY, fast), (THROUGHPUT, full), (CHIPS, small)):
        assert min((fast, full, small), key=lambda c, aim=aim: c.rank(aim)) is best


def test_the_options_offer_what_there_is() -> None:
    """They are written out, because ``openlpu --help`` loads nothing."""
    parser = argparse.ArgumentParser()
    cli_split.add_options(parser)
    offered = {action.dest: action.choices for action in parser._actions}
    assert (offered["aim"], offered["tensor"], offered["exchange"]) == (AIMS, TENSOR, EXCHANGES)


def test_the_splits_considered_use_what_there_is() -> None:
    found = set(splits(6, 8, Wanted()))
    assert Split(8) in found and Split(1, 6) in found and Split(4, 2, "codes") in found
    assert all(s.chips <= 8 and s.stages <= 6 for s in found)
    assert {s.tensor for s in splits(6, 8, Wanted(tensor=2))} == {2}
    assert {(s.tensor == 1, s.exchange) for s in splits(6, 8, Wanted(exchange="codes"))} == {
        (True, "values"), (False, "codes")}


@pytest.mark.parametrize(("options", "said"), [
    (["--chips", "2"], "this is for several chips"),
    (["--tensor", "2"], "this is for several chips"),
    (["--latency-limit", "1"], "latency-limit: this is for several chips"),
    ([*NODE, "--latency-limit", "0.00001"], "latency-limit: the shortest token found takes"),
    ([*NODE, "--chip", "tiny"], "the system's file names its chip"),
    ([*NODE, "--target", "cpu", "-o", "x"], "this is for chips"),
    ([*NODE, "--tensor", "4"], "4 chips a stage are more than the 2 there are"),
    (["--target", "cpu", "-o", "x", "--chip", "tiny"], "this is for chips"),
    ([*NODE, "--tensor", "1", "--exchange", "codes"], "one chip a stage exchanges nothing"),
    ([*NODE, "--stages", "0"], "0 is out of range"),
    ([*NODE, "--stages", "9", "--tensor", "1"], "it has 2 chips and the split needs 9"),
    (["--system", "nowhere"], "unknown system 'nowhere'"),
])
def test_what_cannot_be_is_one_error(options: list[str], said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", MODEL, *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_check_has_the_splits_that_the_layers_allow() -> None:
    wired = {split for _, split in WIRED}
    assert {c.split for c in cases((), True, 4)} == {None, *SPLITS} | wired
    assert {c.split for c in cases((), True, 1)} == {None, *(s for s in SPLITS if s.stages == 1)} | wired
    assert {c.split for c in cases((), True)} == {None}


def test_a_split_case_has_the_hash_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROMPTS", (3, 1, 2, 1, 1, 4, 1, 1))  # the chip model takes a while for each token
    monkeypatch.setattr(check, "TOKENS", 3)
    graph = prepare(MODEL).graph.truncate(1)
    case = Case("chip", split=Split(2))
    assert run_case(case, graph, TARGETS.get("chip")) == run_case(Case("ref"), graph, TARGETS.get("ref"))


def test_search_says_why_nothing_fits() -> None:
    graph = prepare(MODEL).graph.truncate(2)
    with pytest.raises(Unsupported, match="2 layers do not make 7 stages"):
        search(graph, load_system("tiny-node"), Wanted(stages=7))
