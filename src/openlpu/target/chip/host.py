"""What the host does with a chip: fill its SRAM once, write a few rows before a step, read values behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import NumericsError, ProgramError
from openlpu.place import emplace, host
from openlpu.place.homes import Resident
from openlpu.place.layout import state
from openlpu.schedule.prefill import parts, prompt_parts
from openlpu.schedule.program import Program, Rows, StageProgram, SystemProgram
from openlpu.schedule.sweeps import turns
from openlpu.target.base import F32, Chunk
from openlpu.target.chip.machine import Machine


def fill(machine: Machine, residents: Iterable[Resident], params: Mapping[str, np.ndarray], role: int = 0) -> None:
    """Everything that lies in a chip's SRAM before the first token."""
    for item in residents:
        count, planes = item.slices.shape
        data = emplace.vectors(item.source, count, planes, machine.chip.lanes, params)
        machine.load(item.slices, item.addresses[:, None], data, role)


def write_rows(machine: Machine, program: Program, step: host.Step) -> None:
    """Which tokens come next, and where: the same rows on every chip."""
    for item in program.resident:
        kind, _, name = item.name.partition(".")
        if kind != "host" or host.place_of(name) >= step.chunk:
            continue
        data = host.row(name, program.chip, step, program.v_rows, program.requests)[None]
        for role in range(machine.roles):
            machine.load(item.slices, item.addresses[:, None], data, role)


def steps(program: Program | SystemProgram, chunk: Chunk) -> Iterator[tuple[host.Step, int]]:
    """The steps of a chunk of tokens, each with the number of its segment; one token each where all logits are asked
    for."""
    segments = program.segments if isinstance(program, Program) else program.stage(0).program.segments
    end = chunk.start + len(chunk.tokens)
    single = [s for s in segments if s.chunk == 1]
    apart = parts(single, [0] * len(single), chunk.start, end) if chunk.every else None
    for part in apart or prompt_parts(program, chunk.start, end):
        tokens = chunk.tokens[part.start - chunk.start : part.end - chunk.start]
        yield host.Step(part.start, tokens, segments[part.segment].chunk, chunk.slot), part.segment


def hidden(machine: Machine, stage: StageProgram, length: int) -> F32:
    """The hidden states [length, hidden] of a sequence, from the state that its last sweep wrote.

    Raises :class:`NumericsError` where one is not finite.
    """
    last, _ = turns(stage.program, length)[-1]
    homes = {item.name: item for item in stage.program.resident}
    states = [homes[state(last.number % 2, v)] for v in range(last.logits.channel.shape[-2])]
    slices, addresses = (np.stack([getattr(s, word) for s in states], 1) for word in ("slices", "addresses"))
    rows = (Rows(slices[p], addresses[p], last.logits.channel) for p in range(length))
    made = np.stack([value(machine, [stage.rows(row, role) for role in range(stage.tensor)]) for row in rows])
    if not np.isfinite(made).all():
        raise NumericsError("a hidden state is not finite", where=last.name)
    return made


def words(machine: Machine, rows: Rows, role: int = 0) -> NDArray[np.float32]:
    """The fp32 vectors [n, lanes] that a token left on a chip."""
    planes = machine.peek(rows.slices, rows.addresses[:, None], role)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<f4")[..., 0]


def value(machine: Machine, rows: Iterable[Rows]) -> F32:
    """An fp32 value by channel, from where each role left its part.

    Raises :class:`ProgramError` naming the role whose copy of a channel has not the bits of the others'.
    """
    parts = [(item.channel[item.channel >= 0], words(machine, item, role)[item.channel >= 0])
             for role, item in enumerate(rows)]
    out = np.empty(1 + max(int(channel.max(initial=-1)) for channel, _ in parts), np.float32)
    for channel, made in parts:
        out[channel] = made
    for role, (channel, made) in enumerate(parts):
        wrong = channel[out[channel].view(np.int32) != made.view(np.int32)]
        if len(wrong):
            what = f"channel {wrong[0]} of a value that several chips hold differs between them"
            raise ProgramError(what, where=f"role {role}")
    return out
