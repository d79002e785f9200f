import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.small_disk import fill, small_disk

POOL, QUEUE = "second-pool", "ml"


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


@pytest.fixture
def agent(platform: Platform, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A second agent on this host, on a pool and a queue that do not exist yet."""
    environment = platform.environment("agent") | {
        "POOL_NAME": POOL,
        "QUEUE_NAME": QUEUE,
        "MLOPS_CACHE_DIR": str(platform.home / "agent"),
        "MLOPS_STOP_SECONDS": "600",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            # As from a shell script in the background, where interrupts are ignored.
            [
                *("sh", "-c", 'trap "" INT; exec "$@"', "sh"),
                *(sys.executable, "-m", "mlops", "agent", "start", "--name", "second"),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        yield process
        process.kill()
        process.wait()


def test_agent_makes_its_pool_and_serves_its_queue_only(
    platform: Platform, servers: Servers, agent: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Pool and queue are made when missing; runs of other queues wait.

    A second SIGTERM ends it at once, and the run that it cuts short is reported.
    """

    def queue_exists() -> bool:
        response = servers.prefect.get(f"/work_pools/{POOL}/queues/{QUEUE}")
        return response.status_code == 200

    wait_for(queue_exists, 60)
    pool = servers.prefect.get(f"/work_pools/{POOL}").json()
    assert pool["type"] == "process"

    root = tmp_path / "flows"
    write_flow(root / "served", "print('served')", pool=POOL)
    other = write_flow(root / "waiting", "pass", pool=POOL)
    spec = other / "flow.yaml"
    spec.write_text(spec.read_text().replace(f"queue_name: {QUEUE}", "queue_name: other"))
    write_flow(root / "cut-short", "import time; time.sleep(120)", pool=POOL)
    assert platform.cli("flows", "register", str(root)).returncode == 0
    assert platform.cli("flows", "run", "waiting").returncode == 0
    assert platform.cli("flows", "run", "served", "--follow").returncode == 0
    (run,) = servers.flow_runs(servers.deployment("waiting")["id"])
    assert run["state_type"] == "SCHEDULED"

    assert platform.cli("flows", "run", "cut-short").returncode == 0
    deployment_id = servers.deployment("cut-short")["id"]
    wait_for(lambda: servers.flow_runs(deployment_id, types=["RUNNING"]), 60)
    agent.send_signal(signal.SIGTERM)
    log = tmp_path / "log"
    wait_for(lambda: "runs at work have 600 s to end" in log.read_text(), 30)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(timeout=60) == 0
    (cut,) = servers.flow_runs(deployment_id)
    assert cut["state_type"] == "CRASHED"
    assert "the agent was stopped" in cut["state"]["message"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"PREFECT_API_URL": None}, "PREFECT_API_URL: not set"),
        ({"GPU_IDS": "0,1"}, 'GPU_IDS: a JSON list of strings, as in ["0","1"]'),
        ({"PREFECT_API_AUTH_STRING": "admin:wrong"}, "refused these credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refused these S3 credentials"),
        ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, "the MLflow server refused these credentials"),
        ({"MLOPS_CACHE_DIR": "/dev/null/cache"}, "/dev/null/cache"),
    ],
)
def test_agent_that_cannot_start_says_why(
    platform: Platform, tmp_path: Path, changes: dict[str, str | None], expected: str
) -> None:
    """A missing or wrong setting ends the agent with 1 and one message that names it."""
    environment = platform.environment("agent") | {
        "MLOPS_CACHE_DIR": str(tmp_path / "cache"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PATH": os.environ["PATH"],
    }
    for name, value in changes.items():
        environment.pop(name, None)
        environment |= {name: value} if value is not None else {}
    done = run_cli("agent", "start", environment=environment)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.requires("mount")
def test_run_whose_code_does_not_fit_fails_with_the_reason(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A full disk under a run's folder fails the run, which says so and leaves nothing there."""
    folder = write_flow(tmp_path / "large", "pass")
    (folder / "data.bin").write_bytes(os.urandom(2 << 20))
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    deployment = servers.deployment("large")
    with small_disk(tmp_path / "disk") as filler:
        fill(filler, 1 << 20)
        response = servers.prefect.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={
                "state": {"type": "SCHEDULED"},
                "job_variables": {"working_dir": str(tmp_path / "disk")},
            },
        )
        response.raise_for_status()
        (run,) = wait_for(lambda: servers.flow_runs(deployment["id"], types=["FAILED"]), 90)
        assert str(tmp_path / "disk") in run["state"]["message"]
        assert "No space left on device" in run["state"]["message"]
        assert list((tmp_path / "disk").iterdir()) == [filler]
