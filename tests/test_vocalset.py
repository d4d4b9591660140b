"""VocalSet on a generated copy of its layout (the official names, our own tones)."""

import hashlib
import shutil

import numpy as np
import pytest
import soundfile

from audiation.annotations import Label
from audiation.audio import AudioWindowError
from audiation.datasets import DATASETS
from audiation.datasets.annotation_files import AnnotationError
from audiation.datasets.vocalset import (
    CONTEXTS,
    OTHER_TECHNIQUES,
    SINGERS,
    TECHNIQUES,
    TEST_SINGERS,
    find_recordings,
    leading_silence_seconds,
    singer_split,
    technique_split,
)

SAMPLE_RATE_HZ = 44_100
EMPTY = "ignore:vocalset_.*1 of 6 listed recordings left out:UserWarning"
RECORDINGS = {  # seconds: 2, 1, 0, 3 and 1 pieces of 0.5 s
    "female1/arpeggios/belt/f1_arpeggios_belt_c_a": 1.2,
    "female4/scales/straight/scales_straight_a": 0.6,
    "male2/long_tones/vibrato/m2_long_vibrato_a": 0.4,
    "male11/excerpts/spoken/m11_row_spoken": 1.55,
    "female2/scales/fast_forte/f2_scales_fast_forte_a": 0.7,
}
EMPTY_ID = "female2/scales/belt/f2_scales_belt_a"
LEAD_IN_ID = "male11/excerpts/spoken/m11_row_spoken"
GOLDEN = "4f123ff334dacc2acde3d2b1d5bec106af7d7270eaad146a4cf26059985c381b"
OFFICIAL_TRAIN = tuple(sorted(set(SINGERS) - set(TEST_SINGERS)))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VocalSet"
    for k, (track_id, seconds) in enumerate(RECORDINGS.items()):
        time = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        tone = 0.3 * np.sin(2 * np.pi * 110 * 2 ** (k / 12) * time)
        if track_id == LEAD_IN_ID:
            tone[: round(0.3 * SAMPLE_RATE_HZ)] *= 1e-3
        path = root / "FULL" / f"{track_id}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, tone, SAMPLE_RATE_HZ, subtype="PCM_16")
    empty = root / "FULL" / f"{EMPTY_ID}.wav"
    empty.parent.mkdir(parents=True)
    empty.write_bytes(b"")
    for leftover in (root / "__MACOSX" / "FULL" / "female1", root / "FULL" / "female1"):
        leftover.mkdir(parents=True, exist_ok=True)
        (leftover / "._x.wav").write_bytes(b"\0\5\x16\7")
    (root / "train_singers_technique.txt").write_text("female1\nfemale4\nmale2\nmale11\n")
    (root / "test_singers_technique.txt").write_bytes(b"female2\r\n\r\n")
    return root


def technique(root, **choices):
    return DATASETS["vocalset_technique"](root, **choices)


def singer(root, **choices):
    return DATASETS["vocalset_singer"](root, **choices)


@pytest.mark.filterwarnings(EMPTY)
def test_techniques(root):
    data = technique(root)
    assert {t.track_id: t.technique for t in data.tracks} == {
        "female1/arpeggios/belt/f1_arpeggios_belt_c_a": Label("belt"),
        "female4/scales/straight/scales_straight_a": Label("straight"),
        "male2/long_tones/vibrato/m2_long_vibrato_a": Label("vibrato"),
        "male11/excerpts/spoken/m11_row_spoken": Label("spoken"),
        "female2/scales/fast_forte/f2_scales_fast_forte_a": None,
    }
    assert [TECHNIQUES.index(n) for n in ("belt", "spoken", "straight", "vibrato", "vocal_fry")] == [
        0,
        4,
        5,
        8,
        9,
    ]
    assert data.counts == {"train": 2, "valid": 2, "test": 1}
    assert [(s.track_id, s.split) for s in data.skipped] == [(EMPTY_ID, "test")]
    assert {t.singer.name for t in data.split("test")} == {"female2"}  # as the text file says
    assert all(t.group == t.singer.name for t in data.tracks)
    data.check_groups()


@pytest.mark.filterwarnings(EMPTY)
def test_singers(root):
    data = singer(root)
    assert {SINGERS.index(t.singer.name) for t in data.tracks} == {0, 3, 10, 19, 1}
    assert {t.track_id for t in data.tracks} == set(RECORDINGS)
    assert all(t.split == singer_split(t.track_id) for t in data.tracks)
    assert [(s.track_id, s.split) for s in data.skipped] == [(EMPTY_ID, singer_split(EMPTY_ID))]


@pytest.mark.filterwarnings(EMPTY)
def test_the_lengths_make_2_1_0_3_and_1_pieces_of_half_a_second(root):
    pieces = [int(t.load(SAMPLE_RATE_HZ).shape[0] / (0.5 * SAMPLE_RATE_HZ)) for t in singer(root).tracks]
    assert dict(zip([t.track_id for t in singer(root).tracks], pieces, strict=True)) == dict(
        zip(RECORDINGS, [2, 1, 0, 3, 1], strict=True)
    )


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("name", ["FULL", "data_by_singer"])
def test_the_folder_of_singers_may_be_given_and_have_both_names(root, name):
    if name != "FULL":
        (root / "FULL").rename(root / name)
    assert technique(root).split_hash == technique(root / name).split_hash
    assert technique(root / name).counts == {"train": 2, "valid": 2, "test": 1}
    assert singer(root.parent).counts == singer(root).counts  # the archive's own folder below the root


def test_without_lists_the_official_ones_are_used(root):
    for name in ("train", "test"):
        (root / f"{name}_singers_technique.txt").unlink()
    with pytest.warns(UserWarning, match="1 of 6"):
        data = technique(root)
    assert data.official_lists
    assert {t.singer.name: t.split for t in data.tracks} == {
        "female1": "valid",
        "female2": "test",
        "female4": "valid",
        "male11": "train",
        "male2": "valid",
    }
    assert len(data.verify()) == 1  # the empty file


@pytest.mark.filterwarnings(EMPTY)
def test_verify_says_that_the_lists_are_other_ones(root):
    lines = technique(root).verify()
    assert lines[0].startswith(f"{EMPTY_ID}: ") and lines[0].endswith("is an empty file")
    assert lines[1:] == ["the lists of singers are not the published ones"]
    assert len(singer(root).verify()) == 1


@pytest.mark.filterwarnings(EMPTY)
def test_the_official_lists_are_recognised(root):
    (root / "train_singers_technique.txt").write_text("\n".join(reversed(OFFICIAL_TRAIN)))
    (root / "test_singers_technique.txt").write_text("\n".join(TEST_SINGERS))
    assert technique(root).official_lists


@pytest.mark.filterwarnings("ignore:vocalset_:UserWarning")
def test_a_file_in_another_place_is_skipped_with_its_reason(root):
    for place in ("female1/belt/x.wav", "female1/scales/yodel/x.wav", "female1/scales/belt/deep/x.wav"):
        path = root / "FULL" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    data = technique(root)
    assert [s.track_id for s in data.skipped[1:]] == [
        "female1/belt/x",
        "female1/scales/belt/deep/x",
        "female1/scales/yodel/x",
    ]
    assert all("is not in a folder of VocalSet" in s.reason for s in data.skipped[1:])
    assert len(data.tracks) == 5


# Splits --------------------------------------------------------------------------------------------------------


def test_the_split_of_singers_is_9_6_and_5_with_both_sexes_in_each():
    assert len(OFFICIAL_TRAIN) == 15
    assert technique_split(OFFICIAL_TRAIN, TEST_SINGERS) == {
        "train": ("female3", "female5", "female6", "female9", "male1", "male11", "male4", "male8", "male9"),
        "valid": ("female1", "female4", "female7", "male2", "male6", "male7"),
        "test": ("female2", "female8", "male10", "male3", "male5"),
    }


def test_the_validation_singers_of_mir_ref():
    split = technique_split(OFFICIAL_TRAIN, TEST_SINGERS, "mir_ref")
    assert split["valid"] == ("female9", "male11", "male9")
    assert [len(names) for names in split.values()] == [12, 3, 5]
    with pytest.raises(ValueError, match="valid='mir_ref' needs female9, male11, male9 in train_singers"):
        technique_split(("female1", "female9"), TEST_SINGERS, "mir_ref")


def synthetic_listing():
    """178 names per singer, as many as VocalSet has on average."""
    techniques = TECHNIQUES + OTHER_TECHNIQUES
    for name in SINGERS:
        for k in range(178):
            context, kind = CONTEXTS[k % 4], techniques[k % 17]
            yield f"{name}/{context}/{kind}/{name[0]}{name.strip('femal')}_{context}_{kind}_{k:03d}"


def test_the_split_of_recordings_is_12_8_5_and_always_the_same():
    split = {i: singer_split(i) for i in synthetic_listing()}
    shares = [sum(s == name for s in split.values()) / len(split) for name in ("train", "valid", "test")]
    assert shares == pytest.approx([0.48, 0.32, 0.20], abs=0.02)
    for name in SINGERS:
        assert {s for i, s in split.items() if i.startswith(f"{name}/")} == {"train", "valid", "test"}
    lines = "".join(sorted(f"{s}\t{i}\n" for i, s in split.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == GOLDEN


def test_copies_of_a_recording_stay_with_it(root):
    names = [f"female1/scales/vibrato/f1_scales_vibrato_{v}" for v in "aeiou" * 8]
    assert all(singer_split(f"{n}(1)") == singer_split(n) for n in names)
    assert len({singer_split(n) for n in names}) > 1
    folder = root / "FULL" / "female1" / "arpeggios" / "belt"
    shutil.copy(folder / "f1_arpeggios_belt_c_a.wav", folder / "f1_arpeggios_belt_c_a(1).wav")
    with pytest.warns(UserWarning, match="1 of 7"):
        data = singer(root)
    assert len({(t.group, t.split) for t in data.tracks if t.singer.name == "female1"}) == 1
    data.check_groups()


# Silence -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(EMPTY)
def test_leading_silence_is_kept_or_cut(root):
    kept = next(t for t in singer(root).tracks if t.track_id == LEAD_IN_ID)
    assert kept.span_seconds is None and kept.load(SAMPLE_RATE_HZ).shape == (68_355,)
    cut = next(t for t in singer(root, silence="trim").tracks if t.track_id == LEAD_IN_ID)
    assert cut.span_seconds == pytest.approx((0.3, 1.55), abs=1e-9)
    whole, part = kept.load(SAMPLE_RATE_HZ), cut.load(SAMPLE_RATE_HZ)
    assert part.shape == (55_125,) and part.equal(whole[13_230:])
    assert cut.load(SAMPLE_RATE_HZ, 0.5, 0.25).equal(whole[13_230 + 22_050 :][:11_025])
    with pytest.raises(AudioWindowError):
        cut.load(SAMPLE_RATE_HZ, -0.1)
    assert cut == kept and technique(root, silence="trim").split_hash == technique(root).split_hash


@pytest.mark.filterwarnings(EMPTY)
def test_a_track_without_leading_silence_is_its_file(root):
    spans = {t.track_id: t.span_seconds for t in technique(root, silence="trim").tracks}
    assert [i for i, span in spans.items() if span] == [LEAD_IN_ID]


def test_the_rule_for_silence(tmp_path):
    path, rate = tmp_path / "x.wav", 44_100
    noise = 0.5 * np.sign(np.random.default_rng(0).standard_normal(rate * 12))  # power 0.25 in every frame

    def silence_of(gain, seconds):
        samples = noise.copy()
        samples[: round(seconds * rate)] *= gain
        soundfile.write(path, samples, rate, subtype="FLOAT")
        return leading_silence_seconds(path)

    assert silence_of(0.0099, 0.5) == pytest.approx(0.5)  # 40.09 dB below
    assert silence_of(0.0101, 0.5) == 0.0  # 39.9 dB below
    assert silence_of(0.0, 11.25) == pytest.approx(11.25)
    assert silence_of(0.0, 0.004) == 0.0  # shorter than a frame
    soundfile.write(path, np.zeros(rate), rate)
    assert leading_silence_seconds(path) == 0.0  # nothing to compare with


@pytest.mark.filterwarnings(EMPTY)
def test_a_damaged_file_has_no_span_and_is_left_to_its_reader(root):
    path = root / "FULL" / f"{LEAD_IN_ID}.wav"
    path.write_bytes(path.read_bytes()[:1000])
    assert (
        next(t for t in singer(root, silence="trim").tracks if t.track_id == LEAD_IN_ID).span_seconds is None
    )


# Refusals ------------------------------------------------------------------------------------------------------


def test_choices_are_checked(root):
    with pytest.raises(ValueError, match="valid is one of 'singers', 'mir_ref', got 'random'"):
        technique(root, valid="random")
    with pytest.raises(ValueError, match="silence is one of 'keep', 'trim', got 'cut'"):
        singer(root, silence="cut")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"female1\nfemale4\nmale2\nmale11\nmale2\n",
            r"line 5: male2 is listed already in .*train.*, line 3",
        ),
        (b"female1\nfemale2\n", r"test_singers_technique\.txt, line 1: female2 is listed already in .*train"),
        (b"female1\n../../etc\n", r"line 2: '\.\./\.\./etc' is not a name of this data set"),
        (b"id\nfemale1\n", "line 1: 'id' is not a name"),
        (b"female10\n", "line 1: 'female10' is not a name"),
        (b"female1\nma\xffle1\n", "line 2: not UTF-8 text"),
        (b"female1\n\0\n", "line 2: holds a NUL character"),
        (b"\n" * 1_000_000, "more than 1000 lines"),
        (b"female1\n" * 200_000, "longer than the 1048576 bytes"),
    ],
)
def test_a_bad_list_is_refused_with_file_and_line(root, content, message):
    (root / "train_singers_technique.txt").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        technique(root)


def test_both_lists_or_none_and_every_singer_in_one(root):
    (root / "train_singers_technique.txt").write_text("female1\nfemale4\nmale2\n")
    with pytest.raises(
        ValueError, match="male11/excerpts/spoken/m11_row_spoken is there, but its singer is in nei"
    ):
        technique(root)
    (root / "train_singers_technique.txt").unlink()
    with pytest.raises(
        ValueError, match=r"has test_singers_technique\.txt but not train_singers_technique\.txt"
    ):
        technique(root)
    with pytest.warns(UserWarning, match="1 of 6"):
        assert len(singer(root).tracks) == 5  # needs no lists


@pytest.mark.parametrize("name", ["vocalset_technique", "vocalset_singer"])
def test_a_folder_without_vocalset_says_what_was_looked_for(name, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"{name} not found at .*nowhere.* FULL/female1 .*vocalset\.md"
    ):
        DATASETS[name](tmp_path / "nowhere")
    (tmp_path / "FULL" / "female1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"none of the 0 listed {name} recordings is there"):
        DATASETS[name](tmp_path)
    assert find_recordings(tmp_path).track_ids == ()
