"""What a model says per frame or per bin -> what a musician would write down.

Beats by the bar-pointer model are in `decoding_dbn`, and their two functions are offered here as well.

Shape letters: `T` frames, `C` classes, `N` events.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiation.annotations import PITCH_CLASSES, Beats, Key, Segments, Tempo
from audiation.decoding_dbn import decode_beats_dbn, decode_downbeats_dbn

__all__ = [
    "chords_from_frames",
    "decode_beats_dbn",
    "decode_downbeats_dbn",
    "frame_edges_seconds",
    "key_from_frames",
    "merge_runs",
    "peak_pick_beats",
    "sections_from_frames",
    "tempo_from_bins",
]

PEAK_SECONDS = 3 / 50  # a beat is the highest frame this far to either side: 3 frames at 50 Hz (Beat This!)
SMOOTHING_BINS = 11
STEPS_PER_BPM = 1000
SECTION_WINDOW_SECONDS = 6.0
SECTION_THRESHOLD = 0.1


def peak_pick_beats(
    beat_logits: np.ndarray, downbeat_logits: np.ndarray | None = None, *, frame_rate_hz: float
) -> Beats:
    """Beats where the logits peak, without a model of tempo, in the style of Beat This! (Foscarin et al. 2024).

    A frame is a peak if its logit is above 0 and no frame within 3/50 s is higher. A run of neighbouring peaks, all
    equally high then, is one beat in its middle. Each downbeat is moved to the nearest beat, the earlier of two; a
    downbeat where there is no beat at all is dropped.

    Args:
        beat_logits: `(T,)`, of a beat of any sort, downbeats included.
        downbeat_logits: `(T,)`; None: all positions are 0, unknown.
        frame_rate_hz: frame `t` is at `t / frame_rate_hz` seconds.

    Returns:
        Beats with position 1 at downbeats, counting on from there; 0 before the first downbeat.

    Raises:
        ValueError: other shapes, NaN, a frame rate that is not positive.
    """
    _check_rate(frame_rate_hz)
    beats = _peaks(_logits("beat_logits", beat_logits), frame_rate_hz)
    positions = np.zeros(len(beats), dtype=np.int64)
    if downbeat_logits is not None:
        logits = _logits("downbeat_logits", downbeat_logits)
        if len(logits) != len(beat_logits):
            raise ValueError(
                f"beat_logits have {len(beat_logits)} frames, downbeat_logits {len(logits)}; give both on one grid"
            )
        downbeats = _peaks(logits, frame_rate_hz)
        if len(beats):
            positions[np.abs(downbeats[:, None] - beats[None]).argmin(axis=1)] = 1
        for i in range(1, len(positions)):
            if positions[i] == 0 and positions[i - 1] > 0:
                positions[i] = positions[i - 1] + 1
    return Beats(beats / frame_rate_hz, positions)


def tempo_from_bins(probabilities: np.ndarray, *, min_bpm: int = 10) -> Tempo:
    """The tempo whose smoothed probability is the highest local maximum, to 0.001 BPM (Ding & Lerch 2024).

    Bins below `min_bpm` are dropped. The others are smoothed by an 11-point Hamming window (zeros lie beyond the ends)
    and joined by a quadratic spline, which is searched in steps of 0.001 BPM. A local maximum is higher than both its
    neighbours, where the first and the last step are neighbours. Of equal ones the slowest is taken; a curve without
    any, which is flat at its top, gives the first of its highest steps.

    Args:
        probabilities: `(C,)`, bin `i` is `i` BPM; any scores >= 0 will do, for only their proportions count.
        min_bpm: the slowest tempo.

    Raises:
        ValueError: another shape, too few bins, negative or not finite scores, nothing but zeros above `min_bpm`.
    """
    bins = np.asarray(probabilities, dtype=np.float64)
    if min_bpm < 1 or bins.ndim != 1 or len(bins) < min_bpm + SMOOTHING_BINS:
        raise ValueError(
            f"tempo bins are (C,) with C >= min_bpm + {SMOOTHING_BINS} and min_bpm >= 1, got {bins.shape} and "
            f"min_bpm {min_bpm}"
        )
    if not np.isfinite(bins).all() or (bins < 0).any():
        raise ValueError(
            "tempo bins are finite and >= 0: give probabilities, for example a softmax of the logits"
        )
    bins = bins[min_bpm:]
    if not bins.any():
        raise ValueError(f"no tempo from {min_bpm} BPM on has a probability above 0")
    from scipy.interpolate import PPoly, make_interp_spline  # slow to import, and only needed here

    smooth = np.convolve(bins / bins.max(), np.hamming(SMOOTHING_BINS), mode="same")
    spline = make_interp_spline(np.arange(len(bins)), smooth, k=2)
    num_steps = (len(bins) - 1) * STEPS_PER_BPM
    # Only steps next to where the slope is 0, and the two ends, can be local maxima.
    turns = PPoly.from_spline(spline).derivative().roots(extrapolate=False)
    near = np.floor(turns[np.isfinite(turns)] * STEPS_PER_BPM).astype(np.int64)
    tried = np.unique(np.concatenate([near, near + 1, [0, num_steps - 1]]).clip(0, num_steps - 1))
    here, before, behind = (spline(((tried + shift) % num_steps) / STEPS_PER_BPM) for shift in (0, -1, 1))
    peaks = np.flatnonzero((here > before) & (here > behind))
    best = tried[peaks[here[peaks].argmax()] if len(peaks) else here.argmax()]
    return Tempo(round(min_bpm + float(best) / STEPS_PER_BPM, 3))


def frame_edges_seconds(
    num_frames: int, frame_rate_hz: float, first_frame_seconds: float = 0.0
) -> np.ndarray:
    """Where frames begin and end, `(T + 1,)` seconds: frame `t` reaches from `edges[t]` to `edges[t + 1]`.

    Frame `t` covers half a frame to either side of `first_frame_seconds + t / frame_rate_hz`. A first frame that begins
    less than a frame away from 0, before or after it, begins at 0, so that what covers a track covers its beginning.

    Raises:
        ValueError: no frame, a rate that is not positive, frames before the beginning of the track.
    """
    _check_rate(frame_rate_hz)
    if num_frames < 1:
        raise ValueError(f"edges are those of one frame or more, got num_frames {num_frames}")
    edges = first_frame_seconds + (np.arange(num_frames + 1) - 0.5) / frame_rate_hz
    if not edges[1] > 0:  # NaN included
        raise ValueError(
            f"a first frame at {first_frame_seconds} s ends before the track begins; frames lie from 0 s on"
        )
    if edges[0] < 1.0 / frame_rate_hz:
        edges[0] = 0.0
    return edges


def merge_runs(labels: Sequence[str], edges_seconds: np.ndarray) -> Segments:
    """Runs of equal labels as segments: T labels and their `(T + 1,)` edges -> `Segments`.

    Raises:
        ValueError: a number of edges that does not fit, edges that do not increase.
    """
    edges = np.asarray(edges_seconds, dtype=np.float64)
    if edges.shape != (len(labels) + 1,):
        raise ValueError(f"{len(labels)} labels have {len(labels) + 1} edges, got edges {edges.shape}")
    if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise ValueError("edges must be finite and strictly increasing seconds")
    starts = [t for t in range(len(labels)) if t == 0 or labels[t] != labels[t - 1]]
    bounds = np.array([*starts, len(labels)])
    intervals = np.stack([edges[bounds[:-1]], edges[bounds[1:]]], axis=1)
    return Segments(intervals, tuple(labels[t] for t in starts))


CHORD_CLASSES = (*(f"{p}:maj" for p in PITCH_CLASSES), *(f"{p}:min" for p in PITCH_CLASSES), "N")


def chords_from_frames(
    classes: np.ndarray, *, frame_rate_hz: float, first_frame_seconds: float = 0.0
) -> Segments:
    """Runs of equal chord classes as segments labelled 'C:maj', ..., 'B:maj', 'C:min', ..., 'B:min', 'N'.

    Args:
        classes: `(T,)` integers, 0..11 major on C, Db, ..., B, 12..23 minor on the same roots, 24 no chord.

    Raises:
        ValueError: other classes, another shape; what `frame_edges_seconds` refuses.
    """
    numbers = np.asarray(classes)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"chord classes are integers (T,), got {numbers.dtype} {numbers.shape}")
    wrong = numbers[(numbers < 0) | (numbers >= len(CHORD_CLASSES))]
    if len(wrong):
        raise ValueError(f"a chord class is 0..{len(CHORD_CLASSES) - 1}, got {wrong[0]}")
    edges = frame_edges_seconds(len(numbers), frame_rate_hz, first_frame_seconds)
    return merge_runs([CHORD_CLASSES[n] for n in numbers], edges)


def sections_from_frames(
    function_probabilities: np.ndarray,
    boundary_probabilities: np.ndarray,
    names: Sequence[str],
    *,
    frame_rate_hz: float,
    first_frame_seconds: float = 0.0,
    window_seconds: float = SECTION_WINDOW_SECONDS,
    threshold: float = SECTION_THRESHOLD,
) -> Segments:
    """Sections between the peaks of the boundary curve, each labelled by the sum of its frames' function scores.

    The papers name the method and give no numbers (musicfm; Wang et al. 2022). Here a frame is a boundary if its
    probability is at least `threshold` and the highest within `window_seconds` to either side, the first of equals.
    A section begins at the centre of its boundary frame; the first begins with frame 0, whatever the curve says, and
    the last ends with the last frame. Neighbours may have the same label: there is a boundary between them.

    Args:
        function_probabilities: `(T, C)`, scores >= 0.
        boundary_probabilities: `(T,)` in [0, 1].
        names: the C labels.
        window_seconds: 6 s to either side, as Ullrich et al. (2014) pick the peaks of their curves.
        threshold: low, because a boundary that is heard and not placed to the frame is shared by several frames.

    Raises:
        ValueError: shapes or names that do not fit, values outside their range; what `frame_edges_seconds` refuses.
    """
    functions = np.asarray(function_probabilities, dtype=np.float64)
    boundaries = np.asarray(boundary_probabilities, dtype=np.float64)
    if functions.ndim != 2 or boundaries.shape != functions.shape[:1] or functions.shape[1] != len(names):
        raise ValueError(
            f"sections need functions (T, C), boundaries (T,) and C names, got {functions.shape}, "
            f"{boundaries.shape} and {len(names)} names"
        )
    if not len(names):
        raise ValueError("sections need one name or more")
    if not np.isfinite(functions).all() or (functions < 0).any():
        raise ValueError(
            "function_probabilities must be finite and >= 0, for example a softmax of the logits"
        )
    if not ((boundaries >= 0) & (boundaries <= 1)).all():  # NaN included
        raise ValueError("boundary_probabilities must lie in [0, 1], for example a sigmoid of the logits")
    if not 0 <= window_seconds < np.inf or not 0 <= threshold <= 1:
        raise ValueError(
            f"window_seconds is 0 or more and threshold a probability, got {window_seconds} and {threshold}"
        )
    edges = frame_edges_seconds(len(functions), frame_rate_hz, first_frame_seconds)
    reach = round(window_seconds * frame_rate_hz)
    highest = _sliding_max(boundaries, reach, reach)
    before = _sliding_max(boundaries, reach, -1)
    found = np.flatnonzero((boundaries >= threshold) & (boundaries == highest) & (boundaries > before))
    starts = np.concatenate([[0], found[found > 0]])
    times = np.append(first_frame_seconds + starts / frame_rate_hz, edges[-1])
    times[0] = edges[0]
    chosen = np.add.reduceat(functions, starts, axis=0).argmax(axis=1)
    return Segments(np.stack([times[:-1], times[1:]], axis=1), tuple(names[c] for c in chosen))


def key_from_frames(probabilities: np.ndarray) -> Key:
    """The key of a track: the most probable in the mean over frames, the first of equals.

    No paper says how frames become a key (benchmark, 4.4).

    Args:
        probabilities: `(T, 24)`, or `(T, 25)` where the last is "none", which is left out. Order of `Key.index`.

    Raises:
        ValueError: other shapes, no frame, negative or not finite values.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] not in (24, 25):
        raise ValueError(f"key probabilities are (T, 24) or (T, 25) with T >= 1, got {rows.shape}")
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise ValueError("key probabilities must be finite and >= 0, for example a softmax of the logits")
    return Key.from_index(int(rows.mean(axis=0)[:24].argmax()))


def _check_rate(frame_rate_hz: float) -> None:
    if not 0 < frame_rate_hz < np.inf:
        raise ValueError(f"frame_rate_hz is a positive number of frames per second, got {frame_rate_hz}")


def _logits(name: str, values: np.ndarray) -> np.ndarray:
    logits = np.asarray(values, dtype=np.float64)
    if logits.ndim != 1 or not len(logits) or np.isnan(logits).any():
        raise ValueError(f"{name} are (T,) with T >= 1 and without NaN, got {logits.shape}")
    return logits


def _peaks(logits: np.ndarray, frame_rate_hz: float) -> np.ndarray:
    """`(N,)` frames, halves included: highest within PEAK_SECONDS and above 0, runs of neighbours averaged."""
    reach = max(1, round(PEAK_SECONDS * frame_rate_hz))
    frames = np.flatnonzero((logits > 0) & (logits == _sliding_max(logits, reach, reach)))
    if not len(frames):
        return np.zeros(0)
    begins = np.flatnonzero(np.diff(frames, prepend=-2) > 1)
    ends = np.append(begins[1:], len(frames)) - 1
    return (frames[begins] + frames[ends]) / 2


def _sliding_max(values: np.ndarray, before: int, after: int) -> np.ndarray:
    """`(T,)`: the maximum over frames t - before .. t + after; -inf where there are none. after may be -1."""
    padded = np.pad(values, (before, max(after, 0)), constant_values=-np.inf)
    width = before + after + 1
    if width < 1:
        return np.full(len(values), -np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)[: len(values)]
