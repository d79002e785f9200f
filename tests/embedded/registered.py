"""What a registration has left on the servers, read without the code that is under test."""

import hashlib
import json
from pathlib import Path
from typing import Any

from embedded.flow_folders import Servers

MANIFEST = ".mlops-manifest.json"
PULL_STEP = "prefect_aws.deployments.steps.pull_from_s3"
# Once a year: of a daily flow the server would make a hundred runs, anew at every change.
CRON = "scheduler:\n  method: cron\n  timezone: Asia/Taipei\n  cron: '{minute} 9 1 1 *'\n"


def complete_bundles(servers: Servers, name: str) -> dict[str, dict[str, str]]:
    """Verify every bundle of a flow folder that has a manifest, byte by byte.

    Returns:
        SHA-256 of the files by their paths, by the bundle's prefix.
    """
    keys = servers.objects("prefect", f"flows/{name}/")
    bundles = {}
    for key in keys:
        prefix, _, last = key.rpartition("/")
        if last != MANIFEST:
            continue
        manifest = servers.read("prefect", key)
        assert hashlib.sha256(manifest).hexdigest() == prefix.rpartition("/")[2]
        files = {file["path"]: file["sha256"] for file in json.loads(manifest)["files"]}
        for path, expected in files.items():
            body = servers.read("prefect", f"{prefix}/{path}")
            assert hashlib.sha256(body).hexdigest() == expected, f"{prefix}/{path}"
        present = {other for other in keys if other.startswith(f"{prefix}/")}
        assert present == {f"{prefix}/{path}" for path in (*files, MANIFEST)}
        bundles[prefix] = files
    return bundles


def deployments(servers: Servers, *names: str) -> list[dict[str, Any]]:
    """Return all deployments of some names; there should be one of each at most."""
    query = {"deployments": {"name": {"any_": names}}}
    response = servers.prefect.post("/deployments/filter", json=query)
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()
    return found


def prefix_of(deployment: dict[str, Any]) -> str:
    """Return where a deployment's code lies in its bucket."""
    (step,) = deployment["pull_steps"]
    prefix: str = step[PULL_STEP]["folder"]
    return prefix


def make_old(servers: Servers, prefix: str) -> None:
    """Let the objects of a version seem to be a day old."""
    for key, written in servers.objects("prefect", prefix).items():
        servers.s3.put_object(
            Bucket="prefect",
            Key=key,
            Body=servers.read("prefect", key),
            Metadata={"mtime": str(written.timestamp() - 24 * 3600)},  # which rclone goes by
        )


def assert_never_half(servers: Servers, name: str) -> None:
    """Make sure that nobody who looks at this flow now finds a part of it."""
    bundles = complete_bundles(servers, name)
    for deployment in deployments(servers, name):
        assert prefix_of(deployment) in bundles


def assert_registered(servers: Servers, folder: Path) -> dict[str, Any]:
    """Make sure that one deployment is exactly what a folder asks for, and return it."""
    (deployment,) = deployments(servers, folder.name)
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert complete_bundles(servers, folder.name)[prefix_of(deployment)] == files
    assert deployment["version"] == prefix_of(deployment).rpartition("/")[2][:12]
    minute = (folder / "flow.yaml").read_text().partition("cron: '")[2].partition(" ")[0]
    (schedule,) = deployment["schedules"]
    assert schedule["slug"] == "flow-yaml"
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == f"{minute} 9 1 1 *"
    return deployment
