"""Which stages a flow runs, and which data it pulls."""

from pathlib import Path
from typing import Any

import pytest
from unit.experimenter.pipelines import write_project

from mlops.errors import MlopsError
from mlops.experimenter.pipeline import read_pipeline
from mlops.experimenter.stage_choice import choose_stages

# Not in the order in which they have to run.
STAGES: dict[str, Any] = {
    "evaluate": {
        "cmd": "e",
        "deps": ["data/clean/validate.csv", "models/a", "src"],
        "metrics": [{"metrics.json": {"cache": False}}],
    },
    "download": {"cmd": "d", "deps": ["src/download.py"], "outs": ["data/raw"]},
    "clean": {"cmd": "c", "deps": ["data/raw", "zones.csv"], "outs": ["data/clean"]},
    "train": {"cmd": "t", "deps": ["data/clean"], "outs": ["models/a"]},
    "report": {"cmd": "r", "deps": ["metrics.json"], "outs": ["report"]},
}


def choose(folder: Path, stages: dict[str, Any], *chosen: str) -> tuple[list[str], list[str]]:
    project = write_project(folder / "project", stages, added=("zones.csv",))
    choice = choose_stages(read_pipeline(project), chosen)
    return [stage.name for stage in choice.stages], sorted(choice.data)


def test_raw_data_is_pulled_and_all_else_is_run(tmp_path: Path) -> None:
    """Without a choice it is what no stage makes from data; the order is that of the needs."""
    stages, data = choose(tmp_path, STAGES)
    assert stages == ["clean", "train", "evaluate", "report"]
    assert data == ["data/raw", "zones.csv"]


def test_chosen_data_is_not_made(tmp_path: Path) -> None:
    """Neither the stage that makes it nor those before it are run, nor is their data pulled."""
    assert choose(tmp_path, STAGES, "data/clean") == (
        ["train", "evaluate", "report"],
        ["data/clean"],
    )


def test_what_is_needed_besides_is_pulled_too(tmp_path: Path) -> None:
    """An output of a stage before the chosen data comes along where a later stage reads it."""
    assert choose(tmp_path, STAGES, "models/a") == (
        ["evaluate", "report"],
        ["data/clean", "models/a"],
    )


def test_frozen_stage_is_not_run(tmp_path: Path) -> None:
    """What DVC is told not to run again is pulled."""
    frozen = {**STAGES, "clean": {**STAGES["clean"], "frozen": True}}
    assert choose(tmp_path, frozen) == (["train", "evaluate", "report"], ["data/clean"])


@pytest.mark.parametrize(
    ("chosen", "mistake"),
    [
        (("data/none",), r"data/none: no data that DVC keeps; allowed: data/clean, data/raw"),
        (("metrics.json",), "metrics.json: no data that DVC keeps"),
        (("data/raw", "data/clean"), "data/raw: none of the stages that the flow would run reads"),
        (("report",), "no stage of dvc.yaml reads report: nothing to run"),
    ],
)
def test_senseless_choice_is_refused(tmp_path: Path, chosen: tuple[str, ...], mistake: str) -> None:
    """What cannot be pulled, and what would be pulled for nobody, is named."""
    with pytest.raises(MlopsError, match=mistake):
        choose(tmp_path, STAGES, *chosen)


def test_circle_is_refused(tmp_path: Path) -> None:
    """Stages that need each other are named."""
    circle = {
        "a": {"cmd": "a", "deps": ["y", "zones.csv"], "outs": ["x"]},
        "b": {"cmd": "b", "deps": ["x"], "outs": ["y"]},
    }
    with pytest.raises(MlopsError, match=r"a, b of dvc.yaml need each other"):
        choose(tmp_path, circle)


@pytest.mark.parametrize(
    ("stage", "mistake"),
    [
        ({"foreach": [1], "do": {"cmd": "x"}}, r"stages\.x: has do, foreach"),
        ({"matrix": {"a": [1]}, "cmd": "x"}, r"stages\.x: has matrix"),
        ({"cmd": "x ${item}"}, r"stages\.x: item is not in params\.yaml"),
        ({"cmd": "x ${train}"}, r"stages\.x: train is more than one value"),
        ({"outs": ["x"]}, r"stages\.x\.cmd: Field required"),
    ],
)
def test_what_a_flow_cannot_have_is_named(
    tmp_path: Path, stage: dict[str, Any], mistake: str
) -> None:
    """A stage that is more than a command is refused by its name, not guessed at."""
    project = write_project(tmp_path / "p", {"x": stage}, params="train: {depth: 4}\n")
    with pytest.raises(MlopsError, match=mistake):
        read_pipeline(project)


def test_nothing_made_is_told_with_the_mend(tmp_path: Path) -> None:
    """Without dvc.lock there is no revision of any data."""
    project = write_project(tmp_path / "p", STAGES)
    (project / "dvc.lock").unlink()
    with pytest.raises(MlopsError, match="nothing was made yet") as refused:
        read_pipeline(project)
    assert refused.value.hint == "dvc repro && dvc push"
