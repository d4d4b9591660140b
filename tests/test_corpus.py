"""A corpus gives back what was put into it, and crops that depend on the seed, the step and the index only."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from audiation import corpus_commits
from audiation.corpus import Corpus, CorpusError, Crop, CropBatches, _permuted
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_codes import write_targets
from audiation.corpus_packed import PackedArrays, PackedWriter, Piece, Place
from audiation.corpus_sources import find_sources
from audiation.folder_lock import FolderLockedError, locked
from audiation.json_lines import DamagedLinesError
from corpus_files import tune, write

RATE_HZ = 16_000
SECONDS = {"a": 6.5, "b/c": 2.0, "b/d": 1.2, "e": 3.0}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for seed, (name, seconds) in enumerate(SECONDS.items()):
        write(root / "music" / f"{name}.wav", tune(seed, seconds, RATE_HZ), RATE_HZ, subtype="PCM_16")
    return build_corpus(
        find_sources([root / "music"]), root / "out", "small", BuildSettings(RATE_HZ), workers=0
    )


@pytest.fixture
def own(tmp_path):
    """One that a test may change."""
    write(tmp_path / "music/a.wav", tune(0, 4.0, RATE_HZ), RATE_HZ)
    write(tmp_path / "music/b.wav", tune(1, 3.0, RATE_HZ), RATE_HZ)
    sources = find_sources([tmp_path / "music"])
    return build_corpus(sources, tmp_path / "out", "own", BuildSettings(RATE_HZ), workers=0)


def ramp(corpus, rate_hz, extra=0):
    """A teacher whose code says which frame it is."""

    def compute(recording):
        num_frames = round(corpus.num_samples[recording] / corpus.sample_rate_hz * rate_hz) + extra
        return torch.stack([torch.arange(num_frames) % 1000, torch.full((num_frames,), recording)])

    return compute


# The corpus -----------------------------------------------------------------------------------------------


def test_sixteen_bits_come_back_as_they_were(built):
    assert [r.name for r in built.recordings] == ["a.wav", "b/c.wav", "b/d.wav", "e.wav"]
    assert built.num_samples.tolist() == [104_000, 32_000, 19_200, 48_000]
    for seed, recording in ((0, 0), (1, 1), (2, 2), (3, 3)):
        whole = tune(seed, list(SECONDS.values())[seed], RATE_HZ)
        written = np.rint(whole * 32768) / 32768
        read = built.read(recording, 0, len(whole))
        assert read.dtype == torch.float32 and read.shape == (len(whole),)
        assert np.abs(read.numpy() - written).max() <= 1 / 32768  # libsndfile scales by 32767
        assert torch.equal(built.read(recording, 777, 100), read[777:877])


def test_name_hours_and_hash_say_what_it_is(built):
    assert built.name == "small" and built.form == "packed" and built.sample_rate_hz == RATE_HZ
    assert built.hours == pytest.approx(12.7 / 3600)
    digest = hashlib.sha256(b"16000\n")
    for i, r in enumerate(built.recordings):
        samples = np.rint(built.read(i, 0, r.num_samples).numpy() * 32768)
        own_hash = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
        assert own_hash == r.content_hash
        digest.update(f"{r.name}\t{own_hash}\n".encode())
    assert built.hash == digest.hexdigest()


@pytest.mark.parametrize(("start", "count"), [(19_000, 201), (-1, 10), (19_201, 0)])
def test_nothing_is_read_beyond_a_recording(built, start, count):
    with pytest.raises(ValueError, match="there are 19200"):
        built.read(2, start, count)


def test_a_recording_that_is_not_there(built):
    with pytest.raises(IndexError):
        built.recordings[4]
    assert built.recordings[-1].name == "e.wav"


def test_what_is_no_corpus_says_how_to_build_one(tmp_path):
    with pytest.raises(CorpusError, match="audiation corpus build"):
        Corpus(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("statistics"), "it has no 'statistics'"),
        (lambda header: header["statistics"].pop("licences"), "it has no 'licences'"),
        (
            lambda header: header["statistics"].update(near_duplicates="2"),
            r"'statistics\.near_duplicates' is a whole",
        ),
        (
            lambda header: header["statistics"].update(files={"stored": "2"}),
            r"'statistics\.files' is an object of wh",
        ),
        (lambda header: header.update(hours=None), "'hours' is a number, got None"),
        (lambda header: header.update(sample_rate_hz=True), "'sample_rate_hz' is a whole number, got True"),
        (lambda header: header.update(format=2), "another format"),
        (lambda header: header.update(wings=2), "wings"),
    ],
)
def test_a_damaged_header_says_what_is_wrong(own, change, message):
    header = json.loads((own.directory / "corpus.json").read_text())
    change(header)
    (own.directory / "corpus.json").write_text(json.dumps(header))
    with pytest.raises(
        CorpusError, match=rf"corpus\.json is not about a corpus.*{message}.*Call the same build again"
    ):
        Corpus(own.directory)


@pytest.mark.parametrize(
    "line", ['{"commit": 0, "files": 3}', '{"commit": 0}', '{"commit": 0, "files": [{"entry": 1}]}']
)
def test_a_damaged_journal_says_which_line(own, tmp_path, line):
    (own.directory / "journal.jsonl").write_text(line + "\n")
    with pytest.raises(DamagedLinesError, match=r"journal\.jsonl, line 1, has no 'files' that can be read"):
        build_corpus(
            find_sources([tmp_path / "music"]), own.directory, "own", BuildSettings(RATE_HZ), workers=0
        )


def test_a_cut_file_is_noticed(own):
    path = own.directory / "audio-00000.s16"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CorpusError, match="cut short: it has 111999 items"):
        Corpus(own.directory).read(1, 0, 10)
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be read"):
        Corpus(own.directory).read(0, 0, 10)


def test_verify_finds_one_wrong_bit(own):
    assert own.verify() == []
    path = own.directory / "audio-00000.s16"
    content = bytearray(path.read_bytes())
    content[2 * 64_000 + 11] ^= 1  # in the second recording
    path.write_bytes(content)
    assert Corpus(own.directory).verify() == ["b.wav"]


def test_tables_of_two_builds_are_not_mixed(own):
    path = own.directory / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hash": "0"}))
    with pytest.raises(CorpusError, match="different corpora"):
        Corpus(own.directory)
    path.write_text("{")
    with pytest.raises(CorpusError, match="not about a corpus"):
        Corpus(own.directory)


def test_arrays_go_into_several_files_and_leftovers_are_cut_off(tmp_path):
    arrays = [np.arange(n * 2, dtype="<i2").reshape(-1, 2) + n for n in (5, 4, 30, 1)]
    with PackedWriter(tmp_path, "x", 2, file_bytes=40) as writer:
        places = [writer.append(array) for array in arrays]
        writer.sync()
    assert [(p.file, p.start, p.length) for p in places] == [(0, 0, 5), (0, 5, 4), (1, 0, 30), (2, 0, 1)]
    with PackedWriter(tmp_path, "x", 2, places[:2], file_bytes=40) as writer:
        again = writer.append(arrays[3])
        writer.sync()
    assert (again.file, again.start) == (0, 9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-00000.s16"]
    read = PackedArrays(tmp_path, "x", 2).read([Piece(p, 1, p.length - 1) for p in places[:2]])
    assert all(np.array_equal(r, a[1:]) for r, a in zip(read, arrays, strict=False))
    with pytest.raises(CorpusError, match="has 10 items, and 39 were written"):
        PackedWriter(tmp_path, "x", 2, [Place(0, 9, 30)])


# Crops ----------------------------------------------------------------------------------------------------


def crops_of_epoch(batches, epoch):
    every = [batches._crop(epoch * batches.crops_per_epoch + i) for i in range(batches.crops_per_epoch)]
    return Counter(crop.recording for crop in every), every


def test_an_epoch_hears_every_recording_as_often_as_it_is_long(built):
    batches = CropBatches(built, 0.5, 4, 1, seed=3)
    assert batches.crops_per_epoch == 13 + 4 + 2 + 6
    orders = []
    for epoch in range(3):
        counted, crops = crops_of_epoch(batches, epoch)
        assert counted == {0: 13, 1: 4, 2: 2, 3: 6}
        orders.append([crop.recording for crop in crops])
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("size", [1, 2, 3, 25, 64, 1000])
def test_the_order_is_a_permutation(size):
    orders = [[_permuted(i, size, seed, 0) for i in range(size)] for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(size))
    assert size < 25 or orders[0] != orders[1]


def test_an_order_of_100_million_costs_no_memory():
    places = [_permuted(i, 115_200_000, 0, 0) for i in range(2000)]
    assert len(set(places)) == 2000 and 0 <= min(places) and max(places) < 115_200_000
    assert abs(np.mean(places) / 57_600_000 - 1) < 0.05  # 3.9 standard errors


def test_starts_are_uniform_over_all_samples_at_which_a_crop_fits(built):
    batches = CropBatches(built, 1.19, 4, 1, seed=0)
    starts = [
        crop.start_sample for n in range(6750) if (crop := batches._crop(n)).recording == 2
    ]  # 1.2 s: 161 starts
    assert len(starts) == 750 and (min(starts), max(starts)) == (0, 160)
    counts, _ = np.histogram(starts, bins=7, range=(0, 161))
    assert ((counts - 750 / 7) ** 2 / (750 / 7)).sum() < 22.5  # chi-square, 6 degrees of freedom, p = 0.001


def test_a_micro_batch_is_what_is_in_the_corpus(built):
    batches = CropBatches(built, 0.5, 4, 2, seed=1)
    batch, crops = batches.micro_batch(5, 1), batches.crops(5, 1)
    assert batch.waveform.shape == (4, 8000) and batch.waveform.dtype == torch.float32
    for waveform, name, crop in zip(batch.waveform, batch.names, crops, strict=True):
        assert torch.equal(waveform, built.read(crop.recording, crop.start_sample, 8000))
        assert name == built.recordings[crop.recording].name
    assert batch.waveform.is_contiguous() and batch.targets == {}


def test_a_run_goes_on_in_the_middle_of_an_epoch(built):
    """25 crops an epoch, 12 a step: step 7 is in the fourth epoch, and step 2 goes over an end."""
    once = CropBatches(built, 0.5, 4, 3, seed=1)
    every = [once.crops(step, index) for step in range(10) for index in range(3)]
    later = CropBatches(Corpus(built.location), 0.5, 4, 3, seed=1)
    assert [later.crops(7, index) for index in range(3)] == every[21:24]
    flat = [crop for crops in every for crop in crops]
    for epoch in range(4):
        counted = Counter(crop.recording for crop in flat[epoch * 25 : (epoch + 1) * 25])
        assert counted == {0: 13, 1: 4, 2: 2, 3: 6}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
def test_ranks_share_a_step_without_changing_it(built, num_ranks):
    alone = CropBatches(built, 0.5, 2, 6, seed=9)
    expected = torch.cat([alone.micro_batch(4, index).waveform for index in range(6)])
    parts = {}
    for rank in range(num_ranks):
        own_view = CropBatches(Corpus(built.location), 0.5, 2, 6, seed=9)
        parts |= {index: own_view.micro_batch(4, index).waveform for index in range(rank, 6, num_ranks)}
    assert torch.equal(torch.cat([parts[index] for index in range(6)]), expected)


def test_micro_batches_of_another_size_give_the_same_crops(built):
    small, large = CropBatches(built, 0.5, 2, 6, seed=9), CropBatches(built, 0.5, 6, 2, seed=9)
    assert [c for i in range(6) for c in small.crops(3, i)] == [
        c for i in range(2) for c in large.crops(3, i)
    ]


def test_the_seed_decides(built):
    crops = [CropBatches(built, 0.5, 8, 1, seed=seed).crops(0, 0) for seed in (0, 0, 1)]
    assert crops[0] == crops[1] != crops[2]


def test_recordings_shorter_than_a_crop_are_left_out_and_counted(built):
    batches = CropBatches(built, 2.5, 4, 1, seed=0)
    assert batches.num_left_out == 2
    assert batches.left_out_hours == pytest.approx(3.2 / 3600)
    assert {c.recording for n in range(50) for c in batches.crops(n, 0)} == {0, 3}
    exact = CropBatches(built, 2.0, 4, 1, seed=0)
    assert exact.num_left_out == 1 and {c for c in exact.crops(0, 0) if c.recording == 1} <= {Crop(1, 0)}


def test_recordings_shorter_than_a_crop_may_be_repeated(built):
    batches = CropBatches(built, 2.5, 4, 1, seed=0, short="repeat")
    assert batches.num_left_out == 0 and batches.crops_per_epoch == 2 + 1 + 1 + 1
    for step in range(5):
        batch, crops = batches.micro_batch(step, 0), batches.crops(step, 0)
        for waveform, crop in zip(batch.waveform, crops, strict=True):
            if crop.recording == 2:
                whole = built.read(2, 0, 19_200)
                assert torch.equal(waveform, torch.cat([whole, whole, whole])[:40_000])
                return
    raise AssertionError("recording 2 was not heard in four epochs")


def test_a_corpus_without_long_recordings_is_refused(built):
    with pytest.raises(ValueError, match=r"the longest of 4 has 6\.50 s"):
        CropBatches(built, 6.6, 4, 1, seed=0)


@pytest.mark.parametrize(
    ("crop_seconds", "size", "number"), [(0.0, 1, 1), (1.0, 0, 1), (1.0, 1, 0), (-1.0, 1, 1)]
)
def test_sizes_are_at_least_one(built, crop_seconds, size, number):
    with pytest.raises(ValueError, match="at least 1"):
        CropBatches(built, crop_seconds, size, number, seed=0)


@pytest.mark.parametrize(("step", "index"), [(-1, 0), (0, 2), (0, -1)])
def test_there_are_no_other_micro_batches(built, step, index):
    with pytest.raises(ValueError, match="micro-batches 0 to 1"):
        CropBatches(built, 1.0, 1, 2, seed=0).micro_batch(step, index)


# Stored targets -------------------------------------------------------------------------------------------


def test_codes_are_cropped_with_the_sound(own):
    write_targets(own, "ramp", 75.0, (1000, 2), ramp(own, 75.0))
    assert own.targets == ["ramp"]
    batches = CropBatches(own, 1.3, 3, 1, seed=0, targets=("ramp",))
    for step in range(5):
        crops, codes = batches.crops(step, 0), batches.micro_batch(step, 0).targets["ramp"]
        assert codes.shape == (3, 2, round(1.3 * 75)) and codes.dtype == torch.int64  # 97.5 -> 98
        for crop, code in zip(crops, codes, strict=True):
            assert code[0].tolist() == list(
                range(round(crop.start_sample * 75 / 16_000), round(crop.start_sample * 75 / 16_000) + 98)
            )
            assert set(code[1].tolist()) == {crop.recording}


def test_a_batch_has_as_many_codes_as_its_shortest_crop(own):
    """A teacher without padding gives two frames fewer at the end of a recording."""
    targets = write_targets(own, "short", 50.0, (1000, 2), ramp(own, 50.0, extra=-2))
    assert targets.num_frames(0) == 198 and targets.num_streams == 2
    assert targets.read(0, 190, 50).shape == (2, 8)
    batches = CropBatches(own, 2.9, 4, 1, seed=0, targets=("short",))
    shapes = {batches.micro_batch(step, 0).targets["short"].shape for step in range(20)}
    assert torch.Size((4, 2, 143)) in shapes and min(s[2] for s in shapes) >= 143
    with pytest.raises(ValueError, match="frame 199"):
        targets.read(0, 199, 1)


def test_targets_go_on_after_a_stop_and_for_a_corpus_that_has_grown(own, tmp_path, monkeypatch):
    done = []

    def compute(recording, stop_at=None):
        if recording == stop_at:
            raise KeyboardInterrupt
        done.append(recording)
        return ramp(own, 50.0)(recording)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_commits, "COMMIT_BYTES", 1)
        with pytest.raises(KeyboardInterrupt):
            write_targets(own, "t", 50.0, (1000, 2), lambda i: compute(i, stop_at=1))
    with pytest.raises(CorpusError, match="1 of 2 recordings"):
        own.open_targets("t")
    codes = own.directory / "targets/t/codes-00000.s16"
    codes.write_bytes(codes.read_bytes() + b"half of the next one")
    assert write_targets(own, "t", 50.0, (1000, 2), compute).read(1, 0, 3)[1].tolist() == [1, 1, 1]
    assert done == [0, 1] and codes.stat().st_size == (200 + 150) * 2 * 2
    write(tmp_path / "music/a0.wav", tune(5, 2.0, RATE_HZ), RATE_HZ)  # before "b" in order
    grown = build_corpus(
        find_sources([tmp_path / "music"]), own.directory, "own", BuildSettings(RATE_HZ), workers=0
    )
    assert len(grown.recordings) == 3
    with pytest.raises(CorpusError, match="2 of 3"):
        grown.open_targets("t")
    asked = []
    targets = write_targets(
        grown, "t", 50.0, (1000, 2), lambda i: (asked.append(i), torch.full((2, 100), 1))[1]
    )
    assert [grown.recordings.name(i) for i in asked] == ["a0.wav"]
    assert [targets.num_frames(i) for i in range(3)] == [200, 100, 150]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 200, dtype=torch.int64), r"shape \(2, N\)"),
        (torch.zeros(2, 200), "whole numbers"),
        (torch.zeros(2, 150, dtype=torch.int64), "about 200 frames here, got 150"),
        (torch.full((2, 200), 2), "codebook 1 of targets 't' has codes from 0 to 1, got 2 to 2"),
        (torch.full((2, 200), -1), "codebook 0"),
    ],
)
def test_codes_that_are_not_what_they_are_said_to_be(own, codes, message):
    with pytest.raises(ValueError, match=message):
        write_targets(own, "t", 50.0, (1000, 2), lambda _: codes)


def test_two_processes_do_not_compute_the_same_targets(own):
    with (
        locked(own.directory / "targets/t", "computing"),
        pytest.raises(FolderLockedError, match=r"targets/t is in use"),
    ):
        write_targets(own, "t", 50.0, (1000, 2), ramp(own, 50.0))
    write_targets(own, "t", 50.0, (1000, 2), ramp(own, 50.0))


@pytest.mark.parametrize("content", ["[", "3"])
def test_a_damaged_record_of_a_teacher_says_what_to_do(own, content):
    write_targets(own, "t", 50.0, (1000, 2), ramp(own, 50.0))
    assert own.open_targets("t").record is None
    (own.directory / "targets/t/teacher.json").write_text(content)
    with pytest.raises(CorpusError, match=r"teacher\.json cannot be read .* compute the targets again"):
        own.open_targets("t")


def test_targets_of_one_name_are_of_one_kind(own):
    write_targets(own, "t", 50.0, (1000, 2), ramp(own, 50.0))
    with pytest.raises(ValueError, match="another name"):
        write_targets(own, "t", 75.0, (1000, 2), ramp(own, 75.0))
    with pytest.raises(ValueError, match="may be named"):
        write_targets(own, "../t", 50.0, (1000, 2), ramp(own, 50.0))
    with pytest.raises(ValueError, match="32768"):
        write_targets(own, "u", 50.0, (40_000,), ramp(own, 50.0))
    with pytest.raises(CorpusError, match="no targets 'v'; it has: t"):
        CropBatches(own, 1.0, 1, 1, seed=0, targets=("v",))
    with pytest.raises(ValueError, match="leave-out"):
        CropBatches(own, 1.0, 1, 1, seed=0, targets=("t",), short="repeat")
