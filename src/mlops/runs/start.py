"""How a run is asked for."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

from mlops.prefect_api import PrefectApi


class StartedRun(BaseModel):
    """A run that was asked for. Part of what the server answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID
    name: str


def start_run(
    api: PrefectApi, deployment_id: UUID, parameters: Mapping[str, Any], **more: Any
) -> StartedRun:
    """Ask for a run of a deployment, now.

    Args:
        api: The Prefect server.
        deployment_id: Of which deployment.
        parameters: JSON values by name.
        **more: Other fields of the run, such as its labels.

    Raises:
        RefusedRequestError: The parameters, for example, are not what the flow's schema asks for.
    """
    wanted = {
        "state": {"type": "SCHEDULED"},
        "parameters": parameters,
        "idempotency_key": uuid4().hex,  # one run, however often it is asked for
        **more,
    }
    answer = api.send("POST", f"/deployments/{deployment_id}/create_flow_run", wanted)
    return StartedRun.model_validate(answer)
