"""`pytest` runs this."""

import pandas as pd
from prepare import split


def test_parts_are_all_of_the_data() -> None:
    data = pd.DataFrame({"target": range(100)})
    train, test = split(data, test_share=0.25, seed=1)
    assert len(test) == 25
    assert set(train["target"]) | set(test["target"]) == set(range(100))


def test_same_seed_gives_the_same_parts() -> None:
    data = pd.DataFrame({"target": range(100)})
    first, second = (split(data, test_share=0.25, seed=1)[0] for _ in range(2))
    assert first.equals(second)
