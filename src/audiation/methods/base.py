"""What a method is, and its short form on the command line: `name:field=value,field=value`."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Protocol

from audiation.backbones.encoder import Encoder
from audiation.registry import Registry


class Method(Protocol):
    """A frozen dataclass whose fields are the choices of the method."""

    def inject(self, encoder: Encoder | None) -> None:
        """Put what is trained into a frozen encoder. Raises ValueError where there is no place for it."""
        ...


METHODS: Registry[type[Any]] = Registry("method", "audiation.methods")


def parse_method(text: str) -> Any:
    """'lora:rank=2,alpha=8' -> the method with these fields; fields that are not named keep their defaults.

    Raises:
        UnknownNameError: no method has that name.
        ValueError: a field the method does not have, one named twice, or a value of another type.
    """
    name, _, choices = text.strip().partition(":")
    method = METHODS[name.strip()]
    allowed = {f.name: f for f in dataclasses.fields(method)}
    types_ = typing.get_type_hints(method)
    values: dict[str, Any] = {}
    for choice in filter(None, (c.strip() for c in choices.split(","))):
        field, equals, value = (part.strip() for part in choice.partition("="))
        if not equals or not value:
            raise ValueError(f"'{choice}' in method '{text}' is not of the form field=value")
        if field not in allowed:
            near = difflib.get_close_matches(field, allowed, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            known = ", ".join(allowed) or "none"
            raise ValueError(f"method '{name}' has no field '{field}'.{hint} Fields: {known}.")
        if field in values:
            raise ValueError(f"field '{field}' is given twice in method '{text}'")
        values[field] = _parse_value(value, types_[field], f"{name}:{field}")
    required = [f.name for f in allowed.values() if f.name not in values and _has_no_default(f)]
    if required:
        raise ValueError(f"method '{name}' needs {', '.join(required)}. Write '{name}:{required[0]}=...'.")
    return method(**values)


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
