"""A stranger's first minutes: clone, `./mlops demo`, again, down; as a user without any rights.

What root does differently is tested with the others, where root runs them.
"""

import json
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from documents import blocks
from embedded.conftest import reported_platform
from embedded.flow_folders import Servers

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stranger:
    """Somebody on a machine with nothing but git, a shell and Python."""

    user: str
    home: Path
    clone: Path

    def call(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Call ./mlops with nothing in the environment but HOME and PATH."""
        account = pwd.getpwnam(self.user)
        switch = os.geteuid() != account.pw_uid
        started = time.monotonic()
        done = subprocess.run(
            [self.clone / "mlops", *arguments],
            cwd=folder or self.home,
            env={"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin"},
            user=account.pw_uid if switch else None,
            group=account.pw_gid if switch else None,
            extra_groups=[] if switch else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        print(
            f"--- ./mlops {' '.join(arguments)}: exit {done.returncode}"
            f" after {time.monotonic() - started:.1f} s",
            done.stdout,
            done.stderr,
            sep="\n",
        )
        return done

    def processes(self) -> list[str]:
        """Return the command lines of processes that run out of the clone."""
        return [
            " ".join(process.info["cmdline"])
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.clone) in part for part in process.info["cmdline"] or ())
        ]


def _ordinary_user() -> str:
    me = pwd.getpwuid(os.geteuid()).pw_name
    return "nobody" if me == "root" else me


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Somebody with a clone in an otherwise empty home, whose platform is gone at the end."""
    user = _ordinary_user()
    with tempfile.TemporaryDirectory(prefix="mlops-stranger-") as folder:
        home = Path(folder)
        subprocess.run(["git", "clone", "--quiet", PROJECT, home / "clone"], check=True)
        # What they need would be made ready in the background, gigabytes that nobody looks at here.
        for other in ("digits_torch", "green_taxi"):
            shutil.rmtree(home / "clone" / "flows" / other)
        if os.geteuid() == 0:
            subprocess.run(["chown", "--recursive", user, home], check=True)
        stranger = Stranger(user, home, home / "clone")
        yield stranger
        if stranger.processes():
            stranger.call("local", "down")


def documented() -> list[str]:
    """Return what else the README does with a platform that is up; Compose is tested with it."""
    commands = [command for block in blocks("README.md") for command in block.commands]
    elsewhere = {"./mlops demo", "./mlops test", "./mlops init", "./mlops local down"}
    return [c for c in commands if c.startswith("./mlops ") and c not in elsewhere]


def assert_trained(servers: Servers, flow_run_id: str) -> None:
    """Make sure that a run with c=5 left a good model in MLflow, its bytes in the object store."""
    (run,) = servers.mlflow_runs("digits", flow_run_id)
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    parameters = {item["key"]: item["value"] for item in run["data"]["params"]}
    assert run["info"]["status"] == "FINISHED"
    assert metrics["accuracy"] >= 0.95
    assert float(parameters["c"]) == 5

    bucket, _, prefix = run["info"]["artifact_uri"].removeprefix("s3://").partition("/")
    picture = servers.read(bucket, f"{prefix}/confusion_matrix.png")
    assert picture.startswith(b"\x89PNG")
    versions = servers.mlflow.get(
        "/model-versions/search", params={"filter": f"run_id = '{run['info']['run_id']}'"}
    ).json()["model_versions"]
    assert versions[0]["name"] == "digits"
    models = servers.objects("mlflow", f"{run['info']['experiment_id']}/models/")
    assert any(key.endswith("/MLmodel") for key in models)
    assert any(key.endswith("/input_example.json") for key in models)


@pytest.mark.requires("package-index")
@pytest.mark.timeout(600)
def test_demo_in_a_fresh_clone(stranger: Stranger) -> None:
    """The demo trains from nothing, and again; the README's commands work; all ends by `down`."""
    first = stranger.call("demo")
    assert first.returncode == 0
    second = stranger.call("demo", "--json")
    assert second.returncode == 0
    report = json.loads(second.stdout)
    assert report["state"] == "Completed"
    assert report["accuracy"] >= 0.95
    assert report["model"] == "digits/2"
    said = {}
    for command in documented():
        done = stranger.call(*shlex.split(command)[1:], folder=stranger.clone)
        assert done.returncode == 0, command
        said[command] = done.stdout
    (followed,) = (text for command, text in said.items() if " --follow --param c=5" in command)
    assert "unseen digits correctly" in followed
    assert "Completed" in followed
    up = stranger.call("local", "up", "--json")
    platform = reported_platform(stranger.home, stranger.home, json.loads(up.stdout))
    assert_trained(Servers(platform), followed.split("/runs/flow-run/")[1].split()[0])
    assert stranger.call("local", "down").returncode == 0
    assert stranger.processes() == []
