"""What a run asks of the agent: its job variables, which the Prefect UI offers in its run form."""

import copy
import functools
from collections.abc import Mapping
from typing import Annotated, Any

from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings.context import get_current_settings
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import WithJsonSchema

from mlops import memory_size
from mlops.errors import MlopsError

GPUS_SCHEMA: dict[str, Any] = {
    "type": "integer",
    "minimum": 0,
    "title": "GPUs",
    "description": "How many GPUs a run has to itself. Left out: none.",
}
MEMORY_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": memory_size.PATTERN,
    "title": "Memory",
    "description": "The most memory that a run may use, as in 4GiB. Left out: no limit.",
}


def _plain(schema: dict[str, Any]) -> None:
    """Leave out the default: null is neither a number nor text to Prefect's validation."""
    schema.pop("default", None)


@functools.cache
def settings_environment() -> dict[str, str]:
    """Return the agent's Prefect settings as variables, which do not change while it lives.

    Prefect makes them anew for every run, twice, which takes 50 ms of a core each time.
    """
    return get_current_settings().to_environment_variables(exclude_unset=True)


class AgentVariables(ProcessVariables):
    """The job variables of the pool's template: Prefect's own for processes, and the agent's."""

    gpus: Annotated[int | None, WithJsonSchema(GPUS_SCHEMA)] = Field(None, json_schema_extra=_plain)
    memory: Annotated[str | None, WithJsonSchema(MEMORY_SCHEMA)] = Field(
        None, json_schema_extra=_plain
    )


class AgentJobConfiguration(ProcessJobConfiguration):
    """Prefect's configuration of one run, with a command that is known only at the start."""

    @property
    def has_own_command(self) -> bool:
        """Whether the deployment or the run names a command in its job variables."""
        return self._command_configured

    @classmethod
    def _base_environment(cls) -> dict[str, str]:
        """Return Prefect's own settings for the run's process.

        Source of the contract: `prefect.workers.base.BaseJobConfiguration._base_environment`.
        """
        return settings_environment()

    def use_command(self, command: list[str]) -> None:
        """Run this command instead of the worker's own interpreter."""
        self.command = command_to_string(command)
        # Prefect notes in prepare_for_flow_run whether a command was given; ours comes later.
        self._command_configured = True


def job_variables(flow_run: FlowRun, deployment: DeploymentResponse | None) -> Mapping[str, Any]:
    """Return the variables that were set for a run: its own before those of its deployment.

    Source: `prefect.workers.base.BaseJobConfiguration.resolve_for_flow_run`.
    """
    return {**((deployment and deployment.job_variables) or {}), **(flow_run.job_variables or {})}


def _parse_memory(value: object) -> object:
    return memory_size.parse_memory(value) if isinstance(value, str) else value


class Demands(BaseModel):
    """What a run needs of its host.

    Attributes:
        gpus: Number of GPUs.
        memory: The most that it may use, in bytes; None: no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int = Field(default=0, ge=0)
    memory: Annotated[int | None, BeforeValidator(_parse_memory)] = None

    @classmethod
    def of(
        cls, flow_run: FlowRun, deployment: DeploymentResponse | None, pool: WorkPool | None
    ) -> "Demands":
        """Return what was set for a run, its deployment or its pool, the first that says anything.

        Raises:
            MlopsError: A value makes no sense: it was set before the pool's template knew it.
        """
        set_here = {**_pool_defaults(pool), **_said(job_variables(flow_run, deployment))}
        wanted = {name: set_here[name] for name in cls.model_fields if name in set_here}
        try:
            return cls.model_validate(wanted)
        except ValidationError as error:
            problem = error.errors()[0]
            raise MlopsError(
                f"job variable {problem['loc'][0]}: {problem['input']!r}: {problem['msg']}",
                hint="change it in flow.yaml, in the deployment or in the run",
            ) from None


def _pool_defaults(pool: WorkPool | None) -> dict[str, Any]:
    """Return the defaults that people gave the variables of a pool's template."""
    variables = pool.base_job_template.get("variables", {}) if pool else {}
    properties: dict[str, Any] = variables.get("properties", {})
    return _said({name: each.get("default") for name, each in properties.items()})


def _said(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if value is not None}


def completed_template(template: dict[str, Any]) -> dict[str, Any] | None:
    """Return a pool's job template with the agent's variables, all else as it is.

    Args:
        template: As the server has it.

    Returns:
        None where nothing is missing, and for an empty one, which Prefect's worker fills in.
    """
    properties = AgentVariables.model_json_schema()["properties"]
    ours = {name: properties[name] for name in Demands.model_fields}
    present = template.get("variables", {}).get("properties", {})
    missing = {name: schema for name, schema in ours.items() if name not in present}
    if not template or not missing:
        return None
    completed = copy.deepcopy(template)
    completed.setdefault("variables", {}).setdefault("properties", {}).update(missing)
    return completed
