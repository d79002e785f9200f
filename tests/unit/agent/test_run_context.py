from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from mlops.agent.attempts import Attempt
from mlops.agent.gpu_leases import GPUS_VARIABLE, GpuLease
from mlops.agent.nvml import Device
from mlops.agent.run_context import RunContext
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
        gpus=GpuLease(),
    )


@pytest.fixture
def settings() -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "aws_endpoint_url_s3": "http://127.0.0.1:9000",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "prefect_api_url": "http://127.0.0.1:4200/api",
            "mlflow_tracking_uri": "http://127.0.0.1:5050",
        }
    )


def test_run_sees_its_own_gpus(context: RunContext, settings: AgentSettings) -> None:
    """CUDA shows a run the GPUs that it was given, and no other when it was given none."""
    assert context.environment(settings, given={})[GPUS_VARIABLE] == ""
    context.gpus.add(Device(number="3", uuid="GPU-c", name="NVIDIA L4"), file=-1)
    assert context.environment(settings, given={})[GPUS_VARIABLE] == "3"
    assert context.labels["mlops.gpu"] == "3: NVIDIA L4"


def test_chosen_gpus_are_kept(
    context: RunContext, settings: AgentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the deployment or the run sets wins; what the run has from the agent itself does not."""
    monkeypatch.setenv(GPUS_VARIABLE, "7")
    for given, visible in (("1", None), ("", None), ("7", "")):
        environment = context.environment(settings, given={GPUS_VARIABLE: given})
        assert environment.get(GPUS_VARIABLE) == visible
