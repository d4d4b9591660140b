"""`audiation corpus`: what is printed, and what is refused."""

from __future__ import annotations

import pytest

from audiation.corpus import Corpus, CorpusError
from audiation.corpus_commands import corpus
from corpus_files import tune, write


@pytest.fixture
def music(tmp_path):
    write(tmp_path / "music/a.wav", tune(0, 2.0, 24_000), 24_000)
    write(tmp_path / "music/b.wav", tune(0, 2.0, 24_000), 24_000)
    write(tmp_path / "music/c.flac", tune(1, 3.0, 16_000), 16_000)
    write(tmp_path / "music/d.ogg", 0.5 * tune(1, 3.0, 16_000), 16_000)
    (tmp_path / "music/e.mp3").write_text("no music")
    return str(tmp_path / "music")


def test_build_show_verify_and_copy(music, tmp_path, capsys):
    out = str(tmp_path / "out")
    corpus("build", (music,), out=out, workers=0)
    printed = capsys.readouterr().out
    for line in (
        "music: 3 recordings, 0.00 h at 24000 Hz, packed",
        "source rates: 2 at 16000 Hz, 1 at 24000 Hz",
        "exact duplicates, left out: 1 (0.00 h)",
        "near duplicates, kept: 1 (0.00 h)",
        "d.ogg: sounds like c.flac",
        "b.wav: same as a.wav",
        "e.mp3: ",
        "targets: none",
        f"hash {Corpus(out).hash}",
    ):
        assert line in printed
    corpus("show", (out,))
    assert printed.endswith(capsys.readouterr().out)
    corpus("verify", (out,))
    assert "all right" in capsys.readouterr().out
    corpus("to-lance", (out,), out=str(tmp_path / "lance"))
    assert Corpus(tmp_path / "lance").hash == Corpus(out).hash
    corpus("show", ((tmp_path / "lance").as_uri(),))
    assert "3 recordings" in capsys.readouterr().out


def test_verify_ends_with_1_where_something_differs(music, tmp_path, capsys):
    out = tmp_path / "out"
    corpus("build", (music,), out=str(out), workers=0, rate=16_000, name="own")
    assert Corpus(out).name == "own" and Corpus(out).sample_rate_hz == 16_000
    content = bytearray((out / "audio-00000.s16").read_bytes())
    content[0] ^= 1
    (out / "audio-00000.s16").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        corpus("verify", (str(out),))
    assert ended.value.code == 1
    assert "1 of 3 differ" in capsys.readouterr().out


def test_a_recipe_chooses_the_files(tmp_path, capsys):
    write(tmp_path / "m4a/audios/x.wav", tune(0, 2.0, 24_000), 24_000)
    write(tmp_path / "m4a/audios/y.wav", tune(1, 2.0, 24_000), 24_000)
    (tmp_path / "m4a/id_information.csv").write_text("id\tartist\nx\tAda\n")
    corpus("build", (str(tmp_path / "m4a"),), out=str(tmp_path / "out"), workers=0, recipe="music4all")
    assert [r.group for r in Corpus(tmp_path / "out").recordings] == ["Ada"]
    printed = capsys.readouterr().out
    assert "music4all: 1 recordings" in printed and "left out, not in id_information.csv: 1" in printed
    corpus("recipes")
    assert "fma_metadata/tracks.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("action", "paths", "options", "message"),
    [
        ("build", (), {"out": "x"}, "no path to build from"),
        ("build", ("music",), {}, "needs --out"),
        ("build", ("music",), {"out": "x", "licences": "cc0"}, "go with --recipe"),
        ("build", ("a", "b"), {"out": "x", "recipe": "fma"}, "needs the one folder"),
        ("build", ("a",), {"out": "x", "recipe": "fmb"}, "fma"),
        ("show", (), {}, "one corpus, got 0"),
        ("to-lance", ("x",), {}, "needs --out"),
        ("recipes", ("x",), {}, "takes no path"),
        ("show", ("x",), {"recipe": "fma", "device": "cuda"}, "does not take --recipe, --device"),
        ("targets", ("x",), {"out": "y", "rate": 16_000}, "does not take --rate, --out"),
        ("to-lance", ("x",), {"out": "y", "workers": 2}, "does not take --workers"),
    ],
)
def test_what_makes_no_sense_is_refused(action, paths, options, message):
    with pytest.raises(ValueError, match=message):
        corpus(action, paths, **options)


def test_what_is_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="no finished corpus"):
        corpus("show", (str(tmp_path),))
