"""The flow function, read from its source: name, description and parameter schema.

For the schema Prefect's own loader first executes every import and assignment of a source file.
It is therefore given a slice, with only what the function's signature refers to, and does that in
a process of its own.
"""

import ast
import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from mlops.errors import MlopsError
from mlops.scheduler.signature_process import SignatureProcess, UnreadableError
from mlops.scheduler.signature_slice import FunctionNode, signature_slice, statements

_process = SignatureProcess()  # nothing runs before the first signature is read


class SignatureError(MlopsError):
    """The types in a flow's signature cannot be loaded."""


# Prefect refuses them when the file is loaded, which is too late. Source: `prefect.flows.Flow`.
RESERVED = frozenset({"return_state", "wait_for"})
# What Prefect makes of a function without any, which need not be asked for that.
NO_PARAMETERS: dict[str, Any] = {
    "title": "Parameters",
    "type": "object",
    "properties": {},
    "required": [],
    "definitions": {},
}


class FlowFunction(BaseModel):
    """What a deployment needs to know about its function.

    Attributes:
        entrypoint: `file:function`, relative to the flow folder.
        flow_name: The flow's name in Prefect.
        description: The function's docstring.
        parameters: Names of its parameters.
        open_ended: Whether it takes `**kwargs`.
    """

    model_config = ConfigDict(frozen=True)

    entrypoint: str
    flow_name: str
    description: str | None
    parameters: tuple[str, ...]
    open_ended: bool


def read_function(folder: Path, file_name: str, function_name: str) -> FlowFunction:
    """Read the flow function of a folder.

    Args:
        folder: The flow folder.
        file_name: Path of the Python file in it.
        function_name: The function with the `@flow` decorator.

    Raises:
        MlopsError: The file is not Python, or has no such flow; the message starts with the
            dotted path in flow.yaml.
    """
    path = folder / file_name
    tree = _parse(path)
    functions = _functions(tree)
    imported = _imported_names(tree)
    flows = [name for name, node in functions.items() if _flow_decorator(node, imported)]
    function = functions.get(function_name)
    if function is None or not _may_be_flow(function, imported):
        what = "has no @flow decorator" if function else "no such function"
        raise MlopsError(
            f"deployment.flow_name: {path}:{function_name}: {what}"
            + (f"; allowed: {', '.join(flows)}" if flows else "")
        )
    signature = function.args
    arguments = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
    if reserved := RESERVED & {argument.arg for argument in arguments}:
        raise MlopsError(
            f"deployment.flow_name: {path}:{function_name}: {', '.join(sorted(reserved))}: a "
            "parameter's name that Prefect keeps for itself; allowed: any other"
        )
    return FlowFunction(
        entrypoint=f"{Path(file_name).as_posix()}:{function_name}",
        flow_name=_flow_name(path, function, imported),
        description=ast.get_docstring(function),
        parameters=tuple(argument.arg for argument in arguments),
        open_ended=signature.kwarg is not None,
    )


def read_parameter_schema(
    folder: Path, function: FlowFunction, meanwhile: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the JSON Schema of a flow's parameters, as Prefect's run form reads it.

    It takes Prefect to make it, whose import takes longer than all the rest of a registration:
    for a deployment that is up to date nobody asks.

    Args:
        folder: The flow folder.
        function: The flow in it.
        meanwhile: Done while the process starts that reads it, if it has to.

    Raises:
        SignatureError: The types in its signature cannot be loaded.
        MlopsError: There is no room for a temporary file, or no process for Prefect's loader.
    """
    file_name, _, function_name = function.entrypoint.rpartition(":")
    path = folder / file_name
    tree = _parse(path)
    node = _functions(tree).get(function_name)
    if node is None:  # the file was written to
        raise SignatureError(f"deployment.flow_name: {path}:{function_name}: no such function")
    if not function.parameters:
        return copy.deepcopy(NO_PARAMETERS)
    source_text = ast.unparse(signature_slice(tree, node))
    try:
        with tempfile.TemporaryDirectory(prefix="mlops-signature-") as temporary:
            source = Path(temporary) / path.name
            source.write_text(source_text, encoding="utf-8")
            return _process.read_schema(source, function_name, (folder, path.parent), meanwhile)
    except UnreadableError as error:
        raise SignatureError(
            f"deployment.flow_name: {path}:{function_name}: its parameters cannot be read: {error}"
        ) from error
    except OSError as error:
        raise MlopsError(
            f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}",
            hint="a flow's signature is read through a temporary file: free space there, or "
            "point TMPDIR elsewhere",
        ) from error


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}: line {line}" if line else f"{path}"
        raise MlopsError(
            f"deployment.flow_py_name: {place}: not Python {sys.version_info[0]}."
            f"{sys.version_info[1]}, with which flows are read: {getattr(error, 'msg', error)}; "
            "newer syntax belongs in a module that the file imports"
        ) from error
    except OSError as error:
        raise MlopsError(
            f"deployment.flow_py_name: {path}: cannot be read: {error.strerror}"
        ) from error


def _functions(tree: ast.Module) -> dict[str, FunctionNode]:
    return {node.name: node for node in statements(tree) if isinstance(node, FunctionNode)}


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return what the names that a file imports stand for, `f` for `prefect.flow`."""
    names: dict[str, str] = {}
    for node in statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def _decorator_name(decorator: ast.expr, imported: dict[str, str]) -> str:
    """Return a decorator's dotted name, as it is where it comes from."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(target, ast.Attribute):
        return f"{_decorator_name(target.value, imported)}.{target.attr}"
    name = getattr(target, "id", "")
    return imported.get(name, name)


def _flow_decorator(function: FunctionNode, imported: dict[str, str]) -> ast.expr | None:
    for decorator in function.decorator_list:
        if _decorator_name(decorator, imported).rpartition(".")[2] == "flow":
            return decorator
    return None


def _may_be_flow(function: FunctionNode, imported: dict[str, str]) -> bool:
    """Return whether a function is a flow, as far as its decorators tell.

    One that is not known may well make a flow of it.
    """
    names = [_decorator_name(decorator, imported) for decorator in function.decorator_list]
    unknown = [name for name in names if name.split(".")[0] not in {"functools", "contextlib"}]
    return any(name.rpartition(".")[2] != "task" for name in unknown)


def _flow_name(path: Path, function: FunctionNode, imported: dict[str, str]) -> str:
    decorator = _flow_decorator(function, imported)
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
        if keyword.arg != "name":
            continue
        try:
            name = ast.literal_eval(keyword.value)
        except ValueError:
            name = None
        if not isinstance(name, str) or not name:
            raise MlopsError(
                f"deployment.flow_name: {path}:{function.name}: the name in @flow is not a "
                "literal; allowed: text in quotes"
            )
        return name
    return function.name.replace("_", "-")
