"""The loop computes what Adam on the whole batch computes, wherever it runs and however often it is killed."""

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from safetensors.torch import load_file
from torch import nn

from audiation.training import (
    DivergedError,
    Loss,
    RunFolderError,
    TrainConfig,
    TrainingProgress,
    Validation,
    fit,
    load_trainable_state,
    process_group,
    trainable_state,
)
from training_script import CONFIG, LAYOUT_CONFIG, Net, RandomBatches, accuracy, classify, layout

SCRIPT = Path(__file__).with_name("training_script.py")


@dataclasses.dataclass(frozen=True)
class Slices:
    """Micro-batches of `size` examples; `per_step` of them are the same data whatever their size."""

    size: int
    batch_size: int = 8

    def micro_batch(self, step, index):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(self.batch_size, 4, generator=generator)
        return x[index * self.size : (index + 1) * self.size]


def linear(seed=0, width=3):
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, width))
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def squares(module, x, generator):
    return Loss(module(x).square().sum(), torch.tensor(len(x)))


def short(**changes):
    return TrainConfig(**{"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "keep": "last"} | changes)


def log_lines(folder, key):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Configuration ------------------------------------------------------------------------------------------


def test_cosine_with_warm_up_follows_the_formula():
    config = TrainConfig(
        steps=10, learning_rate=1e-4, min_learning_rate=1e-7, schedule="cosine", warmup_steps=4
    )
    rising = [1e-4 * (s + 1) / 4 for s in range(4)]
    falling = [1e-7 + 0.5 * (1e-4 - 1e-7) * (1 + math.cos(math.pi * (s - 4) / 6)) for s in range(4, 10)]
    assert [config.learning_rate_at(s) for s in range(10)] == pytest.approx(rising + falling, rel=1e-12)
    assert config.learning_rate_at(10) == pytest.approx(1e-7, rel=1e-12)
    assert config.learning_rate_at(99) == pytest.approx(1e-7, rel=1e-12)
    # a group ends in the proportion of its rate
    assert config.learning_rate_at(10, 1e-3) == pytest.approx(1e-6, rel=1e-12)
    assert config.learning_rate_at(7, 1e-3) == pytest.approx(10 * config.learning_rate_at(7), rel=1e-12)


def test_constant_and_plateau():
    assert [TrainConfig(3, learning_rate=0.5).learning_rate_at(s) for s in (0, 2, 9)] == [0.5] * 3
    config = TrainConfig(
        9, schedule="plateau", validate_every_steps=1, learning_rate=0.8, min_learning_rate=0.15
    )
    assert [config.learning_rate_at(1, num_reductions=n) for n in range(4)] == [0.8, 0.4, 0.2, 0.15]
    assert config.learning_rate_at(1, 0.08, 9) == pytest.approx(0.015, rel=1e-12)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"batch_size": 0}, "batch_size"),
        ({"micro_batch_size": 5}, "batch_size 16 is no multiple of micro_batch_size 5"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number"),
        ({"group_learning_rates": (("a", -1.0),)}, "learning rate of 'a'"),
        ({"group_learning_rates": (("a", 1.0), ("a", 2.0))}, "has 'a' twice"),
        ({"min_learning_rate": 1.0}, "from 0 to learning_rate = 0.0001, got 1"),
        ({"warmup_steps": 9}, "must be fewer than steps 9"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"plateau_factor": 1.0}, "between 0 and 1"),
        ({"plateau_patience": 0}, "plateau_patience"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "linear"}, "schedule is one of constant, cosine, plateau, got 'linear'"),
        ({"precision": "fp16"}, "precision is one of fp32, bf16"),
        ({"keep": "first"}, "keep is one of best, last"),
        ({"schedule": "plateau"}, "Set validate_every_steps"),
        ({"patience": 3}, "Set validate_every_steps"),
        ({"patience": 0, "validate_every_steps": 1}, "patience"),
        ({"validate_every_steps": 0}, "validate_every_steps"),
        ({"checkpoint_every_seconds": 0.0}, "checkpoint_every_seconds"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"tensorboard": 1}, "tensorboard is true or false, got 1"),
    ],
)
def test_config_says_what_is_wrong(change, text):
    with pytest.raises(ValueError, match=text):
        TrainConfig(**{"steps": 9} | change)


def test_the_longest_prefix_decides():
    config = TrainConfig(1, learning_rate=1.0, group_learning_rates=(("head", 2.0), ("head.out", 3.0)))
    names = ["body.weight", "head.weight", "head.out.weight"]
    assert config.base_learning_rates(names) == dict(zip(names, (1.0, 2.0, 3.0), strict=True))
    with pytest.raises(ValueError, match=r"no trained parameter is decided by 'head\.out'"):
        config.base_learning_rates(["body.weight", "head.weight"])
    with pytest.raises(ValueError, match="no trained parameter is decided by 'head'"):
        config.base_learning_rates(["head.out.weight"])


# What a step computes -----------------------------------------------------------------------------------


def test_steps_are_those_of_adam_with_clipping_and_groups(tmp_path):
    module, reference = linear(), linear()
    config = short(
        steps=6, clip_norm=0.5, weight_decay=0.1, schedule="cosine", group_learning_rates=(("2", 5e-2),)
    )
    module[0].weight.grad = torch.ones(5, 4)  # left over from something else
    fit(module, squares, Slices(8), config, tmp_path)
    optimiser = torch.optim.Adam(
        [{"params": reference[0].parameters()}, {"params": reference[2].parameters()}], weight_decay=0.1
    )
    norms = []
    for step in range(6):
        for group, rate in zip(optimiser.param_groups, (1e-2, 5e-2), strict=True):
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * step / 6))
        optimiser.zero_grad()
        (reference(Slices(8).micro_batch(step, 0)).square().sum() / 8).backward()
        norms.append(float(nn.utils.clip_grad_norm_(reference.parameters(), 0.5)))
        optimiser.step()
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert min(norms) > 0.5
    assert log_lines(tmp_path, "grad_norm") == pytest.approx(norms, rel=1e-5)


def test_small_gradients_are_not_clipped_and_none_means_never(tmp_path):
    ends = []
    for name, clip_norm in (("wide", 1e9), ("none", None), ("narrow", 1e-3)):
        module = linear()
        fit(module, squares, Slices(8), short(clip_norm=clip_norm, weight_decay=1.0), tmp_path / name)
        ends.append(trainable_state(module))
    assert equal_states(ends[0], ends[1])
    assert not equal_states(ends[0], ends[2])


def test_the_rate_of_a_group_is_how_far_it_moves(tmp_path):
    module, start = linear(), linear()
    config = short(steps=1, learning_rate=1e-3, group_learning_rates=(("2.bias", 1e-2),))
    fit(module, squares, Slices(8), config, tmp_path)
    moved = {
        name: float((p - before).detach().abs().max())
        for (name, p), before in zip(module.named_parameters(), start.parameters(), strict=True)
    }
    # the first step of Adam is one learning rate, whatever the gradient
    assert moved == pytest.approx(
        {"0.weight": 1e-3, "0.bias": 1e-3, "2.weight": 1e-3, "2.bias": 1e-2}, rel=1e-3
    )


def test_accumulation_equals_one_big_batch(tmp_path):
    whole, parts = linear(), linear()
    fit(whole, squares, Slices(8), short(), tmp_path / "whole")
    fit(parts, squares, Slices(2), short(micro_batch_size=2), tmp_path / "parts")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert log_lines(tmp_path / "whole", "loss") == pytest.approx(
        log_lines(tmp_path / "parts", "loss"), rel=1e-6
    )


def test_parts_are_averaged_by_count(tmp_path):
    def step(module, x, generator):
        count = 3 if x[0, 0] > 0 else 1
        return Loss(module(x).sum() * 0 + count, torch.tensor(count), {"a": float(count)})

    values = [[3 if Slices(4).micro_batch(s, i)[0, 0] > 0 else 1 for i in range(2)] for s in range(4)]
    fit(linear(), step, Slices(4), short(micro_batch_size=4), tmp_path)
    assert log_lines(tmp_path, "parts") == [{"a": sum(c * c for c in v) / sum(v)} for v in values]
    assert log_lines(tmp_path, "loss") == [1.0] * 4
    assert {tuple(v) for v in values} >= {(1, 3), (1, 1)} or {tuple(v) for v in values} >= {(3, 1), (3, 3)}


def test_running_statistics_are_the_average_over_micro_batches(tmp_path):
    norm = nn.BatchNorm1d(4, momentum=0.25)
    fit(norm, squares, Slices(4), short(steps=2, micro_batch_size=4), tmp_path)
    mean, var = torch.zeros(4), torch.ones(4)
    for step in range(2):
        halves = [Slices(4).micro_batch(step, index) for index in range(2)]
        mean = sum(0.75 * mean + 0.25 * x.mean(0) for x in halves) / 2
        var = sum(0.75 * var + 0.25 * x.var(0) for x in halves) / 2
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked.item() == 2


def test_gradient_checkpointing_does_not_count_a_batch_twice(tmp_path):
    def recomputed(module, x, generator):
        y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
        return Loss(y.square().sum(), torch.tensor(len(x)))

    plain, saving = (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(2))
    fit(plain, squares, Slices(8), short(), tmp_path / "plain")
    fit(saving, recomputed, Slices(8), short(), tmp_path / "saving")
    assert equal_states(plain.state_dict(), saving.state_dict())
    assert plain[0].num_batches_tracked.item() == 4


def test_what_is_frozen_stays_bit_for_bit(tmp_path):
    module = Net()
    module.body[1].eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    fit(module, classify, RandomBatches(), LAYOUT_CONFIG, tmp_path, accuracy)
    changed = {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert changed == trained and len(trained) == 5
    assert all(p.grad is None for p in module.parameters())


def test_modes_are_the_callers(tmp_path):
    module = Net()
    module.body[2].eval()
    before, seen = [m.training for m in module.modules()], []

    def validate(module):
        seen.append([m.training for m in module.modules()])
        return accuracy(module)

    def step(module, batch, generator):
        seen.append([m.training for m in module.modules()])
        return classify(module, batch, generator)

    fit(module, step, RandomBatches(), LAYOUT_CONFIG, tmp_path, validate)
    assert seen == [before] * len(seen) and len(seen) == 12 * 4 + 4
    assert [m.training for m in module.modules()] == before


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast(tmp_path, precision, dtype):
    module, seen = linear(), set()

    def step(module, x, generator):
        y = module(x)
        seen.add((y.dtype, torch.is_autocast_enabled("cpu"), y.requires_grad))
        return Loss(y.float().square().sum(), torch.tensor(len(x)))

    fit(module, step, Slices(8), short(precision=precision), tmp_path)
    assert seen == {(dtype, precision == "bf16", True)}
    assert {p.dtype for p in module.parameters()} == {torch.float32}


# Randomness and loading ---------------------------------------------------------------------------------


def test_random_numbers_follow_from_seed_step_and_index_alone(tmp_path):
    def run(name, seed, micro_batch_size):
        drawn = []

        def step(module, x, generator):
            drawn.append((torch.rand(1).item(), torch.rand(1, generator=generator).item()))
            return squares(module, x, generator)

        def validate(module):
            return torch.rand(1).item()

        config = short(seed=seed, micro_batch_size=micro_batch_size)
        batches = Slices(micro_batch_size)
        report = fit(modules.pop(), step, batches, config, tmp_path / name, validate)
        return drawn, report.history

    modules = [linear() for _ in range(4)]
    state = torch.get_rng_state()
    drawn, history = run("a", 0, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert run("b", 0, 4) == (drawn, history)
    assert len({number for pair in drawn for number in pair}) == 2 * 8
    assert run("c", 0, 8)[0] == drawn[::2]
    assert not {pair for pair in run("d", 1, 4)[0]} & set(drawn)


def test_the_next_micro_batch_is_loaded_meanwhile_by_one_thread(tmp_path):
    events, threads, loaded = [], set(), threading.Event()

    class Batches(Slices):
        def micro_batch(self, step, index):
            threads.add(threading.get_ident())
            events.append(("loaded", step, index))
            if (step, index) == (1, 0):
                loaded.set()
            return super().micro_batch(step, index)

    def step(module, x, generator):
        if ("used",) not in events:
            events.append(("used",))
        elif len(events) < 99 and not loaded.is_set():
            assert loaded.wait(10), "nothing is loaded ahead"
        return squares(module, x, generator)

    fit(linear(), step, Batches(4), short(micro_batch_size=4), tmp_path)
    assert len(threads) == 1 and threads.isdisjoint({threading.get_ident()})
    assert [e[1:] for e in events if e[0] == "loaded"] == [(s, i) for s in range(4) for i in range(2)]


def test_an_error_in_loading_comes_up_at_its_step_as_what_it_is(tmp_path):
    class Batches(Slices):
        def micro_batch(self, step, index):
            if step == 2:
                raise ZeroDivisionError("file 7")
            return super().micro_batch(step, index)

    with pytest.raises(ZeroDivisionError, match="file 7"):
        fit(linear(), squares, Batches(8), short(), tmp_path)
    assert log_lines(tmp_path, "step") == [1, 2]


# Validation ---------------------------------------------------------------------------------------------


class Scores:
    """Scores in a given order; keeps what the module was."""

    def __init__(self, *scores):
        self.scores, self.states = list(scores), []

    def __call__(self, module):
        assert not torch.is_grad_enabled()
        self.states.append(trainable_state(module))
        return self.scores.pop(0)


@pytest.mark.parametrize("keep, index", [("best", 1), ("last", 3)])
def test_best_is_the_first_of_equals_and_last_is_last(tmp_path, keep, index):
    module, scores = linear(), Scores(0.1, 0.3, 0.3, 0.2)
    config = short(steps=7, keep=keep, validate_every_steps=2)
    report = fit(module, squares, Slices(8), config, tmp_path, scores)
    assert report.history == tuple(map(Validation, (2, 4, 6, 7), (0.1, 0.3, 0.3, 0.2)))
    assert (report.best_score, report.best_step, report.last_step) == (0.3, 4, 7)
    assert not report.stopped_early and report.train_seconds > 0
    assert equal_states(trainable_state(module), scores.states[index])
    assert not equal_states(scores.states[1], scores.states[3])
    assert log_lines(tmp_path, "score") == [0.1, 0.3, 0.3, 0.2]


def test_the_last_step_is_validated_once(tmp_path):
    scores = Scores(0.5, 0.5)
    fit(linear(), squares, Slices(8), short(validate_every_steps=2), tmp_path / "a", scores)
    assert scores.scores == []
    report = fit(linear(), squares, Slices(8), short(), tmp_path / "b", Scores(0.5))
    assert report.history == (Validation(4, 0.5),)


def test_early_stopping(tmp_path):
    module, scores = linear(), Scores(-1.0, 0.3, 0.2, 0.3)
    config = short(steps=50, keep="best", validate_every_steps=2, patience=2)
    report = fit(module, squares, Slices(8), config, tmp_path, scores)
    assert report.stopped_early and (report.last_step, report.best_step) == (8, 4)
    assert equal_states(trainable_state(module), scores.states[1])
    again = linear(seed=1)
    assert fit(again, squares, Slices(8), config, tmp_path, scores) == report
    assert equal_states(trainable_state(again), trainable_state(module))


def test_plateau(tmp_path):
    config = short(
        steps=8, schedule="plateau", plateau_patience=2, plateau_factor=0.1, validate_every_steps=1
    )
    fit(linear(), squares, Slices(8), config, tmp_path, Scores(1, 0, 0, 0, 2, 2, 2, 0))
    rates = [1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4]
    assert log_lines(tmp_path, "learning_rate") == pytest.approx(rates, rel=1e-12)


def test_a_score_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="validate gave nan after step 4"):
        fit(linear(), squares, Slices(8), short(), tmp_path, Scores(math.nan))


def test_progress(tmp_path):
    seen = []
    config = short(validate_every_steps=2)
    fit(linear(), squares, Slices(8), config, tmp_path, Scores(0.5, 0.25), progress=seen.append)
    assert [type(s) for s in seen] == [TrainingProgress] * 4
    assert [(s.step, s.steps, s.score, s.best_score) for s in seen] == [
        (1, 4, None, None),
        (2, 4, 0.5, 0.5),
        (3, 4, 0.5, 0.5),
        (4, 4, 0.25, 0.5),
    ]
    assert [s.loss for s in seen] == log_lines(tmp_path, "loss")
    assert seen[0].seconds_left > 0 == seen[3].seconds_left


# What is refused ----------------------------------------------------------------------------------------


def diverging(kind):
    """Fails in the second micro-batch of step 4 (counted from 1)."""

    def step(module, batch, generator):
        loss = classify(module, batch, generator)
        if "3-1-0.wav" not in batch.names:
            return loss
        if kind == "loss":
            return Loss(loss.sum * math.inf, loss.count, loss.parts)
        zero = module.head.bias - module.head.bias.detach()
        return Loss(loss.sum + zero.sqrt().sum(), loss.count, loss.parts)

    return step


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_divergence_stops_before_it_spoils_anything(tmp_path, kind):
    config = dataclasses.replace(CONFIG, steps=9, checkpoint_every_steps=2, precision="bf16", keep="last")
    module, ahead = Net(), Net()
    with pytest.raises(
        DivergedError, match=r"at step 4 of 9 \(files: 3-.*lower learning_rate.*fp32"
    ) as caught:
        fit(module, diverging(kind), RandomBatches(), config, tmp_path / "a", accuracy)
    bad = [f"3-1-{n}.wav" for n in range(4)]
    names = bad if kind == "loss" else [f"3-0-{n}.wav" for n in range(4)] + bad
    assert (caught.value.step, list(caught.value.names)) == (4, names)
    kept = json.loads(caught.value.evidence.read_text())["micro_batches"]
    assert [m["index"] for m in kept] == ([1] if kind == "loss" else [0, 1])
    assert set(load_file(caught.value.evidence.with_name(kept[0]["tensors"]))) == {"x", "y", "valid"}
    assert caught.value.checkpoint == tmp_path / "a" / "checkpoint.pt"
    assert torch.load(caught.value.checkpoint, weights_only=True)["step"] == 2
    # the module is as after step 3
    with pytest.raises(InterruptedError):
        fit(ahead, classify, RandomBatches(), config, tmp_path / "b", accuracy, progress=StopAt(3))
    assert equal_states(module.state_dict(), ahead.state_dict())
    assert all(p.grad is None for p in module.parameters())


def test_divergence_before_the_first_checkpoint(tmp_path):
    config = dataclasses.replace(CONFIG, steps=9, checkpoint_every_steps=100)
    with pytest.raises(DivergedError, match="No checkpoint was written before") as caught:
        fit(Net(), diverging("loss"), RandomBatches(), config, tmp_path, accuracy)
    assert caught.value.checkpoint is None and not (tmp_path / "checkpoint.pt").exists()


def test_parameters_outside_the_loss_are_named(tmp_path):
    module = Net()
    module.rarely_used.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"2 of 7 .* part of the loss: rarely_used.weight, rarely_used.bias\."
    ):
        fit(module, classify, RandomBatches(), CONFIG, tmp_path, accuracy)


def test_a_gradient_of_zero_is_no_missing_one(tmp_path):
    """LoRA starts like this: B is zero, so A gets zeros in the first step."""
    down, up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
    nn.init.zeros_(up.weight)
    module, before = nn.Sequential(down, up), down.weight.detach().clone()

    def step(module, x, generator):
        return Loss((module(x) - 1).square().sum(), torch.tensor(len(x)))

    fit(module, step, Slices(8), short(steps=1), tmp_path / "one")
    assert torch.equal(down.weight, before)
    fit(module, step, Slices(8), short(steps=2), tmp_path / "two")
    assert not torch.equal(down.weight, before)


@pytest.mark.parametrize(
    "step, text",
    [
        (lambda m, x, g: Loss(m(x).sum(1), torch.tensor(8)), r"got shape \(8,\)"),
        (lambda m, x, g: Loss(m(x).sum().detach(), torch.tensor(8)), "requires_grad=False"),
        (lambda m, x, g: Loss(m(x).sum(), torch.tensor(0)), "loss of step 1 has no terms"),
        (
            lambda m, x, g: Loss(m(x).sum(), torch.tensor(8), {"a" if x[0, 0] > 0 else "b": 1.0}),
            "same parts of the loss",
        ),
    ],
)
def test_losses_that_cannot_be_used(tmp_path, step, text):
    with pytest.raises(ValueError, match=text):
        fit(linear(), step, Slices(8), short(steps=9), tmp_path)


def test_arguments_that_do_not_go_together(tmp_path):
    def refused(text, module=None, config=None, validate=None, **arguments):
        with pytest.raises(ValueError, match=text):
            fit(module or linear(), squares, Slices(8), config or short(), tmp_path, validate, **arguments)

    refused("keep='best' needs validate", config=short(keep="best"))
    refused("validate_every_steps=2 needs validate", config=short(validate_every_steps=2))
    refused("nothing to train", module=linear().requires_grad_(False))
    refused("0.weight is torch.bfloat16", module=linear().bfloat16())
    refused("'cpu' or 'cuda', got 'meta'", device="meta")
    refused("decided by 'tail'", config=short(group_learning_rates=(("tail", 1.0),)))
    assert not (tmp_path / "log.jsonl").exists()


def test_several_processes_have_to_be_joined(tmp_path, monkeypatch):
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started"):
        fit(linear(), squares, Slices(8), short(), tmp_path)
    with pytest.raises(ValueError, match="2 processes cannot share cuda:1"), process_group("cuda:1"):
        pass


# Going on -----------------------------------------------------------------------------------------------


class StopAt:
    """Breaks a run off after a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, progress):
        if progress.step == self.step:
            raise InterruptedError


def interrupted(folder, step=7, **changes):
    """A run that was broken off, whose last checkpoint is that of step 4."""
    with pytest.raises(InterruptedError):
        fit(Net(), classify, RandomBatches(), CONFIG, folder, accuracy, progress=StopAt(step), **changes)


def test_a_log_that_is_ahead_is_cut(tmp_path):
    interrupted(tmp_path)
    assert log_lines(tmp_path, "step") == [1, 2, 3, 3, 4, 5, 6, 6, 7]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 8, "lo')
    interrupted(tmp_path, 9)
    assert log_lines(tmp_path, "step") == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]


def test_the_moment_of_checkpoints_does_not_matter(tmp_path):
    ends = []
    for name, config in (
        ("each", dataclasses.replace(CONFIG, checkpoint_every_steps=1)),
        ("timed", dataclasses.replace(CONFIG, checkpoint_every_steps=99, checkpoint_every_seconds=1e-9)),
        ("once", dataclasses.replace(CONFIG, checkpoint_every_steps=99)),
    ):
        module = Net()
        fit(module, classify, RandomBatches(), config, tmp_path / name, accuracy)
        ends.append((module.state_dict(), log_lines(tmp_path / name, "loss")))
    for state, losses in ends[1:]:
        assert equal_states(state, ends[0][0]) and losses == ends[0][1]


def test_stopped_before_any_file_gets_its_place(tmp_path, monkeypatch):
    """Between the best state and the checkpoint, too: each of the places where a kill could do harm."""
    config = dataclasses.replace(CONFIG, steps=9, validate_every_steps=2, checkpoint_every_steps=2)
    replace, count, stop_at = os.replace, 0, 0

    def counted(source, target):
        nonlocal count
        count += 1
        if count == stop_at:
            raise InterruptedError
        replace(source, target)

    def end(name):
        module = Net()
        report = fit(module, classify, RandomBatches(), config, tmp_path / name, accuracy)
        return module.state_dict(), report.history, (tmp_path / name / "best.safetensors").read_bytes()

    monkeypatch.setattr(os, "replace", counted)
    state, history, best = end("whole")
    total = count
    assert total == 1 + 5 + sum(
        v.score > max([-1.0, *(h.score for h in history[:n])]) for n, v in enumerate(history)
    )
    assert total >= 8
    for number in range(1, total + 1):
        count, stop_at = 0, number
        with pytest.raises(InterruptedError):
            end(str(number))
        stop_at = 0
        resumed = end(str(number))
        assert equal_states(resumed[0], state) and resumed[1:] == (history, best)


def test_another_run_is_refused_with_what_differs(tmp_path):
    interrupted(tmp_path, identity={"weights": "abc"})

    def refused(text, module=None, config=CONFIG, weights="abc"):
        with pytest.raises(RunFolderError, match=text):
            fit(
                module or Net(),
                classify,
                RandomBatches(),
                config,
                tmp_path,
                accuracy,
                identity={"weights": weights},
            )

    refused("config learning_rate was 0.02, is 0.1", config=dataclasses.replace(CONFIG, learning_rate=0.1))
    refused("identity weights was abc, is abd", weights="abd")
    frozen = Net()
    frozen.head.bias.requires_grad_(False)
    refused(r"trained head.bias was \[3\], is absent", module=frozen)
    still = Net()
    still.body[1].eval()
    refused(r"trained body.1.num_batches_tracked was \[\], is absent", module=still)
    eager = dataclasses.replace(CONFIG, checkpoint_every_steps=1, checkpoint_every_seconds=9.0)
    with pytest.raises(InterruptedError):
        fit(
            Net(),
            classify,
            RandomBatches(),
            eager,
            tmp_path,
            accuracy,
            progress=StopAt(5),
            identity={"weights": "abc"},
        )


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, damage",
    [
        ("checkpoint.pt", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("checkpoint.pt", lambda path: path.write_bytes(b"")),
        ("checkpoint.pt", lambda path: flip(path, path.read_bytes().index(b"/data/0") + 200)),
        ("checkpoint.pt", lambda path: torch.save({"step": 3}, path)),
        ("run.json", lambda path: path.write_text("{")),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, name, damage):
    interrupted(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(
        RunFolderError, match=rf"{name}: truncated or damaged.*Delete .* to begin the run again"
    ):
        fit(Net(), classify, RandomBatches(), CONFIG, tmp_path, accuracy)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path):
    interrupted(tmp_path)
    torch.save({"step": SimpleNamespace()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RunFolderError, match="truncated or damaged"):
        fit(Net(), classify, RandomBatches(), CONFIG, tmp_path, accuracy)


def test_a_checkpoint_without_its_description_is_refused(tmp_path):
    interrupted(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"has a checkpoint but no run\.json"):
        fit(Net(), classify, RandomBatches(), CONFIG, tmp_path, accuracy)


def test_a_finished_run_gives_its_report_at_once(tmp_path):
    module = Net()
    report = fit(module, classify, RandomBatches(), CONFIG, tmp_path, accuracy)
    assert report.best_step < report.last_step == 40 and report.log == tmp_path / "log.jsonl"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = Net()
    nn.init.zeros_(other.head.weight)
    assert fit(other, None, None, CONFIG, tmp_path, accuracy) == report
    assert equal_states(other.state_dict(), module.state_dict())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    (tmp_path / "best.safetensors").write_bytes(before["best.safetensors"][:-10])
    with pytest.raises(RunFolderError, match=r"best.safetensors: truncated or damaged"):
        fit(Net(), None, None, CONFIG, tmp_path, accuracy)
    best = f'"step\\": {report.best_step}'.encode()
    assert best in before["best.safetensors"]
    other_step = before["best.safetensors"].replace(
        best, b'"step\\": ' + b"0".ljust(len(str(report.best_step)))
    )
    (tmp_path / "best.safetensors").write_bytes(other_step)
    with pytest.raises(RunFolderError, match=r"best.safetensors is about .* but the best of this run is"):
        fit(Net(), None, None, CONFIG, tmp_path, accuracy)


def test_trainable_state(tmp_path):
    module = Net()
    state = trainable_state(module)
    assert set(state) == {
        "body.0.weight",
        "body.1.weight",
        "body.1.bias",
        *(f"body.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
        "head.weight",
        "head.bias",
    }
    nn.init.zeros_(module.head.weight)
    assert state["head.weight"].abs().sum() > 0 and not any(t.requires_grad for t in state.values())
    load_trainable_state(module, state)
    assert torch.equal(module.head.weight, state["head.weight"])

    still = Net().eval()
    assert "body.1.running_mean" not in trainable_state(still)
    load_trainable_state(still, state | {"body.1.running_mean": torch.full((8,), 3.0)})
    assert torch.equal(still.body[1].running_mean, torch.full((8,), 3.0))


@pytest.mark.parametrize(
    "change, text",
    [
        ({"head.weight": None}, "lacks head.weight"),
        ({"frozen.weight": torch.zeros(8, 6)}, "has the unknown frozen.weight"),
        ({"head.bias": torch.zeros(4)}, r"head.bias is \(4,\) there and \(3,\) here"),
    ],
)
def test_a_trainable_state_that_does_not_fit_changes_nothing(change, text):
    module = Net()
    state = {name: torch.zeros_like(t) for name, t in trainable_state(module).items()} | change
    before = trainable_state(module)
    with pytest.raises(ValueError, match=text):
        load_trainable_state(module, {name: t for name, t in state.items() if t is not None})
    assert equal_states(trainable_state(module), before)


# TensorBoard --------------------------------------------------------------------------------------------


def test_tensorboard_is_asked_for_by_name_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        fit(linear(), squares, Slices(8), short(tensorboard=True), tmp_path)


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        flush = close = lambda self: None

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))

    def step(module, x, generator):
        return Loss(module(x).sum() * 0 + 16.0, torch.tensor(8), {"a": 3.0})

    fit(linear(), step, Slices(8), short(steps=1, tensorboard=True), tmp_path, Scores(0.5))
    assert written[0] == (str(tmp_path / "tensorboard"), 1)
    assert {(name, value) for name, value, _ in written[1:] if name != "seconds"} == {
        ("loss", 2.0),
        ("learning_rate", 1e-2),
        ("grad_norm", 0.0),
        ("parts/a", 3.0),
        ("score", 0.5),
    }
    assert {step for _, _, step in written[1:]} == {1}


# Processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What the script did: forks beside two ranks under torchrun, started together because starting takes longest."""
    out = tmp_path_factory.mktemp("processes")
    (out / "two").mkdir()
    (out / "four").mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    commands = (
        [sys.executable, SCRIPT, "forks", out],
        [sys.executable, *launch, SCRIPT, "ranks", out / "two"],
    )
    started = [
        subprocess.Popen(
            command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        forks, torchrun = ((p, p.communicate(timeout=120)[0]) for p in started)
        assert forks[0].returncode == 0, forks[1]
        # its last run fails on one rank, and the other one must not wait
        assert torchrun[0].returncode == 1 and "OSError: the disk of rank 1 broke" in torchrun[1], torchrun[1]
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
    return out


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bits(processes):
    kills = json.loads((processes / "kills.json").read_text())
    assert kills["at_file_operation"] >= 5 and kills["at_any_time"] >= 3
    ends = [torch.load(processes / f"{name}-end.pt", weights_only=True) for name in ("whole", "killed")]
    assert equal_states(ends[0]["module"], ends[1]["module"]) and ends[0]["report"] == ends[1]["report"]
    checkpoints = [
        torch.load(processes / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")
    ]
    whole, killed = checkpoints
    assert whole["step"] == killed["step"] == 40 and whole["validations"] == killed["validations"]
    assert equal_states(whole["state"], killed["state"])
    assert whole["optimiser"].keys() == killed["optimiser"].keys()
    assert all(equal_states(whole["optimiser"][n], killed["optimiser"][n]) for n in whole["optimiser"])
    for key in ("step", "loss", "grad_norm", "learning_rate", "parts", "score"):
        assert log_lines(processes / "whole", key) == log_lines(processes / "killed", key)
    assert (processes / "whole" / "best.safetensors").read_bytes() == (
        processes / "killed" / "best.safetensors"
    ).read_bytes()


def rank_reports(folder, count):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
def test_layouts_trace_the_same_curve(processes, tmp_path):
    end = layout(tmp_path / "layout", 0)
    losses, norms = (log_lines(tmp_path / "layout", key) for key in ("loss", "grad_norm"))
    assert len(losses) == 12 and max(losses) - min(losses) > 0.1
    for folder, count in ((processes / "two", 2), (processes / "four", 4)):
        assert log_lines(folder / "layout", "loss") == pytest.approx(losses, abs=1e-5)
        assert log_lines(folder / "layout", "grad_norm") == pytest.approx(norms, abs=1e-4)
        reports = [report["layout"] for report in rank_reports(folder, count)]
        assert reports == [reports[0]] * count
        assert reports[0]["history"] == end["history"]
        for name, values in end["state"].items():
            torch.testing.assert_close(
                torch.tensor(reports[0]["state"][name]), torch.tensor(values), rtol=1e-3, atol=1e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("two", 2), ("four", 4)])
def test_ranks_resume_to_the_same_bits(processes, name, count):
    for report in rank_reports(processes / name, count):
        assert report["resumed"] == report["layout"]
    assert log_lines(processes / name / "resumed", "loss") == log_lines(processes / name / "layout", "loss")


@pytest.mark.slow
def test_a_parameter_that_one_rank_uses_is_trained_on_all(processes):
    ours = rank_reports(processes / "two", 2)
    states = [report["partly_used"]["state"] for report in ours]
    assert states[0] == states[1]
    assert set(states[0]) == {
        f"{part}.{kind}" for part in ("head", "rarely_used") for kind in ("weight", "bias")
    }
    start = dict(Net().named_parameters())
    assert all(not torch.equal(torch.tensor(v), start[name]) for name, v in states[0].items())


@pytest.mark.slow
def test_all_ranks_refuse_together(processes):
    for report in rank_reports(processes / "two", 2):
        assert "2 of 7 trained parameters are not part of the loss: rarely_used.weight" in report["unused"]
        assert "5 micro-batches per step cannot be shared by 2 processes" in report["unshareable"]
        step, names, checkpoint, evidence = report["diverging"]
        assert step == 5 and names == [f"4-1-{n}.wav" for n in range(4)]
        assert torch.load(checkpoint, weights_only=True)["step"] == 3
        kept = json.loads(Path(evidence).read_text())["micro_batches"]
        assert [(m["index"], m["names"]) for m in kept] == [(1, names)]
