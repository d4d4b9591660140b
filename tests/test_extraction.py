"""What is in the store is what the backbone says, every file is accounted for, and a killed run resumes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from audiation.audio import load_audio
from audiation.backbones.base import Backbone, HiddenStates
from audiation.extraction import ExtractProgress, extract
from audiation.inference import ChunkPolicy, run_clip
from audiation.store import FeatureStore, StoreLockedError
from audiation.workers import available_cores

RATE = 4000


class Conv(Backbone):
    """A small model with parameters: 2 layers, frames of 80 samples, chunks of half a second."""

    name, sample_rate_hz, hop_samples, min_samples = "conv", RATE, 80, 200
    frame_rate_hz, num_layers, dim, max_seconds = RATE / 80, 1, 6, 0.5
    normalisation, accepts_padding, weights_hash = "none", False, "ab" * 32

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 1, 200, generator=generator))
        self.seen_training = set()

    def num_frames(self, num_samples):
        return (num_samples - 200) // 80 + 1

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        self.check_input(waveform, num_samples)
        self.seen_training.add(self.training)
        wanted, _ = self.resolve_layers(layers, last_layer)
        normed = waveform / waveform.square().mean(1, keepdim=True).add(1e-9).sqrt()
        hidden = torch.conv1d(normed[:, None], self.weight, stride=80).transpose(1, 2)
        all_layers = {0: hidden, 1: torch.tanh(hidden)}
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool)
        states = HiddenStates({i: all_layers[i] for i in wanted}, valid, self.frame_rate_hz, 100 / RATE)
        return states.mean() if reduce else states


class Formula(Conv):
    """No parameters, one vector per clip; it can be told to take its process down."""

    name, frame_rate_hz, hop_samples, max_seconds, num_layers, dim = "formula", None, None, None, 0, 2
    weights_hash = "formula-1"

    def __init__(self, deadly_peak=None):
        super().__init__()
        del self.weight
        self.deadly_peak = deadly_peak

    def num_frames(self, num_samples):
        return 1

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        self.check_input(waveform, num_samples)
        if self.deadly_peak is not None and float(waveform.abs().max()) > self.deadly_peak:
            os.kill(os.getpid(), signal.SIGKILL)
        vector = torch.stack([waveform.mean(1), waveform.std(1)], -1)[:, None]
        return HiddenStates({0: vector}, torch.ones(len(waveform), 1, dtype=torch.bool), None, 0.0)


def write(path, seconds, seed=0, gain=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    soundfile.write(path, gain * np.clip(noise, -3, 3), RATE, subtype="FLOAT", format="WAV")
    return path


@pytest.fixture
def music(tmp_path):
    """Three files: 2.3 s (a remainder of 0.3 s), 1 s, and 3.02 s (a remainder too short for the backbones)."""
    write(tmp_path / "music/a.wav", 2.3, seed=1)
    write(tmp_path / "music/deep/er/b.WAV", 1.0, seed=2)
    write(tmp_path / "music/c.wav", 3.02, seed=3)
    return tmp_path / "music"


def stored(report, layer=0, clip_seconds=1.0):
    """(file name, start) -> features"""
    store = FeatureStore.open(report.table)
    read = store.read if store.spec.pooling == "mean" else store.read_frames
    infos = store.infos()
    return {(Path(i.path).name, i.start_seconds): x for i, x in zip(infos, read(layer), strict=True)}


def test_features_are_those_of_the_backbone(tmp_path, music):
    backbone = Conv()
    report = extract([music], backbone, tmp_path / "store", clip_seconds=1.0)
    assert report.table == tmp_path / "store" / "conv_abababababab_chunk0.5s_fp32_mean_L0-1"
    assert (report.num_done, report.num_rows, report.failures) == (3, 7, ())
    assert report.audio_seconds == pytest.approx(2.3 + 1.0 + 3.0)
    assert report.dropped_seconds == pytest.approx(0.02)
    for layer in (0, 1):
        features = stored(report, layer)
        assert set(features) == {
            ("a.wav", 0.0), ("a.wav", 1.0), ("a.wav", 2.0), ("b.WAV", 0.0),
            ("c.wav", 0.0), ("c.wav", 1.0), ("c.wav", 2.0),
        }  # fmt: skip
        for (name, start), got in features.items():
            path = next(music.rglob(name))
            samples = load_audio(path, RATE, start_seconds=start, duration_seconds=1.0).samples
            with torch.no_grad():
                expected = run_clip(backbone, samples, ChunkPolicy(0.5)).layers[layer].mean(1)[0]
            np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)
    remainder = FeatureStore.open(report.table).infos()[2]
    assert remainder.duration_seconds == pytest.approx(0.3) and remainder.chunk_seconds == pytest.approx(0.3)


def test_frames_are_those_of_the_backbone(tmp_path, music):
    report = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0, pooling="frames", layers=[1])
    samples = load_audio(music / "a.wav", RATE, start_seconds=1.0, duration_seconds=1.0).samples
    expected = run_clip(Conv(), samples).layers[1][0].detach().numpy()
    got = stored(report, 1)["a.wav", 1.0]
    assert got.dtype == np.float16 and got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-3)
    info = FeatureStore.open(report.table).infos()[1]
    assert (info.num_frames, info.frame_rate_hz, info.first_frame_seconds) == (len(expected), 50.0, 0.025)


def test_whole_files_are_one_row_each(tmp_path, music):
    backbone = Formula()
    report = extract([music], backbone, tmp_path / "store", clip_seconds=None)
    features = stored(report)
    assert report.num_rows == 3
    for path in music.rglob("*.*"):
        expected = backbone(load_audio(path, RATE).samples[None]).layers[0][0, 0].numpy()
        np.testing.assert_array_equal(features[path.name, 0.0], expected)


def test_decoding_in_workers_changes_nothing(tmp_path, music):
    alone = extract([music], Conv(), tmp_path / "alone", clip_seconds=1.0)
    helped = extract([music], Conv(), tmp_path / "helped", clip_seconds=1.0, workers=1)
    assert (helped.num_done, helped.num_rows, helped.failures) == (3, 7, ())
    expected, got = stored(alone), stored(helped)
    assert set(got) == set(expected)
    for key, x in expected.items():
        np.testing.assert_array_equal(got[key], x)


def test_a_second_run_decodes_nothing(tmp_path, music, monkeypatch):
    first = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0)
    monkeypatch.setattr("audiation.extraction_steps.stream_audio", None)
    second = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0)
    assert (second.num_done, second.num_resumed, second.num_rows) == (0, 3, 0)
    assert second.table == first.table and second.audio_seconds == 0.0


def test_other_windows_are_other_rows(tmp_path, music):
    extract([music], Conv(), tmp_path / "store", clip_seconds=1.0)
    report = extract([music], Conv(), tmp_path / "store", clip_seconds=2.0)
    assert (report.num_done, report.num_rows) == (3, 2 + 1 + 2)
    store = FeatureStore.open(report.table)
    assert len(store) == 7 + 5
    assert sorted(map(len, store.keys_by_file(1.0).values())) == [1, 3, 3]
    assert sorted(map(len, store.keys_by_file(2.0).values())) == [1, 2, 2]


def test_a_table_with_all_layers_serves_for_one(tmp_path, music):
    everything = extract([music / "a.wav"], Conv(), tmp_path / "store", clip_seconds=1.0)
    one = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0, layers=[1])
    assert (one.num_resumed, one.num_done, one.table) == (1, 2, everything.table)
    assert one.spec.layers == (0, 1)


def test_every_file_is_accounted_for(tmp_path, music):
    shutil.copy(music / "a.wav", music / "same-as-a.wav")
    (music / "cover.jpg").write_bytes(b"not audio")
    (music / ".hidden.wav").write_bytes(b"")
    (music / ".cache").mkdir()
    (music / "text.mp3").write_text("not audio at all, whatever the name says\n" * 10)
    (music / "empty.flac").write_bytes(b"")
    (music / "gone.ogg").symlink_to(tmp_path / "nowhere.ogg")
    (music / "deep" / "loop").symlink_to(music)
    truncated = (music / "c.wav").read_bytes()
    (music / "cut.wav").write_bytes(truncated[: len(truncated) // 2])
    write(music / "short.wav", 0.04, seed=9)
    named = write(tmp_path / "no-suffix", 1.0, seed=8)
    missing = tmp_path / "missing.wav"
    told = []
    report = extract(
        [music, named, missing], Conv(), tmp_path / "store", clip_seconds=1.0, on_failure=told.append
    )
    assert (report.num_done, report.num_duplicates, report.num_other, report.num_hidden) == (4, 1, 1, 2)
    reasons = {Path(f.path).name: f.reason for f in report.failures}
    assert set(reasons) == {"text.mp3", "empty.flac", "gone.ogg", "cut.wav", "short.wav", "missing.wav"}
    assert "0.040 s; conv needs at least 0.050 s. Leave it out." in reasons["short.wav"]
    assert list(report.failures) == told
    store = FeatureStore.open(report.table)
    assert {f.path for f in store.failures()} == {f.path for f in report.failures}
    assert {Path(i.path).name for i in store.infos()} == {"a.wav", "b.WAV", "c.wav", "no-suffix"}


def test_a_folder_that_cannot_be_listed_is_counted_as_one_that_failed(tmp_path, music, monkeypatch):
    scandir = os.scandir

    def refuses(folder):
        if Path(folder).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("audiation.music_files.os.scandir", refuses)
    seen = []
    report = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0, progress=seen.append)
    assert [(Path(f.path).name, f.reason) for f in report.failures] == [
        ("deep", "folder cannot be listed (Permission denied). Check its permissions, or leave it out.")
    ]
    assert (seen[-1].files_done, seen[-1].files_failed, seen[-1].files_total) == (2, 1, 3)


def test_copies_of_a_broken_file_whose_name_is_not_text(tmp_path):
    for name in (os.fsdecode(b"a\xff.wav"), "b.wav"):
        (tmp_path / "music").mkdir(exist_ok=True)
        (tmp_path / "music" / name).write_bytes(b"RIFF")
    seen = []
    report = extract([tmp_path / "music"], Conv(), tmp_path / "store", progress=seen.append)
    assert [Path(f.path).name for f in report.failures] == ["a\\xff.wav", "b.wav"]
    assert report.failures[1].reason.endswith("a\\xff.wav)")
    assert (seen[-1].files_failed, seen[-1].files_duplicate, report.num_duplicates) == (2, 0, 0)
    assert FeatureStore.open(report.table).failures() == list(report.failures)


def test_a_failure_is_forgotten_when_the_retry_works(tmp_path):
    path = tmp_path / "music" / "a.wav"
    path.parent.mkdir()
    path.write_bytes(b"")
    first = extract([path], Conv(), tmp_path / "store", clip_seconds=1.0)
    assert len(first.failures) == 1 and len(FeatureStore.open(first.table).failures()) == 1
    write(path, 1.0)
    second = extract([path], Conv(), tmp_path / "store", clip_seconds=1.0)
    assert second.failures == () and FeatureStore.open(second.table).failures() == []


def test_a_file_that_fails_half_way_leaves_no_row(tmp_path, music, monkeypatch):
    from audiation import extraction_steps

    whole = extraction_steps.stream_audio

    def breaks(path, *args, **kwargs):
        for i, window in enumerate(whole(path, *args, **kwargs)):
            if i == 2 and path.name == "c.wav":
                raise OSError("the disk went away")
            yield window

    monkeypatch.setattr(extraction_steps, "stream_audio", breaks)
    monkeypatch.setattr("audiation.store.COMMIT_ROWS", 1)
    shutil.copy(music / "c.wav", music / "d.wav")
    report = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0, batch_size=1)
    assert {Path(f.path).name: f.reason for f in report.failures} == {
        "c.wav": "OSError: the disk went away",
        "d.wav": f"OSError: the disk went away (same content as {music / 'c.wav'})",
    }
    assert {name for name, _ in stored(report)} == {"a.wav", "b.WAV"}
    assert (report.num_duplicates, report.num_done, report.num_rows) == (0, 2, 4)
    monkeypatch.setattr(extraction_steps, "stream_audio", whole)
    again = extract([music], Conv(), tmp_path / "store", clip_seconds=1.0)
    assert (again.num_done, again.num_resumed, again.num_duplicates, again.failures) == (1, 2, 1, ())
    assert len(stored(again)) == 7


def test_values_that_do_not_fit_float16_fail_the_file(tmp_path, music):
    backbone = Conv()
    with torch.no_grad():
        backbone.weight.mul_(1e6)
    report = extract([music / "deep"], backbone, tmp_path / "store", pooling="frames")
    assert report.num_done == 0 and report.num_rows == 0 and len(report.failures) == 1
    assert all("conv, layer 0" in f.reason and "float16" in f.reason for f in report.failures)
    assert extract([music], backbone, tmp_path / "store").num_done == 3


def test_a_fault_of_the_model_stops_the_run(tmp_path, music):
    class Faulty(Conv):
        def forward(self, *args, **kwargs):
            raise RuntimeError("a bug, not a bad file")

    with pytest.raises(RuntimeError, match="a bug"):
        extract([music], Faulty(), tmp_path / "store", clip_seconds=1.0)
    extract([music], Conv(), tmp_path / "store", clip_seconds=1.0)  # and the table is free again


def test_a_killed_worker_is_a_failure_of_its_file_only(tmp_path, music):
    alone = extract([music], Formula(), tmp_path / "alone", clip_seconds=1.0)
    write(music / "b-deadly.wav", 1.0, seed=5, gain=0.3)
    report = extract([music], Formula(deadly_peak=0.5), tmp_path / "store", clip_seconds=1.0, workers=1)
    assert report.num_done == 3 and report.num_rows == 7
    assert [Path(f.path).name for f in report.failures] == ["b-deadly.wav"]
    assert "killed by signal 9" in report.failures[0].reason
    expected, got = stored(alone), stored(report)
    assert set(got) == set(expected)
    for key, x in expected.items():
        np.testing.assert_array_equal(got[key], x)


def test_progress_tells_speed_and_time_left(tmp_path, music):
    seen = []
    extract([music], Conv(), tmp_path / "store", clip_seconds=1.0, progress=seen.append)
    assert [p.files_done for p in seen] == sorted(p.files_done for p in seen) and seen[-1].files_done == 3
    assert seen[-1].bytes_left == 0 and seen[-1].seconds_left == 0
    assert seen[-1].audio_seconds == pytest.approx(6.3)
    assert ExtractProgress(9).seconds_left is None and ExtractProgress(9).audio_hours_per_hour == 0
    halfway = ExtractProgress(9, audio_seconds=600, wall_seconds=60, bytes_done=10, bytes_left=30)
    assert (halfway.audio_hours_per_hour, halfway.seconds_left) == (10.0, 180.0)


def test_progress_shows_inside_a_long_file(tmp_path, music, monkeypatch):
    monkeypatch.setattr("audiation.extraction_steps.LONG_FILE_BYTES", 1)
    seen, size = [], (music / "c.wav").stat().st_size
    extract([music / "c.wav"], Conv(), tmp_path / "s", clip_seconds=1.0, batch_size=1, progress=seen.append)
    shares = [p.bytes_done / size for p in seen]
    assert shares == pytest.approx([1 / 3.02, 2 / 3.02, 3 / 3.02, 1.0])


def test_the_backbone_is_left_as_it_was(tmp_path, music):
    backbone, threads = Conv().train(), torch.get_num_threads()
    extract([music], backbone, tmp_path / "store", clip_seconds=1.0, threads=1)
    assert backbone.seen_training == {False} and backbone.training
    assert torch.get_num_threads() == threads


def test_what_cannot_work_is_refused_at_once(tmp_path, music):
    store = tmp_path / "store"
    with pytest.raises(ValueError, match="no audio files there"):
        extract([], Conv(), store)
    for seconds in (0, -1.0, float("nan"), float("inf"), 1e12):
        with pytest.raises(ValueError, match="clip_seconds"):
            extract(music, Conv(), store, clip_seconds=seconds)
    for device in ("nonsense", "cuda:99"):  # Formula holds nothing that could be moved there
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            extract(music, Formula(), store, device=device)
    with pytest.raises(ValueError, match="got 7"):
        extract(music, Conv(), store, layers=[7])
    with pytest.raises(ValueError, match="one vector per clip"):
        extract(music, Formula(), store, pooling="frames")
    with pytest.raises(ValueError, match="one vector per clip"):
        extract(music, Formula(), store, chunk_seconds=0.5)
    with pytest.raises(ValueError, match="at least 200 samples"):
        extract(music, Conv(), store, clip_seconds=0.01)
    with pytest.raises(ValueError, match="do not fit"):
        extract(music, Formula(), store, workers=available_cores(), threads=2)
    with pytest.raises(ValueError, match="batch_size"):
        extract(music, Conv(), store, batch_size=0)
    assert not store.exists()


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
sys.path.insert(0, {tests!r})
import time, torch
torch.set_num_threads(1)
from test_extraction import Conv, extract
from audiation import store
store.COMMIT_ROWS, store.COMPACT_EVERY_COMMITS = 2, 3

class Slow(Conv):
    def forward(self, *args, **kwargs):
        time.sleep(0.01)
        return super().forward(*args, **kwargs)

print("begin", flush=True)
extract([{music!r}], Slow(), {store!r}, clip_seconds=1.0, batch_size=2)
"""


def start(music, store):
    code = SCRIPT.format(tests=os.path.dirname(__file__), music=str(music), store=str(store))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begin\n"
    return process


def test_a_killed_extraction_resumes_without_loss_or_double(tmp_path):
    for i in range(12):
        write(tmp_path / f"music/{i}.wav", 5.5, seed=i)
    options = {"clip_seconds": 1.0, "batch_size": 2, "threads": 1}  # the last bits depend on the threads
    expected = stored(extract([tmp_path / "music"], Conv(), tmp_path / "whole", **options))
    assert len(expected) == 72
    store, table, counts = tmp_path / "store", None, [0]
    for number in (signal.SIGKILL, signal.SIGINT):
        process = start(tmp_path / "music", store)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # until it has got further than the one before
            tables = list(store.glob("*/features.lance"))
            if tables and any((tables[0] / "_versions").glob("*.manifest")):
                table = tables[0]
                if lance.dataset(str(table)).count_rows() > counts[-1]:
                    break
            time.sleep(0.01)
        with pytest.raises(StoreLockedError, match=str(process.pid)):
            extract([tmp_path / "music"], Conv(), store, clip_seconds=1.0)
        process.send_signal(number)
        process.wait()
        counts.append(lance.dataset(str(table)).count_rows())
    assert 0 < counts[1] < counts[2] < 72
    resumed = extract([tmp_path / "music"], Conv(), store, **options)
    keys = lance.dataset(str(table)).to_table(columns=["key"])["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 72
    assert 0 < resumed.num_done <= 12 == resumed.num_done + resumed.num_resumed
    got = stored(resumed)
    assert set(got) == set(expected)
    for key, x in expected.items():
        np.testing.assert_array_equal(got[key], x)  # to the same bits
