import pytest

from mlops.data.dvc_files import TrackedOutput, read_dvc_file, read_lock
from mlops.errors import MlopsError

A, B, C = "a" * 32, "b" * 32, "c" * 32
LOCK = f"""\
schema: '2.0'
stages:
  train:
    cmd: python train.py
    deps:
    - path: data
      md5: {C}.dir
    outs:
    - path: model
      hash: md5
      md5: {A}.dir
      size: 10
      nfiles: 2
    - path: metrics.json
      hash: md5
      md5: {B}
  each@red:
    cmd: x
    outs:
    - path: out/red.csv
      hash: md5
      md5: {B}
    - path: scores/red.json
      hash: md5
      md5: {B}
"""
PIPELINE = b"""\
stages:
  train:
    cmd: python train.py
    outs: [model]
    metrics:
    - metrics.json:
        cache: false
  each:
    foreach: [red]
    do:
      wdir: ../other
      outs:
      - out/${item}.csv:
          remote: cold
      metrics:
      - scores/${item}.json:
          cache: false
"""


def outline(outputs: list[TrackedOutput]) -> list[tuple[str, str, str, str | None]]:
    return [(out.path, out.hash, out.layout, out.remote) for out in outputs]


def test_dvc_file_is_read() -> None:
    """A .dvc file names its output beside it, with DVC 2's layout where it says no kind of hash."""
    text = f"outs:\n- md5: {A}.dir\n  size: 3\n  nfiles: 2\n  hash: md5\n  path: raw\n".encode()
    (output,) = read_dvc_file(text, "data/raw.dvc")
    assert outline([output]) == [("data/raw", f"{A}.dir", "files/md5", None)]
    assert (output.size, output.files) == (3, 2)
    old = f"md5: {C}\nwdir: ..\nouts:\n- md5: {B}\n  path: x.csv\n  remote: cold\n".encode()
    assert outline(read_dvc_file(old, "data/x.dvc")) == [("x.csv", B, "legacy", "cold")]


def test_lock_is_read_with_its_pipeline() -> None:
    """A pipeline's outputs are those that DVC keeps: not what dvc.yaml leaves to git."""
    found = read_lock(LOCK.encode(), "sub/dvc.lock", PIPELINE)
    assert outline(found) == [
        ("sub/model", f"{A}.dir", "files/md5", None),
        ("other/out/red.csv", B, "files/md5", "cold"),
    ]


def test_what_no_remote_has_is_left_out() -> None:
    """Outputs that are not pushed, or lie elsewhere, are none to pull."""
    text = f"""\
outs:
- {{md5: {A}, path: a, cache: false}}
- {{md5: {A}, path: b, push: false}}
- {{etag: x, path: 's3://bucket/c'}}
- {{md5: {A}, path: /d}}
- {{path: not-made-yet}}
"""
    assert read_dvc_file(text.encode(), "x.dvc") == []
    assert read_dvc_file(b"", "x.dvc") == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("outs: [", "x.dvc: not YAML"),
        ("outs: 3", "x.dvc: not understood: outs"),
        ("- a", "x.dvc: not understood"),
        ("outs:\n- {md5: abc, path: a}", "x.dvc: a: not understood: hash"),
        (f"outs:\n- {{md5: {A}, path: ../a}}", "outside of the project"),
    ],
)
def test_junk_is_named(text: str, what: str) -> None:
    """A file that is not DVC's is named, with the place in it."""
    with pytest.raises(MlopsError, match=what):
        read_dvc_file(text.encode(), "x.dvc")
