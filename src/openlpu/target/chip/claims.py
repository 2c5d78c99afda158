"""Resolved operands and a program's claims in; an error out where what happens is not what was meant.

What depends on address maps (gathers, reads after a scatter, outputs of scatters) is kept as :class:`Expected` for
the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openlpu._base.errors import ProgramError
from openlpu.arch.isa import BY_NAME
from openlpu.schedule.program import RESIDENT as CLAIM_RESIDENT
from openlpu.schedule.program import Claims
from openlpu.target.chip.code import Code, Ints
from openlpu.target.chip.operands import Operands
from openlpu.target.chip.sram import DYNAMIC, RESIDENT

ABSENT = -3  # a claimed writer that never ran


@dataclass(frozen=True)
class Expected:
    """Per instruction the claimed writer of the word it reads; per claimed output its place and writer; what passes
    between stages (for :mod:`openlpu.target.chip.pipeline`)."""

    writer: Ints
    or_resident: NDArray[np.bool_]
    outputs: NDArray
    output_writer: Ints
    passed: NDArray


def check(code: Code, operands: Operands, claims: Claims) -> Expected:
    """Compare everything that is static; every operand must be claimed and every claim met."""
    order = np.argsort(code.id, kind="stable")
    code.refuse(order[1:][np.diff(code.id[order]) == 0], "two instructions have this id, claims are ambiguous")
    code.refuse(np.flatnonzero(code.id == CLAIM_RESIDENT), f"id {CLAIM_RESIDENT} means resident in claims")
    reads = claims.reads
    reader = _rows(code, order, reads["reader"])
    if (reader < 0).any():
        entry = reads[np.argmax(reader < 0)]
        raise ProgramError(f"claimed reader never ran: instruction {entry['reader']}", where="claims")
    at = _pair(code, operands, reader, reads["operand"].astype(np.int64))
    writer = np.where(reads["writer"] == CLAIM_RESIDENT, RESIDENT, _rows(code, order, reads["writer"]))
    _compare(code, operands, at, reads, writer)
    expected = np.full(len(code), RESIDENT)
    either = np.zeros(len(code), bool)
    word = operands.writer[at] == DYNAMIC
    expected[reader[word]], either[reader[word]] = writer[word], reads["or_resident"][word]
    _outputs(code, operands, claims.outputs, _rows(code, order, claims.outputs["writer"]))
    return Expected(expected, either, claims.outputs, _rows(code, order, claims.outputs["writer"]), claims.passed)


def _rows(code: Code, order: Ints, ids: NDArray) -> Ints:
    """Rows of instruction ids; ABSENT where no instruction has it."""
    if not len(code):
        return np.full(len(ids), ABSENT)
    at = order[np.minimum(np.searchsorted(code.id[order], ids), len(code) - 1)]
    return np.where(code.id[at] == ids, at, ABSENT)


def _pair(code: Code, operands: Operands, reader: Ints, number: Ints) -> Ints:
    """For each claim the index of its operand, one to one."""
    key = operands.row * 256 + operands.number
    claimed = reader * 256 + number
    order = np.argsort(key, kind="stable")
    at = np.minimum(np.searchsorted(key[order], claimed), max(len(key) - 1, 0))
    missing = key[order][at] != claimed if len(key) else np.ones(len(claimed), bool)
    if missing.any():
        code.refuse(reader[missing][:1], f"operand {number[missing][0]} is claimed but not read")
    times = np.bincount(at, minlength=len(key))
    for wrong, what in ((times == 0, "is read but not claimed"), (times > 1, "is claimed twice")):
        if wrong.any():
            entry = order[np.argmax(wrong)]
            code.refuse(operands.row[[entry]], f"operand {operands.number[entry]} {what}")
    return order[at]


def _compare(code: Code, operands: Operands, at: Ints, reads: NDArray, writer: Ints) -> None:
    actual = operands.writer[at]
    right = (actual == writer) | (reads["or_resident"] & (actual == RESIDENT)) | (actual == DYNAMIC)
    if not right.all():
        k = int(np.argmin(right))
        refuse(code, code.where(int(operands.row[at[k]])), int(reads["operand"][k]), int(writer[k]), int(actual[k]))
    part = reads["part"] == operands.part[at]
    if not part.all():
        k = int(np.argmin(part))
        code.refuse(
            operands.row[at[[k]]],
            f"operand {reads['operand'][k]} is part {operands.part[at[k]]} of what {_name(code, int(actual[k]))} "
            f"made; claimed is part {reads['part'][k]}",
        )


def refuse(code: Code, where: str, operand: int, claimed: int, actual: int) -> None:
    """Raise the error of an operand that another instruction wrote; ``where`` names its reader."""
    raise ProgramError(
        f"operand {operand} was written by {_name(code, actual)}; claimed is {_name(code, claimed)}",
        where=where,
    )


def _name(code: Code, writer: int) -> str:
    if writer == ABSENT:
        return "an instruction that never ran"
    return "nobody in this run" if writer < 0 else f"[{code.where(writer)}]"


def _outputs(code: Code, operands: Operands, outputs: NDArray, writer: Ints) -> None:
    """Outputs in slices without scatters, and the places of all; every scatter must be claimed."""
    for k in np.flatnonzero(writer < 0):
        refuse_output(code, outputs[k], ABSENT)
    right = (code.number[writer] == outputs["slice"]) & (code.field["address"][writer] == outputs["address"])
    op = np.where(outputs["indirect"], BY_NAME["scatter"].opcode, BY_NAME["write"].opcode)
    for k in np.flatnonzero(~right | (code.op[writer] != op)):
        code.refuse(writer[[k]], f"is claimed to write word {outputs['address'][k]} of slice {outputs['slice'][k]}")
    scatters = code.rows("scatter")
    code.refuse(scatters[~np.isin(scatters, writer)], "its words are not claimed as outputs")
    static = ~np.isin(outputs["slice"], operands.memory.dynamic)
    stale = static & ~np.isin(writer, operands.memory.last)
    for k in np.flatnonzero(stale):
        refuse_output(code, outputs[k], int(writer[k]))


def refuse_output(code: Code, output: NDArray, writer: int) -> None:
    """Raise the error of an output that is not there at the end."""
    raise ProgramError(
        f"after the run word {output['address']} of slice {output['slice']} is not what {_name(code, writer)} wrote",
        where="outputs",
    )
