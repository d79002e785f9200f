"""What a flow run is told about itself, and by which marks others find what belongs to it.

The same facts in three places: labels of the flow run in Prefect, tags of its MLflow runs, and
the environment of its process.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from mlops import lineage
from mlops.agent.attempts import Attempt
from mlops.agent.environments import Environment
from mlops.agent.gpu_leases import GPUS_VARIABLE, GpuLease
from mlops.agent.run_processes import ATTEMPT_VARIABLE
from mlops.bundles import pulled_bundle
from mlops.settings import AgentSettings

MLFLOW_CONTEXT_VARIABLE = "MLFLOW_RUN_CONTEXT"  # MLflow's own
# For `mlops.data`, which works in the flow's process and needs more than that has.
DATA_PYTHON_VARIABLE = "MLOPS_DATA_PYTHON"
DATA_CACHE_VARIABLE = "MLOPS_DATA_CACHE_DIR"
# The agent's own, which would mislead a run in another environment; without bytecode
# every run would compile what it imports anew, which doubles its start.
_PRIVATE_VARIABLES = (
    "MLOPS_CACHE_DIR",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)

_TAG_CHARACTERS = 4000  # MLflow refused longer tags until 2023, and longer than 5000 since


@dataclass(frozen=True)
class BundleSource:
    """Where in S3 the code of a deployment of ours lies."""

    bucket: str
    prefix: str

    @property
    def content_hash(self) -> str:
        """The hash that names the bundle."""
        return self.prefix.rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The bundle's address, for people."""
        return f"s3://{self.bucket}/{self.prefix}/"

    @classmethod
    def of(cls, deployment: DeploymentResponse) -> "BundleSource | None":
        """Return the source of a deployment that we registered, else None."""
        pulled = pulled_bundle(deployment.pull_steps)
        return cls(*pulled) if pulled and deployment.entrypoint else None


@dataclass(frozen=True)
class RunContext:
    """One attempt at one flow run.

    Args:
        attempt: The attempt.
        flow_run: The run in Prefect.
        deployment: What it is a run of, if anything.
        source: Its code, if we registered it.
        host: This machine's name.
        gpus: Those that it has to itself.
        packages: Its environment, once that is there; None also where the worker's own is used.
        memory_bytes: The most that it may use; None: no limit.
    """

    attempt: Attempt
    flow_run: FlowRun
    deployment: DeploymentResponse | None
    source: BundleSource | None
    host: str
    gpus: GpuLease
    packages: Environment | None = None
    memory_bytes: int | None = None

    @property
    def labels(self) -> lineage.Labels:
        """The labels of the flow run in Prefect."""
        labels: lineage.Labels = {
            lineage.ATTEMPT: self.attempt.name,
            lineage.AGENT_HOST: self.host,
            lineage.GPU: str(self.gpus),
            lineage.FLOW_RUN: str(self.flow_run.id),
            lineage.FLOW_RUN_NAME: self.flow_run.name,
            lineage.PARAMETERS: _shortened(json.dumps(self.flow_run.parameters, default=str)),
        }
        if self.deployment:
            labels[lineage.DEPLOYMENT] = self.deployment.name
        if self.source and self.deployment:
            labels |= {
                lineage.CODE_HASH: self.source.content_hash,
                lineage.CODE_URI: self.source.uri,
                lineage.ENTRYPOINT: str(self.deployment.entrypoint),
            }
            if commit := lineage.commit_of(self.flow_run.deployment_version):
                labels[lineage.GIT_COMMIT] = commit
        if self.packages:
            labels |= {
                lineage.PYTHON: self.packages.python_version,
                lineage.REQUIREMENTS_HASH: self.packages.requirements_hash,
                lineage.PACKAGES_HASH: self.packages.packages_hash,
            }
        return labels

    def environment(
        self, settings: AgentSettings, *, given: Mapping[str, str | None]
    ) -> dict[str, str]:
        """Return the variables of the run's process that carry the marks, and its GPUs.

        Args:
            settings: Know the address of the run's page and the host's caches.
            given: What the process finds set anyway. A context for MLflow, and GPUs, that the
                deployment or the run sets itself are kept.
        """
        environment = {
            ATTEMPT_VARIABLE: self.attempt.name,
            DATA_PYTHON_VARIABLE: sys.executable,
            DATA_CACHE_VARIABLE: str(settings.mlops_cache_dir / "data"),
        }
        if not _is_chosen(given, GPUS_VARIABLE):
            environment |= self.gpus.environment
        if _is_chosen(given, MLFLOW_CONTEXT_VARIABLE):
            return environment
        tags = {name: str(value) for name, value in self.labels.items()}
        tags[lineage.FLOW_RUN_URL] = settings.run_url(self.flow_run.id)
        return environment | {MLFLOW_CONTEXT_VARIABLE: json.dumps(tags)}

    def entrypoint(self, folder: Path) -> str:
        """Return the flow's file below a folder, with `:function`."""
        return str(folder / str(self.deployment.entrypoint if self.deployment else ""))


def _shortened(text: str) -> str:
    return text if len(text) <= _TAG_CHARACTERS else f"{text[: _TAG_CHARACTERS - 1]}…"


def _is_chosen(given: Mapping[str, str | None], name: str) -> bool:
    """Return whether a variable is somebody's choice for the run, and not the agent's own."""
    return given.get(name) not in {None, os.environ.get(name)}


def own_environment(environment: Environment) -> dict[str, str | None]:
    """Return what a run in an environment of its own finds set, besides the agent's variables.

    Args:
        environment: Its packages.
    """
    hidden: dict[str, str | None] = dict.fromkeys(_PRIVATE_VARIABLES)
    return hidden | {
        "PATH": f"{environment.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(environment.folder),
        "PYTHONUNBUFFERED": "1",
    }
