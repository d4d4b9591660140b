"""audiation: load, extract from, adapt, judge and pre-train music foundation models.

The verbs below are imported when first used, so that `import audiation` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = {
    "load_backbone": "audiation.loading",
    "extract": "audiation.extraction",
    "evaluate": "audiation.evaluation",
    "Run": "audiation.evaluation",
    "Result": "audiation.leaderboard",
}

if TYPE_CHECKING:
    from audiation.evaluation import Run as Run
    from audiation.evaluation import evaluate as evaluate
    from audiation.extraction import extract as extract
    from audiation.leaderboard import Result as Result
    from audiation.loading import load_backbone as load_backbone


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'audiation' has no attribute '{name}'; it has {', '.join(_VERBS)}")
    value = getattr(import_module(_VERBS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])
