"""MuQ against numbers of the published implementation, and what is promised about its files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiation.backbones import BACKBONES
from audiation.backbones import muq as module
from audiation.backbones import musicfm as musicfm_module
from audiation.backbones.conformer import ConformerConfig, rotary_frequencies
from audiation.backbones.muq import MuQ, from_published, official_name, published_layout, published_parameters
from audiation.backbones.musicfm import MSD
from audiation.backbones.musicfm_checkpoint import our_name
from audiation.backbones.musicfm_checkpoint import published_layout as musicfm_layout
from audiation.checkpoints import read_checkpoint
from audiation.loading import load_backbone
from audiation.weights import UnverifiedWeightsWarning, WeightsError
from detgen import musicfm_tensor, waveform

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5
RECORD = json.loads((GOLDEN / "muq_tiny.json").read_text())
TINY = ConformerConfig(dim=64, num_heads=4, ffn_dim=128, num_layers=3)
FREQUENCIES = "conformer.embed_positions.inv_freq"


def recipe(layout: dict[str, tuple[int, ...]], config: ConformerConfig) -> dict[str, Tensor]:
    """A file's worth of tensors under official names; counters are integers."""
    tensors = {}
    for name, shape in layout.items():
        if name == FREQUENCIES:
            tensor = rotary_frequencies(config.dim // config.num_heads)
        else:
            tensor = torch.from_numpy(musicfm_tensor(RECORD["seed"], name, shape))
        tensors[official_name(name)] = tensor.long() if "num_batches" in name else tensor
    return tensors


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "muq_tiny.safetensors")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return recipe(published_layout(TINY, 8, num_codes=16, num_codebooks=2), TINY)


@pytest.fixture(scope="module")
def wav() -> Tensor:
    clips = [waveform(RECORD["seed"], RECORD["samples"], channel) for channel in range(RECORD["batch"])]
    return torch.stack([torch.from_numpy(clip) for clip in clips])


@pytest.fixture
def model(tensors: dict[str, Tensor]) -> MuQ:
    return from_published(tensors, RECORD["config"]).eval()


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b.detach()).abs().max())


# Parity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [True, False], ids=["folded", "unfolded"])
def test_every_layer_is_the_published_one(
    model: MuQ, golden: dict[str, Tensor], wav: Tensor, inference: bool
) -> None:
    with torch.inference_mode(inference):
        states = model(wav)
    assert sorted(states.layers) == [0, 1, 2, 3]
    for i, x in states.layers.items():
        assert largest_difference(x, golden[f"io.hidden.{i}"]) < TOLERANCE, i


def test_the_mel_spectrum_is_the_published_one(model: MuQ, golden: dict[str, Tensor], wav: Tensor) -> None:
    assert largest_difference(model.stem.features(wav)[..., :16], golden["io.mel_norm"]) < TOLERANCE


def test_frames_lie_on_the_forty_millisecond_grid(model: MuQ, wav: Tensor) -> None:
    states = model(wav, layers=[0])
    assert (model.sample_rate_hz, model.frame_rate_hz, model.max_seconds) == (24_000, 25.0, 30.0)
    assert states.layers[0].shape == (2, 32, 64)
    assert states.times_seconds[:3].tolist() == pytest.approx([0.0, 0.04, 0.08])


def test_unequal_lengths_are_refused(model: MuQ, wav: Tensor) -> None:
    with pytest.raises(ValueError, match="cannot be padded"):
        model(wav, num_samples=torch.tensor([30_240, 24_000]))


# Published files -------------------------------------------------------------------------------------


def test_the_layout_is_that_of_the_published_implementation() -> None:
    layout = published_layout(TINY, 8, num_codes=16, num_codebooks=2)
    ours = {official_name(name): list(shape) for name, shape in layout.items()}
    assert ours == RECORD["tensors"]


def test_the_layout_accounts_for_every_byte_of_the_published_file() -> None:
    layout = published_layout(ConformerConfig())
    assert len(layout) == 525
    kinds = {name: ("I64", 8) if "num_batches" in name else ("F32", 4) for name in layout}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(layout, key=lambda n: (kinds[n][0] != "I64", official_name(n))):
        kind, width = kinds[name]
        start, end = end, end + width * torch.Size(layout[name]).numel()
        header[official_name(name)] = {
            "dtype": kind,
            "shape": list(layout[name]),
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":")))
    assert 8 + length + -length % 8 + end == BACKBONES["muq-large-msd"].weights.checkpoint.size_bytes


def test_the_published_size() -> None:
    assert published_parameters(ConformerConfig()) == module.PUBLISHED_PARAMETERS == 333_401_472
    assert BACKBONES["muq-large-msd"].published_parameters == 333_401_472
    registered = sum(p.numel() for p in module.outline().parameters())
    head, class_token, positions, quantiser = 8_396_800, 1_024, 8_389_760, 8 * 33_824
    assert registered == 333_401_472 - head - class_token - positions - quantiser == 316_343_296


def test_a_file_is_loaded_from_disk(
    model: MuQ, tensors: dict[str, Tensor], wav: Tensor, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = from_published(read_checkpoint(tmp_path / "model.safetensors"), RECORD["config"]).eval()
    assert torch.equal(loaded(wav, layers=[3]).layers[3], model(wav, layers=[3]).layers[3])


def test_a_file_is_checked_before_it_is_loaded(
    tensors: dict[str, Tensor], wav: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"not the official model\.safetensors of Hub repository OpenMuQ"):
        load_backbone("muq-large-msd", path)
    with pytest.warns(UnverifiedWeightsWarning):
        loaded = load_backbone("muq-large-msd", path, allow_unverified_hash=True)
    assert (loaded.name, loaded(wav).layers[3].shape) == ("muq-large-msd", (2, 32, 64))
    (tmp_path / "config.json").write_text(json.dumps({"label_rate": 50}))
    with pytest.raises(WeightsError, match=r"not the official config\.json"):
        load_backbone("muq-large-msd", path, allow_unverified_hash=True)


def test_unused_tensors_are_reported_and_not_registered(model: MuQ, tensors: dict[str, Tensor]) -> None:
    unused = {name for name in published_layout(TINY, 8, 16, 2) if our_name(name) is None}
    assert set(model.unused_tensors) == unused
    assert len(model.unused_tensors) == len(unused) == 7 + 2 * 8
    assert {"rvq.quantizers.1.codebook.weight", "linear.weight", "cls_token"} <= unused
    assert len(model.state_dict()) + len(unused) == len(tensors)


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def old_spelling(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    pattern = re.compile("|".join(names))
    return {pattern.sub(lambda found: names[found[0]], n): t for n, t in tensors.items()}


def only_what_is_used(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if our_name(n.removeprefix("model.")) or FREQUENCIES in n}


@pytest.mark.parametrize("spelling", [without_prefix, old_spelling, only_what_is_used])
def test_every_spelling_gives_the_same_model(
    model: MuQ, tensors: dict[str, Tensor], spelling: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    ours, other = model.state_dict(), from_published(spelling(tensors), {}).state_dict()
    assert other.keys() == ours.keys()
    assert all(torch.equal(other[name], ours[name]) for name in ours)


def test_nothing_is_shared_with_the_file(model: MuQ, tensors: dict[str, Tensor]) -> None:
    before = tensors["model.conv.linear.bias"].clone()
    with torch.no_grad():
        model.stem.projection.bias.zero_()
    assert torch.equal(tensors["model.conv.linear.bias"], before)


def test_a_model_cut_to_two_blocks_ends_with_the_final_norm(
    model: MuQ, tensors: dict[str, Tensor], wav: Tensor
) -> None:
    cut = from_published(tensors, {}, num_layers=2).eval()
    assert cut.num_layers == 2
    assert cut.encoder.final_norm is not None
    whole = model(wav, layers=[2]).layers[2]
    torch.testing.assert_close(cut(wav, layers=[2]).layers[2], cut.encoder.final_norm(whole))
    with pytest.raises(ValueError, match="have 3 layers"):
        from_published(tensors, {}, num_layers=4)


RVQ = "model.rvq.quantizers"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.conv.conv.1.bn2.bias": None}, "1 missing: 'conv.conv.1.bn2.bias'"),
        ({f"{RVQ}.0.scale": torch.zeros(1)}, "1 unexpected: 'rvq.quantizers.0.scale'"),
        ({f"{RVQ}.99999999.codebook.weight": torch.zeros(1024, 16)}, "1 unexpected: .*99999999"),
        (
            {f"{RVQ}.1.codebook.weight": torch.zeros(1024, 8)},
            "codebook.weight' is .1024, 8., expected .1024, 16.",
        ),
        ({"model.recon_proj.bias": torch.zeros(512)}, "1 unexpected: 'recon_proj.bias'"),
        ({"model.linear.weight": torch.zeros(16, 63)}, "'linear.weight' is .16, 63., expected .16, 64."),
        ({f"model.{FREQUENCIES}": torch.ones(8)}, "inv_freq' differs"),
        ({"other.conv": torch.zeros(1)}, "two models in one file"),
    ],
)
def test_other_tensors_are_refused_by_name(
    tensors: dict[str, Tensor], changes: dict[str, Tensor | None], message: str
) -> None:
    changed: dict[str, Tensor | None] = {**tensors, **changes}
    with pytest.raises(ValueError, match=message):
        from_published({n: t for n, t in changed.items() if t is not None}, {})


def test_muq_and_musicfm_refuse_each_others_files(tensors: dict[str, Tensor]) -> None:
    theirs = recipe(musicfm_layout(TINY, 8, num_codes=16), TINY)
    with pytest.raises(ValueError, match=r"in those of MusicFM alone\. Load it as 'musicfm-msd'"):
        from_published(theirs, {})
    with pytest.raises(ValueError, match=r"unexpected: 'rvq\.quantizers\.0"):
        musicfm_module.from_published(tensors, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label_rate": 50}, "label_rate = 50 in the config is not supported, only 25"),
        ({"features": ["chromagram"]}, "features = ..chromagram.. in the config"),
        ({"w2v2_config": {"position_embeddings_type": "relative"}}, "position_embeddings_type = 'relative'"),
        ({"w2v2_config": {"num_attention_heads": 8}}, "num_attention_heads = 8 .* only 4"),
        ({"stat": {"melspec_2048_std": 0.0}}, "not the mean and deviation"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_published(tensors, config)


def test_statistics_come_from_the_config(tensors: dict[str, Tensor]) -> None:
    assert from_published(tensors, BACKBONES["muq-large-msd"].weights.default_config).stem.statistics == MSD
    other = from_published(tensors, {"stat": {"melspec_2048_mean": 1.0, "melspec_2048_std": 2.0}})
    assert (other.stem.statistics.mean_db, other.stem.statistics.std_db) == (1.0, 2.0)


def test_modules_have_their_published_paths(model: MuQ, tensors: dict[str, Tensor]) -> None:
    ends = ("query.weight", "up.weight", "pointwise1.weight")
    names = [n.removesuffix(".weight") for n in model.encoder.state_dict() if n.endswith(ends)]
    paths = [model.official_module(f"encoder.{name}") for name in names]
    assert len(paths) == 3 * 4
    assert all(f"{path.path}.weight" in tensors for path in paths)
    assert [path.is_convolution for path in paths] == ["pointwise" in path.path for path in paths]


# Fresh weights ---------------------------------------------------------------------------------------


def test_fresh_weights_are_drawn_from_the_generator() -> None:
    before = torch.get_rng_state()
    small = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=1, conv_kernel=5)
    first, again = (module.fresh(small, 4, torch.Generator().manual_seed(5)).state_dict() for _ in range(2))
    other = module.fresh(small, 4, torch.Generator().manual_seed(6)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.projection.weight"], other["stem.projection.weight"])
    with pytest.raises(ValueError, match="MuQ has 12 layers, got num_layers=13"):
        module.build(num_layers=13)


def test_fresh_weights_can_be_trained_when_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = module.fresh(ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=1, conv_kernel=5), 4)
    model.eval()(0.1 * torch.ones(1, 9600).cumsum(1).sin()).layers[1].square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
