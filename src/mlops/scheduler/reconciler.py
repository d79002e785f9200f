"""Keeps deployments as the flow folders are: what is to be done, when, and until it is done.

What counts is the state of the files, compared with the one that was dealt with last; a change
that nobody told of is found a little later. While a server is away nothing is lost: when it
answers again all folders are gone through once.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlops.bundles import CODE_ROOT
from mlops.errors import MlopsError
from mlops.prefect_api import PrefectApi
from mlops.scheduler import flow_dir
from mlops.scheduler.flow_dir import Identity
from mlops.scheduler.gone import find_gone, pause
from mlops.scheduler.register import Refusal, Registrar, Registration
from mlops.scheduler.spec import find_flow_folders
from mlops.scheduler.watched_folder import NEVER, Pace, WatchedFolder
from mlops.settings import SchedulerSettings
from mlops.storage import ObjectStore, Progress

OUTAGE_LINES = 3  # reasons that are logged while servers are away

logger = logging.getLogger(__name__)


@dataclass
class _Outage:
    """Servers that are away."""

    since: float
    retry_at: float = 0.0
    retry_seconds: float = 0.0
    told: set[str] = field(default_factory=set)


class Reconciler:
    """What is still to be done for the flow folders below one root.

    Args:
        settings: Where the servers are, and who we are there.
        root: Absolute path of a flow folder, or of a folder of them.
        pace: When things are done.
    """

    def __init__(self, settings: SchedulerSettings, root: Path, pace: Pace | None = None) -> None:
        self._settings = settings
        self._root = root
        self._pace = pace or Pace()
        self._api = PrefectApi(settings)
        self._store = ObjectStore(settings, settings.prefect_bucket_name)
        self._folders: dict[Path, WatchedFolder] = {}
        self._look_at = 0.0
        self._gone_at: float | None = 0.0  # when to look for deployments without a folder
        self._outage: _Outage | None = None
        self._warned: set[str] = set()
        self._going_through: Counter[str] | None = Counter()  # the outcomes, to sum them up
        self._root_trouble = ""  # why the folders cannot be listed
        self._trusted: Identity | None = None  # the root in which flow folders were seen

    @property
    def is_well(self) -> bool:
        """Whether the folders are there and all of them were gone through with the servers."""
        is_through = self._outage is None and self._going_through is None
        return is_through and not self._root_trouble

    def follow(self, changed: Iterable[str]) -> None:
        """Look at what changed, and do what is due.

        Args:
            changed: Paths of files and folders that were written, made or removed. With the
                root among them everything is looked at.
        """
        now = time.monotonic()
        paths = set(changed)
        everything = now >= self._look_at or str(self._root) in paths
        if everything or paths:
            self._look(None if everything else paths, now)
        try:
            if everything and self._outage is None:
                self._ask_servers()  # who has nothing to do would not see that they are away
            if self._outage is None or self._servers_are_back(self._outage, now):
                self._act(now)
        except MlopsError as error:
            self._note_outage(str(error), now)

    def _look(self, paths: set[str] | None, now: float) -> None:
        """Find out which folders changed; with paths, only those that they lie in."""
        found = self._list(now)
        if paths is None:
            self._look_at = now + self._pace.look
            touched = found
        else:
            touched = flow_dir.touched(found, paths) | (found - self._folders.keys())
        for folder in touched:
            self._look_at_folder(folder, now)
        vanished = self._folders.keys() - found
        for folder in vanished:
            del self._folders[folder]
        if vanished:
            self._look_for_gone(now + self._pace.settled)
            self._try_refused_again()

    def _list(self, now: float) -> set[Path]:
        try:
            found, trouble = set(find_flow_folders(self._root)), ""
        except MlopsError as error:
            found, trouble = set(), error.message
        if trouble != self._root_trouble:
            self._root_trouble = trouble
            if trouble:
                logger.error("%s; waiting for it (check FLOW_DIR)", trouble)
            else:
                logger.info("%s is there", self._root)
        identity = flow_dir.identity(self._root)
        if found and identity != self._trusted:
            self._trusted = identity
            self._look_for_gone(now + self._pace.settled)
        return found

    def _look_for_gone(self, moment: float) -> None:
        self._gone_at = moment if self._gone_at is None else min(moment, self._gone_at)

    def _look_at_folder(self, folder: Path, now: float) -> None:
        state = flow_dir.state(folder)
        known = self._folders.get(folder)
        if known is None:
            # In the first pass there is no reason to think that somebody writes just now.
            first = self._going_through is not None
            changed_at, due_at = (NEVER, now) if first else (now, now + self._pace.quiet)
            self._folders[folder] = WatchedFolder(self._pace, state, changed_at, due_at)
        elif known.look(state, now):
            self._warned.clear()

    def _try_refused_again(self) -> None:
        """Another folder, which had their names, may have made way."""
        now = time.monotonic()
        for folder in self._folders.values():
            folder.try_again(now)

    def _act(self, now: float) -> None:
        if due := [path for path, folder in self._folders.items() if folder.is_due(now)]:
            self._register(sorted(due))
        if self._gone_at is not None and self._gone_at <= now:
            self._pause_gone()
            self._gone_at = None
        if self._going_through is not None:
            self._sum_up(self._going_through, now)

    def _sum_up(self, outcomes: Counter[str], now: float) -> None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        summary = f"{len(self._folders)} flow(s) in {self._root}" + (f": {counts}" * bool(counts))
        if self._outage:
            logger.info("caught up after %.0f s: %s", now - self._outage.since, summary)
        else:
            logger.info("watching %s", summary)
        self._going_through = self._outage = None

    def _register(self, due: list[Path]) -> None:
        for path in due:
            if self._folders[path].begin(time.monotonic()):
                logger.warning(
                    "%s: changes all the time, and is registered once a minute from now on; put "
                    "logs and results elsewhere, or list them in .prefectignore",
                    path,
                )
        waiting = dict.fromkeys(due)
        try:
            with Registrar(
                self._settings,
                warn=self._warn,
                show_upload=_log_upload,
                retries=0,  # every folder would wait for it, and we come back anyway
            ) as registrar:
                for outcome in registrar.register(due):
                    waiting.pop(outcome.folder, None)
                    self._note(outcome)
        except Exception as error:  # noqa: BLE001  # nothing in one folder may stop the others
            self._ask_servers()  # which raises when they are away
            if len(due) == 1:
                self._note_failure(due[0], error)
                return
            for path in waiting:
                self._register([path])

    def _note(self, outcome: Registration | Refusal) -> None:
        folder = self._folders[outcome.folder]
        if isinstance(outcome, Refusal):
            if folder.refuse(outcome.message, time.monotonic()):
                logger.error("%s", outcome.message)
            self._count("refused")
            return
        if folder.name not in {"", outcome.name}:
            self._look_for_gone(time.monotonic())
        folder.finish(outcome.name)
        self._count(outcome.action)
        if outcome.action != "unchanged":
            # What is overwritten now may be edited, and overwritten, once more.
            self._warned.difference_update(outcome.warnings)
            logger.info("%s: %s (%s)", outcome.name, outcome.action, outcome.code_uri)
            self._try_refused_again()

    def _count(self, outcome: str) -> None:
        if self._going_through is not None:
            self._going_through[outcome] += 1

    def _note_failure(self, path: Path, error: Exception) -> None:
        """Try a folder again later, with which something went wrong though the servers are well."""
        if not self._folders[path].fail(f"{type(error).__name__}: {error}", time.monotonic()):
            return
        if isinstance(error, MlopsError):
            logger.error("%s: not registered, and tried again: %s", path, error)
        else:
            logger.error("%s: not registered, and tried again", path, exc_info=error)

    def _pause_gone(self) -> None:
        gone = find_gone(self._api, self._settings.mlops_host_name, self._root)
        to_pause = [each for each in gone if each.is_active]
        if not to_pause:
            return
        if not self._folders and flow_dir.identity(self._root) != self._trusted:
            logger.warning(
                "%s: no flow is there at all, so it may only not be mounted: %d deployment(s) are "
                "left as they are; `mlops flows prune` deletes those whose folder is gone",
                self._root,
                len(to_pause),
            )
            return
        for each in to_pause:
            if pause(self._api, each):
                logger.warning(
                    "%s: paused, %s; `mlops flows prune` deletes it", each.name, each.reason
                )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)

    def _ask_servers(self) -> None:
        """Ask both servers something, down to their disks.

        Raises:
            MlopsError: One of them is not well.
        """
        self._api.post("/deployments/filter", {"limit": 1})
        next(self._store.objects(f"{CODE_ROOT}/~"), None)

    def _note_outage(self, message: str, now: float) -> None:
        if self._outage is None:
            self._outage = _Outage(now)
        outage = self._outage
        if message not in outage.told and len(outage.told) < OUTAGE_LINES:
            outage.told.add(message)
            logger.warning("trying again until it works: %s", message)
        outage.retry_seconds = self._pace.next_retry(outage.retry_seconds)
        outage.retry_at = time.monotonic() + outage.retry_seconds

    def _servers_are_back(self, outage: _Outage, now: float) -> bool:
        """Ask the servers, if it is time to; what happened there meanwhile is not known.

        Raises:
            MlopsError: They are not back.
        """
        if now < outage.retry_at:
            return False
        self._ask_servers()
        self._going_through = Counter()
        self._gone_at = now
        for folder in self._folders.values():
            folder.due_at = now
        return True


@contextmanager
def _log_upload(name: str, size: int) -> Iterator[Progress | None]:
    logger.info("%s: uploading %.0f MB", name, size / 1e6)
    yield None
