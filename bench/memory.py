"""Memory of the whole idle embedded platform against the same servers at their stock settings.

The peer: PostgreSQL, `rclone serve s3`, `prefect server start`, `mlflow server` (which starts
four workers and its job runners) and `prefect worker start`, all of them up together, and only
while ours are down. Both have been idle for a while when they are measured. Memory is PSS: a
page that processes share counts once.
"""

import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from measure import Findings, Measure, announce, compare, hold_against, run_bench, wait_until
from platform_under_test import Platform, free_ports, open_folder, own_platform
from stock import StockServers, mlflow_is_ready, prefect_is_ready, stock_postgres, stock_servers

from mlops.local.home import HOST

LIMIT_MEGABYTES = 1100.0
SETTLE_SECONDS = 45.0  # the first passes of Prefect's background services are over by then
MEGABYTE = 1e6


def bench(rounds: int) -> Findings:
    """Measure both platforms `rounds` times, in turn.

    Args:
        rounds: How often.
    """
    ours: list[dict[str, int]] = []
    stock: list[dict[str, int]] = []
    with open_folder() as folder, own_platform(folder) as platform:
        for number in range(rounds):
            announce(f"round {number + 1} of {rounds}")
            ours.append(_measure_ours(platform))
            place = folder / str(number)
            place.mkdir()
            stock.append(_measure_stock(place))
    whole = _measure("the whole platform", ours, sorted(ours[0]))
    stock_whole = _measure("the servers at stock settings", stock, sorted(stock[0]))
    parts = [_measure(f"  our {name}", ours, [name]) for name in sorted(ours[0])]
    stock_parts = [_measure(f"  stock {name}", stock, [name]) for name in sorted(stock[0])]
    return (
        [whole, *parts, stock_whole, *stock_parts],
        [hold_against(whole, LIMIT_MEGABYTES), compare(whole, stock_whole)],
    )


def _measure(what: str, rounds: list[dict[str, int]], names: list[str]) -> Measure:
    return Measure(
        what=what,
        unit="MB",
        values=tuple(sum(each.get(name, 0) for name in names) / MEGABYTE for each in rounds),
    )


def _measure_ours(platform: Platform) -> dict[str, int]:
    platform.run("local", "up")
    time.sleep(SETTLE_SECONDS)
    try:
        return platform.memory()
    finally:
        platform.run("local", "down")


def _measure_stock(folder: Path) -> dict[str, int]:
    with ExitStack() as stack:
        servers = stack.enter_context(stock_servers(folder))
        cluster = stack.enter_context(stock_postgres(folder, servers))
        prefect_database = stack.enter_context(cluster.database("asyncpg"))
        mlflow_database = stack.enter_context(cluster.database("psycopg2"))
        _start_rclone(folder, servers)
        prefect = servers.start_prefect("prefect", prefect_database)
        mlflow = servers.start_mlflow("mlflow", mlflow_database, {})
        wait_until(lambda: prefect_is_ready(prefect), "prefect server start")
        wait_until(lambda: mlflow_is_ready(mlflow), "mlflow server")
        servers.start_worker("agent", "bench", {"PREFECT_API_URL": f"{prefect}/api"})
        time.sleep(SETTLE_SECONDS)
        memory = servers.memory()
        for name in ("agent", "mlflow", "prefect"):  # before their databases go
            servers.stop(name)
        return memory


def _start_rclone(folder: Path, servers: StockServers) -> None:
    programs = Path(sys.executable).parent
    rclone = shutil.which("rclone", path=str(programs)) or "rclone"
    (port,) = free_ports(1)
    objects = folder / "objects"
    objects.mkdir()
    # A configuration file of the user's is none of ours.
    command = [rclone, "serve", "s3", "--addr", f"{HOST}:{port}", "--config", "", str(objects)]
    servers.start("s3", command, {})


if __name__ == "__main__":
    run_bench(bench, rounds=3)
