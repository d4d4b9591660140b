"""Sound -> 16 bits, and what is counted about it: clipping, silence, DC, duplicates.

The rule of 16 bits: x becomes the whole number nearest to 32768 x (halves to the even one), without dither, and values
beyond [-32768, 32767] saturate; reading divides by 32768. So 16-bit mono at the corpus's rate comes back as it was, and
other sound within half a step of 2**-15 (noise 101 dB below full scale).

Shape letters: `S` samples, `T` frames, `F` bands.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audiation.corpus_packed import ITEM
from audiation.corpus_table import FileEntry

FULL_SCALE = 32768
SILENT_RMS = 1e-3  # -60 dB
SILENCE_BLOCK_SECONDS = 0.1
CHUNK_SECONDS = 60.0  # what is measured at a time: whole blocks of silence
DC_OFFSET = 0.01  # from here on a recording is counted as having DC

FRAME_SAMPLES, NUM_SEGMENTS, NUM_BANDS = 1024, 33, 9  # of the fingerprint: 32 x 8 bits
BAND_HZ = (100.0, 6400.0)
WORD_BITS = 16  # a pair is compared where one of the words is equal
NEAR_BITS = 51  # of 256 may differ; those of unrelated music differ in 128 +- 8
NEAR_SECONDS = 0.25  # encoders add up to that
NEIGHBOURS = 32  # of equal word and length that a recording is compared with


@dataclass(frozen=True, eq=False)
class Heard:
    """One recording after decoding. samples: `(S,)` int16. fingerprint: 64 hex digits; "" under 1.5 s."""

    samples: np.ndarray
    content_hash: str
    peak: float
    clipped_share: float
    silent_share: float
    dc_offset: float
    fingerprint: str


def listen(chunks: Iterable[np.ndarray], sample_rate_hz: int) -> Heard:
    """Measure a recording and turn it into 16 bits.

    Args:
        chunks: float32 `(S,)` of CHUNK_SECONDS each; the last one may be shorter.
    """
    parts: list[np.ndarray] = []
    peak, total, num_clipped, silent, blocks = 0.0, 0.0, 0, 0, 0
    energies: list[np.ndarray] = []
    digest = hashlib.sha256()
    for x in chunks:
        part = to_int16(x)
        digest.update(part.data)
        parts.append(part)
        peak = max(peak, float(np.abs(x).max(initial=0.0)))
        total += float(x.sum(dtype=np.float64))
        num_clipped += int(np.count_nonzero(np.abs(x) >= (FULL_SCALE - 1) / FULL_SCALE))
        rms = _block_rms(x, round(SILENCE_BLOCK_SECONDS * sample_rate_hz))
        silent, blocks = silent + int(np.count_nonzero(rms < SILENT_RMS)), blocks + len(rms)
        energies.append(_band_energies(x, sample_rate_hz))
    samples = np.concatenate(parts) if parts else np.zeros(0, ITEM)
    return Heard(
        samples,
        digest.hexdigest(),
        peak,
        num_clipped / max(1, len(samples)),
        silent / max(1, blocks),
        total / max(1, len(samples)),
        _fingerprint(np.concatenate(energies)) if energies else "",
    )


def to_int16(x: np.ndarray) -> np.ndarray:
    """Float `(S,)` -> int16 `(S,)` by the rule above."""
    return np.clip(np.rint(x.astype(np.float32) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(ITEM)


def to_float32(samples: np.ndarray) -> np.ndarray:
    """Int16 -> float32 in [-1, 1), exactly."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE)


def near_duplicates(
    fingerprints: Mapping[str, str], num_samples: Mapping[str, int], sample_rate_hz: int
) -> dict[str, str]:
    """Name -> the first name, in order, of a recording of the same length that sounds the same.

    Recordings are compared where one of the 16 words of their fingerprints is equal and their lengths differ by 0.25 s
    at most. Found are other encodings and levels of the same recording from the same start, not other performances.
    """
    names = sorted(name for name, print_ in fingerprints.items() if print_)
    bits = {name: bytes.fromhex(fingerprints[name]) for name in names}
    words = np.array([np.frombuffer(bits[n], ">u2") for n in names]).reshape(-1, 256 // WORD_BITS)
    first: dict[str, str] = {n: n for n in names}  # as a forest: the root is the first name

    def root(name: str) -> str:
        while first[name] != name:
            first[name] = first[first[name]]
            name = first[name]
        return name

    for column in words.T:
        same: defaultdict[int, list[str]] = defaultdict(list)
        for name, word in zip(names, column.tolist(), strict=True):
            same[word].append(name)
        for group in same.values():
            group.sort(key=lambda n: (num_samples[n], n))
            for i, a in enumerate(group):
                for b in group[i + 1 : i + 1 + NEIGHBOURS]:
                    if num_samples[b] - num_samples[a] > NEAR_SECONDS * sample_rate_hz:
                        break
                    different = int.from_bytes(bits[a], "big") ^ int.from_bytes(bits[b], "big")
                    if different.bit_count() <= NEAR_BITS:
                        one, other = sorted((root(a), root(b)))
                        first[other] = one
    return {name: root(name) for name in names if root(name) != name}


def summarise(entries: Sequence[FileEntry], sample_rate_hz: int) -> dict[str, Any]:
    """The statistics of `corpus.json`: files by what became of them, and what is odd about the stored ones; shares are
    of all stored samples."""
    stored = [e for e in entries if e.status == "stored"]
    total = sum(e.num_samples for e in stored)
    hours = 3600.0 * sample_rate_hz

    def share(field: str) -> float:
        return sum(getattr(e, field) * e.num_samples for e in stored) / max(1, total)

    return {
        "files": dict(Counter(e.status for e in entries)),
        "left_out": dict(Counter(e.reason for e in entries if e.status == "left out")),
        "duplicate_hours": sum(e.num_samples for e in entries if e.status == "duplicate") / hours,
        "near_duplicates": sum(bool(e.near_duplicate_of) for e in stored),
        "near_duplicate_hours": sum(e.num_samples for e in stored if e.near_duplicate_of) / hours,
        "silent_share": share("silent_share"),
        "clipped_share": share("clipped_share"),
        "clipped_recordings": sum(e.clipped_share > 0 for e in stored),
        "dc_recordings": sum(abs(e.dc_offset) >= DC_OFFSET for e in stored),
        "source_rates_hz": {str(r): n for r, n in sorted(Counter(e.source_rate_hz for e in stored).items())},
        "licences": dict(Counter(e.licence for e in stored if e.licence)),
        "shortest_seconds": min((e.num_samples for e in stored), default=0) / sample_rate_hz,
        "longest_seconds": max((e.num_samples for e in stored), default=0) / sample_rate_hz,
    }


def _block_rms(x: np.ndarray, block: int) -> np.ndarray:
    """Of each block without its mean; a part of a block at the end counts where there is no whole one."""
    if len(x) < block:
        return np.array([x.std(dtype=np.float64)]) if len(x) else np.zeros(0)
    return x[: len(x) // block * block].reshape(-1, block).std(axis=1, dtype=np.float64)


def _band_energies(x: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """`(T, F)`: energy of frames that do not overlap, in bands of equal width on a logarithmic axis."""
    frames = x[: len(x) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME_SAMPLES).astype(np.float32), axis=1)) ** 2
    edges = np.geomspace(*BAND_HZ, NUM_BANDS + 1) * FRAME_SAMPLES / sample_rate_hz
    bins = np.clip(np.rint(edges).astype(int), 1, power.shape[1] - 1)
    return np.add.reduceat(power, bins, axis=1)[:, :NUM_BANDS]


def _fingerprint(energies_TF: np.ndarray) -> str:
    """Whether the slope from band to band rises from one of 33 equal parts of the recording to the next: this survives
    other levels and encoders (after Haitsma and Kalker, ISMIR 2002, coarse in time)."""
    if len(energies_TF) < NUM_SEGMENTS:
        return ""
    starts = np.arange(NUM_SEGMENTS) * len(energies_TF) // NUM_SEGMENTS
    counts = np.diff([*starts, len(energies_TF)])[:, None]
    levels = np.log(np.add.reduceat(energies_TF, starts, axis=0) / counts + 1e-10)
    bits = np.diff(np.diff(levels, axis=1), axis=0) > 0
    return np.packbits(bits).tobytes().hex()
