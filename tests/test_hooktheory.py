"""HookTheory: a generated list in the official layout, with tones for the recordings."""

import copy
import gzip
import json

import numpy as np
import pytest
import soundfile

from audiation.annotations import Key
from audiation.audio import AudioWindowError
from audiation.chord_labels import majmin_class
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.hooktheory import FILE, PLACE_BELOW_METADATA_ROOT
from audiation.datasets.metadata import MetadataError
from audiation.frames import values_at

SAMPLE_RATE_HZ = 8000
MAJOR, MINOR, DORIAN = [2, 2, 1, 2, 2, 2], [2, 1, 2, 2, 1, 2], [2, 1, 2, 2, 2, 1]


def chord(onset, offset, root, intervals):
    return {
        "onset": onset,
        "offset": offset,
        "root_pitch_class": root,
        "root_position_intervals": intervals,
        "inversion": 0,
    }


def key(beat, tonic, scale):
    return {"beat": beat, "tonic_pitch_class": tonic, "scale_degree_intervals": scale}


def entry(split, youtube_id, artist, *, harmony, keys, refined, user=None, num_beats=6):
    return {
        "tags": ["AUDIO_AVAILABLE", "HARMONY"],
        "split": split,
        "hooktheory": {"id": "x", "artist": artist, "song": "tune", "annotators": ["somebody"], "urls": {}},
        "youtube": {"id": youtube_id, "url": f"https://example.org/{youtube_id}", "duration": 8.0},
        "alignment": {"swing": "STRAIGHT", "user": user, "refined": refined},
        "annotations": {
            "num_beats": num_beats,
            "meters": [{"beat": 0, "beats_per_bar": 4, "beat_unit": 4}],
            "keys": keys,
            "melody": [{"onset": 0, "offset": 1, "octave": 0, "pitch_class": 3}],
            "harmony": harmony,
        },
    }


REFINED = {"beats": [0, 4, 8], "times": [1.0, 3.0, 5.0]}
ENTRIES = {
    "aaaaaaaaaaa_": entry(
        "TRAIN",
        "video-AAAA_",
        "artist-a",
        harmony=[chord(0, 2, 0, [4, 3]), chord(2, 4, 9, [3, 4]), chord(5, 6, 7, [4, 3, 3])],
        keys=[key(0, 0, MAJOR)],
        refined=REFINED,
    ),
    "bbb bbb": entry(
        "VALID", "videoBBBBBB", "artist-b", harmony=None, keys=[key(0, 2, DORIAN)], refined=REFINED
    ),
    "ccccccccccc": entry(
        "TEST",
        "videoCCCCCC",
        "artist-c",
        harmony=[chord(0, 4, 1, [3, 3]), chord(3, 8, 11, [3, 4, 4])],
        keys=[key(0, 9, MINOR), key(4, 0, MAJOR)],
        refined=None,
        user={"beats": [0, 8], "times": [0.5, 4.5]},
        num_beats=8,
    ),
    "missing": entry("TEST", "videoDDDDDD", "artist-b", harmony=None, keys=[], refined=REFINED),
    "unaligned": entry("TRAIN", "videoEEEEEE", "artist-a", harmony=None, keys=[], refined=None),
    "standing": entry(
        "TRAIN",
        "videoCCCCCC",
        "artist-a",
        harmony=None,
        keys=[],
        refined={"beats": [0, 4], "times": [2.0, 2.0]},
    ),
}
LEFT_OUT = "ignore:hooktheory. 1 of:UserWarning"


def write_list(path, entries, indent=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(entries, indent=indent).encode()))


@pytest.fixture
def root(tmp_path):
    """Sines of 110 Hz and 220 Hz, 8 s; one recording lies beside the list."""
    folder = tmp_path / "hooktheory"
    write_list(folder / FILE, ENTRIES)
    (folder / "audio").mkdir()
    time = np.arange(8 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for name, hz in (
        ("audio/video-AAAA_.mp3", 110),
        ("audio/videoBBBBBB.wav", 220),
        ("videoCCCCCC.flac", 330),
    ):
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * hz * time) * (time >= 1), SAMPLE_RATE_HZ)
    (folder / "audio" / "video-AAAA_.info.json").write_text("{}")
    return folder


def load(root, **options):
    return DATASETS["hooktheory"](root, **options)


def changed(**changes):
    """The first entry with one field of a child replaced: annotations__num_beats=..."""
    record = copy.deepcopy(ENTRIES["aaaaaaaaaaa_"])
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = record
        for name in parents:
            target = target[int(name)] if isinstance(target, list) else target[name]
        target[last] = value
    return record


def by_id(data):
    return {t.track_id: t for t in data.tracks}


def test_what_is_there_and_what_is_left_out(root):
    missing = r"1 of 4 listed recordings left out, the first: missing: .*videoDDDDDD"
    standing = r"1 of 5 listed recordings left out, the first: standing: its alignment"
    with pytest.warns(UserWarning, match=missing), pytest.warns(UserWarning, match=standing):
        data = load(root)
    assert data.counts == {"train": 1, "valid": 1, "test": 1}
    assert data.num_without_audio == {"train": 1, "valid": 0, "test": 0}
    assert [(s.track_id, s.split) for s in data.skipped] == [("missing", "test"), ("standing", "train")]
    assert data.skipped[1].reason == "its alignment has fewer than two beats, or they do not advance in time"
    assert {t.track_id: t.group for t in data.tracks} == {
        "aaaaaaaaaaa_": "artist-a",
        "bbb bbb": "",  # an artist of two splits
        "ccccccccccc": "artist-c",
    }
    data.check_groups()
    assert data.verify()[-1] == "Hooktheory.json.gz in the data folder is not the published file"
    assert len(data.verify()) == 3
    track = by_id(data)["aaaaaaaaaaa_"]
    assert (track.youtube_id, track.song, track.audio_path.name) == ("video-AAAA_", "tune", "video-AAAA_.mp3")


@pytest.mark.filterwarnings(LEFT_OUT)
def test_chords_in_seconds_of_the_excerpt(root):
    tracks = by_id(load(root))
    first = tracks["aaaaaaaaaaa_"]
    assert first.span_seconds == (1.0, 4.0)
    assert first.chords.labels == ("C:maj", "A:min", "N", "G:maj")
    in_file = first.chords.intervals_seconds + first.span_seconds[0]
    assert in_file.tolist() == [[1.0, 2.0], [2.0, 3.0], [3.0, 3.5], [3.5, 4.0]]
    assert [majmin_class(label, "ignore") for label in first.chords.labels] == [0, 21, 24, 7]
    assert tracks["bbb bbb"].chords is None
    last = tracks["ccccccccccc"]  # aligned by the user; the second chord cuts the first
    assert last.span_seconds == (0.5, 4.5)
    assert last.chords.labels == ("X", "B:min")
    assert last.chords.intervals_seconds.tolist() == [[0.0, 1.5], [1.5, 4.0]]
    classes = [majmin_class(label, "ignore") for label in first.chords.labels]
    frames = values_at(first.chords.intervals_seconds, classes, np.arange(12) / 4 + 0.125, -1)
    assert frames.tolist() == [0] * 4 + [21] * 4 + [24] * 2 + [7] * 2


@pytest.mark.filterwarnings(LEFT_OUT)
def test_keys_over_time_and_the_one_key(root):
    tracks = by_id(load(root))
    first, other, two = (tracks[name] for name in ("aaaaaaaaaaa_", "bbb bbb", "ccccccccccc"))
    assert first.key == Key(0, "major") and other.key is None and two.key is None
    assert first.keys.labels == ("C major",) and first.keys.intervals_seconds.tolist() == [[0.0, 3.0]]
    assert other.keys.labels == ("none",) and other.keys.intervals_seconds.tolist() == [[0.0, 3.0]]
    assert two.keys.labels == ("A minor", "C major")
    assert two.keys.intervals_seconds.tolist() == [[0.0, 2.0], [2.0, 4.0]]
    dropped = by_id(load(root, other_modes="drop"))
    assert dropped["bbb bbb"].keys is None and dropped["ccccccccccc"].keys.labels == two.keys.labels
    with pytest.raises(ValueError, match="'none' or 'drop', got 'maybe'"):
        load(root, other_modes="maybe")


@pytest.mark.filterwarnings(LEFT_OUT)
def test_a_clip_is_only_its_span(root):
    tracks = by_id(load(root))
    clip = tracks["ccccccccccc"]
    assert clip.load(SAMPLE_RATE_HZ).shape == (4 * SAMPLE_RATE_HZ,)
    assert clip.load(SAMPLE_RATE_HZ, 3.0, 5.0).shape == (SAMPLE_RATE_HZ,)
    whole, _ = soundfile.read(clip.audio_path, dtype="float32")
    part = clip.load(SAMPLE_RATE_HZ, 1.0, 0.5).numpy()
    np.testing.assert_array_equal(part, whole[12_000:16_000])  # 1.5 s to 2 s of the file
    for start in (4.0, -0.1, float("nan")):
        with pytest.raises(AudioWindowError, match=r"ccccccccccc lasts 4\.000 s"):
            clip.load(SAMPLE_RATE_HZ, start)


def test_an_excerpt_that_would_begin_before_the_file_begins_with_it(root):
    record = changed(alignment__refined={"beats": [1, 2], "times": [0.25, 0.75]})
    write_list(root / FILE, {"early": record})
    (track,) = load(root).tracks
    assert track.span_seconds == (0.0, 2.75)
    assert track.chords.intervals_seconds.tolist() == [[0.0, 0.75], [0.75, 1.75], [1.75, 2.25], [2.25, 2.75]]
    assert track.chords.labels == ("C:maj", "A:min", "N", "G:maj")


def test_gaps_at_both_ends_are_no_chord(root):
    write_list(root / FILE, {"sparse": changed(annotations__harmony=[chord(2, 3, 4, [4, 3])])})
    (track,) = load(root).tracks
    assert track.chords.labels == ("N", "E:maj", "N")
    assert track.chords.intervals_seconds.tolist() == [[0.0, 1.0], [1.0, 1.5], [1.5, 3.0]]


def test_line_breaks_in_the_list_do_not_matter(root):
    write_list(root / FILE, {"aaaaaaaaaaa_": ENTRIES["aaaaaaaaaaa_"]}, indent=2)
    assert load(root).tracks[0].chords.labels == ("C:maj", "A:min", "N", "G:maj")


def test_the_format_that_can_be_decoded_wins(root):
    for suffix in (".webm", ".m4a", ".flac"):
        (root / "audio" / f"video-AAAA_{suffix}").write_bytes(b"x")
    write_list(root / FILE, {"aaaaaaaaaaa_": ENTRIES["aaaaaaaaaaa_"]})
    assert load(root).tracks[0].audio_path.suffix == ".flac"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "DEV"}, r"the split is TRAIN, VALID or TEST, got 'dev'"),
        ({"youtube__id": "../../etc/passwd"}, r"'\.\./\.\./etc/passwd' is not a name of this data set"),
        ({"annotations": None}, r"no annotations"),
        ({"annotations": []}, r"annotations: a JSON object was expected"),
        ({"annotations__num_beats": None}, r"'num_beats' is a number of beats, got 'None'"),
        ({"annotations__num_beats": 1e300}, r"'num_beats' is a number of beats"),
        ({"annotations__harmony": {}}, r"'harmony' is a list of at most 20000"),
        ({"annotations__harmony": [[]] * 20_001}, r"'harmony' is a list of at most 20000"),
        ({"annotations__harmony": [7]}, r"harmony 0: a JSON object was expected, got '7'"),
        (
            {"annotations__harmony": [chord(2, 1, 0, [4, 3])]},
            r"harmony 0: ends at beat 1, before it begins at 2",
        ),
        ({"annotations__harmony": [chord(0, 1, 12, [4, 3])]}, r"is a pitch class 0\.\.11, got '12'"),
        ({"annotations__harmony": [chord(0, 1, True, [4, 3])]}, r"is a pitch class 0\.\.11, got 'True'"),
        ({"annotations__harmony": [chord(0, 1, 0, "43")]}, r"'root_position_intervals' is a list"),
        ({"annotations__harmony": [chord("0", 1, 0, [4, 3])]}, r"'onset' is a number of beats, got '0'"),
        ({"annotations__keys": [key(0, -1, MAJOR)]}, r"keys 0: 'tonic_pitch_class' is a pitch class"),
        ({"alignment__refined": {"beats": [0, 1], "times": [0]}}, r"2 beats but 1 times"),
        ({"alignment__refined": {"beats": [0, 1], "times": [0, 1e8]}}, r"a time of its alignment is absurd"),
        ({"alignment__refined": {"beats": [0, 1], "times": [0, "1"]}}, r"'times' is a list of numbers"),
        ({"alignment__refined": {"beats": [0, 1], "times": [0, 10**400]}}, r"'times' is a list of numbers"),
    ],
)
def test_a_bad_entry_is_refused_with_file_and_line(root, change, message):
    write_list(root / FILE, {"x": changed(**change)})
    with pytest.raises(AnnotationError, match=rf"Hooktheory\.json\.gz, line 1, entry 'x'.*{message}"):
        load(root)


def test_an_excerpt_of_no_length_or_of_days_is_left_out(root):
    for change in ({"annotations__num_beats": 0}, {"annotations__num_beats": 100_000}):
        times = {"beats": [0, 1], "times": [1.0, 3.0]}
        record = changed(alignment__refined=times, **change)
        write_list(root / FILE, {"x": record, "aaaaaaaaaaa_": ENTRIES["aaaaaaaaaaa_"]})
        with pytest.warns(
            UserWarning, match="1 of 2 listed recordings left out, the first: x: its alignment puts"
        ):
            assert [s.split for s in load(root).skipped] == ["train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1: not JSON"),
        (b"[]", r"line 1: not JSON \({ was expected, got '\['\)"),
        (b'{"a": {"split": "TRAIN"', r"line 1: not JSON"),
        (b'{\n"a":\n{"split":: 1}}', r"line 3: not JSON \(Expecting value\)"),
        (b'{\n\n"a": {"x": NaN}}', r"line 3: NaN is not a number that JSON has"),
        (b'{"a": ' + b"[" * 100_000, r"nested too deeply"),
        (b'{"a": ' + b"1" * 10_000 + b"}", r"line 1: Exceeds the limit"),
        (b"{1: {}}", r"an entry with an id was expected, got '1'"),
        (b"{}}", r"line 1: not JSON"),
        (b'{"": {}}', r"ids are different, printable"),
        (b'{"\xff": {}}', r"line 1: not UTF-8 text"),
        (b'{"a\\nb": {}}', r"entry 'a\\nb': ids are different, printable"),
        (json.dumps({"a": ENTRIES["aaaaaaaaaaa_"]}).encode()[:-1] + b"} x", r"the list ends before ' ?x'"),
        (
            b'{"a": ' + json.dumps(ENTRIES["aaaaaaaaaaa_"]).encode() + b',\n"a": 1}',
            r"line 2, entry 'a': ids are different",
        ),
    ],
)
def test_what_is_not_the_list_is_refused_with_file_and_line(root, text, message):
    (root / FILE).write_bytes(gzip.compress(text))
    with pytest.raises(AnnotationError, match=rf"Hooktheory\.json\.gz.*{message}"):
        load(root)


def test_a_file_that_is_cut_or_no_gzip_or_too_long_is_refused(root, monkeypatch):
    whole = (root / FILE).read_bytes()
    for content, message in ((whole[:-20], "is cut off; fetch it again"), (b"{}", "not a gzip file")):
        (root / FILE).write_bytes(content)
        with pytest.raises(AnnotationError, match=message):
            load(root)
    (root / FILE).write_bytes(whole)
    monkeypatch.setattr("audiation.datasets.hooktheory_list.MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(AnnotationError, match="more than 1000 bytes unpacked"):
        load(root)
    monkeypatch.setattr("audiation.datasets.hooktheory.MAX_BYTES", 100)
    with pytest.raises(AnnotationError, match="longer than the 100 bytes"):
        load(root)


def test_the_list_below_the_metadata_root_must_be_the_published_one(root, tmp_path):
    write_list(tmp_path / "official" / PLACE_BELOW_METADATA_ROOT, ENTRIES)
    (root / FILE).unlink()
    with pytest.raises(
        MetadataError, match=r"is not the published file. Replace it with https://github\.com/chris"
    ):
        load(root, metadata_root=tmp_path / "official")
    with pytest.raises(
        FileNotFoundError, match=r"looked for Hooktheory\.json\.gz there, and for sheetsage-data"
    ):
        load(root)


def test_no_audio_at_all(tmp_path):
    write_list(tmp_path / FILE, {"aaaaaaaaaaa_": ENTRIES["aaaaaaaaaaa_"]})
    with pytest.raises(FileNotFoundError, match=r"none of the 1 listed hooktheory recordings is there"):
        load(tmp_path)
