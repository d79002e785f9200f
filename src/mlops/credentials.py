"""The platform's generated secrets, one identity per role, kept in one file of mode 0600.

The file is a plain env file (`NAME=value`), the same in the embedded way and with Compose.
"""

import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlops.env_file import read_env_file, write_private_files
from mlops.errors import MlopsError


def _secret() -> str:
    """Return 32 random bytes, safe unquoted in env files, URLs and INI files."""
    return secrets.token_hex(32)


def _access_key(role: str) -> str:
    return f"{role}-{secrets.token_hex(6)}"


class KeyPair(BaseModel):
    """The S3 identity of one role."""

    model_config = ConfigDict(frozen=True)

    access_key_id: str
    secret_access_key: str


class Credentials(BaseModel):
    """Every secret of one platform. Field names, in capitals, are the names in the file.

    No role is handed this object but the server's set-up; the others get their part of it
    from `mlops.identities.role_environment`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    postgres_password: str = Field(default_factory=_secret)  # the superuser, `postgres`
    prefect_db_password: str = Field(default_factory=_secret)  # owner of the database `prefect`
    mlflow_db_password: str = Field(default_factory=_secret)  # owner of the database `mlrun`

    minio_root_user: str = Field(default_factory=lambda: _access_key("root"))
    minio_root_password: str = Field(default_factory=_secret)
    mlflow_s3_access_key_id: str = Field(default_factory=lambda: _access_key("mlflow"))
    mlflow_s3_secret_access_key: str = Field(default_factory=_secret)
    scheduler_s3_access_key_id: str = Field(default_factory=lambda: _access_key("scheduler"))
    scheduler_s3_secret_access_key: str = Field(default_factory=_secret)
    agent_s3_access_key_id: str = Field(default_factory=lambda: _access_key("agent"))
    agent_s3_secret_access_key: str = Field(default_factory=_secret)
    experimenter_s3_access_key_id: str = Field(default_factory=lambda: _access_key("experimenter"))
    experimenter_s3_secret_access_key: str = Field(default_factory=_secret)
    prune_s3_access_key_id: str = Field(default_factory=lambda: _access_key("prune"))
    prune_s3_secret_access_key: str = Field(default_factory=_secret)

    prefect_username: str = "admin"
    prefect_password: str = Field(default_factory=_secret)  # Prefect knows one user only

    mlflow_admin_username: str = "admin"
    mlflow_admin_password: str = Field(default_factory=_secret)
    mlflow_agent_password: str = Field(default_factory=_secret)  # the user `agent`
    mlflow_experimenter_password: str = Field(default_factory=_secret)  # the user `experimenter`
    mlflow_flask_server_secret_key: str = Field(default_factory=_secret)  # signs UI sessions

    @property
    def prefect_auth_string(self) -> str:
        """Prefect's `user:password`."""
        return f"{self.prefect_username}:{self.prefect_password}"

    def s3_key(self, role: str) -> KeyPair:
        """Return the S3 identity of `mlflow`, `scheduler`, `agent`, `experimenter` or `prune`."""
        return KeyPair(
            access_key_id=getattr(self, f"{role}_s3_access_key_id"),
            secret_access_key=getattr(self, f"{role}_s3_secret_access_key"),
        )


def load_credentials(path: Path) -> Credentials:
    """Read the credentials file.

    Raises:
        MlopsError: The file is missing, open to other users, or not one of ours.
    """
    try:
        values = read_env_file(path).values
    except FileNotFoundError:
        raise MlopsError(f"{path}: no credentials here", hint="run `./mlops local up`") from None
    try:
        return Credentials.model_validate({name.lower(): v for name, v in values.items()})
    except ValidationError as error:
        names = ", ".join(sorted({str(e["loc"][0]).upper() for e in error.errors()}))
        raise MlopsError(f"{path}: not understood: {names}") from None


def load_or_create_credentials(path: Path) -> Credentials:
    """Read the credentials file; make it, and add what a newer release needs, when missing.

    Values that are there are never changed. The write is atomic.
    """
    credentials = load_credentials(path) if path.exists() else Credentials()
    lines = [f"{name.upper()}={value}\n" for name, value in credentials.model_dump().items()]
    text = f"# Whoever reads this file owns the platform; keep it at mode 0600.\n{''.join(lines)}"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private_files({path: text})
    return credentials
