import uuid

import pytest

from mlops.agent.turns import LONGEST_SECONDS, STEP_SECONDS, Turns


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_one_agent_may_take_a_run_at_once_and_the_others_one_after_the_other() -> None:
    """All agents agree on the order, which differs from run to run."""
    names = [f"agent-{number}" for number in range(4)]
    clock = Clock()
    agents = [Turns(name, clock) for name in names]
    for agent in agents:
        agent.know(names)
    first = set()
    for _ in range(50):
        run = uuid.uuid4()
        waits = [agent.wait_seconds(run) for agent in agents]
        assert sorted(waits) == pytest.approx([rank * STEP_SECONDS for rank in range(4)])
        first.add(waits.index(0.0))
    assert first == {0, 1, 2, 3}


def test_a_turn_comes_and_does_not_go() -> None:
    """Who was not the first may take the run after its wait, however often it looks."""
    clock = Clock()
    turns = Turns("one", clock)
    turns.know(f"other-{number}" for number in range(30))
    run = next(run for run in iter(uuid.uuid4, None) if turns.wait_seconds(run) > 0)
    wait = turns.wait_seconds(run)
    assert wait <= LONGEST_SECONDS
    clock.seconds += wait / 2
    assert 0 < turns.wait_seconds(run) < wait
    clock.seconds += wait
    assert turns.wait_seconds(run) == 0


def test_an_agent_alone_never_waits() -> None:
    """Also when the server does not list it yet."""
    assert Turns("alone", Clock()).wait_seconds(uuid.uuid4()) == 0
