"""Methods: how a backbone is adapted to a task. One file per method; a method is a frozen dataclass."""

from audiation.methods.base import METHODS, Method, parse_method

__all__ = ["METHODS", "Method", "parse_method"]
