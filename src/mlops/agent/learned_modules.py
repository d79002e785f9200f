"""What runs in an environment have imported, kept for the processes that import it ahead."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.agent.environments import Environment

MODULES_MAXIMUM = 5000


class LearnedModules(BaseModel):
    """The modules of one environment.

    Args:
        declared: Those that flow.yaml names as `warm`.
        seen: Those that runs have imported, in the order in which they did.
        denied: Those that a process which forks must not have, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    declared: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    denied: dict[str, str] = {}

    @property
    def to_import(self) -> list[str]:
        """What is to be imported ahead; nothing of a package whose top is denied."""
        names = dict.fromkeys((*self.declared, *self.seen))
        return [name for name in names if not self._is_denied(name)]

    def _is_denied(self, name: str) -> bool:
        return name in self.denied or any(name.startswith(f"{each}.") for each in self.denied)


class ModuleMemory:
    """The folder with one file per environment.

    Args:
        folder: Made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, environment: Environment) -> LearnedModules:
        """Return what is known; nothing when the file is missing or damaged."""
        try:
            return LearnedModules.model_validate_json(self._file(environment).read_bytes())
        except (OSError, ValidationError):
            return LearnedModules()

    def declare(self, environment: Environment, names: Iterable[str]) -> None:
        """Add what a flow.yaml names."""
        known = self.read(environment)
        declared = tuple(dict.fromkeys((*known.declared, *names)))
        if declared != known.declared:
            self._write(environment, known.model_copy(update={"declared": declared}))

    def learn(self, environment: Environment, names: Iterable[str]) -> bool:
        """Add what a run has imported; return whether that is news.

        Args:
            environment: The run's.
            names: In the order in which they were imported.
        """
        known = self.read(environment)
        seen = tuple(dict.fromkeys((*known.seen, *names)))[:MODULES_MAXIMUM]
        if seen == known.seen:
            return False
        self._write(environment, known.model_copy(update={"seen": seen}))
        return True

    def deny(self, environment: Environment, reasons: dict[str, str]) -> None:
        """Keep modules out from now on."""
        known = self.read(environment)
        denied = known.denied | reasons
        self._write(environment, known.model_copy(update={"denied": denied}))

    def _file(self, environment: Environment) -> Path:
        return self.folder / f"{environment.key}.json"

    def _write(self, environment: Environment, modules: LearnedModules) -> None:
        """Replace the file; a full disk only costs the memory of it."""
        temporary = self._file(environment).with_suffix(".new")
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(modules.model_dump_json())
            temporary.replace(self._file(environment))
