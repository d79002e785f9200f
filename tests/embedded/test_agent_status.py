import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from embedded.conftest import Platform, run_cli
from embedded.flow_folders import Servers, wait_for, write_flow
from prometheus_client.parser import text_string_to_metric_families

WAIT = "import pathlib, time\n    while not pathlib.Path({!r}).exists(): time.sleep(0.05)"


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def asked(platform: Platform) -> dict[str, Any]:
    """Return what the command tells of the platform's agent."""
    done = platform.cli("agent", "status", "--json")
    assert done.returncode == 0, done.stderr
    (agent,) = json.loads(done.stdout)["agents"]
    assert isinstance(agent, dict)
    return agent


def metrics(address: str) -> dict[tuple[str, ...], float]:
    """Return an agent's metrics by their name and the values of their labels."""
    text = httpx.get(f"http://{address}/metrics").raise_for_status().text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_run_is_seen_while_it_runs_and_counted_when_it_has_ended(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """The command and the metrics tell of the run, its slot, its start and what the caches hold."""
    go_on = tmp_path / "go-on"
    own = {"requirements.txt": "six==1.15.0\n"}  # without any it has what is there already
    folder = write_flow(tmp_path / "seen", WAIT.format(str(go_on)), files=own)
    assert platform.cli("flows", "register", str(folder)).returncode == 0
    agent = asked(platform)
    before, address = agent["status"], agent["address"]

    def status_now() -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"http://{address}/status").raise_for_status().json()
        return answer

    ran = platform.cli("flows", "run", "seen", "--json")
    assert ran.returncode == 0, ran.stderr
    deployment_id = servers.deployment("seen")["id"]
    (run,) = servers.flow_runs(deployment_id)

    def running() -> list[dict[str, Any]]:
        found = [each for each in status_now()["runs"] if each["pid"]]
        return [each for each in found if each["flow_run_id"] == run["id"]]

    (seen,) = wait_for(running, 120)
    assert seen["name"] == run["name"]
    assert seen["start"] in {"warm", "plain", "fallback"}
    command = Path(f"/proc/{seen['pid']}/cmdline").read_bytes()
    assert b"python" in command
    agent = asked(platform)
    status = agent["status"]
    assert agent["healthy"]
    assert status["slots"]["used"] >= 1
    assert status["last_contact"]["seconds_ago"] < 60
    now = metrics(address)
    assert now["mlops_agent_slots_used",] == status["slots"]["used"]
    assert now["mlops_agent_runs_in_progress",] == len(status["runs"])
    assert now["mlops_agent_healthy",] == 1

    go_on.touch()
    wait_for(lambda: servers.flow_runs(deployment_id, types=["COMPLETED"]), 60)

    def ended() -> bool:
        return not running() and status_now()["slots"]["used"] == 0

    wait_for(ended, 60)
    agent = asked(platform)
    status, now = agent["status"], metrics(address)
    caches = {each["name"]: each for each in status["caches"]}
    for name in ("environments", "code"):
        assert caches[name]["entries"] >= 1
        assert now["mlops_agent_cache_size_bytes", name] == caches[name]["size_bytes"] > 0
    for use in ("hits", "misses"):
        assert now[f"mlops_agent_cache_{use}_total", "code"] == caches["code"][use]
    assert caches["code"]["hits"] + caches["code"]["misses"] >= 1
    counts = {each["outcome"]: each["runs"] for each in status["outcomes"]}
    former = {each["outcome"]: each["runs"] for each in before["outcomes"]}
    assert counts["completed"] > former["completed"]
    assert now["mlops_agent_runs_total", "completed"] == counts["completed"]
    starts = {each["start"]: each["durations"]["count"] for each in status["starts"]}
    assert now["mlops_agent_start_duration_seconds_count", seen["start"]] == starts[seen["start"]]
    assert starts[seen["start"]] >= 1
    assert now["mlops_agent_wait_duration_seconds_count",] == status["waits"]["count"] >= 1


def test_table_is_for_people_and_nothing_tells_a_secret(platform: Platform) -> None:
    """Without `--json` there is a table; no answer of the agent holds a secret of its own."""
    agent = asked(platform)
    table = platform.cli("agent", "status")
    assert table.returncode == 0
    assert f"{agent['name']}  {agent['address']}  healthy" in table.stdout
    answers = "".join(
        httpx.get(f"http://{agent['address']}/{path}").text
        for path in ("health", "status", "metrics")
    )
    secrets = platform.credentials.model_dump()
    assert not [name for name, secret in secrets.items() if len(secret) > 20 and secret in answers]


@pytest.fixture
def lonely(platform: Platform, tmp_path: Path) -> dict[str, str]:
    """The environment of an agent whose server is away."""
    return platform.environment("agent") | {
        "MLOPS_CACHE_DIR": str(tmp_path / "cache"),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }


@pytest.fixture
def waiting(lonely: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops", "agent", "start", "--name", "lonely"],
            env=lonely,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        yield process
        process.kill()
        process.wait()


def test_agent_that_is_not_well_or_not_there(
    lonely: dict[str, str], waiting: subprocess.Popen[bytes]
) -> None:
    """Without its server an agent is seen as unwell; without an agent the command says the mend.

    Another one cannot have its port, and says which variable decides that.
    """

    def found() -> list[dict[str, Any]]:
        done = run_cli("agent", "status", "--json", environment=lonely)
        assert done.returncode == 1
        agents: list[dict[str, Any]] = json.loads(done.stdout)["agents"]
        if agents:
            assert "lonely: has not reached its servers yet" in done.stderr
        return agents

    (agent,) = wait_for(found, 60)
    assert (agent["healthy"], agent["status"]["last_contact"]) == (False, None)
    health = httpx.get(f"http://{agent['address']}/health")
    assert (health.status_code, health.text) == (503, "has not reached its servers yet\n")

    port = agent["address"].rpartition(":")[2]
    second = run_cli("agent", "start", environment=lonely | {"MLOPS_AGENT_PORT": port})
    assert second.returncode == 1
    assert f"MLOPS_AGENT_PORT: the agent cannot listen on 127.0.0.1:{port}" in second.stderr

    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    gone = run_cli("agent", "status", environment=lonely)
    assert gone.returncode == 1
    assert "no agent runs here" in gone.stderr
    assert "./mlops local up" in gone.stderr
