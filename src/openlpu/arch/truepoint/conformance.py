"""Nothing in; conformance vectors out: inputs with edge values for every operation, and the bits they must give.

``export`` writes one safetensors file per operation and an ``index.json``; ``check`` runs somebody's implementation
over such a folder and compares bit for bit.  A case is named ``<case>``; its tensors are ``<case>.in.<word>`` and
``<case>.out.<word>``; sizes and constants are tensors too.  Inputs come from an integer hash, never from a random
number library whose streams may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError
from openlpu._base.manifest import new_folder, require_new
from openlpu.arch import truepoint as tp
from openlpu.arch.truepoint import half, rope
from openlpu.arch.truepoint.draw import floats, integers, normal

Tensors = Mapping[str, np.ndarray]
Operation = Callable[[Tensors], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """One call of one operation: named tensors in, named tensors out."""

    op: str
    name: str
    inputs: Tensors
    outputs: Tensors


def _unary(function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Operation:
    return lambda t: {"y": function(t["x"])}


def _codes(t: Tensors) -> tp.Codes:
    return tp.Codes(t["codes"], t["scale"], int(t["wide"][0]))


def _quantize(t: Tensors) -> dict[str, np.ndarray]:
    q = tp.quantize(t["x"], int(t["wide"][0]))
    return {"codes": q.codes, "scale": q.scale}


def _headnorm(t: Tensors) -> dict[str, np.ndarray]:
    return {"y": tp.headnorm(t["x"], t["gain"], t["eps"][0])}


def _attention(t: Tensors) -> dict[str, np.ndarray]:
    cache = tp.Cache(t["k"], t["k_scale"], t["v"], t["v_scale"])
    q = tp.Codes(t["q"], t["q_scale"], t["q"].shape[-1])
    window = int(t["window"][0]) if "window" in t else 0
    return {"y": tp.attend(q, cache, t["softmax_scale"][0], window, t.get("sinks"))}


def _layernorm(t: Tensors) -> dict[str, np.ndarray]:
    return {"y": tp.layernorm(t["x"], t["gain"], t["bias"], t["eps"][0])}


def _attention_whole(t: Tensors) -> dict[str, np.ndarray]:
    cache = tp.Cache(t["k"], t["k_scale"], t["v"], t["v_scale"])
    q = tp.Codes(t["q"], t["q_scale"], t["q"].shape[-1])
    return {"y": tp.attend(q, cache, t["softmax_scale"][0], causal=False)}


def _quantize_nibbles(t: Tensors) -> dict[str, np.ndarray]:
    q = tp.quantize_cache(t["x"], 4)
    return {"codes": q.codes, "scale": q.scale}


def _select(t: Tensors) -> dict[str, np.ndarray]:
    return {"scale": tp.select(_codes(t), t["weight"]).scale}


def _tables(t: Tensors) -> dict[str, np.ndarray]:
    freqs = rope.frequencies(float(t["theta"][0]), int(t["dim"][0]))
    cos, sin = rope.tables(freqs, int(t["positions"][0]))
    return {"cos": cos, "sin": sin}


OPERATIONS: Mapping[str, Operation] = {
    "add": lambda t: {"y": t["a"] + t["b"]},
    "mul": lambda t: {"y": t["a"] * t["b"]},
    "exp": _unary(tp.exp),
    "rsqrt": _unary(tp.rsqrt),
    "reciprocal": _unary(tp.reciprocal),
    "sigmoid": _unary(tp.sigmoid),
    "silu": _unary(tp.silu),
    "tanh": _unary(tp.tanh),
    "silu_mul": lambda t: {"y": tp.silu(t["gate"]) * t["up"]},
    "embed": lambda t: {"y": tp.embed(t["token"], t["codes"], t["scale"], t.get("gain"))},
    "quantize": _quantize,
    "rms": lambda t: {"factor": tp.rms_scale(_codes(t), t["eps"][0])},
    "headnorm": _headnorm,
    "linear": lambda t: {"y": tp.linear(_codes(t), t["weight"], t["row_scale"], t.get("bias"))},
    "rope_tables": _tables,
    "rotate": lambda t: {"y": tp.rotate(t["x"], t["cos"], t["sin"])},
    "attention": _attention,
    "quantize_nibbles": _quantize_nibbles,
    "attention_window": _attention,
    "route": lambda t: {"weights": tp.route(t["logits"], int(t["chosen"][0]))},
    "select": _select,
    "product_fp16": lambda t: {"y": half.product(t["a"], t["w"], int(t["chunk"][0]), int(t["sections"][0]))},
    "mix": lambda t: {"y": tp.mix(t["weights"], list(t["outputs"]))},
    "swiglu": lambda t: {"y": tp.swiglu(t["gate"], t["up"], t["alpha"][0], t["limit"][0])},
    "attention_sinks": _attention,
    "layernorm": _layernorm,
    "gelu": _unary(lambda x: tp.gelu(x, "erf")),
    "gelu_tanh": _unary(lambda x: tp.gelu(x, "tanh")),
    "attention_whole": _attention_whole,
}
"""The reference: operation name -> what it does to a case's input tensors."""


def cases() -> list[Case]:
    """Every case of every operation, with the reference's outputs."""
    inputs = [*_elementwise(), *_embeds(), *_quantizes(), *_norms(), *_linears(), *_ropes(), *_attentions(),
              *_nibbles(), *_windows(), *_mixtures(), *_products(), *_clamped(), *_sinks(), *_encoders()]
    return [Case(op, name, tensors, OPERATIONS[op](tensors)) for op, name, tensors in inputs]


def _one(value: int) -> NDArray[np.int32]:
    return np.array([value], np.int32)


def _real(value: float) -> NDArray[np.float32]:
    return np.array([value], np.float32)


Inputs = list[tuple[str, str, dict[str, np.ndarray]]]


def _elementwise() -> Inputs:
    edges = np.array([0, -0.0, 1, -1, 1e-30, -1e-30, 83.99, 84, 84.01, 88, 100, 1e30, -86.99, -87, -87.01, -100, -1e30,
                      0.34657359, -0.34657359, 2.0**-149, 127.5, 2.0**24], np.float32)
    span = np.concatenate([edges, normal("span", 2000) * np.float32(20)])
    positive = np.concatenate([np.ldexp(np.float32(1), np.arange(-124, 125)),
                               np.abs(floats("positive", 2000, -120, 120))])
    out: Inputs = [(op, "span", {"x": span}) for op in ("exp", "sigmoid", "silu", "tanh")]
    out += [(op, "positive", {"x": positive}) for op in ("rsqrt", "reciprocal")]
    a, b = floats("a", 1000, -100, 60), floats("b", 1000, -100, 60)
    near = np.concatenate([a[:500], (b[500:] * np.float32(1 + 2.0**-23))])
    out += [(op, "pairs", {"a": a, "b": b if op == "mul" else near}) for op in ("add", "mul")]
    out.append(("silu_mul", "span", {"gate": span, "up": normal("up", len(span)) * np.float32(3)}))
    return out


def _embeds() -> Inputs:
    table = {"token": np.array([0, 6, 3, 3], np.int32), "codes": integers("table", (7, 33), -127, 127).astype(np.int8),
             "scale": np.abs(floats("table.scale", 7, -20, 4))}
    return [("embed", "plain", table), ("embed", "gain", table | {"gain": floats("table.gain", 33, -8, 8)})]


def _quantizes() -> Inputs:
    x = normal("quantize", (6, 65))
    x[1] = 0
    x[2] *= np.float32(2.0**-62)
    x[3] *= np.float32(1e12)
    x[4, [0, 40]] *= np.float32(100)
    x[5] = np.where(np.arange(65) % 2, np.float32(0.5), np.float32(63.5))  # ties to even
    return [("quantize", f"wide{wide}", {"x": x, "wide": _one(wide)}) for wide in (0, 3, 65)]


def _coded(name: str, rows: int, k: int, wide: int) -> dict[str, np.ndarray]:
    """Codes whose first rows are the extremes that a proof of range must survive."""
    codes = integers(name, (rows, k), -127, 127).astype(np.int16)
    codes[:, :wide] = integers(f"{name}.wide", (rows, wide), -32639, 32639)
    codes[0], codes[0, :wide] = 127, 32639
    codes[1, :wide], codes[2] = 128, 0  # 128 = 256 - 128: the low plane's other end
    scale = np.abs(floats(f"{name}.scale", (rows, 1), -12, 3))
    return {"codes": codes, "scale": scale, "wide": _one(wide)}


def _norms() -> Inputs:
    out: Inputs = []
    for k, wide in ((1, 0), (64, 0), (172, 6), (257, 257)):
        coded = _coded(f"rms{k}", 5, k, wide)
        coded["scale"][3] = np.float32(2.0**-60)
        out.append(("rms", f"k{k}_wide{wide}", coded | {"eps": _real(1e-5)}))
    x = normal("headnorm", (4, 3, 16))
    x[1, 0], x[2] = 0, x[2] * np.float32(1e6)
    out.append(("headnorm", "heads", {"x": x, "gain": normal("headnorm.gain", 16), "eps": _real(1e-6)}))
    return out


def _linears() -> Inputs:
    out: Inputs = []
    for k, n, wide in ((1, 1, 0), (63, 5, 0), (64, 8, 2), (172, 67, 172), (1031, 3, 33), (131071, 1, 0)):
        weight = integers(f"weight{k}", (n, k), -127, 127).astype(np.int8)
        weight[0] = np.where(np.arange(k) % 5 == 4, -127, 127)
        tensors = _coded(f"linear{k}", 3, k, wide) | {
            "weight": weight, "row_scale": np.abs(floats(f"row{k}", n, -14, -2))}
        out.append(("linear", f"k{k}_n{n}_wide{wide}", tensors))
        if n > 1:
            out.append(("linear", f"k{k}_n{n}_wide{wide}_bias", tensors | {"bias": floats(f"bias{k}", n, -6, 6)}))
    return out


def _ropes() -> Inputs:
    sizes = {"theta": _real(10000), "dim": _one(10), "positions": _one(300)}
    cos, sin = _tables(sizes).values()
    x = normal("rotate", (4, 2, 10))
    at = np.array([0, 1, 17, 299])
    return [("rope_tables", "theta10000", sizes),
            ("rope_tables", "theta500000", {"theta": _real(500000), "dim": _one(64), "positions": _one(20)}),
            ("rotate", "positions", {"x": x, "cos": cos[at, None], "sin": sin[at, None]})]


def _attentions() -> Inputs:
    """(positions, queries, heads, KV heads, head size, KV bits); scales spread as real ones do, one V is zero."""
    out: Inputs = []
    shapes = ((1, 1, 2, 2, 4, 8), (37, 37, 8, 4, 8, 8), (256, 2, 4, 1, 16, 16), (257, 3, 2, 1, 64, 8),
              (600, 5, 6, 3, 10, 16), (1100, 1, 2, 2, 32, 8))
    for t, n, heads, groups, dim, bits in shapes:
        name = f"t{t}_n{n}_h{heads}_g{groups}_d{dim}_kv{bits}"
        wide = dim if bits == 16 else 0
        spread = np.abs(floats(f"{name}.spread", (t, 1, 1), -3, 2))
        k, v = (tp.quantize(normal(f"{name}.{w}", (t, groups, dim)) * spread, wide) for w in "kv")
        q = tp.quantize(normal(f"{name}.q", (n, heads * dim)) * np.float32(8), heads * dim)
        v.codes[t // 2], v.scale[t // 2] = 0, np.float32(2.0**-60)
        out.append(("attention", name, {
            "q": q.codes.reshape(n, heads, dim), "q_scale": q.scale, "k": k.codes, "k_scale": k.scale[..., 0],
            "v": v.codes, "v_scale": v.scale[..., 0], "softmax_scale": np.float32(1) / np.sqrt(_real(dim))}))
    return out


def _nibbles() -> Inputs:
    """What :func:`_quantizes` has, and vectors of one sign."""
    (_, name, tensors), *_ = _quantizes()
    x = np.concatenate([tensors["x"], np.abs(tensors["x"]), -np.abs(tensors["x"])])
    return [("quantize_nibbles", name, {"x": x})]


def _windows() -> Inputs:
    """The cases of :func:`_attentions`, with 8- and 16-bit codes, and windows around the borders of blocks."""
    out: Inputs = []
    for _, name, tensors in _attentions():
        length = len(tensors["k"])
        for window in sorted({1, length // 2 + 1, max(length - 256, 1), length}):
            out.append(("attention_window", f"{name}_w{window}", tensors | {"window": _one(window)}))
    return out


def _mixtures() -> Inputs:
    """Ties, zeros of both signs, chosen experts whose weight is 0 or subnormal; one expert, all of them."""
    out: Inputs = []
    for experts, chosen in ((1, 1), (4, 1), (8, 2), (5, 5), (33, 4)):
        name = f"e{experts}_k{chosen}"
        logits = normal(f"{name}.logits", (12, experts)) * np.float32(3)
        logits[0], logits[1], logits[2] = 0, np.where(np.arange(experts) % 2, np.float32(-0.0), np.float32(0)), -7
        logits[3], logits[4] = np.arange(experts) * np.float32(-90), np.arange(experts) * np.float32(1e12)
        logits[5] = np.where(np.arange(experts) < 2, 0, -87)
        out.append(("route", name, {"logits": logits, "chosen": _one(chosen)}))
        outputs = normal(f"{name}.outputs", (experts, 12, 7))
        outputs[..., 0], outputs[..., 1] = np.float32(-0.0), outputs[..., 1] * np.float32(2.0**-140)
        out.append(("mix", name, {"weights": tp.route(logits, chosen), "outputs": outputs}))
    coded = _coded("select", 4, 9, 2)
    weight = np.array([[0], [0.25], [1], [2.0**-149]], np.float32)
    out.append(("select", "weights", coded | {"weight": weight}))
    return out


def _products() -> Inputs:
    """All exponents side by side, sums that cancel, ties of the rounding, the largest and the smallest numbers."""
    out: Inputs = []
    for m, k, n, chunk, sections in ((1, 1, 1, 160, 1), (5, 160, 7, 160, 1), (3, 161, 5, 160, 1), (6, 700, 9, 128, 4)):
        name = f"m{m}_k{k}_n{n}_chunk{chunk}_sections{sections}"
        a, w = (_halves(f"{name}.{word}", shape) for word, shape in (("a", (m, k)), ("w", (k, n))))
        if k > 2:
            w[1], a[0, 1], w[0] = -w[0], a[0, 0], np.abs(w[0])  # the first row's first two products cancel
            a[1], w[:, 1] = 0, 1
            a[1, :3] = 1, 2.0**-24, -(2.0**-24)  # 1 + 2**-24 - 2**-24
            a[2], w[:, 2] = 0, 1
            a[2, :2], w[1, 2] = (1024, 2.0**-14), 2.0**-14 * (1 + 2.0**-10)  # just above a tie
            a[-1], w[:, -1] = 65504, -65504
        out.append(("product_fp16", name, {"a": a, "w": w, "chunk": _one(chunk), "sections": _one(sections)}))
    return out


def _halves(name: str, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Finite fp16 numbers of any bits."""
    bits = integers(name, shape, 0, 0x7BFF) | integers(f"{name}.sign", shape, 0, 1) << 15
    return bits.astype(np.uint16).view(np.float16)


def _clamped() -> Inputs:
    """Both halves far below, about and above the limit."""
    gate = np.array([0, -0.0, 7, 7.0000005, -7, 1e30, -1e30, 100, -100], np.float32)
    up = np.array([-1, 7, -7, -7.0000005, 1e30, -1e30, 0, -0.0, 3], np.float32)
    gate, up = (np.concatenate([x, normal(f"swiglu.{word}", 500) * np.float32(6)])
                for word, x in (("gate", gate), ("up", up)))
    return [("swiglu", name, {"gate": gate, "up": up, "alpha": _real(alpha), "limit": _real(limit)})
            for name, alpha, limit in (("gpt_oss", 1.702, 7.0), ("narrow", 1.0, 0.5))]


def _sinks() -> Inputs:
    """Attention beside sinks far below, among and far above the scores, with a window of three positions."""
    out: Inputs = []
    for _, name, tensors in _attentions():
        heads = tensors["q"].shape[1]
        for word, sinks in (("among", normal(f"sinks.{name}", heads)), ("below", np.full(heads, -80, np.float32)),
                            ("above", np.full(heads, 90, np.float32))):
            out.append(("attention_sinks", f"{name}_{word}", tensors | {"sinks": sinks, "window": _one(3)}))
    return out


def _encoders() -> Inputs:
    """Norms of vectors that are constant, far from zero, and small; GELU far out; attention to positions to come."""
    out: Inputs = []
    for k in (1, 64, 257):
        x = normal(f"layernorm{k}", (6, k)) * np.float32(3)
        x[1], x[2], x[3], x[4] = 0, np.float32(0.1), x[3] + np.float32(40), x[4] * np.float32(2.0**-60)
        x[5, k // 2] *= np.float32(300)
        words = {word: normal(f"layernorm{k}.{word}", k) for word in ("gain", "bias")}
        out.append(("layernorm", f"k{k}", {"x": x, **words, "eps": _real(1e-12)}))
    far = np.array([0, -0.0, 6, -6, 5.9999995, -6.0000005, 7, -7, 1e30, -1e30, 2.0**-149, -1e-20], np.float32)
    x = np.concatenate([far, normal("gelu", 2000) * np.float32(3)])
    out += [(op, "span", {"x": x}) for op in ("gelu", "gelu_tanh")]
    return [*out, *(("attention_whole", name, tensors) for _, name, tensors in _attentions() if len(tensors["q"]) > 1)]


def export(folder: Path) -> dict[str, str]:
    """Write a new folder of ``<operation>.safetensors`` and ``index.json``; returns file name -> sha256."""
    from safetensors.numpy import save

    require_new(folder)
    grouped: dict[str, dict[str, np.ndarray]] = {op: {} for op in OPERATIONS}
    for case in cases():
        for way, tensors in (("in", case.inputs), ("out", case.outputs)):
            grouped[case.op] |= {f"{case.name}.{way}.{k}": np.ascontiguousarray(v) for k, v in tensors.items()}
    files = {f"{op}.safetensors": save(tensors) for op, tensors in grouped.items()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with new_folder(folder) as made:
        for name, data in files.items():
            (made / name).write_bytes(data)
        index = {"numerics": tp.VERSION, "sha256": hashes}
        (made / "index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return hashes


def check(folder: Path, runner: Callable[[str, Tensors], Tensors]) -> list[str]:
    """Run ``runner(operation, inputs)`` on every case of an exported folder; returns the cases that differ.

    Raises :class:`NumericsError` when the folder is of another numerics version or was altered.
    """
    from safetensors.numpy import load

    index = json.loads((folder / "index.json").read_text("utf-8"))
    if index["numerics"] != tp.VERSION:
        raise NumericsError(f"vectors of numerics version {index['numerics']}, this is {tp.VERSION}",
                            where=str(folder), fix="export them again with this version")
    wrong = []
    for file, digest in index["sha256"].items():
        data = (folder / file).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise NumericsError("the file is not the one index.json describes", where=str(folder / file),
                                fix="export the vectors again")
        op, tensors = file.removesuffix(".safetensors"), load(data)
        for name in sorted({key.split(".")[0] for key in tensors}):
            given, wanted = _tensors_of(tensors, name, "in"), _tensors_of(tensors, name, "out")
            got = runner(op, given)
            if any(not same_bits(got[word], want) for word, want in wanted.items()):
                wrong.append(f"{op}.{name}")
    return wrong


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in type, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == b.tobytes()


def _tensors_of(tensors: Tensors, name: str, way: str) -> dict[str, np.ndarray]:
    start = f"{name}.{way}."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
