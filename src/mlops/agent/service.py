"""The agent as a long-running process: it waits for its server, serves, and stops on a signal.

At the first SIGTERM or SIGINT it takes no more runs, and ends when those at work have ended or the
time for that is over; at the second it ends at once.
"""

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import anyio
import httpx

from mlops import __version__
from mlops.agent.cores import usable_cores
from mlops.agent.gpu_leases import GpuLeases
from mlops.agent.health_server import health_port
from mlops.agent.job import completed_template
from mlops.agent.overview import Overview
from mlops.agent.presence import Presence, announced
from mlops.agent.worker import Agent
from mlops.bundles import CODE_ROOT
from mlops.errors import CredentialsError, MlopsError
from mlops.mlflow_api import MlflowApi
from mlops.prefect_api import (
    PrefectApi,
    RefusedRequestError,
    check_server,
    ensure_work_pool,
    is_outage,
)
from mlops.settings import AgentSettings, DataSettings
from mlops.storage import ObjectStore

# Prefect's settings of runs, unless the agent is told others; its own are read before they are set.
RUN_SETTINGS = {
    # How often, in seconds, a run tells that it lives; Prefect takes no less. The server gives up a
    # run that has been silent for thrice as long when its agent is gone.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # How often a request is made again, twice as late each time: for four minutes. Prefect's five
    # are one minute, after which a run whose end cannot be told is lost.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
}
RETRY_SECONDS = 1.0
ANSWER_SECONDS = 5.0


def serve(
    settings: AgentSettings,
    *,
    name: str | None,
    limit: int | None,
    printer: Callable[[str], None],
) -> None:
    """Run an agent until it is stopped by SIGTERM or SIGINT.

    Args:
        settings: Where it takes runs from and where it keeps its caches.
        name: Name of the worker in Prefect.
        limit: Runs at a time; default: one per GPU, or per core where there is none.
        printer: Is given lines for the process's own log.
    """
    name = name or _name(settings)
    gpus = GpuLeases(settings.mlops_cache_dir, settings.gpu_ids, worker=name)
    for problem in gpus.problems:
        printer(problem)
    limit = limit or settings.mlops_slots or len(gpus.devices) or usable_cores()
    printer(f"{limit} runs at a time; GPUs: {', '.join(map(str, gpus.devices)) or 'none'}")
    agent = Agent(settings, gpus, name=name, limit=limit)
    with _seen(agent, settings):
        _wait_for_server(settings, printer)
        _check_credentials(settings)
        _run(agent, settings.mlops_stop_seconds, printer)


def _run(agent: Agent, stop_seconds: float, printer: Callable[[str], None]) -> None:
    agent.sweep()
    for setting, value in RUN_SETTINGS.items():
        os.environ.setdefault(setting, value)
    with (
        # To run the hooks of a crashed or cancelled run Prefect loads its flow in this process,
        # with the pull step in its working directory: that must be nobody else's.
        tempfile.TemporaryDirectory(prefix="work-") as work,
        contextlib.chdir(work),
    ):
        anyio.run(_work, agent, stop_seconds, printer)


@contextlib.contextmanager
def _seen(agent: Agent, settings: AgentSettings) -> Iterator[None]:
    """Answer on the health port, and let the agent be found there, for the length of the block."""
    data_limit_bytes = DataSettings.from_environment().mlops_data_cache_bytes
    overview = Overview(agent, settings, data_limit_bytes=data_limit_bytes)
    bind = settings.mlops_agent_bind
    with health_port(bind, settings.mlops_agent_port, overview.read) as port:
        presence = Presence(
            name=agent.name,
            version=__version__,
            pid=os.getpid(),
            machine=socket.gethostname(),
            bind=bind,
            port=port,
        )
        with announced(settings.mlops_cache_dir, presence):
            yield


def _name(settings: AgentSettings) -> str:
    """Return the worker's name: the machine's, and what tells agents on one machine apart."""
    own = socket.gethostname()
    container = "" if own == settings.mlops_host_name else f"-{own}"
    return f"agent-{settings.mlops_host_name}{container}-{os.getpid()}"


async def _work(agent: Agent, stop_seconds: float, printer: Callable[[str], None]) -> None:
    """Take runs, and end the ones that have lost their agent, until a signal ends it."""
    stop = asyncio.create_task(_drain_on_signal(agent, stop_seconds, printer))
    beside = [
        stop,
        asyncio.create_task(agent.recover_regularly()),
        asyncio.create_task(agent.keep_warm()),
        asyncio.create_task(agent.listen()),
    ]
    serving = asyncio.create_task(agent.start(printer=printer))
    try:
        await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():  # only ever by an error
            await serving
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        for task in beside:
            task.cancel()


async def _drain_on_signal(
    agent: Agent, stop_seconds: float, printer: Callable[[str], None]
) -> None:
    """Return when the agent is to end: some time after the first signal, or at the second."""
    first, second = asyncio.Event(), asyncio.Event()

    def hear() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, hear)
    await first.wait()
    printer(f"stopping: runs at work have {stop_seconds:g} s to end; a second signal ends them now")
    drained = asyncio.create_task(agent.drain())
    at_once = asyncio.create_task(second.wait())
    try:
        await asyncio.wait(
            (drained, at_once), timeout=stop_seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        drained.cancel()
        at_once.cancel()


def _ensure_pool_and_queue(settings: AgentSettings) -> None:
    check_server(settings)
    with contextlib.closing(PrefectApi(settings)) as api:
        ensure_work_pool(api, settings.pool_name)
        _offer_variables(api, settings.pool_name)
        if settings.queue_name:
            queues = f"/work_pools/{quote(settings.pool_name, safe='')}/queues"
            try:
                api.send("POST", queues, {"name": settings.queue_name})
            except RefusedRequestError as error:
                if error.status_code != httpx.codes.CONFLICT:  # it is there
                    raise


def _offer_variables(api: PrefectApi, pool_name: str) -> None:
    """Let the pool's run form ask for GPUs and memory, if another worker or we made it before."""
    path = f"/work_pools/{quote(pool_name, safe='')}"
    pool = api.send("GET", path)
    if pool["type"] == Agent.type and (template := completed_template(pool["base_job_template"])):
        api.send("PATCH", path, {"base_job_template": template})


def _wait_for_server(settings: AgentSettings, printer: Callable[[str], None]) -> None:
    """Wait until the Prefect server has our pool and queue; say once why not yet."""
    said = ""
    while True:
        try:
            _ensure_pool_and_queue(settings)
        except MlopsError as error:
            if not is_outage(error.__cause__):
                raise
            if str(error) != said:
                said = str(error)
                printer(f"waiting: {said}")
            time.sleep(RETRY_SECONDS)
        else:
            return


def _check_credentials(settings: AgentSettings) -> None:
    """Refuse to start where every run would fail; a server that is away may come back.

    Raises:
        CredentialsError: The object store or MLflow refuses us.
    """
    store = ObjectStore(settings, settings.prefect_bucket_name)
    mlflow = MlflowApi(settings, timeout_seconds=ANSWER_SECONDS)
    questions: tuple[Callable[[], object], ...] = (
        lambda: next(store.objects(f"{CODE_ROOT}/~"), None),
        mlflow.check,
    )
    for ask in questions:
        try:
            ask()
        except CredentialsError:
            raise
        except MlopsError:
            continue
