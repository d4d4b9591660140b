"""The constant-Q transform: its definition, librosa's filters and transform, and what it refuses."""

import librosa
import numpy as np
import pytest
import torch

from audiation.constant_q import ConstantQ

RATE, HOP, BINS_PER_OCTAVE, NUM_BINS = 22_050, 4096, 24, 168
E1_HZ = float(librosa.note_to_hz("E1"))
NUM_SAMPLES = 24 * HOP + 1000


@pytest.fixture(scope="module")
def transform():
    return ConstantQ(RATE, HOP, E1_HZ, NUM_BINS, BINS_PER_OCTAVE)


def noise(num_samples=NUM_SAMPLES, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def magnitudes(transform, waveform):
    return transform(torch.from_numpy(waveform)[None])[0].numpy()


def test_it_is_what_its_definition_says(transform):
    waveform = noise()
    ours = magnitudes(transform, waveform)
    assert ours.shape == (NUM_BINS, NUM_SAMPLES // HOP)
    padding = 10_000
    padded = np.pad(waveform.astype(np.float64), padding, mode="reflect")
    q = 1 / ((2 ** (2 / 24) - 1) / (2 ** (2 / 24) + 1))
    for k in (0, 23, 24, 100, 167):
        hz = E1_HZ * 2 ** (k / 24)
        length = q * RATE / hz
        m = np.arange(-int(length / 2), int(length / 2) + 1)
        window = np.cos(np.pi * m / length) ** 2
        wavelet = window / window.sum() * np.exp(-2j * np.pi * hz / RATE * m)
        for t in (0, 11, 23):
            expected = np.sqrt(length) * abs(padded[padding + t * HOP + m] @ wavelet)
            assert ours[k, t] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_its_long_filters_are_those_of_librosa(transform):
    """Shorter ones differ by the rounding of their length to whole samples there."""
    hz = transform.frequencies_hz.numpy()[:BINS_PER_OCTAVE]
    wavelets, lengths = librosa.filters.wavelet(
        freqs=hz, sr=RATE, pad_fft=False, gamma=0, dtype=np.complex128
    )
    waveform = noise()
    centre = 12 * HOP
    begin = centre - wavelets.shape[1] // 2
    expected = np.abs(wavelets.conj() @ waveform[begin : begin + wavelets.shape[1]]) * np.sqrt(lengths)
    assert np.abs(magnitudes(transform, waveform)[:24, 12] - expected).max() < 5e-4 * expected.max()


@pytest.mark.parametrize("kind", ["noise", "tones", "sweep"])
def test_it_agrees_with_the_transform_of_librosa_away_from_the_ends(transform, kind):
    seconds = np.arange(NUM_SAMPLES) / RATE
    waveform = {
        "noise": noise(),
        "tones": np.sin(2 * np.pi * np.outer((82.4, 220, 554.4, 1760, 4000), seconds)).sum(0).astype("f4"),
        "sweep": np.sin(2 * np.pi * (50 + 200 * seconds) * seconds).astype("f4"),
    }[kind]
    theirs = np.abs(
        librosa.cqt(
            waveform,
            sr=RATE,
            hop_length=HOP,
            fmin=E1_HZ,
            n_bins=NUM_BINS,
            bins_per_octave=BINS_PER_OCTAVE,
            pad_mode="reflect",
        )
    )
    ours = magnitudes(transform, waveform)
    assert theirs.shape[1] == ours.shape[1] + 1  # the frame centred on the end
    inner = slice(5, ours.shape[1] - 5)
    assert np.abs(ours[:, inner] - theirs[:, inner]).max() < 0.01 * theirs.max()


def test_a_sine_is_heard_at_its_bin_with_its_amplitude(transform):
    assert transform.frame_rate_hz == RATE / HOP
    assert float(transform.frequencies_hz[-1]) == pytest.approx(E1_HZ * 2 ** (167 / 24))
    for k in (0, 60, 167):
        hz = float(transform.frequencies_hz[k])
        sine = (0.5 * np.sin(2 * np.pi * hz * np.arange(NUM_SAMPLES) / RATE)).astype(np.float32)
        middle = magnitudes(transform, sine)[:, 12]
        assert middle.argmax() == k
        assert middle[k] == pytest.approx(0.25 * np.sqrt(transform.quality * RATE / hz), rel=1e-3)


def test_frames_are_where_they_are_said_to_be(transform):
    click = np.zeros(NUM_SAMPLES, np.float32)
    click[7 * HOP] = 1.0
    top = magnitudes(transform, click)[-BINS_PER_OCTAVE:]  # filters shorter than the hop
    assert (top.argmax(axis=1) == 7).all()
    assert np.abs(np.delete(top, 7, axis=1)).max() == 0


def test_clips_do_not_depend_on_each_other_and_silence_is_silent(transform):
    batch = torch.from_numpy(np.stack([noise(), np.zeros(NUM_SAMPLES, np.float32), noise(seed=1)]))
    together = transform(batch)
    torch.testing.assert_close(together[2:], transform(batch[2:]), rtol=1e-5, atol=1e-6)
    assert (together[1] == 0).all()


def test_it_stays_float32_whatever_surrounds_it(transform):
    waveform = torch.from_numpy(noise())[None]
    cast = ConstantQ(RATE, HOP, E1_HZ, NUM_BINS, BINS_PER_OCTAVE).half()
    assert all(filters.dtype == torch.float32 for filters in cast.buffers())
    assert not cast.state_dict()
    expected = transform(waveform)
    assert torch.equal(cast(waveform), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform(waveform), expected)


def test_wrong_input_is_refused(transform):
    shortest = transform.min_samples
    assert transform(torch.zeros(1, shortest)).shape == (1, NUM_BINS, shortest // HOP)
    with pytest.raises(ValueError, match=f"at least {shortest} samples"):
        transform(torch.zeros(1, shortest - 1))
    with pytest.raises(ValueError, match=r"takes \(batch, samples\)"):
        transform(torch.zeros(NUM_SAMPLES))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((RATE, 0, E1_HZ, 24, 24), "must be positive"),
        ((RATE, HOP, -1.0, 24, 24), "must be positive"),
        ((RATE, HOP, E1_HZ, 193, 24), r"hears up to 11157 Hz, more than half of 22050 Hz\. Use fewer bins"),
        ((8000, HOP, E1_HZ, 168, 24), "more than half of 8000 Hz"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        ConstantQ(*sizes)
