"""Noting on a flow run in Prefect which data it has read."""

from uuid import UUID

from mlops.data.reference import Reference
from mlops.errors import MlopsError


def label_flow_run(flow_run_id: UUID, reference: Reference) -> None:
    """Put a label on a flow run; its other labels stay.

    Args:
        flow_run_id: The run.
        reference: The data.

    Raises:
        MlopsError: The Prefect server does not answer or refuses.
    """
    from mlops.prefect_api import PrefectApi
    from mlops.settings import PrefectSettings

    api = PrefectApi(PrefectSettings.from_environment())
    try:
        api.send("PATCH", f"/flow_runs/{flow_run_id}/labels", {reference.label: str(reference)})
    except MlopsError as error:
        raise MlopsError(
            f"the flow run {flow_run_id} has no label for {reference}: {error.message}",
            hint=error.hint,
        ) from error
    finally:
        api.close()
