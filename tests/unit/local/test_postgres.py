import os
import subprocess
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.local.postgres import Seat, clear_stale_lock, command, create_cluster


def _seat(folder: Path) -> Seat:
    (folder / "data").mkdir()
    return Seat(folder, Path("/programs"), "")


def test_server_listens_on_the_loopback_only_and_keeps_statements_out_of_the_log(
    tmp_path: Path,
) -> None:
    """The options that matter for safety are on the command line, durability is untouched."""
    line = " ".join(command(_seat(tmp_path), 5432))
    assert "listen_addresses=127.0.0.1" in line
    assert "unix_socket_directories= " in line
    assert "log_min_error_statement=panic" in line
    assert "fsync" not in line
    assert "synchronous_commit" not in line


@pytest.mark.parametrize("content", ["{pid}\n/data\n", "999999999\n", "", "nonsense"])
def test_lock_file_of_a_dead_server_is_removed(tmp_path: Path, content: str) -> None:
    """A number that now belongs to another program, or to none, does not stop the start."""
    seat = _seat(tmp_path)
    lock = seat.data / "postmaster.pid"
    lock.write_text(content.format(pid=os.getpid()))
    clear_stale_lock(seat)
    assert not lock.exists()
    clear_stale_lock(seat)


def test_lock_file_of_a_running_server_is_respected(tmp_path: Path) -> None:
    """A PostgreSQL that works in this very folder is named."""
    seat = _seat(tmp_path)
    program = tmp_path / "postgres"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"], cwd=seat.data) as process:
        (seat.data / "postmaster.pid").write_text(f"{process.pid}\n")
        try:
            with pytest.raises(MlopsError, match=f"pid {process.pid}"):
                clear_stale_lock(seat)
        finally:
            process.kill()
    assert (seat.data / "postmaster.pid").exists()


def test_programs_that_do_not_run_are_named(tmp_path: Path) -> None:
    """A broken installation is no bug of ours."""
    program = tmp_path / "postgres"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(MlopsError, match="broken"):
        create_cluster(Seat(tmp_path, tmp_path, ""), "secret")
