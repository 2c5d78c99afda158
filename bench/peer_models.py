"""A shape's name in, files with random weights in that shape for the peers out: what they run in a benchmark.

``python bench/peer_models.py DIR SHAPE … [--quantize LLAMA_QUANTIZE] [--ctranslate2] [--openvino]``, in an environment
of the peers' own: ``pip install . gguf ctranslate2 openvino-genai``, and for ``--openvino`` also
``torch transformers optimum-intel nncf``.  In DIR, outside the repository: ``SHAPE-Q8_0.gguf``; with ``--quantize``
also ``SHAPE-Q4_0.gguf`` and ``SHAPE-Q4_K_M.gguf``, made from it; with ``--ctranslate2`` the folder
``SHAPE-ct2-int8``; with ``--openvino`` ``SHAPE-openvino-int8`` and ``-int4``, which takes minutes.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from importlib import import_module
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from openlpu.checkpoint.config import ModelConfig
from openlpu.graph.shapes import SHAPES

BLOCK, BLOCK_BYTES = 32, 34  # Q8_0: 32 codes behind a scale of two bytes
STEP = 1009  # blocks between the windows of consecutive matrices
DEVIATION = 73.9  # standard deviation of a uniform code


class Drawing:
    """Random matrices as Q8_0 blocks, every one a window of a single stream."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.drawn = config, 0
        most = config.hidden * max(config.vocab, config.intermediate) // BLOCK + STEP * (8 * config.layers + 2)
        stream = np.random.Generator(np.random.Philox(0)).integers(0, 256, (most, BLOCK_BYTES), np.uint8)
        stream[:, :2] = np.float16(1 / (DEVIATION * config.hidden**0.5)).reshape(1).view(np.uint8)
        self.stream = stream

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        """Bytes [rows, columns / 32 * 34]."""
        start, count = STEP * self.drawn, rows * columns // BLOCK
        self.drawn += 1
        return self.stream[start : start + count].reshape(rows, -1)


def matrices(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix, as GGUF files name them."""
    heads, keys, hidden = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.hidden
    yield "token_embd", config.vocab, hidden
    for i in range(config.layers):
        yield f"blk.{i}.attn_q", heads, hidden
        yield f"blk.{i}.attn_k", keys, hidden
        yield f"blk.{i}.attn_v", keys, hidden
        yield f"blk.{i}.attn_output", hidden, heads
        yield f"blk.{i}.ffn_gate", config.intermediate, hidden
        yield f"blk.{i}.ffn_up", config.intermediate, hidden
        yield f"blk.{i}.ffn_down", hidden, config.intermediate
    if not config.tied:
        yield "output", config.vocab, hidden


def vectors(config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Gains of 1, and biases of 0 where the architecture has them."""
    yield "output_norm.weight", np.ones(config.hidden, np.float32)
    for i in range(config.layers):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", np.ones(config.hidden, np.float32)
        if config.architecture == "qwen2":
            for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
                yield f"blk.{i}.attn_{name}.bias", np.zeros(heads * config.head_dim, np.float32)


def write_gguf(config: ModelConfig, path: Path) -> None:
    """One Q8_0 file with a byte-pair vocabulary of the right size that means nothing."""
    gguf: Any = import_module("gguf")
    qwen = config.architecture == "qwen2"
    out = gguf.GGUFWriter(path, "qwen2" if qwen else "llama")
    out.add_name(path.stem)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_context_length(max(config.context, 32768))
    out.add_embedding_length(config.hidden)
    out.add_block_count(config.layers)
    out.add_feed_forward_length(config.intermediate)
    out.add_head_count(config.heads)
    out.add_head_count_kv(config.kv_heads)
    out.add_rope_dimension_count(config.head_dim)
    out.add_rope_freq_base(config.rope.theta)
    out.add_layer_norm_rms_eps(config.norm_eps)
    out.add_vocab_size(config.vocab)
    _write_vocabulary(out, config.vocab, qwen)
    drawing = Drawing(config)
    for name, rows, columns in matrices(config):
        out.add_tensor(f"{name}.weight", drawing.matrix(rows, columns), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name, values in vectors(config):
        out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _write_vocabulary(out: Any, size: int, qwen: bool) -> None:
    """256 bytes, then pairs of them, then pairs and a byte: each made by one merge."""
    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    long = ((a + b, c) for a, b, c in product(letters, repeat=3))
    merges = [*product(letters, repeat=2), *islice(long, max(0, size))][: size - len(letters) - 2]
    words = [*letters, *("".join(pair) for pair in merges), "<|begin|>", "<|end|>"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2" if qwen else "gpt-2")
    out.add_token_list(words)
    out.add_token_types([1] * (size - 2) + [3, 3])
    out.add_token_merges([" ".join(pair) for pair in merges])
    out.add_bos_token_id(size - 2)
    out.add_eos_token_id(size - 1)


def write_ctranslate2(config: ModelConfig, folder: Path) -> None:
    """The same shape in CTranslate2's own format with 8-bit weights."""
    specs: Any = import_module("ctranslate2.specs")
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.layers, config.heads, activation=specs.common_spec.Activation.SWISH, pre_norm=True, ffn_glu=True,
        rms_norm=True, rotary_dim=0, rotary_interleave=False, rotary_base=config.rope.theta,
        num_heads_kv=config.kv_heads)
    decoder, rng = spec.decoder, np.random.Generator(np.random.Philox(0))

    def linear(rows: int, columns: int) -> dict[str, np.ndarray]:
        codes = rng.integers(-127, 128, (rows, columns), np.int8)
        scale = DEVIATION * columns**0.5 * rng.uniform(0.9, 1.1, rows)
        return {"weight": codes, "weight_scale": scale.astype(np.float32)}

    def fill(target: Any, values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            setattr(target, name, value)

    hidden, heads, keys = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    gain = {"gamma": np.ones(hidden, np.float32)}
    decoder.scale_embeddings = False
    fill(decoder.embeddings, linear(config.vocab, hidden))
    fill(decoder.layer_norm, gain)
    fill(decoder.projection, linear(config.vocab, hidden))
    for layer in decoder.layer:
        attention, ffn = layer.self_attention, layer.ffn
        fill(attention.layer_norm, gain)
        fill(attention.linear[0], linear(heads + 2 * keys, hidden))
        if config.architecture == "qwen2":
            attention.linear[0].bias = np.zeros(heads + 2 * keys, np.float32)
        fill(attention.linear[1], linear(hidden, heads))
        fill(ffn.layer_norm, gain)
        fill(ffn.linear_0, linear(config.intermediate, hidden))
        fill(ffn.linear_0_noact, linear(config.intermediate, hidden))
        fill(ffn.linear_1, linear(hidden, config.intermediate))
    spec.register_vocabulary([f"t{i}" for i in range(config.vocab)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "t0", "t1", "t2"
    spec.config.layer_norm_epsilon = config.norm_eps
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def write_openvino(config: ModelConfig, folder: Path, bits: int) -> None:
    """The same shape as OpenVINO's own exporter makes it, weights compressed to ``bits``."""
    torch, transformers, optimum = (import_module(name) for name in ("torch", "transformers", "optimum.intel"))
    kind = "Qwen2Config" if config.architecture == "qwen2" else "LlamaConfig"
    described = getattr(transformers, kind)(
        hidden_size=config.hidden, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, head_dim=config.head_dim, intermediate_size=config.intermediate,
        vocab_size=config.vocab, max_position_embeddings=max(config.context, 32768), rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.theta, tie_word_embeddings=config.tied)
    torch.manual_seed(0)
    group = {"group_size": 128 if config.hidden % 128 == 0 else 64, "ratio": 1.0} if bits == 4 else {}
    compression = optimum.OVWeightQuantizationConfig(bits=bits, sym=False, **group)
    with TemporaryDirectory(dir=folder.parent) as source:
        model = transformers.AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16)
        model.save_pretrained(source)
        del model
        exported = optimum.OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, quantization_config=compression)
        exported.save_pretrained(folder)


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--quantize", metavar="LLAMA_QUANTIZE")
    parser.add_argument("--ctranslate2", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.shapes:
        base, ct2 = args.folder / f"{name}-Q8_0.gguf", args.folder / f"{name}-ct2-int8"
        if not base.exists():
            write_gguf(SHAPES[name], base)
        for kind in ("Q4_0", "Q4_K_M") if args.quantize else ():
            made = args.folder / f"{name}-{kind}.gguf"
            if not made.exists():
                command = [args.quantize, "--allow-requantize", str(base), str(made), kind]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if args.ctranslate2 and not ct2.exists():
            write_ctranslate2(SHAPES[name], ct2)
        for bits in (8, 4) if args.openvino else ():
            made = args.folder / f"{name}-openvino-int{bits}"
            if not made.exists():
                write_openvino(SHAPES[name], made, bits)
        print(name, *sorted(path.name for path in args.folder.glob(f"{name}-*")))


if __name__ == "__main__":
    main()
