"""The start of a flow's process: Prefect's engine, with MLflow's run context made complete.

MLflow puts the tags in MLFLOW_RUN_CONTEXT on the runs that `mlflow.start_run` makes. From here
`MlflowClient().create_run` does so too, and `mlflow.start_run` puts the attempt's tag on a run that
has ended and is resumed: by that tag the agent ends what the process leaves open. A run that is
open when it is resumed stays with whoever has opened it.

A script for the flow's own environment: standard library only, and Python from 3.9 on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import runpy
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

ATTEMPT_TAG = "mlops.attempt"  # as in `run_context`, which cannot be imported here
OPEN = {"RUNNING", "SCHEDULED"}


def adding_tags(
    function: Callable[..., Any], tags_for: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> Callable[..., Any]:
    """Return a function that gives another one more tags; its caller's own win.

    Args:
        function: Has a parameter `tags`.
        tags_for: Returns the tags for a call, from its arguments by name.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named)
        own = given.arguments.get("tags") or {}
        given.arguments["tags"] = {**tags_for(given.arguments), **own}
        return function(*given.args, **given.kwargs)

    return call


def extend_client(module: ModuleType, tags: Mapping[str, str]) -> None:
    """Let `MlflowClient.create_run` set the tags.

    Args:
        module: `mlflow.tracking.client`.
        tags: The run context.
    """
    client = module.MlflowClient
    client.create_run = adding_tags(client.create_run, lambda _: tags)


def extend_fluent(module: ModuleType, tags: Mapping[str, str]) -> None:
    """Let `start_run` put the attempt's tag on a run that it opens again.

    Args:
        module: `mlflow.tracking.fluent`.
        tags: The run context.
    """

    def tags_for(arguments: Mapping[str, Any]) -> Mapping[str, str]:
        run_id = arguments.get("run_id") or os.environ.get("MLFLOW_RUN_ID")
        if not run_id or module.MlflowClient().get_run(run_id).info.status in OPEN:
            return {}
        return {ATTEMPT_TAG: tags[ATTEMPT_TAG]}

    vars(module)["start_run"] = adding_tags(module.start_run, tags_for)


class Extensions(importlib.abc.MetaPathFinder):
    """Extends modules when they are imported, if they are.

    Args:
        extend: What is done to a module, by its name.
    """

    def __init__(self, extend: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._extend = extend

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module that is to be extended."""
        if fullname not in self._extend:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_extend(module: ModuleType) -> None:
                execute(module)
                with contextlib.suppress(AttributeError):  # an MLflow that is built otherwise
                    self._extend[fullname](module)

            spec.loader.exec_module = execute_and_extend  # type: ignore[method-assign]
        return spec


def read_context() -> Mapping[str, str]:
    """Return the agent's run context; nothing if the deployment or the run has its own."""
    with contextlib.suppress(ValueError):
        tags = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT", ""))
        if isinstance(tags, dict) and ATTEMPT_TAG in tags:
            return tags
    return {}


def extend_mlflow(tags: Mapping[str, str]) -> None:
    """Extend MLflow when it is imported.

    Args:
        tags: The run context.
    """
    extend = {
        "mlflow.tracking.client": functools.partial(extend_client, tags=tags),
        "mlflow.tracking.fluent": functools.partial(extend_fluent, tags=tags),
    }
    sys.meta_path.insert(0, Extensions(extend))


def main() -> None:
    """Run Prefect's engine as `python -m prefect.engine` does."""
    if tags := read_context():
        extend_mlflow(tags)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()  # noqa: PTH109
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
