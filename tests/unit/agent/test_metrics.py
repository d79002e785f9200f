import datetime as dt
import io
from collections.abc import Iterator
from http.client import HTTPConnection
from uuid import UUID

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from rich.console import Console

from mlops.agent.health_server import health_port
from mlops.agent.inquiry import AgentReport
from mlops.agent.status import (
    AgentStatus,
    Bucket,
    CacheStatus,
    CacheUses,
    Contact,
    Durations,
    GpuStatus,
    ModuleKeptOut,
    OutcomeCount,
    RunStatus,
    Slots,
    StartDurations,
    StreamStatus,
    WarmStatus,
)
from mlops.agent.status_table import render
from mlops.errors import MlopsError

AT = dt.datetime(2026, 11, 27, 12, tzinfo=dt.UTC)
RUN = UUID("00000000-0000-4000-8000-000000000001")
DURATIONS = Durations(
    buckets=(Bucket(at_most_seconds=0.5, count=2), Bucket(at_most_seconds=1.0, count=3)),
    count=4,
    sum_seconds=7.25,
)
STATUS = AgentStatus(
    name="agent-1",
    version="1.2.3",
    pid=7,
    host="night-shift",
    pool="gpus",
    queue=None,
    started=AT,
    uptime_seconds=3661.0,
    healthy=True,
    problem=None,
    last_contact=Contact(at=AT, seconds_ago=1.5),
    event_stream=StreamStatus(connected=True, since=AT, seconds=90.0),
    slots=Slots(total=4, used=2),
    runs=(
        RunStatus(flow_run_id=RUN, name="odd-[red]fox", since=AT, seconds=5, start="warm", pid=9),
    ),
    gpus=(
        GpuStatus(gpu="0", flow_run_id=RUN),
        GpuStatus(gpu="1", problem="process 12 of somebody else uses it"),
    ),
    warm_environments=(
        WarmStatus(
            environment="abc",
            requirements="requirements.txt (3 lines)",
            state="ready",
            since=AT,
            age_seconds=30,
            memory_bytes=81_000_000,
            modules=("pandas", "pandas.core"),
            kept_out=(ModuleKeptOut(name="torch", reason="starts a thread"),),
            runs=11,
        ),
        WarmStatus(environment="def", requirements="none", state="off", reason="it hangs"),
    ),
    caches=(
        CacheStatus.of("environments", 2, 3_400_000_000, limit_bytes=10**10, uses=CacheUses(3, 1)),
        CacheStatus.of("data", 5, 600),
    ),
    outcomes=(OutcomeCount(outcome="completed", runs=6), OutcomeCount(outcome="failed", runs=1)),
    starts=(StartDurations(start="warm", durations=DURATIONS),),
    waits=DURATIONS,
)
UNWELL = STATUS.model_copy(update={"healthy": False, "problem": "has not reached its servers yet"})
AGENT = (("name", "agent-1"), ("version", "1.2.3"), ("host", "night-shift"), ("pool", "gpus"))
EXPECTED = {
    ("mlops_agent_info", *sorted((*AGENT, ("queue", "")))): 1,
    ("mlops_agent_start_time_seconds",): AT.timestamp(),
    ("mlops_agent_healthy",): 1,
    ("mlops_agent_last_contact_timestamp_seconds",): AT.timestamp(),
    ("mlops_agent_event_stream_connected",): 1,
    ("mlops_agent_slots",): 4,
    ("mlops_agent_slots_used",): 2,
    ("mlops_agent_runs_in_progress",): 1,
    ("mlops_agent_runs_total", ("outcome", "completed")): 6,
    ("mlops_agent_runs_total", ("outcome", "failed")): 1,
    ("mlops_agent_start_duration_seconds_bucket", ("le", "0.5"), ("start", "warm")): 2,
    ("mlops_agent_start_duration_seconds_bucket", ("le", "1.0"), ("start", "warm")): 3,
    ("mlops_agent_start_duration_seconds_bucket", ("le", "+Inf"), ("start", "warm")): 4,
    ("mlops_agent_start_duration_seconds_count", ("start", "warm")): 4,
    ("mlops_agent_start_duration_seconds_sum", ("start", "warm")): 7.25,
    ("mlops_agent_wait_duration_seconds_bucket", ("le", "0.5")): 2,
    ("mlops_agent_wait_duration_seconds_bucket", ("le", "1.0")): 3,
    ("mlops_agent_wait_duration_seconds_bucket", ("le", "+Inf")): 4,
    ("mlops_agent_wait_duration_seconds_count",): 4,
    ("mlops_agent_wait_duration_seconds_sum",): 7.25,
    ("mlops_agent_gpu_leased", ("gpu", "0")): 1,
    ("mlops_agent_gpu_leased", ("gpu", "1")): 0,
    ("mlops_agent_gpu_blocked", ("gpu", "0")): 0,
    ("mlops_agent_gpu_blocked", ("gpu", "1")): 1,
    ("mlops_agent_warm_environment_ready", ("environment", "abc")): 1,
    ("mlops_agent_warm_environment_ready", ("environment", "def")): 0,
    ("mlops_agent_warm_environment_start_time_seconds", ("environment", "abc")): AT.timestamp(),
    ("mlops_agent_warm_environment_memory_bytes", ("environment", "abc")): 81_000_000,
    ("mlops_agent_warm_environment_memory_bytes", ("environment", "def")): 0,
    ("mlops_agent_warm_environment_runs_total", ("environment", "abc")): 11,
    ("mlops_agent_warm_environment_runs_total", ("environment", "def")): 0,
    ("mlops_agent_cache_entries", ("cache", "environments")): 2,
    ("mlops_agent_cache_entries", ("cache", "data")): 5,
    ("mlops_agent_cache_size_bytes", ("cache", "environments")): 3_400_000_000,
    ("mlops_agent_cache_size_bytes", ("cache", "data")): 600,
    ("mlops_agent_cache_limit_bytes", ("cache", "environments")): 10**10,
    ("mlops_agent_cache_hits_total", ("cache", "environments")): 3,
    ("mlops_agent_cache_misses_total", ("cache", "environments")): 1,
}


def get(port: int, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Return the answer's code, its type and its text."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Accept": accept})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


@pytest.fixture
def port() -> Iterator[int]:
    with health_port("127.0.0.1", 0, lambda: STATUS) as port:
        yield port


@pytest.mark.parametrize(
    ("accept", "parser"),
    [("*/*", parse), ("application/openmetrics-text;version=1.0.0", parse_open)],
)
def test_metrics_are_the_status(port: int, accept: str, parser: type[object]) -> None:
    """Every number of the status is a metric, told in the format that is asked for."""
    code, content_type, text = get(port, "/metrics", accept)
    assert code == 200
    assert ("openmetrics" in content_type) == ("openmetrics" in accept)
    families = list(parser(text))  # type: ignore[call-arg, call-overload]
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("mlops_")
    }
    assert samples == EXPECTED
    assert all(family.documentation for family in families)
    assert "process_resident_memory_bytes" in text


def test_status_is_read_back(port: int) -> None:
    """The JSON is the whole model; the hit rate is in it, and unknown where nobody counts."""
    _, content_type, text = get(port, "/status")
    assert content_type == "application/json"
    assert AgentStatus.model_validate_json(text) == STATUS
    assert [cache.hit_rate for cache in STATUS.caches] == [0.75, None]


def test_health_is_a_code(port: int) -> None:
    """200 when the agent is well, 503 with the reason when it is not, 500 when it cannot tell."""
    assert get(port, "/health")[0] == 200
    assert get(port, "/nothing")[0] == 404
    with health_port("127.0.0.1", 0, lambda: UNWELL) as unwell:
        code, _, text = get(unwell, "/health")
        assert (code, text) == (503, "has not reached its servers yet\n")
        assert get(unwell, "/status")[0] == 200

    def fail() -> AgentStatus:
        raise ValueError("secret")

    with health_port("127.0.0.1", 0, fail) as failing:
        assert get(failing, "/health") == (500, "text/plain; charset=utf-8", "ValueError\n")


@pytest.mark.parametrize("bind", ["127.0.0.1", "192.0.2.1"])
def test_port_that_cannot_be_had(port: int, bind: str) -> None:
    """A port that is taken, and an address of another machine, are told by their variable."""
    name = "MLOPS_AGENT_PORT" if bind == "127.0.0.1" else "MLOPS_AGENT_BIND"
    with (
        pytest.raises(MlopsError, match=f"^{name}: .*{bind}:{port}"),
        health_port(bind, port, lambda: STATUS),
    ):
        pass


@pytest.mark.parametrize("status", [STATUS, UNWELL, None])
def test_table_tells_all_of_it(status: AgentStatus | None) -> None:
    """People read what is in the JSON; names are printed as they are."""
    problem = "does not answer: timed out" if status is None else status.problem
    report = AgentReport(
        name="agent-1", address="127.0.0.1:9", healthy=not problem, problem=problem, status=status
    )
    output = io.StringIO()
    console = Console(file=output, width=200)
    for part in render(report):
        console.print(part)
    text = " ".join(output.getvalue().split())
    assert f"agent-1 127.0.0.1:9 {problem or 'healthy'}" in text
    if status is None:
        return
    for told in (
        "pool gpus, every queue; pid 7, up 1:01:01",
        "server: answered 0:01 ago; event stream connected 1:30 ago",
        "slots: 2 of 4 taken; ended: 6 completed, 1 failed",
        f"odd-[red]fox {RUN} 0:05 warm 9",
        f"0 {RUN} 1 process 12 of somebody else uses it",
        "abc requirements.txt (3 lines) ready 0:30 81 MB 11 2 in 1 packages, without torch (starts",
        "def none off: it hangs",
        "environments 2 3.4 GB 10.0 GB 75% of 4",
    ):
        assert told in text
