"""Mel-RVQ: what a fit must achieve, and its place in BEST-RQ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MSD, MusicFM, fresh
from audiation.objectives import PretrainBatch
from audiation.objectives.best_rq import BestRq
from audiation.objectives.mel_rvq import MelRvq
from audiation.training import trainable_state


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames(num_frames: int, seed: int = 0, num_features: int = 24) -> Tensor:
    """Features of a few directions, the first of them strong, off the origin."""
    directions = torch.randn(8, num_features, generator=generator(99)) * torch.linspace(3, 0.3, 8)[:, None]
    return 5 + torch.randn(num_frames, 8, generator=generator(seed)) @ directions


def fitted(seed: int = 142) -> MelRvq:
    made = MelRvq(24, num_codes=16, num_codebooks=3, dim=4, seed=seed)
    made.fit(frames(2_000))
    return made


def variance_left(quantiser: MelRvq, features: Tensor) -> list[float]:
    """After each of the codebooks, from the codes alone."""
    codes = quantiser(features)
    total = (features - quantiser.mean).square().mean()
    decoded = [quantiser.decode(codes[: q + 1]) for q in range(len(codes))]
    return [float((features - d).square().mean() / total) for d in decoded]


# The fit -----------------------------------------------------------------------------------------------------


def test_every_codebook_takes_its_share_also_of_other_frames() -> None:
    made = MelRvq(24, num_codes=16, num_codebooks=3, dim=4)
    left = made.fit(frames(2_000))
    assert left == pytest.approx(variance_left(made, frames(2_000)), rel=1e-4)
    assert left[0] < 0.5 and left[1] < 0.8 * left[0] and left[2] < 0.9 * left[1]
    assert variance_left(made, frames(500, seed=1)) == pytest.approx(left, rel=0.15)


def test_frames_of_few_kinds_are_told_apart_by_the_first_codebook() -> None:
    kinds = 10 * torch.randn(4, 24, generator=generator(3))
    which = torch.arange(400) % 4
    features = kinds[which] + 0.01 * torch.randn(400, 24, generator=generator(4))
    made = MelRvq(24, num_codes=4, num_codebooks=1, dim=3)
    (left,) = made.fit(features)
    assert left < 1e-4
    codes = made(features)[0]
    assert sorted(codes[:4].tolist()) == [0, 1, 2, 3]
    assert torch.equal(codes, codes[:4][which])


def test_codes_are_the_nearest_ones_one_after_the_other() -> None:
    made, features = fitted(), frames(300, seed=2)
    residual = features - made.mean
    for codes, codebook, projection in zip(made(features), made.codebooks, made.projections, strict=True):
        assert torch.equal(codes, torch.cdist(residual @ projection, codebook).argmin(1))
        residual = residual - codebook[codes] @ projection.T
    identity = made.projections.transpose(1, 2) @ made.projections
    torch.testing.assert_close(identity, torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)


def test_a_fit_repeats_itself_and_draws_from_no_global_stream() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = fitted(), fitted(), fitted(seed=7)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)


def test_mostly_silence_is_fitted_too() -> None:
    features = torch.cat([torch.zeros(1_500, 24), frames(500)])
    made = MelRvq(24, num_codes=16, num_codebooks=3, dim=4)
    left = made.fit(features)
    assert left[2] < left[1] < left[0] < 0.3
    silence, music = made(features)[0].split([1_500, 500])
    assert len(silence.unique()) == 1
    assert len(music.unique()) >= 12  # of the other 15


# In BEST-RQ ----------------------------------------------------------------------------------------------------


def small() -> MusicFM:
    config = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)
    return fresh(MSD, config, conv_channels=4).eval()


def test_it_takes_the_place_of_random_projections() -> None:
    model = small()
    objective = BestRq(codebook_size=8, num_codebooks=3).build(model)
    batch = PretrainBatch(0.1 * torch.randn(2, 48_000, generator=generator()))
    stacked = objective.stacked(objective.spectrum(model, batch.waveform))
    assert stacked.shape[-1] == 512
    quantiser = MelRvq(512, num_codes=8, num_codebooks=3)
    left = quantiser.fit(stacked.flatten(0, 1))
    assert left[2] < left[1] < left[0] < 1.0
    objective.quantiser = quantiser  # type: ignore[assignment]
    assert objective.tokens(objective.spectrum(model, batch.waveform)).shape == (3, 2, 50)
    loss = objective(model, batch, generator())
    loss.sum.backward()
    assert int(loss.count) > 0 and bool(loss.sum.isfinite())
    assert 1.0 < float(loss.parts["target_perplexity"]) <= 8.0
    assert torch.equal(trainable_state(objective)["quantiser.codebooks"], quantiser.codebooks)


def test_a_checkpoint_fills_it() -> None:
    made, loaded = fitted(), MelRvq(24, num_codes=16, num_codebooks=3, dim=4)
    loaded.load_state_dict(made.state_dict())
    features = frames(50, seed=3).view(5, 10, 24)
    assert torch.equal(loaded(features), made(features))
    assert loaded(features).shape == (3, 5, 10) and int(loaded.num_fitted) == 2_000


def test_autocast_changes_no_code() -> None:
    made, features = fitted(), frames(300, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        codes = made(features)
    assert torch.equal(codes, made(features))


# Refused -------------------------------------------------------------------------------------------------------


def test_it_refuses_to_quantise_before_it_is_fitted() -> None:
    with pytest.raises(ValueError, match="has no codes yet"):
        MelRvq(24)(frames(10))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(100, 23), "fitted to .frames, 24., got"),
        (torch.zeros(4, 25, 24), "fitted to"),
        (torch.full((100, 24), torch.nan), "not finite"),
        (torch.zeros(100, 24), "16 codes needs as many different frames, got 1 among 100"),
        (frames(15), "got 15 among 15"),
    ],
)
def test_features_that_cannot_be_fitted_are_refused(features: Tensor, message: str) -> None:
    made = MelRvq(24, num_codes=16, num_codebooks=2, dim=4)
    with pytest.raises(ValueError, match=message):
        made.fit(features)
    assert int(made.num_fitted) == 0


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 1 feature"):
        MelRvq(24, num_codebooks=0)
    with pytest.raises(ValueError, match="at most as many numbers per code as features, 8, got 16"):
        MelRvq(8, dim=16)
