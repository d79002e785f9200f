"""Train one of the models, and tell MLflow how: `python src/train.py baseline`."""

import sys
from pathlib import Path
from typing import Any

import joblib
import mlflow
import pandas as pd
import yaml
from sklearn.base import RegressorMixin
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from xgboost import XGBRegressor

EXPERIMENT = "green_taxi"


def make_baseline(alpha: float) -> RegressorMixin:
    """Return a straight line along the distance, with its own height for zones and hours."""
    kinds = ["pickup_zone", "dropoff_zone", "hour", "weekday"]
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), kinds), remainder="passthrough"
    )
    return make_pipeline(columns, Ridge(alpha))


def make_xgboost(trees: int, depth: int, rate: float, seed: int) -> RegressorMixin:
    """Return boosted trees."""
    return XGBRegressor(
        n_estimators=trees,
        max_depth=depth,
        learning_rate=rate,
        random_state=seed,
        n_jobs=1,  # takes seconds, and is the same model again on a busy machine
    )


MODELS = {"baseline": make_baseline, "xgboost": make_xgboost}


def main(name: str) -> None:
    """Write the model, and the id of the MLflow run that `evaluate.py` goes on with."""
    params: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())[name]
    data = pd.read_parquet("data/clean/train.parquet")
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name=name) as run:
        mlflow.log_params({"model": name, **params})
        model = MODELS[name](**params)
        model.fit(data.drop(columns="minutes"), data["minutes"])
    folder = Path("models", name)
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(model, folder / "model.joblib")
    (folder / "mlflow-run").write_text(run.info.run_id)


if __name__ == "__main__":
    main(sys.argv[1])
