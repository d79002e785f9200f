"""An agent's status as Prometheus metrics: the same numbers as in its JSON."""

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from mlops.agent.status import AgentStatus, Durations


class StatusMetrics:
    """A collector of `prometheus_client` for one status.

    Args:
        status: What to tell.
    """

    def __init__(self, status: AgentStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        yield from self._agent()
        yield from self._runs()
        yield from self._gpus()
        yield from self._warm_environments()
        yield from self._caches()

    def _agent(self) -> Iterator[Metric]:
        status = self._status
        labels = {"name": status.name, "version": status.version, "host": status.host}
        labels |= {"pool": status.pool, "queue": status.queue or ""}
        yield InfoMetricFamily("mlops_agent", "The agent.", value=labels)
        yield _gauge("start_time_seconds", "When it was started.", status.started.timestamp())
        yield _gauge("healthy", "1: the server answered in the last minute.", int(status.healthy))
        if status.last_contact:
            at = status.last_contact.at.timestamp()
            yield _gauge("last_contact_timestamp_seconds", "When the server last answered.", at)
        if status.event_stream:
            connected = int(status.event_stream.connected)
            yield _gauge("event_stream_connected", "1: events of the server arrive.", connected)

    def _runs(self) -> Iterator[Metric]:
        status = self._status
        yield _gauge("slots", "How many runs there may be at a time.", status.slots.total)
        yield _gauge("slots_used", "How many of the slots are taken.", status.slots.used)
        yield _gauge("runs_in_progress", "Runs that were taken and go on.", len(status.runs))
        runs = CounterMetricFamily(
            "mlops_agent_runs", "Runs that ended here, by outcome.", labels=["outcome"]
        )
        for each in status.outcomes:
            runs.add_metric([each.outcome], each.runs)
        yield runs
        starts = HistogramMetricFamily(
            "mlops_agent_start_duration_seconds",
            "From taking a run to its process, by the kind of start.",
            labels=["start"],
        )
        for kind in status.starts:
            starts.add_metric([kind.start], _buckets(kind.durations), kind.durations.sum_seconds)
        yield starts
        yield HistogramMetricFamily(
            "mlops_agent_wait_duration_seconds",
            "From when a run was due to when it was taken.",
            buckets=_buckets(status.waits),
            sum_value=status.waits.sum_seconds,
        )

    def _gpus(self) -> Iterator[Metric]:
        leased = GaugeMetricFamily("mlops_agent_gpu_leased", "1: a run has it.", labels=["gpu"])
        blocked = GaugeMetricFamily(
            "mlops_agent_gpu_blocked", "1: it is not given out.", labels=["gpu"]
        )
        for gpu in self._status.gpus:
            leased.add_metric([gpu.gpu], int(gpu.flow_run_id is not None))
            blocked.add_metric([gpu.gpu], int(gpu.problem is not None))
        yield leased
        yield blocked

    def _warm_environments(self) -> Iterator[Metric]:
        labels = ["environment"]
        ready = GaugeMetricFamily(
            "mlops_agent_warm_environment_ready", "1: runs are forked from it.", labels=labels
        )
        since = GaugeMetricFamily(
            "mlops_agent_warm_environment_start_time_seconds",
            "When its process was started.",
            labels=labels,
        )
        memory = GaugeMetricFamily(
            "mlops_agent_warm_environment_memory_bytes", "PSS of its process.", labels=labels
        )
        runs = CounterMetricFamily(
            "mlops_agent_warm_environment_runs", "Runs that were forked from it.", labels=labels
        )
        for each in self._status.warm_environments:
            ready.add_metric([each.environment], int(each.state == "ready"))
            if each.since:
                since.add_metric([each.environment], each.since.timestamp())
            memory.add_metric([each.environment], each.memory_bytes)
            runs.add_metric([each.environment], each.runs)
        yield from (ready, since, memory, runs)

    def _caches(self) -> Iterator[Metric]:
        labels = ["cache"]
        entries = GaugeMetricFamily(
            "mlops_agent_cache_entries", "What lies in a cache of this host.", labels=labels
        )
        size = GaugeMetricFamily("mlops_agent_cache_size_bytes", "Its size.", labels=labels)
        limit = GaugeMetricFamily(
            "mlops_agent_cache_limit_bytes", "Beyond it the least recently used go.", labels=labels
        )
        hits = CounterMetricFamily(
            "mlops_agent_cache_hits", "How often what was needed was there.", labels=labels
        )
        misses = CounterMetricFamily(
            "mlops_agent_cache_misses", "How often what was needed was not there.", labels=labels
        )
        for each in self._status.caches:
            entries.add_metric([each.name], each.entries)
            size.add_metric([each.name], each.size_bytes)
            for metric, value in ((limit, each.limit_bytes), (hits, each.hits)):
                if value is not None:
                    metric.add_metric([each.name], value)
            if each.misses is not None:
                misses.add_metric([each.name], each.misses)
        yield from (entries, size, limit, hits, misses)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mlops_agent_{name}", about, value=value)


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    limits = [(str(each.at_most_seconds), float(each.count)) for each in durations.buckets]
    return [*limits, ("+Inf", float(durations.count))]
