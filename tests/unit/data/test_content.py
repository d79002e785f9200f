import json
from typing import Any

import pytest
from dvc_remote import md5

from mlops.data.content import DamagedDataError, DataFile, parse_list
from mlops.data.reference import Reference

A, B = "a" * 32, "b" * 32


def read(lines: Any) -> list[DataFile]:
    body = json.dumps(lines).encode()
    reference = Reference(bucket="dvc", path="", hash=f"{md5(body)}.dir")
    return list(parse_list(body, reference))


def test_list_is_read() -> None:
    """A folder's list gives its files, sorted; what newer releases may add is let be."""
    lines = [{"md5": B, "relpath": "sub/b"}, {"md5": A, "relpath": "ä b.csv", "size": 1}]
    assert read(lines) == [("sub/b", B), ("ä b.csv", A)]
    assert read([]) == []


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([{"md5": A, "relpath": "../x"}], "leaves the folder"),
        ([{"md5": A, "relpath": "a/../../x"}], "leaves the folder"),
        ([{"md5": A, "relpath": "/etc/passwd"}], "leaves the folder"),
        ([{"md5": A, "relpath": "a//b"}], "leaves the folder"),
        ([{"md5": A, "relpath": ""}], "leaves the folder"),
        ([{"md5": A, "relpath": "a\0b"}], "leaves the folder"),
        ([{"md5": A, "relpath": "x"}, {"md5": B, "relpath": "x"}], "'x' is there twice"),
        ([{"md5": A, "relpath": "x"}, {"md5": B, "relpath": "x/y"}], "a file and a folder"),
        ([{"md5": "../../x", "relpath": "x"}], "not an MD5"),
        ([{"md5": f"{A}.dir", "relpath": "x"}], "a folder in a folder"),
        ([{"relpath": "x"}], "not one that DVC writes"),
        ({"md5": A}, "not one that DVC writes"),
    ],
)
def test_hostile_list_is_refused(lines: Any, what: str) -> None:
    """A list that would write elsewhere, or whose files cannot all be there, is refused."""
    with pytest.raises(DamagedDataError, match=what):
        read(lines)


def test_damaged_list_is_told() -> None:
    """Bytes that do not have the hash of their name are not even read."""
    reference = Reference(bucket="dvc", path="p", hash=f"{A}.dir")
    with pytest.raises(DamagedDataError, match=r"s3://dvc/p@a{32}\.dir: the list .* damaged"):
        parse_list(b"[]", reference)
