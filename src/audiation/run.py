"""A run as a value: everything that decides a number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from audiation.own_backbones import refuse_unloaded
from audiation.results import Result


@dataclass(frozen=True)
class Run:
    """What to evaluate. Written beside every result; `audiation evaluate --run` repeats it.

    weights: None for the official ones, "random", or a file, directory or Hub id.
    num_layers: cut the backbone to its first blocks; None: all.
    layer: the layer that is probed; None: those that the protocol searches, or the model's recommended one, else the
        last. Adapted models: the last.
    train: choices that depart from the protocol, as "field=value,field=value": of `adaptation.AdaptConfig` where it
        adapts, of `probe.ProbeConfig` where it probes; "" for none.
    seed: of random weights, the probe and the bootstrap.
    """

    backbone: str
    task: str
    method: str = "probe"
    protocol: str = "jukemir-single"
    weights: str | None = None
    num_layers: int | None = None
    layer: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    train: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.train, str):
            raise ValueError(f"train of a run is a text like 'steps=500,batch_size=8', got {self.train!r}")
        for name, value in (("num_layers", self.num_layers), ("layer", self.layer)):
            if value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{name} of a run is a whole number >= 0 or None, got {value!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed of a run is a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision of a run is fp32 or bf16, got {self.precision!r}")
        if self.weights is not None and not isinstance(self.weights, str):
            raise ValueError(f"weights of a run is a text or None, got {self.weights!r}")

    @property
    def key(self) -> str:
        """Short name of everything that the run fixes."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @classmethod
    def of(cls, result: Result) -> Run:
        """The run behind a result.

        Raises:
            OwnBackboneError: a backbone of a file that this process has not loaded: a result may come from anybody, and
                must not make a file be executed (`own_backbones.load_recorded_backbone` asks first).
        """
        refuse_unloaded(result.run["backbone"])
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in result.run.items() if k in names})
