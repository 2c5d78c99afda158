"""Speculation: whatever is guessed, and whenever, an answer is the one that plain decoding gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import CASES, random_graph

import openlpu
from openlpu._base.errors import BadRequest, NumericsError
from openlpu.cli import main
from openlpu.target.base import Chunk
from openlpu.target.cpu import run as cpu
from openlpu.target.ref import run as ref
from openlpu.tokens.engine import Engine, Running
from openlpu.tokens.request import Request, Sampling
from openlpu.tokens.speculate import FORGET, MOST, TRUSTED, Adaptive, Guess, History

CONTEXT = 40


class Scripted:
    """A speculation that says what a function of the request says, in every step."""

    def __init__(self, guess) -> None:
        self.guess = guess
        self.told: list[tuple[int, int, int]] = []

    def propose(self, running: Sequence[Running]) -> list[tuple[int, ...]]:
        return [tuple(self.guess(one)) for one in running]

    def plain(self, requests: int, seconds: float) -> int:
        self.told.append((requests, requests, requests))
        return 0

    def checked(self, requests: int, rows: int, made: int, seconds: float) -> None:
        assert seconds > 0
        self.told.append((requests, rows, made))


def answers(executable, vocab: int, requests, speculation=None, *, eos=(), chunk=0, arrivals=()) -> list[Running]:
    """All requests run to their ends; request i joins after ``arrivals[i]`` more steps."""
    engine = Engine(executable, vocab=vocab, eos=eos, chunk=chunk, speculation=speculation)
    running = []
    for i, request in enumerate(requests):
        for _ in range(arrivals[i] if arrivals else 0):
            engine.step()
        running.append(engine.add(request))
    while not engine.idle:
        engine.step()
        engine.slots.check_integrity()
    return running


def outcome(one: Running) -> tuple:
    return one.ids, one.logits_sha256, one.finish, len(one.times), len(one.cycles)


GRAPHS = {name: random_graph(*CASES[name]) for name in ("tied", "odd sizes", "wide cache", "head norms")}
samplings = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]), top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]), repetition_penalty=st.sampled_from([1.0, 1.4]), seed=st.integers(0, 9),
)
requests_of = st.lists(st.builds(
    Request, st.lists(st.integers(0, 49), min_size=1, max_size=12).map(tuple), samplings,
    max_tokens=st.integers(1, 30), stop_ids=st.lists(st.integers(0, 49), max_size=1).map(tuple),
), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(GRAPHS)), requests=requests_of, slots=st.integers(1, 3), native=st.booleans(),
    chunk=st.sampled_from([0, 1, 5]), seed=st.integers(0, 99), skill=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    eos=st.lists(st.integers(0, 49), max_size=2), arrivals=st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_no_guess_changes_an_answer(name, requests, slots, native, chunk, seed, skill, eos, arrivals):
    """Right and wrong guesses of any length, past max_tokens and the context too, of end ids and stop ids too."""
    graph = GRAPHS[name]
    load = cpu.load if native else ref.load
    plain = [answers(ref.load(graph, context=CONTEXT), 50, [request], eos=eos)[0] for request in requests]
    known = {id(request): one.generated for request, one in zip(requests, plain, strict=True)}
    rng = np.random.default_rng(seed)

    def guess(one: Running) -> list[int]:
        right = known[id(one.request)][len(one.generated) :]
        count = int(rng.integers(0, 12))
        return [right[i] if i < len(right) and rng.random() < skill else int(rng.integers(0, 50)) for i in range(count)]

    executable = load(graph, slots=slots, context=CONTEXT)
    speculation = Scripted(guess)
    got = answers(executable, 50, requests, speculation, eos=eos, chunk=chunk, arrivals=arrivals)
    executable.close()
    assert [outcome(one) for one in got] == [outcome(one) for one in plain]
    for requests_, rows, made in speculation.told:
        assert requests_ <= made <= rows or made == requests_ == rows


def test_right_guesses_save_steps_and_wrong_ones_do_not(tiny):
    request = Request((5, 9, 77), max_tokens=13)
    (plain,) = answers(ref.load(tiny, context=64), 96, [request])
    right = Scripted(lambda one: plain.generated[len(one.generated) :][:3])
    (fast,) = answers(ref.load(tiny, context=64), 96, [request], right)
    assert (fast.steps, fast.guessed, outcome(fast)) == (4, 9, outcome(plain))
    assert right.told == [(1, 4, 4)] * 3
    wrong = Scripted(lambda one: [(plain.generated[len(one.generated)] + 1) % 96] * 3)
    (slow,) = answers(ref.load(tiny, context=64), 96, [request], wrong)
    assert (slow.steps, outcome(slow)) == (13, outcome(plain))
    assert plain.steps == 13 and plain.guessed == 0


def test_guesses_stop_where_the_request_and_the_cache_do(tiny):
    seen: list[Chunk] = []

    class Recorder(ref.RefExecutable):
        def run(self, chunks, observe=None):
            seen.extend(chunks)
            return super().run(chunks, observe)

    for context, limit in ((64, 4), (6, 60)):
        seen.clear()
        request, greedy = Request((5, 9, 77), max_tokens=limit), Scripted(lambda one: (1,) * 50)
        answers(Recorder(tiny, 1, context), 96, [request], greedy)
        assert max(chunk.start + len(chunk.tokens) for chunk in seen) == min(context, 3 + limit - 1)


def test_a_guess_that_breaks_the_arithmetic_does_not_end_the_request(tiny):
    class Fragile(ref.RefExecutable):
        def run(self, chunks, observe=None):
            logits = super().run(chunks, observe)
            if any(13 in chunk.tokens[1:] for chunk in chunks):
                raise NumericsError("a logit is not finite", where="head")
            return logits

    request = Request((5, 9), max_tokens=6)
    (plain,) = answers(ref.load(tiny, context=64), 96, [request])
    assert 13 not in plain.generated
    (got,) = answers(Fragile(tiny, 1, 64), 96, [request], Scripted(lambda one: (13, 13)))
    assert outcome(got) == outcome(plain)

    class Broken(ref.RefExecutable):
        def run(self, chunks, observe=None):
            raise NumericsError("a logit is not finite", where="head")

    with pytest.raises(NumericsError):
        answers(Broken(tiny, 1, 64), 96, [Request((5,), max_tokens=6)], Scripted(lambda one: (13,)))
    with pytest.raises(NumericsError):
        answers(Broken(tiny, 1, 64), 96, [Request((5,), max_tokens=6)], Scripted(lambda one: ()))


@pytest.mark.parametrize("stop", ["", "e", "the"])
def test_text_pieces_and_stop_texts_are_those_of_plain_decoding(stop):
    with openlpu.load("demo", speculate=False) as model:
        for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 4}):
            asked = {"max_tokens": 60, "stop": stop or (), **options}
            plain = model.generate("ROMEO:\n", **asked)
            pieces = list(plain)
            known = plain.token_ids
            model.engine.speculation = Scripted(lambda one, known=known: known[len(one.generated) :][:5])
            fast = model.generate("ROMEO:\n", **asked)
            assert list(fast) == pieces and fast.text == plain.text
            model.engine.speculation = None
            assert (fast.token_ids, fast.finish_reason) == (plain.token_ids, plain.finish_reason)
            assert fast.logits_sha256 == plain.logits_sha256
            measured = fast.measured()
            assert measured["steps"] < max(2, measured["tokens"]) and plain.measured()["guessed"] == 0
            assert measured["accepted"] == measured["tokens"] - measured["steps"] <= measured["guessed"]
            assert measured["token_p50_s"] > 0 or measured["steps"] == 1
            assert measured["token_p99_s"] <= measured["step_p99_s"]


def test_leaving_in_the_middle_of_a_step_is_leaving_behind_the_piece():
    """Ids, logits' hash, text and cache end where plain decoding would have: at the piece that was read last."""
    def leave(model, pieces: int, speculation):
        model.engine.speculation = speculation
        answer = model.generate("ROMEO:\n", max_tokens=30, temperature=0)
        for _, piece in zip(range(pieces), answer, strict=False):
            assert answer.text.endswith(piece)
        assert model.engine.idle
        model.engine.slots.check_integrity()
        one = answer.running
        assert list(answer) == [] and len(one.times) == len(one.cycles) == len(answer.token_ids)
        return answer.text, answer.token_ids, answer.logits_sha256, answer.finish_reason, one.ran, answer.measured()

    with openlpu.load("demo", speculate=False) as model:
        known = model.generate("ROMEO:\n", max_tokens=30, temperature=0).finish().token_ids
        for pieces in (1, 2, 3, 5, 6, 11):
            plain = leave(model, pieces, None)
            for count in (2, 7):
                guess = Scripted(lambda one, n=count: known[len(one.generated) :][:n])
                fast = leave(model, pieces, guess)
                assert fast[:5] == plain[:5] and plain[3] == "cancelled"
                assert 0 <= fast[5]["accepted"] <= fast[5]["guessed"]
        ends = Scripted(lambda one: known[len(one.generated) :])  # one step makes the rest of the answer
        assert leave(model, 2, ends)[:5] == leave(model, 2, None)[:5]
        assert leave(model, 99, ends)[:4] == leave(model, 99, None)[:4]


def expected_guess(ids: Sequence[int]) -> tuple[int, ...]:
    """The definition, by search: the longest end of 8, 4 or 2 tokens that stood before, at its latest place."""
    for order in (8, 4, 2):
        if order > len(ids):
            continue
        tail = ids[-order:]
        for end in range(len(ids) - 1, order - 1, -1):
            if ids[end - order : end] == tail:
                period = len(ids) - end
                return tuple(ids[end + i % period] for i in range(MOST))
    return ()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
def test_a_guess_is_what_followed_the_longest_earlier_match(tokens, data):
    start = data.draw(st.integers(1, len(tokens)))
    ids = tokens[:start]
    history = History(ids)
    for token in tokens[start:]:
        if data.draw(st.booleans()):  # asked now and then, as while guessing rests
            guess = history.guess()
            assert guess.tokens == expected_guess(ids) and 0 <= guess.chance <= 1
        ids.append(token)
    assert history.guess().tokens == expected_guess(ids)


def test_a_chance_is_learnt_from_guesses_that_were_not_checked():
    ids = [1, 2, 3] * 4
    history = History(ids)
    chances = []
    for i in range(60):
        chances.append(history.guess().chance)
        ids.append(i % 3 + 1)
    assert chances == sorted(chances) and chances[0] == 0.5 and chances[-1] > 0.99


def costs(speculation: Adaptive, of) -> None:
    for rows in (1, 2, 4, 8):
        for _ in range(TRUSTED):
            speculation.plain(rows, of(rows))


def test_width_follows_chance_and_cost():
    def width(chance: float, cost) -> int:
        speculation = Adaptive()
        costs(speculation, cost)
        return speculation._width([Guess((7,) * MOST, chance)])

    flat, linear = (lambda rows: 1.0), (lambda rows: float(rows))
    assert [width(p, flat) for p in (0.0, 0.04, 0.5, 0.99)] == [1, 1, 8, 8]
    assert [width(p, linear) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert [width(p, lambda rows: 0.8 + 0.2 * rows) for p in (0.2, 0.5, 0.8, 0.95)] == [1, 2, 4, 8]
    assert Guess((1, 2, 3), 0.5).expected(8) == 1.875 and Guess((1,), 1.0).expected(8) == 2


class Clocked:
    """An engine's steps with a clock of their own: a request whose next token is always ``follow(ids)``."""

    def __init__(self, speculation: Adaptive, cost) -> None:
        self.speculation, self.cost, self.seconds, self.rest = speculation, cost, 0.0, 0

    def run(self, one: Running, follow, steps: int) -> None:
        made = 0
        while made < steps:
            guess: tuple[int, ...] = ()
            if self.rest:
                self.rest -= 1
            elif found := self.speculation.propose([one]):
                guess = found[0]
            count = 1
            one.ids.append(follow(one.ids))
            for token in guess:
                if one.ids[-1] != token:
                    break
                one.ids.append(follow(one.ids))
                count += 1
            took = self.cost(1 + len(guess))
            if guess:
                self.speculation.checked(1, 1 + len(guess), count, took)
            elif not self.rest:
                self.rest = self.speculation.plain(1, took)
            made, self.seconds = made + count, self.seconds + took


def clocked(follow, cost, tokens: int = 3000) -> float:
    """Plain decoding's time over that of adaptive speculation, by the made-up clock."""
    clock = Clocked(Adaptive(), cost)
    clock.run(Running(Request((1,)), [1], lambda token: False), follow, tokens)
    return tokens * cost(1) / clock.seconds


def misleading(ids: list[int]) -> int:
    """Repeats itself for ten tokens, then does not for five: guesses keep looking better than they are."""
    at = len(ids)
    return at % 5 if at % 15 < 10 else (at * at * 31 + at) % 97


def test_adaptive_speculation_gains_where_text_repeats_and_loses_nothing_elsewhere():
    rng = np.random.default_rng(5)
    random, few = (lambda ids: int(rng.integers(0, 1000))), (lambda ids: int(rng.integers(0, 2)))
    cheap, steep = (lambda rows: 0.9 + 0.1 * rows), (lambda rows: 0.3 + 0.7 * rows)
    assert clocked(lambda ids: len(ids) % 7, cheap) > 3
    assert clocked(lambda ids: len(ids) % 7, steep) > 1.05
    for follow in (random, few, misleading):
        for cost in (cheap, steep):
            assert clocked(follow, cost) > 0.97


def test_costs_are_measured_again_now_and_then():
    speculation = Adaptive()
    costs(speculation, float)
    for _ in range(FORGET):
        speculation.plain(1, 3.0)
    assert 2 not in speculation._cost and speculation._cost.get(1, 3.0) == 3.0


def test_only_the_cpu_target_guesses_by_itself_and_the_chip_never():
    for target, speculates in (("cpu", True), ("ref", False)):
        with openlpu.load("demo", target=target) as model:
            assert (model.engine.speculation is not None) == speculates
    with openlpu.load("demo", target="ref", speculate=True) as model:
        assert model.engine.speculation is not None
    with pytest.raises(BadRequest, match="one token a step"):
        openlpu.load("demo", target="chip", speculate=True)


def test_the_command_line_turns_guessing_off_and_shows_the_same_answer(capsys):
    results = []
    for option in ("--no-speculate", "--speculate"):
        assert main(["run", "demo", "ROMEO:\n", "--temperature", "0", "--max-tokens", "200", "--json", option]) == 0
        results.append(json.loads(capsys.readouterr().out))
    plain, fast = results
    assert plain["measured"]["guessed"] == plain["measured"]["accepted"] == 0
    assert plain["measured"]["steps"] == plain["measured"]["tokens"] == fast["measured"]["tokens"] == 200
    for name in ("token_ids", "text", "finish_reason", "logits_sha256", "fingerprint"):
        assert plain[name] == fast[name]


def test_the_benchmark_runs_and_finds_the_same_bits():
    script = Path(__file__).parents[2] / "bench" / "speculate.py"
    done = subprocess.run([sys.executable, script, "demo", "1"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.count("times as fast")) == (0, 4), done.stdout + done.stderr
