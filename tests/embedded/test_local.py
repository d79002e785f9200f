"""`mlops local`: the platform's life as its user sees it."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg2
import pytest
from embedded.conftest import (
    Platform,
    platform_processes,
    run_cli,
    shell_environment,
    start_platform,
)
from embedded.flow_folders import wait_for

from mlops.local.home import Ports

SERVICES = {"postgres", "s3", "prefect", "mlflow", "scheduler", "agent"}


def status(home: Path, flow_dir: Path) -> dict[str, Any]:
    """Return what `mlops local status --json` says."""
    result = run_cli("local", "status", "--json", environment=shell_environment(home, flow_dir))
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def put_mark(platform: Platform, mark: str) -> None:
    """Leave data in the object store and in the database."""
    s3(platform).put_object(Bucket="dvc", Key="mark", Body=mark.encode())
    with psycopg2.connect(**database(platform, "mlflow", "mlrun")) as connection:
        connection.cursor().execute("CREATE TABLE mark AS SELECT %s AS text", (mark,))


def read_mark(platform: Platform) -> tuple[str, str]:
    """Return what `put_mark` left, from both places."""
    body: bytes = s3(platform).get_object(Bucket="dvc", Key="mark")["Body"].read()
    with psycopg2.connect(**database(platform, "mlflow", "mlrun")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT text FROM mark")
        row = cursor.fetchone()
    assert row is not None
    return body.decode(), row[0]


def s3(platform: Platform) -> Any:
    """Return boto3's client as the experimenter."""
    key = platform.credentials.s3_key("experimenter")
    return boto3.client(
        "s3",
        endpoint_url=platform.addresses.s3,
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key,
        region_name="us-east-1",
    )


def database(platform: Platform, user: str, name: str) -> dict[str, Any]:
    """Return psycopg2's arguments for a role and a database."""
    return {
        "host": "127.0.0.1",
        "port": platform.postgres_port,
        "dbname": name,
        "user": user,
        "password": getattr(platform.credentials, f"{user}_db_password"),
    }


def test_status_shows_every_service_with_its_process_memory_and_health(platform: Platform) -> None:
    """Every service is running, healthy, has a live process, and counts its memory."""
    report = status(platform.home, platform.flow_dir)
    assert report["state"] == "healthy"
    services = {service["name"]: service for service in report["services"]}
    assert services.keys() == SERVICES | {"supervisor"}
    for service in services.values():
        assert service["healthy"], service
        assert psutil.pid_exists(service["pid"])
        assert service["memory_bytes"] > 10**6
        assert service["uptime_seconds"] > 0
    assert report["memory_bytes"] == sum(s["memory_bytes"] for s in services.values())
    assert services["s3"]["address"] == platform.addresses.s3


def test_status_without_json_is_a_table(platform: Platform) -> None:
    """A person sees one line per service."""
    result = platform.cli("local", "status")
    assert result.returncode == 0
    assert {line.split()[0] for line in result.stdout.splitlines() if line.strip()} >= SERVICES


def test_second_up_changes_nothing_and_is_quick(platform: Platform) -> None:
    """`up` on a running platform leaves every process alone."""
    before = {s["name"]: s["pid"] for s in status(platform.home, platform.flow_dir)["services"]}
    began = time.monotonic()
    result = platform.cli("local", "up", "--json")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 10
    assert json.loads(result.stdout)["seconds"] == {}
    after = {s["name"]: s["pid"] for s in status(platform.home, platform.flow_dir)["services"]}
    assert after == before


def test_logs_of_one_service_are_its_last_lines(platform: Platform) -> None:
    """`logs postgres -n 1` prints one line of PostgreSQL's."""
    result = platform.cli("local", "logs", "postgres", "--lines", "1")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1


def test_logs_of_an_unknown_service_names_the_known_ones(platform: Platform) -> None:
    """A wrong service is wrong usage, with the right names."""
    result = platform.cli("local", "logs", "postgrse")
    assert result.returncode == 2
    assert "postgres" in result.stderr


def secrets_of(platform: Platform) -> list[str]:
    """Return every secret value; user names and access keys are none."""
    return [
        value
        for name, value in platform.credentials.model_dump().items()
        if name.endswith(("password", "secret_access_key", "secret_key"))
    ]


def test_no_secret_is_in_a_command_line_or_at_the_supervisor(platform: Platform) -> None:
    """Any user of the machine may read command lines; the supervisor needs no secret at all."""
    processes = platform_processes(platform.home)
    assert len(processes) >= len(SERVICES)
    for process in processes:
        shown = " ".join(process.cmdline())
        if "supervisord" in shown:
            shown += " ".join(process.environ().values())
        assert not [secret for secret in secrets_of(platform) if secret in shown]
    config = (platform.home / "run" / "supervisord.conf").read_text()
    assert not [secret for secret in secrets_of(platform) if secret in config]


def test_each_role_is_told_its_own_secrets_only(platform: Platform) -> None:
    """The agent's and the scheduler's processes know no key of another role."""
    own = {
        "agent": {"agent_s3_secret_access_key", "mlflow_agent_password", "prefect_password"},
        "scheduler": {"scheduler_s3_secret_access_key", "prefect_password"},
        "mlflow": {
            "mlflow_s3_secret_access_key",
            "mlflow_db_password",
            "mlflow_admin_password",
            "mlflow_agent_password",  # it keeps the logins of its users
            "mlflow_experimenter_password",
            "mlflow_flask_server_secret_key",
        },
        "prefect": {"prefect_db_password", "prefect_password"},
    }
    pids = {s["name"]: s["pid"] for s in status(platform.home, platform.flow_dir)["services"]}
    for service, expected in own.items():
        told = " ".join(psutil.Process(pids[service]).environ().values())
        known = {
            name
            for name, value in platform.credentials.model_dump().items()
            if value in told and value in secrets_of(platform)
        }
        assert known == expected, service


def test_no_secret_is_in_the_logs(platform: Platform) -> None:
    """Whoever is shown a log learns no password."""
    for log in (platform.home / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not [secret for secret in secrets_of(platform) if secret in text], log


def test_files_are_closed_to_other_users(platform: Platform) -> None:
    """Others may pass through the home, and read nothing in it."""
    mode = stat.S_IMODE((platform.home / "credentials.env").stat().st_mode)
    assert mode == 0o600
    for folder in ("s3", "logs", "run", "agent", "scheduler"):
        assert stat.S_IMODE((platform.home / folder).stat().st_mode) & 0o077 == 0, folder
    data = platform.home / "postgres" / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    auth = platform.home / "run" / "mlflow" / "basic_auth.ini"
    assert stat.S_IMODE(auth.stat().st_mode) == 0o600


def test_servers_listen_on_the_loopback_address_only(platform: Platform) -> None:
    """Nothing of ours is reachable from another machine."""
    for process in platform_processes(platform.home):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1", process.cmdline()


@pytest.fixture(scope="module")
def own_home(open_folder: Path) -> Iterator[Path]:
    """A home that the tests below may break; at the end nothing of it may run."""
    home = open_folder / "own home"  # a space, as folders have them
    yield home
    result = run_cli("local", "down", environment=shell_environment(home, open_folder))
    assert result.returncode == 0, result.stderr
    assert platform_processes(home) == []


@pytest.fixture
def own_flow_dir(open_folder: Path) -> Path:
    """An empty folder of flows."""
    folder = open_folder / "own flows"
    folder.mkdir(exist_ok=True)
    return folder


def test_ctrl_c_during_up_leaves_nothing(own_home: Path, own_flow_dir: Path) -> None:
    """An interrupted `up` ends with 130 and has stopped what it had started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops", "local", "up"],
        env=shell_environment(own_home, own_flow_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for((own_home / "logs" / "mlflow.log").exists, 60)
    assert platform_processes(own_home)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert platform_processes(own_home) == []
    assert status(own_home, own_flow_dir)["state"] == "stopped"


@pytest.fixture(scope="module")
def beside(open_folder: Path) -> Iterator[Path]:
    """The home of a platform beside the session's and the broken one; nobody else may enter it."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    home = closed / "beside"
    yield home
    result = run_cli("local", "down", environment=shell_environment(home, open_folder))
    assert result.returncode == 0, result.stderr
    assert platform_processes(home) == []
    shutil.rmtree((home / "postgres").resolve())


def test_up_after_an_interrupt_takes_free_ports_and_says_so(
    platform: Platform, own_home: Path, beside: Path, own_flow_dir: Path
) -> None:
    """A busy port is left to its owner, and no two platforms that start at once get the same."""
    state_file = own_home / "platform.json"
    state = json.loads(state_file.read_text())
    with socket.create_server(("127.0.0.1", 0)) as foreign, ThreadPoolExecutor() as pool:
        busy = foreign.getsockname()[1]
        # What it had chosen before it was interrupted, the other one wants too.
        state["ports"] = Ports()._asdict() | {"mlflow": busy}
        state_file.write_text(json.dumps(state))
        starting = pool.submit(start_platform, beside, own_flow_dir)
        result = run_cli(
            "local", "up", environment=shell_environment(own_home, own_flow_dir),
            timeout_seconds=240,
        )  # fmt: skip
        other = starting.result()
    assert result.returncode == 0, result.stderr
    assert f"port {busy} is busy: mlflow listens on" in result.stdout
    assert "credentials.env" in result.stdout
    # As root it is another user who has to reach the database.
    assert (beside / "postgres").is_symlink() == (os.geteuid() == 0)
    log = (own_home / "logs" / "supervisor.log").read_text()
    # Of this start: the interrupted one is further up in the log.
    assert log.rindex("exited: setup") < log.rindex("spawned: 'prefect'")
    assert log.rindex("exited: setup") < log.rindex("spawned: 'mlflow'")
    own = start_platform(own_home, own_flow_dir)
    ports = [{*p.addresses.model_dump().values(), p.postgres_port} for p in (platform, own, other)]
    assert len(set.union(*ports)) == 12
    put_mark(own, "kept")
    put_mark(other, "beside")
    assert read_mark(own) == ("kept", "kept")
    assert read_mark(other) == ("beside", "beside")
    for each in (platform, own, other):
        assert status(each.home, each.flow_dir)["state"] == "healthy"


def test_up_after_a_killed_supervisor_mends(own_home: Path, own_flow_dir: Path) -> None:
    """What the dead supervisor left is shown as such, ended, and started anew with its data."""
    before = status(own_home, own_flow_dir)
    supervisor = next(s for s in before["services"] if s["name"] == "supervisor")
    os.kill(supervisor["pid"], signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(supervisor["pid"]), 30)
    orphans = {s["name"]: s for s in status(own_home, own_flow_dir)["services"]}
    assert orphans["postgres"]["state"] == "orphaned"
    assert not orphans["postgres"]["healthy"]

    platform = start_platform(own_home, own_flow_dir)

    assert read_mark(platform) == ("kept", "kept")
    assert not psutil.pid_exists(orphans["postgres"]["pid"])
    after = {s["name"]: s["pid"] for s in status(own_home, own_flow_dir)["services"]}
    servers = [p for p in platform_processes(own_home) if p.pid in after.values()]
    assert len(servers) == len(after)


def test_a_moved_home_with_stale_pid_files_starts_with_its_data(
    own_home: Path, own_flow_dir: Path, open_folder: Path
) -> None:
    """Paths are made anew, and pid files that now name somebody else's process are ignored."""
    result = run_cli("local", "down", environment=shell_environment(own_home, own_flow_dir))
    assert result.returncode == 0, result.stderr
    assert platform_processes(own_home) == []
    moved = open_folder / "moved"
    own_home.rename(moved)
    (moved / "run" / "supervisord.pid").write_text(f"{os.getpid()}\n")
    (moved / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    try:
        assert read_mark(start_platform(moved, own_flow_dir)) == ("kept", "kept")
    finally:
        down = run_cli("local", "down", environment=shell_environment(moved, own_flow_dir))
        assert down.returncode == 0, down.stderr
        assert platform_processes(moved) == []
        moved.rename(own_home)


def test_data_of_another_major_version_is_refused(own_home: Path, own_flow_dir: Path) -> None:
    """Nothing is started on a database that this PostgreSQL cannot read."""
    version_file = own_home / "postgres" / "data" / "PG_VERSION"
    version = version_file.read_text()
    version_file.write_text("12\n")
    try:
        result = run_cli("local", "up", environment=shell_environment(own_home, own_flow_dir))
    finally:
        version_file.write_text(version)
    assert result.returncode == 1
    assert "PostgreSQL 12" in result.stderr
    assert platform_processes(own_home) == []


def test_a_service_that_cannot_start_is_shown_with_its_log(
    own_home: Path, own_flow_dir: Path
) -> None:
    """`up` ends with 1, the log's last lines and its path, and has stopped the rest."""
    settings = own_home / "postgres" / "data" / "postgresql.conf"
    text = settings.read_text()
    settings.write_text(text + "\nno_such_setting = on\n")
    try:
        result = run_cli("local", "up", environment=shell_environment(own_home, own_flow_dir))
    finally:
        settings.write_text(text)
    assert result.returncode == 1
    assert "no_such_setting" in result.stderr
    assert str(own_home / "logs" / "postgres.log") in result.stderr
    assert platform_processes(own_home) == []


def test_down_of_what_was_never_up_does_nothing(tmp_path: Path) -> None:
    """`down` without a platform is no error and makes no folder."""
    home = tmp_path / "none"
    result = run_cli("local", "down", environment=shell_environment(home, tmp_path))
    assert result.returncode == 0
    assert not home.exists()
