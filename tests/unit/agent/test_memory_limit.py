import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from mlops.agent import memory_limit
from mlops.agent.attempts import Attempt
from mlops.agent.flow_process import MEMORY_GROUP_VARIABLE
from mlops.agent.memory_limit import MemoryLimit, MemoryVerdict
from mlops.agent.run_ending import ProcessEnd, memory_state
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.memory_size import format_memory, parse_memory

MIB = 1 << 20
# Applies what it is told, and says what it may use then.
LIMITED = """
import os, resource
from mlops.agent.flow_process import apply_limits
apply_limits(os.environ)
print(resource.getrlimit(resource.RLIMIT_DATA)[0])
"""


@pytest.fixture
def attempt() -> Attempt:
    return Attempt(flow_run_id=UUID(int=1), worker="agent")


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *[("4GiB", 4 << 30), ("4Gi", 4 << 30), ("1.5 GiB", 3 << 29), ("300MiB", 300 * MIB)],
        *[("4GB", 4 * 10**9), ("500 MB", 5 * 10**8), ("300000KB", 3 * 10**8), ("1TiB", 1 << 40)],
        ("268435456B", 256 * MIB),
    ],
)
def test_amounts(text: str, amount: int) -> None:
    """Units count by 1024 with an i in them, and by 1000 without."""
    assert parse_memory(text) == amount


@pytest.mark.parametrize(
    "text", ["", "4", "4G", "4gib", "-4GiB", "0GiB", "4 GiB ", "1e9B", "4GiBs"]
)
def test_other_text_is_no_amount(text: str) -> None:
    """What is not a number and a unit is refused with an example."""
    with pytest.raises(ValueError, match="allowed: as in 4GiB or 500MB"):
        parse_memory(text)


def test_too_little_is_refused() -> None:
    """With less than Prefect's engine needs no run could say what is wrong."""
    with pytest.raises(ValueError, match="'255MiB' is too little for any run"):
        parse_memory("255MiB")


def test_amounts_for_people() -> None:
    """Messages tell an amount as people would write it."""
    assert format_memory(4 << 30) == "4 GiB"
    assert format_memory(3 << 29) == "1.5 GiB"
    assert format_memory(400 * MIB) == "400 MiB"


def test_process_limits_itself(attempt: Attempt) -> None:
    """Without a cgroup, or one that it may not join, a run's process has a limit of its own."""
    limit = MemoryLimit(400 * MIB, attempt, None).environment
    for group in ({}, {MEMORY_GROUP_VARIABLE: "/proc/none/cgroup.procs"}):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED],
            env={**os.environ, **limit, **group},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == 400 * MIB


def test_started_process_is_limited(attempt: Attempt) -> None:
    """A run with a command of its own is limited from outside, once it has started."""
    with subprocess.Popen(["sleep", "600"]) as process:
        MemoryLimit(400 * MIB, attempt, None).apply(process.pid)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (400 * MIB, 400 * MIB)
        process.kill()


def test_shared_memory_counts_once(attempt: Attempt) -> None:
    """What forked children have in common with their parent does not make a run exceed its limit.

    What they write themselves does, and ends all of them.
    """
    forks = (
        "import os, sys, time; held = bytearray(os.urandom(1 << 20)) * 100\n"
        "[os.fork() or time.sleep(600) for _ in 'abc']\n"
        "os.write(1, b'.')\n"
        "sys.stdin.readline() and None\n"
        "held[:] = bytes(reversed(held)); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", forks],
        env={**os.environ, ATTEMPT_VARIABLE: attempt.name},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.read(1)
        held = memory_limit._held_bytes(process.pid, exact_from_bytes=0)  # noqa: SLF001
        assert 100 * MIB < held < 200 * MIB
        limit = MemoryLimit(150 * MIB, attempt, None)
        process.stdin.write(b"\n")
        process.stdin.flush()
        asyncio.run(asyncio.wait_for(limit.watch(process.pid), 30))
        assert limit.verdict == MemoryVerdict("150 MiB", is_exceeded=True, is_near=True)


@pytest.mark.parametrize(
    ("message", "is_told"),
    [
        ("Flow run encountered an exception: MemoryError: ", True),
        ("… _ArrayMemoryError: Unable to allocate 8.00 GiB for an array", True),
        ("… RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        ("… OSError: [Errno 12] Cannot allocate memory", True),
        ("… torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB", False),
        ("… ValueError: no", False),
    ],
)
def test_exception_for_want_of_memory_tells_the_limit(message: str, *, is_told: bool) -> None:
    """A flow that was refused memory fails with its limit in the message, and the exception's."""
    failed: State[None] = State(type=StateType.FAILED, message=message)
    run = FlowRun(flow_id=UUID(int=2), state=failed)
    limit = MemoryVerdict("4 GiB", is_exceeded=False, is_near=False)
    state = memory_state(run, ProcessEnd(1, memory=limit))
    expected = f"out of memory: the run exceeded its limit of 4 GiB: {message}"
    assert (state.message if state else None) == (expected if is_told else None)
    assert memory_state(run, ProcessEnd(1)) is None


def test_crash_near_the_limit_tells_it() -> None:
    """Native code that is refused memory aborts: near the limit that is the reason."""
    told = "out of memory: the run exceeded its limit of 4 GiB"
    assert (
        str(ProcessEnd(-6, memory=MemoryVerdict("4 GiB", is_exceeded=False, is_near=True))) == told
    )
    far = MemoryVerdict("4 GiB", is_exceeded=False, is_near=False)
    assert str(ProcessEnd(-6, memory=far)) == "the flow's process was killed by SIGABRT"
    assert (
        str(ProcessEnd(-9, memory=MemoryVerdict("4 GiB", is_exceeded=True, is_near=True))) == told
    )


@pytest.mark.parametrize(
    ("file", "content", "killed"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 1\n", True),
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n", False),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
    ],
)
def test_kernels_count_is_read(tmp_path: Path, file: str, content: str, *, killed: bool) -> None:
    """The kernel counts the processes that it has killed in a group, in either version's file."""
    (tmp_path / file).write_text(content)
    assert memory_limit.MemoryGroup(tmp_path, file).has_killed is killed
