import pytest

from mlops.scheduler.watched_folder import MANY_ATTEMPTS, NEVER, Pace, WatchedFolder

PACE = Pace(quiet=1, settled=5, patience=60, first_retry=1, longest_retry=30)


def found(now: float = 0) -> WatchedFolder:
    return WatchedFolder(PACE, state=0, changed_at=now, due_at=now + PACE.quiet)


def register(folder: WatchedFolder, now: float) -> bool:
    """Register it if it is due, and return whether it was."""
    if not folder.is_due(now):
        return False
    folder.begin(now)
    folder.finish("flow/deployment")
    return True


def test_folder_is_registered_when_its_writes_have_paused() -> None:
    """Each change puts it off, and one registration does for all of them."""
    folder = found()
    for tenth in range(1, 30):
        assert folder.look(state=tenth, now=tenth / 10)
        assert not folder.is_due(tenth / 10)
    assert not folder.look(state=29, now=3.8)
    assert not register(folder, 3.8)
    assert register(folder, 3.9)
    assert not register(folder, 100)


@pytest.mark.parametrize("seconds_between", [0.3, 2.0])
def test_folder_that_never_rests_is_registered_once_a_minute(seconds_between: float) -> None:
    """It is told of once; a rest makes it an ordinary folder again."""
    folder = found()
    registered, told, now = [], 0, 0.0
    for step in range(1, int(600 / seconds_between)):
        now = step * seconds_between
        folder.look(state=step, now=now)
        # Between two writes that are far apart there is time for a registration.
        for moment in (now, now + 1.0) if seconds_between > 1 else (now,):
            if folder.is_due(moment):
                registered.append(moment)
                told += folder.begin(moment)
                folder.finish("flow/deployment")
    assert told == 1
    late = [moment for moment in registered if moment > 300]
    assert 4 <= len(late) <= 6
    assert len(registered) <= MANY_ATTEMPTS + 10

    folder.look(state=-1, now=now + 6)
    assert register(folder, now + 7)


def test_mistake_is_told_once_when_the_folder_has_settled() -> None:
    """A copy that is not complete yet is not reported; the same mistake not again; another is."""
    folder = found()
    assert not folder.refuse("flow.py is missing", 1)
    assert not folder.is_due(4.9)
    assert folder.is_due(5)
    assert folder.refuse("flow.py is missing", 5)
    assert not folder.is_due(100)

    folder.try_again(100)
    assert folder.is_due(100)
    assert not folder.refuse("flow.py is missing", 100)

    folder.look(state=1, now=200)
    assert not folder.refuse("colour: unknown key", 201)
    assert folder.refuse("colour: unknown key", 205)
    folder.look(state=2, now=300)
    folder.refuse("colour: unknown key", 301)
    assert folder.refuse("colour: unknown key", 305), "a new change deserves a new report"


def test_mistake_of_a_folder_that_never_rests_is_told_all_the_same() -> None:
    """After the patience has run out it is not put off any longer."""
    folder = found()
    told = 0
    for second in range(1, 120):
        folder.look(state=second, now=second)
        if folder.is_due(second):
            folder.begin(second)
            told += folder.refuse("is being written to", second)
    assert told == 1


def test_mistake_that_was_there_from_the_start_is_told_at_once() -> None:
    """A scheduler that starts need not wait whether somebody writes just now."""
    folder = WatchedFolder(PACE, state=0, changed_at=NEVER, due_at=0)
    assert folder.refuse("flow.py is missing", 0)


def test_failure_is_tried_again_ever_more_seldom_until_the_folder_changes() -> None:
    """The wait doubles up to half a minute, and is told once."""
    folder = found()
    waits, now = [], 1.0
    for attempt in range(7):
        assert folder.fail("refused", now) == (attempt == 0)
        assert folder.due_at
        waits.append(folder.due_at - now)
        now = folder.due_at
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    folder.look(state=1, now=now)
    assert folder.is_due(now + PACE.quiet)
