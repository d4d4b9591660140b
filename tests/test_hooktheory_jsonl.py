"""The HookTheory lists of MARBLE v2: generated lists and tones."""

import json

import numpy as np
import pytest
import soundfile

from audiation.annotations import Key, Label
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.hooktheory_jsonl import SECTION_OF_LABELS, SECTIONS

SAMPLE_RATE_HZ = 16000


def line(clip, video, label, folder=""):
    return {
        "audio_path": f"{folder}hooktheory_clips/{clip}.mp3",
        "ori_uid": video,
        "label": label,
        "duration": 0.5,
        "sample_rate": SAMPLE_RATE_HZ,
        "num_samples": SAMPLE_RATE_HZ // 2,
        "bit_depth": 16,
        "channels": 1,
    }


KEYS = {
    "train": [line("clipA", "videoAAAAAA", "C major"), line("clipB", "videoAAAAAA", "C major")],
    "val": [line("clipC", "videoCCCCCC", "D dorian"), line("clipX", "videoXXXXXX", "Eb minor")],
    "test": [
        line("clipD", "videoDDDDDD", "F# minor", "data/HookTheory/"),
        line("clipE", "videoXXXXXX", "Gb minor"),
    ],
}
PARTS = {
    "train": [line("clipA", "videoAAAAAA", ["verse"]), line("clipB", "videoAAAAAA", ["pre-chorus"])],
    "val": [line("clipC", "videoCCCCCC", ["pre-chorus", "chorus"])],
    "test": [line("clipD", "videoDDDDDD", ["intro", "verse"]), line("clipE", "videoEEEEEE", ["solo"])],
}


def write(root, name, lists):
    root.mkdir(parents=True, exist_ok=True)
    for split, lines in lists.items():
        (root / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.fixture
def root(tmp_path):
    """Every clip but clipX, as MP3."""
    folder = tmp_path / "HookTheory"
    write(folder, "HookTheoryKey", KEYS)
    write(folder, "HookTheoryStructure", PARTS)
    (folder / "hooktheory_clips").mkdir()
    time = np.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    for name in "ABCDE":
        path = folder / "hooktheory_clips" / f"clip{name}.mp3"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), SAMPLE_RATE_HZ, format="MP3")
    return folder


def keys(root, **options):
    return DATASETS["hooktheory_key_jsonl"](root, **options)


def test_keys_without_other_modes(root):
    with pytest.warns(UserWarning, match="1 of 5 listed recordings left out, the first: clipX"):
        data = keys(root)
    assert data.counts == {"train": 2, "valid": 0, "test": 2}
    assert data.num_other_modes == {"train": 0, "valid": 1, "test": 0}
    assert [(s.track_id, s.split) for s in data.skipped] == [("clipX", "valid")]
    assert {t.track_id: t.key for t in data.tracks} == {
        "clipA": Key(0, "major"),
        "clipB": Key(0, "major"),
        "clipD": Key(6, "minor"),
        "clipE": Key(6, "minor"),
    }
    assert next(t for t in data.tracks if t.track_id == "clipD").key.index == 18
    assert data.tracks[0].load(SAMPLE_RATE_HZ).shape[0] >= SAMPLE_RATE_HZ // 2


@pytest.mark.filterwarnings("ignore:hooktheory_key_jsonl. 1 of:UserWarning")
def test_excerpts_of_a_video_belong_together_where_it_is_in_one_split(root):
    data = keys(root)
    assert [(t.song_id, t.group) for t in data.tracks] == [
        ("videoAAAAAA", "videoAAAAAA"),
        ("videoAAAAAA", "videoAAAAAA"),
        ("videoDDDDDD", "videoDDDDDD"),
        ("videoXXXXXX", ""),  # in validation and test
    ]
    data.check_groups()


@pytest.mark.filterwarnings("ignore:hooktheory_key_jsonl. 1 of:UserWarning")
def test_all_modes(root):
    data = keys(root, modes="all")
    assert data.counts == {"train": 2, "valid": 1, "test": 2}
    (other,) = data.split("valid")
    assert other.label == Label("D dorian") and other.key is None
    with pytest.raises(ValueError, match="'major_minor' or 'all', got 'some'"):
        keys(root, modes="some")


def test_parts_of_the_song(root):
    data = DATASETS["hooktheory_structure"](root)
    assert data.counts == {"train": 2, "valid": 1, "test": 2} and data.verify() == []
    assert [SECTIONS.index(t.section.name) for t in data.tracks] == [1, 2, 3, 1, 6]
    assert data.tracks[0].song_id == data.tracks[0].group == "videoAAAAAA"
    assert {name: SECTIONS.index(part) for name, part in SECTION_OF_LABELS.items()} == {
        "intro": 0,
        "verse": 1,
        "verse_pre-chorus": 1,
        "intro_verse": 1,
        "pre-chorus": 2,
        "chorus": 3,
        "pre-chorus_chorus": 3,
        "intro_chorus": 3,
        "bridge": 4,
        "outro": 5,
        "instrumental": 6,
        "solo": 6,
    }


@pytest.mark.parametrize("label", [["foo"], [], "verse", [["verse"]], None, ["chorus", "verse"]])
def test_a_part_in_no_class_is_an_error(root, label):
    write(
        root, "HookTheoryStructure", PARTS | {"test": [*PARTS["test"], line("clipF", "videoFFFFFF", label)]}
    )
    with pytest.raises(AnnotationError, match=r"HookTheoryStructure\.test\.jsonl, line 3: "):
        DATASETS["hooktheory_structure"](root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(line("c", "v", "H major")), "'H major' is not a tonic and one of major, minor, dorian"),
        (json.dumps(line("c", "v", "C majeur")), "is not a tonic and one of"),
        (json.dumps(line("c", "v", "C")), "is not a tonic and one of"),
        (json.dumps(line("c", "v", 3)), "'label' is a text, got '3'"),
        (json.dumps(line("c", "../v", "C major")), r"'\.\./v' is not a name"),
        (json.dumps(line("c", "v", "C major", "../")), "is not a path inside the data set's folder"),
        (json.dumps(line("c", "v", "C major", "/")), "is not a path inside the data set's folder"),
        (json.dumps(line("clipA", "v", "C major")), r"'clipA' is listed already in .*train\.jsonl, line 1"),
        (
            '{"audio_path": "a.mp3", "ori_uid": "v", "label": "C major", "duration": NaN}',
            "NaN is not a number",
        ),
        ('{"audio_path": "a.mp3"', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("7", "a JSON object was expected, got '7'"),
        ('{"label": "C major"}', "'audio_path' is a text, got 'None'"),
        ("\xff", "not UTF-8 text"),
        ("\0", "NUL"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(root, text, message):
    path = root / "HookTheoryKey.train.jsonl"
    path.write_bytes(path.read_bytes() + text.encode("latin-1"))
    with pytest.raises(AnnotationError, match=rf"HookTheoryKey\.train\.jsonl, line 3.*{message}"):
        keys(root)


def test_a_list_without_end_is_refused(root):
    (root / "HookTheoryKey.val.jsonl").write_bytes(b"{}\n" * 1_000_000)
    with pytest.raises(
        AnnotationError, match=r"HookTheoryKey\.val\.jsonl, line 200001: more than 200000 lines"
    ):
        keys(root)


def test_missing_lists_and_audio(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"looked for HookTheoryKey\.train\.jsonl"):
        keys(tmp_path / "nowhere")
    (root / "HookTheoryKey.val.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no HookTheoryKey\.val\.jsonl in"):
        keys(root)
    for path in (root / "hooktheory_clips").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match="none of the 5 listed hooktheory_structure recordings is there"
    ):
        DATASETS["hooktheory_structure"](root)
