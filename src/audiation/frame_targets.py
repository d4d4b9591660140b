"""Annotation <-> one training value per frame: beats, chords, keys over time, sections.

Frames take the value at their centre; segments are half open, so that a frame at the end of one belongs to the next.
Where a reference says nothing the target is -1, and no loss counts there.

Shape letters: `B` windows, `T` frames, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.annotations import Beats, Key, Segments
from audiation.chord_labels import majmin_class
from audiation.decoding import (
    chords_from_frames,
    decode_beats_dbn,
    decode_downbeats_dbn,
    key_from_frames,
    peak_pick_beats,
    sections_from_frames,
)
from audiation.frames import FrameGrid, values_at
from audiation.targets import ClipContext
from audiation.training import Loss

UNKNOWN = -1


def _grid(grid: FrameGrid | None) -> FrameGrid:
    if grid is None:
        raise ValueError("frames have to lie somewhere in time: give the grid")
    return grid


def _context_grid(context: ClipContext | None, logits: Tensor) -> FrameGrid:
    grid = _grid(None if context is None else context.grid)
    if grid.num_frames != len(logits):
        raise ValueError(f"{len(logits)} frames of outputs, but a grid of {grid.num_frames}")
    return grid


def _check_rate(frame_rate_hz: float | None) -> None:
    if frame_rate_hz is not None and not 0 < frame_rate_hz < float("inf"):
        raise ValueError(f"frame_rate_hz is positive, or None for every frame there is, got {frame_rate_hz}")


def _frame_classes(segments: Segments, grid: FrameGrid, class_of: Callable[[str], int]) -> np.ndarray:
    """Class of each frame `(T,)` int64; -1 between segments and for labels of class -1."""
    numbers = [class_of(label) for label in segments.labels]
    return values_at(segments.intervals_seconds, numbers, grid.times_seconds, UNKNOWN)


def _frame_cross_entropy(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Loss:
    """`(B, T, C)` logits and `(B, T)` classes, over the valid frames whose class is known."""
    keep = targets >= 0
    keep = keep if valid is None else keep & valid
    losses = F.cross_entropy(logits.transpose(1, 2), targets.clamp(min=0), reduction="none")
    return Loss(losses[keep].sum(), keep.sum())


def _frame_bce(logits: Tensor, targets: Tensor, valid: Tensor | None) -> Loss:
    """`(B, T, C)` logits and targets in [0, 1], over the valid frames where the target is known."""
    keep = targets >= 0
    keep = keep if valid is None else keep & valid[..., None]
    losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return Loss(losses[keep].sum(), keep.sum())


_Outputs = Literal["beat", "beat_downbeat", "three_class"]
_Decoder = Literal["dbn", "dbn_beats_18_72", "dbn_beats_55_215", "peaks"]

# Beats ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeatTarget:
    """Beats and downbeats per frame.

    outputs: "beat": one sigmoid (thesis). "beat_downbeat": a sigmoid each (MARBLE). "three_class": beat that is no
        downbeat, downbeat, neither, by softmax (musicfm).
    widening: values of the frames next to a beat, one away, two away, ... (thesis: (1.0,); MARBLE v1 soft (0.95, 0.5);
        MARBLE v2 (0.5, 0.25); none with "three_class").
    frame_rate_hz: musicfm's paper says 20, its README 50 (D24); None, as in MARBLE: every frame of the backbone.
    decoder: "dbn": the joint bar-pointer model where there are downbeats, else that of beats; "dbn_beats_18_72" and
        "dbn_beats_55_215": beats and downbeats by a beat model each, downbeats at 18 to 72 BPM as in MARBLE v1, or at
        the default 55 to 215 as in v2, which cannot represent most bars (D25); "peaks": in the style of Beat This!
    """

    outputs: _Outputs = "beat_downbeat"
    widening: tuple[float, ...] = ()
    frame_rate_hz: float | None = None
    decoder: _Decoder = "dbn"
    beats_per_bar: tuple[int, ...] = (3, 4)
    per_frame = True

    def __post_init__(self) -> None:
        _check_rate(self.frame_rate_hz)
        if not all(0 < value <= 1 for value in self.widening):
            raise ValueError(f"frames next to a beat have values in (0, 1], got {self.widening}")
        for name, kind in (("outputs", _Outputs), ("decoder", _Decoder)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if not self.beats_per_bar or not all(1 <= n <= 64 for n in self.beats_per_bar):
            raise ValueError(
                f"a bar has 1 to 64 beats; beats_per_bar lists one length or more, got {self.beats_per_bar}"
            )
        if self.outputs == "three_class" and self.widening:
            raise ValueError(
                "three classes exclude each other, so frames next to a beat cannot be part of one"
            )

    @property
    def num_outputs(self) -> int:
        return {"beat": 1, "beat_downbeat": 2, "three_class": 3}[self.outputs]

    def encode(self, annotation: Beats, grid: FrameGrid | None = None) -> Tensor:
        """-> `(T, C)` float32 in [0, 1], or `(T,)` int64 for three classes; -1 where it is not known whether a beat
        is a downbeat."""
        grid = _grid(grid)
        times, positions = annotation.times_seconds, annotation.positions
        beats = self._curve(times, grid)
        unknown = self._curve(times[positions == 0], grid) > 0
        if self.outputs == "beat":
            return torch.from_numpy(beats[:, None])
        downbeats = self._curve(times[positions == 1], grid)
        if self.outputs == "three_class":
            classes = np.where(downbeats > 0, 1, np.where(beats > 0, 0, 2))
            return torch.from_numpy(np.where(unknown & (downbeats == 0), UNKNOWN, classes))
        downbeats[unknown & (downbeats == 0)] = UNKNOWN
        if len(positions) and not positions.any():  # nothing is known about the bars of this track
            downbeats[:] = UNKNOWN
        return torch.from_numpy(np.stack([beats, downbeats], axis=1))

    def _curve(self, times_seconds: np.ndarray, grid: FrameGrid) -> np.ndarray:
        """`(T,)` float32: 1 at the frames of the events, `widening` next to them."""
        curve = np.zeros(grid.num_frames, dtype=np.float32)
        places = grid.positions(times_seconds)
        for distance, value in enumerate((1.0, *self.widening)):
            for moved in (places - distance, places + distance):
                inside = moved[(moved >= 0) & (moved < grid.num_frames)]
                curve[inside] = np.maximum(curve[inside], value)
        return curve

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Binary cross-entropy per frame and output, or cross-entropy per frame."""
        if self.outputs == "three_class":
            return _frame_cross_entropy(logits, targets, valid)
        return _frame_bce(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Beats:
        """`(T, C)` logits -> beats with their positions in the bar, 0 where the outputs know of no bars."""
        grid = _context_grid(context, logits)
        logits = logits.detach().cpu().double()
        if self.decoder == "peaks":
            found = self._by_peaks(logits, grid)
        else:
            found = self._by_dbn(logits, grid)
        times = found.times_seconds + grid.first_frame_seconds
        return Beats(times[times >= 0], found.positions[times >= 0])

    def _activations(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Probability of a beat (of any sort) and of a downbeat, `(T,)` each."""
        if self.outputs == "three_class":
            p = logits.softmax(-1).numpy()
            return p[:, 0] + p[:, 1], p[:, 1]
        p = logits.sigmoid().numpy()
        return p[:, 0], p[:, 1] if self.outputs == "beat_downbeat" else None

    def _by_peaks(self, logits: Tensor, grid: FrameGrid) -> Beats:
        beats, downbeats = self._activations(logits)
        return peak_pick_beats(
            _logit(beats), None if downbeats is None else _logit(downbeats), frame_rate_hz=grid.frame_rate_hz
        )

    def _by_dbn(self, logits: Tensor, grid: FrameGrid) -> Beats:
        rate = grid.frame_rate_hz
        beats, downbeats = self._activations(logits)
        if downbeats is None:
            return decode_beats_dbn(beats, frame_rate_hz=rate)
        if self.decoder == "dbn":
            both = np.stack([np.maximum(beats - downbeats, 0.0), downbeats], axis=1)
            return decode_downbeats_dbn(both, frame_rate_hz=rate, beats_per_bar=self.beats_per_bar)
        slowest, fastest = (18, 72) if self.decoder == "dbn_beats_18_72" else (55, 215)
        found = decode_beats_dbn(beats, frame_rate_hz=rate)
        bars = decode_beats_dbn(downbeats, frame_rate_hz=rate, min_bpm=slowest, max_bpm=fastest)
        return _with_downbeats(found.times_seconds, bars.times_seconds)


def _logit(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def _with_downbeats(beats_seconds: np.ndarray, downbeats_seconds: np.ndarray) -> Beats:
    """Beats where the nearest one to each downbeat has position 1, and those behind it count on."""
    positions = np.zeros(len(beats_seconds), dtype=np.int64)
    if len(beats_seconds):
        nearest = (
            np.abs(beats_seconds[None] - downbeats_seconds[:, None]).argmin(1)
            if len(downbeats_seconds)
            else []
        )
        positions[nearest] = 1
    for i in range(1, len(positions)):
        if positions[i] == 0 and positions[i - 1] > 0:
            positions[i] = positions[i - 1] + 1
    return Beats(beats_seconds, positions)


# Chords --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChordTarget:
    """25 chords per frame: major on C, Db, ..., B, minor on the same roots, no chord.

    Other chords are not learned and not scored. Sevenths and sixths are their triad (benchmark, 3.2).

    frame_rate_hz: musicfm's paper says 8, its README 16 (D28); None, as in MARBLE: every frame of the backbone.
    unknown_root: what "X" is: "none": no chord (MARBLE v2); "ignore": not scored (mir_eval) (D7).
    """

    frame_rate_hz: float | None = None
    unknown_root: Literal["none", "ignore"] = "ignore"
    num_outputs = 25
    per_frame = True

    def __post_init__(self) -> None:
        _check_rate(self.frame_rate_hz)
        if self.unknown_root not in ("none", "ignore"):
            raise ValueError(f"unknown_root is 'none' or 'ignore', got {self.unknown_root!r}")

    def encode(self, annotation: Segments, grid: FrameGrid | None = None) -> Tensor:
        """-> `(T,)` int64, -1 where there is no annotation or another chord."""
        classes = {label: majmin_class(label, self.unknown_root) for label in set(annotation.labels)}
        return torch.from_numpy(_frame_classes(annotation, _grid(grid), classes.__getitem__))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _frame_cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Segments:
        """`(T, 25)` logits -> runs of equal chords, 'C:maj', 'A:min', 'N'."""
        grid = _context_grid(context, logits)
        return chords_from_frames(
            logits.argmax(-1).cpu().numpy(),
            frame_rate_hz=grid.frame_rate_hz,
            first_frame_seconds=grid.first_frame_seconds,
        )


# Keys over time --------------------------------------------------------------------------------------------

NO_KEY = 24


@dataclass(frozen=True)
class KeyFramesTarget:
    """24 keys or none, every two seconds, as musicfm trains on HookTheory; the answer is one key for the track.

    An annotation is a key for the whole track, or segments labelled like 'C major', or 'none' for other modes.
    """

    frame_rate_hz: float | None = 0.5
    num_outputs = 25
    per_frame = True

    def __post_init__(self) -> None:
        _check_rate(self.frame_rate_hz)

    def encode(self, annotation: Key | Segments, grid: FrameGrid | None = None) -> Tensor:
        """-> `(T,)` int64, -1 where there is no annotation."""
        grid = _grid(grid)
        if isinstance(annotation, Key):
            return torch.full((grid.num_frames,), annotation.index)
        keys = {
            label: NO_KEY if label == "none" else Key.parse(label).index for label in set(annotation.labels)
        }
        return torch.from_numpy(_frame_classes(annotation, grid, keys.__getitem__))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        return _frame_cross_entropy(logits, targets, valid)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Key:
        """Mean of the frames' probabilities, "none" left out, the most probable key (the paper does not say)."""
        _context_grid(context, logits)
        return key_from_frames(logits.detach().cpu().double().softmax(-1).numpy())


# Sections --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SectionTarget:
    """The function of the section at each frame, and whether a section begins there (musicfm: two classifiers on
    shared features).

    frame_rate_hz: musicfm's paper says 5, its README 8 (D31).
    widening: values of the frames next to a boundary.
    """

    sections: tuple[str, ...]
    frame_rate_hz: float | None = 5.0
    widening: tuple[float, ...] = ()
    per_frame = True

    def __post_init__(self) -> None:
        _check_rate(self.frame_rate_hz)
        if not self.sections or len(set(self.sections)) < len(self.sections):
            raise ValueError(f"sections are one or more different names, got {self.sections}")

    @property
    def num_outputs(self) -> int:
        return len(self.sections) + 1

    def encode(self, annotation: Segments, grid: FrameGrid | None = None) -> Tensor:
        """-> `(T, 2)` float32: number of the section, -1 where there is none; 1 where one begins.

        ValueError for another label.
        """
        grid = _grid(grid)
        unknown = sorted(set(annotation.labels) - set(self.sections))
        if unknown:
            raise ValueError(f"section '{unknown[0]}' is not one of {', '.join(self.sections)}")
        classes = _frame_classes(annotation, grid, self.sections.index)
        curve = BeatTarget("beat", self.widening)._curve(annotation.intervals_seconds[:, 0], grid)
        return torch.from_numpy(np.stack([classes.astype(np.float32), curve], axis=1))

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None = None) -> Loss:
        """Cross-entropy of the functions and binary cross-entropy of the boundaries, each a term per frame."""
        functions = _frame_cross_entropy(logits[..., :-1], targets[..., 0].long(), valid)
        boundaries = _frame_bce(logits[..., -1:], targets[..., 1:], valid)
        return Loss(functions.sum + boundaries.sum, functions.count + boundaries.count)

    def decode(self, logits: Tensor, context: ClipContext | None = None) -> Segments:
        """`(T, C)` logits -> sections between the peaks of the boundary curve, each with its most probable function."""
        grid = _context_grid(context, logits)
        logits = logits.detach().cpu().double()
        return sections_from_frames(
            logits[:, :-1].softmax(-1).numpy(),
            logits[:, -1].sigmoid().numpy(),
            self.sections,
            frame_rate_hz=grid.frame_rate_hz,
            first_frame_seconds=grid.first_frame_seconds,
        )
