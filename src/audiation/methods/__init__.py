"""Methods: how a backbone is adapted to a task. One file per method; a method is a frozen dataclass."""

from audiation.methods.base import (
    METHODS,
    FrozenMode,
    Method,
    ParameterCount,
    format_method,
    inject,
    merge,
    parse_method,
    set_modes,
)

__all__ = [
    "METHODS",
    "FrozenMode",
    "Method",
    "ParameterCount",
    "format_method",
    "inject",
    "merge",
    "parse_method",
    "set_modes",
]
