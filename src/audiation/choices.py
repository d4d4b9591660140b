"""Choices in short form, `field=value,field=value`: what a person types for the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any


def parse_choices(kind: type[Any], choices: str, what: str, complete: bool = True) -> dict[str, Any]:
    """'field=value,field=value' -> values by field of a dataclass.

    complete: every field without a default has to be there.

    Raises:
        ValueError: a field the dataclass does not have, one named twice, or a value of another type.
    """
    allowed = {f.name: f for f in dataclasses.fields(kind)}
    types_ = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for choice in filter(None, (c.strip() for c in choices.split(","))):
        field, equals, value = (part.strip() for part in choice.partition("="))
        if not equals or not value:
            raise ValueError(f"'{choice}' in {what} is not of the form field=value")
        if field not in allowed:
            near = difflib.get_close_matches(field, allowed, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            known = ", ".join(allowed) or "none"
            raise ValueError(f"{what} has no field '{field}'.{hint} Fields: {known}.")
        if field in values:
            raise ValueError(f"field '{field}' is given twice in {what}")
        values[field] = _parse_value(value, types_[field], f"{what}: {field}")
    required = [f.name for f in allowed.values() if f.name not in values and _has_no_default(f)]
    if required and complete:
        raise ValueError(f"{what} needs {', '.join(required)}. Write '{required[0]}=...'.")
    return values


def _parse_value(text: str, kind: Any, where: str) -> Any:
    """Text -> int, float, bool, str, one of a Literal, or None. ValueError says what is allowed."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if type(None) in options and text.lower() == "none":
            return None
        (kind,) = (o for o in options if o is not type(None))
        return _parse_value(text, kind, where)
    if origin is typing.Literal:
        for option in options:
            if text == str(option):
                return option
        raise ValueError(f"{where} must be one of {', '.join(map(str, options))}, got '{text}'")
    if origin is not None:
        raise ValueError(f"{where} cannot be written in short form; set it in Python")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{where} must be true or false, got '{text}'")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where} must be of type {kind.__name__}, got '{text}'") from None


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
