"""Contracts that every registered task is held to."""

import pytest
import torch
import torch.nn.functional as F

from audiation.annotations import Key, Label
from audiation.datasets import DATASETS
from audiation.leaderboard import published_rows
from audiation.targets import ClassTarget, KeyTarget
from audiation.tasks import TASKS


def every_answer(target):
    """All the annotations a target can express. A new kind of target needs a line here."""
    if isinstance(target, ClassTarget):
        return [Label(c) for c in target.classes]
    if isinstance(target, KeyTarget):
        return [Key.from_index(i) for i in range(24)]
    raise NotImplementedError(f"say here which annotations {type(target).__name__} can express")


def decoded(target, annotations):
    encoded = torch.stack([target.encode(a) for a in annotations])
    return [target.decode(row) for row in F.one_hot(encoded, target.num_outputs).float()]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_itself_and_data_sets_that_exist(name):
    task = TASKS[name]
    assert task.name == name and task.question.endswith("?")
    assert task.train_dataset in DATASETS and task.test_dataset in DATASETS
    assert task.metrics and len({m.name for m in task.metrics}) == len(task.metrics)
    assert task.clip_seconds is None or task.clip_seconds > 0


@pytest.mark.parametrize("name", TASKS)
def test_perfect_estimates_score_the_maximum_after_a_round_trip_through_the_target(name):
    task = TASKS[name]
    references = every_answer(task.target)
    assert len(references) == task.target.num_outputs
    estimates = decoded(task.target, references)
    assert estimates == references
    wrong = references[1:] + references[:1]
    for metric in task.metrics:
        assert metric.compute(references, estimates) == 1.0
        assert metric.compute(references, wrong) < 0.5


@pytest.mark.parametrize("name", TASKS)
def test_numbers_to_compare_with_are_published(name):
    task = TASKS[name]
    assert not (task.published_as and task.compare_with)
    ids = task.published_as or task.compare_with
    if ids is not None:
        assert published_rows(*ids, task.metrics[0].name)
    assert task.published_as or task.train_dataset == "scores"  # our own data have no published numbers


def test_the_tasks_of_this_release():
    assert set(TASKS) >= {"gtzan_genre", "gtzan_key", "scores-key", "scores-timbre"}
    assert [m.name for m in TASKS["gtzan_genre"].metrics] == ["accuracy", "accuracy_class_macro"]
    assert [m.name for m in TASKS["gtzan_key"].metrics] == ["key_weighted", "key_weighted_symmetric"]
    assert TASKS["scores-key"].compare_with == ("key", "giantsteps_key")
    assert TASKS["scores-timbre"].target.num_outputs == 8
