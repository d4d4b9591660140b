"""data2vec against a step of the published implementation (golden mert_tiny_pretrain_data2vec), and its edges."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.attention import Attention
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.hubert_layout import HubertBackbone, build, from_published, official_names
from audiation.backbones.musicfm import MSD, fresh
from audiation.objectives import PretrainBatch, format_objective, parse_objective
from audiation.objectives.data2vec import (
    GUARD_EVERY_STEPS,
    CollapseError,
    Data2Vec,
    Data2VecObjective,
    feed_forward_outputs,
)
from audiation.pretraining import Pretraining
from audiation.pretraining_config import PretrainConfig
from audiation.training import Loss, fit, trainable_state

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
HEAD = "final_proj."
MASK = "masked_spec_embed"
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
SMALL |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4}
MUSIC2VEC = SMALL | {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
PRE_NORM = SMALL | {"do_stable_layer_norm": True}


@cache
def golden() -> tuple[dict[str, Tensor], dict[str, Any]]:
    facts = json.loads((GOLDEN / "mert_tiny_pretrain_data2vec.json").read_text())
    return load_file(GOLDEN / "mert_tiny_pretrain_data2vec.safetensors"), facts["config"]


def of_prefix(prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in golden()[0].items() if n.startswith(prefix)}


def published_step() -> tuple[HubertBackbone, Data2VecObjective]:
    """Student, head and mask vector of the golden file; the teacher is as before its update."""
    tensors, facts = of_prefix("param."), golden()[1]
    config = {
        "hidden_size": facts["encoder_embed_dim"],
        "num_hidden_layers": facts["encoder_layers"],
        "num_attention_heads": facts["encoder_attention_heads"],
        "intermediate_size": facts["encoder_ffn_embed_dim"],
        "conv_dim": (facts["conv_dim"],) * 7,
        "num_conv_pos_embeddings": facts["pos_conv_depth"],
        "conv_pos_kernel_size": facts["pos_kernel"],
        "num_conv_pos_embedding_groups": facts["conv_pos_groups"],
    }
    student = {n: t for n, t in tensors.items() if not n.startswith(HEAD)}
    backbone = from_published(student, config, sample_rate_hz=facts["sample_rate"], normalise=False)
    objective = Data2Vec(top_layers=facts["average_top_k_layers"]).build(backbone).eval()
    objective.head.load_state_dict({leaf: tensors[HEAD + leaf] for leaf in ("weight", "bias")})
    with torch.no_grad():
        objective.mask_vector.copy_(tensors[MASK])
        for official, parameter in teacher_parameters(backbone, objective).items():
            parameter.copy_(of_prefix("teacher_before.")[official])
    return backbone, objective


def teacher_parameters(backbone: HubertBackbone, objective: Data2VecObjective) -> dict[str, nn.Parameter]:
    prefix = "encoder."
    return {
        official: objective.teacher.get_parameter(own.removeprefix(prefix))
        for official, own in official_names(backbone)
        if own.startswith(prefix)
    }


def small(config: dict[str, Any] = MUSIC2VEC, **choices: Any) -> tuple[HubertBackbone, Data2VecObjective]:
    backbone = build(config, "small", 16_000)
    return backbone, Data2Vec(**({"top_layers": 2} | choices)).build(backbone)


def without_dropout(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, Attention):
            part.dropout = 0.0


def clips(num_clips: int, num_samples: int, seed: int = 0) -> PretrainBatch:
    return PretrainBatch(0.1 * torch.randn(num_clips, num_samples, generator=generator(seed)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Parity ----------------------------------------------------------------------------------------------------


def test_teacher_moves_as_the_published_one() -> None:
    backbone, objective = published_step()
    _, facts = golden()
    objective.after_step(backbone, facts["step_of_update"] - 1)
    assert objective.settings.decay_after(facts["step_of_update"]) == pytest.approx(
        facts["ema_decay_used"], abs=1e-12
    )
    expected = of_prefix("teacher_after.")
    moved = teacher_parameters(backbone, objective)
    assert moved.keys() == expected.keys()
    for official, parameter in moved.items():
        torch.testing.assert_close(parameter.data, expected[official], rtol=1e-6, atol=1e-7, msg=official)
    copied = {n for n in expected if torch.equal(expected[n], of_prefix("param.")[n])}
    assert copied == {n for n in expected if "pos_conv_embed" in n}


def test_targets_predictions_loss_and_gradients_are_the_published_ones() -> None:
    backbone, objective = published_step()
    tensors, facts = golden()
    objective.after_step(backbone, facts["step_of_update"] - 1)
    waveform, masked = tensors["in.input_values"], tensors["in.mask"].bool()

    projected = backbone.project(waveform)
    targets = objective.targets(projected)[masked]
    predictions = objective.predictions(backbone, projected, masked)
    torch.testing.assert_close(targets, tensors["out.target_masked"], **TOLERANCE)
    torch.testing.assert_close(predictions.detach(), tensors["out.pred_masked"], **TOLERANCE)

    loss = objective.loss(backbone, waveform, masked)
    assert int(loss.count) == int(tensors["out.sample_size"])
    assert float(loss.sum.detach()) == pytest.approx(float(tensors["out.loss_sum"]), rel=1e-5)
    loss.mean.backward()
    ours = {official: backbone.get_parameter(own).grad for official, own in official_names(backbone)}
    ours |= {MASK: objective.mask_vector.grad, HEAD + "weight": objective.head.weight.grad}
    expected = of_prefix("grad.")
    assert len(expected) == 4
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_decay_rises_over_30000_updates() -> None:
    """MERT spec, section 5.1."""
    decays = [Data2Vec().decay_after(updates) for updates in (0, 15_000, 30_000, 400_000)]
    assert decays == pytest.approx([0.999, 0.99945, 0.9999, 0.9999], abs=1e-12)


def test_masked_fraction_is_the_published_one() -> None:
    """MERT spec, section 5.1: 43.6 % of crops of 5 s."""
    backbone, objective = small(SMALL | {"conv_dim": (2,) * 7})
    losses = [objective(backbone, clips(8, 80_000, seed), generator(seed)) for seed in range(3)]
    masked, frames = (
        torch.stack([torch.as_tensor(loss.parts["masked_fraction"]) for loss in losses]).sum(0).tolist()
    )
    assert frames == 3 * 8 * 249
    assert masked / frames == pytest.approx(0.436, abs=0.02)


# The two encoders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MUSIC2VEC, SMALL, PRE_NORM])
def test_feed_forward_outputs_are_what_blocks_add(config: dict[str, Any]) -> None:
    backbone, _ = small(config)
    encoder = backbone.encoder
    projected = torch.randn(2, 30, 32, generator=generator())
    with torch.no_grad():
        outputs = feed_forward_outputs(encoder, projected, 2)
        layers = list(encoder.layers(projected))
        assert len(outputs) == 2
        for block, entering, output in zip(encoder.blocks[1:], layers[1:], outputs, strict=False):
            attended = block.attention(block.attention_norm(entering) if block.pre_norm else entering)
            stream = entering + attended
            stream = stream if block.pre_norm else block.attention_norm(stream)
            expected = block.feed_forward(block.ffn_norm(stream) if block.pre_norm else stream)
            torch.testing.assert_close(output, expected)
    assert not any(m._forward_hooks for m in encoder.modules())


def test_a_conformer_gives_its_second_feed_forward_network() -> None:
    backbone = conformer()
    encoder = backbone.encoder
    assert encoder is not None
    block = encoder.blocks[-1]
    projected = torch.randn(1, 20, backbone.dim, generator=generator())
    entering: list[Tensor] = []
    with torch.no_grad():
        (output,) = feed_forward_outputs(encoder, projected, 1)
        block.sockets["after_conv"].register_forward_hook(lambda m, i, o: entering.append(o))
        list(encoder.layers(projected))
        torch.testing.assert_close(output, block.ffn2(entering[0]))


def conformer() -> Backbone:
    return fresh(MSD, ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5), 4).eval()


@pytest.mark.parametrize("kind", ["music2vec", "mert", "pre-norm", "conformer"])
def test_every_part_gets_a_gradient_and_the_teacher_none(kind: str) -> None:
    configs = {"music2vec": MUSIC2VEC, "mert": SMALL, "pre-norm": PRE_NORM}
    backbone = conformer() if kind == "conformer" else build(configs[kind], kind, 16_000)
    module = Pretraining(backbone, Data2Vec(top_layers=2).build(backbone)).train()
    before = {n: t.clone() for n, t in module.objective.teacher.state_dict().items()}
    loss = module(clips(2, 32_000), generator())
    loss.sum.backward()
    without = {n for n, p in module.named_parameters() if p.grad is None}
    assert without == {n for n, _ in module.named_parameters() if n.startswith("objective.teacher.")}
    after = module.objective.teacher.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert set(loss.parts) == {"target_std", "prediction_std", "ema_decay", "masked_fraction"}


def test_statistics_of_batch_norms_are_copied() -> None:
    backbone = conformer()
    objective = Data2Vec(top_layers=1).build(backbone)
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm1d))
    norm.running_mean.fill_(3.0)
    objective.after_step(backbone, 0)
    copied = next(m for m in objective.teacher.modules() if isinstance(m, nn.BatchNorm1d))
    assert torch.equal(copied.running_mean, norm.running_mean)


def test_the_teacher_infers_while_the_student_drops_out() -> None:
    backbone, objective = small()
    Pretraining(backbone, objective).train()
    assert backbone.encoder.training and objective.training
    assert not any(m.training for m in objective.teacher.modules())
    projected = torch.randn(2, 40, 32, generator=generator())
    masked = torch.rand(2, 40, generator=generator(1)) < 0.5
    assert torch.equal(objective.targets(projected), objective.targets(projected))
    first, second = (objective.predictions(backbone, projected, masked).detach() for _ in range(2))
    assert not torch.equal(first, second)


def test_the_teacher_does_not_see_the_mask() -> None:
    """What lies in masked frames changes the targets, and the predictions not at all."""
    backbone, objective = small()
    batch = clips(1, 16_000)
    masked = torch.zeros(1, 49, dtype=torch.bool)
    masked[:, 10:30] = True
    with torch.no_grad():
        projected = backbone.project(batch.waveform)
        changed = projected.clone()
        changed[masked] = 7.0
        same = objective.predictions(backbone, changed, masked)
        assert torch.equal(same, objective.predictions(backbone, projected, masked))
        assert not torch.allclose(objective.targets(changed)[masked], objective.targets(projected)[masked])


def test_targets_have_zero_mean_over_time() -> None:
    backbone, objective = small(top_layers=3)
    with torch.no_grad():
        targets = objective.targets(backbone.project(clips(2, 16_000).waveform))
    assert targets.dtype == torch.float32
    assert float(targets.mean(1).abs().max()) < 1e-5


def test_autocast_leaves_targets_and_loss_in_float32() -> None:
    backbone, objective = small()
    masked = torch.zeros(2, 49, dtype=torch.bool)
    masked[:, 10:30] = True
    batch = clips(2, 16_000)
    exact = objective.loss(backbone, batch.waveform, masked)
    with torch.autocast("cpu", torch.bfloat16):
        targets = objective.targets(backbone.project(batch.waveform))
        rounded = objective.loss(backbone, batch.waveform, masked)
    assert targets.dtype == rounded.sum.dtype == torch.float32
    assert float(rounded.sum.detach()) == pytest.approx(float(exact.sum.detach()), rel=0.03)


def test_smooth_l1_is_the_squared_error_below_beta() -> None:
    backbone, objective = small(beta=1e3)
    _, squared = small()
    batch, masked = clips(1, 16_000), torch.ones(1, 49, dtype=torch.bool)
    with torch.no_grad():
        quadratic = objective.loss(backbone, batch.waveform, masked).sum
        assert float(quadratic * 2e3) == pytest.approx(
            float(squared.loss(backbone, batch.waveform, masked).sum), rel=1e-5
        )


# Runs ------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


class Crops:
    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        return clips(2, 8_000, 100 * step + index)


def compute(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
    return module(batch, generator)


def trained(run_dir: Path, steps: int) -> Pretraining:
    backbone, objective = small(MUSIC2VEC | {"num_hidden_layers": 2, "conv_dim": (4,) * 7}, ema_decay=0.9)
    module = Pretraining(backbone, objective).train()
    config = PretrainConfig(
        steps=steps, learning_rate=1e-3, batch_size=4, micro_batch_size=2, checkpoint_every_steps=2
    )
    fit(module, compute, Crops(), config, run_dir)
    return module


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainable_state(trained(tmp_path / "whole", 5))
    moved = Data2VecObjective.after_step

    def killed_at_3(self: Data2VecObjective, backbone: Backbone, step: int) -> None:
        if step == 3:
            raise KilledError
        moved(self, backbone, step)

    monkeypatch.setattr(Data2VecObjective, "after_step", killed_at_3)
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", 5)
    monkeypatch.setattr(Data2VecObjective, "after_step", moved)
    resumed = trainable_state(trained(tmp_path / "killed", 5))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[n], t) for n, t in whole.items())
    logs = [
        [json.loads(line)["parts"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    assert [parts["ema_decay"] for parts in logs[0]][1] == pytest.approx(0.9, abs=1e-4)


def test_the_teacher_is_in_the_checkpoint_and_trails_the_student(tmp_path: Path) -> None:
    module = trained(tmp_path / "run", 3)
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]
    name = "encoder.blocks.0.ffn_up.weight"
    start, _ = small(MUSIC2VEC | {"num_hidden_layers": 2, "conv_dim": (4,) * 7})
    student, teacher = state[f"backbone.{name}"], state["objective.teacher" + name.removeprefix("encoder")]
    begin = start.get_parameter(name).detach()
    moved, trained_by = (float((t - begin).norm()) for t in (teacher, student))
    assert 0 < moved < trained_by
    positions = "positions.convs.0.weight"
    assert torch.equal(state[f"objective.teacher.{positions}"], state[f"backbone.encoder.{positions}"])
    assert "objective.std_sums" not in state
    assert float(module.objective.std_sums.abs().max()) == 0.0


# Collapse --------------------------------------------------------------------------------------------------


def one_step(step: int, constant: str | None = None, training: bool = True) -> Data2VecObjective:
    """A micro-batch whose targets or predictions may be constant, and the end of its step."""
    backbone, objective = small()
    Pretraining(backbone, objective).train(training)
    with torch.no_grad():
        if constant == "predictions":
            objective.head.weight.zero_()
        if constant == "targets":
            for block in objective.teacher.blocks:
                block.ffn_down.weight.zero_()
        objective(backbone, clips(2, 16_000), generator())
    objective.after_step(backbone, step)
    return objective


@pytest.mark.parametrize("what", ["targets", "predictions"])
def test_a_collapse_is_noticed_after_5000_steps(what: str) -> None:
    first_check = 5_000 + GUARD_EVERY_STEPS
    with pytest.raises(CollapseError, match=f"after step {first_check} its {what} have") as caught:
        one_step(first_check - 1, what)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("step", "constant", "training"),
    [
        (5_099, None, True),
        (5_098, "targets", True),  # between two checks
        (4_999, "predictions", True),  # before the guard
        (5_099, "predictions", False),  # measured, not trained
    ],
)
def test_nothing_else_is_taken_for_one(step: int, constant: str | None, training: bool) -> None:
    assert one_step(step, constant, training).std_sums.tolist() == [0.0, 0.0, 0.0]


def test_the_guard_judges_a_step_by_all_of_its_micro_batches() -> None:
    """And by no earlier step: a collapse that is over does not count."""
    backbone, objective = small(guard_after_steps=0)
    Pretraining(backbone, objective).train()
    weight = objective.head.weight.detach().clone()
    with torch.no_grad():
        objective.head.weight.zero_()
        objective(backbone, clips(1, 16_000), generator())
        objective.after_step(backbone, GUARD_EVERY_STEPS - 2)
        objective.head.weight.copy_(weight)
        first = objective(backbone, clips(1, 16_000), generator())
        second = objective(backbone, clips(2, 24_000, 1), generator(1))
    total = sum(float(loss.parts["prediction_std"]) * int(loss.count) for loss in (first, second))
    count = int(first.count) + int(second.count)
    assert objective.std_sums[1:].tolist() == pytest.approx([total, count], rel=1e-5)
    objective.after_step(backbone, GUARD_EVERY_STEPS - 1)
    assert objective.std_sums.tolist() == [0.0, 0.0, 0.0]


# What music can do, and choices ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [400, 720, 3_000])
def test_a_crop_shorter_than_a_span_masks_nothing(num_samples: int) -> None:
    backbone, objective = small()
    loss = objective(backbone, clips(2, num_samples), generator())
    loss.sum.backward()
    assert float(loss.sum.detach()) == 0.0 and int(loss.count) == 0
    assert [float(loss.parts[n]) for n in ("target_std", "prediction_std")] == [0.0] * 2
    assert torch.as_tensor(loss.parts["masked_fraction"]).tolist() == [
        0.0,
        2.0 * backbone.num_frames(num_samples),
    ]


@pytest.mark.parametrize("what", ["silence", "dc", "clipped"])
def test_degenerate_audio_gives_finite_losses(what: str) -> None:
    wave = {
        "silence": torch.zeros(2, 16_000),
        "dc": torch.full((2, 16_000), 0.5),
        "clipped": (10 * clips(2, 16_000).waveform).clamp(-1, 1),
    }[what]
    backbone, objective = small()
    loss = objective(backbone, PretrainBatch(wave), generator())
    loss.sum.backward()
    assert int(loss.count) > 0 and bool(loss.sum.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in backbone.parameters() if p.grad is not None)


def test_building_leaves_the_global_stream_alone() -> None:
    backbone, _ = small()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (Data2Vec(top_layers=1).build(backbone) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.mask_vector, second.mask_vector)
    other = Data2Vec(top_layers=1).build(backbone, generator(1))
    assert not torch.equal(first.mask_vector, other.mask_vector)


def test_short_form_and_back() -> None:
    settings = parse_objective("data2vec:top_layers=12,ema_steps=100")
    assert settings == Data2Vec(top_layers=12, ema_steps=100)
    assert format_objective(settings) == "data2vec:top_layers=12,ema_steps=100"
    assert settings.targets == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data2vec", "averages the last 8 blocks, and 'small' has 3. Take top_layers from 1 to 3"),
        ("data2vec:top_layers=0", "averages the last 0 blocks"),
        ("data2vec:mask_probability=0", "mask_probability must be over 0"),
        ("data2vec:mask_length=0", "mask_length and min_spans at least 1"),
        ("data2vec:ema_decay=0.99995", "ema_decay must not be over ema_end_decay"),
        ("data2vec:ema_end_decay=1", "below 1"),
        ("data2vec:beta=-1", "beta must be 0 or a positive number"),
        ("data2vec:min_target_std=-0.1", "must not be negative"),
        ("data2vec:layers=8", "has no field 'layers'"),
    ],
)
def test_bad_choices_are_refused(text: str, message: str) -> None:
    backbone = build(MUSIC2VEC, "small", 16_000)
    with pytest.raises(ValueError, match=message):
        parse_objective(text).build(backbone)


def test_a_backbone_without_encoder_and_a_crop_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match="'chroma' has none"):
        Data2Vec().build(BACKBONES["chroma"].build())
    backbone, objective = small()
    with pytest.raises(ValueError, match="at least 400 samples, got 399"):
        objective(backbone, clips(1, 399), generator())
