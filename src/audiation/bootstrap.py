"""Error bars: how far a score, or the difference of two, would move with other tracks of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from audiation.annotations import Tags
from audiation.metrics import AP, AP_UNDEFINED_SKIPPED, ROC_AUC, ROC_AUC_UNDEFINED_ZERO, Metric

RESAMPLES_PER_BLOCK = 100  # bounds the memory of a vectorised bootstrap
MIN_DEFINED_SHARE = (
    0.95  # of the resamples; the others have no score, and their share of the interval is unknown
)


class Interval(NamedTuple):
    low: float
    high: float


def bootstrap_interval(
    metric: Metric,
    references: Sequence[Any],
    estimates: Sequence[Any],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap over tracks: how far the score would move with other tracks of the same kind.

    It knows nothing of the spread over training seeds. A metric that is a mean over tracks (`per_track`)
    is resampled from its per-track values; any other is computed once per resample.

    Returns:
        None for one track, whose resamples are all alike and would look like certainty.

    Raises:
        ValueError: no tracks, lists of different lengths, or a score that more than 5 % of the resamples do not have.
    """
    _check_confidence(confidence)
    if len(references) == len(estimates) == 1:
        return None
    scores = resampled_scores(metric, references, estimates, num_resamples=num_resamples, seed=seed)
    return percentile_interval(metric, scores, len(references), confidence)


def paired_interval(
    metric: Metric,
    references: Sequence[Any],
    estimates_a: Sequence[Any],
    estimates_b: Sequence[Any],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap of score(a) - score(b) over the same tracks: both systems are scored on every resample.

    A is better than b (in a metric that rises) where the interval lies above 0, worse where it lies below, and they
    cannot be told apart where it holds 0.

    Returns:
        None for one track.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    _check_confidence(confidence)
    num_tracks = len(references)
    if not num_tracks == len(estimates_a) == len(estimates_b):
        raise ValueError(
            f"a paired bootstrap needs the same tracks, got {num_tracks} references, {len(estimates_a)} and "
            f"{len(estimates_b)} estimates"
        )
    if num_tracks == 1:
        return None
    a, b = (
        resampled_scores(metric, references, estimates, num_resamples=num_resamples, seed=seed)
        for estimates in (estimates_a, estimates_b)
    )
    return percentile_interval(metric, a - b, num_tracks, confidence)


def resampled_scores(
    metric: Metric,
    references: Sequence[Any],
    estimates: Sequence[Any],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The score on each of R resamples of the tracks, `(R,)`, nan where it is not defined.

    The resamples follow from the number of tracks and the seed, so systems that answered the same tracks in the same
    order share them: the differences of two such arrays are paired.

    Raises:
        ValueError: no tracks, lists of different lengths, or a score that is defined on no resample.
    """
    num_tracks = len(references)
    if num_tracks == 0 or num_tracks != len(estimates):
        raise ValueError(
            f"a bootstrap needs pairs, got {num_tracks} references and {len(estimates)} estimates"
        )
    if num_resamples < 1:
        raise ValueError(f"a bootstrap needs one resample or more, got {num_resamples}")
    score_of = _resampled(metric, references, estimates)
    return np.concatenate([score_of(d) for d in _draws(num_tracks, num_resamples, seed)])


def percentile_interval(
    metric: Metric, scores: np.ndarray, num_tracks: int, confidence: float = 0.95
) -> Interval | None:
    """The middle of what `resampled_scores` gives, or of the differences of two, `(R,)`.

    Returns:
        None for one track.

    Raises:
        ValueError: more than 5 % of the resamples have no score.
    """
    _check_confidence(confidence)
    if num_tracks == 1:
        return None
    finite = scores[np.isfinite(scores)]
    if len(finite) < MIN_DEFINED_SHARE * len(scores):
        raise ValueError(
            f"{metric.name} is defined on {len(finite)} of {len(scores)} resamples of {num_tracks} tracks; too few "
            "for an interval"
        )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence in (0, 1), got {confidence}")


def _draws(num_tracks: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of resamples, `(resamples, tracks)` indices."""
    generator = np.random.default_rng(seed)
    for done in range(0, num_resamples, RESAMPLES_PER_BLOCK):
        block = min(RESAMPLES_PER_BLOCK, num_resamples - done)
        yield generator.integers(0, num_tracks, (block, num_tracks))


def _resampled(
    metric: Metric, references: Sequence[Any], estimates: Sequence[Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """`(resamples, tracks)` indices -> the score on every resample, nan where it is not defined."""
    if metric.per_track is not None:
        values = np.array([metric.per_track(r, e) for r, e in zip(references, estimates, strict=True)], float)
        return lambda draws: values[draws].mean(axis=1)
    if metric in _TAG_SCORES:
        return _TagBlocks(metric, references, estimates)
    if metric.weighted is not None:
        metric.compute(references, estimates)  # raises where something is wrong with all tracks
        score = metric.weighted(references, estimates)
        return lambda draws: np.array(
            [score(np.bincount(draw, minlength=len(references)).astype(np.float64)) for draw in draws]
        )

    def one_by_one(draws: np.ndarray) -> np.ndarray:
        scores = []
        for draw in draws:
            try:
                scores.append(metric.compute([references[i] for i in draw], [estimates[i] for i in draw]))
            except ValueError:  # a resample without variation, say
                scores.append(float("nan"))
        if np.isnan(scores).all():
            metric.compute(references, estimates)  # raises where something is wrong with all tracks
        return np.array(scores)

    return one_by_one


# Macro averages over tags -----------------------------------------------------------------------------------

# (what is averaged, what becomes of a tag for which it is not defined). Their `weighted` form takes one resample at a
# time; all resamples of a block at once are eight times as fast.
_TAG_SCORES = {
    ROC_AUC: ("roc_auc", "skip"),
    ROC_AUC_UNDEFINED_ZERO: ("roc_auc", "zero"),
    AP: ("ap", "zero"),
    AP_UNDEFINED_SKIPPED: ("ap", "skip"),
}


class _TagBlocks:
    """`(resamples, tracks)` indices -> scores, tag by tag for all resamples of the block."""

    def __init__(self, metric: Metric, references: Sequence[Tags], estimates: Sequence[Tags]) -> None:
        self._score, self._undefined = _TAG_SCORES[metric]
        tags = tuple(references[0].scores)
        if not all(tuple(t.scores) == tags for tracks in (references, estimates) for t in tracks):
            metric.compute(references, estimates)  # raises where the tags are others, not only their order
        truth, scores = _matrix(references, tags), _matrix(estimates, tags)
        positives = truth.sum(axis=0)
        if not np.isin(truth, (0.0, 1.0)).all() or np.isin(positives, (0, len(truth))).all():
            metric.compute(references, estimates)  # raises where something is wrong with all tracks
        self._tags = [_TagBlock(t > 0, s) for t, s in zip(truth.T, scores.T, strict=True)]

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        num_tracks = draws.shape[1]
        counts = np.stack([np.bincount(draw, minlength=num_tracks) for draw in draws], axis=1)
        weights = counts.astype(np.float32)  # (N, R); whole numbers, so sums are exact
        values = np.stack([getattr(tag, self._score)(weights) for tag in self._tags])
        defined = np.isfinite(values)
        sums = np.where(defined, values, 0.0).sum(axis=0)
        count = defined.sum(axis=0)
        shared = count if self._undefined == "skip" else len(values)
        return np.where(count > 0, sums / np.maximum(shared, 1), np.nan)


def _matrix(tracks: Sequence[Tags], tags: tuple[str, ...]) -> np.ndarray:
    """`(N, C)`."""
    return np.array([list(map(t.scores.__getitem__, tags)) for t in tracks])


class _TagBlock:
    """One tag, its tracks sorted by score once. Tracks of equal score are one group, which no threshold can part.

    Shape letters: `P` positives, `K` places where a group with a positive begins or ends, `R` resamples.
    """

    def __init__(self, truth: np.ndarray, scores: np.ndarray) -> None:
        """truth, scores: `(N,)`."""
        num_tracks = len(scores)
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        first = np.flatnonzero(np.diff(ranked, prepend=np.inf))  # first place of each group
        places = np.flatnonzero(truth[order])
        group = np.searchsorted(first, places, side="right") - 1
        starts, ends = first[group], np.append(first[1:], num_tracks)[group]
        bounds = np.unique(np.concatenate([starts, ends]))
        self._positives = order[places]
        self._start, self._end = np.searchsorted(bounds, starts), np.searchsorted(bounds, ends)
        self._positives_before = np.searchsorted(group, group, side="left")
        self._positives_to_end = np.searchsorted(group, group, side="right")
        # Row k sums the tracks between bound k - 1 and bound k; those behind the last are below every positive.
        row = np.searchsorted(bounds, np.arange(num_tracks), side="right")
        kept = row < len(bounds)
        ones = np.ones(int(kept.sum()), dtype=np.float32)
        self._between = scipy.sparse.csr_matrix((ones, (row[kept], order[kept])), (len(bounds), num_tracks))

    def _sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of the positives `(P, R)`; sums over the first of them `(P + 1, R)`; over all tracks up to each
        bound `(K, R)`."""
        own = weights[self._positives].astype(np.float64)
        true = np.concatenate([np.zeros((1, own.shape[1])), np.cumsum(own, axis=0)])
        return own, true, np.cumsum(self._between @ weights, axis=0, dtype=np.float64)

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """`(N, R)` -> average precisions `(R,)`, nan without positives."""
        own, true, every = self._sums(weights)
        precision = true[self._positives_to_end] / np.maximum(every[self._end], 1.0)
        return _ratio((own * precision).sum(axis=0), true[-1])

    def roc_auc(self, weights: np.ndarray) -> np.ndarray:
        """`(N, R)` -> areas `(R,)`, nan without positives or without negatives."""
        own, true, every = self._sums(weights)
        negatives = weights.sum(axis=0, dtype=np.float64) - true[-1]
        above = every[self._start] - true[self._positives_before]
        above_or_equal = every[self._end] - true[self._positives_to_end]
        won = (own * (negatives - 0.5 * (above + above_or_equal))).sum(axis=0)
        return _ratio(won, true[-1] * negatives)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """nan where the denominator is 0."""
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
