"""Metrics with versioned names: thin functions over mir_eval and scikit-learn, annotations with annotations.

Conventions: a metric takes references and estimates, two sequences over tracks in the same order, and gives
one number; larger is better and 1 is perfect unless the metric says otherwise. A metric whose score is the mean
over tracks has a `per_track` form as well. Where a definition has variants (tolerance, pooling, treatment of rare
tags) the variant is part of the name, and where a definition ever changes `version` goes up.

Numbers in brackets, like D2, are the disagreements between published sources that a variant settles.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from audiation.annotations import Beats, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.chord_labels import majmin_class
from audiation.frames import values_at

# mir_eval and scikit-learn take more than a second each to import, and key and accuracy need neither:
# the functions below import what they use.


WeightedScore = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Metric:
    """A named score of (references, estimates), both sequences over tracks in the same order.

    compute: raises ValueError for no tracks, unequal lengths, or a score not defined for these tracks.
    per_track: (reference, estimate) -> float where the score is the mean over tracks; None where it is not.
    weighted: (references, estimates) -> (how often each track counts, `(N,)`) -> score, nan where it is not defined;
        what is slow is done once, for the thousand resamples of a bootstrap. None: `compute` is called for each.
    version: goes up when the definition changes; scores of different versions are not comparable.
    published_name: what published results call it; "": the same.
    """

    name: str
    compute: Callable[[Sequence[Any], Sequence[Any]], float]
    higher_is_better: bool = True
    per_track: Callable[[Any, Any], float] | None = None
    weighted: Callable[[Sequence[Any], Sequence[Any]], WeightedScore] | None = None
    version: int = 1
    published_name: str = ""

    @property
    def printed_name(self) -> str:
        """What published results call it."""
        return self.published_name or self.name

    @property
    def versioned_name(self) -> str:
        """For records that outlive the code: 'key_weighted@1'."""
        return f"{self.name}@{self.version}"


def mean_over_tracks(
    name: str,
    per_track: Callable[[Any, Any], float],
    *,
    higher_is_better: bool = True,
    published_name: str = "",
) -> Metric:
    """The metric that scores every track alone and takes the mean."""

    def compute(references: Sequence[Any], estimates: Sequence[Any]) -> float:
        _check_pairs(name, references, estimates)
        return float(np.mean([per_track(r, e) for r, e in zip(references, estimates, strict=True)]))

    return Metric(name, compute, higher_is_better, per_track, published_name=published_name)


def over_all_tracks(
    name: str,
    compute: Callable[[Sequence[Any], Sequence[Any]], float],
    *,
    weighted: Callable[[Sequence[Any], Sequence[Any]], WeightedScore] | None = None,
    published_name: str = "",
) -> Metric:
    """A metric that only exists for a whole set of tracks."""

    def checked(references: Sequence[Any], estimates: Sequence[Any]) -> float:
        _check_pairs(name, references, estimates)
        return float(compute(references, estimates))

    return Metric(name, checked, weighted=weighted, published_name=published_name)


def pooled_over_tracks(
    name: str,
    counts: Callable[[Any, Any], np.ndarray],
    score: Callable[[np.ndarray], float],
    *,
    published_name: str = "",
) -> Metric:
    """A score of numbers `(K,)` that are added up over the tracks.

    score: nan where it is not defined; `compute` raises ValueError then.
    """

    def rows(references: Sequence[Any], estimates: Sequence[Any]) -> np.ndarray:
        return np.array([counts(r, e) for r, e in zip(references, estimates, strict=True)])

    def compute(references: Sequence[Any], estimates: Sequence[Any]) -> float:
        value = float(score(rows(references, estimates).sum(axis=0)))
        if math.isnan(value):
            raise ValueError(f"{name} is not defined for these {len(references)} tracks")
        return value

    def weighted(references: Sequence[Any], estimates: Sequence[Any]) -> WeightedScore:
        table = rows(references, estimates)
        return lambda weights: float(score(weights @ table))

    return over_all_tracks(name, compute, weighted=weighted, published_name=published_name)


def _check_pairs(name: str, references: Sequence[Any], estimates: Sequence[Any]) -> None:
    if not references or len(references) != len(estimates):
        raise ValueError(
            f"{name} needs one estimate per reference and at least one track, "
            f"got {len(references)} references and {len(estimates)} estimates"
        )


# Classes: Label, Key -----------------------------------------------------------------------------------


def _equal(reference: Label | Key | Pitch, estimate: Label | Key | Pitch) -> float:
    if type(reference) is not type(estimate) or not isinstance(reference, Label | Key | Pitch):
        raise ValueError(f"accuracy compares two labels, keys or pitches, got {reference!r} and {estimate!r}")
    return float(reference == estimate)


def _mean_recall(
    references: Sequence[Label | Key | Pitch], estimates: Sequence[Label | Key | Pitch]
) -> float:
    """Mean over the classes that occur as reference; a class that is only ever estimated has no recall.

    torchmetrics' macro accuracy counts such a class as 0. The two agree wherever every class is tested.
    """
    hits = defaultdict(list)
    for reference, estimate in zip(references, estimates, strict=True):
        hits[reference].append(_equal(reference, estimate))
    return float(np.mean([np.mean(h) for h in hits.values()]))


ACCURACY = mean_over_tracks("accuracy", _equal)  # correct / all tracks (jukemir, MARBLE)
ACCURACY_CLASS_MACRO = over_all_tracks("accuracy_class_macro", _mean_recall)  # probably PETL (D1)


# Key ---------------------------------------------------------------------------------------------------


def _key_score(reference: Key, estimate: Key, fifths: tuple[int, ...]) -> float:
    """1 same, 0.5 a fifth away in the same mode, 0.3 relative, 0.2 parallel, else 0.

    Our own few lines, so that no default of mir_eval moves the score: its release counts only the ascending
    fifth and its development version announces that it will count both.
    """
    if not isinstance(reference, Key) or not isinstance(estimate, Key):
        raise ValueError(f"a key score compares two keys, got {reference!r} and {estimate!r}")
    up = (estimate.tonic - reference.tonic) % 12
    if estimate.mode == reference.mode:
        return 1.0 if up == 0 else 0.5 if up in fifths else 0.0
    if up == (9 if reference.mode == "major" else 3):
        return 0.3
    return 0.2 if up == 0 else 0.0


def _ascending_fifth(reference: Key, estimate: Key) -> float:
    return _key_score(reference, estimate, fifths=(7,))


def _either_fifth(reference: Key, estimate: Key) -> float:
    return _key_score(reference, estimate, fifths=(5, 7))


KEY_WEIGHTED = mean_over_tracks("key_weighted", _ascending_fifth)  # MIREX, mir_eval 0.8.2
KEY_WEIGHTED_SYMMETRIC = mean_over_tracks("key_weighted_symmetric", _either_fifth)  # PETL (D2)


# Tags --------------------------------------------------------------------------------------------------


def _tag_arrays(references: Sequence[Tags], estimates: Sequence[Tags]) -> tuple[np.ndarray, np.ndarray]:
    """-> 0/1 references and scores, both `(tracks, tags)`, columns in the order of the first reference."""
    tags = tuple(references[0].scores)
    for kind, tracks in (("reference", references), ("estimate", estimates)):
        for i, track in enumerate(tracks):
            differing = set(tags) ^ set(track.scores)
            if differing or not tags:
                shown = ", ".join(sorted(differing)[:5]) or "there is no tag at all"
                raise ValueError(f"every track needs the same tags; {kind} {i} differs in: {shown}")
    truth = _score_matrix(references, tags)
    if not np.isin(truth, (0.0, 1.0)).all():
        raise ValueError("the scores of reference tags are 0.0 or 1.0")
    return truth.astype(np.int64), _score_matrix(estimates, tags)


def _score_matrix(tracks: Sequence[Tags], tags: tuple[str, ...]) -> np.ndarray:
    """`(tracks, tags)`."""
    if all(tuple(t.scores) == tags for t in tracks):  # as every target and reader gives them
        return np.array([list(t.scores.values()) for t in tracks])
    return np.array([[t.scores[tag] for tag in tags] for t in tracks])


def _macro_over_tags(name: str, score: str, undefined: Literal["skip", "zero"]) -> Metric:
    """Mean over tags of a scikit-learn score. Tags for which it is not defined are skipped or count 0."""
    ranked = score == "average_precision_score"

    def compute(references: Sequence[Tags], estimates: Sequence[Tags]) -> float:
        import sklearn.metrics

        truth, scores = _tag_arrays(references, estimates)
        positives = truth.sum(axis=0)
        defined = positives > 0 if ranked else (positives > 0) & (positives < len(truth))
        if not defined.any():
            raise ValueError(
                f"no tag of these {len(truth)} tracks has what {score} needs: positives and negatives"
            )
        value = getattr(sklearn.metrics, score)(truth[:, defined], scores[:, defined], average="macro")
        return value if undefined == "skip" else value * defined.mean()

    def weighted(references: Sequence[Tags], estimates: Sequence[Tags]) -> WeightedScore:
        tags = _RankedTags(*_tag_arrays(references, estimates))

        def weighted_score(weights: np.ndarray) -> float:
            values = tags.average_precisions(weights) if ranked else tags.roc_aucs(weights)
            if np.isnan(values).all():
                return math.nan
            return float(np.nanmean(values) if undefined == "skip" else np.nan_to_num(values).mean())

        return weighted_score

    return over_all_tracks(name, compute, weighted=weighted)


class _RankedTags:
    """Tracks sorted by score, tag by tag, once; then scores for any weights of the tracks, in two passes over them and
    a few over the positives."""

    def __init__(self, truth: np.ndarray, scores: np.ndarray) -> None:
        """truth, scores: `(N, C)`."""
        self._tags = [_RankedTag(t, s) for t, s in zip(truth.T, scores.T, strict=True)]

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        """`(C,)`, nan for a tag without positives."""
        return np.array([tag.average_precision(weights) for tag in self._tags])

    def roc_aucs(self, weights: np.ndarray) -> np.ndarray:
        """`(C,)`, nan for a tag without positives or without negatives."""
        return np.array([tag.roc_auc(weights) for tag in self._tags])


class _RankedTag:
    """`P` positives among N tracks; tracks of equal score are one group, which no threshold can part."""

    def __init__(self, truth: np.ndarray, scores: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        first = np.flatnonzero(np.diff(ranked, prepend=np.inf))  # first place of each group
        group = np.searchsorted(first, np.flatnonzero(truth[self._order]), side="right") - 1
        self._positives = self._order[np.flatnonzero(truth[self._order])]
        self._group_start = first[group]  # places before the group of each positive
        self._group_end = np.append(first[1:], len(ranked))[group]
        self._positives_before = np.searchsorted(group, group, side="left")
        self._positives_to_end = np.searchsorted(group, group, side="right")

    def _sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of the positives `(P,)`; sums over the first of them `(P + 1,)`; over the first places `(N + 1,)`."""
        own = weights[self._positives]
        return own, np.append(0.0, np.cumsum(own)), np.append(0.0, np.cumsum(weights[self._order]))

    def average_precision(self, weights: np.ndarray) -> float:
        own, true, every = self._sums(weights)
        if not true[-1]:
            return math.nan
        counted = own > 0
        end = self._positives_to_end[counted]
        return float(own[counted] @ (true[end] / every[self._group_end[counted]]) / true[-1])

    def roc_auc(self, weights: np.ndarray) -> float:
        own, true, every = self._sums(weights)
        negatives = every[-1] - true[-1]
        if not true[-1] or not negatives:
            return math.nan
        above = every[self._group_start] - true[self._positives_before]
        above_or_equal = every[self._group_end] - true[self._positives_to_end]
        return float(own @ (negatives - 0.5 * (above + above_or_equal)) / (true[-1] * negatives))


def undefined_tags(references: Sequence[Tags]) -> dict[str, tuple[str, ...]]:
    """Tags for which a score over these tracks is not defined, by why: "no positive", "no negative". To be reported
    whatever a metric makes of them."""
    truth, _ = _tag_arrays(references, references)
    counts = dict(zip(references[0].scores, truth.sum(axis=0).tolist(), strict=True))
    return {
        "no positive": tuple(tag for tag, count in counts.items() if count == 0),
        "no negative": tuple(tag for tag, count in counts.items() if count == len(references)),
    }


# A tag without positives (or, for ROC AUC, without negatives) in the split: scikit-learn's ROC AUC is then nan for
# the whole set, torchmetrics counts the tag as 0, and both count its average precision as 0.
ROC_AUC = _macro_over_tags("roc_auc", "roc_auc_score", "skip")
ROC_AUC_UNDEFINED_ZERO = _macro_over_tags("roc_auc_undefined_zero", "roc_auc_score", "zero")
AP = _macro_over_tags("ap", "average_precision_score", "zero")
AP_UNDEFINED_SKIPPED = _macro_over_tags("ap_undefined_skipped", "average_precision_score", "skip")


# Numbers: Emotion, Values ------------------------------------------------------------------------------


def _r2(numbers: Callable[[Any], Sequence[float]]) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """Coefficient of determination, mean over the dimensions. Negative: worse than answering the mean.

    numbers: annotation -> its dimensions, in an order that all tracks share.
    """

    def compute(references: Sequence[Any], estimates: Sequence[Any]) -> float:
        from sklearn.metrics import r2_score

        if len(references) < 2:
            raise ValueError("R2 needs two tracks or more")
        truth, answers = (np.array([numbers(t) for t in tracks]) for tracks in (references, estimates))
        return r2_score(truth, answers)

    return compute


def _weighted_r2(
    numbers: Callable[[Any], Sequence[float]],
) -> Callable[[Sequence[Any], Sequence[Any]], WeightedScore]:
    """The same for tracks that count several times; like scikit-learn, 0 or 1 where the references are all alike."""

    def weighted(references: Sequence[Any], estimates: Sequence[Any]) -> WeightedScore:
        truth, answers = (np.array([numbers(t) for t in tracks], float) for tracks in (references, estimates))
        squared_errors = (truth - answers) ** 2

        def score(weights: np.ndarray) -> float:
            if weights.sum() < 2:
                return math.nan
            residual = weights @ squared_errors
            total = weights @ (truth - weights @ truth / weights.sum()) ** 2
            alike = total == 0
            values = 1 - residual / np.where(alike, 1.0, total)
            return float(np.where(alike, residual == 0, values).mean())

        return score

    return weighted


def _r2_of_values(references: Sequence[Values], estimates: Sequence[Values]) -> float:
    return _r2(lambda track: _numbers(track, references[0]))(references, estimates)


def _weighted_r2_of_values(references: Sequence[Values], estimates: Sequence[Values]) -> WeightedScore:
    return _weighted_r2(lambda track: _numbers(track, references[0]))(references, estimates)


def _mean_absolute_error(reference: Values, estimate: Values) -> float:
    """Mean over the dimensions, each in its own unit."""
    return float(np.abs(np.subtract(_numbers(reference, reference), _numbers(estimate, reference))).mean())


def _numbers(track: Values, first: Values) -> list[float]:
    """The numbers of a track in the order of the first."""
    if not isinstance(track, Values) or not isinstance(first, Values):
        raise ValueError(f"a score of values compares two values, got {first!r} and {track!r}")
    if track.values.keys() != first.values.keys():
        raise ValueError(
            f"every track needs the same names: {', '.join(first.values)}; got {', '.join(track.values)}"
        )
    return [track.values[name] for name in first.values]


def _r2_metric(name: str, numbers: Callable[[Any], Sequence[float]]) -> Metric:
    return over_all_tracks(name, _r2(numbers), weighted=_weighted_r2(numbers))


R2_AROUSAL = _r2_metric("r2_arousal", lambda emotion: (emotion.arousal,))
R2_VALENCE = _r2_metric("r2_valence", lambda emotion: (emotion.valence,))
# What jukemir selects models by.
R2_MEAN = _r2_metric("r2_mean", lambda emotion: (emotion.arousal, emotion.valence))
R2_VALUES = over_all_tracks("r2", _r2_of_values, weighted=_weighted_r2_of_values)
MEAN_ABSOLUTE_ERROR = mean_over_tracks("mae", _mean_absolute_error, higher_is_better=False)  # 0 is perfect


# Tempo -------------------------------------------------------------------------------------------------

TEMPO_TOLERANCE = 0.04


def _tempo_hit(reference: Tempo, estimate: Tempo, factors: tuple[float, ...]) -> float:
    return float(any(abs(estimate.bpm / (f * reference.bpm) - 1) <= TEMPO_TOLERANCE for f in factors))


def _same_tempo(reference: Tempo, estimate: Tempo) -> float:
    return _tempo_hit(reference, estimate, (1,))


def _octave_tempo(reference: Tempo, estimate: Tempo) -> float:
    return _tempo_hit(reference, estimate, (1, 2, 1 / 2, 3, 1 / 3))


TEMPO_ACCURACY1 = mean_over_tracks("tempo_accuracy1", _same_tempo, published_name="tempo_acc1")  # within 4 %
# or within 4 % of 2, 1/2, 3, 1/3 times the tempo
TEMPO_ACCURACY2 = mean_over_tracks("tempo_accuracy2", _octave_tempo)


# Beats -------------------------------------------------------------------------------------------------


def beat_f(
    tolerance_seconds: float = 0.07,
    pooling: Literal["per_track", "pooled"] = "per_track",
    trim_seconds: float = 0.0,
    events: Literal["beat", "downbeat"] = "beat",
) -> Metric:
    """F-measure of beat or downbeat times. Sources differ in tolerance, pooling and trimming (D3, D4, D5).

    The name says which: `beat_f_70ms_per_track`, `downbeat_f_20ms_pooled_trim5s`. A track without a reference
    or an estimate scores 0, as in mir_eval.

    Args:
        tolerance_seconds: half-width of the window around an event; 0.07 in code, 0.02 in the thesis text.
        pooling: mean of the F of every track, or one F from matches added up over all tracks (MARBLE).
        trim_seconds: events before this are left out on both sides; 5.0 is mir_eval's convention.
    """
    name = f"{events}_f_{round(tolerance_seconds * 1000)}ms_{pooling}"
    name += f"_trim{trim_seconds:g}s" if trim_seconds else ""

    def counts(reference: Beats, estimate: Beats) -> np.ndarray:
        """(matches, references, estimates)."""
        from mir_eval.util import match_events

        times = [_event_times(a, events) for a in (reference, estimate)]
        kept = [t[t >= trim_seconds] for t in times]
        return np.array([len(match_events(*kept, tolerance_seconds)), *map(len, kept)])

    published = f"f1_{events}"
    if pooling == "per_track":
        return mean_over_tracks(
            name,
            lambda reference, estimate: _f_measure(counts(reference, estimate)),
            published_name=published,
        )
    return pooled_over_tracks(name, counts, _f_measure, published_name=published)


def _event_times(beats: Beats, events: Literal["beat", "downbeat"]) -> np.ndarray:
    return beats.times_seconds if events == "beat" else beats.times_seconds[beats.positions == 1]


def _f_measure(counts: Any) -> float:
    matches, references, estimates = counts
    return 2 * float(matches) / float(references + estimates) if matches else 0.0


BEAT_F_70MS_PER_TRACK = beat_f()
BEAT_F_70MS_POOLED = beat_f(pooling="pooled")
BEAT_F_20MS_PER_TRACK = beat_f(0.02)
BEAT_F_20MS_POOLED = beat_f(0.02, "pooled")
DOWNBEAT_F_70MS_PER_TRACK = beat_f(events="downbeat")
DOWNBEAT_F_70MS_POOLED = beat_f(pooling="pooled", events="downbeat")


# Chords and sections -----------------------------------------------------------------------------------

NO_CHORD = "N"


def _majmin(reference: Segments, estimate: Segments) -> tuple[np.ndarray, np.ndarray]:
    """Per stretch of the reference's span: 1 right, 0 wrong, -1 not scored; and its duration in seconds.

    Sixths and sevenths count as their triad, "N" is scored, other chords and "X" in the reference are not.
    """
    import mir_eval

    spans = [_without_gaps(s) for s in (reference, estimate)]
    start, end = spans[0][0].min(), spans[0][0].max()
    spans[1] = mir_eval.util.adjust_intervals(*spans[1], start, end, NO_CHORD, NO_CHORD)
    intervals, *labels = mir_eval.util.merge_labeled_intervals(*spans[0], *spans[1])
    return mir_eval.chord.majmin(*labels), mir_eval.util.intervals_to_durations(intervals)


def _without_gaps(segments: Segments) -> tuple[np.ndarray, list[str]]:
    """What mir_eval's merging needs: silence between two chords becomes a segment of its own."""
    intervals: list[tuple[float, float]] = []
    labels: list[str] = []
    for (start, end), label in zip(segments.intervals_seconds.tolist(), segments.labels, strict=True):
        if intervals and start > intervals[-1][1]:
            intervals.append((intervals[-1][1], start))
            labels.append(NO_CHORD)
        intervals.append((start, end))
        labels.append(label)
    if not intervals:
        raise ValueError("a chord track needs at least one segment; write 'N' where there is no chord")
    return np.array(intervals), labels


def _majmin_of_track(reference: Segments, estimate: Segments) -> float:
    import mir_eval

    return float(mir_eval.chord.weighted_accuracy(*_majmin(reference, estimate)))


def _majmin_seconds(reference: Segments, estimate: Segments) -> np.ndarray:
    """(seconds that are right, seconds that are scored)."""
    comparisons, seconds = _majmin(reference, estimate)
    scored = comparisons >= 0
    return np.array([float((comparisons * seconds)[scored].sum()), float(seconds[scored].sum())])


def _share(counts: np.ndarray) -> float:
    right, scored = counts
    return right / scored if scored else math.nan


# Weighted chord symbol recall in mir_eval's vocabulary of major and minor. musicfm does not say how it pools tracks.
CHORD_MAJMIN_WCSR = mean_over_tracks("chord_majmin_wcsr", _majmin_of_track, published_name="chord_majmin")
CHORD_MAJMIN_WCSR_BY_DURATION = pooled_over_tracks("chord_majmin_wcsr_by_duration", _majmin_seconds, _share)

CHORD_FRAME_RATE_HZ = 75.0  # MARBLE v2 scores at the frame rate of the model, and this is MERT's


def _chord_frame_counts(reference: Segments, estimate: Segments) -> np.ndarray:
    """(frames that are right, frames whose reference is one of the 25 classes), of MARBLE v2's frame accuracy.

    "X" is no chord there (D7). This is no weighted chord symbol recall and must not be compared with it (D30).
    """
    if not reference.labels:
        raise ValueError("a chord track needs at least one segment; write 'N' where there is no chord")
    truth, answer = (_chord_frames(s, reference) for s in (reference, estimate))
    return np.array([((truth == answer) & (truth >= 0)).sum(), (truth >= 0).sum()])


def _chord_frames(segments: Segments, reference: Segments) -> np.ndarray:
    """Classes at the frames of the reference's span; no chord where the estimate is silent."""
    start, end = reference.intervals_seconds[0, 0], reference.intervals_seconds[-1, 1]
    times = np.arange(math.ceil(start * CHORD_FRAME_RATE_HZ), math.ceil(end * CHORD_FRAME_RATE_HZ))
    classes = [majmin_class(label, "none") for label in segments.labels]
    return values_at(segments.intervals_seconds, classes, times / CHORD_FRAME_RATE_HZ, outside=24)


CHORD_FRAME_ACCURACY = pooled_over_tracks(
    "chord_frame_accuracy", _chord_frame_counts, _share, published_name="chord_frame_acc"
)

STRUCTURE_FRAME_RATE_HZ = 5.0


def _structure_frame_accuracy(reference: Segments, estimate: Segments) -> float:
    """Share of frames of 0.2 s with the right section, where the reference has one (musicfm; mir_eval has no such
    measure, so it is computed directly, and averaged over tracks: D6)."""
    if not reference.labels:
        raise ValueError("a track without sections has no frames to score")
    end = reference.intervals_seconds[-1, 1]
    times = (np.arange(max(1, round(end * STRUCTURE_FRAME_RATE_HZ))) + 0.5) / STRUCTURE_FRAME_RATE_HZ
    numbers = {label: i for i, label in enumerate(dict.fromkeys((*reference.labels, *estimate.labels)))}
    truth, answer = (
        values_at(s.intervals_seconds, [numbers[label] for label in s.labels], times, outside=-1)
        for s in (reference, estimate)
    )
    known = truth >= 0
    if not known.any():
        raise ValueError("a track without sections has no frames to score")
    return float((truth == answer)[known].mean())


STRUCTURE_FRAME_ACCURACY = mean_over_tracks(
    "structure_frame_accuracy", _structure_frame_accuracy, published_name="structure_frame_acc"
)


def boundary_f(window_seconds: float = 0.5, trim: bool = False) -> Metric:
    """F-measure of section boundaries within `window_seconds`, mean over tracks.

    Args:
        trim: leave out the first and last boundary, which are the ends of the track. Sources do not say (D6).
    """
    # 0.5 s is printed as "hr05", the usual name of this measure.
    name = f"boundary_hr{f'{window_seconds:g}'.replace('.', '')}_f" + ("_trim" if trim else "")

    def per_track(reference: Segments, estimate: Segments) -> float:
        from mir_eval.segment import detection

        bounds = (reference.intervals_seconds, estimate.intervals_seconds)
        return float(detection(*bounds, window=window_seconds, trim=trim)[2])

    return mean_over_tracks(name, per_track)


BOUNDARY_HR05_F = boundary_f()
BOUNDARY_HR3_F = boundary_f(3.0)
