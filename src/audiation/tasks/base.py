"""A task: which recordings, which annotation, which output space, which metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from audiation.metrics import Metric
from audiation.registry import Registry
from audiation.targets import Target


@dataclass(frozen=True)
class Task:
    """One question asked of a backbone.

    annotation: track -> annotation, or None where the track has none (it then leaves the task, and is counted).
    metrics: the first one selects the model on the validation split.
    clip_seconds: length of the windows a track is cut into; None: the whole track is one clip.
    level: MARBLE's level of musical description (thesis, table 3.1); ours for questions that are not in it.
    task_type: what an answer is: one of several classes, any number of labels, numbers, one class per frame, stems.
    answer_group: track -> name of the recording that it is a part of, where one answer is given for all parts of a
        recording in the test, in the place of the first; None: every track has its own.
    published_as: (task, dataset) ids in the published results, for the table beside ours; None for our own tasks.
    published_train_on: name, in the published results, of the training data where they are not those of the test.
    compare_with: ids of the nearest published task, on other data, for a task of our own. Shown beside ours for
        orientation, with its own question, and labelled as other data.
    """

    name: str
    question: str
    train_dataset: str
    test_dataset: str
    annotation: Callable[[Any], Any]
    target: Target
    metrics: tuple[Metric, ...]
    clip_seconds: float | None = None
    level: Literal["high-level", "score", "performance", "acoustic"] = "high-level"
    task_type: Literal["multi-class", "multi-label", "regression", "sequence", "separation"] = "multi-class"
    answer_group: Callable[[Any], str] | None = None
    published_as: tuple[str, str] | None = None
    published_train_on: str = ""
    compare_with: tuple[str, str] | None = None


TASKS: Registry[Task] = Registry("task", "audiation.tasks")
