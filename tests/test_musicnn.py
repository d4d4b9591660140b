"""MusiCNN against the published graph in TensorFlow: the real MagnaTagATune model, and the large one from a recipe."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import librosa
import pytest
import torch
from safetensors.torch import load_file

from audiation.backbones import BACKBONES, musicnn
from audiation.backbones.musicnn import (
    MIN_WINDOW_SAMPLES,
    MSD_TAGS,
    MTT_TAGS,
    WINDOW_FRAMES,
    WINDOW_SAMPLES,
    Musicnn,
    official_names,
)
from audiation.backbones.musicnn_layers import LogMelOfHalf, slaney_filters
from audiation.datasets.magnatagatune import TAGS
from audiation.weights import WeightsError
from detgen import recipe

GOLDEN = Path(__file__).parent / "golden"
WEIGHTS_ROOT = "AUDIATION_TEST_WEIGHTS"
_GIVEN = os.environ.get(WEIGHTS_ROOT)
SMALL = ("musicnn-mtt", "musicnn-msd")
# Tolerances that the golden files suggest; maxima of activations reach 130.
TOLERANCES = {"taggram": 5e-5, "mean_pool": 1e-4, "max_pool": 2e-3, "penultimate": 5e-4}


@pytest.fixture(scope="module")
def mtt_tensors():
    return load_file(GOLDEN / "musicnn_mtt_weights.safetensors")


def big_tensors(letter):
    """The large model, of other weights in each golden file."""
    described = json.loads((GOLDEN / f"musicnn_{letter}.json").read_text())["weights"]["bigrecipe"]
    return {
        p["name"]: torch.from_numpy(
            recipe(described["recipe_seed"], p["name"], tuple(p["shape"]), p["mean"], p["std"])
        )
        for p in described["params"]
    }


@pytest.fixture(scope="module")
def mtt(mtt_tensors):
    return BACKBONES["musicnn-mtt"].from_published(mtt_tensors, {})


@pytest.fixture(scope="module")
def real_msd():
    if not _GIVEN:
        pytest.skip(
            f"needs the converted weights: set {WEIGHTS_ROOT} to a folder with musicnn-msd.safetensors"
        )
    return BACKBONES["musicnn-msd"].from_published(load_file(Path(_GIVEN) / "musicnn-msd.safetensors"), {})


@pytest.fixture(scope="module", params="ab")
def letter(request):
    return request.param


@pytest.fixture(scope="module")
def golden(letter):
    return load_file(GOLDEN / f"musicnn_{letter}.safetensors")


@pytest.fixture(scope="module")
def big(letter):
    return BACKBONES["musicnn-msd-big"].from_published(big_tensors(letter), {})


def waveform(golden):
    return (golden["wave_i16"].float() / 32768)[None]


def noise(num_samples, batch=1, seed=0):
    return 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(seed))


def with_turned_norms(name="musicnn-mtt", seed=3) -> Musicnn:
    """Fresh weights whose batch norms scale by anything, negative numbers included."""
    generator = torch.Generator().manual_seed(seed)
    backbone = BACKBONES[name].build(generator=generator)
    with torch.no_grad():
        for key, tensor in backbone.state_dict().items():
            if "norm" in key and tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if key.endswith("running_var"):
                    tensor.abs_().add_(0.1)
    assert (backbone.front.timbral[0].norm.weight < 0).any()
    return backbone


# Against the published graph ----------------------------------------------------------------------------------


def assert_matches(backbone, golden, key):
    with torch.inference_mode():
        found = backbone.outputs(waveform(golden))
        pooled = backbone(waveform(golden), reduce="mean").layers[0][0, 0]
        taggram = backbone.tags(waveform(golden))[0]
    means, maxima = found.representation[0].chunk(2, dim=-1)
    ours = {"taggram": taggram, "mean_pool": means, "max_pool": maxima, "penultimate": found.penultimate[0]}
    for name, tolerance in TOLERANCES.items():
        torch.testing.assert_close(ours[name], golden[f"{key}.{name}"], rtol=0, atol=tolerance)
    torch.testing.assert_close(found.logits[0], golden[f"{key}.logits"], rtol=0, atol=5e-4)
    half = len(pooled) // 2
    theirs = golden[f"{key}.representation"]
    torch.testing.assert_close(pooled[:half], theirs[:half], rtol=0, atol=TOLERANCES["mean_pool"])
    torch.testing.assert_close(pooled[half:], theirs[half:], rtol=0, atol=TOLERANCES["max_pool"])


def test_the_real_mtt_model(mtt, golden):
    assert_matches(mtt, golden, "mtt")


def test_the_big_model_from_a_recipe(big, golden):
    assert_matches(big, golden, "bigrecipe")
    assert big.dim == 4194


def test_the_real_msd_model(real_msd, golden):
    assert_matches(real_msd, golden, "msd")


def test_frames_between_the_layers(big, golden):
    frames = [0, 93, 186]
    with torch.inference_mode():
        spectrum = big.front_end(waveform(golden))[0]
        front, *mid = big.mid(big.front(spectrum[: 3 * WINDOW_FRAMES].unflatten(0, (3, WINDOW_FRAMES))))
    timbral, temporal = front.transpose(1, 2)[:, frames].split((408, 153), dim=-1)
    ours = {"timbral": timbral, "temporal": temporal}
    ours |= {f"cnn{i + 1}": x.transpose(1, 2)[:, frames] for i, x in enumerate(mid)}
    for name, x in ours.items():
        torch.testing.assert_close(x, golden[f"bigrecipe.{name}.frames_0_93_186"], rtol=1e-4, atol=1e-4)


def test_spectrum(golden):
    ours = LogMelOfHalf()(waveform(golden))[0]
    theirs = golden["logmel"].reshape(96, 626).t()  # stored band by band
    differences = (ours - theirs).abs()
    # A power between two half-precision numbers may be rounded to either.
    assert differences.max() < 5e-4 and (differences > 1e-5).float().mean() < 0.01


def test_filters_are_slaneys():
    theirs = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=96, fmin=0, fmax=8_000)
    torch.testing.assert_close(slaney_filters(), torch.from_numpy(theirs).t(), rtol=0, atol=1e-8)


def test_power_is_rounded_to_half_precision_and_never_infinite():
    front_end = LogMelOfHalf()
    power = (10 ** front_end(noise(16_000)).double() - 1) / 1e4
    large = power[power > 1e-3]
    torch.testing.assert_close(large, large.half().double(), rtol=1e-5, atol=0)
    assert front_end(1e6 * noise(16_000)).max() == pytest.approx(8.8162, abs=1e-3)  # log10(65504 * 10000 + 1)


# The fast way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_windows", [1, 3])
def test_inference_equals_the_plain_layers(num_windows):
    backbone = with_turned_norms()
    clips = noise(MIN_WINDOW_SAMPLES + (num_windows - 1) * WINDOW_SAMPLES, batch=2)
    plain = backbone(clips).layers[0]
    assert plain.requires_grad
    with torch.inference_mode():
        fast = backbone(clips).layers[0]
    assert fast.shape == (2, num_windows, 1506)
    torch.testing.assert_close(fast, plain.detach(), rtol=1e-4, atol=1e-4)


def test_changed_weights_are_noticed():
    backbone, clip = with_turned_norms(), noise(MIN_WINDOW_SAMPLES)
    with torch.no_grad():
        before = backbone(clip).layers[0]
        backbone.front.timbral[1].conv.weight.mul_(-1.0)
        after = backbone(clip).layers[0]
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, backbone(clip).layers[0].detach(), rtol=1e-4, atol=1e-4)


def test_blocks_of_windows_change_nothing(mtt, monkeypatch):
    clips = noise(4 * WINDOW_SAMPLES + 5000, batch=2)
    with torch.inference_mode():
        whole = mtt(clips).layers[0]
        for size in (1, 3):
            monkeypatch.setattr(musicnn, "BLOCK_WINDOWS_CPU", size)
            torch.testing.assert_close(mtt(clips).layers[0], whole, rtol=1e-5, atol=1e-5)
    assert whole.shape == (2, 4, 1506)


def test_gradients_reach_everything_but_the_tagger(mtt_tensors):
    backbone = BACKBONES["musicnn-mtt"].from_published(mtt_tensors, {}).train()
    mean_before = backbone.front.norm.running_mean.clone()
    backbone(noise(2 * WINDOW_SAMPLES), reduce="mean").layers[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())
    assert not list(backbone.head.parameters()) and len(list(backbone.head.buffers())) == 12
    assert not torch.equal(backbone.front.norm.running_mean, mean_before)


# Windows and conventions --------------------------------------------------------------------------------------


def test_an_incomplete_window_is_dropped_behind_a_whole_one(mtt):
    clip = noise(2 * WINDOW_SAMPLES + 30_000)
    with torch.inference_mode():
        states = mtt(clip)
        longer = mtt(torch.cat([clip, noise(10_000, seed=1)], dim=1))
    assert states.valid.shape == (1, 2) and mtt.num_frames(clip.shape[1]) == 2
    assert states.times_seconds.tolist() == pytest.approx([1.488, 4.48])
    torch.testing.assert_close(longer.layers[0], states.layers[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_samples", "num_windows"),
    [(512, 1), (MIN_WINDOW_SAMPLES - 1, 1), (MIN_WINDOW_SAMPLES, 1), (95_487, 1), (95_488, 2), (480_000, 10)],
)
def test_number_of_windows(mtt, num_samples, num_windows):
    assert mtt.num_frames(num_samples) == num_windows


def test_short_clips_are_repeated(mtt):
    clip = noise(20_000)
    with torch.inference_mode():
        repeated = mtt(clip.repeat(1, 3)[:, :MIN_WINDOW_SAMPLES]).layers[0]
        assert torch.equal(mtt(clip).layers[0], repeated)
    with pytest.raises(ValueError, match="at least 512 samples"):
        mtt(clip[:, :511])


def test_jukemir_refuses_short_clips_and_is_the_same_otherwise(mtt_tensors, mtt):
    backbone = BACKBONES["musicnn-mtt"].from_published(mtt_tensors, {})
    backbone.use_convention("jukemir")
    assert backbone.convention == "jukemir"
    with pytest.raises(ValueError, match="at least 47616 samples"):
        backbone(noise(MIN_WINDOW_SAMPLES - 1))
    clip = noise(100_000)
    with torch.inference_mode():
        assert torch.equal(backbone(clip).layers[0], mtt(clip).layers[0])
    backbone.use_convention("default")
    assert backbone.num_frames(512) == 1 and backbone.min_samples == 512
    with pytest.raises(ValueError, match="has the conventions default, jukemir, got 'thesis'"):
        backbone.use_convention("thesis")


# Published tensors ------------------------------------------------------------------------------------------


class Lazy(Mapping):
    """Tensors that count how often each is read."""

    def __init__(self, tensors):
        self.tensors, self.reads = tensors, dict.fromkeys(tensors, 0)

    def __getitem__(self, name):
        self.reads[name] += 1
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_published_names_are_all_used_once(mtt_tensors, mtt):
    assert len(official_names()) == 64 and mtt_tensors.keys() == official_names().keys()
    trained = [v for k, v in mtt_tensors.items() if "moving" not in k]
    assert sum(v.numel() for v in trained) == BACKBONES["musicnn-mtt"].published_parameters == 787_159
    optimiser = {"beta1_power": torch.ones(()), "dense/kernel/Adam": torch.ones(1506, 200)}
    lazy = Lazy(mtt_tensors | optimiser)
    again = BACKBONES["musicnn-mtt"].from_published(lazy, {})
    assert lazy.reads == dict.fromkeys(mtt_tensors, 1) | dict.fromkeys(optimiser, 0)
    ours, theirs = mtt.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[k]) for k, x in ours.items())


def test_the_big_model_has_the_published_number_of_parameters():
    described = json.loads((GOLDEN / "musicnn_a.json").read_text())["weights"]["bigrecipe"]["params"]
    trained = sum(math.prod(p["shape"]) for p in described if "moving" not in p["name"])
    assert trained == BACKBONES["musicnn-msd-big"].published_parameters == 7_980_235


def test_other_tensors_are_refused(mtt_tensors):
    from_published = BACKBONES["musicnn-msd"].from_published
    with pytest.raises(WeightsError, match=r"1 missing: 'dense/bias'"):
        from_published({k: v for k, v in mtt_tensors.items() if k != "dense/bias"}, {})
    with pytest.raises(WeightsError, match=r"1 unexpected: '1CNN/kernel'"):
        from_published(mtt_tensors | {"1CNN/kernel": torch.zeros(3, 3, 1, 128)}, {})
    with pytest.raises(WeightsError, match="of another shape"):
        from_published(mtt_tensors | {"dense/kernel": torch.zeros(4194, 500)}, {})
    with pytest.raises(ValueError, match="layer 0 only"):
        from_published(mtt_tensors, {}, num_layers=2)


def test_facts():
    assert MTT_TAGS == tuple(TAGS)
    assert len(set(MSD_TAGS)) == len(set(MTT_TAGS)) == 50
    for name in SMALL:
        weights = BACKBONES[name].weights
        assert weights.checkpoint.package == "musicnn==0.1.0" and weights.licence == "ISC"
        assert BACKBONES[name].outline().dim == 1506
    assert BACKBONES["musicnn-mtt"].weights.checkpoint.member == "musicnn/MTT_musicnn/"
    assert BACKBONES["musicnn-mtt"].outline().tag_names == MTT_TAGS
    assert BACKBONES["musicnn-msd"].outline().tag_names == MSD_TAGS
