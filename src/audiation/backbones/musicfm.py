"""MusicFM (Won, Hung & Le, ICASSP 2024): log-mel, a convolutional stem, and a conformer at 25 frames per second.

Layers: 0 enters the conformer, k leaves block k. Layer L alone has passed the encoder's final norm: 12 of the whole
model, and 6 of a model cut to 6 blocks, whereas layer 6 of the whole model has not. These are the indices of the
published `get_latent`.

Shape letters: `B` batch, `S` samples, `M` mel bands, `C` channels, `T` frames, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    LocalStem,
    OfficialModule,
    Pretraining,
)
from audiation.backbones.conformer import ConformerConfig, ConformerEncoder
from audiation.backbones.derived import DerivesWeights, fold_batch_norm
from audiation.backbones.musicfm_checkpoint import (
    BLOCK_NAMES,
    CONV_CHANNELS,
    FFT_SAMPLES,
    MEL_HOP_SAMPLES,
    NUM_MEL_BANDS,
    NUM_RESIDUAL_BLOCKS,
    SAMPLE_RATE_HZ,
    STRIDE,
    check_published,
    our_tensors,
    positional_parameters,
)
from audiation.features import LogMel
from audiation.weights import OfficialFile, OfficialWeights

TRAINED_SECONDS = 30.0
# A frame sees 9 mel frames to either side (four convolutions of width 3 with strides 2, 1, 2, 1), and half an FFT
# window: 13.3 mel frames, of which four make a frame.
EDGE_FRAMES = 4
PUBLISHED_PARAMETERS = 328_932_480
PAPER = "Won, Hung & Le: A foundation model for music informatics, ICASSP 2024 (arXiv 2311.03318)"


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of the log-mel spectrum over the training corpus, in dB; one pair for all bands."""

    mean_db: float
    std_db: float


# Each belongs to one checkpoint, and nothing in a checkpoint reveals a swap.
MSD = Statistics(6.768444971712967, 18.417922652295623)
FMA = Statistics(3.0710578151459664, 20.999089814337626)


class MusicFM(Backbone):
    """Waveform at 24 kHz -> layers 0..L, each `(B, T, D)`, T = ceil(floor(S / 240) / 4).

    Frame t is centred on `0.04 t` seconds. In training mode the batch norms of stem and encoder follow the batch and
    update their statistics even when every parameter is frozen; keep frozen models in eval mode.

    unused_tensors: official names of published tensors that no forward pass reads, and which are not registered.
    """

    encoder: ConformerEncoder
    stem: Stem
    frame_rate_hz: float
    hop_samples: int
    unused_tensors: tuple[str, ...] = ()

    def __init__(
        self,
        statistics: Statistics,
        config: ConformerConfig | None = None,
        conv_channels: int = CONV_CHANNELS,
    ) -> None:
        super().__init__()
        config = config or ConformerConfig()
        self.name = "musicfm"
        self.stem = Stem(statistics, conv_channels, config.dim)
        self.encoder = ConformerEncoder(config)
        self.sample_rate_hz, self.hop_samples = SAMPLE_RATE_HZ, MEL_HOP_SAMPLES * STRIDE**NUM_RESIDUAL_BLOCKS
        self.frame_rate_hz = self.sample_rate_hz / self.hop_samples
        self.num_layers, self.dim = config.num_layers, config.dim
        self.min_samples, self.max_seconds = self.stem.mel.min_samples, TRAINED_SECONDS
        # Convolutions would mix padding into the last frames, and the published model has no mask for it.
        self.normalisation, self.accepts_padding = "corpus-statistics", False
        self.local_stem = LocalStem(step_samples=self.hop_samples, edge_frames=EDGE_FRAMES)
        self.unused_parameters = positional_parameters(config.dim)

    def num_frames(self, num_samples: int) -> int:
        num_frames = self.stem.mel.num_frames(num_samples)
        for _ in range(NUM_RESIDUAL_BLOCKS):
            num_frames = math.ceil(num_frames / STRIDE)
        return num_frames

    def project(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        return self.stem(waveform)

    def official_module(self, own: str) -> OfficialModule:
        block, _, name = own.removeprefix("encoder.blocks.").partition(".")
        official = next(theirs for theirs, ours in BLOCK_NAMES.items() if ours == name)
        return OfficialModule(f"conformer.layers.{block}.{official}", is_convolution="pointwise" in name)


class Stem(nn.Module):
    """Waveform `(B, S)` -> `(B, T, D)`: normalised log-mel, two residual blocks, projection.

    The defaults are those of MusicFM, whose blocks quarter the rate.

    time_strides: of each block. Frequency is halved by both, whatever they are.
    """

    def __init__(
        self,
        statistics: Statistics,
        channels: int,
        dim: int,
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        mel_hop_samples: int = MEL_HOP_SAMPLES,
        time_strides: tuple[int, int] = (STRIDE, STRIDE),
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.mel = LogMel(sample_rate_hz, FFT_SAMPLES, mel_hop_samples, NUM_MEL_BANDS)
        widths = zip((1, channels), time_strides, strict=True)
        self.blocks = nn.ModuleList(ResidualBlock(width, channels, stride) for width, stride in widths)
        self.projection = nn.Linear(channels * NUM_MEL_BANDS // STRIDE**NUM_RESIDUAL_BLOCKS, dim)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.project(self.features(waveform))

    def features(self, waveform: Tensor) -> Tensor:
        """`(B, M, S // hop)` float32, in deviations from the corpus mean; what BEST-RQ quantises."""
        return (self.mel(waveform) - self.statistics.mean_db) / self.statistics.std_db

    def project(self, mel_BMT: Tensor) -> Tensor:
        """Features -> `(B, T, D)`; as many mel frames make one as the product of the strides."""
        x = mel_BMT.unsqueeze(1).to(self.projection.weight.dtype)
        # Pixels with adjacent channels (channels_last) are half again as fast; a single channel has to be told.
        height, width = x.shape[2:]
        x = x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
        for block in self.blocks:
            x = block(x)  # (B, C, M / 2^i, T / strides so far)
        return self.projection(x.permute(0, 3, 2, 1).flatten(2))  # features ordered as (frequency, channel)


class ResidualBlock(DerivesWeights):
    """Two 3x3 convolutions beside a 3x3 shortcut, each with batch norm; halves frequency, and time by its stride."""

    def __init__(self, channels_in: int, channels: int, time_stride: int = STRIDE) -> None:
        super().__init__()
        self.stride = (STRIDE, time_stride)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1)
        self.shortcut_norm = nn.BatchNorm2d(channels)

    def derive(self) -> tuple[Tensor, ...]:
        pairs = ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.shortcut, self.shortcut_norm))
        folded = [fold_batch_norm(conv, norm) for conv, norm in pairs]
        weights = [self.rounded(w).contiguous(memory_format=torch.channels_last) for w, _ in folded]
        return (*weights, *(bias for _, bias in folded))

    def forward(self, x: Tensor) -> Tensor:
        if (derived := self.derived()) is None:
            h = F.relu(self.norm1(self.conv1(x)))
            return F.relu(self.norm2(self.conv2(h)) + self.shortcut_norm(self.shortcut(x)))
        weight1, weight2, weight3, bias1, bias2, bias3 = derived
        h = F.conv2d(x, weight1, bias1, stride=self.stride, padding=1).relu_()
        h = F.conv2d(self.rounded(h), weight2, bias2, padding=1)
        return h.add_(F.conv2d(x, weight3, bias3, stride=self.stride, padding=1)).relu_()


# Making one ------------------------------------------------------------------------------------------


def build(
    statistics: Statistics, num_layers: int | None = None, generator: torch.Generator | None = None
) -> MusicFM:
    """The published size with fresh weights as the reference draws them: torch's defaults everywhere."""
    config = ConformerConfig()
    if num_layers is not None:
        if not 0 < num_layers <= config.num_layers:
            raise ValueError(f"MusicFM has {config.num_layers} layers, got num_layers={num_layers}")
        config = replace(config, num_layers=num_layers)
    return fresh(statistics, config, generator=generator)


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def fresh(
    statistics: Statistics,
    config: ConformerConfig,
    conv_channels: int = CONV_CHANNELS,
    generator: torch.Generator | None = None,
) -> MusicFM:
    """Any size with fresh weights. Without a generator they are drawn from one with seed 0."""
    backbone = _without_values(statistics, config, conv_channels)
    draw_default_weights(backbone, generator or torch.Generator().manual_seed(0))
    return backbone


def draw_default_weights(root: nn.Module, generator: torch.Generator) -> None:
    """Torch's defaults in every linear map, convolution and norm below `root`, drawn from the generator."""
    for module in root.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_parameters()


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    statistics: Statistics = MSD,
) -> MusicFM:
    """A MusicFM from the official tensors. Sizes follow from their shapes.

    Args:
        tensors: under official names, with or without the leading "model.".
        config: the published statistics file; `melspec_2048_mean` and `melspec_2048_std` are read. Without them the
            statistics of the checkpoint are used; those of the sibling checkpoint are refused.
        num_layers: keep the first blocks only.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, statistics of the sibling model, another
            front end, or more layers than there are.
    """
    checkpoint = check_published(tensors)
    published = checkpoint.config
    depth = published.num_layers if num_layers is None else num_layers
    if not 0 < depth <= published.num_layers:
        raise ValueError(f"these weights have {published.num_layers} layers, got num_layers={num_layers}")
    sizes = replace(published, num_layers=depth)
    backbone = _without_values(_statistics(config, statistics), sizes, checkpoint.conv_channels)
    backbone.load_state_dict(our_tensors(checkpoint, depth))
    backbone.unused_tensors = checkpoint.unused
    return backbone


def outline(statistics: Statistics, config: ConformerConfig, conv_channels: int = CONV_CHANNELS) -> MusicFM:
    """A backbone of these sizes whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return MusicFM(statistics, config, conv_channels)


def _without_values(statistics: Statistics, config: ConformerConfig, conv_channels: int) -> MusicFM:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    backbone = outline(statistics, config, conv_channels)
    for module in backbone.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
    return backbone


def _statistics(config: Mapping[str, Any], bound: Statistics) -> Statistics:
    given = Statistics(
        float(config.get("melspec_2048_mean", bound.mean_db)),
        float(config.get("melspec_2048_std", bound.std_db)),
    )
    sibling = FMA if bound == MSD else MSD
    if given == sibling:
        raise ValueError(
            f"melspec_2048_mean = {given.mean_db} belongs to the sibling checkpoint; this one has {bound.mean_db}. "
            "Use the statistics file published with it, or leave them out."
        )
    if not (math.isfinite(given.mean_db) and math.isfinite(given.std_db) and given.std_db > 0):
        raise ValueError(f"not the mean and deviation of a spectrum in dB: {given}")
    return given


# Registry --------------------------------------------------------------------------------------------


MINI = ConformerConfig(dim=128, num_heads=4, ffn_dim=512, num_layers=4)
MINI_CHANNELS = 32


def build_mini(num_layers: int | None = None, generator: torch.Generator | None = None) -> MusicFM:
    """The same architecture at a size for a CPU: 128-d, 4 blocks, 32 channels in the stem. There are no weights."""
    depth = MINI.num_layers if num_layers is None else num_layers
    if not 0 < depth <= MINI.num_layers:
        raise ValueError(f"musicfm-mini has {MINI.num_layers} layers, got num_layers={num_layers}")
    return fresh(MSD, replace(MINI, num_layers=depth), MINI_CHANNELS, generator)


BACKBONES.add(
    "musicfm-mini",
    BackboneSpec(
        name="musicfm-mini",
        summary='MusicFM\'s architecture, 4 blocks of 128-d, for a CPU; untrained: only with weights="random"',
        build=build_mini,
        from_published=from_published,
        notes=("A size of our own; nothing is published under this name.",),
        paper=PAPER,
        outline=partial(outline, MSD, MINI, MINI_CHANNELS),
    ),
)


def _register(
    name: str,
    corpus: str,
    statistics: Statistics,
    pretraining: Pretraining,
    checkpoint: OfficialFile,
    config: OfficialFile,
    published_names: tuple[str, ...] = (),
) -> None:
    BACKBONES.add(
        name,
        BackboneSpec(
            name=name,
            summary=f"MusicFM, 12 conformer blocks, 1024-d at 25 Hz, trained on {corpus}",
            build=partial(build, statistics),
            from_published=partial(from_published, statistics=statistics),
            weights=OfficialWeights(
                checkpoint=checkpoint,
                config=config,
                licence="MIT",
                licence_note="As declared on the model card of minzwon/MusicFM.",
                default_config={
                    "melspec_2048_mean": statistics.mean_db,
                    "melspec_2048_std": statistics.std_db,
                },
            ),
            weights_licence="MIT",
            commercial_use=True,
            published_parameters=PUBLISHED_PARAMETERS,
            recommended_layer=7,
            published_names=published_names,
            notes=(
                "Layer 7 is what its authors recommend for frozen features, in float32.",
                "Layer 12 has passed the encoder's final norm, layers 0 to 11 have not.",
            ),
            pretraining=pretraining,
            paper=PAPER,
            outline=partial(outline, statistics, ConformerConfig()),
        ),
    )


_register(
    "musicfm-msd",
    "the Million Song Dataset",
    MSD,
    # PETL paper, 4.2.1 ("the one trained on the Million Song Dataset"); no source says how many hours.
    Pretraining("the Million Song Dataset; this checkpoint is not in the paper", ("msd",)),
    OfficialFile(
        "minzwon/MusicFM",
        "pretrained_msd.pt",
        1_316_802_088,
        "218b483a0256ddef736267425fabb166fd97008983696bb9270def464b47bded",
    ),
    OfficialFile(
        "minzwon/MusicFM",
        "msd_stats.json",
        2_277,
        "c36c61ab10ca4d2e7fdfefc3fcc15205316bec276a06a47baa3641a62c546f22",
        hash_source="spec",
    ),
    published_names=(
        "MusicFM",
    ),  # as the PETL paper calls it; the MusicFM paper has no row of this checkpoint
)
_register(
    "musicfm-fma",
    "the Free Music Archive",
    FMA,
    # FMA-large by its repository (MusicFM spec, d). The 8,000 hours are of the paper's FM9, which may be another file.
    Pretraining(
        "FMA-large of the Free Music Archive; the paper's nearest model, FM9, had 8,000 hours of it and may be another",
        ("fma",),
    ),
    OfficialFile(
        "minzwon/MusicFM",
        "pretrained_fma.pt",
        1_316_802_154,
        "68392eee13d34c2941b3761934abb6b1e67b2e9df498695bda2ea5c1087d4b96",
        mismatch_hint="The file offered before 2024-02-13 was a wrong one, as its authors said; fetch it again.",
    ),
    OfficialFile(
        "minzwon/MusicFM",
        "fma_stats.json",
        2_281,
        "5416e468018bae68c6231d4cbb2b11f0d11c04e6437881505ae427a3f8344904",
    ),
)
