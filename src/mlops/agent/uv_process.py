"""Starts uv, and the Pythons that it installs, apart from the agent and its secrets."""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

# Building a package runs its author's code: it sees these variables of the agent and no others,
# so that a secret that nobody thought of stays out.
_PASSED_ON = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "NETRC", "PATH", "SHELL", "TMPDIR", "TZ", "USER"),
        *("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE"),
        *("CURL_CA_BUNDLE", "PYENV_ROOT", "REQUESTS_CA_BUNDLE", "SSH_AUTH_SOCK"),
        *("CC", "CFLAGS", "CPPFLAGS", "CUDA_HOME", "CXX", "CXXFLAGS", "LDFLAGS"),
        *("LD_LIBRARY_PATH", "MAKEFLAGS", "PKG_CONFIG_PATH"),
    }
)
_PASSED_ON_PREFIXES = ("GIT_", "LC_", "UV_", "XDG_")
# uv's own variables that would lead it to another project or Python than the one that we name.
_KEPT_BACK = frozenset(
    {
        *("UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON"),
        *("UV_TORCH_BACKEND", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY"),
    }
)


class ProcessFailedError(Exception):
    """A process ended with another exit status than 0; `output` is its whole stderr."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


class ProcessCancelledError(Exception):
    """A process was ended because nobody waits for its result any more."""


def clean_environment() -> dict[str, str]:
    """Return the environment for uv: the host's settings, nothing of the agent's own."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.upper() in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES))
        and name not in _KEPT_BACK
    }


def run_process(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    cancel: threading.Event | None = None,
    descriptors: Sequence[int] = (),
    output: IO[str] | int = subprocess.DEVNULL,
    limit_seconds: float | None = None,
) -> None:
    """Run a process to its end; leave nothing of it behind, whatever happens.

    Args:
        command: Program and arguments.
        folder: Its working directory.
        environment: All of its environment variables.
        on_line: Called with each line of its stderr as it comes.
        cancel: Ends the process when set.
        descriptors: Open files that the process shall hold, too (our locks: they last until
            the process has ended, even where the agent is killed).
        output: Where its stdout goes.
        limit_seconds: Ends the process after this time.

    Raises:
        ProcessFailedError: It failed, or ran into the limit.
        ProcessCancelledError: `cancel` was set.
    """
    deadline = time.monotonic() + limit_seconds if limit_seconds else None
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        start_new_session=True,  # so that its own children can be ended with it
    )
    try:
        text = _read(process, on_line, cancel, deadline)
        status = process.wait()
    except BaseException:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        if process.stderr:
            process.stderr.close()
    if status:
        raise ProcessFailedError(text.strip() or f"{command[0]}: ended with status {status}")


def _read(
    process: subprocess.Popen[bytes],
    on_line: Callable[[str], None],
    cancel: threading.Event | None,
    deadline: float | None,
) -> str:
    """Follow the process's stderr until it ends, and return all of it."""
    assert process.stderr is not None  # noqa: S101  # a pipe, by the caller
    descriptor = process.stderr.fileno()
    whole, pending = b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if cancel and cancel.is_set():
                raise ProcessCancelledError
            if deadline and time.monotonic() > deadline:
                raise ProcessFailedError(f"{whole.decode(errors='replace')}\ntook too long")
            ended = process.poll() is not None
            if selector.select(timeout=0 if ended else 0.1):
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    break
                whole += chunk
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    on_line(line.decode(errors="replace").rstrip())
            elif ended:  # a child of it may hold the pipe open for longer
                break
    if pending:
        on_line(pending.decode(errors="replace").rstrip())
    return whole.decode(errors="replace")
