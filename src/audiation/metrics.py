"""Metrics with versioned names: thin functions over mir_eval and scikit-learn, annotations with annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A named score of (references, estimates), both sequences over tracks in the same order."""

    name: str
    compute: Callable[[Sequence[Any], Sequence[Any]], float]
    higher_is_better: bool = True
