"""Small CNNs trained from scratch: their published shapes, their front ends, and that each learns."""

import math

import librosa
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import nn

from audiation.adaptation import AdaptConfig, train_adaptation
from audiation.adapted import AdaptedModel, answer_track
from audiation.adapter_files import save_adapter
from audiation.adapters import load_adapter
from audiation.annotations import Tempo
from audiation.backbones import BACKBONES
from audiation.backbones.clip_cnn import fresh
from audiation.backbones.directional_cnn import MelMagnitude, key_cnn, tempo_cnn
from audiation.backbones.genre_cnn import genre_cnn
from audiation.backbones.short_chunk_cnn import short_chunk_cnn
from audiation.heads import ProbeHead
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.metrics import TEMPO_ACCURACY1
from audiation.targets import ClassTarget, KeyTarget, TempoTarget
from audiation.track_windows import Example
from audiation.weights import WeightsError

NAMES = ("short-chunk-cnn", "genre-cnn", "key-cnn", "tempo-cnn")


def narrow_short_chunk_cnn():
    return short_chunk_cnn(channels=8)


def noise(backbone, batch=1, num_samples=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(batch, num_samples or backbone.min_samples, generator=generator)


def chord(hz, num_samples, rate, generator):
    seconds = np.arange(num_samples) / rate
    partials = [
        np.sin(2 * np.pi * k * f * seconds + generator.uniform(0, 6)) / k for f in hz for k in (1, 2, 3)
    ]
    return 0.1 * np.sum(partials, axis=0) + 0.01 * generator.standard_normal(num_samples)


def clicks(bpm, num_samples, rate, generator):
    wave = 0.001 * generator.standard_normal(num_samples)
    for second in np.arange(generator.uniform(0, 60 / bpm), num_samples / rate - 0.02, 60 / bpm):
        first = int(second * rate)
        wave[first : first + 50] += 0.3 * generator.standard_normal(50)
    return wave


# As published ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "before_pooling"),
    [
        # rate, seconds, D; channels, bins and frames behind the last block or stage
        ("short-chunk-cnn", (16_000, 59_049 / 16_000, 512), (512, 1, 2)),
        ("genre-cnn", (22_050, 29.0, 64), (64, 1, 1)),
        ("key-cnn", (22_050, 60 * 4096 / 22_050, 128), (128, 2, 1)),
        ("tempo-cnn", (11_025, 256 * 512 / 11_025, 128), (128, 1, 4)),
    ],
)
def test_sizes_are_the_published_ones(name, sizes, before_pooling):
    backbone = load_backbone(name, "random")
    assert (backbone.sample_rate_hz, backbone.max_seconds, backbone.dim) == sizes
    seen = []
    last = backbone.get_submodule("network.stages.6" if name == "short-chunk-cnn" else "network.layers")
    last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    samples = round(sizes[0] * sizes[1])
    with torch.inference_mode():
        states = backbone(noise(backbone, num_samples=samples))
    assert tuple(seen[0].shape[1:]) == before_pooling
    assert tuple(states.layers[0].shape) == (1, 1, backbone.dim)


def test_parameters_are_those_of_the_published_convolutions():
    def conv(n_in, n_out, area):
        return (n_in * area + 1) * n_out + 2 * n_out  # with its batch norm

    def count(name):
        return sum(p.numel() for p in BACKBONES[name].build().parameters())

    residual = [(1, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 256), (256, 512)]
    assert count("short-chunk-cnn") == 2 + sum(2 * conv(i, o, 9) + conv(o, o, 9) for i, o in residual)
    genre = [(1, 16), (16, 16), (16, 32), (32, 32), (32, 64)]
    assert count("genre-cnn") == 2 + sum(conv(i, o, 9) for i, o in genre)
    directional = [(1, 16), (16, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    expected = sum(conv(i, o, 5) + conv(o, o, 3) for i, o in directional)
    assert count("key-cnn") == count("tempo-cnn") == expected


@pytest.mark.parametrize(("make", "axis"), [(key_cnn, 0), (tempo_cnn, 1)])
def test_directional_filters_look_along_one_axis(make, axis):
    shapes = [m.kernel_size for m in fresh(make).modules() if isinstance(m, nn.Conv2d)]
    assert [shape[axis] for shape in shapes] == [5, 3] * 6
    assert {shape[1 - axis] for shape in shapes} == {1}


def test_mel_magnitudes_are_those_of_librosa():
    waveform = 0.1 * np.random.default_rng(0).standard_normal(20 * 512 + 100).astype(np.float32)
    expected = librosa.feature.melspectrogram(
        y=waveform,
        sr=11025,
        n_fft=1024,
        hop_length=512,
        power=1,
        n_mels=40,
        fmin=20,
        fmax=5000,
        pad_mode="reflect",
    )[:, :20]
    front_end = MelMagnitude()
    ours = front_end(torch.from_numpy(waveform)[None])[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    cast = front_end.half()
    assert cast.filters.dtype == torch.float32 and not cast.state_dict()
    np.testing.assert_array_equal(cast(torch.from_numpy(waveform)[None])[0].numpy(), ours)


# What they do with their input ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["key-cnn", "tempo-cnn"])
def test_keys_and_tempi_do_not_depend_on_the_level(name):
    backbone = load_backbone(name, "random")
    clip = noise(backbone)
    with torch.inference_mode():
        loud, quiet = backbone(clip).layers[0], backbone(0.01 * clip).layers[0]
        silent = backbone(torch.zeros_like(clip)).layers[0]
    torch.testing.assert_close(quiet, loud, rtol=1e-3, atol=1e-3 * float(loud.abs().max()))
    assert torch.isfinite(silent).all()


@pytest.mark.parametrize("make", [narrow_short_chunk_cnn, genre_cnn, key_cnn, tempo_cnn], ids=NAMES)
def test_gradients_reach_all_parameters(make):
    backbone = fresh(make)
    inject(backbone, "finetune")
    backbone.train()
    backbone(noise(backbone, batch=2)).layers[0].square().sum().backward()
    without = {k for k, p in backbone.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
    # A batch norm right behind a convolution takes away what its bias adds; the directional ones have ReLU between.
    absorbed = {
        f"{name}.bias"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and make in (narrow_short_chunk_cnn, genre_cnn)
    }
    assert without <= absorbed


def test_one_short_clip_alone_can_be_trained_on():
    """A group of windows of one length may have one window; a batch norm needs two values per channel."""
    backbone = fresh(narrow_short_chunk_cnn).train()
    assert torch.isfinite(backbone(noise(backbone)).layers[0]).all()
    with pytest.raises(ValueError, match=r"needs at least 33024 samples \(2.064 s\)"):
        backbone(noise(backbone, num_samples=backbone.min_samples - 1))


@pytest.mark.parametrize("make", [narrow_short_chunk_cnn, key_cnn, tempo_cnn])
def test_groups_of_other_lengths_are_answered_and_padding_is_refused(make):
    backbone = fresh(make).eval()
    model = AdaptedModel(backbone, ClassTarget(("a", "b"))).eval()
    short, long = noise(backbone, 2), noise(backbone, 1, 3 * backbone.min_samples // 2)
    with torch.inference_mode():
        together = model([short, long])
        alone = torch.cat([model([short[:1]]), model([short[1:]]), model([long])])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be padded"):
        backbone(long.repeat(2, 1), torch.tensor([long.shape[1], short.shape[1]]))


# Weights ----------------------------------------------------------------------------------------------------


def test_there_are_no_weights_but_random_ones_and_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    backbone = load_backbone("tempo-cnn", "random", seed=3)
    assert backbone.weights_source == "random:seed=3"
    with pytest.raises(WeightsError, match="no official weights of 'tempo-cnn' are known"):
        load_backbone("tempo-cnn")
    with pytest.raises(ValueError, match="has layer 0 only, so it cannot be cut to num_layers=2"):
        load_backbone("tempo-cnn", "random", num_layers=2)
    save_file(backbone.state_dict(), tmp_path / "own.safetensors")
    again = load_backbone("tempo-cnn", tmp_path / "own.safetensors")
    clip = noise(backbone)
    with torch.inference_mode():
        assert torch.equal(again(clip).layers[0], backbone(clip).layers[0])
    with pytest.raises(WeightsError, match="cannot make genre-cnn from"):
        load_backbone("genre-cnn", tmp_path / "own.safetensors")


# Learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "wave", "num_frames", "steps", "learning_rate"),
    [
        (narrow_short_chunk_cnn, lambda c, *a: chord([110 * 2**c], *a), None, 50, 1e-3),
        (genre_cnn, lambda c, *a: chord([110 * 2**c], *a), None, 15, 3e-3),
        (
            key_cnn,
            lambda c, *a: chord([261.6 * 2 ** ((3 * c + k) / 12) for k in (0, 4, 7)], *a),
            None,
            50,
            1e-3,
        ),
        (tempo_cnn, lambda c, *a: clicks((70, 95, 125, 160)[c], *a), 128, 50, 1e-3),
    ],
    ids=NAMES,
)
def test_each_learns_four_clips(make, wave, num_frames, steps, learning_rate):
    generator = np.random.default_rng(0)
    backbone = fresh(make)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # too few steps to average over what is dropped
    samples = (num_frames or 0) * backbone.front_end.hop_samples or backbone.min_samples
    waves = np.stack([wave(c, samples, backbone.sample_rate_hz, generator) for c in range(4)])
    clips, classes = torch.from_numpy(waves).float(), torch.arange(4)
    head = ProbeHead(backbone.dim, 4, backbone.dim, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], learning_rate)

    backbone.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(head(backbone(clips).layers[0][:, 0]), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    backbone.eval()
    with torch.inference_mode():
        logits = head(backbone(clips).layers[0][:, 0])
    assert loss < 0.1
    assert logits.argmax(-1).tolist() == [0, 1, 2, 3]
    assert nn.functional.cross_entropy(logits, classes) < math.log(4) / 2


def test_a_model_trained_from_scratch_is_kept_and_asked(tmp_path):
    """Recordings longer, shorter and as long as a window; what is saved answers as what was trained."""
    generator = np.random.default_rng(0)
    examples = []
    for i, (bpm, seconds) in enumerate([(80, 5.0), (140, 5.0), (80, 3.5), (140, 11.0)]):
        path = tmp_path / f"{i}.wav"
        soundfile.write(
            path, clicks(bpm, round(seconds * 11_025), 11_025, generator), 11_025, subtype="FLOAT"
        )
        examples.append(Example(path.stem, path, Tempo(bpm)))
    backbone = load_backbone("tempo-cnn", "random", seed=1)
    count = inject(backbone, "finetune")
    assert count.trainable == count.registered == sum(p.numel() for p in backbone.parameters())
    config = AdaptConfig(
        steps=4, batch_size=2, learning_rate=1e-3, validate_every_steps=4, crop_seconds=5.0, crops="random"
    )
    adaptation = train_adaptation(
        backbone, TempoTarget(), examples, examples, TEMPO_ACCURACY1, config, tmp_path / "run"
    )
    assert adaptation.report.last_step == 4 and not adaptation.unused
    save_adapter(adaptation.model, tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter")
    for example in examples:
        ours, theirs = (answer_track(m, example.path).logits for m in (adaptation.model, again))
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_a_key_has_one_answer_per_track(tmp_path):
    backbone = load_backbone("key-cnn", "random")
    model = AdaptedModel(backbone, KeyTarget(), crop_seconds=backbone.max_seconds).eval()
    path = tmp_path / "a.wav"
    wave = chord((220.0, 277.2, 329.6), 25 * 22_050, 22_050, np.random.default_rng(0))
    soundfile.write(path, wave, 22_050)
    answer = answer_track(model, path)
    assert answer.logits.shape == (24,) and len(answer.window_logits) == 2
