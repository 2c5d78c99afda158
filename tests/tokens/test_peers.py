"""Peers as child processes: what they are asked, when they run, and what becomes of failures."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from openlpu._base.errors import BadRequest
from openlpu.tokens.bounds import Work
from openlpu.tokens.peers import Hosted, LlamaBench, peer

PROMPT, ANSWER = Work("prefill", 4, 0, True), Work("decode", 3, 20, False)
ENGINE = '''
import __main__

now = 0.0
__main__.perf_counter = lambda: now

class Generator:
    def __init__(self, model, device, compute_type, intra_threads):
        assert intra_threads == 2 and device == "cpu"

    def generate_batch(self, prompts, max_length, min_length, callback, **options):
        global now
        assert max_length == min_length
        for step in range(max_length):
            now += 0.5 * len(prompts[0]) if step == 0 else 0.125
            callback(step)
'''


GENAI = '''
class GenerationConfig:
    def __init__(self, max_new_tokens, do_sample):
        self.tokens, self.eos, self.ignore_eos = max_new_tokens, -1, False

    def set_eos_token_id(self, eos):
        self.eos = eos

def TokenizedInputs(ids, mask):
    return len(ids[0])

class LLMPipeline:
    def __init__(self, model, device, INFERENCE_NUM_THREADS):
        self.ends_early = "short" in model

    def generate(self, prompt, config):
        if config.eos < 0:
            raise RuntimeError("'stop_token_ids' must be non-negative, but it contains a value -1")
        assert config.ignore_eos
        class Raw:
            m_times_to_first_token = [5e5 * prompt]
            m_durations = [125e3] * (1 if self.ends_early else config.tokens - 1)
        class Result:
            perf_metrics = type("Metrics", (), {"raw_metrics": Raw})
        return Result
'''


def test_openvino_runs_to_the_number_of_tokens_whatever_ends_an_answer(tmp_path: Path):
    (tmp_path / "openvino_genai.py").write_text(GENAI)
    (tmp_path / "openvino.py").write_text("Tensor = lambda array: array\n")
    (tmp_path / "openvino_genai-9.8.dist-info").mkdir()
    (tmp_path / "openvino_genai-9.8.dist-info" / "METADATA").write_text("Name: openvino-genai\nVersion: 9.8\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for folder, speed in (("model", 8.0), ("short", None)):
        (tmp_path / folder).mkdir()
        one = peer(f"openvino={python}:{tmp_path / folder}", None)
        try:
            one.start(PROMPT, 2, blocks=1)
            assert one.block() == 2.0
            if speed:
                one.start(ANSWER, 2, blocks=1)
                assert one.block() == speed
            else:
                with pytest.raises(BadRequest, match="ended after 1 tokens"):
                    one.start(ANSWER, 2, blocks=1)
        finally:
            one.close()


def test_llama_bench_is_asked_for_the_same_work(llama_bench: Path, tmp_path: Path):
    model = tmp_path / "model.gguf"
    model.touch()
    one = peer(f"llama-bench={llama_bench} -fa on", model)
    try:
        for work, tokens in ((PROMPT, 4), (ANSWER, 3)):
            one.start(work, 2, blocks=2)
            assert [one.block(), one.block()] == [1000.0 * tokens, 1000.0 * tokens + 1]
            said = (llama_bench.parent / "said.txt").read_text().split()
            assert said[:2] == ["-fa", "on"] and f"-m {model} -t 2" in " ".join(said)
            options = dict(zip(said[2::2], said[3::2], strict=True))
            assert (options["-p"], options["-n"]) == (("4,4", "0") if work is PROMPT else ("0", "3,3"))
            assert options["-d"] == str(work.context)
        assert (one.name, one.about) == ("llama-bench", {"version": "7 (abc)", "model": "model.gguf"})
        with pytest.raises(BadRequest, match="no more tests"):
            one.block()
    finally:
        one.close()


def test_a_peer_does_nothing_between_its_blocks(llama_bench: Path, tmp_path: Path):
    one = LlamaBench([str(llama_bench)], tmp_path)
    beats = llama_bench.parent / "beats.txt"
    try:
        one.start(PROMPT, 1, blocks=2)
        one.block()
        time.sleep(0.02)  # what it was writing is written
        before = beats.read_text()
        time.sleep(0.1)
        assert beats.read_text() == before
        one.block()
        assert len(beats.read_text()) > len(before)
    finally:
        one.close()


def test_a_library_runs_in_its_own_python(tmp_path: Path):
    (tmp_path / "ctranslate2.py").write_text(ENGINE)
    (tmp_path / "ctranslate2-9.8.dist-info").mkdir()
    (tmp_path / "ctranslate2-9.8.dist-info" / "METADATA").write_text("Name: ctranslate2\nVersion: 9.8\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    one = peer(f"ctranslate2={python}:{tmp_path}", None)
    assert isinstance(one, Hosted)
    try:
        one.start(PROMPT, 2, blocks=1)
        assert one.about == {"version": "9.8", "model": tmp_path.name}
        assert one.block() == 2.0  # 4 tokens in 2 seconds of the engine's clock
        one.start(ANSWER, 2, blocks=1)
        assert one.block() == 8.0  # 3 tokens in 3/8 seconds: the prompt of 20 is not counted
    finally:
        one.close()


@pytest.mark.parametrize(("text", "model", "words"), [
    ("vllm=x", None, "names no peer"),
    ("llama-bench", None, "names no peer"),
    ("openvino=python", None, "names no peer"),
    ("llama-bench=/bin/true", None, "--peer-model"),
    ("llama-bench=/bin/true", Path("/no/model.gguf"), "there is no model /no/model.gguf"),
    ("openvino=python:/no/model", None, "there is no model /no/model"),
])
def test_words_that_name_no_peer(text, model, words):
    with pytest.raises(BadRequest, match=words):
        peer(text, model)


def test_a_peer_that_cannot_run_says_why(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'weird model' >&2\nexit 3\n")
    broken.chmod(0o755)
    one = LlamaBench([str(broken)], tmp_path)
    one.start(PROMPT, 1, blocks=1)
    with pytest.raises(BadRequest, match="weird model"):
        one.block()
    one.close()
    with pytest.raises(BadRequest, match="No such file"):
        LlamaBench([str(tmp_path / "absent")], tmp_path).start(PROMPT, 1, blocks=1)
