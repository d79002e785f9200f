"""What a flow's process writes down for the agent when it ends by itself.

The other side of it is `flow_process.report`.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

REPORT_FILE = "report.json"  # beside a run's folder


class RunReport(BaseModel):
    """The report of one run.

    Args:
        modules: What the process had imported of its environment, in that order.
        may_have_logged: Whether it, or a process that it has started, may have spoken to MLflow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: tuple[str, ...] = ()
    may_have_logged: bool = True

    @classmethod
    def read(cls, file: Path) -> "RunReport":
        """Read a report; of a process that was killed nothing is known."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return cls()
