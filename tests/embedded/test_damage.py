"""Damaged code in S3: the agent refuses it, and the next registration mends it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow
from embedded.own_agent import own_agent
from embedded.registered import CRON, MANIFEST, assert_registered, prefix_of

POOL = "damage-pool"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LARGE_BYTES = 100 << 10
IN_PARTS_BYTES = 9 << 20


@pytest.fixture(scope="module")
def servers(platform: Platform) -> Servers:
    return Servers(platform)


def put(servers: Servers, key: str, change: Callable[[bytes], bytes]) -> None:
    servers.s3.put_object(Bucket="prefect", Key=key, Body=change(servers.read("prefect", key)))


def flip(body: bytes) -> bytes:
    """Return bytes of the same length, the last of them another."""
    return body[:-1] + bytes([body[-1] ^ 1])


def on_disk(platform: Platform, key: str) -> None:
    """Change the object in the file behind the object store, without asking it."""
    path = platform.home / "s3" / "prefect" / key
    path.write_bytes(flip(path.read_bytes()))


def rot(platform: Platform, key: str) -> None:
    """Change the file behind the object store so that only its bytes tell."""
    path = platform.home / "s3" / "prefect" / key
    before = path.stat()
    path.write_bytes(flip(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def run_all(servers: Servers, names: list[str]) -> dict[str, dict[str, Any]]:
    """Run flows at once, and return how each ended."""
    started = {}
    for name in names:
        deployment_id = servers.deployment(name)["id"]
        created = servers.prefect.post(
            f"/deployments/{deployment_id}/create_flow_run", json={"state": {"type": "SCHEDULED"}}
        )
        created.raise_for_status()
        started[name] = created.json()["id"]

    def ended() -> dict[str, dict[str, Any]] | None:
        runs = {name: servers.prefect.get(f"/flow_runs/{i}").json() for name, i in started.items()}
        return runs if all(run["state_type"] in FINAL for run in runs.values()) else None

    return wait_for(ended, 180) or {}


def test_damaged_code_is_refused_and_mended(
    platform: Platform, servers: Servers, tmp_path: Path
) -> None:
    """A run fails and names the object and the mend; registered again, it completes."""
    damages: dict[str, tuple[str, str, Callable[[str], object]]] = {
        "other-bytes": ("flow.py", "damaged", lambda key: put(servers, key, flip)),
        "truncated": ("data.txt", "damaged", lambda key: put(servers, key, lambda b: b[:-1])),
        "deleted": (
            "data.txt",
            "is missing",
            lambda key: servers.s3.delete_object(Bucket="prefect", Key=key),
        ),
        "on-disk": ("data.txt", "damaged", lambda key: on_disk(platform, key)),
        "rotten": ("data.txt", "damaged", lambda key: rot(platform, key)),
        "rotten-large": ("large.bin", "damaged", lambda key: rot(platform, key)),
        "rotten-parts": ("large.bin", "damaged", lambda key: rot(platform, key)),
        "in-parts": ("large.bin", "damaged", lambda key: put(servers, key, flip)),
        "manifest": (MANIFEST, "damaged", lambda key: put(servers, key, lambda b: b + b" ")),
        "no-manifest": (
            "",
            "no complete code here",
            lambda prefix: servers.s3.delete_object(Bucket="prefect", Key=f"{prefix}{MANIFEST}"),
        ),
    }
    folders = {}
    for name in damages:
        more, files = CRON.format(minute=1), {"data.txt": "some data"}
        folders[name] = write_flow(
            tmp_path / "flows" / f"hurt-{name}",
            "print('whole')",
            more=more,
            files=files,
            pool=POOL,
        )
    # Whose ETags are believed, until an agent has read them.
    (folders["rotten-large"] / "large.bin").write_bytes(os.urandom(LARGE_BYTES))
    for name in ("in-parts", "rotten-parts"):
        (folders[name] / "large.bin").write_bytes(os.urandom(IN_PARTS_BYTES))
    for _ in range(2):  # the server remembers the ETags that it has shown
        assert platform.cli("flows", "register", str(tmp_path / "flows")).returncode == 0
    keys = {
        name: f"{prefix_of(servers.deployment(folders[name].name))}/{damages[name][0]}"
        for name in damages
    }
    for name, (_, _, damage) in damages.items():
        damage(keys[name])

    # Only now: an agent brings code to its host when it is registered.
    cache = tmp_path / "agent"
    cache.mkdir()
    with own_agent(platform, POOL, cache):
        names = [folder.name for folder in folders.values()]
        failed = run_all(servers, names)
        for name, (_, what, _) in damages.items():
            run = failed[f"hurt-{name}"]
            assert (run["state_type"], run["state_name"]) == ("FAILED", "CodeDamaged"), run["state"]
            assert f"s3://prefect/{keys[name].rstrip('/')}: {what}" in run["state"]["message"]
            # The log's last lines arrive after the final state.
            wait_for(lambda: "register the flow again" in servers.log(run["id"]), 15)  # noqa: B023

        done = platform.cli("flows", "register", str(tmp_path / "flows"))
        assert done.returncode == 0, done.stderr
        for folder in folders.values():
            assert f"{folder.name}/{folder.name}: repaired" in done.stdout
            assert_registered(servers, folder)
        settled = platform.cli("flows", "register", str(tmp_path / "flows"), "--json")
        assert {row["action"] for row in json.loads(settled.stdout)} == {"unchanged"}
        # Of each kind of object one: the code, data, what has several parts, the manifest.
        some = [
            "hurt-other-bytes",
            "hurt-deleted",
            "hurt-in-parts",
            "hurt-manifest",
            "hurt-rotten-large",
        ]
        again = run_all(servers, some)
        assert {name: run["state_type"] for name, run in again.items()} == dict.fromkeys(
            some, "COMPLETED"
        )
