"""The part of a source file that a function's signature refers to."""

import ast
from collections.abc import Iterator

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_BLOCKS = (ast.If, ast.Try, ast.TryStar, ast.With)


def statements(parent: ast.AST) -> Iterator[ast.stmt]:
    """Yield a module's statements, those in its `if`, `try` and `with` blocks included.

    What only a program does (`if __name__ == "__main__":`) is left out: a flow is imported.
    """
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, (*_BLOCKS, ast.ExceptHandler)) and not _is_program(node):
            yield from statements(node)


def signature_slice(tree: ast.Module, function: FunctionNode) -> ast.Module:
    """Return a module with the function's signature and docstring and what these refer to.

    Args:
        tree: The file.
        function: The function in it, of which only these are left.
    """
    _strip(function)
    needed: set[int] = set()
    wanted = _names_in(function.args)
    while wanted:
        name = wanted.pop()
        for index, node in enumerate(tree.body):
            if index not in needed and name in _names_bound_by(node):
                needed.add(index)
                if not isinstance(node, ast.Import | ast.ImportFrom):
                    wanted |= _names_in(node)
    # `from __future__ import annotations` changes how the signature is read.
    body = [
        _executed(node)
        for index, node in enumerate(tree.body)
        if index in needed or (isinstance(node, ast.ImportFrom) and _binds_unseen(node))
    ]
    return ast.fix_missing_locations(ast.Module(body=[*body, function], type_ignores=[]))


def _strip(function: FunctionNode) -> None:
    """Reduce a function to its signature and docstring."""
    function.decorator_list = []
    # Prefect passes parameters by name, and its loader chokes on the other kinds.
    signature = function.args
    signature.args = [*signature.posonlyargs, *signature.args]
    signature.posonlyargs, signature.vararg, signature.kwarg = [], None, None
    function.body = [*function.body[: bool(ast.get_docstring(function))], ast.Pass()]


def _executed(node: ast.stmt) -> ast.stmt:
    """Return a statement as one that Prefect's loader executes.

    It passes over `x: int = 1`, and over blocks other than a class's, whose names are therefore
    made the module's.
    """
    if isinstance(node, ast.AnnAssign) and node.value:
        return ast.Assign(targets=[node.target], value=node.value)
    if not isinstance(node, _BLOCKS):
        return node
    wrapped = ast.parse("class Block: pass").body[0]
    assert isinstance(wrapped, ast.ClassDef)  # noqa: S101  # by its text
    wrapped.body = [ast.Global(names=sorted(_names_bound_by(node))), node]
    return wrapped


def _is_program(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "__name__ == '__main__'",
        "'__main__' == __name__",
    }


def _binds_unseen(node: ast.ImportFrom) -> bool:
    """Return whether an import may matter to the signature though it names nothing in it."""
    return node.module == "__future__" or any(alias.name == "*" for alias in node.names)


def _names_in(node: ast.AST) -> set[str]:
    names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
    for child in ast.walk(node):  # annotations in quotes
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            try:
                quoted = ast.parse(child.value, mode="eval")
            except (SyntaxError, ValueError):
                continue
            names |= {part.id for part in ast.walk(quoted) if isinstance(part, ast.Name)}
    return names


def _names_bound_by(node: ast.stmt) -> set[str]:
    match node:
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return {node.name}
        case ast.Assign():
            return {name for target in node.targets for name in _names_in(target)}
        case ast.AnnAssign():
            return _names_in(node.target)
        case ast.If() | ast.Try() | ast.TryStar() | ast.With():
            # Not what is annotated: a name that is said to be global must not be.
            bare = (each for each in statements(node) if not isinstance(each, ast.AnnAssign))
            return {name for each in bare for name in _names_bound_by(each)}
        case _:
            return set()
