import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
CONTRACT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_BUCKET_NAME",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
)


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


class Runs:
    """Runs of the flows below one folder, all started at once, and how they ended."""

    def __init__(self, servers: Servers, names: list[str]) -> None:
        self._servers = servers
        self._ids: dict[str, str] = {}
        for name in names:
            deployment = servers.deployment(name)
            response = servers.prefect.post(
                f"/deployments/{deployment['id']}/create_flow_run",
                json={"state": {"type": "SCHEDULED"}},
            )
            response.raise_for_status()
            self._ids[name] = response.json()["id"]

    def ended(self, name: str) -> dict[str, Any]:
        """Wait for a run's end and return it."""

        def read() -> dict[str, Any] | None:
            run: dict[str, Any] = self._servers.prefect.get(f"/flow_runs/{self._ids[name]}").json()
            return run if run["state_type"] in FINAL else None

        return wait_for(read, 180) or {}

    def path(self, name: str, suffix: str) -> str:
        """Return the API path of something about a run."""
        return f"/flow_runs/{self._ids[name]}{suffix}"

    def line(self, name: str, text: str) -> str:
        """Wait for a line with a text in a run's Prefect log, and return it."""

        def read() -> str:
            lines = self._servers.log(self._ids[name]).splitlines()
            return next((line for line in lines if text in line), "")

        return wait_for(read, 15)  # the last lines arrive after the final state


@pytest.fixture(scope="module")
def runs(platform: Platform, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that do all that runs do, well and badly."""
    root = tmp_path_factory.mktemp("flows")
    cron = "scheduler:\n  method: cron\n  cron: '* * * * *'\n"
    write_flow(root / "every-minute", "print('on time')", more=cron)
    environment = f"print({{name: os.environ.get(name) for name in {CONTRACT!r}}})"
    write_flow(root / "environment", f"import os; {environment}")
    write_flow(
        root / "beside",
        "import os, helper; print(helper.WORD, open('data.txt').read()); open('new', 'w')",
        files={"helper.py": "WORD = 'helped'\n", "data.txt": "by data"},
    )
    write_flow(root / "raises-value-error", "raise ValueError('no good data')")
    write_flow(root / "impossible", "pass", files={"requirements.txt": "pandas==0.0.0\n"})
    write_flow(
        root / "nested",
        "child()",
        files={"helper.py": ""},
    )
    (root / "nested" / "flow.py").write_text(
        "from prefect import flow\n\n\n@flow(log_prints=True)\ndef child():\n"
        "    print('deep')\n\n\n"
        "@flow(name='nested')\ndef main():\n    child()\n"
    )
    write_flow(
        root / "pinned",
        "import six; print('six', six.__version__)",
        signature="size: float = 0.1, seed: int = 0",
        files={"requirements.txt": "six==1.15.0\n"},
    )
    done = platform.cli("flows", "register", str(root))
    assert done.returncode == 0, done.stderr
    return Runs(servers, [p.name for p in sorted(root.iterdir()) if p.name != "every-minute"])


def test_run_finds_the_contracts_variables(platform: Platform, runs: Runs) -> None:
    """A flow finds every variable of the contract, with the agent's own identity."""
    assert runs.ended("environment")["state_type"] == "COMPLETED"
    line = runs.line("environment", "{'AWS_")
    found = json.loads(line.replace("'", '"').replace("None", "null"))
    assert None not in found.values()
    assert found["AWS_ACCESS_KEY_ID"] == platform.credentials.agent_s3_access_key_id
    assert found["MLFLOW_TRACKING_USERNAME"] == "agent"


def test_run_sees_its_folder_and_may_write_there(platform: Platform, runs: Runs) -> None:
    """Modules and data beside the code are found; what a run writes stays out of the cache."""
    assert runs.ended("beside")["state_type"] == "COMPLETED"
    assert runs.line("beside", "helped by data")
    cached = list((platform.home / "agent" / "code").glob("*/new"))
    assert cached == []


def test_impossible_requirements_fail_with_uvs_message(runs: Runs) -> None:
    """Requirements that cannot be resolved fail the run, with uv's words in its Prefect log."""
    run = runs.ended("impossible")
    assert run["state_type"] == "FAILED"
    assert "requirements" in run["state"]["message"]
    assert runs.line("impossible", "pandas==0.0.0")


def test_flow_gets_its_own_packages(runs: Runs) -> None:
    """A flow's pins decide what it imports, whatever the agent has installed."""
    assert runs.ended("pinned")["state_type"] == "COMPLETED"
    assert runs.line("pinned", "six 1.15.0")


def test_wrong_parameter_is_refused_before_a_run(platform: Platform, runs: Runs) -> None:
    """A parameter that the flow does not have, or of the wrong type, starts nothing."""
    assert runs.ended("pinned")
    unknown = platform.cli("flows", "run", "pinned", "--param", "sise=1")
    assert unknown.returncode == 2
    assert "allowed: size, seed" in unknown.stderr
    wrong = platform.cli("flows", "run", "pinned", "--param", "seed=many")
    assert wrong.returncode == 2
    assert "--param: Validation failed for field 'seed'" in wrong.stderr
    missing = platform.cli("flows", "run", "no-such-flow")
    assert missing.returncode == 1
    assert "no such deployment; allowed:" in missing.stderr


def test_failed_run_is_told_by_the_exit_code(platform: Platform, runs: Runs) -> None:
    """`flows run --follow` of a run that fails ends with 1 and the reason."""
    assert runs.ended("raises-value-error")
    done = platform.cli("flows", "run", "raises-value-error", "--follow", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["state"] == "Failed"
    assert "no good data" in report["message"]


def test_subflows_are_followed_too(platform: Platform, runs: Runs) -> None:
    """`--follow` shows what the flows below a flow print."""
    assert runs.ended("nested")["state_type"] == "COMPLETED"
    done = platform.cli("flows", "run", "nested", "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deep" in done.stdout


def test_run_cancelled_while_its_environment_is_built(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A cancel during the build ends the run as Cancelled, without starting it."""
    # A package whose build does not end by itself.
    (tmp_path / "unwanted" / "endless").mkdir(parents=True)
    files = {
        "requirements.txt": "./endless\n",
        "endless/pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n',
        "endless/setup.py": "import time\n\ntime.sleep(3600)\n",
    }
    folder = write_flow(tmp_path / "unwanted", "pass", files=files)
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    runs = Runs(servers, ["unwanted"])
    runs.line("unwanted", "building for requirements.txt")
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    servers.prefect.post(runs.path("unwanted", "/set_state"), json=cancelling).raise_for_status()
    run = runs.ended("unwanted")
    assert run["state_type"] == "CANCELLED"
    assert run["state"]["message"] == "cancelled before it started"


def test_ordinary_deployment_runs_on_our_agent(platform: Platform, tmp_path: Path) -> None:
    """A deployment made with `prefect deploy` on the same pool completes."""
    (tmp_path / "plain.py").write_text(
        "from prefect import flow\n\n@flow(log_prints=True)\ndef plain():\n    print('plainly')\n"
    )
    deploy = [
        *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "plain.py:plain"),
        *("--name", "plain", "--pool", "default-agent-pool"),
    ]
    done = subprocess.run(
        deploy,
        cwd=tmp_path,
        env=platform.environment("scheduler") | {"PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ran = platform.cli("flows", "run", "plain/plain", "--follow")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "plainly" in ran.stdout


@pytest.mark.usefixtures("runs")
def test_scheduled_run_completes_unaided(servers: Servers) -> None:
    """A cron of every minute has scheduled runs, and one completes without anybody's help."""
    deployment = servers.deployment("every-minute")
    scheduled = servers.flow_runs(deployment["id"])
    assert scheduled, "no scheduled run"
    wait_for(lambda: servers.flow_runs(deployment["id"], types=["COMPLETED"]), 120)
