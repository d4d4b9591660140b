"""Conversion to safetensors: the same tensors, one at a time, with a record of where they came from."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from audiation.checkpoints import WeightsError, conversion, read_checkpoint
from audiation.checkpoints.conversion import cached_conversion, convert
from audiation.checkpoints.tensors import CheckpointTensors
from checkpoint_files import FORMATS, example, write, write_bundle


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_safetensors(tmp_path: Path, kind: str):
    source = write(kind, tmp_path / "in", example())
    out = convert(source, tmp_path / "out" / "model.safetensors")
    found = load_file(out)  # by the library
    assert set(found) == set(example())
    for name, expected in example().items():
        assert torch.equal(found[name], expected) and found[name].dtype == expected.dtype, name
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.safetensors", "model.safetensors.json"]


def test_every_dtype_and_shape_is_written_aligned(tmp_path: Path):
    dtypes = [*conversion.SAFETENSORS_DTYPES]
    content = {
        f"{i}": torch.arange(5).to(dtype)
        for i, dtype in enumerate(dtypes)
        if dtype not in (torch.uint16, torch.uint32, torch.uint64)
    }  # torch.save has no storages for these
    content |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 4), "é": torch.eye(3).t()}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    out = convert(tmp_path / "x.pt", tmp_path / "y.safetensors")
    found = load_file(out)
    assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in content.items())
    head = out.read_bytes()
    length = int.from_bytes(head[:8], "little")
    assert length % 8 == 0
    table = json.loads(head[8 : 8 + length])
    for name, value in content.items():
        assert table[name]["data_offsets"][0] % value.dtype.itemsize == 0
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_record_says_where_it_came_from_and_what_was_left_out(tmp_path: Path):
    write_bundle(tmp_path / "model", example())
    out = convert(
        tmp_path / "model",
        tmp_path / "y.safetensors",
        keep=lambda name: name != "steps",
        rename=lambda name: name.replace("block/", "blocks.0."),
    )
    assert set(load_file(out)) == {"blocks.0.kernel", "blocks.0.bias", "half"}
    record = json.loads((tmp_path / "y.safetensors.json").read_text())
    assert record["sources"] == [
        {"name": p.name, "num_bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in (tmp_path / "model.index", tmp_path / "model.data-00000-of-00001")
    ]
    assert record["left_out"] == {"steps": "not wanted (keep)"} and record["num_tensors"] == 3
    assert record["renamed"] == {"block/kernel": "blocks.0.kernel", "block/bias": "blocks.0.bias"}
    assert record["converted"].startswith("20") and record["audiation"]


def test_tensors_are_read_one_by_one_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write("torch legacy", tmp_path, example())
    asked = []
    original = CheckpointTensors.__getitem__

    def counting(self, name):
        asked.append(name)
        return original(self, name)

    monkeypatch.setattr(CheckpointTensors, "__getitem__", counting)
    convert(source, tmp_path / "y.safetensors", keep=lambda name: name.startswith("block"))
    assert sorted(asked) == ["block/bias", "block/kernel"]


def test_nothing_is_left_behind_where_a_conversion_fails(tmp_path: Path):
    source = write("tensor bundle", tmp_path / "in", example())
    data = source.with_name("model.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(WeightsError, match="the checksum differs"):
        convert(source, tmp_path / "out" / "y.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"keep": lambda name: False}, "nothing of .* would be kept: none of its 4 tensors is wanted"),
        ({"rename": lambda name: "a"}, "would both be called 'a'"),
        ({"rename": lambda name: "__metadata__"}, "which safetensors keeps for itself"),
    ],
)
def test_conversions_without_sense_are_refused(tmp_path: Path, arguments, reason: str):
    with pytest.raises(WeightsError, match=reason):
        convert(write("torch zip", tmp_path, example()), tmp_path / "y.safetensors", **arguments)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"0\.0 GB are free\. Make room.*AUDIATION_CACHE"):
        convert(write("torch zip", tmp_path, example()), tmp_path / "y.safetensors")


def test_a_cached_conversion_is_made_once_for_the_same_bytes_and_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write("torch legacy", tmp_path / "a", example())
    first = cached_conversion(source)
    written = first.stat().st_mtime_ns
    assert first.is_relative_to(tmp_path / "cache" / "converted") and set(read_checkpoint(first)) == set(
        example()
    )
    copy = tmp_path / "b" / "other-name.pth.tar"
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    assert cached_conversion(copy) == first and first.stat().st_mtime_ns == written
    without = cached_conversion(source, lambda name: name == "steps", "steps")
    assert without != first and set(read_checkpoint(without)) == set(example()) - {"steps"}
    hashed = []
    monkeypatch.setattr(conversion, "file_sha256", lambda path: hashed.append(path) or "0" * 64)
    assert cached_conversion(source) == first and hashed == []
    os.utime(source, ns=(1, 1))  # it may have changed
    cached_conversion(source)
    assert hashed == [source]
    first.unlink()
    assert not first.exists()


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "no record", "another record", "no JSON"])
def test_a_damaged_conversion_in_the_cache_is_made_anew(tmp_path: Path, damage: str):
    source = write("torch legacy", tmp_path / "a", example())
    out = cached_conversion(source)
    record, whole = out.with_name(out.name + ".json"), out.read_bytes()
    described = json.loads(record.read_text())
    assert described["num_bytes"] == len(whole)
    assert described["sha256"] == hashlib.sha256(whole).hexdigest()
    if damage == "shorter":
        out.write_bytes(whole[:-9])
    elif damage == "other bytes":
        out.write_bytes(whole[:-4] + b"\0\0\0\0")
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[]" if damage == "another record" else "{")
    assert cached_conversion(source) == out and out.read_bytes() == whole
    assert json.loads(record.read_text())["sha256"] == described["sha256"]
    assert all(torch.equal(read_checkpoint(out)[name], value) for name, value in example().items())


def test_another_format_of_conversions_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write("torch legacy", tmp_path / "a", example())
    first = cached_conversion(source)
    monkeypatch.setattr(conversion, "FORMAT", conversion.FORMAT + 1)
    assert cached_conversion(source) != first


def test_bytes_that_changed_under_the_same_times_are_noticed(tmp_path: Path):
    source = write("torch legacy", tmp_path / "a", {"a": torch.ones(4)})
    first = cached_conversion(source)
    state = source.stat()
    content = source.read_bytes()
    with source.open("r+b") as stream:  # the same inode
        stream.seek(len(content) - 4)
        stream.write(bytes(4))
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = cached_conversion(source)
    assert second != first and read_checkpoint(second)["a"].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_a_source_that_changes_while_it_is_converted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write("torch legacy", tmp_path / "a", {"a": torch.ones(4)})
    original = CheckpointTensors.__getitem__

    def changing(self, name):
        os.utime(source, ns=(1, 1))
        return original(self, name)

    monkeypatch.setattr(CheckpointTensors, "__getitem__", changing)
    with pytest.raises(WeightsError, match="changed while it was converted"):
        convert(source, tmp_path / "out" / "y.safetensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_of_one_tensor_do_not_make_a_large_file_of_a_small_one(tmp_path: Path):
    values = torch.arange(1000.0)
    source = tmp_path / "x.pt"
    torch.save({f"w{i}": values for i in range(50)}, source, _use_new_zipfile_serialization=False)
    with pytest.raises(
        WeightsError, match=r"have 200,000 bytes and the file .*: several share their numbers"
    ):
        convert(source, tmp_path / "out" / "y.safetensors")
    assert not (tmp_path / "out").exists()
    out = convert(source, tmp_path / "y.safetensors", keep=lambda name: name == "w7")
    assert torch.equal(load_file(out)["w7"], values)


def test_a_bundle_without_its_data_is_refused_as_such(tmp_path: Path):
    write_bundle(tmp_path / "model", example())
    (tmp_path / "model.data-00000-of-00001").unlink()
    for act in (cached_conversion, lambda path: convert(path, tmp_path / "y.safetensors")):
        with pytest.raises(WeightsError, match=r"its file model\.data-00000-of-00001 is missing"):
            act(tmp_path / "model")


def test_conversions_and_notes_have_the_permissions_of_any_new_file(tmp_path: Path):
    before = os.umask(0o027)
    try:
        out = cached_conversion(write("torch legacy", tmp_path / "a", example()))
    finally:
        os.umask(before)
    written = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert len(written) == 4 and out in written  # hashes of source and conversion, and a record
    assert {stat.S_IMODE(p.stat().st_mode) for p in written} == {0o640}


def test_a_cache_that_cannot_be_written_is_an_error_of_the_conversion_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "file"))
    source = write("torch legacy", tmp_path / "a", example())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whoever asked for it says so, once
        with pytest.raises(NotADirectoryError):
            cached_conversion(source)


def test_a_file_whose_name_is_no_text_is_converted(tmp_path: Path):
    source = write("torch legacy", tmp_path / "a", example())
    odd = source.rename(source.with_name(os.fsdecode(b"w\xff.pth")))
    out = cached_conversion(odd)
    assert cached_conversion(odd) == out and set(load_file(out)) == set(example())
    assert json.loads(out.with_name(out.name + ".json").read_text())["sources"][0]["name"] == odd.name
