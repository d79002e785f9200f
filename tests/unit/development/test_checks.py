import shutil
from pathlib import Path

import pytest

from mlops.development import checks
from mlops.errors import UsageError

ALONE = ["-n0"]  # most are about something else than workers, each of which takes its time
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


@pytest.mark.parametrize("arguments", [[], ALONE], ids=["shared-out", "in-one-process"])
def test_failures_and_skips_are_collected(project: Path, arguments: list[str]) -> None:
    """A failed test fails the check; a skipped one is reported with its reason."""
    result = checks.run_tests(project, arguments, project)
    assert not result.passed
    assert result.skipped == [checks.Skip("test_it::test_skipped", "no such engine")]


def test_arguments_reach_pytest(project: Path) -> None:
    """What the user asks of pytest is what runs."""
    result = checks.run_tests(project, [*ALONE, "-k", "good"], project)
    assert result.passed
    assert result.skipped == []


def test_wrong_arguments_are_wrong_usage(project: Path) -> None:
    """An option that pytest does not know is wrong usage, not a failed test."""
    with pytest.raises(UsageError):
        checks.run_tests(project, [*ALONE, "--nonsense"], project)


def fails_until_it_is_tried_again(project: Path, name: str) -> None:
    """Add a test that fails the first time only."""
    (project / f"test_{name}.py").write_text(
        "from pathlib import Path\n"
        f"def test_{name}():\n"
        "    tried = Path(__file__).with_suffix('.tried')\n"
        "    was_there = tried.exists()\n"
        "    tried.touch()\n"
        "    assert was_there\n"
    )


def test_test_that_passes_when_tried_again_is_named(project: Path) -> None:
    """A failure that was noise does not stand, and nothing else runs a second time."""
    fails_until_it_is_tried_again(project, "noisy")
    arguments = [*ALONE, "-k", "good or noisy"]
    first = checks.run_tests(project, arguments, project)
    assert not first.passed
    result = checks.retry_tests(project, arguments, project, first)
    assert result.passed
    assert result.retried == ["test_noisy::test_noisy"]
    assert result.seconds > first.seconds


def test_test_that_fails_again_is_a_failure(project: Path) -> None:
    """A failure that is none of the machine's stands, whatever else passes now."""
    fails_until_it_is_tried_again(project, "in_time")  # before test_it.py
    first = checks.run_tests(project, ALONE, project)
    result = checks.retry_tests(project, ALONE, project, first)
    assert not result.passed
    assert result.retried == ["test_in_time::test_in_time"]
    assert result.skipped == first.skipped


def test_failures_that_pytest_has_forgotten_stand(project: Path) -> None:
    """Where pytest no longer knows what failed, nothing runs, and nothing passes by that."""
    first = checks.run_tests(project, ALONE, project)
    shutil.rmtree(project / ".pytest_cache")
    result = checks.retry_tests(project, ALONE, project, first)
    assert not result.passed
    assert result.retried == []


def test_pytest_that_could_not_run_is_not_tried_again(project: Path) -> None:
    """Without any test that failed there is nothing to try again."""
    first = checks.run_tests(project, [*ALONE, "-k", "no_such_test"], project)
    assert not first.passed
    assert checks.retry_tests(project, ALONE, project, first) is first


def test_every_linter_runs(project: Path) -> None:
    """A finding of one does not keep the others from running."""
    (project / "bad.py").write_text("import os\nx: int = 'no'\n")
    results = checks.run_linters(project)
    assert {result.name: result.passed for result in results} == {
        "lint": False,
        "format": False,
        "types": False,
    }
