"""GiantSteps on a generated copy of its layout (official annotation syntax, our own triads), and on official files."""

import gzip
import hashlib
import json
import urllib.error
from collections import Counter

import numpy as np
import pytest
import soundfile

from audiation.annotations import Key
from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.giantsteps import (
    MTG_FILES,
    SHORT_TEMPO_TRACKS,
    divide_by_artist,
    key_test_set,
    mtg_key_set,
    tempo_set,
)
from audiation.datasets.metadata import MetadataUnavailableError
from audiation.metrics import KEY_WEIGHTED

SAMPLE_RATE_HZ = 44100


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def load(name, root, **options):
    return DATASETS[name](root, **options)


def make_audio(root, track_id, seconds=0.6, name="C major"):
    """A triad, stereo, as MP3."""
    key = Key.parse(name)
    time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    steps = (0, 4 if key.mode == "major" else 3, 7)
    tone = sum(np.sin(2 * np.pi * 261.63 * 2 ** ((key.tonic + s) / 12) * time) for s in steps)
    path = root / "audio" / f"{track_id}.LOFI.mp3"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([tone, tone], 1) * 0.2, SAMPLE_RATE_HZ, format="MP3")
    return path


def make_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# Key, test -----------------------------------------------------------------------------------------------


@pytest.fixture
def key_test(tmp_path):
    root = tmp_path / "giantsteps-key-dataset"
    for track_id, text, seconds in (("10089", "C minor", 2.2), ("1004923", "Db major", 0.7)):
        path = make_audio(root, track_id, seconds, text)
        make_file(root / "md5" / f"{track_id}.LOFI.md5", hashlib.md5(path.read_bytes()).hexdigest() + "\n")
        make_file(root / "annotations" / "key" / f"{track_id}.LOFI.key", text)
        make_file(root / "annotations" / "genre" / f"{track_id}.LOFI.genre", "house")
        make_file(root / "annotations" / "giantsteps" / f"{track_id}.LOFI.key", "#@format: key\n")
    return root


def test_the_key_test_set(key_test):
    data = load("giantsteps_key", key_test)
    assert data.counts == {"train": 0, "valid": 0, "test": 2} and data.skipped == ()
    assert {t.track_id: str(t.key) for t in data.tracks} == {"10089": "C minor", "1004923": "Db major"}
    track = next(t for t in data.tracks if t.track_id == "10089")
    assert track.load(22050).numel() == pytest.approx(2.2 * 22050, abs=2500)  # MP3 pads to whole frames
    assert data.verify() == [f"{key_test / 'annotations' / 'key'} is not as published (2 of 604 files)"]


def test_missing_and_empty_recordings_are_counted(key_test):
    make_file(key_test / "annotations" / "key" / "77.LOFI.key", "A minor")
    make_audio(key_test, "77").write_bytes(b"")
    (key_test / "audio" / "1004923.LOFI.mp3").unlink()
    with pytest.warns(UserWarning, match="giantsteps_key: 2 of 3 listed recordings left out"):
        data = load("giantsteps_key", key_test)
    assert [t.track_id for t in data.tracks] == ["10089"]
    assert sorted((s.track_id, s.split) for s in data.skipped) == [("1004923", "test"), ("77", "test")]
    assert any("is an empty file" in s.reason for s in data.skipped)


def test_verify_names_files_whose_md5_differs(key_test):
    make_audio(key_test, "10089", 1.0)
    make_file(key_test / "md5" / "1004923.LOFI.md5", "<html>")
    lines = load("giantsteps_key", key_test).verify()
    assert lines[0].startswith("1004923: ") and lines[0].endswith("1004923.LOFI.md5 does not hold an MD5")
    assert lines[1].startswith("10089: ") and "10089.LOFI.mp3 differs from" in lines[1]
    (key_test / "md5" / "1004923.LOFI.md5").unlink()
    assert "No such file" in load("giantsteps_key", key_test).verify()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"10089\.LOFI\.key, line 1: one key was expected, got 0 lines"),
        (b"C minor\nD minor\n", r"10089\.LOFI\.key, line 1: one key was expected, got 2 lines"),
        (b"H minor", r"10089\.LOFI\.key, line 1: a key like 'D# minor' was expected, got 'H minor'"),
        (b"C dorian", r"10089\.LOFI\.key, line 1: a key like"),
        (b"C m\xffnor", r"10089\.LOFI\.key, line 1: not UTF-8"),
        (b"C\x00minor", r"10089\.LOFI\.key, line 1: holds a NUL"),
        (b"C minor" + b" " * (1 << 17), r"10089\.LOFI\.key: longer than"),
    ],
)
def test_a_bad_key_file_is_refused_with_file_and_line(key_test, content, message):
    make_file(key_test / "annotations" / "key" / "10089.LOFI.key", content)
    with pytest.raises(AnnotationError, match=message):
        load("giantsteps_key", key_test)


@pytest.mark.parametrize("name", ["giantsteps_key", "giantsteps_mtg_key", "giantsteps_tempo"])
def test_a_folder_without_audio_says_what_was_looked_for(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{name} not found at .*audio/<number>\.LOFI\.mp3"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("giantsteps_key", "giantsteps-key-dataset/annotations/key"),
        ("giantsteps_mtg_key", r"giantsteps-mtg-key-dataset/annotations/annotations\.txt"),
        ("giantsteps_tempo", "giantsteps-tempo-dataset/splits"),
    ],
)
def test_without_annotations_and_network_the_error_says_what_to_put_where(tmp_path, name, place):
    make_audio(tmp_path, "1")
    with pytest.raises(MetadataUnavailableError, match=f"DIR/{place}"):
        load(name, tmp_path)


# Key, training and validation ----------------------------------------------------------------------------

MTG_ROWS = (
    ("1", "D# minor", "2", "Artist B"),
    ("2", "C major ", "2", "Artist A"),
    ("3", "G minor", "1", "Artist B"),
    ("4", "C minor / F# minor", "2", "Artist C"),
    ("5", "A# major", "2", "Artist C, Artist A"),
    ("6", "F minor", "2", "artist c"),
    ("7", "F# major", "2", "Artist C"),
)


def make_mtg_tables(root, rows=MTG_ROWS):
    keys = "".join(f"{i}\t{key}\t{c}\r\n" for i, key, c, _ in rows)
    make_file(root / "annotations" / "annotations.txt", f"ID\tMANUAL KEY\tC\r\n{keys}\r\n")
    artists = "".join(f'{i}\t{a}\tThe "Song"\tMix\tLabel\tHouse\t128\tC minor\r\n' for i, _, _, a in rows)
    header = "ID\tARTIST\tSONG TITLE\tMIX\tLABEL\tBP GENRE\tBP BPM\tBP KEY\r\n"
    make_file(root / "annotations" / "beatport_metadata.txt", header + artists)


@pytest.fixture
def mtg(tmp_path):
    root = tmp_path / "giantsteps-mtg-key-dataset"
    make_mtg_tables(root)
    for track_id, *_ in MTG_ROWS:
        make_audio(root, track_id, 0.3)
    make_file(root / "annotations" / "key" / "1.LOFI.key", "d# minor\t2\t\n")
    return root


def test_the_mtg_filter_and_division(mtg):
    data = load("giantsteps_mtg_key", mtg)
    assert {t.track_id: (t.split, t.key.index) for t in data.tracks} == {
        "1": ("train", 15),
        "2": ("valid", 0),
        "5": ("valid", 10),
        "6": ("train", 17),
        "7": ("valid", 6),
    }
    groups = {t.track_id: t.group for t in data.tracks}
    assert groups["2"] == groups["5"] == groups["7"] and len(set(groups.values())) == 3
    data.check_groups()
    assert data.verify() == [
        f"{mtg / 'annotations' / name} is not as published"
        for name in ("annotations.txt", "beatport_metadata.txt")
    ]


def test_missing_mtg_recordings_keep_their_split(mtg):
    (mtg / "audio" / "2.LOFI.mp3").unlink()
    with pytest.warns(UserWarning, match="giantsteps_mtg_key: 1 of 5"):
        data = load("giantsteps_mtg_key", mtg)
    assert [(s.track_id, s.split) for s in data.skipped] == [("2", "valid")]
    assert {t.track_id: t.split for t in data.tracks}["7"] == "valid"


def test_the_range_of_the_artist_hash():
    assert divide_by_artist([["Artist A"], ["Artist B"], ["Artist C"]]) == ["valid", "train", "train"]


def test_two_passes_reach_an_artist_two_tracks_before():
    """Pass one makes C valid after B's track was seen; pass two makes B valid, after A's."""
    names = [["Artist E", "Artist B"], ["Artist B", "Artist C"], ["Artist C", "Artist A"]]
    assert divide_by_artist(names[:2]) == ["train", "train"]
    assert divide_by_artist(names)[1:] == ["valid", "valid"]


def test_choices_that_have_no_published_list_are_refused(mtg):
    with pytest.raises(ValueError, match=r"split is 'jukemir', got 'petl'.*D14"):
        load("giantsteps_mtg_key", mtg, split="petl")
    with pytest.raises(ValueError, match=r"filter is 'confident', got 'all'.*D13"):
        load("giantsteps_mtg_key", mtg, filter="all")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "annotations.txt",
            b"8\tC minor\t2",
            r"annotations\.txt, line 10: track 8 is not in beatport_metadata",
        ),
        ("annotations.txt", b"../../8\tC minor\t2", r"line 10: '../../8' is not a name of this data set"),
        ("annotations.txt", b"1\tC minor\t2", r"line 10: track 1 is listed already"),
        ("annotations.txt", b"8\tC minor", r"line 10: 3 cells were expected, got 2"),
        ("annotations.txt", b"\xff\tC minor\t2", r"line 10: not UTF-8"),
        ("beatport_metadata.txt", b"8\tX", r"beatport_metadata\.txt, line 9: 8 cells were expected, got 2"),
        ("beatport_metadata.txt", b"1\tX\t\t\t\t\t\t", r"line 9: track 1 is listed already"),
        ("beatport_metadata.txt", b"..\tX\t\t\t\t\t\t", r"line 9: '..' is not a name of this data set"),
        ("beatport_metadata.txt", b"9\tX\t\t\t\t\t\t\r\n" * 20_001, r"more than 20000 lines"),
    ],
)
def test_a_bad_mtg_table_is_refused_with_file_and_line(mtg, name, line, message):
    path = mtg / "annotations" / name
    path.write_bytes(path.read_bytes() + line + b"\r\n")
    with pytest.raises(AnnotationError, match=message):
        load("giantsteps_mtg_key", mtg)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1", "H minor", "2", "Artist B"), "line 2: a key like 'D# minor' was expected, got 'H minor'"),
        (("1", "C minor", "3", "Artist B"), "line 2: a number from 0 to 2 was expected, got '3'"),
        (("1", "C minor", "1.5", "Artist B"), "line 2: a whole number was expected"),
        (("1", "C minor", "nan", "Artist B"), "line 2: a number from 0 to 2"),
    ],
)
def test_a_bad_mtg_key_is_refused_with_file_and_line(mtg, row, message):
    make_mtg_tables(mtg, (row, *MTG_ROWS[1:]))
    with pytest.raises(AnnotationError, match=message):
        load("giantsteps_mtg_key", mtg)


# Tempo ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tempo(tmp_path):
    """A track per fold, and 1327052 in the first."""
    root = tmp_path / "giantsteps-tempo-dataset"
    folds = {fold: [str(100 + fold)] for fold in range(1, 11)}
    folds[1].append("1327052")
    for fold, ids in folds.items():
        make_file(root / "splits" / f"fold{fold:02d}.txt", "".join(f"{i}.LOFI.mp3\n" for i in ids))
        for i in ids:
            make_audio(root, i, 0.3)
            make_file(root / "annotations" / "tempo" / f"{i}.LOFI.bpm", "138")
            make_file(root / "annotations_v2" / "tempo" / f"{i}.LOFI.bpm", "137.9")
            make_file(root / "annotations_v2" / "mirex" / f"{i}.LOFI.mirex", "69.0\t138.0\t0.4")
    make_file(root / "splits" / "fold02.txt", "102\r\n")
    make_file(root / "splits" / "files.txt", "101.LOFI.mp3\n")
    make_file(root / "annotations_v2" / "tempo" / "1327052.LOFI.bpm", "0.0")
    return root


def test_tempo_in_version_2_has_no_tracks_without_one(tempo):
    data = load("giantsteps_tempo", tempo)
    assert data.counts == {"train": 6, "valid": 2, "test": 2} and data.skipped == ()
    assert {t.tempo.bpm for t in data.tracks} == {137.9}
    assert {t.track_id: t.split for t in data.tracks} == {
        str(100 + f): "train" if f <= 6 else "valid" if f <= 8 else "test" for f in range(1, 11)
    }
    assert data.verify() == [
        f"{tempo / 'annotations_v2' / 'tempo'} is not as published (11 of 664 files)",
        f"{tempo / 'splits'} is not as published (other content)",
    ]


def test_tempo_variants(tempo):
    first = load("giantsteps_tempo", tempo, annotations="v1")
    assert first.counts == {"train": 7, "valid": 2, "test": 2} and first.tracks[0].tempo.bpm == 138.0
    whole = load("giantsteps_tempo", tempo, annotations="v1", length="120s")
    assert whole.counts == {"train": 6, "valid": 2, "test": 2}
    with pytest.raises(ValueError, match="annotations is 'v2' or 'v1', got 'v3'"):
        load("giantsteps_tempo", tempo, annotations="v3")
    with pytest.raises(ValueError, match="length is 'any' or '120s', got '30s'"):
        load("giantsteps_tempo", tempo, length="30s")


def test_missing_tempo_recordings_keep_their_split(tempo):
    (tempo / "audio" / "109.LOFI.mp3").unlink()
    with pytest.warns(UserWarning, match="giantsteps_tempo: 1 of 10"):
        data = load("giantsteps_tempo", tempo)
    assert [(s.track_id, s.split) for s in data.skipped] == [("109", "test")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations_v2/tempo/103.LOFI.bpm", b"", r"103\.LOFI\.bpm, line 1: one tempo was expected, got 0"),
        (
            "annotations_v2/tempo/103.LOFI.bpm",
            b"1\n2\n",
            r"103\.LOFI\.bpm, line 1: one tempo was expected, got 2",
        ),
        (
            "annotations_v2/tempo/103.LOFI.bpm",
            b"NaN",
            r"103\.LOFI\.bpm, line 1: a number was expected, got 'NaN'",
        ),
        ("annotations_v2/tempo/103.LOFI.bpm", b"-120", r"line 1: a number from 10 to 1000 was expected"),
        ("annotations_v2/tempo/103.LOFI.bpm", b"1e200", r"line 1: a number from 10 to 1000 was expected"),
        ("annotations_v2/tempo/103.LOFI.bpm", b"\xff", r"line 1: not UTF-8"),
        (
            "splits/fold03.txt",
            b"103\n../103\n",
            r"fold03\.txt, line 2: '../103' is not a name of this data set",
        ),
        ("splits/fold03.txt", b"103\n104\n", r"fold04\.txt, line 1: track 104 is listed already"),
        ("splits/fold03.txt", b"999\n", r"fold03\.txt, line 1: track 999 has no file .*999\.LOFI\.bpm"),
        ("splits/fold03.txt", b"\x00", r"fold03\.txt, line 1: holds a NUL"),
    ],
)
def test_a_bad_tempo_file_or_fold_is_refused_with_file_and_line(tempo, name, content, message):
    make_file(tempo / name, content)
    with pytest.raises(AnnotationError, match=message):
        load("giantsteps_tempo", tempo)


def test_all_ten_folds_or_none(tempo):
    (tempo / "splits" / "fold07.txt").unlink()
    with pytest.raises(AnnotationError, match="holds 9 lists, 10 were expected"):
        load("giantsteps_tempo", tempo)


# Official files ------------------------------------------------------------------------------------------


def fake_audio(root, track_ids):
    (root / "audio").mkdir(parents=True)
    for track_id in track_ids:
        (root / "audio" / f"{track_id}.LOFI.mp3").write_bytes(b"x")


def test_official_key_test_set(real_metadata, tmp_path):
    keys = key_test_set(real_metadata)
    assert len(keys) == 604
    for constant, score in (("F minor", 0.1495), ("C minor", 0.1576)):
        estimates = [Key.parse(constant)] * 604
        assert KEY_WEIGHTED.compute(list(keys.values()), estimates) == pytest.approx(score, abs=5e-5)
    fake_audio(tmp_path / "gs", keys)
    data = load("giantsteps_key", tmp_path / "gs", metadata_root=real_metadata)
    assert data.counts == {"train": 0, "valid": 0, "test": 604} and data.verify() == []


def test_official_mtg_division_and_windows(real_metadata, tmp_path):
    tracks = mtg_key_set(real_metadata)
    assert Counter(t.split for t in tracks) == {"train": 923, "valid": 236}
    split = {t.track_id: t.split for t in tracks} | dict.fromkeys(key_test_set(real_metadata), "test")
    key = {t.track_id: t.key for t in tracks} | key_test_set(real_metadata)
    with gzip.open(real_metadata / "jukemir-metadata" / "metadata" / "giantsteps_clips.json.gz") as file:
        windows = json.load(file).values()
    assert Counter(split[str(int(w["clip"]["audio_uid"]))] for w in windows) == {
        "train": 3687,
        "valid": 942,
        "test": 2406,
    }
    for window in windows:
        track_id = str(int(window["clip"]["audio_uid"]))
        assert split[track_id] == window["split"] and str(key[track_id]) == window["y"]
    fake_audio(tmp_path / "mtg", [t.track_id for t in tracks])
    data = load("giantsteps_mtg_key", tmp_path / "mtg", metadata_root=real_metadata)
    data.check_groups()
    assert data.counts == {"train": 923, "valid": 236, "test": 0} and data.verify() == []
    assert data.split_hash == "f2e8386c76373030563c644f7240295c66aa43337cad2edf442fe20a72a77408"


def test_official_mtg_rows(real_metadata):
    lines = (real_metadata / MTG_FILES["annotations.txt"].path).read_text().splitlines()[1:]
    assert Counter(line.split("\t")[2] for line in lines) == {"0": 96, "1": 208, "2": 1182}


def test_official_tempo(real_metadata, tmp_path):
    first = {t.track_id: t.tempo.bpm for t in tempo_set(real_metadata, "v1")}
    second = {t.track_id: t.tempo.bpm for t in tempo_set(real_metadata, "v2")}
    assert len(first) == 664 and first.keys() - second.keys() == {"1327052", "3041381", "3041383"}
    assert (min(first.values()), max(first.values())) == (53, 200)
    assert (min(second.values()), max(second.values())) == (64, 197)
    assert sum(abs(bpm / first[i] - 1) <= 0.04 for i, bpm in second.items()) == 541
    fake_audio(tmp_path / "tempo", first)
    counts = {
        (version, length): tuple(
            load(
                "giantsteps_tempo",
                tmp_path / "tempo",
                metadata_root=real_metadata,
                annotations=version,
                length=length,
            ).counts.values()
        )
        for version in ("v1", "v2")
        for length in ("any", "120s")
    }
    assert counts == {
        ("v1", "any"): (399, 133, 132),
        ("v1", "120s"): (397, 129, 132),
        ("v2", "any"): (398, 132, 131),
        ("v2", "120s"): (396, 129, 131),
    }
    assert first.keys() >= set(SHORT_TEMPO_TRACKS)
    data = load("giantsteps_tempo", tmp_path / "tempo", metadata_root=real_metadata)
    assert (
        data.verify() == []
        and data.split_hash == "c2250576bb17d3b93a52e376f1425c70e68b7f26d4cbb40412228cda22d15163"
    )
