"""What becomes of every file, what is counted about it, and that a killed build ends as one that was not."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from audiation import corpus_build
from audiation.audio import load_audio
from audiation.corpus import CorpusError
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import SourceFile, Sources, find_sources
from audiation.corpus_statistics import listen, near_duplicates, to_float32, to_int16
from audiation.folder_lock import FolderLockedError, locked
from audiation.workers import Answer, WorkerDied
from corpus_files import tune, write

RATE_HZ = 24_000


def build(music, out, workers=0, **settings):
    return build_corpus(
        find_sources([music]), out, "test", BuildSettings(RATE_HZ, **settings), workers=workers
    )


def entries(corpus, status):
    return {e.name: e for e in corpus.recordings.with_status(status)}


# What is stored -------------------------------------------------------------------------------------------


def test_rates_formats_and_channels_become_mono_at_one_rate(tmp_path):
    music = tmp_path / "music"
    stereo = np.stack([tune(1, 2.0, 44_100), tune(2, 2.0, 44_100)], axis=1)
    write(music / "stereo.wav", stereo, 44_100)
    write(music / "low.flac", tune(3, 2.0, 8_000), 8_000)
    write(music / "same.wav", tune(4, 2.0, RATE_HZ), RATE_HZ)
    write(music / "high.ogg", tune(5, 2.5, 48_000), 48_000)
    corpus = build(music, tmp_path / "out")
    assert [(r.name, r.num_samples, r.source_rate_hz) for r in corpus.recordings] == [
        ("high.ogg", 60_000, 48_000),
        ("low.flac", 48_000, 8_000),
        ("same.wav", 48_000, 24_000),
        ("stereo.wav", 48_000, 44_100),
    ]
    for i, r in enumerate(corpus.recordings):
        decoded = load_audio(music / r.name, RATE_HZ).samples
        read = corpus.read(i, 0, r.num_samples)
        assert float((read - decoded).abs().max()) <= 0.5 / 32768 + 1e-9
    assert corpus.header.statistics["source_rates_hz"] == {"8000": 1, "24000": 1, "44100": 1, "48000": 1}


def test_sixteen_bit_mono_at_the_rate_comes_back_bit_by_bit(tmp_path):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 30_000).astype(np.int16)
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music/a.wav", pcm, RATE_HZ, subtype="PCM_16")
    corpus = build(tmp_path / "music", tmp_path / "out")
    assert np.array_equal(corpus.read_int16(0)[:, 0], pcm)


def test_the_rule_of_sixteen_bits():
    x = np.array([0.0, 0.5, -1.0, 1.0, 1.7, -2.0, 0.5 / 32768, 1.5 / 32768, -0.5 / 32768], np.float32)
    assert to_int16(x).tolist() == [0, 16384, -32768, 32767, 32767, -32768, 0, 2, 0]
    every = np.arange(-32768, 32768).astype("<i2")
    assert np.array_equal(to_int16(to_float32(every)), every)


def test_a_file_that_is_measured_in_chunks_is_stored_whole(tmp_path):
    sound = tune(6, 62.0, 12_000)  # longer than a chunk of 60 s
    write(tmp_path / "music/long.wav", sound, 12_000, subtype="FLOAT")
    corpus = build(tmp_path / "music", tmp_path / "out")
    decoded = load_audio(tmp_path / "music/long.wav", RATE_HZ).samples
    assert corpus.num_samples.tolist() == [62 * RATE_HZ]
    assert float((corpus.read(0, 0, 62 * RATE_HZ) - decoded).abs().max()) <= 0.5 / 32768 + 1e-9


# What is odd ----------------------------------------------------------------------------------------------


def test_silence_dc_and_clipping_are_measured(tmp_path):
    music, sound = tmp_path / "music", tune(1, 4.0, RATE_HZ)
    half_silent = np.concatenate([sound[:48_000], np.zeros(48_000)])
    clipped = np.clip(sound * 4, -1, 1)
    write(music / "clean.wav", sound, RATE_HZ, subtype="FLOAT")
    write(music / "half.wav", half_silent, RATE_HZ, subtype="FLOAT")
    write(music / "clipped.wav", clipped, RATE_HZ, subtype="FLOAT")
    write(music / "hot.wav", sound * 4, RATE_HZ, subtype="FLOAT")  # float files may go beyond full scale
    write(music / "dc.wav", sound * 0.5 + 0.25, RATE_HZ, subtype="FLOAT")
    write(music / "only_dc.wav", np.full(96_000, 0.3), RATE_HZ, subtype="FLOAT")
    write(music / "quiet.wav", 0.001 * sound, RATE_HZ, subtype="FLOAT")  # about -72 dB
    corpus = build(music, tmp_path / "out")
    by_name = {r.name: r for r in corpus.recordings}
    share = float((np.abs(clipped.astype(np.float32)) >= 32767 / 32768).mean())
    assert share > 0.05
    assert by_name["clean.wav"].clipped_share == by_name["clean.wav"].silent_share == 0.0
    assert by_name["clean.wav"].peak == pytest.approx(0.6, abs=1e-6)
    assert by_name["half.wav"].silent_share == 0.5
    assert by_name["clipped.wav"].clipped_share == pytest.approx(share)
    hot = entries(corpus, "duplicate")[
        "hot.wav"
    ]  # what is beyond full scale saturates, so nothing else is left of it
    assert hot.duplicate_of == "clipped.wav" and hot.clipped_share == by_name["clipped.wav"].clipped_share
    assert by_name["clipped.wav"].peak == 1.0 and hot.peak == pytest.approx(2.4, abs=1e-5)
    assert by_name["dc.wav"].dc_offset == pytest.approx(float(sound.mean()) * 0.5 + 0.25, abs=1e-5)
    left_out = entries(corpus, "left out")
    assert {name: e.reason for name, e in left_out.items()} == {
        "only_dc.wav": "silent throughout",
        "quiet.wav": "silent throughout",
    }
    facts = corpus.header.statistics
    assert facts["left_out"] == {"silent throughout": 2} and facts["dc_recordings"] == 1
    kept = build(music, tmp_path / "kept", keep_silence=True)
    assert {"only_dc.wav", "quiet.wav"} <= {r.name for r in kept.recordings}


def test_exact_duplicates_are_stored_once_and_listed(tmp_path):
    music, sound = tmp_path / "music", (tune(1, 3.0, RATE_HZ) * 32767).astype(np.int16)
    write(music / "b/song.wav", sound, RATE_HZ, subtype="PCM_16")
    write(music / "a.flac", sound, RATE_HZ, subtype="PCM_16")
    write(music / "c.wav", np.stack([sound, sound], axis=1), RATE_HZ, subtype="PCM_16")
    write(music / "other.wav", tune(2, 3.0, RATE_HZ), RATE_HZ)
    corpus = build(music, tmp_path / "out")
    assert [r.name for r in corpus.recordings] == ["a.flac", "other.wav"]
    assert {n: e.duplicate_of for n, e in entries(corpus, "duplicate").items()} == {
        "b/song.wav": "a.flac",
        "c.wav": "a.flac",
    }
    assert (tmp_path / "out/audio-00000.s16").stat().st_size == 2 * 72_000 * 2
    assert corpus.hours == pytest.approx(6 / 3600)
    assert corpus.header.statistics["duplicate_hours"] == pytest.approx(6 / 3600)


def test_other_encodings_of_a_recording_are_near_duplicates(tmp_path):
    music = tmp_path / "music"
    for seed in range(8):
        write(music / f"{seed}.wav", tune(seed, 10.0, 44_100), 44_100)
    write(music / "3 quieter.ogg", 0.3 * tune(3, 10.0, 44_100), 44_100)
    late = np.concatenate([np.zeros(2205), tune(5, 10.0, 44_100)])  # 50 ms, as encoders add
    write(music / "5 late.mp3", late, 44_100)
    write(music / "6 longer.wav", np.concatenate([tune(6, 10.0, 44_100), tune(9, 0.5, 44_100)]), 44_100)
    corpus = build(music, tmp_path / "out")
    found = {r.name: r.near_duplicate_of for r in corpus.recordings if r.near_duplicate_of}
    assert found == {"3.wav": "3 quieter.ogg", "5.wav": "5 late.mp3"}
    assert corpus.header.statistics["near_duplicates"] == 2 and len(corpus.recordings) == 11
    assert [e.name for e in corpus.recordings.near_duplicates()] == ["3.wav", "5.wav"]


def test_unrelated_recordings_differ_in_half_of_their_fingerprints():
    prints = [
        listen([tune(seed, 8.0, RATE_HZ).astype(np.float32)], RATE_HZ).fingerprint for seed in range(12)
    ]
    values = [int(p, 16) for p in prints]
    distances = [(a ^ b).bit_count() for i, a in enumerate(values) for b in values[:i]]
    assert min(distances) > 80 and abs(np.mean(distances) - 128) < 12
    assert listen([tune(0, 1.0, RATE_HZ).astype(np.float32)], RATE_HZ).fingerprint == ""
    same = {f"r{i}": p for i, p in enumerate([prints[0], prints[1], prints[0], prints[0]])}
    lengths = {"r0": 100_000, "r1": 100_000, "r2": 105_900, "r3": 112_000}
    assert near_duplicates(same, lengths, RATE_HZ) == {"r2": "r0"}  # r3 is more than 0.25 s longer than r2


def test_what_cannot_be_read_is_listed_with_its_reason(tmp_path):
    music = tmp_path / "music"
    write(music / "good.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    whole = write(music / "cut.flac", tune(2, 4.0, RATE_HZ), RATE_HZ).read_bytes()
    (music / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (music / "text.mp3").write_text("no music")
    (music / "empty.ogg").touch()
    (music / "broken.wav").symlink_to(tmp_path / "nowhere")
    (music / "film.m4a").write_bytes(b"\0" * 100)
    write(music / "nan.wav", np.array([np.nan] * 48_000), RATE_HZ, subtype="FLOAT")
    write(music / "short.wav", tune(3, 0.9, RATE_HZ), RATE_HZ)
    (music / "cover.jpg").touch()
    (music / ".hidden.wav").touch()
    corpus = build(music, tmp_path / "out")
    assert [r.name for r in corpus.recordings] == ["good.wav"]
    failed = entries(corpus, "failed")
    assert set(failed) == {"broken.wav", "cut.flac", "empty.ogg", "film.m4a", "nan.wav", "text.mp3"}
    assert "cut short" in failed["cut.flac"].reason and "NaN" in failed["nan.wav"].reason
    assert {n: e.reason for n, e in entries(corpus, "left out").items()} == {
        "short.wav": "shorter than min_seconds"
    }
    facts = corpus.header.statistics
    assert facts["files"] == {"failed": 6, "stored": 1, "left out": 1}
    assert (facts["files_of_other_kinds"], facts["hidden_files"]) == (1, 1)


def test_a_worker_that_dies_is_a_failure_of_its_file(tmp_path, monkeypatch):
    write(tmp_path / "music/a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    write(tmp_path / "music/b.wav", tune(2, 2.0, RATE_HZ), RATE_HZ)

    def dying(jobs, answer, workers, threads):
        for job in jobs:
            if job.source.name == "a.wav":
                yield Answer(job, WorkerDied(-9))
            else:
                yield from (Answer(job, message) for message in answer(job))

    with monkeypatch.context() as patch:
        patch.setattr(corpus_build, "serve", dying)
        corpus = build(tmp_path / "music", tmp_path / "out")
    assert "exit code -9" in entries(corpus, "failed")["a.wav"].reason
    again = build(tmp_path / "music", tmp_path / "out")  # which tries failures again
    assert [r.name for r in again.recordings] == ["a.wav", "b.wav"]


def test_two_builds_of_one_folder_do_not_meet(tmp_path):
    write(tmp_path / "music/a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    with locked(tmp_path, "building"), pytest.raises(FolderLockedError, match="is in use by process"):
        build(tmp_path / "music", tmp_path)
    assert len(build(tmp_path / "music", tmp_path).recordings) == 1


def test_a_folder_of_nothing_is_refused(tmp_path):
    (tmp_path / "music").mkdir()
    with pytest.raises(CorpusError, match="nothing could be stored of 0 files"):
        build(tmp_path / "music", tmp_path / "out")
    (tmp_path / "music/a.wav").write_text("x")
    with pytest.raises(CorpusError, match=r"of 1 files\. The first: a\.wav: "):
        build(tmp_path / "music", tmp_path / "out")


# Names ----------------------------------------------------------------------------------------------------


def test_several_paths_keep_their_names_apart(tmp_path):
    write(tmp_path / "x/a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    write(tmp_path / "y/a.wav", tune(2, 2.0, RATE_HZ), RATE_HZ)
    write(tmp_path / "z/x/a.wav", tune(3, 2.0, RATE_HZ), RATE_HZ)
    found = find_sources([tmp_path / "x", tmp_path / "y"])
    assert [source.name for source in found.files] == ["x/a.wav", "y/a.wav"]
    assert [source.name for source in find_sources([tmp_path / "x"]).files] == ["a.wav"]
    assert [source.name for source in find_sources([tmp_path / "x/a.wav"]).files] == ["a.wav"]
    with pytest.raises(ValueError, match=r"both be called 'x/a\.wav'"):
        find_sources([tmp_path / "x", tmp_path / "z/x"])
    with pytest.raises(ValueError, match="no path"):
        find_sources([])


def test_group_and_licence_come_from_the_sources(tmp_path):
    path = write(tmp_path / "a.wav", tune(1, 2.0, RATE_HZ), RATE_HZ)
    sources = Sources((SourceFile(path, "one", "Ada", "CC0"),))
    corpus = build_corpus(sources, tmp_path / "out", "test", BuildSettings(RATE_HZ), workers=0)
    assert (corpus.recordings[0].group, corpus.recordings[0].licence) == ("Ada", "CC0")
    assert corpus.header.statistics["licences"] == {"CC0": 1}


@pytest.mark.parametrize("settings", [{"sample_rate_hz": 22_050}, {"min_seconds": -1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must be"):
        BuildSettings(**settings)
