"""Agents under test and their peer: who runs the same flows, on work pools of their own."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from measure import announce, wait_until
from platform_under_test import Platform, open_folder, own_platform
from stock import StockServers, stock_servers

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

OURS, STOCK = "bench-ours", "bench-stock"
WHO = {OURS: "our agent", STOCK: "prefect worker start"}
SLOTS = 8
FINAL = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
# Imports come first, as in any flow. The first line of a run is when its function begins.
FLOW = '''\
import time
from pathlib import Path

from prefect import flow

{imports}

@flow
def {name}(first_line: str = "", until: str = "") -> None:
    """Note when it begins, and stay until a file is there."""
    if first_line:
        Path(first_line).write_text(str(time.time()))
    while until and not Path(until).exists():
        time.sleep(0.1)
'''
FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: {name}
  deploy_name: {pool}
  pool_name: {pool}
"""


class Flows:
    """The same flow for each pool, registered by our scheduler, and a client to run it.

    Args:
        platform: It is up.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.folder = platform.home.path.parent
        environment = platform.environment("agent")
        # Prefect reads its settings when it is imported, which is why the import comes after.
        os.environ.update({k: v for k, v in environment.items() if k.startswith("PREFECT_API_")})
        from prefect.client.orchestration import get_client  # noqa: PLC0415

        self.client: SyncPrefectClient = get_client(sync_client=True)
        self._count = 0

    def write(
        self,
        name: str,
        pools: Sequence[str],
        *,
        imports: Sequence[str] = (),
        requirements: str = "",
    ) -> None:
        """Write and register a flow.

        Args:
            name: Of its function.
            pools: One deployment for each.
            imports: Modules.
            requirements: Lines of a requirements.txt.
        """
        for pool in pools:
            folder = self._platform.flow_dir / f"{name}-{pool}"
            folder.mkdir()
            (folder / "flow.yaml").write_text(FLOW_YAML.format(name=name, pool=pool))
            lines = "".join(f"import {module}\n" for module in imports)
            (folder / "flow.py").write_text(FLOW.format(name=name, imports=lines))
            if requirements:
                (folder / "requirements.txt").write_text(requirements)
        self._platform.run("flows", "register")

    def deployment(self, name: str, pool: str) -> "DeploymentResponse":
        """Return a deployment of a flow."""
        return self.client.read_deployment_by_name(f"{name}/{pool}")

    def start(self, deployment: "DeploymentResponse", *, until: str = "") -> tuple[str, Path]:
        """Start a run; return its number, and the file in which it notes its first line."""
        self._count += 1
        note = self.folder / f"first-line-{self._count}"
        parameters = {"first_line": str(note), "until": until}
        run = self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        return str(run.id), note

    def first_line_seconds(self, deployment: "DeploymentResponse") -> float:
        """Run once; return the seconds from the trigger to the flow's first line."""
        triggered = time.time()
        number, note = self.start(deployment)
        self.wait_for_end([number])
        return float(note.read_text()) - triggered

    def wait_for_end(self, numbers: Sequence[str], *, limit_seconds: float = 900) -> float:
        """Wait until runs have ended well; return the seconds that it took.

        Raises:
            RuntimeError: One has not ended well.
        """
        took = wait_until(
            lambda: not self.not_ended(numbers),
            "the runs' end",
            limit_seconds=limit_seconds,
            poll_seconds=0.2 if len(numbers) == 1 else 1,  # asking is work for the server, too
        )
        bad = [run for run in self._runs(numbers) if not (run.state and run.state.is_completed())]
        if bad:
            raise RuntimeError(f"{len(bad)} runs did not complete: {bad[0].state}")
        return took

    def not_ended(self, numbers: Sequence[str]) -> int:
        """Return how many of some runs have not ended; the server counts them."""
        from prefect.client.schemas import filters  # noqa: PLC0415

        not_ended = filters.FlowRunFilterStateType(not_any_=FINAL)
        wanted = filters.FlowRunFilter(
            id=filters.FlowRunFilterId(any_=list(numbers)),
            state=filters.FlowRunFilterState(type=not_ended),
        )
        return self.client.count_flow_runs(flow_run_filter=wanted)

    def starts(self, numbers: Sequence[str]) -> list[int]:
        """Return how often each of some runs was begun."""
        return [run.run_count for run in self._runs(numbers)]

    def seconds_between(self, numbers: Sequence[str]) -> float:
        """Return the time from when an agent takes the first one to the last one's end."""
        from prefect.client.schemas.objects import StateType  # noqa: PLC0415

        taken = min(
            state.timestamp.timestamp()
            for number in numbers
            for state in self.client.read_flow_run_states(UUID(number))
            if state.type == StateType.PENDING
        )
        ended = max(run.end_time.timestamp() for run in self._runs(numbers) if run.end_time)
        return ended - taken

    def pause(self, pool: str, *, is_paused: bool) -> None:
        """Let a pool's runs wait, or go on."""
        from prefect.client.schemas.actions import WorkPoolUpdate  # noqa: PLC0415

        self.client.update_work_pool(pool, WorkPoolUpdate(is_paused=is_paused))

    def _runs(self, numbers: Sequence[str]) -> "list[FlowRun]":
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId  # noqa: PLC0415

        found: list[FlowRun] = []
        for at in range(0, len(numbers), 200):  # the server's page
            ids = FlowRunFilterId(any_=list(numbers[at : at + 200]))
            found += self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids))
        return found


class Agents:
    """Our agents and the stock worker, each started in the background.

    Args:
        platform: Whose servers they use.
        servers: Where they are kept track of.
    """

    def __init__(self, platform: Platform, servers: StockServers) -> None:
        self._platform = platform
        self._servers = servers

    def start(self, name: str, pool: str, *, slots: int = SLOTS, api: str = "") -> None:
        """Start one.

        Args:
            name: For its log, and to stop it.
            pool: Its work pool, which says whose it is.
            slots: Runs at a time.
            api: Another address of the Prefect server.
        """
        environment = self._platform.environment("agent")
        if api:
            environment["PREFECT_API_URL"] = api
        folder = self._servers.folder
        if pool == STOCK:
            command = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
            environment["PREFECT_HOME"] = str(folder / name)
        else:
            command = ["mlops", "agent", "start", "--name", name]
            environment |= {
                "POOL_NAME": pool,
                "MLOPS_CACHE_DIR": str(folder / "cache"),
                "PREFECT_HOME": str(folder / "cache" / "prefect"),
            }
        command += ["--limit", str(slots)]
        self._servers.start(name, [sys.executable, "-m", *command], environment)

    def stop(self, name: str) -> None:
        """Stop one."""
        self._servers.stop(name)

    def memory_bytes(self, name: str) -> int:
        """Return the memory of one with all of its processes (PSS)."""
        return self._servers.memory().get(name, 0)

    def wait_until_warm(self, name: str, count: int = 1) -> None:
        """Wait until one of ours has said so often that it is warm, and then a moment more."""
        log = self._servers.folder / f"{name}.log"
        wait_until(lambda: log.read_text().count(": warm in ") >= count, f"{name} is warm")


@contextmanager
def agents_under_test() -> Iterator[tuple[Platform, Flows, Agents]]:
    """Start a platform whose own agent is stopped, and leave nothing running."""
    with (
        open_folder() as folder,
        own_platform(folder) as platform,
        stock_servers(folder) as servers,
    ):
        platform.run("local", "up")
        platform.stop("agent")
        yield platform, Flows(platform), Agents(platform, servers)


def warm_up(flows: Flows, agents: Agents, name: str, pools: Sequence[str]) -> None:
    """Run a flow once on each pool, and wait until ours has a warm process for it."""
    announce(f"{name}: one run of each, not counted")
    for pool in pools:
        flows.first_line_seconds(flows.deployment(name, pool))
    if OURS in pools:
        agents.wait_until_warm(OURS)
        flows.first_line_seconds(flows.deployment(name, OURS))
