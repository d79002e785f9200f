from pathlib import Path

import pytest

from mlops.agent.requirements import Requirements, read_requirements
from mlops.errors import MlopsError


def read(folder: Path, file: str | None = "requirements.txt") -> Requirements:
    return read_requirements(folder, file, "3.11.7")


def test_comments_and_layout_do_not_matter(tmp_path: Path) -> None:
    """Two files that mean the same need the same environment."""
    (tmp_path / "a.txt").write_text("idna==3.10  # old\n\nfastapi \\\n  <1\n")
    (tmp_path / "b.txt").write_text("# why\r\nidna==3.10\r\nfastapi    <1\r\n")
    assert read(tmp_path, "a.txt").fingerprint == read(tmp_path, "b.txt").fingerprint


def test_a_file_that_names_nothing_asks_for_nothing(tmp_path: Path) -> None:
    """A new flow's file, which holds comments alone, needs no environment of its own."""
    (tmp_path / "requirements.txt").write_text("# What flow.py imports\n\n")
    assert read(tmp_path) == read(tmp_path, None)
    assert read(tmp_path).is_none
    (tmp_path / "uv.toml").write_text("no-build = true\n")
    assert not read(tmp_path).is_none


def test_an_included_file_counts(tmp_path: Path) -> None:
    """What a `-r` file says is part of the requirements, relative to the file that includes it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "requirements.txt").write_text("-r sub/more.txt\n-c limits.txt\n")
    (tmp_path / "sub" / "more.txt").write_text("--requirement=last.txt\nPrefect_AWS>=0.5\n")
    (tmp_path / "sub" / "last.txt").write_text("idna==3.10 --hash=sha256:00\n")
    (tmp_path / "limits.txt").write_text("mlflow<3\n")
    before = read(tmp_path)
    assert before.names == {"prefect-aws", "idna"}  # a constraint names no requirement
    (tmp_path / "sub" / "last.txt").write_text("idna==3.11 --hash=sha256:00\n")
    assert read(tmp_path).fingerprint != before.fingerprint


def test_a_file_may_include_itself(tmp_path: Path) -> None:
    """Files that include each other end."""
    (tmp_path / "requirements.txt").write_text("-r requirements.txt\nidna\n")
    assert read(tmp_path).names == {"idna"}


def test_a_marker_that_does_not_hold_names_nothing(tmp_path: Path) -> None:
    """A requirement for other Pythons leaves ours in place."""
    text = "mlflow==2.5.0; python_version < '3.9'\nprefect==3.4.0; python_version >= '3.9'\n"
    (tmp_path / "requirements.txt").write_text(text)
    assert read(tmp_path).names == {"prefect"}


def test_local_packages_count_with_their_content(tmp_path: Path) -> None:
    """A package in the flow's folder is part of the requirements, elsewhere it is text."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "code.py").write_text("A = 1\n")
    remote = "git+https://example.org/x.git#egg=x\ny @ https://example.org/y.whl\n"
    (tmp_path / "requirements.txt").write_text(remote)
    assert not read(tmp_path).has_local_packages
    (tmp_path / "requirements.txt").write_text(f"-e ./lib[extra]\n{remote}")
    before = read(tmp_path)
    assert before.has_local_packages
    (tmp_path / "lib" / "code.py").write_text("A = 2\n")
    assert read(tmp_path).fingerprint != before.fingerprint


def test_settings_of_uv_count(tmp_path: Path) -> None:
    """uv reads its settings from the flow's folder, so they count; others' settings do not."""
    (tmp_path / "requirements.txt").write_text("idna\n")
    bare = read(tmp_path).fingerprint
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 90\n")
    assert read(tmp_path).fingerprint == bare
    (tmp_path / "pyproject.toml").write_text("[tool.uv]\nconstraint-dependencies = ['idna<3']\n")
    assert read(tmp_path).fingerprint != bare


@pytest.mark.parametrize(
    ("file", "is_project"), [(None, True), ("requirements.txt", True), ("gpu.txt", False)]
)
def test_a_uv_lock_wins_over_the_default(
    tmp_path: Path, file: str | None, is_project: bool
) -> None:
    """A uv.lock beside a pyproject.toml wins unless another file is named."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname='x'\nversion='0'\n")
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "gpu.txt").write_text("idna\n")
    assert read(tmp_path, file).is_project is is_project


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A requirements file that is not there is named, an included one as well."""
    with pytest.raises(MlopsError, match=r"requirements\.txt: no such"):
        read(tmp_path)
    (tmp_path / "requirements.txt").write_text("-r more.txt\n")
    with pytest.raises(MlopsError, match=r"more\.txt: no such"):
        read(tmp_path)
