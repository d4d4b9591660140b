"""Comparisons, ranks, seeds and averages; and the resampling behind them."""

import dataclasses
import json
from collections import defaultdict
from importlib import resources

import numpy as np
import pytest

from audiation.annotations import Key, Label, Tags
from audiation.answers import AnswerError, read_answers
from audiation.bootstrap import (
    Interval,
    bootstrap_interval,
    paired_interval,
    percentile_interval,
    resampled_scores,
)
from audiation.metrics import (
    ACCURACY,
    ACCURACY_CLASS_MACRO,
    AP,
    AP_UNDEFINED_SKIPPED,
    R2_MEAN,
    ROC_AUC,
    ROC_AUC_UNDEFINED_ZERO,
    Metric,
)
from audiation.published import PublishedScore
from audiation.ranking import (
    PAPER_AVERAGES,
    NotComparableError,
    better_than_both,
    compare,
    compare_means,
    normalised_average,
    over_seeds,
    paper_average,
    rank_average,
    rank_groups,
)
from audiation.results import Failure, Prediction, Result, Trial
from audiation.tasks import TASKS


def key_result(right, backbone="mfcc", ids=None, num_tracks=60, **changes):
    """`right`: numbers of the tracks that are answered right."""
    ids = range(num_tracks) if ids is None else ids
    wrong = "F# minor"
    predictions = tuple(Prediction(f"t{i}", "C major", "C major" if i in right else wrong) for i in ids)
    score = sum(i in right for i in ids) / len(ids)
    run = {"backbone": backbone, "task": "scores-key", "method": "probe", "protocol": "jukemir-single"}
    run |= {"metrics": ["key_weighted@1"], "seed": 0, "weights": None, "weights_hash": "w"}
    run |= changes.pop("run", {})
    given = dict(
        run=run, scores={"key_weighted": score}, intervals={"key_weighted": None},
        num_test_tracks=len(ids), num_official_test_tracks=len(ids), split_hash="ab12", predictions=predictions,
    )  # fmt: skip
    return Result(**given | changes)


# Resampling -----------------------------------------------------------------------------------------------


def tag_pairs(num_tracks=80, num_tags=7, seed=0):
    """With ties, a tag that is rare, one that nothing has and one that everything has."""
    generator = np.random.default_rng(seed)
    truth = generator.random((num_tracks, num_tags)) < generator.uniform(0.05, 0.6, num_tags)
    truth[:, 0], truth[:, 1], truth[:, 2] = False, True, False
    truth[3, 2] = True
    scores = np.round(generator.random((num_tracks, num_tags)) * 0.7 + 0.3 * truth, 1)
    names = [f"tag{i}" for i in range(num_tags)]
    return [
        [Tags(dict(zip(names, map(float, row), strict=True))) for row in table] for table in (truth, scores)
    ]


@pytest.mark.parametrize(
    "metric", [AP, AP_UNDEFINED_SKIPPED, ROC_AUC, ROC_AUC_UNDEFINED_ZERO], ids=lambda m: m.name
)
def test_resampled_tags_are_what_the_metric_says_of_every_resample(metric):
    references, estimates = tag_pairs()
    scores = resampled_scores(metric, references, estimates, num_resamples=120, seed=5)
    draws = np.random.default_rng(5).integers(0, 80, (100, 80))  # the first block
    expected = [metric.compute([references[i] for i in d], [estimates[i] for i in d]) for d in draws]
    assert scores.shape == (120,)
    assert scores[:100] == pytest.approx(expected, abs=1e-12)


def test_resampled_tags_are_nan_where_no_tag_is_defined():
    references = [Tags({"a": 1.0}), Tags({"a": 0.0}), Tags({"a": 0.0})]
    scores = resampled_scores(AP_UNDEFINED_SKIPPED, references, references, num_resamples=50)
    draws = np.random.default_rng(0).integers(0, 3, (50, 3))
    assert np.isnan(scores).tolist() == [0 not in draw for draw in draws]
    assert set(scores[np.isfinite(scores)]) == {1.0}


def test_systems_share_their_resamples_and_both_ways_of_pairing_agree():
    generator = np.random.default_rng(1)
    references = [Label("abc"[i]) for i in generator.integers(0, 3, 150)]
    a, b = ([Label("abc"[i]) for i in generator.integers(0, 3, 150)] for _ in "ab")
    for metric in (ACCURACY, ACCURACY_CLASS_MACRO):
        one, two = (resampled_scores(metric, references, e, num_resamples=60, seed=2) for e in (a, b))
        alone = bootstrap_interval(metric, references, a, num_resamples=60, seed=2)
        paired = paired_interval(metric, references, a, b, num_resamples=60, seed=2)
        assert percentile_interval(metric, one, 150) == alone
        assert percentile_interval(metric, one - two, 150) == paired
    tagged, answers = tag_pairs()
    with pytest.raises(ValueError, match="every track needs the same tags"):
        resampled_scores(AP, tagged, [*answers[:-1], Tags({"tag0": 0.5})])
    with pytest.raises(ValueError, match="no tag of these 3 tracks"):
        resampled_scores(ROC_AUC, [Tags({"a": 1.0})] * 3, [Tags({"a": 0.5})] * 3)
    turned = [Tags(dict(reversed(t.scores.items()))) for t in answers]
    same = [resampled_scores(AP, tagged, e, num_resamples=20) for e in (answers, turned)]
    assert same[0].tolist() == same[1].tolist()
    with pytest.raises(ValueError, match="one resample or more, got 0"):
        resampled_scores(ACCURACY, references, a, num_resamples=0)
    with pytest.raises(ValueError, match="2 references and 1 estimates"):
        resampled_scores(ACCURACY, references[:2], a[:1])


def test_one_track_has_no_interval_whatever_the_metric():
    assert bootstrap_interval(R2_MEAN, [0], [0]) is None
    assert paired_interval(R2_MEAN, [0], [0], [1]) is None
    assert percentile_interval(R2_MEAN, np.array([1.0, 2.0]), 1) is None


# Two or three systems ---------------------------------------------------------------------------------------


def test_a_comparison_is_paired_and_has_a_sign():
    better, worse = key_result(range(50)), key_result(range(30), "chroma")
    found = compare(better, worse)
    assert (found.score_a, found.score_b) == pytest.approx((50 / 60, 30 / 60))
    assert found.difference == pytest.approx(20 / 60) and found.num_tracks == 60
    references, answers = (
        read_answers(better).references,
        [read_answers(r).estimates for r in (better, worse)],
    )
    assert found.interval == paired_interval(TASKS["scores-key"].metrics[0], references, *answers)
    assert (found.metric, found.verdict) == ("key_weighted", "better")
    swapped = compare(worse, better)
    assert swapped.verdict == "worse" and swapped.interval.high == pytest.approx(-found.interval.low)
    # As many right, elsewhere: the same score, and nothing to tell them apart.
    assert compare(key_result(range(30)), key_result(range(30, 60))).verdict == "cannot be told apart"
    assert compare(better, better).interval == (0.0, 0.0)
    assert compare(better, better).verdict == "cannot be told apart"


def test_pairing_tells_systems_apart_whose_own_intervals_overlap():
    a, b = key_result(range(40)), key_result(range(33))
    own = []
    for result in (a, b):
        answers = read_answers(result)
        own.append(bootstrap_interval(TASKS["scores-key"].metrics[0], answers.references, answers.estimates))
    assert own[0].low < own[1].high
    assert compare(a, b).verdict == "better"


def test_only_tracks_that_both_answered_count():
    a = key_result(range(20), ids=range(40))
    b = key_result(range(30), ids=[*range(39, 9, -1), 70])
    found = compare(a, b)
    assert found.num_tracks == 30
    assert (found.score_a, found.score_b) == pytest.approx((10 / 30, 20 / 30))
    one = compare(key_result([1], ids=[1, 2]), key_result([], ids=[1, 3]))
    assert (one.interval, one.verdict, one.difference) == (None, "cannot be told apart", 1.0)


def test_a_metric_that_falls_is_better_where_it_is_lower(monkeypatch):
    def errors(reference, estimate):
        return float(reference != estimate)

    metric = Metric(
        "key_weighted",
        lambda r, e: float(np.mean([errors(*p) for p in zip(r, e, strict=True)])),
        False,
        errors,
    )
    task = dataclasses.replace(TASKS["scores-key"], metrics=(metric,))
    monkeypatch.setitem(TASKS._entries, "scores-key", task)
    good, bad = key_result(range(50)), key_result(range(20))
    assert compare(good, bad).verdict == "better" and compare(good, bad).interval.high < 0
    assert [g.results for g in rank_groups([bad, good])] == [(good,), (bad,)]


def test_a_mean_over_tasks_is_compared_on_the_same_draws():
    """Two tasks on the same tracks: the mean of two equal differences is that difference, with its own interval."""
    better, worse = key_result(set(range(50))), key_result(set(range(20)), backbone="chroma")
    one = compare(better, worse)
    twice = compare_means([(better, worse), (better, worse)])
    assert (twice.score_a, twice.score_b) == (one.score_a, one.score_b)
    assert twice.interval == one.interval and twice.verdict == "better"
    assert compare_means([(better, worse), (worse, better)]).difference == pytest.approx(0.0)
    assert compare_means([(better, worse), (worse, better)]).verdict == "cannot be told apart"
    with pytest.raises(NotComparableError, match="no pairs"):
        compare_means([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_hash": "cd34"}, "another split hash cannot be compared: 'ab12' of mfcc with probe"),
        (
            {"run": {"task": "gtzan_key"}},
            "another task cannot be compared: 'scores-key' of .* and 'gtzan_key'",
        ),
        ({"ids": range(100, 160)}, "share no track"),
    ],
)
def test_what_must_not_be_compared(changes, message):
    with pytest.raises(NotComparableError, match=message):
        compare(key_result(range(9)), key_result(range(9), **changes))


def test_versions_references_and_missing_predictions_are_checked():
    a = key_result(range(9))
    old = key_result(range(9), run={"metrics": ["key_weighted@0"]})
    with pytest.raises(AnswerError, match="of another version"):
        compare(a, old)
    other = (dataclasses.replace(a.predictions[0], reference="D major"), *a.predictions[1:])
    with pytest.raises(NotComparableError, match="track 't0' has another reference in chroma"):
        compare(a, key_result(range(9), "chroma", predictions=other))
    for pair in ([a, key_result([], predictions=())], [key_result([], predictions=()), a]):
        with pytest.raises(AnswerError, match="keeps no predictions"):
            compare(*pair)
    with pytest.raises(NotComparableError, match="no results"):
        rank_groups([])


def test_better_than_both_needs_both_and_shares_the_tracks_of_all_three():
    strong, weak, close = key_result(range(48)), key_result(range(20)), key_result(range(47))
    assert better_than_both(strong, weak, weak).better
    found = better_than_both(strong, close, weak)
    assert not found.better and found.against_b.verdict == "better"
    assert found.against_a.verdict == "cannot be told apart"
    partial = key_result(range(20), ids=range(50))
    found = better_than_both(strong, weak, partial)
    assert found.against_a.num_tracks == found.against_b.num_tracks == 50
    assert found.against_a.score_b == pytest.approx(20 / 50)


# Many systems -----------------------------------------------------------------------------------------------


def test_systems_that_cannot_be_told_apart_share_a_rank():
    best, also, middle, last = (
        key_result(range(n), name)
        for n, name in ((55, "a"), (54, "b"), (40, "c"), (10, "d"))
    )  # fmt: skip
    groups = rank_groups([last, middle, also, best])
    assert [(g.rank, [r.run["backbone"] for r in g.results]) for g in groups] == [
        (1, ["a", "b"]), (3, ["c"]), (4, ["d"]),
    ]  # fmt: skip
    assert {g.num_tracks for g in groups} == {60}
    assert rank_groups([best]) == [dataclasses.replace(groups[0], results=(best,))]


def test_a_rank_counts_the_better_systems_where_being_alike_does_not_carry_over():
    steps = [key_result(range(n), name) for n, name in ((46, "a"), (43, "b"), (40, "c"))]
    verdicts = [compare(steps[i], steps[j]).verdict for i, j in ((0, 1), (1, 2), (0, 2))]
    assert verdicts == ["cannot be told apart", "cannot be told apart", "better"]
    groups = rank_groups(steps)
    assert [(g.rank, [r.run["backbone"] for r in g.results]) for g in groups] == [(1, ["a", "b"]), (2, ["c"])]


# Seeds --------------------------------------------------------------------------------------------------------


def seeded(rights):
    return [key_result(set(right), run={"seed": seed}) for seed, right in enumerate(rights)]


def test_runs_that_differ_in_their_seed_become_one():
    three = seeded([range(30), range(36), range(33)])
    other = key_result(range(9), "chroma")
    alone, group = over_seeds([other, *reversed(three)])
    assert group.seeds == (0, 1, 2) and group.num_seeds == 3
    assert group.scores == pytest.approx((0.5, 0.6, 0.55))
    assert group.mean == pytest.approx(0.55) and group.deviation == pytest.approx(0.05)
    assert (group.minimum, group.maximum) == pytest.approx((0.5, 0.6))
    assert group.system["backbone"] == "mfcc" and "seed" not in group.system
    assert group.interval.low < 0.55 < group.interval.high
    assert (alone.num_seeds, alone.deviation) == (1, None)
    answers = read_answers(other)
    tracks_only = bootstrap_interval(TASKS["scores-key"].metrics[0], answers.references, answers.estimates)
    assert alone.interval == pytest.approx(tracks_only, abs=1e-12)


def test_the_interval_over_seeds_knows_tracks_and_seeds():
    def width(group):
        (found,) = over_seeds(group, num_resamples=4000)
        return found.interval.high - found.interval.low

    agreeing = seeded([range(30)] * 4)
    # The same tracks half of the time, and seeds that are far apart: 0.25 and 0.75 by turns.
    apart = seeded([range(15), range(45), range(15), range(45)])
    tracks = width(agreeing)
    # 1.96 * 2 * sqrt(0.25 / 60)
    assert tracks == pytest.approx(0.253, abs=0.015)
    # With a share q of good seeds the mean is 0.25 + 0.5 q; q has variance 0.25 / 4. A track has 1 in a quarter of the
    # cases, q in a half, 0 in a quarter: its variance is 0.1406 on average over q.
    assert width(apart) == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.25 / 4 + 0.1406 / 60), rel=0.1)


def test_a_searched_layer_does_not_part_seeds_and_a_named_one_does():
    trials = tuple(Trial({"layer": str(i)}, 0.5, 8, 80) for i in range(2))
    searched = [
        key_result(range(9), run={"seed": s, "layer": s}, trials=trials, chosen={"layer": str(s)})
        for s in (0, 1)
    ]
    assert [g.seeds for g in over_seeds(searched)] == [(0, 1)]
    named = [key_result(range(9), run={"seed": s, "layer": s}) for s in (0, 1)]
    assert [g.seeds for g in over_seeds(named)] == [(0,), (1,)]
    random = [
        key_result(range(9), run={"seed": s, "weights": "random", "weights_hash": f"w{s}"}) for s in (0, 1)
    ]
    assert [g.seeds for g in over_seeds(random)] == [(0, 1)]
    moved = [key_result(range(9), run={"seed": s, "weights_hash": f"w{s}"}) for s in (0, 1)]
    assert len(over_seeds(moved)) == 2


def test_a_seed_counts_once():
    with pytest.raises(NotComparableError, match="seed 0 is there 2 times"):
        over_seeds([key_result(range(9)), key_result(range(8))])


# Averages of the papers -----------------------------------------------------------------------------------------

RECORDS = json.loads(resources.files("audiation").joinpath("data/published_results.json").read_text("utf-8"))[
    "records"
]
SOURCES = {  # table with the average -> tables with the cells
    "jukemir-3": ("Table 3",), "thesis-4.2": ("Table 4.2",), "thesis-4.3": ("Table 4.3",),
    "thesis-5.2": ("Table 5.1", "Table 5.2"), "thesis-5.3": ("Table 5.3",), "thesis-5.4": ("Table 5.4",),
    "thesis-6.3": ("Table 6.2", "Table 6.3"),
}  # fmt: skip


def published(record):
    scale = 0.01 if record["unit"] == "percent" else 1.0
    names = ("paper", "table", "system", "method", "task", "dataset", "metric", "note")
    value = round(record["value"] * scale, 6)
    return PublishedScore(**{n: record[n] for n in names}, value=value, train_on=record.get("train_on") or "")


def rows_by_system(name):
    paper, tables = name.partition("-")[0], SOURCES[name]
    rows, printed = defaultdict(list), {}
    for record in RECORDS:
        if record["paper"] == paper and record["table"] in tables:
            if record["metric"] == "average":
                printed[record["system"]] = record["value"]
            else:
                rows[record["system"]].append(published(record))
    return rows, printed


def test_every_printed_average_is_the_mean_of_its_printed_cells():
    off = {}
    for name in PAPER_AVERAGES:
        rows, printed = rows_by_system(name)
        for system, value in printed.items():
            found = paper_average(rows[system], name)
            assert not found.missing, (name, system, found.missing)
            assert len(found.by_task) == len(PAPER_AVERAGES[name])
            off[name, system] = abs(found.value - value)
    assert len(off) == sum(r["metric"] == "average" for r in RECORDS) == 55
    assert max(off.values()) < 0.06  # none exceeds it
    assert sorted(key for key, difference in off.items() if difference > 0.05) == [
        ("thesis-4.3", "crop5s"), ("thesis-5.2", "MERT-95M^K-means"), ("thesis-6.3", "MERT-v0-95M-public"),
    ]  # fmt: skip


def test_jukebox_s_average_by_hand():
    rows, _ = rows_by_system("jukemir-3")
    found = paper_average(rows["JUKEBOX"], "jukemir-3")
    assert found.value == pytest.approx(((91.5 + 41.4) / 2 + 79.7 + 66.7 + (72.1 + 61.7) / 2) / 4)
    assert found.by_task["mtt"] == pytest.approx(66.45)


def test_a_system_that_lacks_a_task_has_no_average_and_the_task_is_named():
    rows, printed = rows_by_system("thesis-6.3")
    assert "MULE" not in printed
    found = paper_average(rows["MULE"], "thesis-6.3")
    assert found.value is None and found.missing == ("gtzan_rhythm", "musdb18")
    assert len(found.by_task) == 12
    without_ap = [r for r in rows["MERT-v1-95M"] if (r.dataset, r.metric) != ("mtt", "ap")]
    assert paper_average(without_ap, "thesis-6.3").missing == ("mtt",)


def test_averages_of_what_is_no_single_system_are_refused():
    rows, _ = rows_by_system("jukemir-3")
    with pytest.raises(ValueError, match="of one system, got 2"):
        paper_average([rows["MFCC"][0], rows["CHROMA"][1]], "jukemir-3")
    with pytest.raises(ValueError, match="has two numbers"):
        paper_average([rows["MFCC"][0], rows["MFCC"][0]], "jukemir-3")
    with pytest.raises(ValueError, match=r"no table 'petl-2' has an average here\. Known: jukemir-3"):
        paper_average([], "petl-2")
    elsewhere = [dataclasses.replace(r, train_on="hooktheory_key") for r in rows["MFCC"] if r.task == "key"]
    assert "giantsteps_key" in paper_average(elsewhere, "jukemir-3").missing


def scored(task, backbone="mfcc", failures=0, **scores):
    """A result with the scores of a task; all others of its metrics are 0.5."""
    values = {m.name: scores.get(m.name, 0.5) for m in TASKS[task].metrics}
    run = {"backbone": backbone, "task": task, "method": "probe", "protocol": "marble-constrained"}
    failed = tuple(Failure(f"f{i}", "lost") for i in range(failures))
    return Result(run, values, dict.fromkeys(values), 4, 4 + failures, "ab12", failures=failed)


def our_fourteen():
    return [
        scored("mtt", roc_auc=0.9, ap=0.4), scored("giantsteps_key", key_weighted=0.6),
        scored("gtzan_genre", accuracy=0.8), scored("emomusic", r2_arousal=0.7, r2_valence=0.6, r2_mean=0.0),
        scored("nsynth_pitch", accuracy=0.9), scored("nsynth_instrument", accuracy=0.7),
        scored("vocalset_technique", accuracy=0.7), scored("vocalset_singer", accuracy=0.8),
        scored("gtzan_rhythm", beat_f_70ms_per_track=0.85, beat_f_20ms_per_track=0.1),
        scored("mtg_instrument", roc_auc=0.76, ap=0.18), scored("mtg_moodtheme", roc_auc=0.74, ap=0.12),
        scored("mtg_genre", roc_auc=0.86, ap=0.18), scored("mtg_top50", roc_auc=0.82, ap=0.28),
        scored("musdb18", sdr_mdx2021_24khz_vocals=5.0, sdr_mdx2021_24khz_drums=4.0, sdr_mdx2021_24khz_bass=3.0,
               sdr_mdx2021_24khz_other=2.0, sdr_mdx2021_vocals=9.0),
    ]  # fmt: skip


def test_our_results_are_averaged_by_the_same_rule():
    found = paper_average(our_fourteen(), "thesis-6.3")
    by_hand = [65, 60, 80, 65, 90, 70, 70, 80, 85, 47, 43, 52, 55, 3.5]
    assert list(found.by_task.values()) == pytest.approx(by_hand)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.other_rules == ("vocalset_technique", "vocalset_singer") and not found.partial
    assert found.protocols == (our_fourteen()[0].run["protocol"],)
    four = paper_average(our_fourteen(), "jukemir-3")
    assert four.value == pytest.approx((65 + 60 + 80 + 65) / 4) and not four.other_rules


def test_our_results_on_other_data_are_no_task_of_a_table():
    found = paper_average([scored("scores-key"), scored("hooktheory_giantsteps_key")], "jukemir-3")
    assert found.missing == ("mtt", "giantsteps_key", "gtzan_genre", "emomusic")
    partial = paper_average([*our_fourteen()[1:], scored("mtt", failures=2)], "jukemir-3")
    assert partial.partial == ("mtt",)
    with pytest.raises(ValueError, match="emotion/emomusic/r2_mean has two numbers"):
        paper_average([scored("emomusic"), scored("emomusic_5s")], "jukemir-3")
    with pytest.raises(ValueError, match="of one system, got 2"):
        paper_average([scored("mtt"), scored("gtzan_genre", "chroma")], "jukemir-3")


# Averages that do not mix units -----------------------------------------------------------------------------------


def test_ranks_are_averaged_and_ties_share_theirs():
    table = {
        "a": {"key": 0.9, "genre": 0.5, "sdr": 5.0},
        "b": {"key": 0.8, "genre": 0.5, "sdr": 6.0},
        "c": {"key": 0.7, "genre": 0.1, "sdr": 4.0},
        "d": {"key": 1.0},
    }
    found = rank_average(table)
    assert [found[s].value for s in "abc"] == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])
    assert {f.num_tasks for f in found.values()} == {3}
    assert (found["d"].value, found["d"].missing) == (None, ("genre", "sdr"))
    assert rank_average({}) == {}
    with pytest.raises(ValueError, match="the score of a in key is nan"):
        rank_average({"a": {"key": float("nan")}})


def test_normalised_scores_run_from_the_floor_to_the_best():
    table = {
        "floor": {"key": 0.2, "roc": 0.5},
        "a": {"key": 0.6, "roc": 0.9},
        "b": {"key": 0.1, "roc": 0.7},
        "c": {"roc": 0.99},
    }
    found = normalised_average(table, "floor")
    assert [found[s].value for s in ("floor", "a", "b")] == pytest.approx([0.0, 1.0, (-0.25 + 0.5) / 2])
    assert (found["c"].value, found["c"].num_tasks, found["c"].missing) == (None, 2, ("key",))
    with pytest.raises(ValueError, match=r"the floor 'c' lacks key\. Systems with all 2 tasks: floor, a, b"):
        normalised_average(table, "c")
    with pytest.raises(ValueError, match="the floor 'x' is no system of the table"):
        normalised_average(table, "x")
    with pytest.raises(ValueError, match="no system is above the floor 'a' in key"):
        normalised_average(table, "a")


def test_a_comparison_needs_no_more_than_keys_of_the_text():
    """A result that was written and read again compares as before."""
    a, b = key_result(range(50)), key_result(range(30))
    again = [Result.from_json(r.to_json()) for r in (a, b)]
    assert compare(*again) == compare(a, b)
    assert isinstance(compare(a, b).interval, Interval)
    assert read_answers(again[0]).references[0] == Key(0, "major")
