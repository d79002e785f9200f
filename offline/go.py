"""Programs built from Go modules."""

import re
import shutil
from pathlib import Path

from commands import Failure, run

# From 1.21 on Go fetches the version that a module asks for.
OLDEST = (1, 21)
MEND = "install Go 1.24 or newer (Debian trixie's golang-go); only the minio image needs it"
PSEUDO_VERSION = re.compile(r"v0\.0\.0-(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)-(\w{12})")


def check() -> None:
    """Look for Go.

    Raises:
        Failure: it is missing or too old.
    """
    if shutil.which("go") is None:
        raise Failure(f"go is not installed: {MEND}")
    said = run(["go", "version"], environment={"GOTOOLCHAIN": "local"}).strip()
    version = re.search(r"go(\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) < OLDEST:
        raise Failure(f"go is too old ({said}): {MEND}")


def build(module: str, folder: Path) -> Path:
    """Build MinIO or another program that takes its version as MinIO does.

    It is static, and holds none of this machine's paths.

    Args:
        module: `path@version`, where the version is a pseudo-version with time and commit.
        folder: gets the program.

    Raises:
        Failure: why it could not be built.
    """
    path, _, version = module.partition("@")
    stamp = PSEUDO_VERSION.fullmatch(version)
    if stamp is None:
        raise ValueError(f"{module} has no pseudo-version")
    year, month, day, hour, minute, second, commit = stamp.groups()
    variables = {
        "Version": f"{year}-{month}-{day}T{hour}:{minute}:{second}Z",
        "ReleaseTag": f"RELEASE.{year}-{month}-{day}T{hour}-{minute}-{second}Z",
        "CopyrightYear": year,
        "CommitID": commit,
        "ShortCommitID": commit,
    }
    flags = ["-s", "-w", *(f"-X {path}/cmd.{name}={text}" for name, text in variables.items())]
    run(
        ["go", "install", "-trimpath", f"-ldflags={' '.join(flags)}", module],
        environment={"CGO_ENABLED": "0", "GOBIN": str(folder)},
    )
    return folder / path.rpartition("/")[2]
