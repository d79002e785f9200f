"""Hosts apart: a server's, and others that know of it only what a join token told them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from stacks.fixtures import ports
from stacks.platform import Servers
from stacks.projects import Host, Project, bridge_address

FOLDERS = {
    "scheduler": "flow_scheduler",
    "agent": "flow_agent",
    "experimenter": "ml_experimenter",
}


# By which every container knows this machine.
NAME = "host.docker.internal"


class ServerHost(NamedTuple):
    """A host on which the server stack runs, published on an address that is not loopback."""

    host: Host
    project: Project
    servers: Servers
    address: str


class Joined(NamedTuple):
    """A host with one stack of a server elsewhere."""

    host: Host
    project: Project


def join(server: Host, folder: Path, role: str, **presets: str) -> Joined:
    """Set up another host for one role, with a token and nothing else.

    Args:
        server: Where `./mlops join` makes the token.
        folder: Of the other host.
        role: Its role.
        **presets: Lines of its `.env` that are there before.
    """
    token = server.mlops("join", role)
    assert token.returncode == 0, token.stderr
    host = Host(folder, presets)
    host.preset(f"{FOLDERS[role]}/.env")
    host.init(role, "--join", "-", stdin=token.stdout)
    return Joined(host, host.project(FOLDERS[role]))


def start_server(folder: Path, *options: str) -> ServerHost:
    """Start a server stack on Docker's bridge, where other projects reach its ports.

    Args:
        folder: Of the host.
        *options: Of `init`, beside the role and `--bind`.
    """
    address = bridge_address()
    host = Host(folder, ports())
    host.preset("server/.env")
    host.init("server", "--bind", address, *options)
    project = host.project("server")
    try:
        project.up()
    except BaseException:
        host.remove()
        raise
    return ServerHost(host, project, Servers(host.env("server"), address), address)


def up_together(projects: Sequence[Project]) -> None:
    """Start several projects at the same time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Project.up, projects))


@pytest.fixture(scope="session")
def server_host(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHost]:
    """A server stack on a host of its own, reached by its address."""
    _ = images
    folder = tmp_path_factory.mktemp("server-host") / "host"
    found = start_server(folder, "--host", bridge_address())
    try:
        yield found
    finally:
        found.host.remove()
