"""`audiation-mini`: MusicFM's architecture at a size that a CPU can train, pre-trained on freely licensed music.

Its weights come with this package. How they were made is `recipes/audiation_mini.py`; what it can do is its card,
docs/audiation-mini.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from audiation.backbones.base import BACKBONES, BackboneSpec, Pretraining
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MusicFM, Statistics, fresh, from_published, outline
from audiation.weights import OfficialFile, OfficialWeights

NAME = "audiation-mini"
FILE = "audiation-mini.safetensors"
# Of 80 random crops of the music that it was trained on; the weights belong to these values. Another draw of 400 gives
# -1.6 and 19.4 (`recipes.audiation_mini.mel_statistics`).
STATISTICS = Statistics(mean_db=-0.94, std_db=18.8)
SIZES = ConformerConfig(dim=256, num_heads=4, ffn_dim=768, num_layers=5, dropout=0.0)
CONV_CHANNELS = 32
WEIGHTS = OfficialFile(
    "",
    FILE,
    13_294_912,
    "dba7e4a9dc9bb8a4a708401e1ba3e2a919ac2ebc34b9ed95d7a5d75fff361547",
    hash_source="spec",
    shipped=True,
)


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
        weights=OfficialWeights(WEIGHTS, config=None, licence="Apache-2.0"),
        weights_licence="Apache-2.0 (ours)",
        published_parameters=6_597_248,
        recommended_layer=1,  # of 0 to 5 the best linear readings of keys, beats and chords of validation clips in sum
        pretraining=Pretraining(
            "soundtracks of free games that Debian carries, 27.8 h, and renderings of scores, 4.0 h; every licence "
            "allows use, changes and redistribution",
            ("audiation-mini",),
            31.5,
        ),
        outline=partial(outline, STATISTICS, SIZES, CONV_CHANNELS),
        notes=("the renderings share the timbres of `scores`, and none of its music",),
    ),
)
