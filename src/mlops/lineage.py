"""By which labels and tags it is known where a run comes from: in Prefect, in MLflow, to ourselves.

The agent puts the same facts on the flow run, as labels, and on its MLflow runs, as tags. What a
run cannot have, such as the commit of code that lies in no repository, it has no label for.
"""

import re

PREFIX = "mlops."
FLOW_RUN = "mlops.prefect_flow_run_id"
FLOW_RUN_NAME = "mlops.prefect_flow_run_name"
FLOW_RUN_URL = "mlops.prefect_flow_run_url"
DEPLOYMENT = "mlops.prefect_deployment"
PARAMETERS = "mlops.parameters"  # JSON
# Of one pick-up by an agent: a retry is told from the attempt before it.
ATTEMPT = "mlops.attempt"
# How often a run's agent was lost before the flow began.
LOST_STARTS = "mlops.lost_starts"
WORKER = "prefect.worker.name"  # set by every worker of Prefect's
WORKER_TYPE = "prefect.worker.type"
WORK_POOL = "prefect.work-pool.name"
AGENT_HOST = "mlops.agent_host"
GPU = "mlops.gpu"
CODE_HASH = "mlops.code_hash"
CODE_URI = "mlops.code_uri"
ENTRYPOINT = "mlops.entrypoint"
GIT_COMMIT = "mlops.git_commit"
PYTHON = "mlops.python"
REQUIREMENTS_HASH = "mlops.requirements_hash"  # of what the flow asks for
PACKAGES_HASH = "mlops.packages_hash"  # of what is installed
DATA = "mlops.data."  # and the first digits of its hash; the value is the data's reference
# Of the run that this one does once more.
REPRODUCES = "mlops.reproduces"

Labels = dict[str, bool | int | float | str]  # as Prefect's client wants them

HASH_DIGITS = 12
_VERSION = re.compile(r"(?P<hash>[0-9a-f]{12})(?: git (?P<commit>[0-9a-f]{40}(?:-dirty)?))?")


def version_text(content_hash: str, commit: str | None) -> str:
    """Return the version of a deployment, which each of its runs carries on.

    Args:
        content_hash: The code's.
        commit: The git commit that has this code; `-dirty` at its end: with changes.
    """
    return content_hash[:HASH_DIGITS] + (f" git {commit}" if commit else "")


def commit_of(version: str | None) -> str | None:
    """Return the git commit that a deployment's version names, if it does."""
    match = _VERSION.fullmatch(version or "")
    return match["commit"] if match else None


def hash_of(version: str | None) -> str:
    """Return the first digits of the code's hash from a deployment's version; empty: none."""
    match = _VERSION.fullmatch(version or "")
    return match["hash"] if match else ""
