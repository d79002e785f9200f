"""Measure the models on a month that they have not seen, for DVC and for MLflow."""

import json
from pathlib import Path

import joblib
import mlflow
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.base import RegressorMixin
from sklearn.inspection import permutation_importance
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

EXPERIMENT = "green_taxi"
MODELS = ("baseline", "xgboost")
PLOTS = Path("plots")
SAMPLE_ROWS = 5_000  # for the importance, which predicts each several times


def measure(measured: pd.Series, predicted: np.ndarray) -> dict[str, float]:
    """Return the errors in minutes, and the share of the variance that is explained."""
    return {
        "rmse": round(root_mean_squared_error(measured, predicted), 3),
        "mae": round(mean_absolute_error(measured, predicted), 3),
        "r2": round(r2_score(measured, predicted), 3),
    }


def draw_residuals(axes: Axes, measured: pd.Series, predicted: np.ndarray) -> None:
    """Draw how far off the predictions are, by their length."""
    axes.hexbin(predicted, measured - predicted, gridsize=60, bins="log", extent=(0, 60, -60, 60))
    axes.axhline(0, color="red", linewidth=1)
    axes.set(xlabel="predicted, minutes", ylabel="measured - predicted, minutes")


def draw_importance(axes: Axes, model: RegressorMixin, data: pd.DataFrame) -> None:
    """Draw how much worse the model is when one of the columns is shuffled."""
    sample = data.sample(min(SAMPLE_ROWS, len(data)), random_state=0)
    columns = sample.drop(columns="minutes")
    found = permutation_importance(
        model, columns, sample["minutes"], scoring="neg_root_mean_squared_error", random_state=0
    )
    axes.barh(columns.columns, found.importances_mean, xerr=found.importances_std)
    axes.set(xlabel="RMSE without it, more minutes")
    axes.figure.tight_layout()


def main() -> None:
    """Write `metrics.json` and the plots, and log both to the runs of the trainings."""
    train = pd.read_parquet("data/clean/train.parquet")
    data = pd.read_parquet("data/clean/validate.parquet")
    columns, measured = data.drop(columns="minutes"), data["minutes"]
    metrics = {"mean": measure(measured, np.full(len(data), train["minutes"].mean()))}
    PLOTS.mkdir(exist_ok=True)
    mlflow.set_experiment(EXPERIMENT)
    for name in MODELS:
        folder = Path("models", name)
        model = joblib.load(folder / "model.joblib")
        predicted = model.predict(columns)
        metrics[name] = measure(measured, predicted)
        gain = 1 - metrics[name]["rmse"] / metrics["mean"]["rmse"]
        metrics[name]["better_than_mean"] = round(gain, 3)
        with mlflow.start_run(run_id=(folder / "mlflow-run").read_text()):
            mlflow.log_metrics(metrics[name])
            for kind in ("residuals", "importance"):
                figure = Figure()
                if kind == "residuals":
                    draw_residuals(figure.subplots(), measured, predicted)
                else:
                    draw_importance(figure.subplots(), model, data)
                path = PLOTS / f"{kind}_{name}.png"
                figure.savefig(path)
                mlflow.log_artifact(str(path), "plots")
            mlflow.log_artifact(str(folder / "model.joblib"), "model")
        print(f"{name}: RMSE {metrics[name]['rmse']} minutes, {gain:.0%} better than the mean")
    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
