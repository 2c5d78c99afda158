"""The processor's features in, a vector path out: how 64 weight bytes meet four activation codes.

A *group* is 16 weight rows side by side with four consecutive k of each: 64 bytes.  A path knows how to load a
group, how to broadcast the four codes that meet it, and how to add the 16 dot products to exact int32 sums.  All
other code is the same on every path, and integer sums are exact in any order, so paths cannot differ in a bit.

``avx512vbmi2``
    ``avx512vnni`` that can also expand bytes: spread 32 of them over the places that a mask names.
``avx512vnni``, ``avxvnni``
    One instruction multiplies unsigned by signed bytes, 64 or 32 at a time.  Weights are stored as code + 128; the
    excess 128 * Σ(activation codes) is subtracted at the end, modulo 2**32, so nothing saturates or is lost.
``neon``
    One instruction (the dot-product extension) multiplies signed bytes, 16 at a time.
``avx2``
    Weights are sign-extended to 16 bits; pairs of products are added in int32.  The instruction that multiplies
    unsigned by signed bytes saturates at 16 bits: it is exact for nibbles only (:mod:`~openlpu.target.cpu.nibbles`).
``portable``
    The same as ``avx2`` in plain vector IR, for any processor LLVM knows.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as Info

import llvmlite.binding as llvm

from openlpu._base.errors import Unsupported
from openlpu.target.cpu.emit import Function, Slot, Value, split, vec

PAIRS = (range(0, 16, 2), range(1, 16, 2))
MADD_512, MADD_256 = "@llvm.x86.avx512.pmaddw.d.512", "@llvm.x86.avx2.pmadd.wd"
X86_64, ARM_64 = ("x86_64", "amd64"), ("aarch64", "arm64")


@dataclass(frozen=True)
class Path:
    """One way to sum products.

    ``panel`` rows of a weight matrix stream together; ``blocks`` are the numbers of token rows one pass over a
    panel can serve, largest first; ``code`` is the element type of activation codes in memory; ``offset`` is
    added to every weight byte.  ``machine`` is the processor family, as the system names it.
    """

    name: str
    cpu: str
    features: str
    panel: int
    blocks: tuple[int, ...]
    code: str
    offset: int
    lanes: int = 8  # int32 sums of one register
    expands: bool = False  # whether :meth:`expanded` is one instruction here
    registers: int = 16  # vector registers there are
    machine: str = ""

    @property
    def code_bytes(self) -> int:
        return int(self.code[1:]) // 8

    @property
    def bytewise(self) -> bool:
        """Whether one instruction multiplies bytes and adds four products."""
        return self.code == "i8"

    @property
    def unsigned(self) -> bool:
        """Whether that instruction multiplies unsigned by signed bytes."""
        return self.offset != 0

    @property
    def sum_registers(self) -> int:
        """Registers that the sums of one group take."""
        return 16 // self.lanes if self.bytewise else 4

    @property
    def expand_rows(self) -> int:
        """Token rows from which on a panel that expands is expanded once for all of them."""
        return 8 if self.lanes == 16 else 4

    @property
    def dword(self) -> str:
        """A register of int32."""
        return vec("i32", self.lanes)

    def sums(self, fn: Function) -> list[Slot]:
        """Fresh int32 sums of one group."""
        return [fn.slot(self.dword) for _ in range(self.sum_registers)]

    def group(self, at: Value) -> list[Value]:
        """One group of 64 bytes, in the form :meth:`dot` takes."""
        if self.bytewise:
            return [at.at(4 * i).load(self.dword, 4 * self.lanes) for i in range(0, 16, self.lanes)]
        return [at.at(16 * i).load("<16 x i8>", 16).cast("sext", "<16 x i16>") for i in range(4)]

    def loaded(self, words: Value) -> list[Value]:
        """The group whose 64 codes, each plus 128, are the bytes of these 16-bit words."""
        return self.bytes_of(words if self.offset == 128 else words ^ 0x8080)

    def expanded(self, at: Value, mask: Value) -> list[Value]:
        """The group that has the 32 bytes at ``at`` where a 64-bit mask has its 32 bits, and code 0 elsewhere.

        The bytes are loaded first: a load that expands is less than half as fast where it misses the cache.
        """
        kind = vec("i8", 64)
        bits, empty = mask.cast("bitcast", vec("i1", 64)), at.fn.value(kind, self.offset)
        found = at.load(vec("i8", 32), 32).part(0, 64)
        return self.bytes_of(at.fn.call(kind, "@llvm.x86.avx512.mask.expand.v64i8", found, empty, bits))

    def bytes_of(self, words: Value) -> list[Value]:
        """The group whose 64 bytes are those of a vector of that size."""
        if not self.bytewise:
            codes = words.cast("bitcast", "<64 x i8>")
            return [codes.part(16 * i, 16).cast("sext", "<16 x i16>") for i in range(4)]
        whole = words.cast("bitcast", vec("i32", 16))
        return [whole.part(i, self.lanes) for i in range(0, 16, self.lanes)] if self.lanes < 16 else [whole]

    def keep(self, group: list[Value], at: Value) -> None:
        """Write a group as :meth:`group` reads it."""
        width = 4 * self.lanes if self.bytewise else 16
        for i, part in enumerate(group):
            at.at(width * i).store(part if self.bytewise else part.cast("trunc", "<16 x i8>"), width)

    def codes(self, at: Value) -> Value:
        """Four activation codes in every row's place."""
        if self.bytewise:
            return at.load("i32", 1).splat(self.lanes)
        return at.load("i64", 1).splat(4).cast("bitcast", "<16 x i16>")

    def quads(self, at: Value) -> Callable[[int], Value]:
        """:meth:`codes` of each of four neighbouring quads."""
        if self.name != "neon":
            return lambda quad: self.codes(at.at(4 * quad * self.code_bytes))
        whole = at.load(self.dword, 1)  # the instruction picks the lane
        return lambda quad: whole.shuffle(whole, [quad] * 4)

    def dot(self, sums: list[Slot], group: list[Value], codes: Value, *, signed_group: bool = False) -> None:
        """sums += group · codes.  On an unsigned path the group's bytes are the unsigned ones, unless
        ``signed_group``: then the codes are."""
        for total, part in zip(sums, group, strict=True):
            if self.bytewise:
                first, second = (codes, part) if signed_group else (part, codes)
                total.set(self._dot(total.get(), first, second))
            else:
                total.set(total.get() + self._pairs(part, codes))

    def _dot(self, total: Value, first: Value, second: Value) -> Value:
        if self.unsigned:
            name = f"@llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return total.fn.call(self.dword, name, total, first, second)
        bytes_ = (x.cast("bitcast", vec("i8", 4 * self.lanes)) for x in (first, second))
        return total.fn.call(self.dword, "@llvm.aarch64.neon.sdot.v4i32.v16i8", total, *bytes_)

    def times(self, a: Value, b: Value) -> Value:
        """Products of 16 numbers of 16 bits with 16 of 15 bits that are not negative, int32."""
        if not self.name.startswith("avx"):
            return a * b
        parts = []
        for i in range(0, 16, self.lanes):
            words = (x.part(i, self.lanes).cast("bitcast", vec("i16", 2 * self.lanes)) for x in (a, b))
            parts.append(a.fn.call(self.dword, MADD_512 if self.lanes == 16 else MADD_256, *words))
        return joined(parts)

    def _pairs(self, a: Value, b: Value) -> Value:
        """int32 sums of neighbouring products of 16-bit numbers."""
        if self.name == "avx2":
            return a.fn.call("<8 x i32>", MADD_256, a, b)
        product = a.cast("sext", "<16 x i32>") * b.cast("sext", "<16 x i32>")
        even, odd = (product.shuffle(product, lanes) for lanes in PAIRS)
        return even + odd

    def total(self, sums: list[Slot]) -> Value:
        """The 16 sums of a group as one vector."""
        parts = [s.get() for s in sums]
        if not self.bytewise:
            parts = [a.shuffle(b, PAIRS[0]) + a.shuffle(b, PAIRS[1]) for a, b in (parts[:2], parts[2:])]
        return joined(parts)


def joined(parts: list[Value]) -> Value:
    """Equal vectors, a power of two of them, as one."""
    while len(parts) > 1:
        count = 2 * split(parts[0].kind)[1]
        parts = [a.shuffle(b, range(count)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


DECLARE_512 = """declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16>, <32 x i16>)
"""
DECLARE_EXPAND = "declare <64 x i8> @llvm.x86.avx512.mask.expand.v64i8(<64 x i8>, <64 x i8>, <64 x i1>)\n"
DECLARES = {
    "avx512vbmi2": DECLARE_512 + DECLARE_EXPAND,
    "avx512vnni": DECLARE_512,
    "avxvnni": "declare <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32>, <8 x i32>, <8 x i32>)\n"
    "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)\n",
    "neon": "declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n",
    "avx2": "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)\n"
    "declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)\n"
    "declare <32 x i8> @llvm.x86.avx2.packsswb(<16 x i16>, <16 x i16>)\n",
    "portable": "",
}
VNNI = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vnni")
X86 = (
    (("avx2", *VNNI, "avx512vbmi2"),
     Path("avx512vbmi2", "x86-64", "", 32, (8, 4, 2, 1), "i8", 128, 16, True, registers=32)),
    (("avx2", *VNNI), Path("avx512vnni", "x86-64", "", 32, (8, 4, 2, 1), "i8", 128, 16, registers=32)),
    (("avx2", "avxvnni"), Path("avxvnni", "x86-64", "", 16, (6, 4, 2, 1), "i8", 128, 8)),
    (("avx2",), Path("avx2", "x86-64", "", 16, (2, 1), "i16", 0)),
    ((), Path("portable", "x86-64", "", 16, (2, 1), "i16", 0)),
)
ARM = (
    (("dotprod",), Path("neon", "", "+neon,+dotprod", 16, (4, 2, 1), "i8", 0, 4, registers=32)),
    ((), Path("portable", "", "", 16, (2, 1), "i16", 0)),
)
AVX512 = ",+bmi,+bmi2,-prefer-256-bit"
TUNING = {"avx512vbmi2": AVX512, "avx512vnni": AVX512, "avxvnni": ",+bmi,+bmi2", "avx2": ",+bmi,+bmi2"}


def known(machine: str) -> dict[str, tuple[tuple[str, ...], Path]]:
    """Every path for a machine (as the system names it), best first, and the processor features it needs."""
    table = X86 if machine in X86_64 else ARM if machine in ARM_64 else ARM[-1:]
    paths = {}
    for needs, path in table:
        features = path.features or ",".join(f"+{name}" for name in needs) + TUNING.get(path.name, "")
        paths[path.name] = (needs, replace(path, features=features, machine=machine))
    return paths


def available() -> dict[str, Path]:
    """The paths this processor can run, best first."""
    has = {name for name, on in llvm.get_host_cpu_features().items() if on} | _dot_product()
    return {name: path for name, (needs, path) in known(platform.machine().lower()).items() if has.issuperset(needs)}


def _dot_product() -> set[str]:
    """Arm's dot-product extension where the system says so: LLVM does not look for it."""
    if platform.machine().lower() not in ARM_64:
        return set()
    info = Info("/proc/cpuinfo")
    there = "asimddp" in info.read_text("utf-8", "replace").split() if info.exists() else platform.system() == "Darwin"
    return {"dotprod"} if there else set()


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
