"""`mlops init` and `mlops join` in checkouts that have folders only."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from mlops import cli
from mlops.ops.host import own_addresses
from mlops.ops.stacks import AGENT, SERVER, STACKS, Stack, render_example, variables_of

PROJECT = Path(__file__).parents[3]
EVERY_FILE = [".env", *(str(stack.env_file) for stack in STACKS)]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Checkout:
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Done:
        self.monkeypatch.setenv("MLOPS_CHECKOUT", str(self.folder))
        code = cli.run(list(arguments))
        captured = self.capsys.readouterr()
        return Done(code, captured.out, captured.err)

    def init(self, *arguments: str) -> Done:
        done = self.run("init", *arguments)
        assert done.code == 0, done.err
        return done

    def refused(self, *arguments: str, code: int = 1) -> str:
        """Run what must fail without writing anything, and return what it says."""
        before = self.state()
        done = self.run(*arguments)
        assert (done.code, done.out) == (code, ""), done.err
        assert self.state() == before
        return done.err

    def values(self, file: str = ".env") -> dict[str, str | None]:
        return dotenv_values(self.folder / file, interpolate=False)

    def edit(self, file: str, pattern: str, replacement: str) -> None:
        path = self.folder / file
        text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
        assert count == 1
        path.write_text(text)

    def write(self, file: str, text: str) -> None:
        (self.folder / file).touch(0o600)
        (self.folder / file).write_text(text)

    def state(self) -> dict[str, tuple[int, int, str]]:
        """Return every file with its inode, time and text."""
        return {
            str(path.relative_to(self.folder)): (
                path.stat().st_ino,
                path.stat().st_mtime_ns,
                path.read_text(),
            )
            for path in self.folder.rglob("*")
            if path.is_file()
        }


def make_checkout(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checkout:
    for stack in STACKS:
        (folder / stack.folder).mkdir(parents=True)
    return Checkout(folder, monkeypatch, capsys)


@pytest.fixture
def checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checkout:
    return make_checkout(tmp_path / "my clone", monkeypatch, capsys)


@pytest.fixture
def other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checkout:
    """The checkout of another host."""
    return make_checkout(tmp_path / "other", monkeypatch, capsys)


def test_whole_platform(checkout: Checkout) -> None:
    """Without a role all five files are made, private, with the same values and a value each."""
    checkout.init()
    union = checkout.values()
    for file, stack in zip(EVERY_FILE, [None, *STACKS], strict=True):
        assert (checkout.folder / file).stat().st_mode & 0o777 == 0o600
        values = checkout.values(file)
        assert list(values) == [variable.name for variable in variables_of(stack)]
        assert values.items() <= union.items()
    assert {name for name, value in union.items() if not value} == {
        *("MLOPS_INIT", "QUEUE_NAME", "GPU_IDS")
    }
    assert union["FLOW_DIR"] == f"{checkout.folder}/flows"
    assert union["SERVER_IP"] == "host.docker.internal"
    assert sorted(path.name for path in checkout.folder.rglob("*") if path.is_file()) == [
        ".env"
    ] * len(EVERY_FILE)


def test_second_time_changes_nothing(checkout: Checkout) -> None:
    """A second run leaves every file alone and says so."""
    checkout.init()
    before = checkout.state()
    assert checkout.init().out.count("complete, nothing changed") == len(EVERY_FILE)
    assert checkout.state() == before


def test_report_has_no_secret(checkout: Checkout) -> None:
    """Neither the text nor the JSON shows what was generated."""
    report = json.loads(checkout.init("--json").out)
    assert report["files"][0]["path"] == str(checkout.folder / ".env")
    assert "POSTGRES_PASSWORD" in report["files"][0]["set"]
    secret = checkout.values()["POSTGRES_PASSWORD"]
    assert secret
    assert secret not in json.dumps(report)
    assert secret not in checkout.init().out


def test_one_stack(checkout: Checkout) -> None:
    """With a role, by either name, only that stack's file is made."""
    checkout.init("server")
    assert list(checkout.state()) == ["server/.env"]
    checkout.init("flow_agent")
    assert sorted(checkout.state()) == ["flow_agent/.env", "server/.env"]
    server, agent = checkout.values("server/.env"), checkout.values("flow_agent/.env")
    assert agent["AGENT_S3_SECRET_ACCESS_KEY"] == server["AGENT_S3_SECRET_ACCESS_KEY"]
    assert "MINIO_ROOT_PASSWORD" not in agent


def test_stack_after_the_root(checkout: Checkout) -> None:
    """A stack's file that was removed comes back from the root's with the same values."""
    checkout.init()
    before = checkout.values("flow_agent/.env")
    (checkout.folder / "flow_agent/.env").unlink()
    checkout.init("agent")
    assert checkout.values("flow_agent/.env") == before


def test_client_without_a_server(checkout: Checkout) -> None:
    """A client's part cannot be invented: the way to get it is named."""
    said = checkout.refused("init", "agent")
    assert "not on this host: SERVER_IP, UI_HOST, PREFECT_USERNAME" in said
    assert "./mlops join agent" in said


def test_what_the_user_wrote_stays(checkout: Checkout) -> None:
    """Comments, own names, order and values stay, and a value goes to every file of its role."""
    mine = "# mine\nOWN=x # y\nexport PREFECT_PASSWORD='my own' # chosen\nS3_PORT=9100\n"
    checkout.write("server/.env", mine)
    checkout.init()
    assert (checkout.folder / "server/.env").read_text().startswith(mine)
    for file in EVERY_FILE:
        assert checkout.values(file)["PREFECT_PASSWORD"] == "my own"
        assert checkout.values(file)["S3_PORT"] == "9100"
    assert "OWN" not in checkout.values()


def test_filled_in_example(checkout: Checkout) -> None:
    """A copy of the example is completed where its names stand."""
    checkout.write("server/.env", render_example(SERVER))
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    text = (checkout.folder / "server/.env").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in render_example(SERVER).splitlines() if line.startswith("#")
    ]
    assert [n for n, value in checkout.values("server/.env").items() if not value] == ["MLOPS_INIT"]


def test_emptied_and_removed_values_come_back(checkout: Checkout) -> None:
    """What a newer release needs, or was emptied, is set; the rest stays."""
    checkout.init()
    before = checkout.values("server/.env")
    for file in (".env", "server/.env"):
        checkout.edit(file, "^PRUNE_S3_SECRET_ACCESS_KEY=.*\n", "")
    checkout.edit("server/.env", "^POSTGRES_PASSWORD=.*", "POSTGRES_PASSWORD=")
    done = checkout.init()
    assert "server/.env: 2 values written" in done.out
    after = checkout.values("server/.env")
    assert after["POSTGRES_PASSWORD"] == before["POSTGRES_PASSWORD"]  # the root's file had it
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"PRUNE_S3_SECRET_ACCESS_KEY"}
    assert checkout.values()["PRUNE_S3_SECRET_ACCESS_KEY"] == after["PRUNE_S3_SECRET_ACCESS_KEY"]


def test_files_that_differ(checkout: Checkout) -> None:
    """Two values of one name are refused with both files, and without the values."""
    checkout.init()
    checkout.edit("flow_agent/.env", "^PREFECT_PASSWORD=.*", "PREFECT_PASSWORD=hunter2")
    said = checkout.refused("init")
    assert said == "mlops: flow_agent/.env: PREFECT_PASSWORD: another value than in .env\n"
    assert "hunter2" not in said


def test_mistyped_name(checkout: Checkout) -> None:
    """A name that looks like one of ours is told before a value is made for the right one."""
    checkout.write("server/.env", "MINIO_ROOT_PASWORD=hunter2\nOTHER=1\n")
    said = checkout.refused("init")
    assert "server/.env: MINIO_ROOT_PASWORD: not known; did you mean MINIO_ROOT_PASSWORD?\n" in said
    assert "hunter2" not in said
    assert "OTHER" not in said


def test_mistyped_name_beside_the_right_one(checkout: Checkout) -> None:
    """Where the right name has a value too, the other is only remarked on."""
    checkout.init()
    checkout.write("server/.env", (checkout.folder / "server/.env").read_text() + "S3_PROT=1\n")
    assert "server/.env: S3_PROT: not known; did you mean S3_PORT?" in checkout.init().err


def test_secret_in_the_wrong_place(checkout: Checkout) -> None:
    """A name that a stack must not know is remarked on, and its value is not taken from there."""
    checkout.init()
    file = checkout.folder / "flow_agent/.env"
    file.write_text(file.read_text() + "POSTGRES_PASSWORD=hunter2\n")
    said = checkout.init().err
    assert "flow_agent/.env: POSTGRES_PASSWORD: of no use here, remove it (of: server)" in said
    assert checkout.values()["POSTGRES_PASSWORD"] != "hunter2"


def test_names_of_compose_are_nobodys_mistake(checkout: Checkout) -> None:
    """Compose's own settings in .env are left alone."""
    checkout.write(".env", "COMPOSE_FILE=compose.yaml\nCOMPOSE_PROJECT_NAME=a\nDOCKER_HOST=b\n")
    assert checkout.init().err == ""


def test_value_that_compose_would_change(checkout: Checkout) -> None:
    """A dollar that Compose would expand is refused, not carried to other files as it is."""
    checkout.write("server/.env", "PREFECT_PASSWORD=pa$word\n")
    said = checkout.refused("init")
    assert "server/.env: PREFECT_PASSWORD: Compose replaces what follows a $" in said
    assert "word;" not in said


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("COMPOSE_PROFILES", "CPU", "cpu or gpu"),
        ("COMPOSE_PROFILES", "tools", "cpu or gpu"),
        ("FLOW_DIR", "flows", "an absolute path"),
        ("DEV_PROJECTS_DIR", "~/projects", "an absolute path"),
        ("VOLUME_PREFIX", "My platform", "small letters"),
        ("MLFLOW_AGENT_PASSWORD", "elevenchars", "at least 12"),
        ("MINIO_ROOT_PASSWORD", "seven77", "at least 8"),
        ("AGENT_S3_SECRET_ACCESS_KEY", "seven77", "at least 8"),
        ("MINIO_ROOT_USER", "me", "at least 3"),
        ("SCHEDULER_S3_ACCESS_KEY_ID", "a/b/c", "letters, digits"),
        ("PREFECT_USERNAME", "a:b", "no colon"),
        ("MLFLOW_ADMIN_USERNAME", "agent", "not the name of a role"),
        ("PREFECT_PASSWORD", "größer", "ASCII's characters"),
        ("POSTGRES_PASSWORD", '"two\nlines"', "ASCII's characters"),
    ],
)
def test_value_that_nothing_could_use(
    checkout: Checkout, name: str, value: str, allowed: str
) -> None:
    """What no server or container takes is refused with what it does take, and is not repeated."""
    checkout.write(".env", f"{name}={value}\n")
    said = checkout.refused("init")
    assert said.startswith(f"mlops: .env: {name}: not usable; allowed: ")
    assert allowed in said
    assert value not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMPOSE_PROFILES", "gpu"),
        ("COMPOSE_PROFILES", "mine,cpu"),
        ("MLFLOW_AGENT_PASSWORD", "p@ss/%41:w?#"),
        ("MLFLOW_DB_PASSWORD", "short"),
        ("VOLUME_PREFIX", "2nd_platform-x"),
    ],
)
def test_unusual_value_that_is_fine(checkout: Checkout, name: str, value: str) -> None:
    """What the stacks can use is taken, however unusual."""
    checkout.write(".env", f"{name}={value}\n")
    checkout.init()
    assert checkout.values()[name] == value


def test_agent_that_is_missing(checkout: Checkout) -> None:
    """Without a profile neither agent would start, and nothing would say so."""
    checkout.init()
    for file in (".env", "flow_agent/.env"):
        checkout.edit(file, "^COMPOSE_PROFILES=.*\n", "")
    checkout.init()
    assert checkout.values()["COMPOSE_PROFILES"] == "cpu"


def test_open_file_is_refused(checkout: Checkout) -> None:
    """A file that others may read is refused with the mend."""
    checkout.init()
    (checkout.folder / "server/.env").chmod(0o644)
    said = checkout.refused("init")
    assert "other users may read it (mode 0644)" in said
    assert f"chmod 600 {checkout.folder}/server/.env" in said


def test_folder_instead_of_a_file(checkout: Checkout) -> None:
    """A folder named .env is told, and no other file is made."""
    (checkout.folder / "server/.env").mkdir()
    assert "server/.env: cannot be read: Is a directory" in checkout.refused("init")


def test_stack_that_is_not_there(checkout: Checkout) -> None:
    """A checkout without a stack's folder gets none of the files."""
    (checkout.folder / "flow_agent").rmdir()
    said = checkout.refused("init")
    assert f"{checkout.folder}/flow_agent/.env: cannot be written: No such file" in said


@pytest.fixture
def full_disk(checkout: Checkout) -> Iterator[Checkout]:
    """Put the stacks' folders on a disk with room for two or three files."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(checkout.folder)]
    subprocess.run(mount, check=True)
    for stack in STACKS:
        (checkout.folder / stack.folder).mkdir()
    yield checkout
    subprocess.run(["umount", checkout.folder], check=True)


@pytest.mark.requires("mount")
def test_full_disk(full_disk: Checkout) -> None:
    """When not all files fit none is made, and nothing is left behind."""
    assert "cannot be written: No space left" in full_disk.refused("init")
    assert full_disk.state() == {}


@pytest.mark.requires("mount")
def test_read_only_disk(full_disk: Checkout) -> None:
    """A checkout that cannot be written is told in one line."""
    subprocess.run(["mount", "-o", "remount,ro", full_disk.folder], check=True)
    assert ".env: cannot be written: Read-only file system" in full_disk.refused("init")


def test_two_at_once(checkout: Checkout) -> None:
    """A run waits for another one, and then finds what that one wrote."""
    another = os.open(checkout.folder, os.O_RDONLY)
    fcntl.flock(another, fcntl.LOCK_EX)
    run = subprocess.Popen(
        [sys.executable, "-P", "-m", "mlops", "init"],
        env=os.environ | {"MLOPS_CHECKOUT": str(checkout.folder)},
        stdout=subprocess.DEVNULL,
    )
    waits = re.compile(rf"-> FLOCK .* {run.pid} ")
    limit = time.monotonic() + 60
    while not waits.search(Path("/proc/locks").read_text()):
        assert run.poll() is None
        assert time.monotonic() < limit
    checkout.write("server/.env", "PREFECT_PASSWORD=mine\n")
    os.close(another)
    assert run.wait(60) == 0
    assert checkout.values()["PREFECT_PASSWORD"] == "mine"


def test_published_on_an_address(checkout: Checkout) -> None:
    """--bind decides what containers and browsers are told."""
    checkout.init("--bind", "0.0.0.0", "--host", "ML.example.org")  # noqa: S104
    values = checkout.values("server/.env")
    assert values["BIND_ADDRESS"] == "0.0.0.0"  # noqa: S104
    assert values["SERVER_IP"] == values["UI_HOST"] == "ml.example.org"
    names = (values["MLOPS_ADDRESSES"] or "").split(",")
    assert "ml.example.org" in names
    assert {*own_addresses(), "localhost"} <= set(names)
    assert checkout.values("flow_agent/.env")["SERVER_IP"] == "ml.example.org"


def test_published_otherwise_than_before(checkout: Checkout) -> None:
    """Another --bind or --host overwrites nothing and says what to change together."""
    checkout.init()
    said = checkout.refused("init", "--bind", "0.0.0.0", "--host", "ml")  # noqa: S104
    assert ".env, server/.env: BIND_ADDRESS is 127.0.0.1, and is not overwritten" in said
    assert "  BIND_ADDRESS=0.0.0.0\n  SERVER_IP=ml\n  UI_HOST=ml\n  MLOPS_ADDRESSES=" in said
    assert "SERVER_IP is host.docker.internal" in checkout.refused("init", "--host", "ml")
    checkout.init("--bind", "127.0.0.1")


def test_hand_written_bind_address(checkout: Checkout) -> None:
    """A BIND_ADDRESS that is no address is named."""
    checkout.write("server/.env", "BIND_ADDRESS=everywhere\n")
    assert "BIND_ADDRESS: everywhere: not an IPv4 address" in checkout.refused("init")


def test_name_without_a_way_in(checkout: Checkout) -> None:
    """A --host for servers that only this machine reaches is remarked on."""
    done = checkout.init("--host", "ml")
    assert "BIND_ADDRESS is 127.0.0.1: other hosts do not reach the servers at ml" in done.err


@pytest.mark.parametrize("stack", STACKS[1:])
def test_join(stack: Stack, checkout: Checkout, other: Checkout) -> None:
    """A token gives another host its part, and nothing else."""
    checkout.init("server", "--bind", "0.0.0.0", "--host", "ml")  # noqa: S104
    done = checkout.run("join", stack.role)
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert f"./mlops init {stack.role} --join -" in done.err
    other.init(stack.role, "--join", done.out.strip())
    (file,) = other.state()
    assert (other.folder / file).stat().st_mode & 0o777 == 0o600
    server, client = checkout.values("server/.env"), other.values(file)
    assert list(client) == [variable.name for variable in variables_of(stack)]
    assert client["SERVER_IP"] == "ml"
    shared = client.keys() & server.keys()
    assert {name: client[name] for name in shared} == {name: server[name] for name in shared}


def test_join_again(checkout: Checkout, other: Checkout) -> None:
    """The same token changes nothing, and neither does init without it."""
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    token = checkout.run("join", "agent").out.strip()
    other.init("agent", "--join", token)
    before = other.state()
    assert "complete" in other.init("agent", "--join", token).out
    assert "complete" in other.init("agent").out
    assert other.state() == before


def test_join_another_platform(checkout: Checkout, other: Checkout) -> None:
    """What a former token wrote is not overwritten: its names and the way are said."""
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    other.init("agent", "--join", checkout.run("join", "agent").out.strip())
    (checkout.folder / "server/.env").unlink()
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    token = checkout.run("join", "agent").out.strip()
    said = other.refused("init", "agent", "--join", token)
    assert "MLFLOW_AGENT_PASSWORD, PREFECT_PASSWORD: another value than in the token" in said
    assert "move flow_agent/.env away to join anew" in said
    (other.folder / "flow_agent/.env").unlink()
    other.init("agent", "--join", token)


def test_join_under_another_name(checkout: Checkout, other: Checkout) -> None:
    """A host that reaches the servers by another name says so with --host."""
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    token = checkout.run("join", "agent").out.strip()
    other.init("agent", "--join", token, "--host", "vpn.example.org")
    assert other.values("flow_agent/.env")["SERVER_IP"] == "vpn.example.org"


def test_join_beside_another_platform(checkout: Checkout, other: Checkout) -> None:
    """What another platform's files in the same checkout say is left out of it."""
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    other.init()
    (other.folder / "flow_agent/.env").unlink()
    other.init("agent", "--join", checkout.run("join", "agent").out.strip())
    ours, theirs = other.values("flow_agent/.env"), checkout.values("server/.env")
    assert ours["PREFECT_PASSWORD"] == theirs["PREFECT_PASSWORD"]


def test_joined_host_starts_no_platform(checkout: Checkout, other: Checkout) -> None:
    """On a host that joined a server elsewhere, a platform is not started by mistake."""
    checkout.init("server", "--bind", "0.0.0.0", "--host", "ml")  # noqa: S104
    other.init("agent", "--join", checkout.run("join", "agent").out.strip())
    assert "flow_agent/.env: belongs to the servers at ml" in other.refused("init")
    other.refused("init", "server")


def test_token_through_a_pipe(checkout: Checkout, other: Checkout) -> None:
    """`mlops join` into `mlops init --join -` works between real processes."""
    checkout.init("server", "--bind", "0.0.0.0")  # noqa: S104
    join, init = (
        [sys.executable, "-P", "-m", "mlops", *arguments]
        for arguments in (("join", "agent"), ("init", "agent", "--join", "-"))
    )
    made = subprocess.run(
        join,
        env=os.environ | {"MLOPS_CHECKOUT": str(checkout.folder)},
        capture_output=True,
        check=True,
    )
    subprocess.run(
        init, env=os.environ | {"MLOPS_CHECKOUT": str(other.folder)}, input=made.stdout, check=True
    )
    assert other.values(str(AGENT.env_file))["POOL_NAME"] == "default-agent-pool"


def test_damaged_token_writes_nothing(other: Checkout) -> None:
    """A token that is not whole is refused before anything is written."""
    assert "no join token" in other.refused("init", "agent", "--join", "nonsense")
    assert "damaged" in other.refused("init", "agent", "--join", "mlops1.abc.def")


def test_token_is_for_one_role(checkout: Checkout) -> None:
    """A token of another role is refused, with nothing written."""
    checkout.init("server")
    token = checkout.run("join", "agent").out.strip()
    assert "for the role agent" in checkout.refused("init", "scheduler", "--join", token)


def test_join_where_nobody_can(checkout: Checkout) -> None:
    """A token of servers that only this machine reaches is printed with a warning."""
    checkout.init()
    done = checkout.run("join", "agent")
    assert done.code == 0
    assert "only this machine reaches the servers" in done.err
    report = json.loads(checkout.run("join", "agent", "--json", "--hours", "1").out)
    assert report["reachable"] is False
    assert report["role"] == "agent"


def test_join_without_a_server(checkout: Checkout) -> None:
    """Tokens are made on the server's host only."""
    said = checkout.refused("join", "agent")
    assert "server/.env: no server here" in said
    assert "./mlops init server --bind ADDRESS" in said


def test_join_of_an_incomplete_server(checkout: Checkout) -> None:
    """A value that is missing on the server's host is named."""
    checkout.init("server")
    checkout.edit("server/.env", "^MLFLOW_AGENT_PASSWORD=.*", "MLFLOW_AGENT_PASSWORD=")
    assert "server/.env: MLFLOW_AGENT_PASSWORD: not set" in checkout.refused("join", "agent")


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "agnet"),
        ("init", "--join", "x"),
        ("init", "server", "--join", "x"),
        ("init", "agent", "scheduler", "--join", "x"),
        ("init", "agent", "--bind", "0.0.0.0"),  # noqa: S104
        ("init", "agent", "--host", "ml"),
        ("join", "server"),
        ("join", "nobody"),
        ("join", "agent", "--hours", "0"),
        ("join",),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], checkout: Checkout) -> None:
    """What makes no sense together is wrong usage."""
    checkout.refused(*arguments, code=2)


def test_images_have_no_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside of a checkout both commands say where they work."""
    monkeypatch.delenv("MLOPS_CHECKOUT", raising=False)
    assert cli.run(["init"]) == cli.run(["join", "agent"]) == 1
    assert "this works in a checkout only" in capsys.readouterr().err


def compose_reads(checkout: Checkout, file: str) -> Any:
    """Return what Compose makes of the compose file beside an env file."""
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"],
        cwd=(checkout.folder / file).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), file
    return json.loads(done.stdout)


@pytest.fixture
def with_compose_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checkout:
    """A checkout with the compose files, below a folder with an odd name."""
    checkout = make_checkout(tmp_path / "it's $5 & #1", monkeypatch, capsys)
    for path in [*PROJECT.glob("*.yaml"), *PROJECT.glob("*/*.yaml")]:
        shutil.copy(path, checkout.folder / path.relative_to(PROJECT))
    return checkout


@pytest.mark.requires("docker")
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_compose_takes_what_is_written(bind: str, with_compose_files: Checkout) -> None:
    """The compose files find all that they need."""
    with_compose_files.init("--bind", bind)
    for file in EVERY_FILE:
        scheduler = compose_reads(with_compose_files, file)["services"].get("flow-scheduler")
        if scheduler:
            source = scheduler["volumes"][0]["source"].replace("$$", "$")
            assert source == f"{with_compose_files.folder}/flows"


@pytest.mark.requires("docker")
def test_projects_are_named_after_the_prefix(with_compose_files: Checkout) -> None:
    """A platform beside another one on a machine does not take over its containers."""
    with_compose_files.write(".env", "VOLUME_PREFIX=mine\n")
    with_compose_files.init()
    names = [compose_reads(with_compose_files, file)["name"] for file in EVERY_FILE]
    assert names == [
        *("mine", "mine-server", "mine-flow-scheduler", "mine-flow-agent", "mine-ml-experimenter")
    ]
