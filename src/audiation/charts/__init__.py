"""Charts of results, each an SVG text to put into a page: `<svg ...>` with a title, a description and unique ids.

They need no style sheet and no script: colours are presentation attributes, ink is `currentColor`, so that a page may
be light or dark and may forbid inline styles. A value can also be read by pointing at its mark. Nothing that is missing
is drawn as zero; a note below the chart says what is missing and why.
"""

from audiation.charts.answers import confusion, reliability
from audiation.charts.cost import cost_against_score, score_against_hours
from audiation.charts.progress import layer_profile, learning_curves
from audiation.charts.task_types import bars_by_task_type, radar_by_task_type

__all__ = [
    "bars_by_task_type",
    "confusion",
    "cost_against_score",
    "layer_profile",
    "learning_curves",
    "radar_by_task_type",
    "reliability",
    "score_against_hours",
]
