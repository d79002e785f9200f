"""Which TCP ports the servers get: the usual ones, or free ones where those are taken."""

import socket
from collections.abc import Collection

from mlops.local.home import HOST, Ports


def is_free(port: int) -> bool:
    """Return whether a server could listen on the port now.

    Args:
        port: A TCP port of the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def choose_ports(preferred: Ports) -> Ports:
    """Return free ports, the preferred ones as far as they are free.

    Args:
        preferred: Those of the last start, or the usual ones.
    """
    chosen: list[int] = []
    for port in preferred:
        chosen.append(
            port if is_free(port) and port not in chosen else _any_free({*chosen, *preferred})
        )
    return Ports(*chosen)


def _any_free(taken: Collection[int]) -> int:
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
