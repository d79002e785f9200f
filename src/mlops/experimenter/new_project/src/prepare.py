"""Split the data into a part to train on and a part to test on."""

from pathlib import Path

import dvc.api
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

PREPARED = Path("data/prepared")


def split(data: pd.DataFrame, test_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows to train on and those to test on.

    Args:
        data: One row per sample.
        test_share: Of the rows to test on, between 0 and 1.
        seed: The same one gives the same rows.
    """
    train, test = train_test_split(data, test_size=test_share, random_state=seed)
    return train, test


def main() -> None:
    """Write `train.csv` and `test.csv`."""
    params = dvc.api.params_show()["prepare"]
    # Comes with scikit-learn: 442 people, ten measures each, and how their diabetes went on.
    # Your own data belongs under data/, with `dvc add data/NAME`, and into the stage's deps.
    data = load_diabetes(as_frame=True).frame
    PREPARED.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), split(data, **params), strict=True):
        part.to_csv(PREPARED / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
