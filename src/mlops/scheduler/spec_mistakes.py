"""pydantic's findings about a flow.yaml as lines that its author understands."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mlops.scheduler.document import Location, dotted
from mlops.scheduler.wording import shortened, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def explain(  # noqa: C901  # one case for each kind of mistake
    problem: "ErrorDetails", root: type[BaseModel], written: Mapping[Location, str]
) -> str:
    """Turn one finding into `dotted.path: what is wrong; allowed: …`.

    Args:
        problem: One of a `ValidationError`'s.
        root: The model of the whole file.
        written: How the file spells values that are not text, such as `on` for true.
    """
    location = problem["loc"]
    value = problem["input"]
    given = _with_type(value, written.get(location))
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            known = _keys_at(root, location[:-1])
            meant = _meant(str(location[-1]), known)
            wrong = f"unknown key, did you mean {meant}?" if meant else "unknown key"
            wrong += f"; allowed: {', '.join(known)}"
        case "missing":
            wrong = f"is missing; required: {_described(root, location)}"
        case "literal_error":
            wrong = f"{given} is not known; allowed: {_listed(context['expected'])}"
        case "model_type" | "dict_type":
            known = _keys_at(root, location)
            wrong = f"{given} is not a mapping"
            wrong += f"; allowed: {', '.join(known)}" if known else ""
        case "tuple_type":
            wrong = f"{given} is not a list; allowed: a list, as in [first, second]"
        case "string_type":
            wrong = f"{given} is not text; allowed: text (quote it)"
        case "string_too_short":
            wrong = f"is empty; required: {_described(root, location)}"
        case "int_type" | "int_from_float":
            wrong = f"{given} is not a whole number; allowed: {_described(root, location)}"
        case "greater_than_equal":
            wrong = f"{given} is too small; allowed: from {context['ge']}"
        case "less_than_equal":
            wrong = f"{given} is too large; allowed: up to {context['le']}"
        case "value_error":
            wrong = str(context["error"])
        case _:
            wrong = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{dotted(location)}: {wrong}"


def _meant(key: str, known: list[str]) -> str | None:
    """Return the one known key that begins like this, or else the closest, in whatever case."""
    spellings = {each.lower(): each for each in known}
    longer = [each for each in spellings if each.startswith(key.lower())]
    close = longer if len(longer) == 1 else difflib.get_close_matches(key.lower(), spellings, 1)
    return spellings[close[0]] if close else None


def _with_type(value: object, written: str | None) -> str:
    if value is None:
        return "nothing"
    text = shortened(written) if written else shown(value)
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"


def _listed(expected: str) -> str:
    """Return pydantic's `'a', 'b' or 'c'` without quotes and `or`."""
    return expected.replace("'", "").replace(" or ", ", ")


def _model_at(root: type[BaseModel], location: Location) -> type[BaseModel] | None:
    model: Any = root
    for part in location:
        field = model.model_fields.get(part)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
        if model is None:
            return None
    found: type[BaseModel] = model
    return found


def _keys_at(root: type[BaseModel], location: Location) -> list[str]:
    model = _model_at(root, location)
    return list(model.model_fields) if model else []


def _described(root: type[BaseModel], location: Location) -> str:
    """Return what a key is for, also of a list's item, or the keys of a section."""
    location = tuple(part for part in location if isinstance(part, str))
    if keys := _keys_at(root, location):
        return ", ".join(keys)
    model = _model_at(root, location[:-1])
    field = model.model_fields.get(str(location[-1])) if model else None
    return (field.description if field else None) or str(location[-1])
