"""The commands in the documents: in blocks of `sh`, in the text and in tables."""

import re
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
FENCE = re.MULTILINE | re.DOTALL
# What words in backticks begin with if they are a command, or set a variable.
COMMAND = re.compile(
    r"(\.{0,2}/mlops|chmod|cp|curl|docker|dvc|git|go|grep|ip|mc|pip|scp|ssh|sudo) "
    r"|\.ci/run|offline/build|[A-Z_]+=\S"
)
PLACEHOLDER = re.compile(r"\b[A-Z]+\b")


class Block(NamedTuple):
    """Commands that follow each other in one shell; whose: on which host, if that is said."""

    host: str | None
    commands: list[str]


def blocks(document: str) -> list[Block]:
    """Return the blocks of a document; a first line `# on …` names the host."""
    found = []
    for text in re.findall(r"^```sh\n(.*?)^```", _read(document), FENCE):
        named = re.match("# on (.+)\n", text)
        lines = (re.sub(r"(^|\s+)#.*", "", line) for line in text.splitlines())
        found.append(Block(named[1] if named else None, [line for line in lines if line]))
    return found


def commands_in_text(document: str) -> list[str]:
    """Return the commands outside of the blocks, each once."""
    text = re.sub(r"^```.*?^```", "", _read(document), flags=FENCE)
    words = (" ".join(word.split()) for word in re.findall("`([^`]+)`", text))
    return list(dict.fromkeys(word for word in words if COMMAND.match(word)))


def languages(document: str) -> set[str]:
    """Return the languages of a document's blocks."""
    return set(re.findall(r"^```(\w*)\n.*?^```", _read(document), FENCE))


def is_among(command: str, others: set[str]) -> bool:
    """Return whether a command, whose words in capitals stand for others, is one of these."""
    pattern = PLACEHOLDER.sub("<>", command)
    return any(
        re.fullmatch(re.escape(pattern).replace("<>", r"\S+"), part)
        for other in others
        for part in other.split(" && ")
    )


def _read(document: str) -> str:
    return (CHECKOUT / document).read_text()
