"""What flows do, well and badly, and what each run finds around itself.

A run adds lines of JSON to a file of its own, for the tests to read; its hooks do so too.
"""

import asyncio
import atexit
import concurrent.futures
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.task_runners import ProcessPoolTaskRunner
from surroundings import look

ENOUGH_SECONDS = 600
MEETING_SECONDS = 60
KEPT: list[Any] = []


def tell(folder: str, run_id: str | None = None, **facts: Any) -> None:
    """Add facts to a run's file; by default to this run's."""
    with (Path(folder) / f"{run_id or runtime.flow_run.id}").open("a") as file:
        file.write(json.dumps(facts) + "\n")


def begin(folder: str) -> None:
    """Tell what this run finds, and leave a file in its folder."""
    case = runtime.flow_run.name
    tell(folder, **look())
    Path("written-by-a-run").write_text(case)
    tell(folder, written=Path("written-by-a-run").read_text())
    get_run_logger().info("%s logs", case)
    get_run_logger().debug("%s logs a detail", case)
    print(case, "prints")
    subprocess.run(["sh", "-c", f"echo {case}-on-stdout; echo {case}-on-stderr >&2"], check=True)


def hook(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell that a hook ran, with the name of the state."""
    del flow
    parameters = flow_run.parameters
    tell(parameters["folder"], str(flow_run.id), hook=state.name)


@flow(
    log_prints=True,
    persist_result=True,
    result_serializer="json",
    on_completion=[hook],
    on_failure=[hook],
    on_crashed=[hook],
    on_cancellation=[hook],
)
def main(folder: str) -> str:
    """End in the way that the run's name asks for."""
    begin(folder)
    case = runtime.flow_run.name
    if case == "untidy":
        be_untidy(folder)
    elif case == "raises":
        raise ValueError("no good data")
    elif case == "exits":
        atexit.register(tell, folder, runtime.flow_run.id, at_exit=True)
        sys.exit(3)
    elif case == "leaves":
        os._exit(3)
    elif case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif case in {"cancelled", "stubborn", "withdrawn"}:
        child = subprocess.Popen(["sleep", str(ENOUGH_SECONDS)])
        fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=[ENOUGH_SECONDS])
        fork.start()
        if case == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3)  # its first heartbeat is on its way, and the second comes before the end
        tell(folder, children=[child.pid, fork.pid])
        while True:
            time.sleep(0.1)
    return f"{case} is done"


def be_untidy(folder: str) -> None:
    """Change whatever a process can change about itself, and leave things behind."""
    import numpy as np  # noqa: PLC0415

    run_id = runtime.flow_run.id
    os.environ["LEFT_BEHIND"] = "yes"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    os.umask(0o077)
    os.nice(5)
    os.set_blocking(0, False)
    for name in (signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path.insert(0, "/left/behind")
    sys.setrecursionlimit(4000)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    logging.getLogger().setLevel(1)
    logging.getLogger().addHandler(logging.NullHandler())
    multiprocessing.set_start_method("spawn", force=True)
    sys.modules["left_behind"] = sys.modules[__name__]
    descriptor, _ = tempfile.mkstemp(prefix="left-behind-")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    KEPT.extend([descriptor, listener])
    atexit.register(tell, folder, run_id, at_exit=True)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    child = subprocess.Popen(["sleep", str(ENOUGH_SECONDS)], **quiet, stderr=subprocess.DEVNULL)  # type: ignore[call-overload]
    tell(folder, left=child.pid)

    def linger() -> None:
        time.sleep(1)
        tell(folder, run_id, lingered=True)

    threading.Thread(target=linger).start()
    os.chdir("/")
    sys.stdout.write("x" * 200_000 + "untidy-wrote-much\n")  # more than a pipe holds
    sys.stdout.write("untidy-wrote-last")  # without an end of line


@task
def square(number: int) -> int:
    """Return a square."""
    return number * number


@task(retries=1)
def second_time(folder: str) -> int:
    """Fail when tried for the first time."""
    marker = Path(folder) / f"{runtime.flow_run.id}-task"
    if not marker.exists():
        marker.touch()
        raise ValueError("not the first time")
    return int(runtime.task_run.run_count)


@task
def meet(barrier: threading.Barrier) -> bool:
    """Wait until others do the same at the same time."""
    barrier.wait(MEETING_SECONDS)
    return True


@task
def process_number() -> int:
    """Return which process this is."""
    return os.getpid()


@flow
def below(number: int) -> int:
    """Return a square, from a subflow."""
    return square(number)


@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def below_in_processes() -> int:
    """Return the process of a task."""
    return process_number.submit().result()


@task
async def square_later(number: int) -> int:
    """Return a square."""
    await asyncio.sleep(0.01)
    return number * number


@flow
async def below_later(number: int) -> int:
    """Return a square, from an asynchronous subflow."""
    return await square_later(number)


def plain_square(number: int) -> int:
    """Return a square, outside Prefect."""
    return number * number


@flow(retries=1, log_prints=True)
def parts(folder: str) -> None:
    """Work with tasks, subflows, threads and processes, when tried for the second time."""
    if runtime.flow_run.run_count == 1:
        begin(folder)
        raise ValueError("not the first time")
    barrier = threading.Barrier(3)
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    spawned = spawn.Process(target=time.sleep, args=[0])
    spawned.start()
    with fork.Pool(2) as pool:
        pooled = pool.map(plain_square, range(3))
        # Else it ends them by a signal, which Prefect's handler turns into an exception in them.
        pool.close()
        pool.join()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=fork) as executor:
        executed = list(executor.map(plain_square, range(3)))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threaded = list(threads.map(plain_square, range(3)))
    program = "import numpy, os, sys; print(sys.prefix)"
    python = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    done = [future.result() for future in [meet.submit(barrier) for _ in range(3)]]
    task_process = below_in_processes()
    spawned.join(MEETING_SECONDS)
    tell(
        folder,
        retried=second_time(folder),
        mapped=square.map(range(3)).result(),
        met=done,
        subflow=below(3),
        asynchronous=asyncio.run(below_later(3)),
        other_process=task_process not in {0, os.getpid()},
        spawned=spawned.exitcode,
        pooled=pooled,
        executed=executed,
        threaded=threaded,
        same_python=python.stdout.strip() == sys.prefix,
    )


@flow(retries=1, log_prints=True)
async def later(folder: str) -> None:
    """Work with asynchronous tasks, subflows and processes, when tried for the second time."""
    if runtime.flow_run.run_count == 1:
        begin(folder)
        raise ValueError("not the first time")
    process = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    tell(
        folder,
        gathered=await asyncio.gather(*(square_later(number) for number in range(3))),
        submitted=square_later.submit(3).result(),
        subflow=await below_later(3),
        synchronous=await asyncio.to_thread(below, 3),
        exit_code=await process.wait(),
    )


@flow(
    timeout_seconds=1,
    log_prints=True,
    on_completion=[hook],
    on_failure=[hook],
    on_crashed=[hook],
    on_cancellation=[hook],
)
def slow(folder: str) -> None:
    """Take too long."""
    del folder
    time.sleep(ENOUGH_SECONDS)
