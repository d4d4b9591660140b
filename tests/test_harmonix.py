"""The Harmonix Set on a generated copy of its layout (the official annotation syntax), and on official files."""

import urllib.error
from collections import Counter

import numpy as np
import pytest
import soundfile

from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.harmonix import SECTIONS, divide, section_of, songs
from audiation.datasets.harmonix_annotations import HarmonixAnnotations, parse_beats, parse_sections
from audiation.datasets.metadata import MetadataError, MetadataUnavailableError

SAMPLE_RATE_HZ = 8000
HEADER = (
    "File,Title,Artist,Release,Duration,BPM,Ratio Bars in 4,Time Signature,Genre,MusicBrainz Id,Acoustid Id\n"
)
MISSING = "ignore:harmonix. 1 of 3 listed recordings left out:UserWarning"


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def make_audio(root, name, seconds=1.0):
    (root / "audio").mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    soundfile.write(root / "audio" / name, 0.1 * np.sin(2 * np.pi * 220 * time), SAMPLE_RATE_HZ, format="WAV")


@pytest.fixture
def root(tmp_path):
    """A copy of the repository with `audio/`: two songs with audio, the third has none."""
    folder = tmp_path / "harmonixset"
    rows = (
        '0001_test,"One, Two",A,R,20.0,120,100.0,4|4,Pop,,\r\n'
        "0002_test,Three,B feat. A,R,21.5,120,100.0,4|4,Pop,,\r\n"
        "0003_test,Four,C,R,5.0,120,100.0,4|4,Pop,,\r\n"
    )
    write(folder / "dataset" / "metadata.csv", HEADER + rows)
    write(folder / "dataset" / "youtube_urls.csv", "File,URL\n")
    for i in (1, 2, 3):
        beats = "".join(f"{0.5 * k + 0.5}\t{k % 4 + 1}\t{k // 4 + 1}\n" for k in range(40))
        write(folder / "dataset" / "beats_and_downbeats" / f"000{i}_test.txt", beats)
        write(
            folder / "dataset" / "segments" / f"000{i}_test.txt",
            "0.5 intro\n4.5 verse\n12.5 verse2\n20.0 end\n",
        )
    second = "0.5\tPre-Chorus\n4.5\tgtr\n8.5\tpostchorus\n12.5\toutro\n"
    write(folder / "dataset" / "segments" / "0002_test.txt", second)
    make_audio(folder, "0001_test.wav", 21.0)
    make_audio(folder, "0002_test.mp3", 0.7)
    return folder


def load(root, **options):
    return DATASETS["harmonix"](root, **options)


def by_id(data):
    return {t.track_id: t for t in data.tracks}


def rows(segments):
    return [
        (*interval, label)
        for interval, label in zip(segments.intervals_seconds.tolist(), segments.labels, strict=True)
    ]


def test_beats_sections_and_a_song_without_audio(root):
    with pytest.warns(UserWarning, match="harmonix: 1 of 3 listed recordings left out, the first: 0003_test"):
        data = load(root)
    first, second = by_id(data)["0001_test"], by_id(data)["0002_test"]
    assert data.counts == {"train": 2, "valid": 0, "test": 0}
    assert [(s.track_id, s.split, s.reason) for s in data.skipped] == [
        ("0003_test", "train", "no audio/0003_test.* of a known kind")
    ]
    assert first.group == second.group == "a"
    assert first.beats.times_seconds.tolist() == [0.5 * k + 0.5 for k in range(40)]
    assert first.beats.positions.tolist() == [1, 2, 3, 4] * 10
    assert rows(first.raw_sections) == [(0.5, 4.5, "intro"), (4.5, 12.5, "verse"), (12.5, 20.0, "verse2")]
    assert rows(first.sections) == [
        (0.0, 0.5, "silence"),
        (0.5, 4.5, "intro"),
        (4.5, 12.5, "verse"),
        (12.5, 20.0, "verse"),
    ]
    assert rows(second.sections) == [
        (0.0, 0.5, "silence"),
        (0.5, 4.5, "verse"),
        (4.5, 8.5, "inst"),
        (8.5, 12.5, "chorus"),
        (12.5, 21.5, "outro"),  # to the end of the song that was annotated
    ]
    assert second.audio_path.suffix == ".mp3" and first.load(SAMPLE_RATE_HZ).shape == (21 * SAMPLE_RATE_HZ,)


@pytest.mark.filterwarnings(MISSING)
def test_verify_names_what_is_missing_differs_or_is_another_version(root):
    dataset = root / "dataset"
    assert load(root).verify() == [
        "0003_test: no audio/0003_test.* of a known kind",
        f"{dataset / 'beats_and_downbeats'} is not as published (3 of 912 files)",
        f"{dataset / 'segments'} is not as published (3 of 912 files)",
        "dataset/metadata.csv is not as published, so the splits may be others",
        f"0002_test: {root / 'audio' / '0002_test.mp3'} ends at 0.7 s, the last beat is at 20.0 s",
    ]


@pytest.mark.filterwarnings(MISSING)
def test_offsets_move_the_annotations(root):
    write(root / "offsets.csv", "File,offset_seconds\n0001_test,-1.2\n0002_test,0.37\n")
    tracks = by_id(load(root))
    assert tracks["0001_test"].offset_seconds == -1.2
    np.testing.assert_allclose(tracks["0001_test"].beats.times_seconds[:2], [0.3, 0.8])
    assert tracks["0001_test"].beats.positions[:2].tolist() == [3, 4]
    found = rows(tracks["0001_test"].sections)
    assert [label for *_, label in found] == ["intro", "verse", "verse"]
    np.testing.assert_allclose([row[:2] for row in found], [[0, 3.3], [3.3, 11.3], [11.3, 18.8]])
    np.testing.assert_allclose(tracks["0002_test"].sections.intervals_seconds[:2], [[0, 0.87], [0.87, 4.87]])


@pytest.mark.filterwarnings(MISSING)
def test_a_section_that_ends_before_the_audio_starts_is_left_out(root):
    write(root / "offsets.csv", "File,offset_seconds\n0001_test,-5.5\n")
    track = by_id(load(root))["0001_test"]
    assert rows(track.raw_sections) == [(0.0, 7.0, "verse"), (7.0, 14.5, "verse2")]
    assert rows(track.sections) == [(0.0, 7.0, "verse"), (7.0, 14.5, "verse")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "offsets.csv: empty"),
        ("File\n0001_test\n", "line 1: a header with each of File, offset_seconds"),
        ("File,offset_seconds\n0009_test,1\n", "line 2: '0009_test' is no file of metadata.csv"),
        ("File,offset_seconds\n0001_test,1\n0001_test,2\n", "line 3: '0001_test' is listed already"),
        ("File,offset_seconds\n0001_test,nan\n", "line 2: a number from -600 to 600 was expected, got 'nan'"),
        ("File,offset_seconds\n0001_test,601\n", "line 2: a number from -600 to 600"),
        ("File,offset_seconds\n0001_test\n", "line 2: 2 cells were expected, got 1"),
        (b"File,offset_seconds\n\xff,1\n", "line 2: not UTF-8"),
    ],
)
def test_bad_offsets_are_refused_with_file_and_line(root, text, message):
    write(root / "offsets.csv", text)
    with pytest.raises(AnnotationError) as caught:
        load(root)
    assert str(caught.value).startswith(str(root / "offsets.csv")) and message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"../0004_test,T,A,R,1,1,1,4|4,Pop,,\n", "line 5: '../0004_test' is not a name of this data set"),
        (b"0001_test,T,A,R,1,1,1,4|4,Pop,,\n", "line 5: 0001_test is listed already"),
        (b"0004_test,T,A,R,inf,1,1,4|4,Pop,,\n", "line 5: a number from 0 to 86400"),
        (b"0004_test,T,A\n", "line 5: 11 cells were expected, got 3"),
        (b"0004_test,T,\xe9,R,1,1,1,4|4,Pop,,\n", "line 5: not UTF-8"),
    ],
)
def test_a_bad_metadata_table_is_refused_with_file_and_line(root, row, message):
    path = root / "dataset" / "metadata.csv"
    path.write_bytes(path.read_bytes() + row)
    with pytest.raises(AnnotationError) as caught:
        load(root)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_two_files_of_one_song_are_refused(root):
    make_audio(root, "0001_test.flac")
    with pytest.raises(ValueError, match=r"0001_test\.flac and 0001_test\.wav are one song"):
        load(root)


@pytest.mark.filterwarnings(MISSING)
def test_a_missing_annotation_file_is_named(root):
    (root / "dataset" / "segments" / "0001_test.txt").unlink()
    track = by_id(load(root))["0001_test"]
    assert len(track.beats.times_seconds) == 40
    with pytest.raises(AnnotationError, match=r"segments/0001_test\.txt: missing"):
        track.sections  # noqa: B018


def test_without_audio_or_annotations_the_error_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for audio/0001_12step\.mp3"):
        load(tmp_path)
    make_audio(tmp_path, "0001_12step.wav")
    with pytest.raises(
        MetadataUnavailableError, match=r"commit e35da7a.*DIR/harmonixset/dataset/metadata\.csv"
    ):
        load(tmp_path)


def test_annotations_below_the_metadata_root_must_be_the_published_ones(root, tmp_path):
    make_audio(tmp_path / "mine", "0001_test.wav")
    with pytest.raises(MetadataError, match=r"metadata\.csv is not the published file"):
        load(tmp_path / "mine", metadata_root=root.parent)


# Sections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "function"),
    [
        ("silence", "silence"),
        ("prechorus", "verse"),
        ("Pre-Chorus", "verse"),
        ("refrain", "chorus"),
        ("stutter", "chorus"),
        ("theme", "chorus"),
        ("postchorus", "chorus"),
        ("introchorus", "chorus"),
        ("rap", "verse"),
        ("section10", "verse"),
        ("slow2", "verse"),
        ("buildup", "verse"),
        ("dialog", "verse"),
        ("introverse", "verse"),
        ("instintro", "intro"),
        ("fadein", "intro"),
        ("opening", "intro"),
        ("transition", "bridge"),
        ("instbridge", "bridge"),
        ("bigoutro", "outro"),
        ("coda", "outro"),
        ("ending", "outro"),
        ("breakdown", "inst"),
        ("interlude", "inst"),
        ("impro", "inst"),
        ("solo", "inst"),
        ("mainriff", "inst"),
        ("quiet", "inst"),
    ],
)
def test_the_function_of_a_label(label, function):
    assert section_of(label) == function and function in SECTIONS


def test_the_first_end_ends_the_song():
    text = b"0.0 intro\r\n4.0\tverse 2\r\n8.0 end\r\n9.5 END\r\n"
    assert rows(parse_sections(text, "a.txt", 99.0)) == [(0.0, 4.0, "intro"), (4.0, 8.0, "verse 2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt, line 1: sections were expected, there is none"),
        (b"1.0 end\n", "a.txt, line 1: sections were expected, there is none"),
        (b"0.0 intro\n4.0\n8.0 end\n", "a.txt, line 2: a time and a label were expected, got '4.0'"),
        (b"0.0 intro\n-4.0 verse\n", "a.txt, line 2: a number from 0 to 86400"),
        (b"0.0 intro\nnan verse\n", "a.txt, line 2: a number from 0 to 86400"),
        (b"0.0 intro\n1e9 end\n", "a.txt, line 2: a number from 0 to 86400"),
        (b"0.0 intro\n4.0 verse\n4.0 end\n", "a.txt, line 3: starts at 4 s, but the line above it at 4 s"),
        (b"0.0 intro\n4.0 end\n5.0 verse\n", "a.txt, line 3: 'verse' after the end"),
        (b"0.0 intro\n99.5 verse\n", "a.txt, line 2: a segment must end after it starts"),
        (b"0.0 intro\n4.0 \xffverse\n", "a.txt, line 2: not UTF-8"),
        (b"0.0 intro\n\x00\n", "a.txt, line 2: holds a NUL"),
        (b"0.0 a\n" * 20_001, "a.txt, line 20001: more than 20000 lines"),
    ],
)
def test_a_bad_sections_file_is_refused_with_file_and_line(content, message):
    with pytest.raises(AnnotationError) as caught:
        parse_sections(content, "a.txt", 99.0)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt, line 1: beats were expected"),
        (
            b"0.5\t1\t1\n1.0\t2\n",
            "a.txt, line 2: time, position in the bar and number of the bar were expected",
        ),
        (b"0.5\t1\t1\n0.5\t2\t1\n", "a.txt, line 2: beat times must increase"),
        (b"0.5\t0\t1\n", "a.txt, line 1: a number from 1 to 64"),
        (b"0.5\t1.5\t1\n", "a.txt, line 1: a whole number"),
        (b"0.5\t1\tone\n", "a.txt, line 1: a number from 0 to 20000"),
        (b"inf\t1\t1\n", "a.txt, line 1: a number from 0 to 86400"),
        (b"0.5\t1\t1\n\xff", "a.txt, line 2: not UTF-8"),
        (b"0.5\t1\t1\n" * 20_001, "a.txt, line 20001: more than 20000 lines"),
    ],
)
def test_a_bad_beats_file_is_refused_with_file_and_line(content, message):
    with pytest.raises(AnnotationError) as caught:
        parse_beats(content, "a.txt")
    assert str(caught.value).startswith(message)


# The division --------------------------------------------------------------------------------------------


def test_songs_that_share_an_artist_are_on_one_side():
    artists = [
        "A feat. B & C",
        "C",
        "D vs. B",
        "E ft. F",
        "f",
        "G and H",
        "h with I",
        "Earth, Wind",
        "Wind",
    ] * 20
    groups = [group for _, group in divide(artists)]
    assert groups[:9] == ["a", "a", "a", "e", "e", "g", "g", "earth", "earth"]
    artists = [f"Artist {i % 200 if i < 600 else i}" for i in range(912)]
    divided = divide(artists)
    assert Counter(split for split, _ in divided) == {"train": 686, "valid": 76, "test": 150}
    sides = {group: {s for s, g in divided if g == group} for _, group in divided}
    assert len(sides) == 512 and all(len(side) == 1 for side in sides.values())


def test_the_division_does_not_depend_on_the_order():
    artists = [f"Artist {i % 100}" for i in range(300)]
    forward, backward = divide(artists), divide(artists[::-1])
    assert forward == backward[::-1]


# Official files ------------------------------------------------------------------------------------------


def test_official_division(real_metadata, tmp_path):
    official = songs(real_metadata)
    assert Counter(s.split for s in official) == {"train": 686, "valid": 76, "test": 150}
    assert max(Counter(s.group for s in official).values()) == 191
    (tmp_path / "audio").mkdir()
    for song in official:
        (tmp_path / "audio" / f"{song.file}.m4a").write_bytes(b"x")
    data = load(tmp_path, metadata_root=real_metadata)
    data.check_groups()
    assert data.counts == {"train": 686, "valid": 76, "test": 150} and data.skipped == ()
    assert data.split_hash == "cccbe742edad0e83713ffe9af5011f324a2948371ddaf2b3dcc407a40091d7f9"


def test_official_beats_and_sections(real_metadata, tmp_path):
    annotations = HarmonixAnnotations(tmp_path / "none", real_metadata)
    official = songs(real_metadata)
    beats = [annotations.beats_of(s.file) for s in official]
    assert len(beats) == 912 and sum(len(b.times_seconds) for b in beats) == 379_065
    assert sum(int((b.positions == 1).sum()) for b in beats) == 94_296
    sections = [annotations.sections_of(s.file, s.duration_seconds) for s in official]
    assert sum(s.intervals_seconds[0, 0] != 0 for s in sections) == 591
    count: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for song in sections:
        for (start, end), label in zip(song.intervals_seconds, song.labels, strict=True):
            count[section_of(label)] += 1
            seconds[section_of(label)] += end - start
    assert count == {
        "chorus": 3622,
        "verse": 3044,
        "intro": 874,
        "bridge": 773,
        "inst": 675 + 41,
        "outro": 425,
        "silence": 221,
    }
    share = {name: round(100 * float(s) / float(sum(seconds.values())), 1) for name, s in seconds.items()}
    assert share == {
        "chorus": 38.8,
        "verse": 33.4,
        "bridge": 8.9,
        "inst": 7.5,
        "intro": 6.9,
        "outro": 4.0,
        "silence": 0.5,
    }
