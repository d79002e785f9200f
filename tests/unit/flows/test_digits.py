import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from sklearn.metrics import accuracy_score

FOLDER = Path(__file__).parents[3] / "flows" / "digits"


@pytest.fixture(scope="module")
def flow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_flow", FOLDER / "prefect_flow.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_defaults_read_unseen_digits(flow: ModuleType) -> None:
    """With its default parameters the flow reads at least 95 % of the held-out digits."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(flow.digits.fn).parameters.items()
    }
    parts = flow.prepare.fn(defaults["test_size"], defaults["seed"])
    model = flow.train.fn(parts.train_images, parts.train_labels, defaults["c"], defaults["gamma"])
    assert accuracy_score(parts.test_labels, model.predict(parts.test_images)) >= 0.95


def test_seed_fixes_the_split(flow: ModuleType) -> None:
    """The same seed holds out the same digits; another seed holds out others."""
    once, again, other = (flow.prepare.fn(0.25, seed).test_images.index for seed in (0, 0, 1))
    assert list(once) == list(again)
    assert list(once) != list(other)


def test_held_out_digits_are_unseen(flow: ModuleType) -> None:
    """No image is both trained and tested on, and none is lost."""
    parts = flow.prepare.fn(0.25, 0)
    train, test = set(parts.train_images.index), set(parts.test_images.index)
    assert not train & test
    assert len(train | test) == 1797
