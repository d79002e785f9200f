import logging
from pathlib import Path
from uuid import uuid4

import anyio
import httpx
import pytest
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from mlops.agent import recovery
from mlops.agent.attempts import Attempt, AttemptJournal, OpenAttempt
from mlops.agent.outage import Outage
from mlops.agent.run_ending import ProcessEnd, RunEnding
from mlops.settings import MlflowSettings

NOWHERE = "http://127.0.0.1:9"


class FailingEnding(RunEnding):
    """Fails at the first attempt in the place of servers, which cannot be made to fail so."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MlflowSettings(mlflow_tracking_uri=NOWHERE))
        self._error = error
        self.done = anyio.Event()
        self.reason: str | ProcessEnd = ""

    async def conclude(
        self, client: PrefectClient, opened: OpenAttempt, reason: str | ProcessEnd
    ) -> None:
        del client
        self.reason = reason
        if opened.attempt.name == "first":
            raise self._error
        opened.close()
        self.done.set()


async def recover(journal: AttemptJournal, error: Exception) -> FailingEnding:
    """Recover until the second attempt is concluded."""
    ending = FailingEnding(error)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recovery.recover_regularly, journal, ending, Outage())
            await ending.done.wait()
            tasks.cancel_scope.cancel()
    return ending


def begin(journal: AttemptJournal, name: str) -> None:
    """Leave an attempt behind as an agent does that was killed."""
    with journal.begin(Attempt(name=name, flow_run_id=uuid4(), worker="killed")):
        pass


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("away"),
        ObjectNotFound(http_exc=Exception()),
        ValueError("no JSON"),
        RuntimeError("a bug"),
    ],
)
def test_run_that_cannot_be_ended_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Whatever fails at one run is logged, the next is ended, and the first stays for later."""
    journal = AttemptJournal(tmp_path)
    begin(journal, "first")
    begin(journal, "second")
    with caplog.at_level(logging.WARNING), temporary_settings({PREFECT_API_URL: NOWHERE}):
        anyio.run(recover, journal, error)
    assert f"could not be ended yet: {type(error).__name__}" in caplog.text
    with journal.abandoned() as left:
        assert [opened.attempt.name for opened in left] == ["first"]


@pytest.mark.parametrize("end", ["it ended with exit code 3", None])
def test_end_that_could_not_be_told_is_told_later(tmp_path: Path, end: str | None) -> None:
    """How a process ended is kept when the server is away; of others it is not known."""
    journal = AttemptJournal(tmp_path)
    with journal.begin(Attempt(name="second", flow_run_id=uuid4(), worker="w")) as opened:
        assert journal.own() == [opened]
        if end:
            opened.note_end(end)
    assert journal.own() == []
    with temporary_settings({PREFECT_API_URL: NOWHERE}):
        ending = anyio.run(recover, journal, RuntimeError())
    assert ending.reason == (end or recovery.REASON)


def test_journal_that_cannot_be_read_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the disk is logged, and ends the recovery for this round only."""
    monkeypatch.setattr(recovery, "RECOVERY_SECONDS", 0.0)
    journal = AttemptJournal(tmp_path)
    begin(journal, "second")
    obstacle = tmp_path / "attempts" / "0.json"
    obstacle.mkdir()

    class Mending(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            obstacle.rmdir()

    mending = Mending()
    recovery.logger.addHandler(mending)
    try:
        with temporary_settings({PREFECT_API_URL: NOWHERE}):
            anyio.run(recover, journal, RuntimeError())
    finally:
        recovery.logger.removeHandler(mending)
    assert "the attempts of this host cannot be read" in caplog.text
