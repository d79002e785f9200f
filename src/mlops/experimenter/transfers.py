"""`dvc push`, `pull` and `fetch`, with what is wrong with S3 said so that it can be mended.

Of a refused key DVC says "unexpected error - Forbidden", and of a server that is down where it is
not. S3 is asked before, and once more when DVC has failed: it may have gone away meanwhile.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops.data.dvc_config import DvcConfig, RemotePlace
from mlops.errors import MlopsError
from mlops.settings import S3Settings
from mlops.storage import ObjectStore

_COMMANDS = {"fetch", "pull", "push"}
_OTHER_REMOTE = ("-r", "--remote")


def find_transfer(project: Path, command: Sequence[str]) -> RemotePlace | None:
    """Return the remote that a command of DVC sends data to or gets it from.

    Returns:
        The remote; None: it is another command, or goes to another remote than the platform's.
    """
    words = [word for word in command[1:] if not word.startswith("-")]
    if Path(command[0]).name != "dvc" or not words or words[0] not in _COMMANDS:
        return None
    if any(word.startswith(_OTHER_REMOTE) for word in command):
        return None
    try:
        return DvcConfig(project).remote(None)
    except MlopsError:
        return None  # DVC's to say


def run_transfer(
    remote: RemotePlace, command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """Run the command and return its exit code.

    Raises:
        MlopsError: S3 does not answer, or refuses; what has arrived there stays.
        OSError: There is no such program.
    """
    store = ObjectStore(S3Settings.from_environment(), remote.bucket)
    _ask(store, remote)
    with subprocess.Popen(list(command), env=environment) as process:
        code = _wait(process)
    if code > 0:
        try:
            _ask(store, remote)
        except MlopsError as error:
            raise MlopsError(
                f"`{' '.join(command)}` broke off: {error.message}",
                hint=f"{error.hint}; then run it again: what has arrived stays",
            ) from None
    return code if code >= 0 else 128 - code  # as a shell says that a signal ended it


def _ask(store: ObjectStore, remote: RemotePlace) -> None:
    """Look into the remote, which takes an answer and a key that is good."""
    next(iter(store.objects(remote.path)), None)


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process that an interrupt reaches, too, and that ends in its own way."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
