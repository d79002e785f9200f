"""An environment: what a run asks for, by which name it is known, and what it gets."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mlops.agent.environment_build import RECIPE
from mlops.agent.environment_packages import supplied_requirements
from mlops.agent.interpreters import Interpreter
from mlops.agent.requirements import Requirements, read_requirements


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a run asks for.

    Attributes:
        folder: The flow's code folder.
        requirements: Path of the requirements file in it; None: none. A `uv.lock` beside a
            `pyproject.toml` wins over none and over `requirements.txt`.
        python: Version such as `3.12`; None: the agent's own.
        torch_backend: uv's `--torch-backend`, such as `cpu` or `cu130`; None: the default index.
    """

    folder: Path
    requirements: str | None = None
    python: str | None = None
    torch_backend: str | None = None


@dataclass(frozen=True)
class Environment:
    """An environment that is ready.

    Attributes:
        key: Names it on this host.
        python: Its interpreter.
        python_version: The interpreter's full version.
        folder: The virtual environment.
        requirements_hash: SHA-256 of what was asked for, such as the lines of the requirements
            file; 64 hexadecimal digits.
        seconds: What its build took; 0 when it was there.
    """

    key: str
    python: Path
    python_version: str
    folder: Path
    requirements_hash: str
    seconds: float

    @property
    def packages(self) -> Path:
        """The folder of its packages."""
        return packages_folder(self.folder, self.python_version)

    @functools.cached_property
    def packages_hash(self) -> str:
        """SHA-256 of the names and versions of what is installed; 64 hexadecimal digits."""
        installed = sorted(path.name for path in self.packages.glob("*.dist-info"))
        return hashlib.sha256("\n".join(installed).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """What a run asks for, read: the files that a spec names, and the Python of this host."""

    spec: EnvironmentSpec
    requirements: Requirements
    interpreter: Interpreter

    @classmethod
    def read(cls, spec: EnvironmentSpec, interpreter: Interpreter) -> "Request":
        """Read a flow's requirements.

        Raises:
            MlopsError: A file is missing or not readable.
        """
        requirements = read_requirements(spec.folder, spec.requirements, interpreter.version)
        return cls(spec, requirements, interpreter)

    @property
    def key(self) -> str:
        """Name the environment by everything that it depends on."""
        text = json.dumps(
            [
                RECIPE,
                self.interpreter.version,
                self.interpreter.platform,
                # Without requirements there is no torch that it could change.
                None if self.requirements.is_none else self.spec.torch_backend,
                self.requirements.is_project,
                self.requirements.fingerprint,
                supplied_requirements(self.requirements),
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def environment(self, folder: Path, seconds: float = 0) -> Environment:
        """Return the environment that lies in a folder.

        Args:
            folder: The virtual environment.
            seconds: What its build took.
        """
        fingerprint = self.requirements.fingerprint.encode()
        return Environment(
            key=self.key,
            python=folder / "bin" / "python",
            python_version=self.interpreter.version,
            folder=folder,
            requirements_hash=hashlib.sha256(fingerprint).hexdigest(),
            seconds=seconds,
        )


def packages_folder(environment: Path, python_version: str) -> Path:
    """Return the folder of an environment's packages."""
    major_minor = ".".join(python_version.split(".")[:2])
    return environment / "lib" / f"python{major_minor}" / "site-packages"
