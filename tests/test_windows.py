"""Cutting tracks into windows and combining what is said of them: the published rules, streamed and planned alike."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiation.windows import (
    AGGREGATIONS,
    WINDOW_POLICIES,
    Window,
    WindowPolicy,
    aggregate,
    stream_windows,
    window_policy,
)

# Fixtures, section 17: 25 s at 1 kHz, windows of 10 s.
EXPECTED = {
    "jukemir": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "jukemir-vote": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "jukemir-max": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "jukemir-probability": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "petl": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "marble-v1": [(0, 10_000, 0), (10_000, 10_000, 0), (15_000, 10_000, 0)],
    "marble-v2": [(0, 10_000, 0), (10_000, 10_000, 0)],
    "marble-v2-frames": [(0, 10_000, 0), (10_000, 10_000, 0), (20_000, 5_000, 5_000)],
    "whole-track": [(0, 10_000, 0), (10_000, 10_000, 0), (15_000, 10_000, 0)],
}


@pytest.mark.parametrize("name", WINDOW_POLICIES)
def test_every_policy_cuts_25_seconds_as_its_source_does(name):
    assert [dataclasses.astuple(w) for w in window_policy(name).windows(25_000, 10_000)] == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jukemir", []),  # full windows only
        ("petl", [(0, 7_000, 0)]),
        ("marble-v1", [(0, 7_000, 0)]),
        ("marble-v2", []),  # less than 0.8 of a window
        ("marble-v2-frames", [(0, 7_000, 3_000)]),
    ],
)
def test_a_track_shorter_than_a_window(name, expected):
    assert [dataclasses.astuple(w) for w in window_policy(name).windows(7_000, 10_000)] == expected


def test_overlapping_windows_end_with_the_track():
    policy = WindowPolicy("x", "backfill", "logits_mean", overlap=0.5)
    starts = [w.start_sample for w in policy.windows(27, 10)]
    assert starts == [0, 5, 10, 15, 17] and policy.windows(25, 10)[-1] == Window(15, 10)


@given(
    total=st.integers(1, 90),
    size=st.integers(1, 30),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    remainder=st.sampled_from(["drop", "keep", "pad", "backfill"]),
    block=st.integers(1, 40),
)
def test_streaming_gives_the_planned_windows_with_their_samples(total, size, overlap, remainder, block):
    policy = WindowPolicy("x", remainder, "logits_mean", overlap=overlap)
    track = torch.arange(1.0, total + 1)
    given_windows = list(stream_windows(track.split(block), size, policy))
    assert [w for w, _ in given_windows] == policy.windows(total, size)
    for window, samples in given_windows:
        expected = torch.cat([track[window.start_sample : window.end_sample], torch.zeros(window.num_zeros)])
        assert torch.equal(samples, expected)


def test_an_unknown_policy_and_shares_that_are_none():
    with pytest.raises(ValueError, match="policies: jukemir, jukemir-vote"):
        window_policy("marble")
    with pytest.raises(ValueError, match="overlap and min_ratio are shares"):
        WindowPolicy("x", "drop", "logits_mean", overlap=1.0)
    with pytest.raises(ValueError, match="overlap and min_ratio are shares"):
        WindowPolicy("x", "drop", "logits_mean", min_ratio=-0.1)


def test_the_four_ensembles_of_the_fixture():
    """Fixtures, section 18: vote 0; largest 1; mean output 1 (4/3 against 10/3); mean probability 0."""
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 10, 0]])
    chosen = {rule: int(aggregate(logits, rule).argmax()) for rule in AGGREGATIONS}
    assert chosen == {"majority": 0, "max": 1, "logits_mean": 1, "probability_mean": 0}
    np.testing.assert_allclose(aggregate(logits, "logits_mean")[:2], [4 / 3, 10 / 3])
    np.testing.assert_allclose(aggregate(logits, "probability_mean").exp()[:2], [0.525, 0.404], atol=5e-4)


def test_mean_of_outputs_and_of_probabilities_differ():
    """Fixtures, section 17."""
    logits = torch.tensor([[1.0, 0], [0, 3], [0, 0]])
    np.testing.assert_allclose(aggregate(logits, "logits_mean"), [1 / 3, 1])
    probabilities = aggregate(logits, "probability_mean").exp()
    np.testing.assert_allclose(probabilities, logits.double().softmax(-1).mean(0))
    assert abs(float(probabilities[1]) - float(aggregate(logits, "logits_mean").softmax(-1)[1])) > 0.05


def test_a_tie_of_votes_goes_to_the_smallest_class_and_other_rules_are_refused():
    assert int(aggregate(torch.tensor([[0.0, 0, 1], [1, 0, 0]]), "majority").argmax()) == 0
    with pytest.raises(ValueError, match="one of majority, max, logits_mean, probability_mean"):
        aggregate(torch.zeros(1, 2), "median")
