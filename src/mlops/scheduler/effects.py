"""What a registration does to what people set in the Prefect UI, told before it is done.

Whether a value was edited there or is another one in flow.yaml now, a deployment does not tell:
with another folder than was registered, what the UI can edit and flow.yaml also says is told
either way.
"""

import json
from collections.abc import Iterator
from typing import Any

from mlops.scheduler.deployments import Deployment, canonical, our_schedule, schedule_differs
from mlops.scheduler.prefect_schedules import as_json
from mlops.scheduler.schedule import Schedule
from mlops.scheduler.source import Source


def effects(
    deployment: Deployment,
    changed: dict[str, Any],
    schedule: Schedule | None,
    *,
    show_parameters: bool,
) -> Iterator[str]:
    """Yield what becomes of a deployment, one line each.

    Args:
        deployment: As Prefect holds it.
        changed: The fields that will be written.
        schedule: What flow.yaml asks for.
        show_parameters: Show the values of parameters, by which they can be restored; they may
            be secrets, which do not belong in a log.
    """
    same_folder = "pull_steps" not in changed  # and so it was the UI
    yield from _parameters(deployment, changed, show=show_parameters)
    if schedule_differs(deployment, schedule):
        yield from _schedule(deployment, schedule, same_folder=same_folder)
    if same_folder:
        for field in sorted(changed.keys() - {"parameters", "path", "version"}):
            was, will = _shown(deployment.value(field)), _shown(changed[field])
            yield f"{field}: {was} is overwritten by {will}"
    other = deployment.source
    new_path = changed.get("path")
    if new_path and other and other._replace(gone=False) != Source.parse(new_path):
        yield f"was registered from {other}, now from {new_path}"
    if other and other.gone and deployment.paused:
        yield "resumed, its folder is back"


def _parameters(deployment: Deployment, changed: dict[str, Any], *, show: bool) -> Iterator[str]:
    new = changed.get("parameters", deployment.parameters)
    for name, value in deployment.parameters.items():
        was = _shown(value) if show else "its value"
        if name not in new:
            yield f"parameter {name}: {was} is removed: flow.yaml has none"
        elif canonical(new[name]) != canonical(value):
            by = _shown(new[name]) if show else "flow.yaml's"
            yield f"parameter {name}: {was} is overwritten by {by}"


def _schedule(
    deployment: Deployment, schedule: Schedule | None, *, same_folder: bool
) -> Iterator[str]:
    ours = our_schedule(deployment)
    if ours and schedule is None:
        yield f"schedule: {_shown(ours.schedule)} is removed: flow.yaml has none"
    elif ours and schedule:
        will = _shown(as_json(schedule))
        yield f"schedule: {_shown(ours.schedule)} is overwritten by {will}"
    elif same_folder and schedule:
        yield f"schedule: had been removed; flow.yaml has {_shown(as_json(schedule))}"


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
