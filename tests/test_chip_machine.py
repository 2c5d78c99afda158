"""What each instruction does on the chip model, by hand-written programs on the tiny chip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from chip_programs import TINY, Board, assemble, vxm_program
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.arch.chip import load_chip
from openlpu.arch.isa import ALU, BYTE, IMM, NONE, QUAD, TABLE
from openlpu.arch.truepoint import elementwise as ew
from openlpu.target.chip.machine import Machine, resolve

L = TINY.lanes
T = 60  # the cycle in which operands meet the unit under test


def random_bytes(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, L)).astype(np.uint8)


def random_ints(seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(-(2**31), 2**31, L).astype(np.int32)


def f(x: NDArray[np.int32]) -> NDArray[np.float32]:
    return x.view(np.float32)


A, B = random_ints(1), random_ints(2)
X, Y = (np.random.default_rng(s).normal(0, 3, L).astype(np.float32).view(np.int32) for s in (3, 4))
WIDE = A.astype(object), B.astype(object)


def wrap(x: NDArray) -> NDArray[np.int32]:
    return np.array([(int(v) + 2**31) % 2**32 - 2**31 for v in x]).astype(np.int32)


def clamp(x: NDArray) -> NDArray[np.int32]:
    return np.array([min(max(int(v), -(2**31)), 2**31 - 1) for v in x]).astype(np.int32)


VXM: dict[str, tuple[NDArray, NDArray | None, Callable[[], NDArray]]] = {
    "pass": (A, None, lambda: A),
    "negate": (X, None, lambda: -f(X)),
    "add": (X, Y, lambda: f(X) + f(Y)),
    "sub": (X, Y, lambda: f(X) - f(Y)),
    "mul": (X, Y, lambda: f(X) * f(Y)),
    "max": (X, Y, lambda: np.where(f(X) > f(Y), f(X), f(Y))),
    "min": (X, Y, lambda: np.where(f(X) < f(Y), f(X), f(Y))),
    "relu": (X, None, lambda: np.where(f(X) > 0, f(X), np.float32(0))),
    "mask": (A, B, lambda: A & B),
    "add_mod": (A, B, lambda: wrap(WIDE[0] + WIDE[1])),
    "add_sat": (A, B, lambda: clamp(WIDE[0] + WIDE[1])),
    "sub_mod": (A, B, lambda: wrap(WIDE[0] - WIDE[1])),
    "mul_mod": (A, B, lambda: wrap(WIDE[0] * WIDE[1])),
    "mul_sat": (A, B, lambda: clamp(WIDE[0] * WIDE[1])),
    "max_int": (A, B, lambda: np.where(A > B, A, B)),
    "min_int": (A, B, lambda: np.where(A < B, A, B)),
    "shift_left": (A, B & 31, lambda: wrap(WIDE[0] * 2 ** (B & 31).astype(object))),
    "shift_right": (A, B & 31, lambda: wrap(WIDE[0] // 2 ** (B & 31).astype(object))),
    "to_float": (A, None, lambda: A.astype(np.float32)),
    "to_int": (X, None, lambda: np.rint(f(X).astype(np.float64)).astype(np.int32)),
    "exp": (X, None, lambda: ew.exp(f(X))),
    "rsqrt": (X & 0x7FFFFFFF, None, lambda: ew.rsqrt(f(X & 0x7FFFFFFF))),
    "tanh": (X, None, lambda: ew.tanh(f(X))),
}


def test_every_vxm_instruction_is_here() -> None:
    assert set(VXM) == {i.name for i in TABLE if i.unit == "vxm"}


@pytest.mark.parametrize("op", VXM)
def test_vxm(op: str) -> None:
    a, b, expected = VXM[op]
    out = vxm_program(op, a, b, (QUAD, QUAD if b is not None else NONE))
    assert (out == expected().view(np.int32)).all()


def test_vxm_immediate_and_bytes() -> None:
    assert (vxm_program("add_mod", A, -7) == wrap(WIDE[0] - 7)).all()
    codes = random_bytes(2)
    signed = codes.view(np.int8).astype(np.int32)
    out = vxm_program("mul_mod", codes[0], codes[1], (BYTE, BYTE))
    assert (out == signed[0] * signed[1]).all()
    low = vxm_program("add_mod", A, B, dst_kind=BYTE)
    assert (low == (A.view(np.uint32) + B.view(np.uint32)).astype(np.uint8)).all()


def test_vxm_chain_through_latches() -> None:
    """A result stands in its ALU's latch once, for any number of ALUs, whatever its destination."""
    board = Board()
    for k, plane in enumerate(A.view(np.uint8).reshape(-1, 4).T):
        board.feed("vxm0", T, k, plane)
    board.put("vxm0", T, "pass", a_kind=QUAD, a=0, dst_kind=ALU)
    board.put("vxm1", T + 2, "add_mod", a_kind=ALU, a=0, b_kind=ALU, b=0, dst_kind=QUAD, dst=4)
    board.put("vxm2", T + 2, "mask", a_kind=ALU, a=0, b_kind=IMM, imm=255, dst_kind=ALU)
    board.put("vxm2", T + 4, "add_mod", a_kind=ALU, a=1, b_kind=ALU, b=2, dst_kind=QUAD, dst=8)
    out = board.run([board.catch("vxm0", T + 6, 8 + k) for k in range(4)])
    assert (np.ascontiguousarray(out.T).view(np.int32).ravel() == wrap(2 * WIDE[0] + (A & 255))).all()


def test_to_int_of_nan_names_the_instruction() -> None:
    bad = X.copy()
    bad[7] = np.float32(np.nan).view(np.int32)
    with pytest.raises(NumericsError, match=r"cycle 60, vxm3, to_int"):
        vxm_program("to_int", bad, None, (QUAD, NONE))


@pytest.mark.parametrize("hemisphere", "we")
def test_matrix_vector_product(hemisphere: str) -> None:
    """Two arrays, the second installed while the first works; sums added in an accumulator; both hemispheres."""
    board = Board()
    weights = np.random.default_rng(5).integers(-127, 128, (2, L, L)).astype(np.int8)
    vectors = np.random.default_rng(6).integers(-128, 128, (2, L)).astype(np.int8)
    west = hemisphere == "w"
    queue, first, result = f"mxm{hemisphere}0", 32 if west else 0, 28 if west else 60
    x = TINY.mxm_position("we".index(hemisphere))

    def bring(slice_: int, address: int, stream: int, cycle: int, vector: NDArray) -> None:
        board.store(slice_, address, vector)
        hops = abs(TINY.slice_position(slice_) - x)
        board.put(f"mem{slice_}", cycle - hops - TINY.latency["read"], "read", address=address, stream=stream)

    for tile in range(2):
        for group in range(L // 16):
            cycle = T + 18 * tile + group
            for k in range(16):
                bring(k, 16 * tile + group, first + k, cycle, weights[tile, 16 * group + k])
            board.put(f"{queue}.weights", cycle, "load_weights", stream=first, group=group, step=1)
        board.put(f"{queue}.weights", T + 18 * tile + 16, "install_weights")
        use = T + 18 * tile + 20 + (17 if tile == 0 else 0)  # tile 0: the last cycle before tile 1 is the array
        bring(16 + tile, 200, first + 20, use, vectors[tile])
        board.put(f"{queue}.activations", use, "activate", stream=first + 20)
        board.put(
            f"{queue}.accumulate", use + 20, "accumulate", slot=3, clear=1 - tile, emit=tile, stream=result
        )
    done = T + 38 + 20 + 2
    out = board.run([board.catch(f"{queue}.accumulate", done, result + k) for k in range(4)])
    expected = sum(weights[t].astype(np.int64) @ vectors[t].astype(np.int64) for t in range(2))
    assert (np.ascontiguousarray(out.T).view(np.int32).ravel() == expected).all()


def test_rows_not_loaded_are_zero_and_step_0_repeats_one_vector() -> None:
    board, vector, row = Board(), random_bytes(1, 8)[0], random_bytes(1, 9)[0]
    board.feed("mxme0.weights", T, 0, row)
    board.put("mxme0.weights", T, "load_weights", stream=0, group=2, step=0)
    board.put("mxme0.weights", T + 1, "install_weights")
    board.feed("mxme0.activations", T + 5, 1, vector)
    board.put("mxme0.activations", T + 5, "activate", stream=1)
    board.put("mxme0.accumulate", T + 25, "accumulate", slot=0, clear=1, emit=1, stream=36)
    out = board.run([board.catch("mxme0.accumulate", T + 27, 36 + k) for k in range(4)])
    sums = np.ascontiguousarray(out.T).view(np.int32).ravel()
    dot = int(row.view(np.int8).astype(np.int64) @ vector.view(np.int8).astype(np.int64))
    assert (sums[32:48] == dot).all()
    assert (np.delete(sums, np.arange(32, 48)) == 0).all()


def sxm(op: str, data: NDArray, results: int, maps: NDArray | None = None, **fields: int) -> NDArray[np.uint8]:
    """One SXM instruction on ``data`` from stream 0 and ``maps`` from stream 20; results on westward streams."""
    board = Board()
    queue = "sxme.transpose1" if op == "transpose" else f"sxme.{op}"
    for k, vector in enumerate(data):
        board.feed(queue, T, k, vector)
    for k, vector in enumerate([] if maps is None else maps):
        board.feed(queue, T, 20 + k, vector)
    if maps is not None:
        fields["map"] = 20
    board.put(queue, T, op, stream=0, dst=40, **fields)
    return board.run([board.catch(queue, T + TINY.latency[op], 40 + k) for k in range(results)])


def test_shift() -> None:
    data = random_bytes(3)
    north = sxm("shift", data, 3, amount=5, north=1, count=3)
    assert (north[:, 5:] == data[:, :-5]).all()
    assert (north[:, :5] == 0).all()
    south = sxm("shift", data, 3, amount=200, north=0, count=3)
    assert (south[:, :-200] == data[:, 200:]).all()
    assert (south[:, -200:] == 0).all()
    assert (sxm("shift", data[:1], 1, amount=0, count=1) == data[:1]).all()


def test_permute() -> None:
    data, order = random_bytes(2), np.random.default_rng(1).permutation(L)
    maps = np.stack([order & 255, order >> 8]).astype(np.uint8)
    assert (sxm("permute", data, 2, maps, count=2) == data[:, order]).all()
    maps[0, 3] = maps[0, 4]
    with pytest.raises(ProgramError, match=r"cycle 60, sxme.permute, permute .*not a bijection"):
        sxm("permute", data, 2, maps, count=2)


def test_distribute() -> None:
    data, maps = random_bytes(3), np.random.default_rng(1).integers(0, 16, (1, L)).astype(np.uint8)
    maps[0, 5] = 255
    expected = data[:, np.arange(L) // 16 * 16 + maps[0] % 16]
    expected[:, 5] = 0
    assert (sxm("distribute", data, 3, maps, count=3) == expected).all()
    assert (sxm("distribute", data[:1], 1, maps, count=1) == expected[:1]).all()
    maps[0, 9] = 16
    with pytest.raises(ProgramError, match=r"distribute .*neither 0..15 nor 255"):
        sxm("distribute", data, 3, maps, count=3)


@pytest.mark.parametrize("size", [3, 4])
def test_rotate(size: int) -> None:
    data = random_bytes(size)
    out = sxm("rotate", data, size * size, size=size)
    lane = np.arange(L)
    for i in range(size):
        for j in range(size):
            assert (out[i * size + j] == data[i, lane // 16 * 16 + (lane + j) % 16]).all()


def test_transpose() -> None:
    data = random_bytes(16)
    out = sxm("transpose", data, 16)
    for superlane in range(TINY.superlanes):
        tile = slice(16 * superlane, 16 * superlane + 16)
        assert (out[:, tile] == data[:, tile].T).all()


def test_gather_and_scatter() -> None:
    """Each superlane has its own address; 0xFFFF takes no part; KV stays in SRAM for the next run."""
    board, table = Board(), random_bytes(6, 3)
    for i in range(6):
        board.store(19, 10 + i, table[i])
    offsets = np.random.default_rng(2).integers(0, 6, TINY.superlanes)
    offsets[4] = 0xFFFF
    maps = np.zeros((TINY.superlanes, 16), np.uint8)
    maps[:, 6], maps[:, 7] = offsets & 255, offsets >> 8
    board.feed("mem19", T, 0, maps.reshape(-1))
    board.put("mem19", T, "gather", address=10, stream=1, map=0, pair=3)
    at = T + 3 + TINY.slice_position(25) - TINY.slice_position(19)
    board.feed("mem25", at, 2, maps.reshape(-1))
    for i in range(6):
        board.store(25, 20 + i, np.zeros(L, np.uint8))
    board.put("mem25", at, "scatter", address=20, stream=1, map=2, pair=3)
    board.put("mem25", at + 2, "read", address=21, stream=35)
    word = board.catch("mem25", at + 5, 35)
    words = [(25, 20 + i) for i in range(6)]
    out = board.run([*words, word])
    tiles = table.reshape(6, -1, 16)
    expected = np.zeros((6, TINY.superlanes, 16), np.uint8)
    for superlane, offset in enumerate(offsets):
        if offset != 0xFFFF:
            expected[offset, superlane] = tiles[offset, superlane]
    assert (out[:6] == expected.reshape(6, -1)).all()
    assert (out[6] == out[1]).all()
    board.machine.run(board.queues())
    assert (board.machine.peek(*np.array(words).T) == out[:6]).all()


def test_a_word_is_written_and_read_again() -> None:
    """Values pass through SRAM; a later write of the same word replaces them; a copy of a copy is the value."""
    board, data = Board(), random_bytes(2)
    x = TINY.slice_position(20)
    for k in range(2):
        board.feed("mem20", T + 10 * k, 0, data[k])
        board.put("mem20", T + 10 * k, "write", address=7, stream=0)
        board.put("mem20", T + 10 * k + 2, "read", address=7, stream=1)
        board.put("mem24", T + 10 * k + 5 + TINY.slice_position(24) - x, "write", address=7, stream=1)
        board.put("mem24", T + 10 * k + 7 + TINY.slice_position(24) - x, "read", address=7, stream=2)
    last = TINY.slice_position(28) - x
    for k in range(2):
        board.put("mem28", T + 10 * k + 10 + last, "write", address=k, stream=2)
    assert (board.run([(28, 0), (28, 1), (20, 7)]) == data[[0, 1, 1]]).all()


def test_a_later_result_overwrites_a_stream() -> None:
    board, data = Board(), random_bytes(2)
    board.store(0, 0, data[0])
    board.store(19, 0, data[1])
    hops = TINY.slice_position(19) - TINY.slice_position(0)
    board.put("mem0", T, "read", address=0, stream=5)
    board.put("mem19", T + hops, "read", address=0, stream=5)
    board.put("mem20", T + 3 + TINY.slice_position(20) - TINY.slice_position(0), "write", address=0, stream=5)
    assert (board.run([(20, 0)]) == data[1]).all()


def test_a_read_and_a_write_of_different_banks_share_a_cycle() -> None:
    board, data = Board(), random_bytes(2)
    board.feed("mem20", T, 0, data[0])
    board.store(20, 1, data[1])
    board.put("mem20", T, "write", address=2048, stream=0)
    board.put("mem20", T, "read", address=1, stream=1)
    word = board.catch("mem20", T + 3, 1)
    assert (board.run([(20, 2048), word]) == data).all()


def test_cycles_and_no_values() -> None:
    """Timing and rules need no data: a program is resolved without a machine."""
    queues = assemble({"mem0": [(5, "read", {"address": 1, "stream": 0})], "mem4": [(9, "write", {"stream": 0})]})
    assert resolve(TINY, queues).cycles == 9 + 2 - 5
    with pytest.raises(ProgramError, match=r"cycle 5, mem0, read \(instruction 1\): .* never written"):
        Machine(TINY).run(queues)
    assert resolve(TINY, {}).cycles == 0


def test_the_real_geometry() -> None:
    chip = load_chip("lpu-v1")
    board = Board(chip)
    vector = np.random.default_rng(0).integers(0, 256, chip.lanes).astype(np.uint8)
    board.feed("sxme.permute", T, 0, vector)
    order = np.random.default_rng(1).permutation(chip.lanes)
    for k in range(2):
        board.feed("sxme.permute", T, 1 + k, (order >> 8 * k & 255).astype(np.uint8))
    board.put("sxme.permute", T, "permute", stream=0, dst=32, map=1, count=1)
    x = chip.sxm_position(1) - chip.slice_position(87)
    board.put("mem87", T + chip.latency["permute"] + x, "write", address=8191, stream=32)
    assert (board.run([(87, 8191)]) == vector[order]).all()


def test_host_access() -> None:
    machine = Machine(TINY)
    with pytest.raises(ProgramError, match=r"tiny has slices 0..39"):
        machine.load(np.array([40]), np.array([0]), np.zeros((1, L), np.uint8))
    with pytest.raises(ProgramError, match=r"tiny has words 0..4095"):
        machine.peek(np.array([0]), np.array([4096]))
    with pytest.raises(ProgramError, match="never written"):
        machine.peek(np.array([0]), np.array([0]))
