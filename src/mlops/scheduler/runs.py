"""Runs started by hand, with parameters from the command line."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from mlops.errors import MlopsError, UsageError
from mlops.prefect_api import PrefectApi, RefusedRequestError
from mlops.runs import start
from mlops.runs.start import StartedRun
from mlops.scheduler.deployments import Deployment, read_all, read_named
from mlops.scheduler.flow_folder import check
from mlops.scheduler.spec import find_flow_yaml

PARAMETERS_REFUSED = {409, 422}  # of the statuses that Prefect answers to a new run


def find_deployment(api: PrefectApi, target: str) -> Deployment:
    """Return the deployment that a user means.

    Args:
        api: The Prefect server.
        target: A flow folder, `flow/deployment`, or one of the two names if only one
            deployment has it.

    Raises:
        MlopsError: There is none, or more than one.
    """
    folder = Path(target)
    # os.path's is False where pathlib's raises: for a name that is too long, for example.
    if os.path.isdir(target) and find_flow_yaml(folder):  # noqa: PTH112
        checked = check(folder)
        found = read_named(api, [checked.names]).get(checked.name)
        if found is None:
            raise MlopsError(
                f"{target}: {checked.name} is not registered",
                hint=f"mlops flows register {target}",
            )
        return found
    named = read_all(api)
    matches = [name for name in named if target == name or target in name.split("/", 1)]
    if len(matches) != 1:
        problem = "names more than one deployment" if matches else "no such deployment"
        choice = ", ".join(sorted(matches or named)) or "none is registered"
        raise MlopsError(f"{target}: {problem}; allowed: {choice}")
    return named[matches[0]]


def parse_parameters(assignments: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON unless the schema says that it is text.

    Raises:
        UsageError: A pair has no `=`, or names no parameter of the flow.
    """
    properties: Mapping[str, Any] = schema.get("properties", {})
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise UsageError(f"--param {assignment}: allowed: name=value")
        if schema and name not in properties:
            known = sorted(properties, key=lambda each: properties[each].get("position", 0))
            raise UsageError(
                f"--param {name}: the flow has no such parameter; "
                f"allowed: {', '.join(known) or 'none'}"
            )
        if properties.get(name, {}).get("type") == "string":
            parameters[name] = text
            continue
        try:
            parameters[name] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name] = text
    return parameters


def start_run(api: PrefectApi, deployment_id: UUID, parameters: Mapping[str, Any]) -> StartedRun:
    """Ask for a run of a deployment, now.

    Raises:
        UsageError: The parameters are not what the flow's schema asks for.
    """
    try:
        return start.start_run(api, deployment_id, parameters)
    except RefusedRequestError as error:
        if error.status_code not in PARAMETERS_REFUSED:
            raise
        detail = error.detail.removeprefix("Error creating flow run: ")
        raise UsageError(f"--param: {detail}") from error
