"""The constant-Q target of MERT against nnAudio's numbers (golden mert_tiny_cqt_*), and what music can do to it."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from audiation.objectives.cqt_target import CqtTarget

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5  # of the largest magnitude; the golden files allow 2e-3


@cache
def target(sample_rate_hz: int) -> CqtTarget:
    return CqtTarget(sample_rate_hz, 320)


@cache
def coarse() -> CqtTarget:
    return CqtTarget(24_000, 320, 84, 12)


def relative_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def naive(waveform: Tensor, cqt: CqtTarget) -> Tensor:
    """Filter after filter in time, as the published description says, in double."""
    hop, wide = cqt.hop_samples, 1 << (int(cqt.lengths_samples[0]) - 1).bit_length()
    padded = F.pad(waveform.double(), (wide // 2, wide // 2))
    bins = []
    for length, hz in zip(cqt.lengths_samples.tolist(), cqt.frequencies_hz.tolist(), strict=True):
        n = torch.arange(length, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / length)
        angle = 2 * math.pi * hz / cqt.sample_rate_hz * n
        begins_at = math.ceil(wide / 2 - length / 2) - length % 2
        frames = padded[:, begins_at:].unfold(1, length, hop)[:, : cqt.num_frames(waveform.shape[1])]
        weights = torch.stack([window * angle.cos(), window * angle.sin()], dim=1) / window.sum()
        bins.append(torch.linalg.vector_norm(frames @ weights, dim=-1) * math.sqrt(length))
    return torch.stack(bins, dim=-1)


@pytest.mark.parametrize("sample_rate_hz", [24_000, 16_000])
def test_magnitudes_are_those_of_nnaudio(sample_rate_hz: int) -> None:
    name = f"mert_tiny_cqt_{sample_rate_hz // 1000}k_336"
    tensors, facts = (
        load_file(GOLDEN / f"{name}.safetensors"),
        json.loads((GOLDEN / f"{name}.json").read_text()),
    )
    cqt = target(sample_rate_hz)
    assert cqt.num_bins == facts["config"]["n_bins"] and cqt.lowest_hz == facts["config"]["fmin"]
    assert torch.equal(cqt.lengths_samples.float(), tensors["out.lengths"])
    torch.testing.assert_close(cqt.frequencies_hz, tensors["out.freqs"], rtol=1e-12, atol=0.0)
    assert relative_difference(cqt(tensors["in.waveform"]), tensors["out.cqt"]) < TOLERANCE


@pytest.mark.parametrize("num_samples", [1, 319, 320, 5_000, 60_000, 120_000])
def test_any_length_is_that_of_filters_in_time(num_samples: int) -> None:
    """Shorter than the shortest filter, than the longest, and several blocks: 120,000 samples are four."""
    cqt = coarse()
    waveform = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(0))
    assert relative_difference(cqt(waveform).double(), naive(waveform, cqt)) < TOLERANCE


def test_five_seconds_are_one_block() -> None:
    for sample_rate_hz, num_samples in ((24_000, 122_880), (24_000, 120_000), (16_000, 80_000)):
        cqt = target(sample_rate_hz)
        assert cqt.block_frames - 2 * cqt.edge_frames >= num_samples // 320


def test_a_bin_hears_its_sine_and_the_others_do_not() -> None:
    cqt = target(16_000)
    hz = float(cqt.frequencies_hz[150])
    sine = torch.sin(2 * math.pi * hz / 16_000 * torch.arange(80_000, dtype=torch.float64)).float()[None]
    middle = cqt(sine)[0, 125]
    length = int(cqt.lengths_samples[150])
    assert int(middle.argmax()) == 150
    assert float(middle[150]) == pytest.approx(math.sqrt(length) / 2, rel=1e-4)
    far = torch.cat([middle[:120], middle[180:]])
    assert float(far.max()) < 1e-4 * float(middle[150])


@pytest.mark.parametrize(("what", "largest"), [("silence", 0.0), ("dc", 0.05), ("clipped", 200.0)])
def test_degenerate_audio(what: str, largest: float) -> None:
    """Silence is exactly nothing, a constant only sounds at the ends, where it begins and stops."""
    noise = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    waveform = {
        "silence": torch.zeros(1, 48_000),
        "dc": torch.ones(1, 48_000),
        "clipped": (100 * noise).clamp(-1, 1),
    }[what]
    magnitudes = coarse()(waveform)
    assert magnitudes.shape == (1, 151, 84)
    inner = magnitudes[:, 50:100]
    assert bool(magnitudes.isfinite().all()) and float(inner.max()) <= largest
    if what != "silence":
        assert float(magnitudes.max()) > 0.1


def test_stays_float32() -> None:
    cqt = CqtTarget(24_000, 320, 84, 12)
    waveform = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    expected = cqt(waveform)
    cqt = cqt.half()
    assert {b.dtype for b in cqt.buffers()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cqt(waveform), expected)
    assert not cqt(waveform.requires_grad_()).requires_grad
    assert cqt.state_dict() == {}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((24_000, 0, 84, 12), "must be positive"),
        ((24_000, 320, 84, 0), "must be positive"),
        ((8_000, 160, 336, 48), "lies at 4126 Hz, above half of 8000 Hz"),
    ],
)
def test_bad_sizes_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CqtTarget(*sizes)


def test_a_waveform_without_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(batch, samples\), got \(24000,\)"):
        coarse()(torch.zeros(24_000))
