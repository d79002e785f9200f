"""The one family of errors that a user sees."""


class MlopsError(Exception):
    """Something that the user can mend; the message names the thing, `hint` says how.

    Args:
        message: What is wrong, naming the file, server or value concerned.
        hint: What to do next, as one sentence or command; empty when the message says it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class CredentialsError(MlopsError):
    """A server answers, and refuses who we say that we are."""


class UsageError(MlopsError):
    """The command line itself is wrong."""

    exit_code = 2
