"""Contracts that every registered task is held to, and a few numbers that any correct metric gives."""

import dataclasses
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo
from audiation.datasets import DATASETS, metadata
from audiation.frame_targets import BeatTarget, ChordTarget, KeyFramesTarget, SectionTarget
from audiation.frames import FrameGrid
from audiation.magnitudes import MagnitudeTarget
from audiation.methods import parse_method
from audiation.metrics_separation import StemNames, StemScores
from audiation.probe import check_classes
from audiation.protocols import PROTOCOLS
from audiation.published import published_rows
from audiation.registry import UnknownNameError
from audiation.splits import load_dataset
from audiation.targets import (
    ClassTarget,
    ClipContext,
    EmotionTarget,
    KeyTarget,
    PitchTarget,
    TagsTarget,
    TempoTarget,
)
from audiation.tasks import TASKS

RATE_HZ, SECONDS = 100.0, 40.0
GRID = FrameGrid(round(RATE_HZ * SECONDS), RATE_HZ, 0.5 / RATE_HZ)

TASK_TYPES = {
    ClassTarget: "multi-class",
    KeyTarget: "multi-class",
    PitchTarget: "multi-class",
    TempoTarget: "multi-class",
    TagsTarget: "multi-label",
    EmotionTarget: "regression",
    BeatTarget: "sequence",
    ChordTarget: "sequence",
    KeyFramesTarget: "sequence",
    SectionTarget: "sequence",
    MagnitudeTarget: "separation",
}

# What the package set out to answer, by the names that runs and results are stored under.
NAMES = {
    "mtt", "mtt_clean", "mtg_top50", "gtzan_genre", "mtg_genre", "mtg_moodtheme", "mtg_instrument",
    "giantsteps_key", "gtzan_key", "hooktheory_key", "hooktheory_giantsteps_key", "scores-key",
    "gtzan_tempo", "giantsteps_tempo", "scores-tempo", "emomusic", "nsynth_pitch", "nsynth_instrument",
    "scores-timbre", "emomusic_5s", "vocalset_technique", "vocalset_singer", "gtzan_rhythm", "harmonix_rhythm",
    "harmonix_rhythm_readme", "scores-beats", "hooktheory_chord", "hooktheory_chord_readme", "chords1217",
    "scores-chords", "harmonix", "harmonix_readme", "hooktheory_structure", "musdb18",
}  # fmt: skip

FRAME_TASKS = [name for name in TASKS if TASKS[name].task_type == "sequence"]
BEAT_TASKS = [name for name in TASKS if isinstance(TASKS[name].target, BeatTarget)]


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)
    monkeypatch.delenv("AUDIATION_DATA_ROOT", raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def segments(bounds, labels):
    bounds = np.array(bounds, dtype=float)
    return Segments(np.stack([bounds[:-1], bounds[1:]], axis=1), tuple(labels))


# Answers that each kind of target can express. A new kind needs lines here -------------------------------


def references_of(target):
    """Annotations that show all of an output space, and that no cyclic shift maps onto themselves."""
    match target:
        case ClassTarget():
            return [Label(c) for c in target.classes]
        case KeyTarget() | KeyFramesTarget():
            return [Key.from_index(i) for i in range(24)]
        case PitchTarget():
            return [Pitch(i) for i in range(128)]
        case TempoTarget():
            return [Tempo(bpm) for bpm in (61.25, 85.0, 107.5, 140.75, 183.0, 299.0)]
        case EmotionTarget():
            return [Emotion(2.0 + i, 8.0 - 0.5 * (i % 3)) for i in range(7)]
        case TagsTarget():
            size = len(target.tags)
            return [
                Tags({t: float((k - i) % size < 3) for k, t in enumerate(target.tags)}) for i in range(size)
            ]
        case BeatTarget():
            return [four_in_a_bar(bpm, first) for bpm, first in ((100.0, 0.31), (133.0, 0.12), (171.0, 0.24))]
        case ChordTarget():
            roots = ("C:maj", "A:min", "N", "Gb:maj", "B:min", "E:maj", "Eb:min")
            bounds = [0.0, 3.01, 8.47, 14.02, 21.11, 27.53, 33.86, SECONDS]
            return [segments(bounds, roots[i:] + roots[:i]) for i in range(len(roots))]
        case SectionTarget():
            names = target.sections
            return [
                segments(
                    [0.0, *(b + 3.1 * (i % 2) for b in (7.17, 15.29, 28.43)), SECONDS], (names * 2)[i : i + 4]
                )
                for i in range(len(names))
            ]
    raise NotImplementedError(f"say here which annotations {type(target).__name__} can express")


def four_in_a_bar(bpm, first):
    """Up to the end: the model of tempo goes on where a reference stops."""
    times = np.arange(first, SECONDS - 0.02, 60 / bpm)
    return Beats(times, np.arange(len(times)) % 4 + 1)


def through(target, annotation):
    """The annotation as a model that has learned it would give it back."""
    if not target.per_frame:
        encoded = target.encode(annotation)
        match target:
            case TagsTarget():
                return target.decode(encoded * 20 - 10)
            case TempoTarget():
                return target.decode((encoded + 1e-6).log())
            case EmotionTarget():
                return target.decode(encoded.double())
        return target.decode(F.one_hot(encoded, target.num_outputs).float())
    encoded = target.encode(annotation, GRID)
    match target:
        case BeatTarget(outputs="three_class"):
            logits = (F.one_hot(encoded, 3) * 0.85 + 0.05).log()
        case BeatTarget():
            # Several states hear a beat, so one frame of it is little to go by: a model's peaks are wider.
            wide = dataclasses.replace(target, widening=target.widening or (0.5, 0.25))
            logits = wide.encode(annotation, GRID).clamp(0.05, 0.9).logit()
        case SectionTarget():
            functions = F.one_hot(encoded[:, 0].long(), len(target.sections)).float() * 8
            logits = torch.cat([functions, encoded[:, 1:].clamp(0.01, 0.99).logit()], dim=1)
        case _:
            logits = F.one_hot(encoded, target.num_outputs).float() * 8
    return target.decode(logits, ClipContext(GRID))


# Contracts -----------------------------------------------------------------------------------------------


def test_every_task_that_the_package_promises_is_there_by_name():
    assert set(TASKS) >= NAMES
    task = TASKS["hooktheory_giantsteps_key"]
    assert (task.train_dataset, task.test_dataset) == ("hooktheory", "giantsteps_key")
    assert task.target.num_outputs == 25 and task.target.frame_rate_hz == 0.5
    assert TASKS["harmonix_rhythm"].train_dataset == "harmonix"
    assert [m.name for m in TASKS["gtzan_genre"].metrics] == ["accuracy", "accuracy_class_macro"]
    assert [m.name for m in TASKS["gtzan_key"].metrics] == ["key_weighted", "key_weighted_symmetric"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_itself_and_is_complete(name):
    task = TASKS[name]
    assert task.name == name and task.question.endswith("?")
    assert task.metrics and len({m.name for m in task.metrics}) == len(task.metrics)
    assert task.clip_seconds is None or task.clip_seconds > 0
    assert task.level in ("high-level", "score", "performance", "acoustic")
    assert task.task_type == TASK_TYPES[type(task.target)]
    assert task.target.per_frame == (task.task_type in ("sequence", "separation"))


def test_levels_of_musical_description():
    """Thesis, table 3.1."""
    levels = {
        "high-level": {"mtt", "gtzan_genre", "giantsteps_key", "emomusic", "mtg_moodtheme"},
        "score": {"nsynth_pitch", "gtzan_rhythm"},
        "performance": {"vocalset_technique"},
        "acoustic": {"nsynth_instrument", "mtg_instrument", "vocalset_singer", "musdb18"},
    }
    for level, names in levels.items():
        assert {TASKS[name].level for name in names} == {level}


@pytest.mark.parametrize("name", TASKS)
def test_the_data_sets_of_a_task_exist_with_the_variants_that_it_names(name, tmp_path):
    for dataset in {TASKS[name].train_dataset, TASKS[name].test_dataset}:
        assert dataset.partition(":")[0] in DATASETS
        # The readers look at the choices first, so what stops them here is that nothing is there.
        with pytest.raises(FileNotFoundError, match=r"not found|looked for"):
            load_dataset(dataset, tmp_path / "nothing")


def test_variants_that_a_reader_does_not_have_are_refused(tmp_path):
    for dataset, message in (
        ("gtzan_rhythm:split=some", "split is 'fault_filtered' or 'all', got 'some'"),
        ("gtzan_rhythm:colour=red", "gtzan_rhythm has no choice 'colour=red'.*fields: split, annotations"),
        ("gtzan_rhythm:split", "has no choice 'split'"),
        ("gtzan_rhythm:split=all,split=all", "has no choice 'split=all'. Each is given once"),
        ("gtzan_rhythm:metadata_root=x", "has no choice 'metadata_root=x'"),
        ("scores:seed=1", "scores has no choice 'seed=1'.*fields: none"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(dataset, tmp_path)
    with pytest.raises(UnknownNameError, match="gtzan_rhythm"):
        load_dataset("gtzan_rythm:split=all", tmp_path)


@pytest.mark.parametrize("name", [n for n in TASKS if TASKS[n].task_type != "separation"])
def test_perfect_answers_score_the_maximum_and_others_less(name):
    """After a round trip through the target: what a model answers that has learned everything."""
    task = TASKS[name]
    references = references_of(task.target)
    estimates = [through(task.target, r) for r in references]
    wrong = references[1:] + references[:1]
    for metric in task.metrics:
        assert metric.compute(references, references) == pytest.approx(1.0, abs=1e-12), metric.name
        assert metric.compute(references, estimates) == pytest.approx(1.0, abs=1e-6), metric.name
        assert metric.compute(references, wrong) < 0.9, metric.name
        assert metric.higher_is_better


def test_separation_has_no_perfect_score_and_every_metric_of_it_rises():
    metrics = TASKS["musdb18"].metrics
    assert len(metrics) == 10 and all(m.higher_is_better for m in metrics)

    def scored(offset):
        stems = {"vocals": 6.0, "drums": 5.0, "bass": 4.0, "other": 1.0}
        return StemScores({rate: {k: v + offset for k, v in stems.items()} for rate in (24_000, 44_100)})

    task = TASKS["musdb18"]
    references = [task.annotation(None)] * 2
    assert references[0] == StemNames()
    values = [
        [m.compute(references, [scored(x), scored(x + 1)]) for m in metrics] for x in (-20.0, 0.0, 60.0)
    ]
    assert values[1] == pytest.approx([4.5, 6.5, 5.5, 4.5, 1.5] * 2)
    assert np.diff(values, axis=0) == pytest.approx(np.array([[20.0] * 10, [60.0] * 10]))


@pytest.mark.parametrize("name", FRAME_TASKS)
def test_frame_tasks_are_learned_from_windows_of_a_published_length(name):
    """MusicFM's inputs: 6 s for beats, 12 s for chords and keys, 24 s for structure; the clips of ours last 12 s."""
    task = TASKS[name]
    published = {BeatTarget: 6.0, ChordTarget: 12.0, KeyFramesTarget: 12.0, SectionTarget: 24.0}[
        type(task.target)
    ]
    marble = {"gtzan_rhythm": 10.0, "chords1217": 15.0}
    expected = None if name.startswith("scores-") else marble.get(name, published)
    assert task.clip_seconds == expected
    config = PROTOCOLS["musicfm"].config(parse_method("probe"), "musicfm-msd", 30.0, name, 100, 0, expected)
    assert config.crop_seconds == expected


def test_protocols_name_only_tasks_that_exist():
    for protocol in (PROTOCOLS[name] for name in PROTOCOLS):
        named = [*getattr(protocol, "crop_seconds", ()), *getattr(protocol, "augment", ())]
        named += getattr(protocol, "steps", ())
        assert {row[0] for row in named} <= set(TASKS), protocol.name


# Published numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_numbers_to_compare_with_are_published(name):
    task = TASKS[name]
    assert not (task.published_as and task.compare_with)
    ids = task.published_as or task.compare_with
    if ids is None:
        assert name in (
            "beatles_chord",
            "chords1217",
            "hooktheory_key",
            "hooktheory_structure",
        )  # MARBLE v2 printed no table of them
        return
    rows = published_rows(*ids)
    printed = {m.printed_name for m in task.metrics}
    shown = [r for r in rows if r.metric in printed and r.train_on == task.published_train_on]
    assert shown
    # What is published of this question is a metric of the task, under whatever name we give its variant.
    assert {r.metric for r in rows if r.train_on == task.published_train_on} <= printed
    if not name.startswith("emomusic"):  # which is selected by the mean of what is printed apart
        assert task.metrics[0].printed_name in {r.metric for r in shown} | {"sdr_mdx2021_24khz"}
    # Data of our own, and splits of singers that are apart where the published ones are not (D21).
    assert (task.compare_with is not None) == name.startswith(("scores-", "vocalset_"))


def test_training_data_tells_published_rows_of_one_test_set_apart():
    """Trained inside GTZAN or on Harmonix, inside GiantSteps-MTG or on HookTheory: never in one ranking (D23)."""
    for inside, outside, other in (
        ("gtzan_rhythm", "harmonix_rhythm", "harmonix"),
        ("giantsteps_key", "hooktheory_giantsteps_key", "hooktheory_key"),
    ):
        assert TASKS[inside].published_as == TASKS[outside].published_as
        assert (TASKS[inside].published_train_on, TASKS[outside].published_train_on) == ("", other)
        rows = published_rows(*TASKS[inside].published_as, TASKS[inside].metrics[0].printed_name)
        assert {r.train_on for r in rows} == {"", other}


# Any correct metric gives these ---------------------------------------------------------------------------


def shifted(beats, seconds):
    return Beats(beats.times_seconds + seconds, beats.positions)


@pytest.mark.parametrize("name", BEAT_TASKS)
def test_beats_that_are_71_ms_late_are_all_wrong_and_69_ms_all_right(name):
    references = references_of(TASKS[name].target)
    for metric in TASKS[name].metrics:
        tolerance = 0.07 if "70ms" in metric.name else 0.02
        if "trim" not in metric.name:  # where an event may move over the five seconds
            near = metric.compute(references, [shifted(r, tolerance - 0.001) for r in references])
            assert near == 1.0, metric.name
        far = metric.compute(references, [shifted(r, tolerance + 0.001) for r in references])
        assert far == 0.0, metric.name


def test_a_constant_key_scores_what_the_circle_of_fifths_gives():
    """1 + 1/2 + 3/10 + 1/5 out of 24 keys; with the fifth below 1/2 more."""
    keys = [Key.from_index(i) for i in range(24)]
    weighted, symmetric = TASKS["gtzan_key"].metrics
    for constant in keys:
        assert weighted.compute(keys, [constant] * 24) == pytest.approx(2.0 / 24)
        assert symmetric.compute(keys, [constant] * 24) == pytest.approx(2.5 / 24)


def test_the_mean_of_the_references_has_an_r2_of_0_and_equal_scores_an_auc_of_a_half():
    emotions = references_of(TASKS["emomusic"].target)
    mean = Emotion(*np.mean([(e.arousal, e.valence) for e in emotions], axis=0))
    for metric in TASKS["emomusic"].metrics:
        assert metric.compute(emotions, [mean] * len(emotions)) == pytest.approx(0.0, abs=1e-12)
    tags = references_of(TASKS["mtt"].target)
    flat = [Tags(dict.fromkeys(t.scores, 0.5)) for t in tags]
    found = {m.name: m.compute(tags, flat) for m in TASKS["mtt"].metrics}
    assert found["roc_auc"] == found["roc_auc_undefined_zero"] == 0.5
    assert found["ap"] == found["ap_undefined_skipped"] == pytest.approx(3 / 50)


def test_twice_the_tempo_is_wrong_for_accuracy_1_and_right_for_accuracy_2():
    tempi = references_of(TASKS["gtzan_tempo"].target)
    for factor, expected in (
        (2.0, (0.0, 1.0)),
        (1.039, (1.0, 1.0)),
        (1.041, (0.0, 0.0)),
        (1 / 3, (0.0, 1.0)),
    ):
        answers = [Tempo(factor * t.bpm) for t in tempi]
        assert tuple(m.compute(tempi, answers) for m in TASKS["gtzan_tempo"].metrics) == expected


# Data that do not show all classes -------------------------------------------------------------------------


def test_a_training_split_need_not_have_every_pitch_that_midi_knows():
    """No instrument of NSynth plays below MIDI 9 or above 119; those can never be tested either."""
    check_classes(TASKS["nsynth_pitch"].target, [Pitch(i) for i in range(9, 120)])


def test_a_closed_list_of_classes_is_learned_whole():
    for name in ("nsynth_instrument", "vocalset_singer", "hooktheory_structure", "gtzan_key"):
        references = references_of(TASKS[name].target)
        check_classes(TASKS[name].target, references)
        with pytest.raises(ValueError, match=f"no example of {references[0]}"):
            check_classes(TASKS[name].target, references[1:])


@dataclasses.dataclass(frozen=True)
class KeysOverTime:
    """An excerpt of HookTheory, as far as keys go."""

    split: str
    keys: Segments
    key: Key | None


def test_keys_over_time_are_learned_and_one_key_is_what_an_answer_is_compared_with():
    """Metrics compare keys; an excerpt that has two, or none, can be learned from and not asked about."""
    task = TASKS["hooktheory_giantsteps_key"]
    two = segments([0.0, 4.0, 8.0], ["C major", "none"])
    one = segments([0.0, 8.0], ["C major"])
    assert task.annotation(KeysOverTime("train", two, None)) is two
    assert task.target.encode(task.annotation(KeysOverTime("train", one, Key(0, "major"))), GRID)[0] == 0
    assert task.annotation(KeysOverTime("valid", one, Key(0, "major"))) == Key(0, "major")
    assert task.annotation(KeysOverTime("valid", two, None)) is None
