"""`mlops local up`, from stopped to healthy, against its servers started one at a time.

The peers, each with PostgreSQL and the object store up already and its tables made:
our Prefect and MLflow servers (the same commands, settings and health checks as in `local up`),
and `prefect server start` and `mlflow server` as they come. One round starts each of them once.
"""

from measure import Findings, Measure, announce, compare, run_bench, wait_until
from platform_under_test import open_folder, own_platform
from stock import StockServers, mlflow_is_ready, platform_cluster, prefect_is_ready, stock_servers

LIMIT = 1.5


def bench(rounds: int) -> Findings:
    """Start everything `rounds` times.

    Args:
        rounds: How often.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("up", "prefect", "mlflow")}
    stock: dict[str, list[float]] = {name: [] for name in ("prefect", "mlflow")}
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
            _start_stock_mlflow(servers, mlflow)
            _start_stock_prefect(servers, prefect)
            for number in range(rounds):
                announce(f"round {number + 1} of {rounds}")
                platform.run("local", "down")
                seconds["up"].append(platform.run("local", "up"))
                platform.stop_all_but(("postgres", "s3"))
                for name in ("prefect", "mlflow"):
                    seconds[name].append(platform.start_alone(name))
                    platform.stop_all_but(("postgres", "s3"))
                stock["mlflow"].append(_start_stock_mlflow(servers, mlflow))
                stock["prefect"].append(_start_stock_prefect(servers, prefect))
    up = Measure(what="local up, everything", unit="s", values=tuple(seconds["up"]))
    alone = [
        Measure(what=f"our {name} server alone", unit="s", values=tuple(seconds[name]))
        for name in ("prefect", "mlflow")
    ]
    stock_alone = [
        Measure(what=f"{command}, as it comes", unit="s", values=tuple(stock[name]))
        for name, command in (("prefect", "prefect server start"), ("mlflow", "mlflow server"))
    ]
    return (
        [
            Measure(what="local up, the first time", unit="s", values=(first,)),
            up,
            *alone,
            *stock_alone,
        ],
        [
            compare(up, max(alone, key=lambda measure: measure.median), LIMIT),
            compare(up, max(stock_alone, key=lambda measure: measure.median)),
        ],
    )


def _start_stock_mlflow(servers: StockServers, database: str) -> float:
    url = servers.start_mlflow("mlflow", database, {})
    try:
        return wait_until(lambda: mlflow_is_ready(url), "mlflow server")
    finally:
        servers.stop("mlflow")


def _start_stock_prefect(servers: StockServers, database: str) -> float:
    url = servers.start_prefect("prefect", database)
    try:
        return wait_until(lambda: prefect_is_ready(url), "prefect server start")
    finally:
        servers.stop("prefect")


if __name__ == "__main__":
    run_bench(bench, rounds=5)
