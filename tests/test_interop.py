"""Our backbones under the interfaces of HEAR, X-ARES and mteb, held to what those benchmarks' own checkers ask.

The checkers themselves (hear-validator, xares, mteb) are not installed with the tests; what they ask is written out.
"""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soxr
import torch
from torch.utils.data import DataLoader

from audiation import load_backbone
from audiation.inference import run_clip
from audiation.interop import hear
from audiation.interop.embedder import Choices, ClipEmbedder
from audiation.interop.mteb import MtebAudioEncoder
from audiation.interop.xares import XaresEncoder
from audiation.registry import UnknownNameError
from plain_backbone import PLAIN

MINI = "musicfm-mini:weights=random,layer=2"


def noise(num_clips: int, num_samples: int, seed: int = 0) -> torch.Tensor:
    """`(B, S)` in [-1, 1]."""
    return torch.rand(num_clips, num_samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The shared layer -----------------------------------------------------------------------------------------


def test_a_text_names_a_model_and_its_choices():
    embedder = ClipEmbedder("musicfm-mini:weights=random,num_layers=3,seed=5")
    assert (embedder.name, embedder.layer, embedder.dim, embedder.sample_rate_hz) == (
        "musicfm-mini",
        3,
        128,
        24_000,
    )
    assert embedder.choices == Choices(layer=3, weights="random", num_layers=3, seed=5)
    assert embedder.backbone.weights_source == "random:seed=5"
    assert not [p for p in embedder.parameters() if p.requires_grad] and not embedder.backbone.training
    for text, error, said in (
        ("musicfm-mimi", UnknownNameError, "musicfm-mini"),
        ("musicfm-mini:weights=random,layer=9", ValueError, r"has layers 0\.\.4, got 9"),
        ("musicfm-mini:layers=2", ValueError, "no field 'layers'. Did you mean 'layer'"),
        ("logmel-frames:weights=random", ValueError, "computed by a formula"),
    ):
        with pytest.raises(error, match=said):
            ClipEmbedder(text)


def test_an_own_backbone_has_a_colon_more(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(PLAIN)
    embedder = ClipEmbedder(f"{path}:slices:layer=0")
    assert (embedder.name, embedder.layer, embedder.dim) == (f"{path}:slices", 0, 8)
    assert ClipEmbedder(f"{path}:slices").layer == 1


def test_scenes_are_means_over_time_of_the_layer_that_was_asked_for():
    backbone = load_backbone("musicfm-mini", "random")
    audio = noise(2, 24_000)
    with torch.no_grad():
        layers = backbone(audio).layers
    for layer in (0, 2, 4):
        ours = ClipEmbedder(f"musicfm-mini:weights=random,layer={layer}").scene(audio)
        assert ours.shape == (2, 128) and ours.dtype == torch.float32 and not ours.requires_grad
        torch.testing.assert_close(ours, layers[layer].mean(1), rtol=1e-4, atol=1e-5)


def test_clips_of_any_length():
    embedder = ClipEmbedder(MINI)
    for num_samples in (1, 1000, 24_000, 24_000 * 31):  # the model needs 1,025 and was trained on 720,000
        frames = embedder.frames(noise(1, num_samples))
        assert embedder.scene(noise(1, num_samples)).shape == (1, 128)
        assert frames.vectors.shape == (1, len(frames.times_seconds), 128)
        assert frames.times_seconds[0] == 0.0 and frames.times_seconds[-1] <= num_samples / 24_000
        assert len(frames.times_seconds) == pytest.approx(1 + num_samples // 960, abs=1)
    long = noise(1, 24_000 * 31)
    with torch.no_grad():
        stitched = run_clip(embedder.backbone, long, layers=[2]).layers[2]
    torch.testing.assert_close(embedder.frames(long).vectors, stitched)
    torch.testing.assert_close(embedder.scene(long), stitched.mean(1), rtol=1e-4, atol=1e-5)


def test_one_vector_per_clip_is_averaged_over_windows_and_has_no_frames():
    embedder = ClipEmbedder("tempo-cnn:weights=random")
    backbone = embedder.backbone
    window = round(backbone.max_seconds * backbone.sample_rate_hz)
    audio = noise(1, 2 * window + backbone.min_samples - 1)  # what is left is too short to be heard
    with torch.no_grad():
        parts = [backbone(audio[:, i * window : (i + 1) * window]).layers[0][:, 0] for i in range(2)]
    torch.testing.assert_close(embedder.scene(audio), (parts[0] + parts[1]) / 2)
    with pytest.raises(
        ValueError, match=r"'tempo-cnn' gives one vector per clip and no frames. Use one of: .*musicfm"
    ):
        embedder.frames(audio)


def test_other_audio_is_refused():
    embedder = ClipEmbedder("logmel-frames")
    for wrong in (torch.zeros(22_050), torch.zeros(1, 22_050, dtype=torch.int16)):
        with pytest.raises(ValueError, match=r"audio is a float tensor \(clips, samples\)"):
            embedder.scene(wrong)


# HEAR -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sample_rate", "hop_ms"),
    [
        (MINI, 48_000, 40.0),
        ("logmel-frames", 22_050, 1000 * 512 / 22_050),
        ("onset-frames", 22_050, 1000 * 512 / 22_050),
    ],
)
def test_what_hear_validator_asks(text, sample_rate, hop_ms):
    module = importlib.import_module("audiation.interop.hear")
    model = module.load_model(text)
    assert isinstance(model, torch.nn.Module) and model.to("cpu") is model
    assert model.sample_rate == sample_rate and sample_rate in (16_000, 22_050, 44_100, 48_000)
    assert type(model.scene_embedding_size) is int and type(model.timestamp_embedding_size) is int

    embeddings, timestamps = module.get_timestamp_embeddings(noise(16, 2 * sample_rate), model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[0] == 16
    assert embeddings.shape[:2] == timestamps.shape and embeddings.shape[2] == model.timestamp_embedding_size
    steps = timestamps.diff()
    assert steps.mean().item() == pytest.approx(hop_ms, abs=1e-4) and hop_ms <= 50
    assert ((steps - steps.mean()).abs() < 1e-3).all()
    assert timestamps.min() >= 0 and timestamps.max() <= 2000

    scenes = module.get_scene_embeddings(noise(8, int(3.74 * sample_rate)), model)
    assert scenes.dtype == torch.float32 and scenes.shape == (8, model.scene_embedding_size)


def test_hear_audio_is_resampled_to_what_the_model_hears():
    model, audio = hear.load_model(MINI), noise(2, 48_000)
    halved = torch.stack([torch.from_numpy(soxr.resample(clip, 48_000, 24_000)) for clip in audio.numpy()])
    expected = ClipEmbedder(MINI).scene(halved)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), expected)
    milliseconds = hear.get_timestamp_embeddings(audio, model)[1]
    assert milliseconds[0, :3].tolist() == [0.0, 40.0, 80.0] and torch.equal(milliseconds[0], milliseconds[1])


def test_hear_is_told_the_model_by_text_or_by_a_file_with_the_text(tmp_path):
    path = tmp_path / "choice.txt"
    path.write_text(MINI + "\nand a remark\n")
    audio = noise(1, 48_000)
    ours = [hear.get_scene_embeddings(audio, hear.load_model(named)) for named in (MINI, str(path))]
    assert torch.equal(*ours)
    with pytest.raises(ValueError, match="say which model"):
        hear.load_model()
    (tmp_path / "weights.pt").write_bytes(b"\x00" * 5000)
    with pytest.raises(ValueError, match=r"weights=.*weights\.pt"):
        hear.load_model(str(tmp_path / "weights.pt"))


def test_hear_has_no_timestamps_of_one_vector_per_clip():
    model = hear.load_model("key-cnn:weights=random")
    assert hear.get_scene_embeddings(noise(1, model.sample_rate), model).shape == (1, 128)
    with pytest.raises(ValueError, match="one vector per clip"):
        hear.get_timestamp_embeddings(noise(1, model.sample_rate), model)


# X-ARES ---------------------------------------------------------------------------------------------------


class MiniEncoder(XaresEncoder):
    model = MINI


@pytest.mark.parametrize("make", [MiniEncoder, lambda: XaresEncoder("logmel-frames")])
def test_what_the_checker_of_xares_asks(make):
    encoder = make()
    assert type(encoder).__name__.endswith("Encoder") and isinstance(encoder, torch.nn.Module)
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    encoded = encoder(audio)
    assert encoded.ndim == 3 and encoded.shape[0] == 2 and encoded.shape[2] == encoder.output_dim
    seconds = 50_000 / encoder.sampling_rate
    assert encoded.shape[1] == pytest.approx(1000 * seconds / encoder.hop_size_in_ms, abs=1)
    assert torch.equal(encoder(audio[0]), encoder(audio[:1]))  # one clip without a batch
    assert not encoded.requires_grad and not encoded.is_inference()  # a head can be trained on it


def test_an_xares_encoder_needs_a_model_with_frames():
    with pytest.raises(ValueError, match="say which model"):
        XaresEncoder()
    with pytest.raises(ValueError, match="'chroma' gives one vector per clip"):
        XaresEncoder("chroma")


# mteb -----------------------------------------------------------------------------------------------------


def items() -> list[dict]:
    """As a data set of mteb gives them: of different lengths, rates and numbers of channels."""
    generator = np.random.default_rng(0)
    made = [
        {"array": 0.1 * generator.standard_normal(24_000), "sampling_rate": 24_000},
        {"array": 0.1 * generator.standard_normal((2, 30_000)).astype(np.float32), "sampling_rate": 44_100},
        {"array": 0.1 * generator.standard_normal(500), "sampling_rate": 24_000},
    ]
    return [{"audio": item, "label": i} for i, item in enumerate(made)]


def collate(batch: list[dict]) -> dict:
    return {key: [row[key] for row in batch] for key in batch[0]}


def test_what_mteb_asks_of_an_encoder():
    encoder = MtebAudioEncoder(MINI, None, device="cpu")
    for member in ("encode", "similarity", "similarity_pairwise"):  # of mteb.models.EncoderProtocol
        assert callable(getattr(encoder, member))
    asked = {"task_metadata": SimpleNamespace(name="any"), "hf_split": "test", "hf_subset": "default"}
    vectors = encoder.encode(
        DataLoader(items(), batch_size=2, collate_fn=collate), **asked, prompt_type=None, batch_size=2
    )
    assert vectors.shape == (3, 128) and vectors.dtype == np.float32
    alone = encoder.encode(DataLoader(items(), batch_size=1, collate_fn=collate), **asked)
    assert np.array_equal(vectors, alone)  # no clip depends on its batch
    mono = soxr.resample(items()[1]["audio"]["array"].mean(axis=0), 44_100, 24_000)
    expected = ClipEmbedder(MINI).scene(torch.from_numpy(mono)[None])[0]
    torch.testing.assert_close(torch.from_numpy(vectors[1]), expected)
    assert encoder.encode([], **asked).shape == (0, 128)


def test_mteb_gets_cosines():
    encoder = MtebAudioEncoder("logmel-frames")
    a, b = np.array([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    torch.testing.assert_close(encoder.similarity(a, b), torch.tensor([[0.0, 0.6], [0.8, 1.0]]))
    torch.testing.assert_close(encoder.similarity_pairwise(a, b), torch.tensor([0.0, 1.0]))


def test_mteb_is_refused_what_is_not_audio_and_other_weights():
    encoder = MtebAudioEncoder(MINI)
    for batch, there in (({"text": ["a"]}, "text"), ({"audio": [], "text": ["a"]}, "audio, text")):
        with pytest.raises(ValueError, match=f"hear audio and nothing else; a batch has {there}"):
            encoder.encode([batch])
    assert MtebAudioEncoder(MINI, encoder.model.backbone.weights_hash).model.layer == 2
    with pytest.raises(ValueError, match="Leave the revision away"):
        MtebAudioEncoder(MINI, "main")


def test_mteb_is_told_about_the_model(monkeypatch):
    described = {}
    stand_in = SimpleNamespace(ModelMeta=lambda **fields: described.update(fields) or "meta")
    monkeypatch.setitem(sys.modules, "mteb", SimpleNamespace(models=stand_in))
    monkeypatch.setitem(sys.modules, "mteb.models", stand_in)
    encoder = MtebAudioEncoder(MINI)
    assert encoder.mteb_model_meta == "meta"
    assert described["name"] == "audiation/musicfm-mini" and described["modalities"] == ["audio"]
    assert described["revision"] == encoder.model.backbone.weights_hash and described["embed_dim"] == 128
    assert described["n_parameters"] == 1_705_984
    assert described["experiment_kwargs"] == {"layer": 2, "weights": "random"}
