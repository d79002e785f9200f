import time

import pytest

from mlops import __version__
from mlops.errors import MlopsError
from mlops.ops import join_token
from mlops.ops.join_token import JoinToken, read_token
from mlops.ops.stacks import AGENT, SCHEDULER, joined_variables

VALUES = {variable.name: f"the-{variable.name}" for variable in joined_variables(AGENT)}


def make_token(**changes: object) -> JoinToken:
    fields = {
        "role": "agent",
        "version": __version__,
        "expires": int(time.time()) + 60,
        "values": VALUES,
    }
    return JoinToken.model_validate(fields | changes)


def test_comes_through_whole() -> None:
    """A token says on the other host what it was made from."""
    token = make_token()
    assert read_token(token.encode(), AGENT).values == VALUES


def test_wrapped_by_a_terminal() -> None:
    """Line breaks and blanks of copying are passed over."""
    text = make_token().encode()
    assert read_token(f"  {text[:80]}\r\n{text[80:]}\n", AGENT).values == VALUES


def test_every_shortened_token_is_told() -> None:
    """However much is cut off, the message says that it was cut off or is none."""
    text = make_token().encode()
    for length in range(len(text)):
        with pytest.raises(MlopsError, match=r"damaged|no join token"):
            read_token(text[:length], AGENT)


def test_every_mistyped_character_is_told() -> None:
    """One wrong character anywhere is found."""
    text = make_token().encode()
    for place in range(len("mlops1."), len(text)):
        wrong = "A" if text[place] != "A" else "B"
        with pytest.raises(MlopsError, match="damaged"):
            read_token(text[:place] + wrong + text[place + 1 :], AGENT)


@pytest.mark.parametrize("text", ["", "-", "mlops", "ghp_abc", "http://server"])
def test_something_else(text: str) -> None:
    """What is no token at all is called that."""
    with pytest.raises(MlopsError, match="no join token"):
        read_token(text, AGENT)


def test_other_role() -> None:
    """A token of another role is refused, with the way to the right one."""
    with pytest.raises(MlopsError, match="for the role agent, not scheduler") as raised:
        read_token(make_token().encode(), SCHEDULER)
    assert "./mlops join scheduler" in raised.value.hint


def test_expired() -> None:
    """An old token is refused with the time of its end."""
    with pytest.raises(MlopsError, match="expired at 2001-09-09 01:46 UTC"):
        read_token(make_token(expires=10**9).encode(), AGENT)


def test_newer_release() -> None:
    """A token of a newer server is refused by naming both releases."""
    with pytest.raises(MlopsError, match=rf"made by mlops 99\.1; this is mlops {__version__}"):
        read_token(make_token(version="99.1").encode(), AGENT)


def test_newer_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token whose form is not known yet is a newer mlops', not damaged."""
    monkeypatch.setattr(join_token, "_FORMAT", 2)
    text = make_token().encode()
    monkeypatch.undo()
    with pytest.raises(MlopsError, match="made by a newer mlops"):
        read_token(text, AGENT)


def test_older_release_lacks_a_name() -> None:
    """A token without what this release needs names it and says which host to update."""
    values = {name: value for name, value in VALUES.items() if name != "PREFECT_PORT"}
    token = make_token(version="0.0.9", values=values | {"DROPPED": "x"})
    with pytest.raises(MlopsError, match=r"lacks PREFECT_PORT; it was made by mlops 0\.0\.9"):
        read_token(token.encode(), AGENT)


def test_older_release_has_a_name_more() -> None:
    """What this release has no use for any more is left out."""
    token = make_token(version="0.0.9", values=VALUES | {"DROPPED": "x"})
    assert read_token(token.encode(), AGENT).values == VALUES


def test_errors_do_not_show_secrets() -> None:
    """No message holds a part of what was given."""
    text = make_token().encode()
    with pytest.raises(MlopsError) as raised:
        read_token(text[:-1] + "!", AGENT)
    assert text[7:30] not in str(raised.value)
