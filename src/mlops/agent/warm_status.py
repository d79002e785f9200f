"""What the warm processes tell of themselves, for the agent's status."""

import datetime as dt
import time

from mlops.agent.environment_store import EnvironmentStore
from mlops.agent.environments import Environment
from mlops.agent.learned_modules import LearnedModules
from mlops.agent.status import ModuleKeptOut, WarmStatus
from mlops.agent.warm_pool import WarmEnvironment, WarmPool


def warm_statuses(pool: WarmPool) -> tuple[WarmStatus, ...]:
    """Return how each environment's warm process is.

    Args:
        pool: The agent's.
    """
    return tuple(_status(entry, pool.modules(entry.environment)) for entry in pool.entries)


def _status(entry: WarmEnvironment, modules: LearnedModules) -> WarmStatus:
    server, readiness = entry.server, entry.readiness  # read once: others change them meanwhile
    skipped = readiness.skipped if readiness else {}
    kept_out = modules.denied | skipped
    is_off = entry.why_not != WarmEnvironment.why_not  # something has gone wrong
    status = WarmStatus(
        environment=entry.environment.key,
        requirements=_requirements(entry.environment),
        state="off" if is_off else "warming",
        reason=entry.why_not if is_off else None,
        kept_out=tuple(
            ModuleKeptOut(name=name, reason=reason.removeprefix("!"))
            for name, reason in kept_out.items()
        ),
    )
    if server is None or not server.is_alive:
        return status
    ready = {
        "state": "ready",
        "reason": None,
        "since": dt.datetime.fromtimestamp(server.started, dt.UTC),
        "age_seconds": max(0.0, time.time() - server.started),
        "memory_bytes": server.memory_bytes(),
        "modules": tuple(name for name in entry.wanted if name not in skipped),
        "runs": server.served,
    }
    return status.model_copy(update=ready)


def _requirements(environment: Environment) -> str:
    """Return what an environment was made from, for people."""
    record = EnvironmentStore(environment.folder.parents[1]).read(environment.key)
    return record.requirements if record else ""
