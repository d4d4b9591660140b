"""The HuBERT layout: convolutions on the waveform, and a transformer encoder whose positions are convolutions.

HuBERT, data2vec-audio and MERT are of this make; see `musichubert.py`, `music2vec.py` and `mert.py`.

Layers: 0 is what enters block 1 (after projection and positions, and the encoder's norm in post-norm models);
i is what leaves block i. In pre-norm models layer L has passed the encoder's norm while 1..L-1 are
raw residual streams: the convention of the official code of MERT, and of transformers before 5.16.

Nothing is masked here and no layer is dropped, in training mode neither; objectives do that (`Encoder.layers`).

Shape letters: `B` batch, `S` samples, `T` frames, `D` model width, `L` blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audiation.backbones.base import Backbone, OfficialModule
from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.hubert_names import (
    MASK_VECTOR,
    official_module,
    official_parameter,
    read_published,
)
from audiation.backbones.hubert_stem import FramesConv, Stem, frames_of, samples_needed
from audiation.backbones.positional_stack import PositionalStack, StackedPositionsEncoder
from audiation.backbones.transformer import PositionalConv, TransformerBlock, TransformerEncoder
from audiation.weights import check_tensors

INIT_STD = 0.02
CONTEXT_SECONDS = 5.0  # of MERT


class HubertBackbone(Backbone):
    """Waveform `(B, S)` -> layers 0..L, each `(B, T, D)`, one frame per 320 samples.

    Building draws no random numbers: the parameters have shapes only. `build` and `from_published` fill them.

    Args:
        config: sizes and norms; a model cut to its first blocks keeps the config of the whole one.
        num_layers: keep the first blocks only. In a pre-norm model the encoder's norm follows the last kept.
        normalise: bring every clip to zero mean and unit variance, as the published preprocessors do. (HuBERT base
            and MERT v1 were pre-trained without; in group-norm models it matters for quiet clips only.)
        max_seconds: what the model was trained to hear at once.
    """

    stem: Stem
    encoder: TransformerEncoder

    def __init__(
        self,
        config: HubertConfig,
        name: str,
        sample_rate_hz: int,
        num_layers: int | None = None,
        normalise: bool = True,
        max_seconds: float = CONTEXT_SECONDS,
    ) -> None:
        super().__init__()
        depth = config.num_hidden_layers if num_layers is None else num_layers
        if not 0 < depth <= config.num_hidden_layers:
            raise ValueError(f"{name} has {config.num_hidden_layers} layers, got num_layers={num_layers}")
        self.config, self.name, self.sample_rate_hz = config, name, sample_rate_hz
        self.num_layers, self.dim, self.max_seconds = depth, config.hidden_size, max_seconds
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
        return OfficialModule(official_module(own))


def make_encoder(config: HubertConfig, num_layers: int) -> TransformerEncoder:
    dim, pre_norm, eps = config.hidden_size, config.do_stable_layer_norm, config.layer_norm_eps
    make_block = partial(
        TransformerBlock,
        dim,
        config.num_attention_heads,
        config.intermediate_size,
        pre_norm=pre_norm,
        skip_scale=config.skip_scale,
        eps=eps,
        dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
    )
    size, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    positions: nn.Module
    if config.conv_pos_kernel_size is None:
        make, positions = TransformerEncoder, PositionalConv(dim, size, groups)
    else:
        make = StackedPositionsEncoder
        positions = PositionalStack(dim, size, config.conv_pos_kernel_size, groups)
    return make(
        dim, num_layers, positions, make_block, pre_norm=pre_norm, eps=eps, dropout=config.hidden_dropout
    )


# Published weights -----------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    *,
    name: str = "hubert",
    sample_rate_hz: int | None = None,
    normalise: bool = True,
    max_seconds: float = CONTEXT_SECONDS,
) -> HubertBackbone:
    """A backbone from tensors under their official (Hugging Face) names or those of fairseq; they are copied.

    `hubert_names.read_published` says which spellings are understood. The vector that masks frames, and in files of
    fairseq the heads and targets of pre-training, are accepted, named in `unused_tensors`, and not registered. Config
    fields about masking, layer drop and attention relaxation (which the published code never executes) are ignored.

    Args:
        sample_rate_hz: None: the config's `sample_rate`.

    Raises:
        ValueError: names the tensors that are unknown, missing or of another shape, or the config's problem.
    """
    if sample_rate_hz is None:
        if "sample_rate" not in config:
            raise ValueError("the config lacks sample_rate, and sample_rate_hz was not given")
        sample_rate_hz = int(config["sample_rate"])
    parsed = HubertConfig.from_published(config)
    given, unused = read_published(tensors)
    whole = HubertBackbone(parsed, name, sample_rate_hz)  # shapes only
    expected: dict[str, Tensor] = {
        official: whole.get_parameter(ours) for official, ours in official_names(whole)
    }
    if MASK_VECTOR in given:
        expected[MASK_VECTOR] = torch.empty(parsed.hidden_size, device="meta")
    check_tensors(given, expected, name)

    backbone = HubertBackbone(parsed, name, sample_rate_hz, num_layers, normalise, max_seconds)
    state = {ours: given[official].detach().float().clone() for official, ours in official_names(backbone)}
    backbone.load_state_dict(state, assign=True)
    backbone.unused_tensors = unused
    return backbone.eval()


def official_names(backbone: HubertBackbone) -> Iterator[tuple[str, str]]:
    """Pairs (official, own) of parameter names, for the blocks that `backbone` has."""
    for own, _ in backbone.named_parameters():
        yield official_parameter(own), own


# Fresh weights ---------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)
def build(
    config: Mapping[str, Any],
    name: str,
    sample_rate_hz: int,
    num_layers: int | None = None,
    generator: torch.Generator | None = None,
    *,
    max_seconds: float = CONTEXT_SECONDS,
) -> HubertBackbone:
    """A backbone with fresh weights, drawn from `generator` only (None: one with a fixed seed).

    As in the fairseq recipes: N(0, 0.02) for the linear maps of the blocks, Kaiming for the convolutions of the stem,
    N(0, 4 / (kernel D)) for positions with weight norm, torch's default for the projection and for positions in
    several convolutions, zero biases elsewhere.
    """
    parsed = HubertConfig.from_published(config)
    generator = torch.Generator() if generator is None else generator
    backbone = HubertBackbone(parsed, name, sample_rate_hz, num_layers, max_seconds=max_seconds)
    backbone.to_empty(device="cpu")
    draw_stem(backbone.stem, generator)
    draw_encoder(backbone.encoder, parsed, generator)
    return backbone.eval()


@torch.no_grad()
def draw_stem(stem: Stem, generator: torch.Generator) -> None:
    """Fresh weights of a stem, see `build`."""
    _fill_norms_and_biases(stem)
    for conv in stem.convs.layers:
        assert isinstance(conv, FramesConv)
        nn.init.kaiming_normal_(conv.weight, generator=generator)
    _torch_default(stem.projection, generator)


@torch.no_grad()
def draw_encoder(encoder: TransformerEncoder, config: HubertConfig, generator: torch.Generator) -> None:
    """Fresh weights of an encoder, see `build`. With DeepNorm values, outputs and feed-forward maps are smaller."""
    _fill_norms_and_biases(encoder)
    _fresh_positions(encoder.positions, generator)
    for block in encoder.blocks:
        assert isinstance(block, TransformerBlock)
        for role, (linear,) in block.linears().items():
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=INIT_STD, generator=generator)
            if config.deepnorm and role in ("value", "output", "ffn_up", "ffn_down"):
                linear.weight.div_((8 * config.num_hidden_layers) ** 0.25)


def _fill_norms_and_biases(module: nn.Module) -> None:
    """What norms start with and zero biases; weights of maps are drawn afterwards."""
    for name, parameter in module.named_parameters():
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def _fresh_positions(positions: nn.Module, generator: torch.Generator) -> None:
    if isinstance(positions, PositionalStack):
        for conv in positions.convs:
            assert isinstance(conv, nn.Conv1d)
            _torch_default(conv, generator)
        return
    assert isinstance(positions, PositionalConv)
    std = math.sqrt(4 / (positions.kernel_size * len(positions.bias)))
    direction = nn.init.normal_(positions.direction, std=std, generator=generator)
    positions.gain.copy_(direction.norm(dim=(0, 1), keepdim=True))


def _torch_default(module: nn.Linear | nn.Conv1d, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    assert module.bias is not None
    bound = module.weight[0].numel() ** -0.5
    nn.init.uniform_(module.bias, -bound, bound, generator=generator)


def outline(
    config: Mapping[str, Any], name: str, sample_rate_hz: int, *, max_seconds: float = CONTEXT_SECONDS
) -> HubertBackbone:
    """A backbone of these sizes whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return HubertBackbone(
            HubertConfig.from_published(config), name, sample_rate_hz, max_seconds=max_seconds
        )
