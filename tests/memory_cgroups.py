"""Memory limits of the kernel, for tests that run into one."""

import contextlib
import os
from pathlib import Path


def make_memory_cgroup(name: str, limit_bytes: int) -> Path | None:
    """Make a cgroup of this process's own with a memory limit; None where that is not allowed."""
    limits = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # versions 2 and 1
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in limits:
            continue
        group = Path("/sys/fs/cgroup", controllers, path.lstrip("/"), f"{name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            with contextlib.suppress(OSError):
                (group / limits[controllers]).write_text(str(limit_bytes))
                return group
            group.rmdir()
    return None
