import json
import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from audiation import charts
from audiation.charts import systems
from audiation.charts.answers import FIFTHS, expected_calibration_error, reliability_bins
from audiation.charts.cost import _area
from audiation.charts.drawing import INK, clean, line_style
from audiation.charts.systems import published_best, shortened, system_names, task_score, type_of
from audiation.charts.task_types import by_task_type
from audiation.published import published_rows
from audiation.results import Prediction, Result, Trial
from audiation.tasks import TASKS

CPU = {"device": "cpu", "gpus": 0, "cpu": "x86_64", "cores": 2}
GPU = {"device": "Card <X>", "gpus": 1, "cpu": "x86_64", "cores": 2}
HOSTILE = '</title><script>alert(1)</script> "$\\frac{1}$" & ' + "x" * 80 + "\x00\ud800"


def result(backbone="chroma", task="gtzan_genre", scores=None, run=None, predictions=(), **changes):
    scores = {"accuracy": 0.6} if scores is None else scores
    num_tracks = max(1, len(predictions))
    fields = dict(
        run={"backbone": backbone, "task": task, "method": "probe", "protocol": "jukemir", **(run or {})},
        scores=scores,
        intervals=dict.fromkeys(scores),
        num_test_tracks=num_tracks,
        num_official_test_tracks=num_tracks,
        split_hash="ab",
        predictions=tuple(predictions),
        hardware=CPU,
        code={},
        versions={},
        created="",
    )
    return Result(**{**fields, **changes})


def searched(backbone="mert-v0", task="gtzan_genre", offset=0.0, **changes):
    """With five layers and a mix; layer 2 is best."""
    profile = {"0": 0.5, "1": 0.6, "2": 0.8, "3": 0.7, "4": 0.65, "weighted-sum": 0.75}
    trials = tuple(Trial({"layer": k, "learning_rate": 0.1}, v + offset, 10, 20) for k, v in profile.items())
    curve = ((10, 0.4 + offset), (20, 0.8 + offset), (40, 0.7 + offset))
    options = dict(trials=trials, chosen=trials[2].choices, curve=curve, best_step=20) | changes
    return result(backbone, task, **options)


def parsed(svg):
    return ElementTree.fromstring(re.sub(r'xmlns="[^"]*"', "", svg, count=1))


def marks(svg):
    """gid -> element."""
    found = {}
    for element in parsed(svg).iter("g"):
        match = re.fullmatch(r"[a-z-]+-[0-9a-f]{10}-(.*)", element.get("id", ""))
        if match:
            found[match[1]] = element
    return found


def corners(element):
    """Points of the first path of an element."""
    path = next(e for e in element.iter("path") if not e.get("id"))
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d"))]


def spot(element):
    use = next(element.iter("use"))
    return float(use.get("x")), float(use.get("y"))


def shape(element):
    """Shape of the marker of an element."""
    return next(e.get("d") for e in element.iter("path") if e.get("id"))


def texts(svg):
    return [e.text or "" for e in parsed(svg).iter("text")]


def width(element):
    x = [x for x, _ in corners(element)]
    return max(x) - min(x)


def genre_answers(pairs):
    return [Prediction(f"t{i}", r, e, c) for i, (r, e, c) in enumerate(pairs)]


GENRES = genre_answers(
    [("blues", "blues", 0.95), ("blues", "rock", 0.55), ("rock", "rock", 0.85), ("jazz", "jazz", 0.75)]
)
MANY = [
    searched("mert-v0"), searched("mert-v1-95m", offset=0.1),
    result("chroma"), result("chroma", "giantsteps_key", {"key_weighted": 0.5}),
    searched("mert-v0", "giantsteps_key", scores={"key_weighted": 0.4}),
    result("mert-v0", "mtt", {"roc_auc": 0.9, "ap": 0.4}),
]  # fmt: skip
DRAWN = {
    "layer-profile": lambda: charts.layer_profile(MANY),
    "learning-curves": lambda: charts.learning_curves(MANY),
    "confusion": lambda: charts.confusion(result(predictions=GENRES)),
    "reliability": lambda: charts.reliability(result(predictions=GENRES)),
    "cost": lambda: charts.cost_against_score([result(train_seconds=9, extract_seconds=5), *MANY]),
    "bars": lambda: charts.bars_by_task_type(MANY),
    "radar": lambda: charts.radar_by_task_type(MANY),
    "hours": lambda: charts.score_against_hours(MANY),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_chart_is_a_portable_part_of_a_page(kind):
    before = dict(matplotlib.rcParams)
    svg = DRAWN[kind]()
    assert dict(matplotlib.rcParams) == before
    assert svg == DRAWN[kind]()
    assert svg.startswith("<svg xmlns=") and svg.endswith("</svg>\n")
    root = parsed(svg)
    elements = list(root.iter())
    ids = [e.get("id") for e in elements if e.get("id")]
    assert len(ids) == len(set(ids))
    (prefix,) = {re.match(r"[a-z-]+-[0-9a-f]{10}-", i)[0] for i in ids}
    assert prefix.startswith(f"{kind}-")
    used = {v[1:] for e in elements for v in [e.get("href", "")] if v}
    used |= {m for e in elements for v in e.attrib.values() for m in re.findall(r"^url\(#(.*)\)$", v)}
    assert used and used <= set(ids)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{prefix}title {prefix}desc"
    assert [(e.tag, bool(e.text)) for e in root[:2]] == [("title", True), ("desc", True)]
    # Neither inline styles nor style sheets, which a page may forbid; no ink but the page's.
    assert {e.tag for e in elements}.isdisjoint({"style", "script", "image", "metadata"})
    assert not any(e.get("style") for e in elements)
    assert "currentColor" in svg and INK not in svg and "#000000" not in svg and "#ffffff" not in svg


def test_charts_of_one_page_share_no_ids():
    found = [set(re.findall(r' id="([^"]+)"', draw())) for draw in DRAWN.values()]
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize(
    "draw",
    [
        charts.layer_profile,
        charts.learning_curves,
        charts.cost_against_score,
        charts.bars_by_task_type,
        charts.radar_by_task_type,
        charts.score_against_hours,
    ],
)
def test_without_results_there_is_a_note(draw):
    svg = draw([])
    assert parsed(svg).tag == "svg"
    assert any("results" in text for text in texts(svg))
    assert not marks(svg).keys() & {"line-0-0", "bar-0-0", "point-0-0", "system-0"}


def test_layer_profile_draws_the_scores_where_they_are():
    svg = charts.layer_profile([searched(), result("chroma")])
    found = marks(svg)
    points = corners(found["line-0-0"])
    assert len(points) == 5  # the mix is no part of the line
    scores = [0.5, 0.6, 0.8, 0.7, 0.65]
    scale = (points[0][1] - points[2][1]) / 0.3  # pixels upwards per unit
    assert [(points[0][1] - y) / scale + 0.5 for _, y in points] == pytest.approx(scores, abs=1e-4)
    step = points[1][0] - points[0][0]
    assert [x - points[0][0] for x, _ in points] == pytest.approx([step * i for i in range(5)], abs=1e-3)
    mix_x, mix_y = spot(found["line-0-0-mix-0"])
    assert mix_x > points[-1][0] + 0.9 * step
    assert (points[0][1] - mix_y) / scale + 0.5 == pytest.approx(0.75, abs=1e-4)
    assert spot(found["line-0-0-chosen"]) == pytest.approx(points[2], abs=1e-3)
    assert found["line-0-0-chosen"].find("title").text == "mert-v0: layer 2, 0.800, tested"
    assert "No search over layers: chroma on gtzan_genre." in texts(svg)


def test_layer_profile_of_one_system_has_a_line_per_task_and_decibels_apart():
    svg = charts.layer_profile(
        [searched(), searched(task="mtt"), searched(task="musdb18", scores={"sdr_mdx2021_24khz": 5.0})]
    )
    assert {"line-0-0", "line-0-1", "line-1-2"} <= marks(svg).keys()
    assert {"gtzan_genre", "mtt", "musdb18", "mert-v0 (score)", "mert-v0 (dB)"} <= set(texts(svg))


def test_layer_profile_takes_any_layer_name_and_no_infinite_score():
    trials = (
        Trial({"layer": "last"}, 0.5, 1, 1),
        Trial({"layer": "9" * 5000}, 0.6, 1, 1),
        Trial({"layer": "3"}, math.inf, 1, 1),
    )
    found = marks(charts.layer_profile([searched(trials=trials, chosen={"layer": ["?"]})]))
    assert {"line-0-0-mix-0", "line-0-0-mix-1"} <= found.keys()
    assert "line-0-0-chosen" not in found


def test_learning_curves_mark_the_best_step():
    svg = charts.learning_curves([searched(), result("mfcc")])
    found = marks(svg)
    points = corners(found["line-0-0"])
    assert len(points) == 3
    assert (points[2][0] - points[0][0]) / (points[1][0] - points[0][0]) == pytest.approx(3, abs=1e-3)
    assert spot(found["line-0-0-best"]) == pytest.approx(points[1], abs=1e-3)
    assert "No curve was kept: mfcc on gtzan_genre." in texts(svg)


def test_a_best_step_outside_the_curve_has_no_ring():
    assert "line-0-0-best" not in marks(charts.learning_curves([searched(best_step=15)]))


def test_confusion_shows_shares_of_the_rows_and_counts():
    svg = charts.confusion(result(predictions=GENRES))
    found = {gid: e for gid, e in marks(svg).items() if gid.startswith("cell-")}
    names = TASKS["gtzan_genre"].target.classes
    blues, jazz, rock = (names.index(n) for n in ("blues", "jazz", "rock"))
    assert set(found) == {
        f"cell-{blues}-{blues}", f"cell-{blues}-{rock}", f"cell-{rock}-{rock}", f"cell-{jazz}-{jazz}",
    }  # fmt: skip
    opacity = {
        gid: float(next(p.get("opacity") or p.get("fill-opacity") for p in e.iter("path")))
        for gid, e in found.items()
    }
    assert opacity[f"cell-{blues}-{rock}"] == pytest.approx(opacity[f"cell-{rock}-{rock}"] / 2)
    assert found[f"cell-{blues}-{rock}"].find("title").text == "blues answered as rock: 1 of 2"
    assert texts(svg).count("1") == 4
    assert "Not in the test split, so their rows are empty: 7 of 10 classes." in texts(svg)


def test_keys_stand_in_the_order_of_fifths():
    assert FIFTHS[:4] == ("C major", "G major", "D major", "A major")
    assert FIFTHS[11:14] == ("F major", "C minor", "G minor")
    assert len(set(FIFTHS)) == 24
    answers = [Prediction("a", "C major", "G major", 0.5), Prediction("b", "A minor", "C major", 0.5)]
    for task in ("giantsteps_key", "hooktheory_giantsteps_key"):
        found = marks(charts.confusion(result(task=task, predictions=answers)))
        assert {g for g in found if g.startswith("cell-")} == {"cell-0-1", "cell-15-0"}


@pytest.mark.parametrize(
    "task, answer",
    [
        ("nsynth_pitch", "C4"),
        ("mtt", '{"guitar": 1.0}'),
        ("gtzan_tempo", "120.0 BPM"),
        ("emomusic", "{}"),
        ("scores-beats", "[]"),
    ],
)
def test_confusion_is_for_closed_lists_only(task, answer):
    assert charts.confusion(result(task=task, predictions=[Prediction("a", answer, answer, 0.5)])) is None
    assert charts.confusion(result()) is None


def test_labels_of_ones_own_are_a_closed_list_where_answers_have_probabilities():
    own = [Prediction("a", "warm", "dry", 0.5), Prediction("b", "dry", "dry", 0.9)]
    found = marks(charts.confusion(result(task="own-labels", predictions=own)))
    assert {g for g in found if g.startswith("cell-")} == {"cell-1-0", "cell-0-0"}
    numbers = [Prediction("a", '{"x": 1.0}', '{"x": 2.0}')]
    assert charts.confusion(result(task="own-labels", predictions=numbers)) is None


def test_many_classes_are_drawn_without_names():
    many = [Prediction(f"t{i}", f"class {i}", f"class {i}", 0.5) for i in range(70)]
    svg = charts.confusion(result(task="own-labels", predictions=many))
    assert len([g for g in marks(svg) if g.startswith("cell-")]) == 70
    assert "class 3" not in texts(svg)
    assert "70 classes are too many to be named here; point at a cell." in texts(svg)


def test_calibration_error_by_hand():
    bins = reliability_bins([0.95, 0.91, 0.2, 1.0, 0.3], [True, False, False, True, True])
    assert [b.count for b in bins] == [0, 0, 1, 1, 0, 0, 0, 0, 0, 3]
    assert bins[9].confidence == pytest.approx((0.95 + 0.91 + 1) / 3)
    assert bins[9].accuracy == pytest.approx(2 / 3)
    by_hand = (3 * abs((0.95 + 0.91 + 1) / 3 - 2 / 3) + 0.2 + 0.7) / 5
    assert expected_calibration_error(bins) == pytest.approx(by_hand)


def test_reliability_of_classes_draws_accuracy_against_probability():
    svg = charts.reliability(result(predictions=GENRES))
    found = marks(svg)
    assert {g for g in found if g.startswith("bin-")} == {"bin-5", "bin-7", "bin-8", "bin-9"}
    wrong, right = spot(found["bin-5"]), spot(found["bin-9"])
    assert spot(found["bin-7"])[1] == pytest.approx(right[1], abs=1e-3)
    assert wrong[1] > right[1]  # pixels count downwards
    high, low = spot(found["bin-9"])[0], spot(found["bin-5"])[0]
    assert (spot(found["bin-7"])[0] - low) / (high - low) == pytest.approx(0.5, abs=1e-3)
    error = (0.05 + 0.55 + 0.15 + 0.25) / 4
    assert f"Expected calibration error (ECE, 10 bins): {error:.3f}, over 4 answers." in texts(svg)


def test_reliability_of_tags_counts_every_tag_of_every_recording():
    def tags(**scores):
        return json.dumps(scores)

    answers = [
        Prediction("a", tags(guitar=1.0, piano=0.0), tags(guitar=0.9, piano=0.2)),
        Prediction("b", tags(guitar=0.0, piano=1.0), tags(guitar=0.1, piano=0.6)),
    ]
    for task in ("mtt", "own-labels"):
        svg = charts.reliability(result(task=task, predictions=answers))
        error = (0.1 + 0.2 + 0.1 + 0.4) / 4
        assert f"Expected calibration error (ECE, 10 bins): {error:.3f}, over 4 decisions on tags." in texts(
            svg
        )


def test_reliability_is_none_where_no_probability_was_kept():
    assert charts.reliability(result()) is None
    assert charts.reliability(result(predictions=genre_answers([("blues", "rock", None)]))) is None
    assert charts.reliability(result(predictions=genre_answers([("blues", "rock", 1.5)]))) is None
    tempo = [Prediction("a", "120.0 BPM", "120.0 BPM", 0.5)]
    assert charts.reliability(result(task="gtzan_tempo", predictions=tempo)) is None
    assert charts.reliability(result(task="own-labels", predictions=tempo)) is None
    assert charts.reliability(result(task="mtt", predictions=[Prediction("a", "x", "y")])) is None


def test_cost_is_logarithmic_and_devices_are_told_apart():
    hours = {"chroma": 0.5, "mfcc": 5.0, "mert-v0": 50.0}
    results = [
        result(name, scores={"accuracy": 0.5 + 0.1 * i}, extract_seconds=h * 1800 - 9, train_seconds=9)
        for i, (name, h) in enumerate(hours.items())
    ]
    results.append(result("key-cnn", hardware=GPU, train_seconds=3600))
    results.append(result("genre-cnn"))
    svg = charts.cost_against_score(results)
    found = marks(svg)
    places = [spot(found[f"point-0-{i}"]) for i in range(4)]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=1e-3)
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=1e-3)
    assert shape(found["point-0-0"]) == shape(found["point-0-2"]) != shape(found["point-0-3"])
    said = texts(svg)
    assert "Card <X>" in said and "CPU (x86_64)" in said
    assert "Hours of different devices are not the same hours: compare within a device only." in said
    assert "No cost was recorded: genre-cnn." in said
    is_open = [any(e.get("fill-opacity") == "0" for e in found[f"point-0-{i}"].iter()) for i in (0, 3)]
    assert is_open == [False, True]  # the cost of features is not in it
    assert "open: features were there, their cost is not in it" in said


def test_task_scores_are_averaged_as_the_papers_do():
    assert task_score(result(task="mtt", scores={"roc_auc": 0.9, "ap": 0.4})) == pytest.approx(0.65)
    emotion = {"r2_mean": 0.0, "r2_arousal": 0.7, "r2_valence": 0.5}
    assert task_score(result(task="emomusic", scores=emotion)) == pytest.approx(0.6)
    assert task_score(result(scores={"accuracy": 0.7, "accuracy_class_macro": 0.1})) == 0.7


def test_every_registered_task_has_a_type_of_the_thesis_or_one_of_ours():
    assert {name: type_of(name) for name in TASKS if type_of(name) not in systems.TYPE_TITLES} == {}
    assert type_of("mtg_moodtheme") == "emotion" and type_of("scores-timbre") == "instrument"
    assert type_of("own-labels") == "own-labels"


def test_published_best_is_the_best_record_of_the_same_data():
    best = published_best("mtt")
    roc, ap = (max(r.value for r in published_rows("tagging", "mtt", m)) for m in ("roc_auc", "ap"))
    assert best.value == pytest.approx((roc + ap) / 2) and not best.other_data
    assert published_best("musdb18").value == pytest.approx((9.3 + 10.8 + 10.4 + 6.4) / 4)
    own = published_best("scores-key")
    assert own.other_data and own.value == published_best("giantsteps_key").value
    assert published_best("scores-timbre") is None  # the nearest that is published asks something else
    assert published_best("hooktheory_key") is None and published_best("own-labels") is None


def test_bars_are_as_long_as_the_scores_and_absent_ones_are_not_drawn():
    results = [
        result("chroma", scores={"accuracy": 0.4}),
        result("mert-v0", scores={"accuracy": 0.8}),
        result("mert-v0", "gtzan_rhythm", {"beat_f_70ms_per_track": 0.9}),
        result("mfcc", "musdb18", {"sdr_mdx2021_24khz": 5.0}),
    ]
    svg = charts.bars_by_task_type(results)
    found = marks(svg)
    # genre, beats, separation; chroma, mert-v0, mfcc
    assert {g for g in found if g.startswith("bar-")} == {"bar-0-0", "bar-0-1", "bar-1-1", "bar-2-2"}
    assert width(found["bar-0-1"]) == pytest.approx(2 * width(found["bar-0-0"]), rel=1e-4)
    zero = min(x for x, _ in corners(found["bar-0-0"]))
    best = corners(found["best-0"])[0][0] - zero
    assert best / width(found["bar-0-1"]) == pytest.approx(
        published_best("gtzan_genre").value / 0.8, rel=1e-4
    )
    said = texts(svg)
    assert {"0.400", "0.800", "0.900", "5.0 dB", "not applicable", "no result"} <= set(said)
    assert "0.000" not in said
    # Beats and separation ask for frames: chroma has neither, mfcc no beats.
    assert said.count("not applicable") == 3
    assert said.count("no result") == 2  # mfcc has no genre, mert-v0 no separation


def test_a_type_is_scored_only_with_all_its_tasks():
    results = [
        result("chroma", "giantsteps_key", {"key_weighted": 0.5}),
        result("chroma", "gtzan_key", {"key_weighted": 0.7}),
        result("mfcc", "gtzan_key", {"key_weighted": 0.9}),
    ]
    (row,) = by_task_type(results)
    assert row.scores == {"chroma": pytest.approx(0.6)}
    assert row.absent == {"mfcc": "1 of 2 tasks"}
    both = [published_best(t).value for t in ("giantsteps_key", "gtzan_key")]
    assert row.best.value == pytest.approx(sum(both) / 2)
    assert "bar-0-1" not in marks(charts.bars_by_task_type(results))


def test_seeds_are_averaged_and_negative_scores_have_bars():
    results = [
        result(task="emomusic", scores={"r2_mean": s}, run={"seed": i}) for i, s in enumerate((-0.2, -0.4))
    ]
    (row,) = by_task_type(results)
    assert row.scores == {"chroma": pytest.approx(-0.3)}
    svg = charts.bars_by_task_type(results)
    assert width(marks(svg)["bar-0-0"]) > 1 and "-0.300" in texts(svg)


def test_a_radar_leaves_a_gap_where_there_is_no_score():
    results = [
        result("mert-v0", "giantsteps_key", {"key_weighted": 0.5}),
        result("mert-v0", "gtzan_genre", {"accuracy": 1.0}),
        result("mert-v0", "nsynth_pitch", {"accuracy": 0.25}),
        result("chroma", "gtzan_genre", {"accuracy": 0.5}),
        result("chroma", "giantsteps_key", {"key_weighted": 0.5}),
    ]
    svg = charts.radar_by_task_type(results)
    found = marks(svg)
    assert {g for g in found if g.startswith("absent-")} == {"absent-1-2"}
    assert len(corners(found["system-0"])) == 4  # closed
    assert len(corners(found["system-1"])) == 3  # key, genre, key again; no pitch
    genre, key = (corners(found[f"system-{i}"])[1] for i in (0, 1)), corners(found["system-0"])[0]
    whole, half = genre
    centre_x = key[0]  # the first spoke points upwards
    spoke = [corners(found[f"system-{i}"])[0][0] for i in (0, 1)]
    assert (half[0] - spoke[1]) / (whole[0] - centre_x) == pytest.approx(0.5, rel=1e-3)
    assert "pitch classification: no result (chroma)." in texts(svg)


def test_a_radar_of_two_types_is_a_note():
    svg = charts.radar_by_task_type([result(), result(task="nsynth_pitch")])
    assert texts(svg)[-1].startswith("A radar needs 3 types of task, and these results have 2")
    assert "system-0" not in marks(svg)


def test_hours_are_logarithmic_and_areas_grow_with_parameters():
    names = ("mert-v0", "mert-v1-95m", "mert-v1-330m")
    results = [result(n, scores={"accuracy": 0.5 + 0.1 * i}) for i, n in enumerate(names)]
    results += [result("mert-v0", "mtt", {"roc_auc": 0.9, "ap": 0.4}), result("chroma")]
    results += [result("mert-v0", run={"weights": "random"}), result("no-such-backbone")]
    svg = charts.score_against_hours(results)
    found = marks(svg)
    x = [spot(found[f"point-0-{i}"])[0] for i in range(3)]
    hours = [math.log10(systems.known_card(n).pretrain_hours) for n in names]
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(
        (hours[1] - hours[0]) / (hours[2] - hours[0]), abs=1e-4
    )
    size = [systems.known_card(n).parameters for n in names]
    diameter = [
        max(y for _, y in p) - min(y for _, y in p)
        for p in (_outline(found[f"point-0-{i}"]) for i in range(3))
    ]
    assert (diameter[2] / diameter[0]) ** 2 == pytest.approx(_area(size[2]) / _area(size[0]), rel=1e-2)
    assert _area(10**8) - _area(10**7) == pytest.approx(_area(10**7) - _area(10**6))
    said = texts(svg)
    assert "high level: mean of gtzan_genre." in said
    assert "Not in the means, as not all systems of the level have them: mtt." in said
    assert "Hours of pre-training unknown, or none: chroma; mert-v0, untrained; no-such-backbone." in said


def _outline(element):
    numbers = re.findall(r"[-\d.]+", shape(element))
    return list(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))


def test_hours_without_a_known_system_is_a_note():
    svg = charts.score_against_hours([result("chroma")])
    assert "Hours of pre-training unknown, or none: chroma." in texts(svg)
    assert "point-0-0" not in marks(svg)


def test_hostile_texts_are_texts():
    answers = [Prediction(HOSTILE, HOSTILE, "blues", 0.9), Prediction("b", "blues", "blues", 0.6)]
    bad = searched(
        HOSTILE, HOSTILE, scores={HOSTILE: 0.5}, predictions=answers, train_seconds=5, extract_seconds=5,
        run={"method": HOSTILE, "layer": [1], "weights": {"a": 1}}, hardware={"gpus": 1, "device": HOSTILE},
        trials=(Trial({"layer": HOSTILE}, 0.5, 1, 1),), chosen={"layer": HOSTILE},
    )  # fmt: skip
    twin = result(HOSTILE + "!", HOSTILE + "!", {HOSTILE: 0.5}, run={"method": HOSTILE}, train_seconds=5)
    third = result(HOSTILE, "gtzan_genre", train_seconds=5)
    everything = [bad, twin, third]
    drawn = [
        charts.layer_profile(everything), charts.learning_curves(everything), charts.confusion(bad),
        charts.reliability(bad), charts.cost_against_score(everything), charts.bars_by_task_type(everything),
        charts.radar_by_task_type(everything), charts.score_against_hours(everything),
    ]  # fmt: skip
    for svg in drawn:
        elements = list(parsed(svg).iter())
        assert "script" not in {e.tag for e in elements}
        assert "<script" not in svg and "\x00" not in svg and "\ud800" not in svg
    assert any("</title><script>alert(1)" in text for text in texts(drawn[0]))


def test_different_names_stay_different_when_shortened():
    long = "a" * 60
    assert shortened([long, long + "b", long, "c"], 10) == [
        "a" * 9 + "…", "a" * 9 + "… (2)", "a" * 9 + "…", "c",
    ]  # fmt: skip
    assert clean("a\tb\n c\u202e\x07", 40) == "a b c��"


def test_names_say_what_differs_and_nothing_else():
    results = [
        result("mert-v0", run={"seed": 0, "layer": 3}),
        result("mert-v0", run={"seed": 1, "layer": 3}),
        result("mert-v0", run={"seed": 1, "layer": 5, "method": "lora:rank=2"}),
        result("mert-v0", run={"seed": 0, "layer": 4, "weights": "random"}),
    ]
    others = ["mert-v0, lora:rank=2", "mert-v0, untrained"]
    assert system_names(results) == ["mert-v0, seed 0", "mert-v0, seed 1", *others]
    assert system_names(results, without_seed=True) == ["mert-v0", "mert-v0", *others]
    two_protocols = [*results[:1], result("chroma", run={"protocol": "petl"})]
    assert system_names(two_protocols) == ["mert-v0, jukemir", "chroma, petl"]


def test_no_two_lines_look_alike():
    looks = [tuple(sorted((k, str(v)) for k, v in line_style(i).items())) for i in range(88)]
    assert len(set(looks)) == 88


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'audiation\[figures\]'"):
        charts.layer_profile([searched()])
