"""Learn to read handwritten digits with a small neural network, on whatever the machine has.

That is the CPU, one GPU or several. After each epoch a checkpoint goes to S3, as an artifact of
the MLflow run. A flow run that is tried again, by Prefect or by a person who clicks Retry, goes on
from there, in the same MLflow run: the learning curve is one.
"""

import time
from pathlib import Path

import mlflow
import torch
from prefect import flow
from prefect.runtime import flow_run
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAME = "digits_torch"  # of the experiment and of the registered model
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FLOW_RUN_TAG = "mlops.prefect_flow_run_id"  # as the agent sets it
CHECKPOINT = "checkpoint.pt"


def prepare(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return the scans of scikit-learn to train on, and a quarter that is held out to test on.

    Images are (n, 1, 8, 8), of pixels from 0 to 1, labels (n).
    """
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, torch.tensor(labels), test_size=0.25, random_state=seed, stratify=labels
    )
    return TensorDataset(train_images, train_labels), TensorDataset(test_images, test_labels)


class Training:
    """A network in training: how many epochs it has seen, and what the last one came to."""

    def __init__(self, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10)),
        ).to(self.device)
        # Several GPUs share each batch, in this one process: with one log and one checkpoint. A
        # training of hours is faster with DistributedDataParallel, a process for each GPU.
        several = torch.cuda.device_count() > 1
        self.replicas = nn.DataParallel(self.network) if several else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), learning_rate)
        self.seed = seed
        self.epochs = 0
        self.metrics: dict[str, float] = {}

    def train(self, train: TensorDataset, test: TensorDataset, batch_size: int) -> None:
        """Train for one epoch more, and measure."""
        self.epochs += 1
        # An epoch draws the same numbers whether or not those before it ran in this process.
        torch.manual_seed(self.seed + self.epochs)
        self.replicas.train()
        loss_sum = torch.zeros((), device=self.device)
        began = time.perf_counter()
        for batch in DataLoader(train, batch_size, shuffle=True):
            images, labels = (tensor.to(self.device) for tensor in batch)
            loss = nn.functional.cross_entropy(self.replicas(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(images)
        mean_loss = loss_sum.item() / len(train)  # waits for the GPU, so that the time is right
        seconds = time.perf_counter() - began
        self.replicas.eval()
        with torch.inference_mode():
            images, labels = (tensor.to(self.device) for tensor in test.tensors)
            accuracy = (self.replicas(images).argmax(dim=1) == labels).float().mean().item()
        self.metrics = {
            "train_loss": mean_loss,
            "accuracy": accuracy,
            "images_per_second": len(train) / seconds,
        }

    def save(self) -> None:
        """Put a checkpoint in the place of the one before; S3 has either the one or the other."""
        state = {"epochs": self.epochs, "metrics": self.metrics}
        state |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, CHECKPOINT)
        mlflow.log_artifact(CHECKPOINT)

    def resume(self, run_id: str) -> None:
        """Go on from the checkpoint of an MLflow run, if it has one."""
        client = mlflow.MlflowClient()
        if CHECKPOINT not in [file.path for file in client.list_artifacts(run_id)]:
            return
        file = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=CHECKPOINT)
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.epochs, self.metrics = state["epochs"], state["metrics"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        logged = [metric.step for metric in client.get_metric_history(run_id, "accuracy")]
        if self.epochs not in logged:  # the crash came between the checkpoint and the metrics
            mlflow.log_metrics(self.metrics, step=self.epochs)


@flow(log_prints=True, retries=2, retry_delay_seconds=5)
def digits_torch(
    epochs: int = 20, batch_size: int = 64, learning_rate: float = 1e-3, seed: int = 0
) -> dict[str, float]:
    """Train a neural network to read handwritten digits and register it in MLflow.

    Args:
        epochs: How often each image is trained on.
        batch_size: How many images are trained on at once.
        learning_rate: How far a step of the optimizer goes.
        seed: Decides which images are held out, and all else that is left to chance.
    """
    mlflow.set_experiment(NAME)
    mine = f"tags.`{FLOW_RUN_TAG}` = '{flow_run.id}'"
    runs = mlflow.search_runs(experiment_names=[NAME], filter_string=mine, output_format="list")
    train, test = prepare(seed)
    training = Training(learning_rate, seed)
    gpus = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
    device = ", ".join(gpus) or f"CPU, {torch.get_num_threads()} threads"
    tags = {FLOW_RUN_TAG: str(flow_run.id), "device": device}
    with mlflow.start_run(runs[0].info.run_id if runs else None, tags=tags) as run:
        mlflow.log_params({"epochs": epochs, "batch_size": batch_size})
        mlflow.log_params({"learning_rate": learning_rate, "seed": seed})
        training.resume(run.info.run_id)
        print(f"{device}: goes on after epoch {training.epochs} of {epochs}")
        while training.epochs < epochs:
            training.train(train, test, batch_size)
            training.save()
            mlflow.log_metrics(training.metrics, step=training.epochs)
        mlflow.pytorch.log_model(
            training.network.cpu().eval(),
            name="model",
            registered_model_name=NAME,
            input_example=test.tensors[0][:3].numpy(),
            # Told, MLflow need not find out by importing the model in a process of its own.
            pip_requirements=str(REQUIREMENTS),
        )
    print(f"read {training.metrics['accuracy']:.1%} of {len(test)} unseen digits correctly")
    return training.metrics


if __name__ == "__main__":
    digits_torch()
