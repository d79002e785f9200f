"""`mlops flows prune`: what is gone or unused is shown, and removed when the user agrees."""

import os
import sys
from collections.abc import Collection, Iterator
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
    kind = _UnusedCode(settings, days) if code else _GoneDeployments(settings)
    found = kind.find()
    if not as_json:
        for each in found:
            print(f"{each.name}: {each.reason}" + (f"; kept: {each.kept}" if each.kept else ""))
        if not found:
            print("nothing to remove")
    to_remove = {each.name for each in found if not each.kept}
    removed: list[str] = []
    try:
        if to_remove and _approved(len(to_remove), yes=yes, ask=not as_json):
            for name in kind.remove(to_remove):
                removed.append(name)
                if not as_json:
                    print(f"removed {name}", flush=True)
    finally:
        if as_json:
            print_json([each._asdict() | {"removed": each.name in removed} for each in found])


class _Prunable(NamedTuple):
    """Something that `prune` can remove, or why it is kept."""

    name: str
    reason: str
    kept: str


class _GoneDeployments:
    """Deployments whose folder is gone.

    Args:
        settings: Which folder, and where the servers are.
    """

    def __init__(self, settings: "SchedulerSettings") -> None:
        from mlops.prefect_api import PrefectApi

        if not os.path.isdir(settings.flow_dir):  # noqa: PTH112  # pathlib's may raise
            raise MlopsError(
                f"{settings.flow_dir}: no such folder, and so every flow would be gone",
                hint="check FLOW_DIR; an empty folder means that nothing is to stay",
            )
        self._settings = settings
        self._api = PrefectApi(settings)

    def find(self) -> list[_Prunable]:
        """Return what can be removed now."""
        return [_Prunable(gone.name, gone.reason, self._in_progress(gone)) for gone in self._find()]

    def remove(self, names: Collection[str]) -> Iterator[str]:
        """Remove those of some names that are gone still, and yield each one's name."""
        from mlops.scheduler.prune import delete

        # While a user thought about it a folder may have come back, or a run begun.
        for gone in self._find():
            if gone.name in names and not self._in_progress(gone):
                delete(self._api, gone)
                yield gone.name

    def _find(self) -> "list[GoneDeployment]":
        from mlops.scheduler.gone import find_gone

        return find_gone(self._api, self._settings.mlops_host_name, self._settings.flow_dir)

    def _in_progress(self, gone: "GoneDeployment") -> str:
        from mlops.scheduler.prune import runs_in_progress

        runs = runs_in_progress(self._api, gone)
        return f"in progress: {', '.join(runs)}" if runs else ""


class _UnusedCode:
    """Code in S3 that nothing refers to.

    Args:
        settings: Where the servers are.
        days: Runs that ended in so many days count.
    """

    def __init__(self, settings: "SchedulerSettings", days: float) -> None:
        from mlops.prefect_api import PrefectApi
        from mlops.storage import ObjectStore

        self._days = days
        self._api = PrefectApi(settings)
        self._store = ObjectStore(settings, settings.prefect_bucket_name)

    def find(self) -> list[_Prunable]:
        """Return what can be removed now."""
        from mlops.scheduler.prune import find_unused_code

        return [
            _Prunable(
                self._store.uri(version.prefix),
                f"{len(version.keys)} objects, {version.size / 1e6:.1f} MB, uploaded "
                f"{version.uploaded:%Y-%m-%d}; no deployment and no run of the last "
                f"{self._days:g} days",
                "",
            )
            for version in find_unused_code(self._api, self._store, self._days)
        ]

    def remove(self, names: Collection[str]) -> Iterator[str]:
        """Remove those of some names that nothing refers to now, and yield each one's name."""
        from mlops.scheduler.prune import delete_unused_code

        prefixes = {name.removeprefix(self._store.uri("")) for name in names}
        for prefix in delete_unused_code(self._api, self._store, self._days, prefixes):
            yield self._store.uri(prefix)


def _approved(count: int, *, yes: bool, ask: bool) -> bool:
    if yes:
        return True
    if ask and sys.stdin is not None and sys.stdin.isatty():
        return typer.confirm(f"Remove {count}?")
    print("mlops: nothing was removed; --yes removes it", file=sys.stderr)
    return False
