"""MERT against hidden states of the official code, and everything that its files may look like."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiation.backbones import BACKBONES
from audiation.backbones.mert import Mert, MertConfig, from_published, official_names, unit_variance
from audiation.backbones.precision import set_precision

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["base", "large", "large_convln", "deepnorm"]
GROUP_NORM = ["base", "large", "deepnorm"]
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}  # of the golden files


@cache
def golden(model):
    tensors = load_file(GOLDEN / f"mert_tiny_{model}.safetensors")
    config = json.loads((GOLDEN / f"mert_tiny_{model}.json").read_text())["config"]
    published = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    return tensors, published, config


def tiny(model, num_layers=None, **options):
    _, published, config = golden(model)
    return from_published(published, config, num_layers, **options)


def stacked(states):
    return torch.stack([states.layers[i] for i in sorted(states.layers)])


def published_shapes(name):
    """Official names and shapes, without memory behind them."""
    spec = BACKBONES[name]
    backbone = Mert(MertConfig.from_published(spec.weights.default_config), name, 24000)
    return {o: backbone.get_parameter(own) for o, own in official_names(backbone)}


# Parity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_hidden_states_are_those_of_the_official_code(model):
    tensors, _, config = golden(model)
    with torch.inference_mode():
        states = tiny(model)(tensors["in.waveform_raw"][None])
    assert sorted(states.layers) == list(range(config["num_hidden_layers"] + 1))
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_without_normalisation_too(model):
    tensors, _, _ = golden(model)
    backbone = tiny(model, normalise=False)
    assert (backbone.normalisation, tiny(model).normalisation) == ("none", "clip-unit-variance")
    with torch.inference_mode():
        raw = stacked(backbone(tensors["in.waveform_raw"][None]))
        normalised = stacked(backbone(tensors["in.input_values"]))
    torch.testing.assert_close(raw, tensors["out.hidden_states_raw_input"], **TOLERANCE)
    torch.testing.assert_close(normalised, tensors["out.hidden_states"], **TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_stages_are_those_of_the_official_code(model):
    tensors, _, _ = golden(model)
    backbone = tiny(model)
    with torch.inference_mode():
        stem = backbone.stem(tensors["in.waveform_raw"][None])
        positions = backbone.encoder.positions(stem.projected)
        *_, before_last, _ = backbone.encoder.layers(stem.projected)
        last_raw = backbone.encoder.blocks[-1](before_last)
    torch.testing.assert_close(stem.features, tensors["out.conv_features"], **TOLERANCE)
    torch.testing.assert_close(stem.projected, tensors["out.projected"], **TOLERANCE)
    torch.testing.assert_close(positions, tensors["out.pos_conv"], **TOLERANCE)
    torch.testing.assert_close(last_raw, tensors["out.last_layer_raw"], **TOLERANCE)


@pytest.mark.parametrize("model", ["base", "large", "large_convln"])
def test_masking_belongs_between_projection_and_positions(model):
    tensors, published, _ = golden(model)
    backbone = tiny(model)
    with torch.inference_mode():
        projected = backbone.stem(tensors["in.waveform_raw"][None]).projected
        masked = tensors["in.mask_time_indices"].bool()
        projected[masked] = published["masked_spec_embed"]
        layers = torch.stack(list(backbone.encoder.layers(projected)))
    torch.testing.assert_close(layers, tensors["out.masked_hidden_states"], **TOLERANCE)


def test_layer_norm_models_take_padding_and_a_mask():
    tensors, _, _ = golden("large_convln")
    long, short = tensors["in.waveform_raw"], tensors["in.waveform2_raw"]
    batch = torch.stack([long, torch.cat([short, torch.full((len(long) - len(short),), 0.7)])])
    lengths = torch.tensor([len(long), len(short)])
    backbone = tiny("large_convln")
    assert backbone.accepts_padding
    with torch.inference_mode():
        states = backbone(batch, lengths)
        alone = backbone(short[None])
    assert torch.equal(states.valid, tensors["out.batch_feature_mask"].bool())
    official = tensors["out.batch_hidden_states_masked"]
    torch.testing.assert_close(stacked(states)[:, states.valid], official[:, states.valid], **TOLERANCE)
    frames = backbone.num_frames(len(short))
    torch.testing.assert_close(stacked(states)[:, 1, :frames], stacked(alone)[:, 0], **TOLERANCE)


@pytest.mark.parametrize("model", GROUP_NORM)
def test_group_norm_models_refuse_padding(model):
    backbone = tiny(model)
    assert not backbone.accepts_padding
    with pytest.raises(ValueError, match="cannot be padded"):
        backbone(torch.zeros(2, 9600), torch.tensor([9600, 7013]))


def test_group_norm_models_take_equal_lengths_as_they_are():
    tensors, _, _ = golden("base")
    with torch.inference_mode():
        states = tiny("base", normalise=False)(tensors["in.batch_input_values"])
    torch.testing.assert_close(stacked(states), tensors["out.batch_hidden_states_nomask"], **TOLERANCE)


# Layers ----------------------------------------------------------------------------------------------------


def test_last_layer_of_the_pre_norm_model_is_after_the_final_norm():
    tensors, _, _ = golden("large")
    backbone = tiny("large")
    with torch.inference_mode():
        layers = backbone(tensors["in.waveform_raw"][None]).layers
    norm = backbone.encoder.final_norm
    normed_raw = norm(tensors["out.last_layer_raw"])
    torch.testing.assert_close(layers[4], normed_raw, **TOLERANCE)
    stds = [layers[i].std().item() for i in range(5)]  # raw streams grow, the last one is normalised
    assert stds[1] < stds[2] < stds[3] > stds[4]


@pytest.mark.parametrize("model", MODELS)
def test_cut_models(model):
    tensors, _, config = golden(model)
    whole, cut = tiny(model), tiny(model, num_layers=2)
    waveform = tensors["in.waveform_raw"][None]
    assert (cut.num_layers, len(cut.encoder.blocks)) == (2, 2)
    with torch.inference_mode():
        exit_early, short = whole(waveform, last_layer=2), cut(waveform)
        expected = exit_early.layers[2]
        if config["do_stable_layer_norm"]:  # the norm follows the last block there is
            expected = cut.encoder.final_norm(expected)
    assert torch.equal(exit_early.layers[1], short.layers[1])
    assert torch.equal(expected, short.layers[2])


def test_cut_deepnorm_keeps_the_scale_of_the_whole_model():
    assert tiny("deepnorm", num_layers=1).encoder.blocks[0].skip_scale == 6**0.25


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="3 layers, got num_layers=4"):
        tiny("base", num_layers=4)


# Frames ----------------------------------------------------------------------------------------------------


def test_frames_and_times():
    backbone = Mert(MertConfig(768, 12, 12, 3072), "mert-v1-95m", 24000)
    samples = [400, 719, 720, 16000, 24000, 80000, 120000, 122880, 480000, 720000]
    assert [backbone.num_frames(n) for n in samples] == [1, 1, 2, 49, 74, 249, 374, 383, 1499, 2249]
    assert backbone.num_frames(399) == 0
    assert (backbone.hop_samples, backbone.min_samples, backbone.max_seconds) == (320, 400, 5.0)
    assert backbone.frame_rate_hz == 75.0
    assert Mert(MertConfig(768, 12, 12, 3072), "mert-v0", 16000).frame_rate_hz == 50.0


def test_frame_times_are_the_centres_of_receptive_fields():
    with torch.inference_mode():
        times = tiny("base")(torch.randn(1, 9600)).times_seconds
    assert len(times) == 29
    torch.testing.assert_close(times, (320 * torch.arange(29) + 200).double() / 24000)


def test_too_short():
    with pytest.raises(ValueError, match="at least 400 samples"):
        tiny("base")(torch.zeros(1, 399))


def test_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x = 0.01 * torch.randn(2, 5000, generator=generator) + 0.3
    y = unit_variance(x, torch.tensor([5000, 3000]))
    assert torch.all(y[1, 3000:] == 0)
    clip = x[1, :3000].double()
    variance = ((clip - clip.mean()) ** 2).mean()
    expected = ((clip - clip.mean()) / (variance + 1e-7).sqrt()).float()
    torch.testing.assert_close(y[1, :3000], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unit_variance(x[1:, :3000]), y[1:, :3000])


# The convolution stack -------------------------------------------------------------------------------------


def plain_stack(stack, waveform):
    """The same convolutions one after the other over the whole clip, as torch has them."""
    x = waveform[:, None]
    for i, conv in enumerate(stack.layers):
        x = torch.nn.functional.conv1d(x, conv.weight, conv.bias, stride=conv.stride)
        if stack.layer_norms is not None:
            x = stack.layer_norms[i](x.transpose(1, 2)).transpose(1, 2)
        elif i == 0:
            x = stack.group_norm(x)
        x = torch.nn.functional.gelu(x)
    return x.transpose(1, 2)


@pytest.mark.parametrize("model", ["base", "large_convln"])
@pytest.mark.parametrize(("batch", "samples"), [(1, 400), (1, 64 * 320 + 80), (1, 50001), (3, 33333)])
def test_blocks_of_the_stack_join_without_a_seam(model, batch, samples):
    stack = tiny(model).stem.convs
    waveform = torch.randn(batch, samples, generator=torch.Generator().manual_seed(samples))
    with torch.inference_mode():
        torch.testing.assert_close(stack(waveform), plain_stack(stack, waveform), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_group_norm_inside_the_first_kernel_survives_an_offset(level):
    stack = tiny("base").stem.convs
    waveform = level * torch.randn(1, 20000, generator=torch.Generator().manual_seed(1)) + 0.25
    with torch.inference_mode():
        exact = plain_stack(tiny("base").stem.convs.double(), waveform.double())
        torch.testing.assert_close(stack(waveform).double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ["base", "large_convln"])
def test_gradients_of_the_stack(model):
    stack = tiny(model).stem.convs
    generator = torch.Generator().manual_seed(3)
    waveform = torch.randn(2, 22000, generator=generator).requires_grad_()
    inputs = [waveform, *stack.parameters()]
    ours = stack(waveform)
    cotangent = torch.randn(ours.shape, generator=generator)
    plain = torch.autograd.grad(plain_stack(stack, waveform), inputs, cotangent)
    for one, other in zip(torch.autograd.grad(ours, inputs, cotangent), plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-4


def test_training_mode_masks_and_drops_nothing():
    """With the dropout rates at zero, training mode changes nothing, whatever the config says about masks."""
    tensors, published, config = golden("base")
    rates = {k: 0.0 for k in ("hidden_dropout", "attention_dropout", "activation_dropout")}
    masks = {"mask_time_prob": 0.65, "mask_feature_prob": 0.5, "layerdrop": 0.9, "apply_spec_augment": True}
    backbone = from_published(published, config | rates | masks | {"feat_proj_dropout": 0.0})
    waveform = tensors["in.waveform_raw"][None]
    with torch.no_grad():
        trained, expected = backbone.train()(waveform), tiny("base")(waveform)
    torch.testing.assert_close(stacked(trained), stacked(expected), rtol=1e-5, atol=1e-6)


def test_dropout_of_the_config_is_active_in_training_mode():
    backbone = tiny("base").train()
    waveform = golden("base")[0]["in.waveform_raw"][None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        assert not torch.equal(backbone(waveform).layers[3], backbone(waveform).layers[3])


# Published files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["new", "fused"])
def test_spellings_of_weight_norm(spelling):
    tensors, published, config = golden("base")
    conv = "encoder.pos_conv_embed.conv"
    other = dict(published)
    g, v = other.pop(f"{conv}.weight_g"), other.pop(f"{conv}.weight_v")
    if spelling == "new":
        other |= {
            f"{conv}.parametrizations.weight.original0": g,
            f"{conv}.parametrizations.weight.original1": v,
        }
    else:
        other[f"{conv}.weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    with torch.inference_mode():
        states = from_published(other, config)(tensors["in.waveform_raw"][None])
    torch.testing.assert_close(stacked(states), tensors["out.hidden_states"], **TOLERANCE)


def test_unused_tensors_are_reported_and_not_registered():
    _, published, config = golden("base")
    assert tiny("base").unused_tensors == ("masked_spec_embed",)
    without = {k: v for k, v in published.items() if k != "masked_spec_embed"}
    assert from_published(without, config).unused_tensors == ()
    registered = sum(p.numel() for p in tiny("base").parameters())
    assert registered == sum(t.numel() for t in without.values()) == 50672 - 32


def test_loading_copies():
    _, published, config = golden("base")
    mine = {k: v.clone() for k, v in published.items()}
    backbone = from_published(mine, config)
    mine["feature_projection.projection.weight"].zero_()
    assert backbone.stem.projection.weight.abs().sum() > 0
    half = from_published({k: v.half() for k, v in published.items()}, config)
    assert {p.dtype for p in half.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.0.extra": torch.zeros(1)}, r"encoder\.layers\.0\.extra"),
        ({"encoder.layers.1.layer_norm.bias": None}, r"missing: 'encoder\.layers\.1\.layer_norm\.bias'"),
        ({"feature_projection.projection.bias": torch.zeros(31)}, r"\(31,\), expected \(32,\)"),
        ({"masked_spec_embed": torch.zeros(31)}, r"masked_spec_embed"),
        ({"encoder.pos_conv_embed.conv.weight_g": None}, r"weight_g"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    _, published, config = golden("base")
    tensors = {k: v for k, v in (published | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_published(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt = True"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"sample_rate": None}, "sample_rate"),
        ({"do_stable_layer_norm": True, "deepnorm": True}, "DeepNorm"),
    ],
)
def test_configs_that_are_not_supported(change, message):
    _, published, config = golden("base")
    given = {k: v for k, v in (config | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_published(published, given)


@pytest.mark.parametrize(
    ("name", "tensors", "published", "registered"),
    [
        ("mert-v0", 211, 94_371_712, 94_370_944),
        ("mert-v0-public", 211, 94_371_712, 94_370_944),
        ("mert-v1-95m", 211, 94_371_712, 94_370_944),
        ("mert-v1-330m", 403, 315_428_992, 315_427_968),
    ],
)
def test_sizes_of_the_published_models(name, tensors, published, registered):
    spec, shapes = BACKBONES[name], published_shapes(name)
    count = sum(p.numel() for p in shapes.values())
    mask_vector = spec.weights.default_config["hidden_size"]
    assert (count, count + mask_vector, len(shapes) + 1) == (registered, published, tensors)
    assert spec.published_parameters == published
    assert (spec.weights_licence, spec.commercial_use) == ("CC-BY-NC-4.0", False)


def test_names_and_shapes_of_the_large_model():
    shapes = {k: tuple(p.shape) for k, p in published_shapes("mert-v1-330m").items()}
    assert shapes["encoder.pos_conv_embed.conv.weight_v"] == (1024, 64, 128)
    assert shapes["encoder.pos_conv_embed.conv.weight_g"] == (1, 1, 128)
    assert shapes["encoder.layers.23.feed_forward.output_dense.weight"] == (1024, 4096)
    norms = [k for k in shapes if k.startswith("feature_extractor") and "layer_norm" in k]
    assert norms == [f"feature_extractor.conv_layers.0.layer_norm.{p}" for p in ("weight", "bias")]


def test_parameters_of_the_first_six_layers():
    """What the PETL paper counts as full fine-tuning of MERT."""
    backbone = Mert(MertConfig(768, 12, 12, 3072), "mert-v1-95m", 24000, num_layers=6)
    assert sum(p.numel() for p in backbone.parameters()) == 51_843_712


# Fresh weights ---------------------------------------------------------------------------------------------


def test_fresh_weights_follow_the_recipe():
    build = BACKBONES["mert-v1-95m"].build
    backbone = build(num_layers=1, generator=torch.Generator().manual_seed(0))
    block, stem = backbone.encoder.blocks[0], backbone.stem
    assert block.ffn_up.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert block.attention.query.bias.abs().max().item() == 0
    conv = stem.convs.layers[1].weight
    assert conv.std().item() == pytest.approx((2 / (512 * 3)) ** 0.5, rel=0.01)
    positions = backbone.encoder.positions
    assert positions.weight().std().item() == pytest.approx((4 / (128 * 768)) ** 0.5, rel=0.01)
    assert torch.all(stem.norm.weight == 1) and torch.all(stem.norm.bias == 0)
    again = build(num_layers=1, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), again.parameters(), strict=True))


# Precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("native", [False, True])
def test_bf16_stays_within_two_percent_of_every_layer(model, native):
    waveform = golden(model)[0]["in.waveform_raw"][None]
    low = tiny(model)
    set_precision(low, "bf16", native=native)
    assert (low.precision, low.arithmetic) == ("bf16", "bf16" if native else "fp32")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16 if native else torch.float32}
    with torch.inference_mode():
        exact, rounded = tiny(model)(waveform), low(waveform)
    for i, x in exact.layers.items():
        assert rounded.layers[i].dtype == torch.float32
        error = ((rounded.layers[i] - x).norm() / x.norm()).item()
        assert 1e-4 < error < 0.02, f"layer {i}"


def test_rounded_weights_do_not_come_back():
    backbone = tiny("base")
    set_precision(backbone, "fp32")
    set_precision(backbone, "bf16")
    with pytest.raises(ValueError, match="Load it again"):
        set_precision(backbone, "fp32")
    with pytest.raises(ValueError, match="'fp32' or 'bf16', got 'fp16'"):
        set_precision(tiny("base"), "fp16")
    with pytest.raises(ValueError, match="float32 only"):
        set_precision(BACKBONES["chroma"].build(), "bf16")
