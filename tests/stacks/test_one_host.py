"""All four stacks on one host, as `./mlops init` and `docker compose up -d --wait` leave them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from stacks.fixtures import OneHost, completed, wait_for, write_flow
from stacks.projects import docker

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(900)]
LONG_RUNNING = {
    *("postgres", "minio", "prefect", "mlflow"),
    *("flow-scheduler", "flow-agent", "ml-experimenter"),
}
ONE_SHOT = {"postgres-volume", "minio-volume", "setup"}


def test_every_service_is_healthy(one_host: OneHost) -> None:
    """`up --wait` has returned 0, and every long-running service answers its health check."""
    services = one_host.project.services()
    assert {name for name, each in services.items() if each["Health"] == "healthy"} == LONG_RUNNING
    assert {name for name in services if name not in LONG_RUNNING} == ONE_SHOT


def test_second_up_recreates_nothing(one_host: OneHost) -> None:
    """Compose finds nothing to change, the one-shot jobs included."""
    before = one_host.project.containers()
    one_host.project.up()
    assert one_host.project.containers() == before


def test_scheduled_run_trains(one_host: OneHost) -> None:
    """A flow folder that lies in flows/ runs on schedule, and its metric and model are kept."""
    servers = one_host.servers

    def scheduled() -> dict[str, Any] | None:
        done = [r for r in servers.runs("stacked/stacked") if r["state_type"] == "COMPLETED"]
        return done[0] if done else None

    assert wait_for(lambda: servers.deployment("stacked/stacked"), 60)
    run = wait_for(scheduled, 180) or {}
    assert run["auto_scheduled"]
    tracked = servers.mlflow_runs("stacked")[-1]
    assert tracked["info"]["status"] == "FINISHED"
    assert tracked["data"]["metrics"][0]["value"] == 0.5
    key = next(k for k in servers.keys("mlflow") if k.endswith("model/model.txt"))
    assert servers.s3.get_object(Bucket="mlflow", Key=key)["Body"].read() == b"the model's bytes"


def test_manual_run_trains(one_host: OneHost) -> None:
    """What the UI's quick-run button asks for is run by the agent."""
    run = one_host.servers.start_run("stacked/stacked")
    completed(one_host.servers, run)
    # The last lines arrive after the final state.
    assert wait_for(lambda: "trained by stacked" in one_host.servers.log(run), 30)


def test_changed_folder_is_registered(one_host: OneHost) -> None:
    """The scheduler watches the host's folder from inside its container."""
    write_flow(one_host.host.folder / "flows" / "added")
    found = wait_for(lambda: one_host.servers.deployment("added/added"), 30)
    assert found
    assert one_host.servers.keys("prefect", "flows/added/")


def test_run_leads_to_its_commit_and_its_mlflow_run(one_host: OneHost, tmp_path: Path) -> None:
    """A run of a committed folder names the commit, and links to MLflow where browsers find it."""
    folder = write_flow(tmp_path / "committed")
    git = ("git", "-C", str(folder), "-c", "user.name=test", "-c", "user.email=test@localhost")
    for arguments in (("init",), ("add", "--all"), ("commit", "--message", "as it is")):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    shutil.copytree(folder, one_host.host.folder / "flows" / "committed")
    servers = one_host.servers
    assert wait_for(lambda: servers.deployment("committed/committed"), 30)
    run = servers.start_run("committed/committed")
    completed(servers, run)
    assert servers.run(run)["labels"]["mlops.git_commit"] == head.stdout.strip()
    query = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    (artifact,) = wait_for(lambda: servers.prefect.post("/artifacts/filter", json=query).json(), 30)
    env = one_host.host.env()
    assert f"(http://{env['UI_HOST']}:{env['MLFLOW_PORT']}/#/experiments/" in artifact["data"]


def test_folder_outside_is_registered_by_a_ci_job(one_host: OneHost, tmp_path: Any) -> None:
    """`docker compose run --rm flow-scheduler mlops flows register PATH` registers any folder."""
    folder = write_flow(tmp_path / "by-ci")
    done = one_host.project.compose(
        *("run", "--rm", "--no-TTY", "--volume", f"{folder}:{folder}:ro", "flow-scheduler"),
        *("mlops", "flows", "register", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    assert one_host.servers.deployment("by-ci/by-ci")


# Who may do what: (action, bucket, key), beside what each role is denied.
ALLOWED = {
    "MLFLOW": {("get", "mlflow"), ("put", "mlflow"), ("delete", "mlflow"), ("list", "mlflow")},
    "SCHEDULER": {("get", "prefect"), ("put", "prefect"), ("list", "prefect")},
    "AGENT": {
        *(("get", "prefect"), ("list", "prefect")),
        *(("get", "mlflow"), ("put", "mlflow"), ("list", "mlflow")),
        *(("get", "dvc"), ("list", "dvc")),
    },
    "EXPERIMENTER": {
        (action, bucket)
        for action in ("get", "put", "delete", "list")
        for bucket in ("dvc", "mlflow")
    },
    "PRUNE": {("get", "prefect"), ("delete", "prefect"), ("list", "prefect")},
}


@pytest.mark.parametrize("role", sorted(ALLOWED))
def test_role_may_do_in_s3_what_it_needs_only(one_host: OneHost, role: str) -> None:
    """MinIO itself refuses whatever is not a role's business."""
    owner = one_host.servers.s3
    client = one_host.servers.s3_as(f"{role}_S3_ACCESS_KEY_ID", f"{role}_S3_SECRET_ACCESS_KEY")
    key = "flows/probe/object"
    actions: dict[str, Callable[[str], Any]] = {
        "get": lambda bucket: client.get_object(Bucket=bucket, Key=key),
        "put": lambda bucket: client.put_object(Bucket=bucket, Key=key, Body=b"x"),
        "delete": lambda bucket: client.delete_object(Bucket=bucket, Key=key),
        "list": lambda bucket: client.list_objects_v2(Bucket=bucket, Prefix="flows/"),
    }
    allowed = set()
    for bucket in ("mlflow", "prefect", "dvc"):
        for name, act in actions.items():
            owner.put_object(Bucket=bucket, Key=key, Body=b"x")
            try:
                act(bucket)
            except ClientError as error:
                assert error.response["Error"]["Code"] == "AccessDenied"  # noqa: PT017
            else:
                allowed.add((name, bucket))
        owner.delete_object(Bucket=bucket, Key=key)
    assert allowed == ALLOWED[role]


def test_code_elsewhere_in_prefects_bucket_is_out_of_reach(one_host: OneHost) -> None:
    """The scheduler and the agent reach the flows' code, and nothing else in that bucket."""
    for role in ("SCHEDULER", "AGENT"):
        client = one_host.servers.s3_as(f"{role}_S3_ACCESS_KEY_ID", f"{role}_S3_SECRET_ACCESS_KEY")
        with pytest.raises(ClientError, match="AccessDenied"):
            client.list_objects_v2(Bucket="prefect", Prefix="other/")
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object(Bucket="prefect", Key="other/object", Body=b"x")


def test_servers_ask_who_one_is(one_host: OneHost) -> None:
    """Without credentials neither Prefect nor MLflow answers."""
    servers = one_host.servers
    assert httpx.get(f"{servers.prefect_url}/api/admin/version").status_code == 401
    runs = f"{servers.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(runs).status_code == 401


def test_containers_have_little_power(one_host: OneHost) -> None:
    """No service runs as root or may gain rights; only the experimenter writes to its own disk."""
    roots = {"minio-volume"}  # gives the volume's first folder, which is root's, to MinIO's user
    if one_host.host.env()["HOST_UID"] == "0":
        roots.add("ml-experimenter")
    for container in one_host.project.containers():
        found = json.loads(docker("inspect", container))[0]
        name = found["Config"]["Labels"]["com.docker.compose.service"]
        user = found["Config"]["User"]
        if name not in ONE_SHOT:
            user = docker("exec", container, "id", "-u").strip()
        assert (user.partition(":")[0] in {"", "0", "root"}) == (name in roots), name
        assert found["HostConfig"]["CapDrop"] == ["ALL"], name
        assert found["HostConfig"]["CapAdd"] == (["CHOWN"] if name == "minio-volume" else None), (
            name
        )
        if name in ONE_SHOT:
            assert found["HostConfig"]["Memory"] == 1 << 30, name
        assert "no-new-privileges:true" in found["HostConfig"]["SecurityOpt"], name
        assert found["HostConfig"]["ReadonlyRootfs"] == (name != "ml-experimenter"), name


def test_ports_are_on_loopback_only(one_host: OneHost) -> None:
    """Nothing is published to other machines unless `--bind` asks for it; PostgreSQL never."""
    published = docker(
        *("ps", "--filter", f"label=com.docker.compose.project={one_host.project.name}"),
        *("--format", "{{.Ports}}"),
    )
    assert "127.0.0.1:" in published
    assert "0.0.0.0:" not in published
    assert "5432->" not in published


def test_secrets_are_not_told(one_host: OneHost) -> None:
    """No secret of `.env` is in a log, a command line or an image."""
    secrets = {
        v for n, v in one_host.host.env().items() if n.endswith(("PASSWORD", "KEY", "TOKEN"))
    }
    told = one_host.project.compose("logs").stdout
    images = set()
    for container in one_host.project.containers():
        found = json.loads(docker("inspect", container))[0]
        told += json.dumps([found["Config"]["Cmd"], found["Config"]["Entrypoint"]])
        images.add(found["Image"])
        if found["State"]["Running"]:
            told += docker("top", container, "-eo", "pid,args")  # the daemon wants the first one
    told += docker("image", "inspect", *images)
    for image in images:
        told += docker("history", "--no-trunc", image)
    assert "uvicorn" in told
    assert not [secret for secret in secrets if secret in told]


def test_more_agents_share_the_work(one_host: OneHost) -> None:
    """`--scale` starts further agents under names of their own, on the same caches."""
    one_host.project.up("--scale", "flow-agent=2", "--no-recreate")
    try:
        pool = "default-agent-pool"

        def names() -> set[str]:
            found = one_host.servers.prefect.post(f"/work_pools/{pool}/workers/filter", json={})
            return {each["name"] for each in found.json() if each["status"] == "ONLINE"}

        wait_for(lambda: len(names()) >= 2, 60)
        told = one_host.project.compose(
            *("exec", "--no-TTY", "flow-agent", "mlops", "agent", "status", "--json")
        )
        assert told.returncode == 0, told.stderr
        assert {each["name"] for each in json.loads(told.stdout)["agents"]} <= names()
        assert len(json.loads(told.stdout)["agents"]) == 2
        for run in [one_host.servers.start_run("stacked/stacked") for _ in range(4)]:
            completed(one_host.servers, run)
    finally:
        one_host.project.up("--scale", "flow-agent=1", "--no-recreate")


def test_prune_deletes_code_that_nothing_refers_to(one_host: OneHost) -> None:
    """The server's prune command sees the unused code, and has the key to delete it."""
    key = "flows/left-over/" + "0" * 64 + "/flow.py"
    one_host.servers.put_long_ago("prefect", key, b"x")
    done = one_host.project.compose(
        *("run", "--rm", "--no-TTY", "prune", "mlops", "flows", "prune", "--code", "--yes"),
    )
    assert done.returncode == 0, done.stderr
    assert key not in one_host.servers.keys("prefect", "flows/")
    assert one_host.servers.keys("prefect", "flows/stacked/")


def test_database_that_is_gone_makes_everything_unhealthy(one_host: OneHost) -> None:
    """Healthy means that the database answers, not that a port is open, also for the clients."""

    def are(health: str, names: set[str]) -> bool:
        services = one_host.project.services()
        return all(services[name]["Health"] == health for name in names)

    affected = {"prefect", "mlflow", "flow-agent", "flow-scheduler"}
    one_host.project.compose("pause", "postgres")
    try:
        wait_for(lambda: are("unhealthy", affected), 300)
    finally:
        one_host.project.compose("unpause", "postgres")
    wait_for(lambda: are("healthy", LONG_RUNNING), 180)
