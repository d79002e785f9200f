"""What runs have found out about the code in S3: an agent may not write there, but it can tell.

A run that finds its code missing or damaged ends in a state of its own, for which a registration
looks; it then reads every byte instead of what the server says of them.
"""

import datetime as dt
from collections.abc import Collection
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops.bundles import DAMAGED_STATE
from mlops.prefect_api import PrefectApi


class _Run(BaseModel):
    """Part of a flow run. `updated` is by the server's clock, a state's time by an agent's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    deployment_id: UUID
    updated: dt.datetime


def read_doubts(api: PrefectApi, deployment_ids: Collection[UUID]) -> dict[UUID, dt.datetime]:
    """Return when a run last found its code damaged, by its deployment.

    Args:
        api: The Prefect server.
        deployment_ids: Of which deployments; those that no run has doubted are left out.
    """
    if not deployment_ids:
        return {}
    query = {
        "deployments": {"id": {"any_": [str(each) for each in deployment_ids]}},
        "flow_runs": {"state": {"name": {"any_": [DAMAGED_STATE]}}},
    }
    runs = map(_Run.model_validate, api.pages("/flow_runs/filter", query, sort="ID_DESC"))
    doubts: dict[UUID, dt.datetime] = {}
    for run in runs:
        doubts[run.deployment_id] = max(run.updated, doubts.get(run.deployment_id, run.updated))
    return doubts
