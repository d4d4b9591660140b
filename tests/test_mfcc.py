"""MFCC against numbers of the published implementation (golden mert_tiny_mfcc), pieces against the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from audiation.teachers import Recorded
from audiation.teachers.mfcc import Mfcc, MfccFeatures, differences

GOLDEN = Path(__file__).parent / "golden" / "mert_tiny_mfcc.safetensors"
RATE_HZ = 16_000
TOLERANCE = 2e-4  # of values up to 60; asked is 1e-3


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def whole(features: MfccFeatures, waveform: Tensor) -> Tensor:
    return features.frames(Recorded.of(waveform), 0, features.num_frames(len(waveform)))


@pytest.mark.parametrize(("num_coefficients", "name"), [(13, "out.mfcc39"), (20, "out.mfcc60")])
def test_features_are_the_published_ones(golden: dict[str, Tensor], num_coefficients: int, name: str) -> None:
    features = MfccFeatures(RATE_HZ, num_coefficients)
    assert features.num_features == golden[name].shape[1] and features.rate_hz == 100.0
    assert largest_difference(whole(features, golden["in.waveform"]), golden[name]) < TOLERANCE


def test_fewer_coefficients_are_the_first_ones(golden: dict[str, Tensor]) -> None:
    waveform = golden["in.waveform"]
    assert largest_difference(Mfcc(RATE_HZ, 13)(waveform), Mfcc(RATE_HZ, 20)(waveform)[:, :13]) < 1e-4


@pytest.mark.parametrize("count", [1, 3, 7, 40])
def test_any_frames_are_those_of_the_whole(golden: dict[str, Tensor], count: int) -> None:
    """Also at the ends, where the differences repeat the last frame they have."""
    features, recording = MfccFeatures(RATE_HZ, 13), Recorded.of(golden["in.waveform"])
    total = features.num_frames(recording.num_samples)
    firsts = range(0, total, count)
    parts = [features.frames(recording, first, min(count, total - first)) for first in firsts]
    assert largest_difference(torch.cat(parts), whole(features, golden["in.waveform"])) < 1e-4


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(1, 1), (399, 1), (400, 1), (559, 1), (560, 2), (16_000, 98)]
)
def test_frames_lie_inside_and_there_is_one_at_least(num_samples: int, num_frames: int) -> None:
    features = MfccFeatures(RATE_HZ, 13)
    assert features.num_frames(num_samples) == num_frames
    generator = torch.Generator().manual_seed(0)
    made = whole(features, 0.1 * torch.randn(num_samples, generator=generator))
    assert made.shape == (num_frames, 39) and bool(made.isfinite().all())


def test_differences_are_slopes() -> None:
    ramp = torch.arange(10.0)[:, None]
    assert differences(ramp)[2:-2].flatten().tolist() == pytest.approx([1.0] * 6)
    # Two frames before the first are like it: (0 + 1 + 2 * 2) / 10.
    assert differences(ramp)[0].item() == pytest.approx(0.5)
    assert differences(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_silence_and_a_constant_are_the_floor() -> None:
    """A frame's mean is taken away, so a constant is silence. All bands are at the floor, a first coefficient alone."""
    features = MfccFeatures(RATE_HZ, 13)
    floor = 23**0.5 * torch.log(torch.tensor(torch.finfo(torch.float32).eps))
    for waveform in (torch.zeros(1600), torch.full((1600,), 0.5)):
        made = whole(features, waveform)
        assert made[:, 0].tolist() == pytest.approx([float(floor)] * len(made), abs=1e-3)
        assert float(made[:, 1:].abs().max()) < 1e-3


def test_a_rate_of_24_khz_has_the_same_frame_rate() -> None:
    features = MfccFeatures(24_000, 20)
    assert features.rate_hz == 100.0
    assert features.num_frames(24_000) == 98


def test_too_many_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 23 coefficients, got 24"):
        Mfcc(RATE_HZ, 24)
