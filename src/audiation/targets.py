"""Annotation <-> training tensor, and the loss: one class per output space.

A `Target` owns encode, loss and decode, so that a label map exists in one place and nobody applies a softmax
twice. `decode(encode(a)) == a` is a property every target is tested for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.annotations import Emotion, Key, Label, Pitch, Tags, Tempo, Values
from audiation.decoding import tempo_from_bins
from audiation.frames import FrameGrid
from audiation.training import Loss
from audiation.windows import Aggregation, aggregate


@dataclass(frozen=True, eq=False)
class ClipContext:
    """What decoding may need beside the logits.

    mixture: `(2, S)`, of which stems are separated.
    """

    grid: FrameGrid | None = None
    mixture: Tensor | None = None


class Target(Protocol):
    """Output space of a task: `num_outputs` logits, per clip (`ClipTarget`) or per frame (`FrameTarget`).

    encode: annotation -> what `loss` compares with; a frame target needs the grid.
    loss: summed over what is valid, with the number of terms.
    decode: logits of one clip -> annotation.
    """

    @property
    def num_outputs(self) -> int: ...

    @property
    def per_frame(self) -> bool: ...

    def encode(self, annotation: Any, grid: FrameGrid | None = None) -> Tensor: ...

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss: ...

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Any: ...


class ClipTarget(Target, Protocol):
    """One answer per clip.

    combine: logits `(N, C)` of the N windows of one track -> `(C,)`, float64 on the CPU, so that decoding them answers
        for the track. By default probabilities or values are averaged over the windows, not logits: PETL's "sigmoid
        per segment, then average over segments" (`petl.md`, section 4). ValueError for no window, outputs that are
        not finite, or a rule that this output space has no use for.
    scores: logits `(C,)` -> the named numbers behind an answer: probabilities or values.
    """

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor: ...

    def scores(self, logits: Tensor) -> dict[str, float]: ...


class FrameTarget(Target, Protocol):
    """One answer per frame: `encode` -> `(T,)` or `(T, K)`; `decode` of `(T, C)` needs `context.grid`.

    frame_rate_hz: of the outputs; None: every frame that the backbone gives.
    """

    @property
    def frame_rate_hz(self) -> float | None: ...


def clip_target(target: Target) -> ClipTarget:
    """The target, known to answer per clip. ValueError for one that answers per frame."""
    if target.per_frame:
        raise ValueError(
            f"a {type(target).__name__} answers for every frame; one answer per clip was asked for"
        )
    return cast(ClipTarget, target)


def frame_target(target: Target) -> FrameTarget | None:
    """The target where it answers per frame, else None."""
    return cast(FrameTarget, target) if target.per_frame else None


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

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """By any of the rules of `windows.aggregate`."""
        return aggregate(_windows(logits, self.num_outputs), rule)

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

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """By any of the rules of `windows.aggregate`."""
        return aggregate(_windows(logits, self.num_outputs), rule)

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

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """Logit of the mean probability, for each tag, finite however sure the windows are; or the mean or largest
        logit. ValueError for a vote: it would leave no score to rank by."""
        windows = _windows(logits, self.num_outputs)
        if rule == "majority":
            raise ValueError("tags are ranked by a score, which a vote of windows does not give")
        if rule != "probability_mean":
            return aggregate(windows, rule)
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

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """Mean of each number, which both rules of a mean come to. ValueError for the others."""
        if rule not in ("probability_mean", "logits_mean"):
            raise ValueError(f"numbers of windows are averaged; '{rule}' is a rule for classes")
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


@dataclass(frozen=True)
class PitchTarget:
    """128 MIDI pitches per clip (NSynth). MARBLE v1 trains on other offsets, which change no accuracy (D20)."""

    num_outputs = 128
    per_frame = False

    def encode(self, annotation: Pitch, grid: FrameGrid | None = None) -> Tensor:
        return torch.tensor(annotation.midi)

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Pitch:
        return Pitch(int(logits.argmax()))

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """By any of the rules of `windows.aggregate`."""
        return aggregate(_windows(logits, self.num_outputs), rule)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return _probabilities((str(Pitch(i)) for i in range(128)), logits)


@dataclass(frozen=True)
class EmotionTarget:
    """Arousal and valence per clip, learned as distance from the training mean in training deviations.

    means, deviations: of arousal and valence; Emomusic's are those of its 619 development songs (benchmark, 4.8).
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    num_outputs = 2
    per_frame = False

    def __post_init__(self) -> None:
        _ = self._values

    @property
    def _values(self) -> ValuesTarget:
        return ValuesTarget(("arousal", "valence"), self.means, self.deviations)

    def encode(self, annotation: Emotion, grid: FrameGrid | None = None) -> Tensor:
        """-> `(2,)` float32 in deviations from the mean."""
        return self._values.encode(Values({"arousal": annotation.arousal, "valence": annotation.valence}))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Squared error of both."""
        return self._values.loss(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Emotion:
        return Emotion(**self.scores(logits))

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        return self._values.combine(logits, rule)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return self._values.scores(logits)


TEMPO_BINS = 300
TEMPO_NEIGHBOURS = (1.0, 0.5, 0.5)  # at the label, one and two bins away (PETL)


@dataclass(frozen=True)
class TempoTarget:
    """300 tempi per clip, 0 to 299 BPM: 1 at the rounded tempo, 0.5 at its neighbours one and two away (PETL).

    A tempo above 299 is learned as 299; the metric knows the annotated one.

    objective: the released code has no loss. "cross_entropy" against the normalised bins, or "bce" per bin.
    """

    objective: Literal["cross_entropy", "bce"] = "cross_entropy"
    num_outputs = TEMPO_BINS
    per_frame = False

    def __post_init__(self) -> None:
        if self.objective not in ("cross_entropy", "bce"):
            raise ValueError(f"objective is 'cross_entropy' or 'bce', got {self.objective!r}")

    def encode(self, annotation: Tempo, grid: FrameGrid | None = None) -> Tensor:
        """-> `(300,)` float32."""
        label = min(round(annotation.bpm), TEMPO_BINS - 1)
        bins = torch.zeros(TEMPO_BINS)
        for distance, value in enumerate(TEMPO_NEIGHBOURS):
            for place in (label - distance, label + distance):
                if 0 <= place < TEMPO_BINS:
                    bins[place] = value
        return bins

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """One term per valid clip; "bce": per clip and bin."""
        keep = torch.ones_like(targets[:, 0], dtype=torch.bool) if valid is None else valid
        logits, targets = logits[keep], _same_shape(logits, targets)[keep]
        if self.objective == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            return Loss(loss, keep.sum() * TEMPO_BINS)
        bins = targets / targets.sum(-1, keepdim=True)
        return Loss(-(bins * logits.log_softmax(-1)).sum(), keep.sum())

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Tempo:
        """`(300,)` logits -> the highest local maximum of the smoothed probabilities, to 0.001 BPM."""
        return tempo_from_bins(logits.detach().cpu().double().softmax(-1).numpy())

    def combine(self, logits: Tensor, rule: Aggregation = "probability_mean") -> Tensor:
        """By any of the rules of `windows.aggregate`."""
        return aggregate(_windows(logits, self.num_outputs), rule)

    def scores(self, logits: Tensor) -> dict[str, float]:
        return _probabilities((f"{bpm} BPM" for bpm in range(TEMPO_BINS)), logits)


ONE_OF_SEVERAL = (
    ClassTarget,
    KeyTarget,
    PitchTarget,
    TempoTarget,
)  # the softmax of their outputs is a probability
