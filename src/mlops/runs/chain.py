"""Where a run comes from and what came out of it, as Prefect and MLflow tell together."""

import datetime as dt
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops import lineage
from mlops.errors import MlopsError
from mlops.mlflow_api import LoggedRun, MlflowApi, RegisteredModel
from mlops.prefect_api import FINAL, PrefectApi
from mlops.settings import RunsSettings


class FlowRun(BaseModel):
    """A flow run as Prefect holds it; `url` is its page. Part of what the server answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    name: str
    flow_id: UUID
    deployment_id: UUID | None
    deployment_version: str | None
    state_type: str | None
    state_name: str | None
    parameters: dict[str, Any]
    labels: dict[str, Any]
    job_variables: dict[str, Any] | None
    work_pool_name: str | None
    work_queue_name: str | None
    start_time: dt.datetime | None
    total_run_time: float  # in seconds

    @property
    def has_ended(self) -> bool:
        """Whether it is in a state that it will not leave by itself."""
        return self.state_type in FINAL

    def fact(self, label: str) -> str | None:
        """Return what a label of `mlops.lineage` says, if the run has it."""
        value = self.labels.get(label)
        return None if value is None else str(value)

    @property
    def data(self) -> list[str]:
        """References of the data that it pulled."""
        return sorted(
            str(value) for name, value in self.labels.items() if name.startswith(lineage.DATA)
        )


class MlflowRun(BaseModel):
    """An MLflow run of the flow run, and the registered models that came out of it."""

    model_config = ConfigDict(frozen=True)

    run: LoggedRun
    models: tuple[RegisteredModel, ...]


class Chain(BaseModel):
    """One run with everything that hangs together with it.

    Attributes:
        flow_run: The run.
        url: Its page in Prefect.
        flow: Name of its flow.
        deployment: Name of its deployment; None: it has none, or none any more.
        mlflow_runs: What it logged, the oldest first, runs below others behind them.
    """

    model_config = ConfigDict(frozen=True)

    flow_run: FlowRun
    url: str
    flow: str
    deployment: str | None
    mlflow_runs: tuple[MlflowRun, ...]

    @property
    def logged(self) -> list[LoggedRun]:
        """The MLflow runs alone."""
        return [each.run for each in self.mlflow_runs]


def read_chain(settings: RunsSettings, run: str) -> Chain:
    """Find a run and what belongs to it.

    Args:
        settings: The two servers.
        run: Id or name of a flow run, or id of one of its MLflow runs.

    Raises:
        MlopsError: There is no such run, or more than one; a server does not answer.
    """
    api, mlflow = PrefectApi(settings), MlflowApi(settings)
    flow_run = _find(api, mlflow, run)
    flows = api.post("/flows/filter", {"flows": {"id": {"any_": [str(flow_run.flow_id)]}}})
    deployment = read_deployment(api, flow_run)
    logged = mlflow.logged_runs(lineage.FLOW_RUN, str(flow_run.id))
    logged.sort(key=lambda each: (each.parent_id is not None, each.start_time))
    return Chain(
        flow_run=flow_run,
        url=settings.run_url(flow_run.id),
        flow=flows[0]["name"] if flows else str(flow_run.flow_id),
        deployment=deployment["name"] if deployment else None,
        mlflow_runs=tuple(
            MlflowRun(run=each, models=tuple(mlflow.models(each.run_id))) for each in logged
        ),
    )


def read_deployment(api: PrefectApi, flow_run: FlowRun) -> dict[str, Any] | None:
    """Return what the server tells of a run's deployment; None: it is gone, or there was none."""
    query = {"deployments": {"id": {"any_": [str(flow_run.deployment_id)]}}}
    found = api.post("/deployments/filter", query) if flow_run.deployment_id else []
    return found[0] if found else None


def _find(api: PrefectApi, mlflow: MlflowApi, run: str) -> FlowRun:
    """Return the flow run that a user means."""
    if found := _flow_runs(api, run):
        if len(found) > 1:
            ids = ", ".join(str(each.id) for each in found)
            raise MlopsError(f"{run}: names more than one run", hint=f"say which by its id: {ids}")
        return found[0]
    logged = mlflow.read_run(run.replace("-", "")) if _uuid(run) else None
    if logged is None:
        raise MlopsError(
            f"{run}: no such run",
            hint="give the id or the name of a flow run in Prefect, or the id of a run in MLflow",
        )
    flow_run_id = logged.tags.get(lineage.FLOW_RUN)
    if flow_run_id is None:
        raise MlopsError(
            f"{run}: this MLflow run was not logged by a flow run: it has no tag "
            f"{lineage.FLOW_RUN}",
        )
    found = _flow_runs(api, flow_run_id)
    if not found:
        raise MlopsError(f"{run}: its flow run {flow_run_id} is gone from Prefect")
    return found[0]


def _flow_runs(api: PrefectApi, run: str) -> list[FlowRun]:
    known_by = "id" if _uuid(run) else "name"
    value = str(_uuid(run) or run)
    query = {"flow_runs": {known_by: {"any_": [value]}}, "limit": 10}
    return [FlowRun.model_validate(each) for each in api.post("/flow_runs/filter", query)]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
