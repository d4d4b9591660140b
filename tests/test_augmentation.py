"""Pitch shift and time stretch: what is heard moves by what was asked for, and the annotation with it."""

import hashlib
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.audio import MissingAudioError, TooShortAudioError, load_audio
from audiation.augmentation import (
    PitchShift,
    TimeStretch,
    augmented_copy,
    parse_augmentation,
    petl_copies,
)

RATE_HZ = 16_000
PETL_SEMITONES = (-4, -3, -2, -1, 1, 2, 3, 4)
PETL_RATES = (0.95, 0.975, 1.025, 1.05)


def tone(frequency_hz, seconds=3.0, rate=RATE_HZ, harmonics=1):
    """Partials with falling amplitudes, `(S,)`."""
    t = np.arange(round(seconds * rate)) / rate
    x = sum(np.sin(2 * np.pi * frequency_hz * h * t) / h for h in range(1, harmonics + 1))
    return torch.from_numpy((0.3 * x).astype(np.float32))


def clicks(times_seconds, seconds, rate=RATE_HZ):
    """Short decaying bursts that begin at the given times, `(S,)`."""
    x = np.zeros(round(seconds * rate), np.float32)
    t = np.arange(round(0.01 * rate)) / rate
    burst = np.exp(-t / 0.002) * np.sin(2 * np.pi * 1500 * t)
    for time in times_seconds:
        first = round(time * rate)
        part = burst[: len(x) - first]
        x[first : first + len(part)] += part
    return torch.from_numpy(x)


def frequency_near(samples, guess_hz, rate=RATE_HZ):
    """The strongest partial within half a semitone of a guess, from the inner part of a recording."""
    inner = samples.numpy()[rate // 2 : -rate // 2]
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner)), size))
    bins = np.arange(len(spectrum))
    near = np.abs(12 * np.log2(np.maximum(bins, 1) * rate / size / guess_hz)) < 0.5
    k = int(np.argmax(spectrum * near))
    a, b, c = np.log(spectrum[k - 1 : k + 2])
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * rate / size


def cents(frequency_hz, reference_hz):
    return 1200 * np.log2(frequency_hz / reference_hz)


def envelope(samples, rate=RATE_HZ):
    """Energy in 2 ms around each sample."""
    width = round(0.002 * rate)
    return np.convolve(samples.numpy() ** 2, np.ones(width), "same")


def onset_errors_seconds(samples, expected_seconds, rate=RATE_HZ):
    """Where the loudest 2 ms within 50 ms of each expected time lie, relative to it."""
    energy, reach = envelope(samples, rate), round(0.05 * rate)
    found = []
    for time in expected_seconds:
        first = max(0, round(time * rate) - reach)
        found.append((first + np.argmax(energy[first : first + 2 * reach])) / rate - time)
    return np.array(found)


def estimated_bpm(samples, lowest_bpm, highest_bpm, rate=RATE_HZ):
    """From the autocorrelation of the envelope at 1 kHz: the highest peak among the lags of a range of tempi."""
    hop = rate // 1000
    energy = envelope(samples, rate)
    energy = energy[: len(energy) // hop * hop].reshape(-1, hop).mean(1)
    energy = np.convolve(energy - energy.mean(), np.hanning(21), "same")
    correlation = np.fft.irfft(np.abs(np.fft.rfft(energy, 2 * len(energy))) ** 2)[: len(energy)]
    correlation /= len(energy) - np.arange(len(energy))  # no lag is favoured for being short
    low, high = round(60_000 / highest_bpm), round(60_000 / lowest_bpm)
    k = low + int(np.argmax(correlation[low : high + 1]))
    a, b, c = correlation[k - 1 : k + 2]
    return 60_000 / (k + 0.5 * (a - c) / (a - 2 * b + c))


# What is heard -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semitones", [*PETL_SEMITONES, -7, 7])
@pytest.mark.parametrize("frequency_hz", [55.0, 440.0, 2_500.0])
def test_a_sine_is_shifted_within_one_cent(semitones, frequency_hz):
    shifted = PitchShift(semitones).apply(tone(frequency_hz), RATE_HZ)
    expected = frequency_hz * 2 ** (semitones / 12)
    assert abs(cents(frequency_near(shifted, expected), expected)) < 1
    inner = shifted[RATE_HZ // 2 : -RATE_HZ // 2]
    assert inner.std() == pytest.approx(0.3 / 2**0.5, rel=0.01)


@pytest.mark.parametrize("semitones", PETL_SEMITONES)
@pytest.mark.parametrize("frequency_hz", [65.4, 220.0])
def test_all_partials_of_a_tone_are_shifted_alike(semitones, frequency_hz):
    shifted = PitchShift(semitones).apply(tone(frequency_hz, harmonics=8), RATE_HZ)
    for partial in range(1, 9):
        expected = partial * frequency_hz * 2 ** (semitones / 12)
        assert abs(cents(frequency_near(shifted, expected), expected)) < 1


@pytest.mark.parametrize("rate", [*PETL_RATES, 0.6, 1.6])
def test_a_stretch_keeps_the_pitch(rate):
    stretched = TimeStretch(rate).apply(tone(110.0, harmonics=8), RATE_HZ)
    for partial in range(1, 9):
        assert abs(cents(frequency_near(stretched, 110.0 * partial), 110.0 * partial)) < 1


@pytest.mark.parametrize(("semitones", "key"), [(3, "Eb major"), (-4, "Ab major")])
def test_the_triad_of_c_major_becomes_that_of_the_moved_key(semitones, key):
    triad = sum(tone(440.0 * 2 ** ((midi - 69) / 12)) for midi in (60, 64, 67)) / 3
    shift = PitchShift(semitones)
    shifted = shift.apply(triad, RATE_HZ).numpy()[RATE_HZ // 2 : -RATE_HZ // 2]
    spectrum = np.abs(np.fft.rfft(shifted * np.hanning(len(shifted))))
    midi = 69 + 12 * np.log2(np.arange(1, len(spectrum)) * RATE_HZ / len(shifted) / 440)
    energy = np.bincount(np.rint(midi).astype(int) % 12, weights=spectrum[1:] ** 2, minlength=12)
    moved = shift.annotation(Key.parse("C major"))
    assert str(moved) == key
    assert set(np.argsort(energy)[-3:]) == {(moved.tonic + step) % 12 for step in (0, 4, 7)}


@pytest.mark.parametrize("rate", [*PETL_RATES, 0.6, 1.6])
def test_beats_stay_with_the_clicks_of_a_stretched_recording(rate):
    times = np.arange(20) * 0.45  # from the very first sample
    recording = clicks(times, seconds=9.0)
    moved = TimeStretch(rate).annotation(Beats(times, np.arange(20) % 4 + 1))
    np.testing.assert_allclose(moved.times_seconds, times / rate, rtol=1e-15)
    assert moved.positions.tolist() == [1, 2, 3, 4] * 5
    before = onset_errors_seconds(recording, times)
    after = onset_errors_seconds(TimeStretch(rate).apply(recording, RATE_HZ), moved.times_seconds)
    assert np.abs(after - before).max() < 0.010
    assert abs(np.mean(after - before)) < 0.002  # no latency that all of them share


@pytest.mark.parametrize("semitones", [*PETL_SEMITONES, -7, 7])
def test_a_pitch_shift_leaves_every_click_in_its_place(semitones):
    times = np.arange(20) * 0.45
    recording = clicks(times, seconds=9.0)
    shifted = PitchShift(semitones).apply(recording, RATE_HZ)
    drift = onset_errors_seconds(shifted, times) - onset_errors_seconds(recording, times)
    assert np.abs(drift).max() < 0.010 and abs(drift.mean()) < 0.002


def test_nothing_drifts_in_five_minutes():
    rate, times = 8_000, np.array([0.5, 150.0, 299.5])
    recording = clicks(times, seconds=300.0, rate=rate)
    before = onset_errors_seconds(recording, times, rate)
    stretched = TimeStretch(0.95).apply(recording, rate)
    assert np.abs(onset_errors_seconds(stretched, times / 0.95, rate) - before).max() < 0.010
    shifted = PitchShift(3).apply(recording, rate)
    assert np.abs(onset_errors_seconds(shifted, times, rate) - before).max() < 0.010


@pytest.mark.parametrize("rate", PETL_RATES)
@pytest.mark.parametrize("bpm", [71.0, 126.39])
def test_the_tempo_of_a_click_train_is_the_moved_label(rate, bpm):
    stretch = TimeStretch(rate)
    recording = clicks(np.arange(0, 19.9, 60 / bpm), seconds=20.0)
    assert estimated_bpm(recording, 0.8 * bpm, 1.25 * bpm) == pytest.approx(bpm, rel=0.001)
    moved = stretch.annotation(Tempo(bpm)).bpm
    assert moved == pytest.approx(bpm * rate, rel=1e-15)
    stretched = stretch.apply(recording, RATE_HZ)
    assert estimated_bpm(stretched, 0.8 * bpm, 1.25 * bpm) == pytest.approx(moved, rel=0.005)


@pytest.mark.parametrize("augmentation", [*petl_copies("key"), *petl_copies("tempo")], ids=str)
def test_noise_keeps_its_level_and_colour_below_what_a_shift_moves_out(augmentation):
    noise = 0.1 * torch.randn(6 * RATE_HZ, generator=torch.Generator().manual_seed(0))
    changed = augmentation.apply(noise, RATE_HZ).double()

    def decibels(x, low_hz, high_hz):
        power = torch.fft.rfft(x).abs() ** 2 / len(x)
        frequencies = torch.fft.rfftfreq(len(x), 1 / RATE_HZ)
        return 10 * power[(frequencies > low_hz) & (frequencies < high_hz)].mean().log10()

    levels = [decibels(changed, low, high) for low, high in ((100, 1000), (1000, 3000), (3000, 6000))]
    assert max(levels) - min(levels) < 0.5
    # A shift up spreads what there is over a wider range: 4 semitones are -1 dB, and the stretcher -1 dB.
    assert all(-2.5 < level + 20 < 0.5 for level in levels)


def test_what_a_shift_moves_beyond_half_the_rate_does_not_come_back():
    shifted = PitchShift(4).apply(tone(7_500.0), RATE_HZ)
    assert shifted[RATE_HZ // 2 : -RATE_HZ // 2].std() < 1e-3


# Form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_hz", [1_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("num_extra", [0, 1, 777])
def test_lengths_are_exact(rate_hz, num_extra):
    count = -(-12 * rate_hz // 100) + num_extra  # from the shortest on
    noise = torch.randn(count, generator=torch.Generator().manual_seed(0))
    for semitones in (-7, -1, 4, 7):
        shift = PitchShift(semitones)
        assert shift.num_samples(count) == count and shift.apply(noise, rate_hz).shape == (count,)
    for rate in (*PETL_RATES, 0.6, 1.6, 1.2345):
        stretch = TimeStretch(rate)
        assert stretch.num_samples(count) == round(count / rate)
        assert stretch.apply(noise, rate_hz).shape == (round(count / rate),)


@pytest.mark.parametrize("augmentation", [PitchShift(3), TimeStretch(0.95), TimeStretch(0.6)], ids=str)
def test_the_same_bits_every_time_and_no_global_randomness(augmentation):
    noise = torch.randn(RATE_HZ, generator=torch.Generator().manual_seed(1))
    kept, state = noise.clone(), torch.get_rng_state()
    first = augmentation.apply(noise, RATE_HZ)
    assert torch.equal(augmentation.apply(noise, RATE_HZ), first)
    assert torch.equal(noise, kept) and torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.float32 and first.isfinite().all()
    # Also behind another one: no state is left.
    TimeStretch(1.05).apply(noise.flip(0), RATE_HZ)
    assert torch.equal(augmentation.apply(noise.double().requires_grad_(), RATE_HZ), first)


def test_no_change_gives_a_copy_of_the_samples():
    noise = torch.randn(RATE_HZ, generator=torch.Generator().manual_seed(2))
    for augmentation in (PitchShift(0), TimeStretch(1.0)):
        same = augmentation.apply(noise, RATE_HZ)
        assert torch.equal(same, noise) and same.data_ptr() != noise.data_ptr()


def test_silence_stays_silent():
    silence = torch.zeros(RATE_HZ)
    assert PitchShift(-4).apply(silence, RATE_HZ).abs().max() == 0
    assert TimeStretch(1.05).apply(silence, RATE_HZ).abs().max() == 0


@pytest.mark.parametrize("augmentation", [PitchShift(2), PitchShift(0), TimeStretch(0.95)], ids=str)
@pytest.mark.parametrize(
    ("samples", "rate_hz", "reason"),
    [
        (torch.zeros(0), RATE_HZ, "0 samples last 0.000 s"),
        (torch.zeros(1_919), RATE_HZ, "needs at least 0.12 s"),
        (torch.zeros(2, RATE_HZ), RATE_HZ, r"one channel, shaped \(S,\), got \(2, 16000\)"),
        (torch.zeros(1, RATE_HZ), RATE_HZ, "one channel"),
        (torch.tensor(0.0), RATE_HZ, "one channel"),
        (torch.zeros(RATE_HZ, dtype=torch.int16), RATE_HZ, "floating-point numbers, got torch.int16"),
        (torch.full((RATE_HZ,), torch.nan), RATE_HZ, "16000 of 16000 samples are NaN"),
        (torch.cat([torch.zeros(RATE_HZ), torch.tensor([torch.inf])]), RATE_HZ, "1 of 16001 samples"),
        (torch.zeros(RATE_HZ), 0, "sample_rate_hz is a whole number >= 1000, got 0"),
        (torch.zeros(RATE_HZ), 16_000.0, "sample_rate_hz"),
    ],
)
def test_samples_that_cannot_be_augmented_are_refused(augmentation, samples, rate_hz, reason):
    with pytest.raises(ValueError, match=reason):
        augmentation.apply(samples, rate_hz)


@pytest.mark.parametrize("semitones", [8, -8, 1.5, 2.0, True, "3"])
def test_shifts_that_are_no_whole_semitones_are_refused(semitones):
    with pytest.raises(ValueError, match="semitones is a whole number from -7 to 7, got"):
        PitchShift(semitones)


@pytest.mark.parametrize("rate", [0, -1.0, 0.59, 1.61, float("nan"), float("inf"), True, "1.05"])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate is a number from 0.6 to 1.6, got"):
        TimeStretch(rate)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    with pytest.raises(ImportError, match=r'pip install "audiation\[augment\]"'):
        PitchShift(1).apply(torch.zeros(RATE_HZ), RATE_HZ)


# Annotations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semitones", PETL_SEMITONES)
def test_every_tonic_moves_and_every_mode_stays(semitones):
    for index in range(24):
        key = Key.from_index(index)
        moved = PitchShift(semitones).annotation(key)
        assert moved.mode == key.mode and (moved.tonic - key.tonic - semitones) % 12 == 0
        assert PitchShift(-semitones).annotation(moved) == key


@pytest.mark.parametrize(("rate", "rounded"), [(0.95, 120.0), (0.975, 123.0), (1.025, 129.0), (1.05, 132.0)])
def test_the_released_tempo_labels_are_rounded_twice(rate, rounded):
    assert TimeStretch(rate, "rounded").annotation(Tempo(126.39)) == Tempo(rounded)
    assert TimeStretch(rate).annotation(Tempo(126.39)) == Tempo(126.39 * rate)
    assert TimeStretch(1.05, "rounded").annotation(Tempo(100.6)) == Tempo(106.0)  # 101 x 1.05, not 105.63


def test_chords_move_with_their_roots_and_written_basses():
    labels = ("C", "A:min7", "F#:maj/3", "Bb:sus4(b7)/b7", "D:7/F#", "G(1,5)", "N", "X")
    chords = Segments(np.arange(16.0).reshape(8, 2), labels)
    moved = PitchShift(3).annotation(chords, "chords")
    assert moved.labels == (
        "Eb",
        "C:min7",
        "A:maj/3",
        "Db:sus4(b7)/b7",
        "F:7/A",
        "Bb(1,5)",
        "N",
        "X",
    )
    np.testing.assert_array_equal(moved.intervals_seconds, chords.intervals_seconds)
    assert PitchShift(-3).annotation(moved, "chords").labels[2] == "Gb:maj/3"  # spelled with flats
    assert PitchShift(0).annotation(chords, "chords").labels == labels


@pytest.mark.parametrize("label", ["Am", "H", "c:maj", "C:", "verse", "", "N.C.", "C:maj/"])
def test_labels_that_are_no_chords_are_refused(label):
    with pytest.raises(ValueError, match="no chord in Harte's notation"):
        PitchShift(1).annotation(Segments(np.array([[0.0, 1.0]]), (label,)), "chords")


def test_keys_over_time_move_and_sections_do_not():
    intervals = np.array([[0.0, 1.0], [1.0, 2.0]])
    keys = Segments(intervals, ("A minor", "none"))
    assert PitchShift(4).annotation(keys, "keys").labels == ("Db minor", "none")
    sections = Segments(intervals, ("A", "chorus"))
    assert PitchShift(4).annotation(sections, "sections").labels == ("A", "chorus")
    with pytest.raises(ValueError, match="'chorus' is not a key"):
        PitchShift(4).annotation(Segments(intervals, ("chorus", "none")), "keys")


def test_a_pitch_shift_asks_what_segments_are():
    segments = Segments(np.array([[0.0, 1.0]]), ("A",))
    with pytest.raises(ValueError, match="Give segment_labels as one of chords, keys, sections"):
        PitchShift(4).annotation(segments)
    for augmentation in (PitchShift(4), TimeStretch(1.05)):
        with pytest.raises(ValueError, match="segment_labels is one of chords, keys, sections, or None"):
            augmentation.annotation(segments, "harmony")


def test_segments_are_stretched_whatever_they_are():
    segments = Segments(np.array([[0.0, 1.0], [1.0, 4.2]]), ("A", "C:maj"))
    moved = TimeStretch(1.05).annotation(segments)
    np.testing.assert_allclose(moved.intervals_seconds, [[0.0, 1 / 1.05], [1 / 1.05, 4.0]], rtol=1e-15)
    assert moved.labels == segments.labels


def test_what_does_not_change_stays_as_it_is():
    beats = Beats(np.array([0.5, 1.0]), np.array([1, 2]))
    for annotation in (Tempo(120.0), beats, Label("rock"), Tags({"slow": 1.0})):
        assert PitchShift(2).annotation(annotation) is annotation
    for annotation in (Key.parse("F# minor"), Pitch(60), Label("rock"), Tags({"piano": 1.0})):
        assert TimeStretch(0.95).annotation(annotation) is annotation


def test_pitches_move_within_the_midi_range():
    assert PitchShift(-4).annotation(Pitch(60)) == Pitch(56)
    with pytest.raises(ValueError, match=r"G9 moved by 1 semitones is MIDI pitch 128, outside 0\.\.127"):
        PitchShift(1).annotation(Pitch(127))
    with pytest.raises(ValueError, match="is MIDI pitch -1"):
        PitchShift(-4).annotation(Pitch(3))


@pytest.mark.parametrize("annotation", [Emotion(0.1, 0.2), Values({"danceability": 0.5}), None])
def test_annotations_that_move_in_unknown_ways_are_refused(annotation):
    for augmentation in (PitchShift(1), TimeStretch(1.05)):
        with pytest.raises(ValueError, match=f"annotation of type {type(annotation).__name__}"):
            augmentation.annotation(annotation)


# Names, copies, files ------------------------------------------------------------------------------------


def test_the_copies_of_the_paper():
    assert petl_copies("key") == tuple(PitchShift(semitones) for semitones in PETL_SEMITONES)
    assert petl_copies("tempo") == tuple(TimeStretch(rate, "rounded") for rate in PETL_RATES)
    with pytest.raises(ValueError, match="augments the training of key and tempo, not of 'genre'"):
        petl_copies("genre")


@pytest.mark.parametrize(
    ("text", "augmentation"),
    [
        ("pitch_shift:semitones=3", PitchShift(3)),
        ("pitch_shift:semitones=-4", PitchShift(-4)),
        ("time_stretch:rate=0.975", TimeStretch(0.975)),
        ("time_stretch:rate=1.0,tempo_label=rounded", TimeStretch(1, "rounded")),
    ],
)
def test_the_short_form_gives_the_augmentation_back(text, augmentation):
    assert str(augmentation) == text and parse_augmentation(text) == augmentation


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pitch_shift", "is no augmentation"),
        ("pitch_shift:", "is no augmentation"),
        ("pitch_shift:rate=0.95", "is no augmentation"),
        ("pitch_shift:semitones=3.5", "pitch_shift:semitones=3.5"),
        ("pitch_shift:semitones=30", "whole number from -7 to 7, got 30"),
        ("pitch_shift:semitones=3,semitones=4", "given twice"),
        ("time_stretch:rate=0", "rate is a number from 0.6 to 1.6, got 0.0"),
        ("time_stretch:rate=fast", "time_stretch:rate=fast"),
        ("time_stretch:tempo_label=exact", "is no augmentation"),
        ("time_stretch:rate=1.05,tempo_label=near", "tempo_label is 'exact' or 'rounded', got 'near'"),
        ("reverb:semitones=3", "is no augmentation"),
        ("reverb:wet=0.5", "Write 'pitch_shift:semitones=3' or 'time_stretch:rate=0.95"),
    ],
)
def test_other_texts_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_augmentation(text)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "recording.wav"
    soundfile.write(path, tone(220.0, seconds=2.0, rate=44_100, harmonics=4).numpy(), 44_100, subtype="FLOAT")
    return path


@pytest.mark.parametrize("augmentation", [PitchShift(3), TimeStretch(0.95)], ids=str)
def test_a_copy_holds_what_apply_gives(tmp_path, recording, augmentation):
    copy = augmented_copy(recording, augmentation, RATE_HZ, tmp_path / "copies")
    expected = augmentation.apply(load_audio(recording, RATE_HZ).samples, RATE_HZ)
    assert (load_audio(copy, RATE_HZ).samples - expected).abs().max() <= 2**-23
    info = soundfile.info(copy)
    assert (info.samplerate, info.channels, info.subtype) == (RATE_HZ, 1, "PCM_24")
    assert [p.name for p in (tmp_path / "copies").iterdir()] == [copy.name]  # nothing half written is left


def test_a_copy_is_made_once_and_anew_for_every_other_wish(tmp_path, recording):
    folder = tmp_path / "copies"
    first = augmented_copy(recording, PitchShift(1), RATE_HZ, folder)
    first.write_bytes(first.read_bytes() + b"kept")  # would be gone if it were written again
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    renamed = recording.rename(tmp_path / "renamed.wav")
    assert augmented_copy(renamed, PitchShift(1), RATE_HZ, folder) == first
    assert hashlib.sha256(first.read_bytes()).hexdigest() == digest
    others = {
        augmented_copy(renamed, PitchShift(2), RATE_HZ, folder),
        augmented_copy(renamed, PitchShift(1), 8_000, folder),
        augmented_copy(renamed, PitchShift(1), RATE_HZ, folder, span_seconds=(0.5, 1.5)),
    }
    assert len({first, *others}) == 4


def test_the_copy_of_a_span_holds_that_track_only(tmp_path, recording):
    span_seconds = (4_800.6 / RATE_HZ, 20_800.4 / RATE_HZ)  # its ends are rounded, and not its length
    copy = augmented_copy(recording, TimeStretch(1.05), RATE_HZ, tmp_path, span_seconds=span_seconds)
    track = load_audio(recording, RATE_HZ).samples[4_801:20_800]
    expected = TimeStretch(1.05).apply(track, RATE_HZ)
    found = load_audio(copy, RATE_HZ).samples
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-4


def test_a_copy_beyond_full_scale_is_turned_down_as_a_whole(tmp_path):
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, 6 * tone(220.0, seconds=1.0).numpy(), RATE_HZ, subtype="FLOAT")
    augmented = PitchShift(2).apply(load_audio(loud, RATE_HZ).samples, RATE_HZ)
    peak = augmented.abs().max()
    assert peak > 1.5
    found = load_audio(augmented_copy(loud, PitchShift(2), RATE_HZ, tmp_path), RATE_HZ).samples
    assert (found - augmented / peak).abs().max() <= 2**-22


def test_recordings_that_give_no_copy(tmp_path):
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(1_900, np.float32), RATE_HZ)
    with pytest.raises(TooShortAudioError, match=r"short.wav"):
        augmented_copy(short, PitchShift(1), RATE_HZ, tmp_path / "copies")
    with pytest.raises(MissingAudioError, match=r"none.wav"):
        augmented_copy(tmp_path / "none.wav", PitchShift(1), RATE_HZ, tmp_path / "copies")
    assert not (tmp_path / "copies").exists()
