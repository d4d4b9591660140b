"""NSynth on a generated copy of its layout (the official syntax, our own tones)."""

import json
import re

import numpy as np
import pytest
import soundfile

from audiation.annotations import Label, Pitch
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.nsynth import FAMILIES, OFFICIAL_COUNTS

SAMPLE_RATE_HZ = 16_000
MISSING = "ignore:nsynth. 1 of 15 listed recordings left out:UserWarning"
SOURCES = ("acoustic", "electronic", "synthetic")


def record(note_str):
    instrument_str, pitch, velocity = note_str.rsplit("-", 2)
    family, source, _ = instrument_str.rsplit("_", 2)
    return {
        "note": 201034,
        "sample_rate": SAMPLE_RATE_HZ,
        "instrument_family": FAMILIES.index(family),
        "qualities": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        "instrument_source_str": source,
        "note_str": note_str,
        "instrument_family_str": family,
        "instrument_str": instrument_str,
        "pitch": int(pitch),
        "instrument": 417,
        "velocity": int(velocity),
        "instrument_source": SOURCES.index(source),
        "qualities_str": ["dark"],
    }


NOTES = {
    "train": [f"{family}_{SOURCES[k % 3]}_033-{22 + k:03d}-050" for k, family in enumerate(FAMILIES)]
    + ["guitar_acoustic_010-108-127"],
    "valid": ["bass_synthetic_034-060-075", "flute_acoustic_002-077-100"],
    "test": ["bass_synthetic_034-022-025"],
}
NOTES["train"][0] = "bass_synthetic_033-022-050"
ABSENT = "guitar_acoustic_010-108-127"


def write_list(root, split, records):
    folder = root / f"nsynth-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "examples.json").write_text(json.dumps(records, indent=4))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "nsynth"
    for split, notes in NOTES.items():
        audio = root / f"nsynth-{split}" / "audio"
        audio.mkdir(parents=True)
        write_list(root, split, {note: record(note) for note in notes})
        for k, note in enumerate(notes):
            if note != ABSENT:
                time = np.arange(round((0.5 + 0.01 * (k - 1)) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
                tone = 0.3 * np.sin(2 * np.pi * 440 * 2 ** ((int(note[-7:-4]) - 69) / 12) * time)
                soundfile.write(audio / f"{note}.wav", tone, SAMPLE_RATE_HZ, subtype="PCM_16")
    return root


def load(root):
    return DATASETS["nsynth"](root)


@pytest.mark.filterwarnings(MISSING)
def test_the_fixture(root):
    data = load(root)
    assert data.counts == {"train": 11, "valid": 2, "test": 1}
    assert [(s.track_id, s.split) for s in data.skipped] == [(ABSENT, "train")]
    first = next(t for t in data.tracks if t.track_id == "bass_synthetic_033-022-050")
    assert first.pitch == Pitch(22) and first.instrument == Label("bass") and first.velocity == 50
    assert FAMILIES.index(first.instrument.name) == 0
    assert len(FAMILIES) == 11 and [FAMILIES.index(f) for f in ("reed", "synth_lead", "vocal")] == [7, 9, 10]
    assert {t.instrument.name for t in data.split("train")} == set(FAMILIES)
    assert "synth_lead" not in {t.instrument.name for t in data.split("valid") + data.split("test")}
    assert {t.track_id: t.pitch.midi for t in data.split("valid")} == {
        "bass_synthetic_034-060-075": 60,
        "flute_acoustic_002-077-100": 77,
    }
    data.check_groups()


@pytest.mark.filterwarnings(MISSING)
def test_audio_is_read_at_any_rate(root):
    track = load(root).split("valid")[0]
    assert track.load(SAMPLE_RATE_HZ).shape == (7840,)  # 0.49 s
    assert track.load(24_000).shape == (11_760,)


def test_a_missing_note_is_warned_of(root):
    with pytest.warns(UserWarning, match=r"nsynth: 1 of 15 .* guitar_acoustic_010-108-127"):
        load(root)


@pytest.mark.filterwarnings("ignore:nsynth. 2 of 15 listed recordings left out:UserWarning")
def test_an_empty_file_is_skipped_with_its_reason(root):
    (root / "nsynth-test" / "audio" / "bass_synthetic_034-022-025.wav").write_bytes(b"")
    skipped = load(root).skipped
    assert [(s.split, "is an empty file" in s.reason) for s in skipped] == [("train", False), ("test", True)]


@pytest.mark.filterwarnings(MISSING)
def test_verify_says_what_is_missing_and_where_the_lists_are_not_the_official_ones(root):
    lines = load(root).verify()
    assert len(lines) == 4 and lines[0].startswith(f"{ABSENT}: ")
    assert lines[1:] == [
        "nsynth-train/examples.json lists 12 notes, the official one 289205",
        "nsynth-valid/examples.json lists 2 notes, the official one 12678",
        "nsynth-test/examples.json lists 1 notes, the official one 4096",
    ]
    assert sum(OFFICIAL_COUNTS.values()) == 305_979


def test_all_three_folders_are_needed(root, tmp_path):
    (root / "nsynth-valid" / "examples.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"nsynth not found at .* \(looked for nsynth-valid/examples"):
        load(root)
    with pytest.raises(FileNotFoundError, match=r"nsynth\.md says where to get it"):
        load(tmp_path / "nowhere")


def test_an_instrument_of_training_may_not_be_in_another_split(root):
    write_list(root, "test", {n: record(n) for n in NOTES["test"] + ["bass_synthetic_033-090-050"]})
    line = (root / "nsynth-test" / "examples.json").read_text().split('"bass_synthetic_033-090')[0].count(
        "\n"
    ) + 1
    with pytest.raises(
        AnnotationError, match=rf"nsynth-test.examples\.json, line {line}: the instrument bass_synth"
    ):
        load(root)


# Lists made to break -----------------------------------------------------------------------------------------


def with_record(**fields):
    return {NOTES["test"][0]: record(NOTES["test"][0]) | fields}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "line 1: an object with a record per note was expected"),
        ({}, "line 1: an object with a record per note was expected"),
        ({"note_str": 1}, "line 1: an object with a record per note was expected"),
        (
            {"../../../etc/passwd": {"note_str": "../../../etc/passwd"}},
            r"line 2: '\.\./\.\./\.\./etc/passwd' is not",
        ),
        ({"bass_synthetic_034-022-025/x": {}}, "line 2: .* is not a name of this data set"),
        ({"bass_synthetic_034-022-025": {}}, "line 2: a record with note_str"),
        ({"bass_synthetic_034-022-025": 7}, "line 2: a record with note_str"),
        (
            {"bass_synthetic_034-222-025": {"note_str": "bass_synthetic_034-222-025", "pitch": 222}},
            "line 2: .* from 0 to 127",
        ),
        (with_record(note_str="bass_synthetic_034-022-050"), "line 2: a record with note_str"),
        (
            with_record(pitch=23),
            "line 2: the pitch of bass_synthetic_034-022-025 is the MIDI number 022 .* got '23'",
        ),
        (with_record(pitch="22"), "line 2: the pitch"),
        (with_record(pitch=True), "line 2: the pitch"),
        (with_record(pitch=None), "line 2: the pitch"),
        (
            with_record(instrument_family=1),
            r"line 2: the instrument_family .* is 0 \(bass\), got '1' \('bass'\)",
        ),
        (with_record(instrument_family_str="brass"), "line 2: the instrument_family"),
    ],
)
def test_a_list_that_says_something_else_is_refused(root, records, message):
    write_list(root, "test", records)
    with pytest.raises(AnnotationError, match=rf"nsynth-test.examples\.json, {message}"):
        load(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: not JSON"),
        (b'{\n"bass_synthetic_034-022-025": {\n"note_str": "bass_syn', "line 3: not JSON"),
        (b'{\n"a": NaN}', "line 2: NaN is not a number"),
        (b'{\n"a": -Infinity}', "line 2: -Infinity is not a number"),
        (b'{\n"\xff": 1}', "line 2: not UTF-8 text"),
        (b'{"a": 1,\n"b": 2, "b": 3}', "line 2: 'b' is there twice"),
        (b'{"a":\n{"note_str": "x",\n"pitch": 1, "pitch": 2}}', "line 2: 'pitch' is there twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_a_list_that_is_not_json_is_refused_with_file_and_line(root, content, message):
    path = root / "nsynth-test" / "examples.json"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=re.escape(str(path)) + (f", {message}" if message else ": ")):
        load(root)


def test_a_list_longer_than_any_is_not_read(root, monkeypatch):
    monkeypatch.setattr("audiation.datasets.nsynth.MAX_LIST_BYTES", 100)
    with pytest.raises(AnnotationError, match="longer than the 100 bytes"):
        load(root)
