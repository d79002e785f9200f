"""Names of flows, deployments, pools, queues and tags: what the Prefect server finds again.

Measured on Prefect 3.8.8, by creating each name and asking for it again:

- `/ % & < >` are refused, in a queue's name with an internal error;
- `?` and `#` are accepted and then cut off where the name stands in an address, so that the
  thing exists and nobody finds it; `.` and `..` and control characters likewise;
- a NUL character or more than about 2,700 bytes answer 503 until the client gives up;
- pools whose names start with "prefect" are reserved.

Spaces, dots, quotes, brackets, shell characters and other alphabets work.
"""

from mlops.scheduler.wording import shown

LENGTH_LIMIT = 200
_IN_NO_ADDRESS = "/%&<>?#"


def name_mistake(value: str) -> str | None:
    """Return what is wrong with the name of a flow, deployment or queue, or None.

    The answer continues a sentence about the name, as in `deployment.deploy_name: 'a/b' has …`.
    """
    refused = next((character for character in value if character in _IN_NO_ADDRESS), None)
    if refused:
        allowed = f"any text without {' '.join(_IN_NO_ADDRESS)}"
        return f"{shown(value)} has the character {refused!r}; allowed: {allowed}"
    return tag_mistake(value)


def pool_name_mistake(value: str) -> str | None:
    """Return what is wrong with the name of a work pool, or None."""
    if value.lower().startswith("prefect"):
        return f"{shown(value)} starts with 'prefect', which the server keeps for itself"
    return name_mistake(value)


def tag_mistake(value: str) -> str | None:
    """Return what is wrong with a tag, or None; tags never stand in an address."""
    if not value.strip(" .'\""):
        return f"{value!r} has nothing to read; allowed: a name with a letter or digit"
    for character in value:
        if not character.isprintable():
            code = f"U+{ord(character):04X}"
            return f"{shown(value)} has a character that cannot be seen ({code}); leave it out"
    if value != value.strip():
        return f"{shown(value)} starts or ends with a space; leave it out"
    if len(value) > LENGTH_LIMIT:
        return f"{shown(value)} has {len(value)} characters; allowed: at most {LENGTH_LIMIT}"
    return None
