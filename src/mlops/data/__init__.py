"""Data of DVC on this host: at a revision, verified, from a cache that all runs share.

This module is what a flow calls. It runs in the flow's own environment: standard library only, and
Python from 3.9 on. The work is done by a process of `mlops data pull`, in the interpreter that has
mlops; the other modules of this package are imported by that one only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

__all__ = ["DataError", "pull"]

_END_SECONDS = 10.0
_LABEL_DIGITS = 12  # of the hash, in the name of a label
_MESSAGE, _WARNING = "mlops: ", "mlops: warning: "


class DataError(RuntimeError):
    """Data could not be pulled; the message names what is wrong, and the mend."""


def pull(reference: str, to: str | os.PathLike[str]) -> Path:
    """Bring data to a place, and return the place.

    In a flow run the data is noted on the run in Prefect, and on the MLflow runs begun afterwards.

    Args:
        reference: `s3://<bucket>/<remote path>@<hash>`, as `mlops data show` prints it.
        to: The folder or file to be. It may be there if it holds exactly this data, or what an
            earlier pull has placed there.

    Raises:
        DataError: The data cannot be had or placed.
    """
    place = Path(to)
    python = os.environ.get("MLOPS_DATA_PYTHON") or sys.executable
    # The child ends with this process, however that ends: then its end of the pipe is closed.
    ours, its = os.pipe()
    command = [python, "-m", "mlops", "data", "pull", reference, "--to", str(place), "--json"]
    try:
        child = subprocess.Popen(  # an argument list, without a shell
            command,
            stdin=ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=_environment(),
        )
    except OSError as error:
        os.close(its)
        raise DataError(
            f"{python}: cannot be started: {error.strerror}; "
            "MLOPS_DATA_PYTHON names the interpreter that has mlops"
        ) from error
    finally:
        os.close(ours)
    try:
        report, message = _follow(child)
    finally:
        os.close(its)
        _end(child)
    if child.returncode:
        raise DataError(message or f"`mlops data pull {reference}` ended with {child.returncode}")
    _note_in_mlflow(reference)
    return Path(json.loads(report)["path"])


def _environment() -> dict[str, str]:
    """Return the child's environment, in which it imports nothing of the flow's."""
    environment = {
        **os.environ,
        "MLOPS_DATA_CALLER": "stdin",
        "PYTHONSAFEPATH": "1",  # the current folder may hold a `json.py`
    }
    if os.environ.get("MLOPS_DATA_PYTHON"):  # an interpreter with packages of its own
        for name in ("PYTHONHOME", "PYTHONPATH"):
            environment.pop(name, None)
    return environment


def _follow(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Hand on what a child says, and return its report and the error that it ended with."""
    answers: list[str] = []
    assert child.stdout is not None  # noqa: S101  # both are pipes
    assert child.stderr is not None  # noqa: S101
    reader = threading.Thread(target=_read, args=(child.stdout, answers), daemon=True)
    reader.start()
    say = _voice()
    error: list[str] = []
    for text in child.stderr:
        line = text.rstrip("\n")
        if line.startswith(_MESSAGE) and not line.startswith(_WARNING):
            error = [line[len(_MESSAGE) :]]
        elif error and line.startswith(" "):
            error.append(line)
        else:
            say(line)
    reader.join()
    child.wait()
    return "".join(answers), "\n".join(error)


def _read(stream: IO[str], answers: list[str]) -> None:
    answers.append(stream.read())


def _voice() -> Callable[[str], None]:
    """Return what takes a line of progress: the log of the Prefect run, or else stderr."""
    prefect = sys.modules.get("prefect")
    if prefect is not None:
        try:
            info: Callable[[str], None] = prefect.get_run_logger().info
        except Exception:  # noqa: BLE001, S110  # outside of a run, in whatever way it says so
            pass
        else:
            return info
    return lambda line: print(line, file=sys.stderr, flush=True)


def _end(child: subprocess.Popen[str]) -> None:
    """Let no child outlive the call."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def _note_in_mlflow(reference: str) -> None:
    """Tag the MLflow runs that begin from now on, if the agent has said how runs are tagged."""
    try:
        tags = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT", ""))
    except ValueError:
        return
    if isinstance(tags, dict) and "mlops.attempt" in tags:
        digits = reference.rpartition("@")[2][:_LABEL_DIGITS]
        tags[f"mlops.data.{digits}"] = reference
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps(tags)
