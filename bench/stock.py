"""The peers: servers as their makers start them, and the PostgreSQL that they use."""

import pwd
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import psycopg2
from measure import wait_until
from platform_under_test import Platform, clean_environment, free_ports

from mlops.local import postgres
from mlops.local.home import HOST, Home
from mlops.local.processes import end_processes, find_processes, memory_bytes

STOP_SECONDS = 20
WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class StockServers:
    """Servers as their makers start them, each in the background until `stop`.

    Args:
        folder: Where they may write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The platform's way of marking its processes finds these too, and all their children.
        self.instance = uuid.uuid4().hex

    def start(
        self, name: str, command: Sequence[str], environment: dict[str, str], account: str = ""
    ) -> None:
        """Start one server.

        Args:
            name: For its log, and to stop it.
            command: Its command line, without secrets.
            environment: What it is told besides a clean environment.
            account: The user it runs as; empty: the current one.
        """
        user = pwd.getpwnam(account) if account else None
        with (self.folder / f"{name}.log").open("a") as log:
            subprocess.Popen(
                command,
                env=clean_environment()
                | environment
                | {"MLOPS_INSTANCE": self.instance, "MLOPS_SERVICE": name},
                cwd="/" if user else self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )

    def start_mlflow(
        self, name: str, database: str, environment: dict[str, str], *arguments: str
    ) -> str:
        """Start `mlflow server` and return its address.

        Args:
            name: For its log, and to stop it.
            database: SQLAlchemy's address of its database.
            environment: What else it is told.
            *arguments: Further arguments.
        """
        (port,) = free_ports(1)
        told = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [*_module("mlflow"), "server", "--port", str(port), *arguments]
        self.start(name, command, told | environment)
        return f"http://{HOST}:{port}"

    def start_prefect(self, name: str, database: str) -> str:
        """Start `prefect server start` and return its address.

        Args:
            name: For its log, and to stop it.
            database: SQLAlchemy's address of its database.
        """
        (port,) = free_ports(1)
        environment = {
            "PREFECT_HOME": str(self.folder / name),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        command = [*_module("prefect"), "server", "start", "--port", str(port)]
        self.start(name, command, environment)
        return f"http://{HOST}:{port}"

    def start_worker(self, name: str, pool: str, environment: dict[str, str]) -> None:
        """Start `prefect worker start` on a process work pool.

        Args:
            name: For its log, and to stop it.
            pool: The work pool, made when missing.
            environment: Where Prefect is, and what flow runs find set.
        """
        command = [*_module("prefect"), "worker", "start", "--pool", pool, "--type", "process"]
        self.start(name, command, environment | {"PREFECT_HOME": str(self.folder / name)})

    def memory(self) -> dict[str, int]:
        """Return the memory of each server in bytes (PSS), with its child processes."""
        return {name: memory_bytes(group) for name, group in find_processes(self.instance).items()}

    def stop(self, name: str) -> None:
        """Stop one server and its children."""
        processes = find_processes(self.instance).get(name, [])
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process.ppid() not in {other.pid for other in processes}:
                    # INT is PostgreSQL's fast shutdown: it does not wait for clients to leave.
                    process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


@contextmanager
def stock_servers(folder: Path) -> Iterator[StockServers]:
    """Make a place for stock servers, and leave nothing of them running."""
    place = folder / "stock"
    place.mkdir()
    servers = StockServers(place)
    try:
        yield servers
    finally:
        end_processes(servers.instance)


def answers(url: str, auth: tuple[str, str] | None = None) -> bool:
    """Return whether a GET is answered with 200."""
    try:
        response = httpx.get(url, auth=auth, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return False
    return response.status_code == httpx.codes.OK


def mlflow_is_ready(url: str, auth: tuple[str, str] | None = None) -> bool:
    """Return whether an MLflow server reads from its database."""
    return answers(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", auth)


def prefect_is_ready(url: str) -> bool:
    """Return whether a Prefect server reaches its database."""
    return answers(f"{url}/api/ready")


class Cluster:
    """A PostgreSQL server in which stock servers get databases of their own.

    Args:
        port: Where it listens.
        password: Of the user `postgres`.
    """

    def __init__(self, port: int, password: str) -> None:
        self._port = port
        self._password = password

    @contextmanager
    def database(self, driver: str) -> Iterator[str]:
        """Create a database and drop it at the end.

        Args:
            driver: SQLAlchemy's name of it, such as `psycopg2`.

        Yields:
            SQLAlchemy's address of it.
        """
        name = f"bench_{uuid.uuid4().hex[:8]}"
        self._execute("postgres", f"CREATE DATABASE {name}")
        self._execute(name, "CREATE EXTENSION pg_trgm")  # as Prefect wants it
        try:
            yield f"postgresql+{driver}://postgres:{self._password}@{HOST}:{self._port}/{name}"
        finally:
            with suppress(psycopg2.OperationalError):  # down: its data goes with its folder
                self._execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def is_ready(self) -> bool:
        """Return whether it answers."""
        try:
            self._execute("postgres", "SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def _execute(self, database: str, statement: str) -> None:
        connection = psycopg2.connect(
            host=HOST, port=self._port, dbname=database, user="postgres", password=self._password
        )
        connection.autocommit = True  # CREATE DATABASE refuses to run inside a transaction
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


def platform_cluster(platform: Platform) -> Cluster:
    """Return the platform's own PostgreSQL, for stock servers that share it."""
    _, state, credentials = platform.situation
    return Cluster(state.ports.postgres, credentials.postgres_password)


@contextmanager
def stock_postgres(folder: Path, servers: StockServers) -> Iterator[Cluster]:
    """Start PostgreSQL with the settings that it comes with, on data of its own.

    Args:
        folder: Where it may write.
        servers: Start it.
    """
    home = Home(folder / "cluster")
    home.create()
    seat = postgres.take_seat(home, servers.instance)
    password = uuid.uuid4().hex
    postgres.create_cluster(seat, password)
    (port,) = free_ports(1)
    command = [str(seat.programs / "postgres"), "-D", str(seat.data), "-c", f"port={port}"]
    # Its socket's usual place may not exist; all else is as it comes.
    command += ["-c", "unix_socket_directories="]
    servers.start("postgres", command, {}, seat.account)
    cluster = Cluster(port, password)
    wait_until(cluster.is_ready, "PostgreSQL")
    try:
        yield cluster
    finally:
        servers.stop("postgres")
