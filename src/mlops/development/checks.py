"""Everything that is checked before a change is good: lint, format, types, tests."""

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from mlops.errors import MlopsError, UsageError

LINTERS = {
    "lint": ["ruff", "check", "--quiet"],
    "format": ["ruff", "format", "--check", "--quiet"],
    "types": ["mypy", "--no-error-summary"],
}
# A good part of the tests waits for servers. `-n0` among the arguments turns it off again.
WORKERS = ("--numprocesses=2", "--dist=loadfile")
_PYTEST_USAGE = 4


@dataclass(frozen=True)
class Skip:
    """A test that this machine could not run."""

    test: str
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """How one check ended."""

    name: str
    passed: bool
    seconds: float
    skipped: list[Skip] = field(default_factory=list)


def _skips(report: Path) -> list[Skip]:
    """Read the skipped tests from pytest's JUnit report; none if it was not written."""
    if not report.exists():
        return []
    return [
        Skip(f"{case.get('classname')}::{case.get('name')}", skipped.get("message", ""))
        for case in ET.parse(report).iter("testcase")  # noqa: S314  # our own pytest wrote it
        for skipped in case.iter("skipped")
    ]


def _run_module(arguments: list[str], checkout: Path) -> tuple[int, float]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=checkout, check=False)
    return done.returncode, time.monotonic() - started


def run_linters(checkout: Path, announce: Callable[[str], None]) -> list[CheckResult]:
    """Run lint, format and type checks; their findings go to this process's output.

    Args:
        checkout: What to check.
        announce: Told the name of each check before it starts.
    """
    results = []
    for name, arguments in LINTERS.items():
        announce(name)
        code, seconds = _run_module(arguments, checkout)
        results.append(CheckResult(name, code == 0, seconds))
    return results


def run_tests(checkout: Path, arguments: list[str]) -> CheckResult:
    """Run pytest; its report goes to this process's output.

    Args:
        checkout: Where the tests lie.
        arguments: Given to pytest as they are.

    Raises:
        UsageError: pytest does not understand the arguments.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        code, seconds = _run_module(
            ["pytest", *WORKERS, f"--junit-xml={report}", *arguments], checkout
        )
        skipped = _skips(report)
    if code == _PYTEST_USAGE:
        raise UsageError("pytest does not understand these arguments (see above)")
    return CheckResult("tests", code == 0, seconds, skipped)


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
