"""GGUF files for tests, written from the format's description: from scratch, or from a Hugging Face folder.

Independent of the reader: this packs with ``struct`` what the reader unpacks with NumPy, and quantises what it decodes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openlpu.checkpoint.folder import load

KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q4_K": 12, "Q5_K": 13,
         "Q6_K": 14, "BF16": 30}
LAYER = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Blocks:
    """A tensor that is bytes already."""

    kind: str
    shape: tuple[int, ...]
    data: bytes


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Blocks], version: int = 3) -> Path:
    """One file; ``general.alignment`` is used when the metadata has it."""
    alignment, directory, data = metadata.get("general.alignment", 32), b"", b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        directory += text(name) + struct.pack("<I", len(tensor.shape))
        directory += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        directory += struct.pack("<IQ", KINDS.get(tensor.kind, 99), len(data))
        data += tensor.data
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(name) + value(item) for name, item in metadata.items()) + directory
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + data)
    return path


def text(string: str) -> bytes:
    return struct.pack("<Q", len(string.encode())) + string.encode()


def value(item: Any) -> bytes:
    """A type and a value: bool, uint32, float32, text, or a list of texts, int32 or float32."""
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    kind = {str: 8, int: 5, float: 6}[type(item[0])]
    body = b"".join(text(i) for i in item) if kind == 8 else struct.pack(f"<{len(item)}{'if'[kind - 5]}", *item)
    return struct.pack("<IIQ", 9, kind, len(item)) + body


def blocks(array: np.ndarray, kind: str) -> Blocks:
    """An fp32 array as a tensor of a kind."""
    plain = {"F32": "<f4", "F16": "<f2"}
    if kind in plain:
        return Blocks(kind, array.shape, array.astype(plain[kind]).tobytes())
    if kind == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        bits = bits + 0x7FFF + (bits >> 16 & 1)
        return Blocks(kind, array.shape, (bits >> 16).astype("<u2").tobytes())
    groups = array.reshape(-1, 32).astype(np.float64)
    out = b""
    for group in groups:
        largest = group[np.argmax(np.abs(group))]
        if kind == "Q8_0":
            scale = np.float16(abs(largest) / 127)
            codes = np.rint(group / float(scale)).clip(-127, 127) if scale else np.zeros(32)
            out += scale.tobytes() + codes.astype(np.int8).tobytes()
        else:
            assert kind == "Q4_0"
            scale = np.float16(largest / -8)
            codes = np.rint(group / float(scale) + 8).clip(0, 15) if scale else np.full(32, 8)
            packed = codes.astype(np.uint8)
            out += scale.tobytes() + (packed[:16] | packed[16:] << 4).tobytes()
    return Blocks(kind, array.shape, out)


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head interleaved: 0, half, 1, half + 1, …"""
    half = array.shape[0] // heads // 2
    rows = [h * 2 * half + i + j * half for h in range(heads) for i in range(half) for j in (0, 1)]
    return array[rows]


def renamed(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{end}"
    _, _, layer, word = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[word]}.{end}"


def tensors(folder: Path, kind: str = "F32") -> dict[str, Blocks]:
    """A folder's tensors; vectors stay fp32, as converters keep them, and rows that are no whole blocks too."""
    model = load(folder)
    out = {}
    for name in model.tensors.entries:
        array = model.tensors[name]
        if model.config.architecture in ("llama", "mistral"):
            for word, heads in (("q_proj", model.config.heads), ("k_proj", model.config.kv_heads)):
                array = permuted(array, heads) if f".{word}." in name else array
        whole = array.ndim > 1 and (kind in ("F16", "BF16") or array.shape[1] % 32 == 0)
        out[renamed(name)] = blocks(array, kind if whole else "F32")
    if model.config.rope.kind == "llama3":
        out["rope_freqs.weight"] = blocks(factors(model.config), "F32")
    return out


def factors(config: Any) -> np.ndarray:
    """What a converter writes for Llama 3's scaling: its divisors, computed in fp32."""
    r, out = config.rope, []
    for i in range(config.head_dim // 2):
        frequency = np.float32(1 / r.theta ** (2 * i / config.head_dim))
        turns = float(r.original_context * frequency / (2 * np.pi))
        keep = min(max((turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor), 0), 1)
        out.append(1 / ((1 - keep) / r.factor + keep))
    return np.array(out, np.float32)


def metadata(folder: Path, pre: str = "default") -> dict[str, Any]:
    """A folder's configuration and tokenizer; ``pre`` is the name of its pre-tokenizer."""
    model = load(folder)
    c = model.config
    name = "llama" if c.architecture == "mistral" else c.architecture
    out: dict[str, Any] = {"general.architecture": name, "general.name": folder.name}
    out |= {f"{name}.{key}": item for key, item in {
        "embedding_length": c.hidden, "block_count": c.layers, "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads, "attention.key_length": c.head_dim, "vocab_size": c.vocab,
        "feed_forward_length": c.intermediate, "context_length": c.context,
        "attention.layer_norm_rms_epsilon": float(c.norm_eps), "rope.freq_base": float(c.rope.theta),
        "rope.dimension_count": c.head_dim,
    }.items()}
    s = model.sampling
    if s.sample:
        out |= {"general.sampling.temp": s.temperature, "general.sampling.top_p": s.top_p}
    return out | tokenizer(folder / "tokenizer.json", pre) | roles(c.bos, c.eos)


def roles(bos: int | None, eos: tuple[int, ...]) -> dict[str, Any]:
    found = dict(zip(("eos", "eot", "eom"), eos, strict=False)) | ({} if bos is None else {"bos": bos})
    return {f"tokenizer.ggml.{word}_token_id": token for word, token in found.items()}


def tokenizer(path: Path, pre: str) -> dict[str, Any]:
    """The metadata of a ``tokenizer.json``; scores are those of a ``tokenizer.model`` beside it, or merges' ranks."""
    document = json.loads(path.read_text("utf-8"))
    model = document["model"]
    added = {token["id"]: token for token in document["added_tokens"]}
    by_id = {token: word for word, token in model["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]
    types = [5 if i not in by_id else 1 if i not in added else 4 - added[i]["special"] for i in range(len(tokens))]
    around = document["post_processor"] or {"single": [{}]}
    out = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
           "tokenizer.ggml.add_bos_token": "SpecialToken" in around.get("single", [{}])[0]}
    if not model["byte_fallback"]:
        pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        return out | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": pairs}
    for i, word in enumerate(tokens):
        types[i] = 2 if word == model["unk_token"] else 6 if word.startswith("<0x") else types[i]
    beside = path.with_name("tokenizer.model")
    made = {m.replace(" ", "") if isinstance(m, str) else "".join(m): -float(r) for r, m in
            reversed(list(enumerate(model["merges"])))}
    given = [score for _, score in pieces(beside)] if beside.exists() else [made.get(word, 0.0) for word in tokens]
    return out | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": given}


def pieces(path: Path) -> list[tuple[str, float]]:
    """Text and score of every piece of a SentencePiece model, a protocol buffer whose field 1 repeats them."""
    def fields(raw: bytes) -> list[tuple[int, Any]]:
        at, out = 0, []
        while at < len(raw):
            number, wire = raw[at] >> 3, raw[at] & 7
            at += 1
            if wire == 5:
                found, at = struct.unpack("<f", raw[at : at + 4])[0], at + 4
            else:
                found, shift = 0, 0
                while True:
                    found, shift, at = found | (raw[at] & 127) << shift, shift + 7, at + 1
                    if raw[at - 1] < 128:
                        break
                if wire == 2:
                    found, at = raw[at : at + found], at + found
            out.append((number, found))
        return out

    found = []
    for number, piece in fields(path.read_bytes()):
        if number == 1:
            parts = dict(fields(piece))
            found.append((parts[1].decode(), parts[2]))
    return found


def export(folder: Path, path: Path, kind: str = "F32", pre: str = "default") -> Path:
    """A Hugging Face folder as one GGUF file."""
    return write(path, metadata(folder, pre), tensors(folder, kind))


def tiny(models: Path, path: Path) -> Path:
    """A random model of two layers whose rows are long enough for every block format.

    ``tests/golden/gguf/tiny-Q4_K_M.gguf`` is what ``llama-quantize tiny.gguf tiny-Q4_K_M.gguf Q4_K_M`` made of it.
    """
    words = metadata(models / "llama2") | {
        "general.name": "tiny", "llama.embedding_length": 256, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1, "llama.attention.key_length": 32, "llama.attention.value_length": 32,
        "llama.feed_forward_length": 256, "llama.context_length": 64, "llama.rope.dimension_count": 32,
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (64, 256), "output_norm": (256,), "output": (64, 256)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_norm": (256,), "attn_q": (64, 256), "attn_k": (32, 256), "attn_v": (32, 256),
            "attn_output": (256, 64), "ffn_norm": (256,), "ffn_gate": (256, 256), "ffn_up": (256, 256),
            "ffn_down": (256, 256),
        }.items()}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    return write(path, words, {name: blocks(drawn(name, shape), "F32") for name, shape in named.items()})


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp32 from an integer hash: vectors around 1, matrices within 0.1 of 0."""
    start = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little"))
    x = (np.arange(math.prod(shape), dtype=np.uint64) + start) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    unit = ((x ^ x >> np.uint64(32)) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return (unit * np.float32(0.1) if len(shape) > 1 else unit + np.float32(1)).reshape(shape)
