"""Builds one environment in one folder: resolve and install."""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from packaging.requirements import Requirement

from mlops.agent.environment_packages import (
    UNREMARKABLE,
    keep_pins_only,
    preferred_versions,
    read_pins,
    supplied_requirements,
)
from mlops.agent.interpreters import Interpreter
from mlops.agent.requirements import Requirements
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

# What uv says that a user wants to know. That it copies where it cannot link is none of it.
_LOGGED = re.compile(
    r"\s*(Building |Built |Downloading |Prepared |warning: (?!Failed to hardlink))"
)
# The interpreter is found by then: whatever uv would fetch by itself is none of ours.
_UV_OPTIONS = ("--no-python-downloads", "--no-progress", "--color", "never")


class EnvironmentBuildError(MlopsError):
    """An environment could not be built; `output` is what uv, or the health check, said."""

    def __init__(self, message: str, *, output: str) -> None:
        is_full = "os error 28" in output or "Errno 28" in output  # ENOSPC, as uv and Python say it
        hint = "make room, or lower MLOPS_ENVIRONMENT_CACHE_BYTES" if is_full else ""
        super().__init__(f"{message}\n{output}", hint=hint)
        self.output = output


class EnvironmentBuildCancelledError(MlopsError):
    """The build was stopped because its run was cancelled or the agent stops."""


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

    @property
    def _torch(self) -> tuple[str, ...]:
        return ("--torch-backend", self.torch_backend) if self.torch_backend else ()

    def build(self) -> None:
        """Build it; whether Prefect starts in it is for `environment_check` to find out.

        Raises:
            EnvironmentBuildError: The requirements cannot be resolved or installed.
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
            shutil.rmtree(scratch)
        except ProcessCancelledError:
            self._stop()
        if self.cancel and self.cancel.is_set():
            self._stop()

    def _stop(self) -> NoReturn:
        raise EnvironmentBuildCancelledError("the build of the environment was stopped") from None

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
        keep_pins_only(locked, locked)
        return locked

    def _install(self, code: Path, scratch: Path, locked: Path | None) -> None:
        """Resolve and install the flow's requirements together with ours.

        uv asks the index about every package, which takes about a second even where nothing has
        changed. Meanwhile what follows from uv's cache alone is installed; that is nearly always
        what the index says, too, and else it is put right.
        """
        started = time.monotonic()
        held = frozenset(read_pins(locked)) if locked else frozenset()
        supplied = supplied_requirements(self.requirements, locked=held)
        ours, lock, guess = scratch / "ours.txt", self.folder / LOCK_NAME, scratch / "guess.txt"
        ours.write_text("".join(f"{line}\n" for line in supplied))
        # uv takes the versions in an existing lock where the requirements leave it the choice.
        preferred = "".join(f"{n}=={v}\n" for n, v in preferred_versions().items())
        lock.write_text(preferred)
        flow = [self.requirements.file] if self.requirements.file else []
        files = [*flow, str(ours)]
        with ThreadPoolExecutor(1) as pool:
            resolution = pool.submit(self._resolve, code, files, lock, locked)
            is_installed = False
            if not self.requirements.is_project:  # there most is installed already
                guess.write_text(preferred)
                with contextlib.suppress(EnvironmentBuildError):
                    self._resolve(code, files, guess, None, "--offline")
                    self._install_pinned(code, files, guess, "--offline")
                    is_installed = True
            resolution.result()
        pins = read_pins(lock)
        names = [Requirement(line).name for line in supplied]
        notable = [name for name in names if name in pins and name not in UNREMARKABLE]
        self.log(
            f"resolved {len(pins)} packages in {time.monotonic() - started:.1f} s; supplied besides"
            f" the flow's own: {', '.join(f'{n} {pins[n]}' for n in notable) or 'none'}"
            + (
                " (packages from before 2025 import it without saying so)"
                if "setuptools" in notable
                else ""
            )
        )
        prefect = pins.get("prefect", "")
        if re.match(r"[0-2]\.", prefect):
            raise self._failure(
                "Prefect does not start with them",
                f"prefect {prefect} cannot run here: 3 or later is needed",
            )
        if not is_installed or pins != read_pins(guess):
            self._install_pinned(code, files, lock)

    def _resolve(
        self, code: Path, files: Sequence[str], lock: Path, locked: Path | None, *options: str
    ) -> None:
        """Choose versions; `lock` holds the preferred ones, and then the chosen ones."""
        limits = ("-c", str(locked)) if locked else ()
        self._uv(
            *("pip", "compile", *files, "-o", str(lock), *limits, *options),
            *("--python", str(self.python), *self._torch, "--no-header", "--no-annotate"),
            folder=code,
            what="no set of versions satisfies them",
        )

    def _install_pinned(self, code: Path, files: Sequence[str], lock: Path, *options: str) -> None:
        """Install requirements in the versions of a lock, and nothing else.

        From the flow's file once more, not from the lock: it may hold hashes to verify, and
        indexes (with passwords that the lock must not have).
        """
        constraints = lock.parent / "build" if lock.parent == self.folder else lock.parent
        constraints /= f"constraints-{lock.name}"
        keep_pins_only(lock, constraints)
        self._uv(
            *("pip", "install", "-c", str(constraints), *options),
            *(part for file in files for part in ("-r", file)),
            *("--no-editable", "--python", str(self.python), *self._torch),
            *(() if self.requirements.is_project else ("--exact",)),
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
        keep_pins_only(lock, self.folder / LOCK_NAME)

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
