"""Train one probe on stored vectors by the rules of jukemir (Castellon, Donahue & Liang 2021; their code).

Shape letters: `N` training windows, `M` validation windows, `D` width of a vector, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from audiation.heads import ProbeHead
from audiation.targets import PitchTarget, Target

EVALUATE_EVERY_STEPS = 8
PATIENCE_EVALUATIONS = 256


@dataclass(frozen=True)
class ProbeConfig:
    """One configuration of the grid of jukemir; the defaults are the one used when no grid is searched.

    standardise: each feature to mean 0 and deviation 1, fitted on the training vectors.
    hidden_size: units of the one hidden layer; None: linear.
    batch_size: windows per step; a training set that is smaller is used whole.
    weight_decay: L2 of Adam in its coupled form, on weights and biases.
    seed: of weights, batches and dropout, from a stream of its own.
    """

    standardise: bool = True
    hidden_size: int | None = 512
    batch_size: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.25
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, eq=False)
class Standardiser:
    """`(x - mean) / scale`, each `(D,)`. A constant feature has scale 1, so it becomes 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, vectors: Tensor) -> Standardiser:
        """Population statistics of `(N, D)` in float64."""
        wide = vectors.to(torch.float64)
        mean, deviation = wide.mean(0), wide.std(0, correction=0)
        # Less spread than float32 can express around the mean is rounding, not information.
        constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
        return cls(mean.float(), torch.where(constant, 1.0, deviation).float())

    @classmethod
    def identity(cls, dim: int) -> Standardiser:
        return cls(torch.zeros(dim), torch.ones(dim))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.scale


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation split, after `step` updates."""

    step: int
    score: float


@dataclass(frozen=True, eq=False)
class ProbeFit:
    """A trained probe: weights after `best_step` updates; training ended at `last_step`."""

    config: ProbeConfig
    num_outputs: int
    state: dict[str, Tensor]
    standardiser: Standardiser
    best_score: float
    best_step: int
    last_step: int
    history: tuple[Evaluation, ...]

    @property
    def num_evaluations(self) -> int:
        return len(self.history)

    @property
    def num_parameters(self) -> int:
        """Trained weights and biases."""
        return sum(t.numel() for t in self.state.values())

    def predict(self, vectors: Tensor) -> Tensor:
        """`(M, D)` vectors as stored -> `(M, C)` logits."""
        head = _new_head(self.config, vectors.shape[1], self.num_outputs, torch.Generator())
        head.load_state_dict(self.state)
        return _logits(head.eval(), self.standardiser(vectors.float()))


def train_probe(
    config: ProbeConfig,
    target: Target,
    train_vectors: Tensor,
    train_annotations: Sequence[Any],
    valid_vectors: Tensor,
    score: Callable[[Tensor], float],
    *,
    allow_missing_classes: bool = False,
    progress: Callable[[Evaluation], None] | None = None,
) -> ProbeFit:
    """Train until the validation score has not improved 256 evaluations in a row; keep the best state.

    Adam with a constant learning rate. One step is one batch drawn without replacement from the whole
    training set, independently of the steps before: there are no epochs. The validation split is looked at
    every 8 steps, the first time before any update. An improvement is a strictly larger score. The test for
    stopping stands in front of the next evaluation, so the last 8 updates are made and discarded. There is
    no other limit.

    Args:
        train_vectors: `(N, D)`, one row per window: each is an example of its own.
        train_annotations: N annotations, encoded by `target`.
        valid_vectors: `(M, D)`.
        score: `(M, C)` logits -> number, larger is better. Combines the windows of a track
            where there are several (`mean_per_track`), decodes and applies the selecting metric.
        allow_missing_classes: train although a class of the target never occurs in the training split.
        progress: called after every evaluation.

    Raises:
        ValueError: before training: shapes that do not fit, NaN or infinite vectors, a class that is missing.
            At an evaluation: a score that is NaN.
    """
    targets = _check(
        target, train_vectors, train_annotations, valid_vectors, allow_missing_classes=allow_missing_classes
    )
    num_windows, dim = train_vectors.shape
    train_vectors, valid_vectors = train_vectors.float(), valid_vectors.float()
    standardiser = Standardiser.fit(train_vectors) if config.standardise else Standardiser.identity(dim)
    train_inputs, valid_inputs = standardiser(train_vectors), standardiser(valid_vectors)

    generator = torch.Generator().manual_seed(config.seed)
    head = _new_head(config, dim, target.num_outputs, generator)
    optimiser = torch.optim.Adam(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    history: list[Evaluation] = []
    best, best_state = Evaluation(0, float("-inf")), _copy(head)
    since_best, step = 0, 0
    while since_best < PATIENCE_EVALUATIONS:
        evaluation = Evaluation(step, float(score(_logits(head.eval(), valid_inputs))))
        if evaluation.score != evaluation.score:
            raise ValueError(f"the validation score is NaN at step {step}; a score must be a number")
        history.append(evaluation)
        if progress is not None:
            progress(evaluation)
        if evaluation.score > best.score:
            best, best_state, since_best = evaluation, _copy(head), 0
        else:
            since_best += 1
        head.train()
        for _ in range(EVALUATE_EVERY_STEPS):
            batch = torch.randperm(num_windows, generator=generator)[: config.batch_size]
            loss = target.loss(head(train_inputs[batch], generator), targets[batch]).mean
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
    return ProbeFit(
        config, target.num_outputs, best_state, standardiser, best.score, best.step, step, tuple(history)
    )


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
            "train_probe alone takes allow_missing_classes=True: these classes can then never be learned."
        )


def mean_per_track(outputs: Tensor, track_of_window: Tensor) -> Tensor:
    """Average the rows of each track: `(M, C)`, `(M,)` track numbers 0..K-1 -> `(K, C)`."""
    counts = torch.bincount(track_of_window)
    if bool((counts == 0).any()):
        raise ValueError(f"track number {int((counts == 0).nonzero()[0])} has no window")
    sums = outputs.new_zeros(len(counts), outputs.shape[1]).index_add_(0, track_of_window, outputs)
    return sums / counts[:, None]


def _check(
    target: Target, train: Tensor, annotations: Sequence[Any], valid: Tensor, *, allow_missing_classes: bool
) -> Tensor:
    """Validate the arguments of `train_probe`; returns the encoded training targets."""
    if train.ndim != 2 or valid.ndim != 2 or train.shape[1] != valid.shape[1]:
        raise ValueError(
            f"a probe takes training and validation vectors (windows, width) of one width, "
            f"got {tuple(train.shape)} and {tuple(valid.shape)}"
        )
    if len(train) != len(annotations):
        raise ValueError(f"{len(train)} training vectors but {len(annotations)} annotations")
    for split, vectors in (("training", train), ("validation", valid)):
        if len(vectors) == 0:
            raise ValueError(f"the {split} split has no vectors")
        bad = (~torch.isfinite(vectors)).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(vectors)} {split} vectors hold NaN or infinite values (the first is row "
                f"{bad[0]}). Extract these clips again, or leave them out as failures."
            )
    targets = torch.stack([target.encode(annotation) for annotation in annotations])
    if not allow_missing_classes:
        check_classes(target, annotations)
    return targets


def _new_head(config: ProbeConfig, dim: int, num_outputs: int, generator: torch.Generator) -> ProbeHead:
    return ProbeHead(dim, num_outputs, config.hidden_size, config.dropout, generator=generator)


@torch.no_grad()
def _logits(head: ProbeHead, inputs: Tensor) -> Tensor:
    return head(inputs)


def _copy(head: ProbeHead) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in head.state_dict().items()}
