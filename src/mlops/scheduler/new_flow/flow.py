"""A flow: the function below, its parameters, and what it tells MLflow."""

import mlflow
from prefect import flow


@flow(log_prints=True)
def my_flow(steps: int = 20, rate: float = 0.1) -> float:
    """Walk down a parabola, in place of a training.

    Args:
        steps: How many steps to take.
        rate: Length of a step, between 0 and 1.
    """
    mlflow.set_experiment("my flow")
    with mlflow.start_run():
        mlflow.log_params({"steps": steps, "rate": rate})
        position = 1.0
        for step in range(steps):
            position -= rate * 2 * position
            mlflow.log_metric("loss", position**2, step=step)
    print(f"a loss of {position**2:.2g} after {steps} steps")
    return position**2


if __name__ == "__main__":
    my_flow()
