"""MusicFM against numbers of the published implementation, and what is promised about loading and inference."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.backbones import BACKBONES
from audiation.backbones import musicfm as module
from audiation.backbones.conformer import ConformerConfig, rotary_frequencies
from audiation.backbones.derived import DerivesWeights
from audiation.backbones.musicfm import FMA, MSD, MusicFM, from_published
from audiation.backbones.musicfm_checkpoint import (
    official_tensors,
    our_name,
    published_layout,
    published_parameters,
)
from audiation.backbones.precision import set_precision
from detgen import musicfm_tensor, waveform

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5
MASKED_SAMPLES = 9600
TINY = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "musicfm_tiny.safetensors")


@pytest.fixture(scope="module")
def tensors(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in golden.items() if name.startswith("model.")}


@pytest.fixture
def model(tensors: dict[str, Tensor]) -> MusicFM:
    return from_published(tensors, {}).eval()


@pytest.fixture
def small() -> MusicFM:
    return module.fresh(MSD, TINY, conv_channels=4).eval()


@pytest.fixture
def clip() -> Tensor:
    return 0.1 * torch.randn(1, 9600, generator=torch.Generator().manual_seed(1))


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b.detach()).abs().max())


# Parity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [True, False], ids=["folded", "unfolded"])
def test_every_layer_is_the_published_one(model: MusicFM, golden: dict[str, Tensor], inference: bool) -> None:
    with torch.inference_mode(inference):
        states = model(golden["io.wav"])
    assert sorted(states.layers) == [0, 1, 2, 3]
    for i, x in states.layers.items():
        assert largest_difference(x, golden[f"io.hidden.{i}"]) < TOLERANCE
    assert (model.stem.blocks[0]._derived is not None) == inference


@torch.inference_mode()
def test_mel_spectrum_and_stem_are_the_published_ones(model: MusicFM, golden: dict[str, Tensor]) -> None:
    wav = golden["io.wav"]
    assert largest_difference(model.stem.mel(wav), golden["io.mel_db"]) < TOLERANCE
    features = model.stem.features(wav)
    assert largest_difference(features[..., :16], golden["io.mel_norm"]) < TOLERANCE
    x = model.stem.blocks[0](features[:1].unsqueeze(1))
    assert largest_difference(x, golden["io.conv_block0"]) < TOLERANCE
    assert largest_difference(model.stem.blocks[1](x), golden["io.conv_block1"]) < TOLERANCE
    assert largest_difference(model.stem(wav), golden["io.subsampled"]) < TOLERANCE


def masked_loss(model: MusicFM, golden: dict[str, Tensor], head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Output for the masked waveform and BEST-RQ loss, `spec (d)`: noise in whole windows of 0.4 s."""
    wav = golden["io.wav"].clone()
    masked = golden["io.mask_start"].bool().repeat_interleave(MASKED_SAMPLES, dim=1)
    wav[:, : masked.shape[1]][masked] = golden["io.mask_noise"]
    out = model(wav, layers=[model.num_layers]).layers[model.num_layers]
    batch, frames = golden["io.masked_token_indices"].long().unbind(1)
    return out, F.cross_entropy(head(out[batch, frames]), golden["io.tokens"].long()[batch, frames])


@pytest.fixture
def head(tensors: dict[str, Tensor]) -> nn.Linear:
    head = nn.Linear(64, 512)
    head.load_state_dict({"weight": tensors["model.linear.weight"], "bias": tensors["model.linear.bias"]})
    return head


@pytest.mark.parametrize("training", [False, True])
def test_loss_gradients_and_statistics_are_the_published_ones(
    model: MusicFM, golden: dict[str, Tensor], head: nn.Linear, training: bool
) -> None:
    group, loss_key = ("train", "masked_loss_train_nodropout") if training else ("masked", "masked_loss_eval")
    known = json.loads((GOLDEN / "musicfm_tiny.json").read_text())["results"][loss_key]
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    for block in model.encoder.blocks:
        block.attention.dropout = 0.0
    out, loss = masked_loss(model.train(training), golden, head)
    loss.backward()
    assert abs(loss.item() - known) < TOLERANCE
    assert largest_difference(out, golden[f"io.{group}.hidden_last"]) < TOLERANCE
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    checked = 0
    for key in golden:
        if key.startswith(f"io.{group}.grad.") and (name := our_name(key.removeprefix(f"io.{group}.grad."))):
            assert largest_difference(parameters[name].grad, golden[key]) < TOLERANCE, key
            checked += 1
        elif training and key.startswith("io.train.con"):
            name = our_name(key.removeprefix("io.train."))
            assert largest_difference(buffers[name], golden[key]) < TOLERANCE, key
            checked += 1
    assert checked == (8 if training else 6)


@pytest.mark.slow
@torch.inference_mode()
def test_full_size_agrees_with_the_published_implementation() -> None:
    seed = 31103318
    shapes = published_layout(ConformerConfig())
    computed = ("preprocessor", "quantizer", "linear.", "cls_token")
    weights = {
        name: torch.from_numpy(musicfm_tensor(seed, name, shape))
        for name, shape in shapes.items()
        if not name.startswith(computed) and "inv_freq" not in name
    }
    weights["conformer.embed_positions.inv_freq"] = rotary_frequencies(64)
    model = from_published(weights, {}).eval()
    del weights
    wav = torch.from_numpy(waveform(seed, 720_000))[None]
    with safe_open(GOLDEN / "musicfm_full_slices.safetensors", "pt") as golden:
        assert torch.equal(wav[:, :1000], golden.get_tensor("io.wav_first_1000"))
        mel = model.stem.mel(wav)
        assert largest_difference(mel[..., ::60], golden.get_tensor("io.mel_db")) < TOLERANCE
        frames = golden.get_tensor("io.frames").long()
        means, deviations = golden.get_tensor("io.hidden_mean"), golden.get_tensor("io.hidden_std")
        for i, x in model(wav).layers.items():
            assert largest_difference(x[:, frames], golden.get_tensor(f"io.hidden.{i}")) < TOLERANCE, i
            assert abs(x.double().mean() - means[i]) < 1e-6
            assert abs(x.double().std(unbiased=False) - deviations[i]) < 1e-5


# Layers, frames, input -------------------------------------------------------------------------------


@torch.inference_mode()
def test_only_the_last_layer_there_has_passed_the_final_norm(
    tensors: dict[str, Tensor], golden: dict[str, Tensor], model: MusicFM
) -> None:
    before = golden["io.last_layer_before_encoder_norm"]
    whole = model(golden["io.wav"]).layers
    assert largest_difference(whole[3], model.encoder.final_norm(before)) < TOLERANCE
    cut = from_published(tensors, {}, num_layers=2).eval()
    assert cut.num_layers == 2
    assert not any("blocks.2" in name for name in cut.state_dict() if name.startswith("encoder"))
    layers = cut(golden["io.wav"]).layers
    assert torch.equal(layers[1], whole[1])
    assert torch.equal(layers[2], model.encoder.final_norm(whole[2]))


@torch.inference_mode()
def test_early_exit_equals_the_full_run_bit_for_bit(model: MusicFM, golden: dict[str, Tensor]) -> None:
    whole = model(golden["io.wav"]).layers
    for last in range(4):
        early = model(golden["io.wav"], layers=[last], last_layer=last).layers
        assert list(early) == [last]
        assert torch.equal(early[last], whole[last])


@torch.inference_mode()
def test_mean_is_pooled_while_running(model: MusicFM, golden: dict[str, Tensor]) -> None:
    frames, pooled = model(golden["io.wav"]), model(golden["io.wav"], layers=[0, 2], reduce="mean")
    assert pooled.frame_rate_hz is None
    assert pooled.valid.shape == (2, 1)
    for i, x in pooled.layers.items():
        assert largest_difference(x, frames.mean().layers[i]) < 1e-6
    with pytest.raises(ValueError, match="'median'"):
        model(golden["io.wav"], reduce="median")


@pytest.mark.parametrize(
    ("num_samples", "num_frames"),
    [
        *[(1025, 1), (2400, 3), (23_999, 25), (24_000, 25), (24_239, 25), (24_240, 26)],
        *[(698_976, 728), (719_725, 750), (720_000, 750)],
    ],
)
def test_frame_arithmetic(small: MusicFM, num_samples: int, num_frames: int) -> None:
    assert small.num_frames(num_samples) == num_frames
    if num_samples <= 24_240:
        states = small(torch.zeros(1, num_samples))
        assert states.layers[0].shape == states.layers[2].shape == (1, num_frames, 16)
        assert states.valid.shape == (1, num_frames)


def test_frames_lie_on_the_forty_millisecond_grid(small: MusicFM, clip: Tensor) -> None:
    states = small(clip)
    assert (small.frame_rate_hz, small.hop_samples, small.sample_rate_hz) == (25.0, 960, 24_000)
    assert states.times_seconds[:3].tolist() == pytest.approx([0.0, 0.04, 0.08])
    assert small.max_seconds == 30.0


def test_unusable_input_is_refused(small: MusicFM, clip: Tensor) -> None:
    assert small.min_samples == 1025
    with pytest.raises(ValueError, match="1025 samples"):
        small(clip[:, :1024])
    with pytest.raises(ValueError, match="cannot be padded"):
        small(clip.expand(2, -1), num_samples=torch.tensor([9600, 4800]))
    with pytest.raises(ValueError, match=r"layers 0\.\.2, got 3"):
        small(clip, layers=[3])


@torch.inference_mode()
def test_a_clip_does_not_depend_on_its_neighbours(small: MusicFM, clip: Tensor) -> None:
    pair = torch.cat([clip, 3 * clip.flip(1)])
    both = small(pair).layers[2]
    for i in range(2):
        assert largest_difference(both[i : i + 1], small(pair[i : i + 1]).layers[2]) < 1e-5


# Published weights -----------------------------------------------------------------------------------


def test_the_published_layout_has_the_published_size() -> None:
    layout = published_layout(ConformerConfig())
    assert len(layout) == 465
    assert published_parameters(ConformerConfig()) == module.PUBLISHED_PARAMETERS == 328_932_480
    with torch.device("meta"):
        registered = sum(p.numel() for p in MusicFM(MSD).parameters())
    unused = 4_198_400 + 8_389_760 + 1_024  # head, positional convolution, cls token
    assert registered == 328_932_480 - unused == 316_343_296


def test_unused_tensors_are_reported_and_not_registered(model: MusicFM) -> None:
    assert model.unused_tensors == (
        "cls_token",
        "conformer.embed_positions.inv_freq",
        "conformer.pos_conv_embed.conv.bias",
        "conformer.pos_conv_embed.conv.weight_g",
        "conformer.pos_conv_embed.conv.weight_v",
        "linear.bias",
        "linear.weight",
        "preprocessor_melspec_2048.mel_stft.mel_scale.fb",
        "preprocessor_melspec_2048.mel_stft.spectrogram.window",
        "quantizer_melspec_2048_0.codebook",
        "quantizer_melspec_2048_0.random_projection",
    )
    assert sum(p.numel() for p in model.parameters()) == 213_664


def parametrised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    spelling = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    return {".".join(spelling.get(part, part) for part in n.split(".")): t for n, t in tensors.items()}


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {n: t for n, t in tensors.items() if not n.endswith("weight_g")}
    return {n.replace("conv.weight_v", "conv.weight"): t for n, t in kept.items()}


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("model."): t for n, t in tensors.items()}


def only_what_is_used(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if our_name(n.removeprefix("model.")) or "inv_freq" in n}


@pytest.mark.parametrize("spelling", [parametrised, fused, without_prefix, only_what_is_used])
def test_every_spelling_gives_the_same_model(
    model: MusicFM, tensors: dict[str, Tensor], spelling: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    other = from_published(spelling(tensors), {}).state_dict()
    ours = model.state_dict()
    assert other.keys() == ours.keys()
    assert all(torch.equal(other[n], ours[n]) for n in ours)


def test_counters_become_integers_and_nothing_is_shared(model: MusicFM, tensors: dict[str, Tensor]) -> None:
    assert model.stem.blocks[0].norm1.num_batches_tracked.dtype == torch.int64
    before = tensors["model.conv.conv.0.conv1.bias"].clone()
    with torch.no_grad():
        model.stem.blocks[0].conv1.bias.zero_()
    assert torch.equal(tensors["model.conv.conv.0.conv1.bias"], before)


QUERY = "model.conformer.layers.1.self_attn.linear_q.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, "1 missing: 'conformer.layers.1.self_attn.linear_q.weight'"),
        ({QUERY: torch.zeros(64, 65)}, "of another shape: .*linear_q.weight' is .64, 65., expected .64, 64."),
        ({"model.conformer.mask_emb": torch.zeros(64)}, "1 unexpected: 'conformer.mask_emb'"),
        ({"model.conformer.layers.999999999.x": torch.zeros(1)}, "unexpected: .*999999999"),
        ({"model.cls_token": torch.zeros(65)}, "'cls_token' is .65,., expected .64,."),
        (
            {"model.conv.conv.0.conv1.weight": None},
            "'conv.conv.0.conv1.weight' has 4 axes there, here it is missing",
        ),
        (
            {"model.preprocessor_melspec_2048.mel_stft.mel_scale.fb": 1.01},
            "mel_scale.fb' differs .* front end",
        ),
        ({"model.preprocessor_melspec_2048.mel_stft.spectrogram.window": 0.5}, "window' differs"),
        ({"model.conformer.embed_positions.inv_freq": 2.0}, "inv_freq' differs"),
    ],
)
def test_other_tensors_are_refused_by_name(
    tensors: dict[str, Tensor], changes: dict[str, Tensor | float | None], message: str
) -> None:
    changed = dict(tensors)
    for name, change in changes.items():
        if change is None:
            del changed[name]
        else:
            changed[name] = changed[name] * change if isinstance(change, float) else change
    with pytest.raises(ValueError, match=message):
        from_published(changed, {})


def test_statistics_belong_to_their_checkpoint(tensors: dict[str, Tensor]) -> None:
    fma = {"melspec_2048_mean": FMA.mean_db, "melspec_2048_std": FMA.std_db}
    assert from_published(tensors, {}).stem.statistics == MSD
    assert from_published(tensors, fma, statistics=FMA).stem.statistics == FMA
    with pytest.raises(ValueError, match="sibling checkpoint"):
        from_published(tensors, fma)
    with pytest.raises(ValueError, match="not the mean and deviation"):
        from_published(tensors, {"melspec_2048_std": 0.0})
    for name, statistics in (("musicfm-msd", MSD), ("musicfm-fma", FMA)):
        spec = BACKBONES[name]
        assert spec.from_published is not None
        assert spec.from_published(tensors, spec.weights.default_config).stem.statistics == statistics
        assert spec.published_parameters == 328_932_480
        assert spec.recommended_layer == 7


@pytest.mark.parametrize("num_layers", [0, 4])
def test_layers_that_do_not_exist_are_refused(tensors: dict[str, Tensor], num_layers: int) -> None:
    with pytest.raises(ValueError, match="have 3 layers"):
        from_published(tensors, {}, num_layers=num_layers)


# Fresh weights ---------------------------------------------------------------------------------------


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    first, again = (
        module.fresh(MSD, TINY, 4, torch.Generator().manual_seed(5)).state_dict() for _ in range(2)
    )
    other = module.fresh(MSD, TINY, 4, torch.Generator().manual_seed(6)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["stem.projection.weight"], other["stem.projection.weight"])


def test_a_model_made_in_inference_mode_is_like_any_other(clip: Tensor) -> None:
    with torch.inference_mode():
        model = module.fresh(MSD, TINY, conv_channels=4).eval()
        model(clip)
    assert have_derived(model) == [True] * 4
    model(clip).layers[2].sum().backward()
    assert model.stem.projection.weight.grad is not None


def test_fresh_weights_follow_torch_defaults() -> None:
    config = ConformerConfig(dim=64, num_heads=4, ffn_dim=128, num_layers=1)
    block = module.fresh(MSD, config, conv_channels=8).encoder.blocks[0]
    weight = block.attention.query.weight  # uniform within 1 / sqrt(fan-in): 1/32 at the published width
    assert float(weight.detach().abs().max()) == pytest.approx(1 / 8, rel=0.01)
    assert float(weight.detach().std()) == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
    assert torch.equal(block.final_norm.weight, torch.ones(64))
    norm = block.conv.depthwise.norm
    assert torch.equal(norm.running_var, torch.ones(64))
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.slow
def test_the_registered_model_has_the_published_size() -> None:
    model = BACKBONES["musicfm-msd"].build(num_layers=2, generator=torch.Generator().manual_seed(0))
    assert (model.num_layers, model.dim) == (2, 1024)
    assert float(model.encoder.blocks[0].attention.query.weight.detach().max()) == pytest.approx(
        1 / 32, rel=1e-3
    )


# Derived weights -------------------------------------------------------------------------------------


def derivers(model: MusicFM) -> Iterator[DerivesWeights]:
    return (m for m in model.modules() if isinstance(m, DerivesWeights))


def have_derived(model: MusicFM) -> list[bool]:
    return [m._derived is not None for m in derivers(model)]


def test_derived_weights_are_made_in_inference_and_never_stored(small: MusicFM, clip: Tensor) -> None:
    names = set(small.state_dict())
    assert have_derived(small) == [False] * 4
    with torch.inference_mode():
        expected = small(clip).layers[2]
    assert have_derived(small) == [True] * 4
    assert set(small.state_dict()) == names
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert have_derived(twin) == [False] * 4
        with torch.inference_mode():
            assert torch.equal(twin(clip).layers[2], expected)


@pytest.mark.parametrize("action", ["train", "eval", "to", "load", "load into a part", "assign", "in place"])
def test_derived_weights_never_outlive_their_sources(small: MusicFM, clip: Tensor, action: str) -> None:
    with torch.inference_mode():
        before = small(clip).layers[2]
    other = module.fresh(MSD, TINY, 4, torch.Generator().manual_seed(9)).state_dict()
    with torch.no_grad():
        if action in ("train", "eval"):
            small.train(action == "train")
            assert have_derived(small) == [False] * 4
            small.stem.blocks[0].conv1.weight.data.mul_(2)  # seen by no counter
        elif action == "to":
            small.to(torch.float64)
            assert have_derived(small) == [False] * 4
            small.float().stem.blocks[0].conv1.weight.mul_(2)
        elif action == "load":
            small.load_state_dict(other)
        elif action == "assign":
            small.load_state_dict(other, assign=True)
        elif action == "load into a part":
            small.stem.blocks[0].conv1.load_state_dict(
                {"weight": torch.ones(4, 1, 3, 3), "bias": torch.ones(4)}
            )
        else:
            small.stem.blocks[0].norm1.running_var.mul_(2)
    small.eval() if action == "train" else None
    with torch.inference_mode():
        after = small(clip).layers[2]
    assert largest_difference(before, after) > 1e-3
    with torch.no_grad():
        fresh_copy = module.fresh(MSD, TINY, 4)
        fresh_copy.load_state_dict(small.state_dict())
        assert torch.equal(after, fresh_copy.eval()(clip).layers[2])


def test_gradients_in_eval_mode_reach_the_originals(small: MusicFM, clip: Tensor) -> None:
    with torch.inference_mode():
        small(clip)  # derived weights lie ready, and must not be taken
    small(clip).layers[2].square().sum().backward()
    missing = [n for n, p in small.named_parameters() if p.grad is None]
    assert missing == []


def test_a_frozen_stem_is_folded_while_the_encoder_learns(small: MusicFM, clip: Tensor) -> None:
    small.stem.requires_grad_(False)
    with torch.inference_mode():  # made here, used below where gradients are recorded
        small.stem(clip)
    small(clip).layers[2].sum().backward()
    assert [m._derived is not None for m in small.stem.blocks] == [True, True]
    assert small.encoder.blocks[0].conv.depthwise.conv.weight.grad is not None
    clip.requires_grad_(True)
    small(clip).layers[2].square().sum().backward()
    assert float(clip.grad.abs().max()) > 0


# Precision -------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("native", [False, True])
def test_bf16_stays_within_two_percent(
    model: MusicFM, tensors: dict[str, Tensor], golden: dict[str, Tensor], native: bool
) -> None:
    exact = model(golden["io.wav"]).layers
    rounded = from_published(tensors, {}).eval()
    set_precision(rounded, "bf16", native=native)
    for i, x in rounded(golden["io.wav"]).layers.items():
        assert x.dtype == torch.float32
        assert 1e-4 < float((x - exact[i]).norm() / exact[i].norm()) < 0.02
    assert rounded.stem.mel.filters.dtype == rounded.stem.blocks[0].norm1.running_var.dtype == torch.float32
    dtype = rounded.encoder.blocks[0].attention.query.weight.dtype
    assert dtype == (torch.bfloat16 if native else torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mel_spectrum_is_float32_whatever_surrounds_it(
    model: MusicFM, golden: dict[str, Tensor], dtype: torch.dtype
) -> None:
    expected = model.stem.mel(golden["io.wav"])
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(model.stem.mel(golden["io.wav"]), expected)
    model.to(dtype)
    assert torch.equal(model.stem.mel(golden["io.wav"]), expected)


def test_tensors_go_back_to_their_official_names(model: MusicFM, tensors: dict[str, Tensor]) -> None:
    written = official_tensors(model.state_dict(), model.encoder.config)
    for name, tensor in written.items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
    again = from_published(written, {})
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
