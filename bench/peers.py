"""Peers and their model files in, ``docs/peers.md`` out: ours beside theirs for every shape, format and thread count.

``python bench/peers.py MODELS --llama-bench COMMAND --python PYTHON``: MODELS is the folder that
``bench/peer_models.py`` wrote, PYTHON has OpenVINO GenAI and CTranslate2.  Every file is one ``openlpu bench`` per
thread count; what each returned is added to ``MODELS/results.jsonl``, and the page shows the latest of each, so a
run can be continued, repeated in parts (``--only llama-3.2-1b --only Q8_0``) or only shown (``--only none``).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openlpu import __version__
from openlpu._base import units
from openlpu.graph.shapes import SHAPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "peers.md"
FORMATS = {  # what follows the shape in a file's name: peer, our bits per weight
    "Q8_0.gguf": ("llama-bench", "8"), "openvino-int8": ("openvino", "8"), "ct2-int8": ("ctranslate2", "8"),
    "Q4_0.gguf": ("llama-bench", "4.5"), "Q4_K_M.gguf": ("llama-bench", "4.5"), "openvino-int4": ("openvino", "4.5"),
}
LONG = {"Q8_0.gguf": ("-fa on", "-fa on -ctk q8_0 -ctv q8_0")}  # measured at a long context, with these options
LONG_PAIRS = 2
HEADER = """\
# Peers

Written by `python bench/peers.py MODELS --llama-bench COMMAND --python PYTHON`, not by hand; the models by
`python bench/peer_models.py MODELS {shapes}`.

* Machine: {machine}
* Versions: openlpu {openlpu}, llvmlite {llvmlite}, {peers}

Random weights in real shapes. In each row ours and the peer take turns on the same cores in one run; speeds are tokens
per second of the median block, a ratio above 1 means ours is faster, and in brackets is its spread over the pairs of
blocks. Prefill is 512 tokens, decode 32 tokens from an empty cache, or behind the context named. The peer's
loading is not counted, and it is stopped while ours runs. On a machine whose memory others use too, the bandwidth
changes within a run: a share of the bound above 100 % means that the read loop was measured in a slower moment.
"""


@dataclass(frozen=True)
class Cell:
    """One run: a model of ours against one file of a peer."""

    shape: str
    file: str
    threads: int
    context: int = 0
    options: str = ""

    def __str__(self) -> str:
        context = f"context={self.context}" if self.context else ""
        return " ".join(filter(None, (self.shape, self.file, f"threads={self.threads}", context, self.options)))


def cells(models: Path, threads: Iterable[int], context: int) -> Iterator[Cell]:
    """Every combination that has a file."""
    for shape in ("demo", *SHAPES):
        for file in FORMATS:
            if (models / f"{shape}-{file}").exists():
                for count in threads:
                    yield Cell(shape, file, count)
                    if context and shape != "demo" and context < SHAPES[shape].context:
                        yield from (Cell(shape, file, count, context, text) for text in LONG.get(file, ()))


def run(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """One ``openlpu bench`` and what it printed; raises where it failed, with what it said."""
    peer, bits = FORMATS[cell.file]
    file = args.models / f"{cell.shape}-{cell.file}"
    how = f"{args.llama_bench} {cell.options}".strip() if peer == "llama-bench" else f"{args.python}:{file}"
    model = [cell.shape] if cell.shape == "demo" else ["--shape", cell.shape]
    command = [sys.executable, "-m", "openlpu", "bench", *model, "--json", "--threads", str(cell.threads),
               "--bits", bits, "--pairs", str(min(args.pairs, LONG_PAIRS) if cell.context else args.pairs),
               "--against", f"{peer}={how}"]
    command += ["--peer-model", str(file)] if peer == "llama-bench" else []
    command += ["--at-context", str(cell.context)] if cell.context else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"cell": asdict(cell), "date": date.today().isoformat(), "said": json.loads(done.stdout)}


def page(results: list[dict[str, Any]], machine: str, llama_cpp: str) -> str:
    """The whole page."""
    latest = {Cell(**r["cell"]): r for r in results}
    order = list(FORMATS)
    rows = [latest[c] for c in sorted(latest, key=lambda c: (order.index(c.file), c.threads, c.context, c.options))]
    shapes = [shape for shape in ("demo", *SHAPES) if any(r["cell"]["shape"] == shape for r in rows)]
    peers = sorted({f"{p['peer']} {p['version']}" for r in rows for p in r["said"]["against"]})
    peers = [llama_cpp if peer.startswith("llama-bench") and llama_cpp else peer for peer in peers]
    paths = sorted({r["said"]["path"] for r in rows})
    text = HEADER.format(shapes=" ".join(shapes), machine=", ".join((machine, *paths)), openlpu=__version__,
                         llvmlite=version("llvmlite"), peers=", ".join(peers) or "no peer")
    for shape in shapes:
        mine = [r for r in rows if r["cell"]["shape"] == shape]
        text += f"\n## {shape}\n\n" + "\n".join(_table([r for r in mine if not r["cell"]["context"]])) + "\n"
        if long := [r for r in mine if r["cell"]["context"]]:
            text += "\n" + "\n".join(_long(long)) + "\n"
        text += "\nOurs beside the bounds of the machine, measured in the same run:\n\n"
        text += "\n".join(_bounds(mine)) + "\n"
    return text


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| peer | file | threads | prefill: peer | ours | ratio | decode: peer | ours | ratio | date |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for r in rows:
        cell, said = r["cell"], r["said"]
        (peer,) = said["against"]
        parts = (_compared(said, peer, work) for work in ("prefill", "decode"))
        file = Path(cell["file"]).stem
        yield f"| {peer['peer']} | {file} | {cell['threads']} | {' | '.join(parts)} | {r['date']} |"


def _long(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| peer | file and options | threads | context | decode: peer | ours | ratio | date |"
    yield "|---|---|---|---|---|---|---|---|"
    for r in rows:
        cell, said = r["cell"], r["said"]
        (peer,) = said["against"]
        yield (f"| {peer['peer']} | {Path(cell['file']).stem} `{cell['options']}` | {cell['threads']} | "
               f"{cell['context']:,} | {_compared(said, peer, 'decode_at_context')} | {r['date']} |")


def _compared(said: dict[str, Any], peer: dict[str, Any], work: str) -> str:
    theirs, ratio = peer["measured"][work]["tokens_per_s"], peer["measured"][work]["ratio"]
    ours = said["measured"][work]["tokens_per_s"]
    return f"{_rate(theirs)} | {_rate(ours)} | {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _bounds(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each of our formats once per thread count: of several runs the last."""
    yield "| bits | threads | machine reads | multiplies, 10⁹/s | work | median | bound | share |"
    yield "|---|---|---|---|---|---|---|---|"
    last = {(r["said"]["bits"], r["said"]["threads"], work): r["said"]
            for r in rows for work in ("prefill", "decode", "decode_at_context") if work in r["said"]["measured"]}
    for (bits, threads, work), said in sorted(last.items()):
        one, machine = said["measured"][work], said["machine"]
        kind, bound = max(one["bound_s"].items(), key=lambda item: item[1])
        name = f"decode at {one['context']:,}" if one["context"] else work
        yield (f"| {bits:g} | {threads} | {units.size(machine['read_bytes_per_s'])}/s | "
               f"{machine['products_per_s'] / 1e9:,.0f} | {name} | {units.wall(one['p50_s'])} | "
               f"{units.wall(bound)} {kind} | {one['share']:.0%} |")


def processor() -> str:
    """What the system calls it, and how many cores there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--llama-bench", metavar="COMMAND", default="llama-bench")
    parser.add_argument("--python", default="python3", help="has OpenVINO GenAI and CTranslate2")
    parser.add_argument("--llama-cpp", default="", metavar="TEXT", help="llama.cpp's version, where it knows none")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="runs whose name has all of these")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--at-context", type=int, default=8192)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    log = args.models / "results.jsonl"
    failed = []
    for cell in cells(args.models, args.threads, args.at_context):
        if all(text in str(cell) for text in args.only):
            print(cell, file=sys.stderr, flush=True)
            try:
                result = run(cell, args)
            except subprocess.CalledProcessError:  # it has said why
                failed.append(str(cell))
                continue
            with log.open("a") as out:
                print(json.dumps(result), file=out)
    results = [json.loads(line) for line in log.read_text().splitlines()]
    args.page.write_text(page(results, processor(), args.llama_cpp), encoding="utf-8")
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
