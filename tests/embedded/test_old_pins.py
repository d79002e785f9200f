"""A flow of 2023 with the libraries of its time, on today's servers."""

import json

import pytest
from embedded.conftest import Platform
from embedded.flow_folders import Servers, wait_for, write_flow

pytestmark = pytest.mark.requires("package-index")
NAME = "old-pins"
PINS = {
    "mlflow": "2.5.0",
    "pandas": "2.0.2",
    "scikit-learn": "1.2.2",
    "xgboost": "1.7.6",
    "dill": "0.3.6",
    "hyperopt": "0.2.7",
}
FLOW = """\
import json
from importlib.metadata import version

import dill
import mlflow
import pandas as pd
from hyperopt import fmin, hp, tpe
from prefect import flow, task
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_squared_error
from xgboost import XGBRegressor

data = load_diabetes(as_frame=True)


@task
def loss(depth: int) -> float:
    model = XGBRegressor(max_depth=depth, n_estimators=5).fit(data.data, data.target)
    return float(mean_squared_error(data.target, model.predict(data.data)))


@flow(name="old-pins", log_prints=True)
def main():
    print(json.dumps({name: version(name) for name in %(names)r}))
    mlflow.set_experiment("old-pins")
    with mlflow.start_run():
        depths = hp.choice("depth", [2, 3])
        best = fmin(loss, depths, tpe.suggest, max_evals=2, show_progressbar=False)
        mlflow.log_params(best)
        mlflow.log_metric("loss", loss(2))
        model = XGBRegressor(max_depth=2, n_estimators=5).fit(data.data, data.target)
        logged = mlflow.xgboost.log_model(model, "model", registered_model_name="old-pins")
        with open("frame.dill", "wb") as file:
            dill.dump(pd.DataFrame(data.data), file)
        mlflow.log_artifact("frame.dill")
    again = mlflow.pyfunc.load_model("models:/old-pins/1")
    assert (again.predict(data.data) == model.predict(data.data)).all()
"""


def test_flow_of_2023_runs_on_todays_servers(platform: Platform) -> None:
    """Its pins win, it gets an older Prefect and setuptools, and logs to today's MLflow and S3."""
    servers = Servers(platform)
    names = [*PINS, "prefect", "setuptools"]
    requirements = "".join(f"{name}=={version}\n" for name, version in PINS.items())
    folder = write_flow(
        platform.home.parent / NAME, "pass", files={"requirements.txt": requirements}
    )
    (folder / "flow.py").write_text(FLOW % {"names": names})
    registered = platform.cli("flows", "register", str(folder))
    assert registered.returncode == 0, registered.stderr
    done = platform.cli("flows", "run", f"{NAME}/{NAME}", "--follow", timeout_seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    flow_run_id = done.stdout.split("/runs/flow-run/")[1].split()[0]

    log = wait_for(lambda: _log(servers, flow_run_id), 15)
    found = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert {name: found[name] for name in PINS} == PINS
    assert found["prefect"] != servers.prefect.get("/admin/version").json()
    (run,) = servers.mlflow_runs(NAME, flow_run_id)
    assert run["info"]["status"] == "FINISHED"
    assert {metric["key"] for metric in run["data"]["metrics"]} == {"loss"}
    assert {param["key"] for param in run["data"]["params"]} == {"depth"}
    bucket, _, prefix = run["info"]["artifact_uri"].removeprefix("s3://").partition("/")
    kept = {key.rpartition("/")[2] for key in servers.objects(bucket, prefix)}
    assert {"MLmodel", "model.xgb", "frame.dill"} <= kept
    # Whether this run has built its environment, or the agent ahead of it.
    (supplied,) = (line for line in log.splitlines() if "supplied besides" in line)
    assert f"prefect {found['prefect']}, setuptools {found['setuptools']}" in supplied


def _log(servers: Servers, flow_run_id: str) -> str:
    """Return the run's log once its last line is there."""
    log = servers.log(flow_run_id)
    return log if "Finished in state" in log else ""
