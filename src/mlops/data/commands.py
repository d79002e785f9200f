"""Commands for data: `mlops data …`."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from mlops.data.delivery import Options, Pulled
    from mlops.data.reference import Reference
    from mlops.settings import DataSettings

app = typer.Typer(help="Data that DVC tracks: pull it, show its references.", no_args_is_help=True)

_INTERRUPTED = 130
_TERMINATED = 128 + signal.SIGTERM

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help="References, s3://bucket/path@hash, or paths that DVC tracks in the project around "
        "this folder; default: all of these."
    ),
]
Revision = Annotated[
    str | None, typer.Option("--rev", help="The data of this git revision of the project.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pull(
    targets: Targets = None,
    revision: Revision = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="Where to; default: where the project has it.")
    ] = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there, whoever made it.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read again what is in the cache already.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring data to this machine: verified, from a cache that all runs on it share.

    What is in the cache is not downloaded again, and placed as reflinks or read-only hard links
    where the file system can.
    """
    from mlops.data.delivery import Options
    from mlops.errors import UsageError
    from mlops.settings import DataSettings

    with _ending_at_once():
        jobs, is_one = _jobs(targets or [], revision, to)
        if to is not None and len(jobs) != 1:
            raise UsageError(f"--to is for one target, and these are {len(jobs)}")
        settings = DataSettings.from_environment()
        report: list[Pulled] = []
        for reference, path, layouts in jobs:
            options = Options(force=force, verify=verify, layouts=layouts)
            pulled = _pull(reference, path, settings, options)
            report.append(pulled)
            if not as_json:
                print(_summary(pulled), flush=True)
    if as_json:
        reports = [pulled.model_dump(mode="json") for pulled in report]
        print(json.dumps(reports[0] if is_one else reports, indent=2))


def _jobs(
    targets: list[str], revision: str | None, to: Path | None
) -> tuple[list[tuple["Reference", Path, Any]], bool]:
    """Return what is pulled where, and whether it is one reference."""
    from mlops.data.project import DvcProject
    from mlops.data.reference import Reference, is_reference
    from mlops.data.remote import LAYOUTS
    from mlops.errors import UsageError

    references = [target for target in targets if is_reference(target)]
    if not references:
        found = DvcProject(Path.cwd(), revision).outputs(targets)
        return [(f.reference, to or f.path, (f.output.layout,)) for f in found], False
    if len(targets) > 1:
        raise UsageError("one reference at a time", hint="each goes to a place of its own, --to")
    reference = Reference.parse(references[0])
    if revision:
        raise UsageError("--rev is for paths in a project; a reference is a revision itself")
    if to is None:
        raise UsageError(f"{reference}: where to?", hint="say it with --to PATH")
    return [(reference, to, LAYOUTS)], True


def _pull(
    reference: "Reference", path: Path, settings: "DataSettings", options: "Options"
) -> "Pulled":
    from mlops.data.delivery import pull as pull_data
    from mlops.data.printing import PullProgress
    from mlops.data.run_label import label_flow_run
    from mlops.errors import MlopsError

    with PullProgress(path.name) as progress:
        pulled = pull_data(reference, path, settings, progress, options)
    if settings.prefect__flow_run_id:
        try:
            label_flow_run(settings.prefect__flow_run_id, reference)
        except MlopsError as error:  # the data is here, and the run can go on
            print(f"mlops: warning: {error.message}", file=sys.stderr)
    return pulled


def _summary(pulled: "Pulled") -> str:
    came = (
        f"{pulled.downloaded_files:,} downloaded ({pulled.downloaded_bytes / 1e6:,.1f} MB)"
        if pulled.downloaded_files
        else "nothing to download"
    )
    files = f"{pulled.files:,} file{'' if pulled.files == 1 else 's'}"
    return f"{pulled.path}: {files}, {pulled.bytes / 1e6:,.1f} MB; {came}; {pulled.seconds:.1f} s"


@app.command()
def show(targets: Targets = None, revision: Revision = None, *, as_json: AsJson = False) -> None:
    """Print the references to data: what one puts into a flow's parameters."""
    from mlops.data.project import DvcProject

    found = DvcProject(Path.cwd(), revision).outputs(targets or [])
    if as_json:
        report = [
            {
                "reference": str(each.reference),
                "path": str(each.path),
                "files": each.output.files,
                "bytes": each.output.size,
            }
            for each in found
        ]
        print(json.dumps(report, indent=2))
        return
    for each in found:
        # Alone, it can be taken over by a shell.
        name = "" if targets and len(found) == 1 else f"  {each.output.path}"
        print(f"{each.reference}{name}")


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """End when told to, without waiting for downloads under way; only whole files count.

    Python would wait for the threads, and these for a server that may be silent.
    """

    def end(_signal: int, _frame: object) -> NoReturn:
        raise SystemExit(_TERMINATED)

    signal.signal(signal.SIGTERM, end)
    if os.environ.get("MLOPS_DATA_CALLER") == "stdin":
        threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        print("mlops: interrupted", file=sys.stderr)
        _leave(_INTERRUPTED)
    except SystemExit:
        _leave(_TERMINATED)


def _end_with_caller() -> None:
    """Wait for the end of the process that called, which holds the other end of stdin."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
