import asyncio
import uuid
from uuid import UUID

import pytest
from pydantic import BaseModel

from mlops.agent.recent_answers import RecentAnswers


class Thing(BaseModel):
    """What a server may be asked for."""

    number: UUID
    tags: list[str] = []


def test_an_answer_is_shared_and_each_asker_has_a_copy() -> None:
    """Two who ask at the same time cost one request, and do not see each other's changes."""
    asked = []

    async def ask(number: UUID) -> Thing:
        asked.append(number)
        await asyncio.sleep(0)
        return Thing(number=number)

    async def both() -> None:
        answers = RecentAnswers(ask, fresh_seconds=60)
        number = uuid.uuid4()
        one, other = await asyncio.gather(answers.read(number), answers.read(str(number)))
        one.tags.append("mine")
        assert other.tags == (await answers.read(number)).tags == []
        assert asked == [number]

    asyncio.run(both())


def test_a_refusal_is_not_kept() -> None:
    """The next one asks again."""
    answers = iter([LookupError("not yet"), None])

    async def ask(number: UUID) -> Thing:
        if error := next(answers):
            raise error
        return Thing(number=number)

    async def twice() -> None:
        recent = RecentAnswers(ask, fresh_seconds=60)
        number = uuid.uuid4()
        with pytest.raises(LookupError):
            await recent.read(number)
        assert (await recent.read(number)).number == number

    asyncio.run(twice())
