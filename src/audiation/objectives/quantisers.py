"""Quantisers that turn features into targets. Nothing here is trained.

Shape letters: `B` batch, `T` frames, `F` features, `H` width of a codebook, `Q` codebooks, `C` codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = 142  # of the published code; codebook i has 142 + i
CODEBOOK_DIM = 16
MOST_CODES, MOST_CODEBOOKS = 65_536, 64  # that anybody asks for who has not mistyped
LOOKUP_ROWS = 8192  # at a time: bounds the memory of the products


class RandomProjectionQuantiser(nn.Module):
    """`(..., F)` features -> `(Q, ...)` int64 codes: the nearest row of a random codebook after a random projection.

    Chiu et al. 2022 (BEST-RQ); MusicFM paper, eq. 1, which prints a difference of norms: code and idea are the norm of
    the difference of unit vectors, so the code is the row of the largest cosine. Projections are Xavier-normal and
    codebooks normal, drawn in this order from seed + i for codebook i (MusicFM spec (c)). Always in float32.

    Buffers: `projections` `(Q, F, H)`, `codebooks` `(Q, C, H)`, not normalised, as published.
    """

    projections: Tensor
    codebooks: Tensor

    def __init__(
        self,
        num_features: int,
        num_codes: int = 4096,
        num_codebooks: int = 1,
        dim: int = CODEBOOK_DIM,
        seed: int = SEED,
    ) -> None:
        super().__init__()
        check_sizes(num_features, num_codes, num_codebooks, dim)
        projections, codebooks = [], []
        std = math.sqrt(2.0 / (num_features + dim))
        for i in range(num_codebooks):
            generator = torch.Generator().manual_seed(seed + i)
            projections.append(torch.empty(num_features, dim).normal_(0.0, std, generator=generator))
            codebooks.append(torch.empty(num_codes, dim).normal_(generator=generator))
        self.register_buffer("projections", torch.stack(projections))
        self.register_buffer("codebooks", torch.stack(codebooks))

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor]) -> RandomProjectionQuantiser:
        """The quantiser inside an official MusicFM checkpoint: `quantizer_melspec_2048_{i}.random_projection` and
        `.codebook`, with or without the leading "model.".

        Raises:
            ValueError: there is none, or its tensors do not fit each other.
        """
        names = {name.removeprefix("model."): name for name in tensors}
        pairs: list[tuple[Tensor, Tensor]] = []
        while (key := f"quantizer_melspec_2048_{len(pairs)}") + ".codebook" in names:
            if key + ".random_projection" not in names:
                raise ValueError(f"the checkpoint has {key}.codebook without its random_projection")
            pairs.append((tensors[names[key + ".random_projection"]], tensors[names[key + ".codebook"]]))
        if not pairs:
            raise ValueError("the checkpoint holds no quantiser (quantizer_melspec_2048_0.codebook)")
        shapes = {(tuple(p.shape), tuple(c.shape)) for p, c in pairs}
        (projection, codebook) = next(iter(shapes))
        if len(shapes) > 1 or len(projection) != 2 or len(codebook) != 2 or projection[1] != codebook[1]:
            raise ValueError(
                f"projections and codebooks of the checkpoint do not fit each other: {sorted(shapes)}"
            )
        made = cls(projection[0], codebook[0], len(pairs), codebook[1])
        made.projections = torch.stack([p.float() for p, _ in pairs])
        made.codebooks = torch.stack([c.float() for _, c in pairs])
        return made

    @property
    def num_codebooks(self) -> int:
        return self.codebooks.shape[0]

    @property
    def num_codes(self) -> int:
        return self.codebooks.shape[1]

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            rows = features.float().flatten(0, -2)
            codebooks = F.normalize(self.codebooks, dim=-1).transpose(1, 2)  # (Q, H, C)
            codes = [
                torch.cat(
                    [
                        # A projection need not be brought to unit length: that changes no order.
                        (part @ projection @ codebook).argmax(-1)
                        for part in rows.split(LOOKUP_ROWS)
                    ]
                )
                for projection, codebook in zip(self.projections, codebooks, strict=True)
            ]
        return torch.stack(codes).unflatten(1, features.shape[:-1])


def check_sizes(num_features: int, num_codes: int, num_codebooks: int, dim: int) -> None:
    """Raises ValueError where one of a quantiser's sizes is below 1."""
    if min(num_features, num_codes, num_codebooks, dim) < 1:
        raise ValueError(
            "a quantiser needs at least 1 feature, code, codebook and number per code, got "
            f"{num_features}, {num_codes}, {num_codebooks} and {dim}"
        )
