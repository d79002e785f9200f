from pathlib import Path

import pytest

from mlops.development import checks
from mlops.errors import UsageError

TESTS = """
import pytest

def test_good(): pass

@pytest.mark.skip(reason="no such engine")
def test_skipped(): pass

def test_bad(): assert False
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n[tool.mypy]\nfiles='.'")
    return tmp_path


@pytest.mark.parametrize("arguments", [[], ["-n0"]], ids=["shared-out", "in-one-process"])
def test_failures_and_skips_are_collected(project: Path, arguments: list[str]) -> None:
    """A failed test fails the check; a skipped one is reported with its reason."""
    result = checks.run_tests(project, arguments)
    assert not result.passed
    assert result.skipped == [checks.Skip("test_it::test_skipped", "no such engine")]


def test_arguments_reach_pytest(project: Path) -> None:
    """What the user asks of pytest is what runs."""
    result = checks.run_tests(project, ["-k", "good"])
    assert result.passed
    assert result.skipped == []


def test_wrong_arguments_are_wrong_usage(project: Path) -> None:
    """An option that pytest does not know is wrong usage, not a failed test."""
    with pytest.raises(UsageError):
        checks.run_tests(project, ["--nonsense"])


def test_every_linter_runs(project: Path) -> None:
    """A finding of one does not keep the others from running."""
    (project / "bad.py").write_text("import os\nx: int = 'no'\n")
    announced: list[str] = []
    results = checks.run_linters(project, announced.append)
    assert announced == ["lint", "format", "types"]
    assert {result.name: result.passed for result in results} == {
        "lint": False,
        "format": False,
        "types": False,
    }
