"""Names in `.env` files that are not the ones the compose files read: mistyped, or misplaced."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from mlops.errors import MlopsError
from mlops.ops.stacks import KNOWN, ROOT, STACKS, Stack

# Compose's own settings and what people add for themselves are nobody's typing mistake.
_SIMILARITY = 0.85
_COMPOSE = {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"}


def check_names(place: Path, values: Mapping[str, str]) -> list[str]:
    """Return remarks about the names in one file.

    Args:
        place: The file, relative to the checkout.
        values: Its variables.

    Raises:
        MlopsError: A name looks like one of ours that has no value there: with a value made
            for that, what its user meant would be lost.
    """
    remarks: list[str] = []
    mistyped: list[str] = []
    for name in values:
        if name in KNOWN:
            owners = KNOWN[name].stacks
            if place != ROOT and _stack_at(place) not in owners:
                folders = ", ".join(stack.folder for stack in owners)
                remarks.append(f"{place}: {name}: of no use here, remove it (of: {folders})")
        elif meant := _meant(name):
            line = f"{place}: {name}: not known; did you mean {meant}?"
            (remarks if values.get(meant) else mistyped).append(line)
    if mistyped:
        raise MlopsError("\n  ".join(mistyped), hint="rename it, or remove the line")
    return remarks


def _meant(name: str) -> str:
    if name in _COMPOSE:
        return ""
    return "".join(get_close_matches(name, KNOWN, n=1, cutoff=_SIMILARITY))


def _stack_at(place: Path) -> Stack | None:
    return next((stack for stack in STACKS if stack.env_file == place), None)
