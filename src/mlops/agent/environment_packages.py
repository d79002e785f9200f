"""Which packages an environment holds: the flow's, ours, and the versions that go together."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlops.agent.requirements import NO_REQUIREMENTS, Requirements

# The last setuptools whose pkg_resources is whole and quiet. Packages of a few years ago import
# that without saying so (mlflow 2.5 does).
_SETUPTOOLS = "80.9.0"
# What the worker's engine and every flow of the platform needs; left out where the flow names it.
UNREMARKABLE = ("prefect-aws", "boto3")
# A flow that asks for nothing has no library whose models it could log: MLflow's client will do,
# without the 700 MB of pandas, scikit-learn and others that all of MLflow brings along.
_MLFLOW, _MLFLOW_CLIENT = "mlflow", "mlflow-skinny"
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)")


def supplied_requirements(
    requirements: Requirements, *, locked: frozenset[str] = frozenset()
) -> list[str]:
    """Return what an environment gets besides the flow's own requirements.

    Args:
        requirements: The flow's; its word stands.
        locked: Normalised names of what its lock holds besides those that it names.
    """
    # A client newer than the server may call what the server does not have.
    own = f"prefect>=3,<={metadata.version('prefect')}"
    mlflow = _MLFLOW_CLIENT if requirements.is_none else _MLFLOW
    named = requirements.names | locked
    return [
        line
        for line in (own, *UNREMARKABLE, mlflow, "setuptools")
        if canonicalize_name(Requirement(line).name) not in named
    ]


def default_requirements() -> list[str]:
    """Return what the lock of the environment of flows without requirements is made from."""
    names = [Requirement(line).name for line in supplied_requirements(NO_REQUIREMENTS)]
    return [f"{name}=={_SETUPTOOLS}" if name == "setuptools" else name for name in names]


def preferred_versions() -> dict[str, str]:
    """Return the versions that were tested together, by package.

    They are those of the agent's own environment, and for packages of other roles the exact
    pins among our own package's extras.
    """
    preferred: dict[str, str] = {}
    try:
        ours = [Requirement(line) for line in metadata.requires("mlops") or []]
    except metadata.PackageNotFoundError:  # run from a bare checkout
        ours = []
    for requirement in ours:
        if pin := re.fullmatch(r"==([\w.]+)", str(requirement.specifier)):
            preferred[canonicalize_name(requirement.name)] = pin[1]
    for distribution in metadata.distributions():
        # A distribution that lost its metadata has neither name nor version.
        if distribution.name and distribution.version:
            preferred[canonicalize_name(distribution.name)] = distribution.version
    preferred.pop("mlops", None)
    return preferred | {"setuptools": _SETUPTOOLS}


def read_pins(lock: Path) -> dict[str, str]:
    """Return the versions in a lock by normalised package name."""
    matches = (_PIN.match(line) for line in lock.read_text().splitlines())
    return {canonicalize_name(m["name"]): m["version"] for m in matches if m}


def keep_pins_only(source: Path, target: Path) -> None:
    """Copy a lock without its local and remote archives, which uv refuses as constraints."""
    pins = read_pins(source)
    target.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
