"""MusicHuBERT: predict k-means clusters of MFCC, or of a first model's features, where frames are masked.

Hsu et al. 2021, "HuBERT"; for music, chapter 4 of Yuan's thesis (see `backbones.mert.THESIS`); MERT spec, section 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from audiation.backbones import Backbone
from audiation.objectives.base import OBJECTIVES, PretrainBatch
from audiation.objectives.masked_codes import CodeStream, MaskedCodes, MaskedCodesObjective
from audiation.objectives.quantisers import MOST_CODES
from audiation.training import Loss

MFCC_RATE_HZ = 100.0


@OBJECTIVES.register("hubert")
@dataclass(frozen=True)
class Hubert(MaskedCodes):
    """Choices besides those of `MaskedCodes`; the defaults are those of HuBERT base, which the thesis does not list.

    teacher: the stored targets, whose name ends with the number of clusters. The thesis' runs and their averages over
        the tasks of its table 4.2: "mfcc39-km500" 62.4, "mfcc60-km500" 65.0, "mfcc39-km2000" 64.4 (the one that it
        goes on with), and, as a second iteration, 2,000 clusters of features of the first model, 63.8. Which layer
        these were from is not stated; that of the original HuBERT is "layer6-km2000".
    label_rate_hz: of the teacher. None: 100 Hz for MFCC, else the frame rate of the backbone, of which layers are.
    """

    teacher: str = "mfcc39-km500"
    label_rate_hz: float | None = None
    mask_length: int = 10
    final_dim: int = 256

    name: ClassVar[str] = "hubert"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.num_codes <= MOST_CODES:
            raise ValueError(
                f"hubert: the name of the teacher must end with its clusters, from 1 to {MOST_CODES:,}, like "
                f"'mfcc39-km500', got {self.teacher!r}"
            )
        if self.label_rate_hz is not None and not self.label_rate_hz > 0.0:
            raise ValueError(f"hubert: label_rate_hz must be positive, got {self.label_rate_hz}")

    @property
    def num_codes(self) -> int:
        """Clusters of the teacher; 0 where its name does not say."""
        found = re.search(r"-km(\d+)$", self.teacher)
        return int(found[1]) if found else 0

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.teacher,)

    def build(self, backbone: Backbone, generator: torch.Generator | None = None) -> HubertObjective:
        return HubertObjective(backbone, self, generator or torch.Generator().manual_seed(0))


class HubertObjective(MaskedCodesObjective):
    """One head over the clusters of one teacher; see `Hubert`."""

    def __init__(self, backbone: Backbone, settings: Hubert, generator: torch.Generator) -> None:
        rate_hz = settings.label_rate_hz
        if rate_hz is None:
            rate_hz = MFCC_RATE_HZ if settings.teacher.startswith("mfcc") else backbone.frame_rate_hz or 0.0
        stream = CodeStream(settings.teacher, 0, 1, settings.num_codes, settings.teacher)
        super().__init__(backbone, settings, [stream], rate_hz, generator)

    def forward(self, backbone: Backbone, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        codes_QBT = self.codes(backbone, batch)
        masked_BT = self.draw_mask(codes_QBT.shape[1], codes_QBT.shape[2], generator)
        heard = self.hear(backbone, batch.waveform, masked_BT)
        codes = self.code_loss(heard.encoded, codes_QBT.permute(1, 2, 0)[masked_BT])
        return self.finish(codes.sum, heard, masked_BT, codes.parts)
