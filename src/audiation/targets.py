"""Annotation <-> training tensor, and the loss: one class per output space.

A `Target` owns encode, loss and decode, so that a label map exists in one place and nobody applies a softmax
twice. `decode(encode(a)) == a` is a property every target is tested for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.annotations import Key, Label, Tags, Values
from audiation.training import Loss


@dataclass(frozen=True)
class FrameGrid:
    """Where output frames lie in time: frame `t` is centred on `first_frame_seconds + t / frame_rate_hz`."""

    num_frames: int
    frame_rate_hz: float
    first_frame_seconds: float


@dataclass(frozen=True)
class ClipContext:
    """What decoding may need beside the logits."""

    grid: FrameGrid | None = None


class Target(Protocol):
    """Output space of a task: `num_outputs` logits, per clip or per frame.

    combine: logits `(N, C)` of the N windows of one track -> `(C,)`, so that decoding them answers for the track. What
        is averaged over the windows are probabilities (PETL, `petl.md` section 4) or values, not logits.
    scores: logits `(C,)` -> the named numbers behind an answer: probabilities or values.
    """

    @property
    def num_outputs(self) -> int: ...

    @property
    def per_frame(self) -> bool: ...

    def encode(self, annotation: Any, grid: FrameGrid | None = None) -> Tensor: ...

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss: ...

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Any: ...

    def combine(self, logits: Tensor) -> Tensor: ...

    def scores(self, logits: Tensor) -> dict[str, float]: ...


def _cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Loss:
    """Summed cross-entropy of `(B, C)` logits and `(B,)` classes over the valid clips `(B,)`."""
    losses = F.cross_entropy(logits, targets, reduction="none")
    keep = torch.ones_like(losses, dtype=torch.bool) if valid is None else valid
    return Loss(losses[keep].sum(), keep.sum())


def _mean_of_softmax(logits: Tensor) -> Tensor:
    """`(N, C)` -> `(C,)`: logarithm of the mean probability of each class."""
    log_probabilities = logits.double().log_softmax(-1)
    return (log_probabilities.logsumexp(0) - math.log(len(logits))).float()


def _probabilities(names: Iterable[str], logits: Tensor) -> dict[str, float]:
    return dict(zip(names, logits.double().softmax(-1).tolist(), strict=True))


@dataclass(frozen=True)
class ClassTarget:
    """One label out of a closed list, per clip."""

    classes: tuple[str, ...]
    per_frame = False

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def encode(self, annotation: Label, grid: FrameGrid | None = None) -> Tensor:
        """-> int64 scalar tensor; ValueError for a label outside the list."""
        if annotation.name not in self.classes:
            raise ValueError(f"label '{annotation.name}' is not one of {', '.join(self.classes)}")
        return torch.tensor(self.classes.index(annotation.name))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Label:
        """`(C,)` logits -> Label. A tie goes to the first class in the list."""
        return Label(self.classes[int(logits.argmax())])

    def combine(self, logits: Tensor) -> Tensor:
        return _mean_of_softmax(logits)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return _probabilities(self.classes, logits)


@dataclass(frozen=True)
class KeyTarget:
    """24 keys per clip: major on C, Db, ..., B, then minor (benchmark: MIREX key label space)."""

    num_outputs = 24
    per_frame = False

    def encode(self, annotation: Key, grid: FrameGrid | None = None) -> Tensor:
        return torch.tensor(annotation.index)

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Key:
        return Key.from_index(int(logits.argmax()))

    def combine(self, logits: Tensor) -> Tensor:
        return _mean_of_softmax(logits)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return _probabilities((str(Key.from_index(i)) for i in range(24)), logits)


@dataclass(frozen=True)
class TagsTarget:
    """Any number of tags out of a closed list, per clip: one sigmoid each."""

    tags: tuple[str, ...]
    per_frame = False

    @property
    def num_outputs(self) -> int:
        return len(self.tags)

    def encode(self, annotation: Tags, grid: FrameGrid | None = None) -> Tensor:
        """-> `(C,)` float32 of 0 and 1; a tag that is not mentioned is 0. ValueError for a tag outside the list."""
        unknown = [tag for tag in annotation.scores if tag not in self.tags]
        if unknown:
            raise ValueError(f"tag '{unknown[0]}' is not one of {', '.join(self.tags)}")
        return torch.tensor([annotation.scores.get(tag, 0.0) for tag in self.tags])

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Binary cross-entropy over the tags of the valid clips; every clip and tag is a term."""
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        keep = torch.ones_like(losses[:, 0], dtype=torch.bool) if valid is None else valid
        return Loss(losses[keep].sum(), keep.sum() * len(self.tags))

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Tags:
        return Tags(self.scores(logits))

    def combine(self, logits: Tensor) -> Tensor:
        """Logit of the mean probability, for each tag."""
        log_yes = F.logsigmoid(logits.double()).logsumexp(0)
        log_no = F.logsigmoid(-logits.double()).logsumexp(0)
        return (log_yes - log_no).float()

    def scores(self, logits: Tensor) -> dict[str, float]:
        return dict(zip(self.tags, logits.double().sigmoid().tolist(), strict=True))


@dataclass(frozen=True)
class ValuesTarget:
    """Named numbers per clip, learned in units of their deviation over the training split."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    per_frame = False

    def __post_init__(self) -> None:
        if not (len(self.names) == len(self.means) == len(self.deviations) > 0):
            raise ValueError("values need a mean and a deviation per name, and at least one name")
        if not all(math.isfinite(m) for m in self.means):
            raise ValueError(f"means must be finite, got {self.means}")
        if not all(math.isfinite(d) and d > 0 for d in self.deviations):
            raise ValueError(f"deviations must be finite and positive, got {self.deviations}")

    @classmethod
    def fit(cls, names: Sequence[str], annotations: Sequence[Values]) -> ValuesTarget:
        """Mean and population deviation of the annotations. ValueError for a name that never varies."""
        rows = torch.tensor([[a.values[name] for name in names] for a in annotations], dtype=torch.float64)
        means, deviations = rows.mean(0), rows.std(0, correction=0)
        for name, deviation in zip(names, deviations.tolist(), strict=True):
            if not deviation > 0:
                raise ValueError(f"'{name}' is the same in all {len(rows)} training recordings")
        return cls(tuple(names), tuple(means.tolist()), tuple(deviations.tolist()))

    @property
    def num_outputs(self) -> int:
        return len(self.names)

    def encode(self, annotation: Values, grid: FrameGrid | None = None) -> Tensor:
        """-> `(C,)` float32 in deviations from the mean. ValueError for other names."""
        if annotation.values.keys() != set(self.names):
            raise ValueError(
                f"values of {', '.join(self.names)} are asked for, got {', '.join(annotation.values)}"
            )
        triples = zip(self.names, self.means, self.deviations, strict=True)
        return torch.tensor([(annotation.values[name] - mean) / std for name, mean, std in triples])

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Squared error over the numbers of the valid clips; every clip and number is a term."""
        losses = (logits - targets).square()
        keep = torch.ones_like(losses[:, 0], dtype=torch.bool) if valid is None else valid
        return Loss(losses[keep].sum(), keep.sum() * len(self.names))

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Values:
        return Values(self.scores(logits))

    def combine(self, logits: Tensor) -> Tensor:
        return logits.mean(0)

    def scores(self, logits: Tensor) -> dict[str, float]:
        rows = zip(self.names, self.means, self.deviations, logits.double().tolist(), strict=True)
        return {name: mean + std * value for name, mean, std, value in rows}


# As JSON, for files of adapters ----------------------------------------------------------------------------

_KINDS: dict[str, type[Any]] = {
    "class": ClassTarget,
    "key": KeyTarget,
    "tags": TagsTarget,
    "values": ValuesTarget,
}


def target_to_json(target: Target) -> dict[str, Any]:
    """`{"kind": ..., fields}`. ValueError for a kind of target that no file format knows."""
    for kind, made in _KINDS.items():
        if type(target) is made:
            return {"kind": kind} | {k: list(v) for k, v in dataclasses.asdict(target).items()}  # type: ignore[call-overload]
    raise ValueError(f"a {type(target).__name__} cannot be written as JSON")


def target_from_json(record: Any) -> Target:
    """Inverse of `target_to_json`. ValueError naming the field that is missing, unknown or wrong."""
    if not isinstance(record, dict) or record.get("kind") not in _KINDS:
        raise ValueError(f"a target has a kind out of {', '.join(_KINDS)}, got {record!r}")
    made = _KINDS[record["kind"]]
    kinds = {f.name: float if f.name in ("means", "deviations") else str for f in dataclasses.fields(made)}
    if record.keys() - {"kind"} != kinds.keys():
        raise ValueError(f"a target of kind '{record['kind']}' has the fields {', '.join(kinds) or 'none'}")
    for name, kind in kinds.items():
        values = record[name]
        if not isinstance(values, list) or not values or not all(type(v) is kind for v in values):
            raise ValueError(f"'{name}' of a target is a list of {kind.__name__}, got {values!r}")
        if kind is str and len(set(values)) < len(values):
            raise ValueError(f"'{name}' of a target names something twice")
    return made(**{name: tuple(record[name]) for name in kinds})
