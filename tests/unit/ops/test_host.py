import os
import socket
from pathlib import Path

import pytest

from mlops.errors import MlopsError
from mlops.ops.host import (
    check_bind,
    check_host,
    host_values,
    own_addresses,
    server_addresses,
)

HOST_NAME = socket.gethostname().lower()


@pytest.mark.parametrize(
    ("bind", "name", "server", "ui"),
    [
        ("127.0.0.1", None, "host.docker.internal", "localhost"),
        ("192.168.1.5", None, "192.168.1.5", "192.168.1.5"),
        ("0.0.0.0", "ml.example.org", "ml.example.org", "ml.example.org"),  # noqa: S104
        ("192.168.1.5", "ml.example.org", "ml.example.org", "ml.example.org"),
    ],
)
def test_where_the_servers_are(bind: str, name: str | None, server: str, ui: str) -> None:
    """What containers and browsers are told follows from how the servers are published."""
    addresses = server_addresses(bind, name)
    assert addresses["BIND_ADDRESS"] == bind
    assert addresses["SERVER_IP"] == server
    assert addresses["UI_HOST"] == ui
    names = addresses["MLOPS_ADDRESSES"].split(",")
    assert {"localhost", "127.0.0.1", "host.docker.internal", server, HOST_NAME} <= set(names)
    assert len(set(names)) == len(names)


def test_published_everywhere() -> None:
    """Others are given this machine's own address, or its name, and MLflow answers to them all."""
    addresses = server_addresses("0.0.0.0", None)  # noqa: S104
    own = own_addresses() or [HOST_NAME]
    assert addresses["SERVER_IP"] == own[0]
    assert set(own) < set(addresses["MLOPS_ADDRESSES"].split(","))


def test_own_addresses_are_this_machines() -> None:
    """Each of them can be bound."""
    for address in own_addresses():
        assert check_bind(address) == address


def test_address_stays_known_beside_a_name() -> None:
    """The UIs answer at the address too when the host is called by a name."""
    names = server_addresses("192.168.1.5", "ml.example.org")["MLOPS_ADDRESSES"].split(",")
    assert "192.168.1.5" in names


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_good_bind(bind: str) -> None:
    """Addresses of this machine can be published on."""
    assert check_bind(bind) == bind


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        ("192.0.2.77", "not an address of this machine"),
        ("localhost", "not an IP address"),
        ("127.0.0.1:80", "not an IP address"),
        ("", "not an IP address"),
        ("::", "no IPv6"),
        ("[::1]", "no IPv6"),
        ("fe80::1%lo", "no IPv6"),
    ],
)
def test_bad_bind(bind: str, message: str) -> None:
    """Docker would fail there, or only later."""
    with pytest.raises(MlopsError, match=message):
        check_bind(bind)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("192.168.1.5", "192.168.1.5"),
        ("ML.Example.org", "ml.example.org"),
        ("box_7", "box_7"),
    ],
)
def test_good_host(name: str, canonical: str) -> None:
    """Names and addresses are brought to the form that browsers send."""
    assert check_host(name) == canonical


@pytest.mark.parametrize(
    "name",
    [
        *("http://ml", "ml:9000", "a b", "", "-x", "a,b", "me@ml", "a/b"),
        *("256.1.1.1", "10.1", "300", "ml.7."),
    ],
)
def test_bad_host(name: str) -> None:
    """What is more than a host is refused, and so is a number that is no address."""
    with pytest.raises(MlopsError, match="not an address or a host name"):
        check_host(name)


@pytest.mark.parametrize("name", ["fd00::5", "[fd00::5]", "fe80::1%eth0"])
def test_host_that_containers_cannot_reach(name: str) -> None:
    """IPv6 is refused, which containers have none of."""
    with pytest.raises(MlopsError, match="no IPv6"):
        check_host(name)


def test_this_host() -> None:
    """The user, the machine and the checkout's folders are written as they are."""
    values = host_values(Path("/somewhere/mlops"))
    assert values["FLOW_DIR"] == "/somewhere/mlops/flows"
    assert values["HOST_UID"] == str(os.getuid())
    assert values["SCHEDULER_USER"].split(":")[0] != "0"
    assert len(values["JUPYTER_TOKEN"]) == 64
