"""What a run searches of its protocol, and what it says about itself."""

import dataclasses

import pytest

from audiation.loading import load_backbone
from audiation.probe import WEIGHTED_SUM
from audiation.probe_evaluation import plan_search
from audiation.protocols import PROTOCOLS, Protocol
from audiation.run import Run

CHROMA, FOUR_BLOCKS = load_backbone("chroma"), load_backbone("musicfm-mini", "random")


def plan(protocol, backbone=CHROMA, task="gtzan_genre", **choices):
    run = Run(
        backbone.name, task, protocol=protocol, weights=None if backbone is CHROMA else "random", **choices
    )
    return plan_search(PROTOCOLS[protocol], task, backbone, run)


def test_the_grid_of_jukemir_and_its_slice():
    whole = plan("jukemir")
    assert len(whole.configs) == len(set(whole.configs)) == 216 and whole.departures == ()
    assert whole.layers == (0,) and {c.layer for c in whole.configs} == {0}
    part = plan("jukemir", train="batch_size=64,weight_decay=0")
    assert len(part.configs) == 36 and set(part.configs) < set(whole.configs)
    assert part.departures == ("batch_size=64", "weight_decay=0.0", "36 of 216 configurations")
    seeded = plan("jukemir", seed=3)
    assert {c.seed for c in seeded.configs} == {3}


def test_the_search_of_marble_is_every_layer_and_the_weighted_sum_times_six_rates():
    search = plan("marble-constrained", FOUR_BLOCKS)
    assert len(search.configs) == 6 * (5 + 1) and search.layers == (0, 1, 2, 3, 4)
    assert [c.layer for c in search.configs[::6]] == [0, 1, 2, 3, 4, WEIGHTED_SUM]
    assert {c.learning_rate for c in search.configs} == {5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2}
    assert {
        (c.batch_size, c.dropout, c.hidden_size, c.input_dropout, c.standardise) for c in search.configs
    } == {(64, 0.2, 512, False, False)}
    twelve_blocks = dataclasses.replace(search, configs=search.configs[:6] * 14)
    assert len(twelve_blocks.configs) == 84
    # One vector per clip has nothing to mix.
    assert [c.layer for c in plan("marble-constrained").configs] == [0] * 6
    assert plan("marble-weighted-sum").layers == (0,)
    summed = plan("marble-weighted-sum", FOUR_BLOCKS)
    assert [c.layer for c in summed.configs] == [WEIGHTED_SUM] and summed.layers == (1, 2, 3, 4)
    assert summed.configs[0].learning_rate == 5e-3  # GTZAN genre
    assert plan("marble-weighted-sum", FOUR_BLOCKS, "mtt").configs[0].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("task", "max_epochs", "halve_patience", "patience"),
    [("emomusic", 100, 5, 20), ("giantsteps_key", 100, 5, 20), ("gtzan_genre", 100, 6, 20), ("mtg_mood", 0, 0, 0),
     ("mtg_moodtheme", 100, 3, 10), ("mtt", 100, 3, 10), ("nsynth_pitch", 50, 3, 10), ("vocalset_singer", 100, 5, 20),
     ("vocalset_technique", 100, 5, 10)],
)  # fmt: skip
def test_the_schedules_of_marble_are_those_of_its_table(task, max_epochs, halve_patience, patience):
    if task == "mtg_mood":  # a name that no table has takes the common one
        max_epochs, halve_patience, patience = 100, 5, 20
    schedule = PROTOCOLS["marble-constrained"].schedule_for(task)
    assert (schedule.max_epochs, schedule.halve_patience, schedule.patience) == (
        max_epochs,
        halve_patience,
        patience,
    )
    assert schedule.sampling == "epochs" and schedule.keep == "best"


def test_marble_v2_keeps_the_last_state_and_the_layers_of_mert():
    search = plan("marble-v2", FOUR_BLOCKS)
    assert search.schedule.keep == "last" and search.layers == (4,)
    protocol = PROTOCOLS["marble-v2"]
    assert {(t, layer) for b, t, layer in protocol.task_layers if b == "mert-v1-95m"} >= {
        ("gtzan_genre", 7), ("giantsteps_key", 8), ("emomusic", 5), ("mtt", 6)
    }  # fmt: skip
    assert protocol.schedule_for("giantsteps_key").factor == 0.1
    assert protocol.schedule_for("mtg_genre").max_epochs == 20


def test_departures_are_said_unless_the_rules_leave_everything_open():
    assert plan("marble-constrained", FOUR_BLOCKS, layer=2).departures == ("layer 2 only",)
    assert plan("jukemir-single", FOUR_BLOCKS, layer=2).departures == ()
    odd = plan("marble-constrained", FOUR_BLOCKS, train="learning_rate=0.5,layer=weighted-sum")
    assert odd.departures == (
        "learning_rate=0.5, which its grid does not have", "layer=weighted-sum", "1 of 6 configurations"
    )  # fmt: skip
    assert plan("jukemir-single", train="patience=3").departures == ("patience=3",)
    assert plan("jukemir-single", train="patience=3").schedule.patience == 3
    free = plan("marble-semi-constrained", FOUR_BLOCKS, train="learning_rate=0.5,hidden_size=none", layer=2)
    assert free.departures == () and len(free.configs) == 1


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"train": "steps=3"}, "no field 'steps'"),
        ({"train": "layer=top"}, "a number or 'weighted-sum'"),
        ({"train": "layer=9"}, "has layers 0..4, got 9"),
        ({"train": "layer=1", "layer": 2}, "named twice"),
        ({"train": "patience=0"}, "at least 1"),
        ({"train": "dropout=1.5"}, "probability"),
        ({"train": "learning_rate=-1"}, "positive"),
        ({"layer": 5}, "has layers 0..4, got 5"),
    ],
)
def test_choices_that_make_no_sense(choices, message):
    with pytest.raises(ValueError, match=message):
        plan("marble-constrained", FOUR_BLOCKS, **choices)


def test_one_vector_cannot_be_mixed():
    with pytest.raises(ValueError, match="no layers to mix"):
        plan("jukemir", train="layer=weighted-sum")


def test_every_protocol_of_probes_plans_on_every_kind_of_backbone():
    names = [name for name in PROTOCOLS if isinstance(PROTOCOLS[name], Protocol)]
    assert len(names) == 6
    for name in names:
        for backbone in (CHROMA, FOUR_BLOCKS):
            search = plan(name, backbone)
            assert (
                search.configs
                and search.departures == ()
                and all(i <= backbone.num_layers for i in search.layers)
            )
