"""The page of a program: one file that needs nothing else, whose numbers are those of the program; and in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openlpu.arch.chip import load_chip
from openlpu.arch.isa import BY_NAME, TABLE
from openlpu.schedule.joules import energy
from openlpu.schedule.program import Program, queue_dtype
from openlpu.schedule.tracks import ChipRun, Token
from openlpu.web.program_page import SCRIPTS, TEMPORARY, render

TINY = load_chip("tiny")
ABOUT = {"title": "a model </script><b> on tiny", "context": "up to 64"}
SPLITS = [{"tensor": 1, "stages": 2, "cycles": 12345, "chosen": True},
          {"tensor": 2, "stages": 1, "cycles": 23456, "chosen": False}]


@pytest.fixture(scope="module")
def several(token: Token) -> Token:
    """Eight chips in a ring that each send a few vectors on; the second four begin when the first are done."""
    one, sends = token.chips[0], np.zeros(6, queue_dtype("c2cw0"))
    sends["cycle"], sends["op"] = 30 * np.arange(6), BY_NAME["send"].opcode
    sends["op"][-1] = BY_NAME["receive"].opcode
    queues = {**one.queues, "c2cw0": sends}
    chips = tuple(
        replace(one, name=f"chip {i}", start=one.cycles * (i // 4), queues=queues, link_slot=24, packet_bytes=264,
                first=7 * (i // 4), peers={"c2cw0": f"chip {(i + 1) % 8}"})
        for i in range(8)
    )
    return Token(chips, (*token.path, *(replace(p, start=p.start + one.cycles) for p in token.path)))


def data_of(page: str) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert text
    return json.loads(text[1])


def column(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_needs_nothing_else(token: Token) -> None:
    page = render(token, ABOUT)
    outside = re.findall(r"https?://[^\"' )]+", page)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}, "the name of a vocabulary, which nothing fetches"
    assert not re.search(r"\b(src|href)\s*=|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(", page)
    assert page.count("<script") == page.count("</script>") == 2, "no name in the data ends a script"
    assert "<title>a model &lt;/script&gt;" in page
    assert not re.search(r"@[A-Z]+@", page)


def test_the_columns_are_the_program(token: Token, program: Program) -> None:
    data, segment = data_of(render(token, ABOUT)), program.segments[0]
    assert data["about"] == ABOUT and data["cycles"] == segment.cycles
    found = set()
    for track in data["programs"][0]["tracks"]:
        columns = (column(track["cycle"], "<u4"), column(track["op"], "<u1"), column(track["operator"], "<u2"))
        for cycle, op, operator in zip(*(c.tolist() for c in columns), strict=True):
            name, unit = data["instructions"][op]
            assert unit in (track["unit"], "icu")
            found.add((track["name"].split()[0], cycle, name, data["operators"][operator]))
    starts, names = zip(*segment.origin, strict=True)
    want = {
        (queue, int(row["cycle"]), TABLE[row["op"]].name, names[np.searchsorted(starts, row["id"], "right") - 1])
        for queue, rows in segment.queues.items() for row in rows
    }
    assert found == want


def test_the_breakdown_adds_up_to_the_token(token: Token) -> None:
    path = data_of(render(token, ABOUT))["path"]
    start, cycles = column(path["start"], "<u4").astype(int), column(path["cycles"], "<u4").astype(int)
    assert start[0] == 0 and (start + cycles)[-1] == token.cycles == cycles.sum()
    assert ((start + cycles)[:-1] == start[1:]).all()


def test_the_sram_map_has_every_row_once(token: Token, program: Program) -> None:
    data = data_of(render(token, ABOUT))
    memory, seen = data["memories"][0], {}
    columns = [column(memory[k], d) for k, d in (("slice", "<u2"), ("start", "<u2"), ("count", "<u2"), ("name", "<u4"))]
    for slice_, start, count, name in zip(*(c.tolist() for c in columns), strict=True):
        for row in range(start, start + count):
            assert (slice_, row) not in seen and slice_ < TINY.slices and row < TINY.words_per_slice
            seen[slice_, row] = memory["names"][name]
    for item in program.resident:
        for slices, address in zip(item.slices.tolist(), item.addresses.tolist(), strict=True):
            assert all(seen[s, address] == item.name for s in slices)
    written = {(int(queue[3:]), int(row["address"])) for queue, rows in program.segments[0].queues.items()
               if queue.startswith("mem") for row in rows if row["op"] == BY_NAME["write"].opcode}
    assert written <= set(seen) and TEMPORARY in seen.values()
    assert {at for at, name in seen.items() if name == TEMPORARY} <= written


def test_the_energy_is_that_of_the_token(several: Token) -> None:
    shown, spent = data_of(render(several, ABOUT))["energy"], energy(several.chips)
    parts = sum(shown["dynamic"].values())
    assert parts + shown["staticAlone"] == pytest.approx(spent.alone / 1e15)
    assert parts + shown["staticFull"] == pytest.approx(spent.full / 1e15)
    assert shown["dynamic"]["links"] > 0 and shown["process"] == "14 nm"


def test_every_asset_is_on_the_page_and_short() -> None:
    assets = {file.name: file.read_text("utf-8") for file in (files("openlpu.web") / "assets").iterdir()}
    assert set(assets) == {*SCRIPTS, "page.html", "page.css"}
    assert all(text.count("\n") <= 400 for text in assets.values())


def test_chips_that_run_the_same_share_it(token: Token, several: Token) -> None:
    one, eight = render(token, ABOUT), render(several, ABOUT, SPLITS)
    data = data_of(eight)
    assert len(data["programs"]) == len(data["memories"]) == 1 and len(data["chips"]) == 8
    assert data["cycles"] == 2 * token.cycles and data["interval"] == token.cycles
    assert data["splits"] == SPLITS and data_of(one)["splits"] == []
    assert len(eight) < 1.2 * len(one)


def test_a_column_too_narrow_is_noticed() -> None:
    from openlpu.web.program_page import column as packed

    assert column(packed([0, 65535], "<u2"), "<u2").tolist() == [0, 65535]
    with pytest.raises(AssertionError, match="needs more"):
        packed([65536], "<u2")


# --- in a browser ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: playwright's own, or one that is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        paths = [None, *filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))]
        for path in paths:
            try:
                made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            except sync_api.Error:
                continue
            yield made
            made.close()
            return
        pytest.skip("needs a Chromium: playwright install chromium, or a package of the system")


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from a file, without a network, and fails the test when it logged an error or asked for anything."""
    errors: list[str] = []

    def open_(text: str, scheme: str = "light") -> Any:
        file = tmp_path / f"{scheme}.html"
        file.write_text(text, "utf-8")
        page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900}, offline=True)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    yield open_
    assert not errors, errors


def window(page: Any) -> tuple[int, int]:
    numbers = re.findall(r"[\d,]+", page.inner_text("#window"))
    return int(numbers[0].replace(",", "")), int(numbers[1].replace(",", ""))


def inks(page: Any, canvas: str) -> int:
    """Different colours on a canvas."""
    return page.evaluate("""(id) => {
      const c = document.getElementById(id), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      const seen = new Set();
      for (let i = 0; i < d.length; i += 4) seen.add((d[i] << 16 | d[i + 1] << 8 | d[i + 2]) * 256 + d[i + 3]);
      return seen.size;
    }""", canvas)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_in_both_colour_schemes(opened: Any, token: Token, scheme: str) -> None:
    page = opened(render(token, ABOUT), scheme)
    assert page.inner_text("h1") == ABOUT["title"]
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    for table in ("#kinds", "#operators"):
        foot = page.inner_text(f"{table} tfoot").split()
        cells = page.locator(f"{table} tbody tr td:nth-child(2)").all_inner_texts()
        assert sum(int(cell.replace(",", "")) for cell in cells) == token.cycles == int(foot[1].replace(",", ""))
        assert foot[2:] == ["100.0", "%"]
    assert all(inks(page, canvas) > 5 for canvas in ("timeline", "overview", "sram"))
    assert page.locator("#floor rect").count() >= len(TINY.queues)
    assert page.is_hidden("#splits-section") and page.locator("#system svg").count() == 0
    for width in (1280, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"something sticks out of {width}"


def test_the_switch_overrides_the_scheme(opened: Any, token: Token) -> None:
    page = opened(render(token, ABOUT))
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_text("Dark", exact=True).click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.get_by_text("Auto", exact=True).click()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")  # the browser tells the page later


def test_the_timeline_zooms_from_the_token_to_a_cycle(opened: Any, token: Token) -> None:
    page = opened(render(token, ABOUT))
    assert window(page) == (0, token.cycles)
    page.click("#zoom-in")
    first, last = window(page)
    assert last - first == pytest.approx(token.cycles / 2, abs=1)
    page.focus("#timeline")
    page.keyboard.press("1")
    first, last = window(page)
    assert last - first <= 14, "single cycles"
    page.keyboard.press("0")
    assert window(page) == (0, token.cycles)
    box = page.locator("#timeline").bounding_box()
    page.mouse.move(box["x"] + 176, box["y"] + 60)
    page.mouse.wheel(0, -700)
    page.wait_for_function("view.to < data.cycles")
    first, last = window(page)
    assert first == 0 and last < token.cycles / 3, "the cycle under the pointer stays"
    page.keyboard.press("ArrowRight")
    assert window(page)[0] > 0
    page.click("#whole")
    assert window(page) == (0, token.cycles)


def test_rows_open_and_instructions_are_named(opened: Any, token: Token) -> None:
    page = opened(render(token, ABOUT))
    page.focus("#timeline")
    rows = page.evaluate("shown.length")
    page.keyboard.press("ArrowDown")  # the same path by operator
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate("shown.length") > rows + 10, "the slices of the west"
    run = token.chips[0]
    queue, cycle = next((name, int(rows["cycle"][0])) for name, rows in run.queues.items() if len(rows))
    text = page.evaluate(f"describe(shown.find((row) => row.name.startsWith('{queue} ')), {cycle})")
    assert f"in cycle {cycle:,}" in text and "for " in text
    page.keyboard.press("Enter")
    assert page.evaluate("shown.length") == rows


def test_several_chips_have_a_map_and_splits(opened: Any, several: Token) -> None:
    page = opened(render(several, ABOUT, SPLITS))
    assert page.locator("#system .chip").count() == 8 and page.locator("#system path").count() == 8
    share = 100 * 5 * 24 / several.chips[0].cycles  # five vectors of 24 cycles; what a link receives takes none of it
    assert page.locator("#system path title").first.text_content() == f"chip 0 to chip 1: {share:.2f} % of its slots"
    page.locator("#system .chip").nth(5).click()
    assert page.inner_text("#floor-title").startswith("chip 5")
    said = page.evaluate("""() => {
      const chip = data.chips[5], { all } = program(chip), before = (i) => i && all.cycle[i - 1] === all.cycle[i];
      const at = all.operator.findIndex((o, i) => data.operators[o].startsWith("layers.0.") && !before(i));
      return describe({ kind: "sum", name: "all", all, chip }, chip.start + all.cycle[at]);
    }""")
    assert "first for layers.7." in said, "layers count from the model's first"
    assert page.locator("#splits tbody tr").count() == 2
    assert "12,345" in page.inner_text("#splits .chosen")
    assert "Pipeline full" in page.inner_text("#figures") and "pipeline full" in page.inner_text("#energy")


def test_the_page_of_a_run_without_sram_or_operators_to_spare(opened: Any, token: Token) -> None:
    """One instruction: nothing divides by zero."""
    rows = np.zeros(1, queue_dtype("mem0"))
    rows["op"] = BY_NAME["write"].opcode
    run = ChipRun("chip 0", TINY, 0, 3, {"mem0": rows}, ((0, "only"),))
    opened(render(Token((run,), (replace(token.path[0], start=0, cycles=3),)), ABOUT))


def test_text_stands_out_from_what_it_is_on(opened: Any, token: Token) -> None:
    """Contrast of at least 4.5 for text and 3 for colours that carry meaning, in both schemes (WCAG 2.1)."""
    def luminance(rgb: list[int]) -> float:
        parts = [c / 255 for c in rgb]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        page = opened(render(token, ABOUT), scheme)
        meaning = ["mem", "vxm", "mxm", "sxm", "c2c", "hops", "waiting", "links", "weights", "collectives",
                   "clock"]
        names = ["page", "card", "text", "quiet", "accent", *meaning]
        seen = {name: [int(page.evaluate(f"colour('{name}')")[i : i + 2], 16) for i in (1, 3, 5)] for name in names}
        seen["words"] = [16, 17, 19] if scheme == "dark" else [255] * 3  # on those colours
        for name, needed in [("text", 7), ("quiet", 4.5), ("accent", 4.5), *((name, 3) for name in meaning)]:
            for ground in ("page", "card", *(["words"] if needed == 3 else [])):
                needed = 4.5 if ground == "words" else needed
                high, low = sorted((luminance(seen[name]), luminance(seen[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= needed, f"{name} on {ground}, {scheme}"
