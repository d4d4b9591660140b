"""The static site: what it says, that nothing in it can be turned against its readers, and how it behaves in a browser.

The tests in a browser are marked slow and need Chromium and playwright; without them they fail and say what to install.
"""

import base64
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import urllib.parse
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from rich.console import Console

from audiation.annotations import PITCH_CLASSES
from audiation.answers import read_answers
from audiation.bootstrap import Interval
from audiation.datasets.magnatagatune import TAGS as MTT_TAGS
from audiation.leaderboard_commands import leaderboard, show
from audiation.maps import ClipMap
from audiation.result_files import read_results
from audiation.results import Failure, Prediction, Result, Trial
from audiation.site import index_page, system_page, write_site
from audiation.site.map_page import MAX_LABELS, OTHER_LABELS, audio_address, map_body
from audiation.site.markup import escape, json_island, tag
from audiation.site.systems import WALL_SECONDS, marks_of, systems_of, without_repeats
from audiation.site.tables import MEAN_RANK, rankings_of
from audiation.site.words import duration_text, repeat_command, size_text
from audiation.tasks import TASKS

# Samples -----------------------------------------------------------------------------------------------

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
KEYS = tuple(f"{tonic} {mode}" for tonic in PITCH_CLASSES for mode in ("major", "minor"))
TIMBRES = ("organ", "piano", "strings", "winds")
CREATED = "2026-03-01T12:00:00+00:00"


def answers(task, skill, count, seed):
    """Predictions of which a share `skill` is right."""
    draw = random.Random(f"{task}{count}")
    own = random.Random(f"{task}{seed}{skill}")
    kept = []
    for index in range(count):
        if task in ("mtt", "mtt_clean"):
            tags = MTT_TAGS
            truth = {t: float(draw.random() < 0.3) for t in tags}
            guess = {
                t: round(min(1, max(0, 0.5 * skill * v + 0.5 * own.random())), 4) for t, v in truth.items()
            }
            kept.append(Prediction(f"clip-{index}", json.dumps(truth), json.dumps(guess)))
        elif task == "emomusic":
            truth = {"arousal": draw.uniform(-1, 1), "valence": draw.uniform(-1, 1)}
            guess = {k: skill * v + (1 - skill) * own.uniform(-0.4, 0.4) for k, v in truth.items()}
            kept.append(Prediction(f"clip-{index}", json.dumps(truth), json.dumps(guess)))
        else:
            labels = GENRES if task == "gtzan_genre" else TIMBRES if task == "scores-timbre" else KEYS
            truth = draw.choice(labels)
            right = own.random() < skill
            guess = truth if right else own.choice(labels)
            kept.append(
                Prediction(
                    f"clip-{index}",
                    truth,
                    guess,
                    round(own.uniform(0.5, 1) if right else own.uniform(0.2, 0.8), 3),
                )
            )
    return tuple(kept)


def sample(backbone="chroma", task="scores-key", skill=0.8, count=60, num_failed=0, layers=0, **changes):
    """A result. Keyword arguments of `Result` replace fields, `run` is added to the run."""
    run = {
        "backbone": backbone, "task": task, "method": "probe", "protocol": "jukemir-single", "weights": None,
        "num_layers": None, "layer": 0, "precision": "fp32", "train": "", "seed": 0, "protocol_version": 1,
        "weights_hash": f"hash of {backbone}",
    } | changes.pop("run", {})  # fmt: skip
    metrics = TASKS[task].metrics if task in TASKS else ()
    predictions = changes.pop("predictions", None)
    if predictions is None:
        predictions = answers(task, skill, count, f"{backbone}{run['seed']}")
    predictions = predictions[num_failed:] if num_failed else predictions
    wide = 0.9 / count**0.5
    fields = {
        "run": run | {"metrics": [m.versioned_name for m in metrics]},
        "scores": {"accuracy": skill},
        "intervals": {"accuracy": Interval(skill - wide, min(1.0, skill + wide))},
        "num_test_tracks": count - num_failed,
        "num_official_test_tracks": count,
        "split_hash": f"split of {task}",
        "failures": tuple(Failure(f"broken-{i}", "the file is empty") for i in range(num_failed)),
        "predictions": predictions,
        "num_parameters": 49_688,
        "train_seconds": 40.0 + 100 * skill,
        "extract_seconds": 12.5,
        "best_step": 88,
        "hardware": {"device": "cpu", "gpus": 0, "cpu": "x86_64", "cores": 2, "system": "Linux"},
        "code": {"version": "0.1.0", "sources_sha256": "c0de" * 16},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "created": CREATED,
        "curve": tuple((8 * i, skill * (1 - 0.6 * 0.7**i)) for i in range(12)),
    }
    if layers:
        layer_names = [*map(str, range(layers)), "weighted-sum"]
        trials = [
            Trial(
                {"layer": name, "learning_rate": rate},
                round(skill - 0.02 * abs(i - layers // 2) - rate, 4),
                80,
                200,
            )
            for i, name in enumerate(layer_names)
            for rate in (1e-3, 5e-3)
        ]
        best = max(trials, key=lambda t: t.valid_score)
        fields |= {"trials": tuple(trials), "chosen": best.choices}
    if metrics and predictions and task in TASKS:
        draft = Result(**fields)
        read = read_answers(draft)
        used = metrics[:3] if task == "emomusic" else metrics[:2]
        scores = {m.name: float(m.compute(read.references, read.estimates)) for m in used}
        fields["scores"] = scores
        fields["intervals"] = {n: Interval(s - wide, min(1.0, s + wide)) for n, s in scores.items()}
    return Result(**fields | changes)


HOSTILE = (
    "</script><script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>\u202e\u2028é\ud800\x00"
    + "x" * 300
)


def hostile():
    """A result of which every text is an attack."""
    run = {
        "backbone": HOSTILE,
        "task": HOSTILE,
        "method": HOSTILE,
        "protocol": HOSTILE,
        "train": HOSTILE,
        "weights": HOSTILE,
    }
    return sample(
        HOSTILE,
        HOSTILE,
        run=run,
        scores={HOSTILE: 0.5},
        intervals={HOSTILE: Interval(0.4, 0.6)},
        predictions=(Prediction(HOSTILE, HOSTILE, HOSTILE), Prediction("b", HOSTILE, "c", 0.5)),
        num_test_tracks=2,
        num_official_test_tracks=3,
        failures=(Failure(HOSTILE, HOSTILE),),
        departures=(HOSTILE,),
        chosen={HOSTILE: HOSTILE},
        split_hash=HOSTILE,
        hardware={"device": HOSTILE, HOSTILE: HOSTILE},
        code={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        created=HOSTILE,
    )


def clip_map(layer=0, title="gtzan_genre: chroma", num_clips=12, audio=None, labels=GENRES[:3]):
    """A map of clips on a circle."""
    angles = np.linspace(0, 2 * np.pi, num_clips, endpoint=False) + layer
    return ClipMap(
        title=f"{title}, layer {layer}",
        method="pca",
        layer=layer,
        points=tuple((float(np.cos(a)), float(np.sin(a))) for a in angles),
        labels=tuple(labels[i % len(labels)] for i in range(num_clips)),
        track_ids=tuple(f"clip {i}" for i in range(num_clips)),
        audio_paths=tuple(audio or [None] * num_clips),
        splits=tuple("test" if i % 3 == 0 else "train" for i in range(num_clips)),
        explained=f"PCA {layer}: 41 % + 12 % of the variance",
    )


@pytest.fixture
def no_charts(monkeypatch):
    """Charts are tested elsewhere and take most of the time."""
    for module in (index_page, system_page):
        for name in ("bars_by_task_type", "radar_by_task_type", "cost_against_score", "score_against_hours",
                     "layer_profile", "learning_curves", "confusion", "reliability"):  # fmt: skip
            if hasattr(module, name):
                monkeypatch.setattr(
                    module, name, lambda results, name=name: f"<svg><title>{name}</title></svg>"
                )


class Elements(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.text, self.scripts, self._open = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        self._open = name
        if name == "script":
            self.scripts.append("")

    def handle_endtag(self, name):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.found if found == name]


def pages_of(report):
    return {path: Elements(path.read_text(encoding="utf-8")) for path in report.pages}


def text_of(page):
    return re.sub(r"\s+", " ", " ".join(page.text))


# What it says ------------------------------------------------------------------------------------------


def test_scores_intervals_ranks_and_published_numbers(tmp_path, no_charts):
    good = sample("mert-v1-95m", "giantsteps_key", 0.95, layers=3)
    bad = sample("chroma", "giantsteps_key", 0.2)
    report = write_site([bad, good], tmp_path / "site")
    assert report.index == tmp_path / "site" / "index.html" and report.notes == ()
    assert len(report.pages) == 3
    index = pages_of(report)[report.index]
    text = text_of(index)
    score, interval = good.scores["key_weighted"], good.intervals["key_weighted"]
    assert f"{100 * score:.1f}" in text
    assert f"{100 * interval.low:.1f} to {100 * interval.high:.1f}" in text
    assert text.index("mert-v1-95m") < text.index("chroma")  # the better one first
    rows = [a for a in index.all("tr") if a.get("data-method")]
    ours = [a for a in rows if "data-published" not in a]
    assert [a["data-name"] for a in ours] == ["mert-v1-95m", "chroma"]
    assert ours[0]["data-commercial"] == "no" and ours[1]["data-commercial"] == "yes"
    jukebox = next(a for a in rows if a["data-name"] == "JUKEBOX")
    assert jukebox["data-published"] == "yes" and jukebox["data-method"] == "probe"
    assert "jukemir paper, Table 3" in text and "Not ranked with ours" in text
    assert "66.7" in text  # as printed for Jukebox
    values = [float(a["data-value"]) for a in index.all("td") if "data-value" in a]
    assert score in values and 0.667 in values
    assert (
        "layer_profile" in report.pages[2].read_text() and "layer_profile" not in report.pages[1].read_text()
    )


def test_the_page_of_a_system_says_how_to_repeat_a_score(tmp_path, no_charts):
    result = sample("mert-v1-95m", "gtzan_genre", layers=13, num_failed=2, run={"seed": 3, "layer": None})
    report = write_site([result], tmp_path)
    text = text_of(pages_of(report)[report.pages[1]])
    assert "58 of 60" in text and "partial, 96 %" in text and "2 of 60 test tracks lack an answer" in text
    assert "layer 6, learning rate 0.001" in text
    assert "CC-BY-NC-4.0" in text and "broken-0 (test): the file is empty" in text
    assert (
        "audiation evaluate --backbone mert-v1-95m --task gtzan_genre --protocol jukemir-single --seed 3"
        in text
    )
    assert "c0dec0de" in text and "torch 2.13.0" in text and "core-hours" in text


def test_a_command_survives_the_shell():
    run = {
        "weights": "my weights/$(rm -rf x).pt",
        "layer": 7,
        "method": "lora:rank=2",
        "train": "steps=3,batch_size=2",
    }
    words = shlex.split(repeat_command(sample(run=run)))
    assert words == [
        "audiation", "evaluate", "--backbone", "chroma", "--task", "scores-key", "--protocol", "jukemir-single",
        "--method", "lora:rank=2", "--weights", "my weights/$(rm -rf x).pt", "--layer", "7",
        "--train", "steps=3,batch_size=2",
    ]  # fmt: skip


def test_what_may_not_be_compared_is_in_tables_of_its_own():
    tasks = ("mtt", "mtt_clean", "giantsteps_key", "hooktheory_giantsteps_key", "gtzan_genre")
    results = [sample("chroma", task, count=12) for task in tasks]
    results += [
        sample("mfcc", "mtt", count=12),
        sample("chroma", "mtt", count=12, run={"protocol_version": 2}),
    ]
    rankings = rankings_of(systems_of(results))
    found = [(r.protocol_version, r.conditions, [c.task for c in r.columns]) for r in rankings]
    assert found == [
        (1, "", ["giantsteps_key", "gtzan_genre", "mtt"]),
        (1, "mtt_clean", ["mtt_clean"]),
        (1, "trained on other recordings than the test's", ["hooktheory_giantsteps_key"]),
        (2, "", ["mtt"]),
    ]
    assert [row.system.name for row in rankings[0].rows] == ["chroma", "mfcc"]


def test_another_split_or_metric_version_is_another_column():
    old = sample("mfcc", run={"metrics": ["key_weighted@0"]})
    old = replace(old, run=old.run | {"metrics": ["key_weighted@0"]})
    results = [sample(), replace(sample("mert-v1-95m"), split_hash="other"), old]
    rankings = rankings_of(systems_of(results))
    assert sorted((c.metric, c.split_hash) for r in rankings for c in r.columns) == [
        ("key_weighted@0", "split of scores-key"),
        ("key_weighted@1", "other"),
        ("key_weighted@1", "split of scores-key"),
    ]
    assert [len(r.columns) for r in rankings] == [1, 1, 1]
    assert sum(len(r.unranked) for r in rankings) == 1  # the code does not compute the old version


def test_averages():
    tasks = {"mtt": 0.9, "giantsteps_key": 0.8, "gtzan_genre": 0.7, "emomusic": 0.6}
    run = {"protocol": "jukemir"}
    full = [sample("chroma", task, skill, count=20, run=run) for task, skill in tasks.items()]
    [ranking] = rankings_of(systems_of([*full, sample("mfcc", "mtt", 0.1, count=20, run=run)]))
    assert ranking.averages == ("average of jukemir-3", MEAN_RANK)
    rows = {row.system.name: row for row in ranking.rows}
    by_task = {r.run["task"]: r.scores for r in full}
    parts = [
        (by_task["mtt"]["roc_auc"] + by_task["mtt"]["ap"]) / 2,
        by_task["giantsteps_key"]["key_weighted"],
        by_task["gtzan_genre"]["accuracy"],
        (by_task["emomusic"]["r2_arousal"] + by_task["emomusic"]["r2_valence"]) / 2,
    ]
    assert rows["chroma"].averages[0].value == pytest.approx(100 * sum(parts) / 4)
    assert [a.value for a in rows["mfcc"].averages] == [None, None]
    assert "giantsteps_key" in rows["mfcc"].averages[0].why and "emomusic" in rows["mfcc"].averages[1].why
    [alone] = rankings_of(systems_of(full[:2]))
    assert alone.averages == () and "gtzan_genre" in alone.unaveraged["average of jukemir-3"]


def test_published_numbers_on_other_recordings_are_apart():
    [ranking] = rankings_of(systems_of([sample("chroma", "scores-key")]))
    assert ranking.published == ()
    [line] = ranking.elsewhere
    [score] = line.scores.values()
    assert (line.system, score.value, score.dataset) == ("CHROMA", 0.565, "giantsteps_key")


def test_runs_of_several_seeds_are_one_row():
    seeds = [sample(skill=s, run={"seed": i}) for i, s in enumerate((0.6, 0.7, 0.8))]
    [ranking] = rankings_of(systems_of(seeds))
    [row] = ranking.rows
    [entry] = row.entries.values()
    scores = [r.scores["key_weighted"] for r in seeds]
    assert entry.score == pytest.approx(np.mean(scores))
    assert entry.interval.low < entry.score < entry.interval.high
    assert [m.label for m in entry.marks] == ["3 seeds"]


def test_a_layer_that_was_named_tells_systems_apart_and_one_that_was_chosen_does_not():
    named = [sample("mert-v1-95m", run={"layer": layer}) for layer in (5, 7)]
    assert [s.name for s in systems_of(named)] == ["mert-v1-95m, layer 5", "mert-v1-95m, layer 7"]
    per_task = [named[0], sample("mert-v1-95m", "scores-timbre", run={"layer": 7})]
    assert [s.name for s in systems_of(per_task)] == ["mert-v1-95m"]
    chosen = [sample("mert-v1-95m", layers=13, run={"layer": layer, "seed": layer}) for layer in (5, 7)]
    assert [s.name for s in systems_of(chosen)] == ["mert-v1-95m"]


def test_marks():
    assert marks_of([sample()]) == ()
    nearly = replace(
        sample(num_failed=1), num_test_tracks=19_999, num_official_test_tracks=20_000, predictions=()
    )
    assert [m.label for m in marks_of([nearly])] == ["partial, 99 %"]
    departs = marks_of([sample(departures=("batch_size=64", "weight_decay=0"))])
    assert [m.kind for m in departs] == ["departs"] and "batch_size=64; weight_decay=0" in departs[0].detail
    run = {"protocol": "marble-constrained"}
    hours = {"extract_seconds": WALL_SECONDS - 100.0, "hardware": {"device": "NVIDIA A100", "gpus": 1}}
    assert marks_of([sample(run=run, train_seconds=100.0, **hours)]) == ()
    [wall] = marks_of([sample(run=run, train_seconds=101.0, **hours)])
    assert wall.label == "★ over a week" and "NVIDIA A100" in wall.detail and "RTX 3090" in wall.detail
    assert marks_of([sample(train_seconds=2.0 * WALL_SECONDS)]) == ()  # no wall in other protocols
    [seen] = marks_of([sample("mert-v1-95m", "gtzan_genre")])
    assert seen.kind == "seen" and "cannot be excluded" in seen.detail
    assert marks_of([sample("mert-v1-95m", "gtzan_genre", run={"weights": "random"})]) == ()


def test_of_one_run_the_newest_result_is_shown(tmp_path, no_charts):
    old, new = sample(skill=0.3, created="2026-01-01T00:00:00+00:00"), sample(skill=0.9)
    shown, notes = without_repeats([old, new, new])
    assert shown == [new]
    assert notes == [
        "chroma, probe, on scores-key (jukemir-single): the result of 2026-01-01T00:00:00+00:00 is left out, that of "
        "2026-03-01T12:00:00+00:00 is shown"
    ]
    report = write_site([old, new], tmp_path)
    assert list(report.notes) == notes and notes[0] in text_of(pages_of(report)[report.index])


def test_results_without_predictions_have_no_rank_and_say_so(tmp_path, no_charts):
    report = write_site([replace(sample(), predictions=()), sample("mfcc")], tmp_path)
    index = pages_of(report)[report.index]
    assert "scores-key lacks ranks: 1 of 2 results hold no predictions to compare" in text_of(index)
    assert len([a for a in index.all("span") if a.get("class") == "rank"]) == 1


# What it must never do ---------------------------------------------------------------------------------


def test_hostile_texts_stay_texts(tmp_path, no_charts):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.zeros(100), 8000)
    evil = replace(
        clip_map(), title=HOSTILE, labels=(HOSTILE,) * 12, track_ids=(HOSTILE,) * 12, explained=HOSTILE
    )
    report = write_site([hostile(), sample()], tmp_path / "site", title=HOSTILE, maps=[evil])
    for path, page in pages_of(report).items():
        expected = {"index.html": 1}.get(path.name, 2 if path.parent.name == "maps" else 0)
        assert len(page.all("script")) == expected, path
        assert page.all("img") == []
        assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
        assert "window.hacked=1" in text_of(page) or "window.hacked" in "".join(page.scripts)
        assert re.fullmatch(r"[a-z0-9.-]{1,80}", path.name)
        text = path.read_text(encoding="utf-8")
        assert "\x00" not in text and "<script>window.hacked" not in text
    island = next(p for path, p in pages_of(report).items() if path.parent.name == "maps").scripts[0]
    assert json.loads(island)[0]["track_ids"][0].startswith("</script>")


def test_hostile_texts_reach_real_charts_as_texts(tmp_path):
    result = replace(sample(count=4), predictions=tuple(
        Prediction(f"{HOSTILE}{i}", "C major", "C minor", 0.5) for i in range(4)))  # fmt: skip
    result = replace(result, run=result.run | {"backbone": HOSTILE, "method": HOSTILE})
    report = write_site([result], tmp_path)
    for path, page in pages_of(report).items():
        assert len(page.all("script")) == (path == report.index) and page.all("img") == []
        assert len(page.all("svg")) >= 2


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "&lt;", "\u2028", "\ud800"])
def test_data_for_scripts_cannot_end_its_element(text):
    island = json_island("x", [text])
    inside = re.fullmatch(r'<script type="application/json" id="x">(.*)</script>', island)[1]
    assert not set("<>&") & set(inside) and inside.isascii()
    assert json.loads(inside) == [text]


def test_markup_escapes_by_type():
    assert tag("a", {"href": '"><b>', "hidden": True, "id": None}, "<b>", tag("br", {}), None, 3) == (
        '<a href="&quot;&gt;&lt;b&gt;" hidden>&lt;b&gt;<br>3</a>'
    )
    assert escape("a\x00b\ud800") == "a\ufffdb\ufffd"
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_island("x", float("nan"))


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(tmp_path, no_charts):
    results = [sample(b, t) for b in ("chroma", "mfcc") for t in ("scores-key", "scores-timbre")]
    report = write_site(results, tmp_path, maps=[clip_map(0), clip_map(1), clip_map(0, "another")])
    pages = pages_of(report)
    assert len(pages) == 1 + 2 + 2
    linked = set()
    for path, page in pages.items():
        ids = [a["id"] for _, a in page.found if "id" in a]
        assert len(ids) == len(set(ids))
        for name, attributes in page.found:
            for key in ("href", "src", "action", "data", "poster", "srcset"):
                if key not in attributes or attributes[key] == "data:,":
                    continue
                assert (name, key) == ("a", "href")
                address, _, anchor = attributes[key].partition("#")
                target = (
                    (path.parent / urllib.parse.unquote(address)).resolve() if address else path.resolve()
                )
                assert target in {p.resolve() for p in pages}, attributes[key]
                linked.add(target)
                if anchor:
                    there = pages[next(p for p in pages if p.resolve() == target)]
                    assert anchor in {a.get("id") for _, a in there.found}
        assert "url(" not in path.read_text() and "@import" not in path.read_text()
    assert linked == {p.resolve() for p in pages}


def test_the_policy_allows_the_pages_own_scripts_only(tmp_path, no_charts):
    report = write_site([sample()], tmp_path, maps=[clip_map()])
    for path, page in pages_of(report).items():
        [policy] = [
            a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
        ]
        rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
        assert rules["default-src"] == ["'none'"] and rules["base-uri"] == ["'none'"]
        kinds = [a.get("type") for a in page.all("script")]
        own = [s for s, kind in zip(page.scripts, kinds, strict=True) if kind is None]
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in own]
        assert rules["script-src"] == (hashes or ["'none'"])
        assert rules.get("media-src", []) == (["'self'", "file:"] if path.parent.name == "maps" else [])
        assert not [a for _, a in page.found if "style" in a]


def test_equal_results_give_equal_bytes(tmp_path):
    results = [sample(b, t, layers=3) for b in ("chroma", "mfcc") for t in ("scores-key",)]
    first = write_site(results, tmp_path / "a", maps=[clip_map()])
    second = write_site(results[::-1], tmp_path / "b", maps=[clip_map()])
    assert [p.relative_to(tmp_path / "a") for p in first.pages] == [
        p.relative_to(tmp_path / "b") for p in second.pages
    ]
    for a, b in zip(first.pages, second.pages, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_pages_of_an_earlier_site_are_removed_and_nothing_else(tmp_path, no_charts):
    first = write_site([sample(), sample("mfcc")], tmp_path, maps=[clip_map()])
    own = tmp_path / "systems" / "mine.html"
    own.write_text("<p>mine")
    second = write_site([sample()], tmp_path)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {*second.pages, own}
    assert len(first.pages) == 4 and len(second.pages) == 2


def test_what_makes_no_site(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        write_site([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        write_site([sample()], tmp_path / "file")
    with pytest.raises(ValueError, match="has no clips"):
        write_site([sample()], tmp_path / "site", maps=[clip_map(num_clips=0)])
    assert not (tmp_path / "site").exists()


# Maps and words ----------------------------------------------------------------------------------------


def test_recordings_are_named_so_that_a_page_can_play_them(tmp_path):
    inside, outside = tmp_path / "site" / "audio" / "a #1 é.wav", tmp_path / "b.wav"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"")
    outside.write_bytes(b"")
    page_dir = tmp_path / "site" / "maps"
    assert audio_address(None, page_dir, None) is None
    assert audio_address(str(tmp_path / "none.wav"), page_dir, None) is None
    assert audio_address(str(inside), page_dir, None) == inside.as_uri()
    assert audio_address(str(inside), page_dir, inside.parent) == "../audio/a%20%231%20%C3%A9.wav"
    assert audio_address(str(outside), page_dir, inside.parent) is None


def test_labels_of_a_map_are_few_and_in_order(tmp_path):
    names = [f"label {i}" for i in range(30)]
    page = Elements(map_body("m", [clip_map(num_clips=60, labels=names)], tmp_path, None))
    [data] = json.loads(page.scripts[0])
    assert data["legend"] == [*names[:MAX_LABELS], OTHER_LABELS]
    assert data["labels"].count(OTHER_LABELS) == 2 * (30 - MAX_LABELS)
    assert "0 of 60 can be played" in text_of(page)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [(None, "size unknown"), (0, "no parameters"), (999, "999 parameters"), (94_371_712, "94.4 M parameters"),
     (5_000_000_000, "5 B parameters"), (1, "1 parameter")],
)  # fmt: skip
def test_sizes_in_words(parameters, said):
    assert size_text(parameters) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4.16, "4.2 s"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (8.2 * 86400, "8.2 days"),
        (59.99, "60.0 s"),
    ],
)
def test_durations_in_words(seconds, said):
    assert duration_text(seconds) == said


# The command -------------------------------------------------------------------------------------------


def quiet():
    return Console(file=io.StringIO(), width=140)


def test_results_are_found_in_files_and_folders(tmp_path):
    first, second = sample(), sample("mfcc")
    first.save(tmp_path / "runs" / "deep" / "a.json")
    second.save(tmp_path / "b.json")
    (tmp_path / "runs" / "other.json").write_text("{}")
    (tmp_path / "runs" / "broken.json").write_text(first.to_json()[:-40])
    (tmp_path / "empty").mkdir()
    (tmp_path / "named.json").write_text("{}")
    names = ("runs", "b.json", "runs/deep/a.json", "empty", "named.json", "absent.json")
    found = read_results([tmp_path / name for name in names])
    assert found.results == (first, second)
    assert [path.name for path, _ in found.problems] == ["broken.json", "empty", "named.json", "absent.json"]
    assert "not JSON" in found.problems[0][1] and "no .json file" in found.problems[1][1]
    assert "there is no such file" in found.problems[3][1]


def test_table_and_site_of_the_command(tmp_path, no_charts):
    sample(skill=0.95).save(tmp_path / "a.json")
    sample("mfcc", skill=0.2, num_failed=3).save(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"schema_version": 99}')
    console = quiet()
    assert show([tmp_path], html=tmp_path / "site", console=console) == 1
    said = console.file.getvalue()
    assert "jukemir-single, version 1" in said and "partial, 95 %" in said
    assert "published: jukemir paper, Table 3, other data: giantsteps_key" in said
    assert f"not used: {tmp_path / 'c.json'}" in said and "schema_version must be" in said
    assert f"Site: {tmp_path / 'site' / 'index.html'}" in said
    assert (tmp_path / "site" / "index.html").is_file()
    good, bad = (line for line in said.splitlines() if re.search(r"\b(chroma|mfcc)\b .* to ", line))
    assert "chroma" in good and re.search(r"to \d+\.\d +1\b", good) and re.search(r"to \d+\.\d +2\b", bad)


def test_maps_of_the_command(tmp_path, no_charts, monkeypatch):
    asked = []

    def clip_maps(run, *, method, data_root, metadata_root, store_dir):
        asked.append((run.backbone, method, data_root, store_dir))
        if run.backbone == "mfcc":
            raise ValueError("no features")
        return [clip_map(0), clip_map(1)]

    monkeypatch.setattr("audiation.maps.clip_maps", clip_maps)
    sample().save(tmp_path / "a.json")
    sample("mfcc").save(tmp_path / "b.json")
    sample(run={"method": "lora:rank=2"}).save(tmp_path / "c.json")
    console = quiet()
    paths = sorted(tmp_path.glob("*.json"))
    options = {"data_root": tmp_path / "data", "store": tmp_path / "store", "console": console}
    assert show(paths, html=tmp_path / "site", maps="pca", **options) == 1
    data = (tmp_path / "data", tmp_path / "store")
    assert asked == [("chroma", "pca", *data), ("mfcc", "pca", *data)]
    said = console.file.getvalue()
    assert "no map of scores-key by mfcc: no features" in said and "1 results have no map" in said
    [page] = (tmp_path / "site" / "maps").iterdir()
    assert [m["explained"][:5] for m in json.loads(Elements(page.read_text()).scripts[0])] == [
        "PCA 0",
        "PCA 1",
    ]


def test_exit_code_and_choices_of_the_command(tmp_path, capsys):
    sample().save(tmp_path / "a.json")
    leaderboard((tmp_path / "a.json",))
    assert "chroma" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        leaderboard((tmp_path / "a.json", tmp_path / "b.json"))
    assert ended.value.code == 1 and "no such file" in capsys.readouterr().out
    for arguments, choices, message in (
        ((), {}, "nothing to compare"),
        ((tmp_path / "none",), {}, "no result in"),
        ((tmp_path / "a.json",), {"out": tmp_path / "x"}, "belong to"),
        ((tmp_path / "a.json",), {"maps": "pca"}, "give its folder with --html"),
        (("pack", tmp_path / "a.json"), {}, "--card CARD.json --out BUNDLE.zip"),
        (("verify", tmp_path / "x.zip"), {"card": tmp_path / "c"}, "'verify' does not take --card"),
        (("new-card",), {}, "takes one path, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            leaderboard(arguments, **choices)


def test_submissions_are_packed_and_checked(tmp_path, capsys):
    sample().save(tmp_path / "a.json")
    card = tmp_path / "card.json"
    leaderboard(("new-card", card))
    assert card.is_file() and str(card) in capsys.readouterr().out.replace("\n", "")


# In a browser ------------------------------------------------------------------------------------------

NO_BROWSER = (
    "these tests need a browser: `pip install playwright` and Chromium (`apt-get install chromium`, or `playwright "
    "install chromium`, or AUDIATION_CHROMIUM=/path/to/chrome). Without them leave out --slow."
)


def chromium_path():
    """The browser's program; None: the one that playwright fetched."""
    given = os.environ.get("AUDIATION_CHROMIUM")
    return given or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.fail(NO_BROWSER)
    with sync_playwright() as player:
        try:
            # Chromium's own walls do not stand in containers, where everything runs as root.
            started = player.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        except Error as error:
            pytest.fail(f"{NO_BROWSER}\n{error}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site with several systems, hostile ones among them, and maps with sound."""
    out = tmp_path_factory.mktemp("site")
    audio = out / "audio" / "a tone.wav"
    audio.parent.mkdir()
    soundfile.write(audio, 0.1 * np.sin(np.arange(32_000) / 5), 16_000)
    results = [sample(b, t, s, layers=3) for b, s in (("chroma", 0.9), ("mfcc", 0.3), ("mert-v1-95m", 0.6))
               for t in ("scores-key", "scores-timbre")]  # fmt: skip
    results += [
        sample(
            "musicfm-mini",
            "scores-key",
            0.5,
            run={"method": "lora:rank=2", "weights": "random", "protocol": "petl"},
        ),
        hostile(),
    ]
    maps = [
        clip_map(layer, audio=[str(audio)] * 6 + [None] * 6, labels=(HOSTILE, "b", "c")) for layer in (0, 4)
    ]
    return write_site(results, out, maps=maps, audio_root=out / "audio")


@pytest.fixture
def open_page(browser, site):
    """Opens a page and fails the test for anything on the console, any request beside files, and any script that was
    smuggled in."""
    contexts, problems = [], []

    def opened(path=None, *, hash="", width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
        page.goto((path or site.index).as_uri() + hash)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            if page.evaluate("'hacked' in window"):
                problems.append(f"a text of {page.url} ran as a script")
        context.close()
    assert problems == []


OURS = "document.querySelectorAll('#{} tbody:first-of-type tr')"


def wait_until_playing(page):
    """Asked again and again: the page's policy forbids playwright's own way of waiting for an expression."""
    for _ in range(100):
        if page.evaluate("document.querySelector('audio').currentTime > 0"):
            return
        page.wait_for_timeout(100)
    pytest.fail("nothing is played after ten seconds")


def shown_names(page, table):
    return page.evaluate(f"[...{OURS.format(table)}].filter(r => !r.hidden).map(r => r.dataset.name)")


def table_with(page, text):
    return page.locator("section", has=page.locator("h2", has_text=text)).locator("table").get_attribute("id")


@pytest.mark.slow
def test_all_pages_open_without_complaints_and_fit_a_phone(open_page, site):
    for path in site.pages:
        for width in (390, 1280):
            page = open_page(path, width=width, color_scheme="dark" if width == 390 else "light")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.locator("h1").is_visible()
            page.context.close()


@pytest.mark.slow
def test_tables_are_sorted_by_mouse_and_keyboard(open_page):
    page = open_page()
    table = table_with(page, "jukemir-single, version 1")
    heads = page.locator(f"#{table} thead th")
    assert shown_names(page, table) == ["chroma", "mert-v1-95m", "mfcc"]
    heads.nth(0).locator("button").click()
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    heads.nth(0).locator("button").click()
    assert shown_names(page, table) == ["mfcc", "mert-v1-95m", "chroma"]
    heads.nth(1).locator("button").focus()
    page.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    assert heads.nth(0).get_attribute("aria-sort") is None
    assert shown_names(page, table) == ["chroma", "mert-v1-95m", "mfcc"]
    page.keyboard.press("Space")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    assert shown_names(page, table) == ["mfcc", "mert-v1-95m", "chroma"]
    assert page.evaluate("location.hash") == f"#{table}=1.up"
    page.reload()
    assert shown_names(page, table) == ["mfcc", "mert-v1-95m", "chroma"]


@pytest.mark.slow
def test_filters_hide_rows_and_columns_and_stand_in_the_address(open_page):
    page = open_page()
    table = table_with(page, "jukemir-single, version 1")
    everything = page.locator(".count").inner_text()
    page.select_option("select[name=licence]", "commercial")
    assert shown_names(page, table) == ["chroma", "mfcc"]
    page.select_option("select[name=licence]", "")
    page.select_option("select[name=size]", "1000000")
    assert shown_names(page, table) == ["chroma", "mfcc"]
    page.select_option("select[name=task]", "scores-timbre")
    heads = page.evaluate(
        f"[...document.querySelectorAll('#{table} th[data-task]')].filter(h => !h.hidden).length"
    )
    assert heads == 1
    assert page.evaluate("new URLSearchParams(location.hash.slice(1)).get('task')") == "scores-timbre"
    assert " of " in page.locator(".count").inner_text()
    page.locator(".filters button").click()
    assert page.evaluate("location.hash") == "" and page.locator(".count").inner_text() == everything
    page.select_option("select[name=method]", "lora")
    assert page.locator("tbody:not(.published) tr:visible").count() == 1
    other = open_page(hash="#published=off&method=probe")
    assert other.locator(".published:visible").count() == 0
    assert shown_names(other, table) == ["chroma", "mert-v1-95m", "mfcc"]
    odd = open_page(hash="#task=%3Cscript%3E&table-0=99.up&size=-1")
    assert odd.locator(".count").inner_text() == everything


@pytest.mark.slow
def test_clips_of_a_map_are_played_by_mouse_and_keyboard(open_page, site):
    page = open_page(site.pages[-1])
    points = page.locator(".point")
    assert points.count() == 12 and page.locator(".legend li").count() == 3
    points.nth(1).click()
    wait_until_playing(page)
    assert page.locator("audio").get_attribute("src") == "../audio/a%20tone.wav"
    assert "clip 1" in page.locator(".tip").inner_text()
    page.keyboard.press("ArrowLeft")
    reached = page.evaluate("Number(document.activeElement.dataset.index)")
    assert reached == 2  # the next one on the circle
    page.keyboard.press("Enter")
    wait_until_playing(page)
    assert page.locator(".playing p").inner_text().startswith("Playing clip 2")
    points.nth(8).click()
    assert "not on this machine" in page.locator(".playing p").inner_text()
    assert page.evaluate("document.querySelector('audio').paused")
    page.locator(".legend button").nth(1).click()
    assert page.locator(".point.faint").count() == 8
    before = points.nth(0).get_attribute("transform")
    page.select_option("#layer", "1")
    assert points.nth(0).get_attribute("transform") != before
    assert page.locator(".explained").inner_text() == "PCA 4: 41 % + 12 % of the variance"
    assert page.evaluate("document.querySelectorAll('.point[tabindex=\"0\"]').length") == 1


@pytest.mark.slow
def test_printing_leaves_out_what_paper_cannot_do(open_page):
    page = open_page()
    assert page.locator(".filters").is_visible()
    page.emulate_media(media="print")
    assert not page.locator(".filters").is_visible()
    assert page.locator("table.ranking").first.is_visible()
    sheet = page.pdf(prefer_css_page_size=True)
    assert sheet.startswith(b"%PDF") and len(sheet) > 10_000


@pytest.mark.slow
def test_everything_is_there_without_scripts(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.index.as_uri())
    assert not page.locator(".filters").is_visible()
    assert (
        page.locator("tbody:not(.published) tr").count()
        == page.locator("tbody:not(.published) tr:visible").count()
    )
    context.close()
