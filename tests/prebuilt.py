"""The environment of flows without requirements, as the agent's image brings it along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

LOCK = Path(__file__).parents[1] / "requirements" / "flow-default.txt"


@pytest.fixture(scope="session")
def prebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with it, made once for all workers; without a package index it has none."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "prebuilt"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            build = [sys.executable, "-m", "mlops.agent.prebuild", str(folder), str(LOCK)]
            done = subprocess.run(build, capture_output=True, text=True, check=False)
            print(done.stderr, file=sys.stderr)  # shown where a test fails for want of it
    return folder
