"""MagnaTagATune on a generated copy of its layout (the official syntax, our own tones), and on official metadata."""

import gzip
import hashlib
import json
import urllib.error

import numpy as np
import pytest
import soundfile

from audiation.datasets import DATASETS, metadata
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.magnatagatune import (
    ANNOTATIONS,
    CORRUPT,
    FOLDERS,
    NOT_IN_MSD_LIST,
    TAGS,
    official_split,
    top_tags,
)
from audiation.datasets.metadata import MetadataError, MetadataUnavailableError
from audiation.splits import load_splits
from audiation.targets import TagsTarget
from audiation.tasks import TASKS

SAMPLE_RATE_HZ = 16_000
CORRUPT_CLIP = "ignore:mtt. 1 of 6 listed recordings left out:UserWarning"
COLUMNS = [*TAGS, "foo", "bar baz"]
CLIPS = {
    "11": ("0/a_b-album-01-title-0-29.mp3", ["guitar", "slow"]),
    "12": ("1/mr._x-a,b-01-t-0-29.mp3", ["no vocals", "female voice"]),
    "13": ("c/c-album-02-t-29-58.mp3", ["techno"]),
    "14": ("d/d-album-03-t-0-29.mp3", ["rock", "foo"]),
    "15": ("d/d-album-03-t-29-58.mp3", ["bar baz"]),
    "35644": ("6/norine-album-08-gently-117-146.mp3", ["guitar"]),
}

# The columns of the published table between clip_id and mp3_path, in their order.
PUBLISHED_COLUMNS = """
no voice,singer,duet,plucking,hard rock,world,bongos,harpsichord,female singing,clasical,sitar,chorus,female opera,
male vocal,vocals,clarinet,heavy,silence,beats,men,woodwind,funky,no strings,chimes,foreign,no piano,horns,classical,
female,no voices,soft rock,eerie,spacey,jazz,guitar,quiet,no beat,banjo,electric,solo,violins,folk,female voice,wind,
happy,ambient,new age,synth,funk,no singing,middle eastern,trumpet,percussion,drum,airy,voice,repetitive,birds,space,
strings,bass,harpsicord,medieval,male voice,girl,keyboard,acoustic,loud,classic,string,drums,electronic,not classical,
chanting,no violin,not rock,no guitar,organ,no vocal,talking,choral,weird,opera,soprano,fast,acoustic guitar,
electric guitar,male singer,man singing,classical guitar,country,violin,electro,reggae,tribal,dark,male opera,no vocals,
irish,electronica,horn,operatic,arabic,lol,low,instrumental,trance,chant,strange,drone,synthesizer,heavy metal,modern,
disco,bells,man,deep,fast beat,industrial,hard,harp,no flute,jungle,pop,lute,female vocal,oboe,mellow,orchestral,viola,
light,echo,piano,celtic,male vocals,orchestra,eastern,old,flutes,punk,spanish,sad,sax,slow,male,blues,vocal,indian,
no singer,scary,india,woman,woman singing,rock,dance,piano solo,guitars,no drums,jazzy,singing,cello,calm,female vocals,
voices,different,techno,clapping,house,monks,flute,not opera,not english,oriental,beat,upbeat,soft,noise,choir,
female singer,rap,metal,hip hop,quick,water,baroque,women,fiddle,english
"""


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(metadata.ENVIRONMENT, raising=False)

    def offline(url):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(metadata, "open_https", offline)


def table(clips=CLIPS, columns=COLUMNS, quoted=False, line_end="\n"):
    rows = [["clip_id", *columns, "mp3_path"]]
    rows += [[i, *("1" if c in tags else "0" for c in columns), path] for i, (path, tags) in clips.items()]
    mark = '"' if quoted else ""
    return "".join("\t".join(f"{mark}{cell}{mark}" for cell in row) + line_end for row in rows)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "MagnaTagATune"
    for k, (clip_id, (path, _)) in enumerate(CLIPS.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if clip_id == "35644":
            (root / path).write_bytes(b"")
            continue
        time = np.arange(round((1.0 + 0.02 * (k - 1)) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time)
        soundfile.write(root / path, tone, SAMPLE_RATE_HZ, format="MP3")
    (root / "annotations_final.csv").write_text(table())
    info = "clip_id\ttrack_number\ttitle\tartist\tmp3_path\n" + "".join(
        f"{i}\t1\tt\ta\t{path}\n" for i, (path, _) in CLIPS.items()
    )
    (root / "clip_info_final.csv").write_text(info + "16\t1\tt\ta\t\n")
    return root


def load(root, **options):
    return DATASETS["mtt"](root, **options)


@pytest.mark.filterwarnings(CORRUPT_CLIP)
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_all_clips(root, quoted, line_end):
    (root / "annotations_final.csv").write_text(table(quoted=quoted, line_end=line_end), newline="")
    data = load(root)
    assert data.counts == {"train": 2, "valid": 1, "test": 2}
    assert [(s.track_id, s.split) for s in data.skipped] == [("35644", "train")]
    target = TagsTarget(TAGS)
    labels = [target.encode(t.tags) for t in data.tracks]
    assert all(label.shape == (50,) for label in labels)
    assert [label.sum().item() for label in labels] == [2, 2, 1, 1, 0]
    assert [t.has_top50_tag for t in data.tracks] == [True, True, True, True, False]
    second = data.tracks[1]
    assert second.track_id == "12" and second.audio_path.name == "mr._x-a,b-01-t-0-29.mp3"
    assert {tag for tag, score in second.tags.scores.items() if score} == {"no vocals", "female voice"}
    assert tuple(second.tags.scores) == TAGS
    data.check_groups()


@pytest.mark.filterwarnings(CORRUPT_CLIP)
def test_the_task_without_untagged_clips(root):
    counts = {}
    for name in ("mtt", "mtt_clean"):
        splits, _ = load_splits(TASKS[name], root)
        counts[name] = [len(splits[s].tracks) for s in ("train", "valid", "test")]
        assert [len(splits[s].left_out) for s in ("train", "valid", "test")] == [1, 0, 0]
    assert counts == {"mtt": [2, 1, 2], "mtt_clean": [2, 1, 1]}


@pytest.mark.filterwarnings(CORRUPT_CLIP)
def test_audio_is_read_and_need_not_have_the_official_length(root):
    tracks = load(root).tracks
    assert [t.load(SAMPLE_RATE_HZ).shape[0] >= 15_600 for t in tracks] == [True] * 5
    assert tracks[0].load(SAMPLE_RATE_HZ, 0.25, 0.5).shape == (8000,)


@pytest.mark.filterwarnings(CORRUPT_CLIP)
def test_clips_of_one_recording_are_a_group(root):
    groups = {t.track_id: t.group for t in load(root).tracks}
    assert groups["14"] == groups["15"] == "d/d-album-03-t"
    assert groups["12"] == "1/mr._x-a,b-01-t" and len(set(groups.values())) == 4


def test_the_corrupt_clips_are_left_out_with_a_warning(root):
    (root / CLIPS["35644"][0]).write_bytes(b"something")  # whatever lies there
    with pytest.warns(UserWarning, match=r"mtt: 1 of 6 .* 35644: .*the official file is empty"):
        data = load(root)
    assert data.counts["train"] == 2 and [s.track_id for s in data.skipped] == ["35644"]
    assert CORRUPT == ("35644", "55753", "57881")


@pytest.mark.filterwarnings(CORRUPT_CLIP)
@pytest.mark.filterwarnings("ignore:mtt. 2 of 5 listed recordings left out:UserWarning")
def test_missing_and_empty_clips_are_skipped_with_their_reason(root):
    (root / CLIPS["13"][0]).unlink()
    (root / CLIPS["14"][0]).write_bytes(b"")
    data = load(root)
    assert data.counts == {"train": 2, "valid": 0, "test": 1}
    assert [(s.track_id, s.split) for s in data.skipped] == [
        ("13", "valid"),
        ("14", "test"),
        ("35644", "train"),
    ]
    assert data.skipped[1].reason.endswith("is an empty file")
    lines = data.verify()
    assert len(lines) == 4 and lines[-1] == "annotations_final.csv is not the published one"


@pytest.mark.filterwarnings("ignore:mtt. 1 of:UserWarning")
def test_the_published_list_lacks_three_clips(root):
    clips = {"29" if i == "11" else i: clip for i, clip in CLIPS.items()}
    (root / "annotations_final.csv").write_text(table(clips))
    assert [t.track_id for t in load(root).tracks] == ["29", "12", "13", "14", "15"]
    published = load(root, split="msd_published")
    assert [t.track_id for t in published.tracks] == ["12", "13", "14", "15"]
    assert [s.track_id for s in published.skipped] == ["35644"]
    assert NOT_IN_MSD_LIST == ("29", "11268", "11269")
    with pytest.raises(ValueError, match=r"split is one of folders, msd_published, got 'clean'"):
        load(root, split="clean")


@pytest.mark.filterwarnings(CORRUPT_CLIP)
def test_a_folder_mp3_may_hold_the_sixteen(root):
    before = load(root).split_hash
    (root / "mp3").mkdir()
    for name in ("0", "1", "c", "d", "6"):
        (root / name).rename(root / "mp3" / name)
    assert load(root).split_hash == before
    (root / "annotations_final.csv").rename(root / "mp3" / "annotations_final.csv")
    assert load(root).split_hash == before


def test_folders_are_split_12_1_3():
    assert list(FOLDERS) == list("0123456789abcdef")
    assert [list(FOLDERS.values()).count(s) for s in ("train", "valid", "test")] == [12, 1, 3]
    assert len(TAGS) == len(set(TAGS)) == 50


def test_without_audio_or_annotations_the_error_says_what_to_put_where(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"mtt not found at .*nowhere .*docs/datasets/magnatagatune\.md"
    ):
        load(tmp_path / "nowhere")
    (root / "annotations_final.csv").unlink()
    with pytest.raises(MetadataUnavailableError, match=r"DIR/magnatagatune/annotations_final\.csv"):
        load(root)
    folder = tmp_path / "official" / "magnatagatune"
    folder.mkdir(parents=True)
    (folder / "annotations_final.csv").write_text(table())
    with pytest.raises(MetadataError, match=r"annotations_final\.csv is not the published file"):
        load(root, metadata_root=tmp_path / "official")


# The rule of the most frequent tags --------------------------------------------------------------------------


def test_the_most_frequent_tags_are_counted():
    clips = {
        "1": ("0/a-b-1-c-0-29.mp3", ["foo", "bar baz"]),
        "2": ("0/a-b-1-c-29-58.mp3", ["foo", "rock"]),
        "3": ("d/a-b-1-c-58-87.mp3", ["foo", "bar baz"]),
    }
    assert top_tags(table(clips).encode(), k=2) == ("foo", "bar baz")
    assert top_tags(table(clips, quoted=True).encode(), k=3) == ("foo", "bar baz", "rock")


def test_of_equally_frequent_tags_the_first_column_wins():
    clips = {"1": ("0/a-b-1-c-0-29.mp3", ["b", "a", "c"]), "2": ("0/a-b-1-c-29-58.mp3", ["c"])}
    assert top_tags(table(clips, columns=["b", "a", "c", "d"]).encode(), k=4) == ("c", "b", "a", "d")


@pytest.mark.parametrize("k", [0, -1, 53])
def test_there_must_be_as_many_tags_as_asked_for(k):
    with pytest.raises(ValueError, match=f"have 52 tags; k is from 1 to that, got {k}"):
        top_tags(table().encode(), k=k)


# Tables that cannot be used ----------------------------------------------------------------------------------


def changed(old, new):
    return table().replace(old, new, 1).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"annotations_final\.csv: empty; a header"),
        (changed("guitar\t", ""), r"line 1: a header with each of clip_id, guitar"),
        (changed("\tfoo\t", "\trock\t"), r"line 1: a header with each of"),
        (changed("mp3_path", "path"), r"line 1: a header with each of"),
        (table().replace("\t", ",").encode(), r"line 1: a header with each of"),
        (changed("12\t0", "12\t2"), r"line 3: tag 'guitar' of clip 12 is 0 or 1, got '2'"),
        (changed("12\t0", "12\tnan"), r"line 3: tag 'guitar' of clip 12 is 0 or 1, got 'nan'"),
        (changed("12\t0", "12\t"), r"line 3: tag 'guitar' of clip 12 is 0 or 1, got ''"),
        (changed("12\t0", "12\t0\t0"), r"line 3: 54 cells were expected, got 55"),
        (changed("\n12\t", "\n../12\t"), r"line 3: '\.\./12' is not a name of this data set"),
        (changed("\n12\t", "\n11\t"), r"line 3: 11 is listed already in .*line 2$"),
        (
            changed(CLIPS["12"][0], CLIPS["11"][0]),
            r"line 3: 0/a_b-album-01-title-0-29\.mp3 is listed already",
        ),
        (changed("1/mr._x", "../mr._x"), r"line 3: .* is not a path inside the data set's folder"),
        (changed("1/mr._x", "/etc/mr._x"), r"line 3: .* is not a path inside"),
        (changed("1/mr._x", "g/mr._x"), r"line 3: .* is not a clip like"),
        (changed("1/mr._x", "1/2/mr._x"), r"line 3: .* is not a clip like"),
        (changed("-t-0-29.mp3", "-t-0-29.exe"), r"line 3: .* is not a clip like"),
        (changed(CLIPS["12"][0], ""), r"line 3: '' is not a path"),
        (changed("1/mr._x", '"1/mr._x'), r"line 3: not a row of quoted or plain cells"),
        (table().encode("utf-16"), r"line 1: not UTF-8 text"),
        (changed("1/mr", "1/m\0r"), r"line 3: holds a NUL character"),
        (b"clip_id\n" * 100_002, r"line 100001: more than 100000 lines"),
    ],
    ids=range(22),
)
def test_a_bad_table_is_refused_with_file_and_line(root, content, message):
    (root / "annotations_final.csv").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        load(root)


def test_a_table_that_is_made_to_be_huge_is_refused(root):
    with (root / "annotations_final.csv").open("wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(AnnotationError, match=r"annotations_final\.csv: longer than the 67108864 bytes"):
        load(root)


# Official metadata -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory):
    """Function (folder of official files) -> (metadata root with the published table, clips of jukemir).

    jukemir's metadata hold all that the published table holds, so the table can be written again, to the byte.
    """
    made = []

    def rebuild(official):
        path = official / "jukemir-metadata" / "metadata" / "magnatagatune.json.gz"
        if not path.is_file():
            pytest.skip("needs jukemir-metadata/metadata/magnatagatune.json.gz below the metadata root")
        if not made:
            clips = [
                c for c in json.loads(gzip.decompress(path.read_bytes())).values() if c["y_all"] is not None
            ]
            columns = PUBLISHED_COLUMNS.replace("\n", "").split(",")
            rows = {
                c["extra"]["clip_id"]: (c["extra"]["mp3_path"], frozenset(c["y_all"]))
                for c in sorted(clips, key=lambda c: int(c["extra"]["clip_id"]))
            }
            content = table(rows, columns, quoted=True, line_end="\r\n").encode()
            folder = tmp_path_factory.mktemp("official")
            (folder / "magnatagatune").mkdir()
            (folder / "magnatagatune" / "annotations_final.csv").write_bytes(content)
            made.append((folder, clips, content))
        return made[0]

    return rebuild


def test_the_published_table(rebuilt, real_metadata):
    _, clips, content = rebuilt(real_metadata)
    assert len(content) == ANNOTATIONS.num_bytes and ANNOTATIONS.matches(content)
    assert hashlib.md5(content).hexdigest() == "f04fa01752a8cc64f6e1ca142a0fef1d"  # as downloaders quote it
    assert len(clips) == 25_863
    found = top_tags(content)
    assert set(found) == set(TAGS)
    assert [(a, b) for a, b in zip(found, TAGS, strict=True) if a != b] == [
        ("female voice", "metal"),
        ("metal", "female voice"),
    ]


def test_official_counts(rebuilt, real_metadata):
    folder, clips, _ = rebuilt(real_metadata)
    clean = official_split(folder, with_tag_only=True)
    published = official_split(folder, "msd_published", with_tag_only=True)
    everything = official_split(folder)
    assert [len(ids) for ids in everything.values()] == [18_706, 1_825, 5_329]
    assert [len(ids) for ids in clean.values()] == [15_247, 1_529, 4_332]
    assert [len(ids) for ids in published.values()] == [15_244, 1_529, 4_332]
    assert {s: set(ids) for s, ids in everything.items()} == {
        s: {c["extra"]["clip_id"] for c in clips if c["split"] == s} for s in ("train", "valid", "test")
    }
    assert sorted(c["extra"]["clip_id"] for c in clips if c["split"] is None) == sorted(CORRUPT)


@pytest.mark.filterwarnings("ignore:mtt:UserWarning")
def test_labels_and_groups_are_those_of_jukemir(rebuilt, real_metadata, tmp_path):
    folder, clips, _ = rebuilt(real_metadata)
    here = [c for c in clips if c["split"]][::100]
    for clip in here:
        path = tmp_path / "mtt" / clip["extra"]["mp3_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    data = load(tmp_path / "mtt", metadata_root=folder)
    assert data.official_annotations and len(data.tracks) == len(here) == 259
    assert len(data.skipped) == 25_863 - 259
    assert {t.track_id: set(t.present) for t in data.tracks} == {
        c["extra"]["clip_id"]: set(c["y"]) for c in here
    }
    data.check_groups()
