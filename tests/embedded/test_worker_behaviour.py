"""Ordinary flows behave on our agent as on an unmodified Prefect worker."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for
from embedded.own_agent import own_agent
from embedded.worker_pools import PLAINLY, POOLS, VARIABLES, Runs, drive, register, stock_worker

STARTED = ["Scheduled", "Pending", "Running"]
AGAIN = ["AwaitingRetry", "Running", "Completed"]
CANCELLED = ["Cancelling", "Cancelled"]
# What follows Running, and words of the last message.
ENDINGS = {
    "untidy": (["Completed"], []),
    "seeded": (["Completed"], []),
    "parts": (AGAIN, []),
    "later": (AGAIN, []),
    "raises": (["Failed"], ["ValueError: no good data"]),
    "slow": (["TimedOut"], ["exceeded timeout of 1.0 second"]),
    "exits": (["Crashed"], []),
    "leaves": (["Crashed"], ["code", "3"]),
    "killed": (["Crashed"], ["SIGKILL"]),
    "cancelled": (CANCELLED, ["cancelled successfully"]),
    "stubborn": (CANCELLED, ["cancelled successfully"]),
}
HOOKS = {
    "untidy": "Completed",
    "raises": "Failed",
    "slow": "TimedOut",
    "exits": "Crashed",
    "leaves": "Crashed",
    "killed": "Crashed",
    "cancelled": "Cancelling",
    "stubborn": "Cancelling",
}
SUDDEN = {"leaves", "killed"}  # their last lines stay behind
PLAIN = {"stubborn", "seeded"}  # of ours: before there is what to fork, and with PYTHONHASHSEED
SQUARES = [0, 1, 4]


@pytest.fixture(scope="module")
def pools(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Runs]]:
    """All runs of both pools, started together.

    Ours has an agent that no other test's environments keep from having a process to fork.
    """
    register(platform, tmp_path_factory.mktemp("behaviours"))
    with (
        own_agent(platform, POOLS["ours"], tmp_path_factory.mktemp("ours")) as our_log,
        stock_worker(platform, tmp_path_factory.mktemp("stock")) as stock_log,
    ):
        logs = {"ours": our_log, "stock": stock_log}
        servers = Servers(platform)
        pools = {
            name: Runs(servers, name, tmp_path_factory.mktemp(f"told-{name}"), logs[name])
            for name in POOLS
        }
        drive(**pools)
        yield pools
        for runs in pools.values():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(runs.fact("untidy", "left")).kill()


@pytest.fixture(params=POOLS)
def runs(pools: dict[str, Runs], request: pytest.FixtureRequest) -> Runs:
    """The runs of one pool."""
    return pools[request.param]


@pytest.mark.parametrize("case", ENDINGS)
def test_run_goes_through_the_same_states(runs: Runs, case: str) -> None:
    """A run that ends well, fails, is tried again, dies or is cancelled is reported so."""
    states, words = ENDINGS[case]
    assert runs.states(case) == [*STARTED, *states]
    run = runs.read(case)
    assert run["run_count"] == (2 if states == AGAIN else 1)
    assert all(word in (run["state"]["message"] or "") for word in words)


@pytest.mark.parametrize("case", HOOKS)
def test_hook_runs_once(runs: Runs, case: str) -> None:
    """Whether the flow's process calls it, or the worker when that is gone."""
    assert runs.fact(case, "hook") == HOOKS[case]
    assert runs.ended(case)
    assert sum("hook" in line for line in runs.told(case)) == 1


def test_log_has_a_runs_own_lines(runs: Runs) -> None:
    """A run's log has what it logs, prints and dies of, and nothing of others."""
    for case in runs.begun:
        runs.ended(case)
        log = runs.log(case, "" if case in SUDDEN else f"{case} prints")
        assert case in SUDDEN or f"{case} logs\n" in log
        assert not any(f"{other} logs" in log for other in runs.cases if other != case)
        assert (f"{case} logs a detail" in log) == (
            "PREFECT_LOGGING_LEVEL" in VARIABLES.get(case, {})
        )
    log = runs.log("raises", "Traceback (most recent call last)")
    assert 'raise ValueError("no good data")' in log


def test_output_of_runs_goes_to_the_workers_own(runs: Runs) -> None:
    """So do lines of their children, very long ones, and the last before the end, each once."""
    expected = ["untidy-wrote-much", "untidy-wrote-last"]
    expected += [f"{case}-on-{stream}" for case in runs.begun for stream in ("stdout", "stderr")]
    for text in expected:
        assert runs.output(text).count(text) == 1


def test_flow_works_with_tasks_threads_and_processes(runs: Runs) -> None:
    """All that a flow may start works, in a flow that is tried for the second time."""
    expected = {
        "retried": 2,
        "mapped": SQUARES,
        "met": [True, True, True],
        "subflow": 9,
        "asynchronous": 9,
        "other_process": True,
        "spawned": 0,
        "pooled": SQUARES,
        "executed": SQUARES,
        "threaded": SQUARES,
        "same_python": True,
    }
    assert {key: runs.fact("parts", key) for key in expected} == expected
    below = ["below", "below-in-processes", "below-later", "meet", "meet", "meet", "second_time"]
    found = runs.subordinates("parts")
    assert sorted(found) == [(name, "COMPLETED") for name in [*below, "square", "square", "square"]]


def test_asynchronous_flow_works(runs: Runs) -> None:
    """So do tasks, subflows and processes of an asynchronous flow."""
    expected = {
        "gathered": SQUARES,
        "submitted": 9,
        "subflow": 9,
        "synchronous": 9,
        "exit_code": 3,
    }
    assert {key: runs.fact("later", key) for key in expected} == expected


def test_heartbeats_come_as_often_as_asked(runs: Runs) -> None:
    """A run that lives for over 30 seconds, the least interval, has two or more."""
    assert runs.ended("stubborn")
    wait_for(lambda: runs.heartbeats("stubborn") >= 2, 10)


def test_runs_variables_are_its_own(runs: Runs) -> None:
    """What a run's job variables set, its process, its children and libraries find; no other's."""
    for case in runs.begun:
        own = case == "raises"
        assert ("ONLY_HERE" in runs.fact(case, "environment")) == own
        assert ("ONLY_HERE=yes" in runs.fact(case, "inherited")) == own
        assert (runs.fact(case, "timezone") == "CST") == own
        assert runs.fact(case, "detail") == own
        assert runs.fact(case, "python")["hash_randomization"] == (case != "seeded")


def test_process_is_as_the_unmodified_workers(pools: dict[str, Runs]) -> None:
    """Signals, limits, streams and the interpreter's state are those of a fresh process.

    Whatever a run before it has changed in its own.
    """
    expected = pools["stock"].fact("exits", "alike")
    assert expected["left_behind"] == [False, False]
    for runs in pools.values():
        for case in runs.begun:
            found = runs.fact(case, "alike")
            if case == "later":  # asyncio has a handler of its own
                found |= {key: expected[key] for key in ("handlers", "signals")}
            assert found == expected, f"{runs.name}: {case}"


def test_chance_differs_between_runs(pools: dict[str, Runs]) -> None:
    """No two processes draw the same random numbers, names or keys."""
    drawn: dict[str, list[str]] = {}
    for runs in pools.values():
        for case in runs.begun:
            for key, value in runs.fact(case, "unlike").items():
                drawn.setdefault(key, []).append(value)
    assert {key for key, values in drawn.items() if len(set(values)) < len(values)} == set()


def test_run_inherits_nothing_open(runs: Runs) -> None:
    """No file, socket or pipe of the worker or of another run, and no port, is open in a run.

    But for the pipe on which a forked run tells our agent how it ends.
    """
    for case in runs.begun:
        found = runs.fact(case, "open")
        pipes = found.pop("pipes")
        is_forked = runs.name == "ours" and case not in PLAIN
        assert found == {"files": [], "listening": [], "sockets": []}, case
        assert len(pipes) == (1 if is_forked else 0), case


def test_run_is_the_leader_of_its_own_group(runs: Runs) -> None:
    """What it signals to its group reaches neither its worker nor other runs."""
    for case in runs.begun:
        process = runs.fact(case, "process")
        assert process["pid"] == process["session"] == process["group"], case


def test_run_has_its_folder_for_itself(runs: Runs) -> None:
    """It is the working directory, with the files beside the code; it goes when the run ends."""
    folders = []
    for case in runs.begun:
        place, python = runs.fact(case, "place"), runs.fact(case, "python")
        assert place["beside"] == "beside the code\n"
        assert "written-by-a-run" not in place["files"]
        assert runs.fact(case, "written") == case
        assert place["code"] == f"{place['path']}/surroundings.py"
        assert python["path"][0] == place["path"]
        assert "/left/behind" not in python["path"]
        assert Path(python["executable"]).is_relative_to(python["prefix"])
        runs.ended(case)
        wait_for(lambda path=Path(place["path"]): not path.exists(), 30)  # type: ignore[misc]
        folders.append(place["path"])
    assert len(set(folders)) == len(folders)


def test_process_comes_to_its_end(runs: Runs) -> None:
    """Threads are waited for and exit handlers called; a child may outlive a completed flow."""
    assert runs.fact("untidy", "lingered")
    assert runs.fact("untidy", "at_exit")
    assert runs.fact("exits", "at_exit")
    assert runs.ended("untidy")
    assert psutil.Process(runs.fact("untidy", "left")).name() == "sleep"


def test_result_is_kept(runs: Runs) -> None:
    """What a flow returns is where Prefect says."""
    data: dict[str, Any] = runs.ended("untidy")["state"]["data"]
    assert "untidy is done" in Path(data["storage_key"]).read_text()


@pytest.mark.parametrize("case", ["cancelled", "stubborn"])
def test_cancelled_flow_leaves_no_process(runs: Runs, case: str) -> None:
    """Nor its children, whether it started or forked them."""
    assert runs.ended(case)
    pids = runs.left_processes(case)
    assert len(pids) == 3
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)


def test_run_that_waits_is_cancelled_at_once(runs: Runs) -> None:
    """Without a process."""
    runs.start_later("unwanted")
    runs.cancel("unwanted")
    assert runs.states("unwanted") == ["Scheduled", "Cancelled"]
    assert runs.told("unwanted") == []


def test_our_run_is_cancelled_before_its_flow_began(pools: dict[str, Runs]) -> None:
    """It ends, though Prefect's own worker leaves it in Cancelling."""
    runs = pools["ours"]
    assert runs.states("withdrawn")[-2:] == CANCELLED
    assert all("hook" in line for line in runs.told("withdrawn"))


def test_our_runs_are_forked(pools: dict[str, Runs]) -> None:
    """All of this is said of forked runs; one that sets what Python reads at its start is not."""
    runs = pools["ours"]
    for case in runs.begun:
        runs.ended(case)
        is_plain = PLAINLY in runs.log(case, "")
        assert is_plain == (case in PLAIN), case
