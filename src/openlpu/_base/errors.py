"""Errors a user can act on: what is wrong, where, and what to do about it.

In: a sentence, a place (file, layer, field) and a remedy.  Out: one exception family with one base class,
so a command line or a service catches :class:`OpenLpuError` and nothing else.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class OpenLpuError(Exception):
    """Base of every error caused by input, never by a bug (a bug is an ``AssertionError``).

    ``where`` names the file, tensor, layer or field; ``fix`` says what the user can do, where that is not the usual.
    """

    usual: ClassVar[str] = ""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        fix = fix or self.usual
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n  fix: {fix}" if fix else text)


class BadCheckpoint(OpenLpuError):
    """A model file or folder that cannot be read: truncated, inconsistent, incomplete."""

    usual = "get it again; if it is the same, whoever made it must mend it"


class Unsupported(OpenLpuError):
    """Well-formed input that asks for something openlpu does not do (an architecture, a RoPE type)."""

    usual = "use another model"


class BadRequest(OpenLpuError):
    """A prompt, token or option that the loaded model cannot accept."""


class TooManyPositions(BadRequest):
    """A context that is longer than a model allows, or none: ``most`` positions are allowed."""

    def __init__(self, asked: int, most: int, where: str = "context") -> None:
        self.most = most
        super().__init__(f"a context of {asked}, but the model has 1 to {most} positions", where=where,
                         fix=f"ask for 1 to {most}")


class DoesNotFit(OpenLpuError):
    """Not enough room: carries the demand, the room, and the levers that would close the gap."""


class NumericsError(OpenLpuError):
    """A value that TruePoint refuses to continue with: NaN or infinity inside a step."""


class ProgramError(OpenLpuError):
    """A program the chip refuses: names cycle, unit and instruction."""


class LinkError(OpenLpuError):
    """A link between chips that stays broken: names the chip and its port."""


_NAME = "name a place where you may read and write"
_ROOM = "free some, or name another place"
_OF_SYSTEM = {
    errno.ENOENT: ("there is no such file or folder", "check the name"),
    errno.EISDIR: ("this is a folder, not a file", "name a file"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "name a folder that can be made"),
    errno.EEXIST: ("this is a file, not a folder", "name a folder"),
    errno.EACCES: ("this is not allowed", _NAME), errno.EPERM: ("this is not allowed", _NAME),
    errno.EROFS: ("nothing can be written here", _NAME),
    errno.ENOSPC: ("there is no room left", _ROOM), errno.EDQUOT: ("there is no room left", _ROOM),
    errno.EFBIG: ("the file would be larger than is allowed", _ROOM),
    errno.EMFILE: ("too many files are open", "allow this process more (ulimit -n)"),
}


def of_system(error: OSError) -> OpenLpuError:
    """What the operating system refused, in words of ours: of the file it was asked for, if it says which."""
    unknown = error.strerror or str(error) or type(error).__name__
    what, fix = _OF_SYSTEM.get(error.errno or 0, (unknown, _NAME))
    return BadRequest(what, where=str(error.filename or ""), fix=fix)
