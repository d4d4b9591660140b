"""Numbers that are the same on every platform: weights and waveforms that the golden files do not have to store."""

from __future__ import annotations

import hashlib
import math

import numpy as np

GOLDEN_RATIO_64 = np.uint64(0x9E3779B97F4A7C15)


def seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """`count` float64 values in [-1, 1), multiples of 2^-23: splitmix64 started from a hash of the name."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed_of(seed, name)) + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN_RATIO_64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)) / 2.0**23 - 1.0


def recipe(seed: int, name: str, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Weights of the baselines: float32 with the given moments."""
    values = mean + std * math.sqrt(3.0) * uniform(seed, name, math.prod(shape))
    return values.reshape(shape).astype(np.float32)


def musicfm_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A MusicFM tensor, by its official name without "model." and with the old spelling of weight norm."""
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.float32)
    values = uniform(seed, name, math.prod(shape)).reshape(shape)
    moments = {"running_mean": (0.0, 0.1), "running_var": (1.0, 0.5), "bias": (0.0, 0.1)}
    moments |= {"weight_g": (1.0, 0.25), "cls_token": (0.0, 1.0)}
    if leaf in moments:
        centre, spread = moments[leaf]
    elif len(shape) == 1:
        centre, spread = 1.0, 0.2
    else:
        centre, spread = 0.0, math.sqrt(3.0 / math.prod(shape[1:]))
    return (centre + spread * values).astype(np.float32)


def waveform(seed: int, num_samples: int, channel: int = 0) -> np.ndarray:
    """Three gliding sawtooths, gated, with a pulse train and noise; float32."""
    n = np.arange(num_samples, dtype=np.uint64)
    base = seed_of(seed, f"wave{channel}")
    mixed = np.zeros(num_samples)
    with np.errstate(over="ignore"):
        for k, amplitude in enumerate((0.25, 0.15, 0.08)):
            speed = np.uint64(20_000_000 * (k + 1) + (base >> (8 * k)) % 60_000_000)
            glide = np.uint64(30 + 17 * k + (base >> (24 + 8 * k)) % 90)
            phase = (n * speed + ((n * n) >> np.uint64(4)) * glide) & np.uint64(0xFFFFFFFF)
            mixed += amplitude * (phase / 2.0**31 - 1.0)
    loud = (n // np.uint64(12_000)) % np.uint64(3) != np.uint64(2)
    pulse = (n % np.uint64(9_000 + 500 * channel)) < np.uint64(200)
    mixed = mixed * np.where(loud, 1.0, 0.125) + 0.2 * pulse
    return (mixed + 0.02 * uniform(seed, f"noise{channel}", num_samples)).astype(np.float32)
