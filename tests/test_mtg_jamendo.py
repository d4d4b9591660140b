"""MTG-Jamendo on a generated copy of its layout (the official syntax, our own tones), and on official split lists."""

import hashlib
import shutil
import urllib.error

import numpy as np
import pytest
import soundfile

from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.metadata import MetadataError, MetadataUnavailableError
from audiation.datasets.mtg_jamendo import MtgJamendo
from audiation.datasets.mtg_jamendo_lists import SPLIT_LISTS, TAGS, official_split, official_tracks
from audiation.splits import load_dataset
from audiation.targets import TagsTarget

SAMPLE_RATE_HZ = 44_100
HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\r\n"
ONE_MISSING = "ignore:mtg_genre. 1 of 5 listed recordings left out:UserWarning"
ABSENT = "track_0000999"

# (number, artist, tags) of each list; the recording 999 is not there.
ROWS = {
    ("genre", "train"): [
        (3524, 14, "genre---rock genre---pop genre---60s"),
        (107, 15, "genre---ambient"),
        (999, 16, "genre---pop"),
    ],
    ("genre", "validation"): [(210, 17, "genre---rock")],
    ("genre", "test"): [(1400, 18, "genre---pop genre---world")],  # world is in the test only
    ("instrument", "train"): [(3524, 14, "instrument---guitar instrument---voice")],
    ("instrument", "validation"): [(210, 17, "instrument---piano")],
    ("instrument", "test"): [(1400, 18, "instrument---violin")],
    ("moodtheme", "train"): [(3524, 14, "mood/theme---dark"), (107, 15, "mood/theme---calm")],
    ("moodtheme", "validation"): [(210, 17, "mood/theme---happy mood/theme---film")],
    ("moodtheme", "test"): [(1400, 18, "mood/theme---dark")],
    ("top50tags", "train"): [
        (3524, 14, "genre---rock genre---pop instrument---guitar"),
        (107, 15, "genre---ambient mood/theme---relaxing"),
    ],
    ("top50tags", "validation"): [(210, 17, "genre---rock mood/theme---happy")],
    ("top50tags", "test"): [(1400, 18, "instrument---violin")],
}
SECONDS = {3524: 2.0, 107: 1.5, 210: 0.98, 1400: 1.02}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)
    monkeypatch.delenv("AUDIATION_DATA_ROOT", raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def row(number, artist, tags):
    tags = "\t".join(tags.split())
    path = f"{number % 100:02d}/{number}.mp3"
    return f"track_{number:07d}\tartist_{artist:06d}\talbum_000031\t{path}\t2.0\t{tags}\r\n"


def write_lists(clone, split="0", rows=ROWS):
    folder = clone / "data" / "splits" / f"split-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    for (subset, part), listed in rows.items():
        content = HEADER + "".join(row(*r) for r in listed)
        (folder / f"autotagging_{subset}-{part}.tsv").write_text(content, newline="")
    return folder


def write_audio(folder, ending=".mp3"):
    for k, (number, seconds) in enumerate(SECONDS.items()):
        path = folder / f"{number % 100:02d}" / f"{number}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time)
        channels = tone if ending == ".low.mp3" else np.stack([tone, tone], 1)
        soundfile.write(path, channels, SAMPLE_RATE_HZ, format="MP3")


@pytest.fixture
def root(tmp_path):
    """Clone and audio side by side, as the fixtures of the specification have them."""
    write_lists(tmp_path / "data" / "mtg-jamendo-dataset")
    write_audio(tmp_path / "data" / "audio")
    return tmp_path / "data"


def load(root, name="mtg_genre", **options):
    return DATASETS[name](root, **options)


@pytest.mark.filterwarnings(ONE_MISSING)
def test_genres(root):
    data = load(root)
    assert data.counts == {"train": 2, "valid": 1, "test": 1}
    assert [(s.track_id, s.split) for s in data.skipped] == [(ABSENT, "train")]
    assert {t.track_id: {tag for tag, score in t.tags.scores.items() if score} for t in data.tracks} == {
        "track_0003524": {"rock", "pop", "60s"},
        "track_0000107": {"ambient"},
        "track_0000210": {"rock"},
        "track_0001400": {"pop", "world"},
    }
    first = data.tracks[0]
    assert first.group == "artist_000014" and first.audio_path == root / "audio" / "24" / "3524.mp3"
    assert tuple(first.tags.scores) == TAGS["mtg_genre"] and len(first.tags.scores) == 87
    label = TagsTarget(TAGS["mtg_genre"]).encode(first.tags)
    assert label.shape == (87,) and label.sum() == 3
    assert data.split("train")[1].load(SAMPLE_RATE_HZ).shape[0] >= 1.5 * SAMPLE_RATE_HZ
    data.check_groups()


@pytest.mark.parametrize(
    ("name", "train", "num_tags", "tags_of_first"),
    [
        ("mtg_instrument", 1, 40, {"guitar", "voice"}),
        ("mtg_moodtheme", 2, 56, {"dark"}),
        ("mtg_top50", 2, 50, {"genre---rock", "genre---pop", "instrument---guitar"}),
    ],
)
def test_the_other_subsets(root, name, train, num_tags, tags_of_first):
    data = load(root, name)
    assert data.counts == {"train": train, "valid": 1, "test": 1} and data.skipped == ()
    scores = data.tracks[0].tags.scores
    assert len(scores) == num_tags and {t for t, score in scores.items() if score} == tags_of_first


def test_the_lists_of_tags():
    assert {name: len(tags) for name, tags in TAGS.items()} == {
        "mtg_top50": 50,
        "mtg_genre": 87,
        "mtg_instrument": 40,
        "mtg_moodtheme": 56,
    }
    assert all(list(tags) == sorted(set(tags)) for tags in TAGS.values())
    assert set(TAGS) == {name for name in DATASETS if issubclass(DATASETS[name], MtgJamendo)}


@pytest.mark.filterwarnings(ONE_MISSING)
def test_both_sets_of_audio_have_the_same_labels(root):
    write_audio(root / "audio-low", ".low.mp3")
    both, low = load(root), load(root, audio="audio-low")
    assert both.audio.kind == "audio" and low.audio.kind == "audio-low"
    assert low.tracks[0].audio_path == root / "audio-low" / "24" / "3524.low.mp3"
    assert [(t.track_id, t.split, t.tags) for t in both.tracks] == [
        (t.track_id, t.split, t.tags) for t in low.tracks
    ]
    shutil.rmtree(root / "audio")
    assert load(root).audio.kind == "audio-low"
    with pytest.raises(FileNotFoundError, match=r"mtg_genre not found at .* \(looked for audio/NN/ID\.mp3\)"):
        load(root, audio="audio")
    with pytest.raises(ValueError, match=r"audio is one of auto, audio, audio-low, got 'low'"):
        load(root, audio="low")


@pytest.mark.filterwarnings(ONE_MISSING)
@pytest.mark.parametrize("place", ["audio", "raw_30s/audio", "autotagging_moodtheme/audio", "."])
def test_where_audio_may_lie(root, tmp_path, place):
    write_lists(tmp_path / "own")
    shutil.copytree(root / "audio", tmp_path / "own" / place, dirs_exist_ok=True)
    assert load(tmp_path / "own").split_hash == load(root).split_hash


@pytest.mark.filterwarnings(ONE_MISSING)
def test_the_clone_is_found_below_the_data_root_with_audio_beside_it(root):
    data = load_dataset("mtg_genre", root)
    assert data.audio.folder == root / "audio" and len(data.tracks) == 4
    write_audio(root / "mtg-jamendo-dataset" / "audio-low", ".low.mp3")
    inside = load_dataset("mtg_genre:audio=audio-low", root)
    assert inside.audio.folder == root / "mtg-jamendo-dataset" / "audio-low"


def test_a_missing_recording_is_warned_of_and_verified(root):
    with pytest.warns(UserWarning, match=r"mtg_genre: 1 of 5 .* track_0000999: .*99/999\.mp3 cannot be read"):
        data = load(root)
    lines = data.verify()
    assert lines[0].startswith("track_0000999: ") and len(lines) == 4
    assert lines[1].endswith("autotagging_genre-train.tsv is not as published")


def test_verify_compares_audio_with_the_published_checksums(root):
    folder = root / "mtg-jamendo-dataset" / "data" / "download"
    folder.mkdir()
    good = hashlib.sha256((root / "audio" / "24" / "3524.mp3").read_bytes()).hexdigest()
    path = folder / "raw_30s_audio_sha256_tracks.txt"
    path.write_text(f"{good} 24/3524.mp3\n{'0' * 64} 07/107.mp3\n{'1' * 64} 99/99.mp3\n")
    lines = load(root, "mtg_moodtheme").verify()
    assert [line for line in lines if "published recording" in line] == [
        f"track_0000107: {root / 'audio' / '07' / '107.mp3'} is not the published recording"
    ]
    path.write_text(f"{good} 24/3524.mp3\n{good[1:]} 07/107.mp3\n")
    with pytest.raises(AnnotationError, match=r"audio_sha256_tracks\.txt, line 2: a SHA-256 and a path"):
        load(root, "mtg_moodtheme").verify()


# Splits ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(ONE_MISSING)
def test_other_splits_come_from_a_clone(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"the lists of split 1 are not here \(looked in .*split-1\)\. Clone"
    ):
        load(root, split="1")
    swapped = {(s, {"train": "test", "test": "train"}.get(p, p)): rows for (s, p), rows in ROWS.items()}
    write_lists(tmp_path / "official" / "mtg-jamendo-dataset", "1", swapped)
    assert load(root, split="1", metadata_root=tmp_path / "official").counts["test"] == 2
    write_lists(root / "mtg-jamendo-dataset", "1", swapped)
    data = load(root, split="1")
    assert data.counts == {"train": 1, "valid": 1, "test": 2}
    assert [line for line in data.verify() if "as published" in line] == []  # nothing is known of these
    with pytest.raises(ValueError, match="split is one of 0, 1, 2, 3, 4, got '5'"):
        load(root, split="5")


def test_all_three_lists_or_none(root):
    (root / "mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-test.tsv").unlink()
    with pytest.raises(ValueError, match=r"split-0 lacks autotagging_genre-test\.tsv; all three"):
        load(root)


def test_lists_may_have_other_line_ends(root):
    before = load(root, "mtg_top50").split_hash
    path = root / "mtg-jamendo-dataset/data/splits/split-0/autotagging_top50tags-test.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n"))
    assert load(root, "mtg_top50").split_hash == before


def test_without_lists_and_network_the_error_says_what_to_put_where(root, tmp_path):
    shutil.rmtree(root / "mtg-jamendo-dataset")
    with pytest.raises(
        MetadataUnavailableError,
        match=r"DIR/mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-train\.tsv",
    ):
        load(root)
    write_lists(tmp_path / "official" / "mtg-jamendo-dataset")
    with pytest.raises(MetadataError, match=r"autotagging_genre-train\.tsv is not the published file"):
        load(root, metadata_root=tmp_path / "official")


def test_the_lists_are_fetched_from_the_pinned_commit():
    lists = [item for subset in SPLIT_LISTS.values() for item in subset.values()]
    commit = (
        "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/1b4fa8c32e076c73b5175c1703ae805b4109309d/"
    )
    assert len({item.path for item in lists}) == len({item.sha256 for item in lists}) == 12
    assert all(item.url == commit + item.path.removeprefix("mtg-jamendo-dataset/") for item in lists)


def test_a_place_without_audio_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"audio-low/NN/ID\.low\.mp3\).* docs/datasets/mtg_jamendo\.md"
    ):
        load(tmp_path / "nowhere", "mtg_top50")
    with pytest.raises(KeyError, match="no subset of MTG-Jamendo; these are: mtg_top50"):
        official_tracks("mtg_mood")


# Lists that cannot be used -----------------------------------------------------------------------------------

GOOD = row(107, 15, "genre---ambient")


def changed(old, new):
    assert old in GOOD
    return (HEADER + row(3524, 14, "genre---rock") + GOOD.replace(old, new)).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"autotagging_genre-train\.tsv, line 1: the header TRACK_ID .* got an empty file"),
        (HEADER.replace("PATH\t", "").encode(), r"line 1: the header"),
        (HEADER.replace("\t", ",").encode(), r"line 1: the header"),
        (changed("\tgenre---ambient", ""), r"line 3: at least 6 cells were expected, got 5"),
        (changed("genre---ambient", ""), r"line 3: '' is none of the 87 tags"),
        (changed("genre---ambient", "genre---ambient\t"), r"line 3: '' is none of the 87 tags"),
        (changed("genre---ambient", "genre---polka"), r"line 3: 'genre---polka' is none of the 87 tags"),
        (changed("genre---ambient", "instrument---piano"), r"line 3: 'instrument---piano' is none of"),
        (changed("genre---ambient", "genre---ambient\tgenre---ambient"), r"line 3: tag .* is there twice"),
        (
            changed("07/107.mp3", "../107.mp3"),
            r"line 3: the path of track_0000107 is 07/107\.mp3, got '\.\./107",
        ),
        (changed("07/107.mp3", "/etc/passwd"), r"line 3: the path of track_0000107"),
        (changed("07/107.mp3", "08/107.mp3"), r"line 3: the path of track_0000107"),
        (changed("track_0000107", "track_107"), r"line 3: 'track_107' is not a name of this data set"),
        (changed("track_0000107", "track_../../1"), r"line 3: 'track_\.\./\.\./1' is not a name"),
        (changed("artist_000015", "artist"), r"line 3: 'artist' is not a name"),
        (changed("album_000031", "x"), r"line 3: 'x' is not a name"),
        (changed("2.0", "nan"), r"line 3: a number from 0 to 86400 was expected, got 'nan'"),
        (changed("2.0", "-1"), r"line 3: a number from 0 to 86400"),
        (changed("2.0", "1e9"), r"line 3: a number from 0 to 86400"),
        ((HEADER + GOOD + GOOD).encode(), r"line 3: track_0000107 is listed already in .*line 2$"),
        (
            (HEADER + row(210, 17, "genre---rock")).encode(),
            r"validation\.tsv, line 2: track_0000210 is listed alr",
        ),
        ((HEADER + GOOD).encode("utf-16"), r"line 1: not UTF-8 text"),
        (changed("album", "al\0bum"), r"line 3: holds a NUL character"),
        (b"x\n" * 100_002, r"line 100001: more than 100000 lines"),
    ],
    ids=range(24),
)
def test_a_bad_list_is_refused_with_file_and_line(root, content, message):
    path = root / "mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-train.tsv"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        load(root)


def test_a_list_that_is_made_to_be_huge_is_refused(root):
    path = root / "mtg-jamendo-dataset/data/splits/split-0/autotagging_genre-test.tsv"
    with path.open("wb") as file:
        file.truncate((1 << 25) + 1)
    with pytest.raises(AnnotationError, match=r"autotagging_genre-test\.tsv: longer than the 33554432 bytes"):
        load(root)


# Official lists ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mtg_top50", [32_136, 10_888, 11_356]),
        ("mtg_genre", [32_572, 11_043, 11_479]),
        ("mtg_instrument", [14_395, 5_466, 5_115]),
        ("mtg_moodtheme", [9_949, 3_802, 4_231]),
    ],
)
def test_official_counts_tags_and_artists(real_metadata, name, counts):
    tracks = official_tracks(name, real_metadata)
    assert [sum(t.split == s for t in tracks) for s in ("train", "valid", "test")] == counts
    assert sorted({tag for t in tracks for tag in t.tags}) == list(TAGS[name])
    artists = {s: {t.artist_id for t in tracks if t.split == s} for s in ("train", "valid", "test")}
    assert sum(map(len, artists.values())) == len(set.union(*artists.values()))


def test_official_lists_by_split(real_metadata):
    split = official_split("mtg_moodtheme", real_metadata)
    assert list(split) == ["train", "valid", "test"] and split["train"][0] == "track_0000948"
    lists = [item for subset in SPLIT_LISTS.values() for item in subset.values()]
    for item in lists:  # sizes as they are sent, whatever git made of the line ends here
        content = (real_metadata / item.path).read_bytes().replace(b"\r\n", b"\n")
        assert len(content.replace(b"\n", b"\r\n")) == item.num_bytes


@pytest.mark.filterwarnings("ignore:mtg_instrument:UserWarning")
def test_official_lists_with_a_few_recordings(real_metadata, tmp_path):
    for track in official_tracks("mtg_instrument", real_metadata)[::500]:
        path = tmp_path / "audio" / track.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    data = load(tmp_path, "mtg_instrument", metadata_root=real_metadata)
    assert len(data.tracks) == 50 and len(data.skipped) == 24_976 - 50
    assert len(data.verify()) == len(data.skipped)  # nothing differs
