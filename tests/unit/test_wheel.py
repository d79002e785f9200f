"""What a user gets from the built wheel, without this checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlops.uv_program import find_uv

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


def run_flows(mlops: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mlops flows …` of the wheel with a cleared environment."""
    return subprocess.run(
        [mlops, "flows", *arguments],
        cwd=home,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.requires("package-index")
def test_plain_installation_checks_flows(mlops: Path, tmp_path: Path) -> None:
    """Without any extra, the wheel checks a flow folder."""
    done = run_flows(mlops, tmp_path, "check", str(PROJECT / "flows" / "digits"))
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout


@pytest.mark.requires("package-index")
def test_plain_installation_makes_a_flow(mlops: Path, tmp_path: Path) -> None:
    """The wheel brings the template of new flow folders along."""
    done = run_flows(mlops, tmp_path, "new", str(tmp_path / "mine"), "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "flow.py").is_file()
