"""Builds one environment in one folder: resolve, install, prove that Prefect starts in it."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops.agent.interpreters import Interpreter
from mlops.agent.requirements import NO_REQUIREMENTS, Requirements
from mlops.agent.uv_process import (
    ProcessCancelledError,
    ProcessFailedError,
    clean_environment,
    run_process,
)
from mlops.errors import MlopsError
from mlops.uv_program import find_uv

RECIPE = 1  # counts what this module does to an environment; a new one builds all of them anew
LOCK_NAME = "mlops-lock.txt"  # the versions that were resolved, kept with the environment

# The last setuptools whose pkg_resources is whole and quiet. Packages of a few years ago import
# that without saying so (mlflow 2.5 does).
_SETUPTOOLS = "80.9.0"
# What the worker's engine and every flow of the platform needs; left out where the flow names it.
_SUPPLIED = ("prefect-aws", "boto3")
# A flow that asks for nothing has no library whose models it could log: MLflow's client will do,
# without the 700 MB of pandas, scikit-learn and others that all of MLflow brings along.
_MLFLOW, _MLFLOW_CLIENT = "mlflow", "mlflow-skinny"
_HEALTH_CHECK = """
import prefect
if int(prefect.__version__.split(".")[0]) < 3:
    raise SystemExit(f"prefect {prefect.__version__} cannot run here: 3 or later is needed")
import prefect.engine, prefect_aws, mlflow
"""
_HEALTH_CHECK_LIMIT_SECONDS = 300.0
# What uv says that a user wants to know. That it copies where it cannot link is none of it.
_LOGGED = re.compile(
    r"\s*(Building |Built |Downloading |Prepared |warning: (?!Failed to hardlink))"
)
# The interpreter is found by then: whatever uv would fetch by itself is none of ours.
_UV_OPTIONS = ("--no-python-downloads", "--no-progress", "--color", "never")
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)")


class EnvironmentBuildError(MlopsError):
    """An environment could not be built; `output` is what uv, or the health check, said."""

    def __init__(self, message: str, *, output: str) -> None:
        is_full = "os error 28" in output or "Errno 28" in output  # ENOSPC, as uv and Python say it
        hint = "make room, or lower MLOPS_ENVIRONMENT_CACHE_BYTES" if is_full else ""
        super().__init__(f"{message}\n{output}", hint=hint)
        self.output = output


class EnvironmentBuildCancelledError(MlopsError):
    """The build was stopped because its run was cancelled or the agent stops."""


def supplied_requirements(
    requirements: Requirements, *, locked: frozenset[str] = frozenset()
) -> list[str]:
    """Return what an environment gets besides the flow's own requirements.

    Args:
        requirements: The flow's; its word stands.
        locked: Normalised names of what its lock holds besides those that it names.
    """
    # A client newer than the server may call what the server does not have.
    own = f"prefect>=3,<={metadata.version('prefect')}"
    mlflow = _MLFLOW_CLIENT if requirements.is_none else _MLFLOW
    named = requirements.names | locked
    return [
        line
        for line in (own, *_SUPPLIED, mlflow, "setuptools")
        if canonicalize_name(Requirement(line).name) not in named
    ]


def default_requirements() -> list[str]:
    """Return what the lock of the environment of flows without requirements is made from."""
    names = [Requirement(line).name for line in supplied_requirements(NO_REQUIREMENTS)]
    return [f"{name}=={_SETUPTOOLS}" if name == "setuptools" else name for name in names]


def preferred_versions() -> dict[str, str]:
    """Return the versions that were tested together, by package.

    They are those of the agent's own environment, and for packages of other roles the exact
    pins among our own package's extras.
    """
    preferred: dict[str, str] = {}
    try:
        ours = [Requirement(line) for line in metadata.requires("mlops") or []]
    except metadata.PackageNotFoundError:  # run from a bare checkout
        ours = []
    for requirement in ours:
        if pin := re.fullmatch(r"==([\w.]+)", str(requirement.specifier)):
            preferred[canonicalize_name(requirement.name)] = pin[1]
    for distribution in metadata.distributions():
        # A distribution that lost its metadata has neither name nor version.
        if distribution.name and distribution.version:
            preferred[canonicalize_name(distribution.name)] = distribution.version
    preferred.pop("mlops", None)
    return preferred | {"setuptools": _SETUPTOOLS}


@dataclass(frozen=True)
class EnvironmentBuilder:
    """Builds an environment where it is to stay: the paths in its scripts are final.

    Attributes:
        folder: The environment's folder; it exists and is empty.
        code: The flow's code folder; it is only read.
        requirements: What the flow asks for.
        interpreter: The Python to use.
        torch_backend: uv's `--torch-backend`; None: the default index.
        log: Receives lines for the run's log.
        lock: Installs these versions and no others, verified by their hashes; None: resolve.
        cancel: Stops the build when set.
        descriptors: Locks that uv shall hold as long as it writes into the folder.
    """

    folder: Path
    code: Path
    requirements: Requirements
    interpreter: Interpreter
    torch_backend: str | None
    log: Callable[[str], None]
    lock: Path | None = None
    cancel: threading.Event | None = None
    descriptors: Sequence[int] = ()

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def build(self) -> None:
        """Build it.

        Raises:
            EnvironmentBuildError: The requirements cannot be resolved or installed, or Prefect
                does not start with them.
            EnvironmentBuildCancelledError: `cancel` was set.
        """
        scratch = self.folder / "build"
        try:
            self._uv(
                *("venv", "--allow-existing", "--no-project", str(self.folder)),
                *("--python", str(self.interpreter.path)),
            )
            scratch.mkdir()
            if self.lock:
                self._install_lock(self.lock)
            else:
                code = self._source(scratch)
                locked = self._sync(code, scratch) if self.requirements.is_project else None
                self._install(code, scratch, locked)
            self._check(scratch)
            shutil.rmtree(scratch)
        except ProcessCancelledError:
            raise EnvironmentBuildCancelledError(
                "the build of the environment was stopped"
            ) from None

    def _source(self, scratch: Path) -> Path:
        """Return the folder in which uv works: the code, or a copy where uv would write into it.

        Building a package writes into its source. For the same reason such packages are
        installed as they are now, never as links to the code (`-e`), which goes its own way.
        """
        if self.requirements.is_project or self.requirements.file:
            if not self.requirements.has_local_packages:
                return self.code
            self.log("packages in the flow's own folder are installed as copies")
            ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__")
            copy = shutil.copytree(self.code, scratch / "code", ignore=ignored)
            for path in (copy, *copy.rglob("*")):  # the code cache is read-only
                path.chmod(path.stat().st_mode | 0o200)
            return copy
        return scratch

    def _sync(self, code: Path, scratch: Path) -> Path:
        """Install the flow's uv.lock, and return a file of the versions that it gave."""
        self._uv(
            *("sync", "--frozen", "--no-dev", "--no-editable"),
            *("--python", str(self.python)),
            folder=code,
            environment={"UV_PROJECT_ENVIRONMENT": str(self.folder)},
            what="its packages cannot be installed",
        )
        locked = scratch / "locked.txt"
        with locked.open("w") as file:
            self._uv("pip", "freeze", "--python", str(self.python), output=file)
        _keep_pins_only(locked, locked)
        return locked

    def _install(self, code: Path, scratch: Path, locked: Path | None) -> None:
        """Resolve and install the flow's requirements together with ours."""
        started = time.monotonic()
        held = frozenset(_read_pins(locked)) if locked else frozenset()
        flow = [self.requirements.file] if self.requirements.file else []
        limits = ("-c", str(locked)) if locked else ()
        ours, lock = scratch / "supplied.txt", self.folder / LOCK_NAME
        supplied = supplied_requirements(self.requirements, locked=held)
        ours.write_text("".join(f"{line}\n" for line in supplied))
        # uv takes the versions in an existing lock where the requirements leave it the choice.
        lock.write_text("".join(f"{n}=={v}\n" for n, v in preferred_versions().items()))
        torch = ("--torch-backend", self.torch_backend) if self.torch_backend else ()
        self._uv(
            *("pip", "compile", *flow, str(ours), "-o", str(lock), *limits),
            *("--python", str(self.python), *torch, "--no-header", "--no-annotate"),
            folder=code,
            what="no set of versions satisfies them",
        )
        pins = _read_pins(lock)
        names = [Requirement(line).name for line in supplied]
        notable = [name for name in names if name in pins and name not in _SUPPLIED]
        self.log(
            f"resolved {len(pins)} packages in {time.monotonic() - started:.1f} s; supplied besides"
            f" the flow's own: {', '.join(f'{n} {pins[n]}' for n in notable) or 'none'}"
            + (
                " (packages from before 2025 import it without saying so)"
                if "setuptools" in notable
                else ""
            )
        )
        # From the flow's file once more, not from the lock: it may hold hashes to verify, and
        # indexes (with passwords that the lock must not have).
        constraints = scratch / "constraints.txt"
        _keep_pins_only(lock, constraints)
        self._uv(
            *("pip", "install", "-c", str(constraints)),
            *(part for file in (*flow, str(ours)) for part in ("-r", file)),
            *("--no-editable", "--python", str(self.python), *torch),
            folder=code,
            what="its packages cannot be installed",
        )

    def _install_lock(self, lock: Path) -> None:
        """Install a lock with its bytecode: where it is used nothing may be written."""
        self._uv(
            *("pip", "install", "--require-hashes", "--compile-bytecode"),
            *("--python", str(self.python), "-r", str(lock.absolute())),
            what="its packages cannot be installed",
        )
        _keep_pins_only(lock, self.folder / LOCK_NAME)

    def _check(self, scratch: Path) -> None:
        """Start what every run starts.

        This also compiles what every run imports. Compiling all at installation
        (`--compile-bytecode`) takes longer than it gives. Measured on 2 cores, packages in uv's
        cache, for scikit-learn, matplotlib, skops and mlflow: install 2 to 3 s, this check 6 to
        9 s, a first run's imports 7 s; with it 15 to 20, 2.5 and 4.4 s. Later runs import in
        4.5 s either way.
        """
        environment = clean_environment() | {
            "PREFECT_HOME": str(scratch / "prefect"),  # a user's profile may name any server
            "PYTHONNOUSERSITE": "1",
        }
        try:
            run_process(
                [str(self.python), "-c", _HEALTH_CHECK],
                folder=scratch,
                environment=environment,
                on_line=lambda _: None,
                cancel=self.cancel,
                descriptors=self.descriptors,
                limit_seconds=_HEALTH_CHECK_LIMIT_SECONDS,
            )
        except ProcessFailedError as error:
            raise self._failure("Prefect does not start with them", error.output) from None

    def _uv(
        self,
        *arguments: str,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
        what: str = "uv failed",
        output: IO[str] | int = subprocess.DEVNULL,
    ) -> None:
        """Run uv; `what` says what it means when that fails."""
        try:
            run_process(
                [find_uv(), *arguments, *_UV_OPTIONS],
                folder=folder or self.folder,
                environment=clean_environment() | (environment or {}),
                on_line=lambda line: self.log(line.strip()) if _LOGGED.match(line) else None,
                cancel=self.cancel,
                descriptors=self.descriptors,
                output=output,
            )
        except ProcessFailedError as error:
            raise self._failure(what, error.output) from None

    def _failure(self, what: str, output: str) -> EnvironmentBuildError:
        version = self.interpreter.version
        return EnvironmentBuildError(
            f"{self.requirements.label}: {what} (Python {version}):", output=output
        )


def _read_pins(lock: Path) -> dict[str, str]:
    """Return the versions in a lock by normalised package name."""
    matches = (_PIN.match(line) for line in lock.read_text().splitlines())
    return {canonicalize_name(m["name"]): m["version"] for m in matches if m}


def _keep_pins_only(source: Path, target: Path) -> None:
    """Copy a lock without its local and remote archives, which uv refuses as constraints."""
    pins = _read_pins(source)
    target.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
