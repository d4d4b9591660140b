"""Where output frames lie in time, and how frames of a model become frames of an answer.

Shape letters: `B` windows, `T` frames, `D` model width, `C` outputs, `N` events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FrameGrid:
    """Frame `t` is centred on `first_frame_seconds + t / frame_rate_hz` of the track, and reaches half a frame
    to either side."""

    num_frames: int
    frame_rate_hz: float
    first_frame_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a grid has one frame or more, got {self.num_frames}")
        if not 0 < self.frame_rate_hz < math.inf or not math.isfinite(self.first_frame_seconds):
            raise ValueError(
                f"a grid has a positive rate and a finite beginning, got {self.frame_rate_hz} Hz from "
                f"{self.first_frame_seconds} s"
            )

    @property
    def times_seconds(self) -> np.ndarray:
        """Centres, `(T,)` float64."""
        return self.first_frame_seconds + np.arange(self.num_frames) / self.frame_rate_hz

    @property
    def start_seconds(self) -> float:
        """Where frame 0 begins."""
        return self.first_frame_seconds - 0.5 / self.frame_rate_hz

    @property
    def end_seconds(self) -> float:
        """Where the last frame ends."""
        return self.start_seconds + self.num_frames / self.frame_rate_hz

    def positions(self, times_seconds: np.ndarray) -> np.ndarray:
        """Nearest frame of each time `(N,)`, half-way to the even one; may lie outside 0..T-1."""
        # Rounding away what 1 / rate leaves of an exact half, so that "half to even" means something.
        exact = (np.asarray(times_seconds) - self.first_frame_seconds) * self.frame_rate_hz
        return np.rint(np.round(exact, 9)).astype(np.int64)

    def shifted(self, seconds: float) -> FrameGrid:
        """The same frames of a window that begins `seconds` later."""
        return replace(self, first_frame_seconds=self.first_frame_seconds + seconds)

    def pooled(self, frame_rate_hz: float | None) -> FrameGrid:
        """The grid over the same span with about `frame_rate_hz`: as many frames as fit best. None: this one.

        The span decides the exact rate: 374 MERT frames at 75 Hz become 249 frames at 49.93 Hz, not at 50 Hz.
        """
        if frame_rate_hz is None:
            return self
        num_frames = max(1, round(self.num_frames * frame_rate_hz / self.frame_rate_hz))
        rate = num_frames * self.frame_rate_hz / self.num_frames
        return FrameGrid(num_frames, rate, self.start_seconds + 0.5 / rate)


def values_at(
    intervals_seconds: np.ndarray, values: Sequence[int], times_seconds: np.ndarray, outside: int
) -> np.ndarray:
    """Value of the half-open interval that holds each time: `(N, 2)` in order, N values, `(T,)` -> `(T,)` int64.

    outside: the value where no interval is.
    """
    found = np.full(len(times_seconds), outside, dtype=np.int64)
    if len(intervals_seconds):
        # What 25 additions of 1/25 add is no second frame.
        (starts, ends), times = np.round(intervals_seconds, 9).T, np.round(times_seconds, 9)
        place = np.searchsorted(starts, times, side="right") - 1
        inside = (place >= 0) & (times < ends[place])
        found[inside] = np.asarray(values, dtype=np.int64)[place[inside]]
    return found


def pool_frames(frames_BTD: Tensor, num_frames: int) -> Tensor:
    """`(B, T, D)` -> `(B, num_frames, D)`: adaptive average pooling over time (musicfm README: of tokens to output
    frames). More output frames than there are repeats them."""
    if num_frames == frames_BTD.shape[1]:
        return frames_BTD
    return F.adaptive_avg_pool1d(frames_BTD.transpose(1, 2), num_frames).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class FrameOutputs:
    """Outputs `(T, C)` of a window or a track, and where they lie."""

    grid: FrameGrid
    outputs: Tensor


def stitch(windows: Sequence[FrameOutputs], frame_rate_hz: float | None = None) -> FrameOutputs:
    """Windows of a track on one uniform grid, from the beginning of the first to the end of the last.

    A frame takes the outputs of the nearest frame of every window that covers it. Where windows overlap they are
    averaged, weighted by the distance to the nearer end of the window, where a model has heard least. Frames between
    windows (a model's frames may end before its window does) take those of the nearest window.

    Args:
        windows: in order of time, outputs float32 or float64 on the CPU.
        frame_rate_hz: of the result; None: that of the first window.

    Raises:
        ValueError: no window.
    """
    if not windows:
        raise ValueError("there is no window to stitch")
    rate = frame_rate_hz or windows[0].grid.frame_rate_hz
    start = min(w.grid.start_seconds for w in windows)
    span = max(w.grid.end_seconds for w in windows) - start
    grid = FrameGrid(max(1, round(span * rate)), rate, start + 0.5 / rate)
    times = grid.times_seconds
    total = torch.zeros(grid.num_frames, windows[0].outputs.shape[-1], dtype=torch.float64)
    weights = torch.zeros(grid.num_frames, 1, dtype=torch.float64)
    distances = np.full(grid.num_frames, np.inf)
    nearest = np.zeros(grid.num_frames, dtype=np.int64)
    for number, window in enumerate(windows):
        inside = (times >= window.grid.start_seconds - 1e-9) & (times < window.grid.end_seconds + 1e-9)
        outside = np.maximum(window.grid.start_seconds - times, times - window.grid.end_seconds)
        nearest[outside < distances] = number
        distances = np.minimum(distances, outside)
        chosen = np.flatnonzero(inside)
        if not len(chosen):
            continue
        edge = np.minimum(times[chosen] - window.grid.start_seconds, window.grid.end_seconds - times[chosen])
        weight = torch.from_numpy(np.maximum(edge, 1e-6))[:, None]
        total[chosen] += weight * _at(window, times[chosen])
        weights[chosen] += weight
    for number in np.unique(nearest[weights[:, 0].numpy() == 0]):
        gap = np.flatnonzero((weights[:, 0].numpy() == 0) & (nearest == number))
        total[gap] = _at(windows[number], times[gap])
        weights[gap] = 1.0
    return FrameOutputs(grid, total / weights)


def _at(window: FrameOutputs, times_seconds: np.ndarray) -> Tensor:
    """Outputs `(N, C)` of the frames nearest to the times, float64."""
    places = window.grid.positions(times_seconds).clip(0, window.grid.num_frames - 1)
    return window.outputs[torch.from_numpy(places)].double()
