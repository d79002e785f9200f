"""`./mlops` in a small checkout of its own: the real script, uv and environments, tiny locks."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops.uv_program import find_uv

PROJECT = Path(__file__).parents[2]
PYTHON = Path(sys.executable).resolve()
# What the script calls, so that a PATH can be made which has nothing else.
TOOLS = ("cmp", "cp", "dirname", "mkdir", "mv", "readlink", "rm", "sh")
# Stands in for the project: reports how it was called and what is installed.
MAIN = """
import importlib.util, json, os, sys
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "path": sys.path,
    "checkout": os.environ["MLOPS_CHECKOUT"],
    "home": os.environ["MLOPS_HOME"],
    "python": sys.executable,
    "packages": [n for n in ("one", "two", "three") if importlib.util.find_spec(n)],
}))
"""


def write_wheel(folder: Path, name: str) -> str:
    """Write a wheel with one module, and return its line for a hashed lock."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/RECORD,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name}==1.0 --hash=sha256:{digest}\n"


@dataclass(frozen=True)
class Checkout:
    """A small checkout, and the machine around it."""

    folder: Path
    bin: Path  # the only folder on PATH
    wheels: dict[str, str]  # the lines of the packages that there are
    environment: dict[str, str]

    @property
    def script(self) -> Path:
        return self.folder / "mlops"

    def lock(self, name: str, *packages: str) -> None:
        text = "".join(self.wheels[package] for package in packages)
        (self.folder / "requirements" / f"{name}.txt").write_text(text)

    def run(
        self,
        *arguments: str,
        script: Path | str | None = None,
        cwd: Path = Path("/"),
        **changes: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script or self.script, *arguments],
            cwd=cwd,
            env=self.environment | changes,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def report(self, *arguments: str) -> dict[str, list[str]]:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        report: dict[str, list[str]] = json.loads(done.stdout)
        return report


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, bin_, home, wheels = (tmp_path / n for n in ("my clone", "bin", "home", "wheels"))
    for made in (folder / "requirements", folder / "src" / "mlops", bin_, home, wheels):
        made.mkdir(parents=True)
    shutil.copy(PROJECT / "mlops", folder)
    (folder / "src" / "mlops" / "__init__.py").touch()
    (folder / "src" / "mlops" / "__main__.py").write_text(MAIN)
    for tool in TOOLS:
        (bin_ / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is missing"))
    (bin_ / "uv").symlink_to(find_uv())
    (bin_ / "python3").symlink_to(PYTHON)
    lines = {name: write_wheel(wheels, name) for name in ("one", "two", "three")}
    environment = {
        "HOME": str(home),
        "PATH": str(bin_),
        "UV_FIND_LINKS": str(wheels),
        "UV_OFFLINE": "1",
    }
    small = Checkout(folder, bin_, lines, environment)
    small.lock("local", "one")
    small.lock("test", "one", "two")
    return small


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a refused call says."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("mlops: ")
    return done.stderr


def test_passes_on_what_it_was_given(checkout: Checkout, tmp_path: Path) -> None:
    """Arguments and the current folder reach the program, and so do both of its folders."""
    report = json.loads(checkout.run("a b", "", "--c", cwd=tmp_path).stdout)
    assert report["arguments"] == ["a b", "", "--c"]
    assert report["folder"] == str(tmp_path)
    assert report["checkout"] == str(checkout.folder)
    assert report["home"] == f"{checkout.folder}/.mlops"
    assert report["python"] == f"{checkout.folder}/.venv/bin/python"
    assert report["packages"] == ["one"]
    assert str(tmp_path) not in report["path"]


def test_called_by_relative_path_and_symlink(checkout: Checkout, tmp_path: Path) -> None:
    """However it is called, it finds its own checkout."""
    links = tmp_path / "links"
    links.mkdir()
    (links / "first").symlink_to("second")
    (links / "second").symlink_to(os.path.relpath(checkout.script, links))
    for script, cwd in (("./first", links), ("./mlops", checkout.folder)):
        report = json.loads(checkout.run(script=script, cwd=cwd).stdout)
        assert report["checkout"] == str(checkout.folder)
    done = checkout.run("mlops", script=checkout.bin / "sh", cwd=checkout.folder)
    assert json.loads(done.stdout)["checkout"] == str(checkout.folder)


def test_relative_home_becomes_absolute(checkout: Checkout, tmp_path: Path) -> None:
    """MLOPS_HOME is taken from where the user stands."""
    done = checkout.run(cwd=tmp_path, MLOPS_HOME="data")
    assert json.loads(done.stdout)["home"] == f"{tmp_path}/data"


def test_second_call_does_nothing(checkout: Checkout) -> None:
    """When all is there nothing is written and nothing is said."""
    first = checkout.run()
    made = (checkout.folder / ".venv/.mlops/made").stat().st_mtime_ns
    second = checkout.run()
    assert ".venv is ready" in first.stderr
    assert second.stderr == ""
    assert (checkout.folder / ".venv/.mlops/made").stat().st_mtime_ns == made


def test_changed_lock_updates_in_place(checkout: Checkout) -> None:
    """A new lock is installed into the environment that running processes use."""
    checkout.run()
    mark = checkout.folder / ".venv" / "mark"
    mark.touch()
    checkout.lock("local", "one", "three")
    assert checkout.report()["packages"] == ["one", "three"]
    assert mark.exists()


def test_test_packages_come_and_stay(checkout: Checkout) -> None:
    """`test` adds the test packages; other commands and a new lock leave them there."""
    assert checkout.report("test")["packages"] == ["one", "two"]
    assert checkout.report("other")["packages"] == ["one", "two"]
    assert checkout.run("test").stderr == ""
    checkout.lock("local", "one", "three")
    checkout.lock("test", "one", "two", "three")
    assert checkout.report("other")["packages"] == ["one", "two", "three"]
    assert checkout.run("test").stderr == ""


def test_test_after_another_command(checkout: Checkout) -> None:
    """`test` in an environment without the test packages adds them in place."""
    checkout.run()
    mark = checkout.folder / ".venv" / "mark"
    mark.touch()
    assert checkout.report("test")["packages"] == ["one", "two"]
    assert mark.exists()


def test_half_made_is_mended(checkout: Checkout) -> None:
    """An environment without its stamp is made anew."""
    checkout.run()
    (checkout.folder / ".venv/.mlops/made").unlink()
    shutil.rmtree(checkout.folder / ".venv" / "lib")
    assert checkout.report()["packages"] == ["one"]


def test_failed_installation_is_mended(checkout: Checkout) -> None:
    """A lock that could not be installed leaves nothing that passes for finished."""
    good = checkout.wheels["one"]
    (checkout.folder / "requirements/local.txt").write_text(good[:-6] + "00000\n")
    assert checkout.run().returncode == 1
    checkout.lock("local", "one")
    assert checkout.report()["packages"] == ["one"]


def test_moved_checkout_is_mended(checkout: Checkout, tmp_path: Path) -> None:
    """After a move the environment is made anew in the new place."""
    checkout.run()
    moved = tmp_path / "moved"
    checkout.folder.rename(moved)
    report = json.loads(checkout.run(script=moved / "mlops").stdout)
    assert report["python"] == f"{moved}/.venv/bin/python"


def test_lost_interpreter_is_mended(checkout: Checkout) -> None:
    """When the interpreter is gone the environment is made anew."""
    checkout.run()
    python = checkout.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert checkout.report()["packages"] == ["one"]


def test_two_at_once_build_once(checkout: Checkout) -> None:
    """Of two first calls at the same time one builds, and both run."""
    calls = [
        subprocess.Popen(
            [checkout.script], env=checkout.environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = "".join(call.communicate(timeout=60)[1] for call in calls)
    assert [call.returncode for call in calls] == [0, 0]
    assert said.count(".venv is ready") == 1


def test_interrupt_leaves_nothing_broken(checkout: Checkout, tmp_path: Path) -> None:
    """Ctrl-C while packages are installed ends with 130, and the next call finishes the work."""
    # A uv that says when it installs and then hangs, as on a slow network.
    fifo = tmp_path / "installing"
    os.mkfifo(fifo)
    uv = checkout.bin / "uv"
    real = uv.readlink()
    uv.unlink()
    uv.write_text(f'#!/bin/sh\n[ "$1" != pip ] || {{ echo >"{fifo}"; read never <"{fifo}"; }}\n'
                  f'exec "{real}" "$@"\n')  # fmt: skip
    uv.chmod(0o755)
    call = subprocess.Popen(
        [checkout.script],
        env=checkout.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    fifo.read_text()
    os.killpg(call.pid, signal.SIGINT)
    said = call.communicate(timeout=30)[1]
    assert call.returncode == 130
    assert "interrupted" in said
    uv.unlink()
    uv.symlink_to(real)
    assert checkout.report()["packages"] == ["one"]


def test_broken_shim_is_skipped(checkout: Checkout) -> None:
    """A python3 that fails when it is run is passed over for the next that works."""
    (checkout.bin / "python3").unlink()
    (checkout.bin / "python3").write_text("#!/bin/sh\nexit 127\n")
    (checkout.bin / "python3").chmod(0o755)
    (checkout.bin / "python3.12").symlink_to(PYTHON)
    assert checkout.report()["packages"] == ["one"]


def test_without_python(checkout: Checkout) -> None:
    """Without an interpreter in range one line says what to install."""
    (checkout.bin / "python3").unlink()
    assert "no Python 3.11, 3.12 or 3.13 on PATH" in one_line(checkout.run())
    assert not (checkout.folder / ".venv").exists()


def test_chosen_interpreter(checkout: Checkout) -> None:
    """MLOPS_PYTHON is used, and kept by later calls that do not name it."""
    (checkout.bin / "python3").unlink()
    assert checkout.run(MLOPS_PYTHON=str(PYTHON)).returncode == 0
    assert checkout.run().stderr == ""


def test_wrong_chosen_interpreter(checkout: Checkout) -> None:
    """A MLOPS_PYTHON that does not work is named, not passed over."""
    assert "MLOPS_PYTHON (/bin/false)" in one_line(checkout.run(MLOPS_PYTHON="/bin/false"))


def test_without_ensurepip(checkout: Checkout, tmp_path: Path) -> None:
    """A Python that cannot make environments, without a uv, gets the package's name."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ensurepip.py").write_text("raise ImportError")
    (checkout.bin / "uv").unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = one_line(checkout.run(PYTHONPATH=str(tmp_path / "broken")))
    assert f"install uv or the package python{version}-venv" in said


def test_home_that_is_not_there(checkout: Checkout) -> None:
    """A HOME that is not a folder is named."""
    assert "HOME (/nowhere)" in one_line(checkout.run(HOME="/nowhere"))
    del checkout.environment["HOME"]
    assert "HOME (not set)" in one_line(checkout.run())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that every user can reach, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.requires("root")
def test_checkout_of_another_user(checkout: Checkout, open_folder: Path) -> None:
    """A checkout that the user cannot write to is refused in one line."""
    folder = open_folder / "clone"
    shutil.copytree(checkout.folder, folder)
    done = subprocess.run(
        [folder / "mlops"],
        env={"HOME": "/tmp", "PATH": "/usr/bin:/bin"},  # noqa: S108  # any writable folder
        user="nobody",
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"you cannot write to {folder}" in one_line(done)


@pytest.mark.requires("package-index")
def test_without_uv(checkout: Checkout) -> None:
    """Without a uv one is installed by pip, by hash, next to the environment."""
    (checkout.bin / "uv").unlink()
    del checkout.environment["UV_OFFLINE"]
    shutil.copy(PROJECT / "requirements" / "bootstrap.txt", checkout.folder / "requirements")
    assert checkout.report()["packages"] == ["one"]
    assert (checkout.folder / ".venv.uv" / "bin" / "uv").exists()
