"""The search for the best path of the bar-pointer model, compiled by numba.

The machine code is cached on disk, beside this file or where `NUMBA_CACHE_DIR` says.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(inline="always")
def _add(scores: np.ndarray, log_density: float) -> None:
    for j in range(len(scores)):
        scores[j] += log_density


@numba.njit(cache=True, nogil=True)
def search(
    intervals: np.ndarray,
    heard: np.ndarray,
    log_densities: np.ndarray,
    columns: np.ndarray,
    log_transitions: np.ndarray,
    previous: np.ndarray,
) -> tuple[float, int, int, int]:
    """Fill `previous` and return the fields of `decoding_dbn.Viterbi` that follow it; arguments as there.

    The scores of one beat and interval `k` are a ring of `k` places. A path that enters it in frame `t` stays in place
    `t % k` until it leaves, so that nothing moves: a frame reads and overwrites one place, and adds to all.
    """
    num_frames, num_beats, num_tempi = len(log_densities), len(columns), len(intervals)
    per_beat = intervals.sum()
    offsets = np.empty(num_tempi, np.int64)
    total = 0
    for k in range(num_tempi):
        offsets[k] = total
        total += intervals[k]
    # Ways out of a beat lead to similar tempi only: columns low[k] .. high[k] - 1 of row k.
    low, high = np.zeros(num_tempi, np.int64), np.zeros(num_tempi, np.int64)
    for a in range(num_tempi):
        for b in range(num_tempi):
            if log_transitions[a, b] > -np.inf:
                if high[a] == 0:
                    low[a] = b
                high[a] = b + 1

    scores = np.full((num_beats, per_beat), -np.log(float(num_beats * per_beat)))
    places = np.zeros(num_tempi, np.int64)  # t % intervals
    leaving = np.empty((num_beats, num_tempi))
    best = np.empty(num_tempi)
    origin = np.empty(num_tempi, np.int64)
    for t in range(num_frames):
        silence = log_densities[t, 0]
        for p in range(num_beats):
            for k in range(num_tempi):
                leaving[p, k] = scores[p, offsets[k] + places[k]]
        for p in range(num_beats):
            source = leaving[p - 1] if p > 0 else leaving[num_beats - 1]
            best[:] = -np.inf
            origin[:] = 0
            for a in range(num_tempi):
                score, ways = source[a], log_transitions[a, low[a] : high[a]]
                to, of = best[low[a] : high[a]], origin[low[a] : high[a]]
                for b in range(len(ways)):
                    way = score + ways[b]
                    better = way > to[b]
                    to[b] = way if better else to[b]
                    of[b] = a if better else of[b]
            sound = log_densities[t, columns[p]]
            for k in range(num_tempi):
                previous[t, p, k] = origin[k]
                ring = scores[p, offsets[k] : offsets[k] + intervals[k]]
                ring[places[k]] = best[k]
                # The last `heard` places up to this one are where the beat is heard; they may wrap around.
                begin, end = places[k] + 1 - heard[k], places[k] + 1
                wrapped = intervals[k] + min(begin, 0)
                _add(ring[: max(begin, 0)], silence)
                _add(ring[max(begin, 0) : end], sound)
                _add(ring[end:wrapped], silence)
                _add(ring[wrapped:], sound)
        for k in range(num_tempi):
            places[k] += 1
            if places[k] == intervals[k]:
                places[k] = 0

    top, top_beat, top_tempo, top_phase = -np.inf, 0, 0, 0
    for p in range(num_beats):
        for k in range(num_tempi):
            place = places[k]  # of the oldest; the newest is one before
            for j in range(intervals[k]):
                place = place - 1 if place > 0 else intervals[k] - 1
                score = scores[p, offsets[k] + place]
                if score > top:
                    top, top_beat, top_tempo, top_phase = score, p, k, j
    return top, top_beat, top_tempo, top_phase
