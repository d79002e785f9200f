"""One settings class per role; the environment is read here and nowhere else."""

import json
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mlops.errors import MlopsError


class RoleSettings(BaseSettings):
    """What a role is told through its environment; see `from_environment`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """Read the settings.

        Args:
            **overrides: Field values that win over the environment (command-line options).

        Raises:
            MlopsError: Variables are missing or wrong; all of them are named at once.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            problems = error.errors()
            lines = [f"{str(each['loc'][0]).upper()}: {_explain(each)}" for each in problems]
            hint = ""
            if any(_is_missing(each) for each in problems):
                hint = (
                    "with Compose, `./mlops init` completes .env; without, start the platform here "
                    "with `./mlops local up`, or set these variables"
                )
            raise MlopsError("\n  ".join(["wrong environment:", *lines]), hint=hint) from None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_missing(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Compose hands on as empty what its `.env` lacks."""
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {n: value for n, value in values.items() if value != "" or n not in required}


def _is_missing(problem: Any) -> bool:
    return bool(problem["type"] == "missing" or problem["input"] == "")


def _explain(problem: Any) -> str:
    if _is_missing(problem):
        return "not set"
    return str(problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"])


def _check_address(address: str) -> str:
    """Refuse what is no address of a server, before a library makes something odd of it."""
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("not an address; allowed: http://<host>:<port> (with Compose: SERVER_IP)")
    if parts.username or parts.password:
        raise ValueError("holds credentials; they have variables of their own")
    return address


Address = Annotated[str, AfterValidator(_check_address)]


class CheckoutSettings(RoleSettings):
    """The checkout whose `./mlops` was called; images have none."""

    mlops_checkout: Path | None = None
    # A folder for the tests' reports, logs and pictures.
    mlops_test_output: Path | None = None

    def require(self) -> Path:
        """Return the checkout's folder.

        Raises:
            MlopsError: There is none.
        """
        if self.mlops_checkout is None:
            raise MlopsError("this works in a checkout only", hint="use ./mlops of a clone")
        return self.mlops_checkout


class S3Settings(RoleSettings):
    """The object store as one role sees it."""

    aws_endpoint_url_s3: Address
    aws_access_key_id: str
    aws_secret_access_key: SecretStr
    prefect_bucket_name: str = "prefect"


class PrefectSettings(RoleSettings):
    """The Prefect server as a client sees it."""

    prefect_api_url: Address
    prefect_api_auth_string: SecretStr | None = None
    # Where people find the UI, when containers know the server by another name.
    prefect_ui_url: Address | None = None

    @field_validator("prefect_api_auth_string")
    @classmethod
    def _with_password(cls, value: SecretStr | None) -> SecretStr | None:
        if value and value.get_secret_value().endswith(":"):
            raise ValueError("no password; allowed: user:password (with Compose: PREFECT_PASSWORD)")
        return value

    @property
    def ui_url(self) -> str:
        """Address of the Prefect UI."""
        return self.prefect_ui_url or self.prefect_api_url.removesuffix("/api")

    def run_url(self, flow_run_id: UUID) -> str:
        """Return a flow run's page; without /v2 it would be the old UI's, which cannot log in."""
        return f"{self.ui_url}/v2/runs/flow-run/{flow_run_id}"


class MlflowSettings(RoleSettings):
    """The MLflow server as a client sees it."""

    mlflow_tracking_uri: Address
    mlflow_tracking_username: str | None = None
    mlflow_tracking_password: SecretStr | None = None
    # Where people find the UI, when containers know the server by another name.
    mlflow_ui_url: Address | None = None

    @field_validator("mlflow_ui_url", mode="before")
    @classmethod
    def _no_page(cls, value: object) -> object:
        return value or None

    def mlflow_run_url(self, experiment_id: str, run_id: str) -> str:
        """Return a run's page."""
        return f"{self._pages}/experiments/{experiment_id}/runs/{run_id}"

    def mlflow_model_url(self, name: str, version: str) -> str:
        """Return the page of a registered model's version."""
        return f"{self._pages}/models/{name}/versions/{version}"

    @property
    def _pages(self) -> str:
        return f"{(self.mlflow_ui_url or self.mlflow_tracking_uri).rstrip('/')}/#"


class RunsSettings(PrefectSettings, MlflowSettings):
    """Where runs are looked at."""


class FlowDirSettings(RoleSettings):
    """Where the flow folders lie."""

    flow_dir: Path = Path("flows")


class ProjectSettings(RoleSettings):
    """Where the data of experiment projects goes."""

    dvc_bucket_name: str = "dvc"


class HeartbeatSettings(RoleSettings):
    """Which file tells Docker that a process is well; see `mlops.heartbeat`."""

    mlops_heartbeat_file: Path | None = None


class SchedulerSettings(S3Settings, PrefectSettings, FlowDirSettings, HeartbeatSettings):
    """The scheduler: reads flow folders, writes code to S3 and deployments to Prefect."""

    # This machine; tells the flow folders of one scheduler from another's at the same path.
    mlops_host_name: Annotated[str, Field(pattern=r"^[^:/\s]+$")] = Field(
        default_factory=socket.gethostname
    )


class AgentCacheSettings(RoleSettings):
    """Where an agent keeps its caches, and is found by those who ask for it."""

    mlops_cache_dir: Path = Path("~/.cache/mlops")

    @field_validator("mlops_cache_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()


class AgentSettings(
    S3Settings, PrefectSettings, MlflowSettings, HeartbeatSettings, AgentCacheSettings
):
    """The agent: where it takes runs from, what it may use and where it keeps its caches."""

    # This machine, for people: in a container the system's own name means nothing to them.
    mlops_host_name: Annotated[str, Field(min_length=1)] = Field(default_factory=socket.gethostname)
    pool_name: str = "default-agent-pool"
    queue_name: str | None = None  # empty: every queue of the pool
    # What runs are given: these, as a JSON list of strings; empty: none; `all`: what is there.
    gpu_ids: Annotated[tuple[str, ...] | Literal["all"], NoDecode] = "all"
    mlops_slots: int | None = Field(default=None, gt=0)  # runs at a time; empty: GPUs, or cores
    mlops_prebuilt_dir: Path | None = None  # environments that the agent's image brings along
    mlops_environment_cache_bytes: int = Field(default=50 * 10**9, gt=0)
    mlops_code_cache_bytes: int = Field(default=5 * 10**9, gt=0)
    # Processes that runs are forked from: how many environments have one, and how much of its
    # memory importing ahead may take up.
    mlops_warm_environments: int = Field(default=4, ge=0)
    mlops_warm_bytes: int = Field(default=2 * 10**9, gt=0)
    torch_backend: str | None = None  # uv's --torch-backend; empty: the default index
    mlops_python_downloads: bool = False  # may uv fetch interpreters by itself?
    # Where its health, status and metrics are asked for; port 0: any that is free.
    mlops_agent_bind: str = Field(default="127.0.0.1", min_length=1)
    mlops_agent_port: int = Field(default=0, ge=0, lt=65536)
    # How long a stopped agent lets its runs go on. Whoever stops it must wait for 20 s more
    # (Docker's stop_grace_period, the supervisor's stopwaitsecs).
    mlops_stop_seconds: float = Field(default=40.0, ge=0)

    @field_validator("queue_name", "mlops_slots", "torch_backend", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("gpu_ids", mode="before")
    @classmethod
    def _parse_gpu_ids(cls, value: object) -> object:
        if not isinstance(value, str) or value == "all":
            return value
        try:
            ids = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            ids = None
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise ValueError("""a JSON list of strings, as in ["0","1"], or: all""")
        return tuple(ids)


class DataSettings(S3Settings):
    """Data on this host: where from, and the cache that all runs share."""

    mlops_data_cache_dir: Path | None = None
    mlops_cache_dir: Path = Path("~/.cache/mlops")
    # Of the cache: beyond it goes what was not used for longest, unless a pull needs it.
    mlops_data_cache_bytes: int = Field(default=100 * 10**9, gt=0)
    # Prefect's own: the flow run that this process belongs to.
    prefect__flow_run_id: UUID | None = None

    @field_validator("mlops_data_cache_dir", "prefect__flow_run_id", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @property
    def cache_dir(self) -> Path:
        """Folder of the cache."""
        folder = self.mlops_data_cache_dir or self.mlops_cache_dir / "data"
        return folder.expanduser().absolute()


class ListenSettings(RoleSettings):
    """Where a server of ours listens, and under which names clients reach it."""

    listen_host: str = "127.0.0.1"
    listen_port: int = Field(gt=0, lt=65536)
    # Host names and addresses that the stack answers to, separated by commas.
    mlops_addresses: Annotated[tuple[str, ...], NoDecode] = ("localhost", "127.0.0.1")
    mlops_runtime_dir: Path  # files that a server needs at run time; private and writable

    @field_validator("mlops_addresses", mode="before")
    @classmethod
    def _split_addresses(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())


class DatabaseSettings(RoleSettings):
    """The PostgreSQL server."""

    postgres_host: str = "127.0.0.1"
    postgres_port: int = Field(default=5432, gt=0, lt=65536)


class PrefectServerSettings(ListenSettings, DatabaseSettings):
    """The Prefect server itself."""

    prefect_db_password: SecretStr
    prefect_username: str = "admin"
    prefect_password: SecretStr
    prefect_retention_days: int = Field(default=90, gt=0)  # of finished flow runs
    pool_name: str = "default-agent-pool"


class LostAgentsSettings(RoleSettings):
    """How the Prefect server looks for agents that are gone for good."""

    mlops_watch_seconds: float = Field(default=15.0, gt=0)  # between two looks
    # What a run whose agent is gone is given to say that it lives; it does so every 30 s.
    mlops_run_silence_seconds: float = Field(default=90.0, gt=0)


class MlflowServerSettings(ListenSettings, DatabaseSettings):
    """The MLflow tracking server itself; its keys for S3 are in the AWS variables."""

    mlflow_db_password: SecretStr
    mlflow_admin_username: str = "admin"
    mlflow_admin_password: SecretStr
    mlflow_agent_password: SecretStr
    mlflow_experimenter_password: SecretStr
    mlflow_flask_server_secret_key: SecretStr
    aws_endpoint_url_s3: Address
    aws_access_key_id: str
    aws_secret_access_key: SecretStr


class SetupSettings(DatabaseSettings):
    """The set-up of databases and buckets, which needs the keys of both servers' owners."""

    postgres_password: SecretStr
    prefect_db_password: SecretStr
    mlflow_db_password: SecretStr
    aws_endpoint_url_s3: Address
    minio_root_user: str
    minio_root_password: SecretStr


class S3UsersSettings(RoleSettings):
    """The set-up of the object store's users: its root's keys, and each role's."""

    aws_endpoint_url_s3: Address
    minio_root_user: str
    minio_root_password: SecretStr
    mlflow_s3_access_key_id: str
    mlflow_s3_secret_access_key: SecretStr
    scheduler_s3_access_key_id: str
    scheduler_s3_secret_access_key: SecretStr
    agent_s3_access_key_id: str
    agent_s3_secret_access_key: SecretStr
    experimenter_s3_access_key_id: str
    experimenter_s3_secret_access_key: SecretStr
    prune_s3_access_key_id: str
    prune_s3_secret_access_key: SecretStr

    def key(self, role: str) -> tuple[str, str]:
        """Return the access key and the secret key of a role."""
        secret: SecretStr = getattr(self, f"{role}_s3_secret_access_key")
        return getattr(self, f"{role}_s3_access_key_id"), secret.get_secret_value()


class LocalSettings(RoleSettings):
    """The embedded way: where it keeps everything, and what its user may choose."""

    mlops_home: Path = Path(".mlops")
    mlops_checkout: Path | None = None  # the checkout that `./mlops` belongs to
    flow_dir: Path | None = None
    pool_name: str | None = None

    @field_validator("mlops_home", "mlops_checkout", "flow_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value else None
