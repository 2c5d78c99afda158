"""Run by another Python, by path: ``python peer_host.py ENGINE MODEL THREADS``; a JSON line in, a JSON line out.

It knows nothing of openlpu.  A line asks for ``tokens`` behind ``context`` others, ``together`` (a prompt) or one
after another (an answer); the reply has ``tokens_per_s``.  The first line out says the engine's ``version``.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import version
from time import perf_counter
from typing import Any

FIRST_ID, IDS = 100, 30000  # prompts are ids from here on: special tokens stand before, or behind
NO_ID = 2**31 - 1  # of no token: where an id that would end an answer is asked for


class OpenVino:
    """OpenVINO GenAI's pipeline on the CPU; it times the first and further tokens itself, in microseconds."""

    package = "openvino-genai"

    def __init__(self, model: str, threads: int) -> None:
        self.genai: Any = import_module("openvino_genai")
        self.tensor: Any = import_module("openvino").Tensor
        self.numpy: Any = import_module("numpy")
        self.pipeline = self.genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)
        self.first = 0

    def seconds(self, tokens: int, context: int, together: bool) -> float:
        """Time of a prompt up to its first token, or of ``tokens`` tokens after the first."""
        prompt = tokens if together else context or 1
        self.first += 1  # it remembers prompts: none is asked twice
        ids = FIRST_ID + self.numpy.arange(self.first, self.first + prompt, dtype=self.numpy.int64)[None] % IDS
        inputs = self.genai.TokenizedInputs(self.tensor(ids), self.tensor(self.numpy.ones_like(ids)))
        config = self.genai.GenerationConfig(max_new_tokens=1 if together else tokens + 1, do_sample=False)
        config.ignore_eos = True
        config.set_eos_token_id(NO_ID)  # a model's folder that names none would leave -1, which is refused
        raw = self.pipeline.generate(inputs, config).perf_metrics.raw_metrics
        if together:
            return raw.m_times_to_first_token[0] / 1e6
        assert len(raw.m_durations) >= tokens, f"the answer ended after {len(raw.m_durations)} tokens"
        return sum(raw.m_durations[-tokens:]) / 1e6


class CTranslate2:
    """CTranslate2's generator with 8-bit weights; ids travel as the vocabulary's words ``t<id>``."""

    package = "ctranslate2"

    def __init__(self, model: str, threads: int) -> None:
        ct2: Any = import_module("ctranslate2")
        self.generator = ct2.Generator(model, device="cpu", compute_type="int8", intra_threads=threads)

    def seconds(self, tokens: int, context: int, together: bool) -> float:
        """Time of a prompt up to its first token, or of ``tokens`` tokens after the first."""
        words = [f"t{FIRST_ID + i % IDS}" for i in range(tokens if together else context or 1)]
        answer = 1 if together else tokens + 1
        times = [perf_counter()]
        self.generator.generate_batch(
            [words], max_length=answer, min_length=answer, sampling_topk=1, include_prompt_in_result=False,
            callback=lambda step: times.append(perf_counter()))
        assert len(times) == 1 + answer, f"the answer ended after {len(times) - 1} tokens"
        return times[1] - times[0] if together else times[-1] - times[1]


ENGINES = {"openvino": OpenVino, "ctranslate2": CTranslate2}


def main(name: str, model: str, threads: int) -> None:
    """Answer lines until there are no more."""
    kind = ENGINES[name]
    engine = kind(model, threads)
    print(json.dumps({"version": version(kind.package)}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        engine.seconds(1, 0, True)  # as ours: the first run of a block is short and finds the caches full of others'
        seconds = engine.seconds(ask["tokens"], ask["context"], ask["together"])
        print(json.dumps({"tokens_per_s": ask["tokens"] / seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
