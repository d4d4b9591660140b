import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from audiation.backbones import BACKBONES
from audiation.methods import METHODS, inject, parse_method
from audiation.methods.probe import Probe
from audiation.objectives import OBJECTIVES
from audiation.probe import ProbeConfig
from audiation.protocols import PROTOCOLS
from audiation.registry import UnknownNameError


def test_jukemir_single_is_the_configuration_of_the_specification():
    protocol = PROTOCOLS["jukemir-single"]
    assert protocol.probes == (
        ProbeConfig(
            standardise=True,
            hidden_size=512,
            batch_size=64,
            learning_rate=1e-3,
            dropout=0.25,
            weight_decay=0.0,
            seed=0,
        ),
    )
    assert "one of the 216 configurations" in protocol.describe()
    assert "head with a hidden layer of 512 units" in protocol.describe()


def test_every_protocol_describes_itself_and_is_a_frozen_value():
    assert len(PROTOCOLS) >= 1
    for name in PROTOCOLS:
        protocol = PROTOCOLS[name]
        assert protocol.name == name and protocol.version >= 1
        assert protocol.describe().endswith(".") and "  " not in protocol.describe()
        assert hash(protocol) == hash(dataclasses.replace(protocol))
        with pytest.raises(dataclasses.FrozenInstanceError):
            protocol.version = 99


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'jukemir-single'"):
        PROTOCOLS["jukemir-singel"]
    with pytest.raises(UnknownNameError, match=r"unknown method 'prob'.*Did you mean 'probe'"):
        parse_method("prob")
    assert list(OBJECTIVES) == ["best_rq", "data2vec", "hubert", "mert"]
    with pytest.raises(UnknownNameError, match="Did you mean 'best_rq'"):
        OBJECTIVES["best-rq"]


def test_the_probe_trains_nothing_in_the_backbone():
    method = parse_method("probe")
    assert method == Probe() and METHODS["probe"] is Probe
    backbone = BACKBONES["chroma"].build()
    backbone.name = "chroma"
    assert inject(backbone, method).trainable == 0  # a backbone without encoder is fine


@pytest.fixture
def example(monkeypatch):
    @dataclass(frozen=True)
    class Example:
        rank: int
        scale: float = 1.0
        bias: bool = False
        where: Literal["query", "value"] = "query"
        width: int | None = 4

    METHODS.names()
    monkeypatch.setitem(METHODS._entries, "example", Example)
    return Example


def test_method_strings_are_parsed_against_the_fields(example):
    assert parse_method("example:rank=2") == example(2)
    assert parse_method(" example: rank=2, scale=5e-1,bias=TRUE,where=value,width=none") == example(
        2, 0.5, True, "value", None
    )
    assert parse_method("example:rank=2,width=8").width == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example", "needs rank"),
        ("example:rank=two", "method 'example': rank must be of type int, got 'two'"),
        ("example:rank=2.5", "must be of type int"),
        ("example:rank=2,bias=1", "true or false"),
        ("example:rank=2,where=key", "one of query, value"),
        ("example:rank=2,rank=3", "given twice"),
        ("example:rnak=2", "no field 'rnak'. Did you mean 'rank'.* Fields: rank, scale"),
        ("example:rank", "not of the form field=value"),
        ("probe:rank=2", "method 'probe' has no field 'rank'. Fields: none"),
    ],
)
def test_method_strings_that_are_wrong(example, text, message):
    with pytest.raises(ValueError, match=message):
        parse_method(text)


def test_petl_is_the_recipe_of_the_specification():
    """petl.md section 4: the rates, schedule, batch, clip, steps and windows of the released configurations."""
    protocol = PROTOCOLS["petl"]
    lora = protocol.config(parse_method("lora"), "musicfm-msd", 30.0, "mtt_clean", 15_000, seed=3)
    assert (lora.steps, lora.batch_size, lora.learning_rate, lora.min_learning_rate) == (
        20_000,
        16,
        1e-4,
        1e-7,
    )
    assert (lora.schedule, lora.warmup_steps, lora.clip_norm, lora.weight_decay) == ("cosine", 0, 1.0, 0.0)
    assert (lora.precision, lora.keep, lora.patience, lora.seed) == ("bf16", "best", None, 3)
    assert (lora.crops, round(lora.crop_seconds * 24_000), lora.frozen_mode) == ("random", 698_976, "eval")
    assert lora.head_hidden and lora.head_dropout == 0.5 and lora.validate_every_steps == 938
    tuned = protocol.config(parse_method("finetune"), "mert-v1-95m", 5.0, "mtg_top50", 40_000, seed=0)
    assert (tuned.learning_rate, tuned.steps, tuned.crop_seconds) == (1e-5, 100_000, None)
    assert tuned.validate_every_steps == 2000  # the paper's epoch there
    probe = protocol.config(parse_method("probe"), "mert-v1-95m", 5.0, "gtzan_genre", 443, seed=0)
    assert (probe.schedule, probe.learning_rate, probe.steps) == ("constant", 1e-4, 100 * 28)
