"""What ``openlpu compile``, ``run`` and ``check`` do with an encoder, which reads a sequence and writes none."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from openlpu import cli_encoder_split, cli_tables
from openlpu._base import units
from openlpu._base.errors import BadRequest

if TYPE_CHECKING:
    from openlpu._base.progress import Progress
    from openlpu.compile import Compiled
    from openlpu.graph.ir import Graph
    from openlpu.partition.split import Split
    from openlpu.schedule.program import Program
    from openlpu.schedule.search import Found
    from openlpu.target.base import F32, Executable

CHECKED = (1, 7, 40, 270)  # of those that are compared
CHUNKS = (8, 2)  # in which the chip model takes them
SPLITS: tuple[dict[str, Any], ...] = (  # that `--splits` adds
    *({"tensor": 2, "exchange": exchange} for exchange in ("values", "codes", "sums")), {"tensor": 4},
    *({"stages": stages, "tensor": tensor} for stages, tensor in ((2, 1), (2, 2), (4, 1))),
)
OF_TEXT = {"max_tokens": 64, "temperature": None, "top_k": None, "top_p": None, "min_p": None, "seed": None, "stop": [],
           "repetition_penalty": None, "chat": False, "speculate": None}


def compile_chip(
    args: argparse.Namespace, graph: Graph, progress: Progress
) -> tuple[Program | Found, dict[str, Any]]:
    """The program of one chip or several, and what there is to say about it."""
    from openlpu import compile as pipeline

    if args.requests > 1:
        raise BadRequest("an encoder takes one sequence at a time", where="requests", fix="leave --requests out")
    if len(args.chunk) > 1:
        raise BadRequest("an encoder takes all positions in chunks of one size", where="chunk", fix="name one size")
    if args.system is not None:
        found = cli_encoder_split.compile_chips(args, graph, progress)
        return found, cli_encoder_split.report(found)
    chip = "lpu-v1" if args.chip is None else args.chip
    program = pipeline.program(graph, chip, args.chunk, dump=args.dump, progress=progress)
    return program, report(graph, program)


def report(graph: Graph, made: Program | Found) -> dict[str, Any]:
    """Plain data for ``--json``."""
    from openlpu.schedule.search import Found

    return cli_encoder_split.report(made) if isinstance(made, Found) else _report(graph, made)


def _report(graph: Graph, program: Program) -> dict[str, Any]:
    from openlpu.arch.encoding import instruction_bytes
    from openlpu.schedule import sweeps

    chip = program.chip
    return {
        "chip": chip.name, "clock": "cycles", "clock_hz": chip.clock_hz,
        "sram_rows": chip.slices * chip.words_per_slice, "sram": cli_tables.rooms(program),
        "sequences": [{"length": n, "cycles": cycles, "utilisation": sweeps.utilisation(graph, chip, n, cycles)}
                      for n in cli_encoder_split.lengths(program.context) for cycles in [sweeps.cycles(program, n)]],
        "longest": [_longest(program, context) for context in sorted({s.context for s in program.segments})],
        "sweeps": [{"name": s.name, "context": s.context, "chunk": s.chunk, "cycles": s.cycles,
                    "instructions": sum(map(len, s.queues.values())),
                    "instruction_bytes": instruction_bytes(s.queues)} for s in program.segments],
    }


def _longest(program: Program, context: int) -> dict[str, Any]:
    """Where the cycles of the longest sequence of a context bucket go."""
    from openlpu.schedule import joules, sweeps
    from openlpu.schedule.report import in_turn, report
    from openlpu.schedule.tracks import single

    chip, turns = program.chip, sweeps.turns(program, context)
    use = in_turn(chip, ((report(chip, part), times) for part, times in turns))
    spent = joules.in_turn([(single(program, part), times) for part, times in turns])
    about = {"length": context, "steps": turns[0][1], "sweeps": len(turns), "cycles": use.cycles,
             "instructions": use.instructions}
    return about | cli_tables.account(use, spent)


def summary(result: dict[str, Any]) -> Iterator[str]:
    """A program in a few lines."""
    if "system" in result:
        yield from cli_encoder_split.summary(result)
        return
    used, sweeps = sum(result["sram"].values()), result["sweeps"]
    size = sum(s["instruction_bytes"] for s in sweeps)
    yield (f"{result['model']} on {result['chip']}: {used / result['sram_rows']:.1%} of SRAM; sequences of up to "
           f"{result['sequences'][-1]['length']}, {sweeps[0]['chunk']} positions a step; "
           f"{sum(s['instructions'] for s in sweeps):,} instructions in {units.size(size)}")
    for s in result["sequences"]:
        seconds = s["cycles"] / result["clock_hz"]
        yield (f"sequence of {s['length']:>5}  {units.cycles(s['cycles'])}, {units.duration(seconds)}: "
               f"{1 / seconds:,.0f} sequences/s, {s['utilisation']:.1%} of the MXM's peak")


def details(result: dict[str, Any]) -> Iterator[str]:
    """What ``openlpu show`` adds: the room, each sweep, and where the longest sequences' cycles and joules go."""
    if "system" in result:
        yield from cli_encoder_split.details(result)
        return
    yield ""
    yield from cli_tables.sram(result)
    yield ""
    yield "sweeps, in the order a sequence takes them, for every chunk of it:"
    for s in result["sweeps"]:
        yield (f"  {s['name']:<12} {s['cycles']:>9,} cycles {s['instructions']:>9,} instructions in "
               f"{units.size(s['instruction_bytes'])}")
    for of in result["longest"]:
        yield ""
        yield (f"sequence of {of['length']}: {units.count(of['steps'], 'step')} of each of {of['sweeps']} sweeps, "
               f"{of['cycles']:,} cycles")
        yield from cli_tables.accounted(of, "sequence")


def run(args: argparse.Namespace, compiled: Compiled, executable: Any = None) -> int:
    """The hidden states of texts: their hashes, how many, and how long it took; on a target, or as it is loaded."""
    _refuse_text(args)
    texts = [compiled.checkpoint.tokenizer.encode(prompt) for prompt in args.prompts]
    for number, ids in enumerate(texts, 1):
        if not 1 <= len(ids) <= compiled.context:
            raise BadRequest(f"the text has {units.count(len(ids), 'token')}", where=f"prompt {number}",
                             fix=f"use 1 to {compiled.context}")
    executable = executable or _load(args, compiled)
    found = [_one(executable, ids, args.target) for ids in texts]
    result = {"model": compiled.name, "target": args.target, "fingerprint": compiled.fingerprint(), "sequences": found}
    print(json.dumps(result) if args.json else "\n".join(line for one in found for line in _ran(args.target, one)))
    return 0


def _one(executable: Any, ids: Sequence[int], target: str) -> dict[str, Any]:
    """What there is to say of a sequence."""
    start = time.perf_counter()
    (states,) = _states(executable, [ids])
    wall_s = time.perf_counter() - start
    cycles = {"clock": "cycles", "sequence": executable.cycles} if target == "chip" else None
    return {"token_ids": list(ids), "hidden": list(states.shape), "hidden_sha256": digest([states]), "wall_s": wall_s,
            "cycles": cycles}


def _ran(target: str, one: dict[str, Any]) -> Iterator[str]:
    positions, size = one["hidden"]
    on_chip = f", {units.cycles(one['cycles']['sequence'])} on the chip" if one["cycles"] else ""
    yield f"{units.count(positions, 'token')} on {target} in {units.wall(one['wall_s'])}{on_chip}"
    yield f"hidden states {positions} x {size}, sha256 {one['hidden_sha256']}"


def check(args: argparse.Namespace, compiled: Compiled, progress: Progress) -> int:
    """Sequences of a few lengths on the reference and on the chip model, in chunks of several sizes: one hash."""
    from openlpu.target import TARGETS
    from openlpu.tokens.sample import draw

    vocab, most = compiled.graph.config.vocab, min(compiled.context, max(CHECKED))
    lengths = sorted({min(n, most) for n in CHECKED})
    texts = [[draw(2026, n, at) % vocab for at in range(n)] for n in lengths]
    cases: list[tuple[str, str, dict[str, Any]]] = [("ref", "ref", {})]
    cases += [("chip", f"chip chunk={chunk}", {"chunks": (chunk,)}) for chunk in CHUNKS]
    cases += [("chip", str(split), {"split": split, "chunks": CHUNKS[:1]}) for split in _splits(args, compiled.graph)]
    rows = []
    for done, (target, name, options) in enumerate(cases):
        progress(f"check: {name}", done, len(cases))
        start = time.perf_counter()
        executable = TARGETS.get(target)(compiled.graph, context=most, **options)
        rows.append({"case": f"{name} lengths={','.join(map(str, lengths))}",
                     "sha256": digest(_states(executable, texts)), "wall_s": time.perf_counter() - start})
    distinct = len({row["sha256"] for row in rows})
    if args.json:
        print(json.dumps({"model": args.model, "distinct": distinct, "cases": rows}))
    else:
        for row in rows:
            print(f"{row['sha256'][:16]}  {units.wall(row['wall_s']):>14}  {row['case']}")
        print(f"{len(rows)} cases, {distinct} distinct")
    return 0 if distinct == 1 else 1


def _splits(args: argparse.Namespace, graph: Graph) -> list[Split]:
    """Those to check, as far as there are layers for."""
    from openlpu.partition.split import Split

    able = (Split(**split) for split in SPLITS if args.splits)
    return [split for split in able if split.stages <= graph.config.layers]


def digest(states: Sequence[F32]) -> str:
    """Hash of hidden states: little-endian fp32, sequence after sequence."""
    total = hashlib.sha256()
    for one in states:
        total.update(one.astype("<f4").tobytes())
    return total.hexdigest()


def _states(executable: Executable, texts: Sequence[Sequence[int]]) -> list[F32]:
    """The hidden states of each text."""
    from openlpu.target.base import Chunk

    return executable.run([Chunk(0, 0, tuple(ids), every=True) for ids in texts])


def _load(args: argparse.Namespace, compiled: Compiled) -> Any:
    from openlpu.target import TARGETS

    options: dict[str, Any] = {"chunks": args.chunk} if args.target == "chip" else {}
    if args.chunk and args.target != "chip":
        raise BadRequest(f"target '{args.target}' takes a sequence whole", where="chunk", fix="leave it out")
    return TARGETS.get(args.target)(compiled.graph, context=compiled.context, **options)


def _refuse_text(args: argparse.Namespace) -> None:
    """Options of writing text, which would be ignored."""
    for name, default in OF_TEXT.items():
        if getattr(args, name) != default:
            raise BadRequest("an encoder writes no text", where=name.replace("_", "-"), fix="leave it out")
    if args.threads:
        raise BadRequest(f"target '{args.target}' cannot run on {args.threads} threads", where="threads",
                         fix="leave it out")
