"""The documents about projects, run as a script on a clone, and what has come of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from documents import blocks, commands_in_text, languages
from embedded.conftest import Platform
from embedded.flow_folders import Servers
from embedded.projects import CHECKOUT, EXAMPLE, Projects, clone, commit, files_below

DATA = CHECKOUT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.requires("package-index", "taxi-months"),
    pytest.mark.timeout(1800),
]
PROJECTS, README = "docs/projects.md", str(EXAMPLE / "README.md")
# Commands in the text that are run elsewhere, or say in words what a block does.
ELSEWHERE = {
    "docker compose exec ml-experimenter bash": "stacks/test_documents.py",
    "dvc exp run --set-param train.depth=6": "embedded/test_projects.py",
    "dvc add": "embedded/test_projects.py",
    "dvc fetch": "embedded/test_projects.py",
    "dvc pull": "embedded/test_projects.py",
    "git clone": "embedded/test_projects.py",
}


class Shell(NamedTuple):
    """Where somebody works, and with what in the environment."""

    folder: Path
    environment: dict[str, str]

    def run(self, script: str) -> None:
        """Run a script; the first command that fails ends it."""
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def checkout(
    projects: Projects, platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Shell:
    """A clone in which `./mlops` is this environment's, and the example's packages are there."""
    folder = clone(CHECKOUT, tmp_path_factory.mktemp("checkout") / "mlops")
    program = f'#!/bin/sh\nMLOPS_CHECKOUT={folder} exec {sys.executable} -P -m mlops "$@"\n'
    (folder / "mlops").write_text(program)
    commit(folder, "Use an environment that is there")
    projects.share(folder / EXAMPLE)
    environment = platform.environment() | {
        "FLOW_DIR": str(folder / "flows"),
        "GREEN_TAXI_DATA": str(DATA),
    }
    return Shell(folder, environment)


@pytest.fixture(scope="module")
def experimenter(
    projects: Projects, platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Shell:
    """A folder of projects without a checkout, with `mlops` and `dvc`, as in the container."""
    root = tmp_path_factory.mktemp("experimenter")
    program = root / "mlops"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m mlops "$@"\n')
    program.chmod(0o755)
    path = [root, projects.packages / "bin", os.environ["PATH"]]
    environment = platform.environment("experimenter") | {
        "PATH": os.pathsep.join(map(str, path)),
        "GREEN_TAXI_DATA": str(DATA),
    }
    (root / "dev-projects").mkdir()
    return Shell(root / "dev-projects", environment)


@pytest.fixture(scope="module")
def trained(checkout: Shell, projects: Projects) -> Path:
    """The example in its place, after its pipeline ran, was committed and pushed."""
    project = checkout.folder / EXAMPLE
    projects.run(project, "dvc", "repro", GREEN_TAXI_DATA=str(DATA))
    commit(project, "Train")
    projects.run(project, "dvc", "push")
    return project


def metrics(project: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((project / "metrics.json").read_text())
    return found


def test_models_are_better_than_the_mean(trained: Path) -> None:
    """On a month that it has not seen, XGBoost is better than the mean by 40 % and more; the
    published numbers are those that come out."""
    found = metrics(trained)
    assert found["xgboost"]["rmse"] <= 0.6 * found["mean"]["rmse"]
    assert found["xgboost"]["rmse"] < found["baseline"]["rmse"] < found["mean"]["rmse"]
    published = metrics(CHECKOUT / EXAMPLE)
    for model, values in found.items():
        assert values == pytest.approx(published[model], abs=0.02)
        assert f" {values['rmse']:.2f} |" in (CHECKOUT / README).read_text()


def of_a_flow(run: dict[str, Any]) -> bool:
    """Return whether an MLflow run is a flow's: that of this name logs to the same experiment."""
    return any(tag["key"] == "mlops.prefect_flow_run_id" for tag in run["data"]["tags"])


def test_models_are_compared_in_mlflow(trained: Path, platform: Platform) -> None:
    """Each is a finished run with its parameters, the same metrics, plots and the model."""
    api = Servers(platform).mlflow
    found = api.get("/experiments/get-by-name", params={"experiment_name": "green_taxi"}).json()
    query = {"experiment_ids": [found["experiment"]["experiment_id"]]}
    runs: list[dict[str, Any]] = api.post("/runs/search", json=query).json()["runs"]
    named = {run["info"]["run_name"]: run for run in reversed(runs) if not of_a_flow(run)}
    assert set(named) == {"baseline", "xgboost"}
    for name, run in named.items():
        assert run["info"]["status"] == "FINISHED"
        logged = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
        assert logged == pytest.approx(metrics(trained)[name])
        place = {"run_id": run["info"]["run_id"], "path": "plots"}
        plots = api.get("/artifacts/list", params=place).json()["files"]
        assert {plot["path"] for plot in plots} == {
            f"plots/{kind}_{name}.png" for kind in ("importance", "residuals")
        }


def test_second_clone_pulls_the_same_bytes(
    trained: Path, checkout: Shell, projects: Projects, tmp_path: Path
) -> None:
    """Somebody else's checkout gets data, models and plots from S3, and has nothing to repeat."""
    project = clone(checkout.folder, tmp_path / "clone") / EXAMPLE
    projects.share(project)
    projects.run(project, "dvc", "pull")
    for place in ("data/raw", "data/clean", "models", "plots"):
        assert files_below(project / place) == files_below(trained / place)
    assert "up to date" in projects.run(project, "dvc", "status")


@pytest.mark.usefixtures("trained")
def test_readme_is_a_script(checkout: Shell) -> None:
    """The commands of the example's README work one after the other on a checkout."""
    bin_ = f"PATH={checkout.folder}:$PATH\n"  # where `mlops` is
    here = checkout._replace(folder=checkout.folder / EXAMPLE)
    for block in blocks(README):
        here.run(bin_ + "\n".join(block.commands))
    assert (checkout.folder / "dev-projects" / "my-taxi" / ".git").is_dir()
    assert (checkout.folder / "flows" / "green-taxi-nightly" / "prefect_flow.py").is_file()
    shutil.rmtree(checkout.folder / "dev-projects" / "my-taxi")


@pytest.mark.usefixtures("trained")
def test_document_is_a_script(checkout: Shell, experimenter: Shell) -> None:
    """So do those of docs/projects.md, with a run of a flow at the end."""
    for block in blocks(PROJECTS):
        shell = checkout if block.host == "a checkout" else experimenter
        shell.run("\n".join(block.commands))
    assert (checkout.folder / "flows" / "taxi-training" / "flow.yaml").is_file()


def test_copy_works_where_there_is_no_checkout(
    checkout: Shell, experimenter: Shell, platform: Platform
) -> None:
    """In the experimenter's container, say, the copy is a project like any other."""
    example = experimenter.folder / EXAMPLE.name
    tracked = subprocess.check_output(["git", "ls-files"], cwd=checkout.folder / EXAMPLE, text=True)
    for name in tracked.splitlines():
        (example / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkout.folder / EXAMPLE / name, example / name)
    experimenter.run("mlops project new copied-taxi --from green_taxi")
    experimenter.run("cd copied-taxi\ndvc repro download clean\ndvc push\npython -m pytest")
    stored = Servers(platform).objects("dvc", "copied-taxi/files/md5/")
    assert len(stored) == 6  # of each stage two files and the list of them


def test_no_command_goes_unseen() -> None:
    """A command in the text begins one of the blocks', or is run elsewhere."""
    names = (PROJECTS, README)
    assert all(languages(name) == {"sh"} for name in names)
    in_blocks = [command for name in names for block in blocks(name) for command in block.commands]
    in_blocks += [command.partition("project exec ")[2] for command in in_blocks]
    for command in (command for name in names for command in commands_in_text(name)):
        # From another folder it is `../../mlops`.
        begins = any(each.lstrip("./").startswith(command.lstrip("./")) for each in in_blocks)
        assert begins or command in ELSEWHERE, command
    assert all((CHECKOUT / "tests" / module).exists() for module in ELSEWHERE.values())
