"""Shifts of a recording against its annotations, on clicks whose times are known."""

import math

import numpy as np
import pytest
import torch

from audiation.datasets.alignment import ENVELOPE_RATE_HZ, estimate_offset, onset_envelope

SAMPLE_RATE_HZ = 8000


def noise(seconds, seed=0, sample_rate_hz=SAMPLE_RATE_HZ):
    return torch.randn(int(seconds * sample_rate_hz), generator=torch.Generator().manual_seed(seed))


def attacks(times_seconds, seconds, sample_rate_hz=SAMPLE_RATE_HZ, kind="click", hiss=0.02):
    """5 ms of noise, or a tone that decays, at each time; over quiet noise."""
    samples = hiss * noise(seconds, 1, sample_rate_hz)
    if kind == "click":
        sound = noise(0.005, 2, sample_rate_hz)
    else:
        time = torch.arange(int(0.3 * sample_rate_hz)) / sample_rate_hz
        sound = torch.sin(2 * math.pi * 220 * time) * torch.exp(-8 * time)
    for start in (round(t * sample_rate_hz) for t in times_seconds if t >= 0):
        end = min(start + len(sound), len(samples))
        samples[start:end] += sound[: max(end - start, 0)]
    return samples


@pytest.fixture(scope="module")
def beats():
    """60 beats at about 120 BPM, as steady as people play."""
    return 2.0 + np.cumsum(0.5 + 0.02 * np.random.default_rng(1).standard_normal(60))


@pytest.mark.parametrize("kind", ["click", "tone"])
@pytest.mark.parametrize("sample_rate_hz", [8000, 22050])
@pytest.mark.parametrize("offset", [0.37, -1.2, 0.0, 7.3456])
def test_the_shift_of_clicks_is_found_within_ten_milliseconds(beats, offset, sample_rate_hz, kind):
    samples = attacks(beats + offset, 45, sample_rate_hz, kind)
    found = estimate_offset(samples, sample_rate_hz, beats)
    assert found.offset_seconds == pytest.approx(offset, abs=0.01)
    assert found.correlation > 0.5 and found.correlation > found.second_best + 0.2


def test_loudness_does_not_matter(beats):
    samples = attacks(beats + 0.37, 40)
    loud, quiet = (estimate_offset(gain * samples, SAMPLE_RATE_HZ, beats) for gain in (1.0, 1e-3))
    assert quiet.offset_seconds == pytest.approx(loud.offset_seconds, abs=1e-4)
    assert quiet.correlation == pytest.approx(loud.correlation, abs=1e-4)


def test_noise_gets_a_low_score(beats):
    for seed in range(3):
        found = estimate_offset(noise(40, seed), SAMPLE_RATE_HZ, beats)
        assert found.correlation < 0.1
        assert found.correlation - found.second_best < 0.05


def test_a_machine_like_pulse_is_ambiguous_and_says_so():
    beats = 0.5 * np.arange(80)
    found = estimate_offset(attacks(beats + 0.37, 50), SAMPLE_RATE_HZ, beats)
    assert found.offset_seconds % 0.5 == pytest.approx(0.37, abs=0.01)
    assert found.second_best > 0.95 * found.correlation


def test_the_largest_shift_is_a_limit(beats):
    samples = attacks(beats + 7.0, 45)
    assert abs(estimate_offset(samples, SAMPLE_RATE_HZ, beats, max_offset_seconds=3.0).offset_seconds) <= 3.0
    found = estimate_offset(samples, SAMPLE_RATE_HZ, beats, max_offset_seconds=7.5)
    assert found.offset_seconds == pytest.approx(7.0, abs=0.01)


def test_the_envelope_is_highest_where_a_sound_begins():
    envelope = onset_envelope(attacks([1.0, 1.75], 3.0, hiss=0.0), SAMPLE_RATE_HZ)
    assert envelope.shape == (3 * ENVELOPE_RATE_HZ,) and envelope.min() == 0
    assert int(envelope[: int(1.4 * ENVELOPE_RATE_HZ)].argmax()) == pytest.approx(200, abs=1)
    assert int(envelope[int(1.4 * ENVELOPE_RATE_HZ) :].argmax()) == pytest.approx(70, abs=1)
    assert onset_envelope(torch.zeros(0), SAMPLE_RATE_HZ).shape == (0,)


def test_the_envelope_does_not_depend_on_where_it_is_cut_into_blocks():
    samples = noise(25.0)  # three blocks
    whole = onset_envelope(samples, SAMPLE_RATE_HZ)
    part = onset_envelope(samples[10 * SAMPLE_RATE_HZ :], SAMPLE_RATE_HZ)
    torch.testing.assert_close(whole[2010:], part[10:])


@pytest.mark.parametrize(
    ("samples", "times", "limit", "message"),
    [
        (torch.zeros(16000), [0.5, 1.0], 30.0, "nothing begins in this audio"),
        (torch.zeros(0), [0.5, 1.0], 30.0, "nothing begins in this audio"),
        (torch.full((16000,), torch.nan), [0.5, 1.0], 30.0, r"finite floats \(S,\)"),
        (torch.zeros(2, 16000), [0.5, 1.0], 30.0, r"finite floats \(S,\)"),
        (torch.zeros(16000, dtype=torch.int16), [0.5, 1.0], 30.0, r"finite floats \(S,\)"),
        (torch.ones(16000), [0.5], 30.0, "at least two event times"),
        (torch.ones(16000), [0.5, np.nan], 30.0, "at least two event times"),
        (torch.ones(16000), [-0.5, 1.0], 30.0, "at least two event times"),
        (torch.ones(16000), [0.5, 1e9], 30.0, "at least two event times"),
        (torch.ones(16000), [0.5, 1.0], 0.0, "the largest offset is above 0 and at most 600"),
        (torch.ones(16000), [0.5, 1.0], math.inf, "the largest offset"),
        (torch.ones(16000), [0.5, 1.0], math.nan, "the largest offset"),
    ],
)
def test_what_cannot_be_aligned_is_refused(samples, times, limit, message):
    with pytest.raises(ValueError, match=message):
        estimate_offset(samples, SAMPLE_RATE_HZ, np.array(times), limit)


def test_a_rate_below_the_envelopes_is_refused():
    with pytest.raises(ValueError, match="at least 2000 Hz is needed, got 100 Hz"):
        onset_envelope(torch.zeros(100), 100)
