"""Architectures as values: what they build, that it equals the published models, and that it can be kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from audiation.backbones import BACKBONES
from audiation.backbones.architecture import (
    SIZES,
    Architecture,
    BuiltBackbone,
    build_architecture,
    format_architecture,
    from_published,
    is_architecture,
    outline,
    parse_architecture,
    published_config,
    published_tensors,
)
from audiation.backbones.attention import Attention, relaxed_attention
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.hubert_config import BASE
from audiation.backbones.hubert_layout import build
from audiation.backbones.musicfm import MSD, Statistics, fresh
from audiation.backbones.musicfm import outline as musicfm_outline
from audiation.contracts import input as input_contracts
from audiation.contracts import output, training
from audiation.contracts.subject import CONTRACTS, Subject, tones
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.objectives import PretrainBatch, parse_objective
from audiation.weights import WeightsError

TINY = "dim=32,num_heads=2,ffn_dim=48,num_layers=2,conv_channels=8"
KINDS = (
    f"conformer:{TINY}",
    f"conformer:{TINY},frame_rate_hz=50",
    f"conformer:{TINY},frame_rate_hz=75,attention_relax=32",
    f"conformer:{TINY},stem=waveform,frame_rate_hz=75",
    f"bert:{TINY}",
    f"bert:{TINY},frame_rate_hz=75,norm=post",
    f"bert:{TINY},frame_rate_hz=50,norm=deepnorm",
    f"bert:{TINY},stem=waveform,frame_rate_hz=75",
    f"bert:{TINY},stem=waveform,sample_rate_hz=16000,frame_rate_hz=50,norm=post,conv_norm=layer",
)


def made(text: str, seed: int = 0) -> BuiltBackbone:
    return build_architecture(parse_architecture(text), torch.Generator().manual_seed(seed))


def noise(num_clips: int, num_samples: int) -> Tensor:
    return 0.1 * torch.randn(num_clips, num_samples, generator=torch.Generator().manual_seed(3))


# The value ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", KINDS)
def test_short_form_round_trip(text: str) -> None:
    architecture = parse_architecture(text)
    assert parse_architecture(format_architecture(architecture)) == architecture
    assert is_architecture(text) and not is_architecture("musicfm-mini")


def test_short_form_names_what_differs_from_the_defaults() -> None:
    assert format_architecture(Architecture()) == "conformer"
    text = "bert:stem=waveform,size=330m,frame_rate_hz=75,attention_relax=32.0"
    assert format_architecture(parse_architecture(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("musicfm:size=mini", "begins with conformer or bert"),
        ("bert:encoder=conformer", "before the colon"),
        ("conformer:size=1b", "must be one of mini, 95m"),
        ("conformer:frame_rate_hz=30", "must be one of 25, 50, 75"),
        ("conformer:norm=post", "norms of its own"),
        ("conformer:conv_norm=layer", "for stem='waveform'"),
        ("conformer:dim=30,num_heads=4", "not divisible by 4 heads"),
        ("bert:dim=24,num_heads=2", "multiple of 16"),
        ("conformer:num_layers=0", "whole number >= 1"),
        ("bert:attention_relax=0.5", "None or a number >= 1"),
        ("conformer:dropout=1.0", "from 0 to below 1"),
        # 75 frames per second would need a hop of 106.67 samples
        ("conformer:sample_rate_hz=16000,frame_rate_hz=75", "150 mel frames per second"),
        ("bert:stem=waveform,frame_rate_hz=50", "needs sample_rate_hz=16000"),
    ],
)
def test_what_does_not_go_together(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_architecture(text)


@pytest.mark.parametrize(
    ("rate_hz", "hop", "strides", "stacked", "frames_of_30_s"),
    [(25, 240, (2, 2), 4, 750), (50, 240, (2, 1), 2, 1500), (75, 160, (2, 1), 2, 2250)],
)
def test_mel_hop_and_stacking(
    rate_hz: int, hop: int, strides: tuple[int, int], stacked: int, frames_of_30_s: int
) -> None:
    architecture = parse_architecture(f"conformer:frame_rate_hz={rate_hz}")
    backbone = outline(architecture)
    assert (architecture.mel_hop_samples, architecture.time_strides) == (hop, strides)
    assert architecture.stacked_frames == stacked
    assert backbone.frame_rate_hz == rate_hz and backbone.hop_samples == 24_000 // rate_hz
    assert backbone.num_frames(30 * 24_000) == frames_of_30_s


COUNTS = {  # parameters, of docs/pretraining-recipes.md
    "conformer:size=mini": 1_705_984,
    "conformer:size=95m": 90_320_640,
    "conformer:size=330m": 316_343_296,
    "conformer:size=660m": 606_450_688,
    "bert:size=mini": 1_886_976,
    "bert:size=95m": 98_436_224,
    "bert:size=330m": 336_935_040,
    "bert:size=660m": 639_244_416,
    "bert:size=95m,stem=waveform,frame_rate_hz=75,norm=post": 94_370_944,
    "bert:size=330m,stem=waveform,frame_rate_hz=75": 315_427_968,
}


@pytest.mark.parametrize("text", COUNTS)
def test_parameter_counts(text: str) -> None:
    assert sum(p.numel() for p in outline(parse_architecture(text)).parameters()) == COUNTS[text]


def test_sizes_of_the_published_models() -> None:
    """MusicFM, and MERT less the vector that masks frames (MERT spec, section 2.4)."""
    musicfm = musicfm_outline(MSD, ConformerConfig())
    assert sum(p.numel() for p in musicfm.parameters()) == COUNTS["conformer:size=330m"]
    assert COUNTS["bert:size=330m,stem=waveform,frame_rate_hz=75"] == 315_428_992 - 1024
    assert COUNTS["bert:size=95m,stem=waveform,frame_rate_hz=75,norm=post"] == 94_371_712 - 768
    assert {size for _, size in SIZES} == {"mini", "95m", "330m", "660m"}


# What is built -----------------------------------------------------------------------------------------


def test_conformer_on_mel_at_25_hz_is_musicfm() -> None:
    backbone = made(f"conformer:{TINY}", seed=5)
    config = ConformerConfig(dim=32, num_heads=2, ffn_dim=48, num_layers=2)
    musicfm = fresh(MSD, config, 8, torch.Generator().manual_seed(99))
    musicfm.load_state_dict(backbone.state_dict())
    musicfm.eval()
    clips = noise(2, 12_345)
    with torch.no_grad():
        ours, theirs = backbone(clips).layers, musicfm(clips).layers
    assert all(torch.equal(ours[i], theirs[i]) for i in range(3))
    assert (backbone.local_stem, backbone.hop_samples) == (musicfm.local_stem, musicfm.hop_samples)


def test_conformer_draws_what_musicfm_draws() -> None:
    ours = build_architecture(Architecture(), torch.Generator().manual_seed(4)).state_dict()
    mini = ConformerConfig(dim=128, num_heads=4, ffn_dim=512, num_layers=4)
    theirs = fresh(MSD, mini, 32, torch.Generator().manual_seed(4)).state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    ("norm", "fields"),
    [
        ("post", {}),
        ("pre", {"do_stable_layer_norm": True}),
        ("deepnorm", {"deepnorm": True}),
    ],
)
def test_bert_on_waveforms_is_the_hubert_layout(norm: str, fields: dict) -> None:
    """Weights as drawn and layers, bit for bit."""
    config = {
        **BASE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "conv_dim": [8] * 7, **fields,
    }  # fmt: skip
    theirs = build(config, "hubert", 24_000, generator=torch.Generator().manual_seed(1))
    ours = made(f"bert:{TINY},stem=waveform,frame_rate_hz=75,norm={norm}", seed=1)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[n], expected[n]) for n in state)
    clips = noise(2, 9_000)
    with torch.no_grad():
        a, b = ours(clips), theirs(clips)
    assert all(torch.equal(a.layers[i], b.layers[i]) for i in range(3))
    assert a.first_frame_seconds == b.first_frame_seconds


MODULES = [module.__name__ for module in (input_contracts, output, training)]
ASKED = [t for t, c in CONTRACTS.items() if c.__module__ in MODULES and not t.startswith("speed")]


@pytest.mark.parametrize("text", KINDS)
def test_contracts(text: str) -> None:
    """Layers, early exit, padding, number of frames, times: what every backbone promises."""
    assert len(ASKED) >= 15
    for title in ASKED:
        CONTRACTS[title](subjects(text))


_SUBJECTS: dict[str, Subject] = {}


def subjects(text: str) -> Subject:
    if text not in _SUBJECTS:
        backbone = made(text)
        clips = tones(backbone)
        with torch.inference_mode():
            _SUBJECTS[text] = Subject(BACKBONES[backbone.name], backbone, clips, backbone(clips))
    return _SUBJECTS[text]


@pytest.mark.parametrize("text", [t for t in KINDS if "waveform" not in t])
def test_frames_inside_a_crop_are_those_of_the_clip(text: str) -> None:
    """What `local_stem` promises, with exactly as many edge frames as the stem's reach gives."""
    backbone = made(text)
    local = backbone.local_stem
    assert local is not None
    clip = noise(1, 30 * backbone.hop_samples + 7_000)
    start = 4 * local.step_samples
    with torch.no_grad():
        whole, crop = backbone.project(clip), backbone.project(clip[:, start:])
    inside = crop[:, local.edge_frames :]
    assert torch.allclose(whole[:, 4 + local.edge_frames :], inside, atol=1e-5)


@pytest.mark.parametrize("text", KINDS)
def test_every_parameter_has_a_gradient(text: str) -> None:
    """Nothing is registered that BEST-RQ does not train."""
    backbone = made(text).train()
    objective = parse_objective("best_rq:codebook_size=64").build(backbone)
    seconds = 1.2 if backbone.sample_rate_hz == 24_000 else 1.6
    batch = PretrainBatch(noise(2, round(seconds * backbone.sample_rate_hz)))
    objective(backbone, batch, torch.Generator().manual_seed(0)).mean.backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    silent = [n for n, p in backbone.named_parameters() if p.grad is not None and not p.grad.abs().sum()]
    # The softmax does not see what all keys share, and batch norms not what precedes them as a constant.
    assert all(
        n.endswith(("attention.key.bias", "conv1.bias", "conv2.bias", "shortcut.bias")) for n in silent
    )


# Attention relaxation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_relaxed_attention_is_attention(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 30, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = (torch.arange(30) < 21)[None, None, None, :] if masked else None
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    relaxed = relaxed_attention(q, k, v, 32.0, mask)
    assert float((plain - relaxed).abs().max()) < 1e-5  # the softmax itself is in float32


def test_relaxed_attention_survives_what_overflows_in_float16() -> None:
    """Scores up to 25 times the largest float16 in the product that plain attention makes before it divides."""
    q, k = torch.full((1, 1, 3, 64), 160.0).half(), torch.full((1, 1, 3, 64), 160.0).half()
    k[..., 1, :] *= 0.5
    v = torch.eye(3, 64).half()[None, None]
    assert not (q @ k.transpose(-2, -1)).isfinite().all()
    mixed = relaxed_attention(q, k, v, 32.0)
    assert mixed.isfinite().all()
    assert float((mixed[..., :3] - torch.tensor([0.5, 0.0, 0.5]).half()).abs().max()) < 1e-3


def test_relaxation_changes_no_layer_and_no_gradient() -> None:
    plain, relaxed = made(f"bert:{TINY}"), made(f"bert:{TINY},attention_relax=32")
    constants = {m.relaxation for m in relaxed.modules() if isinstance(m, Attention)}
    assert constants == {32.0}
    clips = noise(2, 12_000)
    results = []
    for backbone in (plain, relaxed):
        layers = backbone(clips).layers
        layers[2].square().sum().backward()
        results.append((layers, {n: p.grad for n, p in backbone.named_parameters()}))
    (a, grad_a), (b, grad_b) = results
    assert all(torch.allclose(a[i], b[i], atol=2e-6) for i in a)
    for name, gradient in grad_a.items():
        other = grad_b[name]
        assert gradient is not None and other is not None
        assert torch.allclose(gradient, other, atol=1e-5 * float(gradient.abs().max()) + 1e-5), name


# Keeping it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", KINDS)
def test_saved_and_loaded_again(text: str, tmp_path: Path) -> None:
    # Weights of its own: a fingerprint is kept by the hash of the tensors, which know no frame rate.
    generator = torch.Generator().manual_seed(KINDS.index(text))
    backbone = build_architecture(parse_architecture(text), generator, Statistics(-3.0, 20.5))
    save_file(published_tensors(backbone), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(published_config(backbone)))
    loaded = load_backbone(backbone.name, tmp_path)
    assert isinstance(loaded, BuiltBackbone)
    assert loaded.architecture == backbone.architecture and loaded.statistics == Statistics(-3.0, 20.5)
    clips = tones(backbone)
    with torch.no_grad():
        a, b = backbone(clips).layers, loaded(clips).layers
    assert sorted(a) == sorted(b) and all(torch.equal(a[i], b[i]) for i in a)
    cut = load_backbone(backbone.name, tmp_path, num_layers=1)
    with torch.no_grad():
        first = cut(clips).layers
    assert cut.num_layers == 1 and torch.equal(first[0], a[0])
    with pytest.raises(WeightsError, match="are of encoder"):
        load_backbone("bert" if backbone.name == "conformer" else "conformer", tmp_path)


def test_a_cut_backbone_stays_cut() -> None:
    backbone = build_architecture(Architecture("bert"), num_layers=3)
    again = from_published(published_tensors(backbone), published_config(backbone))
    assert again.num_layers == 3 and again.architecture.sizes.num_layers == 3
    cut = build_architecture(Architecture("bert", norm="deepnorm"), num_layers=3)
    with pytest.raises(ValueError, match="whole depth"):
        published_config(cut)
    with pytest.raises(ValueError, match="has 8 layers, got num_layers=9"):
        build_architecture(Architecture("bert"), num_layers=9)


def test_what_cannot_be_loaded() -> None:
    backbone = made(f"conformer:{TINY}")
    tensors, config = published_tensors(backbone), published_config(backbone)
    with pytest.raises(ValueError, match="no 'architecture'"):
        from_published(tensors, {})
    with pytest.raises(ValueError, match="'wings', which is unknown"):
        from_published(tensors, {**config, "architecture": {**config["architecture"], "wings": 2}})
    with pytest.raises(ValueError, match="mean and deviation"):
        from_published(tensors, {**config, "std_db": 0.0})
    other = {**config, "architecture": dataclasses.asdict(parse_architecture("bert"))}
    with pytest.raises(WeightsError, match="missing"):
        from_published(tensors, other)
    inject(backbone, "lora:rank=2")
    with pytest.raises(ValueError, match="adapted with"):
        published_tensors(backbone)


def test_a_seed_is_a_seed_and_the_global_one_is_not_touched() -> None:
    before = torch.get_rng_state()
    a, b, c = (made(f"bert:{TINY}", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["stem.projection.weight"], c["stem.projection.weight"])
