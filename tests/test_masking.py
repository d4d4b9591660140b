"""Spans against the fractions that the published recipes mask (MERT spec 3.3 and 5.1), and their edges."""

from __future__ import annotations

import pytest
import torch

from audiation.objectives.masking import span_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("num_frames", "probability", "length", "fraction"),
    [
        (374, 0.8, 5, 0.549),
        (249, 0.8, 5, 0.540),
        (249, 0.8, 10, 0.506),
        (1499, 0.65, 10, 0.465),
        (249, 0.65, 10, 0.436),
    ],
)
def test_masked_fractions_are_the_published_ones(
    num_frames: int, probability: float, length: int, fraction: float
) -> None:
    masks = torch.cat([span_mask(8, num_frames, probability, length, generator(s)) for s in range(60)])
    assert float(masks.float().mean()) == pytest.approx(fraction, abs=0.012)


def test_every_clip_of_a_batch_has_as_many() -> None:
    counts = span_mask(16, 300, 0.65, 10, generator()).sum(1)
    assert len(set(counts.tolist())) == 1


def test_spans_are_that_long() -> None:
    """A single clip gives nothing back, so that its runs are whole spans."""
    mask = span_mask(1, 500, 0.2, 7, generator(), min_spans=1)[0]
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff()
    runs = (edges == -1).nonzero() - (edges == 1).nonzero()
    assert len(runs) > 3 and int(runs.min()) >= 7


@pytest.mark.parametrize("num_frames", [0, 3, 5])
def test_a_clip_without_room_for_a_span_is_not_masked(num_frames: int) -> None:
    assert not bool(span_mask(2, num_frames, 0.8, 5, generator()).any())


def test_the_last_place_is_reached_and_no_further() -> None:
    """Starts lie in [0, T - length), so that the very last frame is never masked."""
    masks = torch.cat([span_mask(4, 12, 0.9, 3, generator(s)) for s in range(50)])
    assert bool(masks[:, 10].any()) and not bool(masks[:, 11].any())


def test_bad_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="masking needs"):
        span_mask(1, 10, 1.5, 5, generator())
    with pytest.raises(ValueError, match="masking needs"):
        span_mask(1, 10, 0.5, 0, generator())
