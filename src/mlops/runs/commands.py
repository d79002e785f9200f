"""Commands for runs: `mlops runs …`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from mlops.runs.chain import Chain, MlflowRun
    from mlops.runs.comparison import ComparedMetric

app = typer.Typer(help="Runs: where they come from, and once more.", no_args_is_help=True)

AnyRun = Annotated[
    str, typer.Argument(help="Id or name of a flow run, or id of one of its MLflow runs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TOLERANCE = 1e-6


@app.command()
def show(run: AnyRun, *, as_json: AsJson = False) -> None:
    """Show a run with its code, packages, parameters, data, host, MLflow runs and models."""
    from mlops.runs.chain import read_chain
    from mlops.settings import RunsSettings

    chain = read_chain(RunsSettings.from_environment(), run)
    if as_json:
        print(chain.model_dump_json(indent=2))
        return
    _print_chain(chain)


@app.command()
def reproduce(
    run: AnyRun,
    *,
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare this one only. Repeatable.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Relative difference of metrics that count as equal.")
    ] = TOLERANCE,
    as_json: AsJson = False,
) -> None:
    """Run the same code, requirements, parameters and data again, and compare the metrics.

    The exit code is 0 if the run completes with the same metrics.
    """
    import sys

    from mlops.prefect_api import connect
    from mlops.runs import reproduction
    from mlops.runs.chain import read_chain
    from mlops.runs.comparison import compare
    from mlops.runs.following import follow
    from mlops.runs.printing import show_events
    from mlops.settings import RunsSettings

    settings = RunsSettings.from_environment()
    original = read_chain(settings, run)
    with connect(settings) as api:
        started = reproduction.reproduce(api, original)
        url = settings.run_url(started.id)
        if not as_json:
            print(f"run {started.name} of {started.deployment}: {url}")
        state = show_events(follow(api, started.id), url=url, to_stderr=as_json)
    repeated = read_chain(settings, str(started.id))
    compared = compare(original.logged, repeated.logged, tolerance=tolerance, only=metric or ())
    changes = reproduction.differences(original, repeated)
    completed = state is not None and state.name == "Completed"
    is_same = completed and all(each.is_equal for each in compared)
    if as_json:
        report = {
            "original": str(original.flow_run.id),
            "repeated": str(started.id),
            "url": url,
            "state": state.name if state else None,
            "message": state.message if state else "",
            "differences": changes,
            "metrics": [each.model_dump() for each in compared],
            "same": is_same,
        }
        print(json.dumps(report, indent=2))
        raise typer.Exit(0 if is_same else 1)
    for change in changes:
        print(f"not the same: {change}")
    if state is not None and not completed:
        print(f"mlops: {started.name}: {state.name}: {state.message}", file=sys.stderr)
    elif compared:
        _print_table(_comparison(compared))
        unequal = sum(not each.is_equal for each in compared)
        print(f"{unequal} of {len(compared)} metrics differ" if unequal else "same metrics")
    else:
        print("neither run has logged a metric")
    raise typer.Exit(0 if is_same else 1)


def _print_chain(chain: "Chain") -> None:
    from mlops import lineage

    run = chain.flow_run
    name = f"{chain.flow}/{chain.deployment}" if chain.deployment else chain.flow
    began = f"{run.start_time:%Y-%m-%d %H:%M:%S %Z}" if run.start_time else "not started"
    rows = [
        ("run", f"{run.name} ({run.id})"),
        ("state", f"{run.state_name}; {began}, {run.total_run_time:.1f} s"),
        ("page", chain.url),
        ("flow", f"{name}, pool {run.work_pool_name}, queue {run.work_queue_name}"),
        ("repeats", run.fact(lineage.REPRODUCES)),
        ("parameters", json.dumps(run.parameters)),
        ("code", run.fact(lineage.CODE_URI)),
        ("git commit", run.fact(lineage.GIT_COMMIT)),
        *(("data", each) for each in run.data),
        ("Python", run.fact(lineage.PYTHON)),
        ("requirements", run.fact(lineage.REQUIREMENTS_HASH)),
        ("packages", run.fact(lineage.PACKAGES_HASH)),
        ("host", run.fact(lineage.AGENT_HOST)),
        ("GPU", run.fact(lineage.GPU)),
    ]
    for each in chain.mlflow_runs:
        rows += _mlflow_rows(each)
    width = max(len(title) for title, _ in rows)
    for title, value in rows:
        if value:
            print(f"{title:{width}}  {value}")


def _mlflow_rows(each: "MlflowRun") -> list[tuple[str, str | None]]:
    run = each.run
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in sorted(run.metrics.items()))
    below = "  " if run.parent_id else ""
    return [
        ("MLflow run", f"{below}{run.name} ({run.run_id}), {run.status}: {run.url}"),
        ("", f"{below}{metrics}" if metrics else None),
        *(
            ("", f"{below}model {model.name}, version {model.version}: {model.url}")
            for model in each.models
        ),
    ]


def _comparison(compared: "list[ComparedMetric]") -> "Table":
    from rich.table import Table

    table = Table("MLflow run", box=None, pad_edge=False)
    for column in ("metric", "then", "now", ""):
        table.add_column(column, overflow="fold")
    for each in compared:
        table.add_row(
            each.run,
            each.metric,
            "none" if each.original is None else f"{each.original:.9g}",
            "none" if each.repeated is None else f"{each.repeated:.9g}",
            "" if each.is_equal else "differs",
        )
    return table


def _print_table(table: "Table") -> None:
    import sys

    from rich.console import Console

    # Never shortened in a pipe, where the console takes 80 columns for granted.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
