"""Everything that is checked before a change is good: lint, format, types, tests."""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from mlops.errors import MlopsError, UsageError

LINTERS = {
    "lint": ["ruff", "check", "--quiet"],
    "format": ["ruff", "format", "--check", "--quiet"],
    "types": ["mypy", "--no-error-summary"],
}
# A good part of the tests waits for servers, which each worker starts for itself (1 GB of memory).
# `-n0` among the arguments turns it off again.
WORKERS = (f"--numprocesses={min(os.cpu_count() or 1, 3) + 2}", "--dist=loadfile")
# Alone, and ended by the first that fails again; none at all where pytest knows of no failures.
AGAIN = ("--last-failed", "--last-failed-no-failures=none", "--exitfirst", "--numprocesses=0")
_TESTS_FAILED = 1
_PYTEST_USAGE = 4


@dataclass(frozen=True)
class Skip:
    """A test that this machine could not run."""

    test: str
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """How one check ended.

    Attributes:
        name: Of the check.
        exit_code: Of its program; 0: there was nothing to find fault with.
        seconds: How long it took.
        skipped: Tests that did not run.
        retried: Tests that failed at first and passed when they were tried again.
    """

    name: str
    exit_code: int
    seconds: float
    skipped: list[Skip] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all is well in the end."""
        return self.exit_code == 0


def _cases(report: Path) -> dict[str, ET.Element]:
    """Read the tests' names and outcomes from pytest's JUnit report; none if there is none."""
    if not report.exists():
        return {}
    cases = ET.parse(report).iter("testcase")  # noqa: S314  # our own pytest wrote it
    return {f"{case.get('classname')}::{case.get('name')}": case for case in cases}


def _skips(report: Path) -> list[Skip]:
    """Read the skipped tests from a report."""
    return [
        Skip(name, skipped.get("message", ""))
        for name, case in _cases(report).items()
        for skipped in case.iter("skipped")
    ]


def _passes(report: Path) -> list[str]:
    """Read the tests that passed from a report."""
    others = {"failure", "error", "skipped"}
    cases = _cases(report).items()
    return [name for name, case in cases if not others & {outcome.tag for outcome in case}]


def _run_module(arguments: list[str], checkout: Path) -> tuple[int, float]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=checkout, check=False)
    return done.returncode, time.monotonic() - started


def run_linters(checkout: Path) -> list[CheckResult]:
    """Run lint, format and type checks; their findings go to this process's output.

    Args:
        checkout: What to check.
    """
    results = []
    for name, arguments in LINTERS.items():
        code, seconds = _run_module(arguments, checkout)
        results.append(CheckResult(name, code, seconds))
    return results


def run_tests(checkout: Path, arguments: list[str], reports: Path) -> CheckResult:
    """Run pytest; its report goes to this process's output.

    Args:
        checkout: Where the tests lie.
        arguments: Given to pytest as they are.
        reports: A folder that gets the JUnit report.

    Raises:
        UsageError: pytest does not understand the arguments.
    """
    report = reports / "tests.xml"
    code, seconds = _run_module(["pytest", *WORKERS, f"--junit-xml={report}", *arguments], checkout)
    if code == _PYTEST_USAGE:
        raise UsageError("pytest does not understand these arguments (see above)")
    return CheckResult("tests", code, seconds, _skips(report))


def retry_tests(
    checkout: Path, arguments: list[str], reports: Path, first: CheckResult
) -> CheckResult:
    """Run once more, one after another, the tests that have just failed.

    Args:
        checkout: Where the tests lie.
        arguments: What pytest was given the first time.
        reports: A folder that gets the JUnit report.
        first: How the first time ended; if pytest itself failed then, that stands.

    Returns:
        How both together ended.
    """
    if first.exit_code != _TESTS_FAILED:
        return first
    report = reports / "tests-again.xml"
    code, seconds = _run_module(["pytest", f"--junit-xml={report}", *arguments, *AGAIN], checkout)
    return replace(first, exit_code=code, seconds=first.seconds + seconds, retried=_passes(report))


def require_tools() -> None:
    """Make sure that the test dependencies are in this environment.

    Raises:
        MlopsError: They are not.
    """
    missing = [tool for tool in ("mypy", "pytest", "ruff") if find_spec(tool) is None]
    if missing:
        raise MlopsError(
            f"{', '.join(missing)}: not installed here",
            hint="run `./mlops test` in a checkout; it installs requirements/test.txt",
        )
