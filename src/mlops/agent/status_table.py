"""An agent's status as text for people."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from mlops.agent.inquiry import AgentReport
from mlops.agent.status import AgentStatus, CacheStatus, WarmStatus


def render(report: AgentReport) -> Iterator[Table | Text]:
    """Return what to print, one thing below the other.

    Args:
        report: Of one agent.
    """
    status = report.status
    health = "healthy" if report.healthy else report.problem or ""
    yield Text(f"{report.name}  {report.address}  {health}")
    if status is None:
        return
    queue = f"queue {status.queue}" if status.queue else "every queue"
    yield Text(f"  pool {status.pool}, {queue}; pid {status.pid}, up {age(status.uptime_seconds)}")
    yield Text(f"  {_server(status)}")
    yield Text(
        f"  slots: {status.slots.used} of {status.slots.total} taken; ended: {_ended(status)}"
    )
    if status.runs:
        yield _table(
            ("run", "id", "for", "start", "pid"),
            *(
                (
                    run.name,
                    str(run.flow_run_id),
                    age(run.seconds),
                    run.start or "preparing",
                    str(run.pid or ""),
                )
                for run in status.runs
            ),
        )
    if status.gpus:
        yield _table(
            ("GPU", "run"),
            *((gpu.gpu, str(gpu.flow_run_id or gpu.problem or "free")) for gpu in status.gpus),
        )
    if status.warm_environments:
        yield _table(
            ("warm environment", "made from", "state", "age", "memory", "runs", "modules ahead"),
            *(_warm(each) for each in status.warm_environments),
        )
    yield _table(
        ("cache", "entries", "size", "limit", "hits"), *(_cache(each) for each in status.caches)
    )


def age(seconds: float) -> str:
    """Return a duration as `0:07` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _server(status: AgentStatus) -> str:
    contact = status.last_contact
    told = (
        f"server: answered {age(contact.seconds_ago)} ago" if contact else "server: no answer yet"
    )
    if stream := status.event_stream:
        what = "connected" if stream.connected else "lost"
        told += f"; event stream {what} {age(stream.seconds)} ago"
    return told


def _ended(status: AgentStatus) -> str:
    counts = [f"{each.runs} {each.outcome}" for each in status.outcomes if each.runs]
    return ", ".join(counts) or "none yet"


def _warm(each: WarmStatus) -> tuple[str, ...]:
    state = f"{each.state}: {each.reason}" if each.reason else each.state
    packages = dict.fromkeys(module.partition(".")[0] for module in each.modules)
    modules = f"{len(each.modules)} in {len(packages)} packages" if packages else ""
    if each.kept_out:
        modules += f", without {', '.join(f'{out.name} ({out.reason})' for out in each.kept_out)}"
    return (
        each.environment,
        each.requirements,
        state,
        "" if each.age_seconds is None else age(each.age_seconds),
        size(each.memory_bytes) if each.memory_bytes else "",
        str(each.runs),
        modules,
    )


def _cache(each: CacheStatus) -> tuple[str, ...]:
    hits = "" if each.hit_rate is None else f"{each.hit_rate:.0%} of {_asked(each)}"
    limit = size(each.limit_bytes) if each.limit_bytes is not None else ""
    return each.name, str(each.entries), size(each.size_bytes), limit, hits


def _asked(each: CacheStatus) -> int:
    return (each.hits or 0) + (each.misses or 0)


def size(count: int) -> str:
    """Return a number of bytes as `12 MB` or `3.4 GB`."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"  # noqa: PLR2004


def _table(columns: tuple[str, ...], *rows: tuple[str, ...]) -> Table:
    numbers = {"for", "pid", "age", "memory", "runs", "entries", "size", "limit"}
    table = Table(box=None, pad_edge=True)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
