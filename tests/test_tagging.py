"""Tags of files by a published tagger, and `audiation tag`."""

import csv
import io
import json
import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
import torch
import tyro
from safetensors.torch import load_file

from audiation import tagging
from audiation.backbones import BACKBONES
from audiation.backbones.musicnn import MTT_TAGS, Musicnn
from audiation.tag_commands import tag
from audiation.tagging import (
    FileTags,
    TagChoice,
    TaggerName,
    WindowTags,
    render_csv,
    render_json,
    render_text,
    tag_files,
)

GOLDEN = Path(__file__).parent / "golden"
SCORES = {"guitar": 0.5, "piano": 0.75, "fast": 0.1}
TAGGED = FileTags(
    Path("a, b.wav"),
    7.0,
    SCORES,
    (WindowTags(0.0, 2.992, SCORES), WindowTags(2.992, 2.992, {"guitar": 0.25, "piano": 0.05, "fast": 0.25})),
)
FAILED = FileTags(Path("gone.wav"), 0.0, {}, (), "gone.wav: no such file")


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "musicnn_a.safetensors")


@pytest.fixture
def real(monkeypatch):
    """The real MagnaTagATune model stands where official weights would be loaded."""
    model = BACKBONES["musicnn-mtt"].from_published(load_file(GOLDEN / "musicnn_mtt_weights.safetensors"), {})
    monkeypatch.setattr(tagging, "load_backbone", lambda name, weights, device: model)
    return model


@pytest.fixture
def song(tmp_path, golden):
    path = tmp_path / "song.wav"
    soundfile.write(path, golden["wave_i16"].numpy(), 16_000, subtype="PCM_16")
    return path


def run(*arguments: object) -> int:
    """Exit code of `audiation tag ARGUMENTS`."""
    try:
        tyro.cli(tag, args=list(map(str, arguments)), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_tags_of_a_file_are_those_of_the_published_model(real, song, golden):
    (one,) = tag_files([song], "musicnn-mtt")
    assert one.path == song and one.duration_seconds == 10.0 and one.failure == ""
    assert [w.start_seconds for w in one.windows] == pytest.approx([0.0, 2.992, 5.984])
    assert all(w.duration_seconds == pytest.approx(2.992) for w in one.windows)
    ours = np.array([[w.scores[t] for t in MTT_TAGS] for w in one.windows])
    np.testing.assert_allclose(ours, golden["mtt.taggram"].numpy(), atol=5e-5)
    mean = dict(zip(MTT_TAGS, golden["mtt.taggram"].numpy().mean(0).tolist(), strict=True))
    assert one.scores == pytest.approx(mean, abs=5e-5)
    assert list(TagChoice(3).of(one.scores)) == sorted(mean, key=mean.get, reverse=True)[:3]


def test_a_short_file_is_one_window_of_its_own_length(real, tmp_path):
    soundfile.write(tmp_path / "short.wav", 0.1 * np.sin(np.arange(16_000) / 9), 16_000)
    (one,) = tag_files([tmp_path / "short.wav"], "musicnn-mtt")
    assert [(w.start_seconds, w.duration_seconds) for w in one.windows] == [(0.0, 1.0)]
    assert one.scores == one.windows[0].scores


def test_files_that_cannot_be_read_are_failures_with_reasons(real, song, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "click.wav", np.zeros(200), 16_000)
    names = ["missing.wav", "text.wav", "click.wav", song.name]
    missing, text, click, good = tag_files([tmp_path / name for name in names], "musicnn-mtt")
    assert all(one.scores == {} and one.windows == () for one in (missing, text, click))
    assert "missing.wav" in missing.failure and "text.wav" in text.failure
    assert "click.wav" in click.failure and "0.03" in click.failure
    assert good.failure == "" and len(good.windows) == 3


def test_models_that_name_no_tags_are_refused():
    with pytest.raises(ValueError, match=r"'mfcc' names no tags\. Models that do: musicnn-msd, "):
        tag_files([], "mfcc")
    taggers = {n for n in BACKBONES if n.startswith("musicnn")}
    assert set(get_args(TaggerName)) == taggers
    assert all(isinstance(BACKBONES[name].outline(), Musicnn) for name in taggers)


def test_random_weights_load_and_sum_over_windows(tmp_path):
    noise = 0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    soundfile.write(tmp_path / "noise.wav", noise.numpy(), 16_000)
    (one,) = tag_files([tmp_path / "noise.wav"], "musicnn-msd", weights="random")
    first, second = one.windows
    assert one.scores["rock"] == pytest.approx((first.scores["rock"] + second.scores["rock"]) / 2)
    assert all(0 < p < 1 for p in one.scores.values()) and len(one.scores) == 50


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (TagChoice(2), ["piano", "guitar"]),
        (TagChoice(5), ["piano", "guitar", "fast"]),
        (TagChoice(5, 0.5), ["piano", "guitar"]),
        (TagChoice(1, 0.8), []),
    ],
)
def test_choice(choice, chosen):
    assert list(choice.of(SCORES)) == chosen
    assert list(TagChoice(2).of(TAGGED.windows[1].scores)) == ["guitar", "fast"]  # equals: the model's order


@pytest.mark.parametrize("arguments", [(0,), (2.0,), (5, -0.1), (5, 1.5), (5, float("nan"))])
def test_impossible_choices(arguments):
    with pytest.raises(ValueError, match="got"):
        TagChoice(*arguments)


def test_text():
    assert render_text([TAGGED, FAILED], TagChoice(2, 0.3)).splitlines() == [
        "a, b.wav  0:07.00",
        "     whole  piano 0.75, guitar 0.50",
        "   0:00.00  piano 0.75, guitar 0.50",
        "   0:02.99  no tag reaches 0.3",
        "",
        "gone.wav",
        "  no tags: gone.wav: no such file",
    ]


def test_json():
    good, bad = json.loads(render_json([TAGGED, FAILED], TagChoice(1)))
    assert good["tags"] == {"piano": 0.75} and good["duration_seconds"] == 7.0
    assert good["windows"][1] == {
        "start_seconds": 2.992,
        "duration_seconds": 2.992,
        "tags": {"guitar": 0.25},
    }
    assert bad == {"path": "gone.wav", "failure": "gone.wav: no such file"}


def test_csv():
    rows = list(csv.DictReader(io.StringIO(render_csv([TAGGED, FAILED], TagChoice(1)))))
    assert [(r["scope"], r["start_seconds"], r["end_seconds"], r["tag"], r["probability"]) for r in rows] == [
        ("file", "0.000", "7.000", "piano", "0.75"),
        ("window", "0.000", "2.992", "piano", "0.75"),
        ("window", "2.992", "5.984", "guitar", "0.25"),
        ("file", "", "", "", ""),
    ]
    assert rows[0]["path"] == "a, b.wav" and rows[0]["rank"] == "1"
    assert rows[3]["failure"] == "gone.wav: no such file"


def test_command_prints_tags_and_fails_where_a_file_does(real, song, capsys):
    assert run(song, "--model", "musicnn-mtt", "--top", 2, "--format", "json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert len(record["tags"]) == 2 and len(record["windows"]) == 3
    (song.parent / "broken.wav").write_text("no audio")
    assert run(song.parent, "--model", "musicnn-mtt") == 1
    out = capsys.readouterr().out
    assert "  no tags: " in out and "broken.wav" in out and "     whole  " in out


def test_command_writes_a_file(real, song, tmp_path):
    out = tmp_path / "tags" / "tags.csv"
    assert run(song, "--model", "musicnn-mtt", "--format", "csv", "--out", out, "--top", 3) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 4 * 3 and {r["scope"] for r in rows} == {"file", "window"}


def test_command_refuses_before_anything_is_loaded(tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(ValueError, match="no audio file in"):
        tag((tmp_path,))
    with pytest.raises(ValueError, match="nothing to tag"):
        tag(())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tag((tmp_path,), top=0)


def test_one_name_in_the_place_of_several_is_refused():
    with pytest.raises(ValueError, match=r"paths are several, like \['song.mp3'\], got 'song.wav'"):
        tag_files("song.wav", "musicnn-mtt")


def test_a_name_that_is_no_text_loses_no_answers(real, song, tmp_path):
    odd = song.parent / os.fsdecode(b"od\xff.wav")
    try:
        song.rename(odd)
    except OSError:
        pytest.skip("this file system takes text alone")
    out = tmp_path / "tags.json"
    assert run(odd, "--model", "musicnn-mtt", "--format", "json", "--out", out) == 0
    assert json.loads(out.read_text())[0]["tags"]


def test_ctrl_c_keeps_what_was_tagged(real, song, tmp_path, monkeypatch, capsys):
    answers = iter([TAGGED])

    def interrupted(*_, **__):
        yield from answers
        raise KeyboardInterrupt

    monkeypatch.setattr(tagging, "tag_files", interrupted)
    assert run(song, "--model", "musicnn-mtt") == 130
    shown = capsys.readouterr()
    assert "piano" in shown.out and "Stopped after 1 of 1 files" in shown.err
