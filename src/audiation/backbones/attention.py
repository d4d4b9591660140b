"""Multi-head self-attention of both block families.

Shape letters: `B` batch, `T` frames, `D` width, `H` heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.encoder import Linear
from audiation.backbones.precision import has_native_bf16


class Attention(nn.Module):
    """Bidirectional self-attention with separate, biased projections (roles query, key, value, output).

    `prefix` is a socket for prefix tuning: a module that gives `(keys, values)`, each `(P, D)`, which join the
    projected keys and values in front. It is None in a plain backbone.

    `relaxation` is the constant of attention relaxation (`relaxed_attention`); None, as in everything published: none.
    """

    prefix: nn.Module | None
    relaxation: float | None = None

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key = Linear(dim, dim), Linear(dim, dim)
        self.value, self.output = Linear(dim, dim), Linear(dim, dim)
        self.register_module("prefix", None)

    def forward(
        self, x_BTD: Tensor, qk_input_BTD: Tensor | None = None, valid_BT: Tensor | None = None
    ) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)`.

        qk_input_BTD: what queries and keys are projected from when it is not `x_BTD` (MusicFM rotates the
            hidden state before these two projections).
        valid_BT: `(B, T)` bool; False keys are not attended to. None: all valid.
        """
        source = x_BTD if qk_input_BTD is None else qk_input_BTD
        q, k, v = self.query(source), self.key(source), self.value(x_BTD)
        if self.prefix is not None:
            prefix_k, prefix_v = self.prefix()
            k = torch.cat([prefix_k.to(k.dtype).expand(len(k), -1, -1), k], dim=1)
            v = torch.cat([prefix_v.to(v.dtype).expand(len(v), -1, -1), v], dim=1)
            if valid_BT is not None:
                valid_BT = F.pad(valid_BT, (len(prefix_k), 0), value=True)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if valid_BT is None else valid_BT[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.relaxation is not None:
            mixed = relaxed_attention(q, k, v, self.relaxation, mask, dropout)
        elif _blockwise_is_faster(q) and not dropout and not any(t.requires_grad for t in (q, k, v)):
            mixed = blockwise_attention(q, k, v, mask)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.output(mixed.transpose(1, 2).flatten(2))


def blockwise_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, block_frames: int = 256
) -> Tensor:
    """What `scaled_dot_product_attention` gives, for bfloat16 on a CPU with instructions for it.

    Scores and mix are bfloat16 matrix products, the softmax between them is float32. Queries go block by
    block, so that scores stay in the cache.

    Args:
        q, k, v: `(B, H, T, D / H)`.
        mask: broadcastable to `(B, H, T, T)` bool; False is not attended to.
    """
    mixed = torch.empty_like(q)
    scaled_q, k_transposed = q * q.shape[-1] ** -0.5, k.transpose(-2, -1)
    for start in range(0, q.shape[2], block_frames):
        rows = slice(start, start + block_frames)
        scores = (scaled_q[:, :, rows] @ k_transposed).float()
        if mask is not None:
            scores.masked_fill_(~mask, -torch.inf)
        mixed[:, :, rows] = scores.softmax(-1).to(v.dtype) @ v
    return mixed


def relaxed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    constant: float,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """What `scaled_dot_product_attention` gives, in a form whose product of q and k does not overflow in float16.

    `softmax(c (s - max s))` with `s = (q / (c sqrt(d))) k`: the queries are divided before the product, and the largest
    score is taken away before the constant comes back. In exact arithmetic nothing changes (MERT spec, section 1.8; the
    published form divides behind the product, too late, and was never executed). It keeps all scores in memory, which
    fused kernels do not, and these do not overflow either.

    Yuan's thesis credits it with the one stable run of MERT-330M, see `architecture.Architecture`.

    Args:
        q, k, v: `(B, H, T, D / H)`.
        constant: c; the thesis' configuration has 32.
        mask: broadcastable to `(B, H, T, T)` bool; False is not attended to.
    """
    scores = (q / (constant * q.shape[-1] ** 0.5)) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    scores = (scores - scores.amax(-1, keepdim=True).detach()).float() * constant
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0)
    return weights.to(v.dtype) @ v


def _blockwise_is_faster(q: Tensor) -> bool:
    """Only with bfloat16 instructions: without, torch's attention, which multiplies in float32, wins 20 times."""
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and has_native_bf16(q.device)
