"""A running server stack, asked without the code that is under test."""

from collections.abc import Mapping
from typing import Any

import boto3
import httpx
from botocore.awsrequest import AWSRequest
from botocore.config import Config


class Servers:
    """The platform's servers, as their owner sees them.

    Args:
        env: What the server's `.env` holds.
        host: Where the ports are published.
    """

    def __init__(self, env: Mapping[str, str], host: str = "127.0.0.1") -> None:
        self.env = env
        self.prefect_url = f"http://{host}:{env['PREFECT_PORT']}"
        self.mlflow_url = f"http://{host}:{env['MLFLOW_PORT']}"
        self.console_url = f"http://{host}:{env['MINIO_CONSOLE_PORT']}"
        self.s3_url = f"http://{host}:{env['S3_PORT']}"
        self.prefect = httpx.Client(
            base_url=f"{self.prefect_url}/api",
            auth=(env["PREFECT_USERNAME"], env["PREFECT_PASSWORD"]),
            timeout=30,
            trust_env=False,
        )
        self.mlflow = httpx.Client(
            base_url=f"{self.mlflow_url}/api/2.0/mlflow",
            auth=(env["MLFLOW_ADMIN_USERNAME"], env["MLFLOW_ADMIN_PASSWORD"]),
            timeout=30,
            trust_env=False,
        )
        self.s3 = self.s3_as("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")

    def s3_as(self, key_name: str, secret_name: str) -> Any:
        """Return an S3 client with the identity that two names of `.env` hold."""
        return boto3.client(
            "s3",
            endpoint_url=self.s3_url,
            aws_access_key_id=self.env[key_name],
            aws_secret_access_key=self.env[secret_name],
            region_name="us-east-1",
            config=Config(
                s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 2}
            ),
        )

    def deployment(self, name: str) -> dict[str, Any] | None:
        """Return the deployment `flow/deployment`, or None."""
        response = self.prefect.get(f"/deployments/name/{name}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def start_run(self, deployment: str) -> str:
        """Ask for a run of a deployment now, as the UI's button does, and return its id."""
        found = self.deployment(deployment)
        assert found, deployment
        response = self.prefect.post(
            f"/deployments/{found['id']}/create_flow_run", json={"state": {"type": "SCHEDULED"}}
        )
        response.raise_for_status()
        run_id: str = response.json()["id"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a flow run."""
        found: dict[str, Any] = self.prefect.get(f"/flow_runs/{run_id}").json()
        return found

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return a deployment's runs, the newest first."""
        found = self.deployment(deployment)
        assert found, deployment
        query = {
            "deployments": {"id": {"any_": [found["id"]]}},
            "sort": "EXPECTED_START_TIME_DESC",
        }
        response = self.prefect.post("/flow_runs/filter", json=query)
        response.raise_for_status()
        runs: list[dict[str, Any]] = response.json()
        return runs

    def log(self, run_id: str) -> str:
        """Return a run's whole Prefect log."""
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(
            line["message"] for line in self.prefect.post("/logs/filter", json=query).json()
        )

    def mlflow_runs(self, experiment: str) -> list[dict[str, Any]]:
        """Return an experiment's runs."""
        found = self.mlflow.get("/experiments/get-by-name", params={"experiment_name": experiment})
        if found.status_code == httpx.codes.NOT_FOUND:
            return []
        number = found.json()["experiment"]["experiment_id"]
        response = self.mlflow.post("/runs/search", json={"experiment_ids": [number]})
        response.raise_for_status()
        runs: list[dict[str, Any]] = response.json().get("runs", [])
        return runs

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys below a prefix."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def put_long_ago(self, bucket: str, key: str, body: bytes) -> None:
        """Write an object that has been there for years."""

        def long_ago(request: AWSRequest, **_: object) -> None:
            # MinIO takes it from its root, as from another site that it is a copy of.
            request.headers["X-Minio-Source-Mtime"] = "2020-01-01T00:00:00Z"

        events = self.s3.meta.events
        events.register("before-sign.s3.PutObject", long_ago)
        self.s3.put_object(Bucket=bucket, Key=key, Body=body)
        events.unregister("before-sign.s3.PutObject", long_ago)
