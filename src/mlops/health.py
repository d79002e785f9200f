"""Whether each server answers, all the way down to its database.

Each check returns nothing when the server is well and raises `UnhealthyError` when it is not.
A plain connection or a stock `/health` is not enough: both Prefect's and MLflow's answer 200
while their database is gone.
"""

from functools import cache
from typing import TYPE_CHECKING

from mlops.container_health import MLFLOW_PATH, PREFECT_PATH
from mlops.credentials import KeyPair
from mlops.errors import MlopsError

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 5.0


class UnhealthyError(MlopsError):
    """A server does not answer as it should."""


def check_postgres(host: str, port: int, database: str, user: str, password: str) -> None:
    """Log in and run a query.

    Args:
        host: Where PostgreSQL listens.
        port: Its port.
        database: The database to connect to.
        user: The PostgreSQL role.
        password: The role's password.

    Raises:
        UnhealthyError: No answer, or the login is refused.
    """
    import psycopg2

    try:
        connection = psycopg2.connect(
            host=host,
            port=port,
            dbname=database,
            user=user,
            password=password,
            connect_timeout=int(TIMEOUT_SECONDS),
        )
    except psycopg2.Error as error:
        raise UnhealthyError(f"PostgreSQL at {host}:{port}: {_first_line(error)}") from None
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise UnhealthyError(f"PostgreSQL at {host}:{port}: {_first_line(error)}") from None
    finally:
        connection.close()


def check_s3(endpoint: str, key: KeyPair) -> None:
    """List the buckets.

    Args:
        endpoint: `http://host:port`.
        key: Any identity that the server knows.

    Raises:
        UnhealthyError: No answer, or the key is refused.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret_access_key,
            region_name="us-east-1",
            config=Config(
                connect_timeout=TIMEOUT_SECONDS,
                read_timeout=TIMEOUT_SECONDS,
                retries={"total_max_attempts": 1},
                proxies={},
            ),
        ).list_buckets()
    except (BotoCoreError, ClientError) as error:
        raise UnhealthyError(f"S3 at {endpoint}: {_first_line(error)}") from None


def check_prefect(url: str, username: str, password: str) -> None:
    """Ask Prefect whether it reaches its database.

    Args:
        url: `http://host:port`, without `/api`.
        username: Prefect's user.
        password: Its password.

    Raises:
        UnhealthyError: No answer, the login is refused, or the database is gone.
    """
    ask("GET", f"{url}{PREFECT_PATH}", username, password)


def check_mlflow(url: str, username: str, password: str) -> None:
    """Read an experiment, which makes MLflow query its database.

    Args:
        url: `http://host:port`.
        username: A user of MLflow's.
        password: Its password.

    Raises:
        UnhealthyError: No answer, the login is refused, or the database is gone.
    """
    ask("GET", f"{url}{MLFLOW_PATH}", username, password)


def ask(
    method: str, url: str, username: str, password: str, *, json: object = None
) -> "httpx.Response":
    """Send a request to one of our servers.

    Args:
        method: Of HTTP.
        url: Of HTTP.
        username: A user of the server's.
        password: Its password.
        json: The request's body, if it has one.

    Raises:
        UnhealthyError: No answer, or any other than 200.
    """
    import httpx

    try:
        response = _client().request(method, url, auth=(username, password), json=json)
    except httpx.HTTPError as error:
        raise UnhealthyError(f"{url}: {_first_line(error) or type(error).__name__}") from None
    if response.status_code != httpx.codes.OK:
        raise UnhealthyError(f"{url}: HTTP {response.status_code}")
    return response


@cache  # making a client takes longer than a question, and checks are asked often
def _client() -> "httpx.Client":
    import httpx

    # Without the machine's proxy settings: these are our own servers.
    return httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
