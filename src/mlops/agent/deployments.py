"""Deployments as this agent knows them: asked for once per pick-up, not once per question."""

import asyncio
import time
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.responses import DeploymentResponse

# Prefect's worker and ours read a run's deployment four times while they start it. A change that
# somebody makes in the meantime reaches the next run.
FRESH_SECONDS = 2.0


class RecentDeployments:
    """Answers of the server, kept for moments.

    Args:
        client: The Prefect server; its own `read_deployment`, before it is replaced by ours.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._read = client.read_deployment
        self._answers: dict[UUID, tuple[float, asyncio.Task[DeploymentResponse]]] = {}

    async def read(self, deployment_id: UUID | str) -> DeploymentResponse:
        """Return a deployment.

        Raises:
            ObjectNotFound: There is none of that number.
            httpx.HTTPError: The server does not answer.
        """
        key = UUID(str(deployment_id))
        now = time.monotonic()
        self._answers = {k: v for k, v in self._answers.items() if now - v[0] < FRESH_SECONDS}
        if key not in self._answers:
            self._answers[key] = (now, asyncio.create_task(self._ask(key)))
        answer = await asyncio.shield(self._answers[key][1])
        return answer.model_copy(deep=True)  # Prefect's worker changes what it is given

    async def _ask(self, key: UUID) -> DeploymentResponse:
        try:
            return await self._read(key)
        except BaseException:
            self._answers.pop(key, None)
            raise
