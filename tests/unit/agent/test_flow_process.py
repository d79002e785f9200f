"""What a flow's process does before Prefect's engine takes over, with Prefect's own client."""

import subprocess
import sys

from stacks.projects import free_ports

# Asks a server that begins to listen when Prefect's client waits before it tries again: for about
# two seconds, where the library below it gives up after waits of one at most.
ASK = """\
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

from mlops.agent.flow_process import expect_server
from prefect.client.orchestration import SyncPrefectClient

class Version(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'"3.8.8"')

def come_up(seconds):
    if seconds < 1.5:
        return
    server = HTTPServer(("127.0.0.1", urlsplit(asked).port), Version)
    threading.Thread(target=server.handle_request, daemon=True).start()

_, expected, asked = sys.argv
time.sleep = come_up
expect_server(expected)
with SyncPrefectClient(asked) as client:
    print(client.api_version())
"""


def ask(expected: str, asked: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ASK, expected, asked], capture_output=True, text=True, check=False
    )


def test_server_that_goes_away_as_a_run_begins_is_asked_again() -> None:
    """So is that of the run alone: whoever else is not there was never there."""
    run, other = (f"http://127.0.0.1:{port}/api" for port in free_ports(2))
    done = ask(run, run)
    assert done.stdout == "3.8.8\n", done.stderr
    done = ask(run, other)
    assert done.returncode == 1
    assert "ConnectError" in done.stderr
