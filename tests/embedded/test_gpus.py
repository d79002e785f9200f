import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow

POOL = "gpu-pool"
# No machine here has GPUs: the agent's library for them is a fake, as fake_nvml/pynvml.py tells.
FAKE = Path(__file__).parents[1] / "fake_nvml"
TWO = {"GPU-a": {"name": "NVIDIA H100"}, "GPU-b": {"name": "NVIDIA L4"}}
# Tells what it sees, and goes on until the file is there.
BODY = """\
import os, time; from pathlib import Path
    print("sees", repr(os.environ["CUDA_VISIBLE_DEVICES"]))
    while until and not Path(until).exists(): time.sleep(0.1)
"""


class Host(NamedTuple):
    """A host with GPUs, whose agents can be started and killed."""

    servers: Servers
    start_agent: Callable[..., subprocess.Popen[str]]
    describe: Callable[[dict[str, Any]], None]

    def start(self, name: str, *, until: Path | str = "", **job_variables: Any) -> str:
        """Start a run as the UI does, and return its number."""
        response = self.servers.prefect.post(
            f"/deployments/{self.servers.deployment(name)['id']}/create_flow_run",
            json={
                "state": {"type": "SCHEDULED"},
                "parameters": {"until": str(until)},
                "job_variables": job_variables,
            },
        )
        response.raise_for_status()
        return str(response.json()["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run as Prefect has it."""
        found: dict[str, Any] = self.servers.prefect.get(f"/flow_runs/{run_id}").json()
        return found

    def sees(self, run_id: str) -> str:
        """Wait until a run says which devices it sees, and return them."""
        wait_for(lambda: "sees" in self.servers.log(run_id), 60)
        return self.servers.log(run_id).partition("sees '")[2].partition("'")[0]


@pytest.fixture
def host(platform: Platform, tmp_path: Path) -> Iterator[Host]:
    """A host with two GPUs, on a pool of its own, which an ordinary worker has filled in."""
    servers = Servers(platform)
    machine = tmp_path / "machine.json"
    agents: list[subprocess.Popen[str]] = []

    def describe(devices: dict[str, Any]) -> None:
        machine.with_suffix(".new").write_text(json.dumps({"devices": devices}))
        machine.with_suffix(".new").rename(machine)

    def start_agent(name: str) -> subprocess.Popen[str]:
        environment = platform.environment("agent") | {
            "POOL_NAME": POOL,
            "GPU_IDS": '["0","1"]',
            "FAKE_NVML": str(machine),
            "PYTHONPATH": str(FAKE),
            "MLOPS_CACHE_DIR": str(platform.home / "agent"),  # with environments in it
            "MLOPS_SLOTS": "4",
            "PREFECT_HOME": str(tmp_path / "prefect"),
        }
        command = [sys.executable, "-m", "mlops", "agent", "start", "--name", name]
        with (tmp_path / f"{name}.log").open("w") as log:
            agents.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
            )
        return agents[-1]

    describe(TWO)
    yield Host(servers, start_agent, describe)
    for agent in agents:
        agent.terminate()  # and so ends what it still runs
        agent.wait()


@pytest.fixture
def stock_pool(platform: Platform) -> dict[str, Any]:
    """The pool with the job template of Prefect's own worker, changed by somebody."""
    servers = Servers(platform)
    kinds = servers.prefect.get("/collections/views/aggregate-worker-metadata").json()
    template = kinds["prefect"]["process"]["default_base_job_configuration"]
    template["variables"]["properties"]["stream_output"]["default"] = False
    servers.prefect.post(
        "/work_pools/", json={"name": POOL, "type": "process", "base_job_template": template}
    ).raise_for_status()
    return dict(template)


def test_runs_have_gpus_to_themselves(
    platform: Platform, host: Host, stock_pool: dict[str, Any], tmp_path: Path
) -> None:
    """Runs get as many devices as flow.yaml or the run says, and wait in the queue until then.

    A run beyond what the agent has, and one that waits, are told on their pages. The lease of a
    run that is killed, and of a killed agent's run, is free for the next one.
    """
    folder = tmp_path / "flows"
    signature = 'until: str = ""'
    for name, more in (("one-gpu", "gpus: 1\n"), ("asks-nothing", "")):
        write_flow(folder / name, BODY, more=more, pool=POOL, signature=signature)
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    agent = host.start_agent("first")

    # The template has the agent's variables besides what was there, and Prefect goes by them.
    def variables() -> dict[str, Any]:
        pool = host.servers.prefect.get(f"/work_pools/{POOL}").json()
        found: dict[str, Any] = pool["base_job_template"]["variables"]["properties"]
        return found

    wait_for(lambda: "gpus" in variables(), 60)
    ours = {name: variables()[name] for name in ("gpus", "memory")}
    assert variables() == stock_pool["variables"]["properties"] | ours
    for wrong in ({"gpus": -1}, {"gpus": "two"}, {"memory": "much"}):
        with pytest.raises(Exception, match="422"):
            host.start("asks-nothing", **wrong)

    until = tmp_path / "enough"
    first, second = host.start("one-gpu", until=until), host.start("one-gpu", until=until)
    assert {host.sees(first), host.sees(second)} == {"0", "1"}
    assert host.run(first)["labels"]["mlops.gpu"] in ("0: NVIDIA H100", "1: NVIDIA L4")
    third = host.start("asks-nothing", gpus=2)
    too_many = host.start("asks-nothing", gpus=3)
    assert host.sees(host.start("asks-nothing")) == ""
    assert host.sees(host.start("one-gpu", gpus=0)) == ""
    wait_for(lambda: "first: waits for 2 GPUs: other runs have 2" in host.servers.log(third), 60)
    wait_for(lambda: "asks for 3 GPUs, and this agent has 2" in host.servers.log(too_many), 60)
    assert host.run(third)["state_type"] == host.run(too_many)["state_type"] == "SCHEDULED"

    # One ends by itself, the other is killed: the third gets both devices.
    psutil.Process(int(host.run(first)["infrastructure_pid"])).kill()
    until.touch()
    assert host.sees(third) == "0,1"
    wait_for(lambda: host.run(third)["state_type"] == "COMPLETED", 60)
    until.unlink()

    # A run goes on without its agent, and keeps its device from the next one's.
    kept = host.start("one-gpu", until=until)
    device = host.sees(kept)
    agent.kill()
    agent.wait()
    host.start_agent("second")
    other = host.start("one-gpu", until=until)
    assert {device, host.sees(other)} == {"0", "1"}
    waiting = host.start("one-gpu")
    psutil.Process(int(host.run(kept)["infrastructure_pid"])).kill()
    assert host.sees(waiting) == device

    # Somebody's process on a device keeps it from runs.
    host.describe({"GPU-a": TWO["GPU-a"] | {"pids": [1]}, "GPU-b": TWO["GPU-b"]})
    until.touch()
    wait_for(lambda: host.run(other)["state_type"] == "COMPLETED", 60)
    assert host.sees(host.start("one-gpu")) == "1"


def test_unmodified_worker_runs_deployments_that_ask_for_gpus(
    platform: Platform, tmp_path: Path
) -> None:
    """The agent's job variables mean nothing to Prefect's own worker, and do not disturb it."""
    servers = Servers(platform)
    write_flow(tmp_path / "plain", "print('ran')", more="gpus: 1\nmemory: 4GiB\n", pool="stock")
    assert platform.cli("flows", "register", str(tmp_path / "plain")).returncode == 0
    deployment = servers.deployment("plain")
    assert deployment["job_variables"] == {"gpus": 1, "memory": "4GiB"}
    servers.prefect.post(
        f"/deployments/{deployment['id']}/create_flow_run", json={"state": {"type": "SCHEDULED"}}
    ).raise_for_status()
    environment = platform.environment("agent") | {"PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "stock", "--run-once"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    (run,) = servers.flow_runs(deployment["id"])
    assert run["state_type"] == "COMPLETED", done.stdout + done.stderr
