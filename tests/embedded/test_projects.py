"""An experiment project on a checkout: from the template to data that somebody else pulls."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers
from embedded.projects import NAME, Projects, clone, commit, files_below, restore
from fault_proxy import FaultProxy, Request

pytestmark = [pytest.mark.requires("package-index"), pytest.mark.timeout(600)]


def test_training_is_a_run_in_mlflow(project: Path, platform: Platform) -> None:
    """The first training is one finished run, with the parameters, metrics and model."""
    api = Servers(platform).mlflow
    found = api.get("/experiments/get-by-name", params={"experiment_name": NAME}).json()
    query = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs = api.post("/runs/search", json=query).json()["runs"]
    first = runs[-1]
    assert first["info"]["status"] == "FINISHED"
    assert {"key": "depth", "value": "4"} in first["data"]["params"]
    metrics = json.loads((project / "metrics.json").read_text())
    assert {m["key"]: m["value"] for m in first["data"]["metrics"]} == pytest.approx(metrics)
    listing = api.get("/artifacts/list", params={"run_id": first["info"]["run_id"]}).json()
    assert {"model", "predictions.csv"} == {file["path"] for file in listing["files"]}


def test_clone_pulls_the_same_bytes(
    project: Path, projects: Projects, platform: Platform, tmp_path: Path
) -> None:
    """A clone elsewhere gets data and model from S3, to the byte, and has nothing to repeat."""
    stored = Servers(platform).s3.list_objects_v2(Bucket="dvc", Prefix=f"{NAME}/files/md5/")
    assert stored["KeyCount"] > 0
    other = clone(project, tmp_path / "clone")
    projects.share(other)
    projects.run(other, "dvc", "pull")
    for place in ("data/prepared", "models", "plots"):
        assert files_below(other / place) == files_below(project / place)
    assert "up to date" in projects.run(other, "dvc", "status")


def test_experiment_is_compared(project: Path, projects: Projects) -> None:
    """An experiment with another parameter changes the metrics, and leaves all as it was when
    the work space is brought back."""
    projects.run(project, "dvc", "exp", "run", "--set-param", "train.depth=6")
    changes = json.loads(projects.run(project, "dvc", "metrics", "diff", "--json"))
    assert changes["metrics.json"]["rmse"]["diff"] != 0
    projects.run(project, "dvc", "plots", "diff")
    assert "depth: 6" in (project / "params.yaml").read_text()
    restore(project, projects)
    assert "up to date" in projects.run(project, "dvc", "status")


def test_notebook_and_tests_run(project: Path, projects: Projects) -> None:
    """The template's own tests pass, and the cells of its notebook find the runs."""
    assert "passed" in projects.run(project, "python", "-m", "pytest", "--quiet")
    notebook = json.loads((project / "notebooks" / "explore.ipynb").read_text())
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    script = project / "notebooks" / "as_script.py"
    script.write_text("\n".join([*code, "assert len(runs)"]))
    projects.run(script.parent, "python", script.name)
    script.unlink()


def test_no_secret_is_in_the_repository(project: Path, platform: Platform) -> None:
    """Neither git's nor DVC's files hold a credential."""
    keys = platform.credentials.s3_key("experimenter")
    secrets = (keys.secret_access_key, platform.credentials.mlflow_experimenter_password)
    for path in project.rglob("*"):
        if path.is_file() and ".venv" not in path.parts:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path


def new_data(project: Path, projects: Projects, name: str) -> Path:
    """Let DVC track a folder of new files, and return it."""
    folder = project / "data" / name
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"{name} {number}\n")
    projects.run(project, "dvc", "add", "--quiet", str(folder))
    return folder


def assert_arrives(folder: Path, project: Path, projects: Projects, elsewhere: Path) -> None:
    """Make sure that a push completes what an earlier one began, to the last byte."""
    projects.run(project, "dvc", "push")
    commit(project, f"Add {folder.name}")
    other = clone(project, elsewhere)
    projects.share(other)
    place = folder.relative_to(project)
    projects.run(other, "dvc", "pull", str(place))
    assert files_below(other / place) == files_below(folder)


def experimenter(platform: Platform, **changes: str) -> dict[str, str]:
    """Return the role's variables, some of them changed."""
    return platform.environment("experimenter") | changes


def test_old_credentials_are_told_before_anything_is_sent(
    project: Path, projects: Projects, platform: Platform, tmp_path: Path
) -> None:
    """Of a key that is not good any more one message tells, with the mend; a good one goes on."""
    folder = new_data(project, projects, "old-credentials")
    old = experimenter(platform, AWS_SECRET_ACCESS_KEY="of-last-year")
    for command in ("push", "pull", "fetch"):
        done = projects.attempt(project, "dvc", command, **old)
        assert done.returncode == 1
        assert done.stdout == ""
        first, mend = done.stderr.splitlines()
        assert f"{platform.addresses.s3} refused these S3 credentials" in first
        assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in mend
    assert_arrives(folder, project, projects, tmp_path / "clone")


def test_s3_that_is_down_is_told(project: Path, projects: Projects, platform: Platform) -> None:
    """Without a server DVC is not even started."""
    away = experimenter(platform, AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    done = projects.attempt(project, "dvc", "push", **away)
    assert done.returncode == 1
    first, mend = done.stderr.splitlines()
    assert first.startswith("mlops: the object store at http://127.0.0.1:9 does not answer")
    assert "is it up?" in mend


def test_s3_that_goes_away_during_a_push(
    project: Path, projects: Projects, platform: Platform, tmp_path: Path
) -> None:
    """The last words name the server and the mend; what was sent stays, and the rest follows."""
    folder = new_data(project, projects, "goes-away")
    with FaultProxy(platform.addresses.s3, "refuse", 12) as proxy:
        away = experimenter(platform, AWS_ENDPOINT_URL_S3=proxy.url)
        done = projects.attempt(project, "dvc", "push", **away)
        assert proxy.broken
    assert done.returncode == 1
    what, mend = done.stderr.splitlines()[-2:]
    assert what.startswith(f"mlops: `dvc push` broke off: the object store at {proxy.url}")
    assert mend.endswith("then run it again: what has arrived stays")
    assert_arrives(folder, project, projects, tmp_path / "clone")


def test_interrupted_push_ends_as_dvc_ends_it(
    project: Path, projects: Projects, platform: Platform, tmp_path: Path
) -> None:
    """Ctrl-C reaches DVC, whose exit code is handed on; a second push completes the first."""
    folder = new_data(project, projects, "interrupted")
    interrupted = False

    def interrupt(_: Request) -> None:
        nonlocal interrupted
        if len(proxy.requests) > 12 and not interrupted:
            interrupted = True
            os.killpg(process.pid, signal.SIGINT)

    with FaultProxy(platform.addresses.s3, before=interrupt) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlops", "project", "exec", "dvc", "push"],
            cwd=project,
            env=platform.environment("experimenter") | {"AWS_ENDPOINT_URL_S3": proxy.url},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, _ = process.communicate()
    assert interrupted
    assert process.returncode not in {0, 3}, output
    assert "a bug" not in output
    assert_arrives(folder, project, projects, tmp_path / "clone")
