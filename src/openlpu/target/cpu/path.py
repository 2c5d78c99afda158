"""The processor's features in, a vector path out: how 64 weight bytes meet four activation codes.

A *group* is 16 weight rows side by side with four consecutive k of each: 64 bytes.  A path knows how to load a
group, how to broadcast the four codes that meet it, and how to add the 16 dot products to exact int32 sums.  All
other code is the same on every path, and integer sums are exact in any order, so paths cannot differ in a bit.

``avx512vnni``
    One instruction multiplies unsigned by signed bytes.  Weights are stored as code + 128; the excess
    128 * Σ(activation codes) is subtracted at the end, modulo 2**32, so nothing saturates or is lost.
``avx2``
    Weights are sign-extended to 16 bits; pairs of products are added in int32.  (The u8 * s8 instruction of AVX2
    saturates at 16 bits and cannot be exact.)
``portable``
    The same as ``avx2`` in plain vector IR, for any processor LLVM knows.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from openlpu._base.errors import Unsupported
from openlpu.target.cpu.emit import Function, Slot, Value

PAIRS = (range(0, 16, 2), range(1, 16, 2))


@dataclass(frozen=True)
class Path:
    """One way to sum products.

    ``panel`` rows of a weight matrix stream together; ``blocks`` are the numbers of token rows one pass over a
    panel can serve, largest first; ``code`` is the element type of activation codes in memory; ``offset`` is
    added to every weight byte.
    """

    name: str
    cpu: str
    features: str
    panel: int
    blocks: tuple[int, ...]
    code: str
    offset: int

    @property
    def code_bytes(self) -> int:
        return int(self.code[1:]) // 8

    @property
    def unsigned(self) -> bool:
        """Whether a dot product multiplies unsigned by signed bytes."""
        return self.offset != 0

    def sums(self, fn: Function) -> list[Slot]:
        """Fresh int32 sums of one group."""
        kinds = ["<16 x i32>"] if self.unsigned else ["<8 x i32>"] * 4
        return [fn.slot(kind) for kind in kinds]

    def group(self, at: Value) -> list[Value]:
        """One group of 64 bytes, in the form :meth:`dot` takes."""
        if self.unsigned:
            return [at.load("<16 x i32>", 64)]
        return [at.at(16 * i).load("<16 x i8>", 16).cast("sext", "<16 x i16>") for i in range(4)]

    def loaded(self, words: Value) -> list[Value]:
        """The group whose 64 codes, each plus 128, are the bytes of these 16-bit words."""
        if self.unsigned:
            return [words.cast("bitcast", "<16 x i32>")]
        codes = (words ^ 0x8080).cast("bitcast", "<64 x i8>")
        return [codes.part(16 * i, 16).cast("sext", "<16 x i16>") for i in range(4)]

    def keep(self, group: list[Value], at: Value) -> None:
        """Write a group as :meth:`group` reads it."""
        for i, part in enumerate(group):
            at.at(16 * i).store(part if self.unsigned else part.cast("trunc", "<16 x i8>"), 16)

    def codes(self, at: Value) -> Value:
        """Four activation codes in every row's place."""
        if self.unsigned:
            return at.load("i32", 1).splat(16)
        return at.load("i64", 1).splat(4).cast("bitcast", "<16 x i16>")

    def dot(self, sums: list[Slot], group: list[Value], codes: Value, *, signed_group: bool = False) -> None:
        """sums += group · codes.  On the unsigned path the group's bytes are the unsigned ones, unless
        ``signed_group``: then the codes are."""
        for total, part in zip(sums, group, strict=True):
            if self.unsigned:
                first, second = (codes, part) if signed_group else (part, codes)
                name = "@llvm.x86.avx512.vpdpbusd.512"
                total.set(part.fn.call("<16 x i32>", name, total.get(), first, second))
            else:
                total.set(total.get() + self._pairs(part, codes))

    def _pairs(self, a: Value, b: Value) -> Value:
        """int32 sums of neighbouring products of 16-bit numbers."""
        if self.name == "avx2":
            return a.fn.call("<8 x i32>", "@llvm.x86.avx2.pmadd.wd", a, b)
        product = a.cast("sext", "<16 x i32>") * b.cast("sext", "<16 x i32>")
        even, odd = (product.shuffle(product, lanes) for lanes in PAIRS)
        return even + odd

    def total(self, sums: list[Slot]) -> Value:
        """The 16 sums of a group as one vector."""
        parts = [s.get() for s in sums]
        if self.unsigned:
            return parts[0]
        halves = [a.shuffle(b, range(0, 16, 2)) + a.shuffle(b, range(1, 16, 2)) for a, b in (parts[:2], parts[2:])]
        return halves[0].shuffle(halves[1], range(16))


DECLARES = {
    "avx512vnni": "declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)\n",
    "avx2": "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)\n",
    "portable": "",
}
VNNI = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni")
AVX2 = ("avx2",)


def available() -> dict[str, Path]:
    """The paths this processor can run, best first."""
    has = {name for name, on in llvm.get_host_cpu_features().items() if on}
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    paths = []
    if x86 and has.issuperset((*VNNI, *AVX2)):
        wide = ",".join(f"+{f}" for f in ("avx2", *VNNI, "bmi", "bmi2")) + ",-prefer-256-bit"
        paths.append(Path("avx512vnni", "x86-64", wide, 32, (8, 4, 2, 1), "i8", 128))
    if x86 and has.issuperset(AVX2):
        paths.append(Path("avx2", "x86-64", "+avx2,+bmi,+bmi2", 16, (2, 1), "i16", 0))
    paths.append(Path("portable", "x86-64" if x86 else "", "", 16, (2, 1), "i16", 0))
    return {path.name: path for path in paths}


def choose(name: str) -> Path:
    """A path by name; ``auto`` is the best one here."""
    if os.name != "posix":
        raise Unsupported("the CPU target needs POSIX threads", where="target",
                          fix="use Linux, macOS or the Windows Subsystem for Linux, or the target ref")
    paths = available()
    if name == "auto":
        return next(iter(paths.values()))
    if name not in paths:
        raise Unsupported(f"the vector path {name!r} does not run on this processor", where="path",
                          fix=f"choose one of: auto, {', '.join(paths)}")
    return paths[name]
