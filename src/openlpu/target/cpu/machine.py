"""What was measured of this machine, as a file in the user's cache folder: written by ``openlpu calibrate``.

One file per processor, vector path and number of threads.  A file that was made with other kernels, or another model
of their costs, says nothing about these: it is refused with the way to a new one.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from openlpu._base.errors import OpenLpuError
from openlpu.target.cpu import cost
from openlpu.target.cpu.native import kernels_hash
from openlpu.target.cpu.path import Path as VectorPath
from openlpu.target.cpu.path import available
from openlpu.target.cpu.plan import Plan

PERCENTS = (50, 90, 95, 98, 99, 99.5)  # of the spread of times


class NotCalibrated(OpenLpuError):
    """There is no measurement of this machine that holds for these kernels."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what, where=where, fix="run `openlpu calibrate`: it takes seconds")

    @property
    def short(self) -> str:
        """One short line."""
        return f"nothing: {self.what}; `openlpu calibrate` takes seconds"


@dataclass(frozen=True)
class Spread:
    """How far apart times of the same step of about ``seconds`` lay: over their median, at each of ``PERCENTS``."""

    seconds: float
    over_median: tuple[float, ...]


@dataclass(frozen=True)
class Machine:
    """Prices of work in wall seconds by kind, the memory's reach, and how steady times are (ascending in seconds).

    ``kernels`` is the hash of what was measured.
    """

    processor: str
    path: str
    threads: int
    reach: cost.Reach
    prices: Mapping[str, float]
    spreads: tuple[Spread, ...]
    kernels: str

    def seconds(self, plan: Plan, step: cost.Step) -> float:
        """Wall seconds of a step, in the median."""
        return cost.seconds(cost.work(plan, self.setting, step), self.prices)

    @cached_property
    def setting(self) -> cost.Setting:
        """What the counts of work depend on here."""
        return cost.Setting(available()[self.path], self.threads, self.reach)

    def spread(self, seconds: float) -> tuple[float, ...]:
        """Of steps that take so long: the measured one nearest from below, since longer ones are steadier."""
        shorter = [s for s in self.spreads if s.seconds <= seconds]
        return (shorter[-1] if shorter else self.spreads[0]).over_median

    def save(self) -> Path:
        """Write the file, whole or not at all; returns where."""
        target = place(self.path, self.threads)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as draft:
            draft.write(self.text())
        os.replace(draft.name, target)
        return target

    def text(self) -> str:
        """The file's JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def load(path: VectorPath, threads: int) -> Machine:
    """The measurement of this machine with this vector path and number of threads.

    Raises :class:`NotCalibrated` when there is none, or none that holds for this version.
    """
    file = place(path.name, threads)
    try:
        machine = parse(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotCalibrated(f"this machine was not measured with {_threads(threads)}", file.name) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotCalibrated("not a file that `openlpu calibrate` wrote", str(file)) from error
    if machine.kernels != kernels_hash():
        raise NotCalibrated("this machine was measured with another version of openlpu", str(file))
    if (machine.processor, machine.path, machine.threads) != (processor(), path.name, threads):
        raise NotCalibrated(f"made on another processor: {machine.processor}", str(file))
    return machine


def parse(text: str) -> Machine:
    """A file's machine."""
    data: dict[str, Any] = json.loads(text)
    reach = data.pop("reach")
    loop = tuple((int(size), float(time)) for size, time in reach["loop"])
    spreads = tuple(Spread(s["seconds"], tuple(s["over_median"])) for s in data.pop("spreads"))
    return Machine(**data, reach=cost.Reach(int(reach["near"]), loop), spreads=spreads)


def place(path: str, threads: int) -> Path:
    """Where the file of this processor lies."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", processor()).strip("-")
    return folder() / f"{name}-{path}-{threads}.json"


def folder() -> Path:
    """The user's cache folder, as the system has it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "openlpu"
    named = os.path.expandvars("$XDG_CACHE_HOME")  # unset, it stays as it is; a relative path does not count
    return (Path(named) if os.path.isabs(named) else Path.home() / ".cache") / "openlpu"


def processor() -> str:
    """The processor's name, as people know it."""
    info = Path("/proc/cpuinfo")
    text = info.read_text("utf-8", "replace") if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
