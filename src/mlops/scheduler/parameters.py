"""The parameters of flow.yaml against the function's, as the Prefect server will check them.

Prefect's own validator and schema are used, so that what passes here passes there. One thing is
checked more strictly: a value for a parameter that is a model must have all that the model
requires. The server looks for that only when a run starts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from mlops.scheduler.wording import shown

_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "text (quote it)",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_FORMATS = {
    "date": "a date (as in 2026-11-21)",
    "date-time": "a date and time with its offset (as in 2026-11-21T10:00:00+08:00)",
    "time": "a time with its offset (as in 10:00:00+08:00)",
    "uuid": "a UUID",
    "email": "an email address",
}


def mistakes(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Check values against a function's parameters; those without a value are not asked for.

    Args:
        parameters: JSON values by parameter.
        schema: Prefect's parameter schema of the function. Names that it does not know are left
            alone: it does not say whether the function takes `**kwargs`.

    Returns:
        A line for each mistake, as in `parameters.n: 'abc' is not an integer`.
    """
    if not parameters:  # nor does Prefect find fault with none, and its import takes a second
        return []
    from prefect.utilities.schema_tools.validation import (
        CircularSchemaRefError,
        ValidationError,
        preprocess_schema,
        validate,
    )

    # Prepared while `required` is there: it decides which parameters may be null.
    prepared = preprocess_schema(dict(schema))
    prepared = {key: value for key, value in prepared.items() if key != "required"}
    try:
        errors = validate(dict(parameters), prepared, preprocess=False)
    except (CircularSchemaRefError, ValidationError) as error:
        reason = str(error) or "its types refer to each other in a circle"
        return [f"parameters: the server cannot check them: {reason}"]
    return _lines(errors)


def prepare_to_check() -> None:
    """Import what `mistakes` needs, which takes a second."""
    import prefect.utilities.schema_tools.validation  # noqa: F401


def unset_required(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return the parameters without a default to which no value is given.

    A run by hand may name them; a scheduled one fails for want of them.
    """
    return [name for name in schema.get("required", ()) if name not in parameters]


def _lines(errors: Iterable[Any]) -> list[str]:
    """Word errors of jsonschema, whose package has no types, each once."""
    return list(dict.fromkeys(line for error in errors for line in _explain(error)))


def _explain(error: Any) -> list[str]:
    match error.validator:
        case "anyOf" | "oneOf" if error.context:
            return _explain_alternatives(error)
        case "type" | "enum" | "const" | "format":
            return [_explain_kinds([error])]
        case "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            return [f"{_place(error)}: {', '.join(missing)} missing"]
        case _:
            return [f"{_place(error)}: {error.message}"]


def _explain_alternatives(error: Any) -> list[str]:
    """Say what keeps a value from being the type, of several, that it comes closest to."""
    alternatives = _alternatives(error)
    close = [causes for causes in alternatives if not any(map(_is_other_kind, causes))]
    if not close:
        return [_explain_kinds([next(filter(_is_other_kind, causes)) for causes in alternatives])]
    if len(close) == 1:
        return _lines(close[0])
    # One of several models is told from the others by a field of one value, `kind: Literal["a"]`.
    meant = [causes for causes in close if not any(map(_is_choice, causes))]
    if not meant:
        choices = [cause for causes in close for cause in causes if _is_choice(cause)]
        return [_explain_kinds([each for each in choices if _place(each) == _place(choices[0])])]
    fewest = min(map(len, meant))
    told = [_lines(causes) for causes in meant if len(causes) == fewest]
    return told[0] if len(told) == 1 else ["; or ".join(", ".join(lines) for lines in told)]


def _alternatives(error: Any) -> list[list[Any]]:
    """Return, for each type that a value may have, why it has not; also where they are nested."""
    causes_of: dict[int, list[Any]] = defaultdict(list)
    for cause in error.context:
        causes_of[cause.relative_schema_path[0]].append(cause)
    alternatives: list[list[Any]] = []
    for causes in causes_of.values():
        first = causes[0]
        nested = first.validator in ("anyOf", "oneOf") and first.context
        alternatives += _alternatives(first) if nested and _is_whole(first) else [causes]
    return alternatives


def _is_whole(cause: Any) -> bool:
    """Return whether it is about the value itself, not something in it."""
    return not cause.relative_path


def _is_other_kind(cause: Any) -> bool:
    return _is_whole(cause) and cause.validator in ("type", "enum", "const", "format")


def _is_choice(cause: Any) -> bool:
    return cause.validator in ("enum", "const")


def _explain_kinds(errors: list[Any]) -> str:
    """Say of one value what it is not, all of which it may be."""
    kinds = list(dict.fromkeys(kind for error in errors for kind in _kinds(error.schema)))
    chosen = any(error.schema.keys() & {"enum", "const"} for error in errors)
    wrong = f"known; allowed: {', '.join(kinds)}" if chosen else " or ".join(kinds)
    return f"{_place(errors[0])}: {shown(errors[0].instance)} is not {wrong}"


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """Return in words what a simple schema takes."""
    if "const" in schema or "enum" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return [value if isinstance(value, str) else shown(value) for value in values]
    if "format" in schema:
        return [_FORMATS.get(schema["format"], f"text of the format {schema['format']}")]
    types = schema["type"]
    return [_TYPES.get(each, each) for each in ([types] if isinstance(types, str) else types)]


def _place(error: Any) -> str:
    return ".".join(["parameters", *(str(part) for part in error.absolute_path)])
