"""A flow folder's flow.yaml: found, read and checked, with every mistake of it at once."""

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.errors import MlopsError
from mlops.scheduler.document import Document, DocumentError, read_document
from mlops.scheduler.flow_yaml import FlowYaml, SchedulerSection, without_unused
from mlops.scheduler.schedule import (
    Schedule,
    ScheduleError,
    parse_cron,
    parse_interval,
    parse_rrule,
)
from mlops.scheduler.spec_mistakes import explain

LOCATIONS = (Path("config/flow.yaml"), Path("flow.yaml"))
LOST_AND_FOUND = "lost+found"  # at the top of a file system, for root alone


class FlowSpec(BaseModel):
    """A checked flow.yaml and where it was found."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    path: Path
    content: FlowYaml
    schedule: Schedule | None


class FlowYamlError(MlopsError):
    """Everything that is wrong with one flow.yaml, a line each."""

    def __init__(self, path: Path, mistakes: list[str]) -> None:
        super().__init__("\n".join(f"{path}: {mistake}" for mistake in mistakes))
        self.path = path
        self.mistakes = mistakes


def find_flow_yaml(folder: Path) -> Path | None:
    """Return `<folder>/config/flow.yaml` or `<folder>/flow.yaml`, whichever is there.

    Raises:
        MlopsError: The folder cannot be read.
    """
    try:
        return next((folder / name for name in LOCATIONS if (folder / name).is_file()), None)
    except OSError as error:
        raise _unreadable(folder, error) from error


def find_flow_folders(path: Path) -> list[Path]:
    """Return the flow folders that a path means: itself, or those in it, sorted.

    One that cannot be read may be one, and counts: what reads it says what is wrong.

    Raises:
        MlopsError: The path is no folder, or cannot be read.
    """
    try:
        if not path.is_dir():
            raise MlopsError(f"{path}: no such folder")
        if find_flow_yaml(path):
            return [path]
        children = sorted(path.iterdir())
    except OSError as error:
        raise _unreadable(path, error) from error
    return [child for child in children if _may_be_flow(child)]


def _may_be_flow(folder: Path) -> bool:
    try:
        return find_flow_yaml(folder) is not None
    except MlopsError:
        return folder.name != LOST_AND_FOUND


def _unreadable(folder: Path, error: OSError) -> MlopsError:
    return MlopsError(
        f"{folder}: cannot be read: {error.strerror}",
        hint="give the user that mlops runs as the right to read it, or move it elsewhere",
    )


def overlooked(folder: Path, flow_yaml: Path) -> list[str]:
    """Say which other flow.yaml files are not looked at because a folder's own is there.

    Args:
        folder: The flow folder.
        flow_yaml: What `find_flow_yaml` returns of it.
    """
    own = {folder / location for location in LOCATIONS}
    found = [
        f"counts, and {other} does not; remove the one that is not meant"
        for other in own - {flow_yaml}
        if other.is_file()
    ]
    inner = {path for location in LOCATIONS for path in folder.glob(f"*/{location}")} - own
    if inner:
        names = ", ".join(sorted(str(path.relative_to(folder)) for path in inner))
        found.append(f"makes one flow of the whole folder; these are not flows then: {names}")
    return found


def read_spec(folder: Path) -> FlowSpec:
    """Read and check the flow.yaml of a flow folder.

    Raises:
        FlowYamlError: It has mistakes; the error names all of them.
    """
    # Not resolved: the bundle is named after the link by which a folder is known.
    folder = Path(os.path.abspath(folder))  # noqa: PTH100  # pathlib keeps "..", an odd name
    path = find_flow_yaml(folder)
    if path is None:
        raise MlopsError(f"{folder}: neither flow.yaml nor config/flow.yaml is there")
    document = without_unused(_load(path))
    content, mistakes = _parse(document)
    section = content.scheduler if content else _scheduler_alone(document)
    schedule: Schedule | None = None
    if section is not None:
        try:
            schedule = _schedule(section)
        except ScheduleError as error:
            mistakes.append(f"scheduler.{error}")
    if content is not None:
        mistakes += _missing_files(folder, content)
    mistakes = [*document.mistakes, *_without_consequences(mistakes, document.mistakes)]
    if content is None or mistakes:
        raise FlowYamlError(path, [*mistakes, *overlooked(folder, path)])
    return FlowSpec(folder=folder, path=path, content=content, schedule=schedule)


def _load(path: Path) -> Document:
    try:
        document = read_document(path)
    except DocumentError as error:
        raise FlowYamlError(path, [str(error)]) from error
    if document.content is None:
        known = ", ".join(FlowYaml.model_fields)
        raise FlowYamlError(path, [f"is not a mapping; allowed: {known}"])
    return document


def _parse(document: Document) -> tuple[FlowYaml | None, list[str]]:
    try:
        return FlowYaml.model_validate(document.content), []
    except ValidationError as error:
        return None, [explain(each, FlowYaml, document.written) for each in error.errors()]


def _scheduler_alone(document: Document) -> SchedulerSection | None:
    """Return the section if it is well-formed, so that its mistakes are told with the others."""
    try:
        return SchedulerSection.model_validate((document.content or {}).get("scheduler"))
    except ValidationError:
        return None


def _without_consequences(mistakes: list[str], told: list[str]) -> list[str]:
    """Leave out what is said of a place of which the document's own mistakes tell already."""
    places = {mistake.partition(": ")[0] for mistake in told}
    return [mistake for mistake in mistakes if mistake.partition(": ")[0] not in places]


def _schedule(section: SchedulerSection) -> Schedule:
    """Build the schedule that the section's method names.

    Raises:
        ScheduleError: Its message starts with the key below `scheduler`.
    """
    value = getattr(section, section.method)
    if value is None:
        raise ScheduleError(f"{section.method}: is missing; required by method: {section.method}")
    parsers: dict[str, Callable[[object, str], Schedule]] = {
        "interval": parse_interval,
        "cron": parse_cron,
        "rrule": parse_rrule,
    }
    try:
        return parsers[section.method](value, section.timezone)
    except ScheduleError as error:
        raise ScheduleError(f"{section.method}: {error}") from error


def _missing_files(folder: Path, content: FlowYaml) -> list[str]:
    mistakes = []
    flow_file = content.deployment.flow_py_name
    if not _is_inside(folder, flow_file):
        mistakes.append(f"deployment.flow_py_name: {flow_file!r} is outside of the flow folder")
    elif not _is_file(folder / flow_file):
        found = sorted(path.name for path in folder.glob("*.py"))
        mistakes.append(
            f"deployment.flow_py_name: {folder / flow_file} is missing"
            + (f"; allowed: {', '.join(found)}" if found else "")
        )
    named = "requirements" in content.model_fields_set
    if named and not _is_inside(folder, content.requirements):
        mistakes.append(f"requirements: {content.requirements!r} is outside of the flow folder")
    elif named and not _is_file(folder / content.requirements):
        mistakes.append(f"requirements: {folder / content.requirements} is missing or no file")
    return mistakes


def _is_inside(folder: Path, relative: str) -> bool:
    try:
        return (folder / relative).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system, or a folder that may not be read
        return False
