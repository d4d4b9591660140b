"""MuQ (Zhu et al., 2025): MusicFM's stem and conformer, trained to predict codes of a residual quantiser (Mel-RVQ).

In a forward pass nothing differs from MusicFM but the weights. The published files differ in what that pass does not
read: MuQ's have no tables of the mel front end and no random projection, but a residual quantiser of eight codebooks,
and twice as many codes in the prediction head.

Layers: 0 enters the conformer, k leaves block k; layer L alone has passed the encoder's final norm. These are the
`hidden_states` of the published forward pass, whose `last_hidden_state` is layer 12.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from audiation.backbones import musicfm
from audiation.backbones.base import BACKBONES, BackboneSpec, OfficialModule, Pretraining
from audiation.backbones.conformer import ROTARY_BASE, ConformerConfig
from audiation.backbones.musicfm import MSD, MusicFM, Statistics
from audiation.backbones.musicfm_checkpoint import (
    BUFFERS,
    CONV_CHANNELS,
    FILTERS,
    MEL_HOP_SAMPLES,
    NUM_MEL_BANDS,
    NUM_RESIDUAL_BLOCKS,
    POSITIONS,
    QUANTISER,
    SAMPLE_RATE_HZ,
    STRIDE,
    WINDOW,
    Checkpoint,
    check_published,
    our_tensors,
)
from audiation.backbones.musicfm_checkpoint import published_layout as musicfm_layout
from audiation.weights import (
    OfficialFile,
    OfficialWeights,
    check_tensors,
    normalise_weight_norm,
    strip_prefix,
)

NUM_CODES = 8192  # of the prediction head: those of all codebooks
NUM_CODEBOOKS, CODEBOOK_SIZE, CODE_DIM = 8, 1024, 16
RVQ = "rvq.quantizers"
PUBLISHED_PARAMETERS = 333_401_472
PAPER = (
    "Zhu et al.: MuQ: Self-supervised music representation learning with Mel residual vector quantization, "
    "arXiv 2501.01108 (2025)"
)
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // (MEL_HOP_SAMPLES * STRIDE**NUM_RESIDUAL_BLOCKS)

# Fields of the published config that decide the result and are in no tensor. A model of 50 frames per second
# (`label_rate`) has tensors of the same shapes.
ONLY = {
    "label_rate": FRAMES_PER_SECOND,
    "hop_length": MEL_HOP_SAMPLES,
    "n_mels": NUM_MEL_BANDS,
    "features": ["melspec_2048"],
}
ONLY_CONFORMER = {
    "position_embeddings_type": "rotary",
    "rotary_embedding_base": ROTARY_BASE,
    "hidden_act": "swish",
    "layer_norm_eps": 1e-5,
}


class MuQ(MusicFM):
    """Waveform at 24 kHz -> layers 0..L, each `(B, T, D)`, T = ceil(floor(S / 240) / 4).

    All that is said of `MusicFM` holds. The published forward pass takes an attention mask besides, which keeps
    padding from being attended to but not from the convolutions; here padding is refused.
    """

    def __init__(
        self,
        statistics: Statistics = MSD,
        config: ConformerConfig | None = None,
        conv_channels: int = CONV_CHANNELS,
    ) -> None:
        super().__init__(statistics, config, conv_channels)
        self.name = "muq"

    def official_module(self, own: str) -> OfficialModule:
        path, is_convolution = super().official_module(own)
        return OfficialModule(f"model.{path}", is_convolution)


# What a published file holds -------------------------------------------------------------------------


def published_layout(
    config: ConformerConfig,
    conv_channels: int = CONV_CHANNELS,
    num_codes: int = NUM_CODES,
    num_codebooks: int = NUM_CODEBOOKS,
) -> dict[str, tuple[int, ...]]:
    """Official name (without "model.", weight norm in its old spelling) -> shape, of every tensor in a file."""
    absent = (FILTERS, WINDOW, QUANTISER)
    shapes = musicfm_layout(config, conv_channels, num_codes)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(absent)}
    stacked_mel = NUM_MEL_BANDS * STRIDE**NUM_RESIDUAL_BLOCKS
    for k in range(num_codebooks):
        for projection, width, width_in in (
            ("in_proj", CODE_DIM, stacked_mel),
            ("out_proj", stacked_mel, CODE_DIM),
        ):
            name = f"{RVQ}.{k}.{projection}"
            shapes |= {f"{name}.bias": (width,), f"{name}.weight_g": (width, 1, 1)}
            shapes[f"{name}.weight_v"] = (width, width_in, 1)
        shapes[f"{RVQ}.{k}.codebook.weight"] = (CODEBOOK_SIZE, CODE_DIM)
        shapes[f"{RVQ}.{k}.stale_counter"] = (CODEBOOK_SIZE,)
    return shapes


def official_name(name: str) -> str:
    """A name of `published_layout` as the official file spells it."""
    if name.startswith(POSITIONS):  # the quantiser's weight norms have the old spelling in the same file
        name = name.replace("weight_g", "parametrizations.weight.original0")
        name = name.replace("weight_v", "parametrizations.weight.original1")
    return f"model.{name}"


def published_parameters(config: ConformerConfig) -> int:
    """How many parameters an official file of that size has; those no forward pass uses are counted."""
    buffers = (*BUFFERS, "stale_counter")
    layout = published_layout(config)
    return sum(math.prod(s) for n, s in layout.items() if not any(buffer in n for buffer in buffers))


def check_muq(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Sizes from shapes; every name and shape compared with the published layout.

    Tensors that no forward pass reads may be missing, but the table of rotary frequencies tells the number of heads.

    Raises:
        ValueError: tensors missing, unknown, or of a wrong shape; a checkpoint of MusicFM.
    """
    tensors = normalise_weight_norm(strip_prefix(tensors, "model."))
    for name in tensors:
        if name.startswith((FILTERS, WINDOW, QUANTISER)):
            raise ValueError(
                f"these tensors are not a MuQ checkpoint: '{name}' is in those of MusicFM alone. Load it as "
                "'musicfm-msd' or 'musicfm-fma'."
            )
    quantiser = {name: tensor for name, tensor in tensors.items() if name.startswith("rvq.")}
    indices = {
        int(found[1]) for name in quantiser if (found := re.match(r"rvq\.quantizers\.(\d{1,4})\.", name))
    }
    layout = published_layout(ConformerConfig(num_layers=0), num_codebooks=1 + max(indices, default=-1))
    expected = {name: torch.empty(layout[name], device="meta") for name in quantiser if name in layout}
    check_tensors(quantiser, expected, "a MuQ checkpoint")
    checkpoint = check_published({n: t for n, t in tensors.items() if n not in quantiser})
    return checkpoint._replace(unused=(*checkpoint.unused, *quantiser))


# Making one ------------------------------------------------------------------------------------------


def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> MuQ:
    """The published size with fresh weights as the published package draws them: torch's defaults everywhere."""
    config = ConformerConfig()
    if num_layers is not None:
        if not 0 < num_layers <= config.num_layers:
            raise ValueError(f"MuQ has {config.num_layers} layers, got num_layers={num_layers}")
        config = replace(config, num_layers=num_layers)
    return fresh(config, generator=generator)


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def fresh(
    config: ConformerConfig, conv_channels: int = CONV_CHANNELS, generator: torch.Generator | None = None
) -> MuQ:
    """Any size with fresh weights, drawn like MusicFM's. Without a generator they are drawn from one with seed 0."""
    backbone = outline(config, conv_channels)
    drawn = musicfm.fresh(MSD, config, conv_channels, generator)
    backbone.load_state_dict(drawn.state_dict(), assign=True)  # taken over, not copied
    return backbone


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> MuQ:
    """A MuQ from the official tensors. Sizes follow from their shapes.

    Args:
        tensors: under official names, with or without the leading "model.".
        config: the published `config.json`. Read are `stat` (mean and deviation of the log-mel spectrum; without it
            those of the Million Song Dataset), and what would make another model of the same tensors.
        num_layers: keep the first blocks only.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, a config of another model, or more layers than
            there are.
    """
    checkpoint = check_muq(tensors)
    published = checkpoint.config
    statistics = _statistics(config, published)
    depth = published.num_layers if num_layers is None else num_layers
    if not 0 < depth <= published.num_layers:
        raise ValueError(f"these weights have {published.num_layers} layers, got num_layers={num_layers}")
    backbone = outline(replace(published, num_layers=depth), checkpoint.conv_channels, statistics)
    for module in backbone.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
    backbone.load_state_dict(our_tensors(checkpoint, depth))
    backbone.unused_tensors = checkpoint.unused
    return backbone


def outline(
    config: ConformerConfig | None = None, conv_channels: int = CONV_CHANNELS, statistics: Statistics = MSD
) -> MuQ:
    """A backbone whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return MuQ(statistics, config, conv_channels)


def _statistics(config: Mapping[str, Any], sizes: ConformerConfig) -> Statistics:
    """The statistics in a published config, after a look at what no tensor shows."""
    conformer = config.get("w2v2_config") or {}
    heads = {"num_attention_heads": sizes.num_heads}
    for section, allowed in ((config, ONLY), (conformer, ONLY_CONFORMER | heads)):
        for key, value in allowed.items():
            if key in section and section[key] != value:
                raise ValueError(f"{key} = {section[key]!r} in the config is not supported, only {value!r}")
    given = config.get("stat") or {}
    statistics = Statistics(
        float(given.get("melspec_2048_mean", MSD.mean_db)), float(given.get("melspec_2048_std", MSD.std_db))
    )
    if not (math.isfinite(statistics.mean_db) and math.isfinite(statistics.std_db) and statistics.std_db > 0):
        raise ValueError(f"not the mean and deviation of a spectrum in dB: {statistics}")
    return statistics


# Registry --------------------------------------------------------------------------------------------


BACKBONES.add(
    "muq-large-msd",
    BackboneSpec(
        name="muq-large-msd",
        summary="MuQ, 12 conformer blocks, 1024-d at 25 Hz, Mel-RVQ targets, trained on the Million Song Dataset",
        build=build,
        from_published=from_published,
        weights=OfficialWeights(
            # Size and layout agree to the byte: see `published_layout` and its test.
            checkpoint=OfficialFile(
                "OpenMuQ/MuQ-large-msd-iter",
                "model.safetensors",
                1_333_825_096,
                "273febab2be02872c37d2c37e48a9d6c52c1c9392f3eeeabd498efa281ccb7a6",
            ),
            config=OfficialFile(
                "OpenMuQ/MuQ-large-msd-iter",
                "config.json",
                3_133,
                "237335ee27d8fb951ce778701a12a79e06c51ae636dd786f97e45f51ce532543",
                hash_source="spec",
            ),
            licence="CC-BY-NC-4.0",
            licence_note="As stated in the README and LICENSE_weights of OpenMuQ's package; its code is MIT.",
            default_config={
                **ONLY,
                "encoder_dim": 1024,
                "encoder_depth": 12,
                "stat": {
                    "melspec_2048_cnt": 14282760192,
                    "melspec_2048_mean": MSD.mean_db,
                    "melspec_2048_std": MSD.std_db,
                },
            },
        ),
        weights_licence="CC-BY-NC-4.0",
        commercial_use=False,
        published_parameters=PUBLISHED_PARAMETERS,
        notes=(
            "Layer 12 is what its authors call its features; they advise float32.",
            "Layer 12 has passed the encoder's final norm, layers 0 to 11 have not.",
            "Trained on less data than the models of its paper, whose numbers it may not reach (its authors).",
        ),
        # README of the package, which does not say how many hours these are.
        pretraining=Pretraining("the Million Song Dataset; less than the models of its paper had", ("msd",)),
        paper=PAPER,
        outline=outline,
    ),
)
