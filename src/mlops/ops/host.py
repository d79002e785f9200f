"""What `init` must know of the machine that it runs on, and how others reach its servers."""

import errno
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
        bind: The IP address on which they are published; one of version 6 in brackets.
        name: How others reach this host; None: as follows from `bind`.
    """
    address = ipaddress.ip_address(bind.strip("[]"))
    if address.is_unspecified:
        own = own_address(address.version) or socket.gethostname().lower()
    else:
        own = HERE_ONLY if address.is_loopback else bind
    server = name or own
    names = ["localhost", "127.0.0.1", HERE_ONLY, server, own, socket.gethostname().lower()]
    return {
        "BIND_ADDRESS": bind,
        "SERVER_IP": server,
        "UI_HOST": "localhost" if server == HERE_ONLY else server,
        "MLOPS_ADDRESSES": ",".join(dict.fromkeys(names)),
    }


def is_loopback(bind: str) -> bool:
    """Can only this machine reach what is published there?"""
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(bind: str) -> str:
    """Return an IP address of this machine as it stands in a URL and in a compose file.

    Raises:
        MlopsError: It is no IP address, or not this machine's.
    """
    try:
        address = ipaddress.ip_address(bind.strip("[]"))
    except ValueError:
        raise MlopsError(
            f"--bind {bind}: not an IP address",
            hint="an address of this machine, or 0.0.0.0 for all of them; a name goes to --host",
        ) from None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise
        raise MlopsError(
            f"--bind {bind}: not an address of this machine",
            hint="`ip address` lists them; 0.0.0.0 is all of them",
        ) from None
    return in_url(str(address))


def check_host(name: str) -> str:
    """Return an address or a name of a host as it stands in a URL, in lower case.

    MLflow compares names letter by letter, and browsers send them in lower case.

    Raises:
        MlopsError: It is neither; a scheme or port, for example, is not wanted.
    """
    try:
        return in_url(str(ipaddress.ip_address(name.strip("[]"))))
    except ValueError:
        if not _NAME.fullmatch(name):
            raise MlopsError(
                f"--host {name}: not an address or a host name",
                hint="without http:// and port, as in 192.168.1.5 or ml.example.org",
            ) from None
        return name.lower()


def in_url(address: str) -> str:
    """Return an IP address as it stands before a port."""
    return f"[{address}]" if ":" in address else address


def own_address(version: int) -> str | None:
    """Return the address of this machine on its default route, or None without one.

    Args:
        version: Of the Internet Protocol, 4 or 6.
    """
    # Connecting a datagram socket sends nothing. These are the addresses for documentation
    # (RFC 5737, RFC 3849).
    family, target = (
        (socket.AF_INET, "192.0.2.1")
        if version == 4  # noqa: PLR2004
        else (socket.AF_INET6, "2001:db8::1")
    )
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return in_url(probe.getsockname()[0])
    except OSError:
        return None
