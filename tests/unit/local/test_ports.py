import socket

from mlops.local.home import Ports
from mlops.local.ports import choose_ports, is_free


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
    assert choose_ports(preferred) == preferred


def test_only_a_busy_port_is_replaced() -> None:
    """A server of somebody else's keeps its port; the other servers keep theirs."""
    preferred = _free_ports()
    with socket.create_server(("127.0.0.1", preferred.mlflow)):
        assert not is_free(preferred.mlflow)
        chosen = choose_ports(preferred)
        assert chosen._replace(mlflow=0) == preferred._replace(mlflow=0)
        assert chosen.mlflow not in preferred
        assert is_free(chosen.mlflow)


def test_no_two_servers_get_the_same_port() -> None:
    """Even if the last start's file says so."""
    port = _free_ports().s3
    chosen = choose_ports(Ports(port, port, port, port))
    assert len(set(chosen)) == len(chosen)
