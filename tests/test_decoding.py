"""Decoders: published beats to the frame, compiled and plain search to the bit, and what each rule says by hand."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.interpolate
from hypothesis import given, settings
from hypothesis import strategies as st

from audiation import decoding, decoding_dbn
from audiation.annotations import Key, Tempo
from audiation.decoding import (
    chords_from_frames,
    decode_beats_dbn,
    decode_downbeats_dbn,
    frame_edges_seconds,
    key_from_frames,
    merge_runs,
    peak_pick_beats,
    sections_from_frames,
    tempo_from_bins,
)
from audiation.decoding_dbn import beat_intervals, viterbi_compiled, viterbi_numpy

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
PRINTED = 1e-9  # golden times have ten decimals


def pulses(num_frames, period, height=0.9, floor=0.05, first=0):
    values = np.full(num_frames, floor)
    values[first::period] = height
    return values


def bars(num_frames, period, beats_per_bar, height=0.9, floor=0.02):
    values = np.full((num_frames, 2), floor)
    for number, frame in enumerate(range(period // 2, num_frames, period)):
        values[frame, 1 if number % beats_per_bar == 0 else 0] = height
    return values


# Bar-pointer model: published numbers ------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["dbn_state_space"], ids=lambda c: f"{c['fps']}fps")
def test_state_spaces_have_the_published_sizes(case):
    beats = beat_intervals(case["fps"], 55, 215)
    assert (int(beats.sum()), len(beats)) == (case["beat_states"], case["beat_intervals"])
    in_bars = beat_intervals(case["fps"], 55, 215, 60)
    assert {n: int(n) * int(in_bars.sum()) for n in case["bar_states"]} == case["bar_states"]


@pytest.mark.parametrize(
    ("rate", "shortest", "longest", "tempi"), [(20, 6, 22, 17), (50, 14, 55, 42), (75, 21, 82, 62)]
)
def test_beats_last_every_whole_number_of_frames_in_the_range(rate, shortest, longest, tempi):
    np.testing.assert_array_equal(beat_intervals(rate, 55, 215), np.arange(shortest, longest + 1))
    assert longest - shortest + 1 == tempi


def test_fewer_tempi_are_spaced_in_log_tempo():
    intervals = beat_intervals(100, 55, 215, 60)
    assert len(intervals) == 60 and (intervals[0], intervals[-1]) == (28, 109)
    assert np.diff(intervals).min() == 1 and np.diff(intervals).max() == 3


@pytest.mark.parametrize("case", GOLDEN["dbn_beats"], ids=lambda c: c["name"])
def test_beats_equal_the_published_decoder(case):
    beats = decode_beats_dbn(np.array(case["activations"]), frame_rate_hz=case["fps"], **case["options"])
    assert len(beats.times_seconds) == len(case["beats"])
    np.testing.assert_allclose(beats.times_seconds, case["beats"], rtol=0, atol=PRINTED)
    assert not beats.positions.any()


@pytest.mark.parametrize("case", GOLDEN["dbn_downbeats"], ids=lambda c: c["name"])
def test_downbeats_equal_the_published_decoder(case):
    beats = decode_downbeats_dbn(
        np.array(case["activations"]), frame_rate_hz=case["fps"], beats_per_bar=case["beats_per_bar"]
    )
    published = np.array(case["time_and_position"])
    assert len(beats.times_seconds) == len(published)
    np.testing.assert_allclose(beats.times_seconds, published[:, 0], rtol=0, atol=PRINTED)
    np.testing.assert_array_equal(beats.positions, published[:, 1])


# Bar-pointer model: the search ---------------------------------------------------------------------------


@st.composite
def searches(draw):
    """Random, coarse (full of ties) or periodic activations, and a model for them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rate = draw(st.sampled_from((10.0, 20.0, 25.0, 43.07)))
    num_frames = draw(st.integers(1, 150))
    kind = draw(st.sampled_from(("random", "coarse", "periodic", "hard")))
    values = 0.49 * rng.random((num_frames, 2))
    if kind == "coarse":
        values = np.round(values, 1)
    if kind in ("periodic", "hard"):
        values = bars(num_frames, draw(st.integers(2, 30)), draw(st.integers(2, 4)))
    if kind == "hard":
        values = np.round(values)
    settings_ = {
        "frame_rate_hz": rate,
        "min_bpm": draw(st.sampled_from((30, 55.0))),
        "max_bpm": draw(st.sampled_from((72.0, 215))),
        "num_tempi": draw(st.sampled_from((None, 1, 5, 60))),
        "transition_lambda": draw(st.sampled_from((0, 1.5, 100))),
        "observation_lambda": draw(st.sampled_from((1.5, 4, 16))),
        "threshold": draw(st.sampled_from((0, 0.05, 0.4))),
        "correct": draw(st.booleans()),
    }
    return values, settings_, draw(st.sampled_from(((3, 4), (1,), (2,), (4, 3))))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(searches())
def test_compiled_and_plain_search_agree_to_the_last_bit(case):
    values, options, beats_per_bar = case
    answers = []
    found = []

    def compared(*arguments):
        plain, compiled = viterbi_numpy(*arguments), viterbi_compiled(*arguments)
        np.testing.assert_array_equal(plain.previous, compiled.previous)
        assert plain[1:] == compiled[1:]
        found.append(plain)
        return plain

    answers.append(decode_beats_dbn(values.sum(axis=1), **options))
    answers.append(decode_downbeats_dbn(values, beats_per_bar=beats_per_bar, **options))
    original = decoding_dbn._best_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding_dbn, "_best_path", lambda *a: original(*a, search=compared))
        answers.append(decode_beats_dbn(values.sum(axis=1), **options))
        answers.append(decode_downbeats_dbn(values, beats_per_bar=beats_per_bar, **options))
    assert len(found) in (0, 1, len(beats_per_bar), 1 + len(beats_per_bar))
    assert len(found) > 0 or values.sum(axis=1).max() < max(options["threshold"], 1e-300)
    for a, b in ((answers[0], answers[2]), (answers[1], answers[3])):
        np.testing.assert_array_equal(a.times_seconds, b.times_seconds)
        np.testing.assert_array_equal(a.positions, b.positions)


@pytest.mark.parametrize("search", [viterbi_numpy, viterbi_compiled])
@pytest.mark.parametrize("beats_per_bar", [1, 2])
def test_the_path_is_the_best_of_all_paths(search, beats_per_bar):
    """Against every path there is, in a model of two tempi and seven frames."""
    rng = np.random.default_rng(0)
    lengths = decoding_dbn.BeatLengths(np.array([2, 3]), np.array([1, 1]))
    transitions = np.log([[0.8, 0.2], [0.3, 0.7]])
    columns = np.array([decoding_dbn.DOWNBEAT, decoding_dbn.BEAT][-beats_per_bar:])
    states = [(p, k, j) for p in range(beats_per_bar) for k in (0, 1) for j in range(lengths.intervals[k])]

    def step(a, b):
        """Log probability of state b after state a."""
        if a[2] + 1 < lengths.intervals[a[1]]:
            return 0.0 if b == (a[0], a[1], a[2] + 1) else -np.inf
        return transitions[a[1], b[1]] if b[0] == (a[0] + 1) % beats_per_bar and b[2] == 0 else -np.inf

    for _ in range(10):
        densities = np.log(rng.random((7, 3)))

        def heard(state, t, densities=densities):
            return densities[t, columns[state[0]] if state[2] < 1 else decoding_dbn.NON_BEAT]

        # The first frame follows a state that is drawn from all of them.
        paths = {(s,): max(step(r, s) for r in states) - np.log(len(states)) + heard(s, 0) for s in states}
        for t in range(1, 7):
            paths = {
                (*path, s): value + step(path[-1], s) + heard(s, t)
                for path, value in paths.items()
                for s in states
                if step(path[-1], s) > -np.inf
            }
        best = max(paths, key=paths.__getitem__)
        found = search(lengths, densities, columns, transitions)
        assert found.log_likelihood == pytest.approx(paths[best], abs=1e-12)
        assert (found.beat, found.interval, found.phase) == best[-1]
        begins = [t for t in range(7) if best[t][2] == 0]
        for earlier, later in pairwise(begins):
            assert found.previous[later, best[later][0], best[later][1]] == best[earlier][1]


def test_changes_of_tempo_are_normalised_and_unlikely_ones_impossible():
    logs = decoding_dbn._log_transitions((14, 20, 55), 100.0)
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1.0, atol=1e-15)
    assert logs[0, 2] == -np.inf and logs[2, 0] == -np.inf  # below 2.2e-16
    loose = np.exp(decoding_dbn._log_transitions((14, 20, 55), 1.0))
    assert loose[0, 1] / loose[0, 0] == pytest.approx(np.exp(-(20 / 14 - 1)), rel=1e-12)


# Bar-pointer model: what it answers -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [20.0, 50.0, 100.0])
def test_missing_beats_are_filled_and_the_positions_count(rate):
    period = round(rate / 2)  # 120 BPM
    values = bars(int(rate * 20), period, 4)
    values[values.shape[0] // 2 // period * period + period // 2] = 0.02  # one is not played
    beats = decode_downbeats_dbn(values, frame_rate_hz=rate)
    frames = np.arange(period // 2, len(values), period)
    assert np.abs(beats.times_seconds - frames / rate).max() <= 1 / rate + 1e-9
    np.testing.assert_array_equal(beats.positions, np.arange(len(frames)) % 4 + 1)


@pytest.mark.parametrize("beats_per_bar", [2, 3, 4, 5, 7])
def test_the_length_of_the_bar_is_found(beats_per_bar):
    values = bars(1000, 24, beats_per_bar)
    beats = decode_downbeats_dbn(values, frame_rate_hz=50, beats_per_bar=(2, 3, 4, 5, 7))
    np.testing.assert_array_equal(beats.positions, np.arange(len(beats.positions)) % beats_per_bar + 1)


def test_a_bar_of_one_beat_has_only_downbeats():
    beats = decode_downbeats_dbn(bars(500, 25, 1), frame_rate_hz=50, beats_per_bar=(1,))
    assert len(beats.positions) == 20 and (beats.positions == 1).all()


def test_hard_activations_that_no_path_fits_are_decoded():
    """Zeros and ones: every path is heard somewhere where the activation is 0."""
    beats = decode_beats_dbn(pulses(500, 25, 1.0, 0.0, first=10), frame_rate_hz=50)
    np.testing.assert_allclose(beats.times_seconds, np.arange(10, 500, 25) / 50, atol=1e-12)
    one = np.zeros((200, 2))
    one[100, 1] = 1.0
    beats = decode_downbeats_dbn(one, frame_rate_hz=50, threshold=0)
    assert 2.0 in beats.times_seconds[beats.positions == 1]


def test_beats_are_at_the_highest_activation_or_where_they_begin():
    values = pulses(500, 25, 0.9, 0.01, first=11)
    values[12::25] = 0.8  # a beat of 25 frames is heard in two of them
    corrected = decode_beats_dbn(values, frame_rate_hz=50)
    np.testing.assert_allclose(corrected.times_seconds, np.arange(11, 500, 25) / 50, atol=1e-12)
    values[11::25], values[12::25] = 0.8, 0.9
    corrected = decode_beats_dbn(values, frame_rate_hz=50)
    begun = decode_beats_dbn(values, frame_rate_hz=50, correct=False)
    np.testing.assert_allclose(corrected.times_seconds, np.arange(12, 500, 25) / 50, atol=1e-12)
    np.testing.assert_allclose(begun.times_seconds, np.arange(11, 500, 25) / 50, atol=1e-12)
    in_bars = bars(500, 25, 4)
    both = [decode_downbeats_dbn(in_bars, frame_rate_hz=50, threshold=0, correct=c) for c in (True, False)]
    assert np.abs(both[0].times_seconds - both[1].times_seconds).max() <= 1 / 50 + 1e-9
    np.testing.assert_array_equal(both[0].positions, both[1].positions)
    # With the threshold the track begins at its first beat, in the middle of which the path does.
    span = decode_downbeats_dbn(in_bars, frame_rate_hz=50, correct=False)
    assert span.positions[:3].tolist() == [2, 3, 4] and len(span.positions) == len(both[0].positions) - 1


def test_only_the_span_above_the_threshold_is_decoded():
    values = pulses(500, 25, 0.9, 0.05, first=10)
    values[:200], values[400:] = 0.05, 0.05
    beats = decode_beats_dbn(values, frame_rate_hz=50, threshold=0.5)
    np.testing.assert_allclose(beats.times_seconds, np.arange(210, 400, 25) / 50, atol=1e-12)
    everything = decode_beats_dbn(values, frame_rate_hz=50)
    assert everything.times_seconds[0] < 1.5 and everything.times_seconds[-1] > 8.5
    assert len(decode_beats_dbn(values, frame_rate_hz=50, threshold=0.95).times_seconds) == 0


@pytest.mark.parametrize("num_frames", [1, 2, 500])
def test_nothing_but_zeros_has_no_beats(num_frames):
    assert decode_beats_dbn(np.zeros(num_frames), frame_rate_hz=50).times_seconds.shape == (0,)
    assert decode_downbeats_dbn(np.zeros((num_frames, 2)), frame_rate_hz=50).positions.shape == (0,)
    assert decode_downbeats_dbn(np.zeros((num_frames, 2)), frame_rate_hz=50, threshold=0).positions.shape == (
        0,
    )


def test_a_single_frame_is_a_beat_if_it_sounds_like_one():
    assert decode_beats_dbn(np.array([0.9]), frame_rate_hz=50).times_seconds.tolist() == [0.0]
    assert decode_beats_dbn(np.array([0.01]), frame_rate_hz=50).times_seconds.tolist() == []
    beats = decode_downbeats_dbn(np.array([[0.05, 0.9]]), frame_rate_hz=50)
    assert beats.times_seconds.tolist() == [0.0] and beats.positions.tolist() == [1]


def test_float32_that_adds_up_to_a_little_more_than_one_is_no_error():
    values = bars(200, 25, 4)
    exact = decode_downbeats_dbn(values, frame_rate_hz=50)
    values[12] = (0.1, np.float32(0.9) + 1e-7)
    assert decode_downbeats_dbn(values, frame_rate_hz=50).positions.tolist() == exact.positions.tolist()
    assert len(decode_beats_dbn(np.full(20, 1 + 1e-7), frame_rate_hz=50).times_seconds) > 0


ONE, TWO = np.full(20, 0.5), np.full((20, 2), 0.4)
SHARED = [
    ({"frame_rate_hz": 0}, "frame_rate_hz is a positive number"),
    ({"frame_rate_hz": float("nan")}, "frame_rate_hz is a positive number"),
    ({"min_bpm": 120, "max_bpm": 120}, "0 < min_bpm < max_bpm, got 120 and 120"),
    ({"min_bpm": 0}, "0 < min_bpm < max_bpm"),
    ({"frame_rate_hz": 1.0}, "at 1.0 Hz a beat of 215.0 BPM lasts no whole frame; choose max_bpm up to 60"),
    ({"num_tempi": 0}, "num_tempi is 1 or more"),
    ({"transition_lambda": -1}, "transition_lambda is >= 0"),
    ({"observation_lambda": 1}, "observation_lambda > 1"),
    ({"threshold": 1.5}, "a threshold is a probability, got 1.5"),
    ({"threshold": float("nan")}, "a threshold is a probability, got nan"),
]


@pytest.mark.parametrize(("options", "message"), SHARED)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        decode_beats_dbn(ONE, **{"frame_rate_hz": 50, **options})
    with pytest.raises(ValueError, match=message):
        decode_downbeats_dbn(TWO, **{"frame_rate_hz": 50, **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.1, 1.1])
def test_activations_that_are_no_probabilities_are_refused(bad):
    one, two = ONE.copy(), TWO.copy()
    one[3], two[3, 1] = bad, bad
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        decode_beats_dbn(one, frame_rate_hz=50)
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        decode_downbeats_dbn(two, frame_rate_hz=50)


@pytest.mark.parametrize("shape", [(), (0,), (20, 2), (0, 2)])
def test_other_shapes_of_beats_are_refused(shape):
    with pytest.raises(ValueError, match=r"activations are \(T,\) with T >= 1"):
        decode_beats_dbn(np.zeros(shape), frame_rate_hz=50)


@pytest.mark.parametrize("shape", [(20,), (0, 2), (20, 3), (1, 20, 2)])
def test_other_shapes_of_downbeats_are_refused(shape):
    with pytest.raises(ValueError, match=r"activations are \(T, 2\) with T >= 1"):
        decode_downbeats_dbn(np.zeros(shape), frame_rate_hz=50)


@pytest.mark.parametrize("beats_per_bar", [(), (0,), (3, -1), (3.5,)])
def test_bars_that_are_none_are_refused(beats_per_bar):
    with pytest.raises(ValueError, match="whole numbers >= 1"):
        decode_downbeats_dbn(TWO, frame_rate_hz=50, beats_per_bar=beats_per_bar)


def test_a_beat_that_is_also_a_downbeat_is_refused():
    with pytest.raises(ValueError, match=r"exclude each other, got 1\.2 together"):
        decode_downbeats_dbn(np.full((20, 2), 0.6), frame_rate_hz=50)


@pytest.mark.parametrize("rate", [44_100.0, 1e12])
def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(rate):
    with pytest.raises(ValueError, match="need more than 2 GiB; decode pieces of the track"):
        decode_beats_dbn(ONE, frame_rate_hz=rate)


def test_a_track_that_does_not_fit_into_memory_is_refused():
    """Half an hour at 100 Hz, where beats of up to a minute have 6,000 tempi."""
    with pytest.raises(ValueError, match="200000 frames at 100 Hz with bars of 1 need more than 2 GiB"):
        decode_beats_dbn(np.full(200_000, 0.5), frame_rate_hz=100, min_bpm=1)


def test_numba_and_scipy_are_not_imported_before_they_are_needed():
    code = "import sys, audiation.decoding; assert not {'numba', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Peaks -----------------------------------------------------------------------------------------------------


def test_peaks_are_above_zero_and_the_highest_within_three_frames_at_50_hz():
    logits = np.full(60, -4.0)
    logits[[10, 13, 20, 24, 40]] = [
        2.0,
        1.0,
        3.0,
        1.0,
        -0.1,
    ]  # 13 is too near to 10; 24 is far enough from 20
    beats = peak_pick_beats(logits, frame_rate_hz=50)
    assert beats.times_seconds.tolist() == [0.2, 0.4, 0.48] and beats.positions.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rate", "reach"), [(50, 3), (100, 6), (75, 4), (5, 1)])
def test_the_reach_of_a_peak_is_the_same_in_seconds(rate, reach):
    near, far = np.full(60, -4.0), np.full(60, -4.0)
    near[[20, 20 + reach]] = [2.0, 1.0]
    far[[20, 21 + reach]] = [2.0, 1.0]
    assert len(peak_pick_beats(near, frame_rate_hz=rate).times_seconds) == 1
    assert len(peak_pick_beats(far, frame_rate_hz=rate).times_seconds) == 2


def test_neighbouring_peaks_are_one_beat_in_their_middle():
    logits = np.full(60, -4.0)
    logits[[0, 1, 30, 31, 32, 59]] = 5.0
    assert peak_pick_beats(logits, frame_rate_hz=50).times_seconds.tolist() == [0.01, 0.62, 1.18]


def test_downbeats_go_to_the_nearest_beat_and_the_others_count_on():
    beats, downbeats = np.full(200, -4.0), np.full(200, -4.0)
    beats[[10, 40, 70, 100, 130, 160]] = 3.0
    downbeats[[43, 146]] = 2.0
    found = peak_pick_beats(beats, downbeats, frame_rate_hz=50)
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 1]
    downbeats[145], downbeats[146] = 2.0, -4.0  # half-way goes to the earlier
    assert peak_pick_beats(beats, downbeats, frame_rate_hz=50).positions.tolist() == [0, 1, 2, 3, 1, 2]
    nowhere = peak_pick_beats(np.full(200, -4.0), downbeats, frame_rate_hz=50)
    assert nowhere.times_seconds.shape == (0,)
    assert peak_pick_beats(beats, np.full(200, -4.0), frame_rate_hz=50).positions.tolist() == [0] * 6


def test_certain_logits_are_allowed_and_others_are_refused():
    logits = np.full(20, -np.inf)
    logits[5] = np.inf
    assert peak_pick_beats(logits, frame_rate_hz=50).times_seconds.tolist() == [0.1]
    with pytest.raises(ValueError, match=r"beat_logits are \(T,\) with T >= 1 and without NaN"):
        peak_pick_beats(np.array([np.nan]), frame_rate_hz=50)
    with pytest.raises(ValueError, match=r"beat_logits are \(T,\)"):
        peak_pick_beats(np.zeros((3, 2)), frame_rate_hz=50)
    with pytest.raises(ValueError, match=r"downbeat_logits are \(T,\)"):
        peak_pick_beats(np.zeros(3), np.zeros(0), frame_rate_hz=50)
    with pytest.raises(ValueError, match="have 3 frames, downbeat_logits 4; give both on one grid"):
        peak_pick_beats(np.zeros(3), np.zeros(4), frame_rate_hz=50)
    with pytest.raises(ValueError, match="frame_rate_hz is a positive number"):
        peak_pick_beats(np.zeros(3), frame_rate_hz=-50)


# Tempo -----------------------------------------------------------------------------------------------------


def tempo_target(bpm):
    bins = np.zeros(300)
    for place, value in zip(range(bpm - 2, bpm + 3), (0.5, 0.5, 1.0, 0.5, 0.5), strict=True):
        if place < 300:
            bins[place] = value
    return bins


@pytest.mark.parametrize("bpm", [20, 60, 119, 120, 250, 290])
def test_symmetric_bins_decode_to_their_middle(bpm):
    assert tempo_from_bins(tempo_target(bpm)) == Tempo(float(bpm))


def test_tempo_equals_the_published_steps_by_another_road():
    """benchmark, 4.6, with scipy's general interpolation and searched at every step."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        bins = rng.dirichlet(np.full(300, 0.3))
        smooth = np.convolve(bins[10:], np.hamming(11), "same")
        steps = np.arange(10, 299, 0.001)
        curve = scipy.interpolate.interp1d(np.arange(10, 300), smooth, "quadratic")(steps)
        inner = curve[1:-1]
        peaks = np.flatnonzero((inner > curve[:-2]) & (inner > curve[2:])) + 1
        best = max(peaks, key=lambda i: curve[i])
        assert tempo_from_bins(bins).bpm == pytest.approx(steps[best], abs=1e-9)


def test_tempo_lies_between_bins_and_slow_bins_do_not_count():
    bins = tempo_target(100)
    bins[101] += 0.3
    assert 100 < tempo_from_bins(bins).bpm < 101
    assert tempo_from_bins(bins).bpm == round(tempo_from_bins(bins).bpm, 3)
    bins[:10] = 50.0
    assert 100 < tempo_from_bins(bins).bpm < 101
    assert tempo_from_bins(bins, min_bpm=1).bpm < 10


def test_the_higher_of_two_tempi_wins_and_its_scale_does_not_matter():
    bins = tempo_target(70) + 1.2 * tempo_target(140)
    assert tempo_from_bins(bins) == tempo_from_bins(bins * 1e-6) == Tempo(140.0)


def test_a_tempo_without_a_local_maximum_is_still_a_tempo():
    flat = tempo_from_bins(np.ones(300))
    assert 10 <= flat.bpm < 299 and flat == tempo_from_bins(np.ones(300))


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (np.zeros(300), "no tempo from 10 BPM on"),
        (np.full(300, np.nan), "finite and >= 0"),
        (-np.ones(300), "finite and >= 0"),
        (np.ones(20), r"\(C,\) with C >= min_bpm \+ 11"),
        (np.ones((1, 300)), r"\(C,\) with C >= min_bpm \+ 11"),
    ],
)
def test_bins_that_are_no_tempo_are_refused(bins, message):
    with pytest.raises(ValueError, match=message):
        tempo_from_bins(bins)


# Runs and chords -------------------------------------------------------------------------------------------


def test_frames_reach_half_a_frame_to_either_side_and_the_first_to_the_beginning():
    np.testing.assert_allclose(frame_edges_seconds(3, 2.0), [0.0, 0.25, 0.75, 1.25])
    np.testing.assert_allclose(frame_edges_seconds(2, 2.0, 0.25), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(
        frame_edges_seconds(2, 75.0, 0.0125), [0.0, 0.0125 + 0.5 / 75, 0.0125 + 1.5 / 75]
    )
    np.testing.assert_allclose(frame_edges_seconds(2, 2.0, 10.0), [9.75, 10.25, 10.75])  # a window of a track
    with pytest.raises(ValueError, match="one frame or more, got num_frames 0"):
        frame_edges_seconds(0, 2.0)
    with pytest.raises(ValueError, match="frame_rate_hz is a positive number"):
        frame_edges_seconds(2, 0.0)
    with pytest.raises(ValueError, match="ends before the track begins"):
        frame_edges_seconds(2, 2.0, -0.25)
    with pytest.raises(ValueError, match="a first frame at nan s"):
        frame_edges_seconds(2, 2.0, float("nan"))


def test_runs_of_equal_labels_become_segments():
    merged = merge_runs(["a", "a", "b", "a"], np.array([0.0, 1.0, 2.5, 3.0, 7.0]))
    assert merged.labels == ("a", "b", "a")
    np.testing.assert_array_equal(merged.intervals_seconds, [[0, 2.5], [2.5, 3], [3, 7]])
    assert merge_runs([], np.array([0.0])).labels == ()


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_merged_runs_keep_every_frame_and_no_two_neighbours_are_equal(labels):
    merged = merge_runs(labels, np.arange(len(labels) + 1.0))
    again = [
        x
        for (a, b), x in zip(merged.intervals_seconds, merged.labels, strict=True)
        for _ in range(int(b - a))
    ]
    assert again == labels
    assert all(a != b for a, b in pairwise(merged.labels))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([0.0, 1.0], "2 labels have 3 edges"),
        ([0.0, 1.0, 1.0], "strictly increasing"),
        ([0.0, 1.0, np.inf], "finite"),
    ],
)
def test_edges_that_do_not_fit_are_refused(edges, message):
    with pytest.raises(ValueError, match=message):
        merge_runs(["a", "b"], np.array(edges))


def test_chords_have_their_names_and_times():
    chords = chords_from_frames(np.array([0, 0, 13, 24, 24, 23]), frame_rate_hz=2.0)
    assert chords.labels == ("C:maj", "Db:min", "N", "B:min")
    np.testing.assert_allclose(
        chords.intervals_seconds, [[0, 0.75], [0.75, 1.25], [1.25, 2.25], [2.25, 2.75]]
    )
    assert len(set(decoding.CHORD_CLASSES)) == 25


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (np.array([0, 25]), "a chord class is 0..24, got 25"),
        (np.array([-1]), "a chord class is 0..24, got -1"),
        (np.array([0.0]), r"integers \(T,\), got float64"),
        (np.zeros((2, 25), dtype=int), r"integers \(T,\)"),
        (np.zeros(0, dtype=int), "one frame or more"),
    ],
)
def test_classes_that_are_no_chords_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        chords_from_frames(classes, frame_rate_hz=2.0)


# Sections --------------------------------------------------------------------------------------------------


def sections(boundaries, functions=None, **options):
    boundaries = np.array(boundaries, dtype=float)
    if functions is None:
        functions = np.tile([0.6, 0.4], (len(boundaries), 1))
    return sections_from_frames(functions, boundaries, ("verse", "chorus"), frame_rate_hz=1.0, **options)


def starts(found):
    return found.intervals_seconds[:, 0].tolist()


def test_sections_begin_at_peaks_that_are_the_highest_in_their_window():
    curve = np.full(60, 0.01)
    curve[[10, 15, 30, 50]] = [
        0.5,
        0.9,
        0.3,
        0.05,
    ]  # 10 is within 6 s of a higher one, 50 below the threshold
    assert starts(sections(curve)) == [0.0, 15.0, 30.0]
    assert starts(sections(curve, window_seconds=4.0)) == [0.0, 10.0, 15.0, 30.0]
    assert starts(sections(curve, window_seconds=4.0, threshold=0.6)) == [0.0, 15.0]
    assert 50.0 in starts(sections(curve, threshold=0.04))


def test_the_first_of_equal_peaks_counts_and_the_first_frame_is_no_second_beginning():
    curve = np.full(60, 0.01)
    curve[[0, 20, 21, 22]] = 0.9
    found = sections(curve)
    assert starts(found) == [0.0, 20.0] and found.intervals_seconds[-1, 1] == 59.5
    assert starts(sections(np.full(30, 0.5))) == [0.0]


def test_sections_are_labelled_by_the_sum_of_their_frames():
    """One certain frame outweighs two that lean the other way."""
    functions = np.array([[0.45, 0.55], [0.45, 0.55], [1.0, 0.0], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    curve = [0.9, 0.0, 0.0, 0.9, 0.0, 0.0]
    found = sections(curve, functions, window_seconds=1.0, first_frame_seconds=0.5)
    assert found.labels == ("verse", "chorus")
    np.testing.assert_allclose(found.intervals_seconds, [[0.0, 3.5], [3.5, 6.0]])
    same = sections(curve, np.tile([0.6, 0.4], (6, 1)), window_seconds=1.0)
    assert same.labels == ("verse", "verse")  # a boundary between equal sections stays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functions": np.ones((60, 3))}, r"functions \(T, C\), boundaries \(T,\) and C names"),
        ({"functions": np.ones((59, 2))}, r"functions \(T, C\), boundaries \(T,\) and C names"),
        ({"functions": np.full((60, 2), np.nan)}, "function_probabilities must be finite"),
        ({"functions": np.full((60, 2), -1.0)}, "function_probabilities must be finite"),
        ({"boundaries": np.full(60, np.nan)}, "boundary_probabilities must lie in"),
        ({"boundaries": np.full(60, 1.5)}, "boundary_probabilities must lie in"),
        ({"window_seconds": -1.0}, "window_seconds is 0 or more"),
        ({"threshold": 2.0}, "threshold a probability"),
    ],
)
def test_sections_refuse_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        sections(**{"boundaries": np.zeros(60), **changes})


def test_sections_need_names_and_frames():
    with pytest.raises(ValueError, match="one name or more"):
        sections_from_frames(np.zeros((3, 0)), np.zeros(3), (), frame_rate_hz=1.0)
    with pytest.raises(ValueError, match="one frame or more"):
        sections_from_frames(np.zeros((0, 1)), np.zeros(0), ("a",), frame_rate_hz=1.0)


# Key -------------------------------------------------------------------------------------------------------


def test_the_key_of_a_track_is_that_of_the_mean_without_none():
    rows = np.zeros((3, 25))
    rows[:, 24] = 0.6
    rows[0, 9] = 0.4  # one certain frame against two that share
    rows[1:, 21] = 0.15
    rows[1:, 3] = 0.25
    assert key_from_frames(rows) == Key(3, "major")
    assert key_from_frames(rows[:, :24]) == Key(3, "major")
    rows[1:, 3] = 0.1
    assert key_from_frames(rows) == Key(9, "major")
    assert key_from_frames(np.eye(24)[[21]]) == Key(9, "minor")
    assert key_from_frames(np.ones((2, 24))) == Key(0, "major")


@pytest.mark.parametrize("shape", [(24,), (0, 24), (3, 23), (3, 26)])
def test_other_shapes_are_no_keys(shape):
    with pytest.raises(ValueError, match=r"\(T, 24\) or \(T, 25\) with T >= 1"):
        key_from_frames(np.zeros(shape))


def test_keys_need_probabilities():
    for bad in (np.nan, -1.0):
        with pytest.raises(ValueError, match="key probabilities must be finite"):
            key_from_frames(np.full((2, 24), bad))
