"""Rotary embeddings of every kind against transformers' numbers, and what their definition promises."""

from __future__ import annotations

import json
from decimal import ROUND_UP, Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

from openlpu.arch.truepoint import rope as truepoint
from openlpu.checkpoint.config import Rope, read
from openlpu.checkpoint.fields import Fields
from openlpu.graph.rotary import attention_factor, frequencies

SIZES = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 2, "num_hidden_layers": 1,
         "intermediate_size": 1, "vocab_size": 8, "max_position_embeddings": 131072}
ROPES = json.loads((Path(__file__).parents[1] / "golden" / "models" / "ropes.json").read_text())


@pytest.mark.parametrize("style", ["modern", "earlier"])
@pytest.mark.parametrize("golden", ROPES, ids=lambda golden: golden["parameters"]["rope_type"])
def test_frequencies_equal_those_of_transformers(golden: dict, style: str) -> None:
    """To fp32's precision, in which transformers computes them, written in either of its two ways."""
    parameters = golden["parameters"]
    if style == "modern":
        fields = {"rope_parameters": parameters}
    else:
        scaling = {"type": parameters["rope_type"], **parameters}
        theta = scaling.pop("rope_theta")
        del scaling["rope_type"]
        fields = {"rope_theta": theta, "rope_scaling": scaling}
    none = Fields(Path("g"), {})
    rope = read(Fields(Path("config.json"), SIZES | fields), none).rope
    np.testing.assert_allclose([float(f) for f in frequencies(rope, 128)], golden["frequencies"], rtol=3e-6)
    assert attention_factor(rope) == pytest.approx(golden["attention_factor"], rel=1e-15)


YARN = Rope(1000000.0, "yarn", 4.0, original_context=32768)


@pytest.mark.parametrize("rope", [Rope(10000.0, "linear", 3.0), Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 8192), YARN])
def test_a_changed_decimal_context_changes_nothing(rope: Rope) -> None:
    want = frequencies(rope, 64), attention_factor(rope)
    with localcontext(Context(prec=5, rounding=ROUND_UP)):
        assert (frequencies(rope, 64), attention_factor(rope)) == want


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, found = frequencies(Rope(YARN.theta), 128), frequencies(YARN, 128)
    turns = [32768 * f / (2 * truepoint.PI) for f in plain]
    assert all(f == p for f, p, t in zip(found, plain, turns, strict=True) if t > 50)
    assert all(abs(f * 4 / p - 1) < Decimal("1e-25") for f, p, t in zip(found, plain, turns, strict=True) if t < 0.7)
    assert all(a > b for a, b in zip(found, found[1:], strict=False))
    assert attention_factor(YARN) == 1 + np.log(4.0) / 10


def test_the_attention_factor_lengthens_what_is_rotated() -> None:
    factor = attention_factor(YARN)
    cos, sin = truepoint.tables(frequencies(YARN, 64), 50, factor)
    np.testing.assert_allclose(cos * cos + sin * sin, factor**2, rtol=1e-6)
