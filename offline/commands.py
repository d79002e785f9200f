"""Commands that are run, and what their failures mean."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

# The last lines of a failed command that nobody foresaw.
TAIL_LINES = 15

MEANINGS = {
    r"No space left on device|no space left on device": "the disk is full: make room, or set TMPDIR"
    " to a folder with more",
    r"dial tcp|proxyconnect|i/o timeout|TLS handshake": "the Go module proxy cannot be reached:"
    " see `go env GOPROXY` and the proxy's settings",
    r"requires go >= .*GOTOOLCHAIN=local": "this Go is older than MinIO asks for, and is set to"
    " fetch no newer one: run it with GOTOOLCHAIN=auto, or install that one",
    r"Could not resolve|Temporary failure resolving|Could not connect|Unable to connect|"
    r"Failed to fetch|Connection (failed|timed out)": "the Debian mirror cannot be reached:"
    " see `apt-get update`, the apt sources and the proxy's settings",
    r"NO_PUBKEY|is not signed": "the Debian mirror's signature is not known: update the package"
    " debian-archive-keyring",
    r"newuidmap|subuid|CLONE_NEWUSER|uid_map": "as this user it cannot be done: run it as root,"
    " or install uidmap and give the user a range in /etc/subuid and /etc/subgid",
}


class Failure(Exception):  # noqa: N818  # it is what the user reads
    """What went wrong and how to mend it, in one line."""


def run(
    command: list[str],
    *,
    into: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return what it printed; an interrupt ends its children, too.

    Args:
        command: the program and its arguments.
        into: a file for its standard output, which is then not returned.
        folder: where it runs.
        environment: variables besides the machine's own.

    Raises:
        Failure: it failed; with the meaning where that is known, or else its last lines.
    """
    with into.open("wb") if into else nullcontext(subprocess.PIPE) as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            start_new_session=True,
        )
    try:
        printed, said = process.communicate()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        raise
    if process.returncode:
        raise Failure(_meaning(command[0], said.decode(errors="replace").splitlines()))
    return (printed or b"").decode()


def _meaning(program: str, lines: list[str]) -> str:
    """Say in one line what a failed program's output means, if that is known."""
    for pattern, meaning in MEANINGS.items():
        for line in lines:
            if re.search(pattern, line):
                return f"{meaning} ({line.strip()})"
    return "\n".join([f"{program} failed:", *lines[-TAIL_LINES:]])
