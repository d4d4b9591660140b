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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiation.backbones import hubert_stem
from audiation.backbones.attention import Attention
from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, LocalStem
from audiation.backbones.conformer import ConformerConfig, ConformerEncoder
from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.hubert_layout import draw_encoder, draw_stem, make_encoder
from audiation.backbones.musicfm import MSD, PAPER, Statistics, draw_default_weights
from audiation.backbones.musicfm import Stem as MelStem
from audiation.backbones.transformer import TransformerEncoder
from audiation.choices import parse_choices
from audiation.weights import check_tensors

ENCODERS = ("conformer", "bert")
WAVEFORM_HOP_SAMPLES = 320  # of the seven convolutions on the waveform
# Frames per second -> mel frames per second, and the time strides of the two residual blocks. 75 is no whole part of
# the usual 100 mel frames per second, hence 150.
MEL_RATES = {25: (100, (2, 2)), 50: (100, (2, 1)), 75: (150, (2, 1))}


@dataclass(frozen=True)
class Sizes:
    """dim: D. ffn_dim: of the feed-forward networks. conv_channels: of the stem's convolutions."""

    dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    conv_channels: int


# A block of a conformer has nearly twice the parameters of a block of BERT, so it has half as many. The papers name the
# sizes and print no widths: 330m are those of the released MusicFM and MERT, bert:95m is HuBERT base, and a conformer
# of 24 blocks of 1,024, as BEST-RQ has for speech, counts 0.61 billion; that is what "660m" is here.
SIZES: dict[tuple[str, str], Sizes] = {
    ("conformer", "mini"): Sizes(128, 4, 512, 4, 32),
    ("conformer", "95m"): Sizes(768, 12, 3072, 6, 256),
    ("conformer", "330m"): Sizes(1024, 16, 4096, 12, 512),
    ("conformer", "660m"): Sizes(1024, 16, 4096, 24, 512),
    ("bert", "mini"): Sizes(128, 4, 512, 8, 32),
    ("bert", "95m"): Sizes(768, 12, 3072, 12, 256),
    ("bert", "330m"): Sizes(1024, 16, 4096, 24, 512),
    ("bert", "660m"): Sizes(1024, 16, 4096, 48, 512),
}
WAVEFORM_CHANNELS = {"mini": 64}  # of the convolutions on the waveform; elsewhere 512 as published


@dataclass(frozen=True)
class Architecture:
    """What decides the shape of a backbone; the short form is "encoder:field=value,...".

    encoder: "conformer": MusicFM's. "bert": HuBERT's transformer, whose positions are a convolution.
    stem: "mel": normalised log-mel and two residual blocks, MusicFM's. "waveform": seven convolutions, HuBERT's.
    size: see `SIZES`; dim, num_heads, ffn_dim, num_layers, conv_channels replace single numbers of it.
    frame_rate_hz: of the output. On mel spectra the hop is 10 ms, at 75 Hz 6.7 ms; the blocks halve time twice at 25 Hz
        and once at 50 and 75. On waveforms a frame is 320 samples: 75 Hz at 24 kHz, 50 Hz at 16 kHz.
    norm: of "bert"; a conformer has its own, before its modules. Yuan's thesis on MERT-330M in float16 (section 5.3;
        MERT spec, 3.7):
        "post": HuBERT base, MERT-95M. At 330M it was unstable: gradients clipped all the time, spikes of the loss.
        "pre": HuBERT large, MERT-330M. Let the training go on: it crashed near step 50,000 with gradients clipped at
        10, and some 40,000 steps after a restart with 1.
        "deepnorm": post-norm with skip branches times (2 L)^(1/4) and smaller first weights. Collapsed near 20,000.
    attention_relax: constant of `attention.relaxed_attention`; None: without. With "pre" and 32 the thesis' run was
        stable beyond 100,000 steps, although the released code never executes it. In bfloat16 nothing needs it.
    conv_norm: of "waveform": "group", over the clip, after the first convolution (HuBERT base, MERT), or "layer", over
        channels after each (data2vec).
    dropout: one rate, in training only; 0.1 in MusicFM and MERT-95M, 0 in MERT-330M. None of activations in "bert", nor
        of the stem with conv_norm="layer", as in the published recipes.
    max_seconds: what it is trained to hear at once.

    Raises:
        ValueError: choices that do not go together, or numbers that do not fit.
    """

    encoder: Literal["conformer", "bert"] = "conformer"
    stem: Literal["mel", "waveform"] = "mel"
    size: Literal["mini", "95m", "330m", "660m"] = "mini"
    dim: int | None = None
    num_heads: int | None = None
    ffn_dim: int | None = None
    num_layers: int | None = None
    conv_channels: int | None = None
    sample_rate_hz: int = 24_000
    frame_rate_hz: Literal[25, 50, 75] = 25
    norm: Literal["post", "pre", "deepnorm"] = "pre"
    attention_relax: float | None = None
    conv_norm: Literal["group", "layer"] = "group"
    dropout: float = 0.1
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("encoder", ENCODERS),
            ("stem", ("mel", "waveform")),
            ("size", tuple(dict.fromkeys(size for _, size in SIZES))),
            ("frame_rate_hz", tuple(MEL_RATES)),
            ("norm", ("post", "pre", "deepnorm")),
            ("conv_norm", ("group", "layer")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} of an architecture is one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                )
        for name, value in dataclasses.asdict(self.sizes).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} of an architecture is a whole number >= 1, got {value!r}")
        if self.sizes.dim % self.sizes.num_heads:
            raise ValueError(f"dim {self.sizes.dim} is not divisible by {self.sizes.num_heads} heads")
        if self.encoder == "conformer" and self.norm != "pre":
            raise ValueError(f"norm='{self.norm}' is for encoder 'bert'; a conformer has norms of its own")
        if self.encoder == "bert" and self.sizes.dim % HubertConfig.num_conv_pos_embedding_groups:
            groups = HubertConfig.num_conv_pos_embedding_groups
            raise ValueError(f"dim of 'bert' must be a multiple of {groups}, got {self.sizes.dim}")
        if self.stem == "mel" and self.conv_norm != "group":
            raise ValueError("conv_norm is for stem='waveform'; leave it away")
        if self.attention_relax is not None and not 1.0 <= self.attention_relax < math.inf:
            raise ValueError(f"attention_relax is None or a number >= 1, got {self.attention_relax}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 < self.max_seconds < math.inf:
            raise ValueError(
                "dropout must be from 0 to below 1 and max_seconds positive, got "
                f"{self.dropout} and {self.max_seconds}"
            )
        self._check_rates()

    def _check_rates(self) -> None:
        rate_hz = self.sample_rate_hz
        if self.stem == "waveform" and rate_hz != self.frame_rate_hz * WAVEFORM_HOP_SAMPLES:
            raise ValueError(
                f"stem='waveform' has a frame every {WAVEFORM_HOP_SAMPLES} samples: {self.frame_rate_hz} Hz needs "
                f"sample_rate_hz={self.frame_rate_hz * WAVEFORM_HOP_SAMPLES}, got {rate_hz}"
            )
        mel_rate_hz = MEL_RATES[self.frame_rate_hz][0]
        if self.stem == "mel" and (rate_hz < 1 or rate_hz % mel_rate_hz):
            raise ValueError(
                f"{self.frame_rate_hz} Hz come of {mel_rate_hz} mel frames per second, of which {rate_hz} Hz is no "
                "multiple. Take sample_rate_hz=24000."
            )

    @property
    def sizes(self) -> Sizes:
        """Those of `size`, with the numbers that were given in their place."""
        sizes = SIZES[self.encoder, self.size]
        if self.stem == "waveform":
            sizes = replace(sizes, conv_channels=WAVEFORM_CHANNELS.get(self.size, 512))
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(Sizes)}
        return replace(sizes, **{name: value for name, value in given.items() if value is not None})

    @property
    def time_strides(self) -> tuple[int, int]:
        """Of the two residual blocks on mel spectra."""
        return MEL_RATES[self.frame_rate_hz][1]

    @property
    def stacked_frames(self) -> int:
        """How many mel frames make a frame."""
        return math.prod(self.time_strides)

    @property
    def mel_hop_samples(self) -> int:
        """Samples between mel frames."""
        return self.sample_rate_hz // MEL_RATES[self.frame_rate_hz][0]


def parse_architecture(text: str) -> Architecture:
    """'bert:size=mini,frame_rate_hz=50' -> the architecture; fields that are not named keep their defaults.

    Raises:
        ValueError: another encoder, fields that it does not have, values that it does not take.
    """
    name, _, choices = text.strip().partition(":")
    if not is_architecture(text):
        raise ValueError(f"an architecture begins with {' or '.join(ENCODERS)}, got '{text}'")
    values = parse_choices(Architecture, choices, f"architecture '{name.strip()}'")
    if "encoder" in values:
        raise ValueError(f"the encoder is what stands before the colon: '{values['encoder']}:...'")
    return Architecture(encoder=name.strip(), **values)  # type: ignore[arg-type]


def format_architecture(architecture: Architecture) -> str:
    """The short form: the encoder and the fields that differ from the defaults."""
    given = [
        f"{f.name}={getattr(architecture, f.name)}"
        for f in dataclasses.fields(architecture)
        if f.name != "encoder" and getattr(architecture, f.name) != f.default
    ]
    return architecture.encoder + (":" + ",".join(given) if given else "")


def is_architecture(text: str) -> bool:
    """Whether a name begins as an architecture does; `parse_architecture` says whether it is one."""
    return text.strip().partition(":")[0].strip() in ENCODERS


class BuiltBackbone(Backbone):
    """Waveform `(B, S)` -> layers 0..L, each `(B, T, D)`. Its parameters have shapes only; see `build_architecture`.

    Layers and positions are those of `musicfm.py` (conformer) and `hubert_layout.py` (bert).

    statistics: mean and deviation of the spectra, of the corpus it is trained on; read with stem "mel" only.
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
        statistics: of the log-mel spectra of the corpus; None: those of the Million Song Dataset.
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
