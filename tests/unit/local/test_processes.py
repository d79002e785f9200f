import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from mlops.local.processes import end_processes, find_processes, memory_bytes

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@contextmanager
def _running(instance: str, service: str, code: str = SLEEP) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process that carries the marks."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"MLOPS_INSTANCE": instance, "MLOPS_SERVICE": service},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_are_found_by_their_mark() -> None:
    """A process is ours by its environment, whoever its parent is."""
    instance = uuid.uuid4().hex
    with _running(instance, "agent") as ours, _running(uuid.uuid4().hex, "agent"):
        found = find_processes(instance)
        assert {name: [p.pid for p in group] for name, group in found.items()} == {
            "agent": [ours.pid]
        }
        assert memory_bytes(found["agent"]) > 10**6


def test_children_without_the_mark_belong_to_their_parents_service() -> None:
    """A child that dropped its environment is found below its parent."""
    instance = uuid.uuid4().hex
    parent = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        + repr(SLEEP)
        + "], env={})"
    )
    with _running(instance, "postgres", parent):
        assert len(find_processes(instance)["postgres"]) == 2
        assert end_processes(instance) == 2


def test_end_processes_ends_stubborn_ones_by_force() -> None:
    """What ignores SIGTERM is killed after a while."""
    instance = uuid.uuid4().hex
    with _running(instance, "agent", STUBBORN) as process:
        assert end_processes(instance, patience_seconds=0.2) == 1
        process.wait(timeout=10)
    assert end_processes(instance) == 0
