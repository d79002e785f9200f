import pytest

from mlops import lineage
from mlops.agent import mlflow_context
from mlops.agent.run_context import MLFLOW_CONTEXT_VARIABLE


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"mlops.attempt": "a", "mlops.agent_host": "h"}', True),
        ('{"team": "vision"}', False),
        ('["mlops.attempt"]', False),
        ("team=vision", False),
        (None, False),
    ],
)
def test_context_of_another_is_left_to_mlflow(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    """Only the agent's own run context is extended, whatever a user has set in its place."""
    monkeypatch.delenv(MLFLOW_CONTEXT_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(MLFLOW_CONTEXT_VARIABLE, value)
    assert bool(mlflow_context.read_context()) == expected


def test_mark_is_the_agents() -> None:
    """The script, which can import nothing of ours, knows the attempt's tag by its name."""
    assert mlflow_context.ATTEMPT_TAG == lineage.ATTEMPT
