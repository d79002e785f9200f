from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.workers.process import ProcessWorker

from mlops.agent.job import AgentVariables, Demands, completed_template
from mlops.errors import MlopsError

GIB = 1 << 30


def demands(
    run: dict[str, Any], deployment: dict[str, Any], pool: dict[str, Any] | None = None
) -> Demands:
    """Return what counts of the variables that each of them has."""
    properties = {name: {"default": value} for name, value in (pool or {}).items()}
    return Demands.of(
        FlowRun(flow_id=UUID(int=1), job_variables=run),
        DeploymentResponse(flow_id=UUID(int=1), name="d", labels={}, job_variables=deployment),
        WorkPool(
            name="pool",
            type="process",
            default_queue_id=UUID(int=1),
            base_job_template={"variables": {"properties": properties}, "job_configuration": {}},
        ),
    )


def test_nearest_value_counts() -> None:
    """The run's own variable wins over the deployment's, and that over the pool's default."""
    assert demands({}, {}) == Demands(gpus=0, memory=None)
    assert demands({}, {}, {"gpus": 1, "memory": "1GiB"}) == Demands(gpus=1, memory=GIB)
    assert demands({}, {"gpus": 0}, {"gpus": 1}).gpus == 0
    assert demands({"gpus": 3}, {"gpus": 2, "memory": "2GiB"}) == Demands(gpus=3, memory=2 * GIB)
    assert demands({"gpus": None}, {"gpus": 2}, {"gpus": 1}).gpus == 1
    assert Demands.of(FlowRun(flow_id=UUID(int=1)), None, None) == Demands()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"gpus": -1}, "job variable gpus: -1: "),
        ({"gpus": "two"}, "job variable gpus: 'two': "),
        ({"memory": "much"}, "job variable memory: 'much': .*allowed: as in 4GiB or 500MB"),
    ],
)
def test_senseless_value_is_named(variables: dict[str, Any], told: str) -> None:
    """A value that got past Prefect, as the pool had no template then, is told by its name."""
    with pytest.raises(MlopsError, match=told):
        demands(variables, {})


def test_template_keeps_what_it_has() -> None:
    """A template of Prefect's own worker gets the two variables; nothing else of it changes."""
    stock = ProcessWorker.get_default_base_job_template()
    stock["variables"]["properties"]["env"]["default"] = {"A": "1"}
    completed = completed_template(stock)
    assert completed is not None
    added = {name: completed["variables"]["properties"].pop(name) for name in ("gpus", "memory")}
    assert completed == stock
    assert added["gpus"] == AgentVariables.model_json_schema()["properties"]["gpus"]
    assert "default" not in added["gpus"]


def test_complete_template_stays() -> None:
    """Nothing is written to a pool that offers both, in whatever form, or has no template yet."""
    mine = {"gpus": {"type": "integer", "default": 1}, "memory": {"enum": ["4GiB"]}}
    assert completed_template({"variables": {"properties": mine}, "job_configuration": {}}) is None
    assert completed_template({}) is None
