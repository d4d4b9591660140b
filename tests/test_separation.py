"""Source separation: masks, filter, random mixes, whole songs in bounded memory, scores, training."""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from audiation.audio import MissingAudioError, NotAudioError, TruncatedAudioError
from audiation.backbones import Backbone, HiddenStates
from audiation.bootstrap import bootstrap_interval
from audiation.datasets.musdb18 import Musdb18
from audiation.loading import load_backbone
from audiation.magnitudes import SPECTROGRAM, MagnitudeTarget
from audiation.methods import inject
from audiation.metrics_separation import (
    SDR_EPSILON,
    SDR_MDX2021,
    SDR_MDX2021_24KHZ,
    SDR_MDX2021_VOCALS,
    SEPARATION_METRICS,
    STEMS,
    SdrSums,
    StemNames,
    StemScores,
    sdr_mdx2021,
    sdr_mdx2021_db,
)
from audiation.protocols import PROTOCOLS
from audiation.separation import MaskModel, SeparationModel, separation_loss
from audiation.separation_evaluation import judge_separation
from audiation.separation_filter import Filtering, filtered, wiener
from audiation.separation_inference import separate, separate_file
from audiation.separation_mixes import GAIN_RANGE, RandomMixes, epoch_steps
from audiation.separation_scoring import evaluate_separation, score_estimates
from audiation.separation_sources import FileMixture, ForwardReader, TrackMixture, stem_blocks
from audiation.separation_training import SeparationConfig, train_separation
from audiation.splits import Split
from audiation.targets import ClipContext
from audiation.tasks import Task
from audiation.training import TrainConfig

RATE = 24_000
CD_RATE = 44_100
TONES_HZ = {"vocals": 1000.0, "drums": 4000.0, "bass": 150.0, "other": 400.0}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())["sdr"]


# Tracks with stems on disk --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderStems:
    folder: Path

    @cached_property
    def duration_seconds(self):
        info = soundfile.info(self.folder / "mixture.wav")
        return info.frames / info.samplerate

    def load(self, sample_rate_hz, start_seconds=0.0, duration_seconds=None):
        return {s: self._read(s, sample_rate_hz, start_seconds, duration_seconds) for s in reversed(STEMS)}

    def mixture(self, sample_rate_hz, start_seconds=0.0, duration_seconds=None):
        return self._read("mixture", sample_rate_hz, start_seconds, duration_seconds)

    def _read(self, name, rate, start, seconds):
        path = self.folder / f"{name}.wav"
        if not path.is_file():
            raise MissingAudioError(path, "does not exist. Check the path.")
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
        if rate != file_rate:
            samples = soxr.resample(samples, file_rate, rate)
        first = round(start * rate)
        stop = len(samples) if seconds is None else first + round(seconds * rate)
        return torch.from_numpy(samples[first:stop].T.copy())


@dataclass(frozen=True)
class FolderTrack:
    track_id: str
    folder: Path

    @property
    def stems(self):
        return FolderStems(self.folder)


def write_track(folder, seconds, generator, rate=CD_RATE):
    """Four tones that come and go, each at its place in the stereo picture."""
    folder.mkdir(parents=True)
    time = np.arange(round(seconds * rate)) / rate
    mixture = np.zeros((len(time), 2))
    for stem, hz in TONES_HZ.items():
        level = 0.15 * (
            1.2 + np.sin(2 * np.pi * generator.uniform(0.3, 1.0) * time + generator.uniform(0, 6))
        )
        wave = level * np.sin(2 * np.pi * hz * time + generator.uniform(0, 6))
        left = generator.uniform(0.4, 0.6)
        stereo = np.stack([left * wave, (1 - left) * wave], axis=1)
        soundfile.write(folder / f"{stem}.wav", stereo, rate, subtype="FLOAT")
        mixture += stereo
    soundfile.write(folder / "mixture.wav", mixture, rate, subtype="FLOAT")
    return FolderTrack(folder.name, folder)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("stems")
    return [
        write_track(folder / f"song {i}", 2.0 + 0.37 * i, generator, (RATE, CD_RATE)[i % 2]) for i in range(4)
    ]


class FrameEnergy(Backbone):
    """A stand-in whose frames hear 320 samples each, and nothing before or after."""

    def __init__(self, dim=6):
        super().__init__()
        self.name, self.sample_rate_hz, self.hop_samples, self.min_samples = "energy", RATE, 320, 320
        self.frame_rate_hz, self.num_layers, self.dim, self.max_seconds = 75.0, 2, dim, None
        self.normalisation, self.accepts_padding = "none", False
        self.register_buffer("map", torch.randn(320, dim, generator=torch.Generator().manual_seed(1)))

    def num_frames(self, num_samples):
        return num_samples // 320

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        frames = waveform[:, : self.num_frames(waveform.shape[1]) * 320].unflatten(1, (-1, 320)) @ self.map
        wanted, _ = self.resolve_layers(layers, last_layer)
        valid = torch.ones(frames.shape[:2], dtype=torch.bool)
        return HiddenStates({i: frames * (i + 1) for i in wanted}, valid, 75.0, 160 / RATE)


def small_model(backbone=None, **options):
    options = {"hidden_size": 16, "generator": torch.Generator().manual_seed(3)} | options
    return SeparationModel(backbone or FrameEnergy(), **options).eval()


def noise(seconds, seed=0, channels=2):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(channels, round(seconds * RATE), generator=generator)


# Scores ---------------------------------------------------------------------------------------------------


def test_sdr_equals_the_golden_numbers_and_the_definition():
    reference = np.array(GOLDEN["reference"])
    assert len(GOLDEN["cases"]) == 5
    for case in GOLDEN["cases"]:
        estimate = np.array(case["estimate"])
        value = sdr_mdx2021_db(reference, estimate)
        assert value == pytest.approx(case["sdr_db"], abs=1e-10)  # the file has ten decimals
        exact = ((reference**2).sum() + 1e-7) / (((reference - estimate) ** 2).sum() + 1e-7)
        assert value == pytest.approx(10 * math.log10(exact), abs=1e-12)
    silence = np.zeros((2, 4))
    assert sdr_mdx2021_db(silence, silence) == GOLDEN["silent_reference_silent_estimate_db"] == 0.0


def test_sdr_in_blocks_equals_the_whole():
    reference, estimate = noise(0.5, 1), noise(0.5, 2)
    sums = SdrSums()
    for start in range(0, reference.shape[1], 777):
        sums.add(reference[:, start : start + 777], estimate[:, start : start + 777])
    assert sums.sdr_db == pytest.approx(sdr_mdx2021_db(reference, estimate), abs=1e-12)
    assert sums.num_values == reference.numel()


def test_sdr_refuses_what_has_none():
    with pytest.raises(ValueError, match="same shape"):
        sdr_mdx2021_db(np.zeros((2, 4)), np.zeros((2, 5)))
    with pytest.raises(ValueError, match="at least one sample"):
        sdr_mdx2021_db(np.zeros((2, 0)), np.zeros((2, 0)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        sdr_mdx2021_db(np.zeros((2, 4)), np.full((2, 4), np.nan))


def test_metrics_read_the_scores_of_tracks():
    scores = [
        StemScores({CD_RATE: dict(zip(STEMS, values, strict=True)), RATE: dict.fromkeys(STEMS, 1.0)})
        for values in ([4.0, 3.0, 2.0, 1.0], [6.0, 5.0, 4.0, 3.0])
    ]
    references = [StemNames()] * 2
    assert SDR_MDX2021.compute(references, scores) == 3.5
    assert SDR_MDX2021_VOCALS.compute(references, scores) == 5.0
    assert SDR_MDX2021_24KHZ.compute(references, scores) == 1.0
    interval = bootstrap_interval(SDR_MDX2021, references, scores)
    assert (interval.low, interval.high) == (2.5, 4.5)
    names = {m.name: m.printed_name for m in SEPARATION_METRICS}
    assert names["sdr_mdx2021_vocals"] == names["sdr_mdx2021_24khz_vocals"] == "sdr_vocals"
    assert len(names) == 10
    assert str(scores[0]).startswith("44100 Hz: vocals 4.0 dB, drums 3.0 dB")


def test_metrics_refuse_scores_that_are_not_there():
    score = StemScores({RATE: {"vocals": 4.0}})
    with pytest.raises(ValueError, match="scored at 24000, not at 44100 Hz"):
        SDR_MDX2021_VOCALS.compute([StemNames()], [score])
    with pytest.raises(ValueError, match="no score of drums"):
        sdr_mdx2021("drums", RATE).compute([StemNames()], [score])
    with pytest.raises(ValueError, match="StemNames with StemScores"):
        SDR_MDX2021_VOCALS.compute(["vocals"], [score])
    with pytest.raises(ValueError, match="finite"):
        StemScores({RATE: {"vocals": float("nan")}})


def test_true_stems_score_above_60_db_and_silence_scores_0(tracks):
    track = tracks[0]
    truth = stem_blocks(track, STEMS, CD_RATE)
    perfect = score_estimates(track, STEMS, truth, CD_RATE, [CD_RATE])
    assert min(perfect.sdr_db[CD_RATE].values()) > 60
    silent = score_estimates(track, STEMS, iter([torch.zeros(4, 2, 10)]), RATE)
    for rate in (RATE, CD_RATE):
        assert silent.sdr_db[rate] == pytest.approx(dict.fromkeys(STEMS, 0.0), abs=1e-12)
    # At the other rate the estimate is resampled; these tones lie far below 12 kHz, so nothing is lost but the edges.
    resampled = score_estimates(track, STEMS, stem_blocks(track, STEMS, RATE), RATE)
    assert min(resampled.sdr_db[RATE].values()) > 60
    assert min(resampled.sdr_db[CD_RATE].values()) > 25


# The filter -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources():
    """Four sources in stereo, each with a spectrum, a rhythm and a place of its own; `(4, 2, S)`."""
    found = []
    time = torch.arange(2 * RATE) / RATE
    for number, hz in enumerate([300, 900, 2700, 6000]):
        mono = noise(2.0, seed=10 + number, channels=1)[0]
        spectrum = torch.fft.rfft(mono)
        bins = torch.arange(len(spectrum)) / 2.0
        mono = torch.fft.irfft(spectrum * torch.exp(-(((bins - hz) / (0.6 * hz)) ** 2)), n=len(mono))
        mono = mono / mono.std() * (1 + torch.sin(2 * torch.pi * (1 + number) * time))
        angle = (0.2 + 0.35 * number) * torch.pi / 2
        found.append(0.1 * torch.stack([math.cos(angle) * mono, math.sin(angle) * mono]))
    return torch.stack(found)


def mean_sdr(estimates, truth):
    return float(np.mean([sdr_mdx2021_db(s, e) for s, e in zip(truth, estimates, strict=True)]))


def test_filtering_true_magnitudes_is_far_better_than_the_mixture(sources):
    mixture = sources.sum(0)
    spectrum = SPECTROGRAM.transform(mixture)
    magnitudes = SPECTROGRAM.transform(sources).abs()
    of_mixture = mean_sdr(mixture.expand(4, -1, -1), sources)
    by_iterations = [
        mean_sdr(SPECTROGRAM.inverse(wiener(magnitudes, spectrum, n), mixture.shape[1]), sources)
        for n in (0, 1)
    ]
    assert by_iterations[0] > of_mixture + 10
    assert by_iterations[1] > by_iterations[0] + 3  # what the stereo picture adds


@pytest.mark.parametrize("channels", [1, 2])
def test_sources_and_residual_add_up_to_the_mixture(sources, channels):
    spectrum = SPECTROGRAM.transform(sources.sum(0))
    magnitudes = 0.7 * SPECTROGRAM.transform(sources[:3]).abs()
    if channels == 1:
        magnitudes = magnitudes.mean(1, keepdim=True)
    for iterations in (0, 1, 2):
        found = wiener(magnitudes, spectrum, iterations, residual=True)
        assert found.shape == (4, *spectrum.shape)
        assert (found.sum(0) - spectrum).abs().max() < 1e-5 * spectrum.abs().max()


def test_the_filter_is_safe_where_nothing_can_be_inverted():
    mono = SPECTROGRAM.transform(noise(0.3, channels=1).expand(2, -1))
    silent_left = SPECTROGRAM.transform(torch.cat([torch.zeros(1, 7200), noise(0.3, channels=1)]))
    for spectrum in (mono, silent_left, torch.zeros_like(mono)):
        for magnitudes in (spectrum.abs() * 0.5, torch.zeros(2, *spectrum.shape[1:])):
            found = wiener(magnitudes.expand(2, 2, *spectrum.shape[1:]), spectrum, 2, residual=True)
            assert torch.isfinite(found.abs()).all()
            assert (found.sum(0) - spectrum).abs().max() <= 1e-5 * spectrum.abs().max()
    halves = wiener(0.5 * mono.abs().expand(2, -1, -1, -1), mono, 1)
    assert torch.allclose(halves[0], 0.5 * mono, atol=1e-5)
    # A silent source gets nothing of it.
    one = wiener(torch.stack([mono.abs(), torch.zeros_like(mono.abs())]), mono, 1)
    assert one[1].abs().max() == 0.0


def test_alone_and_together_differ_and_the_filter_refuses_nonsense(sources):
    spectrum = SPECTROGRAM.transform(sources.sum(0))
    magnitudes = SPECTROGRAM.transform(sources).abs()
    alone = filtered(magnitudes, spectrum, Filtering())
    together = filtered(magnitudes, spectrum, Filtering(sources="together"))
    assert alone.shape == together.shape == (4, *spectrum.shape)
    length = sources.shape[-1]
    scores = [mean_sdr(SPECTROGRAM.inverse(x, length), sources) for x in (alone, together)]
    assert min(scores) > mean_sdr(sources.sum(0).expand(4, -1, -1), sources) + 15
    assert abs(scores[0] - scores[1]) > 0.01
    with pytest.raises(ValueError, match="two sources or more"):
        wiener(magnitudes[:1], spectrum)
    with pytest.raises(ValueError, match="not negative"):
        wiener(-magnitudes, spectrum)
    with pytest.raises(ValueError, match=r"complex stereo spectrum \(2, F, T\)"):
        wiener(magnitudes, spectrum[:1])
    with pytest.raises(ValueError, match="magnitudes are"):
        wiener(magnitudes[..., 1:], spectrum)
    for bad in ({"residual": False}, {"iterations": -1}, {"sources": "both"}, {"stereo": "left"}):
        with pytest.raises(ValueError, match=r"iterations|residual|sources|stereo"):
            Filtering(**bad)


# The model ------------------------------------------------------------------------------------------------


def test_spectrogram_has_the_rate_of_mert_and_inverts():
    assert (SPECTROGRAM.frame_rate_hz, SPECTROGRAM.num_bins) == (75.0, 1025)
    samples = noise(1.0)
    spectrum = SPECTROGRAM.transform(samples)
    assert spectrum.shape == (2, 1025, SPECTROGRAM.num_frames(RATE)) == (2, 1025, 76)
    assert torch.allclose(SPECTROGRAM.inverse(spectrum, RATE), samples, atol=1e-6)
    with pytest.raises(ValueError, match="more than 1024 samples"):
        SPECTROGRAM.transform(torch.zeros(2, 1024))


def test_parameters_are_those_of_the_published_layout():
    model = MaskModel(768)
    lstm = 3 * 4 * (512 * 512 * 2 + 2 * 512)
    linear = 768 * 512 + 1024 * 512 + 512 * 1025
    norms, scales = 2 * (512 + 512 + 1025), 2 * 768 + 2 * 1025
    assert sum(p.numel() for p in model.parameters()) == lstm + linear + norms + scales
    both = MaskModel(768, direction="both")
    assert both.lstm.hidden_size == 256 and both.lstm.bidirectional
    mixed = MaskModel(768, num_layers=12)
    assert mixed.layer_weights.shape == (12,)
    assert sum(p.numel() for p in mixed.parameters()) == lstm + linear + norms + scales + 12


def test_building_draws_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (MaskModel(8, 3, 5, 4, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    other = MaskModel(8, 3, 5, 4, generator=torch.Generator().manual_seed(8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.lstm.weight_hh_l2, other.lstm.weight_hh_l2)
    assert first.lstm.weight_ih_l0.abs().max() <= 0.5 and first.output.weight.abs().max() <= 0.5


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_masks_have_the_frames_of_the_spectrogram_and_only_they_learn(direction):
    model = small_model(direction=direction)
    masks = model(noise(0.5).mean(0, keepdim=True), 38)
    assert masks.shape == (1, 4, 1025, 38)
    assert masks.min() >= 0
    model.masks.train()
    stems = torch.stack([noise(0.5, seed=i) for i in range(4)])[None]
    mixture = stems.sum(1)
    loss = separation_loss(model, mixture.mean(1), mixture, stems)
    assert loss.count == 4 * 1025 * 38
    assert loss.mean.item() == pytest.approx(np.mean(list(loss.parts.values())), rel=1e-5)
    assert list(loss.parts) == list(STEMS)
    loss.sum.backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("masks.") for name in names)


def test_the_loss_is_the_mean_squared_error_of_magnitudes():
    model = small_model(stems=("bass", "vocals"))
    stems = torch.stack([noise(0.4, seed=i) for i in range(2)])[None]
    mixture = stems.sum(1) + noise(0.4, seed=5)
    loss = separation_loss(model, mixture.mean(1), mixture, stems)
    magnitude = SPECTROGRAM.transform(mixture).abs().mean(1)
    estimate = model(mixture.mean(1), magnitude.shape[-1]) * magnitude[:, None]
    truth = SPECTROGRAM.transform(stems).abs().mean(2)
    assert loss.mean.item() == pytest.approx(torch.nn.functional.mse_loss(estimate, truth).item(), rel=1e-5)


def test_frames_are_taken_by_number_at_the_same_rate_and_by_time_at_another():
    model = small_model()
    assert model.frame_index(5, 4).tolist() == [0, 1, 2, 3, 3]
    musicfm = small_model(load_backbone("musicfm-mini", "random", num_layers=1))
    assert musicfm.frame_index(9, 3).tolist() == [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        2,
    ]  # 25 Hz: each is the nearest three times
    assert musicfm.layers == [1]


def test_models_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="one vector per clip"):
        SeparationModel(load_backbone("chroma"))
    adapted = load_backbone("musicfm-mini", "random", num_layers=1)
    inject(adapted, "lora")
    with pytest.raises(ValueError, match="is adapted"):
        SeparationModel(adapted)
    for options in ({"stems": ()}, {"stems": ("bass", "bass")}, {"layer": 7}, {"direction": "backward"}):
        with pytest.raises(ValueError, match=r"stem|layers 0|direction"):
            small_model(**options)
    with pytest.raises(ValueError, match="hidden_size even"):
        small_model(direction="both", hidden_size=15)
    probed = load_backbone("musicfm-mini", "random", num_layers=1)
    inject(probed, "probe")
    assert SeparationModel(probed, hidden_size=8).layers == [1]
    assert SeparationModel(load_backbone("logmel-frames"), hidden_size=8).layers == [0]


# Whole songs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stereo", ["mean", "each"])
def test_chunks_of_a_song_equal_the_whole(stereo):
    model, song = small_model(), noise(5.03)
    filtering = Filtering(window_frames=100, stereo=stereo)
    whole = separate(model, song, filtering, feature_chunk_seconds=None)
    chunked = separate(model, song, filtering, feature_chunk_seconds=0.8)
    assert (whole.chunking.num_chunks, chunked.chunking.num_chunks) == (1, 7)
    assert chunked.chunking.lstm_state == "carried"
    for stem in STEMS:
        assert chunked.stems[stem].shape == song.shape
        assert (chunked.stems[stem] - whole.stems[stem]).abs().max() < 1e-4
        assert whole.stems[stem].abs().max() > 1e-3


def test_streamed_spectra_equal_those_of_the_whole_song():
    model, song = small_model(stems=("vocals",)), noise(2.1)
    found = separate(model, song, Filtering(window_frames=10_000), feature_chunk_seconds=None)
    spectrum = SPECTROGRAM.transform(song)
    magnitude = spectrum.abs().mean(0)
    with torch.no_grad():
        mask = model(song.mean(0, keepdim=True), spectrum.shape[-1])[0]
    expected = SPECTROGRAM.inverse(wiener(mask[:, None] * magnitude, spectrum, 1, True)[0], song.shape[1])
    assert (found.stems["vocals"] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("num_samples", [1025, 3200, 3519, 24_000, 24_001])
def test_songs_of_any_length_keep_it(num_samples):
    song = noise(2.0)[:, :num_samples]
    found = separate(small_model(), song, Filtering(window_frames=3), feature_chunk_seconds=0.1)
    assert {stem.shape for stem in found.stems.values()} == {(2, num_samples)}
    assert all(torch.isfinite(stem).all() for stem in found.stems.values())


def test_an_lstm_in_both_directions_begins_anew_in_each_chunk():
    model, song = small_model(direction="both"), noise(2.0)
    found = separate(model, song, feature_chunk_seconds=0.5)
    assert found.chunking.lstm_state == "restarted" and found.chunking.num_chunks == 5
    whole = separate(model, song, feature_chunk_seconds=None)
    assert (found.stems["bass"] - whole.stems["bass"]).abs().max() > 1e-6


def test_a_file_becomes_stems_on_disk(tmp_path, tracks):
    model, path = small_model(), tracks[1].folder / "mixture.wav"
    written = separate_file(model, path, tmp_path / "out", feature_chunk_seconds=1.0)
    assert [p.name for p in written.paths] == [f"{stem}.wav" for stem in STEMS]
    in_memory = separate(model, path, feature_chunk_seconds=1.0)
    of_track = separate(model, tracks[1], feature_chunk_seconds=1.0)
    for written_path, stem in zip(written.paths, STEMS, strict=True):
        samples, rate = soundfile.read(written_path, dtype="float32")
        assert rate == written.sample_rate_hz == RATE
        assert np.array_equal(samples.T, in_memory.stems[stem].numpy())
        assert samples.shape == (round(2.37 * RATE), 2)
        # The track is resampled by another call, which differs at its ends.
        assert np.abs(samples.T - of_track.stems[stem].numpy())[:, 2000:-2000].max() < 1e-3
    with pytest.raises(FileExistsError, match=r"vocals\.wav is there already"):
        separate_file(model, path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.part"))


def test_files_that_cannot_be_separated(tmp_path):
    model = small_model()
    soundfile.write(tmp_path / "three.wav", np.zeros((4000, 3)), RATE)
    with pytest.raises(NotAudioError, match="3 channels"):
        separate_file(model, tmp_path / "three.wav", tmp_path / "out")
    soundfile.write(tmp_path / "short.wav", np.zeros((1000, 2)), RATE)
    with pytest.raises(ValueError, match="more than 1024 samples"):
        separate(model, tmp_path / "short.wav")
    soundfile.write(tmp_path / "cut.wav", np.zeros((48_000, 2)), RATE)
    content = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[:90_000])
    with pytest.raises(TruncatedAudioError):
        separate_file(model, tmp_path / "cut.wav", tmp_path / "out")
    with pytest.raises(ValueError, match=r"stereo waveform \(2, samples\)"):
        separate(model, torch.zeros(5000))
    model.masks.train()
    with pytest.raises(ValueError, match="eval mode"):
        separate(model, noise(0.5))
    assert not list(tmp_path.glob("out/*"))


def test_mono_files_are_put_on_both_channels(tmp_path):
    mono = noise(0.6, channels=1)
    soundfile.write(tmp_path / "mono.wav", mono[0].numpy(), RATE, subtype="FLOAT")
    samples = torch.cat(list(FileMixture(tmp_path / "mono.wav").blocks(RATE)), dim=1)
    assert torch.equal(samples, mono.expand(2, -1))
    found = separate(small_model(), tmp_path / "mono.wav")
    assert torch.allclose(found.stems["bass"][0], found.stems["bass"][1], atol=1e-6)


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_files_are_resampled_to_the_length_that_audio_has(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", noise(1.0)[:, :23_457].T.numpy(), RATE, subtype="FLOAT")
    mixture = FileMixture(tmp_path / "a.wav")
    expected = (2 * 23_457 * rate + RATE) // (2 * RATE)
    assert mixture.num_samples(rate) == expected
    assert sum(block.shape[1] for block in mixture.blocks(rate)) == expected


def test_a_forward_reader_gives_overlapping_stretches():
    blocks = [torch.arange(10 * i, 10 * i + 10)[None] for i in range(5)]
    reader = ForwardReader(blocks, margin_samples=4)
    assert reader.read(0, 13)[0].tolist() == list(range(13))
    assert reader.read(17, 31)[0].tolist() == list(range(17, 31))
    assert reader.read(13, 20)[0].tolist() == list(range(13, 20))
    assert reader.read(45, 60)[0].tolist() == list(range(45, 50))


def test_a_track_whose_mixture_ends_early_is_refused(tracks):
    class Longer(FolderStems):
        duration_seconds = 5.0

    class LongerTrack(FolderTrack):
        stems = property(lambda self: Longer(self.folder))

    mixture = TrackMixture(LongerTrack("longer", tracks[0].folder))
    with pytest.raises(ValueError, match="samples earlier"):
        list(mixture.blocks(RATE))


def test_the_reader_of_musdb18_gives_what_is_needed(tmp_path):
    generator = np.random.default_rng(2)
    seconds = {"train/Foo - Bar": 0.8, "train/Foo - Baz": 0.7, "test/Qux - Quux": 10 + 1 / CD_RATE}
    for place, length in seconds.items():
        write_track(tmp_path / place, length, generator)
    data = Musdb18(tmp_path)
    batch = mixes(data.split("train")).micro_batch(0, 0)
    assert batch.stems.shape == (2, 4, 2, RATE // 2) and set(batch.names) <= {"Foo - Bar", "Foo - Baz"}
    (track,) = data.split("test")
    for rate in (16_000, RATE, CD_RATE):  # at 16 kHz nothing is left behind the first 10 s
        length = TrackMixture(track).num_samples(rate)
        assert length == math.floor((10 + 1 / CD_RATE) * rate + 0.5)
        assert sum(block.shape[-1] for block in TrackMixture(track).blocks(rate)) == length
        assert sum(block.shape[-1] for block in stem_blocks(track, STEMS, rate)) == length
    perfect = score_estimates(
        track, STEMS, stem_blocks(track, STEMS, RATE, 1.0), RATE, [RATE], max_seconds=1.0
    )
    assert min(perfect.sdr_db[RATE].values()) > 60
    with pytest.raises(KeyError, match="has no stem 'piano'"):
        next(stem_blocks(track, ("piano",), RATE))


# Random mixes ---------------------------------------------------------------------------------------------

MIXES = TrainConfig(steps=4, batch_size=6, micro_batch_size=2, seed=5)


def mixes(tracks, config=MIXES, stems=STEMS, **options):
    options = {"backbone_rate_hz": RATE, "sample_rate_hz": RATE, "segment_seconds": 0.5} | options
    return RandomMixes(tracks, stems, config, **options)


def test_mixes_are_a_function_of_seed_and_place(tracks):
    first, again = mixes(tracks).micro_batch(2, 1), mixes(tracks).micro_batch(2, 1)
    assert first.stems.shape == (2, 4, 2, RATE // 2)
    assert torch.equal(first.stems, again.stems) and torch.equal(first.waveform, again.waveform)
    assert torch.equal(first.mixture, first.stems.sum(1))
    assert torch.equal(first.waveform, first.mixture.mean(1))
    elsewhere = mixes(tracks).micro_batch(2, 2).stems
    other_seed = mixes(tracks, dataclasses.replace(MIXES, seed=6)).micro_batch(2, 1).stems
    whole = mixes(tracks, dataclasses.replace(MIXES, micro_batch_size=None)).micro_batch(2, 0).stems
    assert not torch.equal(elsewhere, first.stems) and not torch.equal(other_seed, first.stems)
    assert torch.equal(whole[2:4], first.stems)  # the same mixes, however they are accumulated
    assert torch.equal(whole[4:6], elsewhere)


def test_stems_of_a_mix_come_from_random_tracks_at_random_gains(tmp_path):
    """Tracks that are constants, further apart than gains reach, tell where each stem of a mix comes from."""
    songs = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        for stem in (*STEMS, "mixture"):
            level = np.full((RATE, 2), 0.001 * 8**number) * [1.0, 3.0]
            soundfile.write(folder / f"{stem}.wav", level, RATE, subtype="FLOAT")
        songs.append(FolderTrack(str(number), folder))
    config = dataclasses.replace(MIXES, batch_size=100, micro_batch_size=None)
    batch = mixes(songs, config, segment_seconds=0.05).micro_batch(0, 0)
    levels = batch.stems[..., 0].double()  # (B, 4, 2)
    assert torch.allclose(levels.amax(-1) / levels.amin(-1), torch.full((100, 4), 3.0).double(), rtol=1e-5)
    swapped = (levels[..., 0] > levels[..., 1]).double()
    assert 0.4 < swapped.mean() < 0.6 and swapped.mean(0).min() > 0.3
    relative = levels.amin(-1) / 0.001
    numbers = torch.floor(torch.log(relative / GAIN_RANGE[0]) / math.log(8)).long()
    gains = relative / 8.0**numbers
    low, high = GAIN_RANGE
    assert low - 1e-6 <= gains.min() < low + 0.05 and high - 0.05 < gains.max() <= high + 1e-6
    assert gains.mean().item() == pytest.approx((low + high) / 2, abs=0.06)
    for stem in range(4):
        assert torch.bincount(numbers[:, stem], minlength=3).min() >= 15  # of 100
    of_one_track = (numbers == numbers[:, :1]).all(1).double().mean()
    assert of_one_track < 0.12  # 1 in 27
    assert sorted(batch.names) == ["0", "1", "2"]


def test_mixes_for_some_stems_at_another_rate_and_of_short_tracks(tmp_path, tracks):
    some = mixes(tracks, stems=("bass",), backbone_rate_hz=16_000).micro_batch(0, 0)
    assert some.stems.shape == (2, 1, 2, RATE // 2) and some.waveform.shape == (2, 8000)
    assert torch.equal(some.stems[:, 0], mixes(tracks).micro_batch(0, 0).stems[:, 2])
    short = write_track(tmp_path / "short", 0.2, np.random.default_rng(1), RATE)
    padded = mixes([short]).micro_batch(0, 0).stems
    assert padded[..., 4800:].abs().max() == 0.0 and padded[..., :4800].abs().max() > 0.0
    with pytest.raises(ValueError, match="not piano"):
        mixes(tracks, stems=("piano",))
    with pytest.raises(ValueError, match="at least one track"):
        mixes([])
    assert epoch_steps(86, 32) == 172


def test_tracks_that_break_off_are_replaced_and_reported(tmp_path, tracks):
    broken = write_track(tmp_path / "broken", 1.0, np.random.default_rng(1), RATE)
    (broken.folder / "drums.wav").unlink()
    unused = []
    batches = mixes([*tracks, broken], unused=unused)
    found = [batches.micro_batch(step, 0) for step in range(4)]
    assert all(torch.isfinite(batch.stems).all() for batch in found)
    assert [(u.track_id, u.split) for u in unused] == [("broken", "train")]
    assert "drums.wav" in unused[0].reason
    with pytest.raises(ValueError, match="1 tracks break off"):
        mixes([broken]).micro_batch(0, 0)


# Training and judging -------------------------------------------------------------------------------------

SMALL = SeparationConfig(
    steps=4,
    batch_size=2,
    learning_rate=1e-2,
    clip_norm=None,
    hidden_size=12,
    segment_seconds=0.5,
    valid_seconds=1.0,
    validate_every_steps=2,
    checkpoint_every_steps=1,
)


def mini(num_layers=1):
    return load_backbone("musicfm-mini", "random", num_layers=num_layers)


def losses(report):
    return [
        json.loads(line)["loss"] for line in report.log.read_text().splitlines() if "loss" in json.loads(line)
    ]


def test_training_on_tones_beats_the_mixture(tmp_path, tracks):
    config = dataclasses.replace(
        SMALL, steps=25, batch_size=4, learning_rate=3e-2, validate_every_steps=25, checkpoint_every_steps=25
    )
    trained = train_separation(mini(), tracks[0:3:2], tracks[3:], config, tmp_path)
    assert trained.unused == () and trained.report.last_step == 25
    found = evaluate_separation(trained.model, tracks[3:], config.filtering)
    mixture = score_estimates(
        tracks[3], STEMS, (b.expand(4, -1, -1) for b in TrackMixture(tracks[3]).blocks(RATE)), RATE
    )
    for rate in (RATE, CD_RATE):
        scores = found.scores["song 3"].sdr_db[rate]
        assert all(scores[stem] > mixture.sdr_db[rate][stem] + 3 for stem in STEMS), (scores, mixture)
    assert found.mean_sdr_db(STEMS, RATE) == pytest.approx(
        np.mean(list(found.scores["song 3"].sdr_db[RATE].values()))
    )
    first, *_, last = losses(trained.report)
    assert last < 0.2 * first


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, tracks):
    whole = train_separation(mini(), tracks[:2], tracks[2:3], SMALL, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_separation(mini(), tracks[:2], tracks[2:3], SMALL, tmp_path / "parts", progress=stop)
    resumed = train_separation(mini(), tracks[:2], tracks[2:3], SMALL, tmp_path / "parts")
    assert losses(resumed.report) == losses(whole.report) and len(losses(whole.report)) == 4
    assert resumed.report.history == whole.report.history and len(whole.report.history) == 2
    theirs = whole.model.masks.state_dict()
    names = [name for name in theirs if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(resumed.model.masks.state_dict()[name], theirs[name]) for name in names)
    # A finished run gives its model at once.
    again = train_separation(mini(), tracks[:2], tracks[2:3], SMALL, tmp_path / "whole")
    assert again.report.best_score == whole.report.best_score


def test_training_leaves_the_backbone_alone_and_says_what_it_could_not_use(tmp_path, tracks):
    backbone = mini()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    missing = FolderTrack("missing", tmp_path / "nowhere")
    short = write_track(tmp_path / "tiny", 0.01, np.random.default_rng(1), RATE)
    config = dataclasses.replace(
        SMALL, stems="bass+vocals", direction="both", steps=1, validate_every_steps=1
    )

    class Unreadable(FolderTrack):
        @property
        def stems(self):
            raise MissingAudioError(self.folder / "mixture.wav", "does not exist. Check the path.")

    gone = Unreadable(missing.track_id, missing.folder)
    trained = train_separation(backbone, [*tracks[:2], gone], [tracks[2], short], config, tmp_path / "run")
    assert trained.model.stems == ("bass", "vocals")
    assert {(u.track_id, u.split) for u in trained.unused} == {("missing", "train"), ("tiny", "valid")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(part.training for part in trained.model.modules())
    found = evaluate_separation(trained.model, [tracks[2], short, gone], evaluation_rates_hz=[RATE])
    assert list(found.scores) == ["song 2"] and [track_id for track_id, _ in found.failures] == [
        "tiny",
        "missing",
    ]
    with pytest.raises(ValueError, match=r"no valid track can be used\. tiny"):
        train_separation(mini(), tracks[:2], [short], config, tmp_path / "other")


def test_bf16_trains_and_separates(tmp_path, tracks):
    config = dataclasses.replace(SMALL, precision="bf16", steps=1, validate_every_steps=1)
    trained = train_separation(mini(), tracks[:1], tracks[2:3], config, tmp_path)
    assert math.isfinite(trained.report.best_score)
    song = noise(1.0)
    exact, rounded = (separate(trained.model, song, precision=p).stems["bass"] for p in ("fp32", "bf16"))
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_configurations_that_do_not_go_together():
    for bad in (
        {"stems": "piano"},
        {"direction": "backward"},
        {"evaluation_rate_hz": 48_000},
        {"segment_seconds": 0.0},
        {"filter_residual": False},
    ):
        with pytest.raises(ValueError, match=r"stems|direction|evaluation_rate_hz|segment_seconds|residual"):
            dataclasses.replace(SMALL, **bad)


def test_judging_gives_scores_that_metrics_and_bootstrap_read(tmp_path, tracks, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    broken = write_track(tmp_path / "broken", 1.0, np.random.default_rng(1), RATE)
    (broken.folder / "drums.wav").unlink()
    task = Task(
        name="musdb18",
        question="Which instrument is which?",
        train_dataset="musdb18",
        test_dataset="musdb18",
        annotation=lambda track: StemNames(),
        target=None,
        metrics=SEPARATION_METRICS,
    )
    splits = {
        "train": Split(tuple(tracks[:2])),
        "valid": Split((tracks[2],)),
        "test": Split((tracks[3], tracks[0], broken)),
    }
    choices = (
        "steps=2,batch_size=2,validate_every_steps=2,hidden_size=8,segment_seconds=0.5,valid_seconds=0.5,"
        "stems=vocals+drums+bass+other,direction=both,filter_stereo=each"
    )
    stages = []
    judge = partial(
        judge_separation,
        inject_probe(mini()),
        task,
        PROTOCOLS["marble-v1-separation"],
        splits,
        "hash",
        layer=None,
        seed=1,
        device="cpu",
        progress=lambda p: stages.append(p.stage),
    )
    with pytest.raises(ValueError, match="leaves out vocals, other"):
        judge(train="stems=drums+bass")
    with pytest.raises(ValueError, match="no field 'step'"):
        judge(train="step=2")
    outcome = judge(train=choices)
    assert [t.track_id for t in outcome.test_tracks] == ["song 3", "song 0"]
    assert outcome.resolved["layers"] == [1] and outcome.departures
    assert outcome.resolved["filtering"]["stereo"] == "each"
    assert [track_id for track_id, _ in outcome.failures["test"]] == ["broken"]
    assert stages == ["training", "training", "test"]
    references = [task.annotation(t) for t in outcome.test_tracks]
    for metric in task.metrics:
        score = metric.compute(references, outcome.estimates)
        interval = bootstrap_interval(metric, references, outcome.estimates)
        assert interval.low <= score <= interval.high
    assert outcome.num_parameters == 4 * sum(
        p.numel() for p in MaskModel(128, 1, 1025, 8, "both").parameters()
    )
    assert not list((tmp_path / "cache" / "runs").glob("*"))


def inject_probe(backbone):
    inject(backbone, "probe")
    return backbone


def test_the_protocol_has_the_published_recipe():
    config = PROTOCOLS["marble-v1-separation"].config(num_train_tracks=86, seed=3)
    assert (config.steps, config.validate_every_steps, config.batch_size) == (50 * 172, 172, 32)
    assert (config.learning_rate, config.schedule, config.patience, config.seed) == (1e-3, "plateau", 5, 3)
    assert config.valid_seconds is None and config.direction == "forward" and config.segment_seconds == 6.0
    assert "random mixes of 6 s, 64 per track" in PROTOCOLS["marble-v1-separation"].describe()
    assert SDR_EPSILON == 1e-7


def test_magnitudes_of_stems_are_encoded_and_decoded_again():
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(RATE) / RATE
    stems = {
        name: torch.stack([torch.sin(2 * torch.pi * hz * seconds) * g for g in (0.25, 0.25)])
        for name, hz in zip(("vocals", "drums", "bass", "other"), (440, 3000, 90, 1200), strict=True)
    }
    target = MagnitudeTarget()
    encoded = target.encode(stems)
    assert encoded.shape == (4, 1025, 76) and target.num_outputs == 4 * 1025 and target.frame_rate_hz == 75.0
    mixture = torch.stack(list(stems.values())).sum(0)
    decoded = target.decode(encoded, ClipContext(mixture=mixture))
    assert list(decoded) == list(stems)
    for name, signal in decoded.items():
        assert sdr_mdx2021_db(stems[name].numpy(), signal.numpy()) > 15.0
    noisy = encoded + torch.rand(encoded.shape, generator=generator)
    loss = target.loss(noisy, encoded)
    torch.testing.assert_close(loss.sum, (noisy - encoded).square().sum())
    valid = torch.zeros(4, 76, dtype=torch.bool)
    valid[:, :10] = True
    masked = target.loss(noisy, encoded, valid)
    torch.testing.assert_close(masked.sum, (noisy - encoded)[..., :10].square().sum())
    assert int(masked.count) == 4 * 1025 * 10
    with pytest.raises(ValueError, match=r"give context\.mixture"):
        target.decode(encoded)
    with pytest.raises(ValueError, match="are asked for, got vocals"):
        target.encode({"vocals": stems["vocals"]})
    with pytest.raises(ValueError, match="differ in shape"):
        target.loss(noisy, encoded[:1])
