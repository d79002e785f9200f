"""What data consists of: one file, or the files of a folder as DVC lists them.

A folder's list comes from S3 and is nobody's word: it may name paths outside of the folder.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from mlops.data.reference import FOLDER_SUFFIX, Reference, check_hash
from mlops.errors import MlopsError


class DamagedDataError(MlopsError):
    """What lies in the remote is not what its name says."""


class DataFile(NamedTuple):
    """One file. `path` is relative to the folder, with forward slashes; empty: it is alone."""

    path: str
    md5: str


def _check_path(path: str) -> str:
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts) or "\0" in path:
        raise ValueError("leaves the folder")
    return path


def _check_md5(md5: str) -> str:
    if md5.endswith(FOLDER_SUFFIX):
        raise ValueError("a folder in a folder")
    return check_hash(md5)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    relpath: Annotated[str, AfterValidator(_check_path)]
    md5: Annotated[str, AfterValidator(_check_md5)]


_LINES = TypeAdapter(tuple[_Line, ...])


def parse_list(body: bytes, reference: Reference) -> tuple[DataFile, ...]:
    """Read the list of a folder's files, sorted by path.

    Args:
        body: What was read.
        reference: The folder.

    Raises:
        DamagedDataError: It is not the list that the reference names, or not one to be trusted.
    """
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    if f"{digest}{FOLDER_SUFFIX}" != reference.hash:
        raise DamagedDataError(
            f"{reference}: the list of its files is damaged, its MD5 is {digest}",
            hint="remove that object from the remote, and `dvc push` from where the data is good",
        )
    try:
        lines = _LINES.validate_json(body)
        files = tuple(sorted(DataFile(line.relpath, line.md5) for line in lines))
        _check_together(files)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{first['input']!r}"[:200]
        raise _refusal(
            reference, f"{what}: {first['ctx']['error']}" if "ctx" in first else what
        ) from None
    except ValueError as error:
        raise _refusal(reference, str(error)) from None
    return files


def _refusal(reference: Reference, what: str) -> DamagedDataError:
    return DamagedDataError(
        f"{reference}: the list of its files is not one that DVC writes ({what})",
        hint="who has pushed it?",
    )


def _check_together(files: Iterable[DataFile]) -> None:
    """Refuse paths that cannot be side by side."""
    paths = [file.path for file in files]
    known = set(paths)
    if len(known) != len(paths):
        raise ValueError(f"{next(p for p in known if paths.count(p) > 1)!r} is there twice")
    for path in paths:
        parent = path
        while parent := parent.rpartition("/")[0]:
            if parent in known:
                raise ValueError(f"{parent!r} is a file and a folder")
