"""What published files call the tensors of HuBERT, data2vec-audio and MERT.

The official names are those of Hugging Face. Files that fairseq wrote say the same in other words, and hold what only
pre-training needs (MERT spec 2.1, 2.2, 2.6).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from audiation.weights import WeightsError, normalise_weight_norm

MASK_VECTOR = "masked_spec_embed"


class PublishedTensors(NamedTuple):
    """tensors: under official names, the positional convolution as gain and direction (`weight_g`, `weight_v`).
    unused: tensors of the file, as it calls them, that no forward pass reads; of these only the mask vector is in
    `tensors`, for its shape to be checked.
    """

    tensors: dict[str, Tensor]
    unused: tuple[str, ...]


def read_published(tensors: Mapping[str, Tensor]) -> PublishedTensors:
    """Tensors under any of the names that are about, under the official ones. Each is read once, or not at all.

    Understood are the names of Hugging Face, with or without `hubert.` or `data2vec_audio.` in front, and those of
    fairseq, whose heads and targets of pre-training are left out. The positional convolution may be spelled `weight_g`
    and `weight_v`, `parametrizations.weight.original0` and `original1`, or as a plain `weight`. What nobody knows stays
    as it is, for the comparison with what is expected to refuse.

    Raises:
        WeightsError: a fine-tuned model, a prefix that only some names have, or a tensor that is there twice.
    """
    official = _without_prefix(tensors)
    left_out: set[str] = set()
    if any(name.startswith("post_extract_proj.") for name in official.values()):
        left_out = {given for given, name in official.items() if _FAIRSEQ_PRETRAINING.match(name)}
        official = {given: _of_fairseq(name) for given, name in official.items() if given not in left_out}
    renamed: dict[str, Tensor] = {}
    for given, name in official.items():
        if name in renamed:
            raise WeightsError(f"'{name}' is there twice, once as '{given}': two models in one file?")
        renamed[name] = tensors[given]
    unused = tuple(given for given in tensors if given in left_out or official[given] == MASK_VECTOR)
    return PublishedTensors(_with_weight_norm(normalise_weight_norm(renamed)), unused)


def official_module(own: str) -> str:
    """Official name of a module of ours."""
    return next(re.sub(p, o, own) for p, o in _OFFICIAL_MODULES if re.fullmatch(p, own))


def official_parameter(own: str) -> str:
    """Official name of a parameter of ours."""
    module, _, leaf = own.rpartition(".")
    leaf = {"gain": "weight_g", "direction": "weight_v"}.get(leaf, leaf)
    return f"{official_module(module)}.{leaf}"


_OFFICIAL_MODULES = (
    (r"stem\.convs\.layers\.(\d+)", r"feature_extractor.conv_layers.\1.conv"),
    (r"stem\.convs\.group_norm", r"feature_extractor.conv_layers.0.layer_norm"),
    (r"stem\.convs\.layer_norms\.(\d+)", r"feature_extractor.conv_layers.\1.layer_norm"),
    (r"stem\.norm", r"feature_projection.layer_norm"),
    (r"stem\.projection", r"feature_projection.projection"),
    (r"encoder\.positions", r"encoder.pos_conv_embed.conv"),
    (r"encoder\.positions\.convs\.(\d+)", r"encoder.pos_conv_embed.layers.\1.conv"),
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

# Heads of pre-training, the table of its targets, and what computes them; in files of fairseq only.
_FAIRSEQ_PRETRAINING = re.compile(r"final_proj\.(?:weight|bias)$|label_embs_concat$|encoder_cqt_model\.")
# First match; what is behind it stays.
_FAIRSEQ_NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"feature_extractor\.conv_layers\.0\.2\.", r"feature_extractor.conv_layers.0.layer_norm."),
    (r"layer_norm\.", r"feature_projection.layer_norm."),
    (r"post_extract_proj\.", r"feature_projection.projection."),
    (r"mask_emb$", MASK_VECTOR),
    (r"encoder\.pos_conv\.(\d+)\.0\.", r"encoder.pos_conv_embed.layers.\1.conv."),
    (r"encoder\.pos_conv\.0\.", r"encoder.pos_conv_embed.conv."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
)
_PREFIXES = ("hubert.", "data2vec_audio.")
# Beginnings of names -> what a file that has them was trained for after pre-training.
_FINE_TUNED = {
    "lm_head.": "speech recognition",
    "classifier.": "classification",
    "projector.": "classification",
    "w2v_encoder.": "speech recognition",
}


def _of_fairseq(name: str) -> str:
    for pattern, official in _FAIRSEQ_NAMES:
        if found := re.match(pattern, name):
            return found.expand(official) + name[found.end() :]
    return name


def _without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> the same without a prefix that all have."""
    names = list(names)
    for name in names:
        for beginning, purpose in _FINE_TUNED.items():
            if name.startswith(beginning):
                raise WeightsError(
                    f"'{name}' is of a model that was fine-tuned for {purpose}, and its encoder is not the pre-trained "
                    f"one any more. Give the pre-trained file; if it is that encoder which you want, save its tensors "
                    f"into a file without '{beginning}*'."
                )
    for prefix in _PREFIXES:
        without = [name for name in names if not name.startswith(prefix)]
        if not without:
            return {name: name.removeprefix(prefix) for name in names}
        if len(without) < len(names):
            having = next(name for name in names if name.startswith(prefix))
            raise WeightsError(
                f"'{having}' begins with '{prefix}' but '{without[0]}' does not: two models in one file?"
            )
    return {name: name for name in names}


def _with_weight_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A fused positional convolution as gain and direction, whose product it is."""
    conv = "encoder.pos_conv_embed.conv"
    if f"{conv}.weight" in tensors and f"{conv}.weight_g" not in tensors:
        weight = tensors.pop(f"{conv}.weight")
        tensors[f"{conv}.weight_v"] = weight
        tensors[f"{conv}.weight_g"] = weight.float().norm(dim=(0, 1), keepdim=True)
    return tensors
