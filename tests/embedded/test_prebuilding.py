"""Environments that are there before the first run asks, on real servers."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from mlops.agent.code_cache import CodeCache
from mlops.agent.environments import EnvironmentCache
from mlops.agent.prebuilding import Prebuilding
from mlops.prefect_api import PrefectApi, ensure_work_pool
from mlops.settings import AgentSettings

pytestmark = pytest.mark.requires("package-index")
POOL = "ahead"
IMPOSSIBLE = {"requirements.txt": "six==0.0.0\n"}
LIMIT = 10**11


def register(platform: Platform, folder: Path) -> None:
    done = platform.cli("flows", "register", str(folder))
    assert done.returncode == 0, done.stderr


def test_registered_flow_has_its_environment_before_its_first_run(
    platform: Platform, tmp_path: Path
) -> None:
    """The agent builds it when the server tells of the deployment; the first run says so."""
    root = platform.home / "agent" / "environments"
    flow = {"requirements.txt": "six==1.16.0\n"}
    register(platform, write_flow(tmp_path / "prebuilt", "import six", files=flow))
    register(platform, write_flow(tmp_path / "prebuilt-not", "pass", files=IMPOSSIBLE))

    def proven() -> bool:
        builds = (mark.parent for mark in root.glob("builds/*/mlops-proven"))
        return any(any(build.glob("lib/*/site-packages/six-1.16.0.dist-info")) for build in builds)

    wait_for(proven, 300)
    done = platform.cli("flows", "run", "prebuilt/prebuilt", "--follow")
    assert done.returncode == 0, done.stderr
    assert "being built already" not in done.stdout
    assert "was built ahead of time, which said:" in done.stdout

    def told() -> bool:
        return "prebuilt-not: not made ready" in platform.cli("local", "logs", "agent").stdout

    wait_for(told, 60)


def test_environment_in_which_prefect_does_not_start_is_said_and_dropped(
    platform: Platform, tmp_path: Path
) -> None:
    """The resolver takes these pins, and Prefect cannot: the run says so, and nothing is kept."""
    pins = {"requirements.txt": "pydantic-settings==2.3.0\n"}
    register(platform, write_flow(tmp_path / "does-not-start", "pass", files=pins))
    done = platform.cli("flows", "run", "does-not-start/does-not-start", "--follow")
    assert done.returncode == 1
    run_id = done.stdout.split("/runs/flow-run/")[1].split()[0]
    servers = Servers(platform)
    reason = "No module named 'pydantic_settings.exceptions'"
    assert wait_for(lambda: reason in servers.log(run_id), 15)  # lines arrive after the end
    state = servers.prefect.get(f"/flow_runs/{run_id}").json()["state"]
    assert state["type"] == "CRASHED"
    assert "Prefect does not start in its environment" in state["message"]
    root = platform.home / "agent" / "environments"

    def dropped() -> bool:
        """Return whether no record names the build; the agent may be building it ahead."""
        builds = root.glob("builds/*/lib/*/site-packages/pydantic_settings-2.3.0.dist-info")
        broken = {build.parents[3].name for build in builds}
        return not any(name in path.read_text() for path in root.glob("*.json") for name in broken)

    wait_for(dropped, 120)


@pytest.fixture
def settings(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AgentSettings]:
    """An agent's, for a pool that no agent serves, and with caches of its own."""
    environment = platform.environment("agent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POOL_NAME", POOL)
    monkeypatch.setenv("MLOPS_CACHE_DIR", str(tmp_path / "cache"))
    told = {
        PREFECT_API_URL: environment["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
    }
    with temporary_settings(told):
        yield AgentSettings()


def test_the_start_looks_at_what_is_on_in_the_pool(
    platform: Platform, settings: AgentSettings, tmp_path: Path
) -> None:
    """Deployments that are paused, or another pool's, are left alone at the start."""
    with contextlib.closing(PrefectApi(settings)) as api:
        ensure_work_pool(api, POOL)
    servers = Servers(platform)
    names = ["at-start", "at-start-paused", "at-start-elsewhere"]
    for name in names:
        pool = "default-agent-pool" if name.endswith("elsewhere") else POOL
        write_flow(tmp_path / "flows" / name, "pass", pool=pool, files=IMPOSSIBLE)
    register(platform, tmp_path / "flows")
    ids = {name: servers.deployment(name)["id"] for name in names}
    paused = servers.prefect.patch(f"/deployments/{ids[names[1]]}", json={"paused": True})
    assert paused.is_success

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    slots = iter([False])
    prebuilding = Prebuilding(
        settings,
        CodeCache(settings.mlops_cache_dir, limit_bytes=LIMIT),
        EnvironmentCache(settings.mlops_cache_dir / "environments", limit_bytes=LIMIT),
        lambda: next(slots, True),
        settle_seconds=0,
    )

    async def look() -> None:
        working = asyncio.create_task(prebuilding.work())

        async def hear(count: int) -> None:
            async with asyncio.timeout(120):
                while len(said) < count:
                    assert not working.done()
                    await asyncio.sleep(0.05)

        await hear(1)
        # An event tells of each deployment that changes, paused or not, of any pool.
        for name in reversed(names):
            prebuilding.deployment_changed(UUID(ids[name]))
        await hear(3)
        working.cancel()

    logger = logging.getLogger("prefect.mlops.agent")
    logger.addHandler(handler)
    try:
        asyncio.run(look())
    finally:
        logger.removeHandler(handler)
    assert [line.split()[1] for line in said] == ["at-start:", "at-start-paused:", "at-start:"]
    assert "not made ready ahead of time" in said[0]
    assert "six==0.0.0" in said[0]
