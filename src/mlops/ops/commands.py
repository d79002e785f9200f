"""The commands that set up hosts: `mlops init` and `mlops join`."""

import getpass
import json
import sys
import time
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
_YEAR_HOURS = 24 * 366


def init(
    roles: Annotated[
        list[str] | None,
        typer.Argument(help="server, scheduler, agent, experimenter; none: all, on this host."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address or name under which others reach the servers.")
    ] = None,
    bind: Annotated[
        str | None, typer.Option(help="IPv4 address to publish the servers on; 0.0.0.0: all.")
    ] = None,
    join: Annotated[
        str | None, typer.Option(help="A token of `mlops join`; -: read it from the input.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write .env files with generated secrets; values that are there stay as they are."""
    from mlops.errors import UsageError
    from mlops.ops.initialise import Wishes, initialise
    from mlops.ops.join_token import read_token
    from mlops.ops.stacks import SERVER, find_stack
    from mlops.settings import CheckoutSettings

    checkout = CheckoutSettings.from_environment().require().absolute()
    stacks = tuple(dict.fromkeys(find_stack(role) for role in roles or []))
    with_server = not stacks or SERVER in stacks
    if join is not None and (len(stacks) != 1 or with_server):
        raise UsageError("--join goes with one role: scheduler, agent or experimenter")
    if bind is not None and not with_server:
        raise UsageError("--bind goes with the role server")
    if host is not None and not with_server and join is None:
        raise UsageError("--host goes with the role server, or with --join")
    token = read_token(_read_input(join), stacks[0]) if join is not None else None
    done = initialise(checkout, Wishes(stacks, bind, host, token))

    folders = ["."] if not stacks else [stack.folder for stack in stacks]
    if as_json:
        files = [{"path": str(checkout / file.place), "set": file.names} for file in done.files]
        print(json.dumps({"files": files, "folders": folders, "notes": done.remarks}))
        return
    for remark in done.remarks:
        print(f"note: {remark}", file=sys.stderr)
    for file in done.files:
        count = f"{len(file.names)} values written" if file.names else "complete, nothing changed"
        print(f"{file.place}: {count}")
    for folder in folders:
        go = "" if folder == "." else f"cd {folder} && "
        print(f"start it with: {go}docker compose up -d --wait")


def join(
    role: Annotated[str, typer.Argument(help="scheduler, agent or experimenter.")],
    hours: Annotated[
        int, typer.Option(min=1, max=_YEAR_HOURS, help="How long the token is accepted.")
    ] = 24,
    as_json: Json = False,
) -> None:
    """On the server's host: print a token with which another host's init gets its part."""
    from mlops import __version__
    from mlops.errors import UsageError
    from mlops.ops.initialise import joined_values
    from mlops.ops.join_token import JoinToken
    from mlops.ops.stacks import SERVER, find_stack
    from mlops.settings import CheckoutSettings

    stack = find_stack(role)
    if stack is SERVER:
        raise UsageError("the server joins nobody; roles: scheduler, agent, experimenter")
    checkout = CheckoutSettings.from_environment().require().absolute()
    values, reachable = joined_values(checkout, stack)
    expires = int(time.time()) + hours * 3600
    token = JoinToken.model_validate(
        {"role": stack.role, "version": __version__, "expires": expires, "values": values}
    )
    server = values["SERVER_IP"]
    if not reachable:
        print(
            "note: only this machine reaches the servers (BIND_ADDRESS, SERVER_IP in its .env)\n"
            "  docs/operations.md says how to open them; make the token after that",
            file=sys.stderr,
        )
    if as_json:
        report = {"role": stack.role, "token": token.encode(), "expires": expires}
        print(json.dumps(report | {"server": server, "reachable": reachable}))
        return
    print(token.encode())
    print(
        f"on the other host, until {token.expiry}: ./mlops init {stack.role} --join -\n"
        f"  (it asks for the token; whoever has it has {stack.role}'s secrets)",
        file=sys.stderr,
    )


def write_examples() -> None:
    """Render the .env.example files of this checkout from the table of variables."""
    from mlops.ops.stacks import STACKS, render_example
    from mlops.settings import CheckoutSettings

    checkout = CheckoutSettings.from_environment().require()
    for folder, stack in ((".", None), *((stack.folder, stack) for stack in STACKS)):
        (checkout / folder / ".env.example").write_text(render_example(stack))


def _read_input(join: str) -> str:
    """Return the token itself; from the input it stays out of the shell's history."""
    if join != "-":
        return join
    return getpass.getpass("join token: ") if sys.stdin.isatty() else sys.stdin.read()
