"""What flow.yaml asks of the agent, as job variables of the deployment.

A deployment may have others, such as `env`, which people set in the Prefect UI: they stay.
"""

from collections.abc import Mapping
from typing import Any

from mlops.scheduler.flow_yaml import FlowYaml

OURS = ("gpus", "memory", "late")  # keys of flow.yaml, and the agent's names of them


def wanted_variables(content: FlowYaml) -> dict[str, Any]:
    """Return those that a flow.yaml sets."""
    return content.model_dump(mode="json", include={*OURS}, exclude_defaults=True)


def own_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a deployment's those that flow.yaml decides about."""
    return {name: value for name, value in variables.items() if name in OURS}


def merged_variables(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a deployment is to have: what flow.yaml sets, and what it has besides.

    Args:
        present: What it has.
        wanted: `wanted_variables` of its flow.yaml.
    """
    others = {name: value for name, value in present.items() if name not in OURS}
    return others | dict(wanted)
