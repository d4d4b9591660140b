"""How the answers about the windows of a track become one: jukemir's ensembles, and tracks that share an answer."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch

from audiation.adapted import AdaptedModel, answer_track
from audiation.adapted_evaluation import answer_examples
from audiation.annotations import Emotion, Key, Label
from audiation.evaluation import Run, evaluate
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.metrics import ACCURACY, KEY_WEIGHTED
from audiation.probe import ProbeConfig
from audiation.probe_evaluation import aggregation_rules
from audiation.probe_scores import ValidationScorer, answer_tracks
from audiation.protocols import PROTOCOLS
from audiation.targets import ClassTarget, EmotionTarget, KeyTarget, TagsTarget
from audiation.tasks import TASKS
from audiation.track_windows import Example
from audiation.windows import AGGREGATIONS, aggregate, window_policy

JUKEMIR = PROTOCOLS["jukemir-single"]
RATE_HZ = 22_050
ABC = ClassTarget(("a", "b", "c"))
# Fixtures, section 18.
WINDOWS = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 10.0, 0]])


def rows_of_keys(*windows):
    """Logits `(N, 24)`; of each window the keys that it names, by index."""
    rows = torch.zeros(len(windows), 24)
    for row, named in zip(rows, windows, strict=True):
        for index, value in named.items():
            row[index] = value
    return rows


KEYS = TASKS["giantsteps_key"]


def chosen(keys, vectors, track_of_window, task=KEYS):
    references = [Key.from_index(k) for k in keys]
    rules = aggregation_rules(JUKEMIR, task)
    scorer = ValidationScorer(task.target, task.metrics[0], references, torch.tensor(track_of_window), rules)
    return scorer.best_rule(vectors)


# The rules -------------------------------------------------------------------------------------------------


def test_the_four_ensembles_of_the_fixture_differ_as_published():
    owner = torch.zeros(3, dtype=torch.int64)
    found = {rule: answer_tracks(ABC, WINDOWS, owner, rule)[0].name for rule in AGGREGATIONS}
    assert found == {"majority": "a", "max": "b", "logits_mean": "b", "probability_mean": "a"}
    assert AGGREGATIONS == ("majority", "max", "logits_mean", "probability_mean")
    mean = aggregate(WINDOWS, "logits_mean")
    assert mean[:2].tolist() == pytest.approx([4 / 3, 10 / 3])
    probabilities = aggregate(WINDOWS, "probability_mean").exp()
    assert probabilities[:2].tolist() == pytest.approx([0.525, 0.404], abs=5e-4)
    assert float(probabilities.sum()) == pytest.approx(1.0)


def test_votes_that_are_even_go_to_the_first_class():
    windows = torch.tensor([[0.0, 0, 1], [0.0, 5, 0]])
    assert answer_tracks(ABC, windows, torch.tensor([0, 0]), "majority") == [Label("b")]
    votes = aggregate(windows, "majority")
    assert votes[1] == votes[2] > votes[0]


def test_windows_go_to_their_tracks_in_whatever_order_they_stand():
    vectors = torch.tensor([[0.0, 9, 0], [0.0, 0, 9], [9.0, 0, 0], [0.0, 8, 0]])
    owner = torch.tensor([1, 2, 0, 1])
    for rule in AGGREGATIONS:
        assert [a.name for a in answer_tracks(ABC, vectors, owner, rule)] == ["a", "b", "c"]
    assert [a.name for a in answer_tracks(ABC, WINDOWS, torch.tensor([0, 1, 2]), "majority")] == [
        "a",
        "a",
        "b",
    ]


def test_a_track_without_a_window_has_no_answer():
    for rule in AGGREGATIONS:
        with pytest.raises(ValueError, match=r"track number 1 has no window|one window or more"):
            answer_tracks(ABC, WINDOWS, torch.tensor([0, 0, 2]), rule)


def test_tags_and_numbers_are_averaged_under_this_protocol():
    windows = torch.tensor([[4.0, -2.0], [0.0, 0.0]])
    owner = torch.zeros(2, dtype=torch.int64)
    (tags,) = answer_tracks(TagsTarget(("x", "y")), windows, owner)
    assert tags.scores == pytest.approx({"x": 0.88079708, "y": 0.26894142})
    (emotion,) = answer_tracks(EmotionTarget((5.0, 4.0), (2.0, 1.0)), windows, owner)
    assert emotion == Emotion(9.0, 3.0)


def test_a_rule_that_nobody_has():
    with pytest.raises(
        ValueError, match="an aggregation is one of majority, max, logits_mean, probability_mean"
    ):
        aggregate(WINDOWS, "median")


# The choice on validation ------------------------------------------------------------------------------------


def test_keys_alone_choose_among_four_rules():
    assert aggregation_rules(JUKEMIR, TASKS["giantsteps_key"]) == AGGREGATIONS
    for name in ("gtzan_genre", "mtt", "emomusic", "gtzan_tempo", "nsynth_pitch"):
        assert aggregation_rules(JUKEMIR, TASKS[name]) == ("logits_mean",)
    fixed = dataclasses.replace(JUKEMIR, search_key_aggregation=False)
    assert aggregation_rules(fixed, TASKS["giantsteps_key"]) == ("logits_mean",)


def test_the_rule_that_is_best_on_validation_is_taken():
    """One track each, on which exactly the named rules find the key."""
    only_max_and_mean = rows_of_keys({0: 2.0}, {0: 2.0}, {1: 10.0})
    assert chosen([1], only_max_and_mean, [0, 0, 0]) == "max"  # so does logits_mean, which comes later
    assert chosen([0], only_max_and_mean, [0, 0, 0]) == "majority"
    # The largest single output is wrong here, the votes are wrong, and the mean of the outputs is right.
    only_means = rows_of_keys({0: 9.0, 1: 8.5}, {2: 8.0, 1: 7.9}, {2: 8.0, 1: 7.9})
    assert chosen([1], only_means, [0, 0, 0]) == "logits_mean"
    # A mean of probabilities bounds what one window can say, and a vote ignores how close it was.
    only_probabilities = rows_of_keys({0: 5.0, 1: 4.9}, {0: 5.0, 1: 4.9}, {1: 6.0}, {2: 30.0})
    assert chosen([1], only_probabilities, [0, 0, 0, 0]) == "probability_mean"


def test_equal_rules_keep_the_order_vote_max_outputs_probabilities():
    """Fixtures, section 18: of equal scores on validation the earlier."""
    assert chosen([3, 7], rows_of_keys({3: 5.0}, {7: 5.0}), [0, 1]) == "majority"
    assert chosen([1], rows_of_keys({0: 2.0}, {0: 2.0}, {1: 10.0}), [0, 0, 0]) == "max"
    nobody_is_right = rows_of_keys({0: 5.0}, {0: 5.0})
    assert chosen([6], nobody_is_right, [0, 0]) == "majority"


def test_the_choice_is_made_by_the_first_metric_of_the_task():
    """By the weighted score a fifth above is worth half a key, and by accuracy nothing."""
    # Of a track in C two windows say Gb, and one is surer of G.
    windows = rows_of_keys({6: 2.0}, {6: 2.0}, {7: 10.0})
    weighted = chosen([0], windows, [0, 0, 0])
    accuracy = chosen([0], windows, [0, 0, 0], dataclasses.replace(KEYS, metrics=(ACCURACY, KEY_WEIGHTED)))
    assert (weighted, accuracy) == ("max", "majority")


# Parts of a recording that share an answer -----------------------------------------------------------------

VIDEOS = {"train": 24, "val": 4, "test": 6}


def triad(key, seconds, sample_rate_hz=RATE_HZ):
    time = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    third = 4 if key.mode == "major" else 3
    notes = (key.tonic, key.tonic + third, key.tonic + 7, key.tonic + 12)
    return 0.15 * sum(np.sin(2 * np.pi * 220 * 2 ** ((n - 9) / 12) * time) for n in notes)


@pytest.fixture(scope="module")
def hooktheory(tmp_path_factory):
    """A video per key and split; those of the test have two excerpts each."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "HookTheory"
    (folder / "hooktheory_clips").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in VIDEOS.items():
        lines = []
        for i in range(count):
            key = Key.from_index(i)
            for part in range(2 if split == "test" else 1):
                clip = f"{split}{i:02}{'ab'[part]}"
                wave = triad(key, 0.4 + 0.1 * part)
                wave += 0.001 * rng.standard_normal(len(wave))
                soundfile.write(folder / "hooktheory_clips" / f"{clip}.mp3", wave, RATE_HZ, format="WAV")
                lines.append(
                    {
                        "audio_path": f"hooktheory_clips/{clip}.mp3",
                        "ori_uid": f"{split}{i:02}",
                        "label": str(key),
                    }
                )
        (folder / f"HookTheoryKey.{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return root


@pytest.fixture
def places(hooktheory, tmp_path, monkeypatch, impatient):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)
    # Windows of the task's own length would leave out excerpts as short as these.
    short = dataclasses.replace(TASKS["hooktheory_key"], clip_seconds=None)
    monkeypatch.setattr("audiation.evaluation.TASKS", {"hooktheory_key": short})
    return {"data_root": hooktheory, "store_dir": tmp_path / "store"}


RUNS = {
    "probe on stored features": Run("mfcc", "hooktheory_key"),
    "trained on windows": Run(
        "mfcc", "hooktheory_key", protocol="petl",
        train="steps=4,batch_size=24,validate_every_steps=2,precision=fp32,crops=fixed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_excerpts_of_one_video_have_one_answer_and_are_counted_once(places, run):
    """MARBLE v2: one answer per video (D34)."""
    result = evaluate(run, **places)
    assert [p.track_id for p in result.predictions] == [f"test{i:02}a" for i in range(6)]
    assert [p.reference for p in result.predictions] == [str(Key.from_index(i)) for i in range(6)]
    assert result.num_test_tracks == result.num_official_test_tracks == 6 and result.coverage == 1.0
    assert result.failures == ()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_part_that_cannot_be_read_leaves_the_others_of_its_video(places, hooktheory, run):
    path = hooktheory / "HookTheory" / "hooktheory_clips" / "test03a.mp3"
    whole = path.read_bytes()
    try:
        path.write_bytes(b"not audio")
        result = evaluate(run, **places)
    finally:
        path.write_bytes(whole)
    assert [(f.track_id, f.split) for f in result.failures] == [("test03a", "test")]
    assert result.predictions[3].track_id == "test03b" and result.num_test_tracks == 6
    assert result.num_official_test_tracks == 7


@pytest.fixture(scope="module")
def excerpts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("excerpts")
    found = []
    for i in range(4):
        path = folder / f"{i}.wav"
        soundfile.write(path, triad(Key.from_index(5 * i), 1.1 + 0.5 * i), RATE_HZ)
        found.append(Example(str(i), path, Key.from_index(5 * i)))
    return found


@pytest.fixture(scope="module")
def model():
    backbone = load_backbone("mfcc")
    inject(backbone, "probe")
    generator = torch.Generator().manual_seed(3)
    return AdaptedModel(
        backbone, KeyTarget(), crop_seconds=0.5, policy=window_policy("petl"), generator=generator
    ).eval()


def test_the_windows_of_all_parts_are_combined_together(model, excerpts):
    groups = {"0": "x", "1": "y", "2": "x", "3": "x"}
    answers = answer_examples(model, excerpts, "fp32", groups)
    windows = {e.track_id: answer_track(model, e.path).window_logits for e in excerpts}
    assert [len(w) for w in windows.values()] == [2, 3, 4, 5]
    together = torch.stack([*windows["0"], *windows["2"], *windows["3"]])
    expected = KeyTarget().decode(aggregate(together, "probability_mean"))
    assert list(answers.estimates) == ["0", "1"] and answers.failures == ()
    assert answers.estimates["0"] == expected
    alone = answer_examples(model, excerpts, "fp32")
    assert list(alone.estimates) == ["0", "1", "2", "3"] and alone.estimates["1"] == answers.estimates["1"]


def test_a_group_whose_first_part_fails_is_answered_by_the_others(model, excerpts, tmp_path):
    missing = Example("gone", tmp_path / "gone.wav", Key(0, "major"))
    groups = {"gone": "x", "2": "x", "3": "x"}
    answers = answer_examples(model, [missing, *excerpts[2:]], "fp32", groups)
    assert list(answers.estimates) == ["2"] and [f[0] for f in answers.failures] == ["gone"]


def test_the_config_of_jukemir_single_is_one_probe():
    assert JUKEMIR.probes == (ProbeConfig(),) and JUKEMIR.search_key_aggregation
