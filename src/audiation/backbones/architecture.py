"""Encoders to pre-train: conformer or BERT-style, on mel spectra or waveforms, at any size, as one frozen value.

    build_architecture(parse_architecture("conformer:size=330m,frame_rate_hz=50"))

What the MusicFM paper (Won, Hung & Le 2024, table 1) and the thesis of Yuan (2023, chapters 4 and 5) compare. Weights
are fresh; trained ones are kept under our own names, with `published_config` beside them, and load as
`load_backbone("conformer", FOLDER)` or `load_backbone("bert", FOLDER)`, whatever size they have.

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `L` blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiation.backbones import hubert_stem
from audiation.backbones.architecture_choices import (
    ENCODERS,
    SIZES,
    WAVEFORM_HOP_SAMPLES,
    Architecture,
    Sizes,
    format_architecture,
    is_architecture,
    parse_architecture,
)
from audiation.backbones.attention import Attention
from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, LocalStem
from audiation.backbones.conformer import ConformerConfig, ConformerEncoder
from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.hubert_layout import draw_encoder, draw_stem, make_encoder
from audiation.backbones.musicfm import MSD, PAPER, Statistics, draw_default_weights
from audiation.backbones.musicfm import Stem as MelStem
from audiation.backbones.transformer import TransformerEncoder
from audiation.weights import check_tensors

__all__ = [
    "ENCODERS",
    "SIZES",
    "Architecture",
    "BuiltBackbone",
    "Sizes",
    "build_architecture",
    "format_architecture",
    "from_published",
    "is_architecture",
    "outline",
    "parse_architecture",
    "published_config",
    "published_tensors",
]


class BuiltBackbone(Backbone):
    """Waveform `(B, S)` -> layers 0..L, each `(B, T, D)`. Its parameters have shapes only; see `build_architecture`.

    Layers and positions are those of `musicfm.py` (conformer) and `hubert_layout.py` (bert).

    statistics: mean and deviation that spectra are normalised with; read with stem "mel" only. The default is that of
        the Million Song Dataset, which MusicFM was published with: pre-training leaves it, whatever the corpus. Spectra
        of another corpus then have a mean and a deviation that are not quite 0 and 1. What it was is kept beside the
        weights.
    num_layers: keep the first blocks only. The encoder's final norm follows the last one kept.
    """

    stem: MelStem | hubert_stem.Stem
    encoder: ConformerEncoder | TransformerEncoder
    frame_rate_hz: float
    hop_samples: int

    def __init__(
        self, architecture: Architecture, statistics: Statistics = MSD, num_layers: int | None = None
    ) -> None:
        super().__init__()
        sizes = architecture.sizes
        depth = sizes.num_layers if num_layers is None else num_layers
        if not 0 < depth <= sizes.num_layers:
            raise ValueError(
                f"{format_architecture(architecture)} has {sizes.num_layers} layers, got num_layers={num_layers}"
            )
        self.architecture, self.statistics = architecture, statistics
        self.name = architecture.encoder
        self.sample_rate_hz = architecture.sample_rate_hz
        self.num_layers, self.dim, self.max_seconds = depth, sizes.dim, architecture.max_seconds
        with torch.device("meta"):
            self.stem = _make_stem(architecture, statistics)
            self.encoder = _make_encoder(architecture, depth)
        for module in self.encoder.modules():
            if isinstance(module, Attention):
                module.relaxation = architecture.attention_relax
        if isinstance(self.stem, MelStem):
            self.hop_samples = architecture.mel_hop_samples * architecture.stacked_frames
            self.min_samples, self.first_frame_seconds = self.stem.mel.min_samples, 0.0
            self.normalisation, self.accepts_padding = "corpus-statistics", False
            self.local_stem = LocalStem(self.hop_samples, _edge_frames(architecture, self.stem))
        else:
            self.hop_samples = WAVEFORM_HOP_SAMPLES
            self.min_samples = hubert_stem.samples_needed(1, self.stem.convs.config)
            self.first_frame_seconds = self.min_samples / 2 / self.sample_rate_hz
            self.normalisation = "clip-unit-variance"
            # A conformer's stem may be padded too, but nobody has trained one that way.
            self.accepts_padding = architecture.conv_norm == "layer" and architecture.encoder == "bert"
        self.frame_rate_hz = self.sample_rate_hz / self.hop_samples

    def num_frames(self, num_samples: int) -> int:
        if isinstance(self.stem, hubert_stem.Stem):
            return hubert_stem.frames_of(num_samples, self.stem.convs.config)
        num_frames = self.stem.mel.num_frames(num_samples)
        for stride in self.architecture.time_strides:
            num_frames = math.ceil(num_frames / stride)
        return num_frames

    def project(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        if isinstance(self.stem, hubert_stem.Stem):
            return self.stem(waveform, num_samples).projected
        return self.stem(waveform)


# Making one ------------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained
def build_architecture(
    architecture: Architecture,
    generator: torch.Generator | None = None,
    statistics: Statistics | None = None,
    num_layers: int | None = None,
) -> BuiltBackbone:
    """A backbone in eval mode with fresh weights, drawn from the generator (None: one with seed 0).

    Conformers and stems on mel spectra have torch's defaults as MusicFM, the others what `hubert_layout.build` has.

    Args:
        statistics: of log-mel spectra, in dB; None: those of the Million Song Dataset, see `BuiltBackbone`.
        num_layers: keep the first blocks only.

    Raises:
        ValueError: more layers than there are.
    """
    backbone = BuiltBackbone(architecture, statistics or MSD, num_layers)
    generator = generator or torch.Generator().manual_seed(0)
    _give_storage(backbone)
    if isinstance(backbone.stem, MelStem):
        draw_default_weights(backbone.stem, generator)
    else:
        draw_stem(backbone.stem, generator)
    if isinstance(backbone.encoder, ConformerEncoder):
        draw_default_weights(backbone.encoder, generator)
    else:
        draw_encoder(backbone.encoder, _hubert_config(architecture), generator)
    return backbone.eval()


def outline(architecture: Architecture) -> BuiltBackbone:
    """A backbone of these sizes whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    return BuiltBackbone(architecture)


def published_tensors(backbone: BuiltBackbone) -> dict[str, Tensor]:
    """All weights on the CPU under our own names, for `from_published`.

    Raises:
        ValueError: a method has been injected; merge it first.
    """
    if backbone.adapted_with is not None:
        raise ValueError(
            f"this backbone is adapted with {backbone.adapted_with}. Call `audiation.merge` on it first."
        )
    return {name: t.detach().cpu().contiguous().clone() for name, t in backbone.state_dict().items()}


def published_config(backbone: BuiltBackbone) -> dict[str, Any]:
    """What `from_published` needs besides the tensors, for JSON. A backbone that was cut stays cut."""
    architecture = backbone.architecture
    if backbone.num_layers != architecture.sizes.num_layers:
        if architecture.norm == "deepnorm":
            raise ValueError(
                "DeepNorm's scale follows from the whole depth, so a cut backbone cannot be written"
            )
        architecture = replace(architecture, num_layers=backbone.num_layers)
    statistics = backbone.statistics
    return {
        "architecture": dataclasses.asdict(architecture),
        "mean_db": statistics.mean_db,
        "std_db": statistics.std_db,
    }


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    *,
    encoder: str | None = None,
) -> BuiltBackbone:
    """The backbone that `published_tensors` and `published_config` describe, in eval mode.

    Args:
        num_layers: keep the first blocks only.
        encoder: the one that was asked for; None: whichever.

    Raises:
        ValueError: tensors or fields that are missing, unknown or do not fit; another encoder.
    """
    architecture = _read_architecture(config)
    if encoder is not None and architecture.encoder != encoder:
        raise ValueError(
            f"these weights are of encoder '{architecture.encoder}', not '{encoder}'. Load them as "
            f"'{architecture.encoder}'."
        )
    statistics = Statistics(
        float(config.get("mean_db", MSD.mean_db)), float(config.get("std_db", MSD.std_db))
    )
    if not (math.isfinite(statistics.mean_db) and math.isfinite(statistics.std_db) and statistics.std_db > 0):
        raise ValueError(f"not the mean and deviation of a spectrum in dB: {statistics}")
    whole = BuiltBackbone(architecture)
    check_tensors(tensors, whole.state_dict(), f"a backbone {format_architecture(architecture)}")
    backbone = BuiltBackbone(architecture, statistics, num_layers)
    state = backbone.state_dict()
    held = {name: tensors[name].detach().to(state[name].dtype).clone() for name in state}
    _give_storage(backbone)
    backbone.load_state_dict(held)
    return backbone.eval()


def _read_architecture(config: Mapping[str, Any]) -> Architecture:
    if "architecture" not in config:
        raise ValueError("the config has no 'architecture'; it is written beside the weights by pre-training")
    fields = dict(config["architecture"])
    known = {f.name for f in dataclasses.fields(Architecture)}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"the config has an architecture with '{unknown[0]}', which is unknown here: a newer version's?"
        )
    return Architecture(**fields)


def _give_storage(backbone: nn.Module) -> None:
    """Parameters and statistics get storage without values; tables that were computed stay."""
    for module in backbone.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)


def _make_stem(architecture: Architecture, statistics: Statistics) -> MelStem | hubert_stem.Stem:
    sizes = architecture.sizes
    if architecture.stem == "waveform":
        return hubert_stem.Stem(_hubert_config(architecture), normalise=True)
    return MelStem(
        statistics,
        sizes.conv_channels,
        sizes.dim,
        sample_rate_hz=architecture.sample_rate_hz,
        mel_hop_samples=architecture.mel_hop_samples,
        time_strides=architecture.time_strides,
    )


def _make_encoder(architecture: Architecture, num_layers: int) -> ConformerEncoder | TransformerEncoder:
    sizes = architecture.sizes
    if architecture.encoder == "bert":
        return make_encoder(_hubert_config(architecture), num_layers)
    return ConformerEncoder(
        ConformerConfig(sizes.dim, sizes.num_heads, sizes.ffn_dim, num_layers, dropout=architecture.dropout)
    )


def _hubert_config(architecture: Architecture) -> HubertConfig:
    """Of the parts that are in the HuBERT layout. Its depth is the whole one, from which DeepNorm's scales follow."""
    sizes, rate = architecture.sizes, architecture.dropout
    return HubertConfig(
        hidden_size=sizes.dim,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.ffn_dim,
        do_stable_layer_norm=architecture.norm == "pre",
        deepnorm=architecture.norm == "deepnorm",
        feat_extract_norm=architecture.conv_norm,
        conv_dim=(sizes.conv_channels,) * len(HubertConfig.conv_kernel),
        hidden_dropout=rate,
        attention_dropout=rate,
        activation_dropout=0.0,  # as pre-trained (MERT spec, 3.6), whatever the configs of released weights say
        feat_proj_dropout=0.0 if architecture.conv_norm == "layer" else rate,  # data2vec: MERT spec, 5.2
    )


def _edge_frames(architecture: Architecture, stem: MelStem) -> int:
    """How many frames at either end of a clip see its end: half an FFT window, and four convolutions of width 3."""
    first, second = architecture.time_strides
    mel_frames = stem.mel.fft_samples / 2 / stem.mel.hop_samples + 1 + first + first + first * second
    return math.ceil(mel_frames / architecture.stacked_frames)


# Registry --------------------------------------------------------------------------------------------------


def _build_default(
    encoder: Literal["conformer", "bert"],
    num_layers: int | None = None,
    generator: torch.Generator | None = None,
) -> BuiltBackbone:
    return build_architecture(Architecture(encoder), generator, num_layers=num_layers)


def _add(encoder: Literal["conformer", "bert"], summary: str) -> None:
    BACKBONES.add(
        encoder,
        BackboneSpec(
            name=encoder,
            summary=summary,
            build=partial(_build_default, encoder),
            from_published=partial(from_published, encoder=encoder),
            notes=(
                "Sizes are those of the weights. Without weights it is the one of size 'mini'.",
                "Layer L has passed the encoder's final norm, layers 0 to L - 1 have not, unless norm='post'.",
            ),
            paper=PAPER,
            outline=partial(outline, Architecture(encoder)),
        ),
    )


_add("conformer", "conformers of any size, from one's own pre-training")
_add("bert", "BERT-style encoders of any size, from one's own pre-training")
