"""Models in; processor seconds to compile each, and to load weights of the same shape into its stored program, out.

``python bench/load_weights.py [MODEL …] [-- OPTION …]`` (``demo``): options of ``openlpu compile``, ``--system node
--tensor 4`` say.  A MODEL that is the name of a shape becomes a folder of random weights first, with the embedded
model's tokenizer.  Every command is a process of its own, Python's start counted; the two folders are compared byte for
byte.
"""

from __future__ import annotations

import filecmp
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from openlpu.checkpoint.folder import DEMO
from openlpu.graph import decoder
from openlpu.graph.models import ARCHITECTURES
from openlpu.graph.shapes import SHAPES

CONTEXT = 512  # of a random model


def checkpoint(name: str, folder: Path) -> str:
    """A folder with random weights of a shape; any other name as it is."""
    if name not in SHAPES:
        return name
    c = SHAPES[name]
    shapes = decoder.shapes(c, ARCHITECTURES.get(c.architecture)(c))
    rng = np.random.default_rng(0)
    folder.mkdir()
    save_file({key: rng.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
               for key, shape in shapes.items()}, folder / "model.safetensors")
    words = json.loads((DEMO / "config.json").read_text("utf-8")) | {
        "model_type": c.architecture, "hidden_size": c.hidden, "num_hidden_layers": c.layers, "vocab_size": c.vocab,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "intermediate_size": c.intermediate, "max_position_embeddings": CONTEXT, "tie_word_embeddings": c.tied,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope.theta,
    }
    (folder / "config.json").write_text(json.dumps(words), "utf-8")
    for text in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / text).write_bytes((DEMO / text).read_bytes())
    return str(folder)


def seconds(*command: str) -> float:
    """Processor time of an ``openlpu`` command in a process of its own."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "openlpu", *command], os.environ,
                         file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)])
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"openlpu {' '.join(command)} failed")
    return used.ru_utime + used.ru_stime


def same(one: Path, two: Path) -> bool:
    """Whether two folders have the same files, byte for byte."""
    names = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    return names[0] == names[1] and not filecmp.cmpfiles(one, two, names[0], shallow=False)[1]


def main(models: list[str], options: list[str]) -> None:
    """The table."""
    print(f"{'model':<16}{'compile':>10}{'load weights':>14}{'times':>8}  same bytes")
    for name in models:
        with tempfile.TemporaryDirectory() as place:
            compiled, loaded = Path(place) / "compiled", Path(place) / "loaded"
            source = checkpoint(name, Path(place) / "random")
            whole = seconds("compile", source, *options, "-o", str(compiled))
            weights = seconds("load-weights", str(compiled), source, "-o", str(loaded))
            print(f"{Path(name).name:<16}{whole:>8.1f} s{weights:>12.1f} s{whole / weights:>8.1f}  "
                  f"{'yes' if same(compiled, loaded) else 'NO'}", flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    if flags := [name for name in given[:cut] if name.startswith("-")]:
        sys.exit(f"{__doc__}\n{flags[0]}: options of compile stand behind --")
    main(given[:cut] or ["demo"], given[cut + 1 :])
