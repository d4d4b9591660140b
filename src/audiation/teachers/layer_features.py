"""Hidden states of a layer: what a second iteration of HuBERT clusters (MERT spec, section 4).

Which layer MusicHuBERT's second iteration took is not published; HuBERT base took 6.

Shape letters: `B` batch, `S` samples, `N` frames, `D` model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiation.backbones import Backbone
from audiation.loading import load_backbone
from audiation.teachers.base import TEACHERS, Recorded, TeacherKind, TeacherRequest

CHUNK_SECONDS = 30.0  # of backbones that hear any length at once
CHUNKS_AT_ONCE = 8
EXAMPLE = "layer6-km2000"
MARK_DIGITS = 8  # of the hash of the weights, in a name


class LayerFeatures:
    """Layer `layer` of a backbone, see `FrameFeatures`: F = D, at the frame rate of the backbone.

    Many backbones hear a clip as a whole, so features depend on how a recording is cut. It is cut into chunks of the
    length that the backbone was trained on, each so many whole frames long and reaching on for as much as its last
    frame hears; the last one begins earlier, so that it is as long as the others. What is shorter than a chunk is one
    chunk, and what is shorter than the shortest input is continued by silence.
    """

    def __init__(self, backbone: Backbone, layer: int) -> None:
        if backbone.frame_rate_hz is None or backbone.hop_samples is None:
            raise ValueError(
                f"'{backbone.name}' gives one vector per clip, and clusters are of frames. Take another backbone."
            )
        if not 0 <= layer <= backbone.num_layers:
            raise ValueError(f"{backbone.name} has layers 0..{backbone.num_layers}, got {layer}")
        self.sample_rate_hz, self.rate_hz = backbone.sample_rate_hz, backbone.frame_rate_hz
        self.num_features, self._layer = backbone.dim, layer
        self._backbone, self._hop = backbone.eval(), backbone.hop_samples
        seconds = min(backbone.max_seconds or CHUNK_SECONDS, CHUNK_SECONDS)
        longest = round(seconds * backbone.sample_rate_hz)
        # The longest run of frames whose samples fit; the chunks lie one run apart.
        self.block_frames = max(1, (longest - backbone.min_samples) // self._hop + 1)
        self._chunk_samples = (self.block_frames - 1) * self._hop + backbone.min_samples
        assert backbone.num_frames(self._chunk_samples) >= self.block_frames

    def num_frames(self, num_samples: int) -> int:
        return self._backbone.num_frames(max(num_samples, self._backbone.min_samples))

    @torch.no_grad()
    def frames(self, recording: Recorded, first: int, count: int) -> Tensor:
        total = self.num_frames(recording.num_samples)
        if total <= self.block_frames:
            whole = self._hidden(recording, [0], max(recording.num_samples, self._backbone.min_samples))
            return whole[first : first + count]
        parts = []
        chunks = range(first // self.block_frames, -(-(first + count) // self.block_frames))
        for group in (chunks[i : i + CHUNKS_AT_ONCE] for i in range(0, len(chunks), CHUNKS_AT_ONCE)):
            begins = [min(c * self.block_frames, total - self.block_frames) for c in group]
            hidden = self._hidden(recording, begins, self._chunk_samples)
            for chunk, begin, frames in zip(group, begins, hidden.split(self.block_frames), strict=True):
                wanted_from = max(first, chunk * self.block_frames)
                wanted_to = min(first + count, (chunk + 1) * self.block_frames, total)
                parts.append(frames[wanted_from - begin : wanted_to - begin])
        return torch.cat(parts)

    def record(self) -> dict[str, Any]:
        return {
            "features": f"layer{self._layer}",
            "backbone": self._backbone.name,
            "weights": self._backbone.weights_hash,
            "chunk_samples": self._chunk_samples,
        }

    def _hidden(self, recording: Recorded, begins: list[int], num_samples: int) -> Tensor:
        """`(chunks * frames, D)` of the chunks that begin at these frames."""
        device = next(iter(self._backbone.parameters())).device
        clips = [recording.between(b * self._hop, b * self._hop + num_samples) for b in begins]
        batches = [clips] if not self._backbone.mixes_batch else [[clip] for clip in clips]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            states = [
                self._backbone(torch.stack(batch).to(device), layers=[self._layer]).layers[self._layer]
                for batch in batches
            ]
        x_BND = torch.cat(states)
        if len(begins) > 1 or num_samples == self._chunk_samples:
            x_BND = x_BND[:, : self.block_frames]
        return x_BND.float().flatten(0, 1).cpu()


def _features(request: TeacherRequest) -> LayerFeatures:
    if request.number is None or request.backbone is None:
        raise ValueError(
            f"features of a layer need its number and a backbone, like --teacher {EXAMPLE} --backbone "
            "musichubert --weights PATH"
        )
    backbone = load_backbone(request.backbone, request.weights, device=request.device)
    mark = backbone.weights_hash[:MARK_DIGITS]
    if request.weights_mark not in (None, mark):
        raise ValueError(
            f"the teacher's name is of weights {request.weights_mark}..., and these of {backbone.name} are {mark}.... "
            f"Use 'layer{request.number}.{mark}-km...', or other weights."
        )
    if backbone.sample_rate_hz != request.sample_rate_hz:
        raise ValueError(
            f"{backbone.name} hears {backbone.sample_rate_hz} Hz, and the corpus has {request.sample_rate_hz} Hz. "
            f"Build one with --rate {backbone.sample_rate_hz}."
        )
    return LayerFeatures(backbone, request.number)


TEACHERS.add(
    "layer",
    TeacherKind(
        "hidden states of a layer of a trained backbone (second iteration)",
        features=_features,
        clusters=(2000,),
    ),
)
