"""What `.ci/run` does with what goes wrong, on a machine whose programs are stand-ins."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
# What Debian has in any case.
ESSENTIAL = "cat date dirname mkdir rm sh tail"
INSTALLED = "apt-get chromium docker dockerd git go minio-client mmdebstrap python3"


class Machine:
    """A checkout and the only programs that are there.

    Args:
        folder: Gets both.
    """

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.programs = folder / "programs"
        self.output = folder / "output"
        for made in (self.checkout / ".ci", self.checkout / "offline", self.programs):
            made.mkdir(parents=True)
        shutil.copy(SCRIPT, self.checkout / ".ci")
        for name in ESSENTIAL.split():
            (self.programs / name).symlink_to(shutil.which(name) or "")
        for name in INSTALLED.split():
            self.write(self.programs / name, "true")
        self.write(self.checkout / "offline" / "build", "true")
        self.write(self.checkout / "mlops", "true")

    def write(self, program: Path, text: str) -> None:
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / ".ci" / "run"],
            env={"PATH": str(self.programs), "MLOPS_TEST_OUTPUT": str(self.output)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which everything is there and works."""
    return Machine(tmp_path)


def test_all_is_well(machine: Machine) -> None:
    """The phases follow each other, the images' sizes are told, and packages stay in their log."""
    machine.write(machine.programs / "apt-get", "echo of no interest")
    machine.write(machine.programs / "docker", 'echo "docker $*"')
    done = machine.run()
    assert done.returncode == 0
    phases = [line for line in done.stdout.splitlines() if line.startswith("==")]
    assert [line.split(":")[0] for line in phases if "exit 0" in line] == phases[::2]
    assert phases[::2][-1] == "== checks"
    assert "docker image ls" in done.stdout
    assert "of no interest" not in done.stdout
    assert "of no interest" in (machine.output / "apt.log").read_text()


def test_package_lists_that_cannot_be_fetched(machine: Machine) -> None:
    """A phase ends with the first command that fails in it, and its log is shown."""
    machine.write(
        machine.programs / "apt-get",
        '[ "$1" != update ] || { echo "no such mirror"; exit 100; }; echo installed',
    )
    (machine.programs / "chromium").unlink()
    done = machine.run()
    assert done.returncode == 100
    assert "no such mirror" in done.stdout
    assert "installed" not in done.stdout
    assert "== docker" not in done.stdout


def test_failed_tests_show_what_containers_said(machine: Machine) -> None:
    """The exit code is the tests' own, and nothing of an earlier run is shown."""
    said = machine.output / "containers"
    said.mkdir(parents=True)
    (said / "earlier.log").write_text("an old story")
    machine.write(
        machine.checkout / "mlops",
        f"[ \"$2\" != --retry ] || {{ mkdir {said}; echo 'a new story' >{said}/new.log; exit 7; }}",
    )
    machine.write(machine.programs / "docker", 'echo "docker $*"')
    done = machine.run()
    assert done.returncode == 7
    assert "a new story" in done.stdout
    assert "an old story" not in done.stdout
    assert "docker image ls" in done.stdout


def test_daemon_is_ended_by_who_started_it(machine: Machine, tmp_path: Path) -> None:
    """Docker's daemon is started where none answers, and does not outlive the run."""
    pid = machine.output / "dockerd.pid"
    os.mkfifo(tmp_path / "ended")
    machine.write(machine.programs / "docker", f"[ -f {pid} ]")
    machine.write(
        machine.programs / "dockerd",
        f"trap 'echo yes >{tmp_path}/ended; exit' TERM\n"
        f"echo $$ >{pid}; while :; do sleep 0.1; done",
    )
    (machine.programs / "sleep").symlink_to(shutil.which("sleep") or "")
    done = machine.run()
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "ended").read_text() == "yes\n"  # waits for it
