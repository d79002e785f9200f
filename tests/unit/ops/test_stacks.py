import re
from pathlib import Path

import pytest

from mlops.credentials import Credentials
from mlops.errors import UsageError
from mlops.ops.stacks import (
    AGENT,
    KNOWN,
    SERVER,
    STACKS,
    VARIABLES,
    Origin,
    Stack,
    find_stack,
    joined_variables,
    render_example,
    variables_of,
)

PROJECT = Path(__file__).parents[3]
# `$${X}` is the shell's inside of a container, and the project's name Compose's own.
REFERENCE = re.compile(r"(?<!\$)\$\{(?!COMPOSE_PROJECT_NAME\})(\w+)")
# Read by Compose itself, and by `mlops join`.
NOT_IN_COMPOSE_FILES = {"COMPOSE_PROFILES", ("server", "SERVER_IP"), ("server", "UI_HOST")}


@pytest.mark.parametrize("stack", [None, *STACKS])
def test_examples_are_current(stack: Stack | None) -> None:
    """Every .env.example is rendered from the table (`./mlops env-examples` does it)."""
    folder = PROJECT / stack.folder if stack else PROJECT
    assert (folder / ".env.example").read_text() == render_example(stack)


@pytest.mark.parametrize("stack", STACKS)
def test_compose_file_reads_what_the_table_says(stack: Stack) -> None:
    """A stack's compose file reads every variable of its role, and no other."""
    for path in PROJECT.glob(f"{stack.folder}/compose.yaml"):
        text = re.sub(r"^\s*#.*", "", path.read_text(), flags=re.MULTILINE)
        named = {
            variable.name
            for variable in VARIABLES
            if stack in variable.stacks
            and not {variable.name, (stack.role, variable.name)} & NOT_IN_COMPOSE_FILES
        }
        assert set(REFERENCE.findall(text)) == named, path


def test_every_compose_file_reads_known_names() -> None:
    """Nothing is read from .env that the table does not have."""
    for path in [*PROJECT.glob("*.yaml"), *PROJECT.glob("*/*.yaml")]:
        assert set(REFERENCE.findall(path.read_text())) <= KNOWN.keys(), path


def test_every_generated_secret_has_its_place() -> None:
    """The server is told every secret of the platform."""
    secrets = {name.upper() for name in Credentials.model_fields}
    assert secrets <= {variable.name for variable in variables_of(SERVER)}


@pytest.mark.parametrize("stack", STACKS[1:])
def test_clients_know_their_own_secrets_only(stack: Stack) -> None:
    """A client knows its S3 key and password, and Prefect's, which has one user."""
    secrets = {name.upper() for name in Credentials.model_fields}
    known = {variable.name for variable in variables_of(stack)} & secrets
    own = {"PREFECT_USERNAME", "PREFECT_PASSWORD", f"MLFLOW_{stack.role.upper()}_PASSWORD"}
    assert all(name in own or name.startswith(f"{stack.role.upper()}_S3_") for name in known)


def test_token_has_only_what_the_server_decides() -> None:
    """What each host decides for itself is not handed on."""
    names = {variable.name for variable in joined_variables(AGENT)}
    assert {"SERVER_IP", "S3_PORT", "AGENT_S3_SECRET_ACCESS_KEY"} < names
    assert not names & {"MLOPS_HOST_NAME", "POOL_NAME", "BIND_ADDRESS", "VOLUME_PREFIX"}


def test_optional_names_are_not_written() -> None:
    """What has its default in the compose files is only shown."""
    optional = {v.name for v in VARIABLES if v.origin is Origin.OPTIONAL}
    assert not optional & {variable.name for variable in variables_of(None)}
    assert "\n#MINIO_IMAGE=" in render_example(SERVER)


def test_roles_and_folders_are_names_of_stacks() -> None:
    """A role may be called by its folder; anything else is wrong usage."""
    assert find_stack("agent") == find_stack("flow_agent") == AGENT
    with pytest.raises(UsageError, match="agnet: no such role; there are: server, scheduler"):
        find_stack("agnet")
