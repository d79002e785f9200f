import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fake_nvml import pynvml as fake

from mlops.agent import nvml
from mlops.agent.gpu_leases import GpuLeases, Shortage
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.agent.status import GpuStatus

RUN, OTHER = UUID(int=1), UUID(int=2)
TWO = {"GPU-a": {"name": "NVIDIA H100"}, "GPU-b": {"name": "NVIDIA L4"}}
Describe = Callable[[dict[str, Any] | None], None]
Agents = Callable[..., GpuLeases]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """Describes the machine to the fake that stands in at the border to NVIDIA's library."""
    monkeypatch.setattr(nvml, "pynvml", fake)
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "machine.json"))

    def describe(devices: dict[str, Any] | None) -> None:
        machine = {} if devices is None else {"devices": devices}
        (tmp_path / "machine.json").write_text(json.dumps(machine))

    describe(TWO)
    return describe


@pytest.fixture
def agent(machine: Describe, tmp_path: Path) -> Agents:
    """Makes agents of one host, which share a cache."""
    del machine

    def make(ids: Sequence[str] | str = ("0", "1")) -> GpuLeases:
        return GpuLeases(tmp_path / "cache", "all" if ids == "all" else ids, worker="agent")

    return make


@contextlib.contextmanager
def run(agent: GpuLeases, count: int = 1) -> Iterator[dict[str, str]]:
    """Do what the agent does for the length of a run; yields what CUDA finds set."""
    number = uuid4()
    assert agent.reserve(number, count) is None
    with agent.lease(number, uuid4().hex) as lease:
        yield lease.environment


def test_runs_get_devices_of_their_own(agent: Agents) -> None:
    """Two agents of one host never give the same device; what a run had is free afterwards."""
    first, second = agent(), agent()
    with run(first) as one, run(second) as other:
        assert {one["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        assert one["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert first.reserve(RUN, 1) == second.reserve(RUN, 1) == Shortage(leased=2, foreign=0)
    with run(second, 2) as both:
        assert both["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert first.reserve(RUN, 1) == Shortage(leased=2, foreign=0)


def test_status_tells_who_has_a_device(agent: Agents, machine: Describe) -> None:
    """Every agent of a host tells whose each device is, and that somebody else uses it."""
    first, second = agent(), agent()
    assert first.reserve(RUN, 1) is None
    machine({"GPU-a": TWO["GPU-a"], "GPU-b": TWO["GPU-b"] | {"pids": [1]}})
    used = GpuStatus(gpu="1", problem="processes that are no runs use it")
    for leases in (first, second):
        assert leases.statuses() == (GpuStatus(gpu="0", flow_run_id=RUN), used)
    first.cancel_reservation(RUN)
    machine(TWO)
    assert second.statuses() == (GpuStatus(gpu="0"), GpuStatus(gpu="1"))
    assert agent(()).statuses() == ()


def test_run_without_gpus_sees_none(agent: Agents) -> None:
    """Without a reservation a run's list of devices is empty, which hides all from CUDA."""
    with agent().lease(RUN, "attempt") as lease:
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == ""
        assert str(lease) == "none"


def test_too_few_free_devices_are_left_to_others(agent: Agents) -> None:
    """A run that does not get all of its devices gets none of them."""
    waiting = agent()
    with run(agent()):
        assert waiting.reserve(RUN, 2) == Shortage(leased=1, foreign=0)
        with run(agent()):
            pass


def test_run_that_was_not_taken_frees_its_devices(agent: Agents) -> None:
    """A reservation is kept, once, until it is cancelled."""
    first, second = agent(), agent()
    assert first.reserve(RUN, 2) is None
    assert first.reserve(RUN, 2) is None
    assert second.reserve(OTHER, 1) == Shortage(leased=2, foreign=0)
    first.cancel_reservation(RUN)
    first.cancel_reservation(RUN)
    assert second.reserve(OTHER, 1) is None


@pytest.mark.parametrize(
    "used",
    [
        {"pids": [4711]},
        {"used": 600 << 20},  # as in a container, where processes of others are not shown
        {"used": 900 << 20, "drawn": 400 << 20},
        {"lost": True},
    ],
)
def test_device_that_is_used_otherwise_is_skipped(
    agent: Agents, machine: Describe, used: dict[str, Any]
) -> None:
    """A process that is no run, its memory alone, or a driver that lost the device keep it back."""
    only = agent()
    machine({"GPU-a": TWO["GPU-a"] | used, "GPU-b": TWO["GPU-b"]})
    assert only.reserve(RUN, 2) == Shortage(leased=0, foreign=1)
    with run(only) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    machine(TWO)
    assert only.reserve(RUN, 2) is None


def test_screen_does_not_keep_a_device(agent: Agents, machine: Describe) -> None:
    """What is drawn with, and what the driver itself takes, is no use by others."""
    machine({"GPU-a": {"name": "NVIDIA RTX", "used": 900 << 20, "drawn": 880 << 20}})
    assert agent("all").reserve(RUN, 1) is None


KILLED = """
import os, subprocess, sys
from pathlib import Path
from uuid import UUID
from fake_nvml import pynvml
sys.modules["pynvml"] = pynvml
from mlops.agent.gpu_leases import GpuLeases
leases = GpuLeases(Path(sys.argv[1]), ["0", "1"], worker="killed")
leases.reserve(UUID(int=1), 1)
with leases.lease(UUID(int=1), sys.argv[2]):
    marked = os.environ | {sys.argv[3]: sys.argv[2]}
    goes_on = subprocess.Popen(["sleep", "600"], env=marked, stdout=2)
    print(goes_on.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_lease_of_a_killed_agent_lasts_as_long_as_its_run(agent: Agents, tmp_path: Path) -> None:
    """A run whose agent was killed keeps its device while it goes on, and not a moment longer."""
    attempt = uuid4().hex
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "cache"), attempt, ATTEMPT_VARIABLE],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    other = agent()
    assert other.reserve(RUN, 2) == Shortage(leased=1, foreign=0)
    os.kill(int(done.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while other.reserve(RUN, 2) is not None:
        assert time.monotonic() < deadline


def test_run_that_leaves_processes_keeps_its_device(agent: Agents) -> None:
    """What a run has left behind may compute still: its device is free when that is gone."""
    leases, attempt = agent(["0"]), uuid4().hex
    assert leases.reserve(RUN, 1) is None
    with leases.lease(RUN, attempt):
        left = subprocess.Popen(["sleep", "600"], env={ATTEMPT_VARIABLE: attempt, **os.environ})
    assert leases.reserve(OTHER, 1) == Shortage(leased=1, foreign=0)
    left.kill()
    left.wait()
    assert leases.reserve(OTHER, 1) is None


@pytest.mark.parametrize("content", ["", "{", '{"flow_run_id": 1}'])
def test_damaged_lease_holds_nothing(agent: Agents, tmp_path: Path, content: str) -> None:
    """A lease's file that a power cut left half written keeps no device back."""
    (tmp_path / "cache/gpus").mkdir(parents=True)
    (tmp_path / "cache/gpus/GPU-a").write_text(content)
    assert agent().reserve(RUN, 2) is None


@pytest.mark.parametrize(
    ("ids", "visible", "told"),
    [
        ("all", "0,1", "0: NVIDIA H100, 1: NVIDIA L4"),
        (("1", "0", "1"), "1,0", "1: NVIDIA L4, 0: NVIDIA H100"),
        (("GPU-b", "0"), "GPU-b,GPU-a", "1: NVIDIA L4, 0: NVIDIA H100"),
        (("MIG-7",), "MIG-7", "MIG-7: MIG"),
    ],
)
def test_devices_are_named_as_cuda_wants_them(
    agent: Agents, machine: Describe, ids: str | tuple[str, ...], visible: str, told: str
) -> None:
    """Numbers stay numbers; with a UUID among them all are UUIDs. Each device counts once."""
    leases = agent(ids)
    machine({**TWO, "MIG-7": {"name": "slice"}})
    assert leases.reserve(RUN, len(leases.devices)) is None
    with leases.lease(RUN, "attempt") as lease:
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == visible
        assert str(lease) == told


def test_missing_devices_are_told(agent: Agents, machine: Describe) -> None:
    """A number that the driver does not know, or a driver that is not there, is named at the start.

    A host without GPUs, of which nobody named any, is as quiet as one that is to use none.
    """
    assert agent(["0", "7"]).problems == ["GPU_IDS: 7: there is no such GPU; there are: 0, 1"]
    assert len(agent(["0", "7"]).devices) == 1
    machine(None)
    (problem,) = agent(["0"]).problems
    assert problem.startswith("GPU_IDS: 0: NVIDIA's driver does not answer: ")
    for ids in ("all", ()):
        assert agent(ids).devices == ()
        assert agent(ids).problems == []
