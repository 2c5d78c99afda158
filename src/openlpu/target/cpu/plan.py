"""Integer graph in, a static list of stages out: what the processor does for a token, in order, and where.

A *stage* is work that any number of threads can share as tiles, between two meeting points: matrices that read
the same codes (``linear``), attention per row and head (``attention``), or everything that needs a whole row at
once (``rows``).  Operators fall into stages by dependency alone: a node joins the stage of its latest input when
it may, otherwise the next one.  A residual addition and the gated product join the linear stage that makes their
input.  Stages that say the same about their shapes share one kernel, so code size does not grow with depth.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from openlpu._base.errors import Unsupported
from openlpu.arch.truepoint import sparse as tp
from openlpu.arch.truepoint.codes import MAX_K
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph.ir import Graph, Node, twins
from openlpu.target.cpu.attention_block import AttentionStage
from openlpu.target.cpu.cache import CacheLayout
from openlpu.target.cpu.linear import LinearStage, Part
from openlpu.target.cpu.mixture import one_format
from openlpu.target.cpu.rows import Op
from openlpu.target.cpu.sparse import PAIRS, Tiles
from openlpu.target.cpu.weights import BYTES, NIBBLES, Format

ROWS, LINEAR, ATTENTION = "rows", "linear", "attention"
CODING = ("quantize", "coded")
ALL = "all"  # where a value is that stages read of all rows at once: none may join the stage that writes it


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
    they lie in memory.

    ``experts`` gives (experts of a token, all experts) of every value with a row for each expert of a token, which is
    named as the first expert's; ``tables`` the words a token has of a value that the graph does not know."""

    stages: tuple[Stage, ...]
    cache: CacheLayout
    codes: dict[str, tuple[int, int]]
    alias: dict[str, str]
    packed: dict[str, str]
    formats: dict[str, Format]
    experts: dict[str, tuple[int, int]]
    tables: dict[str, int]


def formats(graph: Graph) -> dict[str, Format]:
    """How the codes of every matrix that a linear reads lie in memory."""
    return {n.params["codes"]: _format(n) for n in graph.nodes if n.op == "linear"}


def _format(linear: Node) -> Format:
    if "blocks" in linear.params:
        return NIBBLES
    sparse = linear.attrs.get("sparse")
    return BYTES if sparse is None else PAIRS if sparse == tp.PAIRS else Tiles(linear.attrs["tiles"])


def _sizes(graph: Graph, route: Node) -> tuple[int, int]:
    """(experts of a token, all experts)."""
    return route.attrs["chosen"], graph.values[route.output].size


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
        if isinstance(graph.config, EncoderConfig):
            raise Unsupported("an encoder on the cpu", where=graph.config.architecture, fix="use --target ref or chip")
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
        self.blocked = {n.inputs[0] for n in linears if "blocks" in n.params or n.attrs.get("sparse") == tp.BLOCKS}
        for op in ("select", "rms"):
            self.blocked |= {self.makers[name].inputs[0] for name in self.blocked if self.makers[name].op == op}
        self.packed = {n.params["codes"]: n.params.get("blocks", "") for n in linears}
        self.formats = formats(graph)
        self.twins = twins(graph)
        self.routes: dict[str, Node] = {}  # value with rows for experts -> what chose them
        self.tables: dict[str, int] = {}

    def plan(self) -> Plan:
        """The finished plan."""
        others = {node.output: first for first, nodes in self.twins.items() for node in nodes[1:]}
        for node in self.graph.nodes:
            if node.output not in others:
                getattr(self, f"_{node.op}", self._row)(node)
        self.alias |= others
        experts = {name: _sizes(self.graph, route) for name, route in self.routes.items()}
        order = [self.drafts[key] for key in sorted(self.drafts, key=lambda k: k[0])]
        stores = [i for i, d in enumerate(order) if any(op.name == "store" for op in d.ops)]
        last = stores[-1] if stores else -1
        stages = [self._finish(draft, i > last) for i, draft in enumerate(order)]
        return Plan(tuple(stages), self.cache, self.codes, self.alias, self.packed, self.formats,
                    experts, self.tables)

    def _finish(self, draft: _Draft, logits_only: bool) -> Stage:
        spec = draft.spec
        if draft.kind == ROWS:
            spec = tuple(draft.ops)
        elif draft.kind == LINEAR:
            size, wide = self.codes[draft.source]
            codes, meta = draft.slot("value", draft.source), draft.slot("meta", draft.source)
            spec = LinearStage(size, wide, codes, meta, tuple(draft.parts))
            if route := self.routes.get(draft.source):
                (chosen, experts), starts = _sizes(self.graph, route), f"{route.output}.starts"
                spec = replace(spec, experts=experts, chosen=chosen, starts=draft.slot("value", starts))
                draft.reads.append(starts)
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
        words = {"add": ("a", "b"), "silu_mul": ("gate", "up"), "swiglu": ("gate", "up")}.get(node.op, ("x",))
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
        if not any(op.name in CODING for op in draft.ops):
            draft.where = where  # what an error names
        op = Op("quantize", slots, (("size", size), ("wide", wide), ("blocks", out in self.blocked)))
        if route := self.routes.get(x):
            self.routes[out], places = route, f"{route.output}.places"
            draft.reads.append(places)
            op = Op("coded", (*slots, ("places", draft.slot("value", places))),
                    (*op.numbers, ("chosen", route.attrs["chosen"])))
        draft.ops.append(op)
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
        nodes = self.twins.get(node.output, (node,))
        one_format(nodes)
        words = {"codes": "packed", "scale": "vector", "bias": "vector"}
        slot = {word: [draft.slot(words[word], one.params[word]) for one in nodes][0]  # and behind it the others'
                for word in words if word in node.params}
        if node.output in self.twins:
            self.routes[node.output] = self.routes[x]
        part = Part(
            self.graph.values[node.output].size, slot["codes"], slot["scale"], draft.slot("value", node.output),
            slot.get("bias", -1), format=self.formats[node.params["codes"]], logits=node.output == self.graph.output,
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
        clamp = (node.attrs["alpha"], node.attrs["limit"]) if node.op == "swiglu" else None
        draft.parts[i] = replace(draft.parts[i], gate=draft.parts[j], clamp=clamp)
        del draft.parts[j]
        draft.writes.remove(gate)
        self._replace_output(draft, up, node.output)
        if up in self.routes:
            self.routes[node.output] = self.routes[up]

    _swiglu = _silu_mul

    def _route(self, node: Node) -> None:
        self._row(node)
        self.place[node.output] = (self.place[node.output][0], ALL)

    def _select(self, node: Node) -> None:
        """Rows of all experts: where they are, and the codes there."""
        q, weights = node.inputs
        self.routes[node.output] = route = self.makers[weights]
        draft, (chosen, experts) = self._draft(ROWS, node, node.inputs), _sizes(self.graph, route)
        self.tables |= {f"{weights}.places": chosen, f"{weights}.starts": experts + 1}
        read = {"codes": ("value", self.alias.get(q, q)), "meta": ("meta", q), "weights": ("value", weights)}
        made = {"out": ("value", node.output), "out_meta": ("meta", node.output),
                "places": ("value", f"{weights}.places"), "starts": ("value", f"{weights}.starts")}
        slots = tuple((word, draft.slot(*operand)) for word, operand in (read | made).items())
        self.codes[node.output] = size, wide = self.codes[q]
        draft.ops.append(Op("group", slots, (("size", size), ("wide", wide), ("chosen", chosen), ("experts", experts))))
        for name in (node.output, f"{weights}.places", f"{weights}.starts"):
            self._written(draft, name)

    def _mix(self, node: Node) -> None:
        weights, first = node.inputs[:2]
        places, size = f"{weights}.places", self.graph.values[node.output].size
        chosen, experts = _sizes(self.graph, self.routes[first])
        draft = self._draft(ROWS, node, (weights, first, places))
        read = {"x": first, "weights": weights, "places": places, "out": node.output}
        slots = tuple((word, draft.slot("value", name)) for word, name in read.items())
        draft.ops.append(Op("mix", slots, (("size", size), ("chosen", chosen), ("experts", experts))))
        self._written(draft, node.output)

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
        sinks = stage.slot("raw", node.params["sinks"]) if "sinks" in node.params else -1
        stage.spec = AttentionStage(
            node.attrs["heads"], self.cache, node.attrs["softmax_scale"], node.attrs.get("window", 0), sinks=sinks
        )
        self._written(stage, node.output)
