"""Integer graph in, a static list of stages out: what the processor does for a token, in order, and where.

A *stage* is work that any number of threads can share as tiles, between two meeting points: matrices that read
the same codes (``linear``), attention per row and head (``attention``), or everything that needs a whole row at
once (``rows``).  Operators fall into stages by dependency alone: a node joins the stage of its latest input when
it may, otherwise the next one.  A residual addition and the gated product join the linear stage that makes their
input.  Stages that say the same about their shapes share one kernel, so code size does not grow with depth.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from openlpu.arch.truepoint import sparse as tp
from openlpu.arch.truepoint.codes import MAX_K
from openlpu.graph.ir import Graph, Node
from openlpu.target.cpu.attention_block import AttentionStage
from openlpu.target.cpu.cache import CacheLayout
from openlpu.target.cpu.linear import LinearStage, Part
from openlpu.target.cpu.rows import Op
from openlpu.target.cpu.sparse import PAIRS, Tiles
from openlpu.target.cpu.weights import BYTES, NIBBLES, Format

ROWS, LINEAR, ATTENTION = "rows", "linear", "attention"


@dataclass(frozen=True)
class Operand:
    """What an argument slot points at: a ``value`` or its ``meta``, a parameter ``packed``, as a padded
    ``vector`` or ``raw``, the ``cache`` of a layer, or the ``parts`` that tiles of attention share."""

    kind: str
    name: str


Spec = tuple[Op, ...] | LinearStage | AttentionStage


@dataclass(frozen=True)
class Stage:
    """One entry of the plan; ``operands`` fill the argument slots from 1 on (slot 0 is the stage's number)."""

    kind: str
    where: str
    spec: Spec
    operands: tuple[Operand, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    logits_only: bool = False


@dataclass(frozen=True)
class Plan:
    """All stages in order; ``codes`` gives every coded value's (size, wide channels), ``alias`` the value whose
    codes a value shares, ``packed`` the parameter of block bytes (or none) of every matrix's codes, ``formats`` how
    they lie in memory."""

    stages: tuple[Stage, ...]
    cache: CacheLayout
    codes: dict[str, tuple[int, int]]
    alias: dict[str, str]
    packed: dict[str, str]
    formats: dict[str, Format]


def formats(graph: Graph) -> dict[str, Format]:
    """How the codes of every matrix that a linear reads lie in memory."""
    return {n.params["codes"]: _format(n) for n in graph.nodes if n.op == "linear"}


def _format(linear: Node) -> Format:
    if "blocks" in linear.params:
        return NIBBLES
    sparse = linear.attrs.get("sparse")
    return BYTES if sparse is None else PAIRS if sparse == tp.PAIRS else Tiles(linear.attrs["tiles"])


@dataclass
class _Draft:
    """A stage while nodes are still joining it."""

    kind: str
    where: str
    level: int
    operands: dict[Operand, int] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    source: str = ""
    spec: Spec = ()
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)

    def slot(self, kind: str, name: str) -> int:
        """The argument slot of an operand, a new one when it is."""
        return self.operands.setdefault(Operand(kind, name), len(self.operands) + 1)


class Planner:
    """Reads a graph once, in order."""

    def __init__(self, graph: Graph, context: int) -> None:
        self.graph = graph
        config = graph.config
        kv_bits = {n.attrs["kv_bits"] for n in graph.nodes if n.op == "attention"} or {8}
        assert len(kv_bits) == 1, "one cache format per model"
        self.cache = CacheLayout(config.kv_heads, config.head_dim, kv_bits.pop(), context)
        self.drafts: dict[tuple[int, str, str], _Draft] = {}
        self.place: dict[str, tuple[int, str]] = {"token": (-1, "")}  # value -> (level, kind) of its stage
        self.codes: dict[str, tuple[int, int]] = {}
        self.alias: dict[str, str] = {}
        self.users = {name: len(nodes) for name, nodes in graph.consumers().items()}
        self.makers = graph.producers()
        linears = [n for n in graph.nodes if n.op == "linear"]
        inputs = {n.inputs[0] for n in linears if "blocks" in n.params or n.attrs.get("sparse") == tp.BLOCKS}
        self.blocked = inputs | {self.makers[name].inputs[0] for name in inputs if self.makers[name].op == "rms"}
        self.packed = {n.params["codes"]: n.params.get("blocks", "") for n in linears}
        self.formats = formats(graph)

    def plan(self) -> Plan:
        """The finished plan."""
        for node in self.graph.nodes:
            getattr(self, f"_{node.op}", self._row)(node)
        order = [self.drafts[key] for key in sorted(self.drafts, key=lambda k: k[0])]
        stores = [i for i, d in enumerate(order) if any(op.name == "store" for op in d.ops)]
        last = stores[-1] if stores else -1
        stages = [self._finish(draft, i > last) for i, draft in enumerate(order)]
        return Plan(tuple(stages), self.cache, self.codes, self.alias, self.packed, self.formats)

    def _finish(self, draft: _Draft, logits_only: bool) -> Stage:
        spec = draft.spec
        if draft.kind == ROWS:
            spec = tuple(draft.ops)
        elif draft.kind == LINEAR:
            size, wide = self.codes[draft.source]
            codes, meta = draft.slot("value", draft.source), draft.slot("meta", draft.source)
            spec = LinearStage(size, wide, codes, meta, tuple(draft.parts))
        reads = tuple(self.alias.get(name, name) for name in draft.reads) + tuple(draft.reads)
        return Stage(draft.kind, draft.where, spec, tuple(draft.operands), reads, tuple(draft.writes), logits_only)

    def _draft(self, kind: str, node: Node, reads: tuple[str, ...], source: str = "") -> _Draft:
        """The stage of this kind after everything in ``reads``; row work joins the row stage it reads from."""
        level = max(self.place[name][0] for name in reads)
        latest = {self.place[name][1] for name in reads if self.place[name][0] == level}
        if kind != ROWS or latest != {ROWS}:
            level += 1
        draft = self.drafts.setdefault((level, kind, source), _Draft(kind, node.where, level, source=source))
        draft.reads.extend(reads)
        return draft

    def _written(self, draft: _Draft, name: str) -> None:
        draft.writes.append(name)
        self.place[name] = (draft.level, draft.kind)

    def _row(self, node: Node) -> None:
        """A row operator whose slots are its inputs and parameters by word."""
        words = {"add": ("a", "b"), "silu_mul": ("gate", "up")}.get(node.op, ("x",))
        draft = self._draft(ROWS, node, node.inputs)
        slots = {word: draft.slot("value", name) for word, name in zip(words, node.inputs, strict=True)}
        slots |= {word: draft.slot("raw", key) for word, key in node.params.items()}
        slots["out"] = draft.slot("value", node.output)
        numbers = {"size": self.graph.values[node.output].size, **node.attrs}
        draft.ops.append(Op(node.op, tuple(slots.items()), tuple(numbers.items())))
        self._written(draft, node.output)

    def _embed(self, node: Node) -> None:
        draft = self._draft(ROWS, node, node.inputs)
        packed = node.params["codes"] in self.packed
        slots = {word: draft.slot("raw", node.params[word]) for word in ("scale", "gain") if word in node.params}
        slots["codes"] = draft.slot("packed" if packed else "raw", node.params["codes"])
        slots["out"] = draft.slot("value", node.output)
        format = self.formats[node.params["codes"]] if packed else None
        numbers = (("size", self.graph.values[node.output].size), ("format", format))
        draft.ops.append(Op("embed", tuple(slots.items()), numbers))
        self._written(draft, node.output)

    def _quantize(self, node: Node) -> None:
        (x,) = node.inputs
        draft = self._draft(ROWS, node, node.inputs)
        self._code(draft, node.where, x, node.output, self.graph.values[x].size, node.attrs["wide"])

    def _code(self, draft: _Draft, where: str, x: str, out: str, size: int, wide: int) -> None:
        slots = (("x", draft.slot("value", x)), ("codes", draft.slot("value", out)),
                 ("meta", draft.slot("meta", out)))
        if not any(op.name == "quantize" for op in draft.ops):
            draft.where = where  # what an error names
        draft.ops.append(Op("quantize", slots, (("size", size), ("wide", wide), ("blocks", out in self.blocked))))
        self.codes[out] = (size, wide)
        self._written(draft, out)

    def _rms(self, node: Node) -> None:
        q, reference = node.inputs
        draft = self._draft(ROWS, node, node.inputs)
        size, wide = self.codes[reference]
        slots = (("codes", draft.slot("value", self.alias.get(reference, reference))),
                 ("reference_meta", draft.slot("meta", reference)), ("meta", draft.slot("meta", q)),
                 ("out", draft.slot("meta", node.output)))
        draft.ops.append(Op("rms", slots, (("size", size), ("wide", wide), ("eps", node.attrs["eps"]))))
        self.codes[node.output] = self.codes[q]
        self.alias[node.output] = self.alias.get(q, q)
        self._written(draft, node.output)

    def _linear(self, node: Node) -> None:
        (x,) = node.inputs
        assert self.graph.values[x].size <= MAX_K, f"{node.where}: sums of this many products are not exact"
        draft = self._draft(LINEAR, node, node.inputs, x)
        bias = draft.slot("vector", node.params["bias"]) if "bias" in node.params else -1
        part = Part(
            self.graph.values[node.output].size, draft.slot("packed", node.params["codes"]),
            draft.slot("vector", node.params["scale"]), draft.slot("value", node.output), bias,
            format=self.formats[node.params["codes"]], logits=node.output == self.graph.output,
        )
        draft.parts.append(part)
        self._written(draft, node.output)

    def _fusable(self, name: str) -> bool:
        """Whether a value is a linear's result that nobody else reads."""
        maker = self.makers.get(name)
        return (maker is not None and maker.op == "linear" and self.users[name] == 1
                and name != self.graph.output and self.place[name][1] == LINEAR)

    def _part_of(self, name: str) -> tuple[_Draft, int]:
        """The stage and part that write a linear's result."""
        level, _ = self.place[name]
        draft = self.drafts[level, LINEAR, self.makers[name].inputs[0]]
        slot = draft.operands[Operand("value", name)]
        return draft, next(i for i, part in enumerate(draft.parts) if part.out == slot)

    def _replace_output(self, draft: _Draft, old: str, new: str) -> None:
        """A fused operator's value takes the linear result's place."""
        slot = draft.operands[Operand("value", old)]
        draft.operands = {Operand("value", new) if s == slot else o: s for o, s in draft.operands.items()}
        draft.writes.remove(old)
        self._written(draft, new)

    def _add(self, node: Node) -> None:
        later, other = sorted(node.inputs, key=lambda name: self.place[name], reverse=True)
        if not self._fusable(later) or self.place[other][0] >= self.place[later][0]:
            self._row(node)
            return
        draft, i = self._part_of(later)
        draft.reads.append(other)
        draft.parts[i] = replace(draft.parts[i], residual=draft.slot("value", other))
        self._replace_output(draft, later, node.output)

    def _silu_mul(self, node: Node) -> None:
        gate, up = node.inputs
        joint = (self._fusable(gate) and self._fusable(up) and gate != up
                 and self.makers[gate].inputs == self.makers[up].inputs)
        if not joint:
            self._row(node)
            return
        draft, i = self._part_of(up)
        _, j = self._part_of(gate)
        draft.parts[i] = replace(draft.parts[i], gate=draft.parts[j])
        del draft.parts[j]
        draft.writes.remove(gate)
        self._replace_output(draft, up, node.output)

    def _attention(self, node: Node) -> None:
        """Codes of the query and cache writes are row work; the sums over the cache are a stage of their own."""
        q, k, v = node.inputs
        layer, size = str(node.attrs["layer"]), self.graph.values[q].size
        draft = self._draft(ROWS, node, node.inputs)
        coded = f"{node.output}.query"
        self._code(draft, node.where, q, coded, size, size)
        for which, x in (("k", k), ("v", v)):
            slots = (("x", draft.slot("value", x)), ("cache", draft.slot("cache", layer)))
            if which == "k" and "centre" in node.params:
                slots += (("centre", draft.slot("raw", node.params["centre"])),)
            draft.ops.append(Op("store", slots, (("which", which),)))
        stage = self._draft(ATTENTION, node, (coded,), coded)
        for kind, name in (("value", coded), ("meta", coded), ("cache", layer), ("value", node.output),
                           ("parts", "")):
            stage.slot(kind, name)
        stage.spec = AttentionStage(
            node.attrs["heads"], self.cache, node.attrs["softmax_scale"], node.attrs.get("window", 0)
        )
        self._written(stage, node.output)
