"""Layers of any backbone as text: `middle`, `every:9`, `all`, `3+7`, and `greedy:3`, which is searched.

Shape letters: `N`, `M` training and validation windows, `D` width of a layer's vector, `C` outputs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiation.grid import GridProgress, train_grid
from audiation.grid_stack import Scores
from audiation.probe import ProbeConfig, ProbeSchedule
from audiation.targets import ClipTarget

FORMS = "middle, every:k, all, or numbers joined by '+', like 3+7"
SAME_SCORE = 1e-9  # scores that differ by less are equal
BLOCK_BYTES = 2**31  # of vectors in memory at a time


@dataclass(frozen=True)
class FixedLayers:
    """Layers that the text names. layers: in ascending order."""

    layers: tuple[int, ...]


@dataclass(frozen=True)
class GreedyLayers:
    """At most so many layers, to be found by forward selection on a task (`select_greedily`)."""

    most: int


def parse(text: str, num_layers: int) -> FixedLayers | GreedyLayers:
    """The choice that a text makes among the layers 0..L of a backbone.

    `middle` is layer L // 2 (36 of Jukebox's 72). `every:k` is 0, k, 2k, ... up to L; 0 is what enters the first block.
    `all` is 0..L. `greedy:n` is for `select_greedily`.

    Args:
        num_layers: L.

    Raises:
        ValueError: another text, a layer that there is not, or one that is named twice.
    """
    name, colon, number = text.strip().partition(":")
    if name in ("every", "greedy") and colon:
        count = _whole(number, text)
        if count < 1:
            raise ValueError(f"the number of '{text}' is at least 1")
        if name == "greedy":
            return GreedyLayers(count)
        if count > max(1, num_layers):
            raise ValueError(f"'{text}' steps over all of the layers 0..{num_layers}")
        return FixedLayers(tuple(range(0, num_layers + 1, count)))
    if text.strip() == "all":
        return FixedLayers(tuple(range(num_layers + 1)))
    if text.strip() == "middle":
        return FixedLayers((num_layers // 2,))
    layers = [_whole(part, text) for part in text.split("+")]
    for layer in layers:
        if layer > num_layers:
            raise ValueError(f"there are layers 0..{num_layers}, got {layer} in '{text}'")
        if layers.count(layer) > 1:
            raise ValueError(f"layer {layer} is named twice in '{text}'")
    return FixedLayers(tuple(sorted(layers)))


def parse_fixed(text: str, num_layers: int) -> tuple[int, ...]:
    """As `parse`, where there is no task on which layers could be searched.

    Raises:
        ValueError: as `parse`, and for `greedy:n`.
    """
    choice = parse(text, num_layers)
    if isinstance(choice, GreedyLayers):
        raise ValueError(
            f"'{text}' needs a task to choose on. Name layers ({FORMS}), or find them first: "
            f"audiation profile-layers --choose {text}."
        )
    return choice.layers


def format_layers(layers: Sequence[int]) -> str:
    """Inverse of `parse` for named layers: (3, 7) -> '3+7'."""
    return "+".join(map(str, layers))


def _whole(part: str, text: str) -> int:
    if not part.strip().isdecimal():
        raise ValueError(f"'{text}' names no layers. Allowed: {FORMS}; greedy:n where a task is probed.")
    return int(part)


# Probes on several layers ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerVectors:
    """What is stored of some layers. train: layer -> `(N, D)`; valid: layer -> `(M, D)`."""

    train: Mapping[int, Tensor]
    valid: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class JointProbes:
    """Probes on the concatenated vectors of layers, judged on validation.

    A probe on k layers reads `(N, k D)`. Every feature is standardised on its own where the probe standardises, so that
    no layer outweighs another by its scale. A linear probe on the concatenation can do whatever one on an average or a
    weighted sum of the layers can.

    read: layers -> their vectors; the same windows each time.
    probes: configurations that are tried; the best counts. Their `layer` is not read.
    annotations: N annotations of the training windows.
    score: as in `grid.train_grid`; larger is better.
    bytes_per_layer: of the vectors of one layer, both splits. As many layers are read at a time as fit into memory.
    run_dir, run_key: as in `grid.train_grid`; a training that was killed goes on from there.
    """

    read: Callable[[Sequence[int]], LayerVectors]
    probes: tuple[ProbeConfig, ...]
    schedule: ProbeSchedule
    target: ClipTarget
    annotations: Sequence[Any]
    score: Scores
    bytes_per_layer: int
    run_dir: Path | None = None
    run_key: str = ""
    device: str = "cpu"
    progress: Callable[[GridProgress], None] | None = None
    block_bytes: int = BLOCK_BYTES

    def scores(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        """The best validation score of a probe on each group of layers; -inf where all have diverged.

        Args:
            groups: of equal size, no two with the same last layer.

        Raises:
            ValueError: what `grid.train_grid` refuses.
        """
        assert len({len(g) for g in groups}) == 1 and len({g[-1] for g in groups}) == len(groups)
        size = max(1, self.block_bytes // (self.bytes_per_layer * len(groups[0])))
        blocks = [groups[start : start + size] for start in range(0, len(groups), size)]
        return [score for block in blocks for score in self._block(block)]

    def _block(self, groups: Sequence[tuple[int, ...]]) -> list[float]:
        vectors = self.read(sorted({layer for group in groups for layer in group}))
        train, valid = (
            {group[-1]: _joined(side, group) for group in groups} for side in (vectors.train, vectors.valid)
        )
        configs = [replace(probe, layer=group[-1]) for group in groups for probe in self.probes]
        place = None
        if self.run_dir is not None:
            named = hashlib.sha256(f"{self.run_key} {groups}".encode()).hexdigest()[:16]
            place = self.run_dir / named
        fit = train_grid(
            configs, self.schedule, self.target, train, self.annotations, valid, self.score,
            run_dir=place, run_key=f"{self.run_key} {groups}", device=self.device, progress=self.progress,
        )  # fmt: skip
        found = [trial.best_score for trial in fit.trials]
        count = len(self.probes)
        return [max(found[start : start + count]) for start in range(0, len(found), count)]


def _joined(vectors: Mapping[int, Tensor], group: Sequence[int]) -> Tensor:
    return vectors[group[0]] if len(group) == 1 else torch.cat([vectors[layer] for layer in group], 1)


# Forward selection ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GreedyStep:
    """A layer that was added, and the validation score of all layers so far with it."""

    layer: int
    score: float


@dataclass(frozen=True)
class GreedySelection:
    """What `select_greedily` found. steps: in the order of their choice.

    passed_over: the layer that came closest to being added next, with the score that was not better; None where the
        number of layers, or the layers, ended the search.
    """

    steps: tuple[GreedyStep, ...]
    passed_over: GreedyStep | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """In ascending order."""
        return tuple(sorted(step.layer for step in self.steps))

    @property
    def score(self) -> float:
        return self.steps[-1].score


def select_greedily(most: int, singles: Mapping[int, float], probes: JointProbes) -> GreedySelection:
    """Up to `most` layers that are jointly most informative: forward selection on validation scores.

    Begins with the layer that scores best alone, and adds the one with which the concatenated vectors score best, as
    long as that is strictly better than without. Equal scores take the lower layer. jukemir names the idea (Castellon,
    Donahue & Liang 2021, footnote 5) and found layer 36 alone as good; how layers were joined there is not stated.

    The score that decides is that of the validation split: with many layers its best is too good, and only a test says
    by how much.

    Args:
        singles: layer -> its score alone, as `JointProbes.scores` gives it.

    Raises:
        ValueError: no layers, or what `JointProbes.scores` raises.
    """
    if most < 1 or not singles:
        raise ValueError(
            f"forward selection needs layers, and a number of at least 1, got {most} of {len(singles)}"
        )
    first = max(singles, key=lambda layer: (_rounded(singles[layer]), -layer))
    if singles[first] == -math.inf:
        raise ValueError("no layer has a finite score alone, so there is nothing to add others to")
    steps = [GreedyStep(first, singles[first])]
    while len(steps) < min(most, len(singles)):
        chosen = tuple(step.layer for step in steps)
        left = sorted(layer for layer in singles if layer not in chosen)
        scores = probes.scores([(*chosen, layer) for layer in left])
        best = max(zip(left, scores, strict=True), key=lambda pair: (_rounded(pair[1]), -pair[0]))
        if best[1] == -math.inf:
            break
        if not best[1] > steps[-1].score + SAME_SCORE:
            return GreedySelection(tuple(steps), GreedyStep(*best))
        steps.append(GreedyStep(*best))
    return GreedySelection(tuple(steps))


def _rounded(score: float) -> float:
    """Equal scores differ in their last bits when they are sums of other terms."""
    return score if math.isinf(score) else round(score / SAME_SCORE) * SAME_SCORE
