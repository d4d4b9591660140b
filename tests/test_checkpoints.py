"""Checkpoints of every format are read without their frameworks, tensor by tensor, and none is executed."""

from __future__ import annotations

import copyreg
import io
import json
import math
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from audiation.checkpoints import (
    WeightsError,
    checkpoint_files,
    checkpoint_kind,
    hdf5,
    pickle_machine,
    read_checkpoint,
)
from audiation.checkpoints.crc32c import crc32c
from audiation.checkpoints.tensors import ByteRange, DamagedError
from checkpoint_files import (
    FORMATS,
    MAGIC,
    attacks,
    block,
    example,
    field,
    foreign_object,
    h5_with_shared_object,
    known_module,
    legacy,
    masked,
    nested_lists,
    varint,
    write,
    write_bundle,
    write_h5,
    write_index,
)
from checkpoint_files import crc32c as slow_crc32c
from detgen import recipe

GOLDEN = Path(__file__).parent / "golden"
KINDS = {
    "safetensors": "safetensors", "torch zip": "torch", "torch legacy": "torch-legacy", "lightning": "torch",
    "fairseq": "torch-legacy", "keras h5": "hdf5", "keras": "keras", "tensor bundle": "tensor-bundle",
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_tensors(tmp_path: Path, kind: str):
    path = write(kind, tmp_path, example())
    assert checkpoint_kind(path) == KINDS[kind]
    found = read_checkpoint(path)
    assert set(found) == set(example()) and len(found) == 4
    for name, expected in example().items():
        assert found.infos[name].shape == expected.shape and found.infos[name].dtype == expected.dtype
        assert torch.equal(found[name], expected) and found[name].dtype == expected.dtype, name
    with pytest.raises(KeyError, match="nothing"):
        found["nothing"]
    assert "nothing" not in found


def test_the_legacy_file_of_the_published_model_has_its_recipe_weights():
    table = json.loads((GOLDEN / "jukebox_tiny_prior_a.json").read_text())
    found = read_checkpoint(GOLDEN / "jukebox_tiny_prior_a.pth.tar")
    assert len(found) == len(table["params"]) == 92
    for entry in table["params"]:
        values = recipe(
            table["recipe_seed"], entry["name"], tuple(entry["shape"]), entry["mean"], entry["std"]
        )
        expected = torch.from_numpy(values)
        if entry["transform"] == "half":
            expected = expected.half()
        assert torch.equal(found[entry["name"]], expected), entry["name"]


def test_strided_shared_and_empty_tensors_are_read_from_both_ages_of_torch(tmp_path: Path):
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "transposed": base.t(), "row": base[2], "column": base[:, 3], "whole": base, "none": torch.empty(0, 3),
        "mask": torch.tensor([True, False]), "bf16": torch.ones(3, dtype=torch.bfloat16),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        found = read_checkpoint(tmp_path / "x.pt")
        for name, expected in content.items():
            assert torch.equal(found[name], expected) and found[name].dtype == expected.dtype, name


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write("torch legacy", tmp_path, {"a": torch.ones(1000), "b": torch.zeros(7)})
    asked = []
    original = ByteRange.tensor

    def counting(self, offset, info):
        asked.append(info.num_bytes)
        return original(self, offset, info)

    monkeypatch.setattr(ByteRange, "tensor", counting)
    found = read_checkpoint(path)
    assert found.infos["a"].num_bytes == 4000 and asked == []
    assert torch.equal(found["b"], torch.zeros(7)) and asked == [28]


def test_writing_to_a_tensor_never_changes_the_file(tmp_path: Path):
    for kind in ("torch zip", "torch legacy", "safetensors"):
        path = write(kind, tmp_path / kind.replace(" ", "-"), {"a": torch.ones(100)})
        before = path.read_bytes()
        read_checkpoint(path)["a"].zero_()
        assert path.read_bytes() == before


def test_a_view_of_a_storage_as_torch_wrote_it_before_0_4(tmp_path: Path):
    whole = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06(X\x02\x00\x00\x00v0K\x02K\x03ttQK\x01K\x02\x85K\x01\x85tRs."
    )
    values = np.arange(6, dtype="<f4")
    path = tmp_path / "old.pth.tar"
    path.write_bytes(legacy(whole, ["0"], struct.pack("<q", 6) + values.tobytes()))
    assert read_checkpoint(path)["a"].tolist() == [3.0, 4.0]  # of elements 2, 3, 4: from the second on


# Pickles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(attacks(Path("/nowhere"))))
@pytest.mark.parametrize("around", ["legacy", "zip", "bare"])
def test_an_attack_is_refused_by_name_and_does_nothing(tmp_path: Path, name: str, around: str):
    path, marker = tmp_path / "x.pt", tmp_path / "owned"
    attack = b"\x80\x02" + attacks(marker)[name].removeprefix(b"\x80\x04")
    if around == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", attack)
    else:
        path.write_bytes(legacy(attack) if around == "legacy" else attack)
    wanted = r"\((os\.mkdir|posix\.mkdir|os\.system|__builtin__\.(eval|getattr)|builtins\.exec)\)"
    with pytest.raises(WeightsError, match=rf"holds more than plain tensors {wanted}\. Nothing was executed"):
        read_checkpoint(path)
    assert not marker.exists()
    pickle.loads(attack)  # the attack is a real one
    assert marker.is_dir()


@pytest.mark.parametrize(
    ("attack", "what"),
    [
        (b"cos\nPopen\n)\x81.", r"os\.Popen"),
        (b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.", r"subprocess\.Popen"),
        (b"ctorch.storage\n_load_from_bytes\nC\x01a\x85R.", r"torch\.storage\._load_from_bytes"),
        (b"ctorch\nload\n.", r"torch\.load"),
        (b"cnumpy.testing._private.utils\nrunstring\n.", r"runstring"),
        (b"c__main__\nNet\n.", r"__main__\.Net"),
        (b"c__builtin__\nopen\n.", r"__builtin__\.open"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"\x83\x01\x00.", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"P0\n.", "opcode PERSID"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"K\x01Q.", "a persistent id that is no storage"),
        (b"(U\x07storagectorch\nfloat32\nU\x010U\x03cpuK\x01tQ.", "a storage of type"),
        (b"cargparse\nNamespace\n}b.", "a state for a _Name"),
        (b"K\x05)R.", "a call of a int"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", r"_codecs\.encode"),
    ],
)  # fmt: skip
def test_whatever_else_wants_more_than_data_is_refused(tmp_path: Path, attack: bytes, what: str):
    (tmp_path / "x.pt").write_bytes(legacy(b"\x80\x02" + attack))
    with pytest.raises(WeightsError, match=rf"holds more than plain tensors \(.*{what}"):
        read_checkpoint(tmp_path / "x.pt")


def test_an_extension_that_the_reader_knows_is_not_used(tmp_path: Path):
    copyreg.add_extension("os", "mkdir", 0x5A)
    try:
        marker = tmp_path / "owned"
        attack = b"\x80\x02\x82\x5aX" + struct.pack("<I", len(str(marker))) + str(marker).encode() + b"\x85R."
        (tmp_path / "x.pt").write_bytes(legacy(attack))
        with pytest.raises(WeightsError, match="EXT1"):
            read_checkpoint(tmp_path / "x.pt")
        assert not marker.exists()
    finally:
        copyreg.remove_extension("os", "mkdir", 0x5A)


@pytest.mark.parametrize(
    "module",
    [
        "omegaconf.dictconfig",
        "fairseq.dataclass",
        "pytorch_lightning.callbacks",
        "lightning.fabric",
        "jukebox.hparams",
    ],
)
def test_configuration_is_a_placeholder_that_is_never_imported(tmp_path: Path, module: str):
    config = foreign_object(module, "Config")
    with known_module(config):
        torch.save({"model": {"a": torch.ones(2)}, "cfg": config}, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt")["a"].tolist() == [1.0, 1.0]
    with known_module(config):
        torch.save({"model": {"a": torch.ones(2), "cfg": config}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=rf"'cfg' in its 'model' is a {module}\.Config, expected a tensor"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x8e" + b"\xff" * 8 + b".", "its pickle is truncated"),
        (b"\x8b\xff\xff\xff\x7f.", "an integer without reason"),
        (b"B\xff\xff\xff\xff.", "truncated"),
        (b"\x95" + b"\xff" * 8, "truncated"),
        (b"]" + b"q\x00h\x00a" * 3, "truncated"),
        (b"}(K\x01t.", "sets items of|holds a tuple"),
        (b"h\x05.", "recalls 5"),
        (b"0.", "damaged"),
        (b"(.", "a mark where a value"),
        (b"N.", "holds a NoneType"),
        (b"\x07.", "byte 7 is no opcode"),
        (b"I1x\n.", "a number that is none"),
        (b"V" + b"a" * 5000 + b"\n.", "a line of its pickle has no end"),
    ],
)
def test_a_damaged_pickle_is_refused_before_anything_is_allocated(
    tmp_path: Path, content: bytes, reason: str
):
    (tmp_path / "x.pt").write_bytes(legacy(b"\x80\x02" + content))
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(tmp_path / "x.pt")


def storage(shape: bytes, stride: bytes, count: int = 2, offset: int = 0) -> bytes:
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuM" + struct.pack("<H", count) + b"NtQK" + bytes([offset])
        + shape + stride + b"\x89}tRs."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (storage(b"K\x03\x85", b"K\x01\x85"), "reaches beyond its 2 stored elements"),
        (storage(b"K\x02\x85", b"K\x01\x85", offset=1), "reaches beyond"),
        (storage(b"K\x02\x85", b"K\x02\x85"), "reaches beyond"),
        (
            storage(b"\x8a\x05\x00\x00\x00\x00\x01\x85", b"K\x00\x85"),
            "reaches beyond",
        ),  # 2**32 elements of one
        (storage(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "without shape, stride or storage"),
        (storage(b"K\x02\x85", b")"), "without shape, stride or storage"),
        (storage(b"K\x02\x85", b"K\x01\x85", count=900), "a storage has 2 elements, its tensors say 900"),
    ],
)
def test_a_tensor_that_reaches_beyond_its_data_is_refused(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "x.pt"
    path.write_bytes(legacy(content, ["0"], struct.pack("<q", 2) + bytes(8)))
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(path)


def test_work_that_few_bytes_ask_for_again_and_again_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pickle_machine, "MAX_STEPS", 1_000_000)
    pairs = b"](" + b"K\x00K\x00\x86" * 2000 + b"e"
    again = b"ccollections\nOrderedDict\nq\x00" + pairs + b"q\x010" + b"h\x00h\x01\x85R0" * 20_000
    (tmp_path / "x.pt").write_bytes(legacy(b"\x80\x02" + again + b"}."))
    with pytest.raises(WeightsError, match="more than 1,000,000 steps"):
        read_checkpoint(tmp_path / "x.pt")


def peak_bytes_of_refusal(path: Path, reason: str) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=reason):
            read_checkpoint(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_nested_lists_as_protocol_are_not_written_out(tmp_path: Path):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(MAGIC, 2) + nested_lists(20))  # 4 MB of text
    assert peak_bytes_of_refusal(path, r"it has protocol a list, known is 1001") < 1 << 20
    path.write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(10**40, 2))
    with pytest.raises(WeightsError, match=r"it has protocol 1(0){19}, known"):
        read_checkpoint(path)


def test_long_names_from_the_memo_are_not_put_together(tmp_path: Path):
    module, name = b"fairseq." + b"a" * 100_000, b"b" * 100_000
    kept = b"".join(b"X" + struct.pack("<I", len(text)) + text + b"\x94" for text in (module, name))
    path = tmp_path / "x.pt"
    path.write_bytes(legacy(b"\x80\x04" + kept + b"h\x00h\x01\x93" * 100 + b"."))
    assert peak_bytes_of_refusal(path, "holds a name without end") < 4 << 20  # of 20 MB


@pytest.mark.parametrize("new", [True, False])
def test_the_average_of_data2vecs_teacher_is_left_out_and_said(tmp_path: Path, new: bool):
    weights = example()
    content = {"model": {**weights, "_ema": {"half": weights["half"] * 2}}}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    found = read_checkpoint(tmp_path / "x.pt")
    assert set(found) == set(weights) and torch.equal(found["half"], weights["half"])
    assert list(found.left_out) == ["_ema"]


def test_other_files_of_torch_are_named(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/net.py"):
            archive.writestr(f"net/{name}", b"\x80\x02}.")
    with pytest.raises(WeightsError, match="it is a TorchScript program"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "y.pt")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(
        WeightsError, match=r"zip archive, but neither torch nor Keras.*readme\.txt.*Unpack it"
    ):
        read_checkpoint(tmp_path / "z.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(WeightsError, match="is compressed, which torch never does"):
        read_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("mark", [b"\x80", b"PK"])
def test_a_safetensors_file_may_begin_like_one_of_torch(tmp_path: Path, mark: bytes):
    """It begins with the length of its header, whose lowest bytes can be anything."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    length = int.from_bytes(mark, "little")
    while length < len(header):
        length += 1 << 8 * len(mark)
    values = np.array([1.0, 2.0], np.float32).tobytes()
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header.ljust(length) + values)
    assert read_checkpoint(tmp_path / "x.safetensors")["a"].tolist() == [1.0, 2.0]


def test_an_archive_in_several_volumes_is_refused(tmp_path: Path):
    path = write("torch zip", tmp_path, example())
    content = bytearray(path.read_bytes())
    locator = content.index(b"PK\x06\x07") if b"PK\x06\x07" in content else None
    assert locator is not None  # torch writes it
    content[locator + 4] = 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="multiple disks"):
        read_checkpoint(path)


def zip_of(path: Path, pickled: bytes, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", data)


def test_other_bytes_than_0_and_1_of_bools_are_true_in_every_format(tmp_path: Path):
    octets = b"\x02\x00\x01\xff"
    pickled = storage(b"K\x04\x85", b"K\x01\x85", count=4).replace(b"FloatStorage", b"BoolStorage")
    zip_of(tmp_path / "new.pt", pickled, octets)
    (tmp_path / "old.pt").write_bytes(legacy(pickled, ["0"], struct.pack("<q", 4) + octets))
    write_index(tmp_path / "m.index", block([(b"", field(1, 1)), (b"a", bundle_entry(10, (4,), octets))]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(octets)
    for name in ("new.pt", "old.pt", "m.index"):
        found = read_checkpoint(tmp_path / name)["a"]
        assert found.dtype == torch.bool and found.view(torch.uint8).tolist() == [1, 0, 1, 1], name


def test_records_that_share_bytes_are_refused(tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(8), "b": torch.ones(8), "c": torch.ones(4000)}, path)
    content = bytearray(path.read_bytes())
    entries, at = {}, content.index(b"PK\x01\x02")  # name -> place in the central directory
    while content[at : at + 4] == b"PK\x01\x02":
        lengths = struct.unpack("<HHH", content[at + 28 : at + 34])
        entries[bytes(content[at + 46 : at + 46 + lengths[0]]).rpartition(b"/")[2]] = at
        at += 46 + sum(lengths)
    for part in (slice(16, 28), slice(42, 46)):  # checksum, sizes; place: the record of "1" is that of "0"
        source, target = entries[b"0"], entries[b"1"]
        content[target + part.start : target + part.stop] = content[source + part.start : source + part.stop]
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="its records overlap"):
        read_checkpoint(path)


# Keras -----------------------------------------------------------------------------------------------------


def test_a_tree_of_groups_gives_its_paths(tmp_path: Path):
    expected = {
        f"_layers/conv{i}/vars/{leaf}": np.full((2, i + 1), 10.0 * i + leaf, np.float32)
        for i in range(60)
        for leaf in range(2)
    }
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, value in expected.items():
            file[name] = value
        file["_layers"].attrs["weight_names"] = [b"x" * 50] * 200
        file.create_group("empty")
    found = read_checkpoint(tmp_path / "x.h5")
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name].numpy(), value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.create_dataset("c", data=np.zeros((40, 40)), compression="gzip"), "'c' lies in chunks"),
        (lambda f: f.create_dataset("c", data=np.zeros(4, ">f4")), "'c' is big-endian"),
        (lambda f: f.create_dataset("c", data=b"text"), "'c' holds no numbers"),
        (lambda f: f.create_dataset("c", (10**9,), "f4"), "'c' was never written"),
        (lambda f: f.__setitem__("c", h5py.SoftLink("/a")), "'c' is a soft link"),
        (lambda f: f.__setitem__("c", h5py.ExternalLink("/etc/passwd", "/a")), "link"),
        (lambda f: f.create_group("g").__setitem__("again", f["/"]), "no end"),
    ],
)  # fmt: skip
def test_what_keras_does_not_write_is_refused_by_name(tmp_path: Path, change, reason: str):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.ones(3)
        change(file)
    with pytest.raises(WeightsError, match=reason) as refusal:
        read_checkpoint(tmp_path / "x.h5")
    assert str(tmp_path / "x.h5") in str(refusal.value)


def test_new_groups_in_object_headers_are_read_and_fractal_heaps_refused(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file["g/a"] = np.arange(3, dtype=np.float32)
    assert read_checkpoint(tmp_path / "x.h5")["g/a"].tolist() == [0.0, 1.0, 2.0]
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        for i in range(40):
            file[f"g/a{i}"] = np.arange(3)
    with pytest.raises(WeightsError, match="fractal heap"):
        read_checkpoint(tmp_path / "x.h5")


def test_what_describes_the_objects_of_a_file_is_bounded_for_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.h5"
    path.write_bytes(h5_with_shared_object(num_links=30, num_messages=999))
    with pytest.raises(WeightsError, match="it holds no data sets"):
        read_checkpoint(path)
    monkeypatch.setattr(hdf5, "MAX_MESSAGES", 10_000)
    with pytest.raises(WeightsError, match="describes its objects in more than 10,000 messages"):
        read_checkpoint(path)
    monkeypatch.setattr(hdf5, "MAX_MESSAGES", 1_000_000)
    monkeypatch.setattr(hdf5, "MAX_STRUCTURE_BYTES", 100_000)
    with pytest.raises(WeightsError, match="describes its objects in more than 100,000 bytes"):
        read_checkpoint(path)


def test_paths_of_groups_in_groups_are_bounded(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["/".join(["a" * 100] * 50)] = np.zeros(2)
    with pytest.raises(WeightsError, match="its groups have no end"):
        read_checkpoint(tmp_path / "x.h5")


@pytest.mark.parametrize("other", [1 << 61, 1 << 62, 1 << 63])
def test_a_dimension_of_0_hides_no_impossible_one(tmp_path: Path, other: int):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.zeros((2, 3), np.float32)
    content = (tmp_path / "x.h5").read_bytes()
    sizes = struct.pack("<QQ", 2, 3)
    assert content.count(sizes) >= 1
    (tmp_path / "x.h5").write_bytes(content.replace(sizes, struct.pack("<QQ", 0, other)))
    entry = bundle_entry(1, (0, other), b"")
    write_index(tmp_path / "m.index", block([(b"", field(1, 1)), (b"a", entry)]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(b"")
    for name in ("x.h5", "m.index"):
        with pytest.raises(WeightsError, match="impossible shape"):
            read_checkpoint(tmp_path / name)


def test_changed_bytes_in_a_keras_archive_are_noticed_and_a_compressed_one_is_refused(tmp_path: Path):
    path = write("keras", tmp_path, example())
    content = bytearray(path.read_bytes())
    content[content.index(example()["block/kernel"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="CRC"):
        read_checkpoint(path)
    packed = io.BytesIO()
    write_h5(packed, example())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", packed.getvalue())
    with pytest.raises(WeightsError, match=r"is compressed\. Unzip it"):
        read_checkpoint(path)


# TensorFlow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 65_535, 65_536, 70_001, 300_007])
def test_the_checksum_is_that_of_its_definition(num_bytes: int):
    data = np.random.default_rng(0).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()
    assert crc32c(data) == slow_crc32c(data)


def test_the_checksum_has_the_published_values():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, B.4


def test_a_bundle_is_found_by_prefix_index_and_directory(tmp_path: Path):
    write_bundle(tmp_path / "model", example())
    for path in (tmp_path / "model", tmp_path / "model.index", tmp_path):
        assert torch.equal(read_checkpoint(path)["block/kernel"], example()["block/kernel"])
        assert [p.name for p in checkpoint_files(path)] == ["model.index", "model.data-00000-of-00001"]
    write_bundle(tmp_path / "other", example())
    with pytest.raises(WeightsError, match=r"several TensorFlow checkpoints \(model\.index, other\.index\)"):
        read_checkpoint(tmp_path)
    (tmp_path / "in").mkdir()  # with an empty prefix, as musicnn has it
    for suffix in (".index", ".data-00000-of-00001"):
        (tmp_path / f"model{suffix}").rename(tmp_path / "in" / suffix)
    assert len(read_checkpoint(tmp_path / "in")) == 4


def test_a_changed_or_missing_data_file_is_noticed(tmp_path: Path):
    write_bundle(tmp_path / "model", example())
    data = tmp_path / "model.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-3] ^= 4
    data.write_bytes(content)
    found = read_checkpoint(tmp_path)
    assert torch.equal(found["block/bias"], example()["block/bias"])
    with pytest.raises(WeightsError, match=r"cannot read 'steps' of .*: the checksum differs"):
        found["steps"]
    data.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="is truncated: it has"):
        read_checkpoint(tmp_path)
    data.unlink()
    with pytest.raises(WeightsError, match=r"its data file model\.data-00000-of-00001 is not beside it"):
        read_checkpoint(tmp_path)


def bundle_entry(dtype: int, shape: tuple[int, ...], octets: bytes) -> bytes:
    entry = field(1, dtype) + field(2, b"".join(field(2, field(1, size)) for size in shape))
    return entry + field(5, len(octets)) + varint(6 << 3 | 5) + masked(octets)


def test_keys_that_share_a_long_prefix_are_refused_before_they_fill_the_memory(tmp_path: Path):
    entry, prefix = field(1, 7), "k" * 20_000
    keys = [f"{prefix}{i:04d}".encode() for i in range(500)]
    write_index(tmp_path / "m.index", block([(b"", field(1, 1)), *((key, entry) for key in keys)]))
    (tmp_path / "m.data-00000-of-00001").write_bytes(b"")
    assert peak_bytes_of_refusal(tmp_path / "m.index", "a block of it is damaged") < 2 << 20  # of 10 MB


def test_a_block_that_is_named_again_and_again_is_refused(tmp_path: Path):
    write_index(tmp_path / "m.index", block([(b"", field(1, 1))]), handles=50)
    with pytest.raises(WeightsError, match="its blocks overlap"):
        read_checkpoint(tmp_path / "m.index")


def test_text_in_a_bundle_is_left_out_and_said(tmp_path: Path):
    write_bundle(tmp_path / "m", {"a": torch.ones(2)})
    index = tmp_path / "m.index"
    entry = field(1, 1) + field(2, field(2, field(1, 2))) + field(4, 0) + field(5, 8)
    entry += varint(6 << 3 | 5) + masked(torch.ones(2).numpy().tobytes())
    first = block([(b"", field(1, 1)), (b"a", entry), (b"graph", field(1, 7) + field(5, 3))])
    table = first + b"\0" + masked(first + b"\0")
    top = block([(b"graph", varint(0) + varint(len(first)))])
    footer = (varint(0) + varint(0) + varint(len(table)) + varint(len(top))).ljust(40, b"\0")
    index.write_bytes(table + top + b"\0" + masked(top + b"\0") + footer + index.read_bytes()[-8:])
    found = read_checkpoint(tmp_path)
    assert found["a"].tolist() == [1.0, 1.0] and found.left_out == {"graph": "text"} and "graph" not in found


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (field(1, 1) + field(2, 1), "big-endian"),
        (field(1, 0), "says that it has 0 data files"),
        (field(1, 1 << 40), "says that it has 1099511627776 data files"),
    ],
)
def test_an_impossible_header_is_refused(tmp_path: Path, header: bytes, reason: str):
    write_bundle(tmp_path / "m", example(), header)
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(tmp_path)


# Paths -----------------------------------------------------------------------------------------------------


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.pt")
    for read in (read_checkpoint, checkpoint_kind, checkpoint_files):
        with pytest.raises(WeightsError, match="it is a pipe or a device"):
            read(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="it is a pipe or a device"):
        read_checkpoint(os.devnull)


@pytest.mark.parametrize(("name", "reason"), [("a\0b", "null"), ("a" * 5000, "File name too long")])
def test_names_that_no_file_can_have_are_refused_as_such(name: str, reason: str):
    with pytest.raises(WeightsError, match=f"cannot read .*{reason}"):
        read_checkpoint(name)


# Bytes -----------------------------------------------------------------------------------------------------


def test_nothing_beyond_the_end_is_read_or_allocated(tmp_path: Path):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    data = ByteRange(tmp_path / "x", 10, 50)
    assert data.read(0, 3) == b"\x0a\x0b\x0c" and data.read(50, 0) == b""
    for offset, count in ((0, 51), (50, 1), (-1, 1), (0, -1), (0, 1 << 60)):
        with pytest.raises(DamagedError, match="ends at byte 50"):
            data.read(offset, count)
    with pytest.raises(DamagedError):
        ByteRange(tmp_path / "x", 10, 91)
    assert math.prod(data.read(0, 2)) == 110
