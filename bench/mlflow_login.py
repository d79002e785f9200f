"""What logging in costs: `log_metric` on our MLflow against the same server without a login.

The peer is `mlflow server` with one worker and no login, on the same PostgreSQL in a database of
its own. Two more are told: MLflow's own login as it comes, and an experiment that somebody else
made. All are asked in turn, by plain requests over a kept connection, as MLflow's client sends
them; what that client adds by itself, the same for all, is left out.
"""

import configparser
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from measure import Findings, Measure, announce, compare, run_bench, wait_until
from platform_under_test import Platform, open_folder, own_platform
from stock import WITHOUT_JOBS, StockServers, mlflow_is_ready, platform_cluster, stock_servers

LIMIT_ADMIN = 1.3
LIMIT_USER = 2.5
WARM_UP = 30
SLOW_EVERY = 10  # the stock login takes a good part of a second
ONE_WORKER = ("--workers", "1")
OPEN, ADMIN, USER, OTHERS, STOCK = (
    "open server",
    "ours, admin",
    "ours, user agent",
    "ours, user agent, an experiment of another user's",
    "stock login, admin",
)


class Metrics:
    """Logs one metric again and again to a run of its own.

    Args:
        url: The server.
        auth: The user who logs; None: nobody.
        owner: The user who makes the experiment and the run; None: the one who logs.
    """

    def __init__(
        self, url: str, auth: tuple[str, str] | None, owner: tuple[str, str] | None = None
    ) -> None:
        self._http = httpx.Client(
            base_url=f"{url}/api/2.0/mlflow", auth=auth, timeout=30, trust_env=False
        )
        self._step = 0
        made = self._post("experiments/create", {"name": str(time.time_ns())}, owner)
        body = {"experiment_id": made["experiment_id"], "start_time": _now()}
        self._run_id = self._post("runs/create", body, owner)["run"]["info"]["run_id"]

    def log(self) -> float:
        """Log one value and return the milliseconds that it took."""
        self._step += 1
        body = {"run_id": self._run_id, "key": "loss", "value": 0.5}
        began = time.perf_counter()
        self._post("runs/log-metric", body | {"timestamp": _now(), "step": self._step})
        return (time.perf_counter() - began) * 1000

    def _post(self, path: str, body: dict[str, object], auth: tuple[str, str] | None = None) -> Any:
        response = self._http.post(f"/{path}", json=body, auth=auth or httpx.USE_CLIENT_DEFAULT)
        response.raise_for_status()
        return response.json()


def bench(rounds: int) -> Findings:
    """Log `rounds` metrics by each way.

    Args:
        rounds: How often.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(open_folder())
        platform = stack.enter_context(own_platform(folder))
        servers = stack.enter_context(stock_servers(folder))
        platform.run("local", "up")
        platform.stop_all_but(("postgres", "s3", "mlflow"))
        clients = stack.enter_context(_clients(platform, servers))
        for client in clients.values():
            for _ in range(WARM_UP):
                client.log()
        announce(f"{rounds} rounds")
        taken: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds):
            for name, client in clients.items():
                if name != STOCK or number % SLOW_EVERY == 0:
                    taken[name].append(client.log())
    measures = {
        name: Measure(what=f"log_metric, {name}", unit="ms", values=tuple(values))
        for name, values in taken.items()
    }
    limits = {ADMIN: LIMIT_ADMIN, USER: LIMIT_USER, OTHERS: LIMIT_USER, STOCK: None}
    return (
        list(measures.values()),
        [compare(measures[name], measures[OPEN], limit) for name, limit in limits.items()],
    )


@contextmanager
def _clients(platform: Platform, servers: StockServers) -> Iterator[dict[str, Metrics]]:
    """Start the peers and make a client for each way."""
    role = platform.environment("agent")
    ours = role["MLFLOW_TRACKING_URI"]
    credentials = platform.situation.credentials
    admin = (credentials.mlflow_admin_username, credentials.mlflow_admin_password)
    agent = (role["MLFLOW_TRACKING_USERNAME"], role["MLFLOW_TRACKING_PASSWORD"])
    cluster = platform_cluster(platform)
    with cluster.database("psycopg2") as open_database, cluster.database("psycopg2") as database:
        announce("the peers' first start, which makes their tables")
        without_login = servers.start_mlflow("open", open_database, WITHOUT_JOBS, *ONE_WORKER)
        wait_until(lambda: mlflow_is_ready(without_login), OPEN)
        told = WITHOUT_JOBS | _write_stock_login(servers.folder, database, *admin)
        with_login = servers.start_mlflow(
            "login", database, told, *ONE_WORKER, "--app-name", "basic-auth"
        )
        wait_until(lambda: mlflow_is_ready(with_login, admin), STOCK)
        yield {
            OPEN: Metrics(without_login, None),
            ADMIN: Metrics(ours, admin),
            USER: Metrics(ours, agent),
            OTHERS: Metrics(ours, agent, owner=admin),
            STOCK: Metrics(with_login, admin),
        }


def _write_stock_login(folder: Path, database: str, name: str, password: str) -> dict[str, str]:
    """Write MLflow's stock login settings, on PostgreSQL; return what the server is told."""
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {"default_permission": "READ", "database_uri": database}
    path = folder / "basic_auth.ini"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(path),
        "MLFLOW_AUTH_ADMIN_USERNAME": name,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": password,
    }


def _now() -> int:
    return time.time_ns() // 10**6


if __name__ == "__main__":
    run_bench(bench, rounds=300)
