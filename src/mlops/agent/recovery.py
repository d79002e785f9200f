"""Runs that lost their agent, or that it has lost to another.

An agent was killed, the power went, a server was away at a run's end; or an agent was out of the
server's reach for so long that its runs were given to others.
"""

import datetime as dt
from functools import partial

import anyio
import anyio.to_thread
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger
from prefect.logging.loggers import flow_run_logger

from mlops.agent.attempts import Attempt, AttemptJournal, OpenAttempt
from mlops.agent.outage import ABSENCE_SECONDS, Outage
from mlops.agent.run_ending import RunEnding
from mlops.agent.run_processes import end_processes, is_running

RECOVERY_SECONDS = 30.0
REASON = "the flow's process is gone, and no agent saw how it ended"
TAKEN = "the server had given up this host, and the run with it: its old process here is ended"
PAGE = 200  # the most that the server returns at once

logger = get_logger("mlops.agent")


async def recover_regularly(journal: AttemptJournal, ending: RunEnding, outage: Outage) -> None:
    """End the runs that no agent of this host watches any more, now and every half minute.

    A run whose process still lives goes on, until that ends, the run is cancelled or was given to
    another agent. The last holds for this agent's own runs too.

    Args:
        journal: The attempts of this host.
        ending: Ends them.
        outage: Tells when the server is back, after which it is done at once.
    """
    while True:
        outage.returned.clear()
        try:
            with journal.abandoned() as attempts:
                for opened in attempts:
                    await _recover(opened, ending)
        except OSError as error:
            logger.warning("the attempts of this host cannot be read: %s", error)
        await _give_up_what_was_taken(journal)
        with anyio.move_on_after(RECOVERY_SECONDS):
            await outage.returned.wait()


async def _recover(opened: OpenAttempt, ending: RunEnding) -> None:
    try:
        async with get_client() as client:
            if await anyio.to_thread.run_sync(is_running, opened.attempt):
                run = await _read(client, opened)
                taken = run is not None and is_taken_away(run, opened.attempt)
                if not taken and not (run and run.state and run.state.is_cancelling()):
                    return
                # What it would still report, such as that it was terminated, is not how it ended.
                end = partial(end_processes, opened.attempt, at_once=True)
                await anyio.to_thread.run_sync(end)
                if taken and run:
                    flow_run_logger(run).warning(TAKEN)
            await ending.conclude(client, opened, opened.attempt.end or REASON)
    except Exception as error:  # noqa: BLE001  # nothing in one run may stop the others' end
        flow_run_id, kind = opened.attempt.flow_run_id, type(error).__name__
        logger.warning("flow run %s could not be ended yet: %s: %s", flow_run_id, kind, error)


def is_taken_away(run: FlowRun, attempt: Attempt) -> bool:
    """Return whether others have ended a run, or let go of it, whose process may still live."""
    ended = {StateType.CRASHED, StateType.CANCELLED}
    return not attempt.holds(run.labels) or (run.state is not None and run.state.type in ended)


async def _read(client: PrefectClient, opened: OpenAttempt) -> FlowRun | None:
    try:
        return await client.read_flow_run(opened.attempt.flow_run_id)
    except ObjectNotFound:  # deleted in the UI
        return None


async def _give_up_what_was_taken(journal: AttemptJournal) -> None:
    """End the processes of this agent's runs that are no longer its own."""
    # Of one that has just begun the run may not know yet.
    settled = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ABSENCE_SECONDS)
    own = [opened for opened in journal.own() if opened.attempt.begun < settled]
    if not own:
        return
    try:
        async with get_client() as client:
            for start in range(0, len(own), PAGE):
                part = own[start : start + PAGE]
                ids = FlowRunFilterId(any_=[opened.attempt.flow_run_id for opened in part])
                query = FlowRunFilter(id=ids)
                runs = await client.read_flow_runs(flow_run_filter=query, limit=PAGE)
                known = {run.id: run for run in runs}
                for opened in part:
                    run = known.get(opened.attempt.flow_run_id)
                    if run and is_taken_away(run, opened.attempt):
                        opened.give_up()
                        flow_run_logger(run).warning(TAKEN)
    except Exception as error:  # noqa: BLE001  # asked again soon
        logger.warning("this agent's runs could not be looked up: %s: %s", type(error), error)
