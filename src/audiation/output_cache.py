"""What is frozen is computed once: outputs of a stem, or pooled hidden states, kept for the epochs to come.

An entry belongs to a unit: a window of a recording, or a whole recording out of which windows are cut. It is computed
one unit at a time, so that its bits do not depend on what it shared a batch with, and a resumed run gets the same.

Shape letters: `S` samples, `T` frames, `D` model width, `B` windows.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from audiation.audio import AudioError, load_audio
from audiation.backbones import Backbone
from audiation.backbones.base import HiddenStates, LocalStem
from audiation.frames import FrameGrid, pool_frames
from audiation.inference import ChunkPolicy, run_clip
from audiation.output_table import OutputTable
from audiation.targets import FrameTarget

CachedStage = Literal["stem", "pooled"]
Crops = Literal["fixed", "random"]
PIECE_SECONDS = 30.0  # of a whole recording that a stem sees at once


def pooled_states(
    run: Callable[..., HiddenStates], x: Tensor, layer: int, frames: FrameTarget | None
) -> Tensor:
    """What a head reads of a layer: its mean over time, `(B, 1, D)`, or its frames at the rate of a frame target,
    `(B, T, D)`, without learned prompts; float32.

    run: a backbone, or its `encode`; x: what that takes.
    """
    if frames is None:
        if (
            isinstance(run, Backbone)
            and run.adapted_with is not None
            and not run.adapted_with.trains_backbone
        ):
            # Long clips in pieces, as features are extracted: what was trained on these is asked the same.
            return run_clip(run, x, ChunkPolicy.of(run), [layer], reduce="mean").layers[layer]
        return run(x, layers=[layer], reduce="mean").layers[layer]
    states = run(x, layers=[layer])
    assert states.frame_rate_hz is not None
    frames_BTD = states.layers[layer][:, states.num_prompts :].float()
    grid = FrameGrid(frames_BTD.shape[1], states.frame_rate_hz, states.first_frame_seconds)
    return pool_frames(frames_BTD, grid.pooled(frames.frame_rate_hz).num_frames)


@dataclass(frozen=True)
class Clip:
    """Samples `[start_sample, start_sample + num_samples)` of a recording at the backbone's rate, of which the last
    `num_zeros` are not the recording's but silence."""

    path: Path
    content_hash: str
    start_sample: int
    num_samples: int
    num_zeros: int = 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """Windows with what is needed for their outputs, decoded or looked up."""

    clips: tuple[_PreparedClip, ...]


@dataclass(frozen=True, eq=False)
class _PreparedClip:
    """unit: name of the entry; None where none is kept. stored: its output, if it is there. samples: of the unit,
    `(S,)`, where it has to be computed. ends: of a window that is cut out of its recording: samples of its two ends.
    """

    clip: Clip
    unit: str | None
    stored: Tensor | None
    samples: Tensor | None
    ends: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class CacheStats:
    """hits, misses: windows whose unit was at hand, and those whose unit was computed.

    num_units, num_bytes: in memory. refused: units that were not kept there for want of room.
    """

    hits: int
    misses: int
    num_units: int
    num_bytes: int
    refused: int


@dataclass(frozen=True, eq=False)
class CachePlan:
    """cache: None where nothing can be kept. training_crops: how windows of the training are taken out of it; None
    where it serves validation only. sentence: what is kept of the training, or why nothing."""

    cache: OutputCache | None
    training_crops: Crops | None
    sentence: str


def cache_plan(
    backbone: Backbone,
    *,
    layer: int,
    frames: FrameTarget | None = None,
    crops: Crops,
    frozen_mode: str,
    dropout: bool | None,
    precision: str,
    max_bytes: int,
    directory: Path | None = None,
    max_disk_bytes: int = 0,
    recordings: Iterable[tuple[str, int]] = (),
) -> CachePlan:
    """What of an adapted backbone can be computed once, under these choices of the training.

    Args:
        layer: which hidden states the head reads. frames: the target, where it reads every frame.
        crops: whether windows are from a fixed set per recording, or lie anywhere.
        frozen_mode, dropout: as in `methods.set_modes`.
        precision: "bf16": under autocast.
        max_bytes, max_disk_bytes: bounds, in memory and in `directory`.
        recordings: (content hash, number of samples) of all, in order. With random crops those that fit are kept.
    """
    method, name = backbone.adapted_with, backbone.name
    if max_bytes <= 0 and (directory is None or max_disk_bytes <= 0):
        return CachePlan(None, None, "nothing of the frozen part is kept: cache_gib is 0")
    if method.trains_stem:
        return CachePlan(None, None, "nothing is kept: the whole backbone is trained")
    if frozen_mode != "eval" or dropout:
        what = "dropout is active in" if dropout else f"frozen_mode '{frozen_mode}' changes"
        return CachePlan(None, None, f"nothing is kept: {what} the frozen part from step to step")
    local = backbone.local_stem
    only_head = not method.trains_backbone and (crops == "fixed" or local is None)
    cache = OutputCache(
        backbone,
        "pooled" if only_head else "stem",
        layer=layer,
        frames=frames,
        precision=precision,
        max_bytes=max_bytes,
        directory=directory,
        max_disk_bytes=max_disk_bytes,
    )
    if crops == "random" and local is None:
        return CachePlan(
            cache,
            None,
            f"nothing of the training is kept: the stem of {name} sees the whole window, and windows are random "
            "(crops=fixed would let it be kept)",
        )
    if crops == "random":
        assert local is not None
        admitted = cache.admit(recordings)
        sentence = (
            f"the stem's output is kept per recording ({admitted.num_kept} of {admitted.num_given} fit), and cropped "
            f"at multiples of {local.step_samples} samples"
        )
    elif only_head:
        what = f"pooled layer {layer} is" if frames is None else f"frames of layer {layer} are"
        sentence = f"{what} kept per window: only the head is trained"
    else:
        sentence = "the stem's output is kept per window"
    return CachePlan(cache, crops, sentence)


@dataclass(frozen=True)
class Admitted:
    num_kept: int
    num_given: int


class OutputCache:
    """Outputs of the frozen part of a backbone, by weights, stage, layer, precision and unit.

    `prepare` may run in another thread than `outputs`. In memory what comes first is kept until `max_bytes` are full:
    epochs visit everything in turn, so whatever an eviction took would be missed before what it made room for is
    used again.

    Args:
        stage: "stem": what `backbone.project` gives; "pooled": what a head reads, see `pooled_states`.
        frames: the target, where the head reads every frame.
        precision: "bf16" computes under autocast, and keeps what that gives.
        directory: entries are kept there as well, for runs to come, up to `max_disk_bytes`.

    Raises:
        ValueError: what would be kept changes while the method trains; or it is to be kept on disk, and nothing says
            by which weights it was computed.
        OutputTableError: a damaged table in `directory`.
    """

    def __init__(
        self,
        backbone: Backbone,
        stage: CachedStage,
        *,
        layer: int,
        frames: FrameTarget | None = None,
        precision: str = "fp32",
        max_bytes: int,
        directory: Path | None = None,
        max_disk_bytes: int = 0,
    ) -> None:
        method = backbone.adapted_with
        if method is not None and (method.trains_stem or (stage == "pooled" and method.trains_backbone)):
            raise ValueError(
                f"what the '{stage}' of {backbone.name} gives changes while {method} trains it, so it cannot be kept"
            )
        if directory is not None and backbone.weights_hash == "none":
            raise ValueError(
                f"this {backbone.name} has no weights_hash, so nothing would say which weights computed what is kept "
                "on disk. Make it with load_backbone, or keep its outputs in memory only (directory=None)."
            )
        self.backbone, self.stage, self.layer, self.frames = backbone, stage, layer, frames
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
        self.precision, self.max_bytes = precision, max_bytes
        self.key = hashlib.sha256(
            json.dumps(
                [
                    backbone.name,
                    backbone.weights_hash,
                    backbone.num_layers,
                    stage,
                    precision,
                    backbone.precision,
                    backbone.arithmetic,
                ]
                + ([layer] if stage == "pooled" else [])
                + (["frames", frames.frame_rate_hz] if stage == "pooled" and frames is not None else [])
            ).encode()
        ).hexdigest()
        self._table = None if directory is None else OutputTable(directory, self.key, max_disk_bytes)
        self._kept: dict[str, Tensor] = {}
        self._bytes = self._hits = self._misses = 0
        self._refused: set[str] = set()
        self._admitted: set[str] = set()
        self._reserved = 0  # bytes for what is admitted and not there yet
        self._lock = threading.Lock()

    @property
    def stats(self) -> CacheStats:
        return CacheStats(self._hits, self._misses, len(self._kept), self._bytes, len(self._refused))

    def admit(self, recordings: Iterable[tuple[str, int]]) -> Admitted:
        """Choose the recordings whose outputs are kept: the first ones that fit into memory, or onto the disk.

        Chosen before the first step, and not in the order of arrival, so that a resumed run chooses the same (as long
        as no other process writes to the table). The disk gets what the memory gets: the larger one decides.

        Raises:
            ValueError: the outputs cannot be cropped.
        """
        if self.stage != "stem":
            raise ValueError(f"windows cannot be cut out of what stage='{self.stage}' keeps. Use 'stem'.")
        self._local()
        recordings = list(recordings)
        value_bytes = 2 if self.precision == "bf16" else 4
        sizes = {
            content: self.backbone.num_frames(num_samples) * self.backbone.dim * value_bytes
            for content, num_samples in recordings
        }
        on_disk: set[str] = set()
        room = self.max_bytes
        if self._table is not None:
            on_disk = {content for content in sizes if _whole(content) in self._table}
            room = max(room, self._table.room + sum(sizes[content] for content in on_disk))
        self._admitted, total = set(), 0
        for content, size in sizes.items():
            if total + size <= room:
                self._admitted.add(content)
                total += size
        self._reserved = min(self.max_bytes, total)
        if self._table is not None:
            self._table.reserve(sum(sizes[content] for content in self._admitted - on_disk))
        return Admitted(sum(content in self._admitted for content, _ in recordings), len(recordings))

    # Background: look up and decode ----------------------------------------------------------------------------

    def prepare(self, clips: Sequence[Clip], crops: Crops = "fixed") -> Prepared:
        """Look the units up, and decode what is missing.

        crops: "fixed": a unit is a window. "random": a unit is a recording that was admitted; windows of others are
            computed anew every time.

        Raises:
            AudioError: a file that cannot be read.
            ValueError: a random window that does not begin at a multiple of the stem's step, or of a backbone whose
                frames see the whole window.
        """
        return Prepared(tuple(self._prepare(clip, crops) for clip in clips))

    @staticmethod
    def join(parts: Iterable[Prepared]) -> Prepared:
        """Several as one; the windows must be of one length."""
        return Prepared(tuple(clip for part in parts for clip in part.clips))

    def _prepare(self, clip: Clip, crops: Crops) -> _PreparedClip:
        if crops == "random" and self._is_cut(clip):
            unit = _whole(clip.content_hash)
            stored = self._look_up(unit)
            whole = (
                None if stored is not None else load_audio(clip.path, self.backbone.sample_rate_hz).samples
            )
            return _PreparedClip(clip, unit, stored, whole, self._ends(self._decode(clip)))
        unit = f"{clip.content_hash}:{clip.start_sample}:{clip.num_samples}"
        unit += f":{clip.num_zeros}" if clip.num_zeros else ""
        stored = self._look_up(unit)
        samples = None if stored is not None else self._decode(clip)
        return _PreparedClip(clip, unit if crops == "fixed" else None, stored, samples)

    def _decode(self, clip: Clip) -> Tensor:
        return load_window(clip, self.backbone.sample_rate_hz)

    # The thread of the model: compute and keep -----------------------------------------------------------------

    @torch.no_grad()
    def outputs(self, prepared: Prepared) -> Tensor:
        """`(B, T, D)` on the backbone's device (`(B, 1, D)` pooled over time), in the precision that the stem gives."""
        device = next((t.device for t in [*self.backbone.parameters(), *self.backbone.buffers()]), None)
        return torch.stack([self._output(one) for one in prepared.clips]).to(device)

    def _output(self, one: _PreparedClip) -> Tensor:
        # A window before this one may have been of the same unit.
        stored = self._kept.get(one.unit) if one.stored is None and one.unit is not None else one.stored
        if stored is not None:
            self._hits += 1
            output = stored
        else:
            assert one.samples is not None
            self._misses += 1
            output = self._compute(one.samples) if one.ends is None else self._compute_recording(one.samples)
            if one.unit is not None:
                self._keep(one.unit, output, reserved=one.ends is not None)
        return output if one.ends is None else self._cut(output, one)

    def _compute(self, samples: Tensor) -> Tensor:
        """`(S,)` -> `(T, D)` or `(1, D)` on the CPU."""
        device = next(
            (t.device for t in [*self.backbone.parameters(), *self.backbone.buffers()]), samples.device
        )
        x = samples[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.stage == "stem":
                return self.backbone.project(x)[0].cpu()
            return pooled_states(self.backbone, x, self.layer, self.frames)[0].cpu()

    def _compute_recording(self, samples: Tensor) -> Tensor:
        """The stem's output for a whole recording, in overlapping pieces: `(S,)` -> `(T, D)`."""
        local = self._local()
        step, edge = local.step_samples, local.edge_frames
        frames = self.backbone.num_frames(len(samples))
        size = max(4 * edge, round(PIECE_SECONDS * self.backbone.sample_rate_hz / step))
        pieces = []
        for first in range(0, frames, size):
            last = min(first + size, frames)
            if frames - last < 2 * edge:  # too short for a piece of its own
                last = frames
            begin = max(0, first - edge)
            end = len(samples) if last == frames else (last + edge) * step
            out = self._compute(samples[begin * step : end])
            pieces.append(out[first - begin : last - begin])
            if last == frames:
                break
        return torch.cat(pieces)

    # Windows out of a recording --------------------------------------------------------------------------------

    def _is_cut(self, clip: Clip) -> bool:
        """Whether this window is cut out of the output of its recording; short ones cost as much as their ends."""
        local = self._local()
        if clip.start_sample % local.step_samples:
            raise ValueError(
                f"a window that is cut out of kept outputs begins at a multiple of {local.step_samples} samples, got "
                f"{clip.start_sample}"
            )
        long_enough = self.backbone.num_frames(clip.num_samples) >= 4 * local.edge_frames
        return long_enough and clip.content_hash in self._admitted

    def _local(self) -> LocalStem:
        if self.backbone.local_stem is None:
            raise ValueError(
                f"random windows of {self.backbone.name} cannot be cut out of kept outputs: every frame of them sees "
                "the whole window. Use a fixed set of windows (crops='fixed'), or no cache."
            )
        return self.backbone.local_stem

    def _ends(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Stretches at the two ends of a window `(S,)` whose outer frames are those of the window itself.

        The window is decoded once for both: some formats can only be decoded from their beginning.
        """
        local = self._local()
        span = 2 * local.edge_frames
        tail = (self.backbone.num_frames(len(samples)) - span) * local.step_samples
        return samples[: span * local.step_samples], samples[tail:]

    def _cut(self, recording_TD: Tensor, one: _PreparedClip) -> Tensor:
        """A window's frames: the recording's, but the outer ones computed from the window's ends."""
        local = self._local()
        assert one.ends is not None
        edge, frames = local.edge_frames, self.backbone.num_frames(one.clip.num_samples)
        first = one.clip.start_sample // local.step_samples
        head, tail = (self._compute(samples) for samples in one.ends)
        return torch.cat([head[:edge], recording_TD[first + edge : first + frames - edge], tail[-edge:]])

    # Entries ---------------------------------------------------------------------------------------------------

    def _look_up(self, unit: str) -> Tensor | None:
        with self._lock:
            if (kept := self._kept.get(unit)) is not None:
                return kept
        if self._table is None or (stored := self._table.read(unit)) is None:
            return None
        self._keep_in_memory(unit, stored, reserved=unit.endswith(":whole"))
        return stored

    def _keep(self, unit: str, output: Tensor, reserved: bool) -> None:
        self._keep_in_memory(unit, output, reserved)
        if self._table is not None:
            self._table.add(unit, output, reserved)

    def _keep_in_memory(self, unit: str, output: Tensor, reserved: bool) -> None:
        size = output.numel() * output.element_size()
        with self._lock:
            if unit in self._kept:
                return
            if self._bytes + (0 if reserved else self._reserved) + size > self.max_bytes:
                self._refused.add(unit)
                return
            if reserved:
                self._reserved = max(0, self._reserved - size)
            self._kept[unit] = output.contiguous()
            self._bytes += size

    def close(self) -> None:
        """Write what is not on the disk yet, and let another process write."""
        if self._table is not None:
            self._table.close()


def _whole(content_hash: str) -> str:
    """Name of the entry for a whole recording."""
    return f"{content_hash}:whole"


def load_window(clip: Clip, sample_rate_hz: int) -> Tensor:
    """`(S,)`. Raises AudioError, also for a file that gives less than its header promised."""
    wanted = clip.num_samples - clip.num_zeros
    samples = load_audio(
        clip.path,
        sample_rate_hz,
        start_seconds=clip.start_sample / sample_rate_hz,
        duration_seconds=wanted / sample_rate_hz,
    ).samples
    if len(samples) != wanted:
        start_seconds = clip.start_sample / sample_rate_hz
        raise AudioError(clip.path, f"gives {len(samples)} of {wanted} samples from {start_seconds:.3f} s on")
    return F.pad(samples, (0, clip.num_zeros)) if clip.num_zeros else samples
