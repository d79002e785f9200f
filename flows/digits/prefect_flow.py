"""Learn to read handwritten digits: prepare, train, evaluate. An example to copy.

The data are 1,797 scans of 8 by 8 pixels (UCI Optical Recognition of Handwritten Digits), which
scikit-learn brings along. Where MLflow is and under which identity to write to it is in the
environment (`MLFLOW_TRACKING_URI` and its companions), wherever this runs.
"""

from pathlib import Path
from typing import NamedTuple

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from prefect import flow, task
from sklearn.datasets import load_digits
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

NAME = "digits"  # of the experiment and of the registered model
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


class Parts(NamedTuple):
    """Images (rows of 64 pixels, 0 to 16) and their labels (0 to 9)."""

    train_images: pd.DataFrame
    test_images: pd.DataFrame
    train_labels: pd.Series
    test_labels: pd.Series


@task
def prepare(test_size: float, seed: int) -> Parts:
    """Load the scans and hold a part of them out to test on, with every digit in both."""
    images, labels = load_digits(return_X_y=True, as_frame=True)
    return Parts(
        *train_test_split(images, labels, test_size=test_size, random_state=seed, stratify=labels)
    )


@task
def train(images: pd.DataFrame, labels: pd.Series, c: float, gamma: float) -> Pipeline:
    """Fit a support vector machine on pixels scaled to 0 to 1."""
    return make_pipeline(MinMaxScaler(), SVC(C=c, gamma=gamma)).fit(images, labels)


@task
def evaluate(model: Pipeline, images: pd.DataFrame, labels: pd.Series) -> dict[str, float]:
    """Log metrics, the confusion matrix and the model itself; return the metrics."""
    predictions = model.predict(images)
    metrics = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1_macro": float(f1_score(labels, predictions, average="macro")),
    }
    mlflow.log_metrics(metrics)

    figure = Figure()
    ConfusionMatrixDisplay.from_predictions(labels, predictions, ax=figure.subplots())
    mlflow.log_figure(figure, "confusion_matrix.png")

    mlflow.sklearn.log_model(
        model,
        name="model",
        registered_model_name=NAME,
        signature=mlflow.models.infer_signature(images, predictions),
        input_example=images.head(3),
        # Told, MLflow need not find out by importing the model in a process of its own.
        pip_requirements=str(REQUIREMENTS),
    )
    return metrics


@flow(log_prints=True)
def digits(
    test_size: float = 0.25, c: float = 10.0, gamma: float = 0.2, seed: int = 0
) -> dict[str, float]:
    """Train a classifier of handwritten digits and register it in MLflow.

    Args:
        test_size: Part of the images that is held out to test on, between 0 and 1.
        c: Penalty of the support vector machine for a misread image.
        gamma: How near an image must be to count as similar; higher is nearer.
        seed: Decides which images are held out.
    """
    mlflow.set_experiment(NAME)
    with mlflow.start_run():
        mlflow.log_params({"test_size": test_size, "c": c, "gamma": gamma, "seed": seed})
        parts = prepare(test_size, seed)
        model = train(parts.train_images, parts.train_labels, c, gamma)
        metrics = evaluate(model, parts.test_images, parts.test_labels)
    print(f"read {metrics['accuracy']:.1%} of {len(parts.test_images)} unseen digits correctly")
    return metrics


if __name__ == "__main__":
    digits()
