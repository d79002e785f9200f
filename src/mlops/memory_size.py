"""Amounts of memory as people write them: `4GiB`, `500MB`."""

import re

# Prefect's engine alone takes half of it.
MINIMUM_BYTES = 256 << 20
# Alike for Python's `re` and for the regular expressions of editors and of Prefect's UI.
PATTERN = r"^[1-9][0-9]*(\.[0-9]+)? ?([KMGT]i?B|[KMGT]i|B)$"
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_memory(text: str) -> int:
    """Return an amount in bytes.

    Args:
        text: A number and a unit: B, KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB, and
            Ki, Mi, Gi, Ti as Kubernetes writes them, of 1024.

    Raises:
        ValueError: It is something else, or too small for any run; the message says which.
    """
    if not re.match(PATTERN, text):
        raise ValueError(f"{text!r} is not an amount of memory; allowed: as in 4GiB or 500MB")
    number, letter, binary = re.match(r"([0-9.]+) ?([KMGT]?)(i?)", text).groups()  # type: ignore[union-attr]
    amount = int(float(number) * (1024 if binary else 1000) ** _UNITS[letter])
    if amount < MINIMUM_BYTES:
        raise ValueError(f"{text!r} is too little for any run; allowed: from 256MiB")
    return amount


def format_memory(amount_bytes: int) -> str:
    """Return an amount for people, such as `1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if amount_bytes >= size:
            return f"{round(amount_bytes / size, 1):g} {unit}"
    return f"{amount_bytes} bytes"
