import socket
import subprocess
import sys

from mlops.local.home import Ports
from mlops.local.ports import choose_ports, is_free

CHOOSE = """
import sys
from mlops.local.home import Ports
from mlops.local.ports import choose_ports
with choose_ports(Ports(*map(int, sys.argv[1:]))) as ports:
    print(*ports, flush=True)
    sys.stdin.read()
"""


def _free_ports() -> Ports:
    """Return four ports that nobody uses now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in Ports._fields]
    ports = Ports(*(probe.getsockname()[1] for probe in probes))
    for probe in probes:
        probe.close()
    return ports


def test_preferred_ports_are_taken_when_they_are_free() -> None:
    """Addresses stay the same from start to start."""
    preferred = _free_ports()
    for _ in range(2):
        with choose_ports(preferred) as ports:
            assert ports == preferred


def test_only_a_busy_port_is_replaced() -> None:
    """A server of somebody else's keeps its port; the other servers keep theirs."""
    preferred = _free_ports()
    with socket.create_server(("127.0.0.1", preferred.mlflow)):
        assert not is_free(preferred.mlflow)
        with choose_ports(preferred) as ports:
            assert ports._replace(mlflow=0) == preferred._replace(mlflow=0)
            assert Ports().mlflow <= ports.mlflow < Ports().mlflow + 1000
            assert is_free(ports.mlflow)


def test_no_two_servers_get_the_same_port() -> None:
    """Even if the last start's file says so."""
    port = _free_ports().s3
    with choose_ports(Ports(port, port, port, port)) as ports:
        assert len(set(ports)) == len(ports)


def test_no_two_starts_get_the_same_port() -> None:
    """What one has chosen is not free for another, until that one ends, however it does."""
    preferred = _free_ports()
    with _other_start(preferred) as other:
        theirs = _chosen(other)
        assert theirs == preferred
        with choose_ports(preferred) as ours:
            assert not {*ours} & {*theirs}
        other.kill()
    with choose_ports(preferred) as ours:
        assert ours == preferred


def _other_start(preferred: Ports) -> subprocess.Popen[str]:
    """Choose ports in a process of its own, and keep them until it ends."""
    return subprocess.Popen(
        [sys.executable, "-c", CHOOSE, *map(str, preferred)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _chosen(process: subprocess.Popen[str]) -> Ports:
    assert process.stdout is not None
    return Ports(*map(int, process.stdout.readline().split()))
