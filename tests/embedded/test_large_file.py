"""A flow folder with a large file in it."""

import os
import pty
import sys
from pathlib import Path
from typing import NamedTuple

from embedded.conftest import Platform, run_cli, shell_environment
from embedded.flow_folders import Servers, write_flow
from embedded.proxies import proxies
from embedded.registered import CRON, assert_registered

LARGE_BYTES = 300_000_000
MORE_MEMORY_BYTES = 200 << 20  # than a registration takes without a large file


class Ended(NamedTuple):
    """How a command on a terminal ended."""

    code: int
    shown: str
    peak_bytes: int  # of memory


def run_on_a_terminal(*arguments: str, environment: dict[str, str]) -> Ended:
    """Run `mlops …` on a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "mlops", *arguments], environment)  # noqa: S606
    shown = b""
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:  # how Linux says that nobody is left at the other end
        pass
    finally:
        os.close(terminal)
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, shown.decode(errors="replace"), usage.ru_maxrss << 10)


def test_large_file_goes_up_in_parts(platform: Platform, tmp_path: Path) -> None:
    """300 MB go up in parts and little memory, with a bar on the terminal and a hint to use DVC."""
    folder = write_flow(tmp_path / "heavy", "pass", more=CRON.format(minute=1))
    environment = platform.environment("scheduler") | {"TERM": "xterm-256color"}
    small = run_on_a_terminal("flows", "register", str(folder), environment=environment)
    assert small.code == 0, small.shown
    with (folder / "model.bin").open("wb") as file:
        file.truncate(LARGE_BYTES)
    with proxies(platform) as between:
        terminal = between.environment | {"TERM": "xterm-256color"}
        done = run_on_a_terminal("flows", "register", str(folder), environment=terminal)
        parts = {
            request.target
            for request in between.s3.requests
            if request.method == "PUT" and "/model.bin?" in request.target
        }
    assert done.code == 0, done.shown
    assert len(parts) == -(-LARGE_BYTES // (8 << 20))
    assert "uploading heavy" in done.shown
    assert "MB/s" in done.shown
    assert "300 MB go up with the code each time" in done.shown
    assert "dvc add model.bin" in done.shown
    assert done.peak_bytes - small.peak_bytes < MORE_MEMORY_BYTES
    assert_registered(Servers(platform), folder)


def test_large_file_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    """`flows check` gives the same hint, without a server."""
    folder = write_flow(tmp_path / "heavy-too", "pass")
    with (folder / "model.bin").open("wb") as file:
        file.truncate(LARGE_BYTES)
    environment = shell_environment(tmp_path / "home", tmp_path)
    done = run_cli("flows", "check", str(folder), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "dvc add model.bin" in done.stderr
