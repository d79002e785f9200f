"""A 1 GB model to MLflow and back, against boto3's multipart transfers of the same bytes.

All of it in one process with an agent's environment, in turn, and each from a folder that
`pyfunc.save_model` has just written: by boto3; by `log_artifacts` and `download_artifacts`,
straight to S3 as our experiments are (`s3://mlflow/…`) and through MLflow's server
(`mlflow-artifacts:/`); and by `pyfunc.log_model` with a registered name and `load_model` of that
version, of which the transfer is told apart from what they do besides. The peer is boto3's
transfer manager with ten requests at once, as MLflow's are.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import Clock, Findings, announce, compare_speed, run_bench
from object_stores import ObjectStoreName, Transfers, object_store, object_store_options
from platform_under_test import Platform, open_folder, own_platform

MODEL_BYTES = 10**9
BLOCK_BYTES = 10**6
THREADS = 10  # boto3's and MLflow's default
DOWNLOADS = 3  # after each upload: they are quick, and vary more
FLOOR = 0.8
MODEL = """\
from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Weights(PythonModel):
    def load_context(self, context):
        self.weights = Path(context.artifacts["weights"]).read_bytes()

    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


set_model(Weights())
"""
BUCKET = "mlflow"
PLACES = {"direct": None, "proxied": "mlflow-artifacts:/proxied"}
LOG_MODEL, LOAD_MODEL = "log_model", "load_model of a version"
UPLOAD, DOWNLOAD = "boto3, upload", "boto3, download"


def bench(rounds: int, s3: ObjectStoreName) -> Findings:
    """Log and load by each way, in turn.

    Args:
        rounds: How often.
        s3: The server.
    """
    with open_folder() as folder, own_platform(folder) as platform:
        platform.run("local", "up")
        platform.stop_all_but(("postgres", "s3", "mlflow"))
        with object_store(s3, platform):
            clock = Clock()
            models = Models(platform, folder, clock)
            for number in range(rounds):
                announce(f"round {number + 1} of {rounds}")
                models.move(backwards=number % 2 == 1)
    measures = clock.measures()
    return list(measures.values()), [
        compare_speed(measures[what], measures[peer], floor)
        for what, peer, floor in (
            ("log_artifacts, direct", UPLOAD, FLOOR),
            ("download_artifacts, direct", DOWNLOAD, FLOOR),
            (f"{LOG_MODEL}, its upload", UPLOAD, FLOOR),
            (f"{LOAD_MODEL}, its download", DOWNLOAD, FLOOR),
            ("log_artifacts, proxied", UPLOAD, None),
            ("download_artifacts, proxied", DOWNLOAD, None),
        )
    ]


class Models:
    """A model, and the ways to move it.

    Args:
        platform: Whose agent this process is.
        folder: Where it may write.
        clock: Times each way.
    """

    def __init__(self, platform: Platform, folder: Path, clock: Clock) -> None:
        agent = platform.environment("agent")
        quiet = {
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }
        os.environ.update(agent | quiet)
        # MLflow leaves there what it has loaded a model from.
        tempfile.tempdir = str(folder)
        import mlflow  # noqa: PLC0415  # it takes 2 s, for which `--help` need not wait

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._mlflow = mlflow
        self._clock = clock
        self._folder = folder
        self._code = folder / "model.py"
        self._code.write_text(MODEL)
        self._weights = folder / "weights.bin"
        with self._weights.open("wb") as file:
            for _ in range(MODEL_BYTES // BLOCK_BYTES):
                file.write(os.urandom(BLOCK_BYTES))
        self._peer = Transfers(agent, BUCKET, THREADS)
        self._janitor = Transfers(platform.environment("experimenter"), BUCKET, THREADS)
        self._experiments = {
            name: mlflow.create_experiment(name, artifact_location=place)
            for name, place in PLACES.items()
        }

    def move(self, *, backwards: bool) -> None:
        """Log and load the model by each way.

        Args:
            backwards: The last way first.
        """
        ways: list[Callable[[Path, Path], None]] = [self._by_boto3]
        ways += [*(partial(self._by_mlflow, name) for name in PLACES), self._as_model]
        for way in reversed(ways) if backwards else ways:
            saved, pulled = self._folder / "saved", self._folder / "pulled"
            self._clock.time("save_model", self._save, saved)
            pulled.mkdir()
            way(saved, pulled)
            for folder in (saved, pulled):
                shutil.rmtree(folder)
            self._janitor.remove("")

    def _by_boto3(self, saved: Path, pulled: Path) -> None:
        files = [path for path in saved.rglob("*") if path.is_file()]
        names = [str(path.relative_to(saved)) for path in files]
        self._clock.time(UPLOAD, self._peer.upload, dict(zip(names, files, strict=True)))
        for number in range(DOWNLOADS):
            places = {name: pulled / str(number) / name for name in names}
            for place in places.values():
                place.parent.mkdir(parents=True, exist_ok=True)
            self._clock.time(DOWNLOAD, self._peer.download, places)
            self._check(pulled / str(number))

    def _by_mlflow(self, name: str, saved: Path, pulled: Path) -> None:
        mlflow = self._mlflow
        with mlflow.start_run(experiment_id=self._experiments[name]) as run:
            self._clock.time(f"log_artifacts, {name}", mlflow.log_artifacts, str(saved), "model")
        uri = f"runs:/{run.info.run_id}/model"
        for number in range(DOWNLOADS):
            place = pulled / str(number)
            place.mkdir()
            download = partial(mlflow.artifacts.download_artifacts, uri, dst_path=str(place))
            self._clock.time(f"download_artifacts, {name}", download)
            self._check(place)

    def _as_model(self, saved: Path, _pulled: Path) -> None:
        from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository  # noqa: PLC0415

        mlflow = self._mlflow
        self._clock.time("load_model of a folder", mlflow.pyfunc.load_model, str(saved))
        log = partial(mlflow.pyfunc.log_model, name="model", registered_model_name="bench")
        with (
            mlflow.start_run(experiment_id=self._experiments["direct"]),
            self._clock.within(f"{LOG_MODEL}, its upload", S3ArtifactRepository, "log_artifacts"),
        ):
            logged = self._clock.time(LOG_MODEL, partial(log, **self._model()))
        uri = f"models:/bench/{logged.registered_model_version}"
        with self._clock.within(
            f"{LOAD_MODEL}, its download", S3ArtifactRepository, "download_artifacts"
        ):
            self._clock.time(LOAD_MODEL, mlflow.pyfunc.load_model, uri)

    def _save(self, folder: Path) -> None:
        self._mlflow.pyfunc.save_model(str(folder), **self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "python_model": str(self._code),
            "artifacts": {"weights": str(self._weights)},
            # Named, so that MLflow does not look for them by loading the model in a new process.
            "pip_requirements": [f"mlflow=={self._mlflow.__version__}"],
        }

    def _check(self, folder: Path) -> None:
        (came,) = folder.rglob(self._weights.name)
        if came.stat().st_size != MODEL_BYTES:
            raise RuntimeError(f"{came}: not all of it")
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_bench(bench, rounds=3, more=object_store_options())
