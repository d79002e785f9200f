"""What `mlops project new` makes, before any server or package is asked."""

import subprocess
from pathlib import Path

import pytest

from mlops.data.dvc_config import DvcConfig
from mlops.errors import MlopsError
from mlops.experimenter.packages import find_project
from mlops.experimenter.project import create_project, find_template


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Somebody whom git does not know."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=folder, text=True)


def test_project_is_a_committed_repository(tmp_path: Path) -> None:
    """All of it is in the first commit, with the project's name and its place in the bucket."""
    made = create_project(tmp_path, "taxi", bucket="data")
    assert (made.folder, made.remote) == (tmp_path / "taxi", "s3://data/taxi")
    assert git(made.folder, "status", "--short") == ""
    names = git(made.folder, "ls-files").splitlines()
    assert {".dvc/config", "dvc.yaml", "params.yaml", "notebooks/explore.ipynb"} < set(names)
    texts = [(made.folder / name).read_text() for name in names]
    assert not any("my-project" in text or "my-bucket" in text for text in texts)
    assert "url = s3://data/taxi\n" in (made.folder / ".dvc" / "config").read_text()


def test_unknown_user_can_commit(tmp_path: Path) -> None:
    """Where git does not know its user a stand-in signs, and the user is told."""
    made = create_project(tmp_path, "taxi", bucket="dvc")
    assert made.identity_missing
    assert git(made.folder, "log", "--format=%an").strip() == "mlops"
    git(made.folder, "commit", "--allow-empty", "--message", "goes on")


def test_known_user_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom git knows signs the first commit, and nothing is set in the repository."""
    config = tmp_path / "gitconfig"
    config.write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    made = create_project(tmp_path, "taxi", bucket="dvc")
    assert not made.identity_missing
    assert git(made.folder, "log", "--format=%an").strip() == "Ada"


@pytest.mark.parametrize(
    ("name", "good"),
    [("a b", "a-b"), ("..", "my-project"), ("-x", "x"), ("x/y", "x-y"), ("Ünï", "n"), ("", "")],
)
def test_bad_name_is_answered_with_a_good_one(tmp_path: Path, name: str, good: str) -> None:
    """A name that a folder, S3 or a shell would trip over is refused, and nothing is made."""
    with pytest.raises(MlopsError) as refused:
        create_project(tmp_path, name, bucket="dvc")
    assert refused.value.hint == f"a good name is {good or 'my-project'}"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git nothing half-made remains."""
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    with pytest.raises(MlopsError, match="git is not installed"):
        create_project(tmp_path, "taxi", bucket="dvc")
    assert list(tmp_path.iterdir()) == []


def test_project_is_never_overwritten(tmp_path: Path) -> None:
    """A folder that is there stays as it is."""
    (tmp_path / "taxi").mkdir()
    with pytest.raises(MlopsError, match="is there already"):
        create_project(tmp_path, "taxi", bucket="dvc")


def test_project_is_found_from_below(tmp_path: Path) -> None:
    """A command finds the project that it is started in; elsewhere it says how to get one."""
    made = create_project(tmp_path, "taxi", bucket="dvc")
    assert find_project(made.folder / "src") == made.folder
    with pytest.raises(MlopsError, match="not in a project"):
        find_project(tmp_path)


def test_project_is_made_from_another(tmp_path: Path) -> None:
    """It has the other's sources, not what was made there, and its own name where that counts."""
    other = create_project(tmp_path, "data", bucket="dvc").folder
    script = other / "src" / "data.py"
    script.write_text('EXPERIMENT = "data"\nKEY = "data"\n')
    for left in ("dvc.lock", ".env", "data/prepared/x.csv", ".dvc/config.local"):
        (other / left).parent.mkdir(parents=True, exist_ok=True)
        (other / left).write_text("")
    made = create_project(tmp_path, "taxi", bucket="dvc", template=find_template(tmp_path, "data"))
    names = git(made.folder, "ls-files").splitlines()
    assert set(names) == {*git(other, "ls-files").splitlines(), "src/data.py"}
    assert script.relative_to(other) in made.renamed
    text = (made.folder / "src" / "data.py").read_text()
    assert text == 'EXPERIMENT = "taxi"\nKEY = "data"\n'
    for name in ("src/train.py", "notebooks/explore.ipynb"):
        assert '"data"' not in (made.folder / name).read_text().replace("\\", "")
    readme = (made.folder / "README.md").read_text()
    assert readme.startswith("# taxi\n")
    assert "s3://dvc/taxi" in readme
    config = (made.folder / ".dvc" / "config").read_text()
    assert config == (other / ".dvc" / "config").read_text().replace("dvc/data", "dvc/taxi")
    assert made.data_remote is None
    assert git(made.folder, "log", "--format=%s").splitlines() == ["Start from the template"]


def test_added_data_is_found_at_the_other_project(tmp_path: Path) -> None:
    """What `dvc add` tracks is named still, and a second remote says where it is."""
    other = create_project(tmp_path, "old", bucket="dvc").folder
    (other / "data").mkdir()
    (other / "data" / "trips.csv.dvc").write_text("outs:\n- path: trips.csv\n")
    made = create_project(tmp_path, "new", bucket="dvc", template=other)
    assert made.data_remote == "template"
    config = DvcConfig(made.folder)
    assert config.remote(None) == ("dvc", "new")
    assert config.remote("template") == ("dvc", "old")


def test_remote_that_git_does_not_have_is_not_shared(tmp_path: Path) -> None:
    """A remote in config.local, or none at all, becomes the new project's own all the same."""
    other = create_project(tmp_path, "old", bucket="dvc").folder
    (other / ".dvc" / "config").write_text("[core]\n    autostage = true\n")
    (other / ".dvc" / "config.local").write_text(
        "[core]\n    remote = here\n['remote \"here\"']\n    url = s3://dvc/old\n"
    )
    made = create_project(tmp_path, "new", bucket="dvc", template=other)
    assert DvcConfig(made.folder).remote(None) == ("dvc", "new")


def test_project_to_copy_is_found_by_name_or_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name means the project beside the new one; what is no project is refused."""
    made = create_project(tmp_path, "old", bucket="dvc")
    monkeypatch.chdir(tmp_path)
    assert find_template(tmp_path, "old") == made.folder
    assert find_template(tmp_path / "elsewhere", "./old").samefile(made.folder)
    with pytest.raises(MlopsError, match="src: no project"):
        find_template(made.folder, "src")


def test_example_can_be_copied(tmp_path: Path) -> None:
    """Nothing of green_taxi's own experiment and remote is left in its copy."""
    example = Path(__file__).parents[3] / "dev-projects" / "green_taxi"
    made = create_project(tmp_path, "my-taxi", bucket="dvc", template=example)
    found = git(made.folder, "grep", "-n", "green_taxi").splitlines()
    assert len(found) == 1
    assert "mlops project new my-taxi --from green_taxi" in found[0]
