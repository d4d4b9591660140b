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

    combine: logits `(N, C)` of the N windows of one track -> `(C,)`, float64 on the CPU, so that decoding them answers
        for the track. What is averaged over the windows are probabilities or values, not logits: PETL's "sigmoid per
        segment, then average over segments" (`petl.md`, section 4). ValueError for no window, or outputs that are not
        finite.
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


def _windows(logits: Tensor, num_outputs: int) -> Tensor:
    """`(N, C)` outputs of a track's windows, checked; in float64, where rounding makes no ties."""
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] != num_outputs:
        raise ValueError(
            f"a track needs the {num_outputs} outputs of one window or more, (windows, {num_outputs}), "
            f"got {tuple(logits.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "the outputs of a track hold NaN or infinite values, so there is no answer. Its audio or the weights are "
            "damaged, or training has diverged."
        )
    return logits.cpu().double()


def _mean_of_softmax(windows: Tensor) -> Tensor:
    """`(N, C)` -> `(C,)`: logarithm of the mean probability of each class."""
    return windows.log_softmax(-1).logsumexp(0) - math.log(len(windows))


def _check_names(what: str, names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{what} are one or more different names, got {', '.join(names) or 'none'}")


def _probabilities(names: Iterable[str], logits: Tensor) -> dict[str, float]:
    return dict(zip(names, logits.double().softmax(-1).tolist(), strict=True))


@dataclass(frozen=True)
class ClassTarget:
    """One label out of a closed list, per clip."""

    classes: tuple[str, ...]
    per_frame = False

    def __post_init__(self) -> None:
        _check_names("classes", self.classes)

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
        """Logarithm of the mean probability, for each class."""
        return _mean_of_softmax(_windows(logits, self.num_outputs))

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
        """Logarithm of the mean probability, for each key."""
        return _mean_of_softmax(_windows(logits, self.num_outputs))

    def scores(self, logits: Tensor) -> dict[str, float]:
        return _probabilities((str(Key.from_index(i)) for i in range(24)), logits)


@dataclass(frozen=True)
class TagsTarget:
    """Any number of tags out of a closed list, per clip: one sigmoid each."""

    tags: tuple[str, ...]
    per_frame = False

    def __post_init__(self) -> None:
        _check_names("tags", self.tags)

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
        """`(C,)` logits -> every tag with its probability."""
        return Tags(self.scores(logits))

    def combine(self, logits: Tensor) -> Tensor:
        """Logit of the mean probability, for each tag; finite however sure the windows are."""
        windows = _windows(logits, self.num_outputs)
        return F.logsigmoid(windows).logsumexp(0) - F.logsigmoid(-windows).logsumexp(0)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return dict(zip(self.tags, logits.double().sigmoid().tolist(), strict=True))


@dataclass(frozen=True)
class ValuesTarget:
    """Named numbers per clip, learned as distance from the training mean in training deviations.

    means, deviations: of each name; see `fit`.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    per_frame = False

    def __post_init__(self) -> None:
        _check_names("names", self.names)
        if not len(self.names) == len(self.means) == len(self.deviations):
            raise ValueError(
                f"each name has a mean and a deviation, got {len(self.names)} names, {len(self.means)} means and "
                f"{len(self.deviations)} deviations"
            )
        if not all(math.isfinite(m) for m in self.means):
            raise ValueError(f"means must be finite, got {self.means}")
        if not all(math.isfinite(d) and d > 0 for d in self.deviations):
            raise ValueError(f"deviations must be finite and positive, got {self.deviations}")

    @classmethod
    def fit(cls, names: Sequence[str], annotations: Sequence[Values]) -> ValuesTarget:
        """Mean and population deviation of the annotations.

        Raises:
            ValueError: no annotations, other names, or a name that never varies.
        """
        if not annotations:
            raise ValueError("means and deviations are those of the training recordings, and there are none")
        for annotation in annotations:
            _check_same_names(names, annotation)
        rows = torch.tensor([[a.values[name] for name in names] for a in annotations], dtype=torch.float64)
        for name, column in zip(names, rows.T, strict=True):
            if column.min() == column.max():
                raise ValueError(
                    f"'{name}' is {float(column[0]):g} in all {len(rows)} training recordings, so there is nothing to "
                    "learn. Leave it out."
                )
        means, deviations = rows.mean(0), rows.std(0, correction=0)
        return cls(tuple(names), tuple(means.tolist()), tuple(deviations.tolist()))

    @property
    def num_outputs(self) -> int:
        return len(self.names)

    def encode(self, annotation: Values, grid: FrameGrid | None = None) -> Tensor:
        """-> `(C,)` float32 in deviations from the mean. ValueError for other names."""
        _check_same_names(self.names, annotation)
        triples = zip(self.names, self.means, self.deviations, strict=True)
        return torch.tensor([(annotation.values[name] - mean) / std for name, mean, std in triples])

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Squared error over the numbers of the valid clips; every clip and number is a term."""
        losses = F.mse_loss(logits, _same_shape(logits, targets), reduction="none")
        keep = torch.ones_like(losses[:, 0], dtype=torch.bool) if valid is None else valid
        return Loss(losses[keep].sum(), keep.sum() * len(self.names))

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Values:
        """`(C,)` outputs -> numbers on the scale of the data."""
        return Values(self.scores(logits))

    def combine(self, logits: Tensor) -> Tensor:
        """Mean of each number."""
        return _windows(logits, self.num_outputs).mean(0)

    def scores(self, logits: Tensor) -> dict[str, float]:
        rows = zip(self.names, self.means, self.deviations, logits.double().tolist(), strict=True)
        return {name: mean + std * value for name, mean, std, value in rows}


def _check_same_names(names: Sequence[str], annotation: Values) -> None:
    if annotation.values.keys() != set(names):
        raise ValueError(f"values of {', '.join(names)} are asked for, got {', '.join(annotation.values)}")


def _same_shape(logits: Tensor, targets: Tensor) -> Tensor:
    """The targets. A mean squared error would rather broadcast than complain."""
    if logits.shape != targets.shape:
        raise ValueError(f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} differ in shape")
    return targets


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
    if not isinstance(record, dict):
        raise ValueError(f"a target is a JSON object with a kind, got {record!r:.60}")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"'kind' of a target is one of {', '.join(_KINDS)}, got {kind!r:.60}")
    names = [f.name for f in dataclasses.fields(_KINDS[kind])]
    for problem, differing in (
        ("lacks", set(names) - record.keys()),
        ("has unknown", record.keys() - {"kind", *names}),
    ):
        if differing:
            raise ValueError(f"a target of kind '{kind}' {problem} {', '.join(sorted(map(repr, differing)))}")
    return _KINDS[kind](**{name: _checked_list(name, record[name]) for name in names})


def _checked_list(name: str, values: Any) -> tuple[Any, ...]:
    numbers = name in ("means", "deviations")
    kinds = (int, float) if numbers else (str,)
    if not isinstance(values, list) or not all(type(value) in kinds for value in values):
        raise ValueError(
            f"'{name}' of a target is a list of {'numbers' if numbers else 'texts'}, got {values!r:.60}"
        )
    try:
        return tuple(map(float, values)) if numbers else tuple(values)
    except OverflowError:
        raise ValueError(f"'{name}' of a target has a number that is too large") from None
