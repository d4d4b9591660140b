"""The choices of pre-training: its schedules, and that nothing is set that would be left unread."""

from __future__ import annotations

from typing import Any

import pytest

from audiation.pretrain_run import PretrainRun
from audiation.pretraining_config import PretrainConfig


def test_linear_falls_to_the_least_rate_after_the_warm_up() -> None:
    config = PretrainConfig(
        steps=8, warmup_steps=4, learning_rate=0.8, min_learning_rate=0.4, schedule="linear"
    )
    rates = [0.2, 0.4, 0.6, 0.8, 0.8, 0.7, 0.6, 0.5]
    assert [config.learning_rate_at(s) for s in range(8)] == pytest.approx(rates, rel=1e-12)


def test_tri_stage_is_that_of_data2vec() -> None:
    """MERT spec, section 5.2: 3 % up from a hundredth, 90 % flat, 7 % down to a hundredth, exponentially."""
    config = PretrainConfig(
        steps=1000, warmup_steps=30, learning_rate=5e-4, min_learning_rate=5e-6, schedule="tri-stage"
    )
    assert config.learning_rate_at(0) == pytest.approx(5e-6, rel=1e-12)
    assert config.learning_rate_at(15) == pytest.approx(5e-4 * 0.505, rel=1e-12)
    assert [config.learning_rate_at(s) for s in (30, 500, 930)] == [5e-4] * 3
    assert config.learning_rate_at(965) == pytest.approx(5e-5, rel=1e-12)
    assert config.learning_rate_at(1000) == pytest.approx(5e-6, rel=1e-12)
    assert config.learning_rate_at(15, 1e-3) == pytest.approx(2 * config.learning_rate_at(15), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"keep": "best"}, r"pre-training has no validation, so keep='best' cannot be\. Leave keep away"),
        ({"validate_every_steps": 5}, "no validation, so validate_every_steps=5 cannot be"),
        ({"patience": 3}, "no validation, so patience=3 cannot be"),
        ({"schedule": "plateau"}, "Use one of constant, cosine, linear, tri-stage"),
        ({"plateau_factor": 0.1}, "plateau_factor=0.1 needs schedule='plateau', which pre-training does not"),
        ({"plateau_patience": 2}, "plateau_patience=2 needs"),
        ({"min_learning_rate": 1e-6}, "min_learning_rate=1e-06 needs a schedule that falls"),
        ({"decay_fraction": 0.1, "schedule": "linear"}, "decay_fraction=0.1 needs schedule='tri-stage'"),
        ({"loss_scale_window": 10}, r"needs precision='fp16'\. Set that, or leave loss_scale_window away"),
        ({"spike_window": 10}, "spike_window=10 needs spike_factor"),
        ({"betas": "0.9"}, r"betas are two numbers from 0 to below 1, like \(0.9, 0.98\), got '0.9'"),
        ({"betas": ("0.9", "0.98")}, "betas are two numbers"),
        ({"betas": (0.9, 1.0)}, "betas are two numbers"),
        ({"eps": "small"}, "eps must be a number, got 'small'"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"clip_norm": "none"}, "clip_norm must be a number, or None for no clipping, got 'none'"),
        ({"decoupled_weight_decay": "no"}, "decoupled_weight_decay is true or false, got 'no'"),
        ({"group_learning_rates": (("head", "fast"),)}, "group_learning_rates are pairs of a prefix and a number"),
        ({"spike_factor": "3"}, "spike_factor must be a number above 1, got '3'"),
        ({"seed": 2**63}, r"seed must be at most 2\^63 - 1"),
        ({"schedule": "tri-stage"}, "Set min_learning_rate above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_or_would_be_ignored_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PretrainConfig(steps=9, **change)


def test_what_is_read_is_taken() -> None:
    PretrainConfig(steps=9, precision="fp16", loss_scale_window=10, seed=2**63 - 1)
    PretrainConfig(steps=9, spike_factor=2.0, spike_window=10)
    PretrainConfig(steps=9, schedule="cosine", min_learning_rate=1e-6)
    assert PretrainConfig(steps=9, keep="last", patience=None).keep == "last"


def test_a_run_from_a_damaged_record_says_which_choice_is_none() -> None:
    text = PretrainRun("musicfm-mini").to_json()
    with pytest.raises(ValueError, match="betas are two numbers"):
        PretrainRun.from_json(text.replace("[0.9, 0.98]", '"fast"'))
    with pytest.raises(ValueError, match="crop_seconds must be a positive number, got 'long'"):
        PretrainRun.from_json(text.replace('"crop_seconds": 30.0', '"crop_seconds": "long"'))
