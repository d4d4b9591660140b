"""What a pass of Jukebox costs, counted from the shapes of its modules before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from audiation.backbones.jukebox_prior import HalfLinear, PatternAttention, Prior
from audiation.backbones.jukebox_vqvae import CodeEncoder


@dataclass(frozen=True)
class ForwardCost:
    """Floating-point operations; a multiplication with its addition is 2.

    linear, attention: of the transformer. encoder: of the convolutions that code the waveform. codebook: of the search
    for the nearest entries.
    """

    linear: int
    attention: int
    encoder: int
    codebook: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.encoder + self.codebook

    @property
    def gflop(self) -> float:
        return self.total / 1e9


def forward_cost(
    encoder: CodeEncoder, prior: Prior, num_clips: int, num_samples: int, num_codes: int, last_layer: int
) -> ForwardCost:
    """Of clips of which `num_samples` are coded and `num_codes` are run through the blocks up to `last_layer`."""
    blocks = -(-num_codes // prior.block_positions)
    linear = attention = 0
    for module in prior.blocks[:last_layer].modules():
        if isinstance(module, HalfLinear):
            linear += 2 * blocks * prior.block_positions * module.weight.numel()
        elif isinstance(module, PatternAttention):
            attention += 2 * 2 * _pairs(module, blocks) * module.dim
    convolutions, length = 0, num_samples
    for conv in encoder.modules():  # in the order in which they are run
        if isinstance(conv, nn.Conv1d):
            length //= conv.stride[0]
            convolutions += 2 * length * conv.weight.numel()
    codebook = 2 * length * encoder.codebook.numel()
    return ForwardCost(
        num_clips * linear, num_clips * attention, num_clips * convolutions, num_clips * codebook
    )


def _pairs(attention: PatternAttention, blocks: int) -> int:
    """Pairs of query and key that are multiplied, those that the causal mask drops included."""
    per_block = attention.block_positions
    if attention.pattern == "same offset":
        return per_block * blocks * blocks
    return (blocks - (attention.pattern == "block before")) * per_block * per_block
