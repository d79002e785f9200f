import logging
from pathlib import Path
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from mlops.agent.attempts import Attempt, AttemptJournal, OpenAttempt
from mlops.agent.run_ending import RunEnding
from mlops.settings import MlflowSettings

NOWHERE = "http://127.0.0.1:9"


def answer(attempt: Attempt) -> httpx.MockTransport:
    """Answer for Prefect's server: a run that has ended; how it does is for the embedded tests."""
    run = FlowRun(
        id=attempt.flow_run_id,
        flow_id=uuid4(),
        state=Crashed(),
        labels={"prefect.worker.name": attempt.worker, "mlops.attempt": attempt.name},
    )
    return httpx.MockTransport(lambda _: httpx.Response(200, text=run.model_dump_json()))


async def conclude(opened: OpenAttempt, *, times: int) -> None:
    ending = RunEnding(MlflowSettings(mlflow_tracking_uri=NOWHERE))
    settings = {"transport": answer(opened.attempt)}
    async with PrefectClient(NOWHERE, httpx_settings=settings) as client:
        for _ in range(times):
            await ending.conclude(client, opened, "gone")


def test_missing_mlflow_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run's log says once that MLflow is away, however often that is tried again."""
    journal = AttemptJournal(tmp_path)
    attempt = Attempt(flow_run_id=uuid4(), worker="agent", pid=1)
    with journal.begin(attempt) as opened, caplog.at_level(logging.WARNING):
        anyio.run(lambda: conclude(opened, times=2))
    told = [r.message for r in caplog.records if "its open MLflow runs could not" in r.message]
    assert len(told) == 1
    with journal.abandoned() as left:
        assert left
