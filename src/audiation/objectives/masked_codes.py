"""What MERT and HuBERT share: mask frames before the encoder, and tell by cosine which stored codes were there.

Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units"; MERT
spec, sections 3.1, 3.3 and 3.4.

Shape letters: `B` batch, `S` samples, `T` frames, `N` labels, `D` model width, `K` masked frames, `Q` streams of codes,
`C` codes of a stream, `H` width of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.hubert_stem import Stem
from audiation.objectives.base import (
    Objective,
    PretrainBatch,
    code_statistics,
    encode,
    fresh_linear,
    share_of,
)
from audiation.objectives.masking import span_mask
from audiation.training import Loss

# Rows of the published tables that stand for special symbols: never a target, but part of every softmax.
NUM_SPECIALS = 4
COSINE_EPS = 1e-8


@dataclass(frozen=True)
class MaskedCodes:
    """Choices that MERT and HuBERT share.

    mask_probability, mask_length, min_spans: see `span_mask`.
    final_dim: width in which frames and codes are compared.
    temperature: that cosines are divided by.
    feature_penalty: weight of the mean square of what the stem's convolutions give.
    conv_gradient: what the gradient of the convolutions is multiplied with.
    layer_drop: probability with which a block is left out of a micro-batch, see `Encoder.layers`.

    feature_penalty and conv_gradient are for stems on the waveform; with others set them to 0 and 1.
    """

    mask_probability: float = 0.8
    mask_length: int = 5
    min_spans: int = 2
    final_dim: int = 64
    temperature: float = 0.1
    feature_penalty: float = 10.0
    conv_gradient: float = 0.1
    layer_drop: float = 0.05

    name: ClassVar[str]  # of the objective, for messages

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_probability <= 1.0 or self.mask_length < 1 or self.min_spans < 1:
            raise ValueError(
                f"{self.name}: mask_probability must be over 0 and at most 1, mask_length and min_spans at least 1, "
                f"got {self.mask_probability}, {self.mask_length} and {self.min_spans}"
            )
        if self.final_dim < 1 or not self.temperature > 0.0:
            raise ValueError(
                f"{self.name}: final_dim and temperature must be positive, got {self.final_dim} and {self.temperature}"
            )
        if not self.feature_penalty >= 0.0 or not 0.0 < self.conv_gradient <= 1.0:
            raise ValueError(
                f"{self.name}: feature_penalty may not be negative, conv_gradient must be over 0 and at most 1, got "
                f"{self.feature_penalty} and {self.conv_gradient}"
            )
        if not 0.0 <= self.layer_drop < 1.0:
            raise ValueError(f"{self.name}: layer_drop must be from 0 to below 1, got {self.layer_drop}")


@dataclass(frozen=True)
class CodeStream:
    """One stream of codes, which has a head of its own.

    target: the name under which its teacher's output is stored.
    index: which of the streams there.
    num_streams: how many there are.
    num_codes: C.
    label: what its numbers are called in the log.
    """

    target: str
    index: int
    num_streams: int
    num_codes: int
    label: str


class Heard(NamedTuple):
    """encoded: `(K, D)`, what leaves the encoder at masked frames.
    penalty: mean square of what the convolutions give, over all frames; 0 where none is asked for."""

    encoded: Tensor
    penalty: Tensor


class CodeLoss(NamedTuple):
    """sum: of the cross-entropies, over frames and streams. parts: means, for the log."""

    sum: Tensor
    parts: dict[str, Tensor]


class CodeHeads(nn.Module):
    """`(K, D)` -> logits of every stream, `(K, C + 4)`: cosines with its rows over the temperature, always in float32.

    Over all rows this is the published noise-contrastive form, whose negatives are all rows and whose duplicate of the
    positive is left out. Code c has row c + 4.

    Parameters under their published names in fairseq: `final_proj` to all streams at once, and `label_embs_concat`
    `(sum of C + 4, H)`, uniform in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        num_codes: Sequence[int],
        final_dim: int,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_codes, self.temperature = tuple(num_codes), temperature
        num_rows = sum(self.num_codes) + NUM_SPECIALS * len(self.num_codes)
        self.final_proj = fresh_linear(dim, len(self.num_codes) * final_dim, generator)
        self.label_embs_concat = nn.Parameter(torch.empty(num_rows, final_dim).uniform_(generator=generator))

    def forward(self, x_KD: Tensor) -> list[Tensor]:
        z_KQH = self.final_proj(x_KD).unflatten(-1, (len(self.num_codes), -1))
        tables = self.label_embs_concat.split([c + NUM_SPECIALS for c in self.num_codes])
        with torch.autocast(x_KD.device.type, enabled=False):
            return [
                F.normalize(z_KH.float(), dim=-1, eps=COSINE_EPS)
                @ F.normalize(table.float(), dim=-1, eps=COSINE_EPS).t()
                / self.temperature
                for z_KH, table in zip(z_KQH.unbind(1), tables, strict=True)
            ]


class MaskedCodesObjective(Objective):
    """Heads, and the vector that stands in masked frames, `mask_vector` `(D,)`: uniform in [0, 1) at first, learned,
    `masked_spec_embed` in published files.

    streams: what is predicted. label_rate_hz: of all of them.
    """

    mask_vector: nn.Parameter

    def __init__(
        self,
        backbone: Backbone,
        settings: MaskedCodes,
        streams: Sequence[CodeStream],
        label_rate_hz: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if backbone.encoder is None or backbone.frame_rate_hz is None:
            raise ValueError(
                f"{settings.name} masks frames before an encoder, and '{backbone.name}' has none. Take a backbone with "
                "an encoder, like mert-v1-95m."
            )
        on_waveform = isinstance(backbone.stem, Stem)
        if not on_waveform and (settings.feature_penalty != 0.0 or settings.conv_gradient != 1.0):
            raise ValueError(
                f"{settings.name}: feature_penalty and conv_gradient are about convolutions on the waveform, which "
                f"'{backbone.name}' does not have. Set feature_penalty=0,conv_gradient=1."
            )
        self.settings, self.streams, self.label_rate_hz = settings, tuple(streams), label_rate_hz
        self.heads = CodeHeads(
            backbone.dim, [s.num_codes for s in streams], settings.final_dim, settings.temperature, generator
        )
        self.mask_vector = nn.Parameter(torch.empty(backbone.dim).uniform_(generator=generator))

    def codes(self, backbone: Backbone, batch: PretrainBatch) -> Tensor:
        """`(Q, B, T)` int64: for frame t the label `floor(t * ratio)`, with the ratio of label rate and frame rate.
        T is less than the backbone's frames where labels end before them.

        Raises:
            ValueError: crops that are too short, or stored targets that are missing or do not fit.
        """
        name = self.settings.name
        num_samples = batch.waveform.shape[1]
        if num_samples < backbone.min_samples:
            raise ValueError(
                f"{name}: '{backbone.name}' needs crops of at least {backbone.min_samples} samples, got {num_samples}"
            )
        labels = [self._labels(stream, batch) for stream in self.streams]
        num_labels = min(label_BN.shape[1] for label_BN in labels)
        expected = round(num_samples * self.label_rate_hz / backbone.sample_rate_hz)
        # Teachers may give some labels fewer than the crop is long, but another rate is another teacher.
        if not expected - max(8, expected // 10) <= num_labels <= expected + 1 or num_labels < 1:
            raise ValueError(
                f"{name}: {num_samples} samples have about {expected} labels at {self.label_rate_hz:g} Hz, and the "
                f"stored targets give {num_labels}. Set label_rate_hz to the rate of {self.streams[0].target}."
            )
        assert backbone.frame_rate_hz is not None
        ratio = self.label_rate_hz / backbone.frame_rate_hz
        num_frames = backbone.num_frames(num_samples)
        if ratio * num_frames > num_labels:
            num_frames = int(num_labels / ratio)
        if num_frames < 1:
            raise ValueError(
                f"{name}: {num_labels} labels of {num_samples} samples are less than one frame has"
            )
        index_T = (torch.arange(num_frames, device=batch.waveform.device, dtype=torch.float64) * ratio).long()
        return torch.stack([label_BN[:, index_T] for label_BN in labels])

    def draw_mask(self, num_clips: int, num_frames: int, generator: torch.Generator) -> Tensor:
        """`(B, T)` bool, as many frames in every clip."""
        settings = self.settings
        return span_mask(
            num_clips,
            num_frames,
            settings.mask_probability,
            settings.mask_length,
            generator,
            settings.min_spans,
        )

    def hear(self, backbone: Backbone, waveform: Tensor, masked_BT: Tensor) -> Heard:
        """The encoder's output where frames are masked; frames behind the last of the mask are cut off before it."""
        num_frames = masked_BT.shape[1]
        penalty = waveform.new_zeros(())
        if isinstance(stem := backbone.stem, Stem):
            features_BTC = stem.features(waveform)
            if features_BTC.requires_grad and self.settings.conv_gradient != 1.0:
                features_BTC.register_hook(lambda gradient: gradient * self.settings.conv_gradient)
            features_BTC = features_BTC[:, :num_frames]
            if self.settings.feature_penalty:
                penalty = features_BTC.float().square().mean()
            projected_BTD = stem.project(features_BTC)
        else:
            projected_BTD = backbone.project(waveform)[:, :num_frames]
        seen_BTD = torch.where(
            masked_BT.unsqueeze(-1), self.mask_vector.to(projected_BTD.dtype), projected_BTD
        )
        encoded_BTD = encode(backbone, seen_BTD, self.settings.layer_drop)
        return Heard(encoded_BTD[masked_BT], penalty)

    def code_loss(self, encoded_KD: Tensor, codes_KQ: Tensor, drawn: int | None = None) -> CodeLoss:
        """Cross-entropy of every stream, or of the drawn one; the other heads then get a gradient of zero."""
        logits = self.heads(encoded_KD)
        predicted = range(len(self.streams)) if drawn is None else [drawn]
        per_frame = 1.0 / max(1, len(codes_KQ))
        sums, hits = [], []
        parts: dict[str, Tensor] = {}
        for q in predicted:
            sums.append(F.cross_entropy(logits[q], codes_KQ[:, q] + NUM_SPECIALS, reduction="sum"))
            with torch.no_grad():
                guesses_K = logits[q].argmax(-1)
                hits.append((guesses_K == codes_KQ[:, q] + NUM_SPECIALS).sum() * per_frame)
                if len(self.streams) > 1 and drawn is None:
                    label = self.streams[q].label
                    parts |= {f"cross_entropy_{label}": sums[-1] * per_frame, f"accuracy_{label}": hits[-1]}
        total = torch.stack(sums).sum()
        with torch.no_grad():
            first = predicted[0]
            num_codes = self.streams[first].num_codes
            perplexity, used = code_statistics(codes_KQ[:, first], num_codes)
            guessed, _ = code_statistics(logits[first].argmax(-1), num_codes + NUM_SPECIALS)
            parts |= {
                "cross_entropy": total * per_frame,
                "masked_accuracy": torch.stack(hits).mean(),
                "target_perplexity": perplexity,
                "targets_used": used,
                "prediction_perplexity": guessed,
            }
        return CodeLoss(total, {name: value.detach() for name, value in parts.items()})

    def finish(self, total: Tensor, heard: Heard, masked_BT: Tensor, parts: dict[str, Tensor]) -> Loss:
        """With the penalty on top, which counts once per masked frame; means for the log are 0 where there is none."""
        count = masked_BT.sum()
        total = total + self.settings.feature_penalty * heard.penalty * count
        with torch.no_grad():
            parts = parts | {"masked_fraction": share_of(masked_BT)}
            if self.settings.feature_penalty:
                parts["feature_penalty"] = heard.penalty.detach()
            parts = {name: value if value.ndim else value * (count > 0) for name, value in parts.items()}
        return Loss(total, count, parts)

    def _labels(self, stream: CodeStream, batch: PretrainBatch) -> Tensor:
        """`(B, N)`. Raises ValueError where they are missing, of another shape, or no codes of this stream."""
        name, target = self.settings.name, stream.target
        if target not in batch.targets:
            raise ValueError(
                f"{name} predicts the stored targets '{target}', and the corpus gives "
                f"{', '.join(batch.targets) or 'none'}. Make them with `audiation corpus targets DIR "
                f"--teacher {target}`."
            )
        codes_BQN = batch.targets[target]
        num_clips = len(batch.waveform)
        if codes_BQN.ndim != 3 or codes_BQN.shape[:2] != (num_clips, stream.num_streams):
            raise ValueError(
                f"{name}: the stored targets '{target}' must be (clips, streams, labels) with {num_clips} clips of "
                f"{stream.num_streams} streams, got {tuple(codes_BQN.shape)}"
            )
        label_BN = codes_BQN[:, stream.index].long()
        if label_BN.numel() and bool(((label_BN < 0) | (label_BN >= stream.num_codes)).any()):
            raise ValueError(
                f"{name}: stream {stream.index} of the stored targets '{target}' must have codes from 0 to "
                f"{stream.num_codes - 1}, got {int(label_BN.min())} to {int(label_BN.max())}"
            )
        return label_BN
