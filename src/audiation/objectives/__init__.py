"""Pre-training objectives: what a backbone is asked about audio that nobody has labelled. One file per objective."""

from audiation.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveSettings,
    PretrainBatch,
    format_objective,
    parse_objective,
)

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveSettings",
    "PretrainBatch",
    "format_objective",
    "parse_objective",
]
