"""`pytest` runs this."""

import pandas as pd
from clean import clean

GOOD = {
    "lpep_pickup_datetime": pd.Timestamp("2021-01-04 08:10"),
    "lpep_dropoff_datetime": pd.Timestamp("2021-01-04 08:22"),
    "PULocationID": 74,
    "DOLocationID": 41,
    "trip_distance": 1.5,
    "fare_amount": 9.0,
}
BOUNDS = {"min_minutes": 1, "max_minutes": 60, "max_miles": 50}


def cleaned(**changes: object) -> pd.DataFrame:
    return clean(pd.DataFrame([GOOD | changes]), "2021-01", **BOUNDS)


def test_good_trip_is_kept_with_what_is_known_at_its_start() -> None:
    expected = {
        "miles": 1.5,
        "pickup_zone": 74,
        "dropoff_zone": 41,
        "hour": 8,
        "weekday": 0,
        "minutes": 12.0,
    }
    assert cleaned().to_dict("records") == [expected]


def test_what_makes_no_sense_is_left_out() -> None:
    assert cleaned(trip_distance=0).empty
    assert cleaned(trip_distance=24_000).empty
    assert cleaned(lpep_dropoff_datetime=GOOD["lpep_pickup_datetime"]).empty
    assert cleaned(lpep_dropoff_datetime=pd.Timestamp("2021-01-05 08:10")).empty
    assert cleaned(lpep_pickup_datetime=pd.Timestamp("2009-01-01")).empty
