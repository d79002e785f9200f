"""What becomes of a test that demands of the machine what it has not."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
DEMANDING = """
import signal
import pytest

@pytest.mark.requires("gpu")
def test_rare(): pass

@pytest.mark.requires("docker")
def test_usual(): pass

def test_interrupt(): assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
"""


def outcome(folder: Path, **variables: str) -> str:
    """Run the tests above where nothing is installed, and return pytest's summary."""
    test = folder / "tests" / "unit" / "test_demanding.py"
    test.parent.mkdir(parents=True)
    test.write_text(DEMANDING)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(
        ["/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command, "--rootdir=.", "tests"],
        cwd=folder,
        env={"PATH": str(folder), "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_demand_that_is_not_met_skips(tmp_path: Path) -> None:
    """On a person's machine a test that cannot run is skipped, with the reason."""
    said = outcome(tmp_path)
    assert "needs docker: docker is not installed" in said
    assert "1 passed, 2 skipped" in said


def test_demand_that_is_not_met_fails_ci(tmp_path: Path) -> None:
    """In CI it fails, unless it is one that no machine can be expected to meet."""
    said = outcome(tmp_path, CI="true")
    assert "ERROR tests/unit/test_demanding.py::test_usual" in said
    assert "needs gpu: nvidia-smi is not installed" in said
