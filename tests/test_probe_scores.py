"""Validation scores of many probes at once are those of the metrics."""

import numpy as np
import pytest
import torch

from audiation.annotations import Emotion, Key, Label, Pitch, Tags
from audiation.metrics import ACCURACY, AP, KEY_WEIGHTED, ROC_AUC
from audiation.probe_scores import ValidationScorer, answer_tracks
from audiation.targets import ClassTarget, EmotionTarget, KeyTarget, PitchTarget, TagsTarget
from audiation.tasks import TASKS
from audiation.windows import AGGREGATIONS

NUM_TRACKS, NUM_PROBES = 30, 4
OWNER = torch.tensor([i for i in range(NUM_TRACKS) for _ in range(1 + i % 3)])
CLASSES, TAGS = ClassTarget(("a", "b", "c")), TagsTarget(("x", "y", "never"))


def random_tags(generator):
    x, y = torch.rand(2, generator=generator).tolist()
    return Tags({"x": float(x > 0.5), "y": float(y > 0.8), "never": 0.0})


QUESTIONS = {
    "classes": (CLASSES, ACCURACY, lambda g: Label("abc"[int(torch.randint(3, (1,), generator=g))])),
    "keys": (KeyTarget(), KEY_WEIGHTED, lambda g: Key.from_index(int(torch.randint(24, (1,), generator=g)))),
    "pitches": (PitchTarget(), ACCURACY, lambda g: Pitch(int(torch.randint(128, (1,), generator=g)))),
    "tags by ROC AUC": (TAGS, ROC_AUC, random_tags),
    "tags by AP": (TAGS, AP, random_tags),
    "emotion": (
        EmotionTarget((5.0, 5.0), (2.0, 1.0)),
        TASKS["emomusic"].metrics[0],
        lambda g: Emotion(*(3 * torch.rand(2, generator=g) + 4).tolist()),
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("owner", [OWNER, torch.arange(NUM_TRACKS)], ids=["several windows", "one window"])
def test_scores_are_those_of_the_metric(question, owner):
    target, metric, draw = QUESTIONS[question]
    generator = torch.Generator().manual_seed(4)
    references = [draw(generator) for _ in range(NUM_TRACKS)]
    logits = torch.randn(NUM_PROBES, len(owner), target.num_outputs, generator=generator)
    if question == "pitches":  # by chance alone nobody finds one of 128
        right = torch.tensor([target.encode(references[i]) for i in owner.tolist()])
        logits[:, torch.arange(len(owner)), right] += torch.arange(float(NUM_PROBES))[:, None]
    rules = AGGREGATIONS if question == "keys" else ("logits_mean",)
    scorer = ValidationScorer(target, metric, references, owner, rules)
    expected = [
        [metric.compute(references, answer_tracks(target, one, owner, rule)) for rule in rules]
        for one in logits
    ]
    assert scorer(logits) == pytest.approx(np.max(expected, axis=1), abs=1e-12)
    for one, scores in zip(logits, expected, strict=True):
        assert scorer.best_rule(one) == rules[int(np.argmax(scores))]
    assert len(set(scorer(logits).tolist())) > 1


def test_equal_outputs_count_half_in_the_roc_auc():
    references = [Tags({"x": 1.0, "y": 0.0, "never": 0.0}), Tags({"x": 0.0, "y": 1.0, "never": 0.0})]
    flat = torch.zeros(1, 2, 3)
    assert ValidationScorer(TAGS, ROC_AUC, references, torch.arange(2))(flat).tolist() == [0.5]
    # a sigmoid that has come to its end makes equals of different outputs
    sure = torch.tensor([[[800.0, 0.0, 0.0], [900.0, 0.0, 0.0]]])
    assert ValidationScorer(TAGS, ROC_AUC, references, torch.arange(2))(sure).tolist() == [0.5]


def test_lower_is_better_is_turned_round():
    import dataclasses

    lower = dataclasses.replace(ACCURACY, higher_is_better=False)
    references = [Label("a"), Label("b")]
    logits = torch.tensor([[[1.0, 0, 0], [1.0, 0, 0]], [[1.0, 0, 0], [0, 1.0, 0]]])
    assert ValidationScorer(CLASSES, lower, references, torch.arange(2))(logits).tolist() == [-0.5, -1.0]
