"""The schedule of a chip as a user reads it, and the check of one stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BY_NAME
from openlpu.cli import main
from openlpu.schedule import bundle
from openlpu.schedule.listing import HEAD, lines, select
from openlpu.schedule.tracks import of_system
from openlpu.target.chip.value_free import check_system

NODE = ["--system", "tiny-node", "--chips", "4", "--stages", "2", "--tensor", "2", "--exchange", "values"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    folder = tmp_path_factory.mktemp("listed") / "model"
    config = str(models / "smollm" / "config.json")
    assert main(["compile", config, "--shapes-only", *NODE, "-o", str(folder)]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["show", *options]) == 0
    head, _, body = capsys.readouterr().out.partition(f"\n\n{HEAD}\n")
    return [head, *body.splitlines()]


def test_the_listing_is_the_program(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bundle.load(made).found
    assert found
    run = of_system(found.program, 0).chips[3]
    head, *rows = printed(capsys, str(made), "--chip", "3")
    assert head.startswith("chip 3 of 4: role 1 of stage 1") and f"begins in cycle {run.start:,} " in head
    assert rows == list(lines(run, select(run)))
    assert len(rows) == sum(len(queue) for queue in run.queues.values())
    cycles = [int(row.split()[0]) for row in rows]
    assert cycles == sorted(cycles)
    used = [name for name, queue in run.queues.items() if len(queue)]
    assert {row.split()[1] for row in rows} == set(used)
    assert any("layers.1.attn" in row for row in rows) and not any("layers.0.attn" in row for row in rows)
    exchanged = [row for row in rows if row.split()[2] in ("send", "receive") and "chip 2" in row]
    assert len(exchanged) == 2 * sum((run.queues[q]["op"] == BY_NAME["send"].opcode).sum() for q in run.peers)


def test_a_unit_and_a_window_are_parts_of_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *rows = printed(capsys, str(made), "--chip", "0")
    _, *unit = printed(capsys, str(made), "--chip", "0", "--unit", "vxm", "--cycles", "500:900")
    assert unit and unit == [r for r in rows if r.split()[1].startswith("vxm") and 500 <= int(r.split()[0]) < 900]
    _, *queue = printed(capsys, str(made), "--chip", "0", "--unit", "mem3", "--cycles", ":2000")
    assert queue == [r for r in rows if r.split()[1] == "mem3" and int(r.split()[0]) < 2000]
    assert any(" -> vxm" in r or "vxm" in r.split()[3] for r in rows), "latches are named by their ALU"


@pytest.mark.parametrize(("options", "said"), [
    (["--chip", "4"], "there is no chip 4"),
    (["--chip", "0", "--unit", "tensor"], "has no unit 'tensor'"),
    (["--chip", "0", "--json"], "the schedule of a chip is text"),
    (["--chip", "0", "--context", "65"], "65 is out of range"),
    (["--unit", "mem"], "this is for the schedule of a chip"),
    (["--cycles", "1:2"], "this is for the schedule of a chip"),
])
def test_what_cannot_be_shown_is_one_error(
    made: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(made), *options]) == 2
    assert said in capsys.readouterr().err


def test_one_stage_is_checked_with_its_links(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(made), "--stage", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (stage,) = said["checked"]
    assert stage["stages"] == [1] and stage["chips"] == 2 and stage["instructions"] > 1000
    assert stage["exchanged"] and stage["arriving"] and not stage["handed"]
    assert main(["verify", str(made), "--stage", "2"]) == 2
    assert "there is no stage 2" in capsys.readouterr().err


def test_a_wrong_stage_is_named(made: Path) -> None:
    """An operand that comes a cycle late; a start that leaves the link too little time; an interval too short."""
    stored = bundle.load(made)
    (starts,), (interval,) = (stored.manifest[k].values() for k in ("stage_starts", "cycles_between_tokens"))
    part = stored.part()
    with pytest.raises(ProgramError, match="stage 0 to 1.*arrives in cycle"):
        list(check_system(part.system, part.program, (1,), 0, (0, starts[1] - 1), interval))
    with pytest.raises(ProgramError, match="stage [01].*not done when the next token comes"):
        list(check_system(part.system, part.program, (0, 1), 0, starts, interval - 1))
    queue = part.program.stage(1).program.segments[0].queues["vxm0"]
    queue["cycle"][np.argmax(queue["cycle"])] += 1
    with pytest.raises(ProgramError, match="stage 1, cycle"):
        list(check_system(part.system, part.program, (1,), 0, starts, interval))
    assert list(check_system(part.system, part.program, (0,), 0, starts, interval))[0].stages == (0,)
