"""A backbone with a head: windows of audio -> logits, and whole tracks -> answers.

Shape letters: `B` windows, `S` samples, `T` frames, `D` model width, `C` outputs, `N` windows of one track.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiation.audio import Waveform, load_audio, stream_audio
from audiation.backbones import Backbone
from audiation.heads import ProbeHead
from audiation.targets import Target

Stage = Literal["waveform", "stem", "pooled"]


@dataclass(frozen=True)
class HeadConfig:
    """The head of the PETL protocol: linear (D to D), dropout, ReLU, linear (protocols: PETL 5.1).

    hidden: whether there is the first map; without it the head is linear.
    dropout: in front of the ReLU, where it does what it would do behind it.
    """

    hidden: bool = True
    dropout: float = 0.5


class AdaptedModel(nn.Module):
    """Backbone, mean over time of one layer, head. The root that is trained, saved and asked.

    The head is counted nowhere as part of the method.

    Args:
        backbone: as `methods.inject` left it.
        target: what the outputs mean.
        layer: which hidden states the head reads; None: the last.
        crop_seconds: length of the windows it is trained on, and that a track is cut into for its answer. None:
            whole tracks.
        generator: of the head's initial weights; None: one with seed 0.

    Raises:
        ValueError: no such layer, or a target that asks for frames.
    """

    def __init__(
        self,
        backbone: Backbone,
        target: Target,
        *,
        layer: int | None = None,
        head: HeadConfig | None = None,
        crop_seconds: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if target.per_frame:
            raise ValueError(
                "adaptation answers questions about whole clips; this target asks for every frame"
            )
        self.head_config = head or HeadConfig()
        self.layer = backbone.num_layers if layer is None else backbone.resolve_layers([layer], None)[1]
        self.backbone, self.target, self.crop_seconds = backbone, target, crop_seconds
        self.head = ProbeHead(
            backbone.dim,
            target.num_outputs,
            backbone.dim if self.head_config.hidden else None,
            self.head_config.dropout if self.head_config.hidden else 0.0,
            input_dropout=False,
            generator=generator or torch.Generator().manual_seed(0),
        )
        device = next((t.device for t in [*backbone.parameters(), *backbone.buffers()]), torch.device("cpu"))
        self.head.to(device)

    def forward(self, inputs: Sequence[Tensor], stage: Stage = "waveform") -> Tensor:
        """Logits `(B, C)` of all windows, in order.

        inputs: groups of windows of one length each: waveforms `(B, S)`; or what the stem made of them,
            `(B, T, D)`; or pooled hidden states, `(B, 1, D)`.
        """
        return self.head(torch.cat([self.pool(x, stage) for x in inputs])[:, 0])

    def pool(self, x: Tensor, stage: Stage = "waveform") -> Tensor:
        """The vectors that the head reads, `(B, 1, D)` float32."""
        if stage == "pooled":
            return x
        run = self.backbone.encode if stage == "stem" else self.backbone
        return run(x, layers=[self.layer], reduce="mean").layers[self.layer]

    @property
    def device(self) -> torch.device:
        return self.head.output.weight.device


@dataclass(frozen=True, eq=False)
class TrackAnswer:
    """What a model says about one track.

    logits: `(C,)`, the windows combined by the rule of the target.
    window_logits: `(N, C)`.
    starts_seconds, durations_seconds: of the windows.
    """

    logits: Tensor
    window_logits: Tensor
    starts_seconds: tuple[float, ...]
    durations_seconds: tuple[float, ...]
    annotation: Any


@torch.inference_mode()
def answer_track(
    model: AdaptedModel, path: str | os.PathLike[str], *, batch_size: int = 4, precision: str = "fp32"
) -> TrackAnswer:
    """Decode a file, ask the model about each of its windows, and combine.

    Windows follow one another; a rest shorter than a window is dropped (PETL protocol), except where it is all there
    is: a file shorter than a window is one window of its own length. With windows, memory does not grow with the file.

    Args:
        model: in eval mode.
        batch_size: windows per forward pass.
        precision: "bf16" runs under autocast.

    Raises:
        AudioError: the file cannot be read, or is shorter than the backbone's minimum.
    """
    assert not model.training
    logits, starts, durations = [], [], []
    for batch in _batches(windows_of(model, path), batch_size):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = model([torch.stack([window.samples for window in batch]).to(model.device)])
        logits.append(out.float().cpu())
        starts += [window.start_seconds for window in batch]
        durations += [window.duration_seconds for window in batch]
    rows = torch.cat(logits)
    combined = model.target.combine(rows)
    return TrackAnswer(combined, rows, tuple(starts), tuple(durations), model.target.decode(combined))


def windows_of(model: AdaptedModel, path: str | os.PathLike[str]) -> Iterator[Waveform]:
    """The windows of a file that the model is asked about, one after another."""
    rate = model.backbone.sample_rate_hz
    least_seconds = model.backbone.min_samples / rate
    if model.crop_seconds is None:
        yield load_audio(path, rate, min_seconds=least_seconds)
        return
    num_samples = None
    for window in stream_audio(path, rate, window_seconds=model.crop_seconds, min_seconds=least_seconds):
        if num_samples is not None and len(window.samples) < num_samples:
            return  # the rest
        num_samples = len(window.samples)
        yield window


def _batches(windows: Iterator[Waveform], batch_size: int) -> Iterator[list[Waveform]]:
    while batch := list(itertools.islice(windows, batch_size)):
        yield batch
