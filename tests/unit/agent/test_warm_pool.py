"""Which environments have a process that runs are forked from, with real processes."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from mlops.agent.environments import Environment, EnvironmentCache
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.agent.warm_pool import WarmEnvironment, WarmPool
from mlops.agent.warm_server import ForkRequest, WarmServer

VARIABLES = {"PATH": os.defpath, "PREFECT_HOME": "/nonexistent"}


def environment(root: Path, key: str) -> Environment:
    """Return an environment that is this test's own, by another name."""
    folder = root / "builds" / key
    folder.mkdir(parents=True)
    return Environment(
        key=key,
        python=Path(sys.executable),
        python_version="3.11.2",
        folder=folder,
        requirements_hash="0" * 64,
        seconds=0,
    )


def in_pool(tmp_path: Path, limit: int, act: Callable[[WarmPool], Awaitable[None]]) -> None:
    """Do something while a pool works."""

    async def work() -> None:
        cache = EnvironmentCache(tmp_path / "own", limit_bytes=10**9, prebuilt=tmp_path)
        pool = WarmPool(tmp_path, cache, limit=limit, limit_bytes=10**9)
        working = asyncio.create_task(pool.work())
        try:
            await act(pool)
        finally:
            working.cancel()
            await asyncio.wait([working])

    asyncio.run(work())


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)


def test_processes_are_as_many_as_allowed(tmp_path: Path) -> None:
    """One in use gives way to no other environment, which is told why it has none."""
    one, other = environment(tmp_path, "one"), environment(tmp_path, "other")

    async def act(pool: WarmPool) -> None:
        first = pool.want(one, VARIABLES)
        await until(lambda: first.server)
        second = pool.want(other, VARIABLES)
        await until(lambda: second.why_not != WarmEnvironment.why_not)
        assert "MLOPS_WARM_ENVIRONMENTS" in second.why_not
        assert first.server
        assert not second.server

    in_pool(tmp_path, 1, act)


def test_no_process_is_made_where_none_is_allowed(tmp_path: Path) -> None:
    """With a limit of 0 every run starts in a new process, and is told so."""

    async def act(pool: WarmPool) -> None:
        entry = pool.want(environment(tmp_path, "one"), VARIABLES)
        assert entry.why_not == "MLOPS_WARM_ENVIRONMENTS is 0"

    in_pool(tmp_path, 0, act)


def test_forked_process_shows_its_mark_and_its_end(tmp_path: Path) -> None:
    """Others find it by the mark in /proc; that it was killed its parent tells."""

    async def act(pool: WarmPool) -> None:
        entry = pool.want(environment(tmp_path, "one"), VARIABLES)
        await until(lambda: entry.server)
        assert entry.server
        mark = "a" * 32
        # It waits for a server where none is.
        nowhere = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
        variables = {**VARIABLES, **nowhere, ATTEMPT_VARIABLE: mark}
        request = ForkRequest(variables, str(tmp_path), stream_output=False)
        process = await entry.server.fork(request)
        assert psutil.Process(process.pid).environ()[ATTEMPT_VARIABLE] == mark
        process.signal_group(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL

    in_pool(tmp_path, 1, act)


def test_forked_process_that_ends_before_the_agent_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the server may have collected it by then; its end is known all the same."""
    await_start = WarmServer._await_start  # noqa: SLF001

    async def await_start_and_end(server: WarmServer, life_line: asyncio.StreamReader) -> int:
        pid = await await_start(server, life_line)
        while psutil.pid_exists(pid):
            time.sleep(0.01)  # noqa: ASYNC251  # the agent does nothing meanwhile
        return pid

    monkeypatch.setattr(WarmServer, "_await_start", await_start_and_end)

    async def act(pool: WarmPool) -> None:
        entry = pool.want(environment(tmp_path, "one"), VARIABLES)
        await until(lambda: entry.server)
        assert entry.server
        no_folder = str(tmp_path / "missing")
        process = await entry.server.fork(ForkRequest(VARIABLES, no_folder, stream_output=False))
        assert await process.wait() == 1

    in_pool(tmp_path, 1, act)
