"""The MLflow server as our own commands see it: a few reads over its REST API.

MLflow's own client takes seconds to import, which a command line should not.
"""

from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError
from mlops.settings import MlflowSettings

TIMEOUT_SECONDS = 30.0
# Set by the agent on every MLflow run of a flow run.
FLOW_RUN_TAG = "mlops.prefect_flow_run_id"


class TrackedRun(BaseModel):
    """An MLflow run, with the newest version of the model that came out of it."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    status: str
    url: str
    artifact_uri: str
    metrics: dict[str, float]
    model: str | None = None  # name/version
    model_url: str | None = None


class MlflowApi:
    """Reads from one MLflow server.

    Args:
        settings: Address and identity.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._url = settings.mlflow_tracking_uri
        name, password = settings.mlflow_tracking_username, settings.mlflow_tracking_password
        self._http = httpx.Client(
            base_url=f"{self._url}/api/2.0/mlflow",
            auth=(name, password.get_secret_value()) if name and password else None,
            timeout=TIMEOUT_SECONDS,
        )

    def find_run(self, tag: str, value: str) -> TrackedRun | None:
        """Return the newest top-level run that carries a tag, or None.

        Args:
            tag: Name of the tag.
            value: Its value, without quotes in it.
        """
        experiments = self._call("POST", "/experiments/search", json={"max_results": 1000})
        ids = [experiment["experiment_id"] for experiment in experiments.get("experiments", [])]
        query = {
            "experiment_ids": ids,
            "filter": f"tags.`{tag}` = '{value}'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 100,
        }
        runs = self._call("POST", "/runs/search", json=query).get("runs", [])
        top = [run for run in runs if not _tag(run, "mlflow.parentRunId")]
        return self._tracked(top[0]) if top else None

    def _tracked(self, run: dict[str, Any]) -> TrackedRun:
        info = run["info"]
        run_id = info["run_id"]
        parameters = {"filter": f"run_id = '{run_id}'", "order_by": "version_number DESC"}
        versions = self._call("GET", "/model-versions/search", params=parameters)
        model = next(iter(versions.get("model_versions", [])), None)
        return TrackedRun(
            run_id=run_id,
            status=info["status"],
            url=f"{self._url}/#/experiments/{info['experiment_id']}/runs/{run_id}",
            artifact_uri=info["artifact_uri"],
            metrics={m["key"]: m["value"] for m in run["data"].get("metrics", [])},
            model=f"{model['name']}/{model['version']}" if model else None,
            model_url=(
                f"{self._url}/#/models/{model['name']}/versions/{model['version']}"
                if model
                else None
            ),
        )

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise MlopsError(
                f"{self._url}: the MLflow server does not answer "
                f"({str(error) or type(error).__name__})",
                hint="is it up? `./mlops local status` on a checkout; "
                "else check MLFLOW_TRACKING_URI",
            ) from error
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise MlopsError(
                f"{self._url}: the MLflow server refused these credentials",
                hint="check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        if response.is_error:
            raise MlopsError(f"{self._url}: {method} {path}: {response.text[:500]}")
        body: dict[str, Any] = response.json()
        return body


def _tag(run: dict[str, Any], name: str) -> str | None:
    tags = run["data"].get("tags", [])
    return next((tag["value"] for tag in tags if tag["key"] == name), None)
