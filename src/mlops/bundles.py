"""A flow folder as a content-addressed bundle: its manifest, its hash and its layout in S3.

What the scheduler writes and the agent reads. A bundle lies under
`flows/<folder name>/<hash>/`, its manifest beside the files and written last: a prefix without
a manifest is an upload that was not finished, and nobody reads it. The hash is the manifest's
own, and the manifest holds the hash of every file, so that a reader can verify all of it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import MlopsError
from mlops.storage import TRANSFER_THREADS, ObjectNotFoundError, ObjectStore

MANIFEST_NAME = ".mlops-manifest.json"
# How an ordinary Prefect worker gets the code; ours reads the bucket and the prefix from it.
PULL_STEP = "prefect_aws.deployments.steps.pull_from_s3"
CODE_ROOT = "flows"  # of all bundles in their bucket
# The failed state of a run whose code is missing or damaged, by which the next registration
# knows that it has to look at every byte.
DAMAGED_STATE = "CodeDamaged"
_PREFIX = re.compile(r"flows/(?P<name>[^/]+)/(?P<hash>[0-9a-f]{64})/?")
_NAME_CHARACTERS = 128


class BundleError(MlopsError):
    """A bundle in S3 is missing, unfinished or damaged."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleFile(_Frozen):
    """One file of a bundle. `path` is relative, with forward slashes; `size` is in bytes."""

    path: str
    size: int
    sha256: str
    executable: bool = False


class EnvironmentNeeds(_Frozen):
    """What a run of this bundle needs around it.

    Attributes:
        requirements: Path of the requirements file in the bundle; None: none.
        python: Python version such as `3.12`; None: the agent's own.
        gpus: Number of GPUs.
        warm: Modules to import ahead of time.
    """

    requirements: str | None = None
    python: str | None = None
    gpus: int = 0
    warm: tuple[str, ...] = ()


class Manifest(_Frozen):
    """What a bundle consists of; files are sorted by path."""

    format: Literal[1] = 1
    needs: EnvironmentNeeds = EnvironmentNeeds()
    files: tuple[BundleFile, ...]

    def to_bytes(self) -> bytes:
        """Return the canonical form: the bytes that are stored and hashed."""
        return self.model_dump_json().encode()

    @property
    def content_hash(self) -> str:
        """The bundle's name: SHA-256 of the canonical form, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def code_folder(folder_name: str) -> str:
    """Return where all bundles of a flow folder lie, without a slash at the end.

    Args:
        folder_name: Name of the flow folder; characters that S3 servers or shells trip over
            are percent-encoded, and what is then too long for a file's name, which it becomes
            on an S3 server's disk, ends in its hash instead.
    """
    name = quote(folder_name, safe=" ").replace(" ", "+")
    if name in {".", ".."}:
        name = f"{name}~"
    if len(name) > _NAME_CHARACTERS:
        digest = hashlib.sha256(folder_name.encode()).hexdigest()[:16]
        name = f"{name[: _NAME_CHARACTERS - 17]}~{digest}"
    return f"{CODE_ROOT}/{name}"


def prefix_of(folder_name: str, content_hash: str) -> str:
    """Return where a bundle lies in its bucket, without a slash at the end.

    Args:
        folder_name: See `code_folder`.
        content_hash: `Manifest.content_hash`.
    """
    return f"{code_folder(folder_name)}/{content_hash}"


def parse_prefix(prefix: str) -> str | None:
    """Return the content hash that a prefix names, or None if it is not a bundle's."""
    match = _PREFIX.fullmatch(prefix)
    return match["hash"] if match else None


def pull_steps(bucket: str, prefix: str) -> list[dict[str, Any]]:
    """Return the pull steps with which any Prefect worker gets a bundle."""
    return [{PULL_STEP: {"bucket": bucket, "folder": prefix}}]


def pulled_bundle(steps: list[dict[str, Any]] | None) -> tuple[str, str] | None:
    """Return the bucket and prefix of the bundle that pull steps get, or None if it is none."""
    if not steps or len(steps) != 1:
        return None
    options = steps[0].get(PULL_STEP)
    if not isinstance(options, dict) or set(options) != {"bucket", "folder"}:
        return None
    return (options["bucket"], options["folder"]) if parse_prefix(options["folder"]) else None


def fetch_manifest(store: ObjectStore, prefix: str) -> Manifest:
    """Read and verify a bundle's manifest.

    Raises:
        BundleError: There is none, or it is not the one that the prefix names.
    """
    key = f"{prefix.rstrip('/')}/{MANIFEST_NAME}"
    try:
        body = store.read(key)
    except ObjectNotFoundError as error:
        raise BundleError(
            f"{store.uri(prefix)}: no complete code here", hint="register the flow again"
        ) from error
    damaged = BundleError(
        f"{store.uri(key)}: damaged, its bytes do not match its name",
        hint="register the flow again",
    )
    if hashlib.sha256(body).hexdigest() != parse_prefix(prefix):
        raise damaged
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        raise damaged from error


def download(store: ObjectStore, prefix: str, manifest: Manifest, target: Path) -> None:
    """Download a bundle's files into an empty folder and verify each one.

    Raises:
        BundleError: A file is missing, or its bytes are not those of the manifest.
    """
    prefix = prefix.rstrip("/")

    def receive(file: BundleFile) -> None:
        # The manifest's hash is verified, but a manifest may name any path.
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise BundleError(f"{store.uri(prefix)}: names a path outside itself: {file.path}")
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        key = f"{prefix}/{file.path}"
        try:
            store.download(key, path)
        except ObjectNotFoundError as error:
            raise BundleError(
                f"{store.uri(key)}: is missing", hint="register the flow again"
            ) from error
        if _hash_file(path) != file.sha256:
            raise BundleError(
                f"{store.uri(key)}: damaged, its bytes do not match the manifest",
                hint="register the flow again",
            )
        path.chmod(0o755 if file.executable else 0o644)

    transfer(receive, manifest.files)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def transfer(move: Callable[[BundleFile], None], files: Iterable[BundleFile]) -> None:
    """Move files in parallel; the first error ends it, and what has begun runs out."""
    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        try:
            for _ in pool.map(move, files):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
