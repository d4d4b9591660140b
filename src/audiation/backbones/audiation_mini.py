"""`audiation-mini`: MusicFM's architecture at a size that a CPU can train, pre-trained on freely licensed music.

How it was made is `recipes/audiation_mini.py`; what it can do is its card, docs/audiation-mini.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from audiation.backbones.base import BACKBONES, BackboneSpec
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MusicFM, Statistics, fresh, from_published, outline

NAME = "audiation-mini"
FILE = "audiation-mini.safetensors"
# Of 80 random crops of 6 s from the music that it was trained on.
STATISTICS = Statistics(mean_db=-0.94, std_db=18.8)
SIZES = ConformerConfig(dim=256, num_heads=4, ffn_dim=768, num_layers=5, dropout=0.0)
CONV_CHANNELS = 32


def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> MusicFM:
    """256-d, 5 blocks, 32 channels in the stem, with fresh weights."""
    depth = SIZES.num_layers if num_layers is None else num_layers
    if not 0 < depth <= SIZES.num_layers:
        raise ValueError(f"{NAME} has {SIZES.num_layers} layers, got num_layers={num_layers}")
    return fresh(STATISTICS, replace(SIZES, num_layers=depth), CONV_CHANNELS, generator)


BACKBONES.add(
    NAME,
    BackboneSpec(
        name=NAME,
        summary="ours: MusicFM's architecture, 5 blocks of 256-d, for a CPU",
        build=build,
        from_published=partial(from_published, statistics=STATISTICS),
        outline=partial(outline, STATISTICS, SIZES, CONV_CHANNELS),
    ),
)
