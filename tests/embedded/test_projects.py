"""An experiment project on a checkout: from the template to data that somebody else pulls."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers

pytestmark = [pytest.mark.requires("package-index"), pytest.mark.timeout(600)]
NAME = "first-day"


def run_in(folder: Path, platform: Platform, *command: str) -> str:
    """Run a command with the packages of the project in a folder, as its user would."""
    done = subprocess.run(
        [sys.executable, "-m", "mlops", "project", "exec", *command],
        cwd=folder,
        env=platform.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def commit(folder: Path, message: str) -> None:
    for arguments in (["add", "--all"], ["commit", "--quiet", "--message", message]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def project(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project from the template whose pipeline ran, was committed and pushed."""
    parent = tmp_path_factory.mktemp("projects")
    made = platform.cli("project", "new", NAME, "--in", str(parent), "--json")
    assert made.returncode == 0, made.stderr
    report = json.loads(made.stdout)
    assert report["remote"] == f"s3://dvc/{NAME}"
    folder = Path(report["folder"])
    run_in(folder, platform, "dvc", "repro")
    commit(folder, "Train")
    run_in(folder, platform, "dvc", "push")
    return folder


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


def test_clone_pulls_the_same_bytes(project: Path, platform: Platform, tmp_path: Path) -> None:
    """A clone elsewhere gets data and model from S3, to the byte, and has nothing to repeat."""
    stored = Servers(platform).s3.list_objects_v2(Bucket="dvc", Prefix=f"{NAME}/files/md5/")
    assert stored["KeyCount"] > 0
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", project, clone], check=True)
    run_in(clone, platform, "dvc", "pull")
    for place in ("data/prepared", "models", "plots"):
        assert files_below(clone / place) == files_below(project / place)
    assert "up to date" in run_in(clone, platform, "dvc", "status")


def test_experiment_is_compared(project: Path, platform: Platform) -> None:
    """An experiment with another parameter changes the metrics, and leaves all as it was when
    the work space is brought back."""
    run_in(project, platform, "dvc", "exp", "run", "--set-param", "train.depth=6")
    changes = json.loads(run_in(project, platform, "dvc", "metrics", "diff", "--json"))
    assert changes["metrics.json"]["rmse"]["diff"] != 0
    run_in(project, platform, "dvc", "plots", "diff")
    assert "depth: 6" in (project / "params.yaml").read_text()
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=project, check=True)
    run_in(project, platform, "dvc", "checkout")
    assert "up to date" in run_in(project, platform, "dvc", "status")


def test_notebook_and_tests_run(project: Path, platform: Platform) -> None:
    """The template's own tests pass, and the cells of its notebook find the runs."""
    assert "passed" in run_in(project, platform, "python", "-m", "pytest", "--quiet")
    notebook = json.loads((project / "notebooks" / "explore.ipynb").read_text())
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    script = project / "notebooks" / "as_script.py"
    script.write_text("\n".join([*code, "assert len(runs)"]))
    run_in(script.parent, platform, "python", script.name)
    script.unlink()


def test_no_secret_is_in_the_repository(project: Path, platform: Platform) -> None:
    """Neither git's nor DVC's files hold a credential."""
    keys = platform.credentials.s3_key("experimenter")
    secrets = (keys.secret_access_key, platform.credentials.mlflow_experimenter_password)
    for path in project.rglob("*"):
        if path.is_file() and ".venv" not in path.parts:
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path
