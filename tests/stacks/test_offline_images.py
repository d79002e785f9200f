"""The images of `offline/build`, held to the contracts of the ones whose names they bear."""

import gzip
import lzma
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from stacks.fixtures import wait_for
from stacks.projects import CHECKOUT, container_log, docker

BUILD = CHECKOUT / "offline" / "build"
PYTHON, POSTGRES, MINIO = subprocess.run(
    [BUILD, "--list"], capture_output=True, text=True, check=True
).stdout.split()
PASSWORD = "made-up"
DATA = "/var/lib/postgresql/data"
# As the server stack runs it.
LOCKED_DOWN = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp",
    "--tmpfs=/var/run/postgresql",
    "--user=postgres",
)

pytestmark = [
    pytest.mark.requires("docker", "go", "mmdebstrap"),
    pytest.mark.timeout(1800),
]


class Containers:
    """Containers and volumes that are removed at the end."""

    def __init__(self) -> None:
        self.prefix = f"mlops-offline-{uuid.uuid4().hex[:8]}"
        self.names: list[str] = []
        self.volumes: list[str] = []

    def volume(self) -> str:
        """Name a new volume."""
        self.volumes.append(f"{self.prefix}-volume-{len(self.volumes)}")
        return self.volumes[-1]

    def start(self, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a container in the background."""
        self.names.append(f"{self.prefix}-{len(self.names)}")
        docker("run", "--detach", f"--name={self.names[-1]}", *options, image, *command)
        return self.names[-1]

    def end(self, name: str) -> tuple[int, str]:
        """Wait for a container's end and return its exit code and what it said."""
        return int(docker("wait", name)), container_log(name)

    def remove(self) -> None:
        """Remove them all."""
        if self.names:
            docker("rm", "--force", "--volumes", *self.names, check=False)
        if self.volumes:
            docker("volume", "rm", "--force", *self.volumes, check=False)


@pytest.fixture
def containers() -> Iterator[Containers]:
    """Containers of this test."""
    started = Containers()
    yield started
    started.remove()


@pytest.fixture(scope="session", autouse=True)
def _images() -> None:
    """Make the images that are not there."""
    subprocess.run([BUILD], check=True)


def in_python(script: str, *options: str) -> str:
    """Run a shell script in the Python base image."""
    return docker("run", "--rm", *options, PYTHON, "sh", "-euc", script)


# The program itself -------------------------------------------------------------------------------


def test_an_image_that_is_there_is_not_made_again() -> None:
    """A second call finds the images up to date."""
    before = docker("image", "inspect", "--format={{.Id}}", PYTHON)
    said = subprocess.run([BUILD], capture_output=True, text=True, check=True).stdout
    assert said.count("is up to date") == 3
    assert docker("image", "inspect", "--format={{.Id}}", PYTHON) == before


def test_mirror_that_cannot_be_reached(tmp_path: Path) -> None:
    """Without the mirror one line says so, the old image stays and no file is left."""
    before = docker("image", "inspect", "--format={{.Id}}", PYTHON)
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [BUILD, "--force", "python"],
        env=os.environ | {"http_proxy": nowhere, "https_proxy": nowhere, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("offline/build: the Debian mirror cannot be reached")
    assert done.stderr.count("\n") == 1
    assert docker("image", "inspect", "--format={{.Id}}", PYTHON) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.requires("mount")
def test_disk_that_is_full(tmp_path: Path) -> None:
    """A temporary folder that is too small is named before anything is fetched."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        done = subprocess.run(
            [BUILD, "--force", "python"],
            env=os.environ | {"TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert done.returncode == 1
    assert f"the disk is full: {tmp_path} has 0.0 GB free" in done.stderr


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """A build that is ended midway takes its processes and its folder with it."""
    with subprocess.Popen(
        [BUILD, "--force", "python"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: any(tmp_path.glob("*/mmdebstrap.*/var/lib/dpkg")), 120)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "offline/build: interrupted\n"
    assert list(tmp_path.iterdir()) == []


# The Python base ----------------------------------------------------------------------------------


def test_python_has_its_names() -> None:
    """`python`, `python3` and `pip` are there, and `python` is the image's first."""
    said = in_python("python --version; python3 --version; pip --version; command -v python")
    assert said.count("Python 3.11.") == 2
    assert said.splitlines()[-1] == "/usr/local/bin/python"


def test_python_makes_environments_and_installs() -> None:
    """An environment is made with a pip in it, and pip may install beside it, too."""
    script = """
        python -m venv /tmp/venv
        /tmp/venv/bin/python -m pip --version
        pip install --quiet --root-user-action=ignore six
        python -c 'import six'
    """
    assert "from /tmp/venv/lib" in in_python(script)


def test_builds_install_debian_packages() -> None:
    """A build installs a package by apt-get, and no downloads remain."""
    script = """
        apt-get update --quiet=2
        apt-get install --quiet=2 --yes --no-install-recommends tini >/dev/null
        tini --version
        ls /var/cache/apt/archives
    """
    said = in_python(script)
    assert "tini version" in said
    assert ".deb" not in said


@pytest.mark.requires("own-authorities")
def test_the_machines_authorities_are_trusted() -> None:
    """Authorities that were added to this machine are trusted by bundle and by folder."""
    for path in Path("/usr/local/share/ca-certificates").rglob("*.crt"):
        for where in ("-CApath /etc/ssl/certs", "-CAfile /etc/ssl/certs/ca-certificates.crt"):
            said = in_python(f"openssl verify {where} /own.crt", f"--volume={path}:/own.crt:ro")
            assert said == "/own.crt: OK\n"


def test_images_hold_no_lists_and_no_credentials() -> None:
    """Nothing of apt's cache, no proxy and no password of this machine is in the image."""
    said = in_python("""
        find /var/lib/apt/lists /var/cache/apt -type f ! -name lock
        grep -riE 'proxy|//[^/ ]*@' /etc/apt || true""")
    assert said == ""


# PostgreSQL ---------------------------------------------------------------------------------------


def query(name: str, sql: str, user: str = "postgres", database: str = "") -> str:
    """Ask a database in a container, over its network."""
    return docker(
        "exec",
        f"--env=PGPASSWORD={PASSWORD}",
        name,
        "sh",
        "-c",
        'exec psql --host="$(hostname -i)" --no-psqlrc --tuples-only --no-align "$@"',
        "psql",
        f"--username={user}",
        f"--dbname={database or user}",
        f"--command={sql}",
    ).strip()


def wait_until_ready(name: str) -> None:
    """Wait for the server; the temporary one of the first start does not answer over TCP."""
    ready = ("exec", name, "pg_isready", "--host=127.0.0.1")
    wait_for(lambda: "accepting connections" in docker(*ready, check=False), 120)


def zstd(content: bytes) -> bytes:
    """Pack less than 256 bytes as they are: a frame with one raw block (RFC 8878)."""
    block = len(content) << 3 | 1
    return b"\x28\xb5\x2f\xfd\x20%c%b%b" % (len(content), block.to_bytes(3, "little"), content)


@pytest.fixture
def init_folder(tmp_path: Path) -> Path:
    """Return an init folder with a script of every kind."""
    # The container's user reaches it, as it does not pytest's own.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    folder = tmp_path / "init"
    folder.mkdir()
    (folder / "1.sql").write_text("CREATE TABLE found (name text);")
    (folder / "2.sql.gz").write_bytes(gzip.compress(b"INSERT INTO found VALUES ('gz');"))
    (folder / "2.sql.xz").write_bytes(lzma.compress(b"INSERT INTO found VALUES ('xz');"))
    (folder / "2.sql.zst").write_bytes(zstd(b"INSERT INTO found VALUES ('zst');"))
    (folder / "3.sh").write_text(
        '#!/bin/sh\npsql --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" '
        "--command=\"INSERT INTO found VALUES ('run')\"\n"
    )
    (folder / "3.sh").chmod(0o755)
    (folder / "4.sh").write_text("docker_process_sql <<<\"INSERT INTO found VALUES ('sourced')\"\n")
    (folder / "5.txt").write_text("no script")
    return folder


def test_first_start(containers: Containers, init_folder: Path, tmp_path: Path) -> None:
    """Names and password come from files, the init folder runs once, and a restart keeps data."""
    arguments = "--auth=scram-sha-256 --data-checksums"
    secrets = {"USER": "owner", "PASSWORD": PASSWORD, "DB": "things", "INITDB_ARGS": arguments}
    for name, value in secrets.items():
        (tmp_path / name).write_text(value + "\n")
        (tmp_path / name).chmod(0o600)
    name = containers.start(
        POSTGRES,
        options=(
            f"--volume={containers.volume()}:{DATA}",
            f"--volume={tmp_path}:/run/secrets:ro",
            f"--volume={init_folder}:/docker-entrypoint-initdb.d:ro",
            *(f"--env=POSTGRES_{name}_FILE=/run/secrets/{name}" for name in secrets),
        ),
    )
    wait_until_ready(name)
    names = "SELECT string_agg(name, ' ') FROM found"
    assert query(name, names, "owner", "things") == "gz xz zst run sourced"
    assert query(name, "SHOW data_checksums", "owner", "things") == "on"
    assert docker("exec", name, "id", "-u", "postgres") == "999\n"
    process = docker("exec", name, "stat", "--format=%U", "/proc/1")
    assert process == "postgres\n"
    docker("restart", name)
    wait_until_ready(name)
    assert query(name, names, "owner", "things") == "gz xz zst run sourced"
    said = container_log(name)
    assert said.count("running /docker-entrypoint-initdb.d/1.sql") == 1
    assert said.count("passing over /docker-entrypoint-initdb.d/5.txt") == 1


def test_wrong_password_is_refused(containers: Containers) -> None:
    """Over the network only the right password is let in."""
    name = containers.start(POSTGRES, options=("--env=POSTGRES_PASSWORD=another",))
    wait_until_ready(name)
    with pytest.raises(AssertionError, match="password authentication failed"):
        query(name, "SELECT 1")


def test_locked_down_as_postgres(containers: Containers) -> None:
    """It runs as postgres on a new volume, read-only and without capabilities, twice."""
    volume = containers.volume()
    options = (*LOCKED_DOWN, f"--env=POSTGRES_PASSWORD={PASSWORD}", f"--volume={volume}:{DATA}")
    first = containers.start(POSTGRES, options=options)
    wait_until_ready(first)
    query(first, "CREATE TABLE kept ()")
    docker("stop", first)
    assert docker("inspect", "--format={{.State.ExitCode}}", first) == "0\n"
    second = containers.start(POSTGRES, "-c", "max_connections=7", options=options)
    wait_until_ready(second)
    assert query(second, "SHOW max_connections") == "7"
    assert query(second, "SELECT count(*) FROM kept") == "0"


def test_programs(containers: Containers) -> None:
    """The programs that the stack and its backups call are on PATH."""
    name = containers.start(POSTGRES, "tail", "-f", "/dev/null")
    for program in ("bash", "flock", "pg_dump", "pg_isready", "pg_restore", "psql"):
        assert program in docker("exec", name, program, "--version")


def test_only_asked_for_its_version() -> None:
    """A question about the program makes no database, and any other command is run as it is."""
    said = docker("run", "--rm", POSTGRES, "postgres", "--version")
    assert said.startswith("postgres (PostgreSQL) 17.")
    assert docker("run", "--rm", POSTGRES, "id", "-u") == "0\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"),
        (
            ("--env=POSTGRES_PASSWORD=a", "--env=POSTGRES_PASSWORD_FILE=/b"),
            "both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are set",
        ),
        (("--env=POSTGRES_PASSWORD_FILE=/nowhere",), "/nowhere cannot be read"),
        (
            ("--env=POSTGRES_PASSWORD=a", "--env=PGDATA=/etc"),
            "/etc is not empty and holds no database",
        ),
        (
            ("--env=POSTGRES_PASSWORD=a", "--user=postgres", f"--tmpfs={DATA}"),
            f"{DATA} belongs to root and not to postgres",
        ),
    ],
)
def test_refusals(containers: Containers, options: tuple[str, ...], message: str) -> None:
    """What cannot be done is said, and ends the container with 1."""
    code, said = containers.end(containers.start(POSTGRES, options=options))
    assert (code, message in said) == (1, True), said


def test_start_without_passwords(containers: Containers) -> None:
    """POSTGRES_HOST_AUTH_METHOD=trust needs no password, and is warned about."""
    name = containers.start(POSTGRES, options=("--env=POSTGRES_HOST_AUTH_METHOD=trust",))
    wait_until_ready(name)
    assert query(name, "SELECT 1") == "1"
    assert "warning: POSTGRES_HOST_AUTH_METHOD=trust" in container_log(name)


def test_first_start_that_was_killed(containers: Containers, init_folder: Path) -> None:
    """A first start that was killed in an init script is told and made again."""
    hanging = init_folder / "9.sh"
    hanging.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    hanging.chmod(0o755)
    name = containers.start(
        POSTGRES,
        options=(
            *LOCKED_DOWN,
            f"--env=POSTGRES_PASSWORD={PASSWORD}",
            f"--volume={containers.volume()}:{DATA}",
            f"--volume={init_folder}:/docker-entrypoint-initdb.d:ro",
        ),
    )
    wait_for(lambda: "running /docker-entrypoint-initdb.d/9.sh" in container_log(name), 120)
    docker("kill", name)
    hanging.write_text("#!/bin/sh\n")
    docker("start", name)
    wait_until_ready(name)
    assert "was cut short: making the database again" in container_log(name)
    assert query(name, "SELECT string_agg(name, ' ') FROM found") == "gz xz zst run sourced"


def test_init_script_that_fails(containers: Containers, init_folder: Path) -> None:
    """A failed script ends the start and is named, and the next start does not pass it over."""
    (init_folder / "4.sh").write_text("false\ntrue\n")
    name = containers.start(
        POSTGRES,
        options=(
            f"--env=POSTGRES_PASSWORD={PASSWORD}",
            f"--volume={init_folder}:/docker-entrypoint-initdb.d:ro",
        ),
    )
    for times in (1, 2):
        code, said = containers.end(name)
        assert code == 1
        assert said.count("4.sh did not end well") == times
        docker("start", name)


def test_two_first_starts_at_once(containers: Containers, init_folder: Path) -> None:
    """Of two containers on one new volume the second is refused and harms nothing."""
    waiting = init_folder / "9.sh"
    waiting.write_text("#!/bin/sh\nuntil [ -e /tmp/go-on ]; do sleep 0.1; done\n")
    waiting.chmod(0o755)
    options = (
        f"--env=POSTGRES_PASSWORD={PASSWORD}",
        f"--volume={containers.volume()}:{DATA}",
        f"--volume={init_folder}:/docker-entrypoint-initdb.d:ro",
    )
    first = containers.start(POSTGRES, options=options)
    wait_for(lambda: "running /docker-entrypoint-initdb.d/9.sh" in container_log(first), 120)
    code, said = containers.end(containers.start(POSTGRES, options=options))
    assert code == 1
    assert "another container is making the database" in said
    docker("exec", first, "touch", "/tmp/go-on")  # noqa: S108  # in the container
    wait_until_ready(first)
    assert query(first, "SELECT string_agg(name, ' ') FROM found") == "gz xz zst run sourced"


# MinIO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("server", "/data"), ("minio", "server", "/data")])
def test_objects(containers: Containers, command: tuple[str, ...]) -> None:
    """As any user and read-only, it keeps objects, is healthy and knows its client."""
    name = containers.start(
        MINIO,
        *command,
        "--address=:9000",
        "--console-address=:9001",
        options=(
            "--read-only",
            "--cap-drop=ALL",
            "--user=12345:12345",
            "--tmpfs=/tmp",
            "--tmpfs=/data:uid=12345",
            "--env=MINIO_ROOT_USER=root-user",
            f"--env=MINIO_ROOT_PASSWORD={PASSWORD}-{PASSWORD}",
            "--publish=127.0.0.1::9000",
            "--publish=127.0.0.1::9001",
        ),
    )
    ready = ("exec", name, "mc", "ready", "local")
    wait_for(lambda: "is ready" in docker(*ready, check=False), 120)
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{docker('port', name, '9000').strip()}",
        aws_access_key_id="root-user",
        aws_secret_access_key=f"{PASSWORD}-{PASSWORD}",
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}),
    )
    s3.create_bucket(Bucket="things")
    s3.put_object(Bucket="things", Key="a/b", Body=b"content")
    assert s3.get_object(Bucket="things", Key="a/b")["Body"].read() == b"content"
    console = docker("exec", name, "mc", "ping", "--count=1", "local")
    assert "http://localhost:9000" in console


def test_minio_knows_its_version() -> None:
    """The release is that of the module, and no development build."""
    said = docker("run", "--rm", MINIO, "--version")
    assert "RELEASE.2026-02-12T20-18-48Z" in said
