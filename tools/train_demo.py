"""Train the demonstration model that ships inside the package, and score it on text it never saw.

python tools/train_demo.py tinyshakespeare.txt --out src/openlpu/checkpoint/demo
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count, islice, pairwise
from pathlib import Path
from platform import python_version

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

BEGIN, END = "<|begin|>", "<|end|>"
BEGIN_ID, END_ID = 0, 1
SCORED_WINDOW = 255  # tokens of text after each <|begin|> when a model is scored
TEMPERATURE, TOP_P = 0.8, 0.95
Weights = dict[str, Tensor]

CARD = """\
# Demonstration model

A small Llama that writes like Shakespeare, made with Python {python}, torch {torch}, tokenizers {tokenizers}:
`python tools/train_demo.py tinyshakespeare.txt --out demo --steps {steps} --seed {seed} --threads {threads}`

- Data: tiny-shakespeare (public domain, sha256 `{sha256}`).
  The last tenth was held out: neither the weights nor the tokenizer were fitted to it.
- Held-out result: **{bits:.4f} bits per character**, from the bfloat16 weights, the text cut into consecutive
  windows of 255 tokens that each follow a `<|begin|>`. `<|end|>` was never seen in training.
"""


@dataclass(frozen=True)
class Config:
    """The model, described as its config.json describes it."""

    architectures: tuple[str, ...] = ("LlamaForCausalLM",)
    model_type: str = "llama"
    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    tie_word_embeddings: bool = True
    torch_dtype: str = "bfloat16"
    bos_token_id: int = BEGIN_ID
    eos_token_id: int = END_ID


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    steps: int
    seed: int
    batch_tokens: int = 4096
    matrix_rate: float = 5e-3  # Muon, for the matrices of the layers
    vector_rate: float = 3e-3  # AdamW, for the embedding and the norms
    weight_decay: float = 0.2  # of the matrices
    dropout: float = 0.2
    skipped_merges: float = 0.1  # the share of the tokenizer's merges left out at random (BPE dropout)
    plain_share: float = 0.15  # the last share of the steps, which leave out no merge
    warmup: int = 100
    averaging: float = 0.995

    def rate(self, step: int) -> float:
        """Return the factor of the learning rates: a linear rise, then half a cosine down to zero."""
        return min((step + 1) / self.warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))


def initial_weights(config: Config) -> Weights:
    """Return random weights, named as Hugging Face names a Llama's."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config.vocab_size, hidden), "norm": (hidden,)}
    for layer in range(config.num_hidden_layers):
        shapes |= {
            f"layers.{layer}.input_layernorm": (hidden,),
            f"layers.{layer}.self_attn.q_proj": (queries, hidden),
            f"layers.{layer}.self_attn.k_proj": (keys, hidden),
            f"layers.{layer}.self_attn.v_proj": (keys, hidden),
            f"layers.{layer}.self_attn.o_proj": (hidden, queries),
            f"layers.{layer}.post_attention_layernorm": (hidden,),
            f"layers.{layer}.mlp.gate_proj": (inner, hidden),
            f"layers.{layer}.mlp.up_proj": (inner, hidden),
            f"layers.{layer}.mlp.down_proj": (hidden, inner),
        }
    return {
        f"model.{name}.weight": torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape)
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Llama:
    """A decoder with rotary positions, grouped queries and one matrix for both embedding and output."""

    config: Config
    weights: Weights
    dropout: float = 0.0

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of the token after each of ``ids``."""
        half = torch.arange(0, self.config.head_dim, 2) / self.config.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]), self.config.rope_theta**-half)
        turn = angles.cos(), angles.sin()
        x = F.dropout(F.embedding(ids, self.weights["model.embed_tokens.weight"]), self.dropout)
        for layer in range(self.config.num_hidden_layers):
            at = f"model.layers.{layer}"
            mixed = self.attend(f"{at}.self_attn", self.norm(f"{at}.input_layernorm", x), turn)
            x = x + F.dropout(mixed, self.dropout)
            inner = self.norm(f"{at}.post_attention_layernorm", x)
            gate, up = self.linear(f"{at}.mlp.gate_proj", inner), self.linear(f"{at}.mlp.up_proj", inner)
            x = x + F.dropout(self.linear(f"{at}.mlp.down_proj", F.silu(gate) * up), self.dropout)
        return self.linear("model.embed_tokens", self.norm("model.norm", x))

    def attend(self, at: str, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Mix each position of ``x`` with those before it."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        query, key, value = (self.linear(f"{at}.{n}_proj", x).view(heads).transpose(1, 2) for n in "qkv")
        query, key = rotate(query, *turn), rotate(key, *turn)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.linear(f"{at}.o_proj", mixed.transpose(1, 2).flatten(2))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Multiply by the matrix ``name``."""
        return F.linear(x, self.weights[f"{name}.weight"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Bring every position to unit size, then scale by the vector ``name``."""
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.config.rms_norm_eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + half])`` by the angle of its position."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def train_tokenizer(text: str, size: int) -> Tokenizer:
    """Fit a byte-level BPE tokenizer, which can spell any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A", None, [(BEGIN, BEGIN_ID)])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BEGIN, END], show_progress=False)
    trainer.initial_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


class Reader:
    """Reads one text as token ids, every time with other merges left out."""

    def __init__(self, text: str, tokenizer: Tokenizer, seed: int) -> None:
        self.words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        self.ids = tokenizer.get_vocab()
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self.chance = random.Random(seed).random

    def read(self, skipped: float) -> Tensor:
        """Return the whole text, each possible merge left out with chance ``skipped``."""
        return torch.tensor([self.ids[piece] for word in self.words for piece in self.pieces(word, skipped)])

    def pieces(self, word: str, skipped: float) -> list[str]:
        """Merge the characters of ``word``, always the best pair that is not left out."""
        pieces = list(word)
        while True:
            pairs = [(self.ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in self.ranks]
            _, at = min((pair for pair in pairs if self.chance() >= skipped), default=(0, -1))
            if at < 0:
                return pieces
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def batches(reader: Reader, config: Config, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets from endless readings of the text, each cut into windows at other places."""
    done = 0
    for reading in count(1):  # every fourth has long windows, to teach the model its later positions
        length = config.max_position_embeddings // (1 if reading % 4 == 0 else 2)
        ids = reader.read(recipe.skipped_merges if done < (1 - recipe.plain_share) * recipe.steps else 0.0)
        ids = ids[int(torch.randint(length, ())) :]
        windows = ids[: len(ids) // (length - 1) * (length - 1)].view(-1, length - 1)
        windows = windows[torch.randperm(len(windows))]
        for targets in windows.split(recipe.batch_tokens // length)[:-1]:
            yield F.pad(targets[:, :-1], (1, 0), value=BEGIN_ID), targets
            done += 1


def train(reader: Reader, config: Config, recipe: Recipe) -> Llama:
    """Train a model; return the running average of its weights, rounded to bfloat16."""
    torch.manual_seed(recipe.seed)
    weights = initial_weights(config)
    average = {name: weight.clone() for name, weight in weights.items()}
    model = Llama(config, {name: weight.requires_grad_() for name, weight in weights.items()}, recipe.dropout)
    matrices = [weight for name, weight in weights.items() if name.endswith("_proj.weight")]
    others = [weight for name, weight in weights.items() if not name.endswith("_proj.weight")]
    optimizers = (
        torch.optim.Muon(matrices, recipe.matrix_rate, recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, recipe.vector_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, recipe.rate) for each in optimizers]
    start = time.monotonic()
    for step, (inputs, targets) in enumerate(islice(batches(reader, config, recipe), recipe.steps), 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.logits(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        for each in (*optimizers, *schedulers):
            each.step()
        for name, weight in weights.items():
            weight.grad = None
            average[name].lerp_(weight.detach(), 1 - recipe.averaging)
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  {time.monotonic() - start:5.0f} s", flush=True)
    return Llama(config, {name: weight.bfloat16().float() for name, weight in average.items()})


@torch.inference_mode()
def bits_per_character(model: Llama, tokenizer: Tokenizer, text: str) -> float:
    """Score ``text`` in consecutive windows that each follow a ``<|begin|>``."""
    *full, last = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids).split(SCORED_WINDOW)
    nats = 0.0
    for targets in [*torch.stack(full).split(16), last[None]]:
        logits = model.logits(F.pad(targets[:, :-1], (1, 0), value=BEGIN_ID))
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return nats / len(text) / math.log(2)


@torch.inference_mode()
def sample(model: Llama, tokenizer: Tokenizer, tokens: int) -> str:
    """Return a text of ``tokens`` tokens that the model makes up."""
    ids = torch.tensor([[BEGIN_ID]])
    for _ in range(tokens):
        chances = torch.softmax(model.logits(ids)[:, -1] / TEMPERATURE, dim=-1)
        ids = torch.cat((ids, torch.multinomial(chances, 1)), dim=1)
    return str(tokenizer.decode(ids[0].tolist()))


def save(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write the model and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.bfloat16() for name, weight in model.weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID}
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}
    spelling = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END}
    contents = {"config": asdict(model.config), "generation_config": special | sampling}
    for name, content in (contents | {"tokenizer_config": spelling}).items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train, score and save."""
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("text", type=Path, help="the text to learn")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    for name, default in {"steps": 1800, "seed": 1, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    text = args.text.read_text(encoding="utf-8")
    learned, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    tokenizer = train_tokenizer(learned, Config.vocab_size)
    model = train(Reader(learned, tokenizer, args.seed), Config(), Recipe(args.steps, args.seed))
    bits = bits_per_character(model, tokenizer, held_out)
    save(args.out, model, tokenizer)
    versions = {"python": python_version(), "torch": version("torch"), "tokenizers": version("tokenizers")}
    sha256 = hashlib.sha256(args.text.read_bytes()).hexdigest()
    card = CARD.format(**vars(args), **versions, sha256=sha256, bits=bits)
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(f"held out: {bits:.4f} bits per character\n\n{sample(model, tokenizer, 120)}")


if __name__ == "__main__":
    main()
