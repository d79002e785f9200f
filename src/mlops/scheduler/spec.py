"""flow.yaml: the format, read once into frozen models; every mistake of a file at once."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
)

from mlops.errors import MlopsError
from mlops.scheduler.schedule import (
    Schedule,
    ScheduleError,
    parse_cron,
    parse_interval,
    parse_rrule,
)

LOCATIONS = (Path("config/flow.yaml"), Path("flow.yaml"))
Name = Annotated[StrictStr, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeploymentSection(_Section):
    """`deployment:`, what is deployed and where its runs go."""

    flow_py_name: Name = Field(description="file with the @flow function")
    flow_name: Name = Field(description="the function")
    deploy_name: Name = Field(description="name of the deployment")
    pool_name: Name = Field(default="default-agent-pool", description="work pool")
    queue_name: Name = Field(default="default", description="work queue in that pool")


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        close = difflib.get_close_matches(name, available_timezones(), 3, 0.5)
        examples = ", ".join(close) or "Europe/Paris, UTC"
        raise ValueError(f"{name!r} is not a time zone; allowed: IANA names, such as {examples}")
    return name


class SchedulerSection(_Section):
    """`scheduler:`, when it runs; only the chosen method's value is used."""

    method: Literal["interval", "cron", "rrule"]
    timezone: Annotated[StrictStr, AfterValidator(_known_timezone)] = Field(
        default="UTC", description="IANA name"
    )
    interval: Any = Field(default=None, description="seconds")
    cron: Any = Field(default=None, description="five fields")
    rrule: Any = Field(default=None, description="RFC 5545 rule")


class FlowYaml(_Section):
    """The whole file."""

    RFS_NAME: StrictStr | None = Field(default=None, description="name of the remote file system")
    deployment: DeploymentSection
    scheduler: SchedulerSection | None = None
    parameters: dict[StrictStr, Any] = Field(default_factory=dict)
    description: StrictStr | None = None
    tags: tuple[StrictStr, ...] = ()
    gpus: Annotated[StrictInt, Field(ge=0)] = 0
    concurrency_limit: Annotated[StrictInt, Field(ge=1)] | None = None
    python: StrictStr | None = Field(default=None, pattern=r"^3\.\d+(\.\d+)?$")
    requirements: Name = "requirements.txt"
    warm: tuple[StrictStr, ...] = ()


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
    """Return `<folder>/config/flow.yaml` or `<folder>/flow.yaml`, whichever is there."""
    return next((folder / name for name in LOCATIONS if (folder / name).is_file()), None)


def find_flow_folders(path: Path) -> list[Path]:
    """Return the flow folders that a path means: itself, or the folders in it.

    Raises:
        MlopsError: There is none.
    """
    if not path.is_dir():
        raise MlopsError(f"{path}: no such folder")
    if find_flow_yaml(path):
        return [path]
    folders = [child for child in sorted(path.iterdir()) if find_flow_yaml(child)]
    if not folders:
        raise MlopsError(
            f"{path}: no flow here", hint="a flow folder holds flow.yaml or config/flow.yaml"
        )
    return folders


def read_spec(folder: Path) -> FlowSpec:
    """Read and check the flow.yaml of a flow folder.

    Raises:
        FlowYamlError: It has mistakes; the error names all of them.
    """
    folder = folder.absolute()
    path = find_flow_yaml(folder)
    if path is None:
        raise MlopsError(f"{folder}: neither flow.yaml nor config/flow.yaml is there")
    document = _load(path)
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
    if content is None or mistakes:
        raise FlowYamlError(path, mistakes)
    return FlowSpec(folder=folder, path=path, content=content, schedule=schedule)


def _load(path: Path) -> dict[object, object]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or error
        raise FlowYamlError(path, [f"{where}not YAML: {problem}"]) from error
    except UnicodeDecodeError as error:
        raise FlowYamlError(path, ["not UTF-8 text"]) from error
    except OSError as error:
        raise FlowYamlError(path, [f"cannot be read: {error.strerror}"]) from error
    if not isinstance(document, dict):
        known = ", ".join(FlowYaml.model_fields)
        raise FlowYamlError(path, [f"is not a mapping; allowed: {known}"])
    return document


def _parse(document: dict[object, object]) -> tuple[FlowYaml | None, list[str]]:
    try:
        return FlowYaml.model_validate(document), []
    except ValidationError as error:
        return None, [_explain(problem) for problem in error.errors()]


def _scheduler_alone(document: dict[object, object]) -> SchedulerSection | None:
    """Return the section if it is well-formed, so that its mistakes are told with the others."""
    try:
        return SchedulerSection.model_validate(document.get("scheduler"))
    except ValidationError:
        return None


def _explain(problem: Any) -> str:
    """Turn one of pydantic's findings into `dotted.path: what is wrong; allowed: …`."""
    location = [str(part) for part in problem["loc"]]
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            known = _fields_at(location[:-1])
            close = difflib.get_close_matches(location[-1], known, 1)
            meant = f"unknown key, did you mean {close[0]}?" if close else "unknown key"
            wrong = f"{meant}; allowed: {', '.join(known)}"
        case "missing":
            wrong = f"is missing; required: {_describe(location)}"
        case "literal_error":
            allowed = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
            wrong = f"{value!r} is not known; allowed: {allowed}"
        case "model_type" | "model_attributes_type" | "dict_type":
            known = _fields_at(location)
            wrong = f"{_shown(value)} is not a mapping"
            wrong += f"; allowed: {', '.join(known)}" if known else ""
        case "string_type":
            wrong = f"{_shown(value)} is not text; allowed: text (quote it)"
        case "int_type":
            wrong = f"{_shown(value)} is not a whole number"
        case "string_pattern_mismatch":
            wrong = f'{value!r} is not a version; allowed: as in "3.12"'
        case "value_error":
            wrong = str(problem["ctx"]["error"])
        case _:
            wrong = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{'.'.join(location)}: {wrong}"


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})" if value is not None else "nothing"


def _model_at(location: list[str]) -> type[BaseModel] | None:
    sections: dict[str, type[BaseModel]] = {
        "": FlowYaml,
        "deployment": DeploymentSection,
        "scheduler": SchedulerSection,
    }
    return sections.get(".".join(location))


def _fields_at(location: list[str]) -> list[str]:
    model = _model_at(location)
    return list(model.model_fields) if model else []


def _describe(location: list[str]) -> str:
    model = _model_at(location[:-1])
    field = model.model_fields.get(location[-1]) if model else None
    if field is None:
        return location[-1]
    if field.description:
        return field.description
    return ", ".join(_fields_at(location)) or {"method": "interval, cron, rrule"}.get(
        location[-1], location[-1]
    )


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
    elif not (folder / flow_file).is_file():
        found = sorted(path.name for path in folder.glob("*.py"))
        mistakes.append(
            f"deployment.flow_py_name: {folder / flow_file} is missing"
            + (f"; allowed: {', '.join(found)}" if found else "")
        )
    named = "requirements" in content.model_fields_set
    if named and not _is_inside(folder, content.requirements):
        mistakes.append(f"requirements: {content.requirements!r} is outside of the flow folder")
    elif named and not (folder / content.requirements).is_file():
        mistakes.append(f"requirements: {folder / content.requirements} is missing")
    return mistakes


def _is_inside(folder: Path, relative: str) -> bool:
    return (folder / relative).resolve().is_relative_to(folder.resolve())
