import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from fake_nvml import pynvml as fake
from prefect.client.schemas.objects import FlowRun

from mlops.agent import gpu_gate, nvml
from mlops.agent.gpu_gate import GpuGate
from mlops.agent.gpu_leases import GpuLeases
from mlops.agent.job import Demands
from mlops.errors import MlopsError

MACHINE = '{"devices": {"GPU-a": {"name": "a"}, "GPU-b": {"name": "b"%s}}}'


class Agent:
    """An agent with two GPUs (of the fake at the border to NVIDIA's library) and a queue."""

    def __init__(self, cache: Path) -> None:
        self.leases = GpuLeases(cache, "all", worker="agent")
        self.slots = 10
        self.told: dict[str, str] = {}
        self._gate = GpuGate(
            self.leases,
            self._demands,
            lambda: self.slots,
            lambda run, line: self.told.update({run.name: line}),
        )

    async def _demands(self, run: FlowRun) -> Demands:
        if run.name == "wrong":
            raise MlopsError("job variable gpus: makes no sense")
        if run.name == "away":
            raise ConnectionError
        return Demands(gpus=int(run.name.partition("-")[0]))

    def admit(self, *names: str) -> list[str]:
        """Return which of the runs, named after the GPUs that they need, may be taken."""
        runs = [FlowRun(id=UUID(int=hash(n) % 10**9), flow_id=UUID(int=1), name=n) for n in names]
        return [run.name for run in asyncio.run(self._gate.admit(runs))]

    def end(self, name: str) -> None:
        """Free what was kept for a run."""
        self.leases.cancel_reservation(UUID(int=hash(name) % 10**9))


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Sets what else the fake says of the second device."""
    monkeypatch.setattr(nvml, "pynvml", fake)
    monkeypatch.setattr(gpu_gate, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "machine.json"))
    return lambda more: (tmp_path / "machine.json").write_text(MACHINE % more)


@pytest.fixture
def agent(describe: Callable[[str], object], tmp_path: Path) -> Agent:
    describe("")
    return Agent(tmp_path)


def test_runs_without_gpus_are_never_held_back(agent: Agent) -> None:
    """A run that needs no GPU passes those that wait for one."""
    assert agent.admit("1-a", "1-b", "1-c", "0-a", "0-b") == ["1-a", "1-b", "0-a", "0-b"]


def test_no_more_are_taken_than_there_are_slots(agent: Agent) -> None:
    """Nothing is kept for a run that has no slot."""
    agent.slots = 1
    assert agent.admit("1-a", "1-b") == ["1-a"]
    assert agent.leases.reserve(UUID(int=7), 1) is None


def test_run_with_many_gpus_is_not_overtaken(agent: Agent) -> None:
    """While the first in the queue waits for what is leased, later ones leave the rest to it."""
    assert agent.admit("1-a") == ["1-a"]
    assert agent.admit("2-b", "1-c", "0-d") == ["0-d"]
    assert agent.told["2-b"].startswith("waits for 2 GPUs: other runs have 1 of this agent's")
    agent.end("1-a")
    assert agent.admit("2-b", "1-c") == ["2-b"]


def test_what_others_hold_blocks_nobody(agent: Agent, describe: Callable[[str], object]) -> None:
    """A run that waits for somebody's process, or for ever, does not keep back those behind it."""
    describe(', "pids": [1]')
    assert agent.admit("3-a", "2-b", "1-c") == ["1-c"]
    assert "asks for 3 GPUs, and this agent has 2" in agent.told["3-a"]
    assert "processes that are no runs use 1" in agent.told["2-b"]


def test_waiting_is_told_once(agent: Agent) -> None:
    """A run's log is not filled with the same line at every look at the queue."""
    agent.admit("3-a")
    assert agent.told.pop("3-a")
    agent.admit("3-a")
    assert agent.told == {}


def test_senseless_demand_is_taken_to_be_refused(agent: Agent) -> None:
    """A run whose variables make no sense begins, so that it fails with that as its message."""
    assert agent.admit("wrong") == ["wrong"]


def test_nothing_stays_kept_when_the_server_goes_away(agent: Agent) -> None:
    """Devices of runs that were admitted in a look that failed are free again."""
    with pytest.raises(ConnectionError):
        agent.admit("2-a", "away")
    assert agent.leases.reserve(UUID(int=7), 2) is None
