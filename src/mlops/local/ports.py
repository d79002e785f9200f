"""Which TCP ports the servers get: the usual ones, or the next free ones where those are taken.

A start looks for free ports seconds before its servers listen on them. Another platform that starts
meanwhile must not choose the same: its server could not bind, or, worse, its checks would ask the
first one's server and be refused. So a start claims each port that it chooses, and gives the claim
up when its servers listen, which tells everybody that the port is taken.

A claim is a Unix socket with the port's number for its name, in Linux's abstract namespace. One
process at a time can have a name there; the kernel takes it back when that process ends, however
it does; and the names are shared by whoever shares the TCP ports, all users of a host or of a
container, without a file that somebody must own and remove.

The ports counted up from the usual ones lie below those that the kernel gives to outgoing
connections (32768 and above), so that none of these comes between either.
"""

import contextlib
import socket
from collections.abc import Iterator
from itertools import chain

from mlops.local.home import HOST, Ports

CLAIM_NAME = "\0mlops-port-{port}"  # the leading zero byte makes the name an abstract one
LAST_PORT = 65535


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


@contextlib.contextmanager
def choose_ports(preferred: Ports) -> Iterator[Ports]:
    """Return free ports that no other start chooses until the context ends.

    Args:
        preferred: Those of the last start, or the usual ones; taken as far as they are free.
    """
    with contextlib.ExitStack() as claims:
        chosen = []
        for wanted, usual in zip(preferred, Ports(), strict=True):
            others = (port for port in range(usual, LAST_PORT + 1) if port not in preferred)
            chosen.append(next(port for port in chain([wanted], others) if _claim(port, claims)))
        yield Ports(*chosen)


def _claim(port: int, claims: contextlib.ExitStack) -> bool:
    """Return whether the port is free and is now claimed."""
    claim = claims.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        claim.bind(CLAIM_NAME.format(port=port))
    except OSError:
        return False
    # Asked once it is claimed: whoever gave its claim up a moment ago listens there.
    return is_free(port)
