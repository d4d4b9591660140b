"""Hand-crafted backbones against librosa 0.8.1 (the published numbers) and librosa 0.11 with reflection."""

import fcntl
import importlib.metadata
import pickle
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from audiation.backbones import BACKBONES, handcrafted
from audiation.backbones.handcrafted import clip_moments

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("chroma", "mfcc", "chroma-frames", "logmel-frames")
SAMPLE_RATE_HZ = 22050


@pytest.fixture(params="ab", scope="module")
def golden(request):
    return load_file(GOLDEN / f"handcrafted_{request.param}.safetensors")


def noise(num_samples, batch=1, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).normal(0, 0.1, (batch, num_samples)).astype(np.float32)
    )


def waveform(golden):
    return torch.from_numpy(golden["wave_i16"].astype(np.float32) / 32768)[None]


@pytest.mark.parametrize(("name", "key"), [("chroma", "chroma72"), ("mfcc", "mfcc120")])
def test_vectors_match_published_and_current_librosa(golden, name, key):
    states = BACKBONES[name].build()(waveform(golden))
    vector = states.layers[0]
    assert vector.shape == (1, 1, len(golden[f"librosa081.{key}"])) and vector.dtype == torch.float32
    assert states.frame_rate_hz is None and states.valid.all()
    published = np.abs(vector[0, 0].numpy() - golden[f"librosa081.{key}"]).max()
    assert published < (3e-3 if name == "chroma" else 1e-3)
    if importlib.metadata.version("librosa").startswith("0.11"):
        assert np.abs(vector[0, 0].numpy() - golden[f"librosa011_reflect.{key}"]).max() < 1e-4
    # Zero padding, today's default of librosa, is another feature.
    assert np.abs(vector[0, 0].numpy() - golden[f"librosa011_default.{key}"]).max() > 5e-4


def test_chroma_frames_match(golden):
    backbone = BACKBONES["chroma-frames"].build()
    states = backbone(waveform(golden))
    frames = states.layers[0][0].numpy().T
    assert frames.shape == golden["librosa081.chroma"].shape
    assert np.abs(frames - golden["librosa081.chroma"]).max() < 0.05
    assert backbone.num_frames(len(golden["wave_i16"])) == frames.shape[1]
    assert states.times_seconds[1].item() == pytest.approx(512 / 22050) and states.times_seconds[0] == 0
    pooled = backbone(waveform(golden), reduce="mean")
    np.testing.assert_allclose(pooled.layers[0][0, 0].numpy(), frames.mean(1), atol=1e-6)


def test_log_mel_is_what_mfcc_is_made_of(golden):
    from scipy.fft import dct

    frames = BACKBONES["logmel-frames"].build()(waveform(golden)).layers[0][0].numpy()
    assert frames.shape == (517, 128) and frames.max() - frames.min() <= 80.0 + 1e-4
    mfcc = dct(frames, axis=1, norm="ortho")[:, :20].T
    assert np.abs(mfcc - golden["librosa081.mfcc"]).max() < 1e-3


def test_level_does_not_matter_and_batch_items_are_independent():
    clips = noise(30000, batch=2)
    for name in NAMES:
        backbone = BACKBONES[name].build()
        both = backbone(clips).layers[0]
        np.testing.assert_array_equal(both[1], backbone(clips[1:]).layers[0][0])
        np.testing.assert_allclose(both, backbone(clips * 0.25).layers[0], atol=1e-5)


@pytest.mark.parametrize("num_samples", [1024, 1025, 2047, 20000])
@pytest.mark.parametrize("kind", ["silence", "constant", "click", "noise"])
def test_every_clip_that_is_long_enough_gives_finite_numbers_without_warnings(num_samples, kind):
    clip = {"silence": torch.zeros(1, num_samples), "constant": torch.full((1, num_samples), -0.3)}.get(kind)
    if clip is None:
        clip = noise(num_samples) * (torch.arange(num_samples) == 700 if kind == "click" else 1.0)
    for name in NAMES:
        backbone = BACKBONES[name].build()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hidden = backbone(clip).layers[0]
        assert hidden.isfinite().all()
        assert hidden.shape == (1, backbone.num_frames(num_samples), backbone.dim)


def test_silence_is_defined():
    silence = torch.zeros(1, 22050)
    assert (BACKBONES["chroma"].build()(silence).layers[0] == 0).all()
    mfcc = BACKBONES["mfcc"].build()(silence).layers[0][0, 0]
    assert mfcc[0].item() == pytest.approx(-100 * 128**0.5, rel=1e-5) and mfcc[1:].abs().max() < 1e-3


def test_what_is_refused():
    backbone = BACKBONES["chroma"].build()
    with pytest.raises(ValueError, match="at least 1024 samples"):
        backbone(torch.zeros(1, 1023))
    with pytest.raises(ValueError, match="NaN"):
        backbone(torch.full((1, 4096), float("nan")))
    with pytest.raises(ValueError, match="cannot be padded"):
        backbone(torch.zeros(2, 4096), num_samples=torch.tensor([4096, 2048]))
    with pytest.raises(ValueError, match=r"layers 0\.\.0"):
        backbone(torch.zeros(1, 4096), layers=[1])
    with pytest.raises(ValueError, match="num_layers=3"):
        BACKBONES["mfcc"].build(num_layers=3)


def test_no_parameters_a_version_in_the_hash_and_picklable():
    for name in NAMES:
        backbone = BACKBONES[name].build()
        assert not backbone.state_dict() and backbone.encoder is None and backbone.name == name
        assert backbone.weights_hash == f"handcrafted-1+librosa-{importlib.metadata.version('librosa')}"
        again = pickle.loads(pickle.dumps(backbone))
        clip = noise(8192)
        assert torch.equal(again(clip).layers[0], backbone(clip).layers[0])


def test_moments_by_hand():
    feature = np.array([[0.0, 1.0, 4.0, 9.0]])
    # f: mean 3.5; diff 1, 3, 5; second difference 2, 2; deviations divide by the count
    expected = [3.5, np.sqrt(49 / 4), 3.0, np.sqrt(8 / 3), 2.0, 0.0]
    np.testing.assert_allclose(clip_moments(feature), expected, atol=1e-12)


def test_librosa_compiles_in_one_process_at_a_time(monkeypatch):
    """Two that compiled at once left a cache in librosa's folder with which every later process crashed."""
    locked = []

    def held(clip):
        with open(librosa.__file__, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(len(clip))
        return np.zeros((12, 3))

    monkeypatch.setattr(handcrafted, "chroma_frames", held)
    monkeypatch.setattr(handcrafted, "mfcc_frames", held)
    handcrafted.compile_librosa.__wrapped__()
    assert locked == [22_050, 22_050]
