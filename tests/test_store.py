"""Rows come back as they went in, exactly once, whatever happens to the writer."""

import math
import os
import signal
import subprocess
import sys
import time

import lance
import numpy as np
import pytest

from audiation import store as store_module
from audiation.store import FeatureStore, StoreError, StoreLockedError, list_tables
from audiation.store_rows import FeatureRangeError, FeatureRow, TableSpec, printable, row_key

DIM = 4


def spec(**changes):
    values = dict(
        backbone="fake-v1", weights_hash="0123456789abcdef" * 4, precision="fp32", chunk_seconds=5.0,
        pooling="mean", layers=(0, 1), dim=DIM, sample_rate_hz=1000, normalisation="none",
    )  # fmt: skip
    return TableSpec(**{**values, **changes})


def row(file="aa", window=0, last=False, layers=None, clip_seconds=10.0, pooling="mean"):
    rng = np.random.default_rng([ord(c) for c in file] + [window])
    shape = (DIM,) if pooling == "mean" else (3 + window, DIM)
    layers = layers or {i: rng.standard_normal(shape, dtype=np.float32) for i in (0, 1)}
    rate = None if pooling == "mean" else 25.0
    return FeatureRow(file, f"{file}.wav", 10.0 * window, 10.0, clip_seconds, 5.0, last, layers, rate, 0.02)


def test_rows_come_back_by_key_and_layer(tmp_path):
    rows = [row("aa", 0), row("aa", 1, last=True), row("bb", 0, last=True)]
    with FeatureStore.create(tmp_path, spec()) as store:
        assert store.append(rows) == 3
        table = store.directory
    store = FeatureStore.open(table)
    assert store.keys() == [r.key for r in rows] and len(store) == 3
    for layer in (0, 1):
        everything = store.read(layer)
        assert everything.dtype == np.float32 and everything.shape == (3, DIM)
        np.testing.assert_array_equal(everything, [r.layers[layer] for r in rows])
    picked = [rows[2].key, rows[0].key, rows[2].key]
    np.testing.assert_array_equal(store.read(1, picked), [rows[i].layers[1] for i in (2, 0, 2)])
    assert store.read(1, []).shape == (0, DIM)
    info = store.infos([rows[1].key])[0]
    assert (info.path, info.start_seconds, info.duration_seconds) == ("aa.wav", 10.0, 10.0)
    assert (info.chunk_seconds, info.num_frames, info.frame_rate_hz) == (5.0, 1, None)


def test_frames_are_float16_of_any_length(tmp_path):
    rows = [row("aa", i, pooling="frames") for i in range(5)]
    with FeatureStore.create(tmp_path, spec(pooling="frames")) as store:
        store.append(rows[:3])
        store.flush()
        store.append(rows[3:])
        read = list(store.read_frames(1, [r.key for r in rows[::-1]]))
        infos = store.infos()
    assert [x.shape for x in read] == [(7, DIM), (6, DIM), (5, DIM), (4, DIM), (3, DIM)]
    for got, sent in zip(read, rows[::-1], strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, sent.layers[1].astype(np.float16))
    assert [(i.num_frames, i.frame_rate_hz, i.first_frame_seconds) for i in infos] == [
        (3 + n, 25.0, 0.02) for n in range(5)
    ]


def test_a_layer_is_read_without_the_others(tmp_path):
    big = spec(dim=20_000, layers=(0, 1, 2, 3))
    rng = np.random.default_rng(0)
    rows = [
        FeatureRow("aa", "a.wav", float(i), 1.0, 1.0, 1.0, False,
                   {n: rng.standard_normal(20_000, dtype=np.float32) for n in range(4)})
        for i in range(20)
    ]  # fmt: skip
    with FeatureStore.create(tmp_path, big) as store:
        store.append(rows)
    reader = FeatureStore.open(store.directory)
    before = lance.bytes_read_counter()
    reader.read(2)
    read_bytes = lance.bytes_read_counter() - before
    assert 0.9 * 20 * 80_000 < read_bytes < 1.5 * 20 * 80_000  # one layer of four


def test_known_keys_are_not_appended_again(tmp_path):
    with FeatureStore.create(tmp_path, spec()) as store:
        assert store.append([row("aa", 0), row("aa", 0)]) == 1
        store.flush()
        assert store.append([row("aa", 0), row("aa", 1)]) == 1
    with FeatureStore.create(tmp_path, spec()) as store:
        assert store.append([row("aa", 0), row("aa", 1), row("aa", 2)]) == 1
        assert len(store) == 3
    assert lance.dataset(str(store.directory / "features.lance")).count_rows() == 3


def test_files_are_complete_with_their_last_window(tmp_path):
    with FeatureStore.create(tmp_path, spec()) as store:
        store.append([row("aa", i, last=i == 11) for i in range(12)] + [row("bb", 0)])
        store.append([row("bb", 0, last=True, clip_seconds=None)])
    store = FeatureStore.open(store.directory)
    assert store.is_complete("aa", 10.0) and not store.is_complete("aa", 5.0)
    assert not store.is_complete("bb", 10.0) and store.is_complete("bb", None)
    assert store.keys_by_file(10.0) == {"aa": [row_key("aa", 10.0 * i, 10.0) for i in range(12)]}
    assert store.keys_by_file(None) == {"bb": [row_key("bb", 0.0, None)]}


def test_discard_removes_one_file_cut_one_way(tmp_path):
    kept = [row("aa", 0), row("bb", 0, clip_seconds=None), row("cc", 0)]
    with FeatureStore.create(tmp_path, spec()) as store:
        store.append([kept[0], row("bb", 0), kept[1]])
        store.flush()
        store.append([row("bb", 1), kept[2]])
        store.discard("bb", 10.0)
        store.discard("zz", 10.0)
        assert store.keys() == [r.key for r in kept]
        np.testing.assert_array_equal(
            store.read(0, [kept[2].key, kept[0].key]), [kept[2].layers[0], kept[0].layers[0]]
        )
        store.compact()
        np.testing.assert_array_equal(store.read(1), [r.layers[1] for r in kept])


def test_compaction_leaves_one_file_and_one_version(tmp_path):
    rows = [row("aa", i) for i in range(10)]
    with FeatureStore.create(tmp_path, spec()) as store:
        for r in rows:
            store.append([r])
            store.flush()
        store.compact()
        np.testing.assert_array_equal(store.read(0), [r.layers[0] for r in rows])
    features = store.directory / "features.lance"
    assert len(list((features / "data").iterdir())) == 1
    assert len(list((features / "_versions").glob("*.manifest"))) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pooling", ["mean", "frames"])
def test_values_that_are_not_numbers_are_refused(tmp_path, pooling, bad):
    with FeatureStore.create(tmp_path, spec(pooling=pooling)) as store:
        layers = {i: x.copy() for i, x in row(pooling=pooling).layers.items()}
        layers[1][..., 2] = bad
        with pytest.raises(FeatureRangeError, match=r"fake-v1, layer 1, aa\.wav at 0 s.*NaN or infinite"):
            store.append([row(layers=layers, pooling=pooling)])
        assert len(store) == 0


def test_frames_beyond_float16_are_refused_and_means_are_not(tmp_path):
    huge = {0: np.full((2, DIM), 65504.0, np.float32), 1: np.full((2, DIM), -65600.0, np.float32)}
    with FeatureStore.create(tmp_path, spec(pooling="frames")) as store:
        with pytest.raises(FeatureRangeError, match=r"layer 1.*-?65600.*float16"):
            store.append([row(layers=huge, pooling="frames")])
        store.append([row(layers={0: huge[0], 1: huge[0]}, pooling="frames")])
        assert next(store.read_frames(0)).max() == 65504.0
    with FeatureStore.create(tmp_path, spec()) as store:
        store.append([row(layers={0: huge[0][0], 1: huge[1][0]})])
        assert store.read(1).min() == np.float32(-65600.0)


def test_failures_are_replaced_and_forgotten_per_path(tmp_path):
    with FeatureStore.create(tmp_path, spec()) as store:
        store.record_failure("b.wav", "too short")
        store.record_failure("a.wav", "truncated")
        store.record_failure("b.wav", "empty")
    with FeatureStore.create(tmp_path, spec()) as store:
        assert [(f.path, f.reason) for f in store.failures()] == [("a.wav", "truncated"), ("b.wav", "empty")]
        assert store.failures()[0].time.tzinfo is not None
        store.clear_failure("a.wav")
        store.clear_failure("never-failed.wav")
    assert [f.path for f in FeatureStore.open(store.directory).failures()] == ["b.wav"]


def test_file_names_that_are_not_text_can_be_stored(tmp_path):
    path = os.fsdecode(b"caf\xe9.wav")
    assert printable(path) == "caf\\xe9.wav"
    with FeatureStore.create(tmp_path, spec()) as store:
        store.record_failure(path, "truncated")
    assert FeatureStore.open(store.directory).failures()[0].path == "caf\\xe9.wav"


def test_whatever_changes_a_number_has_a_table_of_its_own(tmp_path):
    changes = [
        {}, {"backbone": "fake-v2"}, {"weights_hash": "f" * 64}, {"precision": "bf16"},
        {"chunk_seconds": None}, {"chunk_seconds": 30.0}, {"pooling": "frames"},
    ]  # fmt: skip
    for change in changes:
        FeatureStore.create(tmp_path, spec(**change)).close()
    assert {s.folder for _, s in list_tables(tmp_path)} == {spec(**c).folder for c in changes}
    assert len(list_tables(tmp_path)) == len(changes)
    assert spec().folder == "fake-v1_0123456789ab_chunk5s_fp32_mean_L0-1"
    assert [spec(chunk_seconds=s).policy for s in (None, 5.0, 2.5)] == ["whole", "chunk5s", "chunk2.5s"]
    assert spec(layers=(0, 4, 7), weights_hash="lib+1.0/x").folder.startswith("fake-v1_lib-1.0-x_")
    assert spec(layers=(0, 4, 7)).folder.endswith("_L0.4.7")


def test_a_table_with_more_layers_serves_for_fewer(tmp_path):
    with FeatureStore.create(tmp_path, spec(layers=(0, 1))) as wide:
        wide.append([row("aa", 0)])
    with FeatureStore.create(tmp_path, spec(layers=(1,))) as store:
        assert store.directory == wide.directory and store.spec.layers == (0, 1) and len(store) == 1
    with FeatureStore.create(tmp_path, spec(layers=(1, 2))) as other:
        assert other.directory != wide.directory and len(other) == 0


def test_a_weights_hash_that_only_starts_alike_is_refused(tmp_path):
    FeatureStore.create(tmp_path, spec()).close()
    with pytest.raises(StoreError, match="Use another store folder"):
        FeatureStore.create(tmp_path, spec(weights_hash="0123456789ab" + "0" * 52))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(StoreError, match="not a feature table"):
        FeatureStore.open(tmp_path)
    with FeatureStore.create(tmp_path, spec()) as store:
        store.append([row("aa", 0)])
        with pytest.raises(StoreError, match=r"holds layers \[0, 1\], not 2"):
            store.read(2)
        with pytest.raises(StoreError, match="1 of 2 rows"):
            store.read(0, [row("aa", 0).key, row("aa", 1).key])
        with pytest.raises(StoreError, match="Use read"):
            next(store.read_frames(0))
    reader = FeatureStore.open(store.directory)
    with pytest.raises(StoreError, match="open for reading"):
        reader.append([row("aa", 1)])


def test_a_store_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file/fake-v1_.* cannot be written \(Not a directory\)"):
        FeatureStore.create(tmp_path / "file", spec())
    store = FeatureStore.create(tmp_path, spec())
    store.append([row("aa", 0)])
    store.flush()
    store.append([row("aa", 1)])

    def full(*_, **__):
        raise OSError("LanceError(IO): No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("audiation.store.lance.write_dataset", full)
        with pytest.raises(StoreError, match=r"No space left on device.*what is committed stays"):
            store.close()
    with FeatureStore.create(tmp_path, spec()) as again:
        assert again.keys() == [row("aa", 0).key]


def test_a_writer_killed_while_making_the_table_leaves_a_usable_folder(tmp_path):
    (tmp_path / spec().folder / "features.lance" / "data").mkdir(parents=True)
    with FeatureStore.create(tmp_path, spec()) as store:
        assert store.append([row()]) == 1


def test_two_writers_are_refused_and_a_closed_one_lets_go(tmp_path):
    with FeatureStore.create(tmp_path, spec()):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
            FeatureStore.create(tmp_path, spec())
        FeatureStore.create(tmp_path, spec(precision="bf16")).close()
    FeatureStore.create(tmp_path, spec()).close()


WRITER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
sys.path.insert(0, {tests!r})
from audiation import store as store_module
from test_store import FeatureStore, row, spec
store_module.COMMIT_ROWS, store_module.COMPACT_EVERY_COMMITS = 3, 4
with FeatureStore.create({directory!r}, spec()) as store:
    print("open", flush=True)
    for file in {files!r}:
        if not store.is_complete(file, 10.0):
            sys.stdin.read(1)  # one byte allows one file; a closed input allows all
            store.append(row(file, i, last=i == 9) for i in range(10))
    store.compact()
print("done", flush=True)
"""


def start_writer(directory, files, allowed):
    """A writer that appends at most `allowed` files before it waits (all of them if None)."""
    tests = os.path.dirname(__file__)
    code = WRITER.format(tests=tests, directory=str(directory), files=files)
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    if allowed is not None:
        process.stdin.write("." * allowed)
        process.stdin.flush()
    return process


def test_a_killed_writer_loses_and_doubles_nothing(tmp_path):
    files = [f"{i:02x}" for i in range(40)]
    rng, counts = np.random.default_rng(0), []
    for attempt in range(5):
        process = start_writer(tmp_path, files, allowed=7)  # 5 x 7 < 40: however fast it is, it cannot finish
        with pytest.raises(StoreLockedError, match=f"process {process.pid}"):
            FeatureStore.create(tmp_path, spec())
        time.sleep(rng.uniform(0.02, 0.3))
        process.send_signal(signal.SIGINT if attempt == 3 else signal.SIGKILL)
        process.wait()
        with FeatureStore.create(tmp_path, spec()) as store:  # the dead writer's lock is no obstacle
            counts.append(len(store))
    assert counts == sorted(counts) and 0 < counts[-1] < 400, counts
    process = start_writer(tmp_path, files, allowed=None)
    assert process.communicate()[0] == "done\n"
    dataset = lance.dataset(str(tmp_path / spec().folder / "features.lance"))
    keys = dataset.to_table(columns=["key"])["key"].to_pylist()
    assert sorted(keys) == sorted(row(file, i).key for file in files for i in range(10))
    reader = FeatureStore.open(tmp_path / spec().folder)
    expected = {row(file, i).key: row(file, i).layers[1] for file in files for i in range(10)}
    np.testing.assert_array_equal(reader.read(1), [expected[key] for key in reader.keys()])


def test_commits_happen_by_rows_bytes_and_time(tmp_path, monkeypatch):
    with FeatureStore.create(tmp_path, spec()) as store:

        def committed():
            return lance.dataset(str(store.directory / "features.lance")).count_rows()

        store.append([row("aa", 0)])
        assert committed() == 0
        monkeypatch.setattr(store_module, "COMMIT_SECONDS", 0.0)
        store.append([row("aa", 1)])
        assert committed() == 2
        monkeypatch.setattr(store_module, "COMMIT_SECONDS", 1e9)
        monkeypatch.setattr(store_module, "COMMIT_ROWS", 2)
        store.append([row("aa", i) for i in (2, 3, 4)])
        assert committed() == 4
        monkeypatch.setattr(store_module, "COMMIT_BYTES", 2 * 2 * DIM * 4)
        monkeypatch.setattr(store_module, "COMMIT_ROWS", 1000)
        store.append([row("aa", i) for i in (5, 6)])  # 4 was pending; two rows are 64 bytes
        assert committed() == 6
