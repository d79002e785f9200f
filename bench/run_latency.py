"""From trigger to Completed of an empty flow: our agent against an unmodified Prefect worker.

The peer is `prefect worker start` on a work pool of its own, with its stock settings, on the same
Prefect server and in the same Python environment as our agent. Both run the same flow, which our
scheduler has registered, in turn; one run of each, not counted, comes first. Each trigger waits
for a random moment of the stock worker's poll interval (10 s), so that neither gains from when it
is asked. Times are those of the states in Prefect.
"""

import os
import random
import time
from typing import TYPE_CHECKING

from measure import Findings, Measure, announce, compare, run_bench, wait_until
from platform_under_test import Platform, open_folder, own_platform
from stock import stock_servers

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

FLOW = '''\
from prefect import flow


@flow
def empty() -> None:
    """Do nothing."""
'''
FLOW_YAML = """\
deployment:
  flow_py_name: empty.py
  flow_name: empty
  deploy_name: {name}
  pool_name: {pool}
"""
POOLS = {"ours": "default-agent-pool", "stock": "bench-stock"}
WHO = {"ours": "our agent", "stock": "prefect worker start"}
POLL_INTERVAL_SECONDS = 10.0  # PREFECT_WORKER_QUERY_SECONDS, as it comes


def bench(rounds: int) -> Findings:
    """Run the flow `rounds` times on each.

    Args:
        rounds: How often.
    """
    moments = random.Random(0)  # noqa: S311  # no secret
    running: dict[str, list[float]] = {name: [] for name in POOLS}
    completed: dict[str, list[float]] = {name: [] for name in POOLS}
    with (
        open_folder() as folder,
        own_platform(folder) as platform,
        stock_servers(folder) as servers,
    ):
        _write_flows(platform)
        platform.run("local", "up")
        environment = platform.environment("agent")
        servers.start_worker("worker", POOLS["stock"], environment)
        platform.run("flows", "register")
        with _prefect(environment) as client:
            deployments = {name: client.read_deployment_by_name(f"empty/{name}") for name in POOLS}
            announce("one run of each, which makes our agent's environment for the flow")
            for deployment in deployments.values():
                _run(client, deployment)
            for number in range(rounds):
                announce(f"round {number + 1} of {rounds}")
                for name, deployment in deployments.items():
                    time.sleep(moments.uniform(0, POLL_INTERVAL_SECONDS))
                    until_running, until_completed = _run(client, deployment)
                    running[name].append(until_running)
                    completed[name].append(until_completed)
    measures = {
        (step, name): Measure(
            what=f"trigger to {step}, {WHO[name]}", unit="s", values=tuple(values[name])
        )
        for step, values in (("Running", running), ("Completed", completed))
        for name in POOLS
    }
    return (
        list(measures.values()),
        [compare(measures[s, "ours"], measures[s, "stock"]) for s in ("Running", "Completed")],
    )


def _write_flows(platform: Platform) -> None:
    for name, pool in POOLS.items():
        folder = platform.flow_dir / name
        folder.mkdir()
        (folder / "flow.yaml").write_text(FLOW_YAML.format(name=name, pool=pool))
        (folder / "empty.py").write_text(FLOW)


def _prefect(environment: dict[str, str]) -> "SyncPrefectClient":
    # Prefect reads its settings when it is imported, which is why the import comes after.
    os.environ.update({k: v for k, v in environment.items() if k.startswith("PREFECT_API_")})
    from prefect.client.orchestration import get_client  # noqa: PLC0415

    return get_client(sync_client=True)


def _run(client: "SyncPrefectClient", deployment: "DeploymentResponse") -> tuple[float, float]:
    """Run once; return the seconds from the trigger to Running and to Completed."""
    triggered = time.time()
    flow_run = client.create_flow_run_from_deployment(deployment.id)

    def has_ended() -> bool:
        state = client.read_flow_run(flow_run.id).state
        return bool(state and state.is_final())

    wait_until(has_ended, f"{deployment.name}: the run", poll_seconds=0.2)
    states = client.read_flow_run_states(flow_run.id)
    at = {state.name: state.timestamp.timestamp() - triggered for state in states}
    if "Completed" not in at:
        raise RuntimeError(f"{deployment.name}: {states[-1].name}: {states[-1].message}")
    return at["Running"], at["Completed"]


if __name__ == "__main__":
    run_bench(bench, rounds=10)
