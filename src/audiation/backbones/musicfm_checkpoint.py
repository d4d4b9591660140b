"""What an official MusicFM checkpoint holds: names, shapes, and how they become ours.

465 tensors under "model.": 406 parameters, 59 buffers. Linear maps that are published as convolutions over one frame,
a positional convolution that is never executed, the prediction head and the quantiser of pre-training, and tables
that follow from formulas are among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from audiation.backbones.conformer import ConformerConfig, rotary_frequencies
from audiation.features import LogMel
from audiation.weights import check_tensors, normalise_weight_norm, strip_prefix

SAMPLE_RATE_HZ = 24_000
FFT_SAMPLES = 2048
MEL_HOP_SAMPLES = 240
NUM_MEL_BANDS = 128
NUM_RESIDUAL_BLOCKS = 2
STRIDE = 2  # of a residual block, in time and in frequency
CONV_CHANNELS = 512

POSITIONS = "conformer.pos_conv_embed.conv"
POSITIONS_DIRECTION, FUSED_POSITIONS = f"{POSITIONS}.weight_v", f"{POSITIONS}.weight"
POSITION_TAPS, POSITION_GROUPS = 128, 16
FILTERS = "preprocessor_melspec_2048.mel_stft.mel_scale.fb"
WINDOW = "preprocessor_melspec_2048.mel_stft.spectrogram.window"
FREQUENCIES = "conformer.embed_positions.inv_freq"
QUANTISER = "quantizer_melspec_2048_0"
BUFFERS = (FILTERS, WINDOW, FREQUENCIES, QUANTISER, "running_mean", "running_var", "num_batches_tracked")

# Official piece of a name -> ours, in a block of the stem and in a block of the encoder.
STEM_NAMES = {
    "conv1": "conv1",
    "bn1": "norm1",
    "conv2": "conv2",
    "bn2": "norm2",
    "conv3": "shortcut",
    "bn3": "shortcut_norm",
}
BLOCK_NAMES = {
    "ffn1_layer_norm": "ffn1.norm",
    "ffn1.intermediate_dense": "ffn1.up",
    "ffn1.output_dense": "ffn1.down",
    "self_attn_layer_norm": "attention_norm",
    "self_attn.linear_q": "attention.query",
    "self_attn.linear_k": "attention.key",
    "self_attn.linear_v": "attention.value",
    "self_attn.linear_out": "attention.output",
    "conv_module.layer_norm": "conv.norm",
    "conv_module.pointwise_conv1": "conv.pointwise1",
    "conv_module.depthwise_conv": "conv.depthwise.conv",
    "conv_module.batch_norm": "conv.depthwise.norm",
    "conv_module.pointwise_conv2": "conv.pointwise2",
    "ffn2_layer_norm": "ffn2.norm",
    "ffn2.intermediate_dense": "ffn2.up",
    "ffn2.output_dense": "ffn2.down",
    "final_layer_norm": "final_norm",
}
OTHER_NAMES = {"conv.linear": "stem.projection", "conformer.layer_norm": "encoder.final_norm"}


class Checkpoint(NamedTuple):
    """Official tensors that were checked.

    tensors: under official names without "model.", weight norm in its old spelling.
    unused: names of those that no forward pass reads.
    """

    config: ConformerConfig
    conv_channels: int
    tensors: dict[str, Tensor]
    unused: tuple[str, ...]


def check_published(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Sizes from shapes; every name and shape compared with the published layout.

    Tensors that no forward pass reads may be missing, but the table of rotary frequencies tells the number of heads.

    Raises:
        ValueError: tensors missing, unknown, or of a wrong shape; or tables of another front end.
    """
    tensors = normalise_weight_norm(strip_prefix(tensors, "model."))
    config, conv_channels = _sizes(tensors)
    layout = published_layout(config, conv_channels, _num_codes(tensors))
    layout[FUSED_POSITIONS] = layout[POSITIONS_DIRECTION]  # where weight norm was folded away
    unused = tuple(name for name in tensors if name in layout and our_name(name) is None)
    expected = {
        name: torch.empty(shape, device="meta")
        for name, shape in layout.items()
        if name in unused or our_name(name) is not None
    }
    check_tensors(tensors, expected, "a MusicFM checkpoint")
    _check_tables(tensors, config)
    return Checkpoint(config, conv_channels, tensors, unused)


def published_layout(
    config: ConformerConfig, conv_channels: int = CONV_CHANNELS, num_codes: int = 4096
) -> dict[str, tuple[int, ...]]:
    """Official name (without "model.") -> shape, of every tensor in an official checkpoint."""
    dim, ffn, channels = config.dim, config.ffn_dim, conv_channels
    bins, code_dim, taps, groups = FFT_SAMPLES // 2 + 1, 16, POSITION_TAPS, POSITION_GROUPS
    stacked_mel = NUM_MEL_BANDS * STRIDE**NUM_RESIDUAL_BLOCKS
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (dim,),
        WINDOW: (FFT_SAMPLES,),
        FILTERS: (bins, NUM_MEL_BANDS),
    }
    shapes |= {
        f"{QUANTISER}.random_projection": (stacked_mel, code_dim),
        f"{QUANTISER}.codebook": (num_codes, code_dim),
    }

    def affine(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def batch_norm(name: str, width: int) -> None:
        affine(name, width)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    for b, channels_in in enumerate((1, channels)):
        for k, width_in in enumerate((channels_in, channels, channels_in), start=1):
            affine(f"conv.conv.{b}.conv{k}", channels, width_in, 3, 3)
            batch_norm(f"conv.conv.{b}.bn{k}", channels)
    affine("conv.linear", dim, channels * NUM_MEL_BANDS // STRIDE**NUM_RESIDUAL_BLOCKS)
    shapes[FREQUENCIES] = (dim // config.num_heads // 2,)
    shapes |= {f"{POSITIONS}.bias": (dim,), f"{POSITIONS}.weight_g": (1, 1, taps)}
    shapes[POSITIONS_DIRECTION] = (dim, dim // groups, taps)
    affine("conformer.layer_norm", dim)
    for i in range(config.num_layers):
        layer = f"conformer.layers.{i}"
        for norm in ("ffn1_layer_norm", "self_attn_layer_norm", "ffn2_layer_norm", "final_layer_norm"):
            affine(f"{layer}.{norm}", dim)
        for ffn_name in ("ffn1", "ffn2"):
            affine(f"{layer}.{ffn_name}.intermediate_dense", ffn, dim)
            affine(f"{layer}.{ffn_name}.output_dense", dim, ffn)
        for projection in ("q", "k", "v", "out"):
            affine(f"{layer}.self_attn.linear_{projection}", dim, dim)
        conv = f"{layer}.conv_module"
        affine(f"{conv}.layer_norm", dim)
        affine(f"{conv}.pointwise_conv1", 2 * dim, dim, 1, bias=False)
        affine(f"{conv}.depthwise_conv", dim, 1, config.conv_kernel, bias=False)
        batch_norm(f"{conv}.batch_norm", dim)
        affine(f"{conv}.pointwise_conv2", dim, dim, 1, bias=False)
    affine("linear", num_codes, dim)
    return shapes


def published_parameters(config: ConformerConfig) -> int:
    """How many parameters an official checkpoint of that size has; those no forward pass uses are counted."""
    layout = published_layout(config)
    return sum(math.prod(s) for n, s in layout.items() if not any(buffer in n for buffer in BUFFERS))


def positional_parameters(dim: int) -> int:
    """How many parameters the positional convolution has that is published and never executed."""
    return dim + POSITION_TAPS + dim * (dim // POSITION_GROUPS) * POSITION_TAPS


def our_name(name: str) -> str | None:
    """Our name of an official tensor; None for those that no forward pass reads."""
    path, _, leaf = name.rpartition(".")
    if path in OTHER_NAMES:
        return f"{OTHER_NAMES[path]}.{leaf}"
    if found := re.fullmatch(r"conv\.conv\.(\d+)\.(\w+)", path):
        return f"stem.blocks.{found[1]}.{STEM_NAMES[found[2]]}.{leaf}"
    if found := re.fullmatch(r"conformer\.layers\.(\d+)\.(.+)", path):
        return f"encoder.blocks.{found[1]}.{BLOCK_NAMES[found[2]]}.{leaf}"
    return None


def our_tensors(checkpoint: Checkpoint, num_layers: int) -> dict[str, Tensor]:
    """State dict of a model of ours with the first `num_layers` blocks."""
    state = {}
    for name, tensor in checkpoint.tensors.items():
        layer = re.match(r"conformer\.layers\.(\d+)\.", name)
        ours = our_name(name)
        if ours is None or (layer and int(layer[1]) >= num_layers):
            continue
        if "pointwise" in ours:  # a convolution over one frame is a linear map
            tensor = tensor.squeeze(-1)
        elif (
            ours == "stem.projection.weight"
        ):  # (channel, frequency) -> (frequency, channel): see Stem.project
            num_bands = NUM_MEL_BANDS // STRIDE**NUM_RESIDUAL_BLOCKS
            tensor = tensor.unflatten(1, (-1, num_bands)).transpose(1, 2).flatten(1)
        state[ours] = tensor
    return state


def official_tensors(state: Mapping[str, Tensor], config: ConformerConfig) -> dict[str, Tensor]:
    """The inverse of `our_tensors`: our state dict under the official names, with "model." before them.

    With it goes the table of rotary frequencies, which tells the number of heads. Tensors that no forward pass reads
    are not there.
    """
    channels = len(state["stem.blocks.0.conv1.weight"])
    official: dict[str, Tensor] = {FREQUENCIES: rotary_frequencies(config.dim // config.num_heads)}
    for name in published_layout(config, channels):
        ours = our_name(name)
        if ours is None:
            continue
        tensor = state[ours]
        if "pointwise" in ours:
            tensor = tensor.unsqueeze(-1)
        elif ours == "stem.projection.weight":
            tensor = tensor.unflatten(1, (-1, channels)).transpose(1, 2).flatten(1)
        official[name] = tensor
    return {f"model.{name}": tensor.detach().contiguous().clone() for name, tensor in official.items()}


def _sizes(tensors: Mapping[str, Tensor]) -> tuple[ConformerConfig, int]:
    """Sizes and number of stem channels, read off the tensors that show them."""
    first = "conformer.layers.0"
    telling = {
        "conv.conv.0.conv1.weight": 4,
        f"{first}.ffn1.intermediate_dense.weight": 2,
        f"{first}.conv_module.depthwise_conv.weight": 3,
        FREQUENCIES: 1,
    }
    for name, ndim in telling.items():
        if name not in tensors or tensors[name].ndim != ndim:
            found = f"it is {tuple(tensors[name].shape)}" if name in tensors else "it is missing"
            raise ValueError(
                f"these tensors are not a MusicFM checkpoint: '{name}' has {ndim} axes there, here {found}"
            )
    stem, ffn, depthwise, frequencies = (tensors[name] for name in telling)
    layers = {int(m[1]) for name in tensors if (m := re.match(r"conformer\.layers\.(\d+)\.", name))}
    dim = ffn.shape[1]
    num_heads = dim // (2 * max(1, len(frequencies)))
    return ConformerConfig(dim, max(1, num_heads), len(ffn), len(layers), depthwise.shape[-1]), len(stem)


def _num_codes(tensors: Mapping[str, Tensor]) -> int:
    for name in ("linear.weight", f"{QUANTISER}.codebook"):
        if name in tensors and tensors[name].ndim == 2:
            return len(tensors[name])
    return 4096


def _check_tables(tensors: Mapping[str, Tensor], config: ConformerConfig) -> None:
    """Tables that we compute ourselves have to be those of the checkpoint."""
    mel = LogMel(SAMPLE_RATE_HZ, FFT_SAMPLES, MEL_HOP_SAMPLES, NUM_MEL_BANDS)
    ours = {
        FILTERS: mel.filters,
        WINDOW: mel.window,
        FREQUENCIES: rotary_frequencies(config.dim // config.num_heads),
    }
    for name, table in ours.items():
        if name in tensors and not torch.allclose(tensors[name].float(), table, rtol=1e-5, atol=1e-6):
            difference = float((tensors[name].float() - table).abs().max())
            raise ValueError(
                f"'{name}' differs from MusicFM's by up to {difference:.1e}: a model with another front end or "
                "positions, which this class does not compute"
            )
