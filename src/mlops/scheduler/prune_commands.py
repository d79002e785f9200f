"""`mlops flows prune`: what is gone or unused is shown, and removed when the user agrees."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mlops.errors import MlopsError
from mlops.scheduler.printing import AsJson, print_json

if TYPE_CHECKING:
    from mlops.scheduler.gone import GoneDeployment
    from mlops.settings import SchedulerSettings


def prune(
    path: Annotated[Path | None, typer.Argument(help="Default: FLOW_DIR.")] = None,
    *,
    code: Annotated[
        bool,
        typer.Option(
            "--code", help="Remove code from S3 that no deployment and no recent run refers to."
        ),
    ] = False,
    days: Annotated[
        float, typer.Option(min=0, help="With --code: runs that ended in so many days count.")
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete deployments whose folder is gone, after showing them; with --code, unused code.

    Runs stay in Prefect's history. A deployment with a run in progress is kept.
    """
    from mlops.settings import SchedulerSettings

    settings = SchedulerSettings.from_environment(flow_dir=path)
    removed: list[str] = []
    find = partial(_unused_code, settings, days) if code else partial(_gone_deployments, settings)
    found = find()
    if not as_json:
        for each in found:
            print(f"{each.name}: {each.reason}" + (f"; kept: {each.kept}" if each.kept else ""))
        if not found:
            print("nothing to remove")
    to_remove = {each.name for each in found if not each.kept}
    if to_remove and _approved(len(to_remove), yes=yes, ask=not as_json):
        # Once more: while a user thought about it a folder may have come back, or code into use.
        for each in find():
            if each.name in to_remove and not each.kept:
                each.remove()
                removed.append(each.name)
                if not as_json:
                    print(f"removed {each.name}", flush=True)
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "reason": each.reason,
                    "kept": each.kept,
                    "removed": each.name in removed,
                }
                for each in found
            ]
        )


class _Prunable(NamedTuple):
    """Something that `prune` can remove, or why it is kept."""

    name: str
    reason: str
    kept: str
    remove: Callable[[], None]


def _gone_deployments(settings: "SchedulerSettings") -> list[_Prunable]:
    from mlops.prefect_api import PrefectApi, connect
    from mlops.scheduler.gone import find_gone
    from mlops.scheduler.prune import delete, runs_in_progress

    if not settings.flow_dir.is_dir():
        raise MlopsError(
            f"{settings.flow_dir}: no such folder, and so every flow would be gone",
            hint="check FLOW_DIR; an empty folder means that nothing is to stay",
        )

    def remove(gone: "GoneDeployment") -> None:
        with connect(settings) as client:
            delete(client, gone)

    api = PrefectApi(settings)
    found = []
    for gone in find_gone(api, settings.mlops_host_name, settings.flow_dir):
        runs = runs_in_progress(api, gone)
        kept = f"in progress: {', '.join(runs)}" if runs else ""
        found.append(_Prunable(gone.name, gone.reason, kept, partial(remove, gone)))
    return found


def _unused_code(settings: "SchedulerSettings", days: float) -> list[_Prunable]:
    from mlops.prefect_api import PrefectApi
    from mlops.scheduler.prune import delete_code, find_unused_code
    from mlops.storage import ObjectStore

    store = ObjectStore(settings, settings.prefect_bucket_name)
    return [
        _Prunable(
            store.uri(version.prefix),
            f"{len(version.keys)} objects, {version.size / 1e6:.1f} MB, uploaded "
            f"{version.uploaded:%Y-%m-%d}; no deployment and no run of the last {days:g} days",
            "",
            partial(delete_code, store, version),
        )
        for version in find_unused_code(PrefectApi(settings), store, days)
    ]


def _approved(count: int, *, yes: bool, ask: bool) -> bool:
    if yes:
        return True
    if ask and sys.stdin is not None and sys.stdin.isatty():
        return typer.confirm(f"Remove {count}?")
    print("mlops: nothing was removed; --yes removes it", file=sys.stderr)
    return False
