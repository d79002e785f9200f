"""What `offline/build` says where something is missing; its images are tested with Docker."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
OFFLINE = PROJECT / "offline"


def build(*arguments: str, tools: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it with the programs of one folder."""
    return subprocess.run(
        [sys.executable, OFFLINE / "build", *arguments],
        env={"PATH": str(tools), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder with stand-ins for the tools; those that are run before others fail."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("docker", "go", "mmdebstrap", "newuidmap"):
        (folder / name).write_text("#!/bin/sh\necho 'go version go1.26'\n")
        (folder / name).chmod(0o755)
    return folder


def test_list(tmp_path: Path) -> None:
    """`--list` prints the tags, of a choice if asked, and needs nothing."""
    everything = build("--list", tools=tmp_path).stdout.splitlines()
    assert len(everything) == 3
    assert build("--list", "postgres", tools=tmp_path).stdout.splitlines() == everything[1:2]


def test_tags_are_those_that_the_stacks_name(tmp_path: Path) -> None:
    """Every image that a Dockerfile or a compose file takes from elsewhere is made here."""
    dockerfiles = "".join(path.read_text() for path in PROJECT.glob("*/Dockerfile"))
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfiles, re.MULTILINE))
    named = set(re.findall(r"^FROM (\S+)", dockerfiles, re.MULTILINE)) - stages
    for path in PROJECT.glob("*/compose.yaml"):
        images = re.findall(r"^\s*image: *\"?([^\s\"]+)", path.read_text(), re.MULTILINE)
        # `${NAME:-image}` is the image.
        named |= {re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", image) for image in images}
    # Those that begin with `${` are stages, chosen by a build argument.
    ours = {image for image in named if image.startswith(("mlops-", "${"))}
    assert named - ours == set(build("--list", tools=tmp_path).stdout.split())


def test_unknown_image(tmp_path: Path) -> None:
    """A wrong name is answered with the right ones."""
    done = build("redis", tools=tmp_path)
    assert done.returncode == 2
    assert "no image is called redis; there are python, postgres, minio" in done.stderr


@pytest.mark.parametrize(
    ("missing", "mend"),
    [
        ("docker", "docker is not installed: Debian's packages are docker.io and docker-cli"),
        ("mmdebstrap", "mmdebstrap is not installed: apt-get install mmdebstrap"),
        ("go", "go is not installed: install Go 1.24 or newer"),
    ],
)
def test_missing_tool(tools: Path, missing: str, mend: str) -> None:
    """A tool that is not there is named in one line, with its package."""
    (tools / missing).unlink()
    done = build(tools=tools)
    assert done.returncode == 1
    assert done.stderr.startswith(f"offline/build: {mend}")
    assert done.stderr.count("\n") == 1


def test_old_go(tools: Path) -> None:
    """A Go that cannot fetch the version which MinIO asks for is refused."""
    (tools / "go").write_text("#!/bin/sh\necho 'go version go1.19.8 linux/amd64'\n")
    assert "go is too old (go version go1.19.8" in build(tools=tools).stderr


def test_go_that_may_not_fetch_a_newer_one() -> None:
    """A Go that is kept from fetching the version which MinIO asks for is told how to."""
    said = "go: x@v1: x@v1 requires go >= 1.24.8 (running go 1.22.2; GOTOOLCHAIN=local)"
    script = f"import commands; commands.run(['sh', '-c', 'echo \"$0\" >&2; exit 1', {said!r}])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=OFFLINE, capture_output=True, text=True, check=False
    )
    message = done.stderr.splitlines()[-1]
    assert "run it with GOTOOLCHAIN=auto" in message
    assert said in message


def test_go_is_for_minio_only(tools: Path) -> None:
    """The other images are made without Go."""
    (tools / "go").unlink()
    (tools / "docker").write_text("#!/bin/sh\necho no daemon >&2\nexit 1\n")
    assert "the Docker daemon does not answer" in build("python", tools=tools).stderr


@pytest.mark.requires("docker")
def test_daemon_that_does_not_answer(tools: Path) -> None:
    """A daemon that is not there is told with what the client said."""
    real = shutil.which("docker")
    assert real
    (tools / "docker").unlink()
    (tools / "docker").symlink_to(real)
    done = build(tools=tools, DOCKER_HOST="unix:///nowhere", HOME=str(tools))
    assert done.returncode == 1
    assert "the Docker daemon does not answer: start it" in done.stderr
    assert "/nowhere" in done.stderr


@pytest.mark.requires("root")
def test_not_root(tools: Path, tmp_path: Path) -> None:
    """Without root and without user namespaces' tools both ways are named."""
    (tools / "newuidmap").unlink()
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import machine; machine.check()"],
        env={"PATH": str(tools), "PYTHONPATH": str(OFFLINE), "PYTHONDONTWRITEBYTECODE": "1"},
        user="nobody",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "not root: run it as root, or install uidmap" in done.stderr


class Apt:
    """A machine's apt configuration in a folder."""

    def __init__(self, folder: Path) -> None:
        self.etc = folder / "etc"
        (self.etc / "sources.list.d").mkdir(parents=True)
        (folder / "lists" / "partial").mkdir(parents=True)
        self.configuration = folder / "apt.conf"
        self.configuration.write_text(
            f'Dir::Etc "{self.etc}";\nDir::State::lists "{folder}/lists";\n'
            'Acquire::http::Proxy "http://user:secret@proxy.test:3128";\n'
        )

    def ask(self, question: str) -> str:
        """Evaluate an expression on the module `machine` there."""
        return subprocess.run(
            [sys.executable, "-c", f"import machine; print({question})"],
            cwd=OFFLINE,
            env=os.environ | {"APT_CONFIG": str(self.configuration)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.rstrip("\n")

    def suites(self, suite: str) -> list[str]:
        """Return the addresses and suites that are derived for a suite."""
        question = f"*(f'{{s.address}} {{s.suite}}' for s in machine.sources({suite!r})), sep='\\n'"
        return self.ask(question).splitlines()


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    """An apt configuration without sources."""
    return Apt(tmp_path)


@pytest.mark.requires("apt")
def test_newer_suite_comes_from_the_machines_sources(apt: Apt) -> None:
    """Each of Debian's sources is taken for the suite that is wanted, in either format."""
    (apt.etc / "sources.list").write_text(
        "deb [arch=amd64,arm64] http://mirror.test/debian bookworm main contrib\n"
        "deb-src http://mirror.test/debian bookworm main\n"
        "deb http://mirror.test/security bookworm-security main\n"
        "deb http://mirror.test/debian bookworm-backports main\n"
        "deb http://other.test/ bookworm stable\n"
    )
    (apt.etc / "sources.list.d" / "new.sources").write_text(
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie trixie-updates\n"
        "Components: main\n"
    )
    assert apt.suites("trixie") == [
        "http://mirror.test/debian/ trixie",
        "http://mirror.test/security/ trixie-security",
        "http://mirror.test/debian/ trixie-updates",
    ]


@pytest.mark.requires("apt")
def test_machine_that_is_not_debian(apt: Apt) -> None:
    """Where no source is Debian's none is derived."""
    (apt.etc / "sources.list").write_text("deb http://mirror.test/ubuntu noble main universe\n")
    assert apt.suites("trixie") == []


@pytest.mark.requires("apt")
def test_credentials_stay_on_the_machine(apt: Apt) -> None:
    """The address' password and the proxy are used to fetch, and are not kept in images."""
    address = "http://user:secret@mirror.test/debian"
    (apt.etc / "sources.list").write_text(f"deb {address} bookworm main\n")
    assert address in apt.ask("machine.sources('bookworm')[0].line")
    stanza = apt.ask("machine.sources('bookworm')[0].stanza")
    assert "URIs: http://mirror.test/debian/" in stanza
    assert "secret" not in stanza
    assert "secret@proxy.test" in apt.ask("machine.apt_settings()")
    assert "secret" not in apt.ask("machine.apt_settings(lasting=True)")
