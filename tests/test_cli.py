"""The command line: answers fast, refuses clearly, exits as documented."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from audiation import cli
from audiation.loading import load_backbone
from audiation.store import list_tables


def run(monkeypatch, *arguments: object) -> int:
    """Exit code of `audiation ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["audiation", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def music(tmp_path, monkeypatch):
    """Two clips and a text file; the cache lies below tmp_path."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "music"
    folder.mkdir()
    time = np.arange(22050) / 22050
    for k, name in enumerate(("a.wav", "b.flac")):
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * 220 * (k + 1) * time), 22050)
    (folder / "notes.txt").write_text("not music")
    return folder


def test_help_does_not_import_torch():
    code = "import sys, audiation, audiation.cli; print('torch' in sys.modules or 'lance' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("command", [[], ["list"], ["extract"], ["evaluate"], ["demo"]])
def test_help_of_every_command(monkeypatch, capsys, command):
    assert run(monkeypatch, *command, "--help") == 0
    assert "usage: audiation" in capsys.readouterr().out


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("audiation 0.")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("backbones", ["chroma", "mfcc", "musicfm-msd", "mert-v1-95m", "328,932,480"]),
        ("tasks", ["scores-key", "gtzan_genre"]),
        ("datasets", ["scores", "gtzan"]),
        ("methods", ["probe"]),
        ("protocols", ["jukemir-single", "marble-constrained"]),
        ("objectives", ["best_rq"]),
    ],
)
def test_list(monkeypatch, capsys, kind, expected):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "list", kind) == 0
    shown = capsys.readouterr().out
    assert [e for e in expected if e not in shown] == []


def test_extract_then_resume(monkeypatch, capsys, music, tmp_path):
    arguments = ("extract", music, "--backbone", "mfcc", "--store", tmp_path / "store", "--workers", 0)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, *arguments) == 0
    assert "2 files extracted" in capsys.readouterr().out
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "0 files extracted" in shown and "2 were there" in shown and "1 are not audio" in shown


def test_extract_takes_the_backbone_that_comes_with_the_package(monkeypatch, capsys, music, tmp_path):
    arguments = ("extract", music, "--store", tmp_path / "store", "--whole-files", "--layers", "all")
    assert run(monkeypatch, *arguments) == 0
    ((_, spec),) = list_tables(tmp_path / "store")
    assert (spec.backbone, spec.weights_hash) == (
        "audiation-mini",
        load_backbone("audiation-mini").weights_hash,
    )
    assert "2 files extracted" in capsys.readouterr().out


def test_extract_with_a_bad_file_ends_with_1_and_names_it(monkeypatch, capsys, music, tmp_path):
    (music / "broken.mp3").write_text("this is text")
    monkeypatch.setenv("COLUMNS", "300")
    code = run(
        monkeypatch, "extract", music, "--backbone", "mfcc", "--store", tmp_path / "store", "--workers", 0
    )
    shown = capsys.readouterr().out
    assert code == 1
    assert "1 files failed" in shown and "broken.mp3" in shown and "2 files extracted" in shown


def test_a_failed_file_is_one_line_whatever_its_name(monkeypatch, capsys, tmp_path):
    path = tmp_path / "two\nlines \x1b[31m [bold].wav"
    path.write_bytes(b"")
    monkeypatch.setenv("COLUMNS", "60")
    assert (
        run(monkeypatch, "extract", path, "--backbone", "mfcc", "--store", tmp_path / "s", "--workers", 0)
        == 1
    )
    reason = "two\\nlines \\x1b[31m [bold].wav: has zero bytes. Copy or download it again."
    assert [line.endswith(reason) for line in capsys.readouterr().out.splitlines()].count(True) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "--backbone", "mfcc", "--store", "s"], "nothing to extract"),
        (["extract", "MUSIC", "--backbone", "mffc", "--store", "s"], "Did you mean 'mfcc'?"),
        (["extract", "MUSIC", "--backbone", "mfcc", "--store", "s", "--layers", "3"], "layers 0..0, got 3"),
        (
            "extract MUSIC --backbone mfcc --store s --whole-files --clip-seconds 5".split(),
            "not both",
        ),
        (["extract", "MUSIC", "--backbone", "mfcc", "--store", "s", "--layers"], "at least one number"),
        (["evaluate", "--backbone", "mfcc"], "name a --backbone and a --task"),
        (["evaluate", "--backbone", "mfcc", "--task", "scores-key", "--out", "."], ". is a folder"),
        (["evaluate", "--backbone", "mfcc", "--task", "gtzan_gender"], "Did you mean 'gtzan_genre'?"),
        (["evaluate", "--run", "nowhere.json"], "audiation: nowhere.json: No such file or directory"),
        (
            ["evaluate", "--backbone", "mfcc", "--task", "scores-key", "--out", "a.wav/r.json"],
            "cannot write into a.wav: it is a file",
        ),
        (["leaderboard", "pack", "r.json", "--card", "no.json", "--out", "b.zip"], "no.json: No such file"),
        (["check-backbone", "mine.py"], "mine.py:NAME"),
        (["datasets", "list", "--data-root", "x"], "datasets list does not take --data-root"),
        (["evaluate", "--run", "x.json", "--backbone", "mfcc"], "cannot be given as well"),
        (["evaluate", "--run", "x.json", "--seed", "5", "--layer", "2"], "--seed, --layer cannot be given"),
        (["evaluate", "--backbone", "mfcc", "--task", "gtzan_genre", "--layer", "-1"], "layer of a run"),
        (
            ["extract", "MUSIC", "--backbone", "mfcc", "--store", "s", "--device", "quantum"],
            "device 'quantum' cannot be used here",
        ),
        (
            ["evaluate", "--backbone", "mfcc", "--task", "gtzan_genre", "--data-root", "MUSIC"],
            "gtzan not found",
        ),
    ],
)
def test_user_errors_say_what_to_do(monkeypatch, capsys, music, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.wav").touch()
    assert run(monkeypatch, *(music if a == "MUSIC" else a for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_result_that_is_not_one(monkeypatch, capsys, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 1, "run": {}}))
    assert run(monkeypatch, "evaluate", "--run", path) == 2
    assert "is not a usable result" in capsys.readouterr().err
