"""Code for other processors: what the instructions are and, where there is an Arm emulator, the reference's bits."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from random_models import CASES, MIXTURES, random_graph, same, tokens

from openlpu.target.base import Chunk
from openlpu.target.cpu import kernels, native
from openlpu.target.cpu import path as paths
from openlpu.target.cpu.ahead import Ahead
from openlpu.target.cpu.crew import Crew, Entry
from openlpu.target.cpu.image import build
from openlpu.target.cpu.layout import Layout
from openlpu.target.cpu.linear import value_stride
from openlpu.target.cpu.plan import Plan, Planner
from openlpu.target.cpu.rows import ROW_BYTES, ROWS_AT
from openlpu.target.cpu.run import NO_ERROR
from openlpu.target.cpu.team import ENTRY_BYTES, LOGITS_ONLY, PER_ROW, TABLE
from openlpu.target.cpu.waiting import PLAN_AT
from openlpu.target.ref import run as ref

INTEL = "x86_64-unknown-linux-gnu"
LINUX, MAC = "aarch64-unknown-linux-gnu", "arm64-apple-darwin"
NEON, PORTABLE = (paths.known("aarch64")[name][1] for name in ("neon", "portable"))
AVX_VNNI = paths.known("x86_64")["avxvnni"][1]
LOADED_AT = 0x2000_0000_0000
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
HERE = Path(__file__).parent


def _module(plan: Plan, path: paths.Path, triple: str, threads: int) -> tuple[llvm.TargetMachine, llvm.ModuleRef]:
    generator = native.machine(path, triple)
    return generator, native.optimised(kernels.module(plan, path, threads), generator)


def _loops(assembly: str, dot: str) -> dict[tuple[str, int], list[str]]:
    """The instructions of every straight run that multiplies codes, by function and place in it."""
    function, at = "", ("", 0)
    runs: dict[tuple[str, int], list[str]] = {at: []}
    for number, line in enumerate(assembly.splitlines()):
        if found := re.match(r"_?([a-z]\w+):", line):
            function = found.group(1)
        if re.match(r"\S+:|\t(j\w+|b\.\w+|cb\w+)\t", line):
            at = function, number
            runs[at] = []
        runs[at].append(line)
    return {at: lines for at, lines in runs.items() if any(dot in line for line in lines)}


@pytest.mark.parametrize("case", ["blocks", "4-bit cache", "wide cache", "experts"])
@pytest.mark.parametrize(("path", "triple", "dot"), [
    (NEON, LINUX, "\tsdot\t"), (NEON, MAC, "\tsdot"), (AVX_VNNI, INTEL, "{vex}\tvpdpbusd\t")])
def test_dot_instructions(case, path, triple, dot):
    """The loops use the path's instruction and keep their sums in registers; no multiplication is fused."""
    graph = random_graph(*(CASES | MIXTURES)[case])
    generator, module = _module(Planner(graph, 64).plan(), path, triple, 2)
    assembly = generator.emit_assembly(module)
    loops = _loops(assembly, dot)
    assert {"dot1", f"dot{path.blocks[0]}w"} <= {function for function, _ in loops}
    assert any(function.startswith("attention") for function, _ in loops)
    spills = {at: [line for line in lines if re.search(r"\((%rsp|sp)\)|\[sp", line)] for at, lines in loops.items()}
    assert max(len(lines) for lines in spills.values()) <= 3, spills
    assert not re.search(r"\tv?f(n?m(add|sub)|ml[as])", assembly) and re.search(r"\tv?f?mul(ps)?", assembly)
    if path is AVX_VNNI:
        assert "zmm" not in assembly and not re.search(r"mm(1[6-9]|[23]\d)", assembly), "instructions of AVX-512"
    else:
        assert "fpcr" in assembly.lower() and generator.emit_object(module)


@dataclass(frozen=True)
class _Nowhere:
    """Stands for a module whose code runs elsewhere."""

    def function(self, name: str, *kinds: type) -> Any:
        return lambda *args: None


class _Program:
    """A model's machine code, memory image and harness for an emulated Arm machine."""

    def __init__(self, folder: Path, graph: Any, path: paths.Path, threads: int) -> None:
        self.folder, self.vocab = folder, graph.values[graph.output].size
        plan = Planner(graph, graph.config.context).plan()
        image = build(plan, path, graph.params)
        self.layout = Layout(graph, plan, path, 1, image)
        ahead = Ahead(plan.stages, self.layout.args, path, threads)
        entries = []
        for i, stage in enumerate(plan.stages):
            tiles, per_row = kernels.tiles(stage, path, threads)
            flags = (PER_ROW if per_row else 0) | (LOGITS_ONLY if stage.logits_only else 0)
            entries.append(Entry(0, self.layout.args[i], tiles, flags, ahead.entries[i]))
        scratch = kernels.scratch_bytes(plan, path)
        crew: Any = Crew(_Nowhere(), entries, self.layout.step_address, scratch, threads)  # pyright: ignore
        arenas: list[Any] = [self.layout.buffer, self.layout.cache, self.layout.parts, self.layout._table, crew._arena]
        arenas += [ahead._arena] if threads > 1 else []
        arrays = [a.bytes for a in arenas] + [image.streamed, *map(_bytes, image.looked_up.values())]
        logits = self.layout.value(graph.output, 1).ctypes.data
        stride = 4 * value_stride(self.vocab)
        table = int(crew._arena.view(PLAN_AT + 8 * TABLE, 8).view(np.int64)[0])
        step = self.layout.step_address, self.layout.step.size
        words = [crew._team, table, ENTRY_BYTES, threads, *step, logits, stride]
        (folder / "image").write_bytes(_relocated(np.array(words, np.int64), arrays))
        self._build(plan, path, threads)

    def _build(self, plan: Plan, path: paths.Path, threads: int) -> None:
        generator, module = _module(plan, path, LINUX, threads)
        (self.folder / "code.o").write_bytes(generator.emit_object(module))
        names = [kernels.names(plan)[stage.spec] for stage in plan.stages]
        lines = [*(f"extern void {name}(void);" for name in dict.fromkeys(names)),
                 f"void *const kernels[] = {{{', '.join(names)}, 0}};"]
        (self.folder / "kernels.c").write_text("\n".join(lines) + "\n")
        sources = [HERE / "arm_steps.c", self.folder / "kernels.c", self.folder / "code.o"]
        options = "-O1", "-static", f"-DBASE={LOADED_AT:#x}", "-lpthread"
        command = [COMPILER, *sources, *options, "-o", self.folder / "steps"]
        subprocess.run([str(word) for word in command], check=True)

    def run(self, steps: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Logits of every token of runs of tokens, one after another."""
        headers, start = [], 0
        for ids in steps:
            header = np.zeros(self.layout.step.size // 4, np.int32)
            header[:3] = len(ids), len(ids), NO_ERROR
            rows = header[ROWS_AT // 4 :].reshape(-1, ROW_BYTES // 4)
            rows[: len(ids), 0], rows[: len(ids), 2] = ids, range(start, start + len(ids))
            headers.append(header.tobytes())
            start += len(ids)
        (self.folder / "steps.bin").write_bytes(b"".join(headers))
        command = [str(EMULATOR), "-cpu", "max", "./steps", "image", "steps.bin"]
        out = subprocess.run(command, cwd=self.folder, capture_output=True, check=True, timeout=120).stdout
        results, at, stride = [], 0, value_stride(self.vocab)
        for ids in steps:
            logits = np.frombuffer(out, np.float32, len(ids) * stride, at).reshape(len(ids), stride)
            at += logits.nbytes + 12
            assert np.frombuffer(out, np.int32, 3, at - 12).tolist() == [len(ids), len(ids), NO_ERROR]
            results.append(logits[:, : self.vocab])
        return results


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _relocated(words: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """``words``, then the arrays, as one image at LOADED_AT; what looks like an address becomes its new one."""
    places, end = [], 4096
    for array in arrays:
        places.append(end)
        end += -(-array.size // 64) * 64
    image = np.zeros(end, np.uint8)
    image[: words.nbytes] = _bytes(words)
    for array, at in zip(arrays, places, strict=True):
        image[at : at + array.size] = array
    numbers = image[: end // 8 * 8].view(np.int64)
    old = numbers.copy()
    for array, at in zip(arrays, places, strict=True):
        start = array.ctypes.data
        inside = (old >= start) & (old < start + array.size)
        numbers[inside] += LOADED_AT + at - start
    return image.tobytes()


@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs aarch64-linux-gnu-gcc and qemu-aarch64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["outliers", "wide odd cache", "4-bit odd cache", "blocks", "tied blocks", "experts"])
def test_the_same_bits_on_an_emulated_machine(name, threads, tmp_path):
    graph = random_graph(*(CASES | MIXTURES)[name])
    ids = tokens(24, graph.config)
    program = _Program(tmp_path, graph, NEON, threads)
    got = program.run([ids[:15], *((one,) for one in ids[15:20]), ids[20:]])
    assert same([np.concatenate(got)], ref.load(graph).run([Chunk(0, 0, ids, every=True)]))


def test_the_dot_product_extension_is_found(monkeypatch, tmp_path):
    """On Linux the kernel says what the processor has; Apple's all have it."""
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(paths, "Info", lambda place: info)
    monkeypatch.setattr(llvm, "get_host_cpu_features", dict)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    for system, expected in (("Darwin", ["neon", "portable"]), ("Linux", ["portable"])):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        assert list(paths.available()) == expected
    for words, expected in (("fp asimd", ["portable"]), ("fp asimd asimddp", ["neon", "portable"])):
        info.write_text(f"Features\t: {words}\n")
        assert list(paths.available()) == expected
