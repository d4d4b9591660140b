"""How far a recording is shifted against annotations that were made on another copy of it.

The attacks heard in the audio are compared with the annotated events (beats, mostly) at every shift. For users who
bring their own audio to data sets that come without: annotation time + offset = audio time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ENVELOPE_RATE_HZ = 200
WINDOW_SECONDS = 0.04  # looked at before and after an instant
SEPARATION_SECONDS = 0.07  # shifts nearer to the best one are the same answer
MAX_OFFSET_SECONDS = 600.0
_FRAMES_AT_A_TIME = 2048  # keeps memory below 100 MB at 48 kHz


@dataclass(frozen=True)
class Alignment:
    """annotation time + offset_seconds = audio time.

    correlation: of the attacks with the shifted events, at most 1: below 0.1 for noise, above 0.5 for clear attacks.
    second_best: the highest at any shift further away than `SEPARATION_SECONDS`. In music with a steady pulse a shift
        by one beat comes close, so it is the distance between the two that says how sure the answer is.
    """

    offset_seconds: float
    correlation: float
    second_best: float


def onset_envelope(samples: Tensor, sample_rate_hz: int) -> Tensor:
    """How strongly something begins at each instant `n / ENVELOPE_RATE_HZ` seconds: `(S,)` -> `(N,)`, 0 or more.

    It is the growth of the spectrum, summed over frequencies, from the 40 ms before an instant to the 40 ms after. Both
    windows are highest at the instant, so that the maximum is where the sound begins and not half a window early.

    Raises:
        ValueError: samples that are not `(S,)` and finite, or a rate too low for `ENVELOPE_RATE_HZ`.
    """
    if samples.ndim != 1 or not samples.is_floating_point() or not torch.isfinite(samples).all():
        raise ValueError(
            f"samples are finite floats (S,), got {samples.dtype} of shape {tuple(samples.shape)}"
        )
    if sample_rate_hz < 10 * ENVELOPE_RATE_HZ:
        raise ValueError(
            f"a sample rate of at least {10 * ENVELOPE_RATE_HZ} Hz is needed, got {sample_rate_hz} Hz"
        )
    window = round(WINDOW_SECONDS * sample_rate_hz)
    num_frames = len(samples) * ENVELOPE_RATE_HZ // sample_rate_hz
    padded = torch.nn.functional.pad(samples.float(), (window, window))
    falling = torch.hann_window(2 * window, dtype=torch.float32)[window:]
    rising, within = falling.flip(0), torch.arange(window)
    growth = []
    for first in range(0, num_frames, _FRAMES_AT_A_TIME):
        frames = torch.arange(first, min(first + _FRAMES_AT_A_TIME, num_frames))
        instants = (
            frames * sample_rate_hz + ENVELOPE_RATE_HZ // 2
        ) // ENVELOPE_RATE_HZ  # in samples, rounded
        before = _spectrum(padded[instants[:, None] + within] * rising)
        after = _spectrum(padded[instants[:, None] + window + within] * falling)
        growth.append((after - before).clamp(min=0).sum(dim=1))
    return torch.cat(growth) if growth else torch.zeros(0)


def estimate_offset(
    samples: Tensor,
    sample_rate_hz: int,
    event_times_seconds: np.ndarray,
    max_offset_seconds: float = 30.0,
) -> Alignment:
    """The shift at which events `(N,)` fit the attacks in samples `(S,)` best, from -max to +max seconds.

    Raises:
        ValueError: fewer than two events, times that are not finite and >= 0, a largest offset outside
            0..`MAX_OFFSET_SECONDS`, silent audio, and as `onset_envelope`.
    """
    times = np.asarray(event_times_seconds, dtype=np.float64)
    if (
        times.ndim != 1
        or len(times) < 2
        or not np.isfinite(times).all()
        or times.min() < 0
        or times.max() > 86_400
    ):
        raise ValueError(f"at least two event times from 0 s to one day are needed, got shape {times.shape}")
    if not 0 < max_offset_seconds <= MAX_OFFSET_SECONDS:
        raise ValueError(
            f"the largest offset is above 0 and at most {MAX_OFFSET_SECONDS:g} s, got {max_offset_seconds}"
        )
    envelope = onset_envelope(samples, sample_rate_hz).double()
    if len(envelope) == 0 or not float(envelope.max()) > float(envelope.min()):
        raise ValueError("nothing begins in this audio, so it cannot be aligned; is it silent or empty?")
    curve = _correlation(envelope, _event_train(times), round(max_offset_seconds * ENVELOPE_RATE_HZ))
    best = int(curve.argmax())
    apart = (torch.arange(len(curve)) - best).abs() > round(SEPARATION_SECONDS * ENVELOPE_RATE_HZ)
    second = float(curve[apart].max()) if bool(apart.any()) else -1.0
    shift = best - len(curve) // 2 + _peak_between(curve, best)
    return Alignment(shift / ENVELOPE_RATE_HZ, float(curve[best]), second)


def _spectrum(frames: Tensor) -> Tensor:
    """Square roots of magnitudes: loud bass drums do not outweigh everything else."""
    return torch.fft.rfft(frames).abs().sqrt()


def _event_train(times_seconds: np.ndarray) -> Tensor:
    """What `onset_envelope` makes of a click at each time: it rises during a window and ends with the click."""
    train = torch.zeros(int(times_seconds.max() * ENVELOPE_RATE_HZ) + 1, dtype=torch.float64)
    for time in times_seconds:
        first = max(math.ceil((time - WINDOW_SECONDS) * ENVELOPE_RATE_HZ), 0)
        frames = torch.arange(first, int(time * ENVELOPE_RATE_HZ) + 1)
        train[frames] += torch.cos((time - frames / ENVELOPE_RATE_HZ) / WINDOW_SECONDS * math.pi / 2)
    return train


def _correlation(envelope: Tensor, train: Tensor, max_shift: int) -> Tensor:
    """Normalised correlation `(2 * max_shift + 1,)` at shifts -max_shift..max_shift of the train against the envelope.

    Where the shifted train reaches beyond the audio there is nothing to agree with, which lowers the value.
    """
    envelope, train = envelope - envelope.mean(), train - train.mean()
    size = len(envelope) + len(train) + 2 * max_shift
    spectrum = torch.fft.rfft(envelope, size) * torch.fft.rfft(train, size).conj()
    whole = torch.fft.irfft(spectrum, size) / (envelope.norm() * train.norm())
    return torch.cat([whole[-max_shift:], whole[: max_shift + 1]])


def _peak_between(values: Tensor, best: int) -> float:
    """Where the parabola through the largest value and its neighbours is highest, from -0.5 to 0.5 frames."""
    if not 0 < best < len(values) - 1:
        return 0.0
    left, middle, right = values[best - 1 : best + 2].tolist()
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else (left - right) / (2 * bend)
