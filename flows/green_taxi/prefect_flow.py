"""Predict how long a taxi trip takes: pull the data, search for the best model, register it.

The data are the NYC Taxi & Limousine Commission's records of green taxis, one file per month, as
the project `dev-projects/green_taxi` tracks them with DVC. The last month judges the model that is
trained on those before it.
"""

from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
from mlflow.models import infer_signature
from prefect import flow, task
from sklearn.metrics import root_mean_squared_error
from xgboost import XGBRegressor

from mlops.data import pull

NAME = "green_taxi"  # of the experiment and of the registered model
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FEATURES = ["miles", "pickup_zone", "dropoff_zone", "hour", "weekday"]
TARGET = "minutes"


def clean(trips: pd.DataFrame, month: str) -> pd.DataFrame:
    """Return what is known of a trip when it starts, and its minutes, the earliest trip first.

    Args:
        trips: As the commission publishes them.
        month: In which they are to have started, as in `2021-01`; files hold a few of other years.
    """
    start = trips["lpep_pickup_datetime"]
    found = pd.DataFrame(
        {
            "start": start,
            "miles": trips["trip_distance"],
            "pickup_zone": trips["PULocationID"],
            "dropoff_zone": trips["DOLocationID"],
            "hour": start.dt.hour,
            "weekday": start.dt.day_of_week,
            TARGET: (trips["lpep_dropoff_datetime"] - start).dt.total_seconds() / 60,
        }
    )
    # Outside of these are meters that were left on or hardly used, and mistakes.
    is_good = found[TARGET].between(1, 60) & found["miles"].between(0, 50, inclusive="right")
    good = found[is_good & (start.dt.strftime("%Y-%m") == month)]
    # Floats, which may be missing when the model is asked one day.
    ordered = good.sort_values("start", kind="stable", ignore_index=True)
    return ordered[[*FEATURES, TARGET]].astype(float)


@task
def prepare(data: str, sample: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pull the months, and return the trips to train on and those of the last month."""
    files = sorted(pull(data, "data/raw").glob("green_tripdata_*.parquet"))
    if len(files) < 2:  # noqa: PLR2004
        raise ValueError(f"{data}: two months at least are needed, not {len(files)}")
    months = []
    for file in files:
        trips = clean(pd.read_parquet(file), month=file.stem.removeprefix("green_tripdata_"))
        months.append(trips.sample(frac=sample, random_state=seed).sort_index())
    return pd.concat(months[:-1], ignore_index=True), months[-1]


def fit(trips: pd.DataFrame, settings: dict[str, Any], seed: int) -> XGBRegressor:
    """Fit gradient-boosted trees."""
    # One thread adds up in one order: the same data give the same model on every machine.
    model = XGBRegressor(**settings, random_state=seed, n_jobs=1)
    return model.fit(trips[FEATURES], trips[TARGET])


def measure(model: XGBRegressor, trips: pd.DataFrame) -> float:
    """Return the root mean squared error of a model, in minutes."""
    return float(root_mean_squared_error(trips[TARGET], model.predict(trips[FEATURES])))


@task
def search(trips: pd.DataFrame, trials: int, seed: int) -> dict[str, Any]:
    """Return the best settings; each trial is an MLflow run below that of the flow.

    The last fifth of the trips judges them, so that the validation month stays unseen.
    """
    earlier, later = trips.iloc[: len(trips) * 4 // 5], trips.iloc[len(trips) * 4 // 5 :]

    def judge(trial: optuna.Trial) -> float:
        settings = {
            "n_estimators": trial.suggest_int("n_estimators", 50, 300, step=50),
            "max_depth": trial.suggest_int("max_depth", 3, 10),
            "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.3, log=True),
            "min_child_weight": trial.suggest_float("min_child_weight", 1, 100, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1),
        }
        with mlflow.start_run(run_name=f"trial {trial.number}", nested=True):
            mlflow.log_params(settings)
            error = measure(fit(earlier, settings, seed), later)
            mlflow.log_metric("search_rmse", error)
        return error

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(judge, n_trials=trials)
    return dict(study.best_params)


@task
def evaluate(model: XGBRegressor, trips: pd.DataFrame, mean: float) -> dict[str, float]:
    """Log and register the model, and how it compares with always guessing the mean."""
    error = measure(model, trips)
    of_mean = float(root_mean_squared_error(trips[TARGET], [mean] * len(trips)))
    metrics = {"rmse": error, "rmse_of_mean": of_mean, "better_than_mean": 1 - error / of_mean}
    mlflow.log_metrics(metrics)

    example = trips[FEATURES].head(3)
    mlflow.xgboost.log_model(
        model,
        name="model",
        registered_model_name=NAME,
        signature=infer_signature(example, model.predict(example)),
        input_example=example,
        # Told, MLflow need not find out by importing the model in a process of its own.
        pip_requirements=str(REQUIREMENTS),
    )
    return metrics


@flow(log_prints=True)
def green_taxi(data: str, trials: int = 10, sample: float = 1.0, seed: int = 0) -> dict[str, float]:
    """Search for the model that predicts best how long a trip takes, and register it in MLflow.

    Args:
        data: The folder of months at a revision, as `mlops data show data/raw` prints it.
        trials: How many settings of the model are tried.
        sample: Part of the trips that is used, above 0, up to 1.
        seed: Decides which settings are tried, and which trips are in the sample.
    """
    mlflow.set_experiment(NAME)
    with mlflow.start_run():
        mlflow.log_params({"data": data, "trials": trials, "sample": sample, "seed": seed})
        train, validation = prepare(data, sample, seed)
        settings = search(train, trials, seed)
        mlflow.log_params(settings)
        metrics = evaluate(fit(train, settings, seed), validation, train[TARGET].mean())
    print(
        f"off by {metrics['rmse']:.2f} minutes in {len(validation)} unseen trips (RMSE), "
        f"{metrics['better_than_mean']:.0%} better than their mean"
    )
    return metrics
