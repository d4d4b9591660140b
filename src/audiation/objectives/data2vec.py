"""data2vec: regress what a slow copy of the encoder makes of the same music without a mask.

Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language"; Li et
al. 2022, "MAP-Music2Vec: A Simple and Effective Baseline for Self-Supervised Music Audio Representation Learning"; MERT
spec, section 5.

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `K` masked frames.
"""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.encoder import Block, Encoder
from audiation.distributed import sum_over_ranks
from audiation.objectives.base import OBJECTIVES, Objective, PretrainBatch, encode, fresh_linear, share_of
from audiation.objectives.masking import span_mask
from audiation.training import Loss

GUARD_EVERY_STEPS = 100  # how often the host waits for the device to look for a collapse
STD_EPS = 1e-6  # under the root of a deviation, as published
POSITIONS = "positions."  # parameters of the encoder that are copied, not averaged


class CollapseError(ValueError):
    """Targets or predictions hardly differ from frame to frame any more: the model has found a constant to predict."""


@OBJECTIVES.register("data2vec")
@dataclass(frozen=True)
class Data2Vec:
    """The defaults are the recipe of the released Music2Vec; its two best changes were top_layers=12 and crops of 5 s.

    The copy hears what the stem gives to the student, before the mask: where the stem drops out, both miss the same.
    The published stem does not (`feat_proj_dropout=0`).

    top_layers: K, of how many last blocks the feed-forward outputs are averaged as the target.
    mask_probability, mask_length, min_spans: see `span_mask`.
    ema_decay, ema_end_decay, ema_steps: how much of itself the copy keeps in an update: linear from the first to the
        second over so many updates, constant afterwards.
    beta: 0 for the squared error (published); above, smooth L1, quadratic up to differences of beta.
    layer_drop: probability with which a block of the student is left out of a micro-batch, see `Encoder.layers`.
    guard_after_steps: from when on targets and predictions must differ from frame to frame.
    min_target_std, min_prediction_std: by so much: standard deviation over the masked frames of a micro-batch, mean
        over the D channels, and over the micro-batches of a step. (Published: over those of all workers at once.)
    """

    top_layers: int = 8
    mask_probability: float = 0.65
    mask_length: int = 10
    min_spans: int = 1
    ema_decay: float = 0.999
    ema_end_decay: float = 0.9999
    ema_steps: int = 30_000
    beta: float = 0.0
    layer_drop: float = 0.05
    guard_after_steps: int = 5_000
    min_target_std: float = 0.1
    min_prediction_std: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_probability <= 1.0 or self.mask_length < 1 or self.min_spans < 1:
            raise ValueError(
                "data2vec: mask_probability must be over 0 and at most 1, mask_length and min_spans at least 1, got "
                f"{self.mask_probability}, {self.mask_length} and {self.min_spans}"
            )
        if not 0.0 <= self.ema_decay <= self.ema_end_decay < 1.0 or self.ema_steps < 1:
            raise ValueError(
                "data2vec: ema_decay must not be over ema_end_decay, both from 0 to below 1, and ema_steps at least 1, "
                f"got {self.ema_decay}, {self.ema_end_decay} and {self.ema_steps}"
            )
        if not 0.0 <= self.beta < math.inf:
            raise ValueError(f"data2vec: beta must be 0 or a positive number, got {self.beta}")
        if not 0.0 <= self.layer_drop < 1.0:
            raise ValueError(f"data2vec: layer_drop must be from 0 to below 1, got {self.layer_drop}")
        if min(self.guard_after_steps, self.min_target_std, self.min_prediction_std) < 0:
            raise ValueError(
                "data2vec: guard_after_steps, min_target_std and min_prediction_std must not be negative, got "
                f"{self.guard_after_steps}, {self.min_target_std} and {self.min_prediction_std}"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    def decay_after(self, updates: int) -> float:
        """What the copy keeps of itself in update number `updates`; the first has number 1."""
        left = 1.0 - min(updates, self.ema_steps) / self.ema_steps
        return self.ema_end_decay - (self.ema_end_decay - self.ema_decay) * left

    def build(self, backbone: Backbone, generator: torch.Generator | None = None) -> Data2VecObjective:
        return Data2VecObjective(backbone, self, generator or torch.Generator().manual_seed(0))


class Data2VecObjective(Objective):
    """`head` predicts, from the encoder's output at masked frames, what `teacher` makes of the unmasked crop there.

    teacher: a copy of the encoder in float32, in eval mode whatever surrounds it. It moves in `after_step`.
    mask_vector: `(D,)`, learned, stands in masked frames between projection and positions.
    """

    mask_vector: nn.Parameter
    decay: Tensor
    std_sums: Tensor

    def __init__(self, backbone: Backbone, settings: Data2Vec, generator: torch.Generator) -> None:
        super().__init__()
        if backbone.encoder is None:
            raise ValueError(
                f"data2vec averages an encoder, and '{backbone.name}' has none. Take a backbone with an encoder, like "
                "music2vec."
            )
        depth = len(backbone.encoder.blocks)
        if not 1 <= settings.top_layers <= depth:
            raise ValueError(
                f"data2vec averages the last {settings.top_layers} blocks, and '{backbone.name}' has {depth}. "
                f"Take top_layers from 1 to {depth}."
            )
        self.settings = settings
        self.teacher = copy.deepcopy(backbone.encoder).float().requires_grad_(False).eval()
        self.head = fresh_linear(backbone.dim, backbone.dim, generator)
        self.mask_vector = nn.Parameter(torch.empty(backbone.dim).uniform_(generator=generator))
        self.register_buffer("decay", torch.tensor(settings.decay_after(0)))  # of the latest update
        # (3,): deviations of targets and predictions, each times the masked frames, and these, since the last step.
        # Zero between steps, so that nothing of it belongs in a checkpoint.
        self.register_buffer("std_sums", torch.zeros(3), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()  # neither dropout nor statistics of batches
        return self

    def forward(self, backbone: Backbone, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        num_clips, num_samples = batch.waveform.shape
        if num_samples < backbone.min_samples:
            raise ValueError(
                f"data2vec: '{backbone.name}' needs crops of at least {backbone.min_samples} samples, got {num_samples}"
            )
        settings = self.settings
        masked_BT = span_mask(
            num_clips,
            backbone.num_frames(num_samples),
            settings.mask_probability,
            settings.mask_length,
            generator,
            settings.min_spans,
        )
        return self.loss(backbone, batch.waveform, masked_BT)

    def loss(self, backbone: Backbone, waveform: Tensor, masked_BT: Tensor) -> Loss:
        """With these frames masked, `(B, T)` bool."""
        projected_BTD = backbone.project(waveform)
        targets_KD = self.targets(projected_BTD)[masked_BT]
        predictions_KD = self.predictions(backbone, projected_BTD, masked_BT)
        beta = self.settings.beta
        if beta == 0.0:
            total = F.mse_loss(predictions_KD, targets_KD, reduction="sum")
        else:
            total = F.smooth_l1_loss(predictions_KD, targets_KD, reduction="sum", beta=beta)
        with torch.no_grad():
            count = masked_BT.sum()
            target_std, prediction_std = _std(targets_KD), _std(predictions_KD)
            if self.training:
                self.std_sums += (
                    torch.stack([target_std, prediction_std, torch.ones_like(target_std)]) * count
                )
            parts = {
                "target_std": target_std,
                "prediction_std": prediction_std,
                "ema_decay": self.decay.clone(),
                "masked_fraction": share_of(masked_BT),
            }
        return Loss(total / math.sqrt(backbone.dim), count, parts)

    @torch.no_grad()
    def targets(self, projected_BTD: Tensor) -> Tensor:
        """`(B, T, D)` float32: feed-forward outputs of the teacher's last K blocks, every channel of every clip brought
        to zero mean and unit variance over time, and averaged over the blocks."""
        outputs = feed_forward_outputs(self.teacher, projected_BTD, self.settings.top_layers)
        total_BDT = torch.zeros_like(outputs[0], dtype=torch.float32).transpose(1, 2)
        for x_BTD in outputs:  # a layer norm over time is this instance norm, and takes clips of one frame
            total_BDT += F.layer_norm(x_BTD.float().transpose(1, 2), x_BTD.shape[1:2])
        return (total_BDT / len(outputs)).transpose(1, 2)

    def predictions(self, backbone: Backbone, projected_BTD: Tensor, masked_BT: Tensor) -> Tensor:
        """`(K, D)` float32, clip after clip."""
        vector = self.mask_vector.to(projected_BTD.dtype)
        seen_BTD = torch.where(masked_BT.unsqueeze(-1), vector, projected_BTD)
        return self.head(encode(backbone, seen_BTD, self.settings.layer_drop)[masked_BT]).float()

    @torch.no_grad()
    def after_step(self, backbone: Backbone, step: int) -> None:
        """Move the teacher towards the student; every hundredth step, look whether both still tell frames apart.

        Raises:
            CollapseError: they do not, on all ranks together. The last checkpoint is from before this step.
        """
        assert backbone.encoder is not None
        updates = step + 1
        decay = self.settings.decay_after(updates)
        self._average(backbone.encoder, decay)
        self.decay.fill_(decay)
        if updates > self.settings.guard_after_steps and updates % GUARD_EVERY_STEPS == 0:
            self._guard(updates)
        self.std_sums.zero_()

    def _average(self, student: Encoder, decay: float) -> None:
        """Parameters are averaged but for positions, which are copied, as the statistics of batch norms are."""
        parameters, buffers = dict(student.named_parameters()), dict(student.named_buffers())
        averaged: list[Tensor] = []
        towards: list[Tensor] = []
        for name, ours in self.teacher.named_parameters():
            if name.startswith(POSITIONS):
                ours.copy_(parameters[name])
            else:
                averaged.append(ours)
                towards.append(parameters[name].float())
        torch._foreach_mul_(averaged, decay)
        torch._foreach_add_(averaged, towards, alpha=1.0 - decay)
        for name, buffer in self.teacher.named_buffers():
            buffer.copy_(buffers[name])

    def _guard(self, updates: int) -> None:
        sums = self.std_sums.clone()
        sum_over_ranks([sums])
        target_sum, prediction_sum, count = sums.tolist()
        if not count:
            return  # outside of training
        limits = {
            "targets": (target_sum / count, self.settings.min_target_std),
            "predictions": (prediction_sum / count, self.settings.min_prediction_std),
        }
        for what, (std, least) in limits.items():
            if not std >= least:
                raise CollapseError(
                    f"data2vec has collapsed: after step {updates} its {what} have a standard deviation over masked "
                    f"frames of {std:.2g}, and it must be at least {least:g}. Begin again in another folder, with a "
                    "lower learning_rate, a longer warm-up, or ema_decay nearer to 1."
                )


def feed_forward_outputs(encoder: Encoder, x_BTD: Tensor, top_layers: int) -> list[Tensor]:
    """What the last feed-forward network of each of the last `top_layers` blocks adds to its stream, before it is
    added: `(B, T, D)` each. In eval mode, in which no dropout follows the map that plays "ffn_down" (of two, a
    conformer's second; its half weight is left out)."""
    outputs: list[Tensor] = []
    with ExitStack() as hooks:
        for block in encoder.blocks[-top_layers:]:
            assert isinstance(block, Block)
            *_, narrowing = block.linears()["ffn_down"]
            hook = narrowing.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
            hooks.enter_context(hook)
        for _ in encoder.layers(x_BTD):
            pass
    return outputs


def _std(x_KD: Tensor) -> Tensor:
    """Standard deviation over frames, mean over channels; 0 for fewer than two frames."""
    if len(x_KD) < 2:
        return x_KD.new_zeros(())
    return (x_KD.var(dim=0) + STD_EPS).sqrt().mean()
