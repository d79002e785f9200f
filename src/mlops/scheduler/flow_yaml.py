"""The format of flow.yaml as frozen models; its JSON Schema for editors is made from them."""

import keyword
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mlops.memory_size import PATTERN, parse_memory
from mlops.scheduler.document import TWICE, Document
from mlops.scheduler.names import LENGTH_LIMIT, name_mistake, pool_name_mistake, tag_mistake
from mlops.scheduler.schedule import INTERVAL_LIMIT_SECONDS
from mlops.scheduler.timezones import timezone_mistake
from mlops.scheduler.wording import shown

CONCURRENCY_MAXIMUM = 2**31 - 1  # the server's column
GPUS_MAXIMUM = 1024


def _refuse(find_mistake: Callable[[str], str | None]) -> AfterValidator:
    def validate(value: str) -> str:
        if mistake := find_mistake(value):
            raise ValueError(mistake)
        return value

    return AfterValidator(validate)


# Alike for Python's `re` and for the regular expressions of editors.
_PATH = r"[^\\\x00-\x1f\x7f]"
_PART = rf"(?!({'|'.join(keyword.kwlist)})(\.|$))[^\W\d]\w*"
_MODULE = rf"^{_PART}(\.{_PART})*$"
_PYTHON = r"^3\.(9|[1-9][0-9]+)(\.(0|[1-9][0-9]*))?$"


def _file_mistake(path: str) -> str | None:
    if not path.isprintable() or not re.fullmatch(f"{_PATH}*", path):
        return f"{shown(path)} is not a file's path; allowed: names with / between them"
    return None


def _flow_file_mistake(path: str) -> str | None:
    if not path.endswith(".py"):
        return f"{shown(path)} is not a Python file; allowed: a file whose name ends in .py"
    return _file_mistake(path)


def _module_mistake(name: str) -> str | None:
    if re.fullmatch(_MODULE, name):
        return None
    return f"{shown(name)} is not a module; allowed: names as in import, such as sklearn.svm"


def _python_mistake(version: str) -> str | None:
    if re.fullmatch(_PYTHON, version):
        return None
    if re.fullmatch(r"3\.[0-8](\..*)?", version):
        return f"{shown(version)} is too old for Prefect 3; allowed: from 3.9 on"
    return f'{shown(version)} is not a version; allowed: as in "3.12"'


def _memory_mistake(amount: str) -> str | None:
    try:
        parse_memory(amount)
    except ValueError as error:
        return str(error)
    return None


def _whole(value: object) -> object:
    """Return 2 for 2.0: JSON, and editors with it, do not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if again := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"{again!r} is there twice")
    return values


def _text_field(pattern: str = "", otherwise: str = "", limit: int = 0) -> Any:
    """Return the field of a text that must say something, with what editors can check of it.

    Args:
        pattern: What it must match; empty: anything.
        otherwise: What editors say when it does not (a keyword of theirs, not JSON Schema's).
        limit: Characters at the most; 0: any number.
    """
    known: dict[str, Any] = {
        "pattern": pattern,
        "patternErrorMessage": otherwise,
        "maxLength": limit,
    }
    return Field(min_length=1, json_schema_extra={k: v for k, v in known.items() if v})


_NAME_FIELD = _text_field(r"^[^/%&<>?#]+$", "a name has none of / % & < > ? #", LENGTH_LIMIT)
_FLOW_FILE_FIELD = _text_field(rf"^{_PATH}*\.py$", "a Python file's name ends in .py")
_FILE_FIELD = _text_field(f"^{_PATH}*$", "a path has / between its names")
_MODULE_FIELD = _text_field(_MODULE, "a module as in import: sklearn.svm")
_PYTHON_FIELD = _text_field(_PYTHON, "a version from 3.9 on, in quotes: '3.12'")
_MEMORY_FIELD = _text_field(PATTERN, "a number and a unit: 4GiB, 500MB")

Name = Annotated[StrictStr, _NAME_FIELD, _refuse(name_mistake)]
PoolName = Annotated[StrictStr, _NAME_FIELD, _refuse(pool_name_mistake)]
Tag = Annotated[StrictStr, _text_field(limit=LENGTH_LIMIT), _refuse(tag_mistake)]
FunctionName = Annotated[StrictStr, _text_field()]
FlowFile = Annotated[StrictStr, _FLOW_FILE_FIELD, _refuse(_flow_file_mistake)]
FilePath = Annotated[StrictStr, _FILE_FIELD, _refuse(_file_mistake)]
Module = Annotated[StrictStr, _MODULE_FIELD, _refuse(_module_mistake)]
TimezoneName = Annotated[StrictStr, _text_field(), _refuse(timezone_mistake)]
Memory = Annotated[StrictStr, _MEMORY_FIELD, _refuse(_memory_mistake)]
PythonVersion = Annotated[StrictStr, _PYTHON_FIELD, _refuse(_python_mistake)]
Whole = BeforeValidator(_whole)
Unique = AfterValidator(_unique)
_UNIQUE_ITEMS: dict[str, Any] = {"uniqueItems": True}

# What a method's own value must be; the values of the other methods are not looked at.
_METHODS: dict[str, dict[str, Any]] = {
    "interval": {"type": "integer", "minimum": 1, "maximum": INTERVAL_LIMIT_SECONDS},
    "cron": {
        "type": "string",
        "pattern": r"^\s*\S+(\s+\S+){4}\s*$",
        "patternErrorMessage": "five fields: minute, hour, day, month, weekday",
    },
    "rrule": {"type": "string", "minLength": 1},
}
_METHOD_DEMANDS: dict[str, Any] = {
    "allOf": [
        {
            "if": {"properties": {"method": {"const": method}}, "required": ["method"]},
            "then": {"properties": {method: value}, "required": [method]},
        }
        for method, value in _METHODS.items()
    ]
}


def _own_name(name: str, _field: FieldInfo | Any) -> str:
    return name


class _Section(BaseModel):
    """A key without a value is as one that is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=_own_name)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_blank(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: each for key, each in value.items() if each is not None}


class DeploymentSection(_Section):
    """What is deployed, and where its runs go."""

    model_config = ConfigDict(title="deployment")

    flow_py_name: FlowFile = Field(
        description="the Python file with the flow, relative to the folder",
        examples=["prefect_flow.py"],
    )
    flow_name: FunctionName = Field(
        description="the function with the @flow decorator", examples=["main"]
    )
    deploy_name: Name = Field(
        description="name of the deployment; together with the flow's name it is unique",
        examples=["nightly"],
    )
    pool_name: PoolName = Field(
        default="default-agent-pool",
        description="the work pool whose agents run it; made when missing",
    )
    queue_name: Name = Field(
        default="default", description="the work queue in that pool; made when missing"
    )


class SchedulerSection(_Section):
    """When it runs; only the chosen method's value is used."""

    model_config = ConfigDict(title="scheduler", json_schema_extra=_METHOD_DEMANDS)

    method: Literal["interval", "cron", "rrule"] = Field(
        description="which of interval, cron, rrule is used"
    )
    timezone: TimezoneName = Field(
        default="UTC", description="IANA name of a time zone", examples=["Asia/Taipei", "UTC"]
    )
    interval: Annotated[Any, WithJsonSchema({})] = Field(
        default=None, description="whole seconds, counted from 2020-01-01", examples=[3600]
    )
    cron: Annotated[Any, WithJsonSchema({})] = Field(
        default=None,
        description="five fields: minute, hour, day, month, weekday",
        examples=["0 9 * * mon-fri"],
    )
    rrule: Annotated[Any, WithJsonSchema({})] = Field(
        default=None,
        description="a recurrence rule (RFC 5545)",
        examples=["FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0"],
    )


class FlowYaml(_Section):
    """One flow of the platform: its code, when it runs, and what its runs need."""

    model_config = ConfigDict(title="flow.yaml")

    RFS_NAME: StrictStr | None = Field(
        default=None,
        description="name of the remote file system, for your own notes",
        examples=["minio"],
    )
    deployment: DeploymentSection = Field(description="what is deployed, and where its runs go")
    scheduler: SchedulerSection | None = Field(
        default=None, description="when it runs; left out: started by hand"
    )
    parameters: dict[StrictStr, Any] = Field(
        default_factory=dict,
        description="values for the function's parameters",
        examples=[{"seed": 7}],
    )
    description: StrictStr | None = Field(
        default=None, description="text in the UI; default: the function's docstring"
    )
    tags: Annotated[tuple[Tag, ...], Unique] = Field(
        default=(),
        description="labels to find it by",
        examples=[["example", "night"]],
        json_schema_extra=_UNIQUE_ITEMS,
    )
    gpus: Annotated[StrictInt, Field(ge=0, le=GPUS_MAXIMUM), Whole] | None = Field(
        default=None,
        description=f"how many GPUs a run needs, 0 to {GPUS_MAXIMUM}; left out: the pool's default",
    )
    memory: Memory | None = Field(
        default=None,
        description="the most memory that a run may use, as in 4GiB; left out: no limit",
        examples=["4GiB", "500MB"],
    )
    concurrency_limit: Annotated[StrictInt, Field(ge=1, le=CONCURRENCY_MAXIMUM), Whole] | None = (
        Field(
            default=None,
            description=f"how many at a time, 1 to {CONCURRENCY_MAXIMUM}; left out: any number",
        )
    )
    python: PythonVersion | None = Field(
        default=None,
        description="Python version of the run, in quotes; left out: the agent's",
        examples=["3.12"],
    )
    requirements: FilePath = Field(
        default="requirements.txt",
        description="the requirements file, relative to the folder; the default may be missing",
    )
    warm: Annotated[tuple[Module, ...], Unique] = Field(
        default=(),
        description="modules to import ahead of time",
        examples=[["pandas", "sklearn.svm"]],
        json_schema_extra=_UNIQUE_ITEMS,
    )
    late: Literal["run_all", "run_latest", "skip"] = Field(
        default="run_latest",
        description="which runs of the schedule to make when they are late, as after an outage",
    )


class _EditorSchema(GenerateJsonSchema):
    """With null for what may be left out, without defaults of null, which editors would fill in."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        written = super().default_schema(schema)
        values = {"enum": [*written["enum"], None]} if "enum" in written else {}
        return written | values | {"type": [written["type"], "null"]}


def without_unused(document: Document) -> Document:
    """Return a file without what YAML does to values of methods that are not chosen.

    Only the chosen one's value is used; a key that is there twice is a mistake all the same.
    """
    section = (document.content or {}).get("scheduler")
    method = section.get("method") if isinstance(section, dict) else None
    if method not in _METHODS:
        return document
    unused = [["scheduler", other] for other in _METHODS if other != method]
    mistakes = [
        mistake
        for mistake in document.mistakes
        if mistake.partition(": ")[0].split(".")[:2] not in unused or TWICE in mistake
    ]
    return document._replace(mistakes=mistakes)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) by which editors check and complete flow.yaml."""
    schema = FlowYaml.model_json_schema(schema_generator=_EditorSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect} | schema
