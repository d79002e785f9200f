"""When a flow folder that changes is registered, and when its mistakes are told."""

from dataclasses import dataclass, field
from typing import NamedTuple

MANY_ATTEMPTS = 50  # since a folder rested; then there is something in it that is no code
NEVER = float("-inf")


class Pace(NamedTuple):
    """When things are done, in seconds.

    Attributes:
        quiet: A folder is registered when nothing was written to it for so long.
        settled: Its mistakes are told, or its absence believed, after so long: it may be a copy
            that is not complete yet, or a branch that is being switched.
        patience: After so long also when it never rests.
        look: So often every folder is looked at, whatever the file system tells.
        first_retry: Between the first failure and the second attempt; doubled each time.
        longest_retry: Between two attempts.
    """

    quiet: float = 0.5
    settled: float = 5.0
    patience: float = 60.0
    look: float = 10.0
    first_retry: float = 1.0
    longest_retry: float = 30.0

    def next_retry(self, last: float) -> float:
        """Return how long to wait now, given how long the wait was last (0: none yet)."""
        return min(max(self.first_retry, 2 * last), self.longest_retry)


@dataclass
class WatchedFolder:
    """What is known of a flow folder. Moments are seconds on one clock, passed in as `now`.

    Args:
        pace: When things are done.
        state: Of its files when they were last looked at.
        changed_at: When that was last seen to change; `NEVER` if it is just as it was found.
        due_at: When to register it; None when that is done.
    """

    pace: Pace
    state: int
    changed_at: float
    due_at: float | None
    name: str = ""  # of the deployment that it was last registered as
    told: str = ""  # what was last logged against it
    restless_since: float = field(init=False)  # when the changes began that have not ended yet
    attempted_at: float = NEVER
    attempts: int = 0  # since it is restless
    retry_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.restless_since = self.changed_at

    def look(self, state: int, now: float) -> bool:
        """Compare the state of its files with the known one; return whether it is another."""
        if state == self.state:
            return False
        if now - self.changed_at > self.pace.settled:
            self.restless_since, self.attempts, self.told = now, 0, ""
        self.state, self.changed_at, self.retry_seconds = state, now, 0.0
        latest = max(self.restless_since, self.attempted_at) + self.pace.patience
        quiet_at = latest if self.attempts >= MANY_ATTEMPTS else now + self.pace.quiet
        self.due_at = min(quiet_at, latest)
        return True

    def is_due(self, now: float) -> bool:
        """Return whether it is to be registered now."""
        return self.due_at is not None and self.due_at <= now

    def begin(self, now: float) -> bool:
        """Note that it is being registered; return whether it is only now found to never rest."""
        if self.changed_at <= self.attempted_at:
            return False
        rested_before = self.attempts < MANY_ATTEMPTS
        self.attempts += 1
        if now < self.changed_at + self.pace.quiet:
            self.attempts = max(self.attempts, MANY_ATTEMPTS)
        self.attempted_at = now
        return rested_before and self.attempts >= MANY_ATTEMPTS

    def finish(self, name: str) -> None:
        """Note that it is registered."""
        self.name, self.told, self.due_at = name, "", None

    def refuse(self, message: str, now: float) -> bool:
        """Note its mistakes, which are told once, when it has settled; return whether now."""
        settled_at = min(
            self.changed_at + self.pace.settled, self.restless_since + self.pace.patience
        )
        if message != self.told and now < settled_at:
            self.due_at = settled_at
            return False
        is_news, self.told, self.due_at = message != self.told, message, None
        return is_news

    def fail(self, message: str, now: float) -> bool:
        """Note that something else went wrong, and try again later; return whether to tell."""
        self.retry_seconds = self.pace.next_retry(self.retry_seconds)
        self.due_at = now + self.retry_seconds
        is_news, self.told = message != self.told, message
        return is_news

    def try_again(self, now: float) -> None:
        """Register it now if it was refused: what stood in its way may be gone."""
        if self.told and self.due_at is None:
            self.due_at = now
