"""The Lance form gives the same crops as the packed one, also by a URI, and its copying survives a kill."""

from __future__ import annotations

import shutil
from functools import partial

import lance
import numpy as np
import pytest
import torch

from audiation.corpus import Corpus, CorpusError, CropBatches
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_codes import RecordingCodes, store_targets, write_targets
from audiation.corpus_copy import write_lance
from audiation.corpus_lance import KeyedArray, LanceArrays, write_windows
from audiation.corpus_packed import Piece
from audiation.corpus_sources import find_sources
from audiation.corpus_targets import TargetsSpec
from audiation.pretrain_run import PretrainRun
from audiation.pretraining import pretrain
from audiation.pretraining_config import PretrainConfig
from audiation.teachers.kmeans import KMeansTeacher
from audiation.teachers.mfcc import MfccFeatures
from audiation.teachers.targets import compute_targets
from audiation.training import RunFolderError
from corpus_files import tune, write

RATE_HZ = 16_000
FITTED = {"centroids": "abc"}  # what a fit records, as far as the teacher's record has it


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Recordings around multiples of the window of 5 s, a duplicate and a failure; codes at 50 Hz."""
    root = tmp_path_factory.mktemp("lance")
    for seed, seconds in enumerate((10.0, 3.0, 21.5, 9.99)):
        write(root / "music" / f"{seed}.wav", tune(seed, seconds, RATE_HZ), RATE_HZ)
    write(root / "music/copy.wav", tune(1, 3.0, RATE_HZ), RATE_HZ)
    (root / "music/bad.wav").write_text("x")
    corpus = build_corpus(
        find_sources([root / "music"]), root / "out", "small", BuildSettings(RATE_HZ), workers=0
    )
    write_targets(corpus, "t", 50.0, (1000, 7), partial(codes_of, corpus))
    return corpus


def codes_of(corpus, recording):
    num_frames = -(-int(corpus.num_samples[recording]) // 320)
    return torch.randint(0, 7, (2, num_frames), generator=torch.Generator().manual_seed(recording))


def test_the_forms_have_the_same_content(packed, tmp_path):
    reports = []
    copy = write_lance(packed, str(tmp_path / "copy"), progress=reports.append)
    by_uri = Corpus((tmp_path / "copy").as_uri())
    for other in (copy, by_uri):
        assert (other.form, other.name, other.hours) == ("lance", "small", packed.hours)
        assert other.hash == packed.hash and other.targets == ["t"] and other.verify() == []
        assert other.recordings[:] == packed.recordings[:]
        assert [e.name for e in other.recordings.with_status("duplicate", "failed")] == [
            "bad.wav",
            "copy.wav",
        ]
        assert other.header.statistics == packed.header.statistics
        for crop_seconds in (0.5, 9.99):
            here = CropBatches(packed, crop_seconds, 5, 1, seed=2, targets=("t",))
            there = CropBatches(other, crop_seconds, 5, 1, seed=2, targets=("t",))
            for step in range(8):
                a, b = here.micro_batch(step, 0), there.micro_batch(step, 0)
                assert a.names == b.names and torch.equal(a.waveform, b.waveform)
                assert torch.equal(a.targets["t"], b.targets["t"])
    assert {r.what for r in reports} == {"writing Lance"} and reports[-1].done == reports[-1].total == 8
    with pytest.raises(CorpusError, match="only read"):
        write_targets(by_uri, "u", 50.0, (1000, 7), partial(codes_of, packed))


@pytest.mark.parametrize(("first", "count"), [(0, 23), (0, 0), (4, 1), (5, 5), (3, 9), (22, 1), (23, 0)])
def test_pieces_over_windows(tmp_path, first, count):
    arrays = [np.arange(n * 2, dtype="<i2").reshape(-1, 2) + n for n in (3, 23, 5)]
    keyed = [KeyedArray(f"k{i}", len(a), a.copy) for i, a in enumerate(arrays)]
    places = write_windows(str(tmp_path / "w"), keyed, 2, 5, "x")
    assert [(p.start, p.length) for p in places] == [(0, 3), (1, 23), (6, 5)]
    reader = LanceArrays(str(tmp_path / "w"), 2, 5)
    read = reader.read([Piece(places[1], first, count), Piece(places[2], 1, 3), Piece(places[1], 0, 7)])
    assert np.array_equal(read[0], arrays[1][first : first + count])
    assert np.array_equal(read[1], arrays[2][1:4]) and np.array_equal(read[2], arrays[1][:7])
    with pytest.raises(ValueError, match="there are 23"):
        reader.read([Piece(places[1], 20, 4)])


def test_copying_goes_on_where_it_was_stopped(packed, tmp_path):
    uri, arrays, read = str(tmp_path / "w"), [np.full((n, 1), n, "<i2") for n in (7, 4, 9, 12)], []

    def give(i, stop_at=None):
        if i == stop_at:
            raise KeyboardInterrupt
        read.append(i)
        return arrays[i]

    def keyed(stop_at=None):
        return [KeyedArray(str(i), len(a), partial(give, i, stop_at)) for i, a in enumerate(arrays)]

    with pytest.raises(KeyboardInterrupt):
        write_windows(uri, keyed(stop_at=2), 1, 4, "x", commit_bytes=1)
    assert read == [0, 1] and lance.dataset(uri).count_rows() == 3
    places = write_windows(uri, keyed(), 1, 4, "x", commit_bytes=1)
    assert read == [0, 1, 2, 3] and lance.dataset(uri).count_rows() == 2 + 1 + 3 + 3
    whole = LanceArrays(uri, 1, 4).read([Piece(p, 0, p.length) for p in places])
    assert all(np.array_equal(r, a) for r, a in zip(whole, arrays, strict=True))
    assert write_windows(uri, keyed(), 1, 4, "x") == places and read == [0, 1, 2, 3]
    with pytest.raises(CorpusError, match="holds something else"):
        write_windows(uri, keyed(), 1, 4, "y")
    with pytest.raises(CorpusError, match="does not end with a whole recording"):
        write_windows(uri, [KeyedArray("0", 40, lambda: arrays[0])], 1, 4, "x")


def test_a_copy_is_a_corpus_only_when_it_is_whole(packed, tmp_path):
    with pytest.raises(CorpusError, match="no finished corpus"):
        Corpus(tmp_path)
    with pytest.raises(CorpusError, match="is not a Lance table"):
        Corpus(tmp_path.as_uri())
    lance.write_dataset(packed.recordings.table, str(tmp_path / "files.lance"))
    with pytest.raises(CorpusError, match="but no corpus"):
        Corpus(tmp_path)


def test_a_copy_gets_targets_that_it_lacks(packed, tmp_path):
    root = tmp_path / "out"
    write(tmp_path / "music/a.wav", tune(0, 2.0, RATE_HZ), RATE_HZ)
    corpus = build_corpus(find_sources([tmp_path / "music"]), root, "one", BuildSettings(RATE_HZ), workers=0)
    uri = str(tmp_path / "copy")
    assert write_lance(corpus, uri).targets == []
    write_targets(corpus, "t", 50.0, (1000, 7), partial(codes_of, corpus))
    copy = write_lance(corpus, uri)
    assert copy.targets == ["t"]
    assert torch.equal(copy.open_targets("t").read(0, 3, 40), corpus.open_targets("t").read(0, 3, 40))
    with pytest.raises(CorpusError, match="holds something else: corpus 'one' at 16000 Hz, not 'small'"):
        write_lance(packed, uri)


def test_a_copy_of_an_earlier_state_is_replaced_when_the_new_one_is_whole(tmp_path):
    music, root, uri = tmp_path / "music", tmp_path / "out", str(tmp_path / "copy")

    def build_with_codes():
        corpus = build_corpus(find_sources([music]), root, "own", BuildSettings(RATE_HZ), workers=0)
        write_targets(corpus, "t", 50.0, (1000, 7), partial(codes_of, corpus))
        return corpus

    write(music / "a.wav", tune(0, 2.0, RATE_HZ), RATE_HZ)
    earlier = build_with_codes()
    write_lance(earlier, uri)
    write(music / "b.wav", tune(1, 3.0, RATE_HZ), RATE_HZ)
    grown = build_with_codes()

    def stop(report):
        if report.done == 4:  # the codes of the second recording: all tables are written but the one of files
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lance(grown, uri, commit_bytes=1, progress=stop)
    kept = Corpus(uri)
    assert kept.hash == earlier.hash and kept.verify() == [] and kept.open_targets("t").num_frames(0) == 100
    copy = write_lance(grown, uri)
    assert copy.hash == grown.hash and copy.verify() == [] and len(copy.recordings) == 2
    codes, own = copy.open_targets("t"), grown.open_targets("t")
    assert all(torch.equal(codes.read(i, 0, 200), own.read(i, 0, 200)) for i in range(2))
    assert len(list((tmp_path / "copy").glob("windows*"))) == 1
    assert len(list((tmp_path / "copy/targets").iterdir())) == 1


def test_codes_of_another_teacher_replace_those_of_a_copy(tmp_path):
    write(tmp_path / "music/a.wav", tune(0, 2.0, RATE_HZ), RATE_HZ)
    corpus = build_corpus(
        find_sources([tmp_path / "music"]), tmp_path / "out", "own", BuildSettings(RATE_HZ), workers=0
    )
    copies = []
    for code in (3, 5):

        def compute(missing, code=code):
            for recording in missing:
                yield RecordingCodes(recording, torch.full((1, 100), code))

        shutil.rmtree(tmp_path / "out/targets", ignore_errors=True)
        store_targets(corpus, TargetsSpec("t", 50.0, (7,)), compute, {"teacher": "constant", "code": code})
        copies.append(write_lance(corpus, str(tmp_path / "copy")).open_targets("t"))
        assert copies[-1].record == {"teacher": "constant", "code": code}
        assert copies[-1].read(0, 0, 200).unique().tolist() == [code]


@pytest.mark.slow
def test_a_run_goes_on_with_a_copy_of_its_corpus(tmp_path):
    """Its identity has the record of the teacher, which the copy carries."""
    write(tmp_path / "music/a.wav", tune(0, 2.0, RATE_HZ), RATE_HZ)
    corpus = build_corpus(
        find_sources([tmp_path / "music"]), tmp_path / "out", "own", BuildSettings(RATE_HZ), workers=0
    )
    features = MfccFeatures(RATE_HZ, 13)
    teacher = KMeansTeacher(features, torch.randn(5, 39, generator=torch.Generator().manual_seed(0)), FITTED)
    compute_targets(corpus, "mfcc39-km5", teacher)
    copy = write_lance(corpus, str(tmp_path / "copy"))
    assert copy.open_targets("mfcc39-km5").record == corpus.open_targets("mfcc39-km5").record
    tiny = "stem=waveform,frame_rate_hz=50,sample_rate_hz=16000"
    run = PretrainRun(
        f"bert:{tiny},dim=32,num_heads=2,ffn_dim=48,num_layers=1,conv_channels=8",
        "hubert:teacher=mfcc39-km5,mask_length=2",
        crop_seconds=1.0,
        train=PretrainConfig(steps=1, batch_size=1),
    )
    pretrain(run, corpus.location, tmp_path / "run")
    assert pretrain(run, copy.location, tmp_path / "run").steps == 1
    other = KMeansTeacher(features, teacher.centroids_KF, {"centroids": "other"})
    shutil.rmtree(tmp_path / "out/targets")
    compute_targets(corpus, "mfcc39-km5", other)
    with pytest.raises(RunFolderError, match="teachers"):
        pretrain(run, corpus.location, tmp_path / "run")


def test_a_build_in_the_lance_form(packed, tmp_path):
    write(tmp_path / "music/a.wav", tune(0, 2.0, RATE_HZ), RATE_HZ)
    sources, out = find_sources([tmp_path / "music"]), tmp_path / "out"

    def build(form):
        return build_corpus(sources, out, "one", BuildSettings(RATE_HZ), form=form, workers=0)

    corpus = build("lance")
    windows = f"windows-{corpus.hash[:12]}.lance"
    assert sorted(p.name for p in out.iterdir()) == [".lock", "files.lance", windows]
    assert corpus.form == "lance" and corpus.read(0, 0, 32_000).abs().max() > 0.5
    write_targets(corpus, "t", 50.0, (1000, 7), partial(codes_of, corpus))  # beside a local copy, packed
    assert Corpus(out).targets == ["t"] and Corpus(out).open_targets("t").num_frames(0) == 100
    with pytest.raises(CorpusError, match="in the Lance form"):
        build("packed")
    with pytest.raises(CorpusError, match="corpus 'one' at 16000 Hz, not 'two'"):
        build_corpus(sources, out, "two", BuildSettings(RATE_HZ), form="lance", workers=0)
    write(tmp_path / "music/b.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    sources = find_sources([tmp_path / "music"])
    (out / "packed.done").mkdir()  # of a build that was killed when it was done
    assert [r.name for r in build("lance").recordings] == ["a.wav", "b.wav"]
    assert len([p for p in out.iterdir() if p.suffix == ".lance"]) == 2 and not (out / "packed.done").exists()
    with pytest.raises(CorpusError, match="in the packed form"):
        write_lance(Corpus(out), str(packed.directory))
    with pytest.raises(CorpusError, match="in the packed form"):
        build_corpus(sources, packed.directory, "small", BuildSettings(RATE_HZ), form="lance", workers=0)
