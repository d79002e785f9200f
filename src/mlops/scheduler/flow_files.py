"""The files of a flow folder: which of them belong to its bundle, and their hashes."""

import hashlib
import re
import stat
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from mlops.bundles import MANIFEST_NAME, BundleFile, EnvironmentNeeds, Manifest, prefix_of
from mlops.errors import MlopsError

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
_KEY_BYTES = 1024  # of an object's whole key, by the S3 protocol
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # cannot be told in the XML of S3's answers
_READ_BYTES = 1 << 20


class FolderChangedError(MlopsError):
    """The folder changed while it was read: what was read may never have existed."""


class Bundle(NamedTuple):
    """A flow folder as it was read.

    Attributes:
        folder: The folder.
        manifest: What it holds.
        md5: MD5 of each file by its path, for the comparison with what S3 shows.
    """

    folder: Path
    manifest: Manifest
    md5: Mapping[str, str]

    @property
    def prefix(self) -> str:
        """Where it lies, or will lie, in its bucket."""
        return prefix_of(self.folder.name, self.manifest.content_hash)


class FileState(NamedTuple):
    """What tells that a file was written to, without reading it.

    `changed_ns`, the inode's own time, also moves when a file takes another's place or gets an
    old time, as copies do.
    """

    inode: int
    size: int
    mode: int
    modified_ns: int
    changed_ns: int


def snapshot(folder: Path) -> Mapping[str, FileState]:
    """Return the state of every file that belongs to a folder's bundle.

    Two equal snapshots mean that nothing was written in between.

    Raises:
        MlopsError: Something in the folder cannot be part of a bundle.
    """
    try:
        return {
            path.relative_to(folder).as_posix(): FileState(
                found.st_ino,
                found.st_size,
                found.st_mode,
                found.st_mtime_ns,
                found.st_ctime_ns,
            )
            for path in _walk(folder, _read_patterns(folder))
            for found in (path.stat(),)
        }
    except OSError as error:
        raise MlopsError(f"{error.filename}: cannot be read: {error.strerror}") from error


def state(folder: Path) -> Hashable:
    """Return what changes when a file of a folder is written to, whatever it holds."""
    try:
        return tuple(snapshot(folder).items())
    except MlopsError as error:  # as may be while files come and go
        return str(error)


def read_folder(folder: Path, needs: EnvironmentNeeds) -> Bundle:
    """Hash a flow folder: paths, executable bits and bytes.

    Raises:
        FolderChangedError: A file went away meanwhile.
        MlopsError: Something in the folder cannot be read or cannot be part of a bundle.
    """
    files: list[BundleFile] = []
    md5: dict[str, str] = {}
    try:
        for path in _walk(folder, _read_patterns(folder)):
            name = path.relative_to(folder).as_posix()
            _refuse_name(folder, name)
            sha256, weak, size = hashlib.sha256(), _md5(), 0
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    sha256.update(block)
                    weak.update(block)
                    size += len(block)
                executable = bool(path.stat().st_mode & stat.S_IXUSR)
            md5[name] = weak.hexdigest()
            files.append(
                BundleFile(path=name, size=size, sha256=sha256.hexdigest(), executable=executable)
            )
    except FileNotFoundError as error:
        raise FolderChangedError(f"{error.filename}: went away while it was read") from error
    except OSError as error:
        raise MlopsError(f"{error.filename}: cannot be read: {error.strerror}") from error
    files.sort(key=lambda file: file.path)
    return Bundle(folder, Manifest(needs=needs, files=tuple(files)), md5)


def _refuse_name(folder: Path, name: str) -> None:
    """Make sure that a file's name can be an object's."""
    hint = f"rename it, or list it in {IGNORE_FILE_NAME}"
    try:
        key = f"{prefix_of(folder.name, '0' * 64)}/{name}".encode()
    except UnicodeEncodeError:
        raise MlopsError(f"{folder}: the name of {name!r} is not UTF-8", hint=hint) from None
    if _CONTROL.search(name):
        raise MlopsError(f"{folder}: the name of {name!r} has a control character", hint=hint)
    if len(key) > _KEY_BYTES:
        raise MlopsError(
            f"{folder / name}: the path is too long for an S3 key by {len(key) - _KEY_BYTES} bytes",
            hint=hint,
        )


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)  # what S3 servers show of a whole object


def _walk(folder: Path, ignored: GitIgnoreSpec) -> Iterator[Path]:
    """Yield the files that belong to a folder's bundle, not descending into what is ignored."""
    for entry in sorted(folder.iterdir()):
        yield from _walk_entry(folder, entry, ignored)


def _walk_entry(root: Path, entry: Path, ignored: GitIgnoreSpec) -> Iterator[Path]:
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


def left_out_by(folder: Path, name: str) -> str:
    """Say what leaves a file out of a folder's bundle, and the mend; empty: nothing does.

    Args:
        folder: The flow folder.
        name: The file's path in it.

    Raises:
        MlopsError: .prefectignore cannot be read.
    """
    ignored = _read_patterns(folder)
    path = PurePosixPath(name)
    for part in (*(f"{parent}/" for parent in reversed(path.parents[:-1])), name):
        found = ignored.check_file(part)
        if not found.include or found.index is None:
            continue
        pattern = ignored.patterns[found.index].pattern
        if found.index < len(EXCLUSIONS):
            return f"{pattern!r} is never uploaded; move the file elsewhere"
        line = found.index - len(EXCLUSIONS) + 1
        return f"{folder / IGNORE_FILE_NAME}: line {line}, {pattern!r}, leaves it out; change that"
    return ""


def _read_patterns(folder: Path) -> GitIgnoreSpec:
    """Return what leaves files out: our own patterns, and one for each line of .prefectignore."""
    path = folder / IGNORE_FILE_NAME
    raw = path.read_bytes() if path.is_file() else b""
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise MlopsError(
            f"{path}: line {number}: not UTF-8 text", hint="save the file as UTF-8"
        ) from error
    patterns = [GitIgnoreSpecPattern(exclusion) for exclusion in EXCLUSIONS]
    for number, line in enumerate(lines, 1):
        try:
            patterns.append(GitIgnoreSpecPattern(line))
        except (ValueError, re.error) as error:  # the second from the expression that it becomes
            raise MlopsError(
                f"{path}: line {number}: {line!r} is not a pattern",
                hint="write it as in .gitignore, or take the line out",
            ) from error
    return GitIgnoreSpec(patterns)
