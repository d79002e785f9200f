import subprocess
from pathlib import Path

import pytest

from mlops.data.project import DvcProject
from mlops.errors import MlopsError

A, B, C = "a" * 32, "b" * 32, "c" * 32


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def track(project: Path, path: str, data_hash: str) -> None:
    file = project / f"{path}.dvc"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"outs:\n- md5: {data_hash}\n  hash: md5\n  path: {file.stem}\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in a folder of a repository, with two revisions of its data."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    (project / ".dvc" / "config").write_text(
        "[core]\n    remote = r\n['remote \"r\"']\n    url = s3://dvc/p\n"
    )
    track(project, "data/trips", f"{A}.dir")
    track(project, "zones.csv", B)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    git(tmp_path, "tag", "v1")
    track(project, "data/trips", f"{C}.dir")
    return project


def references(place: Path, targets: list[str], revision: str | None = None) -> list[str]:
    return [str(each.reference) for each in DvcProject(place, revision).outputs(targets)]


def test_targets_are_found(project: Path) -> None:
    """Everything, an output, its .dvc file, what lies in a folder; from any folder of it."""
    trips, zones = f"s3://dvc/p@{C}.dir", f"s3://dvc/p@{B}"
    assert references(project, []) == [trips, zones]
    assert references(project, ["zones.csv"]) == [zones]
    assert references(project, ["data/trips.dvc"]) == [trips]
    assert references(project, ["data", "data/trips/"]) == [trips]
    assert references(project / "data", ["trips", "../zones.csv"]) == [trips, zones]
    assert references(project / "data", [".."]) == [trips, zones]


def test_revision_is_read_from_git(project: Path) -> None:
    """At a revision the data is what it was then, whatever the files say now."""
    assert references(project, ["data/trips"], "v1") == [f"s3://dvc/p@{A}.dir"]
    (project / "zones.csv.dvc").unlink()
    assert references(project / "data", ["../zones.csv"], "main") == [f"s3://dvc/p@{B}"]


def test_unknown_revision_names_those_there_are(project: Path) -> None:
    """A revision that git does not know is told, with those that it does."""
    for wrong in ("v2", "--all", "v1:x"):
        with pytest.raises(MlopsError, match="git knows no revision") as error:
            DvcProject(project, wrong)
        assert "git fetch" in error.value.hint
        assert "v1" in error.value.hint


def test_unknown_path_names_what_is_tracked(project: Path) -> None:
    """A path that DVC does not track is told, with those that it does."""
    with pytest.raises(MlopsError, match=r"trip: is not tracked by DVC in .* at v1") as error:
        DvcProject(project, "v1").outputs(["trip"])
    assert error.value.hint == "tracked are: data/trips, zones.csv"
    with pytest.raises(MlopsError, match="a part of data/trips"):
        DvcProject(project).outputs(["data/trips/2021.parquet"])
    with pytest.raises(MlopsError, match="outside of the project"):
        DvcProject(project).outputs(["../../elsewhere"])


def test_place_without_project_is_told(tmp_path: Path) -> None:
    """Outside of projects, and without git, it is said what is missing."""
    with pytest.raises(MlopsError, match="not in a DVC project"):
        DvcProject(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    with pytest.raises(MlopsError, match="not in a git repository"):
        DvcProject(tmp_path, "v1")
    with pytest.raises(MlopsError, match="DVC tracks nothing"):
        DvcProject(tmp_path).outputs([])


def test_data_is_not_searched_for_more(project: Path) -> None:
    """What lies in tracked data, or in hidden folders, is no part of the project."""
    track(project, "data/trips/inner", B)
    track(project, ".venv/inner", B)
    assert len(references(project, [])) == 2
