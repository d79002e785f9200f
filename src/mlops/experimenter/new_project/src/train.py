"""Train a model, and tell MLflow how."""

from pathlib import Path

import dvc.api
import joblib
import mlflow
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

MODELS = Path("models")


def main() -> None:
    """Write the model, and the id of the MLflow run that `evaluate.py` goes on with."""
    params = dvc.api.params_show()["train"]
    data = pd.read_csv("data/prepared/train.csv")
    mlflow.set_experiment("my-project")
    with mlflow.start_run() as run:
        mlflow.log_params(params)
        model = RandomForestRegressor(
            n_estimators=params["trees"], max_depth=params["depth"], random_state=params["seed"]
        )
        model.fit(data.drop(columns="target"), data["target"])
    MODELS.mkdir(exist_ok=True)
    joblib.dump(model, MODELS / "model.joblib")
    (MODELS / "mlflow-run").write_text(run.info.run_id)


if __name__ == "__main__":
    main()
