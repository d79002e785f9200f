"""What `init` does: complete the `.env` files of a checkout without changing what is there.

A value that is found in one file is the value everywhere. What no file has is decided here,
generated, or taken from a join token.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlops.credentials import Credentials
from mlops.env_file import EnvFile, read_env_file, set_missing, write_private_files
from mlops.errors import MlopsError
from mlops.ops.env_names import check_names
from mlops.ops.env_values import check_value
from mlops.ops.host import (
    HERE_ONLY,
    check_bind,
    check_host,
    host_values,
    is_loopback,
    server_addresses,
)
from mlops.ops.join_token import JoinToken
from mlops.ops.stacks import (
    KNOWN,
    ROOT,
    SERVER,
    STACKS,
    Origin,
    Stack,
    Variable,
    joined_variables,
    render_example,
    variables_of,
)

_TOGETHER = ("BIND_ADDRESS", "SERVER_IP", "UI_HOST", "MLOPS_ADDRESSES")

Places = Mapping[Path, EnvFile]  # the files that there are, relative to the checkout


class Wishes(NamedTuple):
    """What the command line asks for.

    Args:
        stacks: Whose files are written; empty: all, and the root's.
        bind: The IP address to publish the servers on.
        host: How others reach the servers; with a token: how this host does.
        token: What the server's host handed on.
    """

    stacks: tuple[Stack, ...] = ()
    bind: str | None = None
    host: str | None = None
    token: JoinToken | None = None


class Written(NamedTuple):
    """One `.env` file and the names that were set in it; none: it was complete."""

    place: Path
    names: list[str]


class Initialised(NamedTuple):
    """What was done, and what else the user should know."""

    files: list[Written]
    remarks: list[str]


def initialise(checkout: Path, wishes: Wishes) -> Initialised:
    """Complete the `.env` files.

    Args:
        checkout: The checkout's folder, absolute.
        wishes: What to complete, and how.

    Raises:
        MlopsError: A file cannot be read or written, or has a name that is mistyped or a value
            that nothing could use; files differ, another value is there than was asked for, or
            a client's secrets are not on this host. Nothing was written.
    """
    targets = _targets(wishes.stacks)
    with _alone(checkout):
        # What else is on this host belongs to another platform than a token's.
        places = read_places(checkout, list(targets) if wishes.token else [ROOT, *_stack_files()])
        remarks = [
            remark for place, file in places.items() for remark in check_names(place, file.values)
        ]
        variables = {v.name: v for stack in targets.values() for v in variables_of(stack)}
        there = merge(places, list(variables.values()))
        if SERVER in targets.values():
            _refuse_joined_host(places)
        values = _decide(checkout, wishes, variables, there, places)
        texts = {}
        written = []
        for place, stack in targets.items():
            file = places.get(place) or EnvFile("", {}, frozenset())
            mine = {v.name: values[v.name] for v in variables_of(stack)}
            text = set_missing(file.text or render_example(stack, blank=True), mine)
            if text != file.text:
                texts[checkout / place] = text
            new = [n for n in mine if n not in file.values or (mine[n] and not file.values[n])]
            written.append(Written(place, new))
        write_private_files(texts)
    return Initialised(written, remarks + _reach(wishes, values))


def read_places(checkout: Path, places: Sequence[Path]) -> dict[Path, EnvFile]:
    """Read those `.env` files that there are.

    Args:
        checkout: The checkout's folder.
        places: Which to look for, relative to it.

    Raises:
        MlopsError: One is open to others or cannot be read.
    """
    found = {}
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            found[place] = read_env_file(checkout / place)
    return found


def merge(places: Places, variables: Sequence[Variable]) -> dict[str, str]:
    """Return what the files together say about some variables.

    Raises:
        MlopsError: Two files say different things, nothing could use a value, or what Compose
            reads is not what is written.
    """
    values: dict[str, str] = {}
    problems = []
    for variable in variables:
        name = variable.name
        said = {
            place: file.values[name]
            for place, file in places.items()
            if name in file.values
            and (file.values[name] or variable.may_be_empty)
            and (place == ROOT or place in {stack.env_file for stack in variable.stacks})
        }
        problems += [
            f"{place}: {name}: Compose replaces what follows a $; put it in single quotes"
            for place in said
            if name in places[place].expanded
        ]
        problems += [
            f"{p}: {told}" for p, value in said.items() if (told := check_value(name, value))
        ]
        if said:
            first, values[name] = next(iter(said.items()))
            if others := ", ".join(str(p) for p, value in said.items() if value != values[name]):
                problems.append(f"{others}: {name}: another value than in {first}")
    if problems:
        raise MlopsError("\n  ".join(problems))
    return values


def joined_values(checkout: Path, stack: Stack) -> tuple[dict[str, str], bool]:
    """Return what a stack on another host must be told, and whether it can reach this one.

    Args:
        checkout: The server host's checkout.
        stack: Who is told.

    Raises:
        MlopsError: This is not the server's host, or its `.env` is incomplete.
    """
    places = read_places(checkout, [ROOT, SERVER.env_file])
    bind = KNOWN["BIND_ADDRESS"]
    wanted = joined_variables(stack)
    values = merge(places, [*wanted, bind])
    if not places or bind.name not in values:
        raise MlopsError(
            f"{checkout / SERVER.env_file}: no server here",
            hint="run this on the server's host, after `./mlops init server --bind ADDRESS` there",
        )
    if missing := [v.name for v in wanted if v.name not in values]:
        raise MlopsError(
            f"{', '.join(map(str, places))}: {', '.join(missing)}: not set",
            hint="run `./mlops init server`, then restart the server stack",
        )
    reachable = not is_loopback(values[bind.name]) and values["SERVER_IP"] != HERE_ONLY
    return {v.name: values[v.name] for v in wanted}, reachable


def _stack_files() -> list[Path]:
    return [stack.env_file for stack in STACKS]


def _targets(stacks: tuple[Stack, ...]) -> dict[Path, Stack | None]:
    """Return the files to write, and whose they are."""
    chosen: dict[Path, Stack | None] = {} if stacks else {ROOT: None}
    return chosen | {s.env_file: s for s in STACKS if s in stacks or not stacks}


@contextlib.contextmanager
def _alone(checkout: Path) -> Iterator[None]:
    """Wait for another `init`: two at once would generate two sets of secrets."""
    descriptor = os.open(checkout, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_joined_host(places: Places) -> None:
    """Raise MlopsError where a stack here belongs to a server elsewhere."""
    server = (places[place].values for place in (ROOT, SERVER.env_file) if place in places)
    if any(values.get("POSTGRES_PASSWORD") for values in server):
        return
    for stack in STACKS[1:]:
        file = places.get(stack.env_file)
        if file and file.values.get("PREFECT_PASSWORD"):
            raise MlopsError(
                f"{stack.env_file}: belongs to the servers at {file.values.get('SERVER_IP')}",
                hint=f"`./mlops init {stack.role}` completes it; move it away to start a "
                "platform of its own here",
            )


def _decide(
    checkout: Path,
    wishes: Wishes,
    variables: Mapping[str, Variable],
    there: Mapping[str, str],
    places: Places,
) -> dict[str, str]:
    """Return every variable's value."""
    made = {name: variable.default for name, variable in variables.items()} | host_values(checkout)
    if wishes.token:
        token = wishes.token.values
        if wishes.host:
            host = check_host(wishes.host)
            token = token | {"SERVER_IP": host, "UI_HOST": host}
        if differ := [n for n in token if there.get(n, token[n]) != token[n]]:
            (place,) = places
            raise MlopsError(
                f"{place}: {', '.join(differ)}: another value than in the token",
                hint=f"move {place} away to join anew",
            )
        made |= token
    elif not wishes.stacks or SERVER in wishes.stacks:
        made |= {n.upper(): value for n, value in Credentials().model_dump().items()}
        made |= _addresses(wishes, there, places)
    elif missing := [
        name
        for name, variable in variables.items()
        if variable.origin is Origin.SERVER and not variable.default and name not in there
    ]:
        role = wishes.stacks[0].role
        raise MlopsError(
            f"not on this host: {', '.join(missing)}",
            hint=f"run `./mlops join {role}` on the server's host and "
            f"`./mlops init {role} --join TOKEN` here, or first `./mlops init server` here",
        )
    return made | dict(there)


def _addresses(wishes: Wishes, there: Mapping[str, str], places: Places) -> dict[str, str]:
    """Return where the servers are.

    Raises:
        MlopsError: It was decided before, and now something else is asked for.
    """
    bind = check_bind(wishes.bind) if wishes.bind else None
    host = check_host(wishes.host) if wishes.host else None
    at = bind or there.get("BIND_ADDRESS", "127.0.0.1")
    try:
        addresses = server_addresses(at, host or (None if bind else there.get("SERVER_IP")))
    except ValueError:
        raise MlopsError(f"BIND_ADDRESS: {at}: not an IPv4 address") from None
    asked = {"BIND_ADDRESS": bind, "SERVER_IP": host}
    for name, value in asked.items():
        if value and there.get(name, value) != value:
            files = [str(p) for p, file in places.items() if file.values.get(name)]
            values = "\n  ".join(f"{n}={addresses[n]}" for n in _TOGETHER)
            raise MlopsError(
                f"{', '.join(files)}: {name} is {there[name]}, and is not overwritten",
                hint="change these together, by hand, in every .env that has them (also on other "
                f"hosts), then start the stacks again:\n  {values}",
            )
    return addresses


def _reach(wishes: Wishes, values: Mapping[str, str]) -> list[str]:
    if wishes.host and not wishes.token and is_loopback(values["BIND_ADDRESS"]):
        only = values["BIND_ADDRESS"]
        return [f"BIND_ADDRESS is {only}: other hosts do not reach the servers at {wishes.host}"]
    return []
