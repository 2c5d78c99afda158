"""The CPU target against the reference: every logit equal bit for bit, whatever the path, threads, cuts, company."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace

import numpy as np
import pytest
from random_models import BASE, CASES, LLAMA, MIXTURES, assert_neighbours_do_not_matter, random_graph, same, tokens

from openlpu._base.errors import BadRequest, DoesNotFit, NumericsError, Unsupported
from openlpu.checkpoint import folder
from openlpu.checkpoint.encoder import EncoderConfig
from openlpu.graph import build
from openlpu.graph.shapes import SHAPES, shape
from openlpu.numerics.draw import draw
from openlpu.numerics.lower import lower
from openlpu.numerics.scheme import Scheme
from openlpu.target.base import Chunk
from openlpu.target.cpu import path as paths
from openlpu.target.cpu import run as cpu
from openlpu.target.cpu.bandwidth import ReadLoop
from openlpu.target.cpu.native import Module
from openlpu.target.cpu.plan import Planner
from openlpu.target.ref import run as ref

PATHS = tuple(paths.available())
# Processors with AVX-512 have the 256-bit instruction of avxvnni too, in its other encoding.
VECTORS = paths.available()
if "avx512vnni" in VECTORS:
    features = "+avx2,+bmi,+bmi2,+avx512vl,+avx512vnni"
    VECTORS["avxvnni"] = replace(paths.known("x86_64")["avxvnni"][1], features=features)


@pytest.fixture(scope="module", params=CASES | MIXTURES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    graph = random_graph(*(CASES | MIXTURES)[request.param])
    ids = tokens(40, graph.config)
    return graph, ids, ref.load(graph).run([Chunk(0, 0, ids, every=True)])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", VECTORS)
def test_random_graphs(case, path, threads):
    graph, ids, want = case
    target = cpu.CpuExecutable(graph, 1, graph.config.context, threads, VECTORS[path])
    assert same(target.run([Chunk(0, 0, ids, every=True)]), want)
    steps = [target.run([Chunk(0, i, ids[i : i + 1])])[0] for i in range(len(ids))]
    assert same([np.concatenate(steps)], want)
    target.close()


@pytest.fixture(scope="module")
def stories(shared):
    """stories260K: a real trained model, with reference logits of 300 positions (two attention blocks)."""
    graph = lower(build(folder.load(shared / "models" / "stories260K")), Scheme())
    ids = tokens(300, graph.config)
    return graph, ids, ref.load(graph).run([Chunk(0, 0, ids, every=True)])[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_stories_in_every_cut(stories, path, threads):
    graph, ids, want = stories
    target = cpu.load(graph, threads=threads, path=path)
    for size in (1, 7, 64, 300):
        for start in range(0, 300, size):
            part = ids[start : start + size]
            (got,) = target.run([Chunk(0, start, part)])
            assert same([got], [want[start + len(part) - 1 : start + len(part)]]), f"chunks of {size}, at {start}"
    target.close()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_at_different_positions(stories, threads):
    graph, ids, want = stories
    target = cpu.load(graph, slots=8, threads=threads)
    assert_neighbours_do_not_matter(target, ids, want, (0, 1, 5, 17, 64, 100, 255, 290))
    target.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("kv_bits", "window"), [(8, 0), (4, 0), (16, 300), (4, 257), (8, 31)])
def test_long_contexts_are_shared_evenly(kv_bits, window, threads):
    """Blocks of one row meet from several tiles; rows at different positions, with and without a window."""
    config = replace(BASE, layers=2, heads=6, kv_heads=2, head_dim=16, context=1100, window=window)
    graph = random_graph(config, LLAMA, Scheme(kv_bits=kv_bits))
    ids = tokens(1100, config)
    want = ref.load(graph).run([Chunk(0, 0, ids, every=True)])[0]
    target = cpu.load(graph, slots=3, threads=threads)
    for slot, end in enumerate((1090, 600, 3)):
        target.run([Chunk(slot, 0, ids[:end])])
    for turn in range(3):
        chunks = [Chunk(0, 1090 + 2 * turn, ids[1090 + 2 * turn :][:2], every=True),
                  Chunk(1, 600 + turn, ids[600 + turn :][:1]), Chunk(2, 3 + turn, ids[3 + turn :][:1])]
        wanted = [want[c.start : c.start + len(c.tokens)] for c in chunks]
        assert same(target.run(chunks), wanted), f"turn {turn}"
        assert same(target.run(chunks[:1]), wanted[:1]), f"turn {turn}, alone"
    target.close()


def test_a_slot_twice_in_one_call(stories):
    """Chunks of one slot act in order, also when the later one goes back."""
    graph, ids, want = stories
    target = cpu.load(graph)
    other = tokens(9, graph.config, seed=5)
    got = target.run([Chunk(0, 0, ids[:9], every=True), Chunk(0, 3, other[3:]), Chunk(0, 3, ids[3:12], every=True)])
    assert same([got[0], got[2]], [want[:9], want[3:12]])
    target.close()


def test_many_steps_by_many_threads(stories):
    """More threads than cores for a thousand steps: no tile is lost or done twice."""
    graph, ids, want = stories
    target = cpu.load(graph, threads=4, context=64)
    for turn in range(20):
        for i in range(50):
            assert same(target.run([Chunk(0, i, ids[i : i + 1])]), [want[i : i + 1]]), f"turn {turn}, position {i}"
    target.close()


@pytest.mark.parametrize("path", PATHS)
def test_nan_stops_the_step(path):
    """A NaN is found and named; the next step is as if nothing had been."""
    graph = random_graph(*CASES["untied"])
    scale = graph.params["embed.scale"].copy()
    scale[7] = np.nan
    target = cpu.load(replace(graph, params={**graph.params, "embed.scale": scale}), path=path)
    with pytest.raises(NumericsError, match=r"layers\.0\.attn"):
        target.run([Chunk(0, 0, (7,))])
    assert same(target.run([Chunk(0, 0, (6,))]), ref.load(graph).run([Chunk(0, 0, (6,))]))
    target.close()


def test_infinite_logits_stop_the_step():
    graph = random_graph(*CASES["untied"])
    scale = np.full_like(graph.params["head.scale"], 3e38)
    broken = replace(graph, params={**graph.params, "head.scale": scale})
    for target in (ref.load(broken), cpu.load(broken)):
        with pytest.raises(NumericsError, match="logit"), np.errstate(over="ignore", invalid="ignore"):
            target.run([Chunk(0, 0, (7,))])
        target.close()


def test_no_multiplication_is_fused():
    """fp32 multiplications and additions round separately: the machine code has no fused instruction."""
    graph = random_graph(*CASES["head norms"])
    for name in PATHS:
        target = cpu.load(graph, path=name)
        assembly = target.module.assembly()
        assert "fmadd" not in assembly and "fmsub" not in assembly and "fmla" not in assembly
        assert "mulps" in assembly or "fmul" in assembly, "the assembly is the one of these kernels"
        target.close()


@pytest.mark.parametrize("tied", [True, False])
def test_drawn_shapes(tied):
    """A benchmark's random graph is a graph like any other, and the same one every time."""
    config = replace(shape("qwen2.5-0.5b", 32), hidden=64, layers=2, intermediate=96, vocab=200, tied=tied)
    graph, again = draw(config), draw(config)
    assert all(np.array_equal(graph.params[name], again.params[name]) for name in graph.params)
    ids = tokens(20, config)
    target = cpu.load(graph)
    assert same(target.run([Chunk(0, 0, ids, every=True)]), ref.load(graph).run([Chunk(0, 0, ids, every=True)]))
    target.close()


@pytest.mark.parametrize("name", [name for name, config in SHAPES.items() if not isinstance(config, EncoderConfig)])
def test_plans_of_real_shapes(name):
    """Ten stages a layer whatever the size, with experts three more, and no more kernels for thirty layers."""
    config = shape(name)
    plan = Planner(draw(replace(config, vocab=8, hidden=64, intermediate=32)), 16).plan()
    more = 3 if config.experts else 0
    assert len(plan.stages) == (10 + more) * config.layers + 2
    kinds = 12 + 4 * bool(config.experts) + bool(config.window and config.full_layers)  # layers with and without
    assert len({stage.spec for stage in plan.stages}) == kinds
    assert [stage.where for stage in plan.stages if stage.logits_only][0] == f"layers.{config.layers - 1}.attn"


def test_read_loop_reads():
    loop = ReadLoop(threads=2, size=4 << 20)
    assert loop.measure() > 0
    loop.close()


@pytest.mark.skipif("avx2" not in PATHS, reason="the control word of x86")
def test_a_caller_that_flushes_subnormals():
    """Gets the same bits, and its own setting back."""
    flushing, now = np.array([0x9FC0], np.int32), np.zeros(1, np.int32)
    text = "".join(f"declare void @llvm.x86.sse.{op}(ptr)\ndefine void @{op}(ptr %a) {{\n"
                   f"call void @llvm.x86.sse.{op}(ptr %a)\nret void\n}}\n" for op in ("ldmxcsr", "stmxcsr"))
    module = Module(text, paths.choose("portable"))
    write, read = (module.function(op, ctypes.c_void_p) for op in ("ldmxcsr", "stmxcsr"))
    graph = random_graph(*CASES["outliers"])
    target, usual = cpu.load(graph), np.zeros(1, np.int32)
    want = target.run([Chunk(0, 0, (1, 2, 3))])
    read(usual.ctypes.data)
    write(flushing.ctypes.data)
    got = target.run([Chunk(0, 0, (1, 2, 3))])
    read(now.ctypes.data)
    write(usual.ctypes.data)
    assert same(got, want) and now[0] & 0x8040 == 0x8040
    target.close()


def test_unknown_path():
    with pytest.raises(Unsupported, match="avx1024"):
        cpu.load(random_graph(*CASES["tied"]), path="avx1024")


@pytest.mark.parametrize("threads", [-1, 1_000_000])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(BadRequest, match="threads"):
        cpu.load(random_graph(*CASES["tied"]), threads=threads)


def test_a_system_that_starts_no_more_threads(monkeypatch):
    """The threads that did start are sent home, and the next model loads."""
    start, before = threading.Thread.start, threading.active_count()

    def sparing(thread):
        if threading.active_count() >= before + 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    graph = random_graph(*CASES["tied"])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", sparing)
        with pytest.raises(DoesNotFit, match="no more than 3 of 5 threads"):
            cpu.load(graph, threads=5)
    assert threading.active_count() == before
    cpu.load(graph, threads=5).close()


def test_bad_rows_never_reach_native_code():
    graph = random_graph(*CASES["tied"])
    target = cpu.load(graph)
    for chunk in (Chunk(0, 0, (50,)), Chunk(1, 0, (1,)), Chunk(0, 64, (1,)), Chunk(0, -1, (1,)), Chunk(0, 0, (-1,))):
        with pytest.raises(AssertionError):
            target.run([chunk])
    target.close()
