"""What a run asks of the agent: its job variables, which the Prefect UI offers in its run form."""

import functools
from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings.context import get_current_settings
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables


@functools.cache
def settings_environment() -> dict[str, str]:
    """Return the agent's Prefect settings as variables, which do not change while it lives.

    Prefect makes them anew for every run, twice, which takes 50 ms of a core each time.
    """
    return get_current_settings().to_environment_variables(exclude_unset=True)


class AgentVariables(ProcessVariables):
    """The job variables of the pool's template: Prefect's own for processes, and the agent's."""


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
