"""Music2Vec and data2vec-audio-base against hidden states of the published code, padding, and their files."""

import json
from functools import cache
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from audiation.backbones import BACKBONES
from audiation.backbones.hubert_config import HubertConfig
from audiation.backbones.hubert_layout import HubertBackbone, build, from_published, official_names
from audiation.backbones.hubert_stem import unit_variance
from audiation.backbones.positional_stack import PositionalStack
from audiation.backbones.precision import set_precision
from audiation.loading import load_backbone
from audiation.methods import METHODS, inject
from audiation.peft_format import save_peft
from audiation.weights import WeightsError

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["music2vec", "data2vec-audio-base"]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}  # of the golden files
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TINY |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}


@cache
def golden():
    tensors = load_file(GOLDEN / "mert_tiny_data2vec.safetensors")
    config = json.loads((GOLDEN / "mert_tiny_data2vec.json").read_text())["config"]
    return (
        tensors,
        {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")},
        config,
    )


def tiny(num_layers=None, **options):
    _, published, config = golden()
    return from_published(published, config, num_layers, sample_rate_hz=16_000, **options)


def stacked(states):
    return torch.stack([states.layers[i] for i in sorted(states.layers)])


def padded_batch():
    """A clip, and a shorter one before what must not matter; with their lengths."""
    tensors, _, _ = golden()
    long, short = tensors["in.waveform_raw"], tensors["in.waveform2_raw"]
    batch = torch.stack([long, torch.cat([short, torch.full((len(long) - len(short),), 0.7)])])
    return batch, torch.tensor([len(long), len(short)])


# Parity ----------------------------------------------------------------------------------------------------


def test_hidden_states_are_those_of_the_published_code():
    tensors, _, _ = golden()
    with torch.inference_mode():
        states = tiny()(tensors["in.waveform_raw"][None])
        as_given = tiny(normalise=False)(tensors["in.input_values"])
    assert sorted(states.layers) == [0, 1, 2, 3]
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)
    torch.testing.assert_close(stacked(as_given), tensors["out.hidden_states"], **TOLERANCE)


def test_stages_are_those_of_the_published_code():
    tensors, _, _ = golden()
    backbone = tiny()
    with torch.inference_mode():
        stem = backbone.stem(tensors["in.waveform_raw"][None])
        normed = backbone.stem.norm(stem.features)
        positions = backbone.encoder.positions(stem.projected)
        *_, before_last, _ = backbone.encoder.layers(stem.projected)
        block = backbone.encoder.blocks[-1]
        ffn = block.feed_forward(block.attention_norm(before_last + block.attention(before_last)))
    torch.testing.assert_close(stem.features, tensors["out.conv_features"], **TOLERANCE)
    torch.testing.assert_close(normed, tensors["out.extract_features_normed"], **TOLERANCE)
    torch.testing.assert_close(stem.projected, tensors["out.projected"], **TOLERANCE)
    torch.testing.assert_close(positions, tensors["out.pos_conv"], **TOLERANCE)
    torch.testing.assert_close(ffn, tensors["out.last_layer_ffn_out"], **TOLERANCE)


def test_masking_belongs_between_projection_and_positions():
    tensors, published, _ = golden()
    backbone = tiny()
    with torch.inference_mode():
        projected = backbone.stem(tensors["in.waveform_raw"][None]).projected
        projected[tensors["in.mask_time_indices"].bool()] = published["masked_spec_embed"]
        layers = torch.stack(list(backbone.encoder.layers(projected)))
    torch.testing.assert_close(layers, tensors["out.masked_hidden_states"], **TOLERANCE)


# Padding ---------------------------------------------------------------------------------------------------


def test_a_padded_clip_gives_what_it_gives_alone():
    batch, lengths = padded_batch()
    backbone = tiny()
    assert backbone.accepts_padding and backbone.normalisation == "clip-unit-variance"
    with torch.inference_mode():
        states, alone = backbone(batch, lengths), backbone(batch[1:, : lengths[1]])
    frames = backbone.num_frames(int(lengths[1]))
    assert states.valid.sum(1).tolist() == [29, 21] == [29, frames]
    torch.testing.assert_close(stacked(states)[:, 1, :frames], stacked(alone)[:, 0], **TOLERANCE)
    torch.testing.assert_close(stacked(states)[:, :1], golden()[0]["out.hidden_states"], **TOLERANCE)


def test_the_published_code_lets_padding_into_the_positions():
    """With zeros in front of the first positional convolution only, as there, hidden states are those of that code."""
    tensors, _, _ = golden()
    batch, lengths = padded_batch()
    backbone = tiny()
    positions = backbone.encoder.positions

    def published_positions(x_BTD, valid_BT=None):
        return PositionalStack.forward(positions, x_BTD * valid_BT.unsqueeze(-1))

    with torch.inference_mode():
        ours = stacked(backbone(batch, lengths))
        positions.forward = published_positions
        states = backbone(batch, lengths)
    official = tensors["out.batch_hidden_states_masked"]
    torch.testing.assert_close(stacked(states)[:, states.valid], official[:, states.valid], **TOLERANCE)
    assert (ours[0, 1, :21] - official[0, 1, :21]).abs().max() > 1  # of values with unit variance


def test_equal_lengths_need_no_mask():
    tensors, _, _ = golden()
    with torch.inference_mode():
        states = tiny(normalise=False)(tensors["in.batch_input_values"])
    torch.testing.assert_close(stacked(states), tensors["out.batch_hidden_states_nomask"], **TOLERANCE)


@pytest.mark.parametrize(("frames", "kernel"), [(29, 19), (5, 19), (12, 4), (1, 1)])
def test_the_stack_is_convolutions_norms_and_gelus(frames, kernel):
    generator = torch.Generator().manual_seed(kernel)
    stack = PositionalStack(32, 3, kernel, 16).requires_grad_(False)
    for parameter in stack.parameters():
        parameter.normal_(generator=generator)
    x = torch.randn(2, frames, 32, generator=generator)
    expected = x.transpose(1, 2)
    for conv in stack.convs:
        expected = F.conv1d(F.pad(expected, (kernel // 2, kernel // 2)), conv.weight, conv.bias, groups=16)
        expected = expected[..., :frames]
        mean, variance = expected.mean(1, keepdim=True), expected.var(1, correction=0, keepdim=True)
        expected = F.gelu((expected - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(stack(x), expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert tuple(stack(x).shape) == (2, frames, 32)


def test_width_and_groups_have_to_go_together():
    with pytest.raises(ValueError, match="width 33 is not divisible by 16 groups"):
        PositionalStack(33, 5, 19, 16)


# Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "data2vec_audio."])
@pytest.mark.parametrize("mask_vector", [True, False])
def test_files_with_and_without_prefix_and_mask_vector(prefix, mask_vector):
    tensors, published, config = golden()
    given = {prefix + k: v for k, v in published.items() if mask_vector or k != "masked_spec_embed"}
    backbone = from_published(given, config, sample_rate_hz=16_000)
    assert backbone.unused_tensors == ((f"{prefix}masked_spec_embed",) if mask_vector else ())
    with torch.inference_mode():
        states = backbone(tensors["in.waveform_raw"][None])
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.pos_conv_embed.layers.4.conv.bias": None},
            r"missing: 'encoder\.pos_conv_embed\.layers\.4",
        ),
        ({"encoder.pos_conv_embed.layers.5.conv.bias": torch.zeros(32)}, r"unexpected: '.*layers\.5"),
        ({"encoder.pos_conv_embed.layers.0.conv.weight": torch.zeros(32, 2, 18)}, r"\(32, 2, 18\), expected"),
        ({"feature_extractor.conv_layers.6.layer_norm.bias": None}, r"conv_layers\.6\.layer_norm\.bias"),
        ({"lm_head.weight": torch.zeros(32, 32)}, r"'lm_head\.weight' is of a model that was fine-tuned"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    _, published, config = golden()
    tensors = {k: v for k, v in (published | change).items() if v is not None}
    with pytest.raises(WeightsError, match=message):
        from_published(tensors, config, sample_rate_hz=16_000)


def test_files_of_hubert_are_refused():
    hubert = load_file(GOLDEN / "mert_tiny_base.safetensors")
    tensors = {k.removeprefix("param."): v for k, v in hubert.items() if k.startswith("param.")}
    with pytest.raises(WeightsError, match=r"22 missing.*unexpected: 'encoder\.pos_conv_embed\.conv\.bias'"):
        from_published(tensors, golden()[2], sample_rate_hz=16_000)


@pytest.mark.parametrize("change", [{"feat_extract_norm": "group"}, {"do_stable_layer_norm": True}])
def test_configs_that_are_not_of_data2vec(change):
    (key,) = change
    with pytest.raises(ValueError, match=f"{key} = .* beside conv_pos_kernel_size is not supported"):
        HubertConfig.from_published(golden()[2] | change)
    allowed = {"feat_extract_norm": "layer", "do_stable_layer_norm": False}
    assert HubertConfig.from_published(golden()[2] | allowed) == HubertConfig.from_published(golden()[2])


def test_a_checkpoint_and_its_config_load_by_name(tmp_path, monkeypatch):
    """The way of `load_backbone`, from a file of published make in small."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    tensors, published, config = golden()
    save_file(published, tmp_path / "model.safetensors")
    backbone = load_backbone("music2vec", tmp_path / "model.safetensors", config=config)
    assert (backbone.name, backbone.weights_source) == ("music2vec", "file:model.safetensors")
    assert (backbone.max_seconds, backbone.frame_rate_hz) == (30.0, 50.0)
    with torch.inference_mode():
        states = backbone(tensors["in.waveform_raw"][None])
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)


# The registry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_size_and_facts_of_the_published_models(name):
    spec = BACKBONES[name]
    config = HubertConfig.from_published(spec.weights.default_config)
    backbone = HubertBackbone(config, name, 16_000)
    shapes = {
        official: tuple(backbone.get_parameter(own).shape) for official, own in official_names(backbone)
    }
    assert len(shapes) + 1 == 230  # and masked_spec_embed
    assert sum(p.numel() for p in backbone.parameters()) + 768 == spec.published_parameters == 93_164_288
    assert shapes["encoder.pos_conv_embed.layers.4.conv.weight"] == (768, 48, 19)
    assert shapes["feature_extractor.conv_layers.6.layer_norm.weight"] == (512,)
    outline = spec.outline()
    assert (outline.sample_rate_hz, outline.frame_rate_hz, outline.num_layers) == (16_000, 50.0, 12)
    licences = {"music2vec": ("CC-BY-NC-4.0", False, 30.0), "data2vec-audio-base": ("Apache-2.0", True, 20.0)}
    assert (spec.weights_licence, spec.commercial_use, outline.max_seconds) == licences[name]
    assert spec.weights.licence == spec.weights_licence


def test_fresh_weights_follow_the_recipe():
    backbone = BACKBONES["music2vec"].build(num_layers=1, generator=torch.Generator().manual_seed(0))
    conv = backbone.encoder.positions.convs[4]
    bound = (48 * 19) ** -0.5
    assert conv.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert 0 < conv.bias.abs().max().item() <= bound
    assert backbone.encoder.blocks[0].ffn_up.weight.std().item() == pytest.approx(0.02, rel=0.01)
    norm = backbone.stem.convs.layer_norms[6]
    assert torch.all(norm.weight == 1) and torch.all(norm.bias == 0)


# Adapting, precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("probe", "finetune")])
def test_methods_apply_and_train(method):
    backbone = build(TINY, "tiny-data2vec", 16_000, generator=torch.Generator().manual_seed(0))
    count = inject(backbone, method)
    waveform = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([4_000, 3_100])
    backbone(waveform, lengths, reduce="mean").layers[2].square().sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == count.trainable > 0
    assert all(p.grad is not None for p in trained)


def test_our_lora_runs_in_the_stock_model(tmp_path):
    backbone = build(TINY, "tiny-data2vec", 16_000, generator=torch.Generator().manual_seed(0))
    peer = Data2VecAudioModel(Data2VecAudioConfig(**TINY, mask_time_prob=0.0)).eval()
    peer.load_state_dict({o: backbone.get_parameter(own) for o, own in official_names(backbone)})
    waveform = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = backbone(waveform).layers[2]
        torch.testing.assert_close(peer(unit_variance(waveform)).last_hidden_state, plain, **TOLERANCE)
    inject(backbone, "lora:rank=2")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3, generator=generator)
    save_peft(backbone, tmp_path / "peft")
    adapted = peft.PeftModel.from_pretrained(peer, tmp_path / "peft").eval()
    with torch.inference_mode():
        ours, theirs = backbone(waveform).layers[2], adapted(unit_variance(waveform)).last_hidden_state
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(theirs, ours, **TOLERANCE)


def test_modules_have_their_published_names():
    path = tiny().official_module("encoder.positions.convs.3").path
    assert path == "encoder.pos_conv_embed.layers.3.conv"


@pytest.mark.parametrize("native", [False, True])
def test_bf16_stays_within_two_percent_of_every_layer(native):
    waveform = golden()[0]["in.waveform_raw"][None]
    low = tiny()
    set_precision(low, "bf16", native=native)
    with torch.inference_mode():
        exact, rounded = tiny()(waveform), low(waveform)
    for i, x in exact.layers.items():
        assert rounded.layers[i].dtype == torch.float32
        assert 1e-4 < ((rounded.layers[i] - x).norm() / x.norm()).item() < 0.02, f"layer {i}"
