"""A backbone with a head: windows of audio -> logits, and whole tracks -> answers.

Shape letters: `B` windows, `S` samples, `T` frames of the backbone or of the answer, `D` model width, `C` outputs,
`N` windows of one track.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.audio import AudioError, load_audio, stream_audio
from audiation.backbones import Backbone
from audiation.frames import FrameGrid, FrameOutputs, stitch
from audiation.heads import ProbeHead
from audiation.output_cache import pooled_states
from audiation.targets import ClipContext, Target, clip_target, frame_target
from audiation.windows import Window, WindowPolicy, stream_windows, window_policy

Stage = Literal["waveform", "stem", "pooled"]


@dataclass(frozen=True)
class HeadConfig:
    """The head of the PETL protocol: linear (D to D), dropout, ReLU, linear (protocols: PETL 5.1).

    hidden: whether there is the first map; without it the head is linear.
    dropout: in front of the ReLU, where it does what it would do behind it.
    size: outputs of the first map; None: D.
    """

    hidden: bool = True
    dropout: float = 0.5
    size: int | None = None


class AdaptedModel(nn.Module):
    """Backbone, one layer, head. The root that is trained, saved and asked.

    The head reads the mean over time, or, where the target answers per frame, every frame, pooled to the rate of the
    target. It is counted nowhere as part of the method.

    Args:
        backbone: as `methods.inject` left it.
        target: what the outputs mean.
        layer: which hidden states the head reads; None: the last.
        crop_seconds: length of the windows it is trained on, and that a track is cut into for its answer. None:
            whole tracks.
        policy: how tracks are cut into windows for their answer, and these combined; None: `default_policy`.
        generator: of the head's initial weights; None: one with seed 0.

    Raises:
        ValueError: no such layer, or a target that asks for frames of a backbone that gives one vector per clip.
    """

    def __init__(
        self,
        backbone: Backbone,
        target: Target,
        *,
        layer: int | None = None,
        head: HeadConfig | None = None,
        crop_seconds: float | None = None,
        policy: WindowPolicy | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.frames = frame_target(target)
        if self.frames is not None and backbone.frame_rate_hz is None:
            raise ValueError(
                f"{backbone.name} gives one vector per clip, and this question is about every frame. Use a backbone "
                "with frames, for example chroma-frames or logmel-frames."
            )
        self.head_config = head or HeadConfig()
        self.layer = backbone.num_layers if layer is None else backbone.resolve_layers([layer], None)[1]
        self.backbone, self.target, self.crop_seconds = backbone, target, crop_seconds
        self.policy = policy or default_policy(target)
        self.head = ProbeHead(
            backbone.dim,
            target.num_outputs,
            (self.head_config.size or backbone.dim) if self.head_config.hidden else None,
            self.head_config.dropout if self.head_config.hidden else 0.0,
            input_dropout=False,
            generator=generator or torch.Generator().manual_seed(0),
        )
        device = next((t.device for t in [*backbone.parameters(), *backbone.buffers()]), torch.device("cpu"))
        self.head.to(device)

    def forward(self, inputs: Sequence[Tensor], stage: Stage = "waveform") -> Tensor:
        """Logits of all windows, in order: `(B, C)`, or `(B, T, C)` where the target answers per frame; windows with
        fewer frames than the longest are padded at their end.

        inputs: groups of windows of one length each: waveforms `(B, S)`; or what the stem made of them,
            `(B, T, D)`; or pooled hidden states, `(B, 1, D)` or `(B, T, D)`.
        """
        pooled = [self.pool(x, stage) for x in inputs]
        if self.frames is None:
            return self.head(torch.cat(pooled)[:, 0])
        most = max(x.shape[1] for x in pooled)
        return self.head(torch.cat([F.pad(x, (0, 0, 0, most - x.shape[1])) for x in pooled]))

    def pool(self, x: Tensor, stage: Stage = "waveform") -> Tensor:
        """The vectors that the head reads, float32: `(B, 1, D)`, or `(B, T, D)` at the rate of the target."""
        if stage == "pooled":
            return x
        run = self.backbone.encode if stage == "stem" else self.backbone
        return pooled_states(run, x, self.layer, self.frames)

    def frame_grid(self, num_samples: int, start_seconds: float = 0.0) -> FrameGrid | None:
        """Where the outputs for a window of `num_samples` lie; None where the answer is about the whole clip."""
        if self.frames is None:
            return None
        assert self.backbone.frame_rate_hz is not None
        states = FrameGrid(
            self.backbone.num_frames(num_samples),
            self.backbone.frame_rate_hz,
            start_seconds + self.backbone.first_frame_seconds,
        )
        return states.pooled(self.frames.frame_rate_hz)

    @property
    def device(self) -> torch.device:
        return self.head.output.weight.device


@dataclass(frozen=True, eq=False)
class TrackAnswer:
    """What a model says about one track.

    logits: `(C,)`, the windows combined; or `(T, C)`, their frames stitched onto `grid`.
    window_logits: of each of the N windows, `(C,)` or `(T, C)`.
    starts_seconds, durations_seconds: of the windows.
    """

    logits: Tensor
    window_logits: tuple[Tensor, ...]
    starts_seconds: tuple[float, ...]
    durations_seconds: tuple[float, ...]
    annotation: Any
    grid: FrameGrid | None = None


@torch.inference_mode()
def answer_track(
    model: AdaptedModel,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 4,
    precision: str = "fp32",
    span_seconds: tuple[float, float] | None = None,
) -> TrackAnswer:
    """Decode a file, ask the model about each of its windows, and combine. Memory does not grow with the file, but
    for the outputs.

    Args:
        model: in eval mode.
        batch_size: windows per forward pass.
        precision: "bf16" runs under autocast.
        span_seconds: (start, end) of what is asked about; None: the whole file. Times of the answer count from there.

    Raises:
        AudioError: the file cannot be read, or is shorter than the backbone's minimum.
    """
    assert not model.training
    rate = model.backbone.sample_rate_hz
    outputs: list[Tensor] = []
    windows: list[Window] = []
    for batch in _batches(windows_of(model, path, span_seconds), batch_size):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = model([torch.stack([samples for _, samples in batch]).to(model.device)])
        outputs += out.float().cpu().unbind()
        windows += [window for window, _ in batch]
    if not windows:
        raise AudioError(path, f"no window is long enough for the rule '{model.policy.name}'")
    starts = tuple(window.start_sample / rate for window in windows)
    durations = tuple(window.num_samples / rate for window in windows)
    combined, grid = combine_windows(model, windows, outputs)
    annotation = model.target.decode(combined, ClipContext(grid))
    return TrackAnswer(combined, tuple(outputs), starts, durations, annotation, grid)


def default_policy(target: Target) -> WindowPolicy:
    """PETL's for one answer per clip; nothing of the track is left out where there is one per frame."""
    return window_policy("whole-track" if target.per_frame else "petl")


def combine_windows(
    model: AdaptedModel, windows: Sequence[Window], outputs: Sequence[Tensor]
) -> tuple[Tensor, FrameGrid | None]:
    """What `decode` takes for a whole track: `(C,)`, or `(T, C)` and the grid of its frames.

    outputs: of each window, `(C,)` or `(T, C)`; frames over zeros behind a track are dropped.
    """
    if model.frames is None:
        return clip_target(model.target).combine(torch.stack(list(outputs)), model.policy.aggregation), None
    rate = model.backbone.sample_rate_hz
    pieces = []
    for window, out in zip(windows, outputs, strict=True):
        grid = model.frame_grid(window.num_samples + window.num_zeros, window.start_sample / rate)
        assert grid is not None
        if not bool(torch.isfinite(out).all()):
            raise ValueError(
                "the outputs of a track hold NaN or infinite values, so there is no answer. Its audio or the "
                "weights are damaged, or training has diverged."
            )
        share = window.num_samples / (window.num_samples + window.num_zeros)
        heard = max(1, round(grid.num_frames * share))
        pieces.append(FrameOutputs(replace(grid, num_frames=heard), out[:heard]))
    if len(pieces) == 1:
        return pieces[0].outputs.double(), pieces[0].grid
    stitched = stitch(pieces)
    return stitched.outputs, stitched.grid


def windows_of(
    model: AdaptedModel,
    path: str | os.PathLike[str],
    span_seconds: tuple[float, float] | None = None,
) -> Iterator[tuple[Window, Tensor]]:
    """The windows of a file that the model is asked about, one after another, with their samples `(S,)`.

    A rest that is shorter than the backbone's minimum is dropped.
    """
    rate = model.backbone.sample_rate_hz
    least_seconds = model.backbone.min_samples / rate
    if span_seconds is not None:
        start, end = span_seconds
        blocks: Iterator[Tensor] = iter(
            [
                load_audio(
                    path, rate, start_seconds=start, duration_seconds=end - start, min_seconds=least_seconds
                ).samples
            ]
        )
    elif model.crop_seconds is None:
        blocks = iter([load_audio(path, rate, min_seconds=least_seconds).samples])
    else:
        streamed = stream_audio(path, rate, window_seconds=model.crop_seconds, min_seconds=least_seconds)
        blocks = (block.samples for block in streamed)
    if model.crop_seconds is None:
        samples = next(blocks)
        yield Window(0, len(samples)), samples
        return
    for window, samples in stream_windows(blocks, round(model.crop_seconds * rate), model.policy):
        if len(samples) >= model.backbone.min_samples:
            yield window, samples


def _batches(
    windows: Iterator[tuple[Window, Tensor]], batch_size: int
) -> Iterator[list[tuple[Window, Tensor]]]:
    """Neighbours of one length together, at most `batch_size`."""
    for _, same in itertools.groupby(windows, key=lambda window: len(window[1])):
        while batch := list(itertools.islice(same, batch_size)):
            yield batch
