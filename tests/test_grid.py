"""Grids trained at once: every configuration is the one that is trained alone."""

import dataclasses
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiation import grid_files, grid_kernel
from audiation.annotations import Label, Tags
from audiation.grid import train_grid
from audiation.grid_inputs import GridInputs, GridStream
from audiation.grid_kernel import sparse_product
from audiation.grid_stack import Stack
from audiation.probe import WEIGHTED_SUM, ProbeConfig, ProbeSchedule
from audiation.store import StoreLockedError
from audiation.targets import ClassTarget, EmotionTarget, TagsTarget
from one_probe import OneProbe

CLASSES = ("a", "b", "c", "d", "e")
TARGET = ClassTarget(CLASSES)
DIM, NUM_TRAIN, NUM_VALID, LAYERS = 40, 230, 90, (0, 1, 2, 3)


def split(count, seed):
    """Layers whose classes are ever easier to tell apart, and on ever larger scales."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(CLASSES), DIM, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    noise = {i: torch.randn(count, DIM, generator=generator) for i in LAYERS}
    return {i: (centres[labels] * (0.2 + 0.1 * i) + noise[i]) * (i + 1) for i in LAYERS}, labels


TRAIN, TRAIN_LABELS = split(NUM_TRAIN, 0)
VALID, VALID_LABELS = split(NUM_VALID, 1)
ANNOTATIONS = [Label(CLASSES[i]) for i in TRAIN_LABELS.tolist()]

JUKEMIR = [
    ProbeConfig(
        layer=2, standardise=standardise, hidden_size=hidden_size, batch_size=batch_size, learning_rate=rate,
        dropout=dropout, weight_decay=decay,
    )
    for standardise, hidden_size, batch_size, rate, dropout, decay in itertools.product(
        (False, True), (None, 24), (64, 256), (1e-4, 1e-2), (0.25, 0.55), (0.0, 1e-3)
    )
]  # fmt: skip
MARBLE = [
    ProbeConfig(
        layer=layer, standardise=False, hidden_size=24, learning_rate=rate, dropout=0.2, input_dropout=False
    )
    for layer in (*LAYERS, WEIGHTED_SUM)
    for rate in (1e-3, 1e-2)
] + [ProbeConfig(layer=WEIGHTED_SUM, hidden_size=None, learning_rate=1e-2, dropout=0.25)]
DRAWS = ProbeSchedule(patience=12)
EPOCHS = ProbeSchedule("epochs", None, patience=7, max_epochs=30, halve_patience=2)
LAST = replace(EPOCHS, keep="last")


def accuracy(logits):
    return (logits.argmax(-1) == VALID_LABELS).double().mean(1).numpy()


def train(configs, schedule, **options):
    return train_grid(configs, schedule, TARGET, TRAIN, ANNOTATIONS, VALID, accuracy, **options)


@pytest.mark.parametrize(
    ("configs", "schedule"),
    [(JUKEMIR[::3], DRAWS), (MARBLE, EPOCHS)],
    ids=["jukemir", "marble with weighted sums"],
)
def test_losses_in_a_stack_are_those_of_training_alone_over_200_steps(configs, schedule):
    by_stream = {}
    for config in configs:
        key = (
            config.batch_size,
            config.dropout,
            config.input_dropout,
            config.hidden_size,
            config.layer == WEIGHTED_SUM,
        )
        by_stream.setdefault(key, []).append(config)
    targets = torch.stack([TARGET.encode(a) for a in ANNOTATIONS])
    inputs = GridInputs(TRAIN, VALID, torch.device("cpu"))
    for members in by_stream.values():
        members.sort(key=lambda c: (str(c.layer), c.standardise))
        layers = [(1, 2, 3) if c.layer == WEIGHTED_SUM else (c.layer,) for c in members]
        stack = Stack(range(len(members)), members, layers, inputs, TARGET, targets, schedule)
        alone = [OneProbe(config, schedule, TARGET, TRAIN, ANNOTATIONS) for config in members]
        for _ in range(20):
            for logits, batch_targets in stack.train_steps(10):
                together = [float(TARGET.loss(one, batch_targets).mean.detach()) for one in logits]
                assert together == pytest.approx([probe.train_step() for probe in alone], abs=1e-5)
        torch.testing.assert_close(
            stack.valid_logits(), torch.stack([probe.logits(VALID) for probe in alone]), atol=1e-3, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("configs", "schedule"), [(JUKEMIR[::7], DRAWS), (MARBLE, EPOCHS), (MARBLE, LAST)], ids=["draws", "epochs", "last"]
)  # fmt: skip
def test_the_same_checkpoint_is_kept_and_the_same_configuration_selected_as_alone(configs, schedule):
    grid = train(configs, schedule, keep_states=True)
    alone = [OneProbe(config, schedule, TARGET, TRAIN, ANNOTATIONS) for config in configs]
    for fit, trial, probe in zip(grid.fits, grid.trials, alone, strict=True):
        score, best_step, last_step, scores = probe.train(VALID, accuracy)
        assert (fit.best_score, fit.best_step, fit.last_step) == (score, best_step, last_step)
        assert [e.score for e in fit.history] == scores
        assert (trial.config, trial.best_score, trial.best_step, trial.last_step) == (
            fit.config, score, best_step, last_step
        )  # fmt: skip
        if schedule.keep == "last":
            assert fit.kept_step == fit.last_step
            torch.testing.assert_close(fit.predict(VALID), probe.logits(VALID), atol=1e-4, rtol=1e-4)
    first_best = max(grid.fits, key=lambda f: f.best_score)
    assert grid.best.config == first_best.config
    assert all(torch.equal(grid.best.state[k], first_best.state[k]) for k in first_best.state)
    if schedule.keep == "best":
        assert float(accuracy(grid.best.predict(VALID)[None])[0]) == grid.best.best_score
    ends = {t.last_step for t in grid.trials}
    assert len(ends) > 1  # stacks were really thinned out on the way


def test_a_grid_in_small_stacks_selects_the_same():
    whole, split_up = train(MARBLE, EPOCHS), train(MARBLE, EPOCHS, stack_bytes=1)
    assert split_up.trials == whole.trials and split_up.best.config == whole.best.config


@pytest.mark.parametrize("kill_at", [1, 4, 17])
def test_a_killed_grid_goes_on_to_the_same_bits(tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr(grid_files, "SAVE_EVERY_SECONDS", 0.0)
    configs = [*MARBLE[::3], replace(MARBLE[0], batch_size=32)]
    whole = train(configs, EPOCHS)

    class KilledError(RuntimeError):
        pass

    reports = []

    def kill(progress):
        reports.append(progress)
        if len(reports) == kill_at:
            raise KilledError

    folder = tmp_path / "grid"
    with pytest.raises(KilledError):
        train(configs, EPOCHS, run_dir=folder, run_key="data", progress=kill)
    assert any(folder.glob("stack-*.safetensors")) == (kill_at > 1)
    rest = []
    resumed = train(configs, EPOCHS, run_dir=folder, run_key="data", progress=rest.append)
    assert resumed.trials == whole.trials and resumed.best.history == whole.best.history
    assert all(torch.equal(resumed.best.state[k], whole.best.state[k]) for k in whole.best.state)
    if kill_at > 1:
        assert rest[0].step > reports[0].step  # it did not begin anew
    assert not folder.exists()  # what is done is not done again from there


def test_files_of_another_grid_or_damaged_ones_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_files, "SAVE_EVERY_SECONDS", 0.0)

    folder = tmp_path / "grid"

    def stop(progress):
        if progress.step > 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MARBLE[:2], EPOCHS, run_dir=folder, run_key="data", progress=stop)
    steps = []
    train(MARBLE[:2], EPOCHS, run_dir=folder, run_key="other data", progress=lambda p: steps.append(p.step))
    assert steps[0] == 4  # an epoch of 230 windows in batches of 64
    with pytest.raises(KeyboardInterrupt):
        train(MARBLE[:2], EPOCHS, run_dir=folder, run_key="data", progress=stop)
    folder.joinpath("stack-0000.safetensors").write_bytes(b"half a file")
    steps.clear()
    train(MARBLE[:2], EPOCHS, run_dir=folder, run_key="data", progress=lambda p: steps.append(p.step))
    assert steps[0] == 4


def test_other_vectors_under_the_same_key_are_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(grid_files, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(grid_files, "SAVE_SHARE", 1.0)

    def stop(progress):
        if progress.step > 12:
            raise KeyboardInterrupt

    folder, steps = tmp_path / "grid", []
    with pytest.raises(KeyboardInterrupt):
        train(MARBLE[:2], EPOCHS, run_dir=folder, progress=stop)
    others = TRAIN | {0: TRAIN[0] + 1e-3}
    train_grid(
        MARBLE[:2], EPOCHS, TARGET, others, ANNOTATIONS, VALID, accuracy, run_dir=folder,
        progress=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert steps[0] == 4


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds thesis"):
        train(MARBLE[:1], EPOCHS, run_dir=tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        train(MARBLE[:1], EPOCHS, run_dir=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_two_processes_do_not_train_one_grid(tmp_path):
    with (
        grid_files.GridFiles(tmp_path / "grid", "key"),
        pytest.raises(StoreLockedError, match="being written by"),
    ):
        train(MARBLE[:1], EPOCHS, run_dir=tmp_path / "grid")
    assert train(MARBLE[:1], EPOCHS, run_dir=tmp_path / "grid").best.best_score > 0


def test_a_weighted_sum_with_all_weight_on_a_layer_is_that_layer_and_leaves_layer_0_out():
    fit = train(
        [ProbeConfig(layer=WEIGHTED_SUM, standardise=False, hidden_size=None, dropout=0.0)], EPOCHS
    ).best
    assert fit.layers == (1, 2, 3) and fit.state["mix"].shape == (3,)
    assert fit.num_parameters == DIM * len(CLASSES) + len(CLASSES) + 3
    on_layer_2 = dataclasses.replace(fit, state=fit.state | {"mix": torch.tensor([0.0, 100.0, 0.0])})
    head = {k: v for k, v in fit.state.items() if k != "mix"}
    alone = dataclasses.replace(
        fit,
        config=replace(fit.config, layer=2),
        layers=(2,),
        state=head,
        standardisers=fit.standardisers[1:2],
    )
    torch.testing.assert_close(on_layer_2.predict(VALID), alone.predict(VALID))
    assert not torch.allclose(on_layer_2.predict(VALID), fit.predict(VALID))
    moved = VALID | {0: VALID[0] + 100}
    assert torch.equal(fit.predict(moved), fit.predict(VALID))


def test_the_mix_is_learned():
    """Layers 1 and 2 are noise, 3 tells everything."""
    noise = torch.Generator().manual_seed(3)
    layers = {i: torch.randn(NUM_TRAIN, DIM, generator=noise) for i in (1, 2)} | {3: TRAIN[3]}
    held_out = {i: torch.randn(NUM_VALID, DIM, generator=noise) for i in (1, 2)} | {3: VALID[3]}
    config = ProbeConfig(layer=WEIGHTED_SUM, hidden_size=None, learning_rate=3e-2, dropout=0.0)
    fit = train_grid([config], EPOCHS, TARGET, layers, ANNOTATIONS, held_out, accuracy).best
    assert fit.best_score > 0.75 and fit.state["mix"].argmax() == 2


def test_one_that_diverges_ends_without_a_score_and_the_others_go_on():
    wild = replace(MARBLE[0], learning_rate=1e30)
    grid = train([wild, MARBLE[2]], EPOCHS)
    alone = train([MARBLE[2]], EPOCHS)
    assert grid.trials[0].best_score == -np.inf and grid.trials[1:] == alone.trials
    assert grid.best.config == MARBLE[2]
    with pytest.raises(ValueError, match="no configuration ever had a finite score"):
        train([wild], EPOCHS)


def test_targets_of_every_kind_are_trained():
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(DIM, 2, generator=generator) / DIM**0.5
    values = (TRAIN[2] @ mix).tanh()
    tags = TagsTarget(("x", "y"))
    annotations = [Tags({"x": float(a > 0), "y": float(b > 0)}) for a, b in values.tolist()]
    truth = VALID[2] @ mix > 0

    def right(logits):
        return ((logits > 0) == truth).double().mean((1, 2)).numpy()

    configs = [ProbeConfig(layer=2, hidden_size=h, learning_rate=1e-2, dropout=0.0) for h in (None, 16)]
    assert train_grid(configs, EPOCHS, tags, TRAIN, annotations, VALID, right).best.best_score > 0.85
    emotion = EmotionTarget((0.0, 0.0), (1.0, 1.0))
    felt = [emotion.decode(row) for row in values]

    def near(logits):
        return -(logits - (VALID[2] @ mix).tanh()).square().mean((1, 2)).numpy()

    assert (
        train_grid(configs, EPOCHS, emotion, TRAIN, felt, VALID, near).best.best_score > -0.25
    )  # nothing learned is -0.6


def test_what_a_grid_needs():
    for configs, message in (
        ([], "at least one configuration"),
        ([ProbeConfig(layer=7)], r"vectors of layers \[0, 1, 2, 3\], not of layer 7"),
        ([ProbeConfig()], "names no layer"),
    ):
        with pytest.raises(ValueError, match=message):
            train(configs, EPOCHS)
    with pytest.raises(ValueError, match="layers 1 and above"):
        only_0 = {0: TRAIN[0]}
        train_grid([MARBLE[-1]], EPOCHS, TARGET, only_0, ANNOTATIONS, {0: VALID[0]}, accuracy)
    with pytest.raises(ValueError, match="of the same layers"):
        train_grid(MARBLE[:1], EPOCHS, TARGET, TRAIN, ANNOTATIONS, {0: VALID[0]}, accuracy)
    with pytest.raises(ValueError, match="differ in their number"):
        uneven = TRAIN | {1: TRAIN[1][:-1]}
        train_grid(MARBLE[:1], EPOCHS, TARGET, uneven, ANNOTATIONS, VALID, accuracy)
    for bad in (
        {"patience": None},
        {"look_every_steps": None},
        {"max_epochs": 3},
        {"patience": 0},
    ):
        with pytest.raises(ValueError, match=r"never end|no epochs|at least 1"):
            ProbeSchedule(**bad)
    for bad in ({"layer": -1}, {"layer": "all"}, {"layer": True}, {"hidden_size": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ProbeConfig(**bad)


# Streams ------------------------------------------------------------------------------------------------


def stream(schedule=DRAWS, num_windows=230, **changes):
    return GridStream(replace(MARBLE[0], **changes), schedule, num_windows)


def test_streams_depend_on_seed_batch_dropout_and_model_and_on_nothing_else():
    one = stream()
    same = stream(learning_rate=1e-5, weight_decay=0.5, standardise=True, layer=3)
    assert torch.equal(one.batch(5), same.batch(5))
    assert torch.equal(one.dropout(1, 5, 64, 24), same.dropout(1, 5, 64, 24))
    for changes in ({"seed": 1}, {"batch_size": 63}, {"dropout": 0.25}, {"hidden_size": None}):
        assert not torch.equal(one.batch(5)[:60], stream(**changes).batch(5)[:60])
    assert not torch.equal(one.batch(5), one.batch(6))
    assert not torch.equal(one.dropout(0, 5, 64, 24), one.dropout(1, 5, 64, 24))


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.25, 0.75])
def test_masks_drop_their_share_and_keep_the_mean(dropout):
    drawn = stream(dropout=dropout, batch_size=300, num_windows=300)
    mask = drawn.dropout(0, 0, 300, 1001)
    if dropout == 0:
        assert mask is None
        return
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout)], rel=1e-4)
    assert float((mask == 0).double().mean()) == pytest.approx(dropout, abs=0.005)
    assert float(mask.mean()) == pytest.approx(1, abs=0.02)
    columns = (mask == 0).double().mean(0)
    assert columns.std() == pytest.approx(
        (dropout * (1 - dropout) / 300) ** 0.5, rel=0.15
    )  # no column is special


def test_an_epoch_takes_every_window_once_and_in_a_new_order():
    drawn = stream(schedule=EPOCHS, batch_size=64)
    epochs = [torch.cat([drawn.batch(4 * e + i) for i in range(4)]) for e in range(2)]
    assert drawn.batches_per_epoch == 4 and len(drawn.batch(3)) == 230 - 3 * 64
    assert all(sorted(e.tolist()) == list(range(230)) for e in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(drawn.batch(2), stream(schedule=EPOCHS).batch(2))  # asked in whatever order


@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize("dim", [1, 511, 512, 1300])
def test_a_product_that_passes_over_zeros_is_the_product(share, dim):
    generator = torch.Generator().manual_seed(3)
    d = torch.randn(7, 61, generator=generator) * (torch.rand(7, 61, generator=generator) < share)
    x = torch.randn(61, dim, generator=generator)
    out = torch.full((7, dim), torch.nan)
    sparse_product(d.numpy(), x.numpy(), out.numpy())
    torch.testing.assert_close(out, d @ x, atol=1e-5, rtol=1e-5)


def test_units_that_are_off_are_passed_over_where_most_are(monkeypatch):
    """And the losses are those of dense products."""
    targets = torch.stack([TARGET.encode(a) for a in ANNOTATIONS])
    generator = torch.Generator().manual_seed(4)
    wide = {2: torch.randn(NUM_TRAIN, 600, generator=generator)}
    inputs = GridInputs(wide, wide, torch.device("cpu"))
    taken = []
    monkeypatch.setattr(
        grid_kernel, "sparse_product", lambda *given: taken.append(1) or sparse_product(*given)
    )
    for dropout, passes_over in ((0.25, False), (0.5, True), (0.75, True)):
        config = replace(JUKEMIR[0], hidden_size=24, dropout=dropout)
        taken.clear()
        stack = Stack([0], [config], [(2,)], inputs, TARGET, targets, DRAWS)
        alone = OneProbe(config, DRAWS, TARGET, wide, ANNOTATIONS)
        for logits, batch_targets in stack.train_steps(24):
            loss = float(TARGET.loss(logits[0], batch_targets).mean.detach())
            assert loss == pytest.approx(alone.train_step(), abs=1e-5)
        assert bool(taken) == passes_over
