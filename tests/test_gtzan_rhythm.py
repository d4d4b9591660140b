"""GTZAN-Rhythm on a generated copy of its layout: JAMS files in both places and both spellings of `data`."""

import json
import shutil
import urllib.error

import numpy as np
import pytest
import soundfile

from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.gtzan_annotations import GENRES
from audiation.datasets.gtzan_rhythm import number_beats, parse_jams

SAMPLE_RATE_HZ = 22050
FOLDER = "GTZAN-Rhythm_v2_ismir2015_lbd"
BEATS = [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def jams(beats=tuple(BEATS), downbeats=(0.25, 2.25), columns=False):
    """A file as released; `columns`: `data` as in old JAMS files."""

    def data(times):
        rows = [{"time": t, "duration": 0.0, "value": None, "confidence": None} for t in times]
        return {k: [row[k] for row in rows] for k in ("time", "duration", "value")} if columns else rows

    def annotation(namespace, times, **sandbox):
        return {"namespace": namespace, "data": data(times), "sandbox": sandbox, "annotation_metadata": {}}

    annotations = [
        annotation("beat", beats, annotation_type="beat"),
        annotation("beat", downbeats, annotation_type="downbeat"),
        annotation("beat", np.arange(0.25, 2.5, 0.25).tolist(), annotation_type="8th-note"),
        annotation("tag_open", [], meter="4/4"),
        annotation("tag_open", [], swing="no"),
    ]
    return json.dumps({"file_metadata": {"duration": 30.0}, "sandbox": {}, "annotations": annotations})


@pytest.fixture
def root(tmp_path):
    """Three tracks per genre, of 2.5 s each; lists with one of them each; a copy of the annotations."""
    folder = tmp_path / "gtzan"
    rng = np.random.default_rng(0)
    for genre in GENRES:
        (folder / "genres" / genre).mkdir(parents=True)
        for i in range(3):
            noise = 0.1 * rng.standard_normal(round(2.5 * SAMPLE_RATE_HZ))
            soundfile.write(folder / "genres" / genre / f"{genre}.{i:05d}.wav", noise, SAMPLE_RATE_HZ)
    (folder / "genres" / "jazz" / "jazz.00054.wav").write_bytes(b"no audio")
    for i, split in enumerate(("train", "valid", "test")):
        names = [f"{g}/{g}.{i:05d}.wav\n" for g in GENRES] + (["jazz/jazz.00054.wav\n"] if i == 0 else [])
        (folder / f"{split}_filtered.txt").write_text("".join(names))
    place = folder / FOLDER / "jams"
    place.mkdir(parents=True)
    for genre in GENRES:
        for i in range(3):
            (place / f"{genre}.{i:05d}.wav.jams").write_text(jams())
    (place / "blues.00001.wav.jams").write_text(jams(downbeats=()))
    (place / "blues.00002.wav.jams").write_text(jams(columns=True))
    (place / "rock.00002.wav.jams").unlink()
    (folder / FOLDER / "stats.csv").write_text(
        "filename,artist,title,tempo mean\nblues.00000.wav,A,B,120.0\n"
    )
    return folder


BAD_FILE = "ignore:gtzan_rhythm. 1 of 31 listed recordings left out:UserWarning"


def load(root, **options):
    return DATASETS["gtzan_rhythm"](root, **options)


def by_id(data):
    return {t.track_id: t for t in data.tracks}


@pytest.mark.filterwarnings(BAD_FILE)
def test_beats_have_positions_and_end_with_the_audio(root):
    tracks = by_id(load(root))
    beats = tracks["blues.00000"].beats
    assert beats.times_seconds.tolist() == [0.25, 0.75, 1.25, 1.75, 2.25]  # 2.75 s is after the end
    assert beats.positions.tolist() == [1, 2, 3, 4, 1]
    assert tracks["blues.00001"].beats.positions.tolist() == [0, 0, 0, 0, 0]
    assert tracks["blues.00002"].beats.positions.tolist() == [1, 2, 3, 4, 1]
    assert tracks["rock.00002"].beats is None


def test_an_unreadable_recording_is_counted(root):
    with pytest.warns(UserWarning, match=r"gtzan_rhythm: 1 of 31 .* jazz\.00054"):
        data = load(root)
    assert data.counts == {"train": 10, "valid": 10, "test": 10}
    assert [(s.track_id, s.split) for s in data.skipped] == [("jazz.00054", "train")]
    assert data.verify() == [
        f"jazz.00054: {data.skipped[0].reason}",
        "the split lists in the data folder are not the published ones",
        f"rock.00002: {root / FOLDER / 'jams' / 'rock.00002.wav.jams'} is missing",
    ]


@pytest.mark.filterwarnings(BAD_FILE)
@pytest.mark.parametrize("place", ["gtzan/genres/..", ".", "gtzan/genres"])
@pytest.mark.parametrize("layout", ["jams", "."])
def test_annotations_in_or_beside_the_audio_and_in_both_layouts(root, place, layout):
    wanted = root.parent / place / FOLDER
    if wanted.resolve() != (root / FOLDER).resolve():
        shutil.move(root / FOLDER, wanted)
    if layout == ".":
        for path in (wanted / "jams").iterdir():
            shutil.move(path, wanted)
        (wanted / "jams").rmdir()
    assert by_id(load(root))["blues.00000"].beats.positions.tolist() == [1, 2, 3, 4, 1]


def test_the_whole_set_is_the_test_set(root):
    with pytest.warns(UserWarning, match="gtzan_rhythm: 970 of 1000 listed recordings left out"):
        data = load(root, split="all")
    assert data.counts == {"train": 0, "valid": 0, "test": 30}
    assert {s.split for s in data.skipped} == {"test"} and len(data.skipped) == 970


@pytest.mark.filterwarnings(BAD_FILE)
def test_beats_of_the_other_repository(root):
    folder = root / "gtzan_tempo_beat" / "beats"
    folder.mkdir(parents=True)
    (folder / "gtzan_blues_00000.beats").write_text("0.3\t2\n0.8\t1\n2.9\t2\n")
    shutil.rmtree(root / FOLDER)
    tracks = by_id(load(root, annotations="gtzan_tempo_beat"))
    assert tracks["blues.00000"].beats.times_seconds.tolist() == [0.3, 0.8]
    assert tracks["blues.00000"].beats.positions.tolist() == [2, 1]
    assert tracks["blues.00001"].beats is None
    lines = load(root, annotations="gtzan_tempo_beat").verify()
    assert lines[-1] == f"{folder} is not as published (1 of 999 files)"


def test_what_is_not_there_or_not_a_choice_is_refused(root):
    with pytest.raises(ValueError, match="split is 'fault_filtered' or 'all', got 'half'"):
        load(root, split="half")
    with pytest.raises(ValueError, match="annotations is 'jams' or 'gtzan_tempo_beat', got 'csv'"):
        load(root, annotations="csv")
    shutil.rmtree(root / FOLDER)
    with pytest.raises(FileNotFoundError, match=rf"looked for {FOLDER}/jams/blues\.00000\.wav\.jams"):
        load(root)


# Positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beats", "downbeats", "positions"),
    [
        ([1, 2, 3, 4, 5, 6, 7], [3, 6], [2, 3, 1, 2, 3, 1, 2]),  # a pick-up of two beats in 3/4
        ([1, 2, 3, 4, 5, 6, 7], [4, 6], [0, 0, 0, 1, 2, 1, 2]),  # more than a bar before: unknown
        ([1, 2, 3, 4, 5, 6, 7, 8], [2, 4, 7], [0, 1, 2, 1, 2, 3, 1, 2]),  # bars of two lengths: unknown
        ([1, 2, 3, 4], [3], [0, 0, 1, 2]),  # no whole bar: unknown
        ([1, 2, 3, 4], [], [0, 0, 0, 0]),
        ([1, 2, 3, 4], [1.05, 3.0], [1, 2, 1, 2]),  # as near as beats are scored
        ([1, 2, 3], [1.01, 1.03], [1, 2, 3]),  # two for one beat
    ],
)
def test_positions_count_up_from_downbeats(beats, downbeats, positions):
    found = number_beats(np.array(beats, float), np.array(downbeats, float))
    assert found.positions.tolist() == positions and found.times_seconds.tolist() == beats


def test_a_downbeat_without_a_beat_is_a_beat():
    found = number_beats(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0]))
    assert found.times_seconds.tolist() == [1.0, 2.0, 3.0, 4.0] and found.positions.tolist() == [1, 2, 1, 2]


# Bad files -----------------------------------------------------------------------------------------------


def changed(**fields):
    """A JAMS file whose beat annotation has other fields."""
    content = json.loads(jams())
    content["annotations"][0].update(fields)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: not JSON"),
        (jams()[:-40], "line 1: not JSON"),
        ("[]", "line 1: a JAMS object with a list of annotations was expected"),
        ('{"annotations": {}}', "line 1: a JAMS object with a list of annotations was expected"),
        ('{"annotations": []}', "line 1: one beat annotation was expected, got 0"),
        (changed(namespace="chord"), "line 1: one beat annotation was expected, got 0"),
        (changed(sandbox=None), "line 1: one beat annotation was expected, got 0"),
        (changed(sandbox={"annotation_type": "downbeat"}), "line 1: one beat annotation was expected, got 0"),
        (changed(data="0.5"), "line 1: data of the beat annotation is neither"),
        (changed(data=[0.5]), "line 1: data of the beat annotation is neither"),
        (changed(data={"value": [1]}), "line 1: data of the beat annotation is neither"),
        (changed(data={"time": 0.5}), "line 1: data of the beat annotation is neither"),
        (changed(data={"time": list(range(20_001))}), "or has more than 20000 rows"),
        (
            changed(data={"time": [0.5, "1"]}),
            "row 2 of the beat annotation: a time from 0 to 86400 s was exp",
        ),
        (changed(data={"time": [0.5, None]}), "row 2 of the beat annotation: a time from 0 to 86400 s was"),
        (changed(data={"time": [True]}), "row 1 of the beat annotation: a time from 0 to 86400 s was exp"),
        (changed(data={"time": [-0.5]}), "row 1 of the beat annotation: a time from 0 to 86400 s was exp"),
        (changed(data={"time": [1e9]}), "row 1 of the beat annotation: a time from 0 to 86400 s was exp"),
        (changed(data={"time": [1.0, 0.5]}), "row 2 of the beat annotation: beat times must increase"),
        (jams().replace("1.75", "NaN"), "line 1: NaN is not a number that JSON has"),
        (jams().replace("1.75", "1e999"), "line 1: 1e999 is not a number that JSON has"),
        (jams().replace("1.75", '"\udcff"').encode("utf-8", "surrogateescape"), "line 1: not UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_jams_file_is_refused_with_its_name(content, message):
    content = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(AnnotationError) as caught:
        parse_jams(content, "a.jams")
    assert str(caught.value).startswith("a.jams") and message in str(caught.value)


def test_a_jams_file_without_a_beat_is_no_annotation():
    assert parse_jams(jams(beats=(), downbeats=()).encode(), "a.jams") is None
    assert parse_jams(changed(data={}).encode(), "a.jams") is None


@pytest.mark.filterwarnings(BAD_FILE)
def test_a_bad_file_among_good_ones_is_named_by_verify(root):
    path = root / FOLDER / "jams" / "pop.00001.wav.jams"
    path.write_text("{")
    data = load(root)
    assert any(line.startswith(f"pop.00001: {path}, line 1: not JSON") for line in data.verify())
    with pytest.raises(AnnotationError, match=r"pop\.00001\.wav\.jams, line 1: not JSON"):
        by_id(data)["pop.00001"].beats  # noqa: B018
    path.write_bytes(b" " * (1 << 21))
    with pytest.raises(AnnotationError, match="longer than the 1048576 bytes"):
        by_id(load(root))["pop.00001"].beats  # noqa: B018


# Official files ------------------------------------------------------------------------------------------


def test_official_splits(real_metadata, tmp_path):
    one = tmp_path / "one.wav"
    soundfile.write(one, np.zeros(100), SAMPLE_RATE_HZ, subtype="PCM_16")
    for genre in GENRES:
        (tmp_path / "gtzan" / "genres" / genre).mkdir(parents=True)
        for i in range(100):
            (tmp_path / "gtzan" / "genres" / genre / f"{genre}.{i:05d}.wav").hardlink_to(one)
    options = {"metadata_root": real_metadata, "annotations": "gtzan_tempo_beat"}
    data = load(tmp_path / "gtzan", **options)
    assert data.counts == {"train": 443, "valid": 197, "test": 290} and data.verify() == []
    whole = load(tmp_path / "gtzan", split="all", **options)
    assert whole.counts == {"train": 0, "valid": 0, "test": 1000}
    assert [t.track_id for t in whole.tracks if t.beats is None] == ["reggae.00086"]
