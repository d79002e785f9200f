"""The four Compose stacks, and which variables the `.env` of each one holds.

The one table of these names: `init` writes them, `join` hands them on, the `.env.example` files
are rendered from it, and a test holds the compose files against it. A stack's file holds what
its role may know; the root's file, for all of them on one host, holds everything.
"""

from enum import Enum
from pathlib import Path
from typing import NamedTuple

from mlops.errors import UsageError

ROOT = Path(".env")


class Stack(NamedTuple):
    """One stack: its role's name, as on the command line, and its folder."""

    role: str
    folder: str

    @property
    def env_file(self) -> Path:
        """Its `.env`, relative to the checkout."""
        return Path(self.folder, ".env")


SERVER = Stack("server", "server")
SCHEDULER = Stack("scheduler", "flow_scheduler")
AGENT = Stack("agent", "flow_agent")
EXPERIMENTER = Stack("experimenter", "ml_experimenter")
STACKS = (SERVER, SCHEDULER, AGENT, EXPERIMENTER)
_MLFLOW_CLIENTS = (AGENT, EXPERIMENTER)


class Origin(Enum):
    """Where the value of a variable comes from."""

    SERVER = "decided on the server's host, and handed on by a join token"
    HOST = "decided on each host, by init"
    DEFAULT = "the same everywhere unless someone changes it"
    OPTIONAL = "not written: the compose files have the default"


class Variable(NamedTuple):
    """One name in `.env`.

    Args:
        name: As the compose files read it.
        stacks: Who may know it.
        origin: Where its value comes from.
        about: What the example says; empty: it goes with the one before.
        default: The value that `init` writes; empty: it finds or makes one.
        may_be_empty: No value is a value.
    """

    name: str
    stacks: tuple[Stack, ...]
    origin: Origin
    about: str = ""
    default: str = ""
    may_be_empty: bool = False


def _key(role: str, stacks: tuple[Stack, ...]) -> tuple[Variable, Variable]:
    """Return the S3 key of one identity."""
    about = f"The S3 key of the identity `{role}`."
    prefix = f"{role.upper()}_S3"
    return (
        Variable(f"{prefix}_ACCESS_KEY_ID", stacks, Origin.SERVER, about),
        Variable(f"{prefix}_SECRET_ACCESS_KEY", stacks, Origin.SERVER),
    )


def _limits(service: str, stack: Stack, **defaults: str) -> tuple[Variable, ...]:
    """Return the limits of one service."""
    about = {"CPUS": f"Limits of {service}; 0: none."}
    return tuple(
        Variable(f"{service.upper()}_{n}", (stack,), Origin.OPTIONAL, about.get(n, ""), default)
        for n, default in {"CPUS": "0", **defaults}.items()
    )


# Names that are fields of mlops.credentials.Credentials, in capitals, are generated there.
VARIABLES = (
    Variable(
        *("MLOPS_INIT", (SERVER, SCHEDULER, AGENT), Origin.DEFAULT),
        "Stays empty. Where this line is missing, `docker compose up` asks for `./mlops init`.",
        may_be_empty=True,
    ),
    Variable(
        *("SERVER_IP", STACKS, Origin.SERVER),
        "Address or name under which the other stacks' containers reach the servers.",
    ),
    Variable("UI_HOST", STACKS, Origin.SERVER, "Address or name under which browsers reach them."),
    Variable("S3_PORT", STACKS, Origin.SERVER, "The servers' published ports.", "9000"),
    Variable("MLFLOW_PORT", (SERVER, *_MLFLOW_CLIENTS), Origin.SERVER, default="5050"),
    Variable("PREFECT_PORT", STACKS, Origin.SERVER, default="4200"),
    Variable("MINIO_CONSOLE_PORT", (SERVER,), Origin.SERVER, default="9001"),
    Variable(
        *("BIND_ADDRESS", (SERVER,), Origin.SERVER),
        "Where the servers' ports are published: 127.0.0.1, an address of this machine, or "
        "0.0.0.0.",
    ),
    Variable(
        *("MLOPS_ADDRESSES", (SERVER,), Origin.SERVER),
        "Every address and name that the servers answer to, separated by commas.",
    ),
    Variable("PREFECT_USERNAME", STACKS, Origin.SERVER, "The one user of the Prefect server."),
    Variable("PREFECT_PASSWORD", STACKS, Origin.SERVER),
    Variable("MLFLOW_ADMIN_USERNAME", (SERVER,), Origin.SERVER, "MLflow's users."),
    Variable("MLFLOW_ADMIN_PASSWORD", (SERVER,), Origin.SERVER),
    Variable("MLFLOW_AGENT_PASSWORD", (SERVER, AGENT), Origin.SERVER),
    Variable("MLFLOW_EXPERIMENTER_PASSWORD", (SERVER, EXPERIMENTER), Origin.SERVER),
    Variable(
        *("MLFLOW_FLASK_SERVER_SECRET_KEY", (SERVER,), Origin.SERVER), "Signs MLflow's sessions."
    ),
    Variable(
        *("POSTGRES_PASSWORD", (SERVER,), Origin.SERVER),
        "PostgreSQL: its superuser, and the owners of the two databases.",
    ),
    Variable("PREFECT_DB_PASSWORD", (SERVER,), Origin.SERVER),
    Variable("MLFLOW_DB_PASSWORD", (SERVER,), Origin.SERVER),
    Variable("MINIO_ROOT_USER", (SERVER,), Origin.SERVER, "The owner of the object store."),
    Variable("MINIO_ROOT_PASSWORD", (SERVER,), Origin.SERVER),
    *_key("mlflow", (SERVER,)),
    *_key("scheduler", (SERVER, SCHEDULER)),
    *_key("agent", (SERVER, AGENT)),
    *_key("experimenter", (SERVER, EXPERIMENTER)),
    *_key("prune", (SERVER,)),
    Variable(
        *("FLOW_DIR", (SCHEDULER,), Origin.HOST),
        "The folder of flow folders, absolute; it has the same path in the container.",
    ),
    Variable(
        *("SCHEDULER_USER", (SCHEDULER,), Origin.HOST), "uid:gid of a user who may read FLOW_DIR."
    ),
    Variable(
        *("MLOPS_HOST_NAME", (SCHEDULER, AGENT), Origin.HOST),
        "This machine's name, as Prefect shows it.",
    ),
    Variable(
        *("COMPOSE_PROFILES", _MLFLOW_CLIENTS, Origin.DEFAULT),
        "Which agent and experimenter are started: cpu or gpu.",
        "cpu",
    ),
    Variable(
        *("POOL_NAME", (AGENT,), Origin.DEFAULT),
        "The work pool whose runs the agent takes.",
        "default-agent-pool",
    ),
    Variable(
        *("QUEUE_NAME", (AGENT,), Origin.DEFAULT, "Its work queue; empty: every one of the pool."),
        may_be_empty=True,
    ),
    Variable(
        *("GPU_IDS", (AGENT,), Origin.DEFAULT),
        """Of the agent `gpu`: the GPUs that runs are given, as in ["0","1"]; empty: all.""",
        may_be_empty=True,
    ),
    Variable("JUPYTER_TOKEN", (EXPERIMENTER,), Origin.HOST, "What JupyterLab asks for."),
    Variable("JUPYTER_PORT", (EXPERIMENTER,), Origin.DEFAULT, "Where it answers.", "8888"),
    Variable("JUPYTER_BIND_ADDRESS", (EXPERIMENTER,), Origin.DEFAULT, default="127.0.0.1"),
    Variable(
        *("HOST_UID", (EXPERIMENTER,), Origin.HOST), "Who owns the files in DEV_PROJECTS_DIR."
    ),
    Variable("HOST_GID", (EXPERIMENTER,), Origin.HOST),
    Variable(
        *("DEV_PROJECTS_DIR", (EXPERIMENTER,), Origin.HOST),
        "The folder of experiment projects, absolute.",
    ),
    Variable(
        *("PROJECT_NAME", (EXPERIMENTER,), Origin.DEFAULT),
        "The project that is worked on.",
        "my-project",
    ),
    Variable(
        *("VOLUME_PREFIX", STACKS, Origin.DEFAULT),
        "Before the names of projects and volumes; another one is another, empty platform.",
        "mlops",
    ),
    Variable(
        *("MINIO_IMAGE", (SERVER,), Origin.OPTIONAL),
        "Another image of MinIO.",
        "pgsty/silo:RELEASE.2026-09-16T00-00-00Z",
    ),
    Variable(
        *("PREFECT_RETENTION_DAYS", (SERVER,), Origin.OPTIONAL),
        "How many days finished flow runs are kept.",
        "90",
    ),
    Variable(
        *("WATCHFILES_FORCE_POLLING", (SCHEDULER,), Origin.OPTIONAL),
        "Look at every file: where FLOW_DIR is a network file system that others write to.",
        "true",
    ),
    Variable(
        *("TORCH_BACKEND", _MLFLOW_CLIENTS, Origin.OPTIONAL),
        "Which build of torch: cpu, auto (what the GPU's driver can do), or one such as cu130.",
    ),
    Variable(
        *("MLOPS_SLOTS", (AGENT,), Origin.OPTIONAL),
        "Runs at a time; unset: as many as the agent has GPUs, or else cores.",
        "4",
    ),
    Variable(
        *("MLOPS_ENVIRONMENT_CACHE_BYTES", (AGENT,), Origin.OPTIONAL),
        "How large an agent's caches may become, in bytes: of environments, code and data.",
        "50000000000",
    ),
    Variable("MLOPS_CODE_CACHE_BYTES", (AGENT,), Origin.OPTIONAL, default="5000000000"),
    Variable("MLOPS_DATA_CACHE_BYTES", (AGENT,), Origin.OPTIONAL, default="100000000000"),
    Variable(
        *("MLOPS_WARM_ENVIRONMENTS", (AGENT,), Origin.OPTIONAL),
        "How many environments have a process ready that runs start from, and how large, in bytes.",
        "4",
    ),
    Variable("MLOPS_WARM_BYTES", (AGENT,), Origin.OPTIONAL, default="2000000000"),
    Variable(
        *("AGENT_METRICS_ADDRESS", (AGENT,), Origin.OPTIONAL),
        "Where an agent's metrics are published, as in 0.0.0.0:9464; `127.0.0.1:` is a free port.",
        "127.0.0.1:",
    ),
    Variable(
        *("MLOPS_STOP_SECONDS", (AGENT,), Origin.OPTIONAL),
        "How long runs of a stopped agent may go on, in seconds; and when Docker kills the agent, "
        "at least 20 s later.",
        "40",
    ),
    Variable("AGENT_STOP_GRACE", (AGENT,), Origin.OPTIONAL, default="1m"),
    *_limits("postgres", SERVER, MEMORY="2g"),
    *_limits("minio", SERVER, MEMORY="2g"),
    *_limits("prefect", SERVER, MEMORY="2g"),
    *_limits("mlflow", SERVER, MEMORY="2g"),
    *_limits("scheduler", SCHEDULER, MEMORY="1g"),
    *_limits("agent", AGENT, MEMORY="0", SHM="1g", PIDS="4096"),
    *_limits("experimenter", EXPERIMENTER, MEMORY="0", SHM="1g"),
)
KNOWN = {variable.name: variable for variable in VARIABLES}


def find_stack(name: str) -> Stack:
    """Return the stack of a role's or a folder's name.

    Raises:
        UsageError: There is none of that name.
    """
    for stack in STACKS:
        if name in stack:
            return stack
    roles = ", ".join(stack.role for stack in STACKS)
    raise UsageError(f"{name}: no such role; there are: {roles}")


def variables_of(stack: Stack | None) -> tuple[Variable, ...]:
    """Return what `init` writes to a stack's `.env`; None: to the root's."""
    return tuple(
        variable
        for variable in VARIABLES
        if variable.origin is not Origin.OPTIONAL and (stack is None or stack in variable.stacks)
    )


def joined_variables(stack: Stack) -> tuple[Variable, ...]:
    """Return what a stack on another host must be told by the server's host."""
    return tuple(v for v in variables_of(stack) if v.origin is Origin.SERVER)


def render_example(stack: Stack | None, *, blank: bool = False) -> str:
    """Return the text of a stack's `.env.example`; None: of the root's.

    Args:
        stack: Whose variables.
        blank: Without the defaults, for `init` to fill in.
    """
    what = f"the stack `{stack.folder}` is" if stack else "all four stacks on one host are"
    lines = [
        f"# What {what} told; `./mlops init` writes it to .env, with generated secrets.",
        "# Whoever reads .env has what is in it: keep it at mode 0600.",
    ]
    for variable in VARIABLES:
        if stack is None or stack in variable.stacks:
            if variable.about:
                lines += ["", f"# {variable.about}"]
            if variable.origin is Origin.OPTIONAL:
                lines.append(f"#{variable.name}={variable.default}")
            else:
                lines.append(f"{variable.name}={'' if blank else variable.default}")
    return "\n".join(lines) + "\n"
