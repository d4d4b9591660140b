"""Songs with `.lab` files: Chords1217 in both forms of its lists, and the Beatles songs of Isophonics."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from audiation.chord_labels import majmin_class
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.chord_files import read_chord_lab
from audiation.datasets.chords1217 import official_split
from audiation.frames import values_at

SAMPLE_RATE_HZ = 16000
LABELS = ["C:maj", "Db:min7", "N", "G:7/3", "A:sus4", "F#:hdim7", "X", "E:maj(9)"]
BOUNDS = [0.0, 1.6, 2.0, 2.5, 3.25, 4.0, 4.5, 5.0, 6.0]
SONGS = [f"TRAAAAA{number:012d}" for number in range(1, 11)]


def write_lists(folder):
    """Ten songs; the test songs of fold k are 2k and 2k + 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(5):
        test = SONGS[2 * fold : 2 * fold + 2]
        (folder / f"test{fold:02d}.csv").write_text("\n".join(test) + "\n")
        (folder / f"train{fold:02d}.csv").write_text("\r\n".join(s for s in SONGS if s not in test))


@pytest.fixture
def root(tmp_path):
    """MP3 for all songs but the second."""
    folder = tmp_path / "chords1217"
    data = folder / "chord_data_1217"
    for name in ("audio", "chordlab"):
        (data / name).mkdir(parents=True)
    time = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    for i, song in enumerate(SONGS):
        if i != 1:
            tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (i / 12) * time)
            soundfile.write(data / "audio" / f"{song}.mp3", tone, SAMPLE_RATE_HZ, format="MP3")
        rows = zip(BOUNDS, BOUNDS[1:], LABELS, strict=False)
        text = "".join(f"{start:.3f} {end:.3f}\t{label}\n" for start, end, label in rows)
        (data / "chordlab" / f"{song}.lab").write_text(text)
    write_lists(folder)
    return folder


LEFT_OUT = "ignore:chords1217. 1 of 10 listed recordings left out:UserWarning"


def load(root, **options):
    return DATASETS["chords1217"](root, **options)


def test_the_first_fold_and_what_is_missing(root):
    with pytest.warns(
        UserWarning, match=f"1 of 10 listed recordings left out, the first: {SONGS[1]}: .* cannot be"
    ):
        data = load(root)
    assert data.counts == {"train": 6, "valid": 2, "test": 1}
    assert [(s.track_id, s.split) for s in data.skipped] == [(SONGS[1], "test")]
    assert len(data.verify()) == 1
    data.check_groups()
    track = data.split("test")[0]
    assert track.load(SAMPLE_RATE_HZ).shape[0] >= SAMPLE_RATE_HZ // 2


@pytest.mark.filterwarnings(LEFT_OUT)
def test_chords_as_written_and_their_classes(root):
    chords = load(root).split("test")[0].chords
    assert list(chords.labels) == LABELS
    assert chords.intervals_seconds[:2].tolist() == [[0.0, 1.6], [1.6, 2.0]]
    classes = [majmin_class(label, "none") for label in chords.labels]
    assert classes == [0, 13, 24, 7, -1, -1, 24, 4]
    frames = values_at(chords.intervals_seconds, classes, np.arange(150) / 25, -1)
    assert (frames[39], frames[40]) == (0, 13)  # at 1.6 s the second chord begins
    assert frames[-1] == 4


@pytest.mark.filterwarnings(LEFT_OUT)
@pytest.mark.parametrize("place", ["", "data", "chord_data_1217", "chord_data_1217/data"])
def test_where_the_lists_may_be(root, place):
    before = load(root, fold="3").split_hash
    for path in root.glob("*.csv"):
        path.unlink()
    write_lists(root / place)
    assert load(root, fold="3").split_hash == before
    if place.startswith("chord_data_1217"):
        assert load(root / "chord_data_1217", fold="3").split_hash == before


@pytest.mark.filterwarnings(LEFT_OUT)
def test_lists_below_the_metadata_root(root, tmp_path):
    before = load(root).split_hash
    for path in root.glob("*.csv"):
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no lists of folds .* Copy the folder data of github\.com/music-x-lab"
    ):
        load(root)
    write_lists(tmp_path / "official" / "ISMIR2019-Large-Vocabulary-Chord-Recognition" / "data")
    assert load(root, metadata_root=tmp_path / "official").split_hash == before


def test_validation_songs_are_drawn_as_in_the_repository(root):
    """Its code, with the global generator: seed once, then a permutation for each fold."""
    state = np.random.get_state()
    try:
        np.random.seed(20190326)
        for fold in range(5):
            training = (root / f"train{fold:02d}.csv").read_text().split()
            order = [training[i] for i in np.random.permutation(len(training))]
            count = len(training) // 4
            split = official_split(root, fold)
            assert (split["train"], split["valid"]) == (order[:-count], order[-count:])
            assert split["test"] == SONGS[2 * fold : 2 * fold + 2]
    finally:
        np.random.set_state(state)


def test_sizes_of_the_published_folds(tmp_path):
    """973 and 974 songs for training: 730 / 243 / 244 and 731 / 243 / 243."""
    songs = [f"TR{number:015d}" for number in range(1217)]
    for fold, num_test in enumerate((244, 244, 243, 243, 243)):
        test = set(songs[243 * fold : 243 * fold + num_test])
        (tmp_path / f"test{fold:02d}.csv").write_text("\n".join(sorted(test)))
        (tmp_path / f"train{fold:02d}.csv").write_text("\n".join(s for s in songs if s not in test))
    counts = [{name: len(part) for name, part in official_split(tmp_path, fold).items()} for fold in (0, 4)]
    assert counts == [
        {"train": 730, "valid": 243, "test": 244},
        {"train": 731, "valid": 243, "test": 243},
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("test00.csv", "../../etc/passwd\n", r"test00\.csv, line 1: '\.\./\.\./etc/passwd' is not a name"),
        ("test00.csv", f"{SONGS[0]}\n{SONGS[0]}\n", r"test00\.csv, line 2: .* is listed already in .*line 1"),
        ("test00.csv", f"{SONGS[5]}\n", r"is in train00\.csv and in test00\.csv"),
        ("train00.csv", f"{SONGS[5]},1\n", r"train00\.csv, line 1: .* is not a name"),
        ("train00.csv", "\xff", r"line 1: not UTF-8"),
        ("train00.csv", "TR00000\n" * 20_002, r"train00\.csv, line 20001: more than 20000 lines"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(root, name, text, message):
    (root / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=message):
        load(root)


def test_choices_that_do_not_exist(root):
    for options in ({"fold": "5"}, {"lists": "csv"}, {"lists": "jsonl", "fold": "1"}):
        with pytest.raises(ValueError, match=r"fold is one of|lists is 'folds'|have no folds"):
            load(root, **options)
    (root / "train01.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train01\.csv is missing; put all lists"):
        load(root, fold="2")


@pytest.mark.filterwarnings("ignore:chords1217:UserWarning")
def test_a_song_without_chords_is_left_out_with_its_reason(root):
    (root / "chord_data_1217" / "chordlab" / f"{SONGS[4]}.lab").unlink()
    data = load(root)
    assert {s.track_id for s in data.skipped} == {SONGS[1], SONGS[4]}
    assert data.skipped[-1].reason.endswith(f"{SONGS[4]}.lab is missing")


def test_a_folder_that_is_not_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"chords1217 not found at .* \(looked for chord_data_1217/chordlab"
    ):
        load(tmp_path)


# Lab files -----------------------------------------------------------------------------------------------


def lab(tmp_path, content):
    path = tmp_path / "song.lab"
    path.write_bytes(content)
    return read_chord_lab(path)


def test_rounding_and_segments_of_no_length(tmp_path):
    chords = lab(tmp_path, b"\xef\xbb\xbf0 1.000001 N\r\n1.0 2.5 G\r\n2.5 2.5 A:min\r\n2.5\t3 Bb/5\r\n")
    assert chords.labels == ("N", "G", "Bb/5")
    assert chords.intervals_seconds.tolist() == [[0.0, 1.000001], [1.000001, 2.5], [2.5, 3.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r": no chord; 'N' stands for none"),
        (b"0 1\n", r"line 1: start, end and a chord label were expected, got '0 1'"),
        (b"0 1 C:maj x\n", r"line 1: start, end and a chord label"),
        (b"0 1 N\n1 2 H:maj\n", r"line 2: 'H:maj' is not a chord label"),
        (b"0 1 N\n1 2 C:maj(((\n", r"line 2: 'C:maj\(\(\(' is not a chord label"),
        (b"0 1 N\n0.5 2 C\n", r"line 2: starts at 0\.5 s, before the one above it ends"),
        (b"1 0 N\n", r"line 1: a segment must end after it starts"),
        (b"nan 1 N\n", r"line 1: a number from 0 to 86400 was expected, got 'nan'"),
        (b"-1 1 N\n", r"line 1: a number from 0"),
        (b"0 1e9 N\n", r"line 1: a number from 0"),
        (b"0 1 N\n\xff\n", r"line 2: not UTF-8"),
        (b"0 1 N\n\0\n", r"line 2: holds a NUL"),
        (b"0 1 N\n" * 100_000, r"line 20001: more than 20000 lines"),
        (b"0 1 N" + b" " * (1 << 20), r"longer than the 1048576 bytes"),
    ],
)
def test_a_bad_lab_file_is_refused_with_file_and_line(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=rf"song\.lab.*{message}"):
        lab(tmp_path, content)


# Lists of MARBLE v2 --------------------------------------------------------------------------------------


def jsonl(root, records):
    for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
        text = "".join(json.dumps(r) + "\n" for r in records.get(split, []))
        (root / f"Chords1217.{name}.jsonl").write_text(text)


def song(number, folder="", labels=None):
    rows = zip(BOUNDS, BOUNDS[1:], LABELS, strict=False)
    chords = [{"start_time": a, "end_time": b, "chord_str": c} for a, b, c in rows]
    path = f"{folder}chord_data_1217/audio/{SONGS[number]}.mp3"
    return {"audio_path": path, "label": chords if labels is None else labels, "duration": 6.0}


def test_the_lists_of_marble(root):
    jsonl(root, {"train": [song(0), song(1)], "valid": [song(2, "data/Chords1217/")], "test": [song(3)]})
    shutil.rmtree(root / "chord_data_1217" / "chordlab")
    with pytest.warns(UserWarning, match="1 of 4 listed"):
        data = load(root, lists="jsonl")
    assert data.counts == {"train": 1, "valid": 1, "test": 1}
    assert [s.track_id for s in data.skipped] == [SONGS[1]]
    assert list(data.tracks[1].chords.labels) == LABELS
    assert data.tracks[1].chords.intervals_seconds[-1].tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("C", "'label' is a list, got 'C'"),
        (["C"], "chord 0: start_time, end_time and chord_str were expected"),
        ([{"start_time": 0, "end_time": 1}], "chord 0: start_time, end_time and chord_str"),
        ([{"start_time": "x", "end_time": 1, "chord_str": "C"}], "chord 0: a number from 0 to 86400"),
        ([{"start_time": 0, "end_time": True, "chord_str": "C"}], "chord 0: a number from 0 to 86400"),
    ],
)
def test_bad_chords_in_a_list_are_refused_with_file_and_line(root, labels, message):
    jsonl(root, {"train": [song(0), song(2, labels=labels)]})
    with pytest.raises(AnnotationError, match=rf"Chords1217\.train\.jsonl, line 2.*{message}"):
        load(root, lists="jsonl")


def test_a_chord_in_a_list_that_cannot_be_read_is_named_when_asked_for(root):
    jsonl(root, {"train": [song(0, labels=[{"start_time": 0, "end_time": 1, "chord_str": "C:what"}])]})
    with pytest.raises(
        AnnotationError, match=r"Chords1217\.train\.jsonl, line 1, chord 0: 'C:what' is not a chord"
    ):
        load(root, lists="jsonl").tracks[0].chords  # noqa: B018


# The Beatles -------------------------------------------------------------------------------------------------

ALBUM_SIZES = {
    "01_-_Please_Please_Me": 14,
    "02_-_With_the_Beatles": 14,
    "03_-_A_Hard_Day's_Night": 13,
    "04_-_Beatles_for_Sale": 14,
    "05_-_Help!": 14,
    "06_-_Rubber_Soul": 14,
    "07_-_Revolver": 14,
    "08_-_Sgt._Pepper's_Lonely_Hearts_Club_Band": 13,
    "09_-_Magical_Mystery_Tour": 11,
    "10CD1_-_The_Beatles": 17,
    "10CD2_-_The_Beatles": 13,
    "11_-_Abbey_Road": 17,
    "12_-_Let_It_Be": 12,
}


@pytest.fixture
def beatles(tmp_path):
    """Albums of the published sizes; files of one byte stand for recordings, and one is missing."""
    for album, size in ALBUM_SIZES.items():
        labs, audio = tmp_path / "chordlab" / "The_Beatles" / album, tmp_path / "audio" / album
        labs.mkdir(parents=True)
        audio.mkdir(parents=True)
        for i in range(1, size + 1):
            (labs / f"{i:02d}_-_Mr._Song!.lab").write_text("0.0 2.612267 N\n2.612267 11.459 E:7/3\n")
            (audio / f"{i:02d}_-_Mr._Song!.flac").write_bytes(b"x")
    (audio / "12_-_Mr._Song!.flac").unlink()
    return tmp_path


def test_the_beatles_by_album(beatles):
    with pytest.warns(
        UserWarning, match=r"1 of 180 listed recordings left out, the first: 12_-_Let_It_Be/12_-_Mr\._"
    ):
        data = DATASETS["beatles_chord"](beatles)
    assert data.counts == {"train": 121, "valid": 30, "test": 28}
    assert len(data.verify()) == 1
    data.check_groups()
    track = data.tracks[0]
    assert (track.track_id, track.group) == ("01_-_Please_Please_Me/01_-_Mr._Song!", "01_-_Please_Please_Me")
    assert track.chords.labels == ("N", "E:7/3")


@pytest.mark.filterwarnings("ignore:beatles_chord:UserWarning")
def test_the_beatles_where_names_differ(beatles):
    (beatles / "chordlab" / "The_Beatles").rename(beatles / "chordlab" / "The Beatles")
    (beatles / "chordlab" / "The Beatles" / "05_-_Help!" / "01_-_Mr._Song!.lab").unlink()
    data = DATASETS["beatles_chord"](beatles)
    assert data.counts == {"train": 120, "valid": 30, "test": 28}
    assert data.verify()[-1] == "120 songs with chords in train, 121 are published"
    (beatles / "chordlab" / "The Beatles" / "13_-_Anthology").mkdir()
    with pytest.raises(AnnotationError, match="'13_-_Anthology' is no album of Isophonics"):
        DATASETS["beatles_chord"](beatles)
    with pytest.raises(FileNotFoundError, match=r"looked for chordlab/The_Beatles"):
        DATASETS["beatles_chord"](beatles / "audio")
