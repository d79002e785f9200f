"""What nobody needs any more: deployments without a folder, and code that nothing refers to."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import httpx
from pydantic import BaseModel, ConfigDict

from mlops import lineage
from mlops.bundles import CODE_ROOT, MANIFEST_NAME, parse_prefix
from mlops.errors import CredentialsError, MlopsError
from mlops.prefect_api import PAGE, PrefectApi, RefusedRequestError
from mlops.scheduler.deployments import read_all
from mlops.scheduler.gone import GoneDeployment
from mlops.storage import ObjectStore

# A version without a deployment may be one that is being registered just now.
YOUNG = dt.timedelta(hours=1)
_IN_PROGRESS = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")
_TO_COME = ("SCHEDULED", *_IN_PROGRESS)


class CodeVersion(BaseModel):
    """A version of a flow's code in S3.

    Attributes:
        prefix: Where it lies in its bucket.
        keys: Its objects.
        size: Bytes of all of them.
        uploaded: When the last of them was written.
    """

    model_config = ConfigDict(frozen=True)

    prefix: str
    keys: tuple[str, ...]
    size: int
    uploaded: dt.datetime

    @property
    def is_settled(self) -> bool:
        """Whether it is old enough for its deployment to be there, if there will be one."""
        return self.uploaded <= dt.datetime.now(dt.UTC) - YOUNG


class UsedCode(NamedTuple):
    """What deployments and runs refer to."""

    prefixes: frozenset[str]
    hashes: frozenset[str]
    versions: frozenset[str]  # the first digits of hashes

    def includes(self, prefix: str) -> bool:
        """Return whether anything refers to a version."""
        content_hash = parse_prefix(prefix) or ""
        return (
            prefix in self.prefixes
            or content_hash in self.hashes
            or content_hash[: lineage.HASH_DIGITS] in self.versions
        )


def runs_in_progress(api: PrefectApi, gone: GoneDeployment) -> list[str]:
    """Return the names of a deployment's runs that have begun and not ended."""
    query = {
        "deployments": {"id": {"any_": [str(gone.deployment.id)]}},
        "flow_runs": {"state": {"type": {"any_": _IN_PROGRESS}}},
        "limit": PAGE,
    }
    return [run["name"] for run in api.post("/flow_runs/filter", query)]


def delete(api: PrefectApi, gone: GoneDeployment) -> None:
    """Delete a deployment; its runs stay in Prefect's history, and its code in S3."""
    try:
        api.send("DELETE", f"/deployments/{gone.deployment.id}")
    except RefusedRequestError as error:
        if error.status_code != httpx.codes.NOT_FOUND:  # somebody else was quicker
            raise


def find_unused_code(api: PrefectApi, store: ObjectStore, days: float) -> list[CodeVersion]:
    """Return the versions of code that no deployment and no recent run refers to.

    Args:
        api: The Prefect server.
        store: The bucket for code.
        days: How far back a run counts, by its end.
    """
    now = dt.datetime.now(dt.UTC)
    # Before the runs and deployments: what is uploaded meanwhile is not among these.
    versions = [version for version in _versions(store, CODE_ROOT) if version.is_settled]
    used = _used_code(api, store.bucket, now - dt.timedelta(days=days))
    return [version for version in versions if not used.includes(version.prefix)]


def delete_unused_code(
    api: PrefectApi, store: ObjectStore, days: float, prefixes: Collection[str]
) -> Iterator[str]:
    """Remove those of some versions that nothing refers to now, and yield each one's prefix.

    A registration may go back to an old version at any time. It looks at the objects once more
    when the deployment refers to them, as we look at the deployments when the objects are gone:
    whoever comes last finds what the other did.

    Args:
        api: The Prefect server.
        store: The bucket for code.
        days: How far back a run counts, by its end.
        prefixes: Which versions.

    Raises:
        MlopsError: A version came into use while it was removed.
    """
    since = dt.datetime.now(dt.UTC)
    unused = [each for each in find_unused_code(api, store, days) if each.prefix in prefixes]
    used = _used_code(api, store.bucket, since)
    for version in unused:
        found = next(_versions(store, version.prefix), None)
        if found is None or not found.is_settled or used.includes(found.prefix):
            continue
        _delete_objects(store, found)
        used = _used_code(api, store.bucket, since)
        if used.includes(found.prefix):
            raise MlopsError(
                f"{store.uri(found.prefix)}: came into use while it was removed",
                hint="register its flow again",
            )
        yield found.prefix


def _delete_objects(store: ObjectStore, version: CodeVersion) -> None:
    """Remove a version's objects; the manifest first, so that nobody sees what is half removed."""
    manifest = f"{version.prefix}/{MANIFEST_NAME}"
    try:
        if manifest in version.keys:
            store.delete([manifest])
        store.delete([key for key in version.keys if key != manifest])
    except CredentialsError as error:
        raise CredentialsError(
            error.message,
            hint="with Compose, code is deleted on the server's host only, in the folder that its "
            "project was started in: docker compose run --rm prune",
        ) from error


def _versions(store: ObjectStore, folder: str) -> Iterator[CodeVersion]:
    found = defaultdict(list)
    for stored in store.objects(folder):
        prefix = "/".join(stored.key.split("/", 3)[:3])
        if parse_prefix(prefix):
            found[prefix].append(stored)
    for prefix, objects in sorted(found.items()):
        yield CodeVersion(
            prefix=prefix,
            keys=tuple(stored.key for stored in objects),
            size=sum(stored.size for stored in objects),
            uploaded=max(stored.last_modified for stored in objects),
        )


def _used_code(api: PrefectApi, bucket: str, since: dt.datetime) -> UsedCode:
    # In the order in which what is used moves on: a deployment's code becomes that of a run to
    # come, and that one ends.
    codes = [deployment.code for deployment in read_all(api).values()]
    runs = [*_runs(api, {"state": {"type": {"any_": _TO_COME}}})]
    runs += _runs(api, {"end_time": {"after_": since.isoformat()}})
    return UsedCode(
        prefixes=frozenset(code[1].rstrip("/") for code in codes if code and code[0] == bucket),
        hashes=frozenset(str(run["labels"].get(lineage.CODE_HASH, "")) for run in runs),
        versions=frozenset(lineage.hash_of(run["deployment_version"]) for run in runs),
    )


def _runs(api: PrefectApi, condition: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return api.pages("/flow_runs/filter", {"flow_runs": condition}, sort="ID_DESC")
