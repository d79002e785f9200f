"""PostgreSQL's roles and databases: one owner role per database, and nobody else gets in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from mlops.errors import MlopsError
from mlops.settings import SetupSettings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # it is a class


class OwnedDatabase(NamedTuple):
    """A database and the one role that may use it."""

    name: str
    owner: str
    password: str


def owned_databases(settings: SetupSettings) -> tuple[OwnedDatabase, ...]:
    """Return the platform's databases."""
    return (
        OwnedDatabase("prefect", "prefect", settings.prefect_db_password.get_secret_value()),
        OwnedDatabase("mlrun", "mlflow", settings.mlflow_db_password.get_secret_value()),
    )


def converge_databases(settings: SetupSettings) -> list[str]:
    """Create what is missing and set right what differs; safe to run again.

    Args:
        settings: Where PostgreSQL is, the superuser's password and the owners'.

    Returns:
        One line per database.

    Raises:
        MlopsError: PostgreSQL does not answer or refuses the superuser.
    """
    with _superuser(settings, "postgres") as connection:
        for database in owned_databases(settings):
            _converge_role(connection, database)
            _converge_database(connection, database)
    # Prefect's indexes need trigrams; the extension is made here, so that Prefect's own role
    # needs no right to create one.
    with _superuser(settings, "prefect") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    return [f"database {d.name}, owned by {d.owner}" for d in owned_databases(settings)]


def _converge_role(connection: "Connection", database: OwnedDatabase) -> None:
    from psycopg2 import sql

    role = sql.Identifier(database.owner)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (database.owner,))
        verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")
        cursor.execute(
            sql.SQL(
                "{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION"
                " NOBYPASSRLS PASSWORD {password}"
            ).format(verb=verb, role=role, password=sql.Literal(database.password))
        )


def _converge_database(connection: "Connection", database: OwnedDatabase) -> None:
    from psycopg2 import sql

    name, owner = sql.Identifier(database.name), sql.Identifier(database.owner)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database.name,))
        if cursor.fetchone() is None:
            cursor.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0").format(
                    name, owner
                )
            )
        cursor.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner))
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        # The databases that every PostgreSQL has are nobody's business either.
        cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")


@contextmanager
def _superuser(settings: SetupSettings, database: str) -> Iterator["Connection"]:
    """Connect as `postgres`, each statement in a transaction of its own."""
    import psycopg2

    try:
        connection = psycopg2.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            dbname=database,
            user="postgres",
            password=settings.postgres_password.get_secret_value(),
            connect_timeout=10,
        )
    except psycopg2.OperationalError as error:
        raise MlopsError(
            f"PostgreSQL at {settings.postgres_host}:{settings.postgres_port}: "
            + str(error).strip().split("\n", 1)[0],
            hint="is it running, and is POSTGRES_PASSWORD the one it was first started with?",
        ) from None
    connection.autocommit = True  # CREATE DATABASE refuses to run inside a transaction
    try:
        yield connection
    finally:
        connection.close()
