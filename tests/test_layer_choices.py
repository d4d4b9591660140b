"""Layers as text, and forward selection on vectors whose best layers are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiation.annotations import Label
from audiation.layer_choices import (
    FixedLayers,
    GreedyLayers,
    GreedyStep,
    JointProbes,
    LayerVectors,
    format_layers,
    parse,
    parse_fixed,
    select_greedily,
)
from audiation.probe import ProbeConfig, ProbeSchedule
from audiation.targets import ClassTarget

CLASSES = ("a", "b", "c", "d")
LINEAR = ProbeConfig(hidden_size=None, dropout=0.0, learning_rate=3e-2)


# Text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, num_layers, layers",
    [
        ("middle", 72, (36,)),
        ("middle", 13, (6,)),
        ("middle", 0, (0,)),
        ("every:9", 72, (0, 9, 18, 27, 36, 45, 54, 63, 72)),
        ("every:5", 12, (0, 5, 10)),
        ("every:12", 12, (0, 12)),
        ("every:1", 0, (0,)),
        ("all", 3, (0, 1, 2, 3)),
        (" 7+3 ", 12, (3, 7)),
        ("0", 0, (0,)),
    ],
)
def test_texts(text, num_layers, layers):
    assert parse(text, num_layers) == FixedLayers(layers)
    assert parse_fixed(text, num_layers) == layers


def test_greedy_is_searched_and_not_named():
    assert parse("greedy:3", 12) == GreedyLayers(3)
    with pytest.raises(ValueError, match="audiation profile-layers --choose greedy:3"):
        parse_fixed("greedy:3", 12)


@pytest.mark.parametrize(
    "text, message",
    [
        ("13", r"layers 0\.\.12, got 13"),
        ("3+3", "named twice"),
        ("3+", "names no layers"),
        ("-1", "names no layers"),
        ("", "names no layers"),
        ("last", "names no layers"),
        ("every:0", "at least 1"),
        ("every:", "names no layers"),
        ("every:13", "steps over all"),
        ("greedy:0", "at least 1"),
        ("middle:2", "names no layers"),
        ("every", "names no layers"),
    ],
)
def test_texts_that_name_no_layers(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, 12)


def test_named_layers_become_text():
    assert format_layers(parse_fixed("7+3", 12)) == "3+7"


# Probes ---------------------------------------------------------------------------------------------------


def bits(count, seed):
    """Layer 1 knows whether a class is among the first two, layer 2 whether it is even; 0 and 3 know nothing, and 4
    knows half of what 1 does. Scales differ by up to 1e5."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    noise = [torch.randn(count, 3, generator=generator) for _ in range(5)]
    first, second = (labels // 2).float() * 8, (labels % 2).float() * 8
    weak = torch.where(torch.rand(count, generator=generator) < 0.5, first, 4.0)
    known = {0: None, 1: first, 2: second, 3: None, 4: weak}
    scale = {0: 1.0, 1: 1e3, 2: 1e-2, 3: 10.0, 4: 1.0}
    vectors = {}
    for layer, signal in known.items():
        x = noise[layer].clone()
        if signal is not None:
            x[:, 0] += signal
        vectors[layer] = x * scale[layer]
    return vectors, labels


class Setting:
    def __init__(self):
        self.train, labels = bits(64, 0)
        self.valid, valid_labels = bits(48, 1)
        self.annotations = [Label(CLASSES[i]) for i in labels.tolist()]
        self.score = lambda logits: (logits.argmax(-1) == valid_labels).double().mean(1).numpy()
        self.reads = []

    def read(self, layers):
        self.reads.append(tuple(layers))
        return LayerVectors({i: self.train[i] for i in layers}, {i: self.valid[i] for i in layers})

    def probes(self, **changed):
        options = {
            "read": self.read, "probes": (LINEAR,), "schedule": ProbeSchedule(patience=12),
            "target": ClassTarget(CLASSES), "annotations": self.annotations, "score": self.score, "bytes_per_layer": 64,
        }  # fmt: skip
        return JointProbes(**options | changed)


@pytest.fixture
def setting():
    return Setting()


def test_layers_that_know_different_things_are_good_together(setting):
    probes = setting.probes()
    singles = dict(zip(range(5), probes.scores([(i,) for i in range(5)]), strict=True))
    assert max(singles.values()) < 0.65  # each knows one bit of two at most
    found = select_greedily(3, singles, probes)
    assert found.layers == (1, 2) and found.score == 1.0
    assert found.steps[0].score == max(singles.values())
    assert found.passed_over is not None and found.passed_over.layer in (0, 3, 4)
    assert found.passed_over.score <= 1.0


def test_the_search_ends_at_the_number_that_was_asked_for(setting):
    probes = setting.probes()
    singles = dict(zip(range(5), probes.scores([(i,) for i in range(5)]), strict=True))
    setting.reads.clear()
    one = select_greedily(1, singles, probes)
    assert len(one.steps) == 1 and one.passed_over is None and setting.reads == []


def test_equal_scores_take_the_lower_layer(setting):
    found = select_greedily(1, {4: 0.5, 2: 0.5, 3: 0.1}, setting.probes())
    assert found.steps == (GreedyStep(2, 0.5),)


def test_few_layers_at_a_time_give_the_same_scores(setting):
    groups = [(1, i) for i in (0, 2, 3, 4)]
    whole = setting.probes().scores(groups)
    setting.reads.clear()
    parts = setting.probes(block_bytes=300).scores(groups)  # two groups of two layers of 64 bytes
    assert setting.reads == [(0, 1, 2), (1, 3, 4)]
    assert parts == whole


def test_the_best_of_several_probes_counts(setting):
    slow = replace(LINEAR, learning_rate=1e-9)
    both = setting.probes(probes=(slow, LINEAR)).scores([(1,), (2,)])
    assert both == setting.probes().scores([(1,), (2,)])
    assert max(setting.probes(probes=(slow,)).scores([(1,), (2,)])) < min(both)


def test_a_training_leaves_no_files_behind(setting, tmp_path):
    scores = setting.probes(run_dir=tmp_path, run_key="k").scores([(1,), (2,)])
    assert scores == setting.probes().scores([(1,), (2,)])
    assert list(tmp_path.iterdir()) == []


def test_forward_selection_of_nothing(setting):
    with pytest.raises(ValueError, match="needs layers"):
        select_greedily(2, {}, setting.probes())
    with pytest.raises(ValueError, match="at least 1"):
        select_greedily(0, {1: 0.5}, setting.probes())


def test_vectors_that_are_not_finite_are_named_by_their_layer(setting):
    setting.train[3][5, 1] = np.nan
    with pytest.raises(ValueError, match="layer 3 hold NaN"):
        setting.probes().scores([(1,), (3,)])


class Stand:
    """Scores by hand in the place of probes."""

    def __init__(self, scores):
        self.by_group = scores

    def scores(self, groups):
        return [self.by_group[group] for group in groups]


def test_layers_that_diverge_together_are_not_chosen_and_not_named():
    found = select_greedily(3, {1: 0.5, 2: 0.4}, Stand({(1, 2): -math.inf}))
    assert found.steps == (GreedyStep(1, 0.5),) and found.passed_over is None
    with pytest.raises(ValueError, match="no layer has a finite score"):
        select_greedily(1, {1: -math.inf}, Stand({}))


def test_scores_that_differ_in_their_last_bits_are_equal():
    third = 0.1 + 0.2  # 0.30000000000000004
    found = select_greedily(2, {1: 0.3, 2: third}, Stand({(1, 2): third}))
    assert found.steps == (GreedyStep(1, 0.3),) and found.passed_over == GreedyStep(2, third)
