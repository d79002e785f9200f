"""What the server has answered a moment ago, so that it is not asked again for the same."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel

T = TypeVar("T", bound=BaseModel)


class RecentAnswers(Generic[T]):
    """Answers about objects that rarely change, by their number.

    Prefect's worker and ours read a run's deployment four times while they start it.

    Args:
        ask: Asks the server.
        fresh_seconds: How long an answer is good. What somebody changes meanwhile reaches the
            next run.
    """

    def __init__(self, ask: Callable[[UUID], Awaitable[T]], *, fresh_seconds: float) -> None:
        self._ask = ask
        self._fresh_seconds = fresh_seconds
        self._answers: dict[UUID, tuple[float, asyncio.Task[T]]] = {}

    async def read(self, number: UUID | str) -> T:
        """Return an object.

        Raises:
            ObjectNotFound: There is none of that number.
            httpx.HTTPError: The server does not answer.
        """
        key = UUID(str(number))
        now = time.monotonic()
        oldest = now - self._fresh_seconds
        self._answers = {k: v for k, v in self._answers.items() if v[0] > oldest}
        if key not in self._answers:
            self._answers[key] = (now, asyncio.create_task(self._read(key)))
        answer = await asyncio.shield(self._answers[key][1])
        return answer.model_copy(deep=True)  # Prefect's worker changes what it is given

    async def _read(self, key: UUID) -> T:
        try:
            return await self._ask(key)
        except BaseException:
            self._answers.pop(key, None)
            raise
