"""Answers read back from the text of results, for every task that there is."""

import dataclasses

import numpy as np
import pytest

from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.answers import AnswerError, metrics_of, read_answers, read_estimates, rescore, text_of
from audiation.metrics_separation import STEMS, StemNames, StemScores
from audiation.registry import UnknownNameError
from audiation.results import Prediction, Result
from audiation.targets import ValuesTarget
from audiation.tasks import TASKS

NUM_TRACKS = 12


def numbers(seed, count=1):
    return np.random.default_rng(seed).normal(5, 1, count).tolist()


def beats(seed):
    times = np.cumsum(np.random.default_rng(seed).uniform(0.3, 0.7, 40))
    return Beats(times, np.arange(40) % 4 + 1)


def segments(labels):
    def make(seed):
        generator = np.random.default_rng(seed)
        bounds = np.concatenate([[0.0], np.cumsum(generator.uniform(0.5, 4.0, 12))])
        chosen = generator.integers(0, len(labels), 12)
        return Segments(np.stack([bounds[:-1], bounds[1:]], axis=1), tuple(labels[i] for i in chosen))

    return make


def tags(target, side):
    def make(seed):
        values = np.random.default_rng(seed).random(len(target.tags))
        scores = (values < 0.4).astype(float) if side == "reference" else values
        return Tags(dict(zip(target.tags, scores.tolist(), strict=True)))

    return make


def stem_scores(seed):
    return StemScores(
        {rate: dict(zip(STEMS, numbers(seed + rate, 4), strict=True)) for rate in (24_000, 44_100)}
    )


def examples(task, side):
    """seed -> an annotation as a reference or an estimate of this task is."""
    target = task.target
    return {
        "ClassTarget": lambda seed: Label(target.classes[seed % len(target.classes)]),
        "KeyTarget": lambda seed: Key.from_index(seed % 24),
        "KeyFramesTarget": lambda seed: Key.from_index(seed % 24),
        "PitchTarget": lambda seed: Pitch(seed * 7 % 128),
        "TempoTarget": lambda seed: Tempo(60 + 20 * numbers(seed)[0]),
        "EmotionTarget": lambda seed: Emotion(*numbers(seed, 2)),
        "TagsTarget": tags(target, side) if hasattr(target, "tags") else None,
        "BeatTarget": beats,
        "ChordTarget": segments(("C:maj", "A:min", "N", "X", "G:7", "F#:min/b3")),
        "SectionTarget": segments(getattr(target, "sections", ())),
        "MagnitudeTarget": (lambda seed: StemNames()) if side == "reference" else stem_scores,
    }[type(target).__name__]


def pairs_of(task):
    """Some answers are right, some are not."""
    reference, estimate = examples(task, "reference"), examples(task, "estimate")
    references = [reference(i) for i in range(NUM_TRACKS)]
    estimates = [estimate(i + (i % 3 == 0)) for i in range(NUM_TRACKS)]
    return references, estimates


def result_of(task, references, estimates, **changes):
    metrics = {m.name: m.compute(references, estimates) for m in task.metrics}
    texts = zip(references, estimates, strict=True)
    given = dict(
        run={
            "backbone": "mfcc", "task": task.name, "method": "probe", "protocol": "jukemir-single",
            "metrics": [m.versioned_name for m in task.metrics],
        },
        scores=metrics, intervals=dict.fromkeys(metrics), num_test_tracks=len(references),
        num_official_test_tracks=len(references), split_hash="ab12",
        predictions=tuple(Prediction(f"t{i}", str(r), str(e)) for i, (r, e) in enumerate(texts)),
    )  # fmt: skip
    return Result(**given | changes)


@pytest.mark.parametrize("name", list(TASKS))
def test_answers_of_every_task_come_back_and_give_the_same_scores(name):
    task = TASKS[name]
    references, estimates = pairs_of(task)
    stored = Result.from_json(result_of(task, references, estimates).to_json())
    answers = read_answers(stored)
    assert answers.track_ids == tuple(f"t{i}" for i in range(NUM_TRACKS))
    for read, made in ((answers.references, references), (answers.estimates, estimates)):
        assert [type(a) for a in read] == [type(a) for a in made]
        assert [str(a) for a in read] == [str(a) for a in made]
    again = rescore(stored)
    assert list(again) == list(stored.scores) == [m.name for m in task.metrics]
    assert again == pytest.approx(stored.scores, abs=1e-12, rel=0)
    assert any(0.01 < abs(score) < 0.99 or task.task_type == "separation" for score in again.values())


def test_separation_scores_are_written_to_the_last_bit():
    references, estimates = pairs_of(TASKS["musdb18"])
    assert list(read_estimates(result_of(TASKS["musdb18"], references, estimates))) == estimates


def test_tracks_can_be_chosen_and_ordered():
    task = TASKS["scores-key"]
    stored = result_of(task, *pairs_of(task))
    answers = read_answers(stored, ["t5", "t2"])
    assert answers.track_ids == ("t5", "t2")
    assert answers.references == (Key.from_index(5), Key.from_index(2))
    assert read_estimates(stored, ["t2"]) == (Key.from_index(2),)
    with pytest.raises(AnswerError, match="1 tracks have no prediction, the first is 'x'"):
        read_answers(stored, ["t1", "x"])


def test_what_cannot_be_read_is_named():
    task = TASKS["scores-key"]
    stored = result_of(task, *pairs_of(task))
    with pytest.raises(AnswerError, match="keeps no predictions"):
        read_answers(dataclasses.replace(stored, predictions=()))
    broken = (*stored.predictions[:-1], dataclasses.replace(stored.predictions[-1], estimate="H minor"))
    with pytest.raises(AnswerError, match="the estimate of track 't11': 'H' is not a pitch class"):
        read_answers(dataclasses.replace(stored, predictions=broken))
    twice = (*stored.predictions[:-1], stored.predictions[0])
    with pytest.raises(AnswerError, match="track 't0' has two predictions"):
        rescore(dataclasses.replace(stored, predictions=twice))
    with pytest.raises(UnknownNameError, match="unknown task 'my-labels'"):
        read_answers(dataclasses.replace(stored, run=stored.run | {"task": "my-labels"}))
    own = dataclasses.replace(task, target=type("OwnTarget", (), {})())
    with pytest.raises(AnswerError, match="answers of a OwnTarget, as of task 'scores-key'"):
        text_of(own)


def test_values_of_own_tasks_can_be_read_too():
    task = dataclasses.replace(TASKS["emomusic"], target=ValuesTarget(("year",), (1990.0,), (10.0,)))
    value = Values({"year": 1987.25})
    assert text_of(task).estimate(str(value)) == text_of(task).reference(str(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "vocals 1.00 dB", "24000 Hz: vocals 1.00", "24000 Hz: vocals nan dB", "24000 Hz: vocals 1 dB, vocals 2 dB",
     "24000 Hz: vocals 1 dB; 24000 Hz: vocals 1 dB", "24000 Hz: vocals 1e400 dB"],
)  # fmt: skip
def test_text_that_holds_no_separation_scores(text):
    with pytest.raises(ValueError, match=r"no separation scores|names a stem twice"):
        text_of(TASKS["musdb18"]).estimate(text)


def test_metrics_of_other_versions_are_refused():
    task = TASKS["scores-key"]
    stored = result_of(task, *pairs_of(task))
    assert list(metrics_of(stored)) == ["key_weighted"]
    unrecorded = {k: v for k, v in stored.run.items() if k != "metrics"}
    assert list(metrics_of(dataclasses.replace(stored, run=unrecorded))) == ["key_weighted"]
    with pytest.raises(AnswerError, match=r"'key_weighted' of another version: .*key_weighted@1"):
        metrics_of(dataclasses.replace(stored, run=stored.run | {"metrics": ["key_weighted@0"]}))
    other = dataclasses.replace(stored, scores={"accuracy": 0.5}, intervals={"accuracy": None})
    with pytest.raises(
        AnswerError, match=r"task 'scores-key' has no metric 'accuracy'\. It has: key_weighted"
    ):
        rescore(other)
