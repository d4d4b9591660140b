"""The question that a user's own labels ask."""

from __future__ import annotations

from typing import Any

from audiation.annotations import Tags
from audiation.datasets.labelled import LabelledAudio
from audiation.metrics import (
    ACCURACY,
    ACCURACY_CLASS_MACRO,
    AP,
    KEY_WEIGHTED,
    MEAN_ABSOLUTE_ERROR,
    R2_VALUES,
    ROC_AUC,
    Metric,
)
from audiation.targets import ClassTarget, KeyTarget, TagsTarget, Target, ValuesTarget
from audiation.tasks.base import Task


def labelled_task(data: LabelledAudio) -> Task:
    """One task out of the labels; its first metric selects.

    Classes: accuracy, then its mean over classes. Tags: mean average precision (a tag without positives counts 0),
    then ROC AUC. Numbers: R2, then mean absolute error. Keys: weighted score, then accuracy.
    """
    target: Target
    metrics: tuple[Metric, ...]
    if data.kind == "class":
        target, metrics = ClassTarget(data.names), (ACCURACY, ACCURACY_CLASS_MACRO)
    elif data.kind == "tags":
        target, metrics = TagsTarget(data.names), (AP, ROC_AUC)
    elif data.kind == "key":
        target, metrics = KeyTarget(), (KEY_WEIGHTED, ACCURACY)
    else:
        values = [t.annotation for t in data.split("train")]  # type: ignore[attr-defined]
        target, metrics = ValuesTarget.fit(data.names, values), (R2_VALUES, MEAN_ABSOLUTE_ERROR)
    names = data.names

    def annotation(track: Any) -> Any:
        """A track's tags with those that it does not have, as metrics compare them."""
        if data.kind != "tags":
            return track.annotation
        return Tags({name: track.annotation.scores.get(name, 0.0) for name in names})

    return Task(
        name="labelled",
        question=f"which {data.kind}?" if data.kind != "regression" else "how much?",
        train_dataset="labelled",
        test_dataset="labelled",
        annotation=annotation,
        target=target,
        metrics=metrics,
    )
