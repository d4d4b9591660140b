"""MERT: a convolution stack on the waveform and a transformer encoder (the HuBERT layout).

Li et al. 2024, "MERT: Acoustic Music Understanding Model with Large-Scale Self-supervised Training". The same
layout, with layer norms in the convolution stack, is that of HuBERT large.

Layers: 0 is what enters block 1 (after projection and positions, and the encoder's norm in post-norm models);
i is what leaves block i. In the pre-norm model (330M) layer L has passed the encoder's norm while 1..L-1 are
raw residual streams: the convention of the official code, and of transformers before 5.16.

Nothing is masked here and no layer is dropped, in training mode neither.

Shape letters: `B` batch, `S` samples, `T` frames, `C` stem channels, `D` model width, `L` blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, OfficialModule, Pretraining
from audiation.backbones.transformer import PositionalConv, TransformerBlock, TransformerEncoder, gelu
from audiation.weights import OfficialFile, OfficialWeights, check_tensors, normalise_weight_norm

NORMALISE_EPS = 1e-7
STEM_NORM_EPS = 1e-5
INIT_STD = 0.02
# The stem runs in blocks of so many output frames. Its first activations have 64 times as many; on a CPU they
# stay in the cache.
BLOCK_FRAMES_CPU = 128
BLOCK_FRAMES_OTHER = 4096


@dataclass(frozen=True)
class MertConfig:
    """The fields of the published config that a forward pass depends on, under their published names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    do_stable_layer_norm: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    conv_bias: bool = False
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5
    deepnorm: bool = False
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    feat_proj_dropout: float = 0.1

    @classmethod
    def from_published(cls, config: Mapping[str, Any]) -> MertConfig:
        """Read a published `config.json`. Raises ValueError where it asks for what is not here."""
        required = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
        if missing := sorted(required - config.keys()):
            raise ValueError(f"the config lacks {', '.join(missing)}")
        only: dict[str, Any] = {
            "feature_extractor_cqt": False,
            "conv_pos_batch_norm": False,
            "feat_proj_layer_norm": True,
            "hidden_act": "gelu",
            "feat_extract_activation": "gelu",
        }
        for key, value in only.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} = {config[key]!r} is not supported, only {value!r}")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known
        }
        made = cls(**values)
        if made.feat_extract_norm not in ("group", "layer"):
            raise ValueError(f"feat_extract_norm is 'group' or 'layer', got {made.feat_extract_norm!r}")
        if not len(made.conv_dim) == len(made.conv_kernel) == len(made.conv_stride):
            raise ValueError("conv_dim, conv_kernel and conv_stride have different lengths")
        return made

    @property
    def skip_scale(self) -> float:
        """DeepNorm's alpha; 1 without it."""
        return (2 * self.num_hidden_layers) ** 0.25 if self.deepnorm else 1.0


class Mert(Backbone):
    """Waveform `(B, S)` -> layers 0..L, each `(B, T, D)`, one frame per 320 samples.

    Building draws no random numbers: the parameters have shapes only. `build` and `from_published` fill them.

    Args:
        config: sizes and norms; a model cut to its first blocks keeps the config of the whole one.
        num_layers: keep the first blocks only. In a pre-norm model the encoder's norm follows the last kept.
        normalise: bring every clip to zero mean and unit variance, as the published preprocessors do. (The v1
            models were pre-trained without; in group-norm models it matters for quiet clips only.)
    """

    stem: Stem
    encoder: TransformerEncoder
    max_seconds = 5.0

    def __init__(
        self,
        config: MertConfig,
        name: str,
        sample_rate_hz: int,
        num_layers: int | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        depth = config.num_hidden_layers if num_layers is None else num_layers
        if not 0 < depth <= config.num_hidden_layers:
            raise ValueError(f"{name} has {config.num_hidden_layers} layers, got num_layers={num_layers}")
        self.config, self.name, self.sample_rate_hz = config, name, sample_rate_hz
        self.num_layers, self.dim = depth, config.hidden_size
        self.normalisation = "clip-unit-variance" if normalise else "none"
        self.accepts_padding = config.feat_extract_norm == "layer"
        self.unused_tensors: tuple[str, ...] = ()
        with torch.device("meta"):
            self.stem = Stem(config, normalise)
            self.encoder = make_encoder(config, depth)
        self.hop_samples = math.prod(config.conv_stride)
        self.min_samples = samples_needed(1, config)
        self.frame_rate_hz = sample_rate_hz / self.hop_samples
        self.first_frame_seconds = self.min_samples / 2 / sample_rate_hz

    def num_frames(self, num_samples: int) -> int:
        return frames_of(num_samples, self.config)

    def project(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        return self.stem(waveform, num_samples).projected

    def official_module(self, own: str) -> OfficialModule:
        return OfficialModule(_official_module(own))


class StemOutput(NamedTuple):
    """projected: `(B, T, D)`, what the encoder takes. features: `(B, T, C)`, of the convolutions."""

    projected: Tensor
    features: Tensor


class Stem(nn.Module):
    """Waveform -> projected frames: level, seven convolutions, layer norm, linear map."""

    def __init__(self, config: MertConfig, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.convs = ConvStack(config)
        self.norm = nn.LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> StemOutput:
        """`(B, S)` and true lengths `(B,)` -> StemOutput."""
        if self.normalise:
            waveform = unit_variance(waveform, num_samples)
        features = self.convs(waveform)
        return StemOutput(self.dropout(self.projection(self.norm(features))), features)


class ConvStack(nn.Module):
    """Seven strided convolutions over the waveform, GELU after each: `(B, S)` -> `(B, T, C)`.

    With feat_extract_norm "group" the first output is normalised per channel over the whole clip, with
    "layer" every output over its channels.

    The group norm costs no pass over what it normalises, the largest tensor of the model: mean and variance
    of `w . window` follow from mean and covariance of the windows, k and k x k numbers, and become part of
    the first kernel. So every convolution is local, and the stack runs in blocks that fit the cache.
    """

    def __init__(self, config: MertConfig) -> None:
        super().__init__()
        self.config = config
        channels = [1, *config.conv_dim]
        sizes = zip(channels, channels[1:], config.conv_kernel, config.conv_stride, strict=False)
        self.layers = nn.ModuleList(FramesConv(i, o, k, s, bias=config.conv_bias) for i, o, k, s in sizes)
        self.group_norm: nn.GroupNorm | None = None
        self.layer_norms: nn.ModuleList | None = None
        if config.feat_extract_norm == "group":
            self.group_norm = nn.GroupNorm(channels[1], channels[1], STEM_NORM_EPS)
        else:
            self.layer_norms = nn.ModuleList(nn.LayerNorm(c, STEM_NORM_EPS) for c in config.conv_dim)

    def forward(self, waveform: Tensor) -> Tensor:
        kernel_BKC, shift_BC = self._first_kernel(waveform)
        batch, samples = waveform.shape
        frames, hop = frames_of(samples, self.config), math.prod(self.config.conv_stride)
        budget = BLOCK_FRAMES_CPU if waveform.device.type == "cpu" else BLOCK_FRAMES_OTHER
        step = max(8, budget // batch)
        blocks = []
        for start in range(0, frames, step):
            needed = samples_needed(min(step, frames - start), self.config)
            segment = waveform[:, start * hop : start * hop + needed]
            blocks.append(self._block(segment, kernel_BKC, shift_BC))
        return torch.cat(blocks, dim=1)

    def _block(self, segment_BS: Tensor, kernel_BKC: Tensor, shift_BC: Tensor) -> Tensor:
        windows = segment_BS.unfold(1, self.config.conv_kernel[0], self.config.conv_stride[0])
        with torch.autocast(segment_BS.device.type, enabled=False):  # the waveform is not to be rounded
            x = torch.baddbmm(shift_BC[:, None], windows, kernel_BKC).to(self.first.weight.dtype)
        x = gelu(x if self.layer_norms is None else self.layer_norms[0](x))
        for i, conv in enumerate(self.layers[1:], start=1):
            x = conv(x)
            x = gelu(x if self.layer_norms is None else self.layer_norms[i](x))
        return x

    @property
    def first(self) -> FramesConv:
        conv = self.layers[0]
        assert isinstance(conv, FramesConv)
        return conv

    def _first_kernel(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """First convolution and the group norm after it as one affine map per clip, `(B, K, C)`, `(B, C)`."""
        first, norm = self.first, self.group_norm
        weight_CK = first.weight[:, 0].float()
        if norm is None:
            bias = first.bias.float() if first.bias is not None else weight_CK.new_zeros(len(weight_CK))
            return weight_CK.t().expand(len(waveform), -1, -1), bias.expand(len(waveform), -1)
        # A bias of this convolution would vanish in the norm. Double, because the covariance is a difference.
        windows = waveform.unfold(1, weight_CK.shape[1], self.config.conv_stride[0]).double()
        mean_B1K = windows.mean(1, keepdim=True)
        second_BKK = windows.transpose(1, 2) @ windows / windows.shape[1]
        covariance_BKK = second_BKK - mean_B1K.transpose(1, 2) @ mean_B1K
        weight = weight_CK.double()
        variance_BC = ((weight @ covariance_BKK) * weight).sum(-1).clamp(min=0)
        gain_BC = norm.weight.double() * torch.rsqrt(variance_BC + norm.eps)
        shift_BC = norm.bias.double() - gain_BC * (mean_B1K @ weight.t())[:, 0]
        kernel_BKC = weight.t() * gain_BC[:, None]
        return kernel_BKC.float(), shift_BC.float()


class FramesConv(nn.Conv1d):
    """A convolution over time of `(B, T, C)`, the layout in which it needs no transposition."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, stride: int, bias: bool) -> None:
        super().__init__(in_dim, out_dim, kernel_size, stride, bias=bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        image = x_BTC.unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, T) in channels-last memory
        out = F.conv2d(image, self.weight.unsqueeze(2), self.bias, stride=(1, self.stride[0]))
        return out.permute(0, 2, 3, 1).squeeze(1)


def make_encoder(config: MertConfig, num_layers: int) -> TransformerEncoder:
    pre_norm, eps, dropout = config.do_stable_layer_norm, config.layer_norm_eps, config.hidden_dropout
    make_block = partial(
        TransformerBlock,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        pre_norm=pre_norm,
        skip_scale=config.skip_scale,
        eps=eps,
        dropout=dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )
    positions = PositionalConv(
        config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    )
    return TransformerEncoder(
        config.hidden_size, num_layers, positions, make_block, pre_norm=pre_norm, eps=eps, dropout=dropout
    )


def unit_variance(waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
    """Each clip of `(B, S)` to zero mean and unit population variance over its valid samples; padding 0."""
    total = waveform.shape[1]
    lengths = torch.full((len(waveform),), total) if num_samples is None else num_samples
    count = lengths.to(waveform.device)[:, None]
    valid = torch.arange(total, device=waveform.device) < count
    mean = (waveform * valid).sum(1, keepdim=True, dtype=torch.float64) / count
    centred = (waveform - mean.to(waveform.dtype)) * valid
    variance = centred.square().sum(1, keepdim=True, dtype=torch.float64) / count
    return centred * torch.rsqrt(variance + NORMALISE_EPS).to(waveform.dtype)


def frames_of(num_samples: int, config: MertConfig) -> int:
    """`floor((n - k) / s) + 1` through all convolutions; 0 for clips that are too short."""
    n = num_samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n = (n - kernel) // stride + 1 if n >= kernel else 0
    return n


def samples_needed(num_frames: int, config: MertConfig) -> int:
    """The shortest input that gives `num_frames`."""
    n = num_frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        n = (n - 1) * stride + kernel
    return n


# Published weights -----------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    *,
    name: str = "mert",
    sample_rate_hz: int | None = None,
    normalise: bool = True,
) -> Mert:
    """A backbone from tensors under their official (Hugging Face) names; they are copied.

    The positional convolution may be spelled `weight_g` and `weight_v`, `parametrizations.weight.original0`
    and `original1`, or as a plain `weight`. `masked_spec_embed`, which only pre-training uses, is accepted,
    named in `unused_tensors`, and not registered. Config fields about masking, layer drop and attention
    relaxation (which the published code never executes) are ignored.

    Args:
        sample_rate_hz: None: the config's `sample_rate`.

    Raises:
        ValueError: names the tensors that are unknown, missing or of another shape, or the config's problem.
    """
    if sample_rate_hz is None:
        if "sample_rate" not in config:
            raise ValueError("the config lacks sample_rate, and sample_rate_hz was not given")
        sample_rate_hz = int(config["sample_rate"])
    parsed = MertConfig.from_published(config)
    given = _with_weight_norm(normalise_weight_norm(tensors))
    whole = Mert(parsed, name, sample_rate_hz)  # shapes only
    expected: dict[str, Tensor] = {
        official: whole.get_parameter(ours) for official, ours in official_names(whole)
    }
    unused = {"masked_spec_embed": torch.empty(parsed.hidden_size, device="meta")}
    expected |= {key: value for key, value in unused.items() if key in given}
    check_tensors(given, expected, name)

    backbone = Mert(parsed, name, sample_rate_hz, num_layers, normalise)
    state = {ours: given[official].detach().float().clone() for official, ours in official_names(backbone)}
    backbone.load_state_dict(state, assign=True)
    backbone.unused_tensors = tuple(key for key in unused if key in given)
    return backbone.eval()


def official_names(backbone: Mert) -> Iterator[tuple[str, str]]:
    """Pairs (official, own) of parameter names, for the blocks that `backbone` has."""
    for own, _ in backbone.named_parameters():
        module, _, leaf = own.rpartition(".")
        leaf = {"gain": "weight_g", "direction": "weight_v"}.get(leaf, leaf)
        yield f"{_official_module(module)}.{leaf}", own


def _official_module(own: str) -> str:
    return next(re.sub(p, o, own) for p, o in _OFFICIAL_MODULES if re.fullmatch(p, own))


_OFFICIAL_MODULES = (
    (r"stem\.convs\.layers\.(\d+)", r"feature_extractor.conv_layers.\1.conv"),
    (r"stem\.convs\.group_norm", r"feature_extractor.conv_layers.0.layer_norm"),
    (r"stem\.convs\.layer_norms\.(\d+)", r"feature_extractor.conv_layers.\1.layer_norm"),
    (r"stem\.norm", r"feature_projection.layer_norm"),
    (r"stem\.projection", r"feature_projection.projection"),
    (r"encoder\.positions", r"encoder.pos_conv_embed.conv"),
    (r"encoder\.(?:front|final)_norm", r"encoder.layer_norm"),
    (r"encoder\.blocks\.(\d+)\.attention\.query", r"encoder.layers.\1.attention.q_proj"),
    (r"encoder\.blocks\.(\d+)\.attention\.key", r"encoder.layers.\1.attention.k_proj"),
    (r"encoder\.blocks\.(\d+)\.attention\.value", r"encoder.layers.\1.attention.v_proj"),
    (r"encoder\.blocks\.(\d+)\.attention\.output", r"encoder.layers.\1.attention.out_proj"),
    (r"encoder\.blocks\.(\d+)\.attention_norm", r"encoder.layers.\1.layer_norm"),
    (r"encoder\.blocks\.(\d+)\.ffn_up", r"encoder.layers.\1.feed_forward.intermediate_dense"),
    (r"encoder\.blocks\.(\d+)\.ffn_down", r"encoder.layers.\1.feed_forward.output_dense"),
    (r"encoder\.blocks\.(\d+)\.ffn_norm", r"encoder.layers.\1.final_layer_norm"),
)


def _with_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fused positional convolution as gain and direction, whose product it is."""
    given = dict(tensors)
    conv = "encoder.pos_conv_embed.conv"
    if f"{conv}.weight" in given and f"{conv}.weight_g" not in given:
        weight = given.pop(f"{conv}.weight")
        given[f"{conv}.weight_v"] = weight
        given[f"{conv}.weight_g"] = weight.float().norm(dim=(0, 1), keepdim=True)
    return given


# Fresh weights and the registry ----------------------------------------------------------------------------


@torch.inference_mode(mode=False)
def build(
    config: Mapping[str, Any],
    name: str,
    sample_rate_hz: int,
    num_layers: int | None = None,
    generator: torch.Generator | None = None,
) -> Mert:
    """A backbone with fresh weights, drawn from `generator` only (None: one with a fixed seed).

    As in the fairseq recipe: N(0, 0.02) for the linear maps of the blocks, Kaiming for the convolutions,
    N(0, 4 / (kernel D)) for the positions, torch's default for the projection, zero biases.
    """
    parsed = MertConfig.from_published(config)
    generator = torch.Generator() if generator is None else generator
    backbone = Mert(parsed, name, sample_rate_hz, num_layers).to_empty(device="cpu")
    stem, encoder = backbone.stem, backbone.encoder
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            parameter.fill_(1.0 if key.endswith("weight") else 0.0)  # what the norms start with; biases
        for conv in stem.convs.layers:
            assert isinstance(conv, FramesConv)
            nn.init.kaiming_normal_(conv.weight, generator=generator)
        nn.init.kaiming_uniform_(stem.projection.weight, a=math.sqrt(5), generator=generator)
        bound = stem.projection.in_features**-0.5
        nn.init.uniform_(stem.projection.bias, -bound, bound, generator=generator)
        positions = encoder.positions
        assert isinstance(positions, PositionalConv)
        std = math.sqrt(4 / (positions.kernel_size * backbone.dim))
        direction = nn.init.normal_(positions.direction, std=std, generator=generator)
        positions.gain.copy_(direction.norm(dim=(0, 1), keepdim=True))
        for block in encoder.blocks:
            assert isinstance(block, TransformerBlock)
            for role, (linear,) in block.linears().items():
                assert isinstance(linear, nn.Linear)
                nn.init.normal_(linear.weight, std=INIT_STD, generator=generator)
                if parsed.deepnorm and role in ("value", "output", "ffn_up", "ffn_down"):
                    linear.weight.div_((8 * parsed.num_hidden_layers) ** 0.25)
    return backbone.eval()


BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
}
LARGE = BASE | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


def outline(config: Mapping[str, Any], name: str, sample_rate_hz: int) -> Mert:
    """A backbone of these sizes whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Mert(MertConfig.from_published(config), name, sample_rate_hz)


THESIS = "Yuan: Benchmarking music audio pre-trained representations, thesis, Carnegie Mellon University 2023"


def _register(
    name: str,
    repo_id: str,
    summary: str,
    sample_rate_hz: int,
    config: dict[str, Any],
    parameters: int,
    published_names: tuple[str, ...],
    pretraining: Pretraining,
) -> None:
    # Dropout rates differ between copies of a published config and do not touch inference: not checked.
    decisive = {key: value for key, value in config.items() if not key.endswith("_dropout")}
    weights = OfficialWeights(
        checkpoint=OfficialFile(repo_id, "pytorch_model.bin"),
        config=OfficialFile(repo_id, "config.json"),
        licence="CC-BY-NC-4.0",
        licence_note=f"See https://huggingface.co/{repo_id}.",
        default_config=decisive,
    )
    BACKBONES.add(
        name,
        BackboneSpec(
            name,
            summary,
            build=partial(build, config, name, sample_rate_hz),
            from_published=partial(from_published, name=name, sample_rate_hz=sample_rate_hz),
            weights=weights,
            weights_licence="CC-BY-NC-4.0",
            commercial_use=False,
            published_parameters=parameters,
            published_names=published_names,
            notes=(
                "Never padded: the group norm runs over the whole clip. Keep one chunk length (5 s).",
                "masked_spec_embed of the published file is for pre-training only and not registered.",
            ),
            pretraining=pretraining,
            paper=THESIS,
            outline=partial(outline, config, name, sample_rate_hz),
        ),
    )


# Names of the thesis, table 6.2; the PETL paper calls v1-95M just "MERT". Hours are those of its table 6.1, to which
# scores are compared there; MERT spec 1.1 has the other sources.
_register(
    "mert-v0",
    "m-a-p/MERT-v0",
    "1k h of music, K-means and CQT teachers",
    16000,
    BASE,
    94_371_712,
    ("MERT-v0-95M",),
    Pretraining("a private collection of 30 s excerpts of pop songs and instrumental music", (), 1_000),
)
_register(
    "mert-v0-public",
    "m-a-p/MERT-v0-public",
    "as mert-v0, on public music only",
    16000,
    BASE,
    94_371_712,
    ("MERT-v0-95M-public",),
    Pretraining(
        "Music4All (thesis); a mirror of the model adds a filtered part of FMA", ("music4all", "fma"), 910
    ),
)
_register(
    "mert-v1-95m",
    "m-a-p/MERT-v1-95M",
    "EnCodec and CQT teachers",
    24000,
    BASE,
    94_371_712,
    ("MERT-v1-95M", "MERT"),
    Pretraining(
        "recordings mined from the Internet; sources disagree: 1,000 hours (thesis, chapter 5), 17,000 (its table "
        "6.1), 20,000 (model card)",
        (),
        17_000,
    ),
)
_register(
    "mert-v1-330m",
    "m-a-p/MERT-v1-330M",
    "160k h, EnCodec and CQT teachers",
    24000,
    LARGE,
    315_428_992,
    ("MERT-v1-330M",),
    Pretraining("recordings mined from the Internet", (), 160_000),
)
