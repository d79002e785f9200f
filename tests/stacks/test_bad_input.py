"""What people get wrong, and the one message that tells them."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stacks.fixtures import ports, wait_for, write_flow
from stacks.hosts import Joined, ServerHost, join
from stacks.projects import STACKS, Host, bridge_address, docker, free_ports

from mlops import __version__
from mlops.ops.join_token import read_token
from mlops.ops.stacks import find_stack

pytestmark = [pytest.mark.requires("docker"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with every `.env`, on which nothing is started."""
    host = Host(tmp_path_factory.mktemp("initialised") / "host", ports())
    host.preset()
    host.init("--bind", bridge_address())
    return host


@contextmanager
def only_env(host: Host, stack: str) -> Iterator[Callable[[str | None], None]]:
    """Replace a stack's `.env`, or the root's, and do without the others, which count there too.

    Yields:
        What writes it; given None, there is none.
    """
    kept = {path: path.read_text() for path in host.folder.rglob(".env")}
    file = host.folder / stack / ".env"

    def give(text: str | None) -> None:
        file.unlink(missing_ok=True)
        if text is not None:
            file.touch(mode=0o600)
            file.write_text(text)

    for path in kept:
        path.unlink()
    try:
        yield give
    finally:
        for path, text in kept.items():
            path.touch(mode=0o600)
            path.write_text(text)


@pytest.mark.parametrize("stack", ["", *STACKS])
def test_compose_answers_whatever_env_says(initialised: Host, stack: str) -> None:
    """`ps`, `logs` and `down` work without a `.env`, and with either half of one."""
    lines = (initialised.folder / stack / ".env").read_text().splitlines(keepends=True)
    values = [line for line in lines if "=" in line]
    texts = [None, "", "".join(values[::2]), "".join(values[1::2]), "".join(lines)]
    project = initialised.project(stack)
    with only_env(initialised, stack) as give:
        for text in texts:
            give(text)
            for command in (("ps", "--all"), ("logs",), ("down",)):
                done = project.compose(*command)
                assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stack", ["", *STACKS])
def test_without_env_one_line_names_init(initialised: Host, stack: str) -> None:
    """Whoever forgot `./mlops init` is told so by `up`, in a line and before anything is built."""
    project = initialised.project(stack)
    with only_env(initialised, stack):
        done = project.compose("up", "--detach", "--wait")
    assert done.returncode != 0
    (told,) = done.stderr.strip().splitlines()
    assert "run ./mlops init first" in told
    assert project.containers() == []


# What each service says when `.env` lacks everything: the names that its container has.
S3_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
LACKING = {
    ("server", "postgres-volume"): ["POSTGRES_PASSWORD"],
    ("server", "minio-volume"): ["MINIO_ROOT_USER"],
    ("server", "setup"): ["POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "MINIO_ROOT_PASSWORD"],
    ("server", "prefect"): ["PREFECT_DB_PASSWORD", "PREFECT_PASSWORD"],
    ("server", "mlflow"): [
        *("MLFLOW_DB_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_AGENT_PASSWORD"),
        *("MLFLOW_EXPERIMENTER_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", *S3_KEY),
    ],
    ("server", "prune"): [*S3_KEY, "PREFECT_PASSWORD"],
    ("flow_scheduler", "flow-scheduler"): [
        *(*S3_KEY, "MLOPS_HOST_NAME", "SERVER_IP", "PREFECT_PASSWORD")
    ],
    ("flow_agent", "flow-agent"): [*S3_KEY, "MLOPS_HOST_NAME", "SERVER_IP", "PREFECT_PASSWORD"],
    ("ml_experimenter", "ml-experimenter"): ["SERVER_IP"],
}
NO_SECRETS = ("MLOPS_INIT", "VOLUME_PREFIX", "FLOW_DIR", "DEV_PROJECTS_DIR", "HOST_UID")


@pytest.mark.parametrize(("stack", "service"), LACKING)
def test_container_names_what_env_lacks(
    images: None, initialised: Host, stack: str, service: str
) -> None:
    """A container that was not given what it needs ends at once, and names it and the mend."""
    _ = images
    values = initialised.env(stack)
    project = initialised.project(stack)
    with only_env(initialised, stack) as give:
        give("".join(f"{name}={values[name]}\n" for name in NO_SECRETS if name in values))
        done = project.compose("run", "--rm", "--no-TTY", "--no-deps", service)
    initialised.remove()
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert not [name for name in LACKING[stack, service] if name not in told], told
    assert "./mlops init" in told
    assert "Traceback" not in told


def test_up_with_half_an_env(images: None, initialised: Host) -> None:
    """`up` fails where a value is missing; what stands by then can be looked at and ended."""
    _ = images
    whole = (initialised.folder / "server" / ".env").read_text()
    server = initialised.project("server")
    told = "MINIO_ROOT_PASSWORD: not set in .env, run ./mlops init"
    try:
        with only_env(initialised, "server") as give:
            give(re.sub("(?m)^MINIO_ROOT_PASSWORD=.*", "MINIO_ROOT_PASSWORD=", whole))
            done = server.compose("up", "--detach", "--wait", timeout=240)
            assert done.returncode != 0
            assert 'service "minio-volume" didn\'t complete successfully' in done.stderr
            # Docker may still be writing down what the job has said.
            wait_for(lambda: told in server.compose("logs").stdout, 30)
            give(None)
            assert "healthy" in server.compose("ps").stdout
            assert told in server.compose("logs").stdout
            assert server.compose("down").returncode == 0
            assert server.containers() == []
    finally:
        initialised.remove()


def test_renamed_variable(initialised: Host) -> None:
    """`init` says what a mistyped name was meant to be, instead of making another secret."""
    file = initialised.folder / "server" / ".env"
    whole = file.read_text()
    root = initialised.folder / ".env"
    kept = root.read_text()
    try:
        for each in (file, root):
            text = each.read_text()
            each.write_text(text.replace("\nPOSTGRES_PASSWORD=", "\nPOSTGRES_PASWORD="))
        done = initialised.mlops("init", "server")
        assert done.returncode == 1
        assert "POSTGRES_PASWORD: not known; did you mean POSTGRES_PASSWORD?" in done.stderr
    finally:
        file.write_text(whole)
        root.write_text(kept)


def test_tokens_that_are_not_accepted(initialised: Host, tmp_path: Path) -> None:
    """A token that is no token, cut off, another role's or expired gives no `.env`, and says so."""
    token = initialised.mlops("join", "agent").stdout.strip()
    old = read_token(token, find_stack("agent")).model_copy(update={"expires": 1}).encode()
    other = Host(tmp_path / "other")
    for role, given, message in (
        ("agent", "a word", "that is no join token"),
        ("agent", token[:-1], "the join token is damaged"),
        ("scheduler", token, "the join token is for the role agent, not scheduler"),
        ("agent", old, "the join token expired at 1970-01-01 00:00 UTC"),
    ):
        done = other.mlops("init", role, "--join", "-", stdin=given)
        assert done.returncode == 1
        assert message in done.stderr
        assert not list(other.folder.rglob(".env"))


@pytest.mark.usefixtures("images")
def test_port_that_is_taken(initialised: Host) -> None:
    """Docker names the port that another program has."""
    server = initialised.project("server")
    taken = (bridge_address(), int(initialised.env("server")["S3_PORT"]))
    with socket.create_server(taken):
        try:
            done = server.compose("up", "--detach", "--wait", timeout=240)
        finally:
            initialised.remove()
    assert done.returncode != 0
    assert f"{taken[0]}:{taken[1]}" in done.stderr
    assert re.search("address already in use|port is already allocated", done.stderr)


@pytest.fixture(scope="module")
def stranger(images: None) -> Iterator[str]:
    """The port, on the bridge's address, of a web server that is none of ours."""
    _ = images
    (port,) = free_ports(1)
    container = docker(
        *("run", "--detach", "--rm", "--publish", f"{bridge_address()}:{port}:8000"),
        *("python:3.11.14-slim-bookworm", "python", "-m", "http.server", "8000"),
    ).strip()
    yield str(port)
    docker("rm", "--force", container)


def point(joined: Joined, **values: str) -> None:
    """Change lines of a joined host's `.env`."""
    file = joined.project.folder / ".env"
    text = file.read_text()
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name}=.*$", f"{name}={value}", text)
        assert count == 1, name
    file.write_text(text)


@pytest.mark.parametrize("role", ["agent", "scheduler"])
@pytest.mark.parametrize("answers", ["something else", "nothing"])
def test_server_that_is_none(
    initialised: Host, stranger: str, tmp_path: Path, role: str, answers: str
) -> None:
    """Who is pointed somewhere else says what answered there, and where that is set."""
    joined = join(initialised, tmp_path / "host", role)
    port = stranger if answers == "something else" else str(free_ports(1)[0])
    point(joined, PREFECT_PORT=port)
    write_flow(joined.host.folder / "flows" / "waiting")
    message = {
        "something else": r"is no server of this platform; there answers SimpleHTTP\S*.* with 404",
        "nothing": r"the Prefect server does not answer \(.*[Cc]onnection refused",
    }[answers]
    try:
        done = joined.project.compose("up", "--detach")
        assert done.returncode == 0, done.stderr
        told = wait_for(lambda: re.search(message, joined.project.logs()), 60)
        assert told
        logs = joined.project.logs()
        assert f"http://{bridge_address()}:{port}/api" in logs
        assert "SERVER_IP" in logs
        assert "Traceback" not in logs
    finally:
        joined.host.remove()


def once(joined: Joined, service: str, *options: str, **variables: str) -> str:
    """Start a service in the foreground, which must refuse to, and return what it says."""
    done = joined.project.compose(
        *("run", "--rm", "--no-TTY", *options, service), timeout=120, **variables
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def agent(server_host: ServerHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """An agent's host that has joined a server which is up."""
    joined = join(server_host.host, tmp_path_factory.mktemp("agent") / "host", "agent")
    yield joined
    joined.host.remove()


@pytest.mark.parametrize("role", ["agent", "scheduler"])
def test_client_that_is_newer_than_the_server(
    server_host: ServerHost, tmp_path: Path, role: str
) -> None:
    """A newer agent or scheduler does not start, and says which of the two to update."""
    joined = join(server_host.host, tmp_path / "host", role)
    newer = tmp_path / "__init__.py"
    newer.write_text('__version__ = "99.0.0"\n')
    place = "/opt/mlops/code/mlops/__init__.py"
    try:
        told = once(joined, f"flow-{role}", "--volume", f"{newer}:{place}:ro")
    finally:
        joined.host.remove()
    assert f"the server is mlops {__version__}, older than this one, 99.0.0" in told
    assert "update the server first" in told


@pytest.mark.parametrize(
    ("name", "message", "mend"),
    [
        ("PREFECT_PASSWORD", "the Prefect server refused these credentials", "PREFECT_PASSWORD"),
        ("AGENT_S3_SECRET_ACCESS_KEY", "refused these S3 credentials", "<ROLE>_S3_"),
        (
            "MLFLOW_AGENT_PASSWORD",
            "the MLflow server refused these credentials",
            "MLFLOW_<ROLE>_PASSWORD",
        ),
    ],
)
def test_wrong_secret(agent: Joined, name: str, message: str, mend: str) -> None:
    """An agent with a secret that its server does not know does not start, and says which."""
    told = once(agent, "flow-agent", **{name: "wrong"})
    assert message in told
    assert mend in told
