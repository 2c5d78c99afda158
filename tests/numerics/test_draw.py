"""Drawn models: the graph of a real model of the same shape, with codes from one stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_models import BASE

from openlpu._base.errors import BadRequest
from openlpu.arch.truepoint import blocks, sparse
from openlpu.checkpoint.config import ARCHITECTURES as DECODERS
from openlpu.graph import decoder
from openlpu.graph.models import ARCHITECTURES
from openlpu.graph.shapes import SHAPES, shape
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme


def rounded(config, scheme):
    """A real model of this shape: fp32 weights, lowered."""
    variant = ARCHITECTURES.get(config.architecture)(config)
    shapes = decoder.shapes(config, variant)
    return lower(decoder.build(config, {name: np.ones(s, np.float32) for name, s in shapes.items()}, variant), scheme)


@pytest.mark.parametrize("bits", [4.5, 8])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_graph_is_that_of_a_real_model(architecture, tied, bits):
    config = replace(BASE, architecture=architecture, tied=tied)
    scheme = Scheme(kv_bits=16, outlier_share=0.1, weight_bits=bits)
    drawn, real = draw(config, scheme), rounded(config, scheme)
    alike(drawn, real)


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(weight_bits=4.5), Scheme(prune="2:4")], ids=str)
def test_a_mixture_is_that_of_a_real_model(scheme):
    config = replace(BASE, architecture="mixtral", experts=3, experts_per_token=2)
    alike(draw(config, scheme), rounded(config, scheme))


def alike(drawn, real):
    assert drawn.nodes == real.nodes and drawn.values == real.values and drawn.output == real.output
    described = [{key: (p.shape, p.dtype) for key, p in graph.params.items()} for graph in (drawn, real)]
    assert described[0] == described[1]


def test_a_seed_decides_everything():
    one, same, other = (draw(replace(BASE, architecture="qwen2"), seed=seed) for seed in (1, 1, 2))
    for key, array in one.params.items():
        assert np.array_equal(array, same.params[key])
        assert np.array_equal(array, other.params[key]) == (not key.endswith(("codes", "scale", "bias"))), key


def test_matrices_are_different_windows_of_one_stream():
    """A 7B model is drawn in the memory of its largest matrix, which is why it can be benchmarked at all."""
    graph = draw(replace(shape("llama-2-7b", 64), layers=3, vocab=100))
    codes = [array for key, array in graph.params.items() if key.endswith("codes")]
    assert len(codes) == 3 * 7 + 2 and all(array.min() >= -127 for array in codes)
    addresses = {array.ctypes.data for array in codes}
    assert len(addresses) == len(codes) and max(addresses) - min(addresses) < 1009 * len(codes)


@pytest.mark.parametrize("bits", [4.5, 5.5, 8])
def test_matrices_have_as_many_bits_as_the_scheme_allows(bits):
    graph = draw(replace(BASE, layers=3, tied=False), Scheme(weight_bits=bits))
    spent = total = 0
    for node in graph.nodes:
        if "codes" in node.params:
            codes = graph.params[node.params["codes"]]
            narrow = "blocks" in node.params
            total, spent = total + codes.size, spent + codes.size * (4.5 if narrow else 8)
            if narrow:
                packed = graph.params[node.params["blocks"]]
                assert np.array_equal(blocks.expand(blocks.split(codes, packed), packed), codes)
    assert bits - 1.2 < spent / total <= bits


@pytest.mark.parametrize("how", ["2:4", "blocks:0.3"])
def test_pruned_matrices_have_the_structure_they_claim(how):
    config = replace(BASE, layers=3, hidden=72, intermediate=200, tied=False)
    graph, plain = draw(config, Scheme(prune=how)), draw(config)
    assert graph.values == plain.values
    seen = set()
    for node in graph.nodes:
        if node.op == "linear":
            codes = graph.params[node.params["codes"]]
            assert ("sparse" in node.attrs) == (node.where != "head")
            if node.attrs.get("sparse") == "2:4":
                assert sparse.is_pairs(codes)
            elif "sparse" in node.attrs:
                assert (sparse.tiles(codes).sum(axis=1) == node.attrs["tiles"]).all()
            seen.add(codes.tobytes())
    assert len(seen) == 3 * 7 + 1, "no two matrices are alike"


def test_a_shape_is_known_and_limited_to_a_context():
    assert shape("llama-2-7b").context == 4096 and shape("smollm2-135m", 100).context == 100
    assert (shape("mistral-7b", 4096).window, shape("mistral-7b", 8192).window) == (0, 4096)
    assert set(SHAPES) >= {"smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "llama-2-7b"}
    with pytest.raises(BadRequest, match="unknown shape 'gpt-5'\n  fix: one of: smollm2-135m, "):
        shape("gpt-5")
