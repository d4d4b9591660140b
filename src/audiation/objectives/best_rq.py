"""BEST-RQ: predict random-projection codes of what was masked (Chiu et al. 2022; MusicFM paper, sections 2 and 3.1).

Shape letters: `B` batch, `S` samples, `M` mel bands, `W` windows, `T` frames, `D` model width, `K` masked frames, `Q`
codebooks, `C` codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.backbones import Backbone
from audiation.backbones.base import SpectrumStem
from audiation.backbones.musicfm import MSD
from audiation.features import LogMel
from audiation.objectives.base import (
    OBJECTIVES,
    Objective,
    PretrainBatch,
    code_statistics,
    encode,
    fresh_linear,
    share_of,
)
from audiation.objectives.mel_rvq import MelRvq
from audiation.objectives.quantisers import MOST_CODEBOOKS, MOST_CODES, SEED, RandomProjectionQuantiser
from audiation.training import Loss

FFT_SAMPLES, NUM_MEL_BANDS = 2048, 128
MOST_DIMS = 4096
LARGEST_SEED = 2**32 - 1 - MOST_CODEBOOKS  # k-means takes 32 bits
LEAST_STD = 1e-3  # of a band that never changes
QUANTISERS: dict[str, type[RandomProjectionQuantiser] | type[MelRvq]] = {
    "random-projection": RandomProjectionQuantiser,
    "mel-rvq": MelRvq,
}


@OBJECTIVES.register("best_rq")
@dataclass(frozen=True)
class BestRq:
    """Masked windows of noise; predict random-projection codes of their clean log-mel spectrum.

    codebook_size: codes per codebook. The released MusicFM has 4,096, its paper says 8,192.
    num_codebooks: each has a head of its own; the loss is the mean over them.
    codebook_dim: of projections and codes.
    seed: of projections and codebooks; the i-th is drawn from seed + i.
    window_seconds, mask_probability: windows that do not overlap, each masked with this probability. What is left at
        the end of a crop is never masked.
    noise_std: of the noise that fills masked windows; of the waveform, or of normalised mel frames.
    mask_at: "waveform" (published): spectra at the edges of a window mix music and noise. "mel": the spectrum is
        computed once for target and input, and whole mel frames are replaced; only where the stem takes a spectrum.
    quantiser: "random-projection" (published), or "mel-rvq", which `prepare` fits to the corpus (MuQ, with
        codebook_size=1024 and num_codebooks=8).
    standardise: what the quantiser hears: "corpus" (published): one mean and deviation for all bands, so that the slope
        of spectra leaves most codes unused. "bands": mean 0 and deviation 1 of every band, which `prepare` measures.
    codes: "checkpoint": go on with quantiser and head of the MusicFM checkpoint that the weights are from.
    """

    codebook_size: int = 4096
    num_codebooks: int = 1
    codebook_dim: int = 16
    seed: int = SEED
    window_seconds: float = 0.4
    mask_probability: float = 0.6
    noise_std: float = 0.1
    mask_at: Literal["waveform", "mel"] = "waveform"
    quantiser: Literal["random-projection", "mel-rvq"] = "random-projection"
    codes: Literal["fresh", "checkpoint"] = "fresh"
    standardise: Literal["corpus", "bands"] = "corpus"

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_probability <= 1.0:
            raise ValueError(
                f"best_rq: mask_probability must be over 0 and at most 1, got {self.mask_probability}"
            )
        if not 0.0 < self.window_seconds < math.inf or not 0.0 <= self.noise_std < math.inf:
            raise ValueError(
                f"best_rq: window_seconds must be positive and noise_std not negative, got {self.window_seconds} and "
                f"{self.noise_std}"
            )
        if self.quantiser not in QUANTISERS:
            raise ValueError(f"best_rq: quantiser is one of {', '.join(QUANTISERS)}, got {self.quantiser!r}")
        if not 2 <= self.codebook_size <= MOST_CODES or not 1 <= self.num_codebooks <= MOST_CODEBOOKS:
            raise ValueError(
                f"best_rq: codebook_size is from 2 to {MOST_CODES:,} and num_codebooks from 1 to {MOST_CODEBOOKS}, got "
                f"{self.codebook_size:,} and {self.num_codebooks:,}"
            )
        if not 1 <= self.codebook_dim <= MOST_DIMS or not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(
                f"best_rq: codebook_dim is from 1 to {MOST_DIMS:,} and seed from 0 to {LARGEST_SEED:,}, got "
                f"{self.codebook_dim:,} and {self.seed:,}"
            )
        if self.standardise not in ("corpus", "bands"):
            raise ValueError(f"best_rq: standardise is 'corpus' or 'bands', got {self.standardise!r}")
        if self.codes not in ("fresh", "checkpoint"):
            raise ValueError(f"best_rq: codes is 'fresh' or 'checkpoint', got {self.codes!r}")
        own = (self.quantiser, self.standardise, self.seed, self.num_codebooks)
        if self.codes == "checkpoint" and own != ("random-projection", "corpus", SEED, 1):
            raise ValueError(
                "best_rq:codes=checkpoint takes quantiser and head of a published checkpoint, so quantiser, "
                "standardise, seed and num_codebooks cannot be chosen as well"
            )
        if self.mask_at not in ("waveform", "mel"):
            raise ValueError(f"best_rq: mask_at is 'waveform' or 'mel', got {self.mask_at!r}")

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    def build(self, backbone: Backbone, generator: torch.Generator | None = None) -> BestRqObjective:
        return BestRqObjective(backbone, self, generator or torch.Generator().manual_seed(0))


class Masked(NamedTuple):
    """windows: `(B, W)` bool. frames: `(B, T)` bool, the frames that lie in masked windows."""

    windows: Tensor
    frames: Tensor


class BestRqObjective(Objective):
    """`head` predicts the codes of `quantiser` at masked frames; see `BestRq` and MusicFM spec (c), (d).

    The quantiser hears the backbone's own normalised spectrum where its stem makes one (`stem.features`), as many mel
    frames stacked as make a frame; else a log-mel spectrum with one frame per frame of the backbone.
    """

    band_mean: Tensor
    band_std: Tensor

    def __init__(self, backbone: Backbone, settings: BestRq, generator: torch.Generator) -> None:
        super().__init__()
        if backbone.encoder is None or backbone.hop_samples is None:
            raise ValueError(
                f"best_rq masks frames before an encoder, and '{backbone.name}' has none. Take a backbone with an "
                "encoder, like musicfm-mini."
            )
        self.settings = settings
        window = settings.window_seconds * backbone.sample_rate_hz
        self.window_frames = round(window / backbone.hop_samples)
        self.window_samples = self.window_frames * backbone.hop_samples
        if self.window_frames < 1 or abs(self.window_samples - window) > 0.5:
            raise ValueError(
                f"best_rq: windows of {settings.window_seconds:g} s are {window / backbone.hop_samples:.2f} frames of "
                f"'{backbone.name}'; they must be a whole number"
            )
        stem = backbone.stem if isinstance(backbone.stem, SpectrumStem) else None
        if settings.mask_at == "mel" and stem is None:
            raise ValueError(
                f"best_rq:mask_at=mel needs a stem that takes a spectrum; '{backbone.name}' has none"
            )
        self.mel: LogMel | None = None
        if stem is None:  # whose stem makes no spectrum
            self.mel = LogMel(backbone.sample_rate_hz, FFT_SAMPLES, backbone.hop_samples, NUM_MEL_BANDS)
        spectrum = self.mel if stem is None else stem.mel
        assert spectrum is not None
        self.stacked_frames = backbone.hop_samples // spectrum.hop_samples
        self.quantiser: RandomProjectionQuantiser | MelRvq = QUANTISERS[settings.quantiser](
            self.stacked_frames * spectrum.num_bands,
            settings.codebook_size,
            settings.num_codebooks,
            settings.codebook_dim,
            settings.seed,
        )
        self.register_buffer("band_mean", torch.zeros(spectrum.num_bands))
        self.register_buffer("band_std", torch.ones(spectrum.num_bands))
        self.head = fresh_linear(backbone.dim, settings.num_codebooks * settings.codebook_size, generator)

    def forward(self, backbone: Backbone, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        clean_BMT = self.spectrum(backbone, batch.waveform)
        tokens_QBT = self.tokens(clean_BMT)
        num_frames = backbone.num_frames(batch.waveform.shape[1])
        masked = self.draw_mask(batch.waveform, min(num_frames, tokens_QBT.shape[-1]), num_frames, generator)
        projected = self._project(backbone, batch.waveform, clean_BMT, masked, generator)
        x_KD = encode(backbone, projected)[masked.frames]
        logits = self.head(x_KD).float().unflatten(-1, (self.quantiser.num_codebooks, -1))  # (K, Q, C)
        targets_KQ = tokens_QBT[..., :num_frames].permute(1, 2, 0)[masked.frames[:, : tokens_QBT.shape[-1]]]
        return self._loss(logits, targets_KQ, masked)

    def check_crops(self, crop_seconds: float, sample_rate_hz: int) -> None:
        if crop_seconds * sample_rate_hz < self.window_samples:
            raise ValueError(
                f"crops of {crop_seconds:g} s hold no window of {self.window_samples / sample_rate_hz:g} s to be "
                "masked. Take longer crops."
            )

    def prepare(self, backbone: Backbone, crops: Iterable[Tensor]) -> None:
        """Measure the bands, or fit a quantiser that is fitted to the corpus, on crops of it, each `(B, S)`."""
        if self.settings.standardise == "corpus" and not isinstance(self.quantiser, MelRvq):
            return
        spectra = [self.spectrum(backbone, crop) for crop in crops]
        if self.settings.standardise == "bands":
            frames = torch.cat([spectrum.transpose(1, 2).flatten(0, 1) for spectrum in spectra])
            self.band_mean.copy_(frames.mean(0))
            self.band_std.copy_(frames.std(0).clamp(min=LEAST_STD))
        if isinstance(self.quantiser, MelRvq):
            self.quantiser.fit(
                torch.cat([self.stacked(spectrum).flatten(0, 1).cpu() for spectrum in spectra])
            )

    def take_over(self, tensors: Mapping[str, Tensor]) -> None:
        """Quantiser and head of an official MusicFM checkpoint, under its names.

        Raises:
            ValueError: it has none, or of other sizes than the settings.
        """
        stored = RandomProjectionQuantiser.from_published(tensors)
        named = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        head = {part: named.get(f"linear.{part}") for part in ("weight", "bias")}
        for what, ours, theirs in (
            ("codebooks", self.quantiser.codebooks, stored.codebooks),
            ("head", self.head.weight, head["weight"]),
            ("bias of the head", self.head.bias, head["bias"]),
        ):
            if theirs is None or theirs.shape != ours.shape:
                found = "are not there" if theirs is None else f"have the shape {tuple(theirs.shape)}"
                raise ValueError(
                    f"best_rq: {what} of the checkpoint {found}, the settings ask for {tuple(ours.shape)}"
                )
        self.quantiser = stored
        with torch.no_grad():
            self.head.load_state_dict(
                {part: tensor.float() for part, tensor in head.items() if tensor is not None}
            )

    def spectrum(self, backbone: Backbone, waveform: Tensor) -> Tensor:
        """`(B, S)` -> `(B, M, T of the spectrum)` float32, normalised."""
        with torch.no_grad():
            if self.mel is None:
                assert isinstance(backbone.stem, SpectrumStem)
                return backbone.stem.features(waveform)
            # A backbone on waveforms has no statistics of its own: those that MusicFM was published with (spec (a)).
            return (self.mel(waveform) - MSD.mean_db) / MSD.std_db

    def tokens(self, spectrum_BMT: Tensor) -> Tensor:
        """`(Q, B, T)` int64: code of every frame that is whole."""
        return self.quantiser(self.stacked(spectrum_BMT))

    def stacked(self, spectrum_BMT: Tensor) -> Tensor:
        """`(B, T, stacked_frames * M)`, mel frame after mel frame."""
        whole = spectrum_BMT.shape[-1] // self.stacked_frames * self.stacked_frames
        frames_BTM = (spectrum_BMT[..., :whole].transpose(1, 2) - self.band_mean) / self.band_std
        return frames_BTM.unflatten(1, (-1, self.stacked_frames)).flatten(2)

    def draw_mask(
        self, waveform: Tensor, num_targets: int, num_frames: int, generator: torch.Generator
    ) -> Masked:
        """Which windows are masked, each by itself, and which frames lie in them and have a target."""
        batch = len(waveform)
        num_windows = waveform.shape[1] // self.window_samples
        chance = torch.rand(batch, num_windows, generator=generator, device=waveform.device)
        windows = chance < self.settings.mask_probability
        frames = windows.repeat_interleave(self.window_frames, dim=1)[:, :num_targets]
        return Masked(windows, F.pad(frames, (0, num_frames - frames.shape[1])))

    def _project(
        self,
        backbone: Backbone,
        waveform: Tensor,
        clean_BMT: Tensor,
        masked: Masked,
        generator: torch.Generator,
    ) -> Tensor:
        """What the encoder takes, with noise in masked windows."""
        if self.settings.mask_at == "mel":
            per_window = self.window_frames * self.stacked_frames
            noisy = _filled(clean_BMT, masked.windows, per_window, self.settings.noise_std, generator)
            assert isinstance(backbone.stem, SpectrumStem)
            return backbone.stem.project(noisy)
        noisy = _filled(waveform, masked.windows, self.window_samples, self.settings.noise_std, generator)
        return backbone.project(noisy)

    def _loss(self, logits_KQC: Tensor, targets_KQ: Tensor, masked: Masked) -> Loss:
        num_codebooks = self.quantiser.num_codebooks
        total = (
            F.cross_entropy(logits_KQC.flatten(0, 1), targets_KQ.flatten(), reduction="sum") / num_codebooks
        )
        with torch.no_grad():
            count = masked.frames.sum()
            guesses = logits_KQC.argmax(-1)
            hits = (guesses == targets_KQ).float().sum() / (num_codebooks * count.clamp(min=1))
            perplexity, used = code_statistics(targets_KQ[:, 0], self.quantiser.num_codes)
            guessed, _ = code_statistics(guesses[:, 0], self.quantiser.num_codes)
            parts = {
                "masked_accuracy": hits,
                "target_perplexity": perplexity,
                "targets_used": used,
                "prediction_perplexity": guessed,
                "masked_fraction": share_of(masked.frames),
            }
        return Loss(total, count, parts)


def _filled(x: Tensor, windows_BW: Tensor, per_window: int, std: float, generator: torch.Generator) -> Tensor:
    """`(B, ..., N)` with N(0, std) in place of masked windows of its last axis.

    One number is drawn per masked sample, clip after clip, in one vector, as the published code does it.
    """
    covered = windows_BW.repeat_interleave(per_window, dim=1)
    covered = F.pad(covered, (0, x.shape[-1] - covered.shape[1]))
    covered = covered.view(len(x), *[1] * (x.ndim - 2), -1).expand_as(x)
    noise = torch.randn(int(covered.sum()), generator=generator, device=x.device) * std
    return x.masked_scatter(covered, noise.to(x.dtype))
