"""`load_backbone` with a tiny family of its own: two siblings in one Hub repository, and a stranger."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation import loading
from audiation.backbones import BACKBONES, Backbone, BackboneSpec, HiddenStates
from audiation.checkpoints.tensors import ByteRange
from audiation.fingerprint import TOLERANCE, compare_fingerprints, fixed_waveform
from audiation.loading import load_backbone
from audiation.registry import UnknownNameError
from audiation.weights import (
    OfficialFile,
    OfficialWeights,
    UnverifiedWeightsWarning,
    WeightsError,
    check_tensors,
    strip_prefix,
)

HOP_SAMPLES, BLOCKS = 80, 3


class Toy(Backbone):
    """Frames of 80 samples, divided by `scale`, through linear maps with tanh; layer i is after map i."""

    def __init__(self, dim: int, num_layers: int, scale: float) -> None:
        super().__init__()
        self.sample_rate_hz, self.hop_samples, self.min_samples = 8000, HOP_SAMPLES, HOP_SAMPLES
        self.frame_rate_hz, self.max_seconds = 8000 / HOP_SAMPLES, None
        self.dim, self.num_layers, self.scale = dim, num_layers, scale
        self.normalisation, self.accepts_padding = "none", True
        self.maps = nn.ModuleList(nn.Linear(dim if i else HOP_SAMPLES, dim) for i in range(num_layers + 1))

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Any = None,
    ) -> HiddenStates:
        x = waveform.unflatten(1, (-1, HOP_SAMPLES)) / self.scale
        states = {}
        for i, linear in enumerate(self.maps):
            states[i] = x = torch.tanh(linear(x))
        return HiddenStates(states, torch.ones(x.shape[:2], dtype=torch.bool), self.frame_rate_hz, 0.0)


def toy_from_published(tensors, config, num_layers=None) -> Toy:
    blocks = BLOCKS if num_layers is None else num_layers
    toy = Toy(config["width"], blocks, config["scale"])
    tensors = strip_prefix(tensors, "model.")
    whole = Toy(config["width"], BLOCKS, 1.0).state_dict()
    check_tensors(tensors, whole, "a toy")
    toy.load_state_dict({name: tensors[name] for name in toy.state_dict()})
    return toy


def toy_build(width: int):
    def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Toy:
        toy = Toy(width, BLOCKS if num_layers is None else num_layers, 1.0)
        for parameter in toy.parameters():
            nn.init.uniform_(parameter, -0.3, 0.3, generator=generator)
        return toy

    return build


def published(width: int, seed: int) -> dict[str, Tensor]:
    state = toy_build(width)(generator=torch.Generator().manual_seed(seed)).state_dict()
    return {f"model.{name}": tensor for name, tensor in state.items()}


class Hub:
    """A Hub of local files; counts what is asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.reachable = root, [], True

    def put(self, repo_id: str, filename: str, content: object) -> OfficialFile:
        path = self.root / repo_id / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif filename.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            torch.save({"state_dict": content}, path)
        data = path.read_bytes()
        return OfficialFile(repo_id, filename, len(data), hashlib.sha256(data).hexdigest())

    def __call__(self, repo_id, filename, revision=None, local_files_only=False):
        self.asked.append(f"{repo_id}/{filename}")
        if not self.reachable:
            raise LocalEntryNotFoundError("outgoing traffic has been disabled")
        if not (self.root / repo_id / filename).is_file():
            raise EntryNotFoundError("404")
        return str(self.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """toy-a and toy-b: the same shapes, other tensors and scales, one repository. toy-wide: another model."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_ALLOW_UNVERIFIED_HASH", raising=False)
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    BACKBONES.names()
    for name, repo_id, letter, width, scale in (
        ("toy-a", "who/toys", "a", 6, 0.1),
        ("toy-b", "who/toys", "b", 6, 0.2),
        ("toy-wide", "who/wide", "wide", 9, 0.1),
    ):
        config = {"scale": scale, "width": width}
        checkpoint = hub.put(repo_id, f"toy_{letter}.pt", published(width, seed=len(letter) + ord(letter[0])))
        weights = OfficialWeights(
            checkpoint,
            hub.put(repo_id, f"{letter}.json", config),
            licence="CC-BY-NC-4.0",
            licence_note="Toys only.",
            default_config=config,
        )
        if name == "toy-wide":  # of this one nobody has recorded sizes or hashes
            weights = OfficialWeights(
                OfficialFile(repo_id, "toy_wide.pt"),
                OfficialFile(repo_id, "wide.json"),
                "MIT",
                default_config=config,
            )
        spec = BackboneSpec(
            name, "a toy", toy_build(width), toy_from_published, weights, commercial_use=name == "toy-wide"
        )
        monkeypatch.setitem(BACKBONES._entries, name, spec)
    return hub


def states(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone(fixed_waveform(800, 8000)[None]).layers[backbone.num_layers]


# What loads -----------------------------------------------------------------------------


def test_the_official_file_comes_from_the_hub_in_eval_mode_with_name_hash_and_source(hub: Hub):
    backbone = load_backbone("toy-a")
    assert hub.asked == ["who/toys/toy_a.pt", "who/toys/a.json"]
    assert (backbone.name, backbone.weights_source, backbone.training) == ("toy-a", "hub:who/toys", False)
    assert len(backbone.weights_hash) == 64
    expected = published(6, seed=1 + ord("a"))
    assert torch.equal(backbone.state_dict()["maps.3.weight"], expected["model.maps.3.weight"])
    assert backbone.scale == 0.1


def test_file_directory_hub_id_and_official_are_the_same_weights(hub: Hub):
    folder = hub.root / "who/toys"
    ways = [None, "who/toys", folder, str(folder), folder / "toy_a.pt"]
    loaded = [load_backbone("toy-a", weights) for weights in ways]
    assert len({b.weights_hash for b in loaded}) == 1
    assert [b.weights_source for b in loaded] == [
        "hub:who/toys", "hub:who/toys", "file:toy_a.pt", "file:toy_a.pt", "file:toy_a.pt",
    ]  # fmt: skip
    assert all(torch.equal(states(b), states(loaded[0])) for b in loaded)


def test_a_checkpoint_alone_gets_the_known_config(hub: Hub, tmp_path: Path):
    alone = tmp_path / "elsewhere" / "toy_b.pt"
    alone.parent.mkdir()
    alone.write_bytes((hub.root / "who/toys/toy_b.pt").read_bytes())
    assert load_backbone("toy-b", alone).scale == 0.2


def test_any_repository_with_the_usual_names_loads(hub: Hub):
    hub.put("me/finetuned", "pytorch_model.bin", published(9, seed=3))
    backbone = load_backbone("toy-wide", "me/finetuned")
    assert hub.asked[-4:] == [
        f"me/finetuned/{name}"
        for name in ("toy_wide.pt", "model.safetensors", "pytorch_model.bin", "wide.json")
    ]
    assert backbone.weights_source == "hub:me/finetuned"


def test_num_layers_keeps_the_first_blocks(hub: Hub):
    full, cut = load_backbone("toy-a"), load_backbone("toy-a", num_layers=2)
    assert cut.num_layers == 2 and cut.weights_hash != full.weights_hash
    waveform = fixed_waveform(800, 8000)[None]
    assert torch.equal(full(waveform).layers[2], cut(waveform).layers[2])


def test_random_weights_repeat_with_the_seed_and_leave_the_global_generator_alone(hub: Hub):
    before = torch.random.get_rng_state()
    first, again, other = (load_backbone("toy-a", "random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(states(first), states(again))
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert first.weights_source == "random:seed=1"
    assert hub.asked == [] and not (hub.root.parent / "cache").exists()


def test_loading_published_weights_leaves_the_global_generator_alone(hub: Hub):
    before = torch.random.get_rng_state()
    load_backbone("toy-a")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_callers_config_wins_and_changes_the_hash(hub: Hub):
    plain, changed = load_backbone("toy-a"), load_backbone("toy-a", config={"scale": 0.5})
    assert changed.scale == 0.5 and changed.weights_hash != plain.weights_hash
    same = load_backbone("toy-a", config={"scale": 0.1})
    assert same.weights_hash == plain.weights_hash


# What is refused -----------------------------------------------------------------------------


def test_an_unreachable_hub_names_the_file_and_where_to_put_it(hub: Hub):
    hub.reachable = False
    with pytest.raises(
        WeightsError, match=r"cannot get toy_a\.pt of Hub repository who/toys.*--weights PATH"
    ):
        load_backbone("toy-a")
    with pytest.raises(WeightsError, match=r"cannot get toy_a\.pt of Hub repository me/mine"):
        load_backbone("toy-a", "me/mine")


def test_official_files_that_are_there_are_used_without_asking_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    def cache_only(repo_id, filename, revision=None, local_files_only=False):
        assert local_files_only, "offline, the Hub would be asked again and again for half a minute"
        return hub(repo_id, filename, revision)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cache_only)
    assert load_backbone("toy-a").weights_source == "hub:who/toys"


@pytest.mark.parametrize("num_layers", [-1, 2.5, "3", True])
@pytest.mark.parametrize("weights", ["random", None])
def test_a_number_of_layers_that_is_none_is_refused(hub: Hub, weights: str | None, num_layers: Any):
    with pytest.raises(ValueError, match="num_layers is a whole number"):
        load_backbone("toy-a", weights, num_layers=num_layers)


@pytest.mark.parametrize("num_layers", [0, 13, 99])
def test_musicfm_has_no_more_blocks_than_were_published(num_layers: int):
    with pytest.raises(ValueError, match=f"12 layers, got num_layers={num_layers}"):
        load_backbone("musicfm-msd", "random", num_layers=num_layers)


@pytest.mark.parametrize(
    "content", ["{}", '{"format": 1}', '{"format": 1, "backbone": "toy-a", "layers": {"0": 1}}', "[]", "x"]
)
def test_a_fingerprint_that_somebody_edited(hub: Hub, content: str):
    load_backbone("toy-a")
    the_fingerprint(hub).write_text(content)
    if content == "{}":  # of another format, so written anew
        load_backbone("toy-a")
    else:
        with pytest.raises(WeightsError, match="fingerprint"):
            load_backbone("toy-a")


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_there_is_not_is_refused(device: str):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here .* There is: cpu"):
        load_backbone("chroma", device=device)


def test_a_file_with_another_hash_is_refused_and_can_be_overridden_loudly(hub: Hub):
    hub.put("who/toys", "toy_a.pt", published(6, seed=5))
    with pytest.raises(WeightsError, match=r"its SHA-256 is .* allow_unverified_hash=True"):
        load_backbone("toy-a")
    with pytest.warns(UnverifiedWeightsWarning, match="USED ALL THE SAME"):
        load_backbone("toy-a", allow_unverified_hash=True)


def test_a_truncated_file_is_refused_and_no_override_makes_it_load(hub: Hub):
    path = hub.root / "who/toys/toy_a.pt"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"it has [\d,]+ of [\d,]+ bytes: truncated"):
        load_backbone("toy-a", path)
    with pytest.warns(UnverifiedWeightsWarning), pytest.raises(WeightsError, match="zip archive is missing"):
        load_backbone("toy-a", path, allow_unverified_hash=True)


def test_a_siblings_checkpoint_is_refused_under_any_name(hub: Hub, tmp_path: Path):
    theirs = hub.root / "who/toys/toy_b.pt"
    with pytest.raises(WeightsError, match=r"toy_b\.pt is toy-b's file; toy-a is toy_a\.pt"):
        load_backbone("toy-a", theirs, allow_unverified_hash=True)
    renamed = tmp_path / "toy_a.pt"
    renamed.write_bytes(theirs.read_bytes())
    with pytest.raises(WeightsError, match=r"is toy_b\.pt of toy-b, not toy_a\.pt"):
        load_backbone("toy-a", renamed, allow_unverified_hash=True)


@pytest.mark.parametrize("give", ["file", "directory"])
def test_a_siblings_statistics_beside_the_right_checkpoint_are_refused(hub: Hub, tmp_path: Path, give: str):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("toy_a.pt", "b.json"):
        (folder / name).write_bytes((hub.root / "who/toys" / name).read_bytes())
    with pytest.raises(WeightsError, match=r"b\.json belongs to toy-b; toy-a needs a\.json"):
        load_backbone("toy-a", folder if give == "directory" else folder / "toy_a.pt")


def test_a_siblings_statistics_under_the_right_name_are_refused(hub: Hub):
    hub.put("who/toys", "a.json", {"scale": 0.2, "width": 6})
    with pytest.raises(WeightsError, match=r"a\.json is b\.json of toy-b"):
        load_backbone("toy-a", allow_unverified_hash=True)


def test_a_config_that_contradicts_the_model_is_refused_also_without_a_hash(hub: Hub):
    hub.put("who/wide", "wide.json", {"scale": 0.1, "width": 6})
    with pytest.raises(
        WeightsError, match=r"wide\.json is not toy-wide's: it says width = 6, toy-wide has 9"
    ):
        load_backbone("toy-wide", allow_unverified_hash=True)


def test_another_models_tensors_are_refused_with_name_and_shapes(hub: Hub):
    with pytest.raises(
        WeightsError, match=r"toy_b\.pt: .*'maps\.0\.weight' is \(6, 80\), expected \(9, 80\)"
    ):
        load_backbone("toy-wide", hub.root / "who/toys/toy_b.pt")
    hub.put("me/odd", "model.bin", {"encoder.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"8 missing: 'maps\.0\.weight'.*1 unexpected: 'encoder\.weight'"):
        load_backbone("toy-wide", hub.root / "me/odd")


def test_another_models_repository_is_refused(hub: Hub):
    with pytest.raises(WeightsError, match="Hub repository who/toys holds toy-a"):
        load_backbone("toy-wide", "who/toys")


@pytest.mark.parametrize("where", ["preprocessor_config.json", "wide.json"])
def test_a_declared_sample_rate_tells_models_of_equal_shape_apart(hub: Hub, where: str):
    declared = {"sampling_rate": 16000} if where != "wide.json" else {"sample_rate": 16000}
    hub.put("who/wide", where, declared)
    with pytest.raises(WeightsError, match="say 16000 Hz, toy-wide takes 8000 Hz"):
        load_backbone("toy-wide", hub.root / "who/wide")


@pytest.mark.parametrize("weights", ["absent.pt", "./absent", "a/b/c", "sub/absent.pt", ""])
def test_what_is_neither_path_nor_hub_id_is_refused(hub: Hub, weights: str):
    with pytest.raises(WeightsError, match="is no file or directory here and no Hub id"):
        load_backbone("toy-a", weights)
    assert hub.asked == []


def test_arguments_that_do_not_go_together_are_refused(hub: Hub):
    with pytest.raises(UnknownNameError, match="Did you mean 'toy-wide'"):
        load_backbone("toy-wider")
    with pytest.raises(ValueError, match="precision is 'fp32' or 'bf16', got 'fp16'"):
        load_backbone("toy-a", "random", precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="computes in float32 only"):
        load_backbone("toy-a", "random", precision="bf16")
    with pytest.raises(ValueError, match="config describes published weights"):
        load_backbone("toy-a", "random", config={"scale": 1.0})


@pytest.mark.parametrize("argument", [{"weights": "random"}, {"num_layers": 1}, {"config": {}}])
def test_a_formula_has_no_weights(hub: Hub, argument: dict[str, Any]):
    with pytest.raises(
        ValueError, match=f"'chroma' is computed by a formula and has no {next(iter(argument))}"
    ):
        load_backbone("chroma", **argument)
    assert load_backbone("chroma").weights_source == "none needed"


# Licence and fingerprint -----------------------------------------------------------------------------


def test_the_licence_is_shown_once_per_model(hub: Hub, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        load_backbone("toy-a")
    load_backbone("toy-wide")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "toy-a: weights under CC-BY-NC-4.0; commercial use NOT allowed. Toys only.",
        "toy-wide: weights under MIT; commercial use allowed.",
    ]


def the_fingerprint(hub: Hub) -> Path:
    (path,) = (hub.root.parent / "cache" / "fingerprints").iterdir()
    return path


def test_the_first_load_stores_a_fingerprint_and_later_ones_agree(hub: Hub):
    backbone = load_backbone("toy-a")
    path = the_fingerprint(hub)
    stored = json.loads(path.read_text())
    assert path.name == f"{backbone.weights_hash}.json"
    assert stored["torch"] == torch.__version__ and stored["backbone"] == "toy-a"
    layer_2 = backbone(fixed_waveform(16000, 8000)[None]).layers[2][0].double()
    assert stored["layers"].keys() == {"0", "1", "2", "3"}
    assert stored["layers"]["2"]["mean"] == pytest.approx(layer_2.mean().item(), rel=1e-6)
    assert stored["layers"]["2"]["std"] == pytest.approx(layer_2.std().item(), rel=1e-6)
    values = stored["layers"]["2"]["values"]
    assert values[0] == pytest.approx(layer_2[0, 0].item()) and values[-1] == pytest.approx(
        layer_2[-1, -1].item()
    )
    load_backbone("toy-a", hub.root / "who/toys")
    assert json.loads(path.read_text()) == stored


def test_a_computation_that_changed_is_refused_and_told(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    load_backbone("toy-a")
    path = the_fingerprint(hub)
    path.write_text(path.read_text().replace(torch.__version__, "2.8.0"))
    monkeypatch.setattr(torch, "tanh", lambda x: x / (1 + x.abs()))  # as if a new torch computed otherwise
    with pytest.raises(WeightsError, match=r"layer 0: .* is now .*Then: torch 2\.8\.0 .* delete ") as refusal:
        load_backbone("toy-a")
    assert str(path) in str(refusal.value)
    path.unlink()
    load_backbone("toy-a")


def test_the_same_tensors_under_two_names_are_told(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    load_backbone("toy-wide")
    spec = BACKBONES["toy-wide"]
    twin = BackboneSpec("toy-twin", "", spec.build, spec.from_published, spec.weights)
    monkeypatch.setitem(BACKBONES._entries, "toy-twin", twin)
    with pytest.raises(WeightsError, match="the same tensors were loaded as toy-wide before"):
        load_backbone("toy-twin")


def test_damaged_values_are_refused(hub: Hub):
    tensors = published(9, seed=3)
    tensors["model.maps.2.bias"][4] = float("nan")
    hub.put("who/wide", "toy_wide.pt", tensors)
    with pytest.raises(WeightsError, match="toy-wide, layer 2: infinite or undefined values"):
        load_backbone("toy-wide")


def test_numbers_may_differ_by_a_thousandth_of_a_layers_deviation(hub: Hub):
    load_backbone("toy-a")
    stored = json.loads(the_fingerprint(hub).read_text())
    for share, differs in ((0.9, False), (1.1, True)):
        now = json.loads(json.dumps(stored))
        now["layers"]["1"]["values"][3] += share * TOLERANCE * stored["layers"]["1"]["std"]
        assert bool(compare_fingerprints(stored, now)) is differs


def test_a_cache_that_cannot_be_written_is_a_warning(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot write .*AUDIATION_CACHE"):
        assert load_backbone("toy-a").scale == 0.1


def test_a_model_of_two_files_is_read_tensor_by_tensor_also_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "file"))
    parts = {"a.pth": {"x": torch.ones(3), "y": torch.zeros(2)}, "b.pth": {"x": torch.full((4,), 7.0)}}
    for name, tensors in parts.items():
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=False)
    read = []
    original = ByteRange.octets if hasattr(ByteRange, "octets") else ByteRange.tensor
    monkeypatch.setattr(
        ByteRange, original.__name__, lambda self, *a: read.append(self.path.name) or original(self, *a)
    )
    spec = BackboneSpec("two", "of two files", toy_build(6), toy_from_published, None)
    found = loading._Found(tmp_path / "a.pth", {}, {}, "two", {"b.": tmp_path / "b.pth"})
    with pytest.warns(UserWarning) as said:
        tensors = loading._read_all(spec, found)
    assert read == [] and list(tensors) == ["x", "y", "b.x"]
    assert len(said) == 2 and all("cannot keep a conversion" in str(w.message) for w in said)  # one a file
    assert tensors["b.x"].tolist() == [7.0] * 4 and read == ["b.pth"]
    assert tensors.infos["y"].shape == (2,)
    clash = loading._Found(tmp_path / "a.pth", {}, {}, "two", {"": tmp_path / "b.pth"})
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match="both hold 'x'"):
        loading._read_all(spec, clash)


@pytest.mark.parametrize("weights", ["a" * 5000, "a\0b", "~nobody-of-that-name/x.pt"])
def test_a_text_that_no_path_can_be_is_refused_as_such(hub: Hub, weights: str):
    with pytest.raises(WeightsError, match="is no file or directory here and no Hub id") as refusal:
        load_backbone("toy-a", weights)
    assert len(str(refusal.value)) < 600


def test_a_pipe_as_weights_is_refused_and_not_waited_for(hub: Hub, tmp_path: Path):
    os.mkfifo(tmp_path / "x.pt")
    for name in ("toy-a", "toy-wide"):  # with a hash and without
        with pytest.raises(WeightsError, match=r"is no file|it is a pipe or a device"):
            load_backbone(name, tmp_path / "x.pt")


def test_the_fixed_waveform_is_the_same_everywhere():
    waveform = fixed_waveform(48000, 24000)
    assert waveform.dtype == torch.float32 and waveform.shape == (48000,)
    assert float(waveform.double().square().mean()) == pytest.approx(
        0.0400, abs=5e-4
    )  # 4 x 0.1^2/2 + 0.2^2/2
    for n in (0, 1, 1000, 47999):  # the same formulas in Python's own integers and floats
        t, mask = n / 24000, (1 << 64) - 1
        bits = (n + 1) * 0x9E3779B97F4A7C15 & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        chord = sum(math.sin(2 * math.pi * hz * t) for hz in (110.0, 220.0, 277.18, 329.63))
        sweep = math.sin(2 * math.pi * (50.0 + 900.0 * t) * t)
        expected = 0.1 * chord + 0.2 * sweep + 0.005 * ((bits >> 40) / 2**23 - 1.0)
        assert waveform[n].item() == pytest.approx(expected, abs=1e-7)


# Real families, from tiny checkpoints with official names ------------------------------------------------

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Description, checkpoint and recorded numbers of a golden file; the checkpoint has `prefix`."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    checkpoint = {k: v for k, v in tensors.items() if k.startswith(prefix)}
    return json.loads((GOLDEN / f"{name}.json").read_text()), checkpoint, tensors


@pytest.fixture
def musicfm_folder(hub: Hub, tmp_path: Path) -> Path:
    """As published: `state_dict` with the prefix "model.", and the statistics beside it."""
    described, checkpoint, _ = golden("musicfm_tiny", "model.")
    statistics = {f"melspec_2048_{key}": value for key, value in described["normalisation"].items()}
    hub.put("tiny/musicfm", "pretrained_msd.pt", checkpoint)
    hub.put("tiny/musicfm", "msd_stats.json", statistics)
    return hub.root / "tiny/musicfm"


@pytest.fixture
def mert_folder(hub: Hub) -> Path:
    described, checkpoint, _ = golden("mert_tiny_base", "param.")
    tensors = {name.removeprefix("param."): tensor for name, tensor in checkpoint.items()}
    hub.put("tiny/mert", "config.json", described["config"])
    torch.save(tensors, hub.root / "tiny/mert/pytorch_model.bin")
    return hub.root / "tiny/mert"


def without_records(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Register `name`-tiny: the family's own functions, with nothing known of sizes and hashes."""
    spec = BACKBONES[name]
    tiny = BackboneSpec(f"{name}-tiny", "", spec.build, spec.from_published)
    monkeypatch.setitem(BACKBONES._entries, tiny.name, tiny)


def test_a_musicfm_checkpoint_gives_the_recorded_states(
    musicfm_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    without_records(monkeypatch, "musicfm-msd")
    backbone = load_backbone("musicfm-msd-tiny", musicfm_folder)
    _, _, recorded = golden("musicfm_tiny", "model.")
    with torch.no_grad():
        computed = backbone(recorded["io.wav"]).layers
    for i in range(4):
        torch.testing.assert_close(computed[i], recorded[f"io.hidden.{i}"], rtol=0, atol=2e-5)


def test_a_mert_checkpoint_gives_the_recorded_states(mert_folder: Path, monkeypatch: pytest.MonkeyPatch):
    without_records(monkeypatch, "mert-v1-95m")
    backbone = load_backbone("mert-v1-95m-tiny", mert_folder)
    _, _, recorded = golden("mert_tiny_base", "param.")
    with torch.no_grad():
        computed = backbone(recorded["in.waveform_raw"][None]).layers
    for i in range(4):
        torch.testing.assert_close(computed[i], recorded["out.hidden_states"][i], rtol=1e-4, atol=2e-5)


def test_both_spellings_of_weight_norm_have_one_hash(mert_folder: Path, monkeypatch: pytest.MonkeyPatch):
    without_records(monkeypatch, "mert-v1-95m")
    old = load_backbone("mert-v1-95m-tiny", mert_folder)
    path = mert_folder / "pytorch_model.bin"
    tensors = torch.load(path)
    for before, after in (("weight_g", "original0"), ("weight_v", "original1")):
        name = f"encoder.pos_conv_embed.conv.{before}"
        tensors[name.replace(before, f"parametrizations.weight.{after}")] = tensors.pop(name)
    torch.save(tensors, path)
    assert load_backbone("mert-v1-95m-tiny", path).weights_hash == old.weights_hash


@pytest.mark.parametrize("name", ["mert-v0", "mert-v0-public", "mert-v1-95m", "mert-v1-330m"])
def test_another_size_is_refused_for_mert(mert_folder: Path, name: str):
    with pytest.raises(WeightsError, match=rf"config\.json is not {name}'s: it says hidden_size = 32"):
        load_backbone(name, mert_folder)
    (mert_folder / "config.json").unlink()
    with pytest.raises(
        WeightsError, match=rf"cannot make {name} from .*pytorch_model\.bin.*of another shape"
    ):
        load_backbone(name, mert_folder)


def test_one_familys_checkpoint_is_refused_by_the_other(musicfm_folder: Path, mert_folder: Path):
    with pytest.raises(WeightsError, match=r"cannot make mert-v1-95m .*missing: .*unexpected: 'model\."):
        load_backbone("mert-v1-95m", musicfm_folder / "pretrained_msd.pt")
    with (
        pytest.warns(UnverifiedWeightsWarning),
        pytest.raises(WeightsError, match=r"not a MusicFM checkpoint: 'conv\.conv\.0\.conv1\.weight'"),
    ):
        load_backbone("musicfm-fma", mert_folder / "pytorch_model.bin", allow_unverified_hash=True)


def test_musicfm_files_are_bound_to_their_checkpoint(musicfm_folder: Path):
    with pytest.raises(WeightsError, match=r"pretrained_msd\.pt is musicfm-msd's file"):
        load_backbone("musicfm-fma", musicfm_folder)
    (musicfm_folder / "pretrained_msd.pt").rename(musicfm_folder / "pretrained_fma.pt")
    with pytest.raises(
        WeightsError, match=r"msd_stats\.json belongs to musicfm-msd; musicfm-fma needs fma_stats"
    ):
        load_backbone("musicfm-fma", musicfm_folder)
    (musicfm_folder / "msd_stats.json").unlink()
    with pytest.raises(WeightsError, match=r"of 1,316,802,154 bytes: truncated.*before 2024-02-13"):
        load_backbone("musicfm-fma", musicfm_folder)


def test_the_page_on_models_says_what_the_registry_says():
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    for name in BACKBONES:
        spec = BACKBONES[name]
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        use = "| yes |" if spec.commercial_use else "| **no** |"
        count = "-" if spec.published_parameters is None else f"{spec.published_parameters:,}"
        facts = [f"| {count} |", f"| {spec.weights_licence}", use]
        assert [fact for fact in facts if fact not in row] == [], name
        for file in spec.weights.files if spec.weights is not None else ():
            known = [file.repo_id, file.filename, file.sha256, file.size_bytes and f"{file.size_bytes:,}"]
            assert [
                fact for fact in known if fact and f"`{fact}`" not in page and f"| {fact} |" not in page
            ] == []
