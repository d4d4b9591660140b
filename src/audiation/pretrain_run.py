"""A pre-training run as a value: everything that decides what comes out, and nothing about the machine."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from audiation.backbones import BACKBONES
from audiation.backbones.architecture import is_architecture, parse_architecture
from audiation.methods import parse_method
from audiation.objectives import parse_objective
from audiation.pretraining_config import PretrainConfig


@dataclass(frozen=True)
class PretrainRun:
    """One pre-training run.

    backbone: name as in `audiation list backbones`, or an architecture in short form, like "conformer:size=mini".
    objective: in short form, like "best_rq:codebook_size=8192".
    corpus: its name; "": whichever is given.
    crop_seconds: length of what is heard at once.
    train: steps, sizes, rates.
    weights: "random"; None: the official ones, to go on from; or a file or folder of weights.
    method: "finetune" trains the whole backbone; others adapt it, like "lora:rank=8".

    Raises:
        UnknownNameError: no such backbone, objective or method.
        ValueError: choices that do not go together, or values that they do not take.
    """

    backbone: str
    objective: str = "best_rq"
    corpus: str = ""
    crop_seconds: float = 30.0
    train: PretrainConfig = field(default_factory=lambda: PretrainConfig(steps=1000))
    weights: str | None = "random"
    method: str = "finetune"

    def __post_init__(self) -> None:
        if not isinstance(self.crop_seconds, int | float) or not 0.0 < self.crop_seconds < math.inf:
            raise ValueError(f"crop_seconds must be a positive number, got {self.crop_seconds!r}")
        if self.weights == "random" and self.method != "finetune":
            raise ValueError(
                f"method '{self.method}' adapts weights that are there, and the weights are random. Name some, or "
                "train all with method='finetune'."
            )
        parse_objective(self.objective)
        parse_method(self.method)
        if self.backbone in BACKBONES:
            return
        if not is_architecture(self.backbone):
            BACKBONES[self.backbone]  # says which is nearest
        parse_architecture(self.backbone)
        if self.weights != "random":
            raise ValueError(
                f"'{self.backbone}' is an architecture, of which there are no official weights. Take weights='random', "
                f"or load weights of your own as '{self.backbone.partition(':')[0]}'."
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PretrainRun:
        """What `to_json` wrote.

        Raises:
            ValueError: no such run; says which field.
        """
        try:
            held = dict(json.loads(text))
            train = {k: _tuples(v) for k, v in dict(held.pop("train")).items()}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"not a pre-training run: {error}") from error
        for kind, values in ((PretrainConfig, train), (cls, held)):
            if unknown := sorted(values.keys() - {f.name for f in dataclasses.fields(kind)}):
                raise ValueError(f"not a pre-training run: {kind.__name__} has no field '{unknown[0]}'")
        for name in ("backbone", "objective", "corpus", "method", "weights"):
            value = held.get(name, "")
            if not isinstance(value, str) and not (name == "weights" and value is None):
                raise ValueError(f"not a pre-training run: {name} is text, got {value!r}")
        try:
            return cls(**held, train=PretrainConfig(**train))
        except TypeError as error:
            raise ValueError(f"not a pre-training run: {error}") from error


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
