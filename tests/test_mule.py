"""MULE against numbers of the published network with recipe weights: spectrum, slices, stages, vectors; key map."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from audiation.backbones.mule import build, from_published, outline, slices_of
from audiation.backbones.mule_network import official_names
from audiation.weights import WeightsError
from detgen import recipe

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@cache
def golden():
    return load_file(GOLDEN / "mule_a.safetensors")


@cache
def keys():
    return json.loads((GOLDEN / "mule_keras_h5_keys.json").read_text())


def recipe_tensors():
    """Tensors under the paths of the official file."""
    facts = json.loads((GOLDEN / "mule_a.json").read_text())
    seed = facts["recipe_seed"]
    return {
        keys()[p["name"]]: torch.from_numpy(recipe(seed, p["name"], tuple(p["shape"]), p["mean"], p["std"]))
        for p in facts["params"]
    }


@cache
def mule():
    return from_published(recipe_tensors(), {}).eval()


@cache
def wave():
    return golden()["wave_i16"].float()[None] / 32768


# Parity ----------------------------------------------------------------------------------------------------


def test_spectrum_and_slices_are_the_published_ones():
    logmel = mule().mel(wave())
    torch.testing.assert_close(logmel[0], golden()["logmel"], **TOLERANCE)
    slices = slices_of(logmel)[0]
    torch.testing.assert_close(slices[0], golden()["slice0"], **TOLERANCE)
    extremes = torch.stack([slices.amin(dim=(1, 2)), slices.amax(dim=(1, 2))], dim=1)
    torch.testing.assert_close(extremes, golden()["slices_minmax"], **TOLERANCE)


def test_stages_are_the_published_ones():
    found = {}
    network = mule().network
    named = {"slow_stem": network.slow_stem, "fast_stem": network.fast_stem}
    named |= {f"{p}.{i}": getattr(network, p)[i] for p in ("slow", "fast") for i in range(4)}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
        for name, module in named.items()
    ]
    with torch.inference_mode():
        network(golden()["slice0"][None, None])
    for hook in hooks:
        hook.remove()
    for name, y in found.items():
        torch.testing.assert_close(y[0].mean(dim=(1, 2)), golden()[f"{name}.chanmean"], **TOLERANCE)


def test_vectors_are_the_published_ones_at_half_the_level():
    with torch.inference_mode():
        states = mule()(2 * wave())
    torch.testing.assert_close(states.layers[0][0], golden()["embeddings"], **TOLERANCE)
    torch.testing.assert_close(states.mean().layers[0][0, 0], golden()["embedding_mean"], **TOLERANCE)


# Input -----------------------------------------------------------------------------------------------------


def test_a_mono_file_is_heard_at_half_its_amplitude():
    """As the published reader gives it: 16-bit integers over 65,536. (A stereo file, being the mean, is not halved.)"""
    halved = golden()["wave_i16"].double()[None] / 65536
    backbone, given = mule(), []
    hook = backbone.mel.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.inference_mode():
        backbone(wave()[:, :48_000])
    hook.remove()
    assert torch.equal(given[0], halved.float()[:, :48_000])


def test_slices_are_centred_every_two_seconds_and_moved_inwards_at_the_end():
    frames = torch.arange(501.0).expand(1, 96, 501)
    slices = slices_of(frames)
    ramp = torch.arange(300.0) - 149.5
    expected = (ramp / ramp.square().mean().sqrt()).expand(1, 2, 96, 300)
    torch.testing.assert_close(
        slices, expected, rtol=1e-5, atol=1e-5
    )  # frames 50-349 and, for 250-549, 201-500

    marked = torch.zeros(1, 96, 501)
    marked[..., 205] = 1.0
    at = slices_of(marked).amax(2).argmax(-1)
    assert at.tolist() == [[155, 4]]


def test_silence_stays_silence():
    assert torch.equal(slices_of(torch.full((1, 96, 300), 0.25)), torch.zeros(1, 1, 96, 300))


@pytest.mark.parametrize(
    ("num_samples", "slices"), [(47_840, 1), (63_999, 1), (64_000, 2), (96_000, 3), (480_000, 15)]
)
def test_number_of_slices(num_samples, slices):
    backbone = outline()
    assert backbone.num_frames(num_samples) == slices
    assert slices_of(torch.zeros(1, 96, 1 + num_samples // 160)).shape[1] == slices


def test_less_than_a_slice_is_refused():
    with pytest.raises(ValueError, match=r"at least 47840 samples \(2.990 s\), got 47839"):
        outline()(torch.zeros(1, 47_839))


def test_long_spectra_are_made_in_parts(monkeypatch):
    whole = mule().mel(wave())
    monkeypatch.setattr("audiation.backbones.mule.FRAMES_AT_ONCE", 300)
    assert torch.equal(mule().mel(wave()), whole)


# Weights ---------------------------------------------------------------------------------------------------


def test_names_in_the_file_are_those_of_a_published_graph():
    def theirs(own):
        path, index, *rest = own.split(".")
        if path.endswith("stem"):
            index = str(int(index) // 2)  # activations between
        return ".".join([path, index, *rest]).replace(".fc", ".se.fc")

    assert {theirs(own): path for own, path in official_names().items()} == keys()


def test_parameters_are_those_that_are_published():
    assert sum(p.numel() for p in outline().parameters()) == 62_345_742
    assert outline().network.state_dict().keys() == official_names().keys()


def test_other_files_are_refused():
    paths = {path: torch.zeros(()) for path in official_names().values()}
    one, *_ = paths
    with pytest.raises(WeightsError, match=f"1 missing: '{one}'"):
        from_published({k: v for k, v in paths.items() if k != one}, {})
    with pytest.raises(WeightsError, match="1 unexpected: 'optimizer/vars/0'"):
        from_published(paths | {"optimizer/vars/0": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match=r"of another shape: .* is \(\), expected \(3, 3, 1, 2\)"):
        from_published(paths, {})
    with pytest.raises(ValueError, match="cannot be cut to num_layers=1"):
        from_published(paths, {}, num_layers=1)


def test_standardised_kernels_are_derived_for_inference_only():
    conv = build().network.slow[1][0].conv1.eval()
    x = torch.randn(1, 256, 24, 19, generator=torch.Generator().manual_seed(0))
    kernels = conv.kernels()
    per_output = kernels.flatten(1)
    torch.testing.assert_close(per_output.mean(1), torch.zeros(256), rtol=0, atol=1e-6)
    scale = 1.7015043497085571  # of the activation before it
    torch.testing.assert_close(
        per_output.var(1, correction=0).sqrt(), torch.full((256,), scale / 384**0.5), rtol=1e-4, atol=0
    )
    with torch.inference_mode():
        derived = conv(x)
    assert conv._derived is not None and conv.state_dict().keys() == {"weight", "gain", "bias"}
    trained = conv.train()(x)
    assert conv._derived is None and trained.requires_grad
    torch.testing.assert_close(trained.detach(), derived, rtol=1e-5, atol=1e-6)
    by_hand = F.conv2d(x, kernels, conv.bias, (2, 1), (0, 1), groups=2)
    torch.testing.assert_close(trained, by_hand, rtol=1e-5, atol=1e-6)


def test_training_reaches_every_parameter():
    backbone = build(generator=torch.Generator().manual_seed(3)).train()
    backbone(wave()[:, :47_840]).layers[0].square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
