"""Reading, verifying, fetching and naming weights, without a network and without trust."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from audiation.weights import (
    NotOnHubError,
    OfficialFile,
    UnverifiedWeightsWarning,
    WeightsError,
    check_tensors,
    fetch,
    find_checkpoint,
    fuse_weight_norm,
    normalise_weight_norm,
    read_checkpoint,
    read_config,
    strip_prefix,
    tensors_hash,
    verify_file,
)


def example() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(300, 40, generator=generator),
        "a.bias": torch.randn(300, generator=generator),
        "counter": torch.tensor(95489.0),
    }


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


# Reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_both_ages_and_with_wrappers_are_read(
    tmp_path: Path, wrapper: str | None, zipped: bool
):
    content = example() if wrapper is None else {wrapper: example(), "epoch": 3}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_equal(read_checkpoint(tmp_path / "x.pt"), example())


def test_content_decides_and_not_the_suffix(tmp_path: Path):
    save_file(example(), tmp_path / "really_safetensors.bin")
    assert_equal(read_checkpoint(tmp_path / "really_safetensors.bin"), example())
    torch.save(example(), tmp_path / "really_torch.safetensors")  # torch itself would take it for safetensors
    with pytest.raises(WeightsError, match=r"a torch file; name it \.pt"):
        read_checkpoint(tmp_path / "really_torch.safetensors")


def test_parameters_come_out_as_plain_tensors(tmp_path: Path):
    torch.save({"w": nn.Parameter(torch.ones(3))}, tmp_path / "x.pt")
    assert not read_checkpoint(tmp_path / "x.pt")["w"].requires_grad


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1316802088\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (LFS_POINTER, "Git LFS pointer"),
        (b"\n<!doctype html><html><body>Too many requests</body></html>", "web page"),
        (b'{"error": "Repository not found"}', "neither a safetensors nor a torch file"),
        (b"\x00" * 5000, "neither a safetensors nor a torch file"),
        (b"PK\x03\x04" + b"\x00" * 5000, "truncated.*the end of the zip archive is missing"),
        (b"\x80\x02" + b"garbage" * 100, "its pickle is truncated"),
        ((1 << 20).to_bytes(8, "little") + b'{"a":', "truncated, damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_name_and_reason(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "pretrained_msd.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float):
    path = tmp_path / "x.pt"
    if kind == "safetensors":
        save_file(example(), path)
    else:
        torch.save(example(), path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match="truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(2)], "holds a list, expected a dictionary of tensors"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, r"holds no tensors \(its 'state_dict' is empty\)"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' in its top level is a int"),
        ({"model": {"a": torch.ones(2), "sub": {"b": torch.ones(2)}}}, "'sub' in its 'model' is a dict"),
        ({0: torch.ones(2)}, "0 in its top level is a Tensor"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is sparse"),
        ({"a": torch.ones(3, device="meta")}, "'a' is sparse, quantised, complex or without data"),
    ],
)
def test_other_things_than_dense_tensors_are_refused(tmp_path: Path, content: object, reason: str):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=reason):
        read_checkpoint(tmp_path / "x.pt")


def test_missing_files_and_directories_are_refused(tmp_path: Path):
    with pytest.raises(WeightsError, match="No such file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match="Is a directory"):
        read_checkpoint(tmp_path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["bare pickle", "torch zip", "torch legacy"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, how: str):
    path, marker = tmp_path / "x.pt", tmp_path / "owned"
    content = {"state_dict": {"a": torch.ones(2), "b": Malicious(marker)}}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch zip")
    with pytest.raises(WeightsError, match=r"holds more than plain tensors.*Nothing was executed") as refusal:
        read_checkpoint(path)
    assert not marker.exists()
    assert "weights_only" not in str(refusal.value)  # torch's advice is to load it unsafely
    with path.open("rb") as stream:  # the attack is a real one: unsafe loading runs it
        pickle.load(stream) if how == "bare pickle" else torch.load(path, weights_only=False)
    assert marker.is_dir()


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\udcff"])
def test_a_config_must_be_a_json_object(tmp_path: Path, text: str):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(path)


# Finding ---------------------------------------------------------------------------------


def test_the_official_name_wins_then_the_usual_ones_then_the_only_one(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"holds no checkpoint. Expected pretrained_fma\.pt"):
        find_checkpoint(tmp_path, "pretrained_fma.pt")
    (tmp_path / "mine.pt").touch()
    assert find_checkpoint(tmp_path, "pretrained_fma.pt").name == "mine.pt"
    (tmp_path / "yours.ckpt").touch()
    with pytest.raises(WeightsError, match=r"several checkpoints \(mine\.pt, yours\.ckpt\)"):
        find_checkpoint(tmp_path, "pretrained_fma.pt")
    (tmp_path / "model.safetensors").touch()
    assert find_checkpoint(tmp_path, "pretrained_fma.pt").name == "model.safetensors"
    (tmp_path / "pretrained_fma.pt").touch()
    assert find_checkpoint(tmp_path, "pretrained_fma.pt").name == "pretrained_fma.pt"


def test_a_sharded_checkpoint_is_named_as_such(tmp_path: Path):
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"sharded checkpoint \(model\.safetensors\.index\.json\)"):
        find_checkpoint(tmp_path)


# Verifying ---------------------------------------------------------------------------------


def official(content: bytes, **changes) -> OfficialFile:
    facts = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
    return OfficialFile("who/what", "weights.pt", **facts)


def test_the_right_file_and_a_file_of_which_nothing_is_known_pass(tmp_path: Path, recwarn):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"right")
    verify_file(path, official(b"right"))
    verify_file(path, OfficialFile("who/what", "weights.pt"))
    verify_file(path, official(b"right", sha256=None))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"wron", "it has 4 of 5 bytes: truncated"),
        (b"wrongest", "it has 8 of 5 bytes"),
        (b"wrong", "its SHA-256 is"),
    ],
)
@pytest.mark.parametrize("source", ["spec", "third-party"])
def test_another_file_is_refused_and_only_a_third_partys_record_can_be_overridden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str, source: str
):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    expected = official(b"right", hash_source=source, mismatch_hint="Files before 2024-02-13 were wrong.")
    with pytest.raises(WeightsError, match=f"{reason}.*before 2024-02-13"):
        verify_file(path, expected)
    if source == "spec":
        with pytest.raises(WeightsError, match=reason):
            verify_file(path, expected, allow_unverified_hash=True)
        return
    with pytest.warns(UnverifiedWeightsWarning, match=f"USED ALL THE SAME.*{reason}"):
        verify_file(path, expected, allow_unverified_hash=True)
    monkeypatch.setenv("AUDIATION_ALLOW_UNVERIFIED_HASH", "1")
    with pytest.warns(UnverifiedWeightsWarning, match=reason):
        verify_file(path, expected)


def test_another_models_file_is_refused_whatever_is_allowed(tmp_path: Path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"other")
    others = {hashlib.sha256(b"other").hexdigest(): "pretrained_msd.pt of musicfm-msd"}
    with pytest.raises(WeightsError, match=r"is pretrained_msd\.pt of musicfm-msd, not weights\.pt"):
        verify_file(path, official(b"right"), allow_unverified_hash=True, others=others)


# Fetching ---------------------------------------------------------------------------------


def test_fetching_asks_the_hub_for_file_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(repo_id, filename, revision=None, local_files_only=False):
        asked.append((repo_id, filename, revision, local_files_only))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch(official(b"x"), revision="abc") == tmp_path / "weights.pt"
    assert asked == [("who/what", "weights.pt", "abc", False)]


@pytest.mark.parametrize("kind", [LocalEntryNotFoundError, ConnectionError])
def test_an_unreachable_hub_says_which_file_to_put_where(monkeypatch: pytest.MonkeyPatch, kind: type):
    def download(*args, **kwargs):
        raise kind("outgoing traffic has been disabled.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/somewhere/hub")
    with pytest.raises(WeightsError) as refusal:
        fetch(official(b"x" * 1234))
    assert type(refusal.value) is WeightsError
    message = str(refusal.value)
    assert "outgoing traffic has been disabled. Where" in message
    for part in ("hf download who/what weights.pt", "weights.pt (1,234 bytes)", "--weights PATH"):
        assert part in message
    assert "models--who--what into /somewhere/hub" in message


def test_a_file_that_a_repository_does_not_have_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    def download(*args, **kwargs):
        raise EntryNotFoundError("404 Client Error")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(NotOnHubError, match=r"Hub repository who/what has no file weights\.pt"):
        fetch(official(b"x"))


# Spelling and identity ---------------------------------------------------------------------------------


def test_a_prefix_is_stripped_from_all_or_none():
    a, b = torch.zeros(1), torch.ones(1)
    assert strip_prefix({"model.a": a, "model.model.b": b}, "model.").keys() == {"a", "model.b"}
    assert strip_prefix({"a": a, "b": b}, "model.").keys() == {"a", "b"}
    with pytest.raises(WeightsError, match=r"'model\.a' begins with 'model\.' but 'b' does not"):
        strip_prefix({"model.a": a, "b": b}, "model.")


@pytest.mark.parametrize("dim", [0, 2])
def test_all_spellings_of_weight_norm_become_the_weight_that_torch_computes(dim: int):
    convolution = nn.Conv1d(8, 8, 5, groups=2)
    with torch.no_grad():
        for i, parameter in enumerate(convolution.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    normed = nn.utils.parametrizations.weight_norm(convolution, dim=dim)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(1.7)
    new = {f"pos.{name}": tensor for name, tensor in normed.state_dict().items()}
    old = normalise_weight_norm(new)
    assert old.keys() == {"pos.bias", "pos.weight_g", "pos.weight_v"}
    plain = {"pos.bias": new["pos.bias"], "pos.weight": normed.weight.detach()}
    for spelling in (new, old, plain):
        fused = fuse_weight_norm(spelling)
        assert fused.keys() == {"pos.bias", "pos.weight"}
        torch.testing.assert_close(fused["pos.weight"], normed.weight.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["c.weight_g"], "only one of weight_g and weight_v"),
        (["c.parametrizations.weight.original1"], "only one of weight_g and weight_v"),
        (["c.weight_g", "c.weight_v", "c.weight"], "a plain weight and a weight-normed one"),
        (["c.weight_g", "c.parametrizations.weight.original0"], "there twice"),
    ],
)
def test_incomplete_or_doubled_weight_norm_is_refused(names: list[str], reason: str):
    with pytest.raises(WeightsError, match=reason):
        fuse_weight_norm({name: torch.ones(1, 1, 4) for name in names})


def test_the_first_missing_unexpected_and_misshapen_tensors_are_named():
    expected = {f"layers.{i}": torch.zeros(2, 3) for i in range(6)} | {"head": torch.zeros(4)}
    check_tensors(expected, expected, "itself")
    given = {"layers.0": torch.zeros(3, 2), "extra": torch.zeros(1), "head": torch.zeros(4)}
    with pytest.raises(WeightsError) as refusal:
        check_tensors(given, expected, "a toy")
    assert str(refusal.value) == (
        "these tensors are not a toy: 5 missing: 'layers.1', 'layers.2', 'layers.3', ...; "
        "1 unexpected: 'extra'; 1 of another shape: 'layers.0' is (3, 2), expected (2, 3)"
    )


def test_whole_numbers_are_no_weights_and_counts_stay_what_they_are():
    expected = {"weight": torch.zeros(2, 3), "num_batches_tracked": torch.tensor(0)}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        check_tensors(expected | {"weight": torch.zeros(2, 3, dtype=dtype)}, expected, "a toy")
    check_tensors(expected | {"num_batches_tracked": torch.tensor(5, dtype=torch.int32)}, expected, "a toy")
    layout = {name: torch.empty(tensor.shape, device="meta") for name, tensor in expected.items()}
    check_tensors(expected, layout, "a toy")
    given = expected | {"weight": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"1 without floating numbers: 'weight' is torch\.int8, expected"):
        check_tensors(given, expected, "a toy")


def test_a_pipe_is_not_hashed(tmp_path: Path):
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="is no file"):
        verify_file(tmp_path / "x.pt", official(b"right"))


def test_the_hash_is_of_contents_and_not_of_order_memory_or_file(tmp_path: Path):
    tensors = example() | {"half": torch.ones(3, dtype=torch.bfloat16), "mask": torch.tensor([True, False])}
    reordered = dict(reversed(list(tensors.items())))
    reordered["a.weight"] = tensors["a.weight"].t().contiguous().t()  # other strides, same values
    torch.save(tensors, tmp_path / "x.pt")
    assert (
        tensors_hash(tensors) == tensors_hash(reordered) == tensors_hash(read_checkpoint(tmp_path / "x.pt"))
    )


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "value", "gone"])
def test_the_hash_sees_every_change(change: str):
    tensors = example()
    bias = tensors.pop("a.bias")
    if change == "name":
        tensors["b.bias"] = bias
    elif change == "shape":
        tensors["a.bias"] = bias.reshape(1, -1)
    elif change == "dtype":
        tensors["a.bias"] = bias.view(torch.int32)
    elif change == "value":
        bits = bias.clone()
        bits[7] = float(np.nextafter(np.float32(bits[7]), np.float32(9)))
        tensors["a.bias"] = bits
    assert tensors_hash(tensors) != tensors_hash(example())


def test_one_flipped_bit_in_a_torch_file_is_found(tmp_path):
    path = tmp_path / "model.pt"
    values = torch.arange(1000.0)
    torch.save({"a": values}, path)
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes()) + 2000] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"checksum of .*data/0 differs"):
        read_checkpoint(path)


def test_complex_tensors_are_refused(tmp_path):
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="'a' is sparse, quantised, complex"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_config_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": ' * 5000)
    with pytest.raises(WeightsError, match="recursion"):
        read_config(path)
