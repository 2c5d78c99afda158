"""Generation: text piece by piece, stop texts, chats, defaults and goldens of real models on the reference target."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import openlpu
from openlpu import compile as pipeline
from openlpu._base.errors import BadRequest
from openlpu.checkpoint.chat import Chat
from openlpu.target.base import Chunk
from openlpu.target.ref import run as ref
from openlpu.tokens.model import Model
from openlpu.tokens.request import Sampling


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with openlpu.load("demo", target="ref", slots=2) as model:
        yield model


def test_pieces_join_to_the_text_of_the_ids(demo):
    answer = demo.generate("Speak, ", max_tokens=20, temperature=1.0, seed=5)
    pieces = list(answer)
    assert "".join(pieces) == answer.text and len(pieces) > 10
    assert answer.text == demo.tokenizer.decode(answer.token_ids, after=answer.request.prompt)
    assert len(answer.token_ids) == 20 and answer.finish_reason == "max_tokens"


def test_logits_hash_is_of_the_raw_rows(demo):
    answer = demo.generate([7, 8, 9], max_tokens=4).finish()
    ids, rows = [7, 8, 9], b""
    executable = ref.load(pipeline.compile("demo").graph)
    for token in answer.token_ids:
        rows += executable.run([Chunk(0, 0, tuple(ids))])[0][-1].astype("<f4").tobytes()
        ids.append(token)
    assert answer.logits_sha256 == hashlib.sha256(rows).hexdigest()


def test_a_stop_text_ends_the_answer_before_it(demo):
    free = demo.generate("KING", max_tokens=24).finish()
    stop = free.text[9:14]
    answer = demo.generate("KING", max_tokens=24, stop=stop).finish()
    assert answer.finish_reason == "stop"
    assert answer.text == free.text[: free.text.index(stop)]
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    assert answer.token_ids != free.token_ids


def test_two_answers_can_be_read_in_turns(demo):
    alone = [demo.generate(p, max_tokens=8, seed=1, temperature=1).finish().text for p in ("KING", "Speak")]
    a, b = (demo.generate(p, max_tokens=8, seed=1, temperature=1) for p in ("KING", "Speak"))
    first, second = iter(a), iter(b)
    for _ in range(3):
        next(first), next(second)
    assert [a.finish().text, b.finish().text] == alone


def test_leaving_the_loop_frees_the_slot(demo):
    for _ in range(3):
        for _piece in demo.generate("KING", max_tokens=50):
            break
    assert demo.engine.idle


def test_leaving_one_of_two_answers_forgets_what_the_other_ones_steps_made(demo):
    def leave(answer, pieces):
        for _ in range(pieces):
            next(answer)
        answer.close()

    alone, a, b = (demo.generate("KING", max_tokens=20, seed=2, temperature=1) for _ in range(3))
    leave(iter(alone), 3)
    reader = iter(b)
    next(reader)
    a.finish()  # its steps take b along
    assert len(b.token_ids) > 5
    leave(reader, 2)
    assert (b.text, b.token_ids, b.logits_sha256) == (alone.text, alone.token_ids, alone.logits_sha256)
    assert b.finish_reason == "cancelled" and demo.engine.idle


def test_measured_times_are_of_the_wall_clock(demo):
    measured = demo.generate("KING", max_tokens=6).finish().measured()
    assert measured["clock"] == "wall"
    assert (measured["prompt_tokens"], measured["tokens"]) == (len(demo.encode("KING")), 6)
    assert 0 < measured["token_p50_s"] <= measured["token_p99_s"]
    assert demo.generate("KING", max_tokens=2).finish().cycles == []


def test_a_long_prompt_reports_its_prefill(demo):
    seen = []
    demo.engine.chunk = 4
    demo.generate(list(range(2, 12)), max_tokens=1, progress=lambda *step: seen.append(step)).finish()
    demo.engine.chunk = 256
    assert seen == [("prefill", 4, 10), ("prefill", 8, 10), ("prefill", 10, 10)]


def test_options_left_out_are_the_models_own(demo):
    model = Model("m", demo.executable, demo.tokenizer, vocab=1024, defaults=Sampling(temperature=0.5, top_k=7),
                  fingerprint=lambda: "f")
    assert model.generate("a", seed=4).request.sampling == Sampling(temperature=0.5, top_k=7, seed=4)
    assert model.generate("a", temperature=0).request.sampling.temperature == 0
    assert model.fingerprint == "f"


def test_a_chat_uses_the_template(demo):
    chat = Chat(Path("x"), "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}", {})
    model = Model("m", demo.executable, demo.tokenizer, vocab=1024, chat=chat, fingerprint=str)
    messages = [{"role": "user", "content": "Speak"}]
    assert model.encode(messages) == tuple(demo.tokenizer.encode("[user] Speak\n", special=False))
    with pytest.raises(BadRequest, match="no chat template"):
        demo.generate(messages)


@pytest.mark.parametrize(("prompt", "words"), [
    ("", "empty"), ([], "empty"), ([99999], "token id 99999"), ([1] * 600, "600 tokens do not fit the context of 512"),
    ([1.5], "neither"), (["a", "b"], "neither"), ([{"role": "user"}, 5], "neither"),
])
def test_bad_prompts_are_refused_at_once(demo, prompt, words):
    with pytest.raises(BadRequest, match=words):
        demo.generate(prompt)


def test_fingerprint_covers_parameters_numerics_and_shape():
    compiled = pipeline.compile("demo")
    name = "layers.1.mlp.up.codes"
    changed = compiled.graph.params[name].copy()
    changed[3, 5] ^= 1
    other = dataclasses.replace(compiled.graph, params={**compiled.graph.params, name: changed})
    prints = [
        compiled.fingerprint(), pipeline.compile("demo").fingerprint(),
        dataclasses.replace(compiled, graph=other).fingerprint(),
        pipeline.compile("demo", scheme=dataclasses.replace(compiled.options.scheme, kv_bits=16)).fingerprint(),
        pipeline.compile("demo", context=64).fingerprint(),
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 4


def test_dumps_are_numbered_and_stable(tmp_path):
    for folder in ("a", "b"):
        pipeline.compile("demo", dump=tmp_path / folder)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names[:3] == ["01-checkpoint.txt", "02-graph.txt", "03-numerics.txt"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_stories260k_follows_the_fp32_model_at_first(shared):
    folder = shared / "models" / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())["greedy"]
    same = 0
    with openlpu.load(folder, target="ref") as model:
        for case in golden:
            answer = model.generate(case["prompt"], max_tokens=12).finish()
            assert list(answer.request.prompt) == case["prompt_ids"]
            agree = [a == b for a, b in zip(answer.token_ids, case["greedy_ids"], strict=False)]
            same += int(np.cumprod(agree).sum())
    assert same >= 50, "of 72: 8-bit arithmetic changes a close call now and then, not the first words"
