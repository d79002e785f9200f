"""What a user gets from the built wheel, without this checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlops.development.locks import find_uv

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mlops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, install it without extras in a clean environment, return its program."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = find_uv()
    commands: list[list[str | Path]] = [
        ["build", "--wheel", "--out-dir", folder, PROJECT],
        ["venv", "--python", sys.executable, folder / "venv"],
    ]
    for arguments in commands:
        subprocess.run([uv, *arguments, "--quiet"], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [
            uv, "pip", "install", "--quiet", "--python", folder / "venv/bin/python",
            "--constraints", PROJECT / "requirements" / "test.txt", wheel,
        ],
        check=True,
        cwd=folder,
    )  # fmt: skip
    return folder / "venv" / "bin" / "mlops"


@pytest.mark.requires("package-index")
def test_plain_installation_checks_flows(mlops: Path, tmp_path: Path) -> None:
    """Without any extra, the wheel checks a flow folder."""
    done = subprocess.run(
        [mlops, "flows", "check", PROJECT / "flows" / "digits"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout
