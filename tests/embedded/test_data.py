"""Data from a project to runs: pushed by DVC itself, pulled by `mlops data`."""

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from dvc_remote import DvcRemote, files_below
from embedded.conftest import Platform, run_cli

from mlops.experimenter.project import TEMPLATE
from mlops.settings import S3Settings
from mlops.storage import ObjectStore


def run_in(folder: Path, platform: Platform, *arguments: str) -> str:
    """Run `mlops …` in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "mlops", *arguments],
        cwd=folder,
        env=platform.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two revisions of its data, both pushed by DVC."""
    folder = tmp_path_factory.mktemp("projects") / "trips"
    (folder / "data" / "raw").mkdir(parents=True)
    requirements = (TEMPLATE / "requirements.txt").read_text().splitlines()
    (folder / "requirements.txt").write_text(
        "".join(f"{line}\n" for line in requirements if line.startswith("dvc"))
    )
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(
        "[core]\n    remote = platform\n['remote \"platform\"']\n    url = s3://dvc/trips\n"
    )
    (folder / ".gitignore").write_text("/.venv\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "data" / "raw" / "a.csv").write_text("a,b\r\n1,2\r\n")
    (folder / "zones.bin").write_bytes(bytes(range(256)) * 8000)
    for revision in ("v1", "v2"):
        (folder / "data" / "raw" / "b.csv").write_text(revision)
        run_in(folder, platform, "project", "exec", "dvc", "add", "data/raw", "zones.bin")
        run_in(folder, platform, "project", "exec", "dvc", "push")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", revision)
        git(folder, "tag", revision)
    return folder


@pytest.mark.requires("package-index")
@pytest.mark.timeout(600)
def test_clone_pulls_what_dvc_has_pushed(
    project: Path, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone gets the bytes that DVC has pushed, of now and of a revision; DVC finds no change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    report = json.loads(run_in(clone, platform, "data", "pull", "--json"))
    assert [(each["path"], each["files"]) for each in report] == [
        (str(clone / "data" / "raw"), 2),
        (str(clone / "zones.bin"), 1),
    ]
    assert files_below(clone / "data" / "raw") == files_below(project / "data" / "raw")
    assert (clone / "zones.bin").read_bytes() == (project / "zones.bin").read_bytes()
    done = subprocess.run(
        [project / ".venv" / "bin" / "dvc", "status"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "modified" not in done.stdout  # "not in cache": in DVC's own
    shown = run_in(clone, platform, "data", "show", "data/raw", "--rev", "v1").strip()
    assert shown.startswith("s3://dvc/trips@")
    out = run_in(tmp_path, platform, "data", "pull", shown, "--to", "old")
    assert "2 files" in out
    assert "1 downloaded" in out
    assert (tmp_path / "old" / "b.csv").read_text() == "v1"


@pytest.fixture
def remote(platform: Platform) -> DvcRemote:
    """A remote in the bucket of all projects."""
    environment = platform.environment("experimenter")
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    settings = S3Settings.from_environment(**{name.lower(): environment[name] for name in names})
    return DvcRemote(ObjectStore(settings, "dvc"))


def prefect(platform: Platform, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    user, _, password = platform.credentials.prefect_auth_string.partition(":")
    url = f"{platform.addresses.prefect}/api{path}"
    response = httpx.request(method, url, json=body, auth=(user, password))
    response.raise_for_status()
    return response.json()


def test_pull_is_noted_on_its_flow_run(
    platform: Platform, remote: DvcRemote, tmp_path: Path
) -> None:
    """A pull of an agent's run puts the reference on the run in Prefect, beside other labels."""
    flow = prefect(platform, "POST", "/flows/", {"name": f"flow-{uuid.uuid4().hex[:8]}"})
    labels = {"mine": "kept"}
    run = prefect(platform, "POST", "/flow_runs/", {"flow_id": flow["id"], "labels": labels})
    reference = remote.put_folder({"a": b"1"})
    environment = platform.environment("agent") | {
        "PREFECT__FLOW_RUN_ID": run["id"],
        "MLOPS_DATA_CACHE_DIR": str(tmp_path / "cache"),
    }
    target = str(tmp_path / "data")
    done = run_cli("data", "pull", str(reference), "--to", target, environment=environment)
    assert done.returncode == 0, done.stderr
    found = prefect(platform, "GET", f"/flow_runs/{run['id']}")["labels"]
    assert found[reference.label] == str(reference)
    assert found["mine"] == "kept"


def test_pull_goes_on_without_prefect(
    platform: Platform, remote: DvcRemote, tmp_path: Path
) -> None:
    """A Prefect server that does not answer is a warning; the data is there."""
    environment = platform.environment("agent") | {
        "PREFECT__FLOW_RUN_ID": str(uuid.uuid4()),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MLOPS_DATA_CACHE_DIR": str(tmp_path / "cache"),
    }
    reference, target = str(remote.put(b"1")), tmp_path / "data"
    done = run_cli("data", "pull", reference, "--to", str(target), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "mlops: warning: the flow run" in done.stderr
    assert "has no label" in done.stderr
    assert target.read_bytes() == b"1"


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (["s3://dvc/x@v1", "--to", "x"], "not a data reference", 2),
        ([f"s3://dvc/x@{'0' * 32}"], "say it with --to", 2),
        ([f"s3://dvc/x@{'0' * 32}", "--to", "x", "--rev", "v1"], "is a revision itself", 2),
        ([f"s3://dvc/x@{'0' * 32}", "--to", "x"], "was it pushed?", 1),
        ([f"s3://no-such-bucket/x@{'0' * 32}", "--to", "x"], "is not in the remote", 1),
        ([], "not in a DVC project", 1),
    ],
)
def test_mistake_is_told(
    platform: Platform, tmp_path: Path, arguments: list[str], what: str, code: int
) -> None:
    """A mistake is one message with the mend, and nothing is left behind."""
    done = subprocess.run(
        [sys.executable, "-m", "mlops", "data", "pull", *arguments],
        cwd=tmp_path,
        env=platform.environment() | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
