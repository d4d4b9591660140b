"""audiation: load, extract from, adapt, judge and pre-train music foundation models.

The verbs below are imported when first used, so that `import audiation` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_VERBS = {
    "load_backbone": "audiation.loading",
    "inject": "audiation.methods",
    "merge": "audiation.methods",
    "adapt": "audiation.own_audio",
    "predict": "audiation.own_audio",
    "load_adapter": "audiation.adapters",
    "AdapterBank": "audiation.adapters",
    "extract": "audiation.extraction",
    "evaluate": "audiation.evaluation",
    "pretrain": "audiation.pretraining",
    "PretrainRun": "audiation.pretrain_run",
    "PretrainConfig": "audiation.pretraining_config",
    "Run": "audiation.run",
    "Result": "audiation.results",
}

if TYPE_CHECKING:
    from audiation.adapters import AdapterBank as AdapterBank
    from audiation.adapters import load_adapter as load_adapter
    from audiation.evaluation import evaluate as evaluate
    from audiation.extraction import extract as extract
    from audiation.loading import load_backbone as load_backbone
    from audiation.methods import inject as inject
    from audiation.methods import merge as merge
    from audiation.own_audio import adapt as adapt
    from audiation.own_audio import predict as predict
    from audiation.pretrain_run import PretrainRun as PretrainRun
    from audiation.pretraining import pretrain as pretrain
    from audiation.pretraining_config import PretrainConfig as PretrainConfig
    from audiation.results import Result as Result
    from audiation.run import Run as Run


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'audiation' has no attribute '{name}'; it has {', '.join(_VERBS)}")
    value = getattr(import_module(_VERBS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])
