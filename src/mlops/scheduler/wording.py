"""A user's values as messages show them."""

SHOWN_CHARACTERS = 60
_AS_IN_YAML = {"None": "null", "True": "true", "False": "false"}


def shown(value: object) -> str:
    """Return a value as YAML spells it, text in quotes, shortened."""
    text = repr(value)
    return shortened(_AS_IN_YAML.get(text, text))


def shortened(text: str) -> str:
    """Return a text, or its beginning if it would hide the message around it."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
