"""FMA and Music4All: which files, whose, under which licence."""

from __future__ import annotations

import pytest

from audiation.corpora import CORPORA, LICENCES, licence_class, select_fma, select_music4all
from audiation.corpus_build import BuildSettings, build_corpus
from corpus_files import tune, write

FMA_TABLE = """,album,artist,track,track
,title,name,license,title
track_id,,,,
2,"AWOL, a way",AWOL,Attribution-NonCommercial-ShareAlike 3.0 International,Food
5,"Two
lines",AWOL,Attribution,This World
10,Constant,Kurt,FMA-Limited: Download Only,Freeway
135,,Kurt,,No licence
140000,,Ada,CC0 1.0 Universal,Far
"""
MUSIC4ALL_TABLE = (
    'id\tartist\tsong\talbum_name\n0009fFIM1eYThaPg\tCheryl\tRain on Me\t3 Words\n00aB\tA "quoted\tx\ty\n'
)


@pytest.fixture
def fma(tmp_path):
    for number in (2, 5, 10, 135, 140_000, 999):
        (tmp_path / f"fma_large/{number // 1000:03d}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"fma_large/{number // 1000:03d}/{number:06d}.mp3").write_bytes(b"x")
    (tmp_path / "fma_metadata").mkdir()
    (tmp_path / "fma_metadata/tracks.csv").write_text(FMA_TABLE)
    (tmp_path / "fma_large/checksums").write_text("x")
    return tmp_path / "fma_large"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Attribution-NonCommercial-ShareAlike 3.0 International", "cc-by-nc-sa"),
        ("Attribution-Noncommercial-Share Alike 3.0 United States", "cc-by-nc-sa"),
        ("Attribution-NonCommercial-NoDerivatives (aka Music Sharing) 3.0 International", "cc-by-nc-nd"),
        ("Attribution-Noncommercial-No Derivative Works 3.0 United States", "cc-by-nc-nd"),
        ("Attribution-NonCommercial", "cc-by-nc"),
        ("Attribution-NoDerivatives 4.0", "cc-by-nd"),
        ("Attribution-ShareAlike", "cc-by-sa"),
        ("Creative Commons Attribution", "cc-by"),
        ("Attribution 3.0 Singapore", "cc-by"),
        ("CC0 1.0 Universal", "cc0"),
        ("Public Domain Mark 1.0", "public-domain"),
        ("Noncommercial Sampling Plus 1.0", "other"),
        ("FMA-Limited: Download Only", "other"),
        ("Free Art License", "other"),
        ("  ", "none"),
    ],
)
def test_classes_of_licences(text, expected):
    assert licence_class(text) == expected and expected in LICENCES


def test_fma_files_get_artist_and_licence(fma):
    found = select_fma(fma)
    assert [(s.name, s.group, s.licence) for s in found.files] == [
        ("000/000002.mp3", "AWOL", "Attribution-NonCommercial-ShareAlike 3.0 International"),
        ("000/000005.mp3", "AWOL", "Attribution"),
        ("000/000010.mp3", "Kurt", "FMA-Limited: Download Only"),
        ("000/000135.mp3", "Kurt", ""),
        ("140/140000.mp3", "Ada", "CC0 1.0 Universal"),
    ]
    assert [(e.name, e.reason) for e in found.left_out] == [("000/000999.mp3", "not in tracks.csv")]
    assert found.num_other == 1


def test_fma_licences_are_filtered_per_track(fma):
    found = select_fma(fma, fma.parent / "fma_metadata", ("cc-by", "cc0"))
    assert [s.name for s in found.files] == ["000/000005.mp3", "140/140000.mp3"]
    assert {e.name: e.reason for e in found.left_out} == {
        "000/000002.mp3": "licence cc-by-nc-sa",
        "000/000010.mp3": "licence other",
        "000/000135.mp3": "licence none",
        "000/000999.mp3": "not in tracks.csv",
    }


def test_what_is_left_out_is_in_the_table_of_the_corpus(fma, tmp_path):
    for number in (5, 10):
        write(fma / f"000/{number:06d}.wav", tune(number, 2.0, 24_000), 24_000)
    found = select_fma(fma, licences=("cc-by",))
    corpus = build_corpus(found, tmp_path / "out", "fma", BuildSettings(), workers=0)
    assert [(r.name, r.group, r.licence) for r in corpus.recordings] == [
        ("000/000005.wav", "AWOL", "Attribution")
    ]
    left_out = corpus.recordings.with_status("left out")
    assert len(left_out) == 6 and {e.licence for e in left_out if e.name == "000/000010.wav"} == {
        "FMA-Limited: Download Only"
    }
    assert corpus.header.statistics["left_out"] == {
        "licence cc-by-nc-sa": 1,
        "licence other": 2,
        "licence none": 1,
        "licence cc0": 1,
        "not in tracks.csv": 1,
    }


def test_fma_needs_its_table(fma):
    with pytest.raises(ValueError, match="unknown licences: cc-bye"):
        select_fma(fma, licences=("cc-bye",))
    table = fma.parent / "fma_metadata/tracks.csv"
    table.write_text("track_id,license\n1,2\n")
    with pytest.raises(ValueError, match=r"no columns \(track, license\)"):
        select_fma(fma)
    table.unlink()
    with pytest.raises(FileNotFoundError, match="--metadata"):
        select_fma(fma)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        table.write_text(FMA_TABLE)
        select_fma(fma / "nowhere", table)


def test_music4all_is_had_as_a_whole(tmp_path):
    for name in ("0009fFIM1eYThaPg", "00aB", "unknown"):
        (tmp_path / "audios").mkdir(exist_ok=True)
        (tmp_path / f"audios/{name}.mp3").write_bytes(b"x")
    (tmp_path / "id_information.csv").write_text(MUSIC4ALL_TABLE)
    found = select_music4all(tmp_path)
    assert [(s.name, s.group, s.licence) for s in found.files] == [
        ("0009fFIM1eYThaPg.mp3", "Cheryl", "agreement"),
        ("00aB.mp3", 'A "quoted', "agreement"),
    ]
    assert [e.name for e in found.left_out] == ["unknown.mp3"]
    assert select_music4all(tmp_path, licences=("agreement",)).files == found.files
    with pytest.raises(ValueError, match="no track of Music4All has a licence of its own"):
        select_music4all(tmp_path, licences=("cc-by",))
    (tmp_path / "id_information.csv").write_text("id,artist\n")
    with pytest.raises(ValueError, match="separated by tabs"):
        select_music4all(tmp_path)


def test_the_recipes_say_what_they_are():
    assert CORPORA.names() == ["fma", "music4all"]
    for name in CORPORA:
        recipe = CORPORA[name]
        assert recipe.where and recipe.hours and recipe.licence and recipe.layout
