"""Plain matrix products: fp16 against fractions, programs against the definition, the referee's rules, the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from chip_programs import Line, assemble
from numpy.typing import NDArray

from openlpu._base.errors import BadRequest, DoesNotFit, NumericsError, ProgramError, Unsupported
from openlpu.arch.chip import load_chip
from openlpu.arch.system import load_system
from openlpu.arch.truepoint import half
from openlpu.cli import main
from openlpu.place.product import Product, apart, place_product, tilings
from openlpu.schedule.product import ProductProgram, compile_product, schedule_product
from openlpu.schedule.product_group import node_ways, schedule_group
from openlpu.target.chip import product
from openlpu.target.chip.machine import Machine, resolve
from openlpu.target.chip.mutants import OTHER, Subject, run_mutants

LPU = replace(load_chip("lpu-v1"), words_per_slice=512)  # 14 MiB: fast to make


def nearest(exact: Fraction) -> np.float32:
    """fp32 nearest to a fraction, ties to even."""
    near = np.float32(float(exact))
    options = [np.nextafter(near, np.float32(way)) for way in (-np.inf, np.inf)]
    return min([near, *options], key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.int32)) & 1))


def numbers(seed: int, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Finite fp16 numbers of any bits."""
    bits = np.random.default_rng(seed).integers(0, 0x7C00, shape) | np.random.default_rng(seed + 1).choice([0, 1 << 15])
    return bits.astype(np.uint16).view(np.float16)


@pytest.mark.parametrize("k", [1, 2, 7, 160])
def test_a_dot_product_is_exact_and_rounded_once(k: int) -> None:
    a, w = numbers(k, (12, k)), numbers(k + 5, (10, k))
    if k > 1:
        a[:5], w[:5] = 0, 1
        a[:5, 0], a[:5, 1], w[:5, 1] = [1, 1, -1, 1024, 3], 2.0**-24, [1, -1, 1, 2.0**-14, 2.0**-24]
    made = half.dot(a, w)
    for i, j in np.ndindex(made.shape):
        exact = sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[i], w[j], strict=True)), Fraction(0))
        assert made[i, j].view(np.int32) == nearest(exact).view(np.int32)
    a[3, 0] = np.inf
    with pytest.raises(NumericsError, match="infinity"):
        half.dot(a, w)


def operands(p: Product, seed: int = 0, sections: int = 1) -> tuple[NDArray, NDArray, NDArray]:
    """[m, k], [k, n] and their product by the definition."""
    rng = np.random.default_rng(seed)
    if p.form == "int8":
        a, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((p.m, p.k), (p.k, p.n)))
        return a, w, (a.astype(np.int64) @ w).astype(np.int32)
    a, w = (rng.standard_normal(shape).astype(np.float16) for shape in ((p.m, p.k), (p.k, p.n)))
    return a, w, half.product(a, w, 160, sections)


# Sizes: one number; loads between activations; loads beside; planes without work; a block short of rows; many blocks;
# fetches (the queue of an accumulator is longer than it holds).
SIZES = ("1x1x1:int8", "1x1x1:fp16", "3x200x330:int8", "70x700x900:int8", "3x200x330:fp16", "130x340x700:fp16",
         "129x33x30:fp16", "64x321x1500:int8")


@pytest.mark.parametrize("size", SIZES)
def test_a_program_makes_the_product(size: str) -> None:
    p = Product.parse(f"matmul:{size}")
    a, w, wanted = operands(p)
    for tiling in (*tilings(p, LPU), *map(apart, tilings(p, LPU))):
        program = schedule_product(place_product(tiling))
        assert (product.run(program, a, w) == wanted).all(), tiling.split
        assert sum(program.parts().values()) == program.cycles >= tiling.cycles
        assert min(program.parts().values()) >= 0


@pytest.fixture(scope="module")
def long() -> ProductProgram:
    """Long enough to fetch instructions."""
    return compile_product(Product.parse("matmul:40x25600x30:fp16"), replace(LPU, queue_bytes=1280))


def test_long_programs_fetch_their_instructions(long: ProductProgram) -> None:
    a, w, wanted = operands(long.tiling.product)
    assert any(item.name.startswith("instructions.") for item in long.resident)
    assert (product.run(long, a, w) == wanted).all()


@pytest.mark.parametrize("size, sections", [("10x700x400:fp16", 2), ("9x1300x400:int8", 4), ("11x1700x330:fp16", 8)])
def test_sections_on_several_chips_make_the_product(size: str, sections: int) -> None:
    """The last rows and the last section are filled up; sections of the definition are those of the chips."""
    p, system = Product.parse(f"matmul:{size}"), load_system("node")
    group = schedule_group(p, LPU, sections, node_ways(system, sections))
    a, w, wanted = operands(p, sections=sections)
    assert (product.run_group(group, product.wiring(system, group), a, w) == wanted).all()


@pytest.mark.parametrize("form", ["int8", "fp16"])
def test_no_mutant_ends_with_other_bits(form: str) -> None:
    p = Product(6, 170, 40, form)
    program, (a, w, _) = compile_product(p, LPU), operands(p)
    machine = Machine(LPU)
    product.fill(machine, program, a, w)
    outputs = tuple(program.claims.outputs[name].astype(np.int64) for name in ("slice", "address"))
    report = run_mutants(Subject(machine, program.queues, program.claims, (outputs[0], outputs[1])), count=80)
    assert report.outcome(OTHER) == 0, report.escaped


LOAD = (20, "load_weights", {"stream": 32, "step": 0})
W: dict[str, list[Line]] = {"mxmw0.weights": [LOAD, (21, "install_weights", {})]}
ACT: dict[str, list[Line]] = {"mxmw0.activations": [(40, "activate_fp16", {"stream": 32})]}
REFUSED: dict[str, tuple[Mapping[str, list[Line]], str]] = {
    "second plane": ({"mxmw1.activations": [(40, "activate_fp16", {})]}, "not the first of two planes"),
    "tandem": ({**ACT, "mxmw1.weights": [(9, "install_weights", {})]}, "works in tandem"),
    "kind": ({**W, **ACT, "mxmw0.accumulate": [(64, "accumulate", {"clear": 1})]}, "of the other kind"),
    "quad": ({"mxmw0.accumulate": [(0, "accumulate_fp32", {"emit": 1, "stream": 1})]}, "multiple of 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_referee_refuses(name: str) -> None:
    lines, what = REFUSED[name]
    feeds: dict[str, list[Line]] = {"mem0": [(15, "read", {"stream": 32}), (35, "read", {"stream": 32})]}
    with pytest.raises(ProgramError, match=what):
        resolve(LPU, assemble({**feeds, **lines}))


def test_what_cannot_be_is_said() -> None:
    for text in ("matmul:1x2", "matmul:1x2x0", "matmul:1x2x3:fp8", "conv:1x2x3", "matmul:1x2x3x4"):
        with pytest.raises(BadRequest, match="is not a workload"):
            Product.parse(text)
    with pytest.raises(Unsupported, match="two planes"):
        tilings(Product.parse("matmul:1x2x3"), load_chip("tiny"))
    with pytest.raises(DoesNotFit, match="west hemisphere has 44 slices and would need"):
        compile_product(Product.parse("matmul:800x32576x3000"), load_chip("lpu-v1"))


def test_the_command_prints_what_it_takes(capsys) -> None:
    assert main(["compile", "--workload", "matmul:70x700x900:int8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checked"] == "rules and values" and sum(said["parts"].values()) == said["cycles"] == 253
    assert said["tops"] == pytest.approx(2 * 70 * 700 * 900 / (253 / 900e6) / 1e12)
    assert main(["compile", "--workload", "matmul:64x640x640"]) == 0
    assert "the referee accepts it" in capsys.readouterr().out
    assert main(["compile", "--workload", "matmul:8x640x640", "--system", "node", "--chips", "2"]) == 0
    said = capsys.readouterr().out
    assert "*     2 shares of the columns, 1 section of k" in said and "      1 share of the columns, 2 sec" in said
    assert main(["compile", "demo", "--workload", "matmul:1x1x1"]) == 2
    assert "this is for models" in capsys.readouterr().err
