import asyncio
import datetime as dt

import pytest
from docket import Docket, Worker
from prefect.server.api import background_workers

from mlops.server.background_work import SeldomWorker, look_seldom


def test_prefects_server_gets_the_worker_that_looks_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under the name by which Prefect 3.8 makes its own."""
    assert background_workers.Worker is Worker  # type: ignore[attr-defined]
    monkeypatch.setattr(background_workers, "Worker", Worker)  # and so again at the end
    look_seldom()
    assert background_workers.Worker is SeldomWorker  # type: ignore[attr-defined]


def test_work_is_done_at_once_and_later_until_the_end() -> None:
    """Both kinds are done, and a worker that is to end does so, as Prefect's server ends it."""
    done: list[str] = []

    async def work() -> None:
        over = asyncio.Event()

        async def note(word: str) -> None:
            done.append(word)
            if word == "later":
                over.set()

        async with (
            Docket("seldom", url="memory://seldom") as docket,
            SeldomWorker(docket) as worker,
        ):
            docket.register(note)
            await docket.add(note, when=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.5))(
                "later"
            )
            await docket.add(note)("now")
            working = asyncio.create_task(worker.run_forever())
            await asyncio.wait_for(over.wait(), 60)
            working.cancel()
            await asyncio.wait([working])

    asyncio.run(work())
    assert done == ["now", "later"]
