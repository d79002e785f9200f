"""The parameters of flow.yaml against the function's, as the Prefect server will check them.

Prefect's own validator and schema are used, so that what passes here passes there. One thing is
checked more strictly: a value for a parameter that is a model must have all that the model
requires. The server looks for that only when a run starts.
"""

from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 60
_TYPES = {
    "integer": "an integer",
    "number": "a number",
    "string": "text (quote it)",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
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
    return [_explain(error) for error in errors]


def unset_required(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return the parameters without a default to which no value is given.

    A run by hand may name them; a scheduled one fails for want of them.
    """
    return [name for name in schema.get("required", ()) if name not in parameters]


def _explain(error: Any) -> str:
    """Word one of jsonschema's errors, whose package has no types."""
    place = ".".join(["parameters", *(str(part) for part in error.absolute_path)])
    shown = _shown(error.instance)
    expected = error.validator_value
    match error.validator:
        case "type":
            return f"{place}: {shown} is not {_type_name(expected)}"
        case "enum" | "const":
            values = expected if error.validator == "enum" else [expected]
            allowed = ", ".join(str(value) for value in values)
            return f"{place}: {shown} is not known; allowed: {allowed}"
        case "anyOf" | "oneOf":
            kinds = " or ".join(_kinds(expected))
            return f"{place}: {shown} is not {kinds}" if kinds else f"{place}: {error.message}"
        case "format":
            return f"{place}: {shown} is not a {expected}"
        case "required":
            missing = [name for name in expected if name not in error.instance]
            return f"{place}: {', '.join(missing)} missing"
        case _:
            return f"{place}: {error.message}"


def _type_name(expected: Any) -> str:
    names = [expected] if isinstance(expected, str) else expected
    return " or ".join(_TYPES.get(name, name) for name in names)


def _kinds(alternatives: list[dict[str, Any]]) -> list[str]:
    """Return the alternatives' types in words; empty when one of them has none."""
    kinds = [_TYPES.get(each.get("type", ""), "") for each in alternatives]
    return list(dict.fromkeys(kinds)) if all(kinds) else []


def _shown(value: object) -> str:
    words = {"None": "null", "True": "true", "False": "false"}  # as YAML spells them
    text = repr(value)
    return words.get(text, text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")
