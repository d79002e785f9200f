"""The flow folder that is made of a project."""

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3_server import ACCESS_KEY, SECRET_KEY, open_bucket
from unit.experimenter.pipelines import hash_of, write_project

from mlops.errors import MlopsError
from mlops.experimenter.to_flow import ProjectFlow, create_project_flow
from mlops.scheduler.flow_folder import check_parameters, read

STAGES: dict[str, Any] = {
    "prepare": {"cmd": "python src/prepare.py", "params": ["prepare"], "outs": ["data/raw"]},
    "train": {
        "cmd": ['python train.py --depth ${train.depth} --{x} "$HOME"', "echo ${train.flag} ${n}"],
        "wdir": "src",
        "deps": ["../data/raw", "train.py"],
        "params": ["train.depth", "train.flag"],
        "outs": ["../models"],
    },
}
PARAMS = """\
prepare: {seed: 1}
n: 7
train: {depth: 4, flag: true, rate: 1e-3, since: 2021-01-04, names: [a, b], task: null, in: x}
limit: .inf
"""


@pytest.fixture
def pushed(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The key of the raw data's entry, which is in S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    content = hash_of("data/raw")
    key = f"taxi/files/md5/{content[:2]}/{content[2:]}"
    store = open_bucket(s3_url, "prefect")
    store.write(key, b"[]")
    yield key
    store.delete([key])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose stages have run."""
    folder = write_project(tmp_path / "taxi", STAGES, params=PARAMS, remote="s3://prefect/taxi")
    for path in ("src/train.py", "src/prepare.py", "README.md", "tests/test_x.py", "models/m"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("")
    (folder / "requirements.txt").write_text("pandas\n")
    (folder / ".gitignore").write_text("/scratch\n")
    (folder / "scratch").write_text("")
    return folder


def make(project: Path, *chosen: str, name: str | None = None) -> ProjectFlow:
    flows = project.parent / "flows"
    flows.mkdir(exist_ok=True)
    return create_project_flow(project, flows, name, chosen)


@pytest.mark.usefixtures("pushed")
def test_flow_folder_is_accepted(project: Path) -> None:
    """It has the project's code alone, and parameters that its own function takes."""
    made = make(project)
    assert made.stages == ("train",)
    assert made.data == {"data/raw": f"s3://prefect/taxi@{hash_of('data/raw')}"}
    files = {p.relative_to(made.folder).as_posix() for p in made.folder.rglob("*") if p.is_file()}
    assert files == {
        "flow.yaml",
        "params.yaml",
        "prefect_flow.py",
        "requirements.txt",
        "src/prepare.py",
        "src/train.py",
    }
    flow = read(made.folder)
    check_parameters(flow)
    assert flow.checked.name == "taxi/taxi"


@pytest.mark.usefixtures("pushed")
def test_parameters_are_those_that_change_something(project: Path) -> None:
    """Every value of params.yaml that the stages may read has a parameter of its type."""
    folder = make(project, name="nightly").folder
    content = yaml.safe_load((folder / "flow.yaml").read_text())
    assert content["deployment"]["deploy_name"] == "nightly"
    parameters = content["parameters"]
    assert parameters.pop("data") == f"s3://prefect/taxi@{hash_of('data/raw')}"
    # `prepare.seed` is of a stage that is not run, and JSON has no infinity.
    assert {name: str(value) for name, value in parameters.items()} == {
        "n": "7",
        "train_depth": "4",
        "train_flag": "True",
        "train_rate": "0.001",
        "train_since": "2021-01-04",
        "train_names": "['a', 'b']",
        "train_task": "None",
        "train_in": "x",
    }


def commands(folder: Path, **values: object) -> list[str]:
    """Evaluate the commands with which a flow's function calls its stages."""
    tree = ast.parse((folder / "prefect_flow.py").read_text())
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "taxi")
    (call,) = (
        n.value
        for n in function.body
        if isinstance(n, ast.Expr)
        and isinstance(n.value, ast.Call)
        and ast.unparse(n.value.func) == "run_stage"
    )
    assert {k.arg: ast.literal_eval(k.value) for k in call.keywords} == {"folder": "src"}
    return [eval(ast.unparse(each), {}, values) for each in call.args]  # noqa: S307  # our own


@pytest.mark.usefixtures("pushed")
def test_values_in_commands_are_the_run_s(project: Path) -> None:
    """A command with values of params.yaml gets those of the run, written as DVC writes them."""
    folder = make(project).folder
    assert commands(folder, train_depth=9, train_flag=False, n=3) == [
        "train",
        'python train.py --depth 9 --{x} "$HOME"',
        "echo false 3",
    ]


@pytest.mark.usefixtures("pushed")
def test_other_taken_names_are_kept_apart(project: Path) -> None:
    """Values that are called like data, like a word of Python or like each other."""
    (project / "params.yaml").write_text("data: 1\nclass: 2\npull: 3\n2x: 4\n")
    (project / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {**STAGES, "train": {**STAGES["train"], "cmd": "x"}}})
    )
    parameters = yaml.safe_load((make(project).folder / "flow.yaml").read_text())["parameters"]
    assert list(parameters) == ["data_data", "data", "class_", "pull_", "param_2x"]
    (project / "params.yaml").write_text("a_b: 1\na: {b: 2}\n")
    with pytest.raises(MlopsError, match=r"a_b and a\.b would both be the parameter a_b"):
        make(project, name="other")


@pytest.mark.usefixtures("pushed")
def test_folder_that_is_there_is_left_alone(project: Path) -> None:
    """A second flow needs another name; nothing is written over."""
    flow_file = make(project).folder / "prefect_flow.py"
    flow_file.write_text("mine")
    with pytest.raises(MlopsError, match="taxi: is there already"):
        make(project)
    assert flow_file.read_text() == "mine"
    assert make(project, name="other").folder.is_dir()


def test_data_must_have_been_pushed(project: Path, pushed: str, s3_url: str) -> None:
    """Data that no agent could pull is told with the mend, and no folder is made."""
    open_bucket(s3_url).delete([pushed])
    with pytest.raises(MlopsError, match="data/raw: its data is not in s3://prefect/taxi yet"):
        make(project)
    assert list((project.parent / "flows").iterdir()) == []


@pytest.mark.usefixtures("pushed")
def test_data_that_was_not_made_is_told(project: Path) -> None:
    """A stage that has not run yet has made nothing that could be pulled."""
    stages = {**STAGES, "other": {"cmd": "x", "outs": ["data/other"]}}
    stages["train"] = {**STAGES["train"], "deps": ["../data/raw", "../data/other"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(MlopsError, match="does not know data/other: it was not made yet"):
        make(project)


@pytest.mark.usefixtures("pushed")
def test_doubts_are_told(project: Path) -> None:
    """Values and code that are newer than the data, and what git does not have yet."""
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    lock["stages"]["prepare"] |= {
        "params": {"params.yaml": {"prepare": {"seed": 5}}},
        "deps": [{"path": "src/prepare.py", "md5": "0" * 32}],
    }
    (project / "dvc.lock").write_text(json.dumps(lock))
    subprocess.run(["git", "init", "--quiet", project], check=True)
    assert make(project).warnings == (
        "params.yaml: prepare has changed since `dvc repro` ran the stage prepare",
        "src/prepare.py: has changed since `dvc repro` ran the stage prepare",
        "the project has changes that are not committed: the flow has them, git has not",
    )


@pytest.mark.usefixtures("pushed")
def test_scripts_that_ask_dvc_find_a_project(project: Path) -> None:
    """For `import dvc.api` the folder is a project of DVC's, though without git."""
    (project / "src" / "train.py").write_text("import dvc.api\n")
    assert "no_scm = true" in (make(project).folder / ".dvc" / "config").read_text()
