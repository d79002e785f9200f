"""Values in `.env` files with which a stack would not start, or not do what was meant.

Who brings passwords of their own is told here, and not by a server in a loop, what they must be.
"""

import re
from typing import NamedTuple

from mlops.credentials import Credentials


class Rule(NamedTuple):
    """What a value must be.

    Args:
        pattern: Matches all of it.
        allowed: The same, for people.
    """

    pattern: str
    allowed: str


# Of MLflow's own users, for whom it wants 12 characters.
_MLFLOW_PASSWORDS = {
    *("MLFLOW_ADMIN_PASSWORD", "MLFLOW_AGENT_PASSWORD", "MLFLOW_EXPERIMENTER_PASSWORD")
}


def _secret(minimum: int) -> Rule:
    """Return the rule of a password.

    Others than ASCII's characters make Prefect's server fail at every request, and S3's clients;
    Compose and python-dotenv read a backslash in quotes differently.
    """
    return Rule(
        rf"[ -\[\]-~]{{{minimum},}}", f"at least {minimum} of ASCII's characters, no backslash"
    )


def _rule_of_secret(name: str) -> Rule:
    """Return the rule of a field of `Credentials`."""
    if name.endswith(("_ACCESS_KEY_ID", "_ROOT_USER")):
        # MinIO's least length; its names of users stand in policies and in S3's signatures.
        return Rule(r"[A-Za-z0-9._-]{3,}", "at least 3 letters, digits, dots, hyphens, underscores")
    if name.endswith("_USERNAME"):
        return Rule(r"[ -9;-\[\]-~]+", "ASCII's characters, no colon, no backslash")
    if name.endswith(("_SECRET_ACCESS_KEY", "_ROOT_PASSWORD")):
        return _secret(8)  # MinIO's least length
    return _secret(12 if name in _MLFLOW_PASSWORDS else 1)


_PATH = Rule(r"/.*", "an absolute path")
_RULES = {
    **{name.upper(): _rule_of_secret(name.upper()) for name in Credentials.model_fields},
    # Those two would be the administrator.
    "MLFLOW_ADMIN_USERNAME": Rule(
        r"(?!(agent|experimenter)$)[ -9;-\[\]-~]+",
        "ASCII's characters, no colon, no backslash, and not the name of a role",
    ),
    "COMPOSE_PROFILES": Rule(
        r"(.+,)?(cpu|gpu)(,.+)?", "cpu or gpu; others may stand beside it, separated by commas"
    ),
    "DEV_PROJECTS_DIR": _PATH,
    "FLOW_DIR": _PATH,
    # As Compose wants the names of projects.
    "VOLUME_PREFIX": Rule(
        r"[a-z0-9][a-z0-9_-]*",
        "small letters, digits, hyphens, underscores; a letter or digit first",
    ),
}


def check_value(name: str, value: str) -> str:
    """Return what is wrong with the value of a variable, without the value; empty: nothing."""
    rule = _RULES.get(name)
    if rule is None or re.fullmatch(rule.pattern, value):
        return ""
    return f"{name}: not usable; allowed: {rule.allowed}"
