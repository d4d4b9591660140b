"""`audiation adapt` and `audiation predict`: from a user's labels to answers, and every way it is refused."""

import csv
import io
import json
import sys

import jams
import numpy as np
import pytest
import soundfile

import audiation
from audiation import cli
from audiation.adapters import AdapterError
from audiation.annotations import Label
from audiation.datasets.labelled import LabelError
from audiation.own_audio import adapt, predict
from audiation.predictions import render_csv, render_jams, render_json, write_predictions

RATE = 24_000
QUICK = {"epochs": 1, "weights": "random", "num_layers": 1, "batch_size": 6}


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Twelve short clips in two folders of classes, and a table of other labels for them."""
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(1)
    rows = []
    for i in range(12):
        label = ("noise", "tone")[i % 2]
        (folder / "music" / label).mkdir(parents=True, exist_ok=True)
        seconds = np.arange(RATE // 2) / RATE
        wave = (
            0.3 * np.sin(2 * np.pi * 440 * seconds)
            if label == "tone"
            else 0.2 * generator.standard_normal(len(seconds))
        )
        path = folder / "music" / label / f"{i}.wav"
        soundfile.write(path, wave, RATE)
        rows.append({"path": f"music/{label}/{i}.wav", "label": label, "labels": f"{label}|{'ab'[i % 3 == 0]}",
                     "value": str(float(i)), "key": ("C major", "A minor")[i % 2],
                     "split": ("train",) * 6 + ("valid",) * 3 + ("test",) * 3})  # fmt: skip
        rows[-1]["split"] = ("train", "train", "valid", "train", "test", "test")[i % 6] if i > 1 else "train"
    return folder, rows


def table(folder, rows, *columns, name="labels.csv"):
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def adapter(music, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tones"
    return adapt(music[0] / "music", "musicfm-mini", "lora", out, **QUICK)


def test_a_folder_of_classes_becomes_an_adapter(adapter):
    assert adapter.metric == "accuracy" and 0 <= adapter.valid_score <= 1
    assert set(adapter.scores) == {"accuracy", "accuracy_class_macro"} and adapter.num_test_tracks >= 1
    assert adapter.parameters.trainable == 8448 and adapter.caching == "the stem's output is kept per window"
    record = json.loads((adapter.directory / "adapter.json").read_text())
    assert record["info"]["test_scores"] == adapter.scores and record["info"]["config"]["crops"] == "fixed"
    written = {p.name: p.stat().st_size for p in adapter.directory.iterdir() if p.is_file()}
    assert written["adapter.safetensors"] < 4 * 8448 + 8000 and "head.safetensors" in written


@pytest.mark.parametrize(
    ("columns", "metric"),
    [(("path", "labels"), "ap"), (("path", "value"), "r2"), (("path", "key"), "key_weighted"),
     (("path", "label", "split"), "accuracy")],
)  # fmt: skip
def test_every_kind_of_label(music, tmp_path, columns, metric):
    folder, rows = music
    labels = table(folder, rows, *columns, name=f"{metric}.csv")
    report = adapt(labels, "musicfm-mini", "probe", tmp_path / "out", **QUICK)
    assert report.metric == metric and not report.unused
    (one,) = predict([folder / rows[0]["path"]], [tmp_path / "out"])
    assert one.answer is not None and one.scores and not one.failure


def test_the_same_command_again_gives_the_same_adapter(music, adapter, tmp_path):
    again = adapt(music[0] / "music", "musicfm-mini", "lora", tmp_path / "again", **QUICK)
    resumed = adapt(music[0] / "music", "musicfm-mini", "lora", adapter.directory, **QUICK)
    files = [d / "adapter.safetensors" for d in (adapter.directory, again.directory, resumed.directory)]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    assert again.scores == adapter.scores == resumed.scores


# Answers -----------------------------------------------------------------------------------------------------


def test_predict_with_and_without_merging(music, adapter):
    paths = [music[0] / row["path"] for row in music[1][:3]]
    plain = list(predict(paths, [adapter.directory]))
    folded = list(predict(paths, [adapter.directory], fold=True))
    for a, b in zip(plain, folded, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5) and a.answer.annotation == b.answer.annotation
        assert isinstance(a.answer.annotation, Label) and sum(a.scores.values()) == pytest.approx(1)


def test_several_adapters_share_one_trunk(music, adapter, tmp_path):
    second = adapt(music[0] / "music", "musicfm-mini", "bitfit", tmp_path / "second", **QUICK)
    path = music[0] / music[1][0]["path"]
    both = {p.adapter: p.scores for p in predict([path], [adapter.directory, second.directory])}
    alone = [next(iter(predict([path], [d]))).scores for d in (adapter.directory, second.directory)]
    assert list(both.values()) == alone and alone[0] != alone[1]
    with pytest.raises(ValueError, match="takes one adapter"):
        list(predict([path], [adapter.directory, second.directory], fold=True))
    with pytest.raises(ValueError, match="at least one adapter"):
        list(predict([path], []))
    with pytest.raises(ValueError, match="named twice"):
        list(predict([path], [adapter.directory, adapter.directory]))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        list(predict([path], [adapter.directory], batch_size=0))


def test_answers_as_json_csv_and_jams(music, adapter, tmp_path):
    paths = [music[0] / row["path"] for row in music[1][:2]] + [tmp_path / "missing.wav"]
    predictions = list(predict(paths, [adapter.directory]))
    records = json.loads(render_json(predictions))
    assert [r.get("answer") for r in records[:2]] == [str(p.answer.annotation) for p in predictions[:2]]
    assert (
        records[0]["windows"][0]["duration_seconds"] == 0.5
        and "does not exist" in records[2]["failure"].lower()
    )
    rows = list(csv.DictReader(io.StringIO(render_csv(predictions))))
    assert float(rows[0]["tone"]) == pytest.approx(predictions[0].scores["tone"], rel=1e-5)
    assert rows[2]["answer"] == "" and "missing.wav" in rows[2]["failure"]
    with pytest.raises(ValueError, match="one file, got 3"):
        render_jams(predictions)
    for written in write_predictions(predictions[:2], "jams", tmp_path / "jams"):
        jam = jams.load(str(written), validate=True, strict=True)
        assert jam.annotations[0].namespace == "tag_open" and jam.file_metadata.duration == 0.5
    twins = [predictions[0], type(predictions[0])(tmp_path / paths[0].name, "x", None, {}, (), "gone")]
    with pytest.raises(ValueError, match="would both become"):
        write_predictions(twins, "jams", tmp_path / "twins")


# Refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_refused_before_training(music, tmp_path):
    folder, rows = music
    one_class = table(folder, [r for r in rows if r["label"] == "tone"], "path", "label", name="one.csv")
    with pytest.raises(LabelError, match="all recordings are 'tone'"):
        adapt(one_class, "musicfm-mini", "lora", tmp_path / "a", **QUICK)
    with pytest.raises(ValueError, match="no encoder to adapt"):
        adapt(folder / "music", "chroma", "lora", tmp_path / "b", epochs=1)
    with pytest.raises(ValueError, match="unknown method 'lorra'"):
        adapt(folder / "music", "musicfm-mini", "lorra", tmp_path / "c", **QUICK)
    with pytest.raises(ValueError, match="no field 'stepps'"):
        adapt(folder / "music", "musicfm-mini", "lora", tmp_path / "d", train="stepps=3", **QUICK)
    for name in ("epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number >= 1, got 0"):
            adapt(folder / "music", "musicfm-mini", "lora", tmp_path / "e", **QUICK | {name: 0})
    with pytest.raises(ValueError, match="batch_size is an argument of its own: --batch-size"):
        adapt(folder / "music", "musicfm-mini", "lora", tmp_path / "f", train="batch_size=2", **QUICK)
    with pytest.raises(ValueError, match="group_learning_rates cannot be written in short form"):
        adapt(
            folder / "music", "musicfm-mini", "lora", tmp_path / "g", train="group_learning_rates=a", **QUICK
        )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(AdapterError, match=r"thesis\.tex"):
        adapt(folder / "music", "musicfm-mini", "lora", tmp_path / "taken", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_another_run_in_the_same_directory_is_refused(music, adapter):
    with pytest.raises(ValueError, match="learning_rate"):
        adapt(music[0] / "music", "musicfm-mini", "lora", adapter.directory, learning_rate=0.5, **QUICK)


def test_a_handcrafted_backbone_can_be_probed(music, tmp_path):
    report = adapt(music[0] / "music", "mfcc", "probe", tmp_path / "mfcc", epochs=2)
    assert report.parameters.trainable == 0 and report.caching.startswith("pooled layer 0")
    assert next(iter(predict([music[0] / music[1][0]["path"]], [report.directory]))).answer is not None


# The command line --------------------------------------------------------------------------------------------


def command(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["audiation", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_adapt_and_predict_on_the_command_line(monkeypatch, capsys, music, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "made"
    arguments = ("adapt", music[0] / "music", "--out", out,  # the backbone whose weights come with the package
                 "--num-layers", 1, "--epochs", 1, "--method", "ssf", "--train", "head_hidden=false")  # fmt: skip
    assert command(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert (
        "12 recordings" in shown
        and "test tracks" in shown
        and f"audiation predict FILE... --adapter {out}" in shown
    )
    assert command(monkeypatch, "predict", music[0] / "music", "--adapter", out, "--format", "csv") == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 12
    (tmp_path / "bad.wav").write_text("x")
    assert command(monkeypatch, "predict", tmp_path / "bad.wav", "--adapter", out, "--merge") == 1
    assert command(monkeypatch, "predict", music[0], "--adapter", out, "--format", "jams") == 2
    assert "give a folder with --out" in capsys.readouterr().err
    assert command(monkeypatch, "predict", music[0], "--adapter", tmp_path) == 2


def test_parameters_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert command(monkeypatch, "parameters") == 0
    shown = capsys.readouterr().out
    assert "16 of 16 cells agree" in shown
    for cell in ("657,696", "322,752", "7,385,088", "179,679,360", "171,289,600", "51,843,712", "405,504"):
        assert cell in shown
    assert (
        command(monkeypatch, "parameters", "musicfm-mini", "--layers", "None", "--methods", "lora:rank=4")
        == 0
    )
    assert "67,584" in capsys.readouterr().out
    assert command(monkeypatch, "parameters", "chroma") == 2


def test_the_verbs_are_public():
    assert {"inject", "merge", "adapt", "predict", "load_adapter", "AdapterBank"} <= set(dir(audiation))
    assert audiation.adapt is adapt
