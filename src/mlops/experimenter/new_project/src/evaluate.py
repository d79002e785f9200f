"""Measure the model on data that it has not seen, for DVC and for MLflow."""

import json
from pathlib import Path

import joblib
import mlflow
import pandas as pd
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error


def main() -> None:
    """Write `metrics.json` and `plots/predictions.csv`, and log both."""
    data = pd.read_csv("data/prepared/test.csv")
    model = joblib.load("models/model.joblib")
    found = pd.DataFrame(
        {"measured": data["target"], "predicted": model.predict(data.drop(columns="target"))}
    )
    metrics = {
        "rmse": root_mean_squared_error(found["measured"], found["predicted"]),
        "mae": mean_absolute_error(found["measured"], found["predicted"]),
        "r2": r2_score(found["measured"], found["predicted"]),
    }
    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    Path("plots").mkdir(exist_ok=True)
    found.to_csv("plots/predictions.csv", index=False)
    mlflow.set_experiment("my-project")
    with mlflow.start_run(run_id=Path("models/mlflow-run").read_text()):
        mlflow.log_metrics(metrics)
        mlflow.log_artifact("plots/predictions.csv")
        mlflow.log_artifact("models/model.joblib", "model")


if __name__ == "__main__":
    main()
