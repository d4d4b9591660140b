"""MUSDB18 on a generated copy of its two layouts (the official names, our own tones)."""

import importlib.util
import math

import numpy as np
import pytest
import soundfile
import torch

from audiation.audio import AudioError, AudioWindowError, load_audio
from audiation.containers import BadSamplesError, NotAudioError, TruncatedAudioError
from audiation.datasets import DATASETS, musdb18
from audiation.datasets.musdb18 import STEMS, STREAMS, VALIDATION_TITLES, Mp4Stems, StemLength
from audiation.datasets.musdb18 import Stems as StemFiles

RATE_HZ = 44_100
SONGS = {
    "train/ANiMAL - Rockshow": 1.0,
    "train/Foo - Bar": 0.6,
    "train/Foo - Baz": 1.0,
    "test/Qux - Quux": 1.0,
}
HAS_PYAV = importlib.util.find_spec("av") is not None


def stems_of(number, seconds):
    """Name -> (S, 2): four tones of different frequency, louder on one side; and their sum."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    found = {}
    for k, name in enumerate(STEMS):
        tone = np.sin(2 * np.pi * 110 * 2 ** ((5 * k + number) / 12) * time + k)
        found[name] = np.stack([0.1 * tone, 0.05 * tone], axis=1)
    return {"mixture": np.sum(list(found.values()), axis=0)} | found


def write(folder, stems):
    folder.mkdir(parents=True)
    for name, samples in stems.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "musdb18hq"
    for number, (place, seconds) in enumerate(SONGS.items()):
        write(root / place, stems_of(number, seconds))
    (root / "train" / ".DS_Store").write_bytes(b"x")
    return root


def load(root):
    return DATASETS["musdb18"](root)


def song(data, title):
    return next(t for t in data.tracks if t.track_id == title)


def close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def sdr_db(reference, estimate):
    """As the Music Demixing Challenge 2021."""
    error = (reference - estimate).square().sum().item() + 1e-7
    return 10 * math.log10((reference.square().sum().item() + 1e-7) / error)


def test_the_fixture(root):
    data = load(root)
    assert data.counts == {"train": 2, "valid": 1, "test": 1}
    assert [t.track_id for t in data.split("valid")] == ["ANiMAL - Rockshow"]
    assert data.skipped == ()
    for track in data.tracks:
        stems = track.stems.load(RATE_HZ)
        assert tuple(stems) == STEMS
        shapes = {tuple(s.shape) for s in (*stems.values(), track.stems.mixture(RATE_HZ))}
        seconds = 0.6 if track.track_id == "Foo - Bar" else 1.0
        assert shapes == {(2, round(seconds * RATE_HZ))} and track.stems.duration_seconds == seconds
    data.check_groups()


def test_stems_are_what_was_written_and_sum_to_the_mixture(root):
    track = song(load(root), "Qux - Quux")
    written, stems = stems_of(3, 1.0), track.stems.load(RATE_HZ)
    for name in STEMS:
        assert stems[name].dtype == torch.float32
        close(stems[name], written[name].T, 1e-7)
        assert sdr_db(stems[name], torch.from_numpy(written[name].T)) > 60
        assert sdr_db(stems[name], torch.zeros_like(stems[name])) == pytest.approx(0.0, abs=1e-6)
    close(sum(stems.values()), track.stems.mixture(RATE_HZ), 1e-6)


@pytest.mark.parametrize("rate", [44_100, 24_000, 16_000, 48_000, 7_919])
def test_resampling_is_that_of_all_other_audio(root, rate):
    track = song(load(root), "Foo - Bar")
    expected = load_audio(track.audio_path, rate).samples
    assert track.load(rate).shape == expected.shape
    close(track.load(rate), expected, 2e-6)
    left = load_audio(track.audio_path, rate).samples * 0.1 / 0.075  # the sides differ by a factor
    close(track.stems.mixture(rate)[0], left, 3e-6)


@pytest.mark.parametrize("rate", [44_100, 24_000, 16_000])
@pytest.mark.parametrize("start", [0.0, 0.1, 0.31234, 0.9])
@pytest.mark.parametrize("duration", [0.05, 0.2, 5.0, None])
def test_a_window_equals_that_stretch_of_the_whole(root, rate, start, duration):
    stems = song(load(root), "Foo - Baz").stems
    first = round(start * rate)
    last = None if duration is None else first + round(duration * rate)
    for name, window in stems.load(rate, start, duration).items():
        whole = stems.load(rate)[name][:, first:last]
        assert window.shape == whole.shape
        close(window, whole, 1e-6)


def test_a_mono_stem_is_put_on_both_channels(root):
    path = root / "test" / "Qux - Quux" / "vocals.wav"
    soundfile.write(path, stems_of(3, 1.0)["vocals"][:, 0], RATE_HZ, subtype="FLOAT")
    vocals = song(load(root), "Qux - Quux").stems.load(RATE_HZ)["vocals"]
    assert vocals.shape == (2, RATE_HZ) and vocals[0].equal(vocals[1])


@pytest.mark.parametrize(
    ("start", "duration", "message"),
    [
        (-0.1, None, "a window starts at 0 s or later, got -0.1"),
        (math.nan, None, "got nan"),
        (0.0, 0.0, "a window lasts more than 0 s, got 0.0"),
        (0.0, math.inf, "got inf"),
        (1.0, 0.1, r"lasts 1\.000 s; no window can start at 1\.0 s"),
    ],
)
def test_a_window_that_is_none_is_refused(root, start, duration, message):
    with pytest.raises(AudioWindowError, match=message):
        song(load(root), "Qux - Quux").stems.load(RATE_HZ, start, duration)
    with pytest.raises(ValueError, match="sample_rate_hz must be positive, got 0"):
        song(load(root), "Qux - Quux").stems.load(0)


# What is missing or damaged ------------------------------------------------------------------------------------


def test_a_song_that_lacks_a_file_is_skipped_with_its_reason(root):
    (root / "train" / "Foo - Bar" / "bass.wav").unlink()
    (root / "test" / "Qux - Quux" / "other.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match="musdb18: 2 of 4 listed recordings left out, the first: Foo - Bar"):
        data = load(root)
    assert [(s.track_id, s.split) for s in data.skipped] == [("Foo - Bar", "train"), ("Qux - Quux", "test")]
    assert data.skipped[0].reason.endswith("bass.wav is missing")
    assert data.skipped[1].reason.endswith("other.wav is an empty file")


def test_verify_counts_against_the_official_split(root):
    (root / "train" / "Foo - Bar" / "bass.wav").unlink()
    with pytest.warns(UserWarning, match="1 of 4"):
        lines = load(root).verify()
    assert lines[0].startswith("Foo - Bar: ") and lines[1] == "train has 2 songs, the official split 86"
    assert lines[2] == "valid has 1 songs, the official split 14" and lines[-1].startswith("test has 1 songs")
    assert len(lines) == 4 + 13 and "Leaf - Summerghost: not there" in lines
    assert len(VALIDATION_TITLES) == len(set(VALIDATION_TITLES)) == 14


def test_validation_songs_may_lie_in_a_folder_of_their_own(root):
    (root / "valid").mkdir()
    before = load(root).split_hash
    (root / "train" / "ANiMAL - Rockshow").rename(root / "valid" / "ANiMAL - Rockshow")
    assert load(root).split_hash == before
    (root / "train" / "Foo - Bar").rename(root / "valid" / "Foo - Bar")
    with pytest.raises(ValueError, match="valid/ has 'Foo - Bar', which is not one of the 14 titles"):
        load(root)


def test_a_title_in_two_folders_is_refused(root):
    write(root / "test" / "Foo - Bar", stems_of(1, 0.1))
    with pytest.raises(ValueError, match="'Foo - Bar' is in train/ and test/"):
        load(root)


def test_a_folder_without_musdb_says_what_was_looked_for(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"musdb18 not found at .*nowhere.*docs/datasets/musdb18\.md"):
        load(tmp_path / "nowhere")
    (tmp_path / "bare" / "test" / "Foo - Bar").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=r"none of the 1 musdb18 songs .*Foo - Bar: .*mixture\.wav is missing"
    ):
        load(tmp_path / "bare")


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (np.zeros((100, 2)), NotAudioError, "has 100 samples at 44100 Hz, mixture.wav 44100 at 44100 Hz"),
        (np.zeros((RATE_HZ, 3)), NotAudioError, "has 3 channels; stems are stereo"),
        (np.full((RATE_HZ, 2), np.nan), BadSamplesError, "NaN or infinite"),
    ],
)
def test_stems_that_do_not_fit_are_refused(root, samples, error, message):
    path = root / "test" / "Qux - Quux" / "drums.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    with pytest.raises(error, match=message) as caught:
        song(load(root), "Qux - Quux").stems.load(RATE_HZ)
    assert caught.value.path == path


def test_a_stem_that_is_cut_short_is_refused(root):
    path = root / "test" / "Qux - Quux" / "drums.wav"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(TruncatedAudioError, match=r"drums\.wav: is cut short"):
        song(load(root), "Qux - Quux").stems.load(RATE_HZ)


def test_a_stem_that_is_cut_while_it_is_used_is_refused(root):
    track = song(load(root), "Qux - Quux")
    assert track.stems.duration_seconds == 1.0
    (root / "test" / "Qux - Quux" / "drums.wav").unlink()
    with pytest.raises(AudioError, match=r"drums\.wav: cannot be read"):
        track.stems.load(RATE_HZ)


# .stem.mp4 -----------------------------------------------------------------------------------------------------


def write_mp4(path, stems):
    import av

    with av.open(str(path), "w", format="mp4") as container:
        streams = {name: container.add_stream("aac", rate=RATE_HZ, layout="stereo") for name in STREAMS}
        for stream in streams.values():
            stream.bit_rate = 256_000
        for name, stream in streams.items():
            samples = np.ascontiguousarray(stems[name].T, np.float32)
            for start in range(0, samples.shape[1], 1024):
                block = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = RATE_HZ, start
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


@pytest.mark.filterwarnings("ignore:musdb18. 1 of 5 listed recordings left out:UserWarning")
def test_stem_mp4_is_read_with_pyav_and_skipped_without(root):
    path = root / "train" / "Cor - Age.stem.mp4"
    stems = stems_of(7, 3.0)
    if HAS_PYAV:
        write_mp4(path, stems)
    else:
        path.write_bytes(b"\0\0\0\x20ftypisom")
    data = load(root)
    if not HAS_PYAV:
        (skipped,) = data.skipped
        assert (skipped.track_id, skipped.split) == ("Cor - Age", "train")
        assert "needs PyAV to be decoded (pip install av)" in skipped.reason
        return
    track = song(data, "Cor - Age")
    assert data.skipped == () and track.stems.duration_seconds == pytest.approx(3.0, abs=0.05)
    found = track.stems.load(RATE_HZ)
    for name in STEMS:
        truth = torch.from_numpy(stems[name].T.astype(np.float32))
        assert sdr_db(truth, found[name][:, : truth.shape[1]]) > 25, name
        for start, duration in ((0.0, 0.5), (1.3, 0.7), (2.5, 0.4)):
            window = track.stems.load(RATE_HZ, start, duration)[name]
            first = round(start * RATE_HZ)
            whole = found[name][:, first : first + round(duration * RATE_HZ)]
            close(window, whole, 1e-4)
    assert track.load(24_000).shape == (math.floor(track.stems.duration_seconds * 24_000 + 0.5),)


@pytest.mark.filterwarnings("ignore:musdb18:UserWarning")
def test_an_empty_stem_mp4_is_skipped_and_a_wav_version_comes_first(root):
    (root / "train" / "Cor - Age.stem.mp4").write_bytes(b"")
    (root / "train" / "Foo - Bar.stem.mp4").write_bytes(b"")
    data = load(root)
    assert [s.reason.endswith("Cor - Age.stem.mp4 is an empty file") for s in data.skipped] == [True]
    assert song(data, "Foo - Bar").audio_path.name == "mixture.wav"


def test_reading_a_stem_mp4_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(musdb18.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        StemFiles(Mp4Stems(tmp_path / "x.stem.mp4")).load(RATE_HZ)


def test_the_length_in_samples_decides(tmp_path):
    class Silence:
        path, length = tmp_path, StemLength(44_100, 44_101)

        def read(self, names, first, stop):
            return {name: np.zeros((stop - first, 2), np.float32) for name in names}

    assert StemFiles(Silence()).mixture(24_000).shape == (2, 24_001)  # 24000.54
