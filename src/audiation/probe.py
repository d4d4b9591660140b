"""Probes on stored vectors as values: what is trained, when it is looked at and ended, and what comes out.

`grid.train_grid` trains many at once. Shape letters: `N` windows, `L` layers, `D` width of a vector, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.heads import ProbeHead
from audiation.targets import PitchTarget, Target

WEIGHTED_SUM = "weighted-sum"
Layer = int | Literal["weighted-sum"]


@dataclass(frozen=True)
class ProbeConfig:
    """One configuration of a grid; the defaults are the one of jukemir that is used when no grid is searched.

    layer: a layer, or the sum of layers 1..L weighted by the softmax of as many learned numbers (layer 0 is left out;
        MARBLE); None: the one that the run names.
    standardise: each feature to mean 0 and deviation 1, fitted on the training vectors.
    hidden_size: units of the one hidden layer; None: linear.
    batch_size: windows per step; a training set that is smaller is used whole.
    dropout: on the hidden layer, and on the input where `input_dropout` says so; used to 1/65536.
    weight_decay: L2 of Adam in its coupled form, on weights and biases.
    seed: of weights, batches and dropout, from streams of their own.
    """

    layer: Layer | None = None
    standardise: bool = True
    hidden_size: int | None = 512
    batch_size: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.25
    input_dropout: bool = True
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (
            self.layer in (None, WEIGHTED_SUM)
            or (isinstance(self.layer, int) and not isinstance(self.layer, bool) and self.layer >= 0)
        ):
            raise ValueError(f"layer is a number from 0 or '{WEIGHTED_SUM}', got {self.layer!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.hidden_size is not None and self.hidden_size < 1:
            raise ValueError(
                f"hidden_size must be at least 1, or None for a linear probe, got {self.hidden_size}"
            )
        if not 0 <= self.dropout <= 0.999:
            raise ValueError(f"dropout is a probability from 0 to 0.999, got {self.dropout}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True)
class ProbeSchedule:
    """When a probe is looked at on the validation split, slowed down and ended, and which state is kept.

    The defaults are jukemir's (Castellon, Donahue & Liang 2021; their code): a step is one batch drawn without
    replacement from the whole training set, independently of the steps before, so there are no epochs; a look every 8
    steps, the first before any update; training ends after 256 looks in a row without a strictly larger score. The
    test for the end stands before the next look, so the last 8 updates are made and discarded.

    sampling: "draws" as above, or "epochs": every window once per epoch in a new order, the last batch as it comes.
    look_every_steps: None: after each epoch, the first after the first one.
    patience: looks in a row without improvement that end the training; None: only `max_epochs` does.
    max_epochs: None: no limit.
    halve_patience: looks in a row without an improvement of 1e-4 of the best, after which the next such look lowers the
        learning rate (the rule and the defaults of PyTorch's ReduceLROnPlateau); None: it is constant.
    factor: by which it is multiplied then.
    keep: the state with the best score, or that of the last look.
    """

    sampling: Literal["draws", "epochs"] = "draws"
    look_every_steps: int | None = 8
    patience: int | None = 256
    max_epochs: int | None = None
    halve_patience: int | None = None
    factor: float = 0.5
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        if self.patience is None and self.max_epochs is None:
            raise ValueError("training would never end: give patience or max_epochs")
        if self.sampling == "draws" and (self.look_every_steps is None or self.max_epochs is not None):
            raise ValueError("there are no epochs in 'draws': give look_every_steps, and no max_epochs")
        if self.sampling not in ("draws", "epochs") or self.keep not in ("best", "last"):
            raise ValueError(
                f"sampling is draws or epochs, keep is best or last, got {self.sampling}, {self.keep}"
            )
        if not 0 < self.factor < 1 or (self.halve_patience is not None and self.halve_patience < 0):
            raise ValueError(
                f"factor is between 0 and 1 and halve_patience at least 0, got {self.factor}, {self.halve_patience}"
            )
        numbers = (self.look_every_steps, self.patience, self.max_epochs)
        if any(n is not None and n < 1 for n in numbers):
            raise ValueError(f"look_every_steps, patience and max_epochs are at least 1, got {numbers}")


@dataclass(frozen=True, eq=False)
class Standardiser:
    """`(x - mean) / scale`, each `(D,)`. A constant feature has scale 1, so it becomes 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, vectors: Tensor) -> Standardiser:
        """Population statistics of `(N, D)` in float64."""
        total, squares = torch.zeros((2, vectors.shape[1]), dtype=torch.float64, device=vectors.device)
        for block in vectors.split(1024):  # a training set in float64 would be twice the training set
            total += block.double().sum(0)
        mean = total / len(vectors)
        for block in vectors.split(1024):
            squares += (block.double() - mean).square().sum(0)
        deviation = (squares / len(vectors)).sqrt()
        # Less spread than float32 can express around the mean is rounding, not information.
        constant = (deviation <= torch.finfo(torch.float32).eps * mean.abs()) | (deviation.float() == 0)
        return cls(mean.float(), torch.where(constant, 1.0, deviation).float())

    @classmethod
    def identity(cls, dim: int) -> Standardiser:
        return cls(torch.zeros(dim), torch.ones(dim))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean.to(vectors.device)) / self.scale.to(vectors.device)


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation split, after `step` updates."""

    step: int
    score: float


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """A trained probe: its weights after `kept_step` updates; training ended at `last_step`.

    layers: what it reads; several are mixed by the softmax of `state["mix"]`, in this order.
    state: of `heads.ProbeHead`, with "mix" `(L,)` for a weighted sum.
    standardisers: of each of `layers`.
    """

    config: ProbeConfig
    num_outputs: int
    layers: tuple[int, ...]
    state: dict[str, Tensor]
    standardisers: tuple[Standardiser, ...]
    best_score: float
    best_step: int
    kept_step: int
    last_step: int
    history: tuple[Evaluation, ...]

    @property
    def num_parameters(self) -> int:
        """Trained weights and biases."""
        return sum(t.numel() for t in self.state.values())

    @torch.no_grad()
    def predict(self, vectors: Mapping[int, Tensor]) -> Tensor:
        """Layer -> `(M, D)` vectors as stored -> `(M, C)` logits."""
        head_state = {k: v for k, v in self.state.items() if k != "mix"}
        dim = vectors[self.layers[0]].shape[1]
        head = ProbeHead(dim, self.num_outputs, self.config.hidden_size, generator=torch.Generator())
        head.load_state_dict(head_state)
        inputs = [s(vectors[i].float()) for i, s in zip(self.layers, self.standardisers, strict=True)]
        if self.config.layer != WEIGHTED_SUM:
            return head.eval()(inputs[0])
        weights = F.softmax(self.state["mix"], 0)
        return head.eval()(torch.stack([w * x for w, x in zip(weights, inputs, strict=True)]).sum(0))


def check_classes(target: Target, annotations: Sequence[Any]) -> None:
    """Raise ValueError naming the classes of a classifying target that no training annotation has.

    Pitches are no closed list: nothing plays the lowest and the highest that MIDI knows.
    """
    if isinstance(target, PitchTarget):
        return
    targets = torch.stack([target.encode(annotation) for annotation in annotations])
    if targets.ndim != 1 or targets.is_floating_point():
        return
    seen = set(targets.tolist())
    one_hot = torch.eye(target.num_outputs)
    missing = [str(target.decode(one_hot[i])) for i in range(target.num_outputs) if i not in seen]
    if missing:
        raise ValueError(
            f"the training split has no example of {', '.join(missing)}. Use more data or another split; "
            "train_grid alone takes allow_missing_classes=True: these classes can then never be learned."
        )


def mean_per_track(outputs: Tensor, track_of_window: Tensor) -> Tensor:
    """Average the rows of each track: `(..., M, C)`, `(M,)` track numbers 0..K-1 -> `(..., K, C)`."""
    counts = torch.bincount(track_of_window)
    if bool((counts == 0).any()):
        raise ValueError(f"track number {int((counts == 0).nonzero()[0])} has no window")
    sums = outputs.new_zeros(*outputs.shape[:-2], len(counts), outputs.shape[-1])
    return sums.index_add_(-2, track_of_window, outputs) / counts[:, None]


def check_vectors(
    target: Target,
    train: Mapping[int, Tensor],
    annotations: Sequence[Any],
    valid: Mapping[int, Tensor],
    *,
    allow_missing_classes: bool,
) -> Tensor:
    """Validate the arguments of `train_grid`; returns the encoded training targets."""
    if not train or train.keys() != valid.keys():
        raise ValueError(
            f"training and validation vectors are of the same layers, got {list(train)} and {list(valid)}"
        )
    shapes = {tuple(x.shape[1:]) for x in (*train.values(), *valid.values())}
    if len(shapes) > 1 or any(x.ndim != 2 for x in (*train.values(), *valid.values())):
        found = [tuple(x.shape) for x in (*train.values(), *valid.values())]
        raise ValueError(
            f"a probe takes training and validation vectors (windows, width) of one width, got {found[:4]}"
        )
    for split, layers in (("training", train), ("validation", valid)):
        if len({len(x) for x in layers.values()}) > 1:
            raise ValueError(f"the layers of the {split} split differ in their number of vectors")
        for layer, vectors in layers.items():
            if len(vectors) == 0:
                raise ValueError(f"the {split} split has no vectors")
            bad = [i for i in range(len(vectors)) if not bool(torch.isfinite(vectors[i]).all())]
            if bad:
                raise ValueError(
                    f"{len(bad)} of {len(vectors)} {split} vectors of layer {layer} hold NaN or infinite values (the "
                    f"first is row {bad[0]}). Extract these clips again, or leave them out as failures."
                )
    num_windows = len(next(iter(train.values())))
    if num_windows != len(annotations):
        raise ValueError(f"{num_windows} training vectors but {len(annotations)} annotations")
    targets = torch.stack([target.encode(annotation) for annotation in annotations])
    if not allow_missing_classes:
        check_classes(target, annotations)
    return targets
