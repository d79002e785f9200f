"""The Prefect work pool that agents serve by default; Prefect 3.8 does not create it."""

from mlops.errors import MlopsError
from mlops.settings import PrefectSetupSettings


def converge_work_pool(settings: PrefectSetupSettings) -> list[str]:
    """Create the work pool when it is missing; safe to run again.

    The pool is made through Prefect's REST API, as importing Prefect's client takes seconds;
    the first worker fills in the pool's job template.

    Args:
        settings: Where the Prefect server is, its credentials and the pool's name.

    Returns:
        One line for the pool.

    Raises:
        MlopsError: Prefect does not answer or refuses.
    """
    import httpx

    auth_string = settings.prefect_api_auth_string
    auth = auth_string.get_secret_value().split(":", 1) if auth_string else None
    try:
        response = httpx.post(
            f"{settings.prefect_api_url}/work_pools/",
            json={"name": settings.pool_name, "type": "process"},
            auth=(auth[0], auth[1]) if auth else None,
            timeout=30,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise MlopsError(
            f"Prefect at {settings.prefect_api_url}: {error or type(error).__name__}",
            hint="is the server running?",
        ) from None
    if response.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise MlopsError(
            f"Prefect at {settings.prefect_api_url}: work pool {settings.pool_name}: "
            f"HTTP {response.status_code}: {response.text[:200]}",
            hint="is PREFECT_API_AUTH_STRING the server's?",
        )
    return [f"work pool {settings.pool_name}"]
