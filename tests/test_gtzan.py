"""GTZAN on a generated copy of its layout (the official annotation syntax, our own tones), and on official lists."""

import shutil
import urllib.error

import numpy as np
import pytest
import soundfile

from audiation.annotations import Key, Label
from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.gtzan import SPLIT_LISTS
from audiation.datasets.gtzan_annotations import (
    BEATS_FOLDER,
    GENRES,
    KEY_FOLDER,
    TEMPO_FOLDER,
    parse_beats,
    parse_bpm,
    parse_lerch_key,
)
from audiation.datasets.metadata import MetadataError, MetadataUnavailableError, read_metadata_folder
from audiation.evaluation import Run, evaluate

SAMPLE_RATE_HZ = 22050
BAD_FILE = "ignore:gtzan. 1 of 31 listed recordings left out:UserWarning"
LERCH_FILES = {
    "blues.00000": b"0",
    "blues.00001": b"3\n",
    "classical.00000": b"11",
    "classical.00001": b"12\n",
    "country.00000": b"15",
    "country.00001": b"23\n",
    "disco.00000": b"-1",
    "disco.00001": b"-1\r\n",
}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def make_audio(folder, seconds=0.5):
    """Three tracks per genre, class k a sine at 110 x 2^(k/12) Hz; and jazz.00054, which is not audio."""
    for k, genre in enumerate(GENRES):
        (folder / genre).mkdir(parents=True)
        for i in range(3):
            duration = seconds + {("pop", 0): -0.01, ("rock", 1): 0.01}.get((genre, i), 0.0)
            time = np.arange(round(duration * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
            tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time + i)
            soundfile.write(folder / genre / f"{genre}.{i:05d}.wav", tone, SAMPLE_RATE_HZ, subtype="PCM_16")
    (folder / "jazz" / "jazz.00054.wav").write_bytes(np.random.default_rng(0).bytes(100))


def make_lists(folder):
    entries = [[f"{g}/{g}.{i:05d}.wav" for g in GENRES] for i in range(3)]
    entries[0].append("jazz/jazz.00054.wav")
    for split, names in zip(("train", "valid", "test"), entries, strict=True):
        newline, end = ("\r\n", "\r\n\r\n") if split == "test" else ("\n", "\n")
        (folder / f"{split}_filtered.txt").write_bytes((newline.join(names) + end).encode())


def make_keys(folder):
    for track_id, content in LERCH_FILES.items():
        path = folder / track_id.split(".")[0] / f"{track_id}.lerch.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "disco" / "disco.00055.pk").write_bytes(b"\x80\x04.")


@pytest.fixture
def original(tmp_path):
    root = tmp_path / "gtzan"
    make_audio(root / "genres")
    make_lists(root)
    return root


def load(root, **options):
    return DATASETS["gtzan"](root, **options)


# Audio and splits ----------------------------------------------------------------------------------------


def test_a_corrupt_file_is_skipped_with_a_warning_and_its_reason(original):
    with pytest.warns(UserWarning, match=r"1 of 31 listed recordings left out, the first: jazz\.00054"):
        data = load(original)
    assert data.counts == {"train": 10, "valid": 10, "test": 10}
    (skipped,) = data.skipped
    assert (skipped.track_id, skipped.split) == ("jazz.00054", "train")
    assert "jazz.00054.wav" in skipped.reason
    assert not data.official_split
    assert data.verify() == [
        f"jazz.00054: {skipped.reason}",
        "the split lists in the data folder are not the published ones",
    ]
    data.check_groups()


@pytest.mark.filterwarnings(BAD_FILE)
def test_tracks_have_their_genre_and_their_audio(original):
    data = load(original)
    assert [t.genre for t in data.split("test")] == [Label(g) for g in GENRES]
    track = next(t for t in data.tracks if t.track_id == "rock.00001")
    assert track.split == "valid" and track.audio_path == original / "genres" / "rock" / "rock.00001.wav"
    assert track.load(SAMPLE_RATE_HZ).shape == (round(0.51 * SAMPLE_RATE_HZ),)


@pytest.mark.filterwarnings(BAD_FILE)
@pytest.mark.parametrize(
    ("audio", "lists", "root"),
    [
        ("genres", "", ""),
        ("genres", "genres", ""),
        ("genres", "", "genres"),
        ("genres", "genres", "genres"),
        ("Data/genres_original", "", ""),
        ("Data/genres_original", "Data", ""),
        ("Data/genres_original", "Data/genres_original", ""),
        ("Data/genres_original", "Data", "Data"),
        ("Data/genres_original", "Data", "Data/genres_original"),
    ],
)
def test_both_layouts_from_the_parent_or_the_folder_itself(tmp_path, original, audio, lists, root):
    top = tmp_path / "copy"
    shutil.copytree(original / "genres", top / audio)
    make_lists(top / lists)
    data = load(top / root)
    assert data.counts == {"train": 10, "valid": 10, "test": 10}
    assert data.split_hash == load(original).split_hash


def test_jazz_00054_kept_where_it_can_be_read_and_dropped_on_request(original):
    folder = original / "genres" / "jazz"
    shutil.copy(folder / "jazz.00000.wav", folder / "jazz.00054.wav")
    assert load(original).counts == {"train": 11, "valid": 10, "test": 10}
    dropped = load(original, jazz_00054="drop")
    assert dropped.counts == {"train": 10, "valid": 10, "test": 10} and dropped.skipped == ()
    with pytest.raises(ValueError, match="'keep' or 'drop'"):
        load(original, jazz_00054="maybe")


@pytest.mark.filterwarnings("ignore:gtzan. 2 of 31:UserWarning")
def test_a_missing_file_is_skipped_with_its_reason(original):
    (original / "genres" / "pop" / "pop.00002.wav").unlink()
    data = load(original)
    assert data.counts["test"] == 9
    assert [s.track_id for s in data.skipped if s.split == "test"] == ["pop.00002"]


def test_a_folder_without_gtzan_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "nowhere")
    assert str(caught.value).startswith(
        f"gtzan not found at {tmp_path / 'nowhere'} (looked for genres/blues/"
    )
    assert "docs/datasets.md" in str(caught.value)


def test_a_folder_with_none_of_the_listed_recordings_is_not_gtzan(original):
    shutil.rmtree(original / "genres")
    (original / "genres" / "blues").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="none of the listed gtzan tracks can be read"):
        load(original)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../etc/passwd", r"train_filtered\.txt, line 12: '../../etc/passwd' is not an entry"),
        ("blues/../rock/rock.00000.wav", "is not an entry"),
        ("blues/rock.00000.wav", "is not an entry"),
        ("polka/polka.00000.wav", "is not an entry"),
        ("blues/blues.0.wav", "is not an entry"),
        ("blues/blues.00000.wav", r"line 12: blues\.00000 is listed already in .*line 1$"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(original, line, message):
    with open(original / "train_filtered.txt", "a") as listed:
        listed.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        load(original)


def test_lists_may_come_from_windows(original):
    before = load(original).split_hash
    path = original / "test_filtered.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(original).split_hash == before


def test_all_three_lists_or_none(original):
    (original / "valid_filtered.txt").unlink()
    with pytest.raises(ValueError, match=r"has train_filtered\.txt but not valid_filtered\.txt"):
        load(original)


def test_without_lists_and_network_the_error_says_what_to_put_where(original):
    for name in ("train", "valid", "test"):
        (original / f"{name}_filtered.txt").unlink()
    with pytest.raises(MetadataUnavailableError, match=r"gtzan-fault-filtered/gtzan/train_filtered\.txt"):
        load(original)


def test_lists_below_the_metadata_root_must_be_the_published_ones(original, tmp_path):
    folder = tmp_path / "official" / "gtzan-fault-filtered" / "gtzan"
    folder.mkdir(parents=True)
    for name in ("train", "valid", "test"):
        shutil.move(original / f"{name}_filtered.txt", folder)
    with pytest.raises(MetadataError, match=r"train_filtered\.txt is not the published file"):
        load(original, metadata_root=tmp_path / "official")


# Keys ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(BAD_FILE)
@pytest.mark.parametrize("folder", ["gtzan_key/genres", "gtzan_key/gtzan_key/genres"])
def test_keys_are_counted_from_a(original, folder):
    make_keys(original / folder)
    keys = {t.track_id: t.key for t in load(original).tracks}
    assert {k: v.index for k, v in keys.items() if v} == {
        "blues.00000": 9,
        "blues.00001": 0,
        "classical.00000": 8,
        "classical.00001": 21,
        "country.00000": 12,
        "country.00001": 20,
    }
    assert keys["disco.00000"] is keys["disco.00001"] is keys["rock.00000"] is None


def test_every_key_number_is_another_key():
    names = ["A", "Bb", "B", "C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab"]
    for k in range(24):
        expected = Key.parse(f"{names[k % 12]} {'major' if k < 12 else 'minor'}")
        assert parse_lerch_key(str(k).encode(), "here") == expected


@pytest.mark.parametrize("content", [b"", b"24", b"-2", b"A major", b"1 2", b"\xff", "٣".encode()])
def test_a_key_file_with_anything_else_is_refused(content):
    with pytest.raises(AnnotationError, match=r"^here, line 1: a key is one integer from -1 to 23"):
        parse_lerch_key(content, "here")


@pytest.mark.filterwarnings(BAD_FILE)
def test_genre_needs_no_key_annotations_and_key_says_where_to_put_them(original):
    data = load(original)
    assert data.tracks[0].genre == Label("blues")
    with pytest.raises(MetadataUnavailableError, match="becomes DIR/gtzan_key/gtzan_key/genres"):
        data.tracks[0].key  # noqa: B018


@pytest.mark.filterwarnings(BAD_FILE)
def test_key_annotations_below_the_metadata_root_must_be_the_published_ones(original, tmp_path):
    make_keys(tmp_path / "official" / KEY_FOLDER.path)
    data = load(original, metadata_root=tmp_path / "official")
    with pytest.raises(MetadataError, match="8 of 1000 files"):
        data.tracks[0].key  # noqa: B018


# Tempo and beats ------------------------------------------------------------------------------------------


def make_tempo_beat(folder):
    """As the repository has them; no files for classical."""
    for genre in GENRES:
        for i in range(3):
            if genre != "classical":
                (folder / "tempo").mkdir(parents=True, exist_ok=True)
                (folder / "beats").mkdir(exist_ok=True)
                (folder / "tempo" / f"gtzan_{genre}_{i:05d}.bpm").write_text("1.263900000000000006e+02\n")
                rows = "0.25\t4\n0.75\t1\n1.25\t2\n30.1\t3\n"
                (folder / "beats" / f"gtzan_{genre}_{i:05d}.beats").write_text(rows)
    (folder / "tempo" / "gtzan_blues_00000.bpm").write_text("126.39")
    (folder / "beats" / "gtzan_jazz_00002.beats").write_bytes(b"0.25\r\n0.75\r\n")


@pytest.mark.filterwarnings(BAD_FILE)
@pytest.mark.parametrize("name", ["gtzan_tempo_beat", "gtzan_tempo_beat-main"])
def test_tempo_and_beats_of_a_clone_in_the_data_folder(original, name):
    make_tempo_beat(original / name)
    tracks = {t.track_id: t for t in load(original).tracks}
    assert tracks["blues.00000"].tempo.bpm == tracks["rock.00002"].tempo.bpm == 126.39
    assert tracks["blues.00000"].beats.times_seconds.tolist() == [0.25, 0.75, 1.25, 30.1]
    assert tracks["blues.00000"].beats.positions.tolist() == [4, 1, 2, 3]
    assert tracks["jazz.00002"].beats.positions.tolist() == [0, 0]
    assert tracks["classical.00001"].tempo is tracks["classical.00001"].beats is None
    assert load(original).verify()[-2:] == [
        f"{original / name / 'tempo'} is not as published (27 of 999 files)",
        f"{original / name / 'beats'} is not as published (27 of 999 files)",
    ]


@pytest.mark.filterwarnings(BAD_FILE)
def test_tempo_and_beats_are_not_fetched_from_a_branch(original):
    track = load(original).tracks[0]
    with pytest.raises(MetadataUnavailableError, match=r"commit fd9cafd.*DIR/gtzan_tempo_beat/tempo"):
        track.tempo  # noqa: B018
    with pytest.raises(MetadataUnavailableError, match=r"commit fd9cafd.*DIR/gtzan_tempo_beat/beats"):
        track.beats  # noqa: B018


@pytest.mark.filterwarnings(BAD_FILE)
def test_tempo_below_the_metadata_root_must_be_the_published_one(original, tmp_path):
    make_tempo_beat(tmp_path / "official" / "gtzan_tempo_beat")
    with pytest.raises(MetadataError, match="27 of 999 files"):
        load(original, metadata_root=tmp_path / "official").tracks[0].tempo  # noqa: B018


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.bpm, line 1: one number of beats per minute was expected, got 0 lines"),
        (b"120\n\n121\n", "a.bpm, line 3: one number of beats per minute was expected, got 2 lines"),
        (b"nan", "a.bpm, line 1: a number from 10 to 1000 was expected, got 'nan'"),
        (b"0.0", "a.bpm, line 1: a number from 10 to 1000"),
        (b"1e300", "a.bpm, line 1: a number from 10 to 1000"),
        (b"\xff120", "a.bpm, line 1: not UTF-8"),
        (b"1\x0020", "a.bpm, line 1: holds a NUL"),
    ],
)
def test_a_bad_tempo_file_is_refused_with_file_and_line(content, message):
    with pytest.raises(AnnotationError) as caught:
        parse_bpm(content, "a.bpm")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.beats, line 1: beats were expected"),
        (b"0.5\t1\n1.0\n", "a.beats, line 2: every row has a beat number or none has"),
        (b"0.5\n1.0\t1\n", "a.beats, line 2: every row has a beat number or none has"),
        (b"0.5\t1\t1\n", "a.beats, line 1: every row has a beat number or none has"),
        (b"0.5\t1\n0.5\t2\n", "a.beats, line 2: beat times must increase"),
        (b"-0.5\t1\n", "a.beats, line 1: a number from 0 to 86400"),
        (b"1e9\t1\n", "a.beats, line 1: a number from 0 to 86400"),
        (b"nan\t1\n", "a.beats, line 1: a number"),
        (b"0.5\t0\n", "a.beats, line 1: a number from 1 to 64"),
        (b"0.5\t1.5\n", "a.beats, line 1: a whole number"),
        (b"0.5\t1\n\xe4\t2\n", "a.beats, line 2: not UTF-8"),
        (b"".join(b"%d\n" % i for i in range(20_001)), "a.beats, line 20001: more than 20000 lines"),
    ],
)
def test_a_bad_beats_file_is_refused_with_file_and_line(content, message):
    with pytest.raises(AnnotationError) as caught:
        parse_beats(content, "a.beats")
    assert str(caught.value).startswith(message)


# Official files ------------------------------------------------------------------------------------------

OFFICIAL_COUNTS = {
    "blues": (46, 23, 31),
    "classical": (48, 20, 31),
    "country": (45, 23, 30),
    "disco": (42, 22, 29),
    "hiphop": (47, 18, 27),
    "jazz": (43, 17, 27),
    "metal": (44, 20, 27),
    "pop": (41, 13, 30),
    "reggae": (43, 17, 26),
    "rock": (44, 24, 32),
}


@pytest.fixture
def silent_gtzan(tmp_path):
    """1,000 names for one short file."""
    root = tmp_path / "gtzan"
    one = tmp_path / "one.wav"
    soundfile.write(one, np.zeros(100), SAMPLE_RATE_HZ, subtype="PCM_16")
    for genre in GENRES:
        (root / "genres" / genre).mkdir(parents=True)
        for i in range(100):
            (root / "genres" / genre / f"{genre}.{i:05d}.wav").hardlink_to(one)
    return root


def test_official_split(real_metadata, silent_gtzan):
    data = load(silent_gtzan, metadata_root=real_metadata)
    assert data.counts == {"train": 443, "valid": 197, "test": 290}
    counted = {
        g: tuple(sum(t.genre.name == g for t in data.split(s)) for s in ("train", "valid", "test"))
        for g in GENRES
    }
    assert counted == OFFICIAL_COUNTS
    assert data.official_split and data.skipped == () and data.verify() == []
    assert data.split_hash == "f9e38153362e2021989bdfd300cc5932c061d9d60deb0366a43efeba75ca0827"
    dropped = load(silent_gtzan, metadata_root=real_metadata, jazz_00054="drop")
    assert dropped.counts == {"train": 442, "valid": 197, "test": 290}


def test_official_keys(real_metadata, silent_gtzan):
    data = load(silent_gtzan, metadata_root=real_metadata)
    labelled = {s: sum(t.key is not None for t in data.split(s)) for s in ("train", "valid", "test")}
    assert labelled == {"train": 364, "valid": 165, "test": 240}
    files = read_metadata_folder(KEY_FOLDER, real_metadata)
    keys = {name: parse_lerch_key(content, name) for name, content in files.items()}
    assert len(keys) == 1000 and sum(k is not None for k in keys.values()) == 837
    unlabelled = {g: sum(k is None and n.startswith(g + "/") for n, k in keys.items()) for g in GENRES}
    assert unlabelled["classical"] == 100 and unlabelled["jazz"] == 21 and unlabelled["country"] == 1


def test_official_tempo_and_beats(real_metadata, silent_gtzan):
    tempos = {
        name: parse_bpm(content, name).bpm
        for name, content in read_metadata_folder(TEMPO_FOLDER, real_metadata).items()
    }
    beats = {
        name: parse_beats(content, name)
        for name, content in read_metadata_folder(BEATS_FOLDER, real_metadata).items()
    }
    assert len(tempos) == len(beats) == 999
    assert "gtzan_reggae_00086.bpm" not in tempos
    assert (round(min(tempos.values()), 2), round(max(tempos.values()), 2)) == (37.72, 321.64)
    assert sorted(name for name, b in beats.items() if not b.positions.any()) == [
        f"gtzan_jazz_{i:05d}.beats" for i in (3, 9, 10, 14, 18, 20)
    ]
    assert all((b.positions > 0).all() for b in beats.values() if b.positions.any())
    assert sum(len(b.times_seconds) for b in beats.values()) == 59_558
    data = load(silent_gtzan, metadata_root=real_metadata)
    for split, count in (("train", 443), ("valid", 197), ("test", 290)):
        tracks = data.split(split)
        assert sum(t.tempo is not None for t in tracks) == count
        assert sum(t.beats is not None for t in tracks) == count


def test_official_lists_copied_into_the_data_folder_are_recognised(real_metadata, silent_gtzan):
    for item in SPLIT_LISTS.values():
        shutil.copy(real_metadata / item.path, silent_gtzan)
    assert load(silent_gtzan).official_split


# From end to end -----------------------------------------------------------------------------------------


def make_keys_set(root):
    """Four triads in every key, two to train on; file names run through the genres as GTZAN's do."""
    entries = {"train": [], "valid": [], "test": []}
    for copy, split in enumerate(("train", "train", "valid", "test")):
        for index in range(24):
            number = copy * 24 + index
            genre = GENRES[number % 10]
            track_id = f"{genre}.{number // 10:05d}"
            key, time = Key.from_index(index), np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
            steps = (0, 4 if key.mode == "major" else 3, 7)
            tones = [np.sin(2 * np.pi * 220 * 2 ** ((key.tonic + s + 3) / 12) * time + copy) for s in steps]
            audio = root / "genres" / genre / f"{track_id}.wav"
            lerch = root / "gtzan_key" / "genres" / genre / f"{track_id}.lerch.txt"
            for path in (audio, lerch):
                path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(audio, 0.2 * np.array([3, 2, 1]) @ tones / 2, SAMPLE_RATE_HZ, subtype="PCM_16")
            lerch.write_text(str((key.tonic + 3) % 12 + (12 if key.mode == "minor" else 0)))
            entries[split].append(f"{genre}/{track_id}.wav\n")
    for split, lines in entries.items():
        (root / f"{split}_filtered.txt").write_text("".join(lines))


@pytest.mark.slow
def test_keys_of_triads_from_files_to_a_score(tmp_path):
    make_keys_set(tmp_path / "gtzan")
    result = evaluate(Run("chroma", "gtzan_key"), data_root=tmp_path, store_dir=tmp_path / "store")
    assert result.num_test_tracks == 24 and result.coverage == 1.0
    assert result.scores["key_weighted"] >= 0.95
    assert result.scores["key_weighted_symmetric"] >= result.scores["key_weighted"]


@pytest.mark.filterwarnings(BAD_FILE)
def test_genres_of_tones_from_files_to_a_score(original):
    result = evaluate(Run("chroma", "gtzan_genre"), data_root=original.parent, store_dir=original / "store")
    assert result.num_test_tracks == 10 and result.coverage == 1.0
    assert result.scores["accuracy"] >= 0.5  # chance is 0.1
    assert result.scores["accuracy_class_macro"] == pytest.approx(result.scores["accuracy"])
