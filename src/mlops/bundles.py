"""A flow folder as a content-addressed bundle: its files, manifest, hash and layout in S3.

What the scheduler writes and the agent reads. A bundle lies under
`flows/<folder name>/<hash>/`, its manifest beside the files and written last: a prefix without
a manifest is an upload that was not finished, and nobody reads it. The hash is the manifest's
own, and the manifest holds the hash of every file, so that a reader can verify all of it.
"""

import hashlib
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

import pathspec
from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import MlopsError
from mlops.storage import TRANSFER_THREADS, ObjectNotFoundError, ObjectStore

MANIFEST_NAME = ".mlops-manifest.json"
# How an ordinary Prefect worker gets the code; ours reads the bucket and the prefix from it.
PULL_STEP = "prefect_aws.deployments.steps.pull_from_s3"
IGNORE_FILE_NAME = ".prefectignore"
# Never .gitignore: DVC lists there the data that a flow may well need.
EXCLUSIONS = (
    ".git/",
    ".hg/",
    ".svn/",
    ".DS_Store",
    ".dvc/cache/",
    ".dvc/tmp/",
    ".env",
    ".idea/",
    ".ipynb_checkpoints/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".venv/",
    ".vscode/",
    "__pycache__/",
    "*.py[cod]",
    "*.swp",
    "*~",
    "node_modules/",
    MANIFEST_NAME,
)
_PREFIX = re.compile(r"flows/(?P<name>[^/]+)/(?P<hash>[0-9a-f]{64})/?")


class BundleError(MlopsError):
    """A bundle in S3 is missing, unfinished or damaged."""


class FolderChangedError(MlopsError):
    """A file changed between the hashing of the folder and its upload."""


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


def prefix_of(folder_name: str, content_hash: str) -> str:
    """Return where a bundle lies in its bucket, without a slash at the end.

    Args:
        folder_name: Name of the flow folder; characters that S3 servers or shells trip over
            are percent-encoded.
        content_hash: `Manifest.content_hash`.
    """
    return f"flows/{quote(folder_name, safe=' ').replace(' ', '+')}/{content_hash}"


def parse_prefix(prefix: str) -> str | None:
    """Return the content hash that a prefix names, or None if it is not a bundle's."""
    match = _PREFIX.fullmatch(prefix)
    return match["hash"] if match else None


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: Path, ignored: pathspec.GitIgnoreSpec) -> Iterator[Path]:
    """Yield the files that belong to a folder's bundle, not descending into what is ignored."""
    for entry in sorted(folder.iterdir()):
        yield from _walk_entry(folder, entry, ignored)


def _walk_entry(root: Path, entry: Path, ignored: pathspec.GitIgnoreSpec) -> Iterator[Path]:
    relative = entry.relative_to(root).as_posix()
    is_folder = entry.is_dir()
    if ignored.match_file(f"{relative}/" if is_folder else relative):
        return
    if is_folder and entry.is_symlink():
        raise MlopsError(
            f"{entry}: is a link to a folder, which a bundle cannot hold",
            hint=f"copy the folder, or list it in {root / IGNORE_FILE_NAME}",
        )
    if is_folder:
        for child in sorted(entry.iterdir()):
            yield from _walk_entry(root, child, ignored)
    elif entry.is_file():
        yield entry
    else:
        kind = "a dangling link" if entry.is_symlink() else "neither a file nor a folder"
        raise MlopsError(
            f"{entry}: is {kind}", hint=f"remove it, or list it in {root / IGNORE_FILE_NAME}"
        )


def _ignored(folder: Path) -> pathspec.GitIgnoreSpec:
    ignore_file = folder / IGNORE_FILE_NAME
    lines = ignore_file.read_text().splitlines() if ignore_file.is_file() else []
    return pathspec.GitIgnoreSpec.from_lines([*EXCLUSIONS, *lines])


def read_folder(folder: Path, needs: EnvironmentNeeds) -> Manifest:
    """Hash a flow folder: paths, executable bits and bytes.

    Raises:
        MlopsError: Something in the folder cannot be read or cannot be part of a bundle.
    """
    try:
        files = list(_walk(folder, _ignored(folder)))
        return Manifest(
            needs=needs,
            files=tuple(
                sorted(
                    (
                        BundleFile(
                            path=path.relative_to(folder).as_posix(),
                            size=path.stat().st_size,
                            sha256=_hash_file(path),
                            executable=bool(path.stat().st_mode & stat.S_IXUSR),
                        )
                        for path in files
                    ),
                    key=lambda file: file.path,
                )
            ),
        )
    except OSError as error:
        raise MlopsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def upload(folder: Path, manifest: Manifest, store: ObjectStore) -> bool:
    """Bring a bundle to S3: what is missing there, in parallel, and the manifest last.

    Args:
        folder: The flow folder that `manifest` describes.
        manifest: What to upload.
        store: The bucket for code.

    Returns:
        Whether anything was written.

    Raises:
        FolderChangedError: A file is not what the manifest says any more.
        MlopsError: The object store does not answer or refuses.
    """
    prefix = prefix_of(folder.name, manifest.content_hash)
    present = store.sizes(f"{prefix}/")
    manifest_key = f"{prefix}/{MANIFEST_NAME}"
    missing = [f for f in manifest.files if present.get(f"{prefix}/{f.path}") != f.size]
    body = manifest.to_bytes()
    if not missing and present.get(manifest_key) == len(body):
        return False

    def send(file: BundleFile) -> None:
        path = folder / file.path
        store.upload(path, f"{prefix}/{file.path}")
        # Hashed after the upload: what was sent is then known to be what was hashed before.
        try:
            unchanged = _hash_file(path) == file.sha256
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise FolderChangedError(f"{path}: changed while it was read")

    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        for _ in pool.map(send, missing):
            pass
    store.write(manifest_key, body)
    return True


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

    with ThreadPoolExecutor(TRANSFER_THREADS) as pool:
        for _ in pool.map(receive, manifest.files):
            pass
