"""Emomusic on a generated copy of its layout (the official syntax, our own tones), and on official metadata."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
import soundfile

from audiation.annotations import Emotion
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.emomusic import (
    Song,
    artist_number,
    content,
    development_moments,
    minutes_seconds,
    normalised_artist,
    read_songs,
)
from audiation.targets import EmotionTarget
from audiation.tasks import TASKS

SAMPLE_RATE_HZ = 44_100
ONE_MISSING = "ignore:emomusic. 1 of 7 listed recordings left out:UserWarning"
INFO = (
    "song_id,file_name,Artist,Song title,start of the segment (min.sec),end of the segment (min.sec),Genre,"
    "Mediaeval 2013 set\n"
    "2,2.mp3,Artist A,One,0.48,1.33,Blues,development\n"
    "3,3.mp3,\tArtist B  ,Two\t,1.3,2.15,Blues,development\n"
    '4,4.mp3,Artist A,"Three, or four",0,0.45,Rock,evaluation\n'
    '5,5.mp3,"DJ Foo & Bar" \t,"Five, six",0.04,0.49,Rock,development\n'
    "7,7.mp3,Artist E,Seven,10.1,10.55,Pop, development\t\n"
    "10,10.mp3,Artist L,Ten,0.5,1.35,Pop,development\n"
    "1000,1000.mp3,Béla Ö,Last,2,2.45,Jazz,evaluation\n"
)
STATIC = (
    "song_id,mean_arousal,std_arousal,mean_valence,std_valence\n"
    "2,2,1.1,3.5,0.9\n3, 4 ,1.1,4.5,0.9\n4,9,0,1,0\n5,6,1.1,5.5,0.9\n7,8.0,1.1,6.5,0.9\n10,5,1.1,5,0.9\n"
    "1000,7.2222,1.0929,5.8889,2.0883\n"
)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "emomusic"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "songs_info.csv").write_text(INFO, encoding="utf-8")
    (root / "annotations" / "static_annotations.csv").write_text(STATIC)
    times = ",".join(f"sample_{ms}ms" for ms in range(15_000, 45_001, 500))
    for kind in ("arousal", "valence"):
        for what in ("average", "std"):
            path = root / "annotations" / f"{kind}_cont_{what}.csv"
            path.write_text(f"song_id,{times}\n2{',0.1' * 61}\n")
    (root / "clips_45seconds").mkdir()
    for k, number in enumerate([2, 3, 4, 5, 7, 10, 1000]):
        time = np.arange(round((1.0 + 0.02 * (k - 1)) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time)
        path = root / "clips_45seconds" / f"{number}.mp3"
        soundfile.write(path, np.stack([tone, tone], 1), SAMPLE_RATE_HZ, format="MP3")
    return root


def load(root, **options):
    return DATASETS["emomusic"](root, **options)


def test_splits_and_ratings(root):
    data = load(root)
    assert {s: [t.track_id for t in data.split(s)] for s in ("train", "valid", "test")} == {
        "train": ["3", "5"],
        "valid": ["2", "7", "10"],
        "test": ["4", "1000"],
    }
    assert data.skipped == ()
    assert [t.emotion for t in data.split("test")] == [Emotion(9.0, 1.0), Emotion(7.2222, 5.8889)]
    assert data.tracks[1].emotion == Emotion(arousal=4.0, valence=4.5)
    assert data.tracks[0].load(SAMPLE_RATE_HZ).shape[0] >= 0.98 * SAMPLE_RATE_HZ


def test_labels_are_deviations_from_the_development_songs(root):
    moments = load(root).development_moments()
    assert moments.means == (5.0, 5.0) and moments.deviations[0] == 2.0
    assert moments.deviations[1] == pytest.approx(1.0)
    target = EmotionTarget(moments.means, moments.deviations)
    labels = {t.track_id: target.encode(t.emotion).tolist() for t in load(root).tracks}
    assert labels["2"] == [-1.5, -1.5]
    assert labels["4"] == [2.0, -4.0]  # a test song, by the same numbers
    assert target.encode(Emotion(5.0, 5.0)).tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings(ONE_MISSING)
def test_the_scale_does_not_depend_on_which_audio_is_here(root):
    (root / "clips_45seconds" / "7.mp3").unlink()
    data = load(root)
    assert data.counts == {"train": 2, "valid": 2, "test": 2}
    assert data.development_moments().means == (5.0, 5.0)
    assert [(s.track_id, s.split) for s in data.skipped] == [("7", "valid")]
    lines = data.verify()
    assert len(lines) == 2 and lines[1] == "the annotations are not the published ones"


def test_a_missing_recording_is_warned_of(root):
    (root / "clips_45seconds" / "1000.mp3").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"emomusic: 1 of 7 .* 1000: .*1000\.mp3 is an empty file"):
        load(root)


def test_artists_are_the_groups_of_development_songs(root):
    data = load(root)
    assert [t.group for t in data.tracks] == [
        "artist a",
        "artist b",
        "",
        "dj foo bar",
        "artist e",
        "artist l",
        "",
    ]
    data.check_groups()  # Artist A is in validation and in the test (D18)


def test_the_division_by_artist():
    names = ["Artist A", "Artist B", "DJ Foo & Bar", "Artist E", "Artist L"]
    assert [artist_number(name) for name in names] == [8, 6, 4, 8, 8]
    assert normalised_artist("  DJ\tFoo & Bär-2! ") == "dj foo br"
    assert artist_number("DJ FOO, BAR") == artist_number("dj  foo bar")
    assert normalised_artist("القذافي") == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0.48", 48), ("1.3", 90), ("1.05", 65), ("0", 0), ("2", 120), ("0.04", 4), ("0.5", 50), ("10.00", 600)],
)
def test_times_are_minutes_and_seconds(text, seconds):
    assert minutes_seconds(text, "here") == seconds


@pytest.mark.parametrize(
    "text", ["", "1.60", "1.7", "0.600", "-1", "1:30", "nan", "1e3", "٣", "1000.1", "1."]
)
def test_other_times_are_refused(text):
    with pytest.raises(AnnotationError, match=r"^here: a time like 1\.05"):
        minutes_seconds(text, "here")


def test_where_the_excerpts_lie_in_the_songs(root):
    songs = {s.song_id: s for s in load(root).songs}
    assert (songs["3"].start_seconds, songs["3"].end_seconds) == (90.0, 135.0)
    assert {s.end_seconds - s.start_seconds for s in songs.values()} == {45.0}
    assert songs["5"].artist == "DJ Foo & Bar"


def test_tables_may_lie_in_the_data_folder_and_come_from_windows(root):
    before = load(root).split_hash
    for name in ("songs_info.csv", "static_annotations.csv"):
        text = (root / "annotations" / name).read_bytes()
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
        (root / "annotations" / name).unlink()
    assert load(root).split_hash == before


def test_a_place_without_audio_or_annotations_says_what_was_looked_for(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"emomusic not found at .*nowhere .*docs/datasets/emomusic\.md"
    ):
        load(tmp_path / "nowhere")
    (root / "clips_45seconds").rename(root / "clips")
    with pytest.raises(FileNotFoundError, match=r"looked for .* and clips_45seconds/2\.mp3"):
        load(root)
    (root / "annotations" / "static_annotations.csv").unlink()
    (root / "clips").rename(root / "clips_45seconds")
    with pytest.raises(FileNotFoundError, match=r"static_annotations\.csv"):
        load(root)


def test_means_need_development_songs():
    song = Song("1", "evaluation", "A", 0.0, 45.0, Emotion(2.0, 3.0))
    with pytest.raises(ValueError, match="no development songs"):
        development_moments([song])


# Tables that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Artist,", "Name,", r"songs_info\.csv, line 1: a header with each of song_id, file_name, Artist"),
        ("song_id,file_name", "song_id,song_id", r"line 1: a header with each of"),
        ("3,3.mp3", "../3,3.mp3", r"line 3: '\.\./3' is not a name of this data set"),
        ("3,3.mp3", "3,../../3.mp3", r"line 3: the file of song 3 is 3\.mp3, got '\.\./\.\./3\.mp3'"),
        ("3,3.mp3", "2,2.mp3", r"line 3: song 2 is there already"),
        ("1.3,2.15", "1.3,1.3", r"line 3: the segment must end after it starts, got 90 s to 90 s"),
        ("1.3,2.15", "1.3,2.75", r"line 3: a time like 1\.05 .* got '2\.75'"),
        ("1.3,2.15", "nan,2.15", r"line 3: a time like"),
        (
            "Jazz,evaluation",
            "Jazz,test",
            r"line 8: the set of a song is development or evaluation, got 'test'",
        ),
        ("Pop, development", "development", r"line 6: 8 cells were expected, got 7"),
        ('"Five, six"', '"Five, six', r"line 5: not a row of quoted or plain cells"),
        ("10,10.mp3", "11,11.mp3", r"line 7: song 11 is not in static_annotations\.csv"),
        (
            "10,10.mp3,Artist L,Ten,0.5,1.35,Pop,development\n",
            "",
            r"static_annotations\.csv, line 7: song 10 is not",
        ),
        ("Artist E", "Art\0ist E", r"line 6: holds a NUL character"),
    ],
)
def test_a_bad_list_of_songs_is_refused_with_file_and_line(root, old, new, message):
    assert INFO.count(old) >= 1
    (root / "annotations" / "songs_info.csv").write_text(INFO.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(AnnotationError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mean_valence",
            "valence",
            r"static_annotations\.csv, line 1: a header with each of song_id, mean_arousal",
        ),
        ("3, 4 ,", "3,nan,", r"line 3: a number from 1 to 9 was expected, got 'nan'"),
        ("3, 4 ,", "3,,", r"line 3: a number from 1 to 9 was expected, got ''"),
        ("3, 4 ,", "3,0.9,", r"line 3: a number from 1 to 9"),
        ("3, 4 ,", "3,9.01,", r"line 3: a number from 1 to 9"),
        ("3, 4 ,", "3,1e300,", r"line 3: a number from 1 to 9"),
        ("3, 4 ,", "2,4,", r"line 3: song 2 is there already"),
        ("3, 4 ,", "x,4,", r"line 3: 'x' is not a name"),
        ("3, 4 ,", "3,4,5,", r"line 3: 5 cells were expected, got 6"),
    ],
)
def test_bad_ratings_are_refused_with_file_and_line(root, old, new, message):
    assert STATIC.count(old) == 1
    (root / "annotations" / "static_annotations.csv").write_text(STATIC.replace(old, new))
    with pytest.raises(AnnotationError, match=message):
        load(root)


@pytest.mark.parametrize("name", ["songs_info.csv", "static_annotations.csv"])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"empty; a header with song_id"),
        (INFO.encode("utf-16"), r"line 1: not UTF-8 text"),
        (INFO.encode("latin-1"), r"line 8: not UTF-8 text|line 1: a header"),
        (b"1\n" * 20_002, r"line 20001: more than 20000 lines"),
        (b"1\n" * 1_000_000, r"longer than the 1048576 bytes"),
    ],
    ids=range(5),
)
def test_other_files_are_refused_with_their_name(root, name, raw, message):
    (root / "annotations" / name).write_bytes(raw)
    with pytest.raises(AnnotationError, match=message):
        load(root)


# Official metadata -------------------------------------------------------------------------------------------


def test_official_splits_and_labels_are_those_of_jukemir(real_metadata, tmp_path):
    path = real_metadata / "jukemir-metadata" / "metadata" / "emomusic.json.gz"
    if not path.is_file():
        pytest.skip("needs jukemir-metadata/metadata/emomusic.json.gz below the metadata root")
    songs = json.loads(gzip.decompress(path.read_bytes())).values()
    for name in ("songs_info", "static_annotations"):
        text = io.StringIO()
        table = csv.DictWriter(text, list(next(iter(songs))["extra"][name]))
        table.writeheader()
        table.writerows(s["extra"][name] for s in songs)
        (tmp_path / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8")
    (tmp_path / "clips_45seconds").mkdir()
    for s in songs:
        number = s["extra"]["songs_info"]["song_id"]
        (tmp_path / "clips_45seconds" / f"{number}.mp3").write_bytes(b"0")
    data = load(tmp_path)
    assert data.counts == {"train": 504, "valid": 115, "test": 125}
    assert data.verify() == []
    assert len(content(read_songs(tmp_path)).splitlines()) == 744
    assert {s.end_seconds - s.start_seconds for s in data.songs} == {45.0}
    assert sum(s.set_name == "development" for s in data.songs) == 619
    data.check_groups()

    moments = data.development_moments()
    assert [round(x, 4) for x in (*moments.means, *moments.deviations)] == [4.7561, 4.9739, 1.3860, 1.2546]
    assert isinstance(TASKS["emomusic"].target, EmotionTarget)
    assert TASKS["emomusic"].target.means == tuple(round(x, 4) for x in moments.means)
    assert TASKS["emomusic"].target.deviations == tuple(round(x, 4) for x in moments.deviations)
    tracks = {t.track_id: t for t in data.tracks}
    for s in songs:
        track = tracks[s["extra"]["songs_info"]["song_id"]]
        assert track.split == s["split"]
        ours = np.array([track.emotion.arousal, track.emotion.valence])
        np.testing.assert_allclose((ours - moments.means) / moments.deviations, s["y"], rtol=0, atol=1e-12)
