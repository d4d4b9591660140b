"""Outputs of probes -> answers per track, and validation scores of many probes at once.

Shape letters: `K` probes, `M` windows, `T` tracks, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiation.annotations import Tags
from audiation.metrics import ROC_AUC, Metric
from audiation.probe import mean_per_track
from audiation.targets import ClassTarget, ClipTarget, KeyTarget, PitchTarget, TagsTarget
from audiation.windows import Aggregation


def answer_tracks(
    target: ClipTarget, logits: Tensor, track_of_window: Tensor, rule: Aggregation = "logits_mean"
) -> list[Any]:
    """`(M, C)` logits of windows -> one decoded annotation per track, its windows combined by the rule."""
    return [target.decode(row) for row in track_logits(target, logits, track_of_window, rule)]


def track_logits(
    target: ClipTarget, logits: Tensor, track_of_window: Tensor, rule: Aggregation = "logits_mean"
) -> Tensor:
    """`(M, C)` logits of windows -> `(T, C)` of tracks."""
    if rule == "logits_mean" or len(track_of_window) == int(track_of_window.max()) + 1:  # or a window each
        return mean_per_track(logits, track_of_window)
    num_tracks = int(track_of_window.max()) + 1
    return torch.stack([target.combine(logits[track_of_window == i], rule) for i in range(num_tracks)])


class ValidationScorer:
    """Scores of `(K, M, C)` logits, larger is better: what decides when training ends and which probe is tested.

    A metric that is a mean over tracks of one answer out of several is a table that is looked up for all probes at
    once, and the macro ROC AUC comes from ranks; any other is computed probe by probe. The numbers are those of the
    metric.

    Args:
        references: annotations of the validation tracks.
        track_of_window: `(M,)` index into `references`.
        rules: ways to combine the windows of a track; a probe's score is the best of them.
    """

    def __init__(
        self,
        target: ClipTarget,
        metric: Metric,
        references: Sequence[Any],
        track_of_window: Tensor,
        rules: Sequence[Aggregation] = ("logits_mean",),
    ) -> None:
        self._target, self._metric, self._references = target, metric, list(references)
        self._track_of_window = track_of_window
        one_window_each = len(track_of_window) == len(self._references)
        self._rules: tuple[Aggregation, ...] = tuple(rules[:1] if one_window_each else rules)
        self._all_rules: tuple[Aggregation, ...] = tuple(rules)
        self._many = self._fast()

    def __call__(self, logits: Tensor) -> np.ndarray:
        """`(K, M, C)` -> `(K,)`."""
        return np.stack([self._score(logits.cpu(), rule) for rule in self._rules]).max(0)

    def best_rule(self, logits: Tensor) -> Aggregation:
        """The rule with the best score for one probe, `(M, C)`; of equals the first."""
        scores = [float(self._score(logits[None].cpu(), rule)[0]) for rule in self._all_rules]
        return self._all_rules[int(np.argmax(scores))]

    def _score(self, logits: Tensor, rule: Aggregation) -> np.ndarray:
        if self._many is not None and rule == "logits_mean":
            return self._many(mean_per_track(logits, self._track_of_window))
        if self._many is not None:
            combined = [track_logits(self._target, x, self._track_of_window, rule) for x in logits]
            return self._many(torch.stack(combined))
        answers = [answer_tracks(self._target, x, self._track_of_window, rule) for x in logits]
        sign = 1.0 if self._metric.higher_is_better else -1.0
        return np.array([sign * self._metric.compute(self._references, a) for a in answers])

    def _fast(self) -> Callable[[Tensor], np.ndarray] | None:
        """`(K, T, C)` outputs of tracks -> `(K,)`, where there is a way for all probes at once."""
        target, metric = self._target, self._metric
        if isinstance(target, ClassTarget | KeyTarget | PitchTarget) and metric.per_track is not None:
            classes = [target.decode(row) for row in torch.eye(target.num_outputs)]
            table = np.array([[metric.per_track(r, c) for c in classes] for r in self._references])
            table = table if metric.higher_is_better else -table
            tracks = np.arange(len(table))
            return lambda x: table[tracks, x.argmax(-1).numpy()].mean(-1)
        if isinstance(target, TagsTarget) and metric.name == ROC_AUC.name:
            truth = np.array([self._truth(r) for r in self._references])
            defined = (truth.sum(0) > 0) & (truth.sum(0) < len(truth))
            if defined.any():
                return lambda x: np.array(
                    [_macro_roc_auc(truth[:, defined], y[:, defined]) for y in x.numpy()]
                )
        return None

    def _truth(self, reference: Tags) -> list[float]:
        assert isinstance(self._target, TagsTarget)
        return [reference.scores.get(tag, 0.0) for tag in self._target.tags]


def _macro_roc_auc(truth: np.ndarray, logits: np.ndarray) -> float:
    """Mean over tags of the probability that a positive is ranked above a negative, ties counting half: `(T, C)`."""
    from scipy.special import expit
    from scipy.stats import rankdata

    ranks = rankdata(expit(logits.astype(np.float64)), axis=0)
    positives = truth.sum(0)
    above = (ranks * truth).sum(0) - positives * (positives + 1) / 2
    return float((above / (positives * (len(truth) - positives))).mean())
