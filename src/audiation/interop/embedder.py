"""Waveforms of any length and rate -> vectors of one layer of one backbone: what every benchmark's interface asks for.

Shape letters: `B` clips, `S` samples, `T` frames, `D` model width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import BACKBONES
from audiation.choices import parse_choices
from audiation.inference import ChunkPolicy, run_clip
from audiation.loading import load_backbone
from audiation.own_backbones import MARK, is_own_backbone

CHUNKS_AT_ONCE = 4


@dataclass(frozen=True)
class Choices:
    """What decides an embedding beside the backbone's name.

    layer: None: the model's recommended one, else the last.
    weights, num_layers, precision, seed: as in `load_backbone`.
    """

    layer: int | None = None
    weights: str | None = None
    num_layers: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0


@dataclass(frozen=True)
class Frames:
    """Vectors `(B, T, D)` float32, and the times of their centres `(T,)` in seconds."""

    vectors: Tensor
    times_seconds: Tensor


class ClipEmbedder(nn.Module):
    """A frozen backbone, one of its layers, and a sample rate.

    Clips longer than what the model was trained on are cut and stitched as everywhere (`inference.run_clip`); models
    that give one vector per clip give the mean over windows of that length. Clips that are shorter than `min_samples`
    are continued with silence.

    Args:
        text: "NAME" or "NAME:field=value,field=value" with the fields of `Choices`, like "musicfm-msd:layer=7".
            NAME may be "path/to/file.py:name", which executes that file.
        sample_rate_hz: of the waveforms; None: the backbone's own. Others are resampled.

    Raises:
        UnknownNameError: no such backbone.
        ValueError: a field that there is not, or a layer that the backbone does not have; all that `load_backbone`
            refuses.
    """

    def __init__(self, text: str, sample_rate_hz: int | None = None) -> None:
        super().__init__()
        name, _, chosen = _split(text)
        choices = Choices(**parse_choices(Choices, chosen, f"'{text}'"))
        self.backbone = load_backbone(
            name,
            choices.weights,
            num_layers=choices.num_layers,
            seed=choices.seed,
            precision=choices.precision,
        ).requires_grad_(False)
        recommended, depth = BACKBONES[name].recommended_layer, self.backbone.num_layers
        layer = choices.layer
        if layer is None:
            layer = recommended if recommended is not None and recommended <= depth else depth
        self.backbone.resolve_layers([layer], None)
        self.name, self.choices, self.layer = name, dataclasses.replace(choices, layer=layer), layer
        self.sample_rate_hz = sample_rate_hz or self.backbone.sample_rate_hz

    @property
    def dim(self) -> int:
        return self.backbone.dim

    @torch.no_grad()
    def scene(self, waveform_BS: Tensor, sample_rate_hz: int | None = None) -> Tensor:
        """The mean over each clip, `(B, D)` float32, on the waveform's device.

        sample_rate_hz: of this waveform; None: that of the embedder.
        """
        x = self._prepared(waveform_BS, sample_rate_hz)
        backbone = self.backbone
        if backbone.hop_samples is None and backbone.max_seconds is not None:
            window = max(round(backbone.max_seconds * backbone.sample_rate_hz), backbone.min_samples)
            pieces = [p for p in x.split(window, dim=1) if p.shape[1] >= backbone.min_samples]
        else:
            pieces = [x]
        means = [
            run_clip(
                backbone, p, ChunkPolicy.of(backbone), [self.layer], reduce="mean", batch_size=CHUNKS_AT_ONCE
            ).layers[self.layer][:, 0]
            for p in pieces
        ]
        return torch.stack(means).mean(0).to(waveform_BS.device)

    @torch.no_grad()
    def frames(self, waveform_BS: Tensor) -> Frames:
        """Every frame of each clip that is centred within it.

        Raises:
            ValueError: the backbone gives one vector per clip.
        """
        self.check_frames()
        x = self._prepared(waveform_BS)
        states = run_clip(
            self.backbone, x, ChunkPolicy.of(self.backbone), [self.layer], batch_size=CHUNKS_AT_ONCE
        )
        times = states.times_seconds
        within = max(1, int((times <= waveform_BS.shape[1] / self.sample_rate_hz).sum()))
        return Frames(states.layers[self.layer][:, :within].to(waveform_BS.device), times[:within])

    def check_frames(self) -> None:
        """ValueError for a backbone that gives one vector per clip."""
        if self.backbone.frame_rate_hz is None:
            able = ", ".join(n for n in BACKBONES if BACKBONES[n].has_encoder or n.endswith("-frames"))
            raise ValueError(f"'{self.name}' gives one vector per clip and no frames. Use one of: {able}.")

    def _prepared(self, waveform_BS: Tensor, sample_rate_hz: int | None = None) -> Tensor:
        """`(B, S)` at the backbone's rate, at least `min_samples` long."""
        if waveform_BS.ndim != 2 or not waveform_BS.is_floating_point():
            raise ValueError(
                f"audio is a float tensor (clips, samples), got {tuple(waveform_BS.shape)} {waveform_BS.dtype}"
            )
        rate = sample_rate_hz or self.sample_rate_hz
        x = _resampled(waveform_BS.float(), rate, self.backbone.sample_rate_hz)
        return F.pad(x, (0, max(0, self.backbone.min_samples - x.shape[1])))


def _split(text: str) -> tuple[str, str, str]:
    """Name, colon, choices; the name of an own backbone has a colon of its own."""
    if not is_own_backbone(text):
        return text.partition(":")
    path, mark, rest = text.rpartition(MARK)
    name, colon, chosen = rest.partition(":")
    return f"{path}{mark}{name}", colon, chosen


def _resampled(x_BS: Tensor, rate_in_hz: int, rate_out_hz: int) -> Tensor:
    if rate_in_hz == rate_out_hz:
        return x_BS
    clips = [soxr.resample(clip, rate_in_hz, rate_out_hz) for clip in x_BS.cpu().numpy()]
    return torch.stack([torch.from_numpy(clip) for clip in clips]).to(x_BS.device)
