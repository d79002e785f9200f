"""`mlops local up`, from stopped to healthy, against its servers started one at a time.

The peers, each with PostgreSQL and the object store up already and its tables made:
our Prefect and MLflow servers (the same commands, settings and health checks as in `local up`),
and the stock `prefect server start` and `mlflow server`, the latter also with our settings: one
worker, and no processes for jobs. One round starts each of them once.
"""

from operator import attrgetter

from measure import Findings, Measure, announce, compare, run_bench, wait_until
from platform_under_test import open_folder, own_platform
from stock import (
    WITHOUT_JOBS,
    StockServers,
    mlflow_is_ready,
    platform_cluster,
    prefect_is_ready,
    stock_servers,
)

LIMIT = 1.5
ONE_WORKER = "mlflow server, one worker"


def bench(rounds: int) -> Findings:
    """Start everything `rounds` times.

    Args:
        rounds: How often.
    """
    up: list[float] = []
    alone: dict[str, list[float]] = {name: [] for name in ("prefect", "mlflow")}
    stock: dict[str, list[float]] = {
        name: [] for name in ("prefect server start", "mlflow server", ONE_WORKER)
    }
    with (
        open_folder() as folder,
        own_platform(folder) as platform,
        stock_servers(folder) as servers,
    ):
        announce("the first start, which makes the databases")
        first = platform.run("local", "up")
        cluster = platform_cluster(platform)
        with cluster.database("psycopg2") as mlflow, cluster.database("asyncpg") as prefect:
            announce("the stock servers' first start, which makes their tables")
            platform.stop_all_but(("postgres", "s3"))
            for name in ("prefect server start", "mlflow server"):
                _start_stock(servers, name, mlflow, prefect)
            for number in range(rounds):
                announce(f"round {number + 1} of {rounds}")
                platform.run("local", "down")
                up.append(platform.run("local", "up"))
                platform.stop_all_but(("postgres", "s3"))
                for name, values in alone.items():
                    values.append(platform.start_alone(name))
                    platform.stop_all_but(("postgres", "s3"))
                for name, values in stock.items():
                    values.append(_start_stock(servers, name, mlflow, prefect))
    whole = _measure("local up, everything", up)
    ours = [_measure(f"our {name} server alone", values) for name, values in alone.items()]
    theirs = [_measure(f"{name}, alone", values) for name, values in stock.items()]
    by_median = attrgetter("median")
    return (
        [_measure("local up, the first time", [first]), whole, *ours, *theirs],
        [
            compare(whole, max(ours, key=by_median), LIMIT),
            compare(whole, max(theirs, key=by_median), LIMIT),
            compare(whole, next(m for m in theirs if m.what.startswith(ONE_WORKER)), LIMIT),
        ],
    )


def _measure(what: str, values: list[float]) -> Measure:
    return Measure(what=what, unit="s", values=tuple(values))


def _start_stock(servers: StockServers, name: str, mlflow: str, prefect: str) -> float:
    """Start a stock server, return the seconds until it answers, and stop it."""
    if name == "prefect server start":
        url, is_ready = servers.start_prefect("server", prefect), prefect_is_ready
    elif name == ONE_WORKER:
        url = servers.start_mlflow("server", mlflow, WITHOUT_JOBS, "--workers", "1")
        is_ready = mlflow_is_ready
    else:
        url, is_ready = servers.start_mlflow("server", mlflow, {}), mlflow_is_ready
    try:
        return wait_until(lambda: is_ready(url), name)
    finally:
        servers.stop("server")


if __name__ == "__main__":
    run_bench(bench, rounds=5)
