"""Error bars: how far a score, or the difference of two, would move with other tracks of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from audiation.metrics import Metric

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
    num_tracks = len(references)
    if num_tracks == 0 or num_tracks != len(estimates):
        raise ValueError(
            f"a bootstrap needs pairs, got {num_tracks} references and {len(estimates)} estimates"
        )
    if not (0 < confidence < 1 and num_resamples >= 1):
        raise ValueError(f"confidence in (0, 1) and resamples >= 1, got {confidence} and {num_resamples}")
    if num_tracks == 1:
        return None
    score_of = _resampled(metric, references, estimates)
    scores = np.concatenate([score_of(d) for d in _draws(num_tracks, num_resamples, seed)])
    return _percentiles(metric, scores, num_tracks, confidence)


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
    num_tracks = len(references)
    if num_tracks == 0 or not num_tracks == len(estimates_a) == len(estimates_b):
        raise ValueError(
            f"a paired bootstrap needs the same tracks, got {num_tracks} references, {len(estimates_a)} and "
            f"{len(estimates_b)} estimates"
        )
    if not (0 < confidence < 1 and num_resamples >= 1):
        raise ValueError(f"confidence in (0, 1) and resamples >= 1, got {confidence} and {num_resamples}")
    if num_tracks == 1:
        return None
    score_a, score_b = (_resampled(metric, references, estimates) for estimates in (estimates_a, estimates_b))
    differences = np.concatenate([score_a(d) - score_b(d) for d in _draws(num_tracks, num_resamples, seed)])
    return _percentiles(metric, differences, num_tracks, confidence)


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


def _percentiles(metric: Metric, scores: np.ndarray, num_tracks: int, confidence: float) -> Interval:
    finite = scores[np.isfinite(scores)]
    if len(finite) < MIN_DEFINED_SHARE * len(scores):
        raise ValueError(
            f"{metric.name} is defined on {len(finite)} of {len(scores)} resamples of {num_tracks} tracks; too few "
            "for an interval"
        )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(float(low), float(high))
