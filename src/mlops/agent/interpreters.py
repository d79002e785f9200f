"""Finds the Python that a flow asks for among those of this host."""

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from mlops.agent.uv_process import clean_environment
from mlops.errors import MlopsError
from mlops.uv_program import find_uv

_PROBE = (
    "import json, platform, sys, sysconfig;"
    "print(json.dumps([sys.executable, platform.python_version(),"
    " sysconfig.get_platform(), sysconfig.get_config_var('SOABI')]))"
)
_REQUEST = re.compile(r"[\w./~<>=!@+,*-]+")


@dataclass(frozen=True)
class Interpreter:
    """A Python on this host.

    Attributes:
        path: The executable.
        version: Full version, such as `3.11.7`.
        platform: Operating system, architecture and C library; wheels depend on it.
    """

    path: Path
    version: str
    platform: str

    @property
    def runs(self) -> bool:
        """Whether the executable is still there."""
        return os.access(self.path, os.X_OK)


def own_interpreter() -> Interpreter:
    """Return the Python that runs the agent."""
    return Interpreter(
        path=Path(sys.executable),
        version=platform.python_version(),
        platform=f"{sysconfig.get_platform()} {sysconfig.get_config_var('SOABI')}",
    )


def _search_path() -> str:
    """Return PATH with pyenv's interpreters in place of its shims.

    uv asks the first `python3.12` on PATH and gives up when that is a shim of a version which
    is installed but not chosen (https://github.com/astral-sh/uv/issues/2019).
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    folders = [
        folder
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if Path(folder) != pyenv / "shims"
    ]
    return os.pathsep.join([*folders, *(str(f) for f in sorted(pyenv.glob("versions/*/bin")))])


def _uv_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_uv(), "python", *arguments, "--no-config"],
        env=clean_environment() | {"PATH": _search_path()},
        capture_output=True,
        text=True,
        check=False,
    )


def _installed_versions() -> str:
    """Name the Pythons of this host, newest first, for a message."""
    listed = _uv_python("list", "--only-installed", "--output-format", "json")
    try:
        found = json.loads(listed.stdout)
    except json.JSONDecodeError:
        found = []
    # The first of each version is the one that uv would take.
    paths = {entry["version"]: entry["path"] for entry in reversed(found)}
    own = own_interpreter()
    paths.setdefault(own.version, str(own.path))
    ordered = sorted(
        paths, key=lambda version: [int(n) for n in re.findall(r"\d+", version)], reverse=True
    )
    return ", ".join(f"{version} ({paths[version]})" for version in ordered)


def find_interpreter(request: str | None, *, downloads: bool = False) -> Interpreter:
    """Find a Python on this host.

    Args:
        request: A version such as `3.12`, or whatever else `uv python find` understands. None,
            or the version of the agent's own Python: the agent's own.
        downloads: Whether uv may fetch it when it is missing.

    Raises:
        MlopsError: There is none; the message names what was found instead.
    """
    own = own_interpreter()
    if request is None or f"{own.version}.".startswith(f"{request}."):
        return own
    if not _REQUEST.fullmatch(request) or request.startswith("-"):
        raise MlopsError(f"python: {request!r} is not a version", hint="write it as in '3.12'")
    # Without downloads at first: one that is here is taken as it is.
    find = ("find", "--system", "--no-project", "--no-python-downloads", request)
    found = _uv_python(*find)
    if found.returncode and downloads:
        installed = _uv_python("install", "--no-bin", request)
        if installed.returncode:
            raise MlopsError(
                f"python: {request} is not on this host, and uv could not fetch it:\n"
                f"{installed.stderr.strip()}"
            )
        found = _uv_python(*find)
    if found.returncode:
        raise MlopsError(
            f"python: {request} is not on this host; found: {_installed_versions()}",
            hint="install it, choose one of these, or set MLOPS_PYTHON_DOWNLOADS=true",
        )
    probed = subprocess.run(
        [found.stdout.strip(), "-I", "-S", "-c", _PROBE],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if probed.returncode:
        raise MlopsError(f"python: {found.stdout.strip()} does not start:\n{probed.stderr.strip()}")
    path, version, system, abi = json.loads(probed.stdout)
    return Interpreter(path=Path(path), version=version, platform=f"{system} {abi}")
