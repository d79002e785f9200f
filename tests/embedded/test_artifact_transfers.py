"""Which way artifacts and models take: straight to S3, or through MLflow's server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from embedded.conftest import Platform
from fault_proxy import FaultProxy

from mlops.identities import ClientRole

MODEL = """\
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Echo(PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


set_model(Echo())
"""
LOG_AND_LOAD = """\
import json
import sys

import mlflow

name = sys.argv[1]
mlflow.set_experiment(name)
with mlflow.start_run() as run:
    mlflow.log_artifact("model.py")
    logged = mlflow.pyfunc.log_model(
        name="model",
        python_model="model.py",
        pip_requirements=[f"mlflow=={mlflow.__version__}"],
        registered_model_name=name,
    )
mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model.py", dst_path="back")
mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
mlflow.pyfunc.load_model(f"models:/{name}/{logged.registered_model_version}")
model = mlflow.get_logged_model(logged.model_id)
print(json.dumps([run.info.artifact_uri, model.artifact_location]))
"""
WITHOUT_KEYS = """\
import json
import sys

import mlflow

artifacts, model = json.loads(sys.argv[1])
for place in (f"{artifacts}/model.py", model):
    through = place.replace("s3://mlflow/", "mlflow-artifacts:/")
    mlflow.artifacts.download_artifacts(through, dst_path="back")
own = mlflow.create_experiment("through", artifact_location="mlflow-artifacts:/through")
with mlflow.start_run(experiment_id=own) as run:
    mlflow.log_artifact("model.py")
mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model.py", dst_path="own")
mlflow.set_experiment("as-agent")
with mlflow.start_run():
    try:
        mlflow.log_artifact("model.py")
    except Exception as error:
        print(error)
"""


def run_script(script: str, argument: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a script in a folder with the model's code; return the last line that it printed."""
    (folder / "model.py").write_text(MODEL)
    done = subprocess.run(
        [sys.executable, "-c", script, argument],
        cwd=folder,
        env=environment | {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("role", ["agent", "experimenter"])
def test_artifacts_and_models_go_straight_to_s3(
    platform: Platform, tmp_path: Path, role: ClientRole
) -> None:
    """What a role logs and loads goes between it and S3, also as a registered model's version."""
    environment = platform.environment(role)
    with FaultProxy(environment["AWS_ENDPOINT_URL_S3"]) as s3:
        between = {"AWS_ENDPOINT_URL_S3": s3.url, "MLFLOW_S3_ENDPOINT_URL": s3.url}
        said = run_script(LOG_AND_LOAD, f"as-{role}", tmp_path, environment | between)
    artifacts, model = (place.removeprefix("s3:/") for place in json.loads(said))
    requests = [tuple(request) for request in s3.requests]
    for path, loads in ((f"{artifacts}/model.py", 1), (f"{model}/MLmodel", 2)):
        assert requests.count(("PUT", path)) == 1
        assert requests.count(("GET", path)) == loads


def test_client_without_s3_keys_goes_through_the_server(platform: Platform, tmp_path: Path) -> None:
    """With a login of MLflow's alone one reads all artifacts by `mlflow-artifacts:/`, and logs to
    experiments that lie there; in others one is told what is missing."""
    places = run_script(LOG_AND_LOAD, "as-agent", tmp_path, platform.environment("agent"))
    keyless = {
        name: value
        for name, value in platform.environment("agent").items()
        if not name.startswith(("AWS_", "MLFLOW_")) or name.startswith("MLFLOW_TRACKING_")
    }
    # No role of a cloud machine either, for which botocore would look.
    keyless["AWS_EC2_METADATA_DISABLED"] = "true"
    assert run_script(WITHOUT_KEYS, places, tmp_path, keyless) == "Unable to locate credentials"
    assert (tmp_path / "back" / "model.py").read_text() == MODEL
    assert (tmp_path / "back" / "artifacts" / "MLmodel").is_file()
    assert (tmp_path / "own" / "model.py").read_text() == MODEL
