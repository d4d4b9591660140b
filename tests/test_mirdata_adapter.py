"""The adapter on a stand-in for mirdata 1.0: attributes and methods of its data sets, tracks and annotations."""

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiation.annotations import Beats, Key, Label, Segments, Tags, Tempo, Values
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.mirdata_adapter import convert, from_mirdata, hash_split, parse_key

GOLDEN = "4cad395274465e6c522c0a30396397363fb501b714924ecfcc5a528c71e4899d"


class BeatData:
    def __init__(self, times, time_unit, positions, position_unit):
        self.times, self.time_unit = np.array(times), time_unit
        self.positions = None if positions is None else np.array(positions)
        self.position_unit, self.confidence, self.confidence_unit = position_unit, None, None


class ChordData:
    """mirdata's own keeps no unit of the intervals."""

    def __init__(self, intervals, interval_unit, labels, label_unit, confidence=None):
        self.intervals, self.labels, self.confidence = np.array(intervals), labels, confidence


class SectionData:
    def __init__(self, intervals, interval_unit, labels=None, label_unit=None):
        self.intervals, self.interval_unit = np.array(intervals), interval_unit
        self.labels, self.label_unit = labels, label_unit


class KeyData:
    def __init__(self, intervals, interval_unit, keys, key_unit):
        self.intervals, self.interval_unit = np.array(intervals), interval_unit
        self.keys, self.key_unit = keys, key_unit


class TempoData:
    def __init__(self, intervals, interval_unit, tempos, tempo_unit, confidence=None, confidence_unit=None):
        self.intervals, self.interval_unit = np.array(intervals), interval_unit
        self.tempos, self.tempo_unit, self.confidence = np.array(tempos), tempo_unit, confidence


class EventData:
    def __init__(self, intervals, interval_unit, events, event_unit):
        self.intervals, self.interval_unit = np.array(intervals), interval_unit
        self.events, self.event_unit = events, event_unit


class NoteData:
    def __init__(self):
        self.intervals, self.pitches = np.array([[0.0, 1.0]]), np.array([440.0])


class MultiAnnotator:
    def __init__(self, annotators, annotations):
        self.annotators, self.annotations = annotators, annotations


class FakeTrack:
    """mirdata reads an annotation when its property is asked for."""

    def __init__(self, track_id, data_home):
        self.track_id = track_id
        self.audio_path = None if track_id == "t19" else str(data_home / "audio" / f"{track_id}.wav")
        self.genre = "rock"

    @property
    def beats(self):
        return BeatData([0.5, 1.0, 1.5], "s", [1, 2, 1], "bar_index")

    @property
    def chords(self):
        return ChordData([[0.0, 1.0], [1.0, 1.0], [1.0, 2.0]], "s", ["C:maj", "N", "A:min7"], "harte")

    @property
    def sections(self):
        return SectionData([[0.0, 1.5], [1.5, 2.0]], "s", ["verse", "chorus"], "open")

    @property
    def key(self):
        return KeyData([[0.0, 1.0], [1.0, 2.0]], "s", ["G#:minor", "Ab:minor"], "key_mode")

    @property
    def tempo(self):
        return TempoData([[0.0, 9.0], [0.0, 9.0]], "s", [60.0, 120.0], "bpm", np.array([0.3, 0.7]))

    @property
    def tags(self):
        return ["mood/theme---happy", "genre---rock"]

    @property
    def notes(self):
        return NoteData()

    @property
    def lost(self):
        raise FileNotFoundError("no annotations/t00.lab")

    @property
    def broken(self):
        raise IndexError("list index out of range")


class FakeDataset:
    splits: dict | None = None
    track_class = FakeTrack

    def __init__(self, data_home):
        self.data_home = data_home
        self.track_ids = [f"t{k:02d}" for k in range(20)]

    def load_tracks(self):
        return {i: self.track_class(i, self.data_home) for i in self.track_ids}

    def get_track_splits(self):
        if self.splits is None:
            raise NotImplementedError("The fake dataset does not have an official split.")
        return self.splits

    def validate(self, verbose=True):
        assert verbose is False
        missing = {"tracks": {"t18": [f"{self.data_home}/audio/t18.wav"]}, "metadata": {}}
        return missing, {"tracks": {"t00": [f"{self.data_home}/audio/t00.wav"]}}


@pytest.fixture
def home(tmp_path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "t00.wav", np.zeros(100), 8000)
    for k in (*range(1, 18), 19):
        (tmp_path / "audio" / f"t{k:02d}.wav").write_bytes(b"1")  # the reader looks at sizes only
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """The class that `mirdata.initialize` makes; a test may change its attributes."""

    class Current(FakeDataset):
        pass

    module = types.ModuleType("mirdata")
    module.list_datasets = lambda: ["fake", "beatles"]
    module.initialize = lambda name, data_home=None, version="default": Current(Path(data_home))
    monkeypatch.setitem(sys.modules, "mirdata", module)
    return Current


pytestmark = pytest.mark.filterwarnings("ignore:fake. 1 of .* listed recordings left out:UserWarning")


def test_annotations_become_ours(fake, home):
    track = from_mirdata("fake", home).tracks[0]
    assert track.track_id == "t00" and track.load(8000).shape == (100,)
    assert isinstance(track.beats, Beats)
    assert track.beats.times_seconds.tolist() == [0.5, 1.0, 1.5] and track.beats.positions.tolist() == [
        1,
        2,
        1,
    ]
    assert track.chords.labels == ("C:maj", "A:min7")  # the chord that lasts no time is left out
    assert track.chords.intervals_seconds.tolist() == [[0.0, 1.0], [1.0, 2.0]]
    assert track.sections.labels == ("verse", "chorus")
    assert track.keys.labels == ("G#:minor", "Ab:minor") and track.key == Key(8, "minor")
    assert track.tempo == Tempo(120.0)  # the one of higher confidence
    assert track.annotation("genre") == Label("rock")
    assert track.annotation("tags") == Tags({"genre---rock": 1.0, "mood/theme---happy": 1.0})
    assert isinstance(track.annotation("key"), Segments)


def test_what_a_data_set_does_not_have_is_none(fake, home):
    class Bare:
        def __init__(self, track_id, data_home):
            self.audio_path = str(data_home / "audio" / f"{track_id}.wav")
            self.beats = None

    fake.track_class = Bare
    track = from_mirdata("fake", home).tracks[0]
    assert [track.beats, track.chords, track.sections, track.keys, track.key, track.tempo] == [None] * 6
    assert track.annotation("beats") is None
    with pytest.raises(
        ValueError, match="fake t00, genre: mirdata's track has no such attribute; it has audio_path"
    ):
        track.annotation("genre")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("D major", Key(2, "major")),
        ("eb minor\n", Key(3, "minor")),
        ("F#:minor", Key(6, "minor")),
        ("Bb", Key(10, "major")),
        ("D dorian", None),
        ("N", None),
        ("D minor | F major", None),
        ("", None),
    ],
)
def test_a_key_may_be_a_text(fake, home, found, expected):
    fake.track_class = type("Track", (FakeTrack,), {"key": found})
    track = from_mirdata("fake", home).tracks[0]
    assert track.key == expected == parse_key(found) and track.keys is None


def test_several_keys_are_no_key_of_the_track(fake, home):
    fake.track_class = type(
        "Track", (FakeTrack,), {"key": KeyData([[0, 1], [1, 2]], "s", ["C:major", "A:minor"], "key_mode")}
    )
    track = from_mirdata("fake", home).tracks[0]
    assert track.key is None and track.keys.labels == ("C:major", "A:minor")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (123.5, Tempo(123.5)),
        ("90", Tempo(90.0)),
        (np.float64(80), Tempo(80.0)),
        (0, None),
        (float("nan"), None),
        (None, None),
        (TempoData([[0, 1]], "s", [99.0], "bpm"), Tempo(99.0)),
        (TempoData([[0, 1]], "s", [0.0], "bpm", [1.0]), None),
        (TempoData(np.zeros((0, 2)), "s", [], "bpm"), None),
    ],
)
def test_tempo_may_be_a_number_or_several(fake, home, found, expected):
    fake.track_class = type("Track", (FakeTrack,), {"tempo": found})
    assert from_mirdata("fake", home).tracks[0].tempo == expected


@pytest.mark.parametrize(
    ("unit", "positions", "expected"),
    [
        ("bar_index", [1, 2, 0], [1, 2, 0]),
        ("global_index", [1, 2, 3], [0, 0, 0]),
        ("bar_fraction", [0.25, 0.5, 0.75], [0, 0, 0]),
        (None, None, [0, 0, 0]),
    ],
)
def test_only_positions_in_the_bar_are_positions(unit, positions, expected):
    assert convert(BeatData([1, 2, 3], "s", positions, unit), "beats").positions.tolist() == expected


def test_other_kinds_and_units():
    assert convert(BeatData([1000, 2000], "ms", None, None), "beats").times_seconds.tolist() == [1.0, 2.0]
    assert convert(SectionData([[0, 1]], "s"), "sections").labels == ("",)
    assert convert(EventData([[0, 1]], "s", ["solo"], "open"), "events").labels == ("solo",)
    assert convert(7, "midi") == Values({"midi": 7.0})
    assert convert([], "tags") is None


@pytest.mark.parametrize(
    ("attribute", "found", "message"),
    [
        ("beats", BeatData([1, 1], "s", [1, 2], "bar_index"), "strictly increasing"),
        ("beats", BeatData([1, np.nan], "s", [1, 2], "bar_index"), "finite"),
        ("beats", BeatData([1, 2], "s", [1.5, 2], "bar_index"), "whole numbers"),
        ("beats", BeatData([1, 2], "ticks", [1, 2], "bar_index"), "times are in 'ticks'; only s, ms"),
        ("beats", [0.5, 1.0], "list has no counterpart here"),
        ("beats", "tap", "Beats was expected, got str; see annotation\\('beats'\\)"),
        ("chords", ChordData([[0, 2], [1, 3]], "s", ["C", "G"], "harte"), "must not overlap"),
        ("chords", ChordData([[0, 2], [2, 3]], "s", ["C"], "harte"), "2 intervals but 1 labels"),
        ("sections", SectionData([[2, 1]], "s", ["A"]), "start < end"),
        ("sections", MultiAnnotator(["a", "b"], []), "several annotators, so choose one"),
        ("key", {"key": "C"}, "dict has no counterpart"),
        ("tempo", TempoData([[0, 1], [1, 2]], "s", [60, 90], "bpm"), "2 tempos without a confidence"),
        ("tempo", -3, "positive number"),
        ("tempo", "fast", "cannot be read"),
        ("keys", None, None),
    ],
)
def test_annotations_that_are_not_what_they_should_be_are_refused(fake, home, attribute, found, message):
    fake.track_class = type("Track", (FakeTrack,), {attribute: found})
    track = from_mirdata("fake", home).tracks[0]
    if message is None:
        assert track.key == Key(8, "minor")  # the next attribute that has something decides
        return
    with pytest.raises(AnnotationError, match=rf"^fake t00, {attribute}: .*{message}"):
        getattr(track, attribute)


def test_what_mirdata_cannot_read_is_named(fake, home):
    track = from_mirdata("fake", home).tracks[0]
    with pytest.raises(AnnotationError, match=r"fake t00, broken: cannot be read \(IndexError: list index"):
        track.annotation("broken")
    with pytest.raises(AnnotationError, match=r"fake t00, notes: .*NoteData has no counterpart here"):
        track.annotation("notes")
    with pytest.raises(FileNotFoundError, match=r"no annotations/t00\.lab"):
        track.annotation("lost")


# Splits --------------------------------------------------------------------------------------------------------


def test_missing_audio_is_skipped_with_its_reason(fake, home):
    data = from_mirdata("fake", home)
    assert len(data.tracks) == 18
    reasons = {s.track_id: (s.reason, s.split) for s in data.skipped}
    assert reasons["t19"] == ("mirdata's index names no audio file", hash_split("fake", "t19"))
    assert "No such file" in reasons["t18"][0] and reasons["t18"][1] == hash_split("fake", "t18")
    assert data.verify()[-2:] == [
        f"t18: {home}/audio/t18.wav is missing",
        f"t00: {home}/audio/t00.wav has another checksum",
    ]


def test_without_official_splits_a_hash_decides(fake, home):
    data = from_mirdata("fake", home)
    assert data.how_split == "split 70/15/15 by hash of the track id"
    assert all(t.split == hash_split("fake", t.track_id) for t in data.tracks)
    with pytest.raises(ValueError, match="mirdata knows no official splits of fake"):
        from_mirdata("fake", home, splits="official")


def test_the_hash_divides_70_15_15_and_always_the_same():
    splits = [hash_split("fake", f"track {k}") for k in range(4000)]
    shares = [splits.count(s) / 4000 for s in ("train", "valid", "test")]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.02)
    assert hashlib.sha256(",".join(splits).encode()).hexdigest() == GOLDEN
    assert splits != [hash_split("other", f"track {k}") for k in range(4000)]


def test_official_splits(fake, home):
    ids = [f"t{k:02d}" for k in range(20)]
    fake.splits = {"train": ids[:10], "validation": ids[10:14], "test": ids[14:19], "omitted": ids[19:]}
    data = from_mirdata("fake", home)
    assert (
        data.counts == {"train": 10, "valid": 4, "test": 4} and data.how_split == "splits as mirdata has them"
    )
    reasons = {s.track_id: (s.reason, s.split) for s in data.skipped}
    assert reasons["t19"] == ("mirdata has it in the split 'omitted'", "") and reasons["t18"][1] == "test"
    assert from_mirdata("fake", home, splits="hash").split_hash != data.split_hash


def test_validation_is_taken_from_training_where_there_is_none(fake, home):
    ids = [f"t{k:02d}" for k in range(20)]
    fake.splits = {"train": ids[:15], "test": ids[15:18]}
    with pytest.warns(UserWarning, match="fake: 2 of 20"):
        data = from_mirdata("fake", home)
    moved = [t.track_id for t in data.split("valid")]
    assert moved == [i for i in ids[:15] if hash_split("fake", i) == "test"]
    assert 0 < len(moved) < 6 and len(data.split("train")) == 15 - len(moved)
    assert data.how_split.endswith("validation is 15 % of training by hash of the track id")
    assert {s.track_id: s.reason for s in data.skipped if s.track_id == "t19"} == {
        "t19": "in no split of mirdata"
    }


def test_splits_of_other_names_are_refused(fake, home):
    fake.splits = {"fold-0": ["t00"], "fold-1": ["t01"]}
    with pytest.raises(ValueError, match=r"'fold-0', 'fold-1'; none is the train split\. Take splits='hash'"):
        from_mirdata("fake", home)


# Refusals ------------------------------------------------------------------------------------------------------


def test_choices_are_checked(fake, home):
    with pytest.raises(ValueError, match="splits is one of 'auto', 'official', 'hash', got 'random'"):
        from_mirdata("fake", home, splits="random")
    with pytest.raises(ValueError, match=r"mirdata has no data set 'beetles'\. It has: beatles, fake"):
        from_mirdata("beetles", home)
    with pytest.raises(ValueError, match=r"no attribute 'audio_path_mono'. Pass audio=NAME.*audio_path"):
        from_mirdata("fake", home, audio="audio_path_mono")


def test_another_audio_attribute(fake, home):
    class Mono(FakeTrack):
        def __init__(self, track_id, data_home):
            super().__init__(track_id, data_home)
            self.audio_path_mono = self.audio_path
            del self.audio_path

    fake.track_class = Mono
    assert len(from_mirdata("fake", home, audio="audio_path_mono").tracks) == 18
    with pytest.raises(ValueError, match="for example one of: audio_path_mono"):
        from_mirdata("fake", home)


def test_an_index_that_is_not_there(fake, home):
    def load_tracks(self):
        raise FileNotFoundError("This dataset's index must be downloaded. Did you run .download()?")

    fake.load_tracks = load_tracks
    with pytest.raises(
        FileNotFoundError, match=r"initialize\('fake'\)\.download\(partial_download=\['index'\]\)"
    ):
        from_mirdata("fake", home)


def test_without_any_audio(fake, tmp_path):
    with pytest.raises(FileNotFoundError, match="none of the 19 listed fake recordings is there"):
        from_mirdata("fake", tmp_path / "nowhere")


def test_without_mirdata_the_error_says_what_to_install(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "mirdata", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'audiation\[mirdata\]'"):
        from_mirdata("fake", home)
