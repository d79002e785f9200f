"""Starts a flow's process in its environment: from a warm process, or the plain way.

Source of the contract: `prefect.runner._flow_run_executor.ProcessStarter`.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.runner._control_channel import ControlChannel
from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope
from prefect.runner._starter_engine import EngineCommandStarter

from mlops.agent.job import AgentJobConfiguration, settings_environment
from mlops.agent.status import StartKind
from mlops.agent.warm_pool import WarmEnvironment, WarmPool
from mlops.agent.warm_process import WarmProcess, WarmStartError
from mlops.agent.warm_server import ForkRequest

STOP_SECONDS = 5.0
# What the interpreter, the loader and libraries read when they start: too late in a process that
# has started already.
START_VARIABLES = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_",
    "NUMEXPR_", "VECLIB_", "TORCH_", "PYTORCH_", "TF_", "XLA_", "JAX_", "RAY_", "DASK_", "LC_",
    "LANG",
)  # fmt: skip
_SUFFIXES = (".py", ".so")


class FlowStarter:
    """Starts one run.

    Args:
        configuration: The run's, with its command, folder and variables.
        warm: What there is for its environment.
        pool: Where that comes from.
        control_channel: By which Prefect tells the process of a cancellation.
        log: Is given lines for the run's log.
        note_start: Is told how the process is started.
    """

    def __init__(
        self,
        configuration: AgentJobConfiguration,
        warm: WarmEnvironment,
        pool: WarmPool,
        control_channel: ControlChannel,
        log: Callable[[str], None],
        *,
        note_start: Callable[[StartKind], None],
    ) -> None:
        self._configuration = configuration
        self._warm = warm
        self._pool = pool
        self._control = control_channel
        self._log = log
        self._note_start = note_start
        self._plain = EngineCommandStarter(
            command=configuration.command,
            cwd=configuration.working_dir,
            env=configuration.env,
            stream_output=configuration.stream_output,
            control_channel=control_channel,
            isolate_process_group=True,  # as Prefect isolates its own; a cancel reaches all
        )

    async def start(
        self, flow_run: FlowRun, task_status: TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the process, hand it over, and wait for its end."""
        try:
            process = await self._fork(flow_run)
        except WarmStartError as error:
            self._log(f"started in a new process: {error}")
            self._note_start("fallback" if self._has_warm_process else "plain")
            await self._plain.start(flow_run, task_status)
            return
        self._note_start("warm")
        try:
            scope = create_isolated_termination_scope(process.pid)
            task_status.started(ProcessHandle(process, termination_scope=scope))  # type: ignore[arg-type]
            await process.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _end(process)
            raise

    @property
    def _has_warm_process(self) -> bool:
        """Whether there was one, or is none because it failed."""
        return self._warm.server is not None or self._warm.why_not != WarmEnvironment.why_not

    async def _fork(self, flow_run: FlowRun) -> WarmProcess:
        server, readiness = self._warm.server, self._warm.readiness
        if server is None or readiness is None:
            raise WarmStartError(self._warm.why_not)
        folder = Path(self._configuration.working_dir or ".")
        variables = self._variables(flow_run)
        if reason := (
            _differs(variables, self._warm.variables, refreshable=readiness.refreshable)
            or _is_hidden(folder, readiness.loaded)
        ):
            raise WarmStartError(reason)
        request = ForkRequest(variables, str(folder), self._configuration.stream_output)
        try:
            return await server.fork(request)
        except WarmStartError as error:
            self._pool.fail(self._warm, server, error)
            raise

    def _variables(self, flow_run: FlowRun) -> dict[str, str]:
        """Return what the process finds set.

        Source: `prefect.runner._starter_engine.EngineCommandStarter.start`.
        """
        variables: dict[str, str | None] = {
            **os.environ,
            **self._configuration.env,
            **settings_environment(),
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",
        }
        with contextlib.suppress(RuntimeError):  # no channel: Prefect does without
            port, token = self._control.register(flow_run.id)
            variables |= {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        return {name: value for name, value in variables.items() if value is not None}


async def _end(process: WarmProcess) -> None:
    """End a process and its group: first politely, then by force."""
    process.signal_group(signal.SIGTERM)
    with anyio.move_on_after(STOP_SECONDS):
        await process.wait()
    process.signal_group(signal.SIGKILL)


def _differs(run: Mapping[str, str], warm: Mapping[str, str], *, refreshable: bool) -> str:
    """Name a variable of the run's that a process which has started already cannot heed."""
    for name in sorted(run.keys() | warm.keys()):
        is_settings = name.startswith("PREFECT_") and not name.startswith("PREFECT__")
        if not name.startswith(START_VARIABLES) and (refreshable or not is_settings):
            continue
        if run.get(name) != warm.get(name):
            return f"{name} is its own, and is read when a process starts"
    return ""


def _is_hidden(folder: Path, loaded: frozenset[str]) -> str:
    """Name a file of the flow's that is to be imported instead of a package that is loaded."""
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  # of many files
        if stem.partition(".")[0] in loaded and (
            suffix in _SUFFIXES or (entry.is_dir() and (Path(entry) / "__init__.py").exists())
        ):
            return f"its own {entry.name} hides a package of the same name"
    return ""
