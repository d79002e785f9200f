"""The most memory that a run may use, with all of its processes.

A cgroup of the run's own where the agent may make one: the kernel counts exactly, and kills within
the group. Elsewhere (most containers) each process has a limit of its own, at which it is refused
more, and the agent looks every second at what all of them hold together.

Cgroups of version 2: https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory"; of version 1:
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html. Both are met: version 1 on old hosts.
"""

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import psutil

from mlops.agent.attempts import Attempt
from mlops.agent.flow_process import MEMORY_GROUP_VARIABLE, MEMORY_LIMIT_VARIABLE
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.marked_processes import find_marked
from mlops.memory_size import format_memory

SAMPLE_SECONDS = 1.0
NAME = "mlops-run-"
LEFT_BEHIND_SECONDS = 3600.0  # what a killed agent left; a living one's is in use by then
# Native code that is refused memory rarely says so: it aborts, or crashes.
NEAR = 0.8


class _Version(NamedTuple):
    """What the files of a group are called, in the order in which they are written."""

    settings: dict[str, str]
    events: str


def _version_2(limit: str) -> _Version:
    return _Version(
        {"memory.max": limit, "memory.swap.max": "0", "memory.oom.group": "1"}, "memory.events"
    )


def _version_1(limit: str) -> _Version:
    return _Version(
        {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit},
        "memory.oom_control",
    )


# Files that a kernel without swap, or an older one, lacks.
_OPTIONAL = {"memory.swap.max", "memory.oom.group", "memory.memsw.limit_in_bytes"}


@dataclass(frozen=True)
class MemoryGroup:
    """A cgroup with a limit.

    Attributes:
        folder: Of its files.
        events: The file in which the kernel counts whom it has killed.
    """

    folder: Path
    events: str

    @property
    def processes(self) -> Path:
        """The file through which a process joins."""
        return self.folder / "cgroup.procs"

    @property
    def has_killed(self) -> bool:
        """Whether the kernel has killed a process for want of memory in it."""
        with contextlib.suppress(OSError):
            for line in (self.folder / self.events).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return line.split()[1] != "0"
        return False


@dataclass(frozen=True)
class MemoryVerdict:
    """What a run's limit has to do with its end.

    Attributes:
        limit: For people.
        is_exceeded: The run has used more.
        is_near: It came so near that a crash tells the same.
    """

    limit: str
    is_exceeded: bool
    is_near: bool


class MemoryLimit:
    """The limit of one run.

    Args:
        limit_bytes: Of all its processes together.
        attempt: By whose mark they are found.
        group: None where processes limit themselves.
    """

    def __init__(self, limit_bytes: int, attempt: Attempt, group: MemoryGroup | None) -> None:
        self.limit_bytes = limit_bytes
        self._attempt = attempt
        self._group = group
        self._peak_bytes = 0

    @property
    def environment(self) -> dict[str, str]:
        """What `flow_process` must find set to apply the limit before anything else."""
        group = {MEMORY_GROUP_VARIABLE: str(self._group.processes)} if self._group else {}
        return {MEMORY_LIMIT_VARIABLE: str(self.limit_bytes), **group}

    def apply(self, pid: int) -> None:
        """Limit a run's process from outside: one that began with a command of its own."""
        with contextlib.suppress(OSError):  # it has ended
            if self._group:
                self._group.processes.write_text(str(pid))
            else:
                resource.prlimit(pid, resource.RLIMIT_DATA, (self.limit_bytes, self.limit_bytes))

    async def watch(self, pid: int) -> None:
        """End the run when it exceeds the limit; return when its process is gone."""
        while _lives(pid):
            if self._group is None:
                look = partial(_held_bytes, pid, exact_from_bytes=int(self.limit_bytes * NEAR))
                held = await anyio.to_thread.run_sync(look)
                self._peak_bytes = max(self._peak_bytes, held)
            if self.is_exceeded:
                # The kernel may have killed a child alone, for which the flow would wait.
                await anyio.to_thread.run_sync(partial(_kill, self._attempt))
            await anyio.sleep(SAMPLE_SECONDS)

    @property
    def is_exceeded(self) -> bool:
        """Whether the run has used more than it may."""
        if self._group:
            return self._group.has_killed
        return self._peak_bytes > self.limit_bytes

    @property
    def verdict(self) -> MemoryVerdict:
        """What is known of it when the run's process has ended."""
        is_near = self._peak_bytes > self.limit_bytes * NEAR
        return MemoryVerdict(format_memory(self.limit_bytes), self.is_exceeded, is_near)


@contextlib.contextmanager
def memory_limit(limit_bytes: int | None, attempt: Attempt) -> Iterator[MemoryLimit | None]:
    """Make the limit of a run, for the length of the block.

    Args:
        limit_bytes: Of all its processes together; None: it has no limit.
        attempt: The run's.
    """
    if limit_bytes is None:
        yield None
        return
    group = _make_group(f"{NAME}{attempt.name}", limit_bytes)
    try:
        yield MemoryLimit(limit_bytes, attempt, group)
    finally:
        if group:
            with contextlib.suppress(OSError):  # a process that the flow left behind is in it
                group.folder.rmdir()


def _make_group(name: str, limit_bytes: int) -> MemoryGroup | None:
    for parent, version in _parents(str(limit_bytes)):
        _sweep(parent)
        folder = parent / name
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                for file, value in version.settings.items():
                    with contextlib.suppress(*((OSError,) if file in _OPTIONAL else ())):
                        _set(folder / file, value)
            except OSError:
                folder.rmdir()
                raise
            return MemoryGroup(folder, version.events)
    return None


def _set(file: Path, value: str) -> None:
    """Write to a file of the kernel's; where it has made none, this is no cgroup."""
    with file.open("r+") as setting:
        setting.write(value)


def _parents(limit: str) -> Iterator[tuple[Path, _Version]]:
    """Yield the groups below which one may be made, the agent's own first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own = Path("/sys/fs/cgroup", controllers, path.lstrip("/"))
        if controllers == "memory":
            yield own, _version_1(limit)
        elif not controllers:
            with contextlib.suppress(OSError):  # version 2 refuses it where processes are in it
                _set(own / "cgroup.subtree_control", "+memory")
            yield own, _version_2(limit)
            # Beside the agent, as where systemd delegates to a unit; but a limit that the agent
            # itself lives under is its runs', too.
            with contextlib.suppress(OSError):
                if (own / "memory.max").read_text().strip() == "max":
                    yield own.parent, _version_2(limit)


def _sweep(parent: Path) -> None:
    """Remove what killed agents left, if no process is in it."""
    for folder in parent.glob(f"{NAME}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFT_BEHIND_SECONDS:
                folder.rmdir()


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _held_bytes(pid: int, *, exact_from_bytes: int) -> int:
    """Return what a process and its children hold of memory that is no file's.

    Args:
        pid: The process.
        exact_from_bytes: From here on what they share counts once; that takes the kernel a while
            to find out.
    """
    held = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        pids = [each.pid for each in (process, *process.children(recursive=True))]
        held = sum(
            _sum_fields(each, "status", {"RssAnon:", "RssShmem:", "VmSwap:"}) for each in pids
        )
        if held >= exact_from_bytes:
            own = {"Pss_Anon:", "Pss_Shmem:", "SwapPss:"}
            held = sum(_sum_fields(each, "smaps_rollup", own) for each in pids)
    return held


def _sum_fields(pid: int, file: str, names: set[str]) -> int:
    """Return the sum of some of a process's fields in /proc, in bytes."""
    with contextlib.suppress(OSError):  # it has ended
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        fields = (line.split() for line in lines)
        return sum(int(each[1]) << 10 for each in fields if each and each[0] in names)
    return 0


def _kill(attempt: Attempt) -> None:
    """Kill a run's processes: asked politely, they would go on to use more."""
    for process in find_marked(ATTEMPT_VARIABLE, attempt.name):
        with contextlib.suppress(psutil.Error):
            process.kill()
