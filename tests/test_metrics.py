"""Metrics against published numbers (golden/metrics.json: mir_eval 0.8.2, scikit-learn, torchmetrics) and libraries."""

import json
from pathlib import Path

import mir_eval
import numpy as np
import pytest
import sklearn.metrics

from audiation import metrics
from audiation.annotations import Beats, Emotion, Key, Label, Segments, Tags, Tempo, Values
from audiation.metrics import Metric

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
PRINTED = 1e-9  # golden values have ten decimals
EXACT = 1e-12  # against the libraries


def labels(indices):
    return [Label(str(i)) for i in indices]


def beats(times):
    return Beats(np.array(times, dtype=float), np.zeros(len(times), dtype=int))


def segments(intervals, names=None):
    return Segments(np.array(intervals, dtype=float), tuple(names or ["x"] * len(intervals)))


def tags(rows):
    return [Tags({f"tag {i}": float(v) for i, v in enumerate(row)}) for row in rows]


# Classes -----------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_tracks_and_its_macro_form_the_mean_over_classes():
    case = GOLDEN["accuracy"]
    truth, answer = labels(case["y_true"]), labels(case["y_pred"])
    assert metrics.ACCURACY.compute(truth, answer) == pytest.approx(case["micro"], abs=PRINTED)
    macro = metrics.ACCURACY_CLASS_MACRO.compute(truth, answer)
    assert macro == pytest.approx(case["class_macro"], abs=1e-7)  # torchmetrics computes in float32
    assert macro == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(case["y_true"], case["y_pred"]), abs=EXACT
    )


def test_accuracy_takes_keys_and_refuses_to_compare_unlike_things():
    c, a = Key(0, "major"), Key(9, "minor")
    assert metrics.ACCURACY.compute([c, a], [c, c]) == 0.5
    with pytest.raises(ValueError, match="compares two labels, keys or pitches"):
        metrics.ACCURACY.compute([c], [Label("C major")])


# Key ---------------------------------------------------------------------------------------------------


def test_key_scores_equal_the_published_table_of_24_by_24():
    case = GOLDEN["key"]
    keys = [Key.from_index(i) for i in range(24)]
    assert [str(k) for k in keys] == case["labels"]
    table = [[metrics.KEY_WEIGHTED.per_track(r, e) for e in keys] for r in keys]
    assert table == case["table_rows_reference_columns_estimate"]


def test_the_symmetric_key_score_differs_in_the_fifth_below_and_nowhere_else():
    keys = [Key.from_index(i) for i in range(24)]
    changed = {
        ((e.tonic - r.tonic) % 12, r.mode == e.mode, metrics.KEY_WEIGHTED_SYMMETRIC.per_track(r, e))
        for r in keys
        for e in keys
        if metrics.KEY_WEIGHTED_SYMMETRIC.per_track(r, e) != metrics.KEY_WEIGHTED.per_track(r, e)
    }
    assert changed == {(5, True, 0.5)}


# Tags and emotion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["multilabel"], ids=lambda c: c["name"])
def test_tag_metrics_equal_scikit_learn_and_torchmetrics(case):
    truth, scores = tags(case["y_true"]), tags(case["y_score"])
    defined = [i for i, v in enumerate(case["sklearn_roc_auc_per_label"]) if v is not None]
    auc = np.mean([case["sklearn_roc_auc_per_label"][i] for i in defined])
    ap = np.mean([case["sklearn_ap_per_label"][i] for i in defined])
    assert metrics.ROC_AUC.compute(truth, scores) == pytest.approx(auc, abs=PRINTED)
    assert metrics.AP_UNDEFINED_SKIPPED.compute(truth, scores) == pytest.approx(ap, abs=PRINTED)
    assert metrics.AP.compute(truth, scores) == pytest.approx(case["sklearn_ap_macro"], abs=PRINTED)
    torch_auc, torch_ap = case["torchmetrics_auroc_macro"], case["torchmetrics_ap_macro"]
    assert metrics.ROC_AUC_UNDEFINED_ZERO.compute(truth, scores) == pytest.approx(torch_auc, abs=1e-7)
    assert metrics.AP.compute(truth, scores) == pytest.approx(torch_ap, abs=1e-7)
    if case["sklearn_roc_auc_macro"] is not None:
        y, p = np.array(case["y_true"]), np.array(case["y_score"])
        assert metrics.ROC_AUC.compute(truth, scores) == pytest.approx(
            sklearn.metrics.roc_auc_score(y, p, average="macro"), abs=EXACT
        )
        assert metrics.AP.compute(truth, scores) == pytest.approx(
            sklearn.metrics.average_precision_score(y, p, average="macro"), abs=EXACT
        )


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        (
            tags([[1, 0], [0, 1]]),
            [Tags({"tag 0": 0.5}), Tags({"tag 0": 0.5})],
            "estimate 0 differs in: tag 1",
        ),
        ([Tags({}), Tags({})], [Tags({}), Tags({})], "no tag at all"),
        (tags([[0.5], [1]]), tags([[0.5], [1]]), "0.0 or 1.0"),
        (tags([[1], [1]]), tags([[0.5], [1]]), "no tag of these 2 tracks"),
    ],
)
def test_tags_that_cannot_be_scored_are_refused(truth, scores, message):
    with pytest.raises(ValueError, match=message):
        metrics.ROC_AUC.compute(truth, scores)


def test_r2_per_dimension_and_mean():
    case = GOLDEN["r2"]
    truth, answer = ([Emotion(*row) for row in case[k]] for k in ("y_true", "y_pred"))
    computed = [m.compute(truth, answer) for m in (metrics.R2_AROUSAL, metrics.R2_VALENCE, metrics.R2_MEAN)]
    assert computed == pytest.approx([*case["columns"], case["mean"]], abs=PRINTED)
    assert computed[2] == pytest.approx(sklearn.metrics.r2_score(case["y_true"], case["y_pred"]), abs=EXACT)
    with pytest.raises(ValueError, match="two tracks or more"):
        metrics.R2_MEAN.compute(truth[:1], answer[:1])


def values(rows, names=("a", "b")):
    return [Values(dict(zip(names, map(float, row), strict=True))) for row in rows]


def test_r2_and_absolute_error_of_named_values():
    case = GOLDEN["r2"]
    truth, answer = values(case["y_true"]), values(case["y_pred"])
    assert metrics.R2_VALUES.compute(truth, answer) == pytest.approx(case["mean"], abs=PRINTED)
    one, other = (values([row[:1] for row in case[k]], ("a",)) for k in ("y_true", "y_pred"))
    assert metrics.R2_VALUES.compute(one, other) == pytest.approx(case["columns"][0], abs=PRINTED)
    assert metrics.MEAN_ABSOLUTE_ERROR.compute(truth, answer) == pytest.approx(
        sklearn.metrics.mean_absolute_error(case["y_true"], case["y_pred"]), abs=EXACT
    )
    assert not metrics.MEAN_ABSOLUTE_ERROR.higher_is_better
    with pytest.raises(ValueError, match="two tracks or more"):
        metrics.R2_VALUES.compute(truth[:1], answer[:1])


def test_values_are_compared_by_name():
    truth = values([[1, 10], [2, 20], [4, 30]])
    turned = [Values({"b": v.values["b"], "a": v.values["a"]}) for v in truth]
    assert metrics.R2_VALUES.compute(truth, turned) == 1.0
    assert metrics.R2_VALUES.compute([truth[0], *turned[1:]], truth) == 1.0
    assert metrics.MEAN_ABSOLUTE_ERROR.compute(truth, turned) == 0.0


@pytest.mark.parametrize("metric", [metrics.R2_VALUES, metrics.MEAN_ABSOLUTE_ERROR], ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (values([[1], [2]], ("a",)), "every track needs the same names: a, b; got a"),
        (values([[1, 2, 3]] * 2, "abc"), "every track needs the same names: a, b; got a, b, c"),
        ([Emotion(0, 1)] * 2, r"compares two values, got Values.* and Emotion"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(metric, other, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(values([[1, 2], [3, 4]]), other)


# Tempo and beats ---------------------------------------------------------------------------------------


def test_tempo_accuracies():
    case = GOLDEN["tempo"]
    pairs = [(Tempo(r), Tempo(e)) for r, e in case["pairs_reference_estimate"]]
    for metric, key in ((metrics.TEMPO_ACCURACY1, "accuracy1"), (metrics.TEMPO_ACCURACY2, "accuracy2")):
        assert [bool(metric.per_track(r, e)) for r, e in pairs] == case[key]
        mean = metric.compute(*zip(*pairs, strict=True))
        assert mean == pytest.approx(case[f"{key}_mean"], abs=PRINTED)


@pytest.mark.parametrize("case", GOLDEN["beat"], ids=lambda c: c["name"])
def test_beat_f_measure_with_every_tolerance_and_trimming(case):
    reference, estimate = beats(case["reference"]), beats(case["estimate"])
    for tolerance, name in ((0.02, "20ms"), (0.07, "70ms")):
        for trim, suffix in ((0.0, ""), (5.0, "_trim5s")):
            metric = metrics.beat_f(tolerance, trim_seconds=trim)
            value = metric.compute([reference], [estimate])
            assert value == pytest.approx(case[f"f_{name}{suffix}"], abs=PRINTED)
            assert metric.name == f"beat_f_{name}_per_track{suffix}"
            if len(case["estimate"]):  # mir_eval warns about an empty estimate
                trimmed = [mir_eval.beat.trim_beats(b.times_seconds, trim) for b in (reference, estimate)]
                assert value == pytest.approx(mir_eval.beat.f_measure(*trimmed, tolerance), abs=EXACT)


def test_beat_pooling_counts_events_and_not_tracks():
    case = GOLDEN["beat_pooling"]
    chosen = [c for name in case["cases"] for c in GOLDEN["beat"] if c["name"] == name]
    pairs = [beats(c["reference"]) for c in chosen], [beats(c["estimate"]) for c in chosen]
    per_track, pooled = metrics.BEAT_F_70MS_PER_TRACK, metrics.BEAT_F_70MS_POOLED
    assert per_track.compute(*pairs) == pytest.approx(case["f_mean_of_tracks"], abs=PRINTED)
    assert pooled.compute(*pairs) == pytest.approx(case["f_pooled"], abs=PRINTED)
    assert pooled.per_track is None


def test_downbeats_are_the_beats_at_position_one():
    reference = Beats(np.arange(1.0, 9.0), np.array([1, 2, 3, 4] * 2))
    every_beat = Beats(np.arange(1.0, 9.0), np.ones(8, dtype=int))
    assert metrics.DOWNBEAT_F_70MS_PER_TRACK.compute([reference], [reference]) == 1.0
    assert metrics.DOWNBEAT_F_70MS_PER_TRACK.compute([reference], [every_beat]) == pytest.approx(0.4)
    assert metrics.BEAT_F_70MS_PER_TRACK.compute([reference], [every_beat]) == 1.0


# Chords and sections -----------------------------------------------------------------------------------


def test_chords_as_major_and_minor_weighted_by_duration():
    case = GOLDEN["chord"]
    reference = segments(case["reference_intervals"], case["reference_labels"])
    estimate = segments(case["estimate_intervals"], case["estimate_labels"])
    short = case["estimate_too_short"]
    truncated = segments(short["intervals"], short["labels"])
    metric = metrics.CHORD_MAJMIN_WCSR
    assert metric.per_track(reference, estimate) == pytest.approx(case["majmin_weighted"], abs=PRINTED)
    assert metric.per_track(reference, truncated) == pytest.approx(short["majmin_weighted"], abs=PRINTED)
    library = mir_eval.chord.evaluate(
        reference.intervals_seconds,
        list(reference.labels),
        estimate.intervals_seconds,
        list(estimate.labels),
    )
    assert metric.per_track(reference, estimate) == pytest.approx(library["majmin"], abs=EXACT)


def test_which_chord_labels_are_scored():
    for table, estimated in (
        ("majmin_of_label_with_itself", None),
        ("majmin_reference_vs_C_major", "C:maj"),
    ):
        for label, expected in GOLDEN["chord"][table].items():
            # A second chord that is always right keeps the score defined where the first is not counted.
            reference = segments([[0, 1], [1, 2]], [label, "G:min"])
            estimate = segments([[0, 1], [1, 2]], [estimated or label, "G:min"])
            want = 1.0 if expected == -1 else (expected + 1) / 2
            assert metrics.CHORD_MAJMIN_WCSR.per_track(reference, estimate) == pytest.approx(
                want, abs=EXACT
            ), label


def test_chords_pooled_by_duration_weigh_long_tracks_more_and_gaps_mean_no_chord():
    long = segments([[0, 3]], ["C:maj"]), segments([[0, 3]], ["C:maj"])
    brief = segments([[0, 1]], ["C:maj"]), segments([[0, 1]], ["A:min"])
    pairs = tuple(zip(long, brief, strict=True))
    assert metrics.CHORD_MAJMIN_WCSR.compute(*pairs) == pytest.approx(0.5)
    assert metrics.CHORD_MAJMIN_WCSR_BY_DURATION.compute(*pairs) == pytest.approx(0.75)
    gap = segments([[0, 1], [3, 4]], ["C:maj", "C:maj"])
    filled = segments([[0, 1], [1, 3], [3, 4]], ["C:maj", "N", "C:maj"])
    assert metrics.CHORD_MAJMIN_WCSR.per_track(gap, filled) == 1.0
    assert metrics.CHORD_MAJMIN_WCSR.per_track(segments([[0, 4]], ["C:maj"]), gap) == 0.5
    with pytest.raises(ValueError, match="at least one segment"):
        metrics.CHORD_MAJMIN_WCSR.per_track(segments(np.zeros((0, 2)), []), gap)


@pytest.mark.parametrize("case", GOLDEN["boundary"]["results"])
def test_boundaries(case):
    reference, estimate = (
        segments(np.stack([bounds[:-1], bounds[1:]], axis=1))
        for bounds in (np.array(GOLDEN["boundary"][k]) for k in ("reference_bounds", "estimate_bounds"))
    )
    metric = metrics.boundary_f(case["window"], case["trim"])
    assert metric.per_track(reference, estimate) == pytest.approx(case["precision_recall_f"][2], abs=PRINTED)


def test_chord_frames_that_are_right_among_those_that_are_one_of_the_25():
    """75 frames a second; 'X' is no chord (D7); sus, dim, aug and both thirds at once are not counted (MARBLE v2)."""
    metric = metrics.CHORD_FRAME_ACCURACY
    reference = segments([[0, 1], [1, 2], [2, 3], [3, 4]], ["C:maj7", "X", "D:sus4", "A:min"])
    assert metric.compute([reference], [reference]) == 1.0
    answer = segments([[0, 1], [1, 2], [2, 3], [3, 4]], ["C:maj", "N", "G:maj", "A:maj"])
    assert metric.compute([reference], [answer]) == pytest.approx(
        2 / 3
    )  # of three chords; D:sus4 is none of them
    late = segments([[0, 1.5], [1.5, 4]], ["C:maj", "N"])  # 1.5 s is frame 112.5: 113 of C, then 37 of N
    assert metric.compute([reference], [late]) == pytest.approx((75 + 37) / 225)
    quiet = segments([[0, 1]], ["C:maj"])  # silence behind the answer is no chord
    assert metric.compute([reference], [quiet]) == pytest.approx((75 + 75) / 225)


def test_chord_frames_are_pooled_over_tracks_and_belong_to_the_chord_that_begins_there():
    long = segments([[0, 3]], ["C:maj"]), segments([[0, 3]], ["C:maj"])
    brief = segments([[0, 1]], ["C:maj"]), segments([[0, 1]], ["A:min"])
    assert metrics.CHORD_FRAME_ACCURACY.compute(*zip(long, brief, strict=True)) == 0.75
    reference = segments([[0, 1.6], [1.6, 2]], ["C:maj", "G:maj"])
    moved = segments([[0, 1.6 + 1 / 75], [1.6 + 1 / 75, 2]], ["C:maj", "G:maj"])
    assert metrics.CHORD_FRAME_ACCURACY.compute([reference], [moved]) == pytest.approx(149 / 150)
    begun_late = segments([[1, 2]], ["C:maj"])  # only the span of the reference is asked about
    assert metrics.CHORD_FRAME_ACCURACY.compute([begun_late], [segments([[0, 9]], ["C:maj"])]) == 1.0
    with pytest.raises(ValueError, match="chord_frame_accuracy is not defined for these 1 tracks"):
        metrics.CHORD_FRAME_ACCURACY.compute(*[[segments([[0, 1]], ["C:aug"])]] * 2)


def test_section_frames_of_a_fifth_of_a_second():
    """The function at the middle of each frame, mean over tracks (D6)."""
    metric = metrics.STRUCTURE_FRAME_ACCURACY
    reference = segments([[0, 4], [4, 10]], ["intro", "verse"])
    assert metric.compute([reference], [reference]) == 1.0
    answer = segments([[0, 5], [5, 10]], ["intro", "verse"])
    assert metric.per_track(reference, answer) == pytest.approx(45 / 50)
    divided = segments(
        [[0, 1], [1, 4], [4, 10]], ["intro", "intro", "verse"]
    )  # boundaries are another metric's
    assert metric.per_track(reference, divided) == 1.0
    assert metric.per_track(reference, segments([[0, 10]], ["solo"])) == 0.0
    half = segments([[0, 5]], ["verse"])  # nothing behind the answer is right
    assert metric.per_track(reference, half) == pytest.approx(5 / 50)
    pairs = [reference, segments([[0, 1]], ["verse"])], [answer, segments([[0, 1]], ["intro"])]
    assert metric.compute(*pairs) == pytest.approx((0.9 + 0.0) / 2)


def test_sections_are_scored_where_the_reference_has_one():
    gap = segments([[1, 3], [5, 6]], ["verse", "outro"])
    answer = segments([[0, 2], [2, 6]], ["verse", "outro"])
    assert metrics.STRUCTURE_FRAME_ACCURACY.per_track(gap, answer) == pytest.approx(10 / 15)


@pytest.mark.parametrize("metric", [metrics.CHORD_FRAME_ACCURACY, metrics.STRUCTURE_FRAME_ACCURACY])
def test_a_reference_without_segments_is_refused(metric):
    nothing, something = segments(np.zeros((0, 2)), []), segments([[0, 1]], ["N"])
    with pytest.raises(ValueError, match=r"without|not defined|at least one"):
        metric.compute([nothing], [something])


# Names -------------------------------------------------------------------------------------------------


def test_names_under_which_metrics_are_published():
    printed = {
        "tempo_accuracy1": "tempo_acc1",
        "chord_majmin_wcsr": "chord_majmin",
        "chord_frame_accuracy": "chord_frame_acc",
        "structure_frame_accuracy": "structure_frame_acc",
        "beat_f_70ms_per_track": "f1_beat",
        "beat_f_20ms_pooled": "f1_beat",
        "downbeat_f_70ms_per_track": "f1_downbeat",
    }
    for metric in CONSTANTS.values():
        if metric.name in printed:
            assert metric.printed_name == printed.pop(metric.name)
        elif not metric.published_name:
            assert metric.printed_name == metric.name
    assert not printed
    # Another way of counting is another metric, and nothing is printed of it.
    for other in (
        metrics.CHORD_MAJMIN_WCSR_BY_DURATION,
        metrics.ACCURACY_CLASS_MACRO,
        metrics.TEMPO_ACCURACY2,
    ):
        assert other.published_name == ""
    assert metrics.boundary_f().name == "boundary_hr05_f" and metrics.boundary_f(3.0).name == "boundary_hr3_f"
    assert metrics.boundary_f(trim=True).name == "boundary_hr05_f_trim"


# Tags that cannot be scored ------------------------------------------------------------------------------


def test_tags_without_a_positive_or_a_negative_are_named():
    found = metrics.undefined_tags(tags([[1, 0, 1, 0], [1, 0, 0, 1]]))
    assert found == {"no positive": ("tag 1",), "no negative": ("tag 0",)}
    assert metrics.undefined_tags(tags([[1, 0], [0, 1]])) == {"no positive": (), "no negative": ()}
    assert metrics.undefined_tags(tags([[1, 0]])) == {"no positive": ("tag 1",), "no negative": ("tag 0",)}


def test_undefined_tags_are_those_that_the_variants_treat_differently():
    rng = np.random.default_rng(0)
    truth = (rng.random((30, 6)) < [0.5, 0.0, 0.3, 1.0, 0.5, 0.0]).astype(float)
    references, estimates = tags(truth), tags(rng.random((30, 6)))
    found = metrics.undefined_tags(references)
    assert found == {"no positive": ("tag 1", "tag 5"), "no negative": ("tag 3",)}
    skipped = metrics.ROC_AUC.compute(references, estimates)
    zero = metrics.ROC_AUC_UNDEFINED_ZERO.compute(references, estimates)
    assert zero == pytest.approx(skipped * 3 / 6, abs=EXACT)
    ap = metrics.AP.compute(references, estimates)
    assert ap == pytest.approx(metrics.AP_UNDEFINED_SKIPPED.compute(references, estimates) * 4 / 6, abs=EXACT)


# All of them -------------------------------------------------------------------------------------------

CONSTANTS = {name: value for name, value in vars(metrics).items() if isinstance(value, Metric)}


def some_pairs(metric, generator, n=40):
    """(references, estimates) of a kind the metric takes, about half of them right."""

    def draw(make):
        references = [make() for _ in range(n)]
        return references, [r if generator.random() < 0.5 else make() for r in references]

    name = metric.name
    if name.startswith("accuracy"):
        return draw(lambda: Label(str(generator.integers(4))))
    if name.startswith("key"):
        return draw(lambda: Key.from_index(int(generator.integers(24))))
    if name.startswith("tempo"):
        return draw(lambda: Tempo(float(generator.choice([60, 90, 120, 180]))))
    if name.startswith(("beat", "downbeat")):
        return draw(
            lambda: Beats(np.cumsum(generator.uniform(0.3, 0.6, 16)), np.array([1, 2, 3, 4] * 4, dtype=int))
        )
    if name in ("r2", "mae"):
        return draw(lambda: values(generator.normal(size=(1, 2)))[0])
    if name.startswith("r2"):
        return draw(lambda: Emotion(*generator.normal(size=2)))
    if name.startswith(("chord", "boundary", "structure")):
        return draw(
            lambda: segments(
                np.lib.stride_tricks.sliding_window_view(
                    np.concatenate([[0], np.cumsum(generator.uniform(1, 9, 4))]), 2
                ),
                generator.choice(["C:maj", "A:min", "N", "G:7"], 4).tolist(),
            )
        )
    return draw(lambda: tags(generator.integers(0, 2, (1, 3)))[0])


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_metric_is_best_for_perfect_estimates_and_worse_for_others(name):
    metric = CONSTANTS[name]
    references, estimates = some_pairs(metric, np.random.default_rng(3))
    perfect, other = (metric.compute(references, answers) for answers in (references, estimates))
    if metric.higher_is_better:
        assert perfect == pytest.approx(1.0, abs=EXACT) and other < 0.99
    else:
        assert perfect == pytest.approx(0.0, abs=EXACT) and other > 0.01
    assert metric.versioned_name == f"{metric.name}@1"


@pytest.mark.parametrize("name", [n for n, m in CONSTANTS.items() if m.per_track])
def test_a_mean_over_tracks_is_the_mean_of_its_per_track_values(name):
    metric = CONSTANTS[name]
    references, estimates = some_pairs(metric, np.random.default_rng(4))
    values = [metric.per_track(r, e) for r, e in zip(references, estimates, strict=True)]
    draw = np.random.default_rng(5).integers(0, len(values), len(values))
    resampled = metric.compute([references[i] for i in draw], [estimates[i] for i in draw])
    assert resampled == pytest.approx(np.array(values)[draw].mean(), abs=EXACT)


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_metric_refuses_no_tracks_and_unpaired_tracks(name):
    references, estimates = some_pairs(CONSTANTS[name], np.random.default_rng(6))
    for bad in (([], []), (references, estimates[:-1])):
        with pytest.raises(ValueError, match="needs one estimate per reference"):
            CONSTANTS[name].compute(*bad)


def test_names_are_unique():
    names = [m.name for m in CONSTANTS.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [n for n, m in CONSTANTS.items() if m.weighted])
def test_weights_of_tracks_are_how_often_they_count(name):
    metric = CONSTANTS[name]
    references, estimates = some_pairs(metric, np.random.default_rng(7))
    score = metric.weighted(references, estimates)
    assert score(np.ones(len(references))) == pytest.approx(metric.compute(references, estimates), abs=EXACT)
    defined = 0
    for seed in range(20):
        draw = np.random.default_rng(seed).integers(0, len(references), len(references))
        weighted = score(np.bincount(draw, minlength=len(references)).astype(float))
        try:
            expected = metric.compute([references[i] for i in draw], [estimates[i] for i in draw])
        except ValueError:
            assert np.isnan(weighted)
        else:
            defined += 1
            assert weighted == pytest.approx(expected, abs=EXACT)
    assert defined >= 10


def test_a_resample_without_any_defined_tag_has_no_score():
    references, estimates = tags(np.eye(2)), tags(np.full((2, 2), 0.5))
    for metric in (metrics.ROC_AUC, metrics.ROC_AUC_UNDEFINED_ZERO):
        assert np.isnan(metric.weighted(references, estimates)(np.array([2.0, 0.0])))


def test_weighted_scores_of_tags_with_ties_and_rare_tags_equal_scikit_learn():
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 4)) < [0.5, 0.2, 0.04, 1.0]).astype(float)
    references, estimates = tags(truth), tags(np.round(rng.random((60, 4)), 1))
    for metric in (metrics.ROC_AUC, metrics.AP, metrics.ROC_AUC_UNDEFINED_ZERO, metrics.AP_UNDEFINED_SKIPPED):
        score = metric.weighted(references, estimates)
        for seed in range(10):
            draw = np.random.default_rng(seed).integers(0, 60, 60)
            expected = metric.compute([references[i] for i in draw], [estimates[i] for i in draw])
            assert score(np.bincount(draw, minlength=60).astype(float)) == pytest.approx(expected, abs=EXACT)
