"""What a run asks of the agent: its job variables, which the Prefect UI offers in its run form."""

from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessVariables


class AgentVariables(ProcessVariables):
    """The job variables of the pool's template: Prefect's own for processes, and the agent's."""


class AgentJobConfiguration(ProcessJobConfiguration):
    """Prefect's configuration of one run, with a command that is known only at the start."""

    @property
    def has_own_command(self) -> bool:
        """Whether the deployment or the run names a command in its job variables."""
        return self._command_configured

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
