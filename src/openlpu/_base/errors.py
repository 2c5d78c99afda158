"""Errors a user can act on: what is wrong, where, and what to do about it.

In: a sentence, a place (file, layer, field) and a remedy.  Out: one exception family with one base class,
so a command line or a service catches :class:`OpenLpuError` and nothing else.
"""

from __future__ import annotations


class OpenLpuError(Exception):
    """Base of every error caused by input, never by a bug (a bug is an ``AssertionError``).

    ``where`` names the file, tensor, layer or field; ``fix`` says what the user can do.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  fix: {fix}" if fix else text)


class BadCheckpoint(OpenLpuError):
    """A model file or folder that cannot be read: truncated, inconsistent, incomplete."""


class Unsupported(OpenLpuError):
    """Well-formed input that asks for something openlpu does not do (an architecture, a RoPE type)."""


class BadRequest(OpenLpuError):
    """A prompt, token or option that the loaded model cannot accept."""


class DoesNotFit(OpenLpuError):
    """Not enough room: carries the demand, the room, and the levers that would close the gap."""


class NumericsError(OpenLpuError):
    """A value that TruePoint refuses to continue with: NaN or infinity inside a step."""


class ProgramError(OpenLpuError):
    """A program the chip refuses: names cycle, unit and instruction."""


class LinkError(OpenLpuError):
    """A link between chips that stays broken: names the chip and its port."""
