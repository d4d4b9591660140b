"""Codes -> hidden states: the transformer of Jukebox's top level, which predicts every code from those before it.

Each block attends in one of three patterns, by its number. All three are full attention once the positions are
arranged as a table of (block, offset): within a block, along one offset, or to the whole block before. No mask over
all pairs of positions exists.

Dhariwal et al. 2020; baselines spec, section 8.3. Shape letters: `B` batch, `T` positions, `D` model width, `N` blocks
of positions, `P` positions of a block, `H` heads, `E` width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.jukebox_conditioning import PriorConfig

NORM_EPS = 1e-5
GELU_SCALE = 1.702
INIT_STD = 0.02
Pattern = Literal["within block", "same offset", "block before"]
PATTERNS: tuple[Pattern, ...] = ("within block", "same offset", "block before")  # of block d: d mod 3


class Prior(nn.Module):
    """Codes `(B, T)` -> what enters the first block and what leaves each, `(B, T, D)` float32.

    Position p is given the code of position p - 1, and position 0 a constant: it has heard what came before p.
    Every pattern is causal, so the first positions do not change with what follows.

    Args:
        config: of the whole published model.
        num_layers: the first blocks, which are all that is held.
        streamed: weights of the linear maps stay in the memory, or the mapped file, that they are in when the model
            goes to another device, and are brought there one at a time at every pass.
    """

    def __init__(self, config: PriorConfig, num_layers: int, streamed: bool = False) -> None:
        super().__init__()
        self.block_positions, width = config.block_positions, config.prior_width
        self.start = _frozen(torch.empty(width))
        self.codes = _frozen(torch.empty(config.l_bins, width))
        self.positions = _frozen(torch.empty(config.n_ctx, width))
        self.blocks = nn.ModuleList(
            PriorBlock(config, PATTERNS[d % len(PATTERNS)], streamed) for d in range(num_layers)
        )

    def layers(self, codes_BT: Tensor, last_layer: int) -> Iterator[Tensor]:
        """Layers 0..last_layer, each computed when it is asked for. At most `n_ctx` codes, of any number."""
        num_positions = codes_BT.shape[1]
        # Filled up to whole blocks; what stands there comes later than all that is kept.
        x_BTD = self.embed(F.pad(codes_BT, (0, -num_positions % self.block_positions)))
        yield x_BTD[:, :num_positions]
        for block in self.blocks[:last_layer]:
            x_BTD = block(x_BTD)
            yield x_BTD[:, :num_positions]

    def embed(self, codes_BT: Tensor) -> Tensor:
        """`(B, T)` -> `(B, T, D)`: shifted by one position, with positions and conditioning added."""
        start_B1D = self.start.expand(len(codes_BT), 1, -1)
        heard_BTD = torch.cat([start_B1D, self.codes[codes_BT[:, :-1]]], dim=1)
        return heard_BTD.add_(self.positions[: codes_BT.shape[1]])


class PriorBlock(nn.Module):
    """a = attention(norm(x)), m = mlp(norm(x + a)), out = x + a + m; `(B, T, D)`, T whole blocks of positions."""

    def __init__(self, config: PriorConfig, pattern: Pattern, streamed: bool) -> None:
        super().__init__()
        width = config.prior_width
        self.attention_norm = nn.LayerNorm(width, NORM_EPS).requires_grad_(False)
        self.attention = PatternAttention(config, pattern, streamed)
        self.mlp_norm = nn.LayerNorm(width, NORM_EPS).requires_grad_(False)
        self.up = HalfLinear(width, config.mlp_dim, streamed)
        self.down = HalfLinear(config.mlp_dim, width, streamed)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        hidden = self.up(self.mlp_norm(x_BTD))
        return self.down((GELU_SCALE * hidden).sigmoid_().mul_(hidden)).add_(x_BTD)


class PatternAttention(nn.Module):
    """Attention in one pattern, `(B, T, D)` -> `(B, T, D)`, narrower inside than the model.

    "within block": to positions of the same block, up to one's own. "same offset": to positions with the same offset
    in their blocks, up to one's own. "block before": to all of the block before, which the first block has not: the
    attention gives 0 there, and of the output map only the bias is left.
    """

    def __init__(self, config: PriorConfig, pattern: Pattern, streamed: bool) -> None:
        super().__init__()
        self.pattern, self.heads, self.block_positions = pattern, config.heads, config.block_positions
        self.dim = config.attention_dim
        self.query_key_value = HalfLinear(config.prior_width, 3 * config.attention_dim, streamed)
        self.output = HalfLinear(config.attention_dim, config.prior_width, streamed)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, num_positions, _ = x_BTD.shape
        blocks = num_positions // self.block_positions
        table = self.query_key_value(x_BTD).view(batch, blocks, self.block_positions, 3, self.heads, -1)
        if self.pattern == "same offset":
            qkv = table.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (3, B P, H, N, E)
            mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
            mixed = mixed.unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4)
        elif self.pattern == "within block":
            qkv = table.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # (3, B N, H, P, E)
            mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
            mixed = mixed.transpose(1, 2)
        else:
            qkv = table.permute(3, 0, 1, 4, 2, 5)  # (3, B, N, H, P, E)
            query, key, value = qkv[0][:, 1:], qkv[1][:, :-1], qkv[2][:, :-1]
            mixed = F.scaled_dot_product_attention(
                query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
            )
            mixed = F.pad(mixed.unflatten(0, (batch, blocks - 1)).transpose(2, 3), (0, 0, 0, 0, 0, 0, 1, 0))
        return self.output(mixed.reshape(batch, num_positions, -1))


class HalfLinear(nn.Module):
    """y = x W + b with W `(in, out)` as published, kept in half precision; what it computes is in the precision of x.

    bfloat16 would keep less of the published numbers: a mean vector was 30 times further off.
    """

    def __init__(self, in_dim: int, out_dim: int, streamed: bool = False) -> None:
        super().__init__()
        self.weight = _frozen(torch.empty(in_dim, out_dim, dtype=torch.float16))
        self.bias = _frozen(torch.empty(out_dim))
        self.streamed = streamed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(device=x.device, dtype=x.dtype)
        return torch.addmm(self.bias, x.flatten(0, -2), weight).view(*x.shape[:-1], -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if not self.streamed:
            return super()._apply(fn, recurse)
        self.bias = _frozen(fn(self.bias.data))
        return self


def draw(prior: Prior, generator: torch.Generator) -> None:
    """Fresh values: N(0, 0.02), half of that for positions, zero biases, norms that change nothing."""
    for module in prior.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, HalfLinear):
            nn.init.normal_(module.weight, std=INIT_STD, generator=generator)
            nn.init.zeros_(module.bias)
    nn.init.normal_(prior.start, std=INIT_STD, generator=generator)
    nn.init.normal_(prior.codes, std=INIT_STD, generator=generator)
    nn.init.normal_(prior.positions, std=INIT_STD / 2, generator=generator)


OFFICIAL_CODES = "prior.x_emb.weight"
OFFICIAL_POSITIONS = "prior.pos_emb.pos_emb"
OFFICIAL_HEAD = "prior.x_out.weight"
_OFFICIAL_IN_BLOCK = {
    "attention_norm.weight": "ln_0.weight",
    "attention_norm.bias": "ln_0.bias",
    "attention.query_key_value.weight": "attn.c_attn.w",
    "attention.query_key_value.bias": "attn.c_attn.b",
    "attention.output.weight": "attn.c_proj.w",
    "attention.output.bias": "attn.c_proj.b",
    "mlp_norm.weight": "ln_1.weight",
    "mlp_norm.bias": "ln_1.bias",
    "up.weight": "mlp.c_fc.w",
    "up.bias": "mlp.c_fc.b",
    "down.weight": "mlp.c_proj.w",
    "down.bias": "mlp.c_proj.b",
}


def official_block_names(num_layers: int) -> Iterator[tuple[str, str]]:
    """Pairs (official, own) of parameter names, block after block, for the first blocks."""
    for d in range(num_layers):
        for own, official in _OFFICIAL_IN_BLOCK.items():
            yield f"prior.transformer._attn_mods.{d}.{official}", f"blocks.{d}.{own}"


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
