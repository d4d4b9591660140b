"""MusicHuBERT and HuBERT base: hidden states of the published code, and files under every name that is about."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiation.backbones import BACKBONES
from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.hubert_layout import HubertBackbone, from_published, official_names
from audiation.backbones.hubert_names import read_published
from audiation.backbones.musichubert import from_own_file
from audiation.loading import load_backbone
from audiation.weights import WeightsError

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["base", "large", "large_convln", "deepnorm", "data2vec"]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}  # of the golden files
# Name of Hugging Face -> that of fairseq: of the stem by its norm, then of everything.
GROUP = {r"feature_extractor\.conv_layers\.0\.layer_norm\.": "feature_extractor.conv_layers.0.2."}
LAYER = {r"feature_extractor\.conv_layers\.(\d)\.layer_norm\.": r"feature_extractor.conv_layers.\1.2.1."}
FAIRSEQ = {
    r"feature_extractor\.conv_layers\.(\d)\.conv\.": r"feature_extractor.conv_layers.\1.0.",
    r"feature_projection\.layer_norm\.": "layer_norm.",
    r"feature_projection\.projection\.": "post_extract_proj.",
    r"masked_spec_embed": "mask_emb",
    r"encoder\.pos_conv_embed\.conv\.": "encoder.pos_conv.0.",
    r"encoder\.pos_conv_embed\.layers\.(\d)\.conv\.": r"encoder.pos_conv.\1.0.",
    r"(encoder\.layers\.\d)\.attention\.": r"\1.self_attn.",
    r"(encoder\.layers\.\d)\.layer_norm\.": r"\1.self_attn_layer_norm.",
    r"(encoder\.layers\.\d)\.feed_forward\.intermediate_dense\.": r"\1.fc1.",
    r"(encoder\.layers\.\d)\.feed_forward\.output_dense\.": r"\1.fc2.",
    r"(encoder\.(?:layers\.\d\.final_)?layer_norm)\.": r"\1.",  # the same in both
}


@cache
def golden(model="base"):
    tensors = load_file(GOLDEN / f"mert_tiny_{model}.safetensors")
    config = json.loads((GOLDEN / f"mert_tiny_{model}.json").read_text())["config"]
    return (
        tensors,
        {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")},
        config,
    )


def fairseq(model="base"):
    """The tensors of a golden file as fairseq would have written them, without what only pre-training needs."""
    _, published, _ = golden(model)
    stem = LAYER if model in ("large_convln", "data2vec") else GROUP
    renamed = {}
    for name, tensor in published.items():
        found = [(p, o) for p, o in (stem | FAIRSEQ).items() if re.match(p, name)]
        assert len(found) == 1, name
        renamed[re.sub(f"^{found[0][0]}", found[0][1], name)] = tensor
    assert len(renamed) == len(published)
    return renamed


def pretraining_extras(dim=32, final_dim=8, num_codes=12):
    return {
        "final_proj.weight": torch.zeros(final_dim, dim),
        "final_proj.bias": torch.zeros(final_dim),
        "label_embs_concat": torch.zeros(num_codes, final_dim),
        "encoder_cqt_model.fc.weight": torch.zeros(6, dim),
        "encoder_cqt_model.fc.bias": torch.zeros(6),
        "encoder_cqt_model.spec_layer.cqt_kernels_real": torch.zeros(6, 1, 16),
    }


def stacked(states):
    return torch.stack([states.layers[i] for i in sorted(states.layers)])


def assert_golden(backbone, model="base"):
    tensors, _, _ = golden(model)
    with torch.inference_mode():
        states = backbone(tensors["in.waveform_raw"][None])
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)


# The backbone ----------------------------------------------------------------------------------------------


def test_hidden_states_are_those_of_the_published_code():
    _, published, config = golden()
    tiny = {k: v for k, v in config.items() if k != "sample_rate"}  # of MERT
    backbone = from_own_file(published, tiny)
    assert_golden(backbone)
    assert (backbone.sample_rate_hz, backbone.frame_rate_hz, backbone.max_seconds) == (16_000, 50.0, 15.625)
    assert not backbone.accepts_padding
    assert_golden(BACKBONES["hubert-base-ls960"].from_published(published, tiny))
    cut = from_own_file(published, tiny, num_layers=2)
    torch.testing.assert_close(
        cut(golden()[0]["in.waveform_raw"][None]).layers[2], golden()[0]["out.hidden_states"][2], **TOLERANCE
    )


@pytest.mark.parametrize("name", ["musichubert", "hubert-base-ls960"])
def test_size_of_the_published_layout(name):
    outline = BACKBONES[name].outline()
    backbone = HubertBackbone(HubertConfig(768, 12, 12, 3072), name, 16_000)
    count = sum(p.numel() for p in outline.parameters())
    assert count == sum(p.numel() for p in backbone.parameters()) == 94_371_712 - 768
    assert len(list(official_names(outline))) + 1 == 211  # and masked_spec_embed
    assert (outline.num_layers, outline.dim, outline.sample_rate_hz) == (12, 768, 16_000)


def test_facts():
    ours, speech = BACKBONES["musichubert"], BACKBONES["hubert-base-ls960"]
    assert ours.weights is None and ours.published_parameters is None
    assert (speech.weights_licence, speech.commercial_use) == ("Apache-2.0", True)
    assert (speech.weights.checkpoint.repo_id, speech.published_parameters) == (
        "facebook/hubert-base-ls960",
        94_371_712,
    )


# Names of fairseq ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_fairseq_names_become_those_of_hugging_face(model):
    _, published, _ = golden(model)
    given = fairseq(model)
    assert "post_extract_proj.weight" in given and "feature_projection.projection.weight" not in given
    read = read_published(given | pretraining_extras())
    assert read.tensors.keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in read.tensors.items())
    assert set(read.unused) == {"mask_emb", *pretraining_extras()}
    assert read_published(published).tensors.keys() == published.keys()
    assert read_published(published).unused == ("masked_spec_embed",)


@pytest.mark.parametrize("model", MODELS)
def test_files_of_fairseq_give_the_hidden_states_of_the_published_code(model):
    config = golden(model)[2]
    backbone = from_published(fairseq(model) | pretraining_extras(), config, sample_rate_hz=16_000)
    assert_golden(backbone, model)
    assert set(backbone.unused_tensors) == {"mask_emb", *pretraining_extras()}


def test_mert_takes_files_of_fairseq_by_its_name():
    backbone = BACKBONES["mert-v1-95m"].from_published(fairseq() | pretraining_extras(), golden()[2])
    assert (backbone.name, backbone.sample_rate_hz, backbone.max_seconds) == ("mert-v1-95m", 24_000, 5.0)
    assert_golden(backbone)


@pytest.mark.parametrize("spelling", ["new", "fused"])
def test_spellings_of_weight_norm_in_files_of_fairseq(spelling):
    given = fairseq()
    g, v = given.pop("encoder.pos_conv.0.weight_g"), given.pop("encoder.pos_conv.0.weight_v")
    if spelling == "new":
        given |= {f"encoder.pos_conv.0.parametrizations.weight.original{i}": x for i, x in enumerate((g, v))}
    else:
        given["encoder.pos_conv.0.weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    assert_golden(from_published(given, golden()[2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_proj.scale": torch.zeros(1)}, r"1 unexpected: 'final_proj\.scale'"),
        ({"target_glu.0.weight": torch.zeros(1)}, r"1 unexpected: 'target_glu\.0\.weight'"),
        ({"encoder.layers.0.fc3.weight": torch.zeros(1)}, r"unexpected: 'encoder\.layers\.0\.fc3\.weight'"),
        (
            {"encoder.layers.1.fc1.bias": None},
            r"missing: '.*layers\.1\.feed_forward\.intermediate_dense\.bias'",
        ),
        ({"mask_emb": torch.zeros(31)}, r"'masked_spec_embed' is \(31,\), expected \(32,\)"),
        ({"masked_spec_embed": torch.zeros(32)}, r"'masked_spec_embed' is there twice"),
        ({"feature_projection.layer_norm.bias": torch.zeros(24)}, r"layer_norm\.bias' is there twice"),
    ],
)
def test_wrong_tensors_of_fairseq_are_named(change, message):
    given = {k: v for k, v in (fairseq() | change).items() if v is not None}
    with pytest.raises(WeightsError, match=message):
        from_published(given, golden()[2])


def test_what_only_pretraining_needs_is_no_part_of_other_files():
    with pytest.raises(
        WeightsError, match=r"3 unexpected: 'final_proj\.weight', 'final_proj\.bias', 'label_embs"
    ):
        extras = {k: v for k, v in pretraining_extras().items() if not k.startswith("encoder_cqt")}
        from_published(golden()[1] | extras, golden()[2])


# Other spellings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_vector", [True, False])
def test_a_prefix_that_all_names_have(mask_vector):
    given = {f"hubert.{k}": v for k, v in golden()[1].items() if mask_vector or k != "masked_spec_embed"}
    backbone = from_published(given, golden()[2])
    assert_golden(backbone)
    assert backbone.unused_tensors == (("hubert.masked_spec_embed",) if mask_vector else ())


def test_a_prefix_that_some_names_have():
    given = {f"hubert.{k}" if "layers.1" in k else k: v for k, v in golden()[1].items()}
    with pytest.raises(
        WeightsError, match=r"begins with 'hubert\.' but 'encoder\.layer_norm\.bias' does not"
    ):
        from_published(given, golden()[2])


@pytest.mark.parametrize(
    ("head", "purpose"),
    [("lm_head", "speech recognition"), ("classifier", "classification"), ("projector", "classification")],
)
def test_fine_tuned_models_are_refused_with_a_reason(head, purpose):
    given = {f"hubert.{k}": v for k, v in golden()[1].items()} | {f"{head}.weight": torch.zeros(30, 32)}
    reason = rf"'{head}\.weight' is of a model that was fine-tuned for {purpose}.*without '{head}\.\*'"
    with pytest.raises(WeightsError, match=reason):
        from_published(given, golden()[2])
    del given[f"{head}.weight"]
    assert_golden(from_published(given, golden()[2]))


class LazyFile(Mapping):
    """Tensors that are read from somewhere one by one; counts how often."""

    def __init__(self, tensors):
        self.tensors, self.reads = tensors, dict.fromkeys(tensors, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_every_tensor_is_read_once_and_what_is_left_out_never():
    lazy = LazyFile(fairseq() | pretraining_extras())
    assert_golden(from_published(lazy, golden()[2]))
    assert {name for name, reads in lazy.reads.items() if reads == 0} == set(pretraining_extras())
    assert set(lazy.reads.values()) == {0, 1}


# Loading by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_by", ["hugging face", "fairseq"])
def test_weights_of_ones_own_load_by_name(written_by, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    _, published, config = golden()
    tensors = published if written_by == "hugging face" else fairseq() | pretraining_extras()
    tiny = {k: v for k, v in config.items() if k != "sample_rate"}
    save_file(tensors, tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    backbone = load_backbone("musichubert", tmp_path / "mine.safetensors")
    assert (backbone.name, backbone.weights_source) == ("musichubert", "file:mine.safetensors")
    assert_golden(backbone)


def test_weights_of_ones_own_without_a_config_are_taken_for_base(tmp_path):
    save_file(golden()[1], tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match=r"not musichubert: 144 missing.*expected \(512, 1, 10\)"):
        load_backbone("musichubert", tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="no official weights of 'musichubert' are known"):
        load_backbone("musichubert")
