import uuid

from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse

from mlops.agent.backlog import FRESH_SECONDS, Backlog


def offered() -> WorkerFlowRunResponse:
    run = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="waiting")
    return WorkerFlowRunResponse(
        work_pool_id=uuid.uuid4(), work_queue_id=uuid.uuid4(), flow_run=run
    )


def test_what_is_left_of_an_answer_is_taken_while_it_is_fresh() -> None:
    """What was taken meanwhile is not offered again, and an old answer counts for nothing."""
    seconds = 100.0
    backlog = Backlog(lambda: seconds)
    one, two, three = offered(), offered(), offered()
    backlog.fill([one, two, three])
    backlog.forget(two.flow_run.id)
    assert backlog.take() == [one, three]
    seconds += FRESH_SECONDS - 0.1
    backlog.keep([three])
    assert backlog.take() == [three]
    seconds += 0.2
    assert backlog.take() == []
