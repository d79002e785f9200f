import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

FOLDER = Path(__file__).parents[3] / "flows" / "green_taxi"


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The flow's module, for what needs neither xgboost nor Optuna.

    The tests' environment has neither: tests/embedded runs the flow with both in one of its own.
    """
    for name in ("optuna", "xgboost"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["xgboost"], "XGBRegressor", object, raising=False)
    spec = importlib.util.spec_from_file_location("green_taxi_flow", FOLDER / "prefect_flow.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trips(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """Return trips from zone 7 to 42, as the commission publishes them: start, minutes, miles."""
    starts, minutes, miles = zip(*rows, strict=True)
    start = pd.Series(pd.to_datetime(list(starts)))
    return pd.DataFrame(
        {
            "lpep_pickup_datetime": start,
            "lpep_dropoff_datetime": start + pd.to_timedelta(list(minutes), unit="min"),
            "trip_distance": miles,
            "PULocationID": 7,
            "DOLocationID": 42,
            "fare_amount": 10.0,
        }
    )


def test_clean_returns_what_is_known_at_the_start(flow: ModuleType) -> None:
    """A trip is its way, zones, hour and weekday, and its minutes; nothing that the end tells."""
    cleaned = flow.clean(trips(("2021-01-03 17:30", 12.5, 3.1)), "2021-01")
    assert cleaned.to_dict("records") == [
        {
            "miles": 3.1,
            "pickup_zone": 7.0,
            "dropoff_zone": 42.0,
            "hour": 17.0,
            "weekday": 6.0,
            "minutes": 12.5,
        }
    ]


@pytest.mark.parametrize(
    ("start", "minutes", "miles", "is_kept"),
    [
        ("2021-01-01 00:00", 1, 50, True),
        ("2021-01-31 23:59", 60, 0.1, True),
        ("2021-01-15 12:00", 0.9, 1, False),
        ("2021-01-15 12:00", 61, 1, False),
        ("2021-01-15 12:00", 10, 0, False),
        ("2021-01-15 12:00", 10, 50.1, False),
        ("2009-01-01 00:03", 10, 1, False),
        ("2021-02-01 00:00", 10, 1, False),
    ],
)
def test_clean_keeps_good_trips_of_the_month(
    flow: ModuleType, start: str, minutes: float, miles: float, is_kept: bool
) -> None:
    """One minute to an hour, up to 50 miles, and begun in the month that the file is of."""
    assert len(flow.clean(trips((start, minutes, miles)), "2021-01")) == is_kept


def test_clean_puts_the_earliest_trip_first(flow: ModuleType) -> None:
    """The search judges by the last trips, so they are in the order of time."""
    late, early = ("2021-01-09 08:00", 20, 2), ("2021-01-02 08:00", 10, 1)
    assert list(flow.clean(trips(late, early), "2021-01")["minutes"]) == [10, 20]
