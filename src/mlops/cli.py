"""The command line: one program for the checkout (`./mlops`) and for every image (`mlops`).

Here errors become messages and exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted,
3 a bug, with its traceback in a log file that the message names. The commands of a role lie in
its `commands` module, the demo in `demo`; these and this one are all that prints or exits.
"""

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlops import demo
from mlops.agent import commands as agent
from mlops.data import commands as data
from mlops.development import commands as development
from mlops.errors import MlopsError
from mlops.experimenter import commands as experimenter
from mlops.garbage import collect_seldom
from mlops.identities import ClientRole
from mlops.local import commands as local
from mlops.ops import commands as ops
from mlops.runs import commands as runs
from mlops.scheduler import commands as scheduler
from mlops.server import commands as server

if TYPE_CHECKING:
    from mlops.settings import LocalSettings

_BUG = 3
_INTERRUPTED = 130
_WITHOUT_SERVERS = {"check", "new", "schema"}


def _use_local_platform(context: typer.Context) -> None:
    """Flow folders: check, register, list, run.

    On a checkout they go to the embedded platform, unless PREFECT_API_URL names another.
    """
    local = _local_platform()
    if local is None:
        return
    _set_flow_dir(local)
    if context.invoked_subcommand in _WITHOUT_SERVERS:
        return
    # Only the one that removes old code has the key to it.
    role: ClientRole = "prune" if context.invoked_subcommand == "prune" else "scheduler"
    _act_as(role, local)


def _use_local_platform_for_experiments() -> None:
    """Act as an experimenter.

    On a checkout at the embedded platform, unless PREFECT_API_URL names another.
    """
    if local := _local_platform():
        _set_flow_dir(local)
        _act_as("experimenter", local)


def _use_local_platform_for_data() -> None:
    """Act as an experimenter who needs the object store only.

    On a checkout at the embedded platform, unless AWS_ENDPOINT_URL_S3 names another.
    """
    if "AWS_ENDPOINT_URL_S3" not in os.environ:
        _use_local_platform_for_experiments()


def _use_local_platform_for_agent(context: typer.Context) -> None:
    """The agent: runs flows on this host.

    On a checkout `status` asks the embedded platform's, unless MLOPS_CACHE_DIR or
    PREFECT_API_URL names another.
    """
    if context.invoked_subcommand == "status" and "MLOPS_CACHE_DIR" not in os.environ:
        from mlops.local.home import agent_cache

        if (local := _local_platform()) and (folder := agent_cache(local.mlops_home)):
            os.environ["MLOPS_CACHE_DIR"] = folder


def _local_platform() -> "LocalSettings | None":
    """Return where the embedded platform is; None: the environment names another one."""
    if "PREFECT_API_URL" in os.environ:
        return None
    from mlops.settings import LocalSettings

    return LocalSettings.from_environment()


def _set_flow_dir(local: "LocalSettings") -> None:
    """Let flow folders be where the embedded platform's scheduler looks, unless it is said."""
    from mlops.local.home import flow_dir

    checkout_flows = local.mlops_checkout / "flows" if local.mlops_checkout else None
    if folder := flow_dir(local.mlops_home) or checkout_flows:
        os.environ.setdefault("FLOW_DIR", str(folder))


def _act_as(role: ClientRole, local: "LocalSettings") -> None:
    """Take on a role's identity at the embedded platform, if that was ever started."""
    from mlops.local.home import client_environment

    os.environ.update(client_environment(local.mlops_home, role) or {})


app = typer.Typer(
    name="mlops",
    help="A self-hosted machine-learning platform for small teams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("test", context_settings={"ignore_unknown_options": True})(development.run_checks)
app.command("init")(ops.init)
app.command("join")(ops.join)
app.command("env-examples", hidden=True)(ops.write_examples)
app.command("lock")(development.lock)
app.add_typer(local.app, name="local")
app.add_typer(scheduler.app, name="flows", callback=_use_local_platform)
app.add_typer(experimenter.app, name="project", callback=_use_local_platform_for_experiments)
app.add_typer(runs.app, name="runs", callback=_use_local_platform_for_experiments)
app.add_typer(data.app, name="data", callback=_use_local_platform_for_data)
app.add_typer(agent.app, name="agent", callback=_use_local_platform_for_agent)
app.add_typer(server.app, name="server")


def _write_bug_report(error: BaseException) -> Path:
    """Write the traceback to a file of its own, in `$MLOPS_HOME/logs` where that exists."""
    home = Path(os.environ.get("MLOPS_HOME", ".mlops")) / "logs"
    folder = home if home.is_dir() and os.access(home, os.W_OK) else Path(tempfile.gettempdir())
    descriptor, path = tempfile.mkstemp(
        dir=folder, prefix=time.strftime("mlops-bug-%Y%m%dT%H%M%S-"), suffix=".log"
    )
    with os.fdopen(descriptor, "w") as file:
        # Without argument values: they may be secrets.
        file.write(f"mlops {' '.join(a for a in sys.argv[1:3] if not a.startswith('-'))}\n")
        traceback.print_exception(error, file=file)
    return Path(path)


def _bug(error: BaseException) -> str:
    path = _write_bug_report(error)
    return f"mlops: a bug: {type(error).__name__}: {error}\n  the traceback is in {path}"


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The command line without the program's name; default `sys.argv[1:]`.
    """
    try:
        app(args=arguments, prog_name="mlops")
    except SystemExit as end:  # how Typer ends; it has explained wrong usage by now
        code = end.code if isinstance(end.code, int) else 0
        message = "mlops: interrupted" if code == _INTERRUPTED else ""
    except MlopsError as error:
        message, code = f"mlops: {error}", error.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            message, code = _bug(error), _BUG
        else:
            message, code = f"mlops: the output cannot be written: {error.strerror}", 1
    except Exception as error:  # noqa: BLE001  # the last resort: whatever is left is a bug
        message, code = _bug(error), _BUG
    if message:
        print(message, file=sys.stderr)
    return code


def main() -> None:
    """Run the command line and exit."""
    collect_seldom()
    # The command line that httpx brings along, with pygments and rich's tables, unless it cannot
    # be imported: a tenth of a registration's time.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    # A closed stream is None, which libraries do not expect.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    sys.exit(run())


if __name__ == "__main__":
    main()
