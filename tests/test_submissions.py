"""Bundles: what packs, what is accepted, and everything that is refused, hostile files among it."""

import dataclasses
import hashlib
import json
import re
import stat
import zipfile

import numpy as np
import pytest
import soundfile

from audiation import submission_checks, submissions
from audiation.annotations import Label
from audiation.bootstrap import Interval, bootstrap_interval
from audiation.datasets import Track
from audiation.datasets.gtzan import GENRES
from audiation.evaluation import evaluate
from audiation.metrics import ACCURACY
from audiation.protocols import PROTOCOLS
from audiation.results import Failure, Prediction, Result, Trial
from audiation.run import Run
from audiation.splits import Split
from audiation.submission_commands import card_command, pack_command, verify_command
from audiation.submissions import SubmissionError, SystemCard, new_card, pack, verify
from audiation.tasks import TASKS

TASK = "scores-timbre"
CLASSES = TASKS[TASK].target.classes
NUM_TRACKS = 30


@pytest.fixture(autouse=True)
def no_data(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)
    monkeypatch.delenv("AUDIATION_DATA_ROOT", raising=False)


@pytest.fixture
def card():
    return SystemCard(
        system="MFCC", backbone="20 coefficients and their first two differences", licence="none needed",
        pretraining_data=(), pretraining_hours=0, parameters=0,
    )  # fmt: skip


def labels(seed=0):
    """references, and estimates of which most are right."""
    generator = np.random.default_rng(seed)
    references = [Label(CLASSES[i]) for i in generator.integers(0, len(CLASSES), NUM_TRACKS)]
    estimates = [r if generator.random() < 0.7 else Label(CLASSES[0]) for r in references]
    return references, estimates


def a_result(protocol="jukemir-single", seed=0, **changes):
    references, estimates = labels()
    interval = bootstrap_interval(ACCURACY, references, estimates, seed=seed)
    run = {
        "backbone": "mfcc", "task": TASK, "method": "probe", "protocol": protocol, "weights": None,
        "num_layers": None, "layer": 0, "precision": "fp32", "train": "", "seed": seed,
        "protocol_version": PROTOCOLS[protocol].version, "metrics": ["accuracy@1"],
        "weights_hash": "none", "weights_source": "none needed",
        "aggregation": "logits_mean",
    }  # fmt: skip
    (trial, *_) = grid_trials(protocol, layers=("0",))
    pairs = enumerate(zip(references, estimates, strict=True))
    given = dict(
        run=run | changes.pop("run", {}), scores={"accuracy": ACCURACY.compute(references, estimates)},
        intervals={"accuracy": interval}, num_test_tracks=NUM_TRACKS, num_official_test_tracks=NUM_TRACKS,
        split_hash="ab12", predictions=tuple(Prediction(f"t{i}", str(r), str(e), 0.9) for i, (r, e) in pairs),
        trials=(trial,), chosen=trial.choices, best_step=trial.best_step,
    )  # fmt: skip
    return Result(**given | changes)


def problems_of(tmp_path, card, *results, **roots):
    bundle = tmp_path / f"{hashlib.sha256(repr(results).encode()).hexdigest()[:8]}.zip"
    report = verify(pack(results, card, bundle), **roots)
    assert report.accepted == (not report.problems)
    assert len(report.results) == len(results)
    return report


# Cards --------------------------------------------------------------------------------------------------------


def test_a_card_is_written_filled_in_and_read(tmp_path, card):
    path = new_card(tmp_path / "deep" / "card.json")
    with pytest.raises(SubmissionError, match=r"card\.json: system of the card is empty\. Write the name"):
        SystemCard.load(path)
    record = json.loads(path.read_text())
    assert set(record) == {"schema_version", *(f.name for f in dataclasses.fields(SystemCard))}
    filled = record | json.loads(card.to_json())
    path.write_text(json.dumps(filled))
    assert SystemCard.load(path) == card == SystemCard.from_json(card.to_json())
    with pytest.raises(FileExistsError, match="is there already"):
        new_card(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"licence": " "}, "licence of the card is empty"),
        ({"system": 3}, "system of a card is a text, got 3"),
        ({"authors": "me"}, r"authors of a card is a list of texts like \[\"...\"\], got 'me'"),
        ({"parameters": None}, "parameters of a card is a whole number from 0, got None. Count those"),
        ({"parameters": True}, "whole number from 0, got True"),
        ({"pretraining_hours": -1}, "pretraining_hours of a card is a number from 0, or null, got -1"),
        ({"pretraining_hours": 100}, "names its data"),
        ({"pretraining_data": ["msd"]}, "names its data"),
        ({"url": "javascript:alert(1)"}, "url of a card begins with https"),
        ({"url": 'https://x"><script>'}, "url of a card begins with https"),
        ({"schema_version": 2}, "schema_version of a card must be 1"),
        ({"licens": "MIT"}, "the card has unknown licens"),
    ],
)
def test_cards_that_say_too_little_or_nonsense(card, edit, message):
    with pytest.raises(SubmissionError, match=message):
        SystemCard.from_json(json.dumps(json.loads(card.to_json()) | edit))


@pytest.mark.parametrize("text", ["", "[]", '{"system": "x"}', "[" * 100_000])
def test_what_is_no_card_at_all(text):
    with pytest.raises(SubmissionError, match=r"not JSON|is a JSON object|must be 1"):
        SystemCard.from_json(text)


# Packing -------------------------------------------------------------------------------------------------------


def test_a_bundle_holds_everything_and_is_the_same_bytes_again(tmp_path, card):
    results = [a_result(), a_result(seed=1)]
    one = pack(results, card, tmp_path / "deep" / "one.zip")
    two = pack(results[::-1], card, tmp_path / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in one.parent.iterdir()) == ["one.zip"]
    with zipfile.ZipFile(one) as bundle:
        names = bundle.namelist()
        manifest = json.loads(bundle.read("manifest.json"))
        for name, listed in manifest["members"].items():
            content = bundle.read(name)
            assert listed == {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    assert sorted([*manifest["members"], "manifest.json"]) == names and len(names) == 4
    report = verify(one)
    assert report.card == card and report.accepted
    assert sorted(r.run["seed"] for r in report.results) == [0, 1]
    assert all(r in results for r in report.results)


def test_what_is_not_packed(tmp_path, card):
    with pytest.raises(SubmissionError, match="one result or more"):
        pack([], card, tmp_path / "x.zip")
    with pytest.raises(SubmissionError, match="mfcc on scores-timbre keeps no predictions"):
        pack([a_result(predictions=())], card, tmp_path / "x.zip")
    with pytest.raises(SubmissionError, match="2 results of the same run"):
        pack([a_result(), a_result(train_seconds=3.0)], card, tmp_path / "x.zip")
    with pytest.raises(SubmissionError, match="several values of backbone: mfcc, chroma"):
        pack([a_result(), a_result(run={"backbone": "chroma"})], card, tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())
    there = pack([a_result()], card, tmp_path / "x.zip")
    with pytest.raises(FileExistsError, match="is there already"):
        pack([a_result()], card, there)


# What a result says --------------------------------------------------------------------------------------------


def test_an_honest_result_is_accepted_and_what_could_not_be_checked_is_said(tmp_path, card):
    report = problems_of(tmp_path, card, a_result())
    assert report.accepted
    (warning,) = report.warnings
    assert "split, tracks and references are not checked: scores" in warning
    assert warning.startswith("results/scores-timbre.mfcc.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": {"accuracy": 0.99}}, "accuracy is 0.99 in the result, and 0"),
        ({"intervals": {"accuracy": Interval(0.7, 0.71)}}, "the interval of accuracy is 0.7 to 0.71 in the"),
        ({"intervals": {"accuracy": None}}, "the interval of accuracy is none in the result"),
        ({"run": {"seed": 1}}, "from its predictions with seed 1"),
        ({"run": {"seed": "0"}}, "run.seed is '0'"),
        ({"run": {"metrics": ["accuracy@0"]}}, r"metrics are \['accuracy@0'\], and this code has"),
        ({"run": {"metrics": None}}, "metrics are None"),
        ({"run": {"protocol_version": 0}}, "made by version 0 of protocol 'jukemir-single'"),
        ({"run": {"protocol": "own"}}, "there is no protocol 'own'"),
        ({"run": {"task": "own"}}, "there is no task 'own'"),
        ({"run": {"train": "steps=5"}}, "train='steps=5' departs from protocol"),
        ({"run": {"weights_hash": None}}, "run.weights_hash is missing"),
        (
            {"scores": {"f1": 0.5}, "intervals": {"f1": None}},
            "the score 'accuracy' is missing, and run.not_defined does not",
        ),
        ({"scores": {"f1": 0.5}, "intervals": {"f1": None}}, "task 'scores-timbre' has no metric 'f1'"),
    ],
)
def test_what_does_not_match_is_refused(tmp_path, card, changes, message):
    report = problems_of(tmp_path, card, a_result(**changes))
    assert not report.accepted
    assert any(re.search(message, p) for p in report.problems), report.problems


def edited(result, track, **changes):
    return tuple(dataclasses.replace(p, **changes) if p.track_id == track else p for p in result.predictions)


def test_an_edited_prediction_changes_the_score(tmp_path, card):
    result = a_result()
    wrong = next(p for p in result.predictions if p.reference != p.estimate)
    better = dataclasses.replace(result, predictions=edited(result, wrong.track_id, estimate=wrong.reference))
    assert "from its predictions" in problems_of(tmp_path, card, better).problems[0]
    unlikely = dataclasses.replace(result, predictions=edited(result, "t3", confidence=1.5))
    assert "confidence is no probability" in problems_of(tmp_path, card, unlikely).problems[0]
    twice = dataclasses.replace(result, predictions=edited(result, "t3", track_id="t4"))
    assert "track 't4' has two predictions" in problems_of(tmp_path, card, twice).problems[0]


def test_departures_and_partial_results_are_said(tmp_path, card):
    partial = a_result(
        num_official_test_tracks=NUM_TRACKS + 1, failures=(Failure("t99", "empty"),),
        departures=("batch 8 instead of 64",), run={"weights": "mine.pt", "train": "batch_size=8"},
    )  # fmt: skip
    report = problems_of(tmp_path, card, partial)
    assert report.accepted
    text = "\n".join(report.warnings)
    for said in ("batch 8 instead of 64", "partial: 30 of 31", "authors' own: 'mine.pt'"):
        assert said in text


def test_annotations_at_impossible_times_are_refused_before_they_cost_memory(tmp_path, card):
    far = "[[1e12, 1]]"
    score = {m.name: 0.0 for m in TASKS["scores-beats"].metrics}
    result = a_result(
        run={"task": "scores-beats", "metrics": [m.versioned_name for m in TASKS["scores-beats"].metrics]},
        scores=score, intervals=dict.fromkeys(score),
        predictions=tuple(Prediction(f"t{i}", far, far) for i in range(NUM_TRACKS)),
    )  # fmt: skip
    assert "track 't0' has an annotation at 1e+12 s" in problems_of(tmp_path, card, result).problems[0]


# The rules of protocols -----------------------------------------------------------------------------------------


LAYERS = ("0", "1", "2", "3", "4", "weighted-sum")  # of musicfm-mini


def grid_trials(protocol="marble-constrained", layers=LAYERS):
    probes = [dataclasses.asdict(p) for p in PROTOCOLS[protocol].probes_for(TASK)]
    fields = [{k: v for k, v in p.items() if k != "seed"} for p in probes]
    return tuple(
        Trial(choices | {"layer": layer}, 0.5 + 0.01 * i + 0.001 * j, 80, 160)
        for i, layer in enumerate(layers)
        for j, choices in enumerate(fields)
    )


def searched(trials, chosen=None, run=None, **changes):
    chosen = trials[-1] if chosen is None else chosen
    of_mini = {
        "backbone": "musicfm-mini",
        "weights": "random",
        "weights_source": "random:seed=0",
        "layer": None,
    }
    return a_result(
        "marble-constrained", trials=trials, chosen=chosen.choices, run=of_mini | (run or {}),
        **{"best_step": chosen.best_step} | changes,
    )  # fmt: skip


def test_a_whole_search_is_accepted(tmp_path, card):
    report = problems_of(tmp_path, card, searched(grid_trials()))
    assert report.accepted and len(report.warnings) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda t: searched(t[:-1]),
            "1 configurations of 'marble-constrained' were not tried on layer weighted-sum",
        ),
        (lambda t: searched((*t, t[-1])), "1 trials on layer weighted-sum are not in the grid"),
        (
            lambda t: searched(
                (*t[:-1], dataclasses.replace(t[-1], choices=t[-1].choices | {"learning_rate": 0.3}))
            ),
            r"1 trials on layer weighted-sum are not in the grid .* 0\.3,",
        ),
        (lambda t: searched(t[:6] + t[12:]), "not 0, 1, ... to the last: 0, 2, 3, 4"),
        (lambda t: searched(t[:30]), "the weighted sum was not tried"),
        (lambda t: searched(t[:18] + t[30:]), "3 were tried, and the model has 0 to 4"),
        (lambda t: searched(t, run={"aggregation": "oracle"}), "combined by 'oracle'"),
        (lambda t: searched(t, train_seconds=1e6), "278 hours, more than the 168"),
        (lambda t: searched(t, run={"layer": 2}), "asks for layer 2, and layer weighted-sum was tested"),
        (lambda t: searched(t, curve=((0, 0.1), (8, 0.9))), "the learning curve does not reach"),
        (lambda t: searched(t, departures=(" ",)), "a departure without words"),
        (
            lambda t: searched(
                tuple(x for i, x in enumerate(t) if i % 6 > 1 or i < 2), run={"num_configurations": 36}
            ),
            "10 configurations are said to have come to no score, too many",
        ),
        (lambda t: searched(t[10:], run={"num_configurations": 36}), "not 0, 1"),
        (lambda t: searched(t, run={"backbone": "gpt-17"}), "there is no backbone 'gpt-17'"),
        (lambda t: searched(t, run={"method": "lora:rank=8"}), "probes frozen features"),
        (
            lambda t: searched(t, run={"weights": None}),
            "weights are None, and their source is 'random:seed=0'",
        ),
        (lambda t: searched(t, run={"weights_hash": ""}), "weights_hash is missing"),
        (lambda t: searched(t, run={"precision": "int2"}), "the run is none: precision"),
        (lambda t: searched(t, run={"not_defined": {"accuracy": "no"}}), "is said not to be defined"),
        (
            lambda t: searched(t, t[3]),
            "the tested configuration has 0.503 on validation, and another has 0.555",
        ),
        (lambda t: searched(t, dataclasses.replace(t[3], choices={"layer": "9"})), "none of the 36 trials"),
        (lambda t: searched(t, best_step=7), "the tested state is that of step 7"),
        (
            lambda t: searched(t, dataclasses.replace(t[-1], choices=t[-1].choices | {"keep": "last"})),
            "the last state was kept, and protocol 'marble-constrained' keeps the best one",
        ),
        (lambda t: searched((), t[0]), "trains probes, and the result keeps no trials"),
        (
            lambda t: searched((*t[:-1], dataclasses.replace(t[-1], choices={"layer": "0"}))),
            "trials do not choose layer",
        ),
    ],
)
def test_searches_that_are_not_the_protocol_s(tmp_path, card, make, message):
    report = problems_of(tmp_path, card, make(grid_trials()))
    assert any(re.search(message, p) for p in report.problems), report.problems


def test_configurations_without_a_score_are_said(tmp_path, card):
    trials = grid_trials()
    report = problems_of(tmp_path, card, searched(trials[1:], run={"num_configurations": len(trials)}))
    assert report.accepted
    assert any("1 configurations are said to have been tried" in w for w in report.warnings)


def test_a_restricted_grid_is_a_departure_and_then_not_measured_by_the_protocol(tmp_path, card):
    few = grid_trials()[:2]
    report = problems_of(tmp_path, card, searched(few, departures=("two of 6 learning rates on layer 0",)))
    assert report.accepted and any("two of 6 learning rates" in w for w in report.warnings)


def test_whole_numbers_are_one_with_or_without_a_point():
    assert submission_checks._point([64, 1e-3, None, True]) == submission_checks._point(
        [64.0, 1e-3, None, True]
    )
    assert submission_checks._wrong_layers({"0"}, "every and weighted-sum", 0) == ""  # a model without blocks
    assert submission_checks._wrong_layers({"0", "1"}, "one", 4) == "2 were tried"
    assert submission_checks._wrong_layers({"3"}, "weighted-sum", None) == "3 were tried"


# The official split ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TimbreTrack(Track):
    timbre: Label | None = None


@pytest.fixture
def official(monkeypatch, tmp_path):
    """The official split has the tracks of `a_result`."""
    references, _ = labels()

    def tracks(ids):
        return tuple(TimbreTrack(f"t{i}", tmp_path / f"{i}.wav", "test", f"t{i}", references[i]) for i in ids)

    state = {"test": Split(tracks(range(NUM_TRACKS))), "tracks": tracks}

    def load_splits(task, data_root, metadata_root):
        if not (data_root or metadata_root):
            raise FileNotFoundError("scores is not there")
        return {"train": Split(()), "valid": Split(()), "test": state["test"]}, "ab12"

    monkeypatch.setattr(submission_checks, "load_splits", load_splits)
    return state


def test_with_the_data_at_hand_split_and_references_are_confirmed(tmp_path, card, official):
    report = problems_of(tmp_path, card, a_result(), data_root=tmp_path)
    assert report.accepted and not report.warnings


def test_another_split_other_references_and_other_tracks_are_refused(tmp_path, card, official):
    def problems(result):
        return "\n".join(problems_of(tmp_path, card, result, data_root=tmp_path).problems)

    assert "the split is another: hash cd34" in problems(a_result(split_hash="cd34"))
    result = a_result()
    right = next(p for p in result.predictions if p.reference == p.estimate != CLASSES[1])
    relabelled = edited(result, right.track_id, reference=CLASSES[1], estimate=CLASSES[1])
    assert f"1 references are not the official annotations, such as {right.track_id}" in problems(
        dataclasses.replace(result, predictions=relabelled)
    )
    stranger = problems(dataclasses.replace(result, predictions=edited(result, "t3", track_id="x")))
    assert "1 tracks are not in the test split: x" in stranger
    assert "1 tracks of the test split are neither answered nor failed: t3" in stranger
    both = a_result(num_official_test_tracks=NUM_TRACKS + 1, failures=(Failure("t3", "empty"),))
    text = problems(both)
    assert "1 tracks are answered and failed: t3" in text
    assert "has 30 tracks, and the result says 31" in text


def test_recordings_that_are_not_here_leave_the_hash_unchecked_and_say_so(tmp_path, card, official):
    official["test"] = Split(official["tracks"](range(NUM_TRACKS - 1)), (("t29", "not here"),))
    report = problems_of(tmp_path, card, a_result(split_hash="of all"), data_root=tmp_path)
    assert report.accepted
    assert "the split hash is not checked: 1 recordings of scores-timbre are not here" in report.warnings[0]


def test_data_that_are_not_where_they_should_be_are_a_warning(tmp_path, card):
    report = problems_of(tmp_path, card, a_result(run={"task": "gtzan_genre"}), data_root=tmp_path)
    assert any("references are not checked: gtzan" in w for w in report.warnings)


def test_one_answer_for_the_parts_of_a_recording(tmp_path, card, official, monkeypatch):
    task = dataclasses.replace(TASKS[TASK], answer_group=lambda track: str(int(track.track_id[1:]) // 2))
    monkeypatch.setitem(TASKS._entries, TASK, task)
    official["test"] = Split(official["test"].tracks)
    result = a_result()
    halves = tuple(p for i, p in enumerate(result.predictions) if i % 2 == 0)
    references = [Label(p.reference) for p in halves]
    estimates = [Label(p.estimate) for p in halves]
    grouped = dataclasses.replace(
        result, predictions=halves, num_test_tracks=15, num_official_test_tracks=15,
        scores={"accuracy": ACCURACY.compute(references, estimates)},
        intervals={"accuracy": bootstrap_interval(ACCURACY, references, estimates)},
    )  # fmt: skip
    assert problems_of(tmp_path, card, grouped, data_root=tmp_path).accepted
    report = problems_of(tmp_path, card, result, data_root=tmp_path)
    assert any("15 recordings have several answers" in p for p in report.problems)


@pytest.fixture
def gtzan(tmp_path):
    """Two recordings of a second per genre and split, a pitch each."""
    root = tmp_path / "data" / "gtzan"
    noise = np.random.default_rng(0)
    for number, split in enumerate(("train", "valid", "test")):
        lines = []
        for k, genre in enumerate(GENRES):
            for take in range(2):
                name = f"{genre}.{10 * number + take:05}.wav"
                (root / "genres" / genre).mkdir(parents=True, exist_ok=True)
                tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (k / 12) * np.arange(22050) / 22050)
                soundfile.write(
                    root / "genres" / genre / name, tone + 0.05 * noise.standard_normal(22050), 22050
                )
                lines.append(f"{genre}/{name}\n")
        (root / f"{split}_filtered.txt").write_text("".join(lines))
    return root.parent


def test_what_evaluate_writes_is_accepted_with_the_data_at_hand(gtzan, tmp_path, card, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    result = evaluate(Run("mfcc", "gtzan_genre", protocol="marble-constrained"), data_root=gtzan)
    assert len(result.trials) == 6 and result.coverage == 1
    report = problems_of(tmp_path, card, result, data_root=gtzan)
    assert report.problems == () and report.warnings == ()
    kept = next(t for t in result.trials if t.choices["learning_rate"] == result.chosen["learning_rate"])
    worse = min(result.trials, key=lambda t: t.valid_score)
    assert worse.valid_score < kept.valid_score
    cherry = dataclasses.replace(result, chosen=worse.choices, best_step=worse.best_step)
    assert "the best on validation is the one to test" in problems_of(tmp_path, card, cherry).problems[0]


# Hostile files --------------------------------------------------------------------------------------------------


def rezipped(tmp_path, card, change):
    """A bundle whose members, a list of (ZipInfo, bytes), were changed by somebody else's program."""
    with zipfile.ZipFile(pack([a_result()], card, tmp_path / "good.zip")) as good:
        members = [(zipfile.ZipInfo(i.filename), good.read(i)) for i in good.infolist()]
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as bad:
        for info, content in change(members):
            bad.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def with_manifest(members):
    """Hashes that fit, as whoever edits a bundle can make them."""
    members = [(i, c) for i, c in members if i.filename != "manifest.json"]
    manifest = submissions._manifest({i.filename: c for i, c in members})
    return [*members, (zipfile.ZipInfo("manifest.json"), manifest)]


def named(name, content=b"{}", mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return lambda members: [*members, (info, content)]


def replaced(name, content):
    return lambda members: with_manifest(
        [(i, content if i.filename.startswith(name) else c) for i, c in members]
    )


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (named("../evil.json"), "the bundle holds '../evil.json'; allowed are"),
        (named("/etc/passwd"), "the bundle holds '/etc/passwd'"),
        (named("results/../../evil.json"), "the bundle holds 'results/../../evil.json'"),
        (named("results/a\\b.json"), "allowed are"),
        (named("results/a.py"), "the bundle holds 'results/a.py'"),
        (named("results/"), "the bundle holds 'results/'"),
        (named("results/link.json", b"/etc/passwd", stat.S_IFLNK | 0o777), "'results/link.json' is no plain file"),
        (named("results/pipe.json", b"", stat.S_IFIFO | 0o644), "is no plain file"),
        (named("card.json"), "the bundle holds 'card.json' twice"),
        (named("results/more.json"), "manifest and bundle differ in: results/more.json"),
        (lambda m: [x for x in m if x[0].filename != "card.json"], "the bundle lacks card.json"),
        (lambda m: [(i, c + b" ") for i, c in m], "is not the file that the manifest lists"),
        (replaced("card.json", b"{}"), "card.json: schema_version of a card must be 1"),
        (replaced("card.json", b"\xff\xfe"), "card.json: is no UTF-8 text"),
        (replaced("results/", b"{}"), "schema_version must be 2"),
        (replaced("results/", b'{"run": ' + b"[" * 200_000), "results/scores-timbre.*(is no usable result|not JSON)"),
        (replaced("results/", b"9" * 5000), "no usable result|JSON object|not JSON"),
        (lambda m: with_manifest([x for x in m if x[0].filename == "card.json"]), "the bundle holds no result"),
        (lambda m: [named(f"results/{i}.json")([])[0] for i in range(501)], "holds 501 files; 500 are allowed"),
    ],
)  # fmt: skip
def test_hostile_bundles_are_refused(tmp_path, card, change, message):
    report = verify(rezipped(tmp_path, card, change))
    assert not report.accepted
    assert any(re.search(message, p) for p in report.problems), report.problems


def test_bombs_are_refused_unread(tmp_path, card, monkeypatch):
    bomb = rezipped(tmp_path, card, named("results/bomb.json", b"0" * ((64 << 20) + 1)))
    assert bomb.stat().st_size < 1 << 20
    opened = []
    monkeypatch.setattr(submissions, "_member", lambda bundle, info: opened.append(info) or b"")
    (problem,) = verify(bomb).problems
    assert "'results/bomb.json' has 67108865 bytes; 67108864 are allowed" in problem and not opened
    monkeypatch.setattr(submissions, "MAX_TOTAL_BYTES", bomb.stat().st_size + 1000)
    monkeypatch.setattr(submissions, "MAX_MEMBER_BYTES", 1 << 30)
    assert "the bundle unpacks to" in verify(bomb).problems[0] and not opened
    monkeypatch.setattr(submissions, "MAX_TOTAL_BYTES", 10)
    assert "is a file of" in verify(bomb).problems[0]


def test_a_member_that_lies_about_its_size_or_is_damaged(tmp_path, card):
    good = pack([a_result()], card, tmp_path / "good.zip").read_bytes()
    path = tmp_path / "bad.zip"
    for start in (60, len(good) // 2, len(good) - 30):
        path.write_bytes(good[:start] + bytes(b ^ 255 for b in good[start : start + 20]) + good[start + 20 :])
        (problem,) = verify(path).problems
        assert "bad.zip is no zip file, or a damaged one" in problem or "damaged zip" in problem, problem
    place = good.index(b"PK\x01\x02") + 24  # size of the first member, card.json, in the directory
    size = int.from_bytes(good[place : place + 4], "little")
    for claimed in (size - 5, size + 5):
        path.write_bytes(good[:place] + claimed.to_bytes(4, "little") + good[place + 4 :])
        (problem,) = verify(path).problems
        assert "damaged one" in problem or "holds another number" in problem
    for content in (b"", b"PK", good[: len(good) // 2], b"not a zip at all"):
        path.write_bytes(content)
        assert "is no zip file, or a damaged one" in verify(path).problems[0]
    assert "is a file of" in verify(tmp_path).problems[0]
    with pytest.raises(FileNotFoundError, match=r"absent\.zip is not there"):
        verify(tmp_path / "absent.zip")


# The command line -----------------------------------------------------------------------------------------------


def test_the_commands(tmp_path, card, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert card_command(tmp_path / "card.json") == 0
    paths = (tmp_path / "a.json", tmp_path / "b.json")
    for path, seed in zip(paths, (0, 1), strict=True):
        a_result(seed=seed).save(path)
    with pytest.raises(SubmissionError, match="system of the card is empty"):
        pack_command(paths, tmp_path / "card.json", tmp_path / "out.zip")
    (tmp_path / "card.json").write_text(card.to_json())
    with pytest.raises(SubmissionError, match=r"absent\.json: there is no such file or folder"):
        pack_command((*paths, tmp_path / "absent.json"), tmp_path / "card.json", tmp_path / "out.zip")
    assert (
        pack_command((tmp_path,), tmp_path / "card.json", tmp_path / "out.zip") == 0
    )  # a folder is searched
    text = capsys.readouterr().out
    assert "MFCC: accepted; 2 results, 0 problems, 2 warnings" in text and "Wrote" in text
    a_result(scores={"accuracy": 0.99}).save(paths[0])
    assert pack_command(paths, tmp_path / "card.json", tmp_path / "worse.zip") == 1
    assert verify_command((tmp_path / "out.zip", tmp_path / "worse.zip")) == 1
    text = capsys.readouterr().out
    assert "MFCC: refused; 2 results, 1 problems" in text and "problem: results/" in text
    with pytest.raises(ValueError, match="name at least one bundle"):
        verify_command(())
