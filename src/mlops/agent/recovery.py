"""Runs that lost their agent: it was killed, the power went, or a server was away at their end."""

import anyio
import anyio.to_thread
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger

from mlops.agent.attempts import AttemptJournal, OpenAttempt
from mlops.agent.run_ending import RunEnding
from mlops.agent.run_processes import end_processes, is_running

RECOVERY_SECONDS = 30.0
REASON = "the flow's process is gone, and no agent saw how it ended"

logger = get_logger("mlops.agent")


async def recover_regularly(journal: AttemptJournal, ending: RunEnding) -> None:
    """End the runs that no agent of this host watches any more, now and every half minute.

    A run whose process still lives goes on, until that ends or the run is cancelled.

    Args:
        journal: The attempts of this host.
        ending: Ends them.
    """
    while True:
        try:
            with journal.abandoned() as attempts:
                for opened in attempts:
                    await _recover(opened, ending)
        except OSError as error:
            logger.warning("the attempts of this host cannot be read: %s", error)
        await anyio.sleep(RECOVERY_SECONDS)


async def _recover(opened: OpenAttempt, ending: RunEnding) -> None:
    try:
        async with get_client() as client:
            if await anyio.to_thread.run_sync(is_running, opened.attempt):
                if not await _is_cancelling(client, opened):
                    return
                await anyio.to_thread.run_sync(end_processes, opened.attempt)
            await ending.conclude(client, opened, REASON)
    except Exception as error:  # noqa: BLE001  # nothing in one run may stop the others' end
        run, kind = opened.attempt.flow_run_id, type(error).__name__
        logger.warning("flow run %s could not be ended yet: %s: %s", run, kind, error)


async def _is_cancelling(client: PrefectClient, opened: OpenAttempt) -> bool:
    try:
        state = (await client.read_flow_run(opened.attempt.flow_run_id)).state
    except ObjectNotFound:
        return False
    return state is not None and state.is_cancelling()
