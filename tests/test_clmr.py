"""CLMR against vectors of the published module, with recipe weights; windows of both conventions; checkpoints."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiation.backbones.clmr import CONVENTIONS, from_published, outline
from audiation.inference import run_clip
from audiation.weights import WeightsError
from detgen import recipe

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 0, "atol": 1e-4}
WINDOW = {"default": 59_049, "jukemir": 59_409}


@cache
def golden():
    return load_file(GOLDEN / "clmr_a.safetensors")


@cache
def published():
    """Tensors under the names of the official encoder."""
    facts = json.loads((GOLDEN / "clmr_a.json").read_text())
    seed = facts["recipe_seed"]
    return {
        p["name"]: torch.from_numpy(recipe(seed, p["name"], tuple(p["shape"]), p["mean"], p["std"]))
        for p in facts["params"]
    }


def clmr(convention="default"):
    backbone = from_published(published(), {})
    backbone.use_convention(convention)
    return backbone.eval()


@cache
def wave():
    return golden()["wave_i16"].float()[None] / 32768


def run(backbone, waveform, *args, **options):
    with torch.inference_mode():
        return backbone(waveform, *args, **options)


# Parity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_vectors_are_those_of_the_published_module(convention):
    backbone, window = clmr(convention), WINDOW[convention]
    states = run(backbone, wave())
    assert wave().shape[1] // window == 4
    torch.testing.assert_close(states.layers[0][0], golden()[f"windows_{window}"], **TOLERANCE)
    torch.testing.assert_close(states.mean().layers[0][0, 0], golden()[f"mean_{window}"], **TOLERANCE)


@pytest.mark.parametrize("block", [0, 3, 6])
def test_blocks_are_those_of_the_published_module(block):
    backbone = clmr()
    x = wave()[:, None, :59_409]
    with torch.inference_mode():
        for module in backbone.blocks[: block + 1]:
            x = module(x)
    torch.testing.assert_close(x[0, :, :8], golden()[f"block{block}_out_window0_first8"], **TOLERANCE)


def test_folded_batch_norms_give_what_the_plain_ones_give():
    backbone = clmr()
    folded = run(backbone, wave()).layers[0]
    plain = backbone(wave()).layers[0]  # gradients are recorded, so nothing stands in for the weights
    assert plain.requires_grad
    torch.testing.assert_close(plain.detach(), folded, rtol=1e-4, atol=1e-5)


# Windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convention", "num_samples", "windows"),
    [
        ("default", 59_049, 1),
        ("default", 2 * 59_049 - 1, 1),
        ("default", 2 * 59_049, 2),
        ("jukemir", 59_410, 1),
        ("jukemir", 2 * 59_409, 1),
        ("jukemir", 2 * 59_409 + 1, 2),
    ],
)
def test_number_of_windows(convention, num_samples, windows):
    backbone = clmr(convention)
    clip = wave()[:, :num_samples]
    states = run(backbone, clip)
    assert states.layers[0].shape == (1, windows, 512) and backbone.num_frames(num_samples) == windows
    window = WINDOW[convention]
    centres = [(i + 0.5) * window / 22_050 for i in range(windows)]
    assert states.times_seconds.tolist() == pytest.approx(centres, abs=1e-9)


@pytest.mark.parametrize(("convention", "shortest"), [("default", 59_049), ("jukemir", 59_410)])
def test_too_short_clips_are_refused(convention, shortest):
    backbone = clmr(convention)
    with pytest.raises(ValueError, match=f"at least {shortest} samples"):
        backbone(wave()[:, : shortest - 1])


def test_chunks_of_a_window_are_the_windows_of_a_clip():
    backbone = clmr()
    assert backbone.max_seconds == 59_049 / 22_050
    with torch.inference_mode():
        chunked = run_clip(backbone, wave(), layers=[0])
    torch.testing.assert_close(chunked.layers[0], run(backbone, wave()).layers[0], rtol=1e-4, atol=1e-5)
    assert chunked.frame_rate_hz == backbone.frame_rate_hz


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_clips_of_unequal_length(convention):
    backbone, window = clmr(convention), WINDOW[convention]
    lengths = [4 * window + 100, 2 * window + 1]
    clips = torch.stack([wave()[0], wave()[0].flip(0)])[:, : lengths[0]]
    states = run(backbone, clips, torch.tensor(lengths))
    assert states.valid.tolist() == [[True] * 4, [True] * 2 + [False] * 2]
    alone = run(backbone, clips[1:, : lengths[1]])
    torch.testing.assert_close(states.layers[0][1, :2], alone.layers[0][0], rtol=1e-4, atol=1e-5)
    reduced = run(backbone, clips, torch.tensor(lengths), reduce="mean")
    torch.testing.assert_close(reduced.layers[0][1, 0], alone.layers[0][0].mean(0), rtol=1e-4, atol=1e-5)


def test_conventions_can_be_left_again():
    backbone = clmr("jukemir")
    backbone.use_convention("default")
    assert torch.equal(run(backbone, wave()).layers[0], run(clmr(), wave()).layers[0])
    with pytest.raises(ValueError, match="default, jukemir, got 'marble'"):
        backbone.use_convention("marble")


def test_training_follows_the_batch_and_reaches_every_parameter():
    backbone = clmr().train()
    before = backbone.blocks[0].norm.running_mean.clone()
    backbone(wave()[:, : 2 * 59_049]).layers[0].square().sum().backward()
    assert not torch.equal(backbone.blocks[0].norm.running_mean, before)
    weights = {name: p for name, p in backbone.named_parameters() if "bias" not in name}
    assert [name for name, p in weights.items() if p.grad is None or not p.grad.any()] == []


# Checkpoints -----------------------------------------------------------------------------------------------


def test_checkpoints_of_every_form_are_read():
    plain = clmr().state_dict()
    counters = {f"sequential.{i}.1.num_batches_tracked": torch.tensor(0) for i in range(11)}
    encoder = published() | counters | {"fc.weight": torch.zeros(50, 512), "fc.bias": torch.zeros(50)}
    projector = {"projector.0.weight": torch.zeros(512, 512), "projector.2.weight": torch.zeros(64, 512)}
    copies = {f"encoder.{k}": torch.full_like(v, 7) for k, v in encoder.items()}
    lightning = {f"model.encoder.{k}": v for k, v in encoder.items()} | copies
    lightning |= {f"model.{k}": v for k, v in projector.items()}
    earlier = {f"encoder.{k}": v for k, v in encoder.items()} | projector
    for tensors in (lightning, earlier, encoder, published()):
        theirs = from_published(tensors, {}).state_dict()
        assert theirs.keys() == plain.keys() and all(torch.equal(theirs[k], v) for k, v in plain.items())


def test_parameters_are_those_that_are_published():
    assert sum(p.numel() for p in outline().parameters()) == 2_368_512


def test_other_files_are_refused():
    lacking = {k: v for k, v in published().items() if k != "sequential.10.0.weight"}
    with pytest.raises(WeightsError, match=r"1 missing: 'sequential\.10\.0\.weight'"):
        from_published(lacking, {})
    for extra in ("sequential.11.0.weight", "discriminator.weight"):
        with pytest.raises(WeightsError, match=f"1 unexpected: '{extra}'"):
            from_published(published() | {extra: torch.zeros(1)}, {})
    lightning = {f"model.encoder.{k}": v for k, v in published().items()}
    with pytest.raises(WeightsError, match=r"1 unexpected: 'discriminator\.weight'"):
        from_published(lightning | {"discriminator.weight": torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match="are both the encoder's"):
        from_published(lightning | {f"ema.{k}": v for k, v in lightning.items()}, {})
    with pytest.raises(ValueError, match="cannot be cut to num_layers=1"):
        from_published(published(), {}, num_layers=1)
