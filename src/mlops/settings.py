"""One settings class per role; the environment is read here and nowhere else."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
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
            lines = [
                f"{str(problem['loc'][0]).upper()}: "
                + ("not set" if problem["type"] == "missing" else problem["msg"])
                for problem in error.errors()
            ]
            raise MlopsError(
                "the environment does not say where the platform is:\n  " + "\n  ".join(lines),
                hint="start the platform here with `./mlops local up`, or set these variables",
            ) from None


class CheckoutSettings(RoleSettings):
    """The checkout whose `./mlops` was called; images have none."""

    mlops_checkout: Path | None = None

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

    aws_endpoint_url_s3: str
    aws_access_key_id: str
    aws_secret_access_key: SecretStr
    prefect_bucket_name: str = "prefect"


class PrefectSettings(RoleSettings):
    """The Prefect server as a client sees it."""

    prefect_api_url: str
    prefect_api_auth_string: SecretStr | None = None

    @property
    def ui_url(self) -> str:
        """Address of the Prefect UI."""
        return self.prefect_api_url.removesuffix("/api")


class MlflowSettings(RoleSettings):
    """The MLflow server as a client sees it."""

    mlflow_tracking_uri: str
    mlflow_tracking_username: str | None = None
    mlflow_tracking_password: SecretStr | None = None


class SchedulerSettings(S3Settings, PrefectSettings):
    """The scheduler: reads flow folders, writes code to S3 and deployments to Prefect."""

    flow_dir: Path = Path("flows")


class AgentSettings(S3Settings, PrefectSettings, MlflowSettings):
    """The agent: where it takes runs from, what it may use and where it keeps its caches."""

    pool_name: str = "default-agent-pool"
    queue_name: str | None = None  # empty: every queue of the pool
    gpu_ids: Annotated[tuple[str, ...], NoDecode] = ()  # JSON list of strings; empty: CPU only
    mlops_cache_dir: Path = Path("~/.cache/mlops")
    mlops_environment_cache_bytes: int = Field(default=50 * 10**9, gt=0)
    torch_backend: str | None = None  # uv's --torch-backend; empty: the default index
    mlops_python_downloads: bool = False  # may uv fetch interpreters by itself?

    @field_validator("queue_name", "torch_backend", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("gpu_ids", mode="before")
    @classmethod
    def _parse_gpu_ids(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            ids = json.loads(value) if value.strip() else []
        except json.JSONDecodeError:
            ids = None
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise ValueError("""a JSON list of strings, as in ["0","1"]""")
        return tuple(ids)

    @field_validator("mlops_cache_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()
