"""MLflow's run context made complete, in a flow's process.

MLflow puts the tags in MLFLOW_RUN_CONTEXT on the runs that `mlflow.start_run` makes. From here
`MlflowClient().create_run` does so too, and `mlflow.start_run` puts the attempt's tag on a run that
has ended and is resumed: by that tag the agent ends what the process leaves open. A run that is
open when it is resumed stays with whoever has opened it.

For the flow's own environment: standard library only, and Python from 3.9 on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    Context = Callable[[], Mapping[str, str]]  # returns the tags of the moment

ATTEMPT_TAG = "mlops.attempt"  # as in `mlops.lineage`, which cannot be imported here
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


def extend_client(module: ModuleType, context: Context) -> None:
    """Let `MlflowClient.create_run` set the tags.

    Args:
        module: `mlflow.tracking.client`.
        context: The run context.
    """
    client = module.MlflowClient
    client.create_run = adding_tags(client.create_run, lambda _: context())


def extend_fluent(module: ModuleType, context: Context) -> None:
    """Let `start_run` put the attempt's tag on a run that it opens again.

    Args:
        module: `mlflow.tracking.fluent`.
        context: The run context.
    """

    def tags_for(arguments: Mapping[str, Any]) -> Mapping[str, str]:
        run_id = arguments.get("run_id") or os.environ.get("MLFLOW_RUN_ID")
        if not run_id or module.MlflowClient().get_run(run_id).info.status in OPEN:
            return {}
        return {key: value for key, value in context().items() if key == ATTEMPT_TAG}

    vars(module)["start_run"] = adding_tags(module.start_run, tags_for)


class MlflowUse:
    """Whether this process has spoken to an MLflow server."""

    STORE = "mlflow.store.tracking.rest_store"

    def __init__(self) -> None:
        self._is_watched = False
        self._is_seen = False

    def watch(self, module: ModuleType) -> None:
        """Notice when a client is made.

        Args:
            module: `mlflow.store.tracking.rest_store`.
        """
        make = module.RestStore.__init__

        @functools.wraps(make)
        def notice(store: Any, *arguments: Any, **named: Any) -> None:
            self._is_seen = True
            make(store, *arguments, **named)

        module.RestStore.__init__ = notice
        self._is_watched = True

    @property
    def is_possible(self) -> bool:
        """Whether it may have; no only where that is certain."""
        return self._is_seen or (self.STORE in sys.modules and not self._is_watched)


MLFLOW_USE = MlflowUse()


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
    """Return the agent's run context; nothing if the deployment or the run has its own.

    It is read at every run that is made: a pull of data adds to it.
    """
    with contextlib.suppress(ValueError):
        tags = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT", ""))
        if isinstance(tags, dict) and ATTEMPT_TAG in tags:
            return tags
    return {}


def extend_mlflow(context: Context) -> None:
    """Extend MLflow, now or when it is imported.

    Args:
        context: The run context.
    """
    extend: dict[str, Callable[[ModuleType], None]] = {
        "mlflow.tracking.client": functools.partial(extend_client, context=context),
        "mlflow.tracking.fluent": functools.partial(extend_fluent, context=context),
        MlflowUse.STORE: MLFLOW_USE.watch,
    }
    sys.meta_path.insert(0, Extensions(extend))
