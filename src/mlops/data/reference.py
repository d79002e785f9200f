"""A data reference: which data, where, and at which revision, in one string."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from mlops import lineage
from mlops.errors import UsageError

FOLDER_SUFFIX = ".dir"  # DVC's: the hash of a folder is that of the list of its files
_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
_REFERENCE = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<path>[^@]*))?@(?P<hash>[^@/]+)"
)


def check_hash(value: str) -> str:
    """Refuse what is no hash of DVC's: MD5 in 32 digits, with `.dir` for a folder."""
    if not _HASH.fullmatch(value):
        raise ValueError("not an MD5 in 32 small hexadecimal digits, with .dir for a folder")
    return value


DataHash = Annotated[str, AfterValidator(check_hash)]


class Reference(BaseModel):
    """Data that DVC keeps in S3, at a revision. Immutable, and verifiable without git.

    Attributes:
        bucket: Name of the bucket.
        path: The DVC remote's path in it, without slashes at its ends.
        hash: MD5 of the file, or of a folder's list with `.dir` behind it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str
    path: str
    hash: DataHash

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `s3://<bucket>/<remote path>@<hash>`.

        Raises:
            UsageError: It is none.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None or not _HASH.fullmatch(match["hash"]):
            raise UsageError(
                f"{text}: not a data reference",
                hint="that is s3://<bucket>/<remote path>@<hash>, where the hash has 32 digits, "
                "and .dir behind it for a folder; `mlops data show` prints them",
            )
        return cls(
            bucket=match["bucket"], path=(match["path"] or "").strip("/"), hash=match["hash"]
        )

    def __str__(self) -> str:
        return f"s3://{self.bucket}{'/' if self.path else ''}{self.path}@{self.hash}"

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and not one file."""
        return self.hash.endswith(FOLDER_SUFFIX)

    @property
    def label(self) -> str:
        """The name of its label on a Prefect run, and of its tag on an MLflow run."""
        return f"{lineage.DATA}{self.hash[: lineage.HASH_DIGITS]}"


def is_reference(text: str) -> bool:
    """Return whether a command's target is meant as a reference, and not as a path."""
    return text.startswith("s3://")
