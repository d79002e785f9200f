"""What a fork server makes ahead for its runs, with Prefect's own client and engine."""

import shutil
import subprocess
import sys
from pathlib import Path

import certifi
import pytest

CLIENTS = """\
import ssl
from mlops.agent import imports_ahead
from prefect.client.orchestration import SyncPrefectClient

imports_ahead.make_ahead()

def make(*_, **__):
    raise AssertionError("made anew")

ssl.SSLContext.load_verify_locations = make
clients = [SyncPrefectClient("http://127.0.0.1:9/api") for _ in range(imports_ahead.CONTEXTS)]
print(len(clients))
"""
HEARTBEATS = """\
import threading
from unittest.mock import MagicMock
from mlops.agent import imports_ahead
from prefect import flow_engine

imports_ahead.make_ahead()

def join(*_, **__):
    raise AssertionError("waited for")

engine = MagicMock(heartbeat_seconds=30)  # its state, logger and events are of no matter here
engine._build_heartbeat_event_template.return_value = (None, None)
engine.flow_run.state.is_final.return_value = False
threading.Thread.join = join
with flow_engine._send_heartbeats(engine):
    print("runs")
"""


def run(script: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("is_set", [False, True])
def test_runs_clients_read_no_certificates(tmp_path: Path, *, is_set: bool) -> None:
    """All that a run makes are there, also where the machine names another file."""
    named = shutil.copy(certifi.where(), tmp_path / "named.pem")
    variables = {"SSL_CERT_FILE": str(named)} if is_set else {}
    assert run(CLIENTS, PREFECT_HOME=str(tmp_path), **variables) == "6\n"


def test_run_does_not_wait_for_its_heartbeats(tmp_path: Path) -> None:
    """They sleep for a second at a time, for which the run would keep its slot."""
    assert run(HEARTBEATS, PREFECT_HOME=str(tmp_path)) == "runs\n"
