"""What `init` must know of the machine that it runs on, and how others reach its servers."""

import ipaddress
import os
import re
import secrets
import socket
from pathlib import Path

from mlops.errors import MlopsError

HERE_ONLY = "host.docker.internal"  # this very machine, as its containers see it
_NAME = re.compile(r"(?!-)[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.IGNORECASE)
_IMAGE_USER = 10001  # `mlops` in our images


def host_values(checkout: Path) -> dict[str, str]:
    """Return this machine's values of the variables that are decided on each host.

    Args:
        checkout: The checkout's folder, absolute.
    """
    uid, gid = os.getuid(), os.getgid()
    # The scheduler is never root: what root checks out, others may read.
    scheduler = f"{uid}:{gid}" if uid else f"{_IMAGE_USER}:{_IMAGE_USER}"
    return {
        "FLOW_DIR": str(checkout / "flows"),
        "SCHEDULER_USER": scheduler,
        "MLOPS_HOST_NAME": socket.gethostname(),
        "JUPYTER_TOKEN": secrets.token_hex(32),
        "HOST_UID": str(uid),
        "HOST_GID": str(gid),
        "DEV_PROJECTS_DIR": str(checkout / "dev-projects"),
    }


def server_addresses(bind: str, name: str | None) -> dict[str, str]:
    """Return the variables that say where the servers of this host are.

    Args:
        bind: The IP address on which they are published.
        name: How others reach this host; None: as follows from `bind`.
    """
    address = ipaddress.IPv4Address(bind)
    own = [bind]
    if address.is_unspecified:
        own = own_addresses() or [socket.gethostname().lower()]
    elif address.is_loopback:
        own = [HERE_ONLY]
    server = name or own[0]
    names = ["localhost", "127.0.0.1", HERE_ONLY, server, *own, socket.gethostname().lower()]
    return {
        "BIND_ADDRESS": bind,
        "SERVER_IP": server,
        "UI_HOST": "localhost" if server == HERE_ONLY else server,
        "MLOPS_ADDRESSES": ",".join(dict.fromkeys(names)),
    }


def is_loopback(bind: str) -> bool:
    """Can only this machine reach what is published there?"""
    try:
        return ipaddress.IPv4Address(bind).is_loopback
    except ValueError:
        return False


def check_bind(bind: str) -> str:
    """Return an IP address of this machine.

    Raises:
        MlopsError: It is no IP address, not this machine's, or one of version 6, which the
            containers' networks do not have.
    """
    _refuse_version_6("--bind", bind)
    try:
        address = str(ipaddress.IPv4Address(bind))
    except ValueError:
        raise MlopsError(
            f"--bind {bind}: not an IP address",
            hint="an address of this machine, or 0.0.0.0 for all of them; a name goes to --host",
        ) from None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        raise MlopsError(
            f"--bind {bind}: not an address of this machine",
            hint="`ip address` lists them; 0.0.0.0 is all of them",
        ) from None
    return address


def check_host(name: str) -> str:
    """Return an address or a name of a host as it stands in a URL, in lower case.

    MLflow compares names letter by letter, and browsers send them in lower case.

    Raises:
        MlopsError: It is neither, or an address of version 6; a scheme or port, for example, is
            not wanted.
    """
    _refuse_version_6("--host", name)
    try:
        return str(ipaddress.IPv4Address(name))
    except ValueError:
        # What ends in a number is an address for every program (RFC 1123, 2.1), and not this one.
        if not _NAME.fullmatch(name) or name.rstrip(".").rpartition(".")[2].isdigit():
            raise MlopsError(
                f"--host {name}: not an address or a host name",
                hint="without http:// and port, as in 192.168.1.5 or ml.example.org",
            ) from None
        return name.lower()


def own_addresses() -> list[str]:
    """Return the addresses of this machine, loopback's apart, that of its default route first."""
    import psutil

    found = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not is_loopback(each.address)
    ]
    first = _address_on_default_route()
    return list(dict.fromkeys([first, *found] if first else found))


def _address_on_default_route() -> str | None:
    # Connecting a datagram socket sends nothing. The address is one for documentation (RFC 5737).
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        return None


def _refuse_version_6(option: str, text: str) -> None:
    """Raise MlopsError for an IPv6 address, also with brackets or the name of an interface."""
    try:
        ipaddress.IPv6Address(text.strip("[]"))
    except ValueError:
        return
    raise MlopsError(
        f"{option} {text}: the containers' networks have no IPv6",
        hint="an IPv4 address, or for --host a name that stands for one",
    )
