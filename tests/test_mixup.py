"""In-batch noise mixup against the published routine (golden mert_tiny_mixup), and how it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from audiation.objectives.mixup import MAX_SEGMENTS, MixupDraws, draw_mixup, mix

GOLDEN = Path(__file__).parent / "golden"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published_draws() -> MixupDraws:
    draws = json.loads((GOLDEN / "mert_tiny_mixup.json").read_text())["draws"]

    def padded(field: str) -> Tensor:
        return torch.tensor([draw[field] + [0] * (MAX_SEGMENTS - draw["n"]) for draw in draws])

    num_segments = torch.tensor([draw["n"] for draw in draws])
    return MixupDraws(num_segments, padded("length"), padded("pool_start"), padded("position"))


def test_mixes_to_the_published_bits() -> None:
    tensors = load_file(GOLDEN / "mert_tiny_mixup.safetensors")
    waveform = tensors["in.waveform"].clone()
    assert torch.equal(mix(waveform, published_draws()), tensors["out.mixed"])
    assert torch.equal(waveform, tensors["in.waveform"])  # nothing is mixed in place


@pytest.mark.parametrize("probability", [0.25, 0.5, 1.0])
def test_probability_means_probability(probability: float) -> None:
    """The published code mixes with 1 - p."""
    draws = draw_mixup(20_000, 9_000, probability, 1_000, 2_000, generator())
    assert float((draws.num_segments > 0).float().mean()) == pytest.approx(probability, abs=0.01)


def test_draws_reach_both_ends_evenly() -> None:
    """One to three segments, every length from least to most, and every place where they fit."""
    draws = draw_mixup(6_000, 12, 1.0, 3, 5, generator())
    counts = torch.bincount(draws.num_segments, minlength=5) / 6_000
    torch.testing.assert_close(counts, torch.tensor([0, 1, 1, 1, 0]) / 3, atol=0.02, rtol=0.0)
    lengths = torch.bincount(draws.length.flatten(), minlength=7) / 18_000
    torch.testing.assert_close(lengths, torch.tensor([0, 0, 0, 1, 1, 1, 0]) / 3, atol=0.02, rtol=0.0)
    for length in (3, 4, 5):
        places = torch.bincount(draws.position[draws.length == length])
        assert len(places) == 12 - length + 1
        assert float(places.max() / places.min()) < 1.3
    small = draw_mixup(3, 4, 1.0, 2, 3, generator())
    starts = torch.stack([draw_mixup(3, 4, 1.0, 2, 3, generator(i)).pool_start for i in range(300)])
    assert small.pool_start.shape == (3, MAX_SEGMENTS)
    assert sorted(starts.unique().tolist()) == [0, 1, 2, 3, 4, 5]  # a pool of 8, the longest of 3


def test_a_clip_hears_the_others_only_and_clean() -> None:
    """Clips are powers of ten: the digits say what was added to what."""
    waveform = torch.tensor([1.0, 10.0, 100.0])[:, None].expand(3, 8).clone()
    for seed in range(50):
        added = mix(waveform, draw_mixup(3, 8, 1.0, 1, 8, generator(seed))) - waveform
        for clip in range(3):
            digits = [int(value) // 10**clip % 10 for value in added[clip].tolist()]
            assert digits == [0] * 8
        assert float(added.max()) > 0.0


def test_the_same_generator_gives_the_same_draws() -> None:
    first, second = (draw_mixup(4, 9_000, 0.5, 1_000, 2_000, generator(7)) for _ in range(2))
    for name in ("num_segments", "length", "pool_start", "position"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_a_batch_of_one_has_no_pool() -> None:
    draws = draw_mixup(1, 9_000, 1.0, 1_000, 2_000, generator())
    waveform = torch.randn(1, 9_000, generator=generator())
    assert draws.num_segments.tolist() == [0]
    assert torch.equal(mix(waveform, draws), waveform)


def test_clips_shorter_than_a_segment_get_one_of_their_length() -> None:
    draws = draw_mixup(4, 500, 1.0, 1_000, 2_000, generator())
    assert draws.length.unique().tolist() == [500]
    assert draws.position.unique().tolist() == [0]
    assert int(draws.pool_start.max()) <= 3 * 500 - 500
    assert mix(torch.ones(4, 500), draws)[:, 0].tolist() == [1.0 + n for n in draws.num_segments.tolist()]


def test_probability_zero_mixes_nothing() -> None:
    waveform = torch.randn(4, 900, generator=generator())
    assert torch.equal(mix(waveform, draw_mixup(4, 900, 0.0, 100, 200, generator())), waveform)


@pytest.mark.parametrize(
    ("probability", "shortest", "longest"), [(1.5, 1, 2), (-0.1, 1, 2), (0.5, 0, 2), (0.5, 3, 2)]
)
def test_bad_choices_are_refused(probability: float, shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match=f"got {probability}, {shortest} and {longest}"):
        draw_mixup(2, 10, probability, shortest, longest, generator())
