"""How many cores this process may use: those of the machine, or fewer in a container."""

import contextlib
import math
import os
from pathlib import Path

# Of a container's own view; version 2, and version 1 in two files.
QUOTA = Path("/sys/fs/cgroup/cpu.max")
OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def usable_cores() -> int:
    """Return the number of cores, at least one: a part of one counts as one."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota() -> float | None:
    """Return how many cores' time the kernel grants, or None where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max", which is none
        granted, period = QUOTA.read_text().split()
        return float(int(granted) / int(period))
    with contextlib.suppress(OSError, ValueError):
        granted_us = int(OLD_QUOTA.read_text())
        return granted_us / int(OLD_PERIOD.read_text()) if granted_us > 0 else None
    return None
