"""The question that a user's own labels ask."""

from __future__ import annotations

from audiation.annotations import Values
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


def labelled_task(data: LabelledAudio, name: str | None = None) -> Task:
    """One task out of the labels; its first metric selects. It is not registered: it lives with its data.

    Classes: accuracy, then its mean over classes. Keys: weighted score, then accuracy. Numbers: R2, then mean absolute
    error; the target knows the means and deviations of training. Tags: mean average precision as the papers print it,
    where a tag without a positive in the split counts 0, then ROC AUC, which leaves such tags out. Of all variants of
    average precision this one is defined wherever any tag has a positive.

    Args:
        name: of the task; None: that of the file or folder.
    """
    target, metrics = _target_and_metrics(data)
    return Task(
        name=name or data.source.stem or data.name,
        question=_question(data),
        train_dataset=data.name,
        test_dataset=data.name,
        annotation=lambda track: track.annotation,
        target=target,
        metrics=metrics,
    )


def _target_and_metrics(data: LabelledAudio) -> tuple[Target, tuple[Metric, ...]]:
    if data.kind == "class":
        return ClassTarget(data.names), (ACCURACY, ACCURACY_CLASS_MACRO)
    if data.kind == "key":
        return KeyTarget(), (KEY_WEIGHTED, ACCURACY)
    if data.kind == "tags":
        return TagsTarget(data.names), (AP, ROC_AUC)
    learned = [t.annotation for t in data.tracks if t.split == "train" and isinstance(t.annotation, Values)]
    return ValuesTarget.fit(data.names, learned), (R2_VALUES, MEAN_ABSOLUTE_ERROR)


def _question(data: LabelledAudio) -> str:
    return {
        "class": f"which of {len(data.names)} classes?",
        "key": "which of 24 keys?",
        "tags": f"which of {len(data.names)} tags?",
        "regression": f"how much: {', '.join(data.names)}?",
    }[data.kind]
