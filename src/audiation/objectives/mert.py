"""MERT: predict an acoustic teacher's codes where frames are masked, and reconstruct a constant-Q transform there.

Li et al. 2024, "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training"; Yuan's thesis,
chapters 5 and 6 (see `backbones.mert.THESIS`); MERT spec, section 3.

Shape letters: `B` batch, `S` samples, `T` frames, `K` masked frames, `Q` streams of codes, `F` bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.objectives.base import OBJECTIVES, PretrainBatch, fresh_linear, share_of
from audiation.objectives.cqt_target import BINS_PER_OCTAVE, NUM_BINS, CqtTarget
from audiation.objectives.masked_codes import CodeStream, MaskedCodes, MaskedCodesObjective
from audiation.objectives.mixup import draw_mixup, mix
from audiation.objectives.quantisers import MOST_CODEBOOKS, MOST_CODES
from audiation.training import Loss

ENCODEC_RATE_HZ = 75.0
WHICH = ("all", "random")


@OBJECTIVES.register("mert")
@dataclass(frozen=True)
class Mert(MaskedCodes):
    """Choices besides those of `MaskedCodes`; the defaults are the recipe of MERT-v1-95M, on crops of 5 s.

    That of the 330M, on crops of 5.12 s: final_dim=128, conv_gradient=1, layer_drop=0, mixup_max_seconds=1.5, without
    dropout. The thesis on its stability, in fp16: with pre-norm blocks it crashed near step 50,000 with gradients
    clipped at 10, and some 40,000 steps after a restart with 1; with DeepNorm it collapsed near 20,000; with pre-norm
    blocks and relaxed attention it was stable beyond 100,000.

    Neither published recipe brings clips to zero mean and unit variance before the backbone, as the published
    preprocessors and this backbone do. With group norm that changes nothing but quiet clips.

    teacher: "encodec" (v1), or "kmeans" (v0): clusters of log-mel spectra and of chroma.
    codebooks: "all"; the number of one; or "random", one that is drawn for every micro-batch. Averages of the thesis:
        all 66.9, the last 57.6, the first 60.5, random 65.8. Streams of "kmeans" are 0, log-mel, and 1, chroma.
    num_codebooks, codebook_size: of EnCodec; eight of 1,024 at 6 kbps.
    logmel_clusters, chroma_clusters: of "kmeans".
    label_rate_hz: of the teacher. None: 75 Hz for EnCodec, for "kmeans" the frame rate of the backbone.
    cqt_weight: of the mean squared error of the reconstruction; 0: without. (Thesis: 1 is 67.3, 2 is 62.7, 5 is 64.1.)
    cqt_bins, cqt_bins_per_octave: see `CqtTarget`.
    mixup_probability, mixup_min_seconds, mixup_max_seconds: see `draw_mixup`; 0: none. It helps with EnCodec (66.9 to
        68.8) and harms with "kmeans" (67.3 to 65.2).
    """

    teacher: Literal["encodec", "kmeans"] = "encodec"
    codebooks: str = "all"
    num_codebooks: int = 8
    codebook_size: int = 1024
    logmel_clusters: int = 300
    chroma_clusters: int = 200
    label_rate_hz: float | None = None
    cqt_weight: float = 1.0
    cqt_bins: int = NUM_BINS
    cqt_bins_per_octave: int = BINS_PER_OCTAVE
    mixup_probability: float = 0.5
    mixup_min_seconds: float = 0.5
    mixup_max_seconds: float = 1.0

    name: ClassVar[str] = "mert"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in ("encodec", "kmeans"):
            raise ValueError(f"mert: teacher is 'encodec' or 'kmeans', got {self.teacher!r}")
        most = {"codebook_size": MOST_CODES, "logmel_clusters": MOST_CODES, "chroma_clusters": MOST_CODES}
        for name, limit in (most | {"num_codebooks": MOST_CODEBOOKS}).items():
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"mert: {name} is from 1 to {limit:,}, got {getattr(self, name):,}")
        self._refuse_unused()
        numbers = [str(i) for i in range(len(self._all_streams()))]
        if self.codebooks not in (*WHICH, *numbers):
            raise ValueError(
                f"mert: codebooks is 'all', 'random' or one of {', '.join(numbers)}, got {self.codebooks!r}"
            )
        if self.label_rate_hz is not None and not self.label_rate_hz > 0.0:
            raise ValueError(f"mert: label_rate_hz must be positive, got {self.label_rate_hz}")
        if not 0.0 <= self.cqt_weight < math.inf:
            raise ValueError(f"mert: cqt_weight must be 0 or a positive number, got {self.cqt_weight}")
        if not 0.0 <= self.mixup_probability <= 1.0:
            raise ValueError(f"mert: mixup_probability must be from 0 to 1, got {self.mixup_probability}")
        if not 0.0 < self.mixup_min_seconds <= self.mixup_max_seconds:
            raise ValueError(
                "mert: mixup needs 0 < mixup_min_seconds <= mixup_max_seconds, got "
                f"{self.mixup_min_seconds} and {self.mixup_max_seconds}"
            )

    @property
    def streams(self) -> tuple[CodeStream, ...]:
        """Those that have a head."""
        streams = self._all_streams()
        return streams if self.codebooks in WHICH else (streams[int(self.codebooks)],)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream.target for stream in self.streams))

    def build(self, backbone: Backbone, generator: torch.Generator | None = None) -> MertObjective:
        return MertObjective(backbone, self, generator or torch.Generator().manual_seed(0))

    def _refuse_unused(self) -> None:
        """What is set, and would be left unread."""
        needs = {
            "num_codebooks": (self.teacher == "encodec", "teacher=encodec"),
            "codebook_size": (self.teacher == "encodec", "teacher=encodec"),
            "logmel_clusters": (self.teacher == "kmeans", "teacher=kmeans"),
            "chroma_clusters": (self.teacher == "kmeans", "teacher=kmeans"),
            "cqt_bins": (self.cqt_weight != 0.0, "a cqt_weight that is not 0"),
            "cqt_bins_per_octave": (self.cqt_weight != 0.0, "a cqt_weight that is not 0"),
            "mixup_min_seconds": (self.mixup_probability != 0.0, "a mixup_probability that is not 0"),
            "mixup_max_seconds": (self.mixup_probability != 0.0, "a mixup_probability that is not 0"),
        }
        for name, (is_read, need) in needs.items():
            value = getattr(self, name)
            if not is_read and value != getattr(type(self), name):
                raise ValueError(f"mert: {name}={value} needs {need}. Set that, or leave {name} away.")

    def _all_streams(self) -> tuple[CodeStream, ...]:
        if self.teacher == "kmeans":
            clusters = {"logmel": self.logmel_clusters, "chroma": self.chroma_clusters}
            return tuple(CodeStream(f"{what}-km{k}", 0, 1, k, what) for what, k in clusters.items())
        books = range(self.num_codebooks)
        return tuple(CodeStream("encodec", i, len(books), self.codebook_size, str(i)) for i in books)


class Mixed(NamedTuple):
    """waveform: `(B, S)`. has_more: `(B,)` bool, clips that got something."""

    waveform: Tensor
    has_more: Tensor


class MertObjective(MaskedCodesObjective):
    """Heads over the streams of the teacher, and `cqt_head` from the encoder's output to the bins of `cqt`; see `Mert`.

    The transform and the codes are those of the clean crop; what the encoder hears has other clips on top.
    """

    settings: Mert
    cqt: CqtTarget | None
    cqt_head: nn.Linear | None

    def __init__(self, backbone: Backbone, settings: Mert, generator: torch.Generator) -> None:
        rate_hz = settings.label_rate_hz
        if rate_hz is None:
            rate_hz = ENCODEC_RATE_HZ if settings.teacher == "encodec" else backbone.frame_rate_hz or 0.0
        super().__init__(backbone, settings, settings.streams, rate_hz, generator)
        self.cqt = self.cqt_head = None
        if settings.cqt_weight:
            assert backbone.hop_samples is not None
            self.cqt = CqtTarget(
                backbone.sample_rate_hz,
                backbone.hop_samples,
                settings.cqt_bins,
                settings.cqt_bins_per_octave,
            )
            self.cqt_head = fresh_linear(backbone.dim, settings.cqt_bins, generator)

    def forward(self, backbone: Backbone, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        codes_QBT = self.codes(backbone, batch)
        masked_BT = self.draw_mask(codes_QBT.shape[1], codes_QBT.shape[2], generator)
        drawn = None
        if self.settings.codebooks == "random":
            drawn = int(torch.randint(len(self.streams), (), generator=generator, device=generator.device))
        mixed = self.mixed(backbone, batch.waveform, generator)
        return self.loss(backbone, batch.waveform, mixed, codes_QBT, masked_BT, drawn)

    def mixed(self, backbone: Backbone, waveform: Tensor, generator: torch.Generator) -> Mixed:
        """What the encoder hears of the crops."""
        settings, rate_hz = self.settings, backbone.sample_rate_hz
        draws = draw_mixup(
            len(waveform),
            waveform.shape[1],
            settings.mixup_probability,
            max(1, round(settings.mixup_min_seconds * rate_hz)),
            max(1, round(settings.mixup_max_seconds * rate_hz)),
            generator,
        )
        has_more = draws.num_segments > 0
        if len(waveform) < 2 or settings.mixup_probability == 0.0:
            return Mixed(waveform, has_more)
        return Mixed(mix(waveform, draws), has_more)

    def loss(
        self,
        backbone: Backbone,
        clean_BS: Tensor,
        mixed: Mixed,
        codes_QBT: Tensor,
        masked_BT: Tensor,
        drawn: int | None = None,
    ) -> Loss:
        """With these frames masked, `(B, T)` bool, and of the drawn stream only where one is."""
        heard = self.hear(backbone, mixed.waveform, masked_BT)
        codes = self.code_loss(heard.encoded, codes_QBT.permute(1, 2, 0)[masked_BT], drawn)
        # Mixup is asked for, and a batch of one has nothing to mix: counted, so that nobody takes it for a recipe.
        alone = self.settings.mixup_probability > 0.0 and len(clean_BS) < 2
        parts = codes.parts | {
            "mixup_share": share_of(mixed.has_more),
            "clips_without_pool": share_of(torch.full_like(mixed.has_more, alone)),
        }
        total = codes.sum
        if self.cqt is not None and self.cqt_head is not None:
            target_KF = self.cqt(clean_BS)[:, : masked_BT.shape[1]][masked_BT]
            error_KF = self.cqt_head(heard.encoded).float() - target_KF
            squared = error_KF.square().mean(1).sum()  # over frames, of the mean over bins
            total = total + self.settings.cqt_weight * squared
            with torch.no_grad():
                num_frames = max(1, len(target_KF))
                parts["cqt_mse"] = squared.detach() / num_frames
                deviation_KF = target_KF - target_KF.sum(0) / num_frames
                parts["cqt_target_std"] = (deviation_KF.square().sum(0) / num_frames).sqrt().mean()
        return self.finish(total, heard, masked_BT, parts)
