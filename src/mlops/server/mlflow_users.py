"""MLflow's users, one per role; the admin is the server's own business (`mlflow.py`)."""

from mlops.errors import MlopsError
from mlops.settings import MlflowSetupSettings


def converge_mlflow_users(settings: MlflowSetupSettings) -> list[str]:
    """Create the users `agent` and `experimenter`, or set their passwords right.

    Uses the REST API of MLflow's basic-auth app: importing its Python client imports the
    whole server.

    Args:
        settings: Where MLflow is, the admin's password and the users'.

    Returns:
        One line per user.

    Raises:
        MlopsError: MLflow does not answer or refuses the admin.
    """
    import httpx

    api = f"{settings.mlflow_tracking_uri}/api/2.0/mlflow/users"
    admin = (settings.mlflow_admin_username, settings.mlflow_admin_password.get_secret_value())
    users = {
        "agent": settings.mlflow_agent_password.get_secret_value(),
        "experimenter": settings.mlflow_experimenter_password.get_secret_value(),
    }
    try:
        with httpx.Client(auth=admin, timeout=30, trust_env=False) as client:
            for name, password in users.items():
                body = {"username": name, "password": password}
                response = client.get(f"{api}/get", params={"username": name})
                if response.status_code == httpx.codes.NOT_FOUND:
                    client.post(f"{api}/create", json=body).raise_for_status()
                    continue
                response.raise_for_status()
                own = client.get(f"{api}/get", params={"username": name}, auth=(name, password))
                if own.status_code == httpx.codes.UNAUTHORIZED:
                    client.patch(f"{api}/update-password", json=body).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise MlopsError(
            f"MLflow at {settings.mlflow_tracking_uri}: HTTP {error.response.status_code}: "
            + error.response.text[:200],
            hint="is MLFLOW_ADMIN_PASSWORD the server's?",
        ) from None
    except httpx.HTTPError as error:
        raise MlopsError(
            f"MLflow at {settings.mlflow_tracking_uri}: {error or type(error).__name__}",
            hint="is the server running?",
        ) from None
    return [f"MLflow user {name}" for name in users]
