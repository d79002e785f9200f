import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlops.agent.inquiry import ask_agents
from mlops.agent.presence import Presence, announced, find_agents

ANY = "0.0.0.0"  # noqa: S104  # nothing is bound here


def presence(**changes: str | int) -> Presence:
    usual = {"machine": socket.gethostname(), "bind": "127.0.0.1", "port": 9}
    return Presence.model_validate(
        {"name": "agent-1", "version": "1", "pid": os.getpid()} | usual | changes
    )


def test_agent_is_found_while_it_lives(tmp_path: Path) -> None:
    """It is there for the length of the block, and leaves nothing."""
    assert find_agents(tmp_path) == []
    with announced(tmp_path, presence()), announced(tmp_path, presence(name="agent-0")):
        assert [each.name for each in find_agents(tmp_path)] == ["agent-0", "agent-1"]
    assert find_agents(tmp_path) == []
    assert list((tmp_path / "agents").iterdir()) == []


def test_killed_agent_is_not_found(tmp_path: Path) -> None:
    """What an agent that was killed has left is swept by whoever looks."""
    code = (
        "import sys; from pathlib import Path; from mlops.agent.presence import *\n"
        f"with announced(Path({str(tmp_path)!r}), Presence.model_validate_json(sys.argv[1])):\n"
        "    print('there', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, presence().model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout
        process.stdout.readline()
        assert len(find_agents(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "agents").iterdir())) == 1
    assert find_agents(tmp_path) == []
    assert list((tmp_path / "agents").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, ("127.0.0.1", 9)),
        ({"bind": ANY}, ("127.0.0.1", 9)),
        ({"bind": "::"}, ("::1", 9)),
        ({"bind": ANY, "machine": "1f2e3d"}, ("1f2e3d", 9)),
    ],
)
def test_where_it_is_asked(changes: dict[str, str], address: tuple[str, int]) -> None:
    """An agent beside us answers on loopback, one in another container under its name."""
    assert presence(**changes).address == address


def test_agent_that_does_not_answer_is_told(tmp_path: Path) -> None:
    """A living agent that cannot be asked is unwell, and one elsewhere names where to ask."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and refuses, as it does not listen
        port = taken.getsockname()[1]
        with (
            announced(tmp_path, presence(name="beside", port=port)),
            announced(tmp_path, presence(name="elsewhere", port=port, machine="1f2e3d")),
        ):
            beside, elsewhere = ask_agents(tmp_path)
    assert not beside.healthy
    assert beside.problem
    assert beside.problem.startswith("does not answer: ")
    assert elsewhere.problem
    assert elsewhere.problem.endswith("; it runs in 1f2e3d: ask there")
