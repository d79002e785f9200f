import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers
from uv import find_uv_bin

from mlops.agent import mlflow_context

SCRIPT = """\
import sys
sys.path.insert(0, sys.argv[1])
import mlflow_context
sys.path.pop(0)
mlflow_context.extend_mlflow(mlflow_context.read_context)
import mlflow

print(mlflow.__version__)
experiment = mlflow.set_experiment("context").experiment_id
created = mlflow.MlflowClient().create_run(experiment, tags={"mlops.agent_host": "own"})
with mlflow.start_run() as started:
    pass
mlflow.MlflowClient().set_tag(started.info.run_id, "mlops.attempt", "an earlier one")
mlflow.start_run(started.info.run_id, experiment)
print(created.info.run_id, started.info.run_id)
"""


@pytest.mark.requires("package-index")
def test_mlflow_of_years_ago_is_extended_too(platform: Platform, tmp_path: Path) -> None:
    """The client of 2023 puts the context on the runs that it creates and resumes."""
    packages = tmp_path / "packages"
    pins = ["mlflow-skinny==2.5.0", "setuptools<81"]
    install = [
        find_uv_bin(),
        "pip",
        "install",
        "--python",
        sys.executable,
        "--target",
        str(packages),
    ]
    subprocess.run([*install, *pins], check=True, env=os.environ | {"UV_SYSTEM_CERTS": "true"})
    context = {"mlops.attempt": "this one", "mlops.agent_host": "here"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, Path(mlflow_context.__file__).parent],
        env=platform.environment("agent")
        | {"PYTHONPATH": str(packages), "MLFLOW_RUN_CONTEXT": json.dumps(context)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    version, created, resumed = done.stdout.split()
    assert version == "2.5.0"
    servers = Servers(platform)
    for run_id, host in ((created, "own"), (resumed, "here")):
        run = servers.mlflow.get("/runs/get", params={"run_id": run_id}).json()["run"]
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert tags["mlops.attempt"] == "this one"
        assert tags["mlops.agent_host"] == host
