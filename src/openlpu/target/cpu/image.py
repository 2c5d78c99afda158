"""Parameters in, the bytes the kernels read out: packed or padded, in the order the stages want them.

An image has two parts.  *Streamed* is read whole for every token: packed matrices and their vectors, which belong on
huge pages.  *Looked up* is what a token reads a row of (embedding tables, rotary tables): left where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.cores import usable_cores
from openlpu._base.errors import DoesNotFit
from openlpu._base.units import size as bytes_of
from openlpu.checkpoint.memory import available
from openlpu.target.cpu.memory import Arena, pad_vector
from openlpu.target.cpu.path import Path
from openlpu.target.cpu.plan import Operand, Plan
from openlpu.target.cpu.weights import Format, padded

PACKED, VECTOR, RAW = "packed", "vector", "raw"


@dataclass(frozen=True)
class Place:
    """Where an operand's bytes stand in the streamed part."""

    operand: Operand
    offset: int
    size: int


@dataclass(frozen=True)
class Image:
    """The streamed bytes and the places in them, and the arrays that are looked up, by parameter."""

    streamed: NDArray[np.uint8]
    places: tuple[Place, ...]
    looked_up: Mapping[str, np.ndarray]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed matrices."""
        return sum(place.size for place in self.places if place.operand.kind == PACKED)

    def addresses(self) -> dict[Operand, int]:
        """Where everything is now."""
        base = self.streamed.ctypes.data
        found = {place.operand: base + place.offset for place in self.places}
        return found | {Operand(RAW, name): array.ctypes.data for name, array in self.looked_up.items()}


class Parameters(Mapping[str, np.ndarray]):
    """The parameters behind an image; what is packed is unpacked again when it is asked for.

    ``shapes`` says shape and type of each, ``places`` where the packed ones and the vectors stand in what ``streamed``
    returns, ``blocks`` whose codes go with a parameter of block bytes; ``whole`` are all others.
    """

    def __init__(
        self, path: Path, formats: Mapping[str, Format], shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        places: Iterable[Place], blocks: Mapping[str, str], whole: Mapping[str, np.ndarray],
        streamed: Callable[[], NDArray[np.uint8]],
    ) -> None:
        self._path, self._formats, self._shapes, self._blocks, self._whole = path, formats, shapes, blocks, whole
        self._streamed = streamed
        self._places = {place.operand.name: place for place in places}

    def __getitem__(self, name: str) -> np.ndarray:
        shape, dtype = self._shapes[name]
        if name in self._whole:
            return self._whole[name]
        place = self._places[self._blocks.get(name, name)]
        data = self._streamed()[place.offset : place.offset + place.size]
        if place.operand.kind == VECTOR:
            return data.view(dtype)[: shape[0]]
        n, k = self._shapes[place.operand.name][0]
        codes, blocks = self._formats[place.operand.name].unpack(self._path, data, n, k)
        return codes if blocks is None or name not in self._blocks else blocks

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def parameters(plan: Plan, path: Path, image: Image, params: Mapping[str, np.ndarray]) -> Parameters:
    """The parameters that an image in memory was built from, of which it holds the bytes."""
    blocks = {blocks: codes for codes, blocks in plan.packed.items() if blocks}
    shapes = {name: (array.shape, array.dtype) for name, array in params.items()}
    streamed = {place.operand.name for place in image.places} | set(blocks)
    whole = {name: image.looked_up.get(name, array) for name, array in params.items() if name not in streamed}
    return Parameters(path, plan.formats, shapes, image.places, blocks, whole, lambda: image.streamed)


def wanted(plan: Plan, *kinds: str) -> Iterator[Operand]:
    """The parameters of the given kinds, in the order of their first reader."""
    yield from dict.fromkeys(o for stage in plan.stages for o in stage.operands if o.kind in kinds)


def build(plan: Plan, path: Path, params: Mapping[str, np.ndarray]) -> Image:
    """Pack all parameters into fresh memory; raises :class:`DoesNotFit` where there is not enough of it."""
    places, end = [], 0
    for operand in wanted(plan, PACKED, VECTOR):
        size = _bytes(plan, path, operand, params[operand.name].shape)
        places.append(Place(operand, end, size))
        end += padded(size, 64)
    if (room := available()) is not None and end > room:
        raise DoesNotFit(f"not enough memory: the weights take {bytes_of(end)}, {bytes_of(room)} are available",
                         where="weights", fix="use fewer bits, or a smaller model")
    arena = Arena(end)

    def fill(place: Place) -> None:
        name, out = place.operand.name, arena.view(place.offset, place.size)
        if place.operand.kind == PACKED:
            blocks = plan.packed[name]
            plan.formats[name].pack(path, params[name], params[blocks] if blocks else None, out)
        else:
            pad_vector(params[name], out)

    with ThreadPoolExecutor(usable_cores()) as pool:  # NumPy lets go of Python's lock while it packs
        for _ in pool.map(fill, places):
            pass
    looked_up = {o.name: np.ascontiguousarray(params[o.name]) for o in wanted(plan, RAW)}
    return Image(arena.bytes[:end], tuple(places), looked_up)


def _bytes(plan: Plan, path: Path, operand: Operand, shape: tuple[int, ...]) -> int:
    if operand.kind == VECTOR:
        return 4 * padded(shape[0], path.panel)
    return padded(shape[0], path.panel) // path.panel * plan.formats[operand.name].panel_bytes(path, shape[1])
