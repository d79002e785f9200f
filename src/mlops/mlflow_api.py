"""The MLflow server as our own commands see it: runs, over its REST API.

MLflow's own client takes seconds to import, which a command line should not.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from mlops.errors import CredentialsError, MlopsError
from mlops.settings import MlflowSettings

TIMEOUT_SECONDS = 30.0
PAGE = 1000


class NotFoundError(MlopsError):
    """The server has no such thing, or not for us."""


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


class RegisteredModel(BaseModel):
    """A version of a model in MLflow's registry; `url` is its page."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    url: str


class LoggedRun(BaseModel):
    """An MLflow run. Times are in milliseconds, by its client's clock.

    Attributes:
        run_id: Its id.
        name: As people call it.
        experiment_id: Its experiment.
        url: Its page.
        status: How far it has come.
        start_time: When it began.
        end_time: When it was ended, if it was.
        metrics: The last value of each.
        tags: MLflow's own among them.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    name: str
    experiment_id: str
    url: str
    status: str
    start_time: int = 0
    end_time: int | None = None
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}

    @property
    def parent_id(self) -> str | None:
        """The run that this one lies below, if any."""
        return self.tags.get("mlflow.parentRunId")

    @property
    def is_open(self) -> bool:
        """Whether nobody has ended it."""
        return self.status in {"RUNNING", "SCHEDULED"}

    def ended_after(self, moment_ms: float | None) -> bool:
        """Return whether it was ended after a moment, if both are known."""
        return moment_ms is not None and self.end_time is not None and self.end_time > moment_ms


class MlflowApi:
    """Runs of one MLflow server.

    Args:
        settings: Address and identity.
        timeout_seconds: For one answer.
    """

    def __init__(
        self, settings: MlflowSettings, *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._settings = settings
        self._url = settings.mlflow_tracking_uri
        name, password = settings.mlflow_tracking_username, settings.mlflow_tracking_password
        self._http = httpx.Client(
            base_url=f"{self._url}/api/2.0/mlflow",
            auth=(name, password.get_secret_value()) if name and password else None,
            timeout=timeout_seconds,
        )

    def check(self) -> None:
        """Ask for an experiment, the one that is always there.

        Raises:
            CredentialsError: The server refuses us.
            MlopsError: It does not answer as it should.
        """
        self._call("GET", "/experiments/get", params={"experiment_id": "0"})

    def find_run(self, tag: str, value: str) -> TrackedRun | None:
        """Return the newest top-level run that carries a tag, or None.

        Args:
            tag: Name of the tag.
            value: Its value, without quotes in it.
        """
        newest_first = self._search_runs(tag, value)
        top = (run for run in newest_first if not _tag(run, "mlflow.parentRunId"))
        return next((self._tracked(run) for run in top), None)

    def logged_runs(self, tag: str, value: str) -> list[LoggedRun]:
        """Return every run that carries a tag, also those below other runs.

        Args:
            tag: Name of the tag.
            value: Its value, without quotes in it.
        """
        return [self._logged(run) for run in self._search_runs(tag, value)]

    def read_run(self, run_id: str) -> LoggedRun | None:
        """Return a run, or None if there is no such run.

        Args:
            run_id: 32 hexadecimal digits.
        """
        try:
            answer = self._call("GET", "/runs/get", params={"run_id": run_id})
        except NotFoundError:
            return None
        return self._logged(answer["run"])

    def models(self, run_id: str) -> list[RegisteredModel]:
        """Return the versions of registered models that came out of a run, the newest first.

        Args:
            run_id: 32 hexadecimal digits.
        """
        parameters = {"filter": f"run_id = '{run_id}'", "order_by": "version_number DESC"}
        answer = self._call("GET", "/model-versions/search", params=parameters)
        return [
            RegisteredModel(
                name=found["name"],
                version=str(found["version"]),
                url=self._settings.mlflow_model_url(found["name"], str(found["version"])),
            )
            for found in answer.get("model_versions", [])
        ]

    def set_tags(self, run: LoggedRun, tags: Mapping[str, str]) -> None:
        """Put tags on a run, in one request.

        Args:
            run: The run.
            tags: Values by names; at most 100.
        """
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        self._call("POST", "/runs/log-batch", json={"run_id": run.run_id, "tags": pairs})

    def end_run(self, run: LoggedRun, status: str) -> None:
        """Give a run its last status, and an end unless it has ended before.

        Args:
            run: The run.
            status: `FINISHED`, `FAILED` or `KILLED`.
        """
        now = time.time_ns() // 1_000_000
        # One that was opened again still has the end that it had before.
        end_time = now if run.is_open else run.end_time or now
        update = {"run_id": run.run_id, "status": status, "end_time": end_time}
        self._call("POST", "/runs/update", json=update)

    def _search_runs(self, tag: str, value: str) -> Iterator[dict[str, Any]]:
        """Yield the runs that carry a tag, the newest first."""
        experiments = list(self._pages("/experiments/search", "experiments", {}))
        query = {
            "experiment_ids": [experiment["experiment_id"] for experiment in experiments],
            "filter": f"tags.`{tag}` = '{value}'",
            "order_by": ["attributes.start_time DESC"],
        }
        return self._pages("/runs/search", "runs", query)

    def _pages(self, path: str, name: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield what a search finds, page by page."""
        token = ""
        while True:
            page = {"max_results": PAGE} | ({"page_token": token} if token else {})
            answer = self._call("POST", path, json=query | page)
            yield from answer.get(name, [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _tracked(self, run: dict[str, Any]) -> TrackedRun:
        logged = self._logged(run)
        model = next(iter(self.models(logged.run_id)), None)
        return TrackedRun(
            run_id=logged.run_id,
            status=logged.status,
            url=logged.url,
            artifact_uri=run["info"]["artifact_uri"],
            metrics=logged.metrics,
            model=f"{model.name}/{model.version}" if model else None,
            model_url=model.url if model else None,
        )

    def _logged(self, run: dict[str, Any]) -> LoggedRun:
        info, data = run["info"], run["data"]
        return LoggedRun(
            run_id=info["run_id"],
            name=info.get("run_name") or info["run_id"],
            experiment_id=info["experiment_id"],
            url=self._settings.mlflow_run_url(info["experiment_id"], info["run_id"]),
            status=info["status"],
            start_time=info.get("start_time") or 0,
            end_time=info.get("end_time"),
            metrics={metric["key"]: metric["value"] for metric in data.get("metrics", [])},
            tags={tag["key"]: tag["value"] for tag in data.get("tags", [])},
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
            raise CredentialsError(
                f"{self._url}: the MLflow server refused these credentials",
                hint="check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
                "with Compose, MLFLOW_<ROLE>_PASSWORD in .env",
            )
        # The login refuses whoever asks for a run that does not exist.
        if response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN}:
            raise NotFoundError(f"{self._url}: {method} {path}: {response.text[:500]}")
        if response.is_error:
            raise MlopsError(f"{self._url}: {method} {path}: {response.text[:500]}")
        try:
            body: dict[str, Any] = response.json()
        except ValueError as error:
            raise MlopsError(
                f"{self._url}: {method} {path}: is no answer of MLflow: {response.text[:100]!r}",
                hint="check MLFLOW_TRACKING_URI",
            ) from error
        return body


def _tag(run: dict[str, Any], name: str) -> str | None:
    tags = run["data"].get("tags", [])
    return next((tag["value"] for tag in tags if tag["key"] == name), None)
