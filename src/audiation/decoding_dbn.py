"""Beats by the bar-pointer model: a hidden Markov model whose states are tempo and place in the beat or bar.

Krebs, Böck & Widmer (2015), with the defaults of madmom. A beat of `k` frames has `k` states that follow each other
for certain; only from the last of them a path goes on to a beat of another length. So a frame costs one addition per
state, and one choice per pair of intervals and beat of the bar. The best path is found by `decoding_kernel`,
compiled, or by `viterbi_numpy` below, which says the same in a few lines. Both add the same numbers in the same order
as a Viterbi search over all states does, and take the first of equals, so that they agree to the last bit. (Sums over
whole beats, taken from cumulative sums, would be fewer, but would round ties differently, and music is full of ties.)

Shape letters: `T` frames, `K` intervals (tempi), `P` beats of a bar, `N` states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from audiation.annotations import Beats

MIN_BPM, MAX_BPM = 55.0, 215.0
TRANSITION_LAMBDA = 100.0  # how unlikely a change of tempo is
OBSERVATION_LAMBDA = 16.0  # the first 1/16 of a beat sounds like one
DOWNBEAT_NUM_TEMPI = 60
DOWNBEAT_THRESHOLD = 0.05
MAX_BYTES = (
    2**31
)  # of backpointers and states of one model: 4 million frames of a bar of 4 beats and 60 tempi
# A density of 0 would forbid every path where hard 0/1 activations disagree with all of them.
SMALLEST_DENSITY = np.finfo(np.float64).tiny

NON_BEAT, BEAT, DOWNBEAT = 0, 1, 2  # columns of log densities


def decode_beats_dbn(
    activations: np.ndarray,
    *,
    frame_rate_hz: float,
    min_bpm: float = MIN_BPM,
    max_bpm: float = MAX_BPM,
    transition_lambda: float = TRANSITION_LAMBDA,
    threshold: float = 0.0,
    observation_lambda: float = OBSERVATION_LAMBDA,
    num_tempi: int | None = None,
    correct: bool = True,
) -> Beats:
    """Beats on the most probable path of tempo and place in the beat. Their positions are 0, unknown.

    Args:
        activations: `(T,)` probability of a beat in each frame.
        frame_rate_hz: frame `t` is at `t / frame_rate_hz` seconds.
        min_bpm, max_bpm: beats last a whole number of frames, from that of `max_bpm` to that of `min_bpm`, rounded.
        transition_lambda: a beat `r` times as long as the one before has probability exp(-lambda |r - 1|), normalised.
        threshold: only the span from the first to the last frame with this activation is decoded.
        observation_lambda: the first 1/lambda of a beat is where it is heard.
        num_tempi: about so many beat lengths, evenly spaced in log tempo; None: every whole number of frames.
        correct: a beat is at the highest activation in the part of the beat where it is heard; else in the
            frame where it begins, which the first beat of the span may have done before it.

    Returns:
        Beats; none where all activations are 0 or below the threshold.

    Raises:
        ValueError: another shape, no frame, values outside [0, 1] or not finite, a range of tempo that is empty or
            faster than the frames, other settings out of range, more frames than fit into 2 GiB of memory.
    """
    values = _activations(activations, "(T,)", 1)
    model = _Model(frame_rate_hz, min_bpm, max_bpm, num_tempi, transition_lambda, observation_lambda)
    span = _span(values, threshold)
    values = values[span]
    if not values.any():
        return _no_beats()
    lengths = model.beat_lengths(len(values), beats_per_bar=1)
    densities = _log_densities(1.0 - values, values, None, observation_lambda)
    path = _best_path(lengths, densities, (BEAT,), transition_lambda)
    frames = path.beat_frames(values, correct)
    return Beats((frames + span.start) / frame_rate_hz, np.zeros(len(frames), dtype=np.int64))


def decode_downbeats_dbn(
    activations: np.ndarray,
    *,
    frame_rate_hz: float,
    beats_per_bar: Sequence[int] = (3, 4),
    min_bpm: float = MIN_BPM,
    max_bpm: float = MAX_BPM,
    num_tempi: int | None = DOWNBEAT_NUM_TEMPI,
    transition_lambda: float = TRANSITION_LAMBDA,
    observation_lambda: float = OBSERVATION_LAMBDA,
    threshold: float = DOWNBEAT_THRESHOLD,
    correct: bool = True,
) -> Beats:
    """Beats with their positions in the bar, on the most probable path of tempo and place in the bar.

    One model per length of the bar; that with the most probable path answers, the first of equals. A bar keeps its
    length through the track.

    Args:
        activations: `(T, 2)` probability of a beat that is no downbeat, and of a downbeat; together at most 1.
        beats_per_bar: lengths of the bar that are tried, in beats.

    The other arguments, the empty result and the errors are those of `decode_beats_dbn`.
    """
    values = _activations(activations, "(T, 2)", 2)
    bars = tuple(beats_per_bar)
    if not bars or not all(isinstance(n, (int, np.integer)) and n >= 1 for n in bars):
        raise ValueError(
            f"beats_per_bar are one or more whole numbers >= 1, such as (3, 4), got {beats_per_bar}"
        )
    model = _Model(frame_rate_hz, min_bpm, max_bpm, num_tempi, transition_lambda, observation_lambda)
    loudest = values.max(axis=1)
    span = _span(loudest, threshold)
    values, loudest = values[span], loudest[span]
    if not values.any():
        return _no_beats()
    rest = np.maximum(1.0 - values[:, 0] - values[:, 1], 0.0)
    densities = _log_densities(rest, values[:, 0], values[:, 1], observation_lambda)
    paths = []
    for num_beats in bars:
        lengths = model.beat_lengths(len(values), num_beats)
        columns = (DOWNBEAT, *[BEAT] * (num_beats - 1))
        paths.append(_best_path(lengths, densities, columns, transition_lambda))
    path = max(paths, key=lambda p: p.log_likelihood)
    frames = path.beat_frames(loudest, correct)
    return Beats((frames + span.start) / frame_rate_hz, path.beat_of_frame[frames] + 1)


@dataclass(frozen=True)
class BeatLengths:
    """The tempi of a model.

    intervals: `(K,)` int64, ascending, frames of a beat.
    heard: `(K,)` int64, how many of them, from the first on, are in the part of the beat where it is heard.
    """

    intervals: np.ndarray
    heard: np.ndarray

    def num_states(self, beats_per_bar: int = 1) -> int:
        return beats_per_bar * int(self.intervals.sum())


def beat_intervals(
    frame_rate_hz: float, min_bpm: float, max_bpm: float, num_tempi: int | None = None
) -> np.ndarray:
    """Beat lengths in frames, ascending `(K,)` int64: every whole number, or about `num_tempi`, spaced in log tempo."""
    shortest, longest = 60.0 * frame_rate_hz / max_bpm, 60.0 * frame_rate_hz / min_bpm
    intervals = np.arange(np.round(shortest), np.round(longest) + 1)
    if num_tempi is not None and num_tempi < len(intervals):
        num_points, intervals = num_tempi, np.zeros(0)
        while len(intervals) < num_tempi:
            points = np.logspace(np.log2(shortest), np.log2(longest), num_points, base=2)
            intervals = np.unique(np.round(points))
            num_points += 1
    return intervals.astype(np.int64)


@dataclass(frozen=True)
class _Model:
    """The settings that both functions share, checked."""

    frame_rate_hz: float
    min_bpm: float
    max_bpm: float
    num_tempi: int | None
    transition_lambda: float
    observation_lambda: float

    def __post_init__(self) -> None:
        if not 0 < self.frame_rate_hz < np.inf:
            raise ValueError(
                f"frame_rate_hz is a positive number of frames per second, got {self.frame_rate_hz}"
            )
        if not 0 < self.min_bpm < self.max_bpm < np.inf:
            raise ValueError(
                f"a range of tempo has 0 < min_bpm < max_bpm, got {self.min_bpm} and {self.max_bpm}"
            )
        if self.num_tempi is not None and self.num_tempi < 1:
            raise ValueError(f"num_tempi is 1 or more, or None for all there are, got {self.num_tempi}")
        if not 0 <= self.transition_lambda < np.inf or not 1 < self.observation_lambda < np.inf:
            raise ValueError(
                f"transition_lambda is >= 0 and observation_lambda > 1, got {self.transition_lambda} and "
                f"{self.observation_lambda}"
            )
        if np.round(60.0 * self.frame_rate_hz / self.max_bpm) < 1:
            raise ValueError(
                f"at {self.frame_rate_hz} Hz a beat of {self.max_bpm} BPM lasts no whole frame; choose max_bpm up to "
                f"{60.0 * self.frame_rate_hz:g}, or more frames per second"
            )

    def beat_lengths(self, num_frames: int, beats_per_bar: int) -> BeatLengths:
        """Those of a model that fits into memory; ValueError else."""
        longest = 60.0 * self.frame_rate_hz / self.min_bpm
        most = (
            longest - 60.0 * self.frame_rate_hz / self.max_bpm + 2
        )  # before thinning: bounds the work of it
        if most * 8 < MAX_BYTES:
            intervals = beat_intervals(self.frame_rate_hz, self.min_bpm, self.max_bpm, self.num_tempi)
            num_tempi = len(intervals)
            entries = 2 * num_frames * num_tempi * beats_per_bar
            if entries + 8 * (num_tempi**2 + beats_per_bar * int(intervals.sum())) <= MAX_BYTES:
                # Where j / k < 1 / lambda, for j = 0, 1, ...
                heard = np.minimum(np.ceil(intervals / self.observation_lambda), intervals).astype(np.int64)
                return BeatLengths(intervals, heard)
        raise ValueError(
            f"{num_frames} frames at {self.frame_rate_hz} Hz with bars of {beats_per_bar} need more than "
            f"{MAX_BYTES / 2**30:g} GiB; decode pieces of the track, use fewer frames per second, or set num_tempi"
        )


def _activations(values: np.ndarray, shape: str, ndim: int) -> np.ndarray:
    """float64 in [0, 1], checked; what float32 arithmetic leaves above 1 is cut off."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or not len(array) or (ndim == 2 and array.shape[1] != 2):
        raise ValueError(f"activations are {shape} with T >= 1, got {array.shape}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1 + 1e-6:
        raise ValueError(
            f"activations are probabilities in [0, 1], got values from {array.min():g} to {array.max():g}; "
            "apply a sigmoid or softmax to logits"
        )
    if ndim == 2 and array.sum(axis=1).max() > 1 + 1e-6:
        raise ValueError(
            f"a beat that is no downbeat and a downbeat exclude each other, got {array.sum(axis=1).max():g} together; "
            "subtract the downbeat from the probability of a beat of any sort"
        )
    return np.minimum(array, 1.0)


def _span(activations: np.ndarray, threshold: float) -> slice:
    """From the first to the last frame with at least this activation `(T,)`; empty where there is none."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold is a probability, got {threshold}")
    frames = np.flatnonzero(activations >= threshold)
    return slice(int(frames[0]), int(frames[-1]) + 1) if len(frames) else slice(0, 0)


def _no_beats() -> Beats:
    return Beats(np.zeros(0), np.zeros(0, dtype=np.int64))


def _log_densities(
    rest: np.ndarray, beat: np.ndarray, downbeat: np.ndarray | None, observation_lambda: float
) -> np.ndarray:
    """`(T, 3)`: of a frame in a state where no beat is heard, a beat, a downbeat. The rest is shared by lambda - 1."""
    columns = [rest / (observation_lambda - 1.0), beat, beat if downbeat is None else downbeat]
    return np.log(np.maximum(np.stack(columns, axis=1), SMALLEST_DENSITY))


@lru_cache(maxsize=8)
def _log_transitions(intervals: tuple[int, ...], transition_lambda: float) -> np.ndarray:
    """`(K, K)`: from a beat of one length (row) to one of another; -inf where there is no way."""
    lengths = np.array(intervals, dtype=np.float64)
    weights = np.exp(-transition_lambda * np.abs(lengths[None] / lengths[:, None] - 1.0))
    weights[weights <= np.spacing(1.0)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    logs = np.full(weights.shape, -np.inf)
    np.log(weights, out=logs, where=weights > 0)
    logs.setflags(write=False)
    return logs


class Viterbi(NamedTuple):
    """What a search over all frames leaves behind.

    previous: `(T, P, K)` int16: of beat `p` with interval `k` that begins in frame `t`, the interval of the one before.
    log_likelihood: of the best path, and where it ends: `beat`, `interval` (both numbers) and `phase`, the number of
        frames since that beat began.
    """

    previous: np.ndarray
    log_likelihood: float
    beat: int
    interval: int
    phase: int


Search = Callable[[BeatLengths, np.ndarray, np.ndarray, np.ndarray], Viterbi]


def viterbi_numpy(
    lengths: BeatLengths, log_densities: np.ndarray, columns: np.ndarray, log_transitions: np.ndarray
) -> Viterbi:
    """The search, state by state: what `viterbi_compiled` does, in numpy, and several times slower.

    Args:
        log_densities: `(T, 3)`, see `_log_densities`.
        columns: `(P,)`, which of them is that of each beat of the bar.
        log_transitions: `(K, K)`.
    """
    num_beats, num_tempi = len(columns), len(lengths.intervals)
    per_beat = int(lengths.intervals.sum())
    # States in order: beats of the bar, in them intervals, in them frames since the beat began.
    first = (
        np.cumsum(lengths.intervals) - lengths.intervals + per_beat * np.arange(num_beats)[:, None]
    )  # (P, K)
    last = first + lengths.intervals - 1
    phase = np.concatenate([np.arange(k) for k in lengths.intervals])
    heard = phase < np.repeat(lengths.heard, lengths.intervals)
    column = np.concatenate([np.where(heard, c, NON_BEAT) for c in columns])

    score = np.full(num_beats * per_beat, -np.log(num_beats * per_beat))
    previous = np.empty((len(log_densities), num_beats, num_tempi), dtype=np.int16)
    for t, densities in enumerate(log_densities):
        leaving = np.roll(score[last], 1, axis=0)  # (P, K), of the beat before
        ways = leaving[:, :, None] + log_transitions  # (P, K from, K to)
        previous[t] = ways.argmax(axis=1)
        score[1:] = score[:-1]
        score[first] = ways.max(axis=1)
        score += densities[column]
    best = int(score.argmax())
    beat, interval = divmod(int(np.searchsorted(first.ravel(), best, side="right")) - 1, num_tempi)
    return Viterbi(previous, float(score[best]), beat, interval, best - int(first[beat, interval]))


def viterbi_compiled(
    lengths: BeatLengths, log_densities: np.ndarray, columns: np.ndarray, log_transitions: np.ndarray
) -> Viterbi:
    """As `viterbi_numpy`, to the last bit."""
    # Not needed before there is something to decode, and numba takes a while to import.
    from audiation.decoding_kernel import search

    previous = np.empty((len(log_densities), len(columns), len(lengths.intervals)), dtype=np.int16)
    end = search(
        lengths.intervals,
        lengths.heard,
        np.ascontiguousarray(log_densities),
        columns,
        log_transitions,
        previous,
    )
    return Viterbi(previous, float(end[0]), int(end[1]), int(end[2]), int(end[3]))


@dataclass(frozen=True, eq=False)
class _Path:
    """The best path through T frames.

    beat_of_frame: `(T,)` int64: number of the beat in the bar, from 0.
    heard: `(T,)` bool: whether the frame is in the part of the beat where it is heard.
    begins: `(N,)` frames where a beat of the path begins.
    """

    log_likelihood: float
    beat_of_frame: np.ndarray
    heard: np.ndarray
    begins: np.ndarray

    def beat_frames(self, activations: np.ndarray, correct: bool) -> np.ndarray:
        """`(N,)` int64: the highest activation `(T,)` of each run of frames where a beat is heard, the first of
        equals; or where beats begin."""
        if not correct:
            return self.begins
        changes = np.flatnonzero(np.diff(self.heard, prepend=False, append=False))
        runs = changes.reshape(-1, 2)
        return np.array([a + activations[a:b].argmax() for a, b in runs], dtype=np.int64)


def _best_path(
    lengths: BeatLengths,
    log_densities: np.ndarray,
    columns: Sequence[int],
    transition_lambda: float,
    search: Search = viterbi_compiled,
) -> _Path:
    transitions = _log_transitions(tuple(lengths.intervals.tolist()), float(transition_lambda))
    found = search(lengths, log_densities, np.array(columns, dtype=np.int64), transitions)
    num_frames = len(log_densities)
    beat_of_frame = np.empty(num_frames, dtype=np.int64)
    heard = np.zeros(num_frames, dtype=np.bool_)
    begins = []
    beat, interval, end, begin = found.beat, found.interval, num_frames, num_frames - 1 - found.phase
    while True:  # from the last beat to the first, which may have begun before the first frame
        beat_of_frame[max(begin, 0) : end] = beat
        heard[max(begin, 0) : min(max(begin + int(lengths.heard[interval]), 0), end)] = True
        if begin >= 0:
            begins.append(begin)
        if begin <= 0:
            break
        interval = int(found.previous[begin, beat, interval])
        beat = (beat - 1) % len(columns)
        end, begin = begin, begin - int(lengths.intervals[interval])
    return _Path(found.log_likelihood, beat_of_frame, heard, np.array(begins[::-1], dtype=np.int64))
