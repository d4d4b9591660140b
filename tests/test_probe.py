"""The training rules of jukemir, one by one, for a grid of one configuration."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from audiation.annotations import Label
from audiation.grid import train_grid
from audiation.probe import ProbeConfig, ProbeSchedule, Standardiser, mean_per_track
from audiation.targets import ClassTarget, KeyTarget

TARGET = ClassTarget(("low", "high"))
SMALL = ProbeConfig(hidden_size=8, batch_size=16)


JUKEMIR = ProbeSchedule()
SOON = replace(JUKEMIR, patience=16)  # for tests that are not about when training ends


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(classes):
    return [Label(TARGET.classes[int(c)]) for c in classes]


def separable(num_windows=40, seed=0):
    """Two classes 4 apart in the first of 5 dimensions."""
    classes = torch.arange(num_windows) % 2
    vectors = torch.randn(num_windows, 5, generator=generator(seed)) * 0.3
    vectors[:, 0] += 4.0 * classes
    return vectors, classes


def train_one(config, target, train, annotations, valid, score, schedule=JUKEMIR, **options):
    """score: `(M, C)` logits -> number."""

    def scores(logits):
        return np.array([score(one) for one in logits])

    return train_grid([config], schedule, target, {0: train}, annotations, {0: valid}, scores, **options).best


def fit(config=SMALL, score=None, train=None, valid=None, **options):
    train, valid = train or separable(), valid or separable(seed=1)
    score = score or (lambda logits: float((logits.argmax(1) == valid[1]).float().mean()))
    return train_one(config, TARGET, train[0], labels(train[1]), valid[0], score, **options)


@pytest.mark.parametrize(
    "config", [ProbeConfig(), SMALL, replace(SMALL, hidden_size=None, learning_rate=1e-2)]
)
def test_separable_classes_are_learned_completely(config):
    valid = separable(seed=1)
    result = fit(config, valid=valid, schedule=replace(JUKEMIR, patience=64))
    assert result.best_score == 1.0
    assert (result.predict({0: valid[0]}).argmax(1) == valid[1]).all()


def test_stopping_when_nothing_improves_after_the_first_look():
    looks = []
    result = fit(score=lambda logits: looks.append(logits.clone()) or 0.5)
    assert len(looks) == len(result.history) == 257
    assert [e.step for e in result.history] == list(range(0, 2049, 8))
    assert result.last_step == 2056 and result.best_step == 0 and result.best_score == 0.5
    # the initial state is restored: it predicts what was seen at step 0, and no longer what was seen last
    valid = separable(seed=1)[0]
    torch.testing.assert_close(result.predict({0: valid}), looks[0], atol=1e-6, rtol=0)
    assert not torch.equal(looks[0], looks[-1])


def test_an_equal_score_is_no_improvement_and_a_larger_one_starts_the_count_again():
    scores = iter([0.1, 0.3, 0.3] + [0.2] * 100 + [0.4] + [0.0] * 1000)
    states = []
    result = fit(score=lambda logits: states.append(logits) or next(scores))
    assert result.best_step == 103 * 8 and result.best_score == 0.4
    assert len(result.history) == 104 + 256 and result.last_step == len(result.history) * 8
    torch.testing.assert_close(result.predict({0: separable(seed=1)[0]}), states[103], atol=1e-6, rtol=0)


def test_a_run_repeats_itself_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    scores = [0.0, 0.5, 1.0]

    def run(seed):
        given = iter(scores + [0.0] * 300)
        return fit(replace(SMALL, seed=seed), score=lambda logits: next(given), schedule=SOON)

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first.state[k], again.state[k]) for k in first.state)
    assert any(not torch.equal(first.state[k], other.state[k]) for k in first.state)


def test_one_step_is_adam_on_the_whole_set_when_the_batch_is_larger():
    """Without dropout and with one batch of everything, training is plain Adam with coupled decay."""
    train, valid = separable(20), separable(seed=1)
    config = ProbeConfig(
        standardise=False, hidden_size=None, batch_size=64, dropout=0.0, weight_decay=0.1, learning_rate=0.01
    )
    looks = []

    def score(logits):
        looks.append(logits)
        return float(len(looks) <= 2) * len(looks)  # best at the second look, after 8 steps

    result = fit(config, score=score, train=train, valid=valid, schedule=SOON)
    first = fit(config, score=lambda logits: 0.0, train=train, valid=valid, schedule=SOON)
    weight = first.state["output.weight"].clone().requires_grad_()
    bias = first.state["output.bias"].clone().requires_grad_()
    adam = torch.optim.Adam([weight, bias], lr=0.01, weight_decay=0.1, betas=(0.9, 0.999))
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(train[0] @ weight.T + bias, train[1])
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert result.best_step == 8
    torch.testing.assert_close(result.state["output.weight"], weight.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.state["output.bias"], bias.detach(), atol=1e-5, rtol=0)


def test_batches_are_drawn_without_replacement_but_independently_of_each_other():
    seen = []

    class Recorder(ClassTarget):
        def encode(self, annotation, grid=None):
            return torch.tensor(int(annotation.name))

        def loss(self, logits, targets, valid=None):
            seen.append(targets)
            return super().loss(logits, targets % 2, valid)

    target = Recorder(tuple("0123456789"))
    annotations = [Label(str(i)) for i in range(10)]
    vectors = torch.randn(10, 3, generator=generator())
    train_one(replace(SMALL, batch_size=4), target, vectors, annotations, vectors, lambda logits: 0.0)
    assert len(seen) == 2048 and all(len(set(b.tolist())) == 4 for b in seen)
    overlap = sum(len({*a.tolist()} & {*b.tolist()}) for a, b in pairwise(seen))
    # independent: 4 * 4 / 10 = 1.6 in common on average; passes over the set would have far fewer
    assert overlap / (len(seen) - 1) == pytest.approx(1.6, abs=0.1)
    counts = torch.bincount(torch.cat(seen))
    assert counts.min() > 0.9 * 822 and counts.max() < 1.1 * 822


def test_standardisation_uses_training_statistics_only():
    train, valid = separable(), separable(seed=1)
    plain = fit(train=train, valid=valid, schedule=SOON)
    valid[0][3] = 1e6
    spoiled = fit(train=train, valid=valid, schedule=SOON)
    assert torch.equal(plain.standardisers[0].mean, spoiled.standardisers[0].mean)
    assert torch.equal(plain.standardisers[0].scale, spoiled.standardisers[0].scale)
    torch.testing.assert_close(plain.standardisers[0].mean, train[0].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.standardisers[0].scale, train[0].std(0, correction=0), atol=1e-6, rtol=0)
    off = fit(replace(SMALL, standardise=False), schedule=SOON)
    assert (off.standardisers[0].mean == 0).all() and (off.standardisers[0].scale == 1).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, -100.0 * 128**0.5, 1e20])
def test_a_constant_feature_becomes_zero(constant):
    train = separable()
    train[0][:, 2] = constant
    standardise = Standardiser.fit(train[0])
    assert standardise.scale[2] == 1 and standardise(train[0])[:, 2].abs().max() < 1e-6 * max(
        1, abs(constant)
    )
    assert fit(train=train, valid=train, schedule=SOON).best_score == 1.0


def test_unusable_data_is_refused_before_training():
    vectors, classes = separable()
    looks = []

    def attempt(match, train=vectors, annotations=None, valid=vectors, **options):
        with pytest.raises(ValueError, match=match):
            train_one(
                SMALL,
                TARGET,
                train,
                annotations or labels(classes),
                valid,
                lambda x: looks.append(0),
                **options,
            )

    for value in (float("nan"), float("inf")):
        bad = vectors.clone()
        bad[7, 1] = value
        attempt(
            "1 of 40 training vectors of layer 0 hold NaN or infinite values .the first is row 7", train=bad
        )
        attempt("validation vectors of layer 0 hold NaN", valid=bad)
    attempt("no example of high. ", annotations=labels([0] * 40))
    attempt("40 training vectors but 3 annotations", annotations=labels([0, 1, 0]))
    attempt("of one width", valid=vectors[:, :4])
    attempt("validation split has no vectors", valid=vectors[:0])
    assert not looks
    allowed = fit(train=(vectors, [0] * 40), allow_missing_classes=True, schedule=SOON)
    assert allowed.best_score == 0.5


def test_a_missing_key_is_named():
    vectors = torch.randn(23, 4, generator=generator())
    target = KeyTarget()
    annotations = [target.decode(torch.eye(24)[i]) for i in range(24) if i != 9]
    with pytest.raises(ValueError, match=r"no example of A major\. "):
        train_one(SMALL, target, vectors, annotations, vectors, lambda logits: 0.0)


def test_a_score_that_is_not_a_number_ends_training():
    with pytest.raises(ValueError, match="NaN at step 0"):
        fit(score=lambda logits: float("nan"))


def test_configurations_that_make_no_sense():
    for bad in ({"batch_size": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ProbeConfig(**bad)


def test_progress_is_told_every_look():
    told = []
    result = fit(score=lambda logits: 0.0, progress=told.append, schedule=SOON)
    assert [p.step for p in told] == [e.step for e in result.history]
    assert [p.num_alive for p in told] == [1] * 16 + [0] and told[-2].seconds_left is not None
    assert result.num_parameters == 5 * 8 + 8 + 8 * 2 + 2


def test_mean_per_track():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    mean = mean_per_track(outputs, torch.tensor([1, 0, 1]))
    assert mean.tolist() == [[3.0, 4.0], [3.0, 1.0]]
    with pytest.raises(ValueError, match="track number 1 has no window"):
        mean_per_track(outputs, torch.tensor([0, 2, 2]))
