"""Asks the agents of this host how they are, as somebody else's process."""

import http.client
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mlops.agent.presence import Presence, find_agents
from mlops.agent.status import AgentStatus

TIMEOUT_SECONDS = 5.0


class AgentReport(BaseModel):
    """What could be learned of one agent.

    Args:
        name: The worker's in Prefect.
        address: Where it was asked, as `host:port`.
        healthy: It answered, and is well.
        problem: Why it is not.
        status: Its answer; None: there was none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    address: str
    healthy: bool
    problem: str | None
    status: AgentStatus | None


def ask_agents(root: Path) -> list[AgentReport]:
    """Ask every agent that lives on a cache, one after the other.

    Args:
        root: The cache.

    Raises:
        MlopsError: The cache belongs to another user.
    """
    return [_ask(presence) for presence in find_agents(root)]


def _ask(presence: Presence) -> AgentReport:
    host, port = presence.address
    status, problem = None, None
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        body = response.read()
        if response.status == http.client.OK:
            status = AgentStatus.model_validate_json(body)
            problem = status.problem
        else:
            problem = f"HTTP {response.status}; see its log"
    except ValidationError:
        problem = f"it is of another release ({presence.version}): ask with that one's command"
    except (OSError, http.client.HTTPException) as error:
        problem = f"does not answer: {error}"
        if not presence.is_here:
            problem += f"; it runs in {presence.machine}: ask there"
    finally:
        connection.close()
    return AgentReport(
        name=presence.name,
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        healthy=problem is None,
        problem=problem,
        status=status,
    )
