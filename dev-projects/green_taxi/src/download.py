"""Get the months of trips, from the commission or from a folder, each whole or not at all.

The New York City Taxi and Limousine Commission publishes what its licensees report, a file a
month. Where its address cannot be reached, GREEN_TAXI_DATA names a folder with these files.
"""

import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ADDRESS = "https://d37ci6vzurychx.cloudfront.net/trip-data"
RAW = Path("data/raw")
SILENCE_SECONDS = 30  # after which the server counts as gone
BLOCK_BYTES = 1 << 18


class DownloadError(Exception):
    """Says what is wrong, and what to do."""


def file_name(month: str) -> str:
    """Return the name of a month's file, as in `green_tripdata_2021-01.parquet`."""
    return f"green_tripdata_{month}.parquet"


def is_parquet(path: Path) -> bool:
    """Return whether a file is there, and whole: Parquet has its description at the end."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def read_blocks(source: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of an open file."""
    while block := source.read(BLOCK_BYTES):
        yield block


def shown(blocks: Iterable[bytes], name: str, total: int | None) -> Iterator[bytes]:
    """Pass blocks on, and show how far that is.

    Args:
        blocks: The bytes of a file.
        name: How the file is called.
        total: Its bytes, where that is known.
    """
    done = 0
    of_all = f" of {total / 1e6:.1f}" if total else ""
    for block in blocks:
        done += len(block)
        if sys.stderr.isatty():
            print(f"\r{name}: {done / 1e6:.1f}{of_all} MB", end="", file=sys.stderr, flush=True)
        yield block
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if total is not None and done != total:
        raise DownloadError(f"{name}: broke off after {done} of {total} bytes: run it again")
    print(f"{name}: {done / 1e6:.1f} MB")


def download(address: str, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file of the commission's.

    Raises:
        DownloadError: The address cannot be reached, or has no such file.
    """
    url = f"{address}/{name}"
    elsewhere = f"if you have {name}, set GREEN_TAXI_DATA to its folder"
    try:
        with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length")
            yield from shown(read_blocks(answer), name, int(length) if length else None)
    except urllib.error.HTTPError as error:
        raise DownloadError(
            f"{url}: HTTP {error.code} {error.reason}: is this month published? {elsewhere}"
        ) from None
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: cannot be reached: {error.reason}; {elsewhere}") from None
    except TimeoutError:
        raise DownloadError(
            f"{url}: silent for {SILENCE_SECONDS} s: run it again; {elsewhere}"
        ) from None


def copy(folder: Path, name: str) -> Iterator[bytes]:
    """Yield the bytes of a file in a folder.

    Raises:
        DownloadError: It is not there, or cannot be read.
    """
    path = folder / name
    try:
        with path.open("rb") as source:
            yield from shown(read_blocks(source), str(path), path.stat().st_size)
    except FileNotFoundError:
        raise DownloadError(f"{path}: no such file; GREEN_TAXI_DATA names its folder") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise DownloadError(f"{path}: {error.strerror}") from None


def store(blocks: Iterable[bytes], target: Path) -> None:
    """Write a file, and put it into its place when all of it is there.

    Raises:
        DownloadError: There is no room, or it is no Parquet file.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            for block in blocks:
                file.write(block)
        if not is_parquet(part):
            start = part.read_bytes()[:60]
            raise DownloadError(f"{target.name}: is no Parquet file, begins with {start!r}")
        part.replace(target)
    except OSError as error:
        free = shutil.disk_usage(target.parent).free / 1e6
        raise DownloadError(
            f"{target}: cannot be written: {error.strerror}; {free:.0f} MB are free there"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def fetch(months: Iterable[str], folder: Path, given: str | None) -> None:
    """Bring a folder to hold the files of these months, and nothing else.

    Args:
        months: As in `2021-01`.
        folder: What is in it of other months is removed; whole files stay.
        given: A folder to copy from instead of the download.

    Raises:
        DownloadError: A file cannot be had.
    """
    names = sorted({file_name(month) for month in months})
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in names or not is_parquet(path):
            path.unlink()
    for name in names:
        if (folder / name).exists():
            print(f"{folder / name}: is there")
        else:
            source = copy(Path(given), name) if given else download(ADDRESS, name)
            store(source, folder / name)


def main() -> None:
    """Fill `data/raw`."""
    months = yaml.safe_load(Path("params.yaml").read_text())["months"]
    try:
        fetch(months.values(), RAW, os.environ.get("GREEN_TAXI_DATA"))
    except DownloadError as error:
        sys.exit(f"download: {error}")


if __name__ == "__main__":
    main()
