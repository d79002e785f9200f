"""Flow folders for tests, and clients that ask the servers themselves."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import boto3
import httpx
from botocore.config import Config
from embedded.conftest import Platform

Answer = TypeVar("Answer")
FLOW_YAML = """\
deployment:
  flow_py_name: flow.py
  flow_name: main
  deploy_name: {name}
  pool_name: {pool}
  queue_name: ml
{more}
"""


def write_flow(
    folder: Path,
    body: str,
    *,
    more: str = "",
    pool: str = "default-agent-pool",
    signature: str = "",
    files: dict[str, str] | None = None,
) -> Path:
    """Make a flow folder whose flow and deployment are named after it.

    Args:
        folder: The folder; made when missing.
        body: The function's body, one line.
        more: Further keys of flow.yaml.
        pool: The work pool.
        signature: The function's parameters.
        files: Further files by path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flow.yaml").write_text(FLOW_YAML.format(name=folder.name, pool=pool, more=more))
    (folder / "flow.py").write_text(
        "from prefect import flow\n\n\n"
        f'@flow(name="{folder.name}", log_prints=True)\ndef main({signature}):\n    {body}\n'
    )
    for path, text in (files or {}).items():
        (folder / path).write_text(text)
    return folder


class Servers:
    """The platform's servers, asked without the code that is under test."""

    def __init__(self, platform: Platform) -> None:
        credentials = platform.credentials
        self.prefect = httpx.Client(
            base_url=f"{platform.addresses.prefect}/api",
            auth=(credentials.prefect_username, credentials.prefect_password),
            timeout=30,
        )
        self.mlflow = httpx.Client(
            base_url=f"{platform.addresses.mlflow}/api/2.0/mlflow",
            auth=(credentials.mlflow_admin_username, credentials.mlflow_admin_password),
            timeout=30,
        )
        self.s3 = boto3.client(
            "s3",
            endpoint_url=platform.addresses.s3,
            aws_access_key_id=credentials.minio_root_user,
            aws_secret_access_key=credentials.minio_root_password,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def deployment(self, name: str) -> dict[str, Any]:
        """Return the deployment `name/name`."""
        response = self.prefect.get(f"/deployments/name/{quote(name)}/{quote(name)}")
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def flow_runs(self, deployment_id: str, **states: list[str]) -> list[dict[str, Any]]:
        """Return a deployment's runs, the earliest first, of the given state types or all."""
        query: dict[str, Any] = {
            "deployments": {"id": {"any_": [deployment_id]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        if states:
            query["flow_runs"] = {"state": {"type": {"any_": states["types"]}}}
        response = self.prefect.post("/flow_runs/filter", json=query)
        response.raise_for_status()
        found: list[dict[str, Any]] = response.json()
        return found

    def log(self, flow_run_id: str) -> str:
        """Return a run's whole Prefect log."""
        query = {
            "logs": {"flow_run_id": {"any_": [flow_run_id]}},
            "sort": "TIMESTAMP_ASC",
        }
        response = self.prefect.post("/logs/filter", json=query)
        response.raise_for_status()
        return "\n".join(line["message"] for line in response.json())

    def mlflow_runs(self, experiment: str, flow_run_id: str) -> list[dict[str, Any]]:
        """Return a flow run's MLflow runs in an experiment."""
        found = self.mlflow.get(
            "/experiments/get-by-name", params={"experiment_name": experiment}
        ).json()
        query = {
            "experiment_ids": [found["experiment"]["experiment_id"]],
            "filter": f"tags.`mlops.prefect_flow_run_id` = '{flow_run_id}'",
        }
        runs: list[dict[str, Any]] = self.mlflow.post("/runs/search", json=query).json()["runs"]
        return runs

    def objects(self, bucket: str, prefix: str) -> dict[str, Any]:
        """Return when each object under a prefix was last written, by key."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {o["Key"]: o["LastModified"] for page in pages for o in page.get("Contents", [])}

    def read(self, bucket: str, key: str) -> bytes:
        """Return an object's bytes."""
        body: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body


def wait_for(
    probe: Callable[[], Answer], limit_seconds: float, *, longest_pause_seconds: float = 1
) -> Answer:
    """Return the probe's first truthy answer, asked ever more rarely: answers take time too."""
    deadline = time.monotonic() + limit_seconds
    pause_seconds = 0.05
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"not within {limit_seconds} s"
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.2, longest_pause_seconds)
    return answer
