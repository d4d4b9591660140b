"""Answers about files: the timeline, JSON, CSV, JAMS, .lab and .beats, and `audiation predict --run`."""

import csv
import io
import json
import sys
from pathlib import Path

import jams
import numpy as np
import pytest
import soundfile
import torch

from audiation import cli
from audiation.adapted import AdaptedModel, TrackAnswer
from audiation.adapter_files import save_adapter
from audiation.annotations import Beats, Emotion, Key, Label, Pitch, Segments, Tags, Tempo, Values
from audiation.decoding import chords_from_frames
from audiation.frame_targets import BeatTarget, ChordTarget, SectionTarget
from audiation.frames import FrameGrid
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.own_audio import Prediction, predict
from audiation.predictions import (
    render_beats,
    render_csv,
    render_jams,
    render_json,
    render_lab,
    render_timeline,
    write_predictions,
)
from audiation.targets import KeyTarget, TempoTarget

RATE_HZ = 22_050
KEY = {"C major": 0.75, "A minor": 0.25}


def segments(*rows):
    return Segments(
        np.array([row[:2] for row in rows], dtype=float).reshape(-1, 2), tuple(r[2] for r in rows)
    )


BEATS = Beats(np.array([0.5, 1.0, 1.5, 2.0, 2.5]), np.array([0, 1, 2, 3, 1]))
CHORDS = segments((0.0, 0.52, "N"), (0.52, 1.5, "C:maj"), (1.5, 3.0, "A:min"))
SECTIONS = segments((0.0, 1.02, "intro"), (1.02, 3.0, "verse"))
ANSWERS = {
    "key": (Key(0, "major"), KEY),
    "tempo": (Tempo(120.04), {"120 BPM": 0.5}),
    "beats": (BEATS, {}),
    "chords": (CHORDS, {}),
    "sections": (SECTIONS, {}),
}


def prediction(path, question, annotation, scores=None, adapter="model"):
    scores = scores or {}
    answer = TrackAnswer(torch.zeros(2), (torch.zeros(2),), (0.0,), (3.0,), annotation, None)
    return Prediction(Path(path), adapter, answer, scores, (scores,), question=question)


def failed(path, question="key", reason="has zero bytes", adapter="model"):
    return Prediction(Path(path), adapter, None, {}, (), reason, question)


def everything(path, adapter="model"):
    return [prediction(path, q, a, s, f"{adapter}-{q}") for q, (a, s) in ANSWERS.items()]


@pytest.fixture
def song(tmp_path):
    """Three seconds."""
    path = tmp_path / "music" / "song.wav"
    path.parent.mkdir()
    soundfile.write(path, 0.1 * np.sin(np.arange(3 * RATE_HZ)), RATE_HZ)
    return path


# For people ------------------------------------------------------------------------------------------------


def test_the_timeline_of_a_song(song):
    assert render_timeline(everything(song)) == (
        f"{song}  0:03.00\n"
        "  key       C major (0.75)\n"
        "  tempo     120.0 BPM\n"
        "  beats     5 found, 120.0 a minute, 2 bars\n"
        "      time  sections  beats  chords\n"
        "   0:00.00  intro            N\n"
        "   0:00.50            x      C:maj\n"
        "   0:01.00  verse     1\n"
        "   0:01.50            2      A:min\n"
        "   0:02.00            3\n"
        "   0:02.50            1\n"
    )


def test_a_timeline_tells_one_file_after_another_and_failures(song, tmp_path):
    missing = tmp_path / "gone.wav"
    shown = render_timeline(
        [*everything(song)[:1], failed(missing), failed(missing, "beats", "two\treasons")]
    )
    assert shown == (
        f"{song}  0:03.00\n  key       C major (0.75)\n"
        f"\n{missing}  0:00.00\n"
        "  key       no answer: has zero bytes\n"
        "  beats     no answer: two\treasons\n"
    )


def test_a_timeline_without_beats_or_with_one(song):
    empty, one = Beats(np.zeros(0), np.zeros(0)), Beats(np.array([61.239]), np.array([0]))
    assert render_timeline([prediction(song, "beats", empty)]).splitlines()[1:] == ["  beats     0 found"]
    assert render_timeline([prediction(song, "beats", one)]).splitlines()[1:] == [
        "  beats     1 found",
        "      time  beats",
        "   1:01.24  x",
    ]


def test_moments_that_are_near_are_one_row_and_two_of_one_question_are_not(song):
    near = segments((0.0, 0.02, "N"), (0.02, 3.0, "C:maj"))
    beats = Beats(np.array([0.03]), np.array([1]))
    rows = render_timeline([prediction(song, "chords", near), prediction(song, "beats", beats)]).splitlines()
    assert rows[3:] == ["   0:00.00         N", "   0:00.02  1      C:maj"]


def test_long_labels_make_wide_columns(song):
    long = segments((0.0, 1.0, "instrumental solo"), (1.0, 3.0, "a"))
    rows = render_timeline(
        [prediction(song, "sections", long), prediction(song, "chords", CHORDS)]
    ).splitlines()
    assert (
        len({row.index(label) for row, label in zip(rows[1:4], ("chords", "N", "C:maj"), strict=True)}) == 1
    )


@pytest.mark.parametrize(
    "annotation", [Label("jazz"), Tags({"a": 1.0, "b": 0.1}), Emotion(4.5, 6.0), Pitch(60)]
)
def test_a_timeline_of_any_answer(song, annotation):
    texts = {"Label": "jazz", "Tags": "a", "Emotion": "arousal=4.5 valence=6", "Pitch": "C4"}
    line = render_timeline([prediction(song, "class", annotation)]).splitlines()[1]
    assert line == f"  class     {texts[type(annotation).__name__]}"


# For programs ----------------------------------------------------------------------------------------------


def test_json_has_every_answer_with_its_question_and_the_reasons_of_failures(song):
    records = json.loads(render_json([*everything(song), failed(song, "key", "why", "other")]))
    assert [r["question"] for r in records] == [*ANSWERS, "key"]
    assert {r["path"] for r in records} == {str(song)} and records[0]["adapter"] == "model-key"
    answers = [r.get("answer") for r in records]
    assert answers[:2] == ["C major", {"bpm": 120.04}]
    assert answers[2] == [[0.5, 0], [1.0, 1], [1.5, 2], [2.0, 3], [2.5, 1]]
    assert answers[3] == [[0.0, 0.52, "N"], [0.52, 1.5, "C:maj"], [1.5, 3.0, "A:min"]]
    assert answers[4] == [[0.0, 1.02, "intro"], [1.02, 3.0, "verse"]]
    assert records[0]["scores"] == KEY
    assert records[0]["windows"] == [{"start_seconds": 0.0, "duration_seconds": 3.0, "scores": KEY}]
    assert records[5] == {"path": str(song), "adapter": "other", "question": "key", "failure": "why"}


def test_csv_has_a_row_per_answer(song):
    rows = list(csv.DictReader(io.StringIO(render_csv([*everything(song), failed(song, reason='a "b", c')]))))
    assert [r["answer"] for r in rows[:2]] == ["C major", "bpm=120.04"]
    assert (rows[0]["C major"], rows[0]["A minor"], rows[1]["C major"]) == ("0.75", "0.25", "")
    assert str(Beats.parse(rows[2]["answer"])) == str(BEATS)
    assert str(Segments.parse(rows[3]["answer"])) == str(CHORDS)
    assert rows[5]["failure"] == 'a "b", c' and rows[5]["answer"] == ""


NAMESPACES = {
    "key": "key_mode", "tempo": "tempo", "beats": "beat", "chords": "chord", "sections": "segment_open",
}  # fmt: skip


def test_jams_of_a_song_is_valid(song, tmp_path):
    (written,) = write_predictions(everything(song), "jams", tmp_path / "out")
    assert written == tmp_path / "out" / "song.jams"
    jam = jams.load(str(written), validate=True, strict=True)
    assert [a.namespace for a in jam.annotations] == list(NAMESPACES.values())
    assert jam.file_metadata.duration == pytest.approx(3.0) and jam.file_metadata.title == "song"
    by_name = {a.namespace: a.data for a in jam.annotations}
    (key,) = by_name["key_mode"]
    assert (key.value, key.confidence, key.duration) == ("C:major", 0.75, pytest.approx(3.0))
    assert by_name["tempo"][0].value == 120.04
    assert [(o.time, o.value) for o in by_name["beat"]] == [
        (0.5, None),
        (1.0, 1),
        (1.5, 2),
        (2.0, 3),
        (2.5, 1),
    ]
    assert [(o.time, o.duration, o.value) for o in by_name["chord"]] == [
        (0.0, 0.52, "N"), (0.52, pytest.approx(0.98), "C:maj"), (1.5, 1.5, "A:min"),
    ]  # fmt: skip
    assert [o.value for o in by_name["segment_open"]] == ["intro", "verse"]


@pytest.mark.parametrize(
    ("annotation", "scores", "namespace"),
    [
        (Label("jazz"), {"jazz": 0.5}, "tag_open"),
        (Tags({"a": 1.0, "b": 0.25}), {}, "tag_open"),
        (Pitch(69), {"A4": 0.9}, "note_midi"),
        (Emotion(4.5, 6.0), {}, "vector"),
        (Values({"year": 1990.0}), {}, "vector"),
        (Key(3, "minor"), {}, "key_mode"),
        (Beats(np.zeros(0), np.zeros(0)), {}, "beat"),
        (chords_from_frames(np.arange(25), frame_rate_hz=10.0), {}, "chord"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_jams_of_any_answer_is_valid(song, tmp_path, annotation, scores, namespace):
    question = "chords" if namespace == "chord" else "x"
    path = tmp_path / "a.jams"
    path.write_text(render_jams([prediction(song, question, annotation, scores)]))
    (found,) = jams.load(str(path), validate=True, strict=True).annotations
    assert found.namespace == namespace


def test_every_key_is_one_that_jams_knows(song, tmp_path):
    predictions = [prediction(song, "key", Key.from_index(i), {}, str(i)) for i in range(24)]
    path = tmp_path / "a.jams"
    path.write_text(render_jams(predictions))
    found = jams.load(str(path), validate=True, strict=True).annotations
    assert [a.data[0].value for a in found][:2] == ["C:major", "Db:major"] and len(found) == 24


def test_jams_tells_failures_in_its_sandbox(song):
    jam = json.loads(render_jams([*everything(song)[:1], failed(song, "beats", "why", "other")]))
    assert jam["sandbox"] == {"failures": {"other": "why"}} and len(jam["annotations"]) == 1
    with pytest.raises(ValueError, match="about one file, got 0"):
        render_jams([])
    with pytest.raises(ValueError, match="about one file, got 2"):
        render_jams([failed("a.wav"), failed("b.wav")])


def test_lab_and_beats_are_lines_of_times(song, tmp_path):
    assert render_lab(CHORDS) == "0.000\t0.520\tN\n0.520\t1.500\tC:maj\n1.500\t3.000\tA:min\n"
    assert render_beats(BEATS) == "0.500\n1.000\t1\n1.500\t2\n2.000\t3\n2.500\t1\n"
    out = tmp_path / "out"
    labs = write_predictions([*everything(song), failed(song)], "lab", out)
    assert labs == [out / "song.chords.lab", out / "song.sections.lab"]
    assert labs[0].read_text() == render_lab(CHORDS) and labs[1].read_text() == render_lab(SECTIONS)
    assert write_predictions(everything(song), "beats", out) == [out / "song.beats"]
    assert (out / "song.beats").read_text() == render_beats(BEATS)
    nothing = Beats(np.zeros(0), np.zeros(0))
    (empty,) = write_predictions([prediction(song, "beats", nothing)], "beats", tmp_path / "none")
    assert empty.read_text() == ""


def test_one_document_for_all(song, tmp_path):
    predictions = everything(song)
    for kind, render in (("json", render_json), ("csv", render_csv), ("timeline", render_timeline)):
        path = tmp_path / "deep" / "er" / f"a.{kind}"
        assert write_predictions(predictions, kind, path) == [path]
        assert path.read_text(encoding="utf-8") == render(predictions)


@pytest.mark.parametrize(
    ("kind", "holds"), [("lab", "chords and sections"), ("beats", "beats"), ("jams", "answers")]
)
def test_formats_that_would_hold_nothing_are_refused(song, tmp_path, kind, holds):
    predictions = [] if kind == "jams" else everything(song)[:2]
    with pytest.raises(ValueError, match=f"no answer can be written as {kind}: such files hold {holds}"):
        write_predictions(predictions, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["jams", "lab", "beats"])
def test_names_that_clash_are_refused_before_anything_is_written(song, tmp_path, kind):
    twin = tmp_path / "other" / "song.mp3"
    with pytest.raises(ValueError, match=r"song\.wav and .*other/song\.mp3 would both become"):
        write_predictions([*everything(song), *everything(twin)], kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lab", "beats"])
def test_two_models_of_one_question_would_overwrite_each_other(song, tmp_path, kind):
    with pytest.raises(ValueError, match=r"would both become .* Ask about them, or these adapters, apart"):
        write_predictions([*everything(song, "a"), *everything(song, "b")], kind, tmp_path / "out")
    assert write_predictions([*everything(song, "a"), *everything(song, "b")], "jams", tmp_path / "out")


# The command line --------------------------------------------------------------------------------------------


def saved(folder, name, backbone, target, crop_seconds, policy=None):
    """An untrained model; what it answers does not matter here."""
    trunk = load_backbone(backbone)
    inject(trunk, "probe")
    generator = torch.Generator().manual_seed(0)
    model = AdaptedModel(trunk, target, crop_seconds=crop_seconds, policy=policy, generator=generator)
    return save_adapter(model.eval(), folder / name, info={"task": name})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "key": saved(folder, "key", "mfcc", KeyTarget(), 1.0),
        "tempo": saved(folder, "tempo", "mfcc", TempoTarget(), None),
        "beats": saved(folder, "beats", "onset-frames", BeatTarget("beat", decoder="peaks"), 2.0),
        "chords": saved(folder, "chords", "onset-frames", ChordTarget(8.0), 1.0),
        "sections": saved(folder, "sections", "onset-frames", SectionTarget(("a", "b"), 5.0), None),
    }


def command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["audiation", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_models_of_one_backbone_and_of_several_answer_as_alone(song, models):
    together = list(predict([song], list(models.values())))
    assert [p.question for p in together] == list(models)
    for one, directory in zip(together, models.values(), strict=True):
        (alone,) = predict([song], [directory])
        torch.testing.assert_close(one.answer.logits, alone.answer.logits, rtol=0, atol=0)
        assert one.answer.starts_seconds == alone.answer.starts_seconds
        assert str(one.answer.annotation) == str(alone.answer.annotation)
        assert one.answer.grid == alone.answer.grid
    assert [len(p.answer.window_logits) for p in together] == [3, 1, 2, 3, 1]
    assert isinstance(together[2].answer.grid, FrameGrid) and together[0].answer.grid is None
    # Frames reach from the beginning of the song to its end.
    for frames in together[2:]:
        assert frames.answer.grid.start_seconds < 0.1 and frames.answer.grid.end_seconds > 2.95


def test_predict_prints_a_timeline_of_the_tasks_that_are_asked(monkeypatch, capsys, song, models):
    arguments = ("predict", song, "--run", *models.values())
    assert command(monkeypatch, *arguments, "--tasks", "key,beats") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{song}  0:03.00\n  key ") and "\n  beats " in shown
    assert "tempo" not in shown and "chords" not in shown
    assert command(monkeypatch, *arguments) == 0
    everything_shown = capsys.readouterr().out
    assert "  tempo     " in everything_shown and "sections" in everything_shown
    assert "chords" in everything_shown


def test_predict_writes_files(monkeypatch, capsys, song, models, tmp_path):
    out = tmp_path / "out"
    arguments = ("predict", song.parent, "--run", models["chords"], models["sections"], "--out", out)
    assert command(monkeypatch, *arguments, "--format", "lab") == 0
    assert sorted(p.name for p in out.iterdir()) == ["song.chords.lab", "song.sections.lab"]
    assert command(monkeypatch, *arguments, "--format", "jams") == 0
    assert jams.load(str(out / "song.jams"), validate=True, strict=True).annotations
    json_file = tmp_path / "all.json"
    assert (
        command(
            monkeypatch, "predict", song, "--run", models["tempo"], "--format", "json", "--out", json_file
        )
        == 0
    )
    assert json.loads(json_file.read_text())[0]["question"] == "tempo"
    assert "Written:" in capsys.readouterr().err


def test_predict_says_what_it_could_not_answer_and_ends_with_1(monkeypatch, capsys, song, models, tmp_path):
    (tmp_path / "music" / "bad.wav").write_text("not audio")
    assert command(monkeypatch, "predict", song.parent, "--run", models["key"]) == 1
    shown = capsys.readouterr().out
    assert f"{song.parent / 'bad.wav'}  0:00.00\n  key       no answer: " in shown and "  key       " in shown
    assert command(monkeypatch, "predict", song, tmp_path / "gone.wav", "--run", models["key"]) == 1
    assert f"{tmp_path / 'gone.wav'}  0:00.00\n  key       no answer: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SONG", "--run", "KEY", "--tasks", "chords"], "none of these adapters answers chords. They answer key."),
        (["SONG", "--run", "KEY", "BEATS", "--tasks", "key,kye"], "none of these adapters answers kye"),
        (["SONG"], "name at least one trained model: --run DIR"),
        (["--run", "KEY"], "nothing to ask about"),
        (["SONG", "--run", "KEY", "--format", "jams"], "jams writes files for each audio file: give a folder"),
        (["SONG", "--run", "KEY", "--format", "lab"], "lab writes files for each audio file"),
        (["SONG", "--run", "KEY", "--format", "beats", "--out", "OUT"], "no answer can be written as beats"),
        (["SONG", "--run", "OUT"], "is no adapter"),
        (["SONG", "--run", "KEY", "KEY"], "named twice"),
        (["SONG", "--run", "KEY", "BEATS", "--merge"], "takes one adapter"),
        (["SONG", "--run", "KEY", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["EMPTY", "--run", "KEY"], "no audio file in"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_answered(monkeypatch, capsys, song, models, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"SONG": song, "KEY": models["key"], "BEATS": models["beats"], "OUT": tmp_path / "out"}
    places["EMPTY"] = tmp_path / "empty"
    assert command(monkeypatch, "predict", *(places.get(a, a) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
