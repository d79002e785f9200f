"""What each role is told about the platform: the environment variables of the contract.

A role knows the addresses and its own secrets, nothing more. The embedded way hands these to
the processes that it starts; `mlops join` hands them to another host.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlops.credentials import Credentials

ClientRole = Literal["scheduler", "agent", "experimenter", "prune"]


class Addresses(BaseModel):
    """Where the platform's servers answer, as clients reach them."""

    model_config = ConfigDict(frozen=True)

    s3: str  # http://host:port
    mlflow: str  # http://host:port
    prefect: str  # http://host:port, without /api


def role_environment(
    role: ClientRole, credentials: Credentials, addresses: Addresses
) -> dict[str, str]:
    """Return the environment of a role's process.

    Args:
        role: Whose identity it is.
        credentials: All secrets; only this role's part is returned.
        addresses: Where the servers answer.
    """
    key = credentials.s3_key(role)
    environment = {
        "AWS_ACCESS_KEY_ID": key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        "AWS_ENDPOINT_URL_S3": addresses.s3,
        "AWS_DEFAULT_REGION": "us-east-1",
        # S3 servers that are not AWS's reject the newer default checksums.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "PREFECT_API_URL": f"{addresses.prefect}/api",
        "PREFECT_API_AUTH_STRING": credentials.prefect_auth_string,
    }
    if role in {"scheduler", "prune"}:
        return environment
    password = (
        credentials.mlflow_agent_password
        if role == "agent"
        else credentials.mlflow_experimenter_password
    )
    return environment | {
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "MLFLOW_TRACKING_USERNAME": role,
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_S3_ENDPOINT_URL": addresses.s3,
        "MLFLOW_BUCKET_NAME": "mlflow",
        # An S3-backed MLflow 3.17 hands out transfers presigned for its own S3 address, which
        # other hosts cannot reach; a 400 MB download was seen to hang.
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    }
