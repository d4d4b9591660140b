"""Small music for tests of corpora: tunes of a few notes with overtones and a little noise, no two alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def tune(seed: int, seconds: float, rate_hz: int) -> np.ndarray:
    """`(S,)` float64 within +-0.6."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    notes = rng.integers(36, 84, size=int(seconds * 4) + 1)
    hz = 440.0 * 2.0 ** ((notes[(times * 4).astype(int)] - 69) / 12)
    phase = 2 * np.pi * np.cumsum(hz) / rate_hz
    weights = rng.uniform(0.2, 1.0, size=4)
    sound = sum(w * np.sin(k * phase) for k, w in enumerate(weights, 1)) + 0.05 * rng.standard_normal(
        len(times)
    )
    sound *= 0.4 + 0.6 * rng.uniform(size=len(notes))[(times * 4).astype(int)]
    return 0.6 * sound / np.abs(sound).max()


def write(path: Path, samples: np.ndarray, rate_hz: int, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, **options)
    return path
