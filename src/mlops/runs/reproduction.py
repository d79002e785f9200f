"""A run done once more: the same code, requirements, parameters and data."""

from uuid import UUID

from pydantic import BaseModel, ConfigDict

from mlops import lineage
from mlops.bundles import parse_prefix, pull_steps, pulled_bundle
from mlops.errors import MlopsError
from mlops.prefect_api import PrefectApi
from mlops.runs.chain import Chain, read_deployment
from mlops.runs.start import start_run

TAG = "reproduction"  # of deployments that exist for this alone


class Started(BaseModel):
    """The run that repeats another."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    name: str
    deployment: str


def reproduce(api: PrefectApi, chain: Chain) -> Started:
    """Start a run with the code, the parameters and the job variables of an earlier one.

    If the deployment has other code by now, or is gone, the run gets a deployment of its own,
    without a schedule, which stays for the next time. It keeps its code from being pruned.

    Args:
        api: The Prefect server.
        chain: The earlier run.

    Raises:
        MlopsError: The run goes on still, or does not say which code it ran.
    """
    run = chain.flow_run
    if not run.has_ended:
        raise MlopsError(
            f"{run.name}: is {run.state_name}; there is nothing to compare with yet",
            hint="wait until it has ended",
        )
    code, entrypoint = _code(chain), run.fact(lineage.ENTRYPOINT)
    if code is None or entrypoint is None:
        raise MlopsError(
            f"{run.name}: does not say which code it ran",
            hint="only runs of registered flow folders, on an agent of this platform, do",
        )
    current = read_deployment(api, run)
    if (
        current
        and pulled_bundle(current["pull_steps"]) == code
        and current["entrypoint"] == entrypoint
    ):
        deployment_id, name = UUID(current["id"]), str(current["name"])
    else:
        bucket, prefix = code
        content_hash = str(parse_prefix(prefix))
        name = f"{chain.deployment or chain.flow}@{content_hash[: lineage.HASH_DIGITS]}"
        fields = {
            "flow_id": str(run.flow_id),
            "name": name,
            "version": lineage.version_text(content_hash, run.fact(lineage.GIT_COMMIT)),
            "description": f"Earlier code of {chain.flow}, to do its runs once more.",
            "tags": [TAG],
            "entrypoint": entrypoint,
            "pull_steps": pull_steps(bucket, prefix),
            "work_pool_name": run.work_pool_name,
            "work_queue_name": run.work_queue_name,
            "job_variables": (current or {}).get("job_variables") or {},
            # That of the code of today; these parameters were accepted once.
            "enforce_parameter_schema": False,
        }
        deployment_id = UUID(api.send("POST", "/deployments/", fields)["id"])
    started = start_run(
        api,
        deployment_id,
        run.parameters,
        job_variables=run.job_variables or {},
        labels={lineage.REPRODUCES: str(run.id)},
    )
    return Started(id=started.id, name=started.name, deployment=name)


def _code(chain: Chain) -> tuple[str, str] | None:
    """Return the bucket and the prefix of the code that a run ran."""
    uri = chain.flow_run.fact(lineage.CODE_URI) or ""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    return (bucket, prefix) if parse_prefix(prefix) else None


def differences(original: Chain, repeated: Chain) -> list[str]:
    """Return what was not the same around two runs, one line each.

    Args:
        original: The earlier run.
        repeated: The one that was to be like it.
    """
    named = {
        lineage.CODE_HASH: "code",
        lineage.REQUIREMENTS_HASH: "requirements",
        lineage.PACKAGES_HASH: "installed packages",
        lineage.PYTHON: "Python",
        lineage.GPU: "GPU",
        lineage.AGENT_HOST: "host",
    }
    lines = []
    for label, name in named.items():
        was, now = original.flow_run.fact(label), repeated.flow_run.fact(label)
        if was != now:
            lines.append(f"{name}: {was or 'not known'} then, {now or 'not known'} now")
    if original.flow_run.data != repeated.flow_run.data:
        was, now = (", ".join(chain.flow_run.data) or "none" for chain in (original, repeated))
        lines.append(f"data: {was} then, {now} now")
    return lines
