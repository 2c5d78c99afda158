"""Python expressions in, LLVM IR text out: one function at a time.

A :class:`Value` is an IR register that knows its type and its function, so ``p * r + c`` in the generator reads
like the arithmetic it emits.  No instruction ever carries a fast-math flag: fp32 ``+ - *`` stay what they are.
Loop-carried values live in stack slots (:class:`Slot`), which LLVM's SROA pass turns into registers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

FLOATS = ("float", "double")


def vec(element: str, lanes: int) -> str:
    """The IR type of a vector; one lane is the scalar itself."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def split(kind: str) -> tuple[str, int]:
    """(element type, lanes) of an IR type."""
    if not kind.startswith("<"):
        return kind, 1
    lanes, element = kind[1:-1].split(" x ")
    return element, int(lanes)


def literal(kind: str, number: float) -> str:
    """A constant's text; a float is written as the 64-bit pattern of its exact value."""
    element, lanes = split(kind)
    if element == "float":
        text = f"0x{struct.unpack('<Q', struct.pack('<d', float(number)))[0]:016X}"
    else:
        width = int(element[1:])
        text = str((int(number) + (1 << (width - 1))) % (1 << width) - (1 << (width - 1)))
    return text if lanes == 1 else "<" + ", ".join([f"{element} {text}"] * lanes) + ">"


class Value:
    """An IR register or constant of one function; arithmetic on it appends instructions."""

    __slots__ = ("fn", "kind", "ref")

    def __init__(self, fn: Function, kind: str, ref: str) -> None:
        self.fn, self.kind, self.ref = fn, kind, ref

    def _binary(self, other: Operand, floating: str, integer: str) -> Value:
        op = floating if split(self.kind)[0] in FLOATS else integer
        assert op, f"no such operation on {self.kind}"
        return self.fn.define(self.kind, f"{op} {self.kind} {self.ref}, {self.fn.value(self.kind, other).ref}")

    def __add__(self, other: Operand) -> Value:
        return self._binary(other, "fadd", "add")

    def __sub__(self, other: Operand) -> Value:
        return self._binary(other, "fsub", "sub")

    def __mul__(self, other: Operand) -> Value:
        return self._binary(other, "fmul", "mul")

    def __and__(self, other: Operand) -> Value:
        return self._binary(other, "", "and")

    def __or__(self, other: Operand) -> Value:
        return self._binary(other, "", "or")

    def __xor__(self, other: Operand) -> Value:
        return self._binary(other, "", "xor")

    def __lshift__(self, other: Operand) -> Value:
        return self._binary(other, "", "shl")

    def __rshift__(self, other: Operand) -> Value:
        """Arithmetic shift: the sign is kept."""
        return self._binary(other, "", "ashr")

    def udiv(self, other: Operand) -> Value:
        return self._binary(other, "", "udiv")

    def urem(self, other: Operand) -> Value:
        return self._binary(other, "", "urem")

    def compare(self, predicate: str, other: Operand) -> Value:
        """``predicate`` in LLVM's words: slt, ult, eq … or olt, ogt for floats."""
        element, lanes = split(self.kind)
        op = "fcmp" if element in FLOATS else "icmp"
        text = f"{op} {predicate} {self.kind} {self.ref}, {self.fn.value(self.kind, other).ref}"
        return self.fn.define(vec("i1", lanes), text)

    def cast(self, op: str, kind: str) -> Value:
        """sext, zext, trunc, sitofp, bitcast … to another type."""
        return self.fn.define(kind, f"{op} {self.kind} {self.ref} to {kind}")

    def as_kind(self, element: str) -> Value:
        """The same bits as another element type of the same width."""
        return self.cast("bitcast", vec(element, split(self.kind)[1]))

    def splat(self, lanes: int) -> Value:
        """This scalar in every lane."""
        if lanes == 1:
            return self
        kind = vec(self.kind, lanes)
        one = self.fn.define(kind, f"insertelement {kind} poison, {self.kind} {self.ref}, i32 0")
        return one.shuffle(one, [0] * lanes)

    def shuffle(self, other: Value, lanes: Sequence[int]) -> Value:
        """Lanes picked from the concatenation of this vector and ``other``."""
        mask = ", ".join(f"i32 {i}" for i in lanes)
        kind = vec(split(self.kind)[0], len(lanes))
        if len(lanes) == 1:
            return self.fn.define(kind, f"extractelement {self.kind} {self.ref}, i32 {lanes[0]}")
        operands = f"{self.kind} {self.ref}, {other.kind} {other.ref}"
        return self.fn.define(kind, f"shufflevector {operands}, <{len(lanes)} x i32> <{mask}>")

    def part(self, start: int, count: int) -> Value:
        """``count`` neighbouring lanes from ``start``."""
        return self.shuffle(self, range(start, start + count))

    def at(self, offset: Value | int) -> Value:
        """This pointer plus a number of bytes."""
        if isinstance(offset, int) and offset == 0:
            return self
        return self.fn.define("ptr", f"getelementptr i8, ptr {self.ref}, i64 {self.fn.value('i64', offset).ref}")

    def load(self, kind: str, align: int = 4) -> Value:
        """The value of type ``kind`` at this pointer."""
        return self.fn.define(kind, f"load {kind}, ptr {self.ref}, align {align}")

    def store(self, value: Value, align: int = 4) -> None:
        """Write ``value`` at this pointer."""
        self.fn.line(f"store {value.kind} {value.ref}, ptr {self.ref}, align {align}")


Operand = Value | int | float


class Slot(NamedTuple):
    """A mutable local: a stack slot that SROA turns into registers."""

    kind: str
    pointer: Value

    def get(self) -> Value:
        return self.pointer.load(self.kind, 64)

    def set(self, value: Value) -> None:
        self.pointer.store(value, 64)


class Function:
    """One IR function under construction."""

    def __init__(self, name: str, result: str, params: Sequence[tuple[str, str]]) -> None:
        self.name, self.result = name, result
        self.head = f"{result} @{name}({', '.join(f'{kind} %{word}' for kind, word in params)})"
        self.params = {word: Value(self, kind, f"%{word}") for kind, word in params}
        self.entry: list[str] = []
        self.body: list[str] = []
        self.count = 0

    def line(self, text: str) -> None:
        self.body.append(f"  {text}")

    def define(self, kind: str, text: str) -> Value:
        """A new register holding the instruction's result."""
        self.count += 1
        self.line(f"%r{self.count} = {text}")
        return Value(self, kind, f"%r{self.count}")

    def value(self, kind: str, operand: Operand) -> Value:
        """An operand as a value: numbers become constants of ``kind`` in every lane."""
        if isinstance(operand, Value):
            assert operand.kind == kind, f"{self.name}: {operand.kind} where {kind} is meant"
            return operand
        return Value(self, kind, literal(kind, operand))

    def slot(self, kind: str, start: Operand = 0) -> Slot:
        """A mutable local with a first value."""
        self.count += 1
        self.entry.append(f"  %r{self.count} = alloca {kind}, align 64")
        slot = Slot(kind, Value(self, "ptr", f"%r{self.count}"))
        slot.set(self.value(kind, start))
        return slot

    def select(self, condition: Value, yes: Operand, no: Operand) -> Value:
        """Per lane: ``yes`` where the condition holds; at least one of the two is a value."""
        known = yes if isinstance(yes, Value) else no
        assert isinstance(known, Value), "a select needs one typed operand"
        a, b = self.value(known.kind, yes), self.value(known.kind, no)
        text = f"select {condition.kind} {condition.ref}, {a.kind} {a.ref}, {b.kind} {b.ref}"
        return self.define(a.kind, text)

    def call(self, result: str, name: str, *args: Value) -> Value:
        """Call a function by name (``@name``) or through a pointer register."""
        text = f"call {result} {name}({', '.join(f'{a.kind} {a.ref}' for a in args)})"
        if result == "void":
            self.line(text)
            return Value(self, "void", "void")
        return self.define(result, text)

    def label(self) -> str:
        self.count += 1
        return f"l{self.count}"

    def start(self, label: str) -> None:
        self.body.append(f"{label}:")

    def jump(self, label: str) -> None:
        self.line(f"br label %{label}")

    def branch(self, condition: Value, yes: str, no: str) -> None:
        self.line(f"br i1 {condition.ref}, label %{yes}, label %{no}")

    @contextmanager
    def loop(self, stop: Operand, step: int = 1) -> Iterator[Value]:
        """``for i in range(0, stop, step)`` with an i64 index; the test is at the bottom."""
        end, body, done = self.value("i64", stop), self.label(), self.label()
        index = self.slot("i64")
        if isinstance(stop, Value):
            self.branch(end.compare("sgt", 0), body, done)
        else:
            assert stop > 0, "an empty loop is not emitted"
            self.jump(body)
        self.start(body)
        yield index.get()
        index.set(index.get() + step)
        self.branch(index.get().compare("slt", end), body, done)
        self.start(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition:``."""
        body, done = self.label(), self.label()
        self.branch(condition, body, done)
        self.start(body)
        yield
        self.jump(done)
        self.start(done)

    def chunks(self, size: int, lanes: int = 16) -> Iterator[tuple[Value, int]]:
        """Cover ``size`` elements: (index, lanes) of full vectors in a loop, then shrinking vectors."""
        full = size - size % lanes
        if full:
            with self.loop(full, lanes) as i:
                yield i, lanes
        while size - full:
            lanes = min(lanes, 1 << ((size - full).bit_length() - 1))
            yield self.value("i64", full), lanes
            full += lanes

    def text(self) -> str:
        """The definition; the caller has ended the body with a terminator."""
        return "\n".join([f"define {self.head} {{", "l0:", *self.entry, *self.body, "}", ""])


def reduce(vector: Value, combine: str) -> Value:
    """All lanes into one by halving; ``combine`` is add, smax, or (all order-free); fmax, fmin for finite floats."""
    while (lanes := split(vector.kind)[1]) > 1:
        half = lanes // 2
        vector = pair(vector.part(0, half), vector.part(half, half), combine)
    return vector


def pair(a: Value, b: Value, combine: str) -> Value:
    """Two values into one."""
    if combine == "add":
        return a + b
    if combine == "or":
        return a | b
    return a.fn.select(a.compare({"fmax": "ogt", "fmin": "olt", "smax": "sgt"}[combine], b), a, b)
