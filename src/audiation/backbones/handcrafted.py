"""Hand-crafted representations: what a score of a learned one has to be compared with. Nothing is trained.

`chroma` (72) and `mfcc` (120) are the two baselines of Castellon, Donahue & Liang (2021): a librosa feature
and its first and second difference over time, each summarised by mean and deviation. `chroma-frames`,
`logmel-frames` and `onset-frames` keep the frames, for questions that have an answer per frame.

Shape letters: `S` samples, `T` frames, `D` width.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, HiddenStates

PAPER = (
    "Castellon, Donahue & Liang: Codified audio language modeling learns useful representations, ISMIR 2021"
)
SAMPLE_RATE_HZ = 22050
HOP_SAMPLES = 512
FFT_SAMPLES = 2048
CQT_BINS_PER_OCTAVE = 36
CQT_OCTAVES = 7
NUM_CHROMA = 12
NUM_MEL_BANDS = 128
NUM_MFCC = 20
NUM_ONSET_BANDS = 24
ONSET_CONTEXT_FRAMES = (
    3  # to either side, 70 ms: a head that sees one frame at a time hears the attack around it
)
# librosa up to 0.8, which gave the published numbers, padded by reflection. Later ones pad with zeros, which
# moves the first and last frames a lot (MFCC by up to 29).
PAD_MODE: Final = "reflect"


class Handcrafted(Backbone):
    """A librosa feature as a backbone: one layer (0), no parameters, computed on the CPU one clip at a time.

    The clip is divided by its largest magnitude; silence stays silence. Every clip of `min_samples` or more
    has finite features without a warning. Silence has chroma 0 and a constant log-mel spectrum (-100 dB, so a
    first MFCC of -100 sqrt(128) and zeros); a constant signal is treated like any other. Clips shorter than
    the longest filter (C1: 1.6 s) are continued by reflection, as librosa does.

    Args:
        name: registry name.
        frames: normalised clip `(S,)` float32 -> feature `(D, T)` float32.
        num_features: D of `frames`.
        moments: True: one vector of 6 D values per clip (see `clip_moments`); False: the frames.

    `weights_hash` stands where other backbones have the hash of their weights. It names the librosa version:
    chroma differs by about 1e-3 between versions, and stored features of two versions must not be mixed.
    """

    def __init__(
        self, name: str, frames: Callable[[np.ndarray], np.ndarray], num_features: int, moments: bool
    ) -> None:
        super().__init__()
        self.name, self.sample_rate_hz, self.max_seconds = name, SAMPLE_RATE_HZ, None
        self.frame_rate_hz = None if moments else SAMPLE_RATE_HZ / HOP_SAMPLES
        self.hop_samples = None if moments else HOP_SAMPLES
        self.num_layers, self.dim = 0, num_features * (6 if moments else 1)
        self.min_samples = 2 * HOP_SAMPLES  # three frames: the fewest that have a second difference
        self.normalisation, self.accepts_padding = "clip-peak", False
        self.weights_hash = f"handcrafted-1+librosa-{importlib.metadata.version('librosa')}"
        self._frames, self._moments = frames, moments

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0: `(B, 1, D)` per clip or `(B, T, D)` frames, float32. Frame `t` is centred on `512 t`."""
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if not bool(torch.isfinite(waveform).all()):
            raise ValueError(f"{self.name} got a waveform with NaN or infinite samples")
        compile_librosa()
        clips = waveform.detach().to("cpu", torch.float32).numpy()
        features = np.stack([self._one_clip(clip) for clip in clips])
        hidden = torch.from_numpy(features).to(waveform.device)
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=waveform.device)
        states = HiddenStates({0: hidden}, valid, self.frame_rate_hz, 0.0)
        return states.mean() if reduce == "mean" else states

    def num_frames(self, num_samples: int) -> int:
        return 1 if self._moments else 1 + num_samples // HOP_SAMPLES

    def _one_clip(self, clip: np.ndarray) -> np.ndarray:
        """`(S,)` -> `(1, 6 D)` or `(T, D)`."""
        peak = np.abs(clip).max()
        with _quiet():
            feature = self._frames(clip / peak if peak > 0 else clip)
        return clip_moments(feature)[None] if self._moments else np.ascontiguousarray(feature.T)


@functools.cache
def compile_librosa() -> None:
    """Let librosa compile what it has to (about 25 s, once per environment), one process at a time.

    It keeps the result in its own folder, and two processes that compile at once can leave a mixture there, which every
    later process crashes with.
    """
    import librosa

    tone = np.sin(np.arange(SAMPLE_RATE_HZ, dtype=np.float32) * 0.1)
    with open(librosa.__file__, "rb") as lock, _quiet():  # locked, not changed
        with suppress(OSError):  # a disk that knows no locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system however the process ends
        chroma_frames(tone)
        mfcc_frames(tone)


def clip_moments(feature: np.ndarray) -> np.ndarray:
    """`(D, T)`, T >= 3 -> `(6 D,)`: mean and population deviation over time of f, diff f and diff diff f."""
    summary = []
    for order in range(3):
        changes = np.diff(feature, n=order)
        summary += [changes.mean(axis=1), changes.std(axis=1)]
    return np.concatenate(summary)


def chroma_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(12, T)`: constant-Q magnitude from C1, 7 octaves, tuned, folded, each frame's maximum 1."""
    import librosa

    # chroma_cqt has no padding argument, so the constant-Q transform is made here.
    constant_q = librosa.cqt(
        clip,
        sr=SAMPLE_RATE_HZ,
        hop_length=HOP_SAMPLES,
        n_bins=CQT_OCTAVES * CQT_BINS_PER_OCTAVE,
        bins_per_octave=CQT_BINS_PER_OCTAVE,
        tuning=None,  # estimated
        pad_mode=PAD_MODE,
    )
    return librosa.feature.chroma_cqt(
        C=np.abs(constant_q),
        sr=SAMPLE_RATE_HZ,
        hop_length=HOP_SAMPLES,
        n_chroma=NUM_CHROMA,
        bins_per_octave=CQT_BINS_PER_OCTAVE,
    )


def logmel_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(128, T)` dB: power in 128 Slaney bands to 11,025 Hz, floored 80 dB below the maximum."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=clip,
        sr=SAMPLE_RATE_HZ,
        n_fft=FFT_SAMPLES,
        hop_length=HOP_SAMPLES,
        n_mels=NUM_MEL_BANDS,
        pad_mode=PAD_MODE,
    )
    return librosa.power_to_db(power)


def onset_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(168, T)`: by how many decibels each of 24 mel bands rose since the frame before, of each frame and
    the three to either side of it (spectral flux: Bello et al. 2005, band by band). Silence before and behind."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=clip,
        sr=SAMPLE_RATE_HZ,
        n_fft=FFT_SAMPLES // 2,
        hop_length=HOP_SAMPLES,
        n_mels=NUM_ONSET_BANDS,
        pad_mode=PAD_MODE,
    )
    decibels = librosa.power_to_db(power)
    rises = np.maximum(np.diff(decibels, axis=1, prepend=decibels[:, :1]), 0.0) / 10.0
    padded = np.pad(rises, ((0, 0), (ONSET_CONTEXT_FRAMES, ONSET_CONTEXT_FRAMES)))
    num_frames = rises.shape[1]
    return np.concatenate([padded[:, i : i + num_frames] for i in range(2 * ONSET_CONTEXT_FRAMES + 1)])


def mfcc_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(20, T)`: the first 20 coefficients of the orthonormal DCT of `logmel_frames`, no lifter."""
    import librosa

    return librosa.feature.mfcc(S=logmel_frames(clip), n_mfcc=NUM_MFCC)


def chroma_and_mfcc_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(32, T)`: `chroma_frames`, then `mfcc_frames` in units of 100, so that both are of like size."""
    return np.concatenate([chroma_frames(clip), mfcc_frames(clip) / 100.0])


def chroma_and_logmel_frames(clip: np.ndarray) -> np.ndarray:
    """`(S,)` -> `(140, T)`: `chroma_frames`, then `logmel_frames` in units of 20 dB, so that both are of like size."""
    return np.concatenate([chroma_frames(clip), logmel_frames(clip) / 20.0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without librosa's two warnings about what is normal here: clips shorter than a window, and silence."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="n_fft=.* is too large for input signal", category=UserWarning
        )
        warnings.filterwarnings(
            "ignore", message="Trying to estimate tuning from empty", category=UserWarning
        )
        yield


def _register(
    name: str,
    summary: str,
    frames: Callable[[np.ndarray], np.ndarray],
    num_features: int,
    moments: bool,
    published_names: tuple[str, ...] = (),
) -> None:
    def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Backbone:
        if num_layers not in (None, 0):
            raise ValueError(f"{name} has layer 0 only, so it cannot be cut to num_layers={num_layers}")
        return Handcrafted(name, frames, num_features, moments)

    notes = ("Nothing to load: a fixed computation by librosa (ISC licence).",)
    BACKBONES.add(
        name,
        BackboneSpec(
            name,
            summary,
            build,
            published_parameters=0,
            recommended_layer=0,
            has_encoder=False,
            published_names=published_names,
            notes=notes,
            paper=PAPER if moments else "",
        ),
    )


_register(
    "chroma",
    "pitch-class energy and its changes, one 72-d vector per clip",
    chroma_frames,
    NUM_CHROMA,
    True,
    ("CHROMA",),
)
_register(
    "mfcc",
    "spectral envelope and its changes, one 120-d vector per clip",
    mfcc_frames,
    NUM_MFCC,
    True,
    ("MFCC",),
)
_register("chroma-frames", "pitch-class energy, 12-d at 43.07 Hz", chroma_frames, NUM_CHROMA, False)
_register(
    "logmel-frames", "log-mel spectrum in decibels, 128-d at 43.07 Hz", logmel_frames, NUM_MEL_BANDS, False
)
_register(
    "onset-frames",
    "rises of 24 mel bands around each frame, 168-d at 43.07 Hz",
    onset_frames,
    NUM_ONSET_BANDS * (2 * ONSET_CONTEXT_FRAMES + 1),
    False,
)
_register(
    "chroma-mfcc",
    "chroma and mfcc together, one 192-d vector per clip",
    chroma_and_mfcc_frames,
    NUM_CHROMA + NUM_MFCC,
    True,
)
_register(
    "chroma-logmel-frames",
    "chroma and log-mel spectrum together, 140-d at 43.07 Hz",
    chroma_and_logmel_frames,
    NUM_CHROMA + NUM_MEL_BANDS,
    False,
)
