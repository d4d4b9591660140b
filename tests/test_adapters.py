"""Directories of adapters: what they hold, that they come back to the bit, and what is refused; banks of several."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from audiation import adapter_files
from audiation.adapted import AdaptedModel, HeadConfig
from audiation.adapters import AdapterBank, AdapterError, load_adapter, read_adapter_record, save_adapter
from audiation.backbones import Backbone
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.mert import build as build_mert
from audiation.backbones.musicfm import MSD, fresh
from audiation.loading import load_backbone
from audiation.methods import METHODS, inject, merge, set_modes
from audiation.registry import UnknownNameError
from audiation.targets import ClassTarget, KeyTarget, TagsTarget, Target, ValuesTarget
from audiation.weights import WeightsError, tensors_hash

CONFORMER = ConformerConfig(dim=32, num_heads=2, ffn_dim=48, num_layers=2, conv_kernel=5)
TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
FAMILIES: dict[str, Callable[[], Backbone]] = {
    "conformer": lambda: fresh(MSD, CONFORMER, conv_channels=4),
    "transformer": lambda: build_mert(TRANSFORMER, "tiny", 24_000),
}
SHARING = [name for name in METHODS if name != "finetune"]  # in a bank
GENRES = ClassTarget(("blues", "jazz", "müsette"))


@functools.cache
def template(family: str) -> Backbone:
    """Weights and statistics of which none is 0 or 1 by chance."""
    backbone, generator = FAMILIES[family](), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in backbone.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    backbone.name, backbone.weights_source = f"tiny-{family}", "file:tiny.pt"
    backbone.weights_hash = tensors_hash(backbone.state_dict())
    return backbone.eval()


def plain(family: str = "conformer") -> Backbone:
    return copy.deepcopy(template(family))


def trained(
    method: str, family: str = "conformer", seed: int = 3, target: Target = GENRES, **options: Any
) -> AdaptedModel:
    """A model whose method and head are where no initialisation leaves them."""
    backbone, generator = plain(family), torch.Generator().manual_seed(seed)
    inject(backbone, method, generator)
    model = AdaptedModel(backbone, target, generator=generator, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@functools.cache
def clip() -> Tensor:
    return 0.3 * torch.randn(2, 6400, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits(model: AdaptedModel) -> Tensor:
    return model([clip()]).clone()


@torch.inference_mode()
def states(backbone: Backbone) -> Tensor:
    """All layers, `(L + 1, B, T, D)`."""
    return torch.stack(list(backbone(clip()).layers.values()))


def move_statistics(model: AdaptedModel) -> None:
    """What training in the mode "published" does to batch norms."""
    set_modes(model.backbone, "published", dropout=False)
    model.backbone(clip())
    model.eval()


def tensors_of(directory: Path, name: str = adapter_files.TENSORS) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / name)


def forge(directory: Path, **changes: Any) -> None:
    """What an attacker does: change fields, and make the checksum right."""
    fields = json.loads((directory / adapter_files.RECORD).read_text()) | changes
    fields["files"] = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in fields["files"]
    }
    del fields["checksum"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (directory / adapter_files.RECORD).write_text(json.dumps(fields))


def exchange(directory: Path, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Other tensors, described rightly."""
    safetensors.torch.save_file(change(tensors_of(directory, name)), directory / name)
    forge(directory)


# Round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_comes_back_to_the_bit(method, family, tmp_path):
    model = trained(method, family, crop_seconds=2.5, layer=1)
    if method == "finetune":
        move_statistics(model)
    before = logits(model)
    assert save_adapter(model, tmp_path / "a") == tmp_path / "a"
    loaded = load_adapter(tmp_path / "a", plain(family))
    assert torch.equal(logits(loaded), before)
    assert not any(module.training for module in loaded.modules())
    assert loaded.backbone.adapted_with == model.backbone.adapted_with
    assert (loaded.layer, loaded.crop_seconds, loaded.target, loaded.head_config) == (
        1,
        2.5,
        GENRES,
        HeadConfig(),
    )
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == trainable


@pytest.mark.parametrize("method", METHODS)
def test_only_what_was_trained_is_written(method, tmp_path):
    model = trained(method)
    save_adapter(model, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    if method == "probe":
        assert names == {"adapter.json", "head.safetensors"}
        return
    assert names == {"adapter.json", "adapter.safetensors", "head.safetensors"}
    expected = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    if method == "finetune":
        expected |= {n for n, _ in model.backbone.named_buffers() if "running" in n or "num_batches" in n}
    assert tensors_of(tmp_path).keys() == expected
    assert tensors_of(tmp_path, adapter_files.HEAD).keys() == {
        "hidden.weight",
        "hidden.bias",
        "output.weight",
        "output.bias",
    }


@pytest.mark.parametrize(
    "target",
    [
        GENRES,
        KeyTarget(),
        TagsTarget(("slow", "loud")),
        ValuesTarget(("arousal", "valence"), (5.1, 4.9), (1.25, 0.3)),
    ],
)
def test_every_kind_of_target_comes_back(target, tmp_path):
    model = trained("lora", target=target, head=HeadConfig(hidden=False, dropout=0.0))
    save_adapter(model, tmp_path)
    loaded = load_adapter(tmp_path, plain())
    assert (loaded.target, loaded.crop_seconds) == (target, None)
    assert loaded.head.hidden is None and torch.equal(logits(loaded), logits(model))


def test_the_record_says_what_it_belongs_to(tmp_path):
    model = trained("lora:rank=3,scale=0.5", crop_seconds=5.0)
    save_adapter(model, tmp_path, info={"accuracy": 0.75, "interval": (0.5, 1.0), "note": "müsette"})
    record = read_adapter_record(tmp_path)
    assert (record.backbone, record.num_layers) == ("tiny-conformer", 2)
    assert (record.weights_source, record.trunk_hash) == ("file:tiny.pt", template("conformer").weights_hash)
    assert (record.layer, record.crop_seconds, record.moved_statistics) == (2, 5.0, False)
    assert record.method == METHODS["lora"](rank=3, scale=0.5)
    assert record.info == {"accuracy": 0.75, "interval": [0.5, 1.0], "note": "müsette"}
    for name, sha256 in record.files.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


def test_the_backbone_is_loaded_by_name_with_the_seed_it_was_made_of(tmp_path):
    backbone = load_backbone("musicfm-mini", "random", num_layers=1, seed=7)
    inject(backbone, "bitfit")
    model = AdaptedModel(backbone, GENRES).eval()
    save_adapter(model, tmp_path)
    for weights in (None, "random"):
        loaded = load_adapter(tmp_path, weights=weights)
        assert torch.equal(logits(loaded), logits(model))
    assert loaded.backbone.weights_source == "random:seed=7"


def test_a_probe_of_a_backbone_without_weights(tmp_path):
    backbone = load_backbone("chroma")
    inject(backbone, "probe")
    model = AdaptedModel(backbone, KeyTarget()).eval()
    save_adapter(model, tmp_path)
    loaded = load_adapter(tmp_path, device="cpu")
    assert (loaded.backbone.name, loaded.layer, loaded.target) == ("chroma", 0, KeyTarget())
    pooled = torch.randn(3, 1, loaded.backbone.dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded([pooled], "pooled"), model([pooled], "pooled"))


@pytest.mark.parametrize("method", ["lora", "probe"])
def test_statistics_that_moved_are_kept_where_the_caller_says_so(method, tmp_path):
    model = trained(method)
    move_statistics(model)
    save_adapter(model, tmp_path / "moved", moved_statistics=True)
    loaded = load_adapter(tmp_path / "moved", plain())
    assert torch.equal(logits(loaded), logits(model))
    save_adapter(model, tmp_path / "plain")
    assert not any("running" in name for name in tensors_of(tmp_path / "plain", adapter_files.HEAD))
    assert (tmp_path / "plain" / adapter_files.TENSORS).exists() == (method == "lora")
    assert not torch.equal(logits(load_adapter(tmp_path / "plain", plain())), logits(model))


@pytest.mark.parametrize("method", ["lora", "ssf", "bitfit"])
def test_merging_while_loading(method, tmp_path):
    model = trained(method)
    save_adapter(model, tmp_path)
    merged = load_adapter(tmp_path, plain(), merge=True)
    assert merged.backbone.adapted_with is None
    assert merged.backbone.state_dict().keys() == template("conformer").state_dict().keys()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_says_so(tmp_path):
    save_adapter(trained("prompt"), tmp_path)
    with pytest.raises(ValueError, match="cannot be folded into the weights"):
        load_adapter(tmp_path, plain(), merge=True)


def test_loaded_in_inference_mode_it_can_be_trained_all_the_same(tmp_path):
    save_adapter(trained("bitfit"), tmp_path)
    backbone = plain()
    with torch.inference_mode():
        loaded = load_adapter(tmp_path, backbone)
    loaded([clip()]).square().sum().backward()
    gradients = [p.grad for p in loaded.parameters() if p.requires_grad]
    assert len(gradients) > 0 and all(g is not None for g in gradients)


# Refusals: another backbone --------------------------------------------------------------------------------


@pytest.fixture
def lora(tmp_path) -> Path:
    return save_adapter(trained("lora"), tmp_path / "lora")


def test_another_backbone_is_refused(lora):
    before = states(plain("transformer"))
    other = plain("transformer")
    with pytest.raises(
        AdapterError, match=r"made for tiny-conformer, not for tiny-transformer\. Load 'tiny-"
    ):
        load_adapter(lora, other)
    assert other.adapted_with is None and torch.equal(states(other), before)


def test_another_number_of_layers_is_refused(lora):
    shorter = fresh(MSD, dataclasses.replace(CONFORMER, num_layers=1), conv_channels=4).eval()
    shorter.name, shorter.weights_hash = "tiny-conformer", template("conformer").weights_hash
    with pytest.raises(AdapterError, match=r"2 layers, this one has 1\. Load it with num_layers=2"):
        load_adapter(lora, shorter)


def test_other_weights_are_refused(lora):
    other = plain()
    other.weights_hash = "0" * 64
    with pytest.raises(
        AdapterError, match=r"other weights of tiny-conformer \(file:tiny.pt, hash .*0000\.\.\."
    ):
        load_adapter(lora, other)
    assert other.adapted_with is None


def test_other_random_weights_are_refused(tmp_path):
    backbone = load_backbone("musicfm-mini", "random", num_layers=1, seed=7)
    inject(backbone, "lora")
    save_adapter(AdaptedModel(backbone, GENRES), tmp_path)
    with pytest.raises(AdapterError, match="made on other weights of musicfm-mini"):
        load_adapter(tmp_path, load_backbone("musicfm-mini", "random", num_layers=1, seed=8))


def test_an_adapted_backbone_is_refused(lora):
    backbone = plain()
    inject(backbone, "probe")
    with pytest.raises(ValueError, match="adapted with 'probe' already"):
        load_adapter(lora, backbone)
    with pytest.raises(ValueError, match="A bank begins with a plain backbone"):
        AdapterBank(backbone)


def test_arguments_that_do_not_go_together(lora):
    with pytest.raises(ValueError, match="Leave them away"):
        load_adapter(lora, plain(), weights="random")
    with pytest.raises(ValueError, match="Leave them away"):
        load_adapter(lora, plain(), device="cpu")


def test_a_backbone_that_nobody_knows_is_refused(lora):
    with pytest.raises(AdapterError, match="unknown backbone 'tiny-conformer'"):
        load_adapter(lora)
    forge(lora, backbone="musicfm-mini")
    with pytest.raises(WeightsError, match="no official weights of 'musicfm-mini' are known"):
        load_adapter(lora)


def test_a_rounded_backbone_is_refused_with_the_reason(lora):
    backbone = plain()
    backbone.precision = "bf16"
    with pytest.raises(AdapterError, match="rounded to bf16"):
        load_adapter(lora, backbone)


# Refusals: damage, edits, attacks --------------------------------------------------------------------------


class Touch:
    """What a pickle of a stranger may do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def refused(directory: Path, reason: str, kind: type[Exception] = AdapterError) -> None:
    """Refused with a message that names the place, and the backbone is as before."""
    backbone = plain()
    flags = [p.requires_grad for p in backbone.parameters()]
    with pytest.raises(kind, match=reason) as caught:
        load_adapter(directory, backbone)
    assert str(directory) in str(caught.value)
    assert backbone.adapted_with is None
    assert [p.requires_grad for p in backbone.parameters()] == flags
    ours, expected = backbone.state_dict(), template("conformer").state_dict()
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("name", [adapter_files.TENSORS, adapter_files.HEAD])
def test_damaged_tensors_are_refused(lora, name):
    good = (lora / name).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for damaged in (good[:-1], bytes(flipped), b"", good + b"\0"):
        (lora / name).write_bytes(damaged)
        refused(lora, "is not the file that adapter.json describes")
    (lora / name).unlink()
    refused(lora, f"there is no file {name}")


def test_damaged_tensors_are_refused_where_the_hashes_are_made_right(lora):
    good = (lora / adapter_files.TENSORS).read_bytes()
    huge_header = (1 << 62).to_bytes(8, "little") + good[8:]
    for damaged in (good[:-1], b"", huge_header, (200 << 20).to_bytes(8, "little") + b"{" * 100):
        (lora / adapter_files.TENSORS).write_bytes(damaged)
        forge(lora)
        refused(lora, "it is no safetensors file")


def test_a_pickle_is_not_executed(lora, tmp_path):
    trap = tmp_path / "executed"
    for content in (pickle.dumps(Touch(trap)), pickle.dumps({"weight": Touch(trap)}, protocol=2)):
        (lora / adapter_files.HEAD).write_bytes(content)
        forge(lora)
        refused(lora, "it is no safetensors file")
    torch.save({"weight": Touch(trap)}, lora / adapter_files.HEAD)
    forge(lora)
    refused(lora, "it is no safetensors file")
    assert not trap.exists()


def test_links_in_a_circle_and_things_that_are_no_files(lora, tmp_path):
    for name in (adapter_files.RECORD, adapter_files.HEAD):
        shutil.move(lora / name, tmp_path / "kept")
        os.symlink(lora / name, lora / name)
        refused(lora, f"there is no file {name}")
        (lora / name).unlink()
        (lora / name).mkdir()
        refused(lora, f"there is no file {name}")
        (lora / name).rmdir()
        os.mkfifo(lora / name)
        refused(lora, f"there is no file {name}")
        (lora / name).unlink()
        os.symlink(tmp_path / "kept", lora / name)  # as the cache of the Hub has them
        assert load_adapter(lora, plain()).layer == 2
        (lora / name).unlink()
        shutil.move(tmp_path / "kept", lora / name)
    refused(tmp_path / "nowhere", "there is no file adapter.json")


FIELDS = [*adapter_files._TYPES]


@pytest.mark.parametrize("name", FIELDS)
def test_every_edited_field_is_noticed(lora, name):
    path = lora / adapter_files.RECORD
    fields = json.loads(path.read_text())
    edits: dict[type[Any], Any] = {int: 7, str: "other", bool: True, type(None): 3.5}
    value = {**fields[name], "more": 1} if isinstance(fields[name], dict) else edits[type(fields[name])]
    path.write_text(json.dumps(fields | {name: value}))
    refused(lora, "this version reads 2" if name == "format" else "its checksum differs")
    path.write_text(json.dumps(fields | {name: [fields[name]]}))
    refused(lora, f"'{name}' is .*, of type list")
    del fields[name]
    path.write_text(json.dumps(fields))
    refused(lora, f"it lacks field '{name}'")


def test_a_record_that_is_no_record(lora):
    path = lora / adapter_files.RECORD
    good = path.read_text()
    broken = {
        "no JSON": "{",
        "no JSON ": "[" * 100_000,
        "NaN is no number in JSON": good.replace('"layer": 2,', '"layer": NaN,', 1),
        "it is a list, expected an object": "[]",
        "it has an unknown field 'path'": good.replace("{", '{"path": "/etc/passwd",', 1),
        "more than|are read at most": " " * (adapter_files.MAX_RECORD_BYTES + 1),
        "format 3, this version reads 2. Update audiation": good.replace('"format": 2', '"format": 3'),
    }
    for reason, text in broken.items():
        path.write_text(text)
        refused(lora, reason)
    path.write_bytes(b"\xff\xfe\x00")
    refused(lora, "it is damaged, or no JSON")
    for depth in (300, 3_000, 30_000):  # whatever reading, hashing or comparing can take
        path.write_text(good.replace('"info": {}', '"info": {"deep": ' + "[" * depth + "]" * depth + "}"))
        refused(lora, "its checksum differs|cannot read|cannot use")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"method": "lora:rank=1000000000"},
            "rank=1000000000, but no tensor in adapter.safetensors is that large",
        ),
        ({"method": "lora:rank=4"}, "of another shape"),
        ({"method": "lora:roles=query"}, "unexpected"),
        ({"method": "ssf"}, "missing"),
        ({"method": "surgery"}, "unknown method 'surgery'"),
        ({"method": "lora:rank=0"}, "rank must be at least 1"),
        ({"moved_statistics": True}, "missing"),
        ({"layer": 3}, "has layers 0..2, got 3"),
        ({"layer": -1}, "has layers 0..2, got -1"),
        ({"num_layers": -2}, "-2 layers, this one has 2"),
        ({"head": {"hidden": False, "dropout": 0.5, "size": None}}, "head.safetensors has to hold"),
        ({"head": {"hidden": True, "dropout": 1.5, "size": None}}, "dropout is a probability"),
        ({"head": {"hidden": True, "size": None}}, "it lacks field 'dropout'"),
        ({"head": {"hidden": True, "dropout": 0.5, "size": 0}}, "the size of the head is from 1"),
        ({"head": {"hidden": True, "dropout": 0.5, "size": 10**9}}, "the size of the head is from 1"),
        ({"windows": "forged"}, "no window policy 'forged'"),
        ({"head": {"hidden": 1, "dropout": 0.5, "size": None}}, "'hidden' is 1, of type int"),
        ({"target": {"kind": "class", "classes": ["a", "b"]}}, "of another shape"),
        ({"target": {"kind": "code"}}, "'kind' of a target"),
        ({"target": {"kind": "class", "classes": [1]}}, "'classes' of a target"),
        ({"crop_seconds": -1}, "crop_seconds is a positive number"),
        ({"crop_seconds": True}, "'crop_seconds' is True"),
        ({"trunk_hash": "1" * 64}, "made on other weights"),
        ({"backbone": "../../etc"}, "made for ../../etc, not for"),
    ],
)
def test_forged_records_are_refused_by_what_they_say(lora, changes, reason):
    forge(lora, **changes)
    refused(lora, reason)


def test_files_outside_of_the_directory_cannot_be_named(lora):
    fields = json.loads((lora / adapter_files.RECORD).read_text())
    for files in (
        {"../head.safetensors": "0"},
        {},
        fields["files"] | {"other.bin": "0"},
        {adapter_files.HEAD: 1},
    ):
        changed = {k: v for k, v in fields.items() if k != "checksum"} | {"files": files}
        text = json.dumps(changed, sort_keys=True, separators=(",", ":"))
        changed["checksum"] = hashlib.sha256(text.encode()).hexdigest()
        (lora / adapter_files.RECORD).write_text(json.dumps(changed))
        refused(lora, "files has hashes of head.safetensors")


@pytest.mark.parametrize("name", [adapter_files.TENSORS, adapter_files.HEAD])
def test_forged_tensors_are_refused_by_what_they_are(lora, name):
    good = tensors_of(lora, name)
    first = next(iter(good))
    forged = {
        "missing": {k: v for k, v in good.items() if k != first},
        "unexpected: 'more'": good | {"more": torch.zeros(1)},
        "of another shape": good | {first: good[first][..., :1].contiguous()},
        "is torch.float16, expected torch.float32": good | {first: good[first].half()},
        "is torch.int32, expected torch.float32": good
        | {first: torch.zeros(good[first].shape, dtype=torch.int32)},
        "not finite": good | {first: torch.full_like(good[first], float("nan"))},
    }
    for reason, tensors in forged.items():
        exchange(lora, name, lambda _, tensors=tensors: tensors)
        refused(lora, reason)
    exchange(lora, name, lambda _: good)
    assert torch.equal(logits(load_adapter(lora, plain())), logits(trained("lora")))


# Writing ---------------------------------------------------------------------------------------------------


def test_what_is_not_adapted_is_not_written(tmp_path):
    model = AdaptedModel(plain(), GENRES)
    with pytest.raises(AdapterError, match="is not adapted"):
        save_adapter(model, tmp_path / "a")
    model = trained("lora")
    model.backbone.weights_hash = "none"
    with pytest.raises(AdapterError, match="no weights_hash"):
        save_adapter(model, tmp_path / "a")
    model = trained("lora").requires_grad_(False)
    with pytest.raises(AdapterError, match="requires gradients any more"):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_written(bad, tmp_path):
    for name in ("backbone.encoder.blocks.1.attention.query.adaptation.B", "head.output.bias"):
        model = trained("lora")
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = bad
        with pytest.raises(
            AdapterError, match=f"'{name.partition('.')[2]}' holds numbers that are not finite"
        ):
            save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("info", [{"score": float("nan")}, {"path": Path("x")}, {"tensor": torch.zeros(1)}])
def test_info_that_json_cannot_hold(info, tmp_path):
    with pytest.raises(AdapterError, match="info holds something that JSON cannot"):
        save_adapter(trained("lora"), tmp_path / "a", info=info)
    with pytest.raises(AdapterError, match="Shorten info"):
        save_adapter(trained("lora"), tmp_path / "a", info={"text": "x" * adapter_files.MAX_RECORD_BYTES})
    assert not (tmp_path / "a").exists()


def test_only_an_adapter_is_overwritten(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_bytes(b"RIFF")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter.json").write_text('{"made by": "somebody else"}')
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    model = trained("lora")
    for name, reason in {
        "music": "holds song.wav and is no adapter",
        "other": "holds adapter.json and is no adapter",
        "file": "is no directory",
        "link": "is no directory",
    }.items():
        with pytest.raises(AdapterError, match=reason):
            save_adapter(model, tmp_path / name)
    assert [p.name for p in (tmp_path / "music").iterdir()] == ["song.wav"]
    assert (tmp_path / "other" / "adapter.json").read_text() == '{"made by": "somebody else"}'


def test_an_adapter_is_replaced_and_what_lies_beside_it_stays(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "log.jsonl").write_text("{}")
    save_adapter(trained("lora"), tmp_path)
    (tmp_path / "README.md").write_text("mine")
    probe = trained("probe", seed=4)
    save_adapter(probe, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "adapter.json",
        "head.safetensors",
        "training",
        "README.md",
    }
    assert torch.equal(logits(load_adapter(tmp_path, plain())), logits(probe))


@pytest.mark.parametrize("writes", range(3))
def test_killed_while_writing(writes, tmp_path, monkeypatch):
    """Before the first file is in place the old adapter is whole; later on, what is there is refused."""
    first, second = trained("lora", seed=1), trained("lora", seed=2)
    save_adapter(first, tmp_path / "old")
    replace, left = os.replace, iter(range(writes))

    def killed(source: Any, target: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(second, tmp_path / "old")
    left = iter(range(writes))
    with pytest.raises(KeyboardInterrupt):
        save_adapter(second, tmp_path / "new")
    monkeypatch.undo()
    refused(tmp_path / "new", "there is no file adapter.json")
    if writes == 0:
        assert torch.equal(logits(load_adapter(tmp_path / "old", plain())), logits(first))
    else:
        refused(tmp_path / "old", "is not the file that adapter.json describes")
    for name in ("old", "new"):  # called again, it goes through
        save_adapter(second, tmp_path / name)
        assert torch.equal(logits(load_adapter(tmp_path / name, plain())), logits(second))
        assert not list((tmp_path / name).glob("*.part"))


def test_the_same_model_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        save_adapter(trained("adapter"), tmp_path / name, info={"b": 1, "a": 2})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# Banks -----------------------------------------------------------------------------------------------------

# Each of the methods, and some twice, so that what one leaves behind would be seen in the next.
MEMBERS = [*SHARING, "bitfit:norms=conv_batch,roles=query", "lora:rank=1", "adapter:norms=final,bottleneck=2"]


@functools.cache
def members(family: str) -> dict[str, AdaptedModel]:
    """Models on trunks of their own."""
    every = MEMBERS if family == "conformer" else [*SHARING, "lora:rank=1"]
    return {method: trained(method, family, seed=i) for i, method in enumerate(every)}


def bank_of(family: str, tmp_path: Path) -> AdapterBank:
    """Filled from directories and from models, alternately."""
    bank = AdapterBank(plain(family))
    for i, (method, model) in enumerate(members(family).items()):
        bank.add(method, save_adapter(model, tmp_path / str(i)) if i % 2 else model)
    return bank


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_places_in_any_order(family, tmp_path):
    bank = bank_of(family, tmp_path)
    assert bank.names == tuple(members(family)) and bank.active is None
    own, names = states(plain(family)), [*bank.names, None]
    expected = {name: logits(model) for name, model in members(family).items()}
    trunk_state = template(family).state_dict()
    order = random.Random(0)
    for name in order.choices(names, k=6 * len(names)):
        if name is None:
            trunk = bank.use(None)
            assert torch.equal(states(trunk), own)
            assert trunk.adapted_with is None and not any(p.requires_grad for p in trunk.parameters())
            state = trunk.state_dict()
            assert state.keys() == trunk_state.keys()
            assert all(torch.equal(state[key], trunk_state[key]) for key in state)
        else:
            model = bank.use(name)
            assert torch.equal(logits(model), expected[name]), name
            assert model.backbone.adapted_with == members(family)[name].backbone.adapted_with
        assert bank.active == name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", SHARING)
def test_every_method_leaves_the_trunk_as_it_was(method, family):
    """With gradients recorded too, where batch norms are not folded."""
    backbone = plain(family).requires_grad_(False)
    before, objects = backbone(clip()).layers[2], dict(backbone.named_parameters())
    bank = AdapterBank(backbone)
    bank.add("a", trained(method, family))
    adapted = bank.use("a")([clip()])
    torch.testing.assert_close(adapted, trained(method, family)([clip()]), rtol=0, atol=0)
    after = bank.use(None)(clip()).layers[2]
    assert torch.equal(after, before)
    assert all(p is objects[name] for name, p in backbone.named_parameters())


def test_folded_batch_norms_follow_the_adapter():
    """What is folded for inference is known by address and version, and an address may be used again."""
    models = [trained("bitfit:norms=conv_batch,roles=none", seed=seed) for seed in range(12)]
    expected = [logits(model) for model in models]
    bank = AdapterBank(plain())
    for seed, model in enumerate(models):
        bank.add("a", model)
        assert torch.equal(logits(bank.use("a")), expected[seed]), seed
        bank.remove("a")
    bank.add("0", models[0])
    bank.add("1", models[1])
    for name in "01101":
        with torch.no_grad():  # not in inference mode
            assert torch.equal(bank.use(name)([clip()]), expected[int(name)])
        assert torch.equal(states(bank.use(None)), states(plain()))


def test_moved_statistics_change_places_too(tmp_path):
    moved, still = trained("lora", seed=1), trained("lora", seed=2)
    move_statistics(moved)
    save_adapter(moved, tmp_path, moved_statistics=True)
    bank = AdapterBank(plain())
    bank.add("directory", tmp_path)
    bank.add("model", moved)
    bank.add("still", still)
    for name in ("directory", "still", "model", "still", "directory"):
        assert torch.equal(logits(bank.use(name)), logits(still if name == "still" else moved))
    assert torch.equal(states(bank.use(None)), states(plain()))


class Operations(TorchDispatchMode):
    """Names of the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_changing_places_computes_and_copies_nothing(tmp_path):
    bank = bank_of("conformer", tmp_path)
    with Operations() as operations:
        for name in [*bank.names, None, *reversed(bank.names)]:
            bank.use(name)
    assert operations.names == []
    with Operations() as operations:
        bank.use("lora")([clip()])
    assert len(operations.names) > 0


def test_a_model_runs_only_while_its_adapter_is_at_work():
    bank = AdapterBank(plain())
    bank.add("a", trained("lora"))
    bank.add("b", trained("ssf"))
    a = bank.use("a")
    b = bank.use("b")
    assert logits(b).shape == (2, 3)
    with pytest.raises(ValueError, match="'a' is not at work: the trunk has 'b'"):
        a([clip()])
    bank.use(None)
    with pytest.raises(ValueError, match="'b' is not at work: the trunk is plain"):
        b([clip()])
    bank.remove("a")
    bank.add("a", trained("prefix"))
    bank.use("a")
    with pytest.raises(ValueError, match=r"'a' is not at work: the trunk has 'a'\. Take the model that"):
        a([clip()])


def test_removing_the_one_at_work_leaves_a_plain_trunk():
    bank = AdapterBank(plain())
    bank.add("a", trained("bitfit"))
    bank.use("a")
    bank.remove("a")
    assert (bank.names, bank.active) == ((), None)
    assert torch.equal(states(bank.use(None)), states(plain()))
    for call in (bank.use, bank.remove):
        with pytest.raises(UnknownNameError, match=r"no adapter 'a' in this bank\. There are: none yet"):
            call("a")


def test_an_unknown_name_changes_nothing():
    bank = AdapterBank(plain())
    bank.add("a", trained("lora"))
    bank.use("a")
    with pytest.raises(KeyError, match=r"no adapter 'b' in this bank\. There are: a"):
        bank.use("b")
    assert bank.active == "a" and torch.equal(logits(bank.use("a")), logits(trained("lora")))


def test_what_cannot_be_added(tmp_path):
    bank = AdapterBank(plain())
    bank.add("a", trained("bitfit"))
    before = logits(bank.use("a"))
    save_adapter(trained("finetune"), tmp_path / "finetune")
    save_adapter(trained("lora", "transformer"), tmp_path / "other")
    shorn = trained("lora")
    shorn.backbone.get_submodule("encoder.blocks.0.attention.query.adaptation").requires_grad_(False)
    plain_model = AdaptedModel(plain(), GENRES)
    for source, kind, reason in (
        (tmp_path / "finetune", ValueError, "'finetune' trains the whole trunk"),
        (trained("finetune"), ValueError, "'finetune' trains the whole trunk"),
        (tmp_path / "other", AdapterError, "made for tiny-transformer, not for tiny-conformer"),
        (trained("lora", "transformer"), AdapterError, "made for tiny-transformer, not for tiny-conformer"),
        (tmp_path / "nowhere", AdapterError, "there is no file adapter.json"),
        (plain_model, AdapterError, "is not adapted"),
        (shorn, AdapterError, "missing"),
        (bank.use("a"), ValueError, "on the bank's own trunk"),
    ):
        with pytest.raises(kind, match=reason):
            bank.add("b", source)
        assert (bank.names, bank.active) == (("a",), "a")
        assert torch.equal(logits(bank.use("a")), before)
    with pytest.raises(ValueError, match="there is an adapter 'a' in this bank"):
        bank.add("a", trained("lora"))


def test_a_trunk_that_somebody_else_changed_is_refused():
    bank = AdapterBank(plain())
    bank.add("a", trained("bitfit"))
    bank.add("b", trained("lora"))
    trunk = bank.use(None)
    inject(trunk, "lora")
    with pytest.raises(ValueError, match="by somebody else meanwhile"):
        bank.use("b")

    bank = AdapterBank(plain())
    bank.add("a", trained("bitfit"))
    query = bank.use("a").backbone.get_submodule("encoder.blocks.0.attention.query")
    query.bias = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(ValueError, match="by somebody else meanwhile"):
        bank.use(None)


def test_training_in_a_bank_stays_with_the_adapter():
    bank = AdapterBank(plain())
    bank.add("a", trained("bitfit"))
    bank.add("b", trained("lora"))
    a = bank.use("a")
    set_modes(a.backbone, "published")
    optimiser = torch.optim.SGD([p for p in a.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.detach().clone() for name, p in a.named_parameters()}
    a([clip()]).square().sum().backward()
    optimiser.step()
    moved = {name for name, p in a.named_parameters() if not torch.equal(before[name], p)}
    assert any(name.endswith("bias") for name in moved)
    b = bank.use("b")  # in eval mode
    assert not any(module.training for module in b.modules())
    for name, parameter in bank.use("a").named_parameters():
        assert torch.equal(before[name], parameter) == (name not in moved)
    after = {name: p for name, p in bank.use(None).named_parameters()}
    assert all(torch.equal(p, after[name]) for name, p in template("conformer").named_parameters())


def test_the_one_at_work_can_be_merged_into_a_copy():
    bank = AdapterBank(plain())
    bank.add("a", trained("lora"))
    bank.add("b", trained("bitfit"))
    merged = merge(bank.use("a").backbone)
    expected = states(bank.use("a").backbone)
    torch.testing.assert_close(states(merged), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(bank.use("b")), logits(trained("bitfit")))
    assert torch.equal(states(bank.use(None)), states(plain()))


def test_a_bank_of_directories_loads_one_trunk(tmp_path):
    directories, expected = {}, {}
    for method in ("bitfit", "lora"):
        backbone = load_backbone("musicfm-mini", "random", num_layers=1, seed=2)
        inject(backbone, method)
        model = AdaptedModel(backbone, GENRES, generator=torch.Generator().manual_seed(len(method))).eval()
        directories[method], expected[method] = save_adapter(model, tmp_path / method), logits(model)
    bank = AdapterBank.load(directories)
    assert bank.names == ("bitfit", "lora")
    for name in ("lora", "bitfit", "lora"):
        assert torch.equal(logits(bank.use(name)), expected[name])
    with pytest.raises(ValueError, match="name at least one"):
        AdapterBank.load({})
    with pytest.raises(AdapterError, match=r"there is no file adapter\.json"):
        AdapterBank.load({"a": tmp_path})
