"""The published configs of HuBERT, data2vec-audio and MERT, as far as a forward pass depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class HubertConfig:
    """The fields that decide what a forward pass computes, under their published names.

    num_conv_pos_embeddings, conv_pos_kernel_size: without the second, one weight-normed positional convolution with
        the first as its number of taps (HuBERT, MERT). With it, the first is the number of positional convolutions, one
        after the other, and the second their taps (data2vec-audio).
    """

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
    conv_pos_kernel_size: int | None = None
    layer_norm_eps: float = 1e-5
    deepnorm: bool = False
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    feat_proj_dropout: float = 0.1

    @classmethod
    def from_published(cls, config: Mapping[str, Any]) -> HubertConfig:
        """Read a published `config.json`. Raises ValueError where it asks for what is not here."""
        required = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
        if missing := sorted(required - config.keys()):
            raise ValueError(f"the config lacks {', '.join(missing)}")
        stacked = config.get("conv_pos_kernel_size") is not None
        # A config of data2vec-audio has neither field: all of its models are this way.
        of_data2vec: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": False}
        only: dict[str, Any] = {
            "feature_extractor_cqt": False,
            "conv_pos_batch_norm": False,
            "feat_proj_layer_norm": True,
            "hidden_act": "gelu",
            "feat_extract_activation": "gelu",
        } | (of_data2vec if stacked else {})
        for key, value in only.items():
            if config.get(key, value) != value:
                beside = " beside conv_pos_kernel_size" if stacked and key in of_data2vec else ""
                raise ValueError(f"{key} = {config[key]!r}{beside} is not supported, only {value!r}")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = of_data2vec if stacked else {}
        values |= {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
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


BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "conv_bias": False,
}
