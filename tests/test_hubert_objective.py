"""MusicHuBERT's objective against a step of the published implementation (golden mert_tiny_pretrain_hubert), its
labels, and what is left out of a pass."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.backbones import BACKBONES
from audiation.backbones.attention import Attention
from audiation.backbones.hubert_layout import HubertBackbone, build, from_published, official_names
from audiation.objectives import PretrainBatch, format_objective, parse_objective
from audiation.objectives.hubert import Hubert, HubertObjective
from audiation.objectives.masked_codes import CodeHeads

GOLDEN = Path(__file__).parent / "golden"
HEADS = {"final_proj.weight", "final_proj.bias", "label_embs_concat"}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
SMALL |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4}
TEACHER = "mfcc39-km20"


@cache
def golden() -> tuple[dict[str, Tensor], dict[str, Any]]:
    facts = json.loads((GOLDEN / "mert_tiny_pretrain_hubert.json").read_text())
    return load_file(GOLDEN / "mert_tiny_pretrain_hubert.safetensors"), facts["config"]


def published_step() -> tuple[HubertBackbone, HubertObjective]:
    tensors, facts = golden()
    given = {n.removeprefix("param."): t for n, t in tensors.items() if n.startswith("param.")}
    config = {
        "hidden_size": facts["encoder_embed_dim"],
        "num_hidden_layers": facts["encoder_layers"],
        "num_attention_heads": facts["encoder_attention_heads"],
        "intermediate_size": facts["encoder_ffn_embed_dim"],
        "conv_dim": (facts["conv_dim"],) * 7,
    }
    body = {n: t for n, t in given.items() if n not in HEADS}
    backbone = from_published(body, config, sample_rate_hz=facts["sample_rate"], normalise=False)
    settings = Hubert(
        teacher=f"golden-km{facts['codebook_sizes'][0]}",
        final_dim=facts["final_dim"],
        conv_gradient=facts["feature_grad_mult"],
    )
    objective = settings.build(backbone).eval()
    objective.heads.load_state_dict({n: given[n] for n in HEADS})
    with torch.no_grad():
        objective.mask_vector.copy_(given["masked_spec_embed"])
    return backbone, objective


def small(**choices: Any) -> tuple[HubertBackbone, HubertObjective]:
    backbone = build(SMALL, "small", 16_000)
    return backbone, Hubert(teacher=TEACHER, final_dim=8, **choices).build(backbone)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(num_clips: int, num_samples: int, num_labels: int | None = None) -> PretrainBatch:
    """With labels at 100 Hz."""
    wave = 0.1 * torch.randn(num_clips, num_samples, generator=generator())
    wanted = round(num_samples / 160) if num_labels is None else num_labels
    codes = torch.randint(20, (num_clips, 1, wanted), generator=generator(1))
    return PretrainBatch(wave, targets={TEACHER: codes})


def without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, Attention):
            part.dropout = 0.0


# Parity ----------------------------------------------------------------------------------------------------


def test_logits_loss_and_gradients_are_the_published_ones() -> None:
    """The labels end before the frames: 34 of these, 32 of those."""
    backbone, objective = published_step()
    tensors, _ = golden()
    masked = tensors["in.mask"].bool()
    batch = PretrainBatch(
        tensors["in.waveform"], targets={"golden-km25": tensors["in.codes"].transpose(0, 1)}
    )
    codes_QBT = objective.codes(backbone, batch)
    assert torch.equal(codes_QBT, tensors["in.codes"]) and codes_QBT.shape[2] == 32
    torch.testing.assert_close(
        backbone.stem.features(batch.waveform), tensors["out.conv_features"], rtol=1e-5, atol=1e-5
    )

    heard = objective.hear(backbone, batch.waveform, masked)
    expected = tensors["out.encoder_out"][masked]
    torch.testing.assert_close(heard.encoded, expected, rtol=1e-5, atol=1e-5)
    assert float(heard.penalty.detach()) == pytest.approx(float(tensors["out.features_pen"]), rel=1e-6)
    codes_KQ = codes_QBT.permute(1, 2, 0)[masked]
    (logits,) = objective.heads(heard.encoded)
    torch.testing.assert_close(
        logits, published_rows(tensors["out.logits.0"], codes_KQ[:, 0]), rtol=1e-5, atol=1e-5
    )

    codes = objective.code_loss(heard.encoded, codes_KQ)
    assert float(codes.sum.detach()) == pytest.approx(float(tensors["out.ce_sum"]), rel=1e-6)
    loss = objective.finish(codes.sum, heard, masked, codes.parts)
    assert int(loss.count) == int(tensors["out.sample_size"])
    assert float(loss.sum.detach()) == pytest.approx(float(tensors["out.loss_total"]), rel=1e-6)
    loss.mean.backward()
    ours = {o: backbone.get_parameter(n).grad for o, n in official_names(backbone)}
    ours |= {n: objective.heads.get_parameter(n).grad for n in HEADS}
    ours["masked_spec_embed"] = objective.mask_vector.grad
    checked = {n.removeprefix("grad."): t for n, t in tensors.items() if n.startswith("grad.")}
    assert len(checked) == 8
    for name, gradient in checked.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=0.0, atol=1e-5 * float(gradient.abs().max()), msg=name
        )


def published_rows(logits: Tensor, codes_K: Tensor) -> Tensor:
    """Of the published form, whose first column is the positive and which leaves it out of its place."""
    rows = logits[:, 1:].clone()
    return rows.scatter(1, codes_K[:, None] + 4, logits[:, :1])


def test_special_rows_stay_in_the_softmax() -> None:
    heads = CodeHeads(8, (3, 5), 4, 0.1, generator())
    assert heads.label_embs_concat.shape == (3 + 4 + 5 + 4, 4)
    first, second = heads(torch.randn(6, 8, generator=generator()))
    assert first.shape == (6, 7) and second.shape == (6, 9)
    assert float(first.detach().abs().max()) <= 10.0 + 1e-5  # cosines over 0.1


def test_heads_stay_float32_under_autocast() -> None:
    heads = CodeHeads(8, (3,), 4, 0.1, generator())
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = heads(torch.randn(6, 8, generator=generator()))
    assert logits.dtype == torch.float32


# Labels ----------------------------------------------------------------------------------------------------


def test_a_frame_has_the_label_of_its_beginning() -> None:
    """100 labels and 50 frames in a second: every second label."""
    backbone, objective = small()
    batch = clips(2, 16_000)
    codes = objective.codes(backbone, batch)
    assert codes.shape == (1, 2, 49)
    assert torch.equal(codes[0], batch.targets[TEACHER][:, 0, 0:98:2])


def test_frames_without_labels_are_cut_off() -> None:
    backbone, objective = small()
    assert objective.codes(backbone, clips(2, 16_000, num_labels=95)).shape == (1, 2, 47)
    masked = torch.ones(2, 47, dtype=torch.bool)
    assert objective.hear(backbone, clips(2, 16_000).waveform, masked).encoded.shape == (94, 32)


@pytest.mark.parametrize("num_labels", [50, 89, 102, 200])
def test_labels_of_another_rate_are_refused(num_labels: int) -> None:
    backbone, objective = small()
    with pytest.raises(
        ValueError, match=f"about 100 labels at 100 Hz, and the stored targets give {num_labels}"
    ):
        objective.codes(backbone, clips(2, 16_000, num_labels))


def test_layers_of_a_first_model_have_its_rate() -> None:
    backbone = build(SMALL, "small", 16_000)
    assert Hubert(teacher="layer6-km2000").build(backbone).label_rate_hz == 50.0
    assert Hubert(teacher="layer6-km2000", label_rate_hz=25.0).build(backbone).label_rate_hz == 25.0
    assert Hubert().build(backbone).label_rate_hz == 100.0


def test_missing_or_foreign_targets_are_refused() -> None:
    backbone, objective = small()
    batch = clips(2, 16_000)
    with pytest.raises(
        ValueError, match=f"gives none. Make them with `audiation corpus targets DIR --teacher {TEACHER}`"
    ):
        objective(backbone, PretrainBatch(batch.waveform), generator())
    codes = batch.targets[TEACHER]
    for wrong, message in (
        (codes[:1], r"2 clips of 1 streams, got \(1, 1, 100\)"),
        (codes.repeat(1, 2, 1), r"2 clips of 1 streams, got \(2, 2, 100\)"),
        (codes + 20, "codes from 0 to 19, got 20 to 39"),
        (codes - 20, "codes from 0 to 19, got -20 to -1"),
    ):
        with pytest.raises(ValueError, match=message):
            objective(backbone, PretrainBatch(batch.waveform, targets={TEACHER: wrong}), generator())


# What is left out of a pass --------------------------------------------------------------------------------


def test_the_gradient_of_the_convolutions_is_multiplied() -> None:
    gradients: list[dict[str, Tensor]] = []
    for conv_gradient in (1.0, 0.1):
        backbone, objective = small(conv_gradient=conv_gradient)
        objective(backbone, clips(2, 16_000), generator()).sum.backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == len(list(backbone.parameters()))
    for name, whole in gradients[0].items():
        scale = 0.1 if name.startswith("stem.convs.") else 1.0
        difference = (gradients[1][name] - scale * whole).abs().max()
        assert float(difference) <= 1e-5 * float(whole.abs().max()), name


def test_a_block_is_left_out_as_often_as_asked_in_training_mode_only() -> None:
    backbone, _ = small()
    x = torch.randn(1, 5, 32, generator=generator())
    encoder = backbone.encoder
    expected = [t.clone() for t in encoder.layers(x)]
    for got, want in zip(encoder.layers(x, layer_drop=0.9), expected, strict=True):
        assert torch.equal(got, want)
    backbone.train()
    without_dropout(backbone)
    torch.manual_seed(3)
    left_out = 0
    with torch.no_grad():
        for _ in range(300):
            layers = list(encoder.layers(x, layer_drop=0.3))
            left_out += sum(torch.equal(a, b) for a, b in pairwise(layers))
    assert left_out == pytest.approx(270, abs=3 * math.sqrt(900 * 0.3 * 0.7))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_block_that_is_left_out_gets_a_gradient_of_zero(recompute: bool) -> None:
    backbone, _ = small()
    backbone.train()
    backbone.encoder.recompute_blocks = recompute
    torch.manual_seed(0)
    coins = torch.rand(3)  # dropout is off, so that nothing else draws
    without_dropout(backbone)
    layer_drop = float(coins.median()) + 1e-6
    torch.manual_seed(0)
    *_, last = backbone.encoder.layers(torch.randn(1, 5, 32, generator=generator()), layer_drop=layer_drop)
    (last * torch.randn(last.shape, generator=generator(2))).sum().backward()
    norms = []
    for block in backbone.encoder.blocks:
        gradients = [p.grad for p in block.parameters()]
        assert all(g is not None for g in gradients)
        norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))
    assert [norm == 0.0 for norm in norms] == (coins < layer_drop).tolist()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_blocks_are_left_out_under_autocast_too(pre_norm: bool) -> None:
    backbone = build(SMALL | {"do_stable_layer_norm": pre_norm}, "small", 16_000)
    objective = Hubert(teacher=TEACHER, final_dim=8, layer_drop=0.5).build(backbone)
    backbone.train()
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(backbone, clips(2, 8_000), generator())
        loss.sum.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in backbone.parameters())


def test_layer_drop_reaches_the_encoder() -> None:
    backbone, objective = small(layer_drop=0.99)
    without_dropout(backbone)
    batch = clips(2, 16_000)
    torch.manual_seed(0)
    whole = objective(backbone, batch, generator()).sum.item()
    assert objective(backbone.train(), batch, generator()).sum.item() != whole
    assert objective(backbone.eval(), batch, generator()).sum.item() == whole


# What music can do -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [400, 800, 1_600, 2_400])
def test_a_crop_too_short_for_a_span_masks_nothing(num_samples: int) -> None:
    backbone, objective = small()
    loss = objective(backbone, clips(2, num_samples), generator())
    assert float(loss.sum.detach()) == 0.0 and int(loss.count) == 0
    assert all(not torch.as_tensor(value).reshape(-1)[0] for value in loss.parts.values())
    loss.sum.backward()
    gradients = [p.grad for p in [*backbone.parameters(), *objective.parameters()]]
    assert all(g is not None and float(g.abs().max()) == 0.0 for g in gradients)


def test_a_crop_shorter_than_a_frame_is_refused() -> None:
    backbone, objective = small()
    with pytest.raises(ValueError, match="needs crops of at least 400 samples, got 399"):
        objective(backbone, clips(1, 399), generator())
    with pytest.raises(ValueError, match="1 labels of 400 samples are less than one frame has"):
        objective(backbone, clips(1, 400, num_labels=1), generator())


@pytest.mark.parametrize("what", ["silence", "dc", "clipped"])
def test_degenerate_audio_gives_finite_losses(what: str) -> None:
    batch = clips(2, 16_000)
    waveform = {
        "silence": torch.zeros(2, 16_000),
        "dc": torch.full((2, 16_000), 0.5),
        "clipped": (100 * batch.waveform).clamp(-1, 1),
    }[what]
    backbone, objective = small()
    loss = objective(backbone, PretrainBatch(waveform, targets=batch.targets), generator())
    loss.mean.backward()
    assert int(loss.count) > 0 and math.isfinite(float(loss.sum.detach()))
    gradients = [p.grad for p in [*backbone.parameters(), *objective.parameters()]]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


def test_a_mean_of_masked_frames_has_the_penalty_once() -> None:
    backbone, objective = small()
    batch = clips(3, 16_000)
    loss = objective(backbone, batch, generator())
    assert float(loss.mean.detach()) == pytest.approx(
        float(loss.parts["cross_entropy"]) + 10 * float(loss.parts["feature_penalty"]), rel=1e-5
    )
    features = backbone.stem.features(batch.waveform)
    assert float(loss.parts["feature_penalty"]) == pytest.approx(
        float(features.detach().square().mean()), rel=1e-5
    )
    assert torch.as_tensor(loss.parts["masked_fraction"]).tolist() == [float(loss.count), 3 * 49.0]
    with torch.no_grad():
        masked = objective.draw_mask(3, 49, generator())
        heard = objective.hear(backbone, batch.waveform, masked)
        labels = batch.targets[TEACHER][:, 0, 0:98:2][masked]
        expected = F.cross_entropy(objective.heads(heard.encoded)[0], labels + 4)
    assert float(loss.parts["cross_entropy"]) == pytest.approx(float(expected), rel=1e-5)


# Choices ---------------------------------------------------------------------------------------------------


def test_short_form_and_back() -> None:
    settings = parse_objective("hubert:teacher=mfcc60-km500,layer_drop=0")
    assert settings == Hubert(teacher="mfcc60-km500", layer_drop=0.0)
    assert settings.targets == ("mfcc60-km500",)
    assert format_objective(settings) == "hubert:layer_drop=0.0,teacher=mfcc60-km500"
    assert format_objective(Hubert()) == "hubert"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hubert:teacher=mfcc39",
            "end with its clusters, from 1 to 65,536, like 'mfcc39-km500', got 'mfcc39'",
        ),
        ("hubert:teacher=mfcc39-km99999", "from 1 to 65,536, like 'mfcc39-km500', got 'mfcc39-km99999'"),
        ("hubert:teacher=mfcc39-km0", "from 1 to 65,536"),
        ("hubert:mask_probability=0", "mask_probability must be over 0"),
        ("hubert:temperature=0", "final_dim and temperature must be positive"),
        ("hubert:conv_gradient=0", "conv_gradient must be over 0"),
        ("hubert:feature_penalty=-1", "feature_penalty may not be negative"),
        ("hubert:layer_drop=1", "layer_drop must be from 0 to below 1"),
        ("hubert:label_rate_hz=0", "label_rate_hz must be positive"),
        ("hubert:codebooks=all", "has no field 'codebooks'"),
    ],
)
def test_bad_choices_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objective(text)


def test_a_backbone_without_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'chroma' has none"):
        Hubert().build(BACKBONES["chroma"].build())


def test_building_leaves_the_global_stream_alone() -> None:
    backbone = build(SMALL, "small", 16_000)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Hubert().build(backbone)
    assert torch.equal(torch.rand(1), expected)
