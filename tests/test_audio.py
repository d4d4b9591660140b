"""audio.py and containers.py: exact samples, exact windows, a typed error for everything that is wrong."""

import hashlib
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from audiation import audio
from audiation.audio import (
    AudioError,
    AudioWindowError,
    BadSamplesError,
    EmptyAudioError,
    MissingAudioError,
    NotAFileError,
    NotAudioError,
    TooShortAudioError,
    TruncatedAudioError,
    UnreadableAudioError,
    Waveform,
    audio_info,
    content_hash,
    load_audio,
    stream_audio,
)

RATE = 44100
FORMATS = ("WAV", "FLAC", "OGG", "MP3")


def music(seconds: float, rate: int = RATE, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Tones, silence and bursts of noise, `(frames, channels)`: MP3 frames of very different sizes."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * t) * (np.sin(7 * t) > 0)
    burst = 0.1 * rng.standard_normal(t.size) * (np.sin(11 * t) > 0.5)
    return np.stack([(tone + burst) / (1 + c) for c in range(channels)], axis=1).astype(np.float32)


def encode(path: Path, samples: np.ndarray, rate: int = RATE, format: str = "WAV", **options) -> bytes:
    soundfile.write(path, samples, rate, format=format, **options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> dict[str, bytes]:
    """The same 3 s in every format; the MP3 with a variable bit rate, so that frames lean on each other."""
    folder = tmp_path_factory.mktemp("encoded")
    files = {f: encode(folder / f, music(3), format=f) for f in ("WAV", "FLAC", "OGG")}
    files["OPUS"] = encode(folder / "opus", music(3, 48000), 48000, format="OGG", subtype="OPUS")
    files["MP3"] = encode(
        folder / "mp3", music(3), format="MP3", compression_level=0.9, bitrate_mode="VARIABLE"
    )
    return files


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "clip.bin") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def samples_of(path: Path, rate: int = RATE, **options) -> np.ndarray:
    return load_audio(path, rate, **options).samples.numpy()


# What is read


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 8e-3),
        ("WAV", "PCM_16", 4e-5),
        ("WAV", "PCM_24", 2e-7),
        ("WAV", "PCM_32", 1e-7),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("WAV", "ULAW", 2e-2),
        ("WAVEX", "PCM_24", 2e-7),
        ("RF64", "PCM_16", 4e-5),
        ("FLAC", "PCM_S8", 8e-3),
        ("FLAC", "PCM_16", 4e-5),
        ("FLAC", "PCM_24", 2e-7),
    ],
)
def test_depths_and_channels_give_the_mean(tmp_path, format, subtype, tolerance, channels):
    source = music(0.2, 22050, channels)
    encode(tmp_path / "x", source, 22050, format=format, subtype=subtype)
    wave = load_audio(tmp_path / "x", 22050)
    assert wave.samples.dtype.is_floating_point and wave.samples.shape == (4410,)
    assert wave.source_channels == channels
    assert np.abs(wave.samples.numpy() - source.mean(axis=1)).max() < tolerance
    assert wave.source_peak == pytest.approx(np.abs(source.mean(axis=1)).max(), abs=tolerance)


def test_big_endian_wav(tmp_path):
    source = music(0.1)
    assert encode(tmp_path / "x", source, endian="BIG", subtype="FLOAT")[:4] == b"RIFX"
    assert np.abs(samples_of(tmp_path / "x") - source.mean(axis=1)).max() < 1e-7


@pytest.mark.parametrize("format", ["OGG", "OPUS", "MP3"])
def test_lossy_formats_give_the_music_in_place(encoded, write, format):
    rate = 48000 if format == "OPUS" else RATE
    source = music(3, rate).mean(axis=1)
    read = samples_of(write(encoded[format]), rate)
    assert read.size == source.size
    best = np.argmax(np.correlate(read[: rate + 100], source[100:rate], "valid"))
    assert best == 100  # not a sample early or late
    assert np.corrcoef(read, source)[0, 1] > 0.8


def test_content_decides_not_the_extension(encoded, write):
    for format, wrong in (
        ("MP3", "a.wav"),
        ("WAV", "b.mp3"),
        ("FLAC", "c.ogg"),
        ("OGG", "d.raw"),
        ("WAV", "e"),
    ):
        path = write(encoded[format], wrong)
        assert audio_info(path) == audio.AudioInfo(3.0, RATE, 2, 3 * RATE, format)
        assert load_audio(path, RATE).samples.shape == (3 * RATE,)


def test_peak_is_of_the_whole_file_at_its_own_rate(tmp_path):
    source = np.zeros((RATE, 2), np.float32)
    source[40000] = (0.9, 0.5)  # a click that resampling spreads
    encode(tmp_path / "x", source, subtype="FLOAT")
    assert load_audio(tmp_path / "x", 16000).source_peak == pytest.approx(0.7, abs=1e-7)
    assert load_audio(tmp_path / "x", 16000, duration_seconds=5).source_peak == pytest.approx(0.7, abs=1e-7)
    window = {"start_seconds": 0.1, "duration_seconds": 0.2}
    assert load_audio(tmp_path / "x", 16000, **window).source_peak is None
    asked = load_audio(tmp_path / "x", 16000, **window, with_source_peak=True)
    assert asked.source_peak == pytest.approx(0.7, abs=1e-7)
    assert (asked.samples.shape, asked.start_seconds) == ((3200,), 0.1)


def test_content_hash(write, tmp_path):
    data = bytes(range(256)) * 1000
    assert content_hash(write(data)) == hashlib.sha256(data).hexdigest()
    with pytest.raises(MissingAudioError):
        content_hash(tmp_path / "none")


# Resampling


@pytest.mark.parametrize("part_of_nyquist", [0.01, 0.1, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(44100, 24000), (48000, 16000), (22050, 24000), (8000, 24000), (44101, 24000)]
)
def test_resampled_sine(tmp_path, rate_in, rate_out, part_of_nyquist):
    """Noise and distortion 90 dB down over the whole pass band, up to 0.9 of the lower Nyquist rate.

    Against the analytic sine itself 90 dB hold to 0.7 of it; above, soxr's gain droops (by less than 0.01 dB)
    at ratios that are not whole numbers, which bounds the plain difference to 60 dB there.
    """
    frequency_hz = part_of_nyquist * min(rate_in, rate_out) / 2
    sine = 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(2 * rate_in) / rate_in)
    encode(tmp_path / "x", sine, rate_in, subtype="FLOAT")
    got = samples_of(tmp_path / "x", rate_out).astype(np.float64)
    assert got.size == 2 * rate_out
    middle = slice(rate_out // 4, -rate_out // 4)  # the file's ends are steps, which no filter passes
    phase = 2 * np.pi * frequency_hz * np.arange(got.size)[middle] / rate_out
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    fitted = np.linalg.lstsq(basis, got[middle], rcond=None)[0]

    def snr_db(truth):
        return 10 * np.log10(np.mean(truth**2) / np.mean((got[middle] - truth) ** 2))

    assert snr_db(basis @ fitted) >= 90
    assert snr_db(0.5 * basis[:, 0]) >= (90 if part_of_nyquist <= 0.7 else 60)
    assert abs(20 * np.log10(np.hypot(*fitted) / 0.5)) < 0.01
    assert abs(np.arctan2(fitted[1], fitted[0])) < 1e-5  # no shift in time


def test_no_alias_of_20_khz(tmp_path):
    sine = 0.5 * np.sin(2 * np.pi * 20000 * np.arange(2 * RATE) / RATE)
    encode(tmp_path / "x", sine, subtype="FLOAT")
    got = samples_of(tmp_path / "x", 24000).astype(np.float64)[6000:-6000]
    assert 20 * np.log10(np.sqrt(np.mean(got**2)) / np.sqrt(np.mean(sine**2))) <= -90


@pytest.mark.parametrize(
    "rates", [(44100, 24000), (48000, 24000), (8000, 24000), (44101, 16000), (96000, 22050)]
)
def test_length_is_rounded_and_equals_one_call_of_soxr(tmp_path, rates):
    rate_in, rate_out = rates
    for num_frames in (100, 1001, 4410, 140_001):
        source = music(num_frames / rate_in, rate_in, 1)
        encode(tmp_path / "x", source, rate_in, subtype="FLOAT")
        got = samples_of(tmp_path / "x", rate_out)
        assert got.size == (2 * num_frames * rate_out + rate_in) // (2 * rate_in)
        assert np.abs(got - soxr.resample(source[:, 0], rate_in, rate_out, quality="HQ")).max() < 1e-6


# Windows and streams


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
@pytest.mark.parametrize("format", [*FORMATS, "OPUS"])
def test_window_is_that_stretch_of_the_whole(encoded, write, format, rate):
    path = write(encoded[format])
    whole = samples_of(path, rate)
    for start, duration in (
        (0, 0.5),
        (0.0101, 0.3),
        (1.2345, 1),
        (2.9, 0.05),
        (2.5, None),
        (2.5, 9.0),
        (0, None),
    ):
        got = load_audio(path, rate, start_seconds=start, duration_seconds=duration)
        first = round(start * rate)
        expected = whole[first:] if duration is None else whole[first : first + round(duration * rate)]
        assert got.samples.shape == expected.shape
        assert got.start_seconds == first / rate
        assert np.abs(got.samples.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "MS_ADPCM", "IMA_ADPCM", "ALAW", "PCM_24"])
def test_window_of_any_wav_codec(tmp_path, subtype):
    encode(tmp_path / "x", music(1, 22050, 1), 22050, subtype=subtype)
    whole = samples_of(tmp_path / "x", 22050)
    got = samples_of(tmp_path / "x", 22050, start_seconds=0.3, duration_seconds=0.2)
    assert np.array_equal(got, whole[6615:][:4410])


def test_a_window_on_the_last_page_of_a_vorbis_file(tmp_path):
    """libsndfile's seek lands beside its target there."""
    for seconds in (2.0, 5.3, 9.7):
        path = tmp_path / f"{seconds}.ogg"
        encode(path, music(seconds), format="OGG")
        whole = samples_of(path, 24000)
        start_seconds = (len(whole) - 4800) / 24000
        assert np.abs(samples_of(path, 24000, start_seconds=start_seconds) - whole[-4800:]).max() < 1e-6


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OPUS"])
def test_window_decodes_only_what_it_needs(tmp_path, monkeypatch, format):
    rate, options = (
        (48000, {"format": "OGG", "subtype": "OPUS"}) if format == "OPUS" else (RATE, {"format": format})
    )
    encode(tmp_path / "x", music(20, rate), rate, **options)
    decoded = []
    read = audio._Source._read

    def counted(self, stop):
        block = read(self, stop)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(audio._Source, "_read", counted)
    load_audio(tmp_path / "x", 24000, start_seconds=15, duration_seconds=1)
    assert sum(decoded) < 1.2 * rate


@pytest.mark.parametrize("hop_seconds", [None, 0.25, 0.7, 1.3])
@pytest.mark.parametrize("format", FORMATS)
def test_stream_is_the_whole_cut_up(encoded, write, format, hop_seconds):
    path = write(encoded[format])
    whole = samples_of(path, 24000)
    windows = list(stream_audio(path, 24000, window_seconds=0.7, hop_seconds=hop_seconds))
    window, hop = 16800, round((hop_seconds or 0.7) * 24000)
    for i, w in enumerate(windows):
        assert w.start_seconds == i * hop / 24000
        assert w.samples.shape == whole[i * hop : i * hop + window].shape
        assert np.abs(w.samples.numpy() - whole[i * hop : i * hop + window]).max() < 1e-6
    ends = [min(i * hop + window, whole.size) for i in range(len(windows))]
    assert [e == whole.size for e in ends[:-1]] == [False] * (len(windows) - 1)
    assert ends[-1] == whole.size or len(windows) * hop >= whole.size


def test_stream_that_ends_with_a_window_has_no_stub(tmp_path):
    encode(tmp_path / "x", music(2))
    assert [w.samples.numel() for w in stream_audio(tmp_path / "x", 24000, window_seconds=1)] == [
        24000,
        24000,
    ]


def silent_wav(path: Path, seconds: int) -> Path:
    num_bytes = seconds * RATE * 2
    header = struct.pack("<4sI4s", b"RIFF", 36 + num_bytes, b"WAVE")
    header += struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header += struct.pack("<4sI", b"data", num_bytes)
    path.write_bytes(header)
    os.truncate(path, len(header) + num_bytes)  # sparse: no disk is used
    return path


def test_stream_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for seconds in (60, 600):
        path = silent_wav(tmp_path / f"{seconds}.wav", seconds)
        tracemalloc.start()
        count = sum(w.samples.numel() for w in stream_audio(path, 24000, window_seconds=10))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == seconds * 24000
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 8e6  # a window of 10 s is 1 MB


# Good files that are often read wrongly


def test_bytes_behind_the_audio_are_ignored(encoded, write):
    for format in FORMATS:
        whole = samples_of(write(encoded[format]))
        for tail in (b"TAG" + bytes(125), b"APETAGEX" + bytes(100), b"junk!", bytes(100_000)):
            path = write(encoded[format] + tail)
            assert np.array_equal(samples_of(path), whole), (format, tail[:8])
            assert len(list(stream_audio(path, RATE, window_seconds=1))) == 3


def test_wav_chunks_around_the_audio(encoded, write):
    wav = encoded["WAV"]
    whole = samples_of(write(wav))
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    before = wav[:4] + struct.pack("<I", len(wav) - 8 + 14) + wav[8:12] + odd + wav[12:]
    after = wav[:4] + struct.pack("<I", len(wav) - 8 + 14) + wav[8:] + odd
    for data in (before, after):
        assert np.array_equal(samples_of(write(data)), whole)


@pytest.mark.parametrize(
    "sizes", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0xFFFFFFFF, 0)]
)
def test_wav_of_unknown_length_is_read_to_its_end(encoded, write, sizes):
    wav = encoded["WAV"]
    assert wav[36:40] == b"data"
    path = write(wav[:4] + struct.pack("<I", sizes[0]) + wav[8:40] + struct.pack("<I", sizes[1]) + wav[44:])
    assert audio_info(path).num_frames == 3 * RATE
    assert np.array_equal(samples_of(path), samples_of(write(wav, "whole")))


def test_flac_of_unknown_length_is_read_to_its_end(encoded, write):
    flac = bytearray(encoded["FLAC"])
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    path = write(bytes(flac))
    whole = samples_of(write(encoded["FLAC"], "whole"))
    assert audio_info(path).num_frames == 3 * RATE
    assert np.array_equal(samples_of(path), whole)
    got = load_audio(path, RATE, start_seconds=1, duration_seconds=1)
    assert np.array_equal(got.samples.numpy(), whole[RATE : 2 * RATE])
    with pytest.raises(TruncatedAudioError):
        load_audio(write(bytes(flac[:-500])), RATE)


def mp3_frames(data: bytes) -> list[bytes]:
    """The frames of an MPEG-1 Layer III file at 44.1 kHz."""
    kbps = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    frames, at = [], 0
    while at < len(data):
        size = 144000 * kbps[data[at + 2] >> 4] // RATE + (data[at + 2] >> 1 & 1)
        frames.append(data[at : at + size])
        at += size
    return frames


def test_mp3_without_declared_length_is_read_to_its_end(encoded, write):
    """libsndfile alone guesses from the first frame's bit rate and stops at its guess."""
    tag, *frames = mp3_frames(encoded["MP3"])
    assert tag[36:40] in (b"Xing", b"Info")
    bare = write(b"".join(frames))
    assert soundfile.info(bare).frames != len(frames) * 1152
    got = samples_of(bare)
    assert got.size == len(frames) * 1152 - 529  # the decoder's own delay is taken off
    lame_delay = 576  # which only the tag declares
    whole = samples_of(write(encoded["MP3"], "whole"))
    assert np.array_equal(got[lame_delay:][: whole.size], whole)

    vbri = tag[:36] + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(encoded["MP3"]), len(frames)) + bytes(8)
    path = write(vbri.ljust(len(tag), b"\0") + b"".join(frames))
    assert np.array_equal(samples_of(path), got)
    with pytest.raises(TruncatedAudioError):
        load_audio(write(vbri.ljust(len(tag), b"\0") + b"".join(frames[:-2])), RATE)


def test_mp3_behind_tags_and_junk(encoded, write, capfd):
    whole = samples_of(write(encoded["MP3"]))
    id3 = b"ID3\x04\x00\x00\x00\x0c\x00\x00" + bytes(0x0C << 14)
    for data in (id3 + encoded["MP3"], id3 + id3 + encoded["MP3"], bytes(5000) + encoded["MP3"]):
        assert np.array_equal(samples_of(write(data)), whole)
    flac = samples_of(write(encoded["FLAC"]))
    assert np.array_equal(samples_of(write(id3 + encoded["FLAC"])), flac)
    assert capfd.readouterr().err == ""  # the decoder writes its complaints straight to the terminal


def test_mp3_frame_count_that_includes_the_tag(encoded, write):
    data = bytearray(encoded["MP3"])
    count = len(mp3_frames(encoded["MP3"])) - 1
    assert data[44:48] == struct.pack(">I", count)
    data[44:48] = struct.pack(">I", count + 1)
    assert samples_of(write(bytes(data))).size == count * 1152 - 529


# Bad files


def assert_refused(path, error: type[AudioError], **options) -> None:
    for attempt in (
        lambda: load_audio(path, 24000, **options),
        lambda: load_audio(path, 24000, duration_seconds=0.1, with_source_peak=True),
        lambda: next(stream_audio(path, 24000, window_seconds=0.5)),
        lambda: audio_info(path),
    ):
        with pytest.raises(error) as caught:
            attempt()
        assert type(caught.value) is error
        assert str(caught.value).startswith(str(path))
        assert caught.value.path == Path(path)


@pytest.mark.parametrize("format", [*FORMATS, "OPUS"])
def test_cut_files(encoded, write, format):
    data = encoded[format]
    for cut in (
        len(data) // 100,
        len(data) // 3,
        len(data) // 2,
        len(data) - 5000,
        len(data) - 50,
        len(data) - 1,
    ):
        assert_refused(write(data[:cut]), TruncatedAudioError)
    if format == "FLAC":
        with pytest.raises(TruncatedAudioError, match=r"declares .* samples per channel, and the last one"):
            load_audio(write(data[: len(data) // 2]), 24000)
    headers = 11 if format == "MP3" else 5
    for cut in (headers, 20, 30, 40, 43, 60):
        with pytest.raises((TruncatedAudioError, NotAudioError)):
            load_audio(write(data[:cut]), 24000)


def test_cut_mp3(encoded, write):
    tag, *frames = mp3_frames(encoded["MP3"])
    assert_refused(write(b"".join([tag, *frames[:-1]])), TruncatedAudioError)  # between frames: the tag tells
    assert_refused(write(b"".join(frames)[:-3]), TruncatedAudioError)  # no tag: the last frame tells
    id3 = b"ID3\x04\x00\x00\x00\x0c\x00\x00"
    assert_refused(write(id3 + bytes(100)), TruncatedAudioError)


def test_cut_ogg_between_pages(encoded, write):
    data = encoded["OGG"]
    assert_refused(write(data[: data.rindex(b"OggS")]), TruncatedAudioError)


def test_several_ogg_streams_are_refused_not_half_read(encoded, write):
    assert_refused(write(encoded["OGG"] + encoded["OPUS"]), NotAudioError)


def test_ogg_pages_behind_the_end_mark_are_ignored(encoded, write):
    data = encoded["OGG"]
    last_page = data[data.rindex(b"OggS") :]
    path, padded = write(data, "plain.ogg"), write(data + 3 * last_page, "padded.ogg")
    np.testing.assert_array_equal(samples_of(padded), samples_of(path))


def test_rf64_is_checked_against_its_long_size(tmp_path, write):
    data = encode(tmp_path / "x", music(0.5), format="RF64")
    assert data[:4] == b"RF64"
    assert_refused(write(data[:-1000]), TruncatedAudioError)


def test_missing_directory_and_pipe(tmp_path):
    assert_refused(tmp_path / "none.wav", MissingAudioError)
    assert_refused(tmp_path, NotAFileError)
    os.mkfifo(tmp_path / "pipe.wav")
    assert_refused(tmp_path / "pipe.wav", NotAFileError)


def test_no_permission_and_failing_disk(encoded, write, monkeypatch):
    path = write(encoded["WAV"])
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error")):

        def refuse(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr("builtins.open", refuse)
        assert_refused(path, UnreadableAudioError)
        monkeypatch.undo()
    if os.geteuid() != 0:
        path.chmod(0)
        assert_refused(path, UnreadableAudioError)


def test_no_audio_inside(write, encoded, tmp_path):
    assert_refused(write(b""), EmptyAudioError)
    for format in ("WAV", "FLAC", "OGG"):
        encode(tmp_path / "none", np.zeros((0, 2)), format=format)
        assert_refused(tmp_path / "none", EmptyAudioError)
    wav = encoded["WAV"]
    tagged = (
        wav[:4]
        + struct.pack("<I", 56)
        + wav[8:40]
        + bytes(4)
        + b"LIST"
        + struct.pack("<I", 12)
        + b"INFOabcdefgh"
    )
    assert_refused(write(tagged), EmptyAudioError)
    assert_refused(write(mp3_frames(encoded["MP3"])[0][:44] + bytes(4)), TruncatedAudioError)


def test_not_audio(write, encoded):
    rng = np.random.default_rng(0)
    assert_refused(write(b"Dear diary, today I renamed a letter.\n" * 500, "letter.mp3"), NotAudioError)
    assert_refused(write(rng.bytes(100_000), "noise.mp3"), NotAudioError)
    assert_refused(write(bytes(100_000), "zeros.wav"), NotAudioError)
    assert_refused(write(b"RIFF\x10\0\0\0AVI " + bytes(100), "film.wav"), NotAudioError)
    assert_refused(
        write(b"RIFF" + struct.pack("<I", 28) + encoded["WAV"][8:36], "headless.wav"), NotAudioError
    )


def test_sample_rate_zero(write, encoded):
    wav, flac = encoded["WAV"], bytearray(encoded["FLAC"])
    assert_refused(write(wav[:24] + bytes(4) + wav[28:]), NotAudioError)
    assert_refused(write(wav[:24] + struct.pack("<I", 3) + wav[28:]), NotAudioError)
    flac[18:20] = bytes(2)
    flac[20] &= 0x0F
    assert_refused(write(bytes(flac)), NotAudioError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_samples(tmp_path, value):
    source = music(1)
    source[30000, 1] = value
    encode(tmp_path / "x", source, subtype="FLOAT")
    with pytest.raises(BadSamplesError, match=r"0\.680 s"):
        load_audio(tmp_path / "x", 24000)
    with pytest.raises(BadSamplesError):
        list(stream_audio(tmp_path / "x", 24000, window_seconds=0.5))
    assert load_audio(tmp_path / "x", 24000, duration_seconds=0.2).samples.isfinite().all()
    with pytest.raises(BadSamplesError):
        load_audio(tmp_path / "x", 24000, duration_seconds=0.2, with_source_peak=True)


def test_samples_beyond_float32(tmp_path):
    encode(tmp_path / "x", np.full((RATE, 2), 3e38), subtype="FLOAT")
    for rate in (RATE, 24000):
        with pytest.raises(BadSamplesError):
            load_audio(tmp_path / "x", rate)


def test_too_short(tmp_path):
    encode(tmp_path / "x", music(0.5))
    assert load_audio(tmp_path / "x", 24000, min_seconds=0.5).samples.numel() == 12000
    with pytest.raises(TooShortAudioError, match=r"0\.500 s"):
        load_audio(tmp_path / "x", 24000, min_seconds=0.51)
    with pytest.raises(TooShortAudioError):
        load_audio(tmp_path / "x", 24000, start_seconds=0.2, min_seconds=0.4)
    with pytest.raises(TooShortAudioError):
        list(stream_audio(tmp_path / "x", 24000, window_seconds=0.1, min_seconds=1))
    encode(tmp_path / "one", music(1 / RATE))
    with pytest.raises(TooShortAudioError):
        load_audio(tmp_path / "one", 8000)


def test_impossible_windows(encoded, write):
    path = write(encoded["WAV"])
    for start in (-0.1, float("nan"), float("inf"), 3.0, 1e9):
        with pytest.raises(AudioWindowError, match=path.name):
            load_audio(path, 24000, start_seconds=start)
    for duration in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(AudioWindowError, match=path.name):
            load_audio(path, 24000, duration_seconds=duration)
    for format in ("FLAC", "OGG", "MP3"):
        with pytest.raises(AudioWindowError, match=r"3\.000 s"):
            load_audio(write(encoded[format]), 24000, start_seconds=3.0)
    for bad in (0, -1, 24000.0):
        with pytest.raises(ValueError, match="sample_rate_hz"):
            load_audio(path, bad)
    with pytest.raises(ValueError, match="window_seconds"):
        stream_audio(path, 24000, window_seconds=0)


def test_errors_travel_between_processes():
    error = TruncatedAudioError("a/b.wav", "is cut short.")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.path, str(copy)) == (
        TruncatedAudioError,
        Path("a/b.wav"),
        "a/b.wav: is cut short.",
    )


def test_fuzz_gives_a_waveform_or_an_audio_error(tmp_path, capfd):
    """300 files, cut, with bytes changed (half of them in the header), cut out or inserted."""
    rng = np.random.default_rng(20)
    sources = [encode(tmp_path / f, music(0.4, 22050), 22050, format=f) for f in FORMATS]
    sources.append(encode(tmp_path / "f", music(0.4, 22050), 22050, subtype="FLOAT"))
    outcomes = {"waveform": 0, "error": 0}
    for i in range(300):
        data = bytearray(sources[i % len(sources)])
        span = 100 if i % 2 else len(data)
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(0, min(span, len(data))))] = int(rng.integers(0, 256))
        if i % 3 == 1:
            at = int(rng.integers(0, len(data)))
            del data[at : at + int(rng.integers(1, 200))]
        elif i % 3 == 2:
            at = int(rng.integers(0, len(data)))
            data[at:at] = rng.bytes(int(rng.integers(1, 200)))
        if i % 5 == 0:
            del data[int(rng.integers(0, len(data))) :]
        (tmp_path / "mutated").write_bytes(data)
        try:
            wave = load_audio(tmp_path / "mutated", 24000)
            windows = list(stream_audio(tmp_path / "mutated", 24000, window_seconds=0.1))
        except AudioError:
            outcomes["error"] += 1
        else:
            assert isinstance(wave, Waveform) and wave.samples.isfinite().all()
            assert sum(w.samples.numel() for w in windows) == wave.samples.numel()
            outcomes["waveform"] += 1
    assert sum(outcomes.values()) == 300 and min(outcomes.values()) > 20
