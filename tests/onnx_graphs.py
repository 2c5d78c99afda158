"""A tiny Hugging Face model in; the same decoder as an ONNX graph out, in the ways exporters write one.

Independent of what reads it: names of nodes are numbers, and every choice of an exporter is an option.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.folder import load
from openlpu.graph import build
from openlpu.graph.rotary import frequencies


@dataclass(frozen=True)
class Style:
    """How the graph is written."""

    opset: int = 17
    standard: bool = False  # Attention, RMSNormalization, RotaryEmbedding
    cache: str = ""  # "", "grow" or "slots" (TensorScatter)
    weights: str = "matmul"  # matmul, gemm or fused
    turn: str = "half"  # half, split, table, interleaved (rows of queries and keys in that order)
    mask: str = "add"  # add, where, input, causal (an attribute)
    scale: str = "scores"  # scores, both (queries and keys by its root)
    repeat: str = "expand"  # expand, five (scores of rank 5)
    root: str = "sqrt"  # sqrt, div, power
    slots: int = 48
    context: int = 64  # rows of a table of angles
    theta: float | None = None
    hide: int = 0  # how far the mask looks ahead: 0 is causal
    half: bool = False  # weights in fp16, cast where they are used


@dataclass
class Writer:
    """A graph in the making."""

    style: Style
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    number: Any = field(default_factory=itertools.count)

    def add(self, kind: str, *inputs: Any, outputs: int = 0, **attributes: Any) -> Any:
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        made = [f"v{next(self.number)}" for _ in range(outputs or 1)]
        self.nodes.append(helper.make_node(kind, names, made, name=f"n{next(self.number)}", **attributes))
        return made if outputs else made[0]

    def constant(self, array: Any) -> str:
        name = f"c{next(self.number)}"
        array = np.asarray(array)
        wide = {"i": np.int64, "f": np.float32}.get(array.dtype.kind) if array.dtype != np.float16 else None
        self.constants[name] = array if wide is None else array.astype(wide)
        return name

    def input(self, name: str, kind: int, shape: list[Any]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, shape: list[Any]) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"n{next(self.number)}"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def save(self, path: Path, **options: Any) -> Path:
        made = [numpy_helper.from_array(np.array(a, order="C"), n) for n, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, made)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.style.opset)])
        model.ir_version = 10
        onnx.save_model(model, str(path), **options)
        return path


def export(folder: Path, path: Path, style: Style = Style(), **options: Any) -> Path:
    """Write the model of a folder as an ONNX graph."""
    writer = Writer(style)
    Decoder(writer, load(folder)).run()
    return writer.save(path, **options)


class Decoder:
    """A decoder, operator by operator, over [1, T, channels]."""

    def __init__(self, writer: Writer, checkpoint: Any) -> None:
        self.w, self.style = writer, writer.style
        self.config: ModelConfig = checkpoint.config
        self.tensors = {name: np.array(checkpoint.tensors[name]) for name in build(checkpoint).params}
        if self.style.turn == "interleaved":
            for name in list(self.tensors):
                if name.split(".")[-2] in ("q_proj", "k_proj"):
                    x = self.tensors[name]
                    halves = x.reshape(-1, 2, self.config.head_dim // 2, *x.shape[1:])
                    self.tensors[name] = halves.swapaxes(1, 2).reshape(x.shape)

    def run(self) -> None:
        c, w = self.config, self.w
        ids = w.input("input_ids", TensorProto.INT64, [1, "T"])
        self.caches = {}
        if self.style.cache:
            size: Any = self.style.slots if self.style.cache == "slots" else "P"
            for i in range(c.layers):
                for word in ("key", "value"):
                    name = f"past_key_values.{i}.{word}"
                    self.caches[i, word] = w.input(name, TensorProto.FLOAT, [1, c.kv_heads, size, c.head_dim])
        self.count = w.add("Gather", w.add("Shape", ids), 1)
        self.past = self.past_length()
        self.positions = w.add("Range", self.past, w.add("Add", self.past, self.count), 1)
        self.total = w.add("Add", self.past, self.count)
        self.mask = self.masks()
        self.cos, self.sin = self.angles()
        x = w.add("Gather", self.tensors["model.embed_tokens.weight"], ids)
        for i in range(c.layers):
            x = w.add("Add", self.attention(i, x), x)
            x = w.add("Add", x, self.mlp(i, x))
        head = "model.embed_tokens" if c.tied else "lm_head"
        w.output("logits", self.linear(head, self.norm("model.norm", x)), [1, "T", c.vocab])
        for (i, word), value in self.caches.items():
            w.output(f"present.{i}.{word}", value, [1, c.kv_heads, "S", c.head_dim])

    def past_length(self) -> str:
        if self.style.cache == "slots":
            self.start = self.w.input("write_indices", TensorProto.INT64, [1])
            return self.w.add("Squeeze", self.start, [0])
        if self.style.cache == "grow":
            return self.w.add("Gather", self.w.add("Shape", self.caches[0, "key"]), 2)
        return self.w.constant(0)

    def masks(self) -> dict[int, str]:
        """The mask of a layer with a window and of one without: added numbers, truths, or nothing."""
        w, made = self.w, {}
        if self.style.mask == "causal":
            return {}
        if self.style.mask == "input":
            kind = TensorProto.FLOAT
            return dict.fromkeys((0, self.config.window), w.input("attention_mask", kind, [1, 1, "T", "S"]))
        width = self.style.slots if self.style.cache == "slots" else self.total
        at = w.add("Range", 0, width, 1)
        rows = w.add("Unsqueeze", self.positions, [1])
        for window in (0, self.config.window):
            seen = w.add("LessOrEqual", at, w.add("Add", rows, self.style.hide))
            if window:
                seen = w.add("And", seen, w.add("Greater", at, w.add("Sub", rows, window)))
            made[window] = seen if self.style.mask == "where" else w.add("Where", seen, 0.0, -3.4e38)
        return made

    def angles(self) -> tuple[str, str]:
        """Cosines and sines [1, T, D / 2], or tables of both halves [1, 1, T, D]."""
        w, c = self.w, self.config
        theta = [float(f) for f in frequencies(c.rope, c.head_dim)]
        if self.style.turn == "table":
            angle = np.outer(np.arange(self.style.context), theta * 2)
            return tuple(w.add("Gather", f(angle)[None, None], self.positions, axis=2) for f in (np.cos, np.sin))
        places = w.add("Unsqueeze", w.add("Cast", self.positions, to=TensorProto.FLOAT), [0, 2])
        angle = w.add("Mul", places, np.array(theta))
        if not self.style.standard:
            angle = w.add("Unsqueeze", angle, [1])
            if self.style.turn == "half":
                angle = w.add("Concat", angle, angle, axis=-1)
        return w.add("Cos", angle), w.add("Sin", angle)

    def linear(self, name: str, x: str) -> str:
        return self.product(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def product(self, x: str, weight: np.ndarray, bias: np.ndarray | None) -> str:
        w = self.w
        if self.style.weights == "gemm":
            flat = w.add("Reshape", x, [-1, weight.shape[1]])
            y = w.add("Gemm", flat, weight, *([] if bias is None else [bias]), transB=1)
            return w.add("Reshape", y, w.add("Concat", [1], w.add("Unsqueeze", self.count, [0]), [-1], axis=0))
        turned = w.add("Transpose", weight.astype(np.float16) if self.style.half else weight, perm=[1, 0])
        y = w.add("MatMul", x, w.add("Cast", turned, to=TensorProto.FLOAT) if self.style.half else turned)
        return y if bias is None else w.add("Add", bias, y)

    def norm(self, name: str, x: str) -> str:
        w, gain, eps = self.w, self.tensors[f"{name}.weight"], self.config.norm_eps
        if self.style.standard:
            return w.add("RMSNormalization", x, gain, epsilon=eps, axis=-1)
        square = w.add("Mul", x, x) if self.style.root == "power" else w.add("Pow", x, 2.0)
        last = {"axes": [-1]} if self.style.opset < 18 else {}
        mean = w.add("ReduceMean", square, *([] if last else [[-1]]), **last)
        mean = w.add("Add", mean, np.float32(eps))
        if self.style.root == "power":
            y = w.add("Mul", w.add("Pow", mean, -0.5), x)
        elif self.style.root == "div":
            y = w.add("Div", x, w.add("Sqrt", mean))
        else:
            y = w.add("Mul", x, w.add("Div", 1.0, w.add("Sqrt", mean)))
        return w.add("Mul", gain, y)

    def mlp(self, i: int, x: str) -> str:
        w, at = self.w, f"model.layers.{i}.mlp"
        h = self.norm(f"model.layers.{i}.post_attention_layernorm", x)
        if self.style.weights == "fused" and f"{at}.up_proj.bias" not in self.tensors:
            both = np.concatenate([self.tensors[f"{at}.{word}_proj.weight"] for word in ("gate", "up")])
            gate, up = w.add("Split", self.product(h, both, None), [self.config.intermediate] * 2, outputs=2, axis=-1)
        else:
            gate, up = (self.linear(f"{at}.{word}_proj", h) for word in ("gate", "up"))
        silu = w.add("Swish", gate) if self.style.opset >= 24 else w.add("Mul", gate, w.add("Sigmoid", gate))
        return self.linear(f"{at}.down_proj", w.add("Mul", silu, up))

    def projections(self, i: int, h: str) -> list[str]:
        """Queries, keys and values [1, T, heads * D]."""
        c, at = self.config, f"model.layers.{i}.self_attn"
        names = [f"{at}.{word}_proj" for word in "qkv"]
        if self.style.weights != "fused":
            return [self.linear(name, h) for name in names]
        weight = np.concatenate([self.tensors[f"{name}.weight"] for name in names])
        biases = [self.tensors.get(f"{name}.bias") for name in names]
        y = self.product(h, weight, None if biases[0] is None else np.concatenate(biases))
        sizes = [heads * c.head_dim for heads in (c.heads, c.kv_heads, c.kv_heads)]
        return self.w.add("Split", y, sizes, outputs=3, axis=-1)

    def attention(self, i: int, x: str) -> str:
        w, c, at = self.w, self.config, f"model.layers.{i}.self_attn"
        h = self.norm(f"model.layers.{i}.input_layernorm", x)
        q, k, v = self.projections(i, h)
        q, k, v = (self.heads(y, n) for y, n in ((q, c.heads), (k, c.kv_heads), (v, c.kv_heads)))
        if f"{at}.q_norm.weight" in self.tensors:
            q, k = self.norm(f"{at}.q_norm", q), self.norm(f"{at}.k_norm", k)
        q, k = self.turned(q), self.turned(k)
        if self.style.cache == "grow" and not self.style.standard:
            k, v = (w.add("Concat", self.caches[i, word], y, axis=2) for word, y in (("key", k), ("value", v)))
            self.caches[i, "key"], self.caches[i, "value"] = k, v
        elif self.style.cache == "slots":
            k, v = (self.written(self.caches[i, word], y) for word, y in (("key", k), ("value", v)))
            self.caches[i, "key"], self.caches[i, "value"] = k, v
        window = c.window if i not in c.full_layers else 0
        y = self.standard(i, q, k, v, window) if self.style.standard else self.decomposed(q, k, v, window)
        flat = w.add("Reshape", w.add("Transpose", y, perm=[0, 2, 1, 3]), [0, 0, -1])
        return self.linear(f"{at}.o_proj", flat)

    def written(self, cache: str, x: str) -> str:
        """A cache of slots with x at the positions of its tokens; before opset 24 its positions are scattered."""
        w = self.w
        if self.style.opset >= 24:
            return w.add("TensorScatter", cache, x, self.start, axis=2)
        slots, rows = (w.add("Transpose", y, perm=[2, 0, 1, 3]) for y in (cache, x))
        slots = w.add("ScatterND", slots, w.add("Unsqueeze", self.positions, [1]), rows)
        return w.add("Transpose", slots, perm=[1, 2, 0, 3])

    def heads(self, x: str, heads: int) -> str:
        return self.w.add("Transpose", self.w.add("Reshape", x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])

    def turned(self, x: str) -> str:
        """Rotary embedding of [1, H, T, D]."""
        w, half = self.w, self.config.head_dim // 2
        if self.style.standard:
            return w.add("RotaryEmbedding", x, self.cos, self.sin, interleaved=int(self.style.turn == "interleaved"))
        if self.style.turn in ("half", "table"):
            low, high = w.add("Slice", x, [0], [half], [3]), w.add("Slice", x, [half], [2**40], [-1])
            other = w.add("Concat", w.add("Neg", high), low, axis=-1)
            return w.add("Add", w.add("Mul", x, self.cos), w.add("Mul", other, self.sin))
        if self.style.turn == "split":
            low, high = w.add("Split", x, [half, half], outputs=2, axis=3)
        else:
            low, high = (w.add("Slice", x, [start], [2**40], [3], [2]) for start in (0, 1))
        real = w.add("Sub", w.add("Mul", low, self.cos), w.add("Mul", high, self.sin))
        imaginary = w.add("Add", w.add("Mul", low, self.sin), w.add("Mul", high, self.cos))
        if self.style.turn == "split":
            return w.add("Concat", real, imaginary, axis=3)
        pairs = w.add("Concat", w.add("Unsqueeze", real, [4]), w.add("Unsqueeze", imaginary, [4]), axis=4)
        return w.add("Reshape", pairs, w.add("Shape", x))

    def standard(self, i: int, q: str, k: str, v: str, window: int) -> str:
        w, causal = self.w, int(self.style.mask == "causal")
        mask = "" if causal else self.mask[window]
        if self.style.cache != "grow":
            return w.add("Attention", q, k, v, *([] if causal else [mask]), is_causal=causal)
        y, key, value = w.add("Attention", q, k, v, mask, self.caches[i, "key"], self.caches[i, "value"],
                              is_causal=causal, outputs=3)
        self.caches[i, "key"], self.caches[i, "value"] = key, value
        return y

    def decomposed(self, q: str, k: str, v: str, window: int) -> str:
        """softmax(q k') v over heads, in four or five axes."""
        w, c, group = self.w, self.config, self.config.heads // self.config.kv_heads
        if self.style.scale == "both":
            q, k = (w.add("Mul", x, np.float32(c.head_dim**-0.25)) for x in (q, k))
        if self.style.repeat == "five":
            q = w.add("Reshape", q, [0, c.kv_heads, group, -1, c.head_dim])
            k, v = (w.add("Unsqueeze", x, [2]) for x in (k, v))
            k = w.add("Transpose", k, perm=[0, 1, 2, 4, 3])
        else:
            if group > 1:
                k, v = (self.repeated(x, group) for x in (k, v))
            k = w.add("Transpose", k, perm=[0, 1, 3, 2])
        scores = w.add("MatMul", q, k)
        if self.style.scale == "scores":
            scores = w.add("Div", scores, np.float32(c.head_dim**0.5))
        if self.style.mask == "where":
            scores = w.add("Where", self.mask[window], scores, np.float32(-np.inf))
        else:
            scores = w.add("Add", scores, self.mask[window])
        y = w.add("MatMul", w.add("Softmax", scores, axis=-1), v)
        return w.add("Reshape", y, [0, c.heads, -1, c.head_dim]) if self.style.repeat == "five" else y

    def repeated(self, x: str, group: int) -> str:
        w, c = self.w, self.config
        shape = w.add("Shape", x)
        length = w.add("Slice", shape, [2], [3])
        wide = w.add("Concat", [1, c.kv_heads, group], length, [c.head_dim], axis=0)
        return w.add("Reshape", w.add("Expand", w.add("Unsqueeze", x, [2]), wide),
                     w.add("Concat", [1, c.heads], length, [c.head_dim], axis=0))
