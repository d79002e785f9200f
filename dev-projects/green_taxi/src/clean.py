"""Keep the trips that make sense, and of each only what is known when it starts."""

from pathlib import Path

import pandas as pd
import yaml

RAW, CLEAN = Path("data/raw"), Path("data/clean")


def clean(
    trips: pd.DataFrame, month: str, *, min_minutes: float, max_minutes: float, max_miles: float
) -> pd.DataFrame:
    """Return a row per good trip: what to predict from, and `minutes`.

    Fare, tip and the end of a trip are known only when it is over, and are left out. The distance
    stays: whoever plans a trip knows the length of the way.

    Args:
        trips: As the commission publishes them.
        month: In which they are to have started; files hold a few of other years.
        min_minutes: Shorter trips were hardly any.
        max_minutes: Longer ones are meters that were left on.
        max_miles: Longer ones are mistakes, up to once around the earth and more.
    """
    start = trips["lpep_pickup_datetime"]
    found = pd.DataFrame(
        {
            "miles": trips["trip_distance"],
            "pickup_zone": trips["PULocationID"],
            "dropoff_zone": trips["DOLocationID"],
            "hour": start.dt.hour,
            "weekday": start.dt.day_of_week,
            "minutes": (trips["lpep_dropoff_datetime"] - start).dt.total_seconds() / 60,
        }
    )
    good = (
        (start.dt.strftime("%Y-%m") == month)
        & found["minutes"].between(min_minutes, max_minutes)
        & (found["miles"] > 0)
        & (found["miles"] <= max_miles)
    )
    return found[good].reset_index(drop=True)


def main() -> None:
    """Write `train.parquet` and `validate.parquet`."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    CLEAN.mkdir(parents=True, exist_ok=True)
    for part, month in params["months"].items():
        trips = pd.read_parquet(RAW / f"green_tripdata_{month}.parquet")
        kept = clean(trips, month, **params["clean"])
        kept.to_parquet(CLEAN / f"{part}.parquet", index=False)
        print(f"{part}: {month}, {len(kept)} of {len(trips)} trips")


if __name__ == "__main__":
    main()
