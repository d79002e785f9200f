import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow

# What most containers see of the kernel's cgroups: nothing that they could write to.
WITHOUT_CGROUPS = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t tmpfs none /sys/fs/cgroup && exec "$@"',
    "sh",
)
LIMIT = "memory: 400MiB\n"
ALONE = "held = bytearray(1 << 30); print(len(held))"
# Each has less than the limit, and all have more; the flow itself would not notice.
TOGETHER = (
    "import subprocess, sys; code = 'import time; held = bytearray(250 << 20); time.sleep(600)'; "
    "[child.wait() for child in [subprocess.Popen([sys.executable, '-c', code]) for _ in 'abc']]"
)
NEIGHBOUR = (
    "import time; from pathlib import Path; held = bytearray(300 << 20); "
    "[time.sleep(0.1) for _ in iter(lambda: Path(until).exists(), True)]; print(len(held))"
)
OUT_OF_MEMORY = "out of memory: the run exceeded its limit of 400 MiB"


@pytest.fixture(
    params=[
        pytest.param((), marks=pytest.mark.requires("memory-cgroup"), id="cgroup"),
        pytest.param(WITHOUT_CGROUPS, marks=pytest.mark.requires("mount"), id="rlimit"),
    ]
)
def pool(request: pytest.FixtureRequest, platform: Platform, tmp_path: Path) -> Iterator[str]:
    """A pool of its own, with an agent that may make cgroups or may not."""
    name = f"memory-{'rlimit' if request.param else 'cgroup'}"
    environment = platform.environment("agent") | {
        "POOL_NAME": name,
        "MLOPS_CACHE_DIR": str(platform.home / "agent"),  # with environments in it
        "MLOPS_SLOTS": "4",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    command = [*request.param, sys.executable, "-m", "mlops", "agent", "start"]
    with (tmp_path / "log").open("w") as log:
        agent = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
    yield name
    assert agent.poll() is None
    agent.terminate()  # and so ends what it still runs
    agent.wait()


def test_run_beyond_its_memory_fails_and_its_neighbours_live(
    platform: Platform, pool: str, tmp_path: Path
) -> None:
    """A run that exceeds its limit, alone or with its children, ends with that as its message.

    A run beside it and the agent do not notice.
    """
    servers = Servers(platform)
    names = {name: f"{name}-{pool}" for name in ("alone", "together", "neighbour")}
    folder, until = tmp_path / "flows", tmp_path / "enough"
    write_flow(folder / names["alone"], ALONE, more=LIMIT, pool=pool)
    write_flow(folder / names["together"], TOGETHER, more=LIMIT, pool=pool)
    signature = f"until: str = {str(until)!r}"
    write_flow(folder / names["neighbour"], NEIGHBOUR, more="", pool=pool, signature=signature)
    assert platform.cli("flows", "register", str(folder)).returncode == 0

    def start(name: str) -> str:
        deployment = servers.deployment(names[name])["id"]
        answer = servers.prefect.post(
            f"/deployments/{deployment}/create_flow_run", json={"state": {"type": "SCHEDULED"}}
        )
        answer.raise_for_status()
        return str(answer.json()["id"])

    def state(run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = servers.prefect.get(f"/flow_runs/{run_id}").json()["state"]
        return found

    def is_out_of_memory(run_id: str) -> bool:
        return (state(run_id)["message"] or "").startswith(OUT_OF_MEMORY)

    neighbour = start("neighbour")
    wait_for(lambda: state(neighbour)["type"] == "RUNNING", 90)
    alone, together = start("alone"), start("together")
    for run_id in (alone, together):
        wait_for(partial(is_out_of_memory, run_id), 90)
    # A process that is refused memory can tell its exception, one that is killed cannot.
    is_refused = pool == "memory-rlimit"
    assert state(alone)["type"] == ("FAILED" if is_refused else "CRASHED")
    assert ("MemoryError" in state(alone)["message"]) is is_refused
    assert state(together)["type"] == "CRASHED"
    assert state(neighbour)["type"] == "RUNNING"
    # Once more, when there is a process that runs are forked from.
    again = start("alone")
    wait_for(partial(is_out_of_memory, again), 90)
    until.touch()
    wait_for(lambda: state(neighbour)["type"] == "COMPLETED", 60)
