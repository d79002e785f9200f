from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from mlops.agent.attempts import Attempt
from mlops.agent.run_context import GPUS_VARIABLE, RunContext
from mlops.settings import AgentSettings

RUN = UUID(int=1)


@pytest.fixture
def context() -> RunContext:
    """A run that belongs to no deployment."""
    return RunContext(
        attempt=Attempt(flow_run_id=RUN, worker="agent"),
        flow_run=FlowRun(id=RUN, flow_id=UUID(int=2), name="a-run"),
        deployment=None,
        source=None,
        host="box",
        gpu="none",
    )


def settings(gpu_ids: str) -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "aws_endpoint_url_s3": "http://127.0.0.1:9000",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "prefect_api_url": "http://127.0.0.1:4200/api",
            "mlflow_tracking_uri": "http://127.0.0.1:5050",
            "gpu_ids": gpu_ids,
        }
    )


@pytest.mark.parametrize(
    ("gpu_ids", "visible"), [('["0","3"]', "0,3"), ("[]", ""), ("", ""), ("all", None)]
)
def test_run_sees_the_agents_gpus(context: RunContext, gpu_ids: str, visible: str | None) -> None:
    """CUDA shows a run the GPUs that the agent is told of, none, or whatever there are."""
    environment = context.environment(settings(gpu_ids), given={})
    assert environment.get(GPUS_VARIABLE) == visible


def test_chosen_gpus_are_kept(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the deployment or the run sets wins; what the run has from the agent itself does not."""
    monkeypatch.setenv(GPUS_VARIABLE, "7")
    for given, visible in (("1", None), ("", None), ("7", "0")):
        environment = context.environment(settings('["0"]'), given={GPUS_VARIABLE: given})
        assert environment.get(GPUS_VARIABLE) == visible
