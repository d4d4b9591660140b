"""Every backbone that has frames as an X-ARES audio encoder.

X-ARES makes the encoder itself, from a Python file whose class ends with "Encoder" and takes no arguments:

    from audiation.interop.xares import XaresEncoder

    class MusicFmEncoder(XaresEncoder):
        model = "musicfm-msd:layer=7"
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from audiation.interop.embedder import ClipEmbedder


class XaresEncoder(ClipEmbedder):
    """Waveform `(B, S)` at `sampling_rate` -> frames `(B, T, D)` float32.

    sampling_rate: in Hz, the backbone's. output_dim: D. hop_size_in_ms: between frames.

    Args:
        model: the text that names a model (`ClipEmbedder`); None: the attribute `model` of a subclass.

    Raises:
        ValueError: no model is named, or a backbone that gives one vector per clip; what `ClipEmbedder` refuses.
    """

    model: ClassVar[str] = ""

    def __init__(self, model: str | None = None) -> None:
        text = type(self).model if model is None else model
        if not text:
            raise ValueError(
                "say which model: XaresEncoder('musicfm-msd:layer=7'), or a subclass with model = 'musicfm-msd:layer=7'"
            )
        super().__init__(text)
        self.check_frames()
        assert self.backbone.frame_rate_hz is not None
        self.sampling_rate, self.output_dim = self.backbone.sample_rate_hz, self.dim
        self.hop_size_in_ms = 1000.0 / self.backbone.frame_rate_hz

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """`(B, S)`, or `(S,)` for one clip -> `(B, T, D)`. Clips that were padded with silence stay padded."""
        return self.frames(audio[None] if audio.ndim == 1 else audio).vectors
