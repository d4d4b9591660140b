"""Clips longer than a model takes: cut into equal chunks, run, stitch onto one uniform frame grid.

Nothing is ever padded: a group norm runs over the whole input, so padding would change every frame. Chunks
have equal length instead, and the length travels with the features, because it changes them too.
Shape letters: `B` clips, `S` samples, `T` frames, `D` model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiation.backbones.base import Backbone, HiddenStates


@dataclass(frozen=True)
class ChunkPolicy:
    """How long a piece of audio the model sees at a time, in seconds; None: the whole clip at once."""

    chunk_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.chunk_seconds is not None and not 0 < self.chunk_seconds < math.inf:
            raise ValueError(
                f"chunk_seconds must be positive and finite, or None for whole clips, got {self.chunk_seconds}"
            )

    @classmethod
    def of(cls, backbone: Backbone) -> ChunkPolicy:
        """The length the model was trained for."""
        return cls(backbone.max_seconds)

    def chunks(self, backbone: Backbone, num_samples: int) -> list[Chunk]:
        """The chunks of a clip of `num_samples`. ValueError where the backbone cannot run in such chunks."""
        chunk_samples = num_samples
        if self.chunk_seconds is not None:
            chunk_samples = min(num_samples, round(self.chunk_seconds * backbone.sample_rate_hz))
        if chunk_samples < backbone.min_samples:
            raise ValueError(
                f"{backbone.name} needs at least {backbone.min_samples} samples "
                f"({backbone.min_samples / backbone.sample_rate_hz:.3f} s) at a time, got {chunk_samples}. "
                "Leave shorter clips out, or raise clip_seconds or chunk_seconds."
            )
        if chunk_samples == num_samples:
            return [Chunk(0, num_samples, 0, backbone.num_frames(num_samples))]
        if backbone.hop_samples is None:
            raise ValueError(
                f"{backbone.name} gives one vector per clip, which cannot be stitched from chunks of "
                f"{self.chunk_seconds:g} s. Use ChunkPolicy(None), or cut shorter clips."
            )
        return plan_chunks(num_samples, chunk_samples, backbone.hop_samples, backbone.num_frames)


@dataclass(frozen=True)
class Chunk:
    """Samples `[start_sample, start_sample + num_samples)`, of whose frames these are kept for the clip."""

    start_sample: int
    num_samples: int
    first_kept_frame: int
    num_kept_frames: int


def plan_chunks(
    num_samples: int, chunk_samples: int, hop_samples: int, num_frames_of_chunk: Callable[[int], int]
) -> list[Chunk]:
    """Equal chunks whose kept frames are the frames 0, 1, 2, ... of one grid with step `hop_samples`.

    The stride is the frames of a chunk times the hop (MERT: 5 s = 120,000 samples = 374 frames of 320, so
    119,680 samples), and never more than the chunk, so that no sample falls between two chunks. The last
    chunk is moved back to end with the clip, rounded down to the grid (up to `hop_samples - 1` samples at the
    very end stay unseen); frames that two chunks have are kept from the earlier one. A clip shorter than a
    chunk is one chunk of its own length.
    """
    if num_samples <= chunk_samples:
        return [Chunk(0, num_samples, 0, num_frames_of_chunk(num_samples))]
    frames = num_frames_of_chunk(chunk_samples)
    stride_frames = min(frames, chunk_samples // hop_samples)
    if stride_frames < 1:
        raise ValueError(f"a chunk of {chunk_samples} samples is shorter than one frame of {hop_samples}")
    last_frame = (num_samples - chunk_samples) // hop_samples
    chunks, covered = [], 0
    for first_frame in [*range(0, last_frame, stride_frames), last_frame]:
        skip = covered - first_frame
        chunks.append(Chunk(first_frame * hop_samples, chunk_samples, skip, frames - skip))
        covered = first_frame + frames
    return chunks


def run_clip(
    backbone: Backbone,
    waveform: Tensor,
    policy: ChunkPolicy | None = None,
    layers: Iterable[int] | None = None,
    reduce: Literal["mean"] | None = None,
    batch_size: int = 4,
) -> HiddenStates:
    """Hidden states of clips of any (equal) length.

    Args:
        waveform: `(S,)` or `(B, S)` float32 at the backbone's rate; an `(S,)` clip gives B = 1.
        policy: default `ChunkPolicy.of(backbone)`.
        layers: which of 0..L; None: all.
        reduce: "mean" averages over the frames of the whole clip, holding the frames of one batch at most.
        batch_size: how many chunks the model sees at once.

    Returns:
        Layers `(B, T, D)` on the waveform's device, `(B, 1, D)` when reduced; chunks are computed where the
        backbone's parameters are. Gradients are the caller's business (`torch.inference_mode()`).

    Raises:
        ValueError: what `Backbone.forward` and `ChunkPolicy.chunks` refuse, or a clip of several chunks while
            learned prompts are in the stream.
    """
    waveform_BS = waveform[None] if waveform.ndim == 1 else waveform
    wanted = None if layers is None else sorted(set(layers))
    chunks = (policy or ChunkPolicy.of(backbone)).chunks(backbone, waveform_BS.shape[-1])
    jobs = [(chunk, clip) for chunk in chunks for clip in range(len(waveform_BS))]
    num_frames = sum(chunk.num_kept_frames for chunk in chunks)
    pieces: dict[int, list[list[Tensor]]] = {}  # layer -> clip -> kept frames, or their share of the mean
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        states = _run_batch(backbone, waveform_BS, batch, wanted, reduce)
        if len(chunks) > 1 and (states.num_prompts or _has_prompts(backbone)):
            raise ValueError(
                f"{backbone.name} has learned prompts in its stream, so {len(chunks)} chunks of one clip "
                f"cannot be stitched. Cut clips to {chunks[0].num_samples / backbone.sample_rate_hz:g} s."
            )
        for layer, x in states.layers.items():
            per_clip = pieces.setdefault(layer, [[] for _ in waveform_BS])
            for (chunk, clip), y in zip(batch, x.to(waveform.device), strict=True):
                kept = _kept(y, chunk, states, reduce)
                per_clip[clip].append(kept * (chunk.num_kept_frames / num_frames) if reduce else kept)
    stitched = {
        layer: torch.stack([torch.stack(kept).sum(0) if reduce else torch.cat(kept) for kept in per_clip])
        for layer, per_clip in pieces.items()
    }
    shape = next(iter(stitched.values())).shape[:2]
    valid = torch.ones(shape, dtype=torch.bool, device=waveform.device)
    if reduce:
        return HiddenStates(stitched, valid, None, 0.0)
    if states.num_prompts:  # clips of equal length have the same frames valid
        valid[:, : states.num_prompts] = states.valid[0, : states.num_prompts]
    return HiddenStates(stitched, valid, states.frame_rate_hz, states.first_frame_seconds, states.num_prompts)


def _has_prompts(backbone: Backbone) -> bool:
    """States that were averaged do not say so."""
    return backbone.encoder is not None and backbone.encoder.prompts is not None


def _run_batch(
    backbone: Backbone,
    waveform_BS: Tensor,
    batch: list[tuple[Chunk, int]],
    layers: list[int] | None,
    reduce: Literal["mean"] | None,
) -> HiddenStates:
    """States of a few equally long chunks, averaged by the backbone itself where all frames are kept."""
    whole = all(chunk.first_kept_frame == 0 for chunk, _ in batch)
    pieces = [waveform_BS[i, c.start_sample : c.start_sample + c.num_samples] for c, i in batch]
    held = next((t.device for t in [*backbone.parameters(), *backbone.buffers()]), waveform_BS.device)
    return backbone(torch.stack(pieces).to(held), layers=layers, reduce=reduce if whole else None)


def _kept(y: Tensor, chunk: Chunk, states: HiddenStates, reduce: Literal["mean"] | None) -> Tensor:
    """Of one chunk's frames `(T, D)` the kept ones, or their mean `(1, D)`."""
    if reduce and states.frame_rate_hz is None:  # averaged already
        return y.float()
    assert len(y) == chunk.first_kept_frame + chunk.num_kept_frames + states.num_prompts
    kept = y[chunk.first_kept_frame :]
    return kept.mean(0, keepdim=True, dtype=torch.float32) if reduce else kept
