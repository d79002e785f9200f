"""Join tokens: one role's part of a platform, as a line of text for another host.

`mlops<format>.<base64url of JSON>.<checksum>`. The checksum finds what was cut off or mistyped;
it is no signature, and the expiry no lock: whoever has a token has the role's secrets. The
expiry only keeps an old one from being used by mistake.
"""

import base64
import binascii
import hashlib
import re
import time
from datetime import UTC, datetime
from typing import Literal

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops import __version__
from mlops.errors import MlopsError
from mlops.ops.stacks import Stack, joined_variables

_FORMAT = 1
_TOKEN = re.compile(r"mlops(?P<format>\d+)\.(?P<rest>.*)", re.DOTALL)
_CHECKSUM_CHARACTERS = 12


class JoinToken(BaseModel):
    """What a token says.

    Attributes:
        role: Whose part it is.
        version: Of the mlops that made it.
        expires: When it stops being accepted, in seconds since 1970.
        values: The variables of `joined_variables`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["scheduler", "agent", "experimenter"]
    version: str
    expires: int = Field(ge=0, lt=2**33)
    values: dict[str, str]

    @property
    def expiry(self) -> str:
        """When it expires, for people."""
        return f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d %H:%M} UTC"

    def encode(self) -> str:
        """Return the line of text."""
        payload = base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")
        body = f"mlops{_FORMAT}.{payload}"
        return f"{body}.{_checksum(body)}"


def read_token(text: str, stack: Stack) -> JoinToken:
    """Return what a token says to a stack.

    Args:
        text: The token; spaces and line breaks, as from a terminal, are passed over.
        stack: Who wants to join with it.

    Raises:
        MlopsError: It is no token, was cut off or mistyped, is another role's, has expired, or
            comes from a newer release.
    """
    token = _decode("".join(text.split()))
    if token.role != stack.role:
        raise MlopsError(
            f"the join token is for the role {token.role}, not {stack.role}",
            hint=f"`./mlops join {stack.role}` on the server host prints the right one",
        )
    if token.expires < time.time():
        raise MlopsError(
            f"the join token expired at {token.expiry}",
            hint=f"`./mlops join {stack.role}` on the server host prints a new one",
        )
    wanted = {variable.name for variable in joined_variables(stack)}
    if missing := sorted(wanted - {name for name, value in token.values.items() if value}):
        raise MlopsError(
            f"the join token lacks {', '.join(missing)}; it was made by mlops {token.version}",
            hint=f"bring the server host to mlops {__version__}, then `./mlops join {stack.role}`",
        )
    # An older server may name what there is no use for any more.
    return token.model_copy(update={"values": {n: token.values[n] for n in sorted(wanted)}})


def _decode(text: str) -> JoinToken:
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise MlopsError(
            "that is no join token", hint="it begins with `mlops1.`; `./mlops join` prints it"
        )
    if int(match["format"]) > _FORMAT:
        raise _newer("a newer mlops")
    body, _, checksum = text.rpartition(".")
    if checksum != _checksum(body):
        raise MlopsError(
            "the join token is damaged: a part is missing or mistyped",
            hint="copy all of it again, to its last character",
        )
    payload = match["rest"].partition(".")[0]
    try:
        raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        token = JoinToken.model_validate_json(raw)
        newer = Version(token.version) > Version(__version__)
    except (binascii.Error, ValidationError, InvalidVersion):
        raise MlopsError("the join token is not understood") from None
    if newer:
        raise _newer(f"mlops {token.version}")
    return token


def _newer(maker: str) -> MlopsError:
    return MlopsError(
        f"the join token was made by {maker}; this is mlops {__version__}",
        hint="bring this checkout to the server's release first",
    )


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:_CHECKSUM_CHARACTERS]
