"""CHOI against vectors of the published model, with recipe weights, and what its two conventions do to a batch."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiation.backbones.choi import (
    CLIP_SAMPLES,
    below_maximum,
    build,
    from_published,
    outline,
    python2_shuffle,
)
from audiation.weights import WeightsError
from detgen import recipe

GOLDEN = Path(__file__).parent / "golden"
FEATURES = {"rtol": 0, "atol": 1e-4}


@cache
def golden():
    return load_file(GOLDEN / "choi_a.safetensors")


@cache
def published():
    """Tensors under the paths of the official file."""
    facts = json.loads((GOLDEN / "choi_a.json").read_text())
    seed = facts["recipe_seed"]
    return {
        f"ConvBNEluDr/{p['name']}": torch.from_numpy(
            recipe(seed, p["name"], tuple(p["shape"]), p["mean"], p["std"])
        )
        for p in facts["params"]
    }


def choi(convention="default"):
    backbone = from_published(published(), {})
    backbone.use_convention(convention)
    return backbone.eval()


def vectors(backbone, waveform, num_samples=None):
    with torch.inference_mode():
        return backbone(waveform, num_samples).layers[0][:, 0]


@cache
def waves():
    return golden()["wave_i16"].float() / 32768


# Parity ----------------------------------------------------------------------------------------------------


def test_spectrum_is_that_of_the_published_layer():
    decibels = choi().mel(waves())
    alone, together = below_maximum(decibels, False), below_maximum(decibels, True)
    torch.testing.assert_close(alone[0], golden()["melgram_single0"], rtol=0, atol=2e-3)
    torch.testing.assert_close(
        together[:, :, [0, 1, 700, 1359]], golden()["melgram_batch_frames_0_1_700_1359"], rtol=0, atol=2e-3
    )


def test_every_clip_by_itself():
    torch.testing.assert_close(vectors(choi(), waves()), golden()["recipe.single"], **FEATURES)


def test_statistics_of_the_batch():
    torch.testing.assert_close(vectors(choi("jukemir"), waves()), golden()["recipe.batch"], **FEATURES)
    assert (golden()["recipe.batch"] - golden()["recipe.single"]).abs().mean() > 0.05


def test_features_follow_from_plain_layers():
    """The maximum before norm and ELU, and kernels with signs, against the layers as they are described."""
    backbone = choi()
    with torch.no_grad():
        backbone.blocks[0].gamma[::2] *= -1
        x = torch.randn(3, 1, 96, 1360, generator=torch.Generator().manual_seed(0))
        for over_batch in (False, True):
            y = F.conv2d(x, backbone.blocks[0].weight, padding=1)
            axes = (0, 2, 3) if over_batch else (2, 3)
            y = (y - y.mean(axes, keepdim=True)) / (y.var(axes, correction=0, keepdim=True) + 1e-3).sqrt()
            gamma, beta = backbone.blocks[0].gamma, backbone.blocks[0].beta
            y = F.max_pool2d(F.elu(y * gamma[:, None, None] + beta[:, None, None]), (2, 4))
            torch.testing.assert_close(backbone.blocks[0](x, over_batch), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convention", ["default", "jukemir"])
def test_large_batches_in_parts_give_what_they_give_at_once(convention):
    backbone = choi(convention)
    clips = torch.cat([waves(), waves() * 0.5, waves().flip(0) * 0.1])[:5]
    with torch.no_grad():
        parts = backbone(clips).layers[0]
    torch.testing.assert_close(backbone(clips).layers[0].detach(), parts, rtol=1e-4, atol=1e-5)


def test_mel_bands_are_those_of_librosa():
    import librosa

    theirs = librosa.filters.mel(sr=12000, n_fft=512, n_mels=96, fmin=0, fmax=6000)
    torch.testing.assert_close(choi().mel.filters.t(), torch.from_numpy(theirs), rtol=0, atol=4e-9)


# Clips and batches -----------------------------------------------------------------------------------------


def test_long_clips_are_cut_and_short_ones_repeated():
    backbone, wave = choi(), waves()[:1]
    longer = torch.cat([wave, wave.flip(1)], dim=1)
    assert torch.equal(vectors(backbone, longer), vectors(backbone, wave))
    short = wave[:, :100_000]
    by_hand = short.repeat(1, 4)[:, :CLIP_SAMPLES]
    assert torch.equal(vectors(backbone, short), vectors(backbone, by_hand))


@pytest.mark.parametrize("convention", ["default", "jukemir"])
def test_clips_of_unequal_length_are_each_repeated_from_their_own_samples(convention):
    backbone, wave = choi(convention), waves()
    padded = torch.stack(
        [wave[0], torch.cat([wave[1, :150_000], torch.full((CLIP_SAMPLES - 150_000,), 0.7)])]
    )
    given = vectors(backbone, padded, torch.tensor([CLIP_SAMPLES, 150_000]))
    by_hand = torch.stack([wave[0], wave[1, :150_000].repeat(3)[:CLIP_SAMPLES]])
    assert torch.equal(given, vectors(backbone, by_hand))


def test_unknown_conventions_are_refused():
    with pytest.raises(ValueError, match="default, jukemir, got 'marble'"):
        build().use_convention("marble")


def test_training_mode_changes_nothing_and_gives_gradients():
    backbone = choi()
    short = waves()[:, :60_000]
    in_eval = vectors(backbone, short)
    given = backbone.train()(short).layers[0]
    torch.testing.assert_close(given[:, 0].detach(), in_eval, rtol=1e-4, atol=1e-5)
    given.square().sum().backward()
    assert all(bool(p.grad.any()) for p in backbone.parameters())


def test_order_of_jukemirs_batches():
    """The first numbers from seed 0 are .844, .758, .421, .259, .511, .405, .784, .303, .477 in Python 2 as in 3, so
    the places 9, 8, ..., 1 change with 8, 6, 3, 1, 3, 2, 3, 0, 0."""
    expected = list(range(10))
    for i, j in zip(range(9, 0, -1), (8, 6, 3, 1, 3, 2, 3, 0, 0), strict=True):
        expected[i], expected[j] = expected[j], expected[i]
    assert python2_shuffle(range(10), 0) == expected == [9, 4, 0, 5, 2, 7, 1, 3, 6, 8]
    assert sorted(python2_shuffle("abcde", 1)) == list("abcde") and python2_shuffle((), 0) == []


# Files -----------------------------------------------------------------------------------------------------


def official_file():
    """All that the official file holds, by shape."""
    whole = dict(published())
    for b in range(1, 6):
        for name in ("running_mean", "running_std"):
            whole[f"ConvBNEluDr/batchnormalization_{b}_{name}"] = torch.full((32,), torch.nan)
    whole |= {f"melgram/param_{i}": torch.zeros(512, 1, 1, 257) for i in (0, 1)}
    whole |= {"melgram/param_2": torch.zeros(257, 96)}
    return whole | {"dense_1/dense_1_W": torch.zeros(32, 50), "dense_1/dense_1_b": torch.zeros(50)}


def test_the_official_file_is_read_whatever_its_groups():
    plain = choi().state_dict()
    nested = {f"model_weights/{k.replace('/', '/ConvBNEluDr/')}": v for k, v in published().items()}
    for tensors in (official_file(), nested):
        theirs = from_published(tensors, {}).state_dict()
        assert theirs.keys() == plain.keys() and all(torch.equal(theirs[k], v) for k, v in plain.items())
    kernel = published()["ConvBNEluDr/convolution2d_3_W"]
    assert torch.equal(plain["blocks.2.weight"][:, :, 0, 2], kernel[:, :, 2, 0])


def test_parameters_are_those_that_are_published():
    backbone = outline()
    assert sum(p.numel() for p in backbone.parameters()) + backbone.unused_parameters == 37_632
    assert sum(t.numel() for t in published().values()) == 37_632


def test_other_files_are_refused():
    lacking = {k: v for k, v in published().items() if not k.endswith("convolution2d_5_W")}
    with pytest.raises(WeightsError, match="1 missing: 'convolution2d_5_W'"):
        from_published(lacking, {})
    with pytest.raises(WeightsError, match="1 unexpected: 'conv2d_6_W'"):
        from_published(published() | {"ConvBNEluDr/conv2d_6_W": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match=r"of another shape: 'convolution2d_1_W' is \(32, 32, 3, 3\)"):
        from_published(published() | {"ConvBNEluDr/convolution2d_1_W": torch.zeros(32, 32, 3, 3)}, {})
    twice = published() | {"again/convolution2d_1_W": torch.zeros(32, 1, 3, 3)}
    with pytest.raises(WeightsError, match="are both there"):
        from_published(twice, {})
    with pytest.raises(ValueError, match="cannot be cut to num_layers=1"):
        from_published(published(), {}, num_layers=1)
