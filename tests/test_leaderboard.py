import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from audiation.annotations import Key, Label
from audiation.backbones import BACKBONES
from audiation.bootstrap import Interval, bootstrap_interval, paired_interval
from audiation.leaderboard import render_table
from audiation.metrics import ACCURACY, ACCURACY_CLASS_MACRO, Metric
from audiation.published import _published, published_beside, published_rows
from audiation.results import Failure, Prediction, Result, ResultError

RUN = {
    "backbone": "chroma",
    "task": "scores-key",
    "method": "probe",
    "protocol": "jukemir-single",
    "layer": 0,
}


def result(**changes):
    fields = dict(
        run=RUN,
        scores={"key_weighted": 0.61, "accuracy": 0.5},
        intervals={"key_weighted": Interval(0.55, 0.67), "accuracy": None},
        num_test_tracks=2,
        num_official_test_tracks=2,
        split_hash="ab12",
        predictions=(Prediction("a", "C major", "C major"), Prediction("b", "A minor", "E minor")),
        num_parameters=123,
        train_seconds=1.5,
        best_step=88,
    )
    return Result(**{**fields, **changes})


def agreement(per_track=True):
    """A metric with or without a per-track form, and the list of the sizes its `compute` was called with."""
    calls = []

    def compute(references, estimates):
        calls.append(len(references))
        return float(np.mean([r == e for r, e in zip(references, estimates, strict=True)]))

    metric = Metric("agreement", compute, per_track=(lambda r, e: float(r == e)) if per_track else None)
    return metric, calls


def test_json_round_trip_and_file(tmp_path):
    full = result(failures=(Failure("c", "c.mp3 is empty"),), num_official_test_tracks=3)
    assert Result.from_json(full.to_json()) == full
    path = tmp_path / "deep" / "result.json"
    full.save(path)
    assert Result.load(path) == full
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    assert full.coverage == pytest.approx(2 / 3)
    record = json.loads(full.to_json())
    assert record["schema_version"] == 2 and record["intervals"]["key_weighted"] == [0.55, 0.67]
    assert set(record["versions"]) == {
        "audiation",
        "torch",
        "numpy",
        "librosa",
        "soundfile",
        "soxr",
        "python",
    }
    assert record["created"].endswith("+00:00")


def test_a_score_can_be_computed_again_from_the_predictions():
    mir_eval = pytest.importorskip("mir_eval")
    stored = Result.from_json(result().to_json()).predictions
    pairs = [(Key.parse(p.reference), Key.parse(p.estimate)) for p in stored]
    scores = [mir_eval.key.weighted_score(str(r), str(e)) for r, e in pairs]
    assert scores == [1.0, 0.5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.update(schema_version=1), "schema_version must be 2"),
        (lambda r: r.pop("scores"), "lacks scores"),
        (lambda r: r.update(score=1), "has unknown score"),
        (lambda r: r["scores"].update(accuracy="high"), "scores.accuracy must be float, got 'high'"),
        (lambda r: r["scores"].update(accuracy=True), "scores.accuracy must be float, got True"),
        (lambda r: r["scores"].pop("accuracy"), "scores and intervals must name the same metrics"),
        (lambda r: r["intervals"].update(accuracy=[0.1]), "intervals.accuracy must be two numbers or null"),
        (lambda r: r["intervals"].update(accuracy=[0.9, 0.1]), "ends before it starts"),
        (lambda r: r.update(num_test_tracks=2.0), "num_test_tracks must be int"),
        (lambda r: r.update(num_test_tracks=9), "9 scored tracks of 2"),
        (lambda r: r.update(num_test_tracks=0), "0 scored tracks of 2"),
        (lambda r: r.update(coverage=0.5), "coverage is 0.5, but the counts say 1.0"),
        (lambda r: r["predictions"].pop(), "1 predictions for 2 scored tracks"),
        (lambda r: r["predictions"][1].pop("estimate"), r"predictions\[1\] must hold confidence, estimate"),
        (lambda r: r.update(failures=["x"]), r"failures\[0\] must hold"),
        (lambda r: r.update(run=[]), "run must be dict"),
        (lambda r: r["run"].pop("task"), "run.task must be a name, got None"),
    ],
)
def test_edited_files_are_refused_with_the_reason(tmp_path, edit, message):
    record = json.loads(result().to_json())
    edit(record)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ResultError, match=message) as caught:
        Result.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "12"])
def test_what_is_no_result_at_all(text):
    with pytest.raises(ResultError, match=r"not JSON|is a JSON object"):
        Result.from_json(text)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path / "result.json")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ResultError, match="NaN is not a number"):
        Result.from_json(result().to_json().replace("0.61", "NaN"))
    with pytest.raises(ResultError, match="key_weighted has a number that is not finite"):
        result(scores={"key_weighted": math.nan, "accuracy": 0.5})


def test_bootstrap_matches_the_binomial_and_both_ways_agree():
    references = [1] * 400
    estimates = [1] * 300 + [0] * 100
    fast, fast_calls = agreement()
    slow, slow_calls = agreement(per_track=False)
    interval = bootstrap_interval(fast, references, estimates, num_resamples=2000)
    # 0.75 +- 1.96 sqrt(0.75 * 0.25 / 400)
    assert interval == pytest.approx((0.75 - 0.0424, 0.75 + 0.0424), abs=0.004)
    small = dict(num_resamples=250, seed=3)
    one = bootstrap_interval(fast, references, estimates, **small)
    assert one == pytest.approx(bootstrap_interval(slow, references, estimates, **small), abs=1e-12)
    assert not fast_calls and slow_calls == [400] * 250
    assert one == bootstrap_interval(fast, references, estimates, **small)
    assert one != bootstrap_interval(fast, references, estimates, num_resamples=250, seed=4)


def test_confidence_widens_and_tracks_narrow_the_interval():
    metric, _ = agreement()

    def width(num_tracks, confidence=0.95):
        estimates = [int(i % 4 > 0) for i in range(num_tracks)]
        low, high = bootstrap_interval(metric, [1] * num_tracks, estimates, confidence=confidence)
        return high - low

    assert width(100, 0.99) > width(100, 0.95) > width(100, 0.68)
    assert width(1600) == pytest.approx(width(100) / 4, rel=0.15)


def test_bootstrap_of_little():
    metric, _ = agreement()
    assert bootstrap_interval(metric, [1], [1]) is None
    assert bootstrap_interval(metric, [1, 1], [1, 1]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="0 references"):
        bootstrap_interval(metric, [], [])
    with pytest.raises(ValueError, match="2 references and 1 estimates"):
        bootstrap_interval(metric, [1, 1], [1])
    with pytest.raises(ValueError, match="confidence in"):
        bootstrap_interval(metric, [1, 1], [1, 1], confidence=95)
    undefined = Metric("undefined", lambda references, estimates: math.nan)
    with pytest.raises(ValueError, match="undefined is defined on 0 of 1000 resamples of 2 tracks"):
        bootstrap_interval(undefined, [1, 1], [1, 1])


def test_published_numbers_of_jukemir():
    key = published_rows("key", "giantsteps_key", "key_weighted", ["MFCC", "CHROMA"])
    assert [(r.system, r.value, r.paper, r.table) for r in key] == [
        ("MFCC", 0.146, "jukemir", "Table 3"),
        ("CHROMA", 0.565, "jukemir", "Table 3"),
    ]
    genre = published_rows("genre", "gtzan_genre", "accuracy", ["CHROMA", "MFCC"])
    assert [r.value for r in genre] == [0.328, 0.448]
    everything = published_rows("key", "giantsteps_key")
    assert len(everything) > 20 and all(0 < r.value < 1 for r in everything)


def test_unknown_published_numbers():
    with pytest.raises(
        ValueError, match=r"no published numbers for key/giantsteps_key/f1. Known: key_weighted"
    ):
        published_rows("key", "giantsteps_key", "f1")
    with pytest.raises(ValueError, match=r"Known: .*key/giantsteps_key"):
        published_rows("key", "nowhere")
    with pytest.raises(ValueError, match=r"CHROMO has no published number .*CHROMA"):
        published_rows("key", "giantsteps_key", "key_weighted", ["CHROMO"])


def rendered(*args, **options):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_table(*args, **options))
    return console.export_text()


def elsewhere(rows):
    return [dataclasses.replace(row, other_data=True) for row in rows]


@pytest.mark.parametrize(
    ("run", "scores", "expected"),
    [
        ({"task": "scores-key"}, ["key_weighted"], [("CHROMA", "giantsteps_key", 0.565, True)]),
        (
            {"task": "scores-timbre", "backbone": "mfcc"},
            ["accuracy"],
            [("MFCC", "gtzan_genre", 0.448, True)],
        ),
        ({"task": "gtzan_genre"}, ["accuracy"], [("CHROMA", "gtzan_genre", 0.328, False)]),
        ({"task": "gtzan_genre"}, ["f1"], []),
        ({"task": "gtzan_key", "backbone": "mfcc"}, ["key_weighted"], []),
        ({"task": "gtzan_genre", "backbone": "chroma-frames"}, ["accuracy"], []),
        (
            {"task": "gtzan_key", "backbone": "musicfm-msd"},
            ["key_weighted", "key_weighted_symmetric"],
            [("MusicFM", "gtzan_key", 0.642, False)],
        ),
        ({"task": "gtzan_key", "backbone": "musicfm-msd", "weights": "random"}, ["key_weighted"], []),
        ({"task": "gtzan_key", "backbone": "musicfm-fma"}, ["key_weighted"], []),
    ],
)
def test_what_is_published_beside_a_result(run, scores, expected):
    ours = result(run={**RUN, **run}, scores=dict.fromkeys(scores, 0.5), intervals=dict.fromkeys(scores))
    rows = [(r.system, r.dataset, r.value, r.other_data) for r in published_beside(ours)]
    assert rows == expected


def test_names_of_systems_are_those_of_the_published_results():
    systems = {row.system for row in _published()}
    named = [n for name in BACKBONES for n in BACKBONES[name].published_names]
    assert set(named) <= systems and len(named) == len(set(named)) == 26


def test_test_tracks_that_are_neither_scored_nor_failed_are_refused():
    with pytest.raises(ResultError, match="2 scored and 0 failed"):
        result(num_official_test_tracks=3)
    whole = result(failures=(Failure("c", "empty", "train"),))
    assert whole.coverage == 1 and Result.from_json(whole.to_json()) == whole


def test_the_table_shows_scores_intervals_coverage_and_says_whose_numbers_are_whose():
    partial = result(
        run={**RUN, "backbone": "musicfm-msd", "layer": 7},
        num_official_test_tracks=3,
        failures=(Failure("c", "empty"),),
    )
    rows = elsewhere(published_rows("key", "giantsteps_key", "key_weighted", ["CHROMA"]))
    text = rendered([result(), partial], rows)
    lines = text.splitlines()
    (first,) = [x for x in lines if "chroma" in x and "key_weighted" in x]
    assert "0.610" in first and "0.550 to 0.670" in first and "2/2" in first
    (cut,) = [n for n, x in enumerate(lines) if "musicfm-msd, layer 7" in x and "key_weighted" in x]
    assert "2/3" in lines[cut] and "partial" in lines[cut + 1]
    (published,) = [n for n, x in enumerate(lines) if "CHROMA (jukemir)" in x]
    assert "0.565" in lines[published] and "not published" in lines[published]
    assert "published, other" in lines[published + 1] and "data: GiantSteps" in lines[published + 2]
    assert any("\u2500" * 20 in x for x in lines[cut + 1 : published])  # a rule between ours and theirs
    assert "Failed test tracks: 1" in text
    assert text.count("published, other") == 1 and text.count("partial") == 2


def test_the_table_fits_a_terminal_of_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    rows = elsewhere(published_rows("key", "giantsteps_key", "key_weighted", ["CHROMA", "MFCC"]))
    console.print(render_table([result(run={**RUN, "task": "scores-timbre"})], rows))
    text = console.export_text()
    for word in ("scores-timbre", "key_weighted", "0.550 to 0.670", "published, other", "data: GiantSteps"):
        assert word in text


def test_published_numbers_on_the_same_data_are_not_called_other():
    text = rendered(
        [result()],
        published_rows("genre", "gtzan_genre", "accuracy", ["MFCC"]),
    )
    assert "published: GTZAN" in text and "other data" not in text


def test_published_rows_are_styled_differently():
    table = render_table([result()], published_rows("key", "giantsteps_key", "key_weighted", ["MFCC"]))
    cells = list(table.columns[3].cells)
    assert [str(c.style) for c in cells] == ["bold", "bold", "dim italic"]


def test_a_paired_interval_is_narrower_than_the_difference_of_two_and_knows_the_sign():
    generator = np.random.default_rng(0)
    references = [Label("ab"[i]) for i in generator.integers(0, 2, 200)]
    wrong = {"a": "b", "b": "a"}
    hard = generator.random(200) < 0.4  # both systems miss these
    only_b = generator.random(200) < 0.1
    a = [Label(wrong[r.name]) if h else r for r, h in zip(references, hard, strict=True)]
    b = [Label(wrong[r.name]) if h or o else r for r, h, o in zip(references, hard, only_b, strict=True)]
    paired = paired_interval(ACCURACY, references, a, b)
    alone = [bootstrap_interval(ACCURACY, references, e) for e in (a, b)]
    assert 0 < paired.low < ACCURACY.compute(references, a) - ACCURACY.compute(references, b) < paired.high
    assert paired.high - paired.low < 0.7 * max(i.high - i.low for i in alone)
    swapped = paired_interval(ACCURACY, references, b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))
    same = paired_interval(ACCURACY, references, a, a)
    assert same == (0.0, 0.0)
    macro = paired_interval(ACCURACY_CLASS_MACRO, references, a, b, num_resamples=50)
    assert macro.low > 0  # a metric of the whole set is computed on every resample
    assert paired_interval(ACCURACY, references[:1], a[:1], b[:1]) is None
    with pytest.raises(ValueError, match="200 references, 200 and 3 estimates"):
        paired_interval(ACCURACY, references, a, b[:3])


def test_resamples_without_a_score_are_left_out_of_the_interval_while_they_are_few():
    def defined_with_a_positive(references, estimates):
        if not any(references):
            raise ValueError("no positive")
        return float(np.mean([r == e for r, e in zip(references, estimates, strict=True)]))

    metric = Metric("picky", defined_with_a_positive)
    many, few = [1] * 5 + [0] * 45, [1] + [0] * 49
    interval = bootstrap_interval(metric, many, many[:1] + [0] * 49)
    assert 0 < interval.low < interval.high <= 1  # (9/10)^50 of the resamples have no positive: 0.5 %
    with pytest.raises(ValueError, match=r"picky is defined on \d+ of 1000 resamples of 50 tracks; too few"):
        bootstrap_interval(metric, few, few)
    with pytest.raises(ValueError, match="no positive"):
        bootstrap_interval(metric, [0, 0], [0, 0])
