"""A model's sizes in, an error before loading out when this machine has not enough memory for it."""

from __future__ import annotations

import os
from pathlib import Path

from openlpu._base.errors import DoesNotFit
from openlpu._base.units import size
from openlpu.checkpoint.config import ModelConfig
from openlpu.checkpoint.tensors import Tensors


def required(config: ModelConfig, tensors: Tensors) -> int:
    """Bytes a loaded model holds beside its mapped files: a lower bound, so that it never refuses in vain.

    One code byte per weight, one sequence's KV cache of one code byte per channel, and while loading the largest
    tensor as fp32.
    """
    counts = [entry.count for entry in tensors.entries.values()]
    kv = 2 * config.layers * config.kv_heads * config.head_dim * config.context
    return sum(counts) + kv + 4 * max(counts, default=0)


def available() -> int | None:
    """Bytes this process may still use: the least of the machine's free memory and its control group's rest.

    None where the system does not say.
    """
    rests = [rest for rest in (_machine(), _control_group(Path("/sys/fs/cgroup"))) if rest is not None]
    return min(rests, default=None)


def check(config: ModelConfig, tensors: Tensors, room: int | None) -> None:
    """:class:`DoesNotFit` when the model needs more than ``room`` bytes (None: unknown, so no error)."""
    need = required(config, tensors)
    if room is not None and need > room:
        raise DoesNotFit(
            f"not enough memory: the model needs at least {size(need)}, {size(room)} are available",
            where=str(tensors.folder),
            fix=f"free {size(need - room)}, use a context shorter than {config.context}, or a smaller model",
        )


def _machine() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _control_group(root: Path) -> int | None:
    """What the control group at ``root`` leaves; pages of mapped files count as free, since they can be dropped."""
    limit, used, stat = root / "memory.max", root / "memory.current", root / "memory.stat"
    if not all(file.exists() for file in (limit, used, stat)) or limit.read_text().strip() == "max":
        return None
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(limit.read_text()) - int(used.read_text()) + int(fields.get("file", 0))
