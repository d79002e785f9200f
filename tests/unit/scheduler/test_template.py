import ast
import builtins
import json
import keyword
import threading
from pathlib import Path

import pytest

from mlops import cli
from mlops.errors import MlopsError
from mlops.scheduler.flow_folder import check_parameters, read
from mlops.scheduler.template import FILES, TEMPLATE, create_flow, function_name


@pytest.mark.parametrize(
    ("name", "flow"),
    [
        ("sales", "sales"),
        ("my first", "my-first"),
        ("Ünï-訓練 2", "ünï-訓練-2"),
        ("3d", "flow-3d"),
        ("class", "flow-class"),
        ("mlflow", "flow-mlflow"),
        ('a"b\\c{}$x', "a-b-c-x"),
        ("🙂", "main"),
        ("on", "on"),
        ("No", "no"),
        ("null", "null"),
        ("True", "true"),
        ("1e3", "flow-1e3"),
        ("my_flow2", "my-flow2"),
        ("a my_flow", "a-my-flow"),
        ("my flow", "my-flow"),
        ("int", "flow-int"),
        ("Float", "flow-float"),
        ("ﬁne ½", "fine-1-2"),
        ("४२", "flow-४२"),
        ("9" * 200, "flow-" + "9" * 60),
        ("steps", "flow-steps"),
        ("match", "match"),
    ],
)
def test_new_folder_is_a_good_flow(tmp_path: Path, name: str, flow: str) -> None:
    """Whatever its name, the new folder passes the check, with a function that Python accepts."""
    made = create_flow(tmp_path, name)
    assert made.folder == tmp_path / name
    assert made.name == f"{flow}/{name}"
    flow_read = read(made.folder)
    assert flow_read.checked.name == made.name
    assert set(check_parameters(flow_read)["properties"]) == {"steps", "rate"}
    (experiment,) = (
        call.args[0].value
        for call in ast.walk(ast.parse((made.folder / "flow.py").read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "mlflow.set_experiment"
        and isinstance(call.args[0], ast.Constant)
    )
    assert experiment == name


def test_function_takes_nobodys_name() -> None:
    """Neither Python's own names nor those that the template uses become the function's."""
    nodes = list(ast.walk(ast.parse((TEMPLATE / "flow.py").read_text())))
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - {"my_flow"}
    used |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    taken = {*dir(builtins), *keyword.kwlist, *used}
    for name in taken:
        function = function_name(name)
        assert function.isidentifier()
        assert function not in taken


@pytest.mark.parametrize(
    ("name", "good"),
    [("a?b", "a-b"), ("..", "my-flow"), (".hidden", "hidden"), ("-x", "x"), (" a b ", "a-b"),
     ("x" * 300, "x" * 60), ("a\nb", "a-b")],
)  # fmt: skip
def test_bad_name_is_answered_with_a_good_one(tmp_path: Path, name: str, good: str) -> None:
    """A name that would make trouble is refused, with one that does not."""
    with pytest.raises(MlopsError) as caught:
        create_flow(tmp_path, name)
    assert caught.value.hint == f"a good name is {good}"
    assert create_flow(tmp_path, good).folder.name == good


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    """A folder, a file or a dead link of that name is refused, and so is a place in a flow."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        with pytest.raises(MlopsError, match="is there already"):
            create_flow(tmp_path, name)
    with pytest.raises(MlopsError, match="would make one flow of the folder"):
        create_flow(tmp_path, "config")
    made = create_flow(tmp_path, "flow")
    with pytest.raises(MlopsError, match="is a flow itself"):
        create_flow(made.folder, "inner")
    with pytest.raises(MlopsError, match="no such folder"):
        create_flow(tmp_path / "gone", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "flow", "folder", "link"]


def test_nobody_sees_half_of_it(tmp_path: Path) -> None:
    """Someone who looks all the time sees no flow folder without all of its files."""
    halves: list[Path] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for found in tmp_path.glob("*/flow.yaml"):
                missing = [name for name in FILES if not (found.parent / name).read_text()]
                halves.extend(found.parent / name for name in missing)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(50):
            create_flow(tmp_path, f"flow {number}")
    finally:
        done.set()
        watcher.join()
    assert halves == []
    assert len(list(tmp_path.iterdir())) == 50


def test_command_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flows new` makes a name in FLOW_DIR and a path where it says, and names both commands."""
    monkeypatch.setenv("FLOW_DIR", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert cli.run(["flows", "new", "my first"]) == 0
    told = capsys.readouterr().out
    assert f"mlops flows register '{tmp_path}/my first'" in told
    assert "mlops flows run 'my-first/my first' --follow" in told
    assert cli.run(["flows", "new", f"{tmp_path}/second/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": f"{tmp_path}/second",
        "name": "second/second",
        "files": [f"{tmp_path}/second/{name}" for name in FILES],
    }
    assert cli.run(["flows", "new", "my first"]) == 1
    assert "is there already" in capsys.readouterr().err


def test_schema_is_printed_for_editors(capsys: pytest.CaptureFixture[str]) -> None:
    """`flows schema` prints JSON and nothing else."""
    assert cli.run(["flows", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "flow.yaml"
