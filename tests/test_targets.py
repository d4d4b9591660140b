"""Output spaces: decode undoes encode, the loss is torch's summed over the valid clips, windows are averaged."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from audiation.annotations import Emotion, Key, Label, Pitch, Tags, Tempo, Values
from audiation.target_files import target_from_json, target_to_json
from audiation.targets import (
    ClassTarget,
    EmotionTarget,
    KeyTarget,
    PitchTarget,
    TagsTarget,
    TempoTarget,
    ValuesTarget,
    clip_target,
    frame_target,
)
from audiation.windows import AGGREGATIONS, aggregate

CLASSES = ("blues", "jazz", "rock")
SPACES = [
    (ClassTarget(CLASSES), [Label(c) for c in CLASSES]),
    (KeyTarget(), [Key.from_index(i) for i in range(24)]),
    (PitchTarget(), [Pitch(i) for i in range(128)]),
]
SPACE_IDS = ["class", "key", "pitch"]
TAGS = TagsTarget(("calm", "loud", "piano"))
VALUES = ValuesTarget(("valence", "year"), (0.25, 1990.0), (0.5, 10.0))
EMOTION = EmotionTarget((4.7561, 4.9739), (1.3860, 1.2546))
ALL = [ClassTarget(CLASSES), KeyTarget(), TAGS, VALUES, PitchTarget(), EMOTION, TempoTarget()]
KINDS = ["class", "key", "tags", "values", "pitch", "emotion", "tempo"]
VALID = torch.tensor([True, False, True, True, False, False, True])


def agree(a, b):
    """The same answer: exactly the class or key, closely the numbers."""
    if isinstance(a, Tags):
        return a.scores == pytest.approx(b.scores, rel=1e-12, abs=1e-300)
    if isinstance(a, Emotion):
        return (a.arousal, a.valence) == pytest.approx((b.arousal, b.valence), rel=1e-12)
    return a.values == pytest.approx(b.values, rel=1e-12) if isinstance(a, Values) else a == b


@pytest.mark.parametrize(("target", "annotations"), SPACES, ids=SPACE_IDS)
def test_decode_undoes_encode_for_every_class(target, annotations):
    encoded = torch.stack([target.encode(a) for a in annotations])
    assert target.num_outputs == len(annotations) and not target.per_frame
    assert encoded.dtype == torch.int64 and encoded.tolist() == list(range(target.num_outputs))
    logits = F.one_hot(encoded, target.num_outputs).float() * 9 - 4
    assert [target.decode(row) for row in logits] == annotations


@pytest.mark.parametrize(("target", "annotations"), SPACES, ids=SPACE_IDS)
def test_loss_is_the_summed_cross_entropy_of_the_valid_clips_and_their_number(target, annotations):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, target.num_outputs, generator=generator, requires_grad=True)
    targets = torch.randint(target.num_outputs, (7,), generator=generator)
    loss = target.loss(logits, targets)
    torch.testing.assert_close(loss.sum, F.cross_entropy(logits, targets, reduction="sum"))
    assert int(loss.count) == 7
    masked = target.loss(logits, targets, VALID)
    torch.testing.assert_close(masked.sum, F.cross_entropy(logits[VALID], targets[VALID], reduction="sum"))
    assert int(masked.count) == 4
    masked.sum.backward()
    assert (logits.grad[~VALID] == 0).all() and (logits.grad[VALID] != 0).all()


def test_a_batch_without_valid_clips_costs_nothing():
    loss = KeyTarget().loss(torch.zeros(2, 24), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))
    assert float(loss.sum) == 0.0 and int(loss.count) == 0
    for target in (TAGS, VALUES):
        empty = target.loss(*torch.zeros(2, 2, target.num_outputs), torch.zeros(2, dtype=torch.bool))
        assert float(empty.sum) == 0.0 and int(empty.count) == 0


def test_a_tie_goes_to_the_first_class():
    assert ClassTarget(CLASSES).decode(torch.tensor([0.0, 1.0, 1.0])) == Label("jazz")
    assert KeyTarget().decode(torch.zeros(24)) == Key(0, "major")


def test_a_label_outside_the_list_is_refused():
    with pytest.raises(ValueError, match="label 'polka' is not one of blues, jazz, rock"):
        ClassTarget(CLASSES).encode(Label("polka"))


# Tags and values ---------------------------------------------------------------------------------------


def test_tags_are_encoded_in_order_and_those_not_mentioned_are_0():
    encoded = TAGS.encode(Tags({"piano": 1.0, "calm": 0.0}))
    assert encoded.dtype == torch.float32 and encoded.tolist() == [0.0, 0.0, 1.0]
    assert TAGS.encode(Tags()).tolist() == [0.0, 0.0, 0.0] and TAGS.num_outputs == 3 and not TAGS.per_frame
    with pytest.raises(ValueError, match="tag 'organ' is not one of calm, loud, piano"):
        TAGS.encode(Tags({"calm": 1.0, "organ": 1.0}))


def test_decoded_tags_have_every_tag_with_its_probability():
    decoded = TAGS.decode(torch.tensor([0.0, math.log(3.0), -1000.0]))
    assert decoded.scores == pytest.approx({"calm": 0.5, "loud": 0.75, "piano": 0.0})
    for bits in range(8):
        tags = Tags({t: float(bits >> i & 1) for i, t in enumerate(TAGS.tags)})
        assert TAGS.decode(TAGS.encode(tags) * 2000 - 1000) == tags


def test_values_are_standardised_and_decode_undoes_it():
    fitted = ValuesTarget.fit(
        ("year", "valence"), [Values({"valence": v, "year": y}) for v, y in ((0, 1980), (1, 2000))]
    )
    assert fitted == ValuesTarget(("year", "valence"), (1990.0, 0.5), (10.0, 0.5))
    assert fitted.encode(Values({"valence": 1.0, "year": 1985.0})).tolist() == [-0.5, 1.0]
    annotation = Values({"valence": 0.625, "year": 1987.5})
    encoded = VALUES.encode(annotation)
    assert encoded.dtype == torch.float32 and VALUES.decode(encoded) == annotation
    assert VALUES.num_outputs == 2 and not VALUES.per_frame
    with pytest.raises(ValueError, match="values of valence, year are asked for, got valence"):
        VALUES.encode(Values({"valence": 0.0}))


def test_values_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match=r"'year' is 0\.1 in all 3 training recordings"):
        ValuesTarget.fit(("year",), [Values({"year": 0.1})] * 3)  # whose deviation is not 0 in floating point
    with pytest.raises(ValueError, match="values of year are asked for, got tempo"):
        ValuesTarget.fit(("year",), [Values({"tempo": 1.0})])
    with pytest.raises(ValueError, match="there are none"):
        ValuesTarget.fit(("year",), [])


@pytest.mark.parametrize(
    ("target", "torch_loss"),
    [(TAGS, F.binary_cross_entropy_with_logits), (VALUES, F.mse_loss)],
    ids=["tags", "values"],
)
def test_loss_of_tags_and_values_is_torch_s_over_valid_clips_and_outputs(target, torch_loss):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, target.num_outputs, generator=generator, requires_grad=True)
    targets = torch.rand(7, target.num_outputs, generator=generator).round()
    loss = target.loss(logits, targets)
    assert int(loss.count) == 7 * target.num_outputs
    torch.testing.assert_close(loss.mean, torch_loss(logits, targets))
    masked = target.loss(logits, targets, VALID)
    assert int(masked.count) == 4 * target.num_outputs
    torch.testing.assert_close(masked.mean, torch_loss(logits[VALID], targets[VALID]))
    masked.sum.backward()
    assert (logits.grad[~VALID] == 0).all() and (logits.grad[VALID] != 0).all()
    low = target.loss(logits.detach().bfloat16(), targets)
    assert low.mean.item() == pytest.approx(loss.mean.item(), rel=0.02)
    with pytest.raises(ValueError, match=r"\(7, |\[7, "):
        target.loss(logits, targets[:, :1])


# Pitch, emotion and tempo ------------------------------------------------------------------------------


def test_emotion_is_learned_in_deviations_of_the_development_songs():
    """Fixtures, section 9: 2, 4, 6, 8, 5 have the mean 5 and the deviation 2, so 2 is -1.5."""
    target = EmotionTarget((5.0, 4.0), (2.0, 0.5))
    encoded = target.encode(Emotion(2.0, 4.25))
    assert encoded.dtype == torch.float32 and encoded.tolist() == [-1.5, 0.5]
    assert target.decode(encoded) == Emotion(2.0, 4.25) and target.num_outputs == 2 and not target.per_frame
    assert target.scores(torch.tensor([1.0, -2.0])) == {"arousal": 7.0, "valence": 3.0}
    loss = target.loss(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    assert (float(loss.sum), int(loss.count)) == (7.0, 4)
    masked = target.loss(torch.ones(2, 2), torch.zeros(2, 2), torch.tensor([True, False]))
    assert (float(masked.sum), int(masked.count)) == (2.0, 2)


@pytest.mark.parametrize(
    ("means", "deviations", "message"),
    [
        ((0.0, 0.0), (1.0, 0.0), "deviations must be finite and positive"),
        ((0.0, math.nan), (1.0, 1.0), "means must be finite"),
        ((0.0,), (1.0, 1.0), "2 names, 1 means and 2 deviations"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "2 names, 3 means"),
    ],
)
def test_emotion_without_a_scale_is_refused(means, deviations, message):
    with pytest.raises(ValueError, match=message):
        EmotionTarget(means, deviations)


@pytest.mark.parametrize(
    ("bpm", "bins"),
    [
        (126.39, {124: 0.5, 125: 0.5, 126: 1.0, 127: 0.5, 128: 0.5}),
        (123.0, {121: 0.5, 122: 0.5, 123: 1.0, 124: 0.5, 125: 0.5}),  # 126 BPM at 0.975 of the speed
        (0.4, {0: 1.0, 1: 0.5, 2: 0.5}),
        (1.2, {0: 0.5, 1: 1.0, 2: 0.5, 3: 0.5}),
        (299.0, {297: 0.5, 298: 0.5, 299: 1.0}),
        (480.0, {297: 0.5, 298: 0.5, 299: 1.0}),
    ],
)
def test_a_tempo_is_its_bin_and_half_of_two_to_either_side(bpm, bins):
    encoded = TempoTarget().encode(Tempo(bpm))
    assert encoded.dtype == torch.float32 and encoded.shape == (300,)
    assert {i: float(v) for i, v in enumerate(encoded) if v} == bins


@pytest.mark.parametrize("bpm", [12.0, 61.0, 126.0, 127.0, 250.0, 297.0])
def test_a_learned_tempo_is_decoded_to_a_fraction_of_a_beat_per_minute(bpm):
    target = TempoTarget()
    decoded = target.decode((target.encode(Tempo(bpm)) + 1e-9).log())
    assert decoded.bpm == pytest.approx(bpm, abs=0.5)
    scores = target.scores(torch.zeros(300).index_fill(0, torch.tensor([126]), 50.0))
    assert len(scores) == 300 and scores["126 BPM"] == pytest.approx(1.0) and "300 BPM" not in scores


@pytest.mark.parametrize("objective", ["cross_entropy", "bce"])
def test_loss_of_tempo_is_torch_s_over_the_valid_clips(objective):
    target = TempoTarget(objective)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(7, 300, generator=generator, requires_grad=True)
    targets = torch.stack([target.encode(Tempo(float(60 + 20 * i))) for i in range(7)])
    loss = target.loss(logits, targets, VALID)
    if objective == "bce":
        expected = F.binary_cross_entropy_with_logits(logits[VALID], targets[VALID], reduction="sum")
        assert int(loss.count) == 4 * 300
    else:
        bins = targets[VALID] / targets[VALID].sum(-1, keepdim=True)
        expected = F.cross_entropy(logits[VALID], bins, reduction="sum")
        assert int(loss.count) == 4
    torch.testing.assert_close(loss.sum, expected)
    loss.sum.backward()
    assert (logits.grad[~VALID] == 0).all() and (logits.grad[VALID] != 0).any(1).all()
    assert target_from_json(target_to_json(target)) == target
    with pytest.raises(ValueError, match=r"\(7, 300\) and targets \(7, 1\) differ in shape"):
        target.loss(logits, targets[:, :1])


def test_an_objective_that_tempo_does_not_have():
    with pytest.raises(ValueError, match="objective is 'cross_entropy' or 'bce', got 'mse'"):
        TempoTarget("mse")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_clip_targets_say_that_they_answer_per_clip(target):
    assert clip_target(target) is target and frame_target(target) is None


# Windows of a track ------------------------------------------------------------------------------------


def some_windows(target, num_windows, seed=0, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_windows, target.num_outputs, generator=generator)


@pytest.mark.parametrize("target", ALL, ids=KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 40.0, 1e4])
def test_one_window_or_equal_ones_say_what_the_window_says(target, scale):
    for seed in range(20):
        (row,) = some_windows(target, 1, seed, scale)
        for num_windows in (1, 2, 3, 7):
            combined = target.combine(row.expand(num_windows, -1))
            assert combined.dtype == torch.float64 and torch.isfinite(combined).all()
            assert agree(target.decode(row.double()), target.decode(combined))


@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_probabilities_and_values_of_windows_are_averaged(target):
    for seed in range(20):
        windows = some_windows(target, 5, seed)
        combined, double = target.combine(windows), windows.double()
        if isinstance(target, ClassTarget | KeyTarget | PitchTarget | TempoTarget):
            torch.testing.assert_close(combined.exp(), double.softmax(-1).mean(0), rtol=1e-12, atol=0)
            assert float(combined.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        elif isinstance(target, TagsTarget):
            torch.testing.assert_close(combined.sigmoid(), double.sigmoid().mean(0), rtol=1e-12, atol=0)
        else:
            torch.testing.assert_close(combined, double.mean(0), rtol=1e-12, atol=0)
        of_windows = [target.scores(row) for row in double]
        for name, score in target.scores(combined).items():
            assert score == pytest.approx(sum(s[name] for s in of_windows) / 5, rel=1e-9)


def test_the_average_is_of_probabilities_and_not_of_logits():
    sure, unsure = [20.0, 0.0, 0.0], [0.0, 6.0, 0.0]
    windows = torch.tensor([sure, unsure, unsure])
    assert windows.mean(0).argmax() == 0
    assert ClassTarget(CLASSES).decode(ClassTarget(CLASSES).combine(windows)) == Label("jazz")


def test_windows_that_are_sure_of_tags_combine_to_finite_logits():
    combined = TAGS.combine(torch.tensor([[1e4, -1e4, 300.0], [1e4, -1e4, -300.0]]))
    assert combined.tolist() == pytest.approx([1e4, -1e4, 0.0], abs=1e-9)
    assert TAGS.decode(combined).scores == pytest.approx({"calm": 1.0, "loud": 0.0, "piano": 0.5})


@pytest.mark.parametrize("rule", AGGREGATIONS)
@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_rules_combine_windows_or_are_refused_where_they_have_no_meaning(target, rule):
    """Classes by any rule; tags by all but a vote; numbers by their mean."""
    windows = some_windows(target, 5)
    of_numbers = isinstance(target, ValuesTarget | EmotionTarget)
    if (isinstance(target, TagsTarget) and rule == "majority") or (
        of_numbers and rule in ("majority", "max")
    ):
        with pytest.raises(ValueError, match=r"a vote of windows does not give|is a rule for classes"):
            target.combine(windows, rule)
        return
    combined = target.combine(windows, rule)
    assert combined.dtype == torch.float64 and combined.shape == (target.num_outputs,)
    if rule == "logits_mean":
        torch.testing.assert_close(combined, windows.double().mean(0))
    elif rule == "max":
        torch.testing.assert_close(combined, windows.double().amax(0))
    elif not isinstance(target, TagsTarget) and not of_numbers:
        torch.testing.assert_close(combined, aggregate(windows, rule))
    assert type(target.decode(combined)) is type(target.decode(windows[0]))


@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_rules_do_not_depend_on_the_order_of_windows(target):
    windows = some_windows(target, 6)
    for rule in ("logits_mean", "probability_mean"):
        torch.testing.assert_close(target.combine(windows, rule), target.combine(windows.flip(0), rule))


def test_the_rules_differ_as_published():
    """Fixtures, section 18."""
    windows = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 10.0, 0]])
    found = {
        rule: ClassTarget(CLASSES).decode(ClassTarget(CLASSES).combine(windows, rule))
        for rule in AGGREGATIONS
    }
    blues, jazz = Label("blues"), Label("jazz")
    assert found == {"majority": blues, "max": jazz, "logits_mean": jazz, "probability_mean": blues}
    with pytest.raises(
        ValueError, match="an aggregation is one of majority, max, logits_mean, probability_mean"
    ):
        ClassTarget(CLASSES).combine(windows, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_windows_without_an_answer_are_refused(target):
    good = some_windows(target, 2)
    for bad in (good[:0], good[0], good[:, 1:], good[None]):
        with pytest.raises(ValueError, match=f"needs the {target.num_outputs} outputs of one window or more"):
            target.combine(bad)
    for value in (math.nan, math.inf, -math.inf):
        spoilt = good.clone()
        spoilt[1, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            target.combine(spoilt)


# As JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ALL, ids=KINDS)
def test_targets_survive_json(target):
    record = target_to_json(target)
    assert record["kind"] == KINDS[ALL.index(target)]
    assert target_from_json(json.loads(json.dumps(record))) == target


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"a target is a JSON object with a kind, got \[\]"),
        ({}, "'kind' of a target is one of class, key, tags, values, .* got None"),
        ({"kind": "notes"}, "'kind' of a target is one of .* got 'notes'"),
        ({"kind": ["class"]}, "'kind' of a target is one of"),
        ({"kind": "class"}, "a target of kind 'class' lacks 'classes'"),
        ({"kind": "key", "classes": ["a"]}, "a target of kind 'key' has unknown 'classes'"),
        ({"kind": "class", "classes": ["a"], "b": 1, "a": 1}, "has unknown 'a', 'b'"),
        ({"kind": "class", "classes": "ab"}, "'classes' of a target is a list of texts, got 'ab'"),
        ({"kind": "class", "classes": ["a", 1]}, "'classes' of a target is a list of texts"),
        ({"kind": "class", "classes": []}, "classes are one or more different names, got none"),
        ({"kind": "tags", "tags": ["a", "b", "a"]}, "tags are one or more different names, got a, b, a"),
        ({"kind": "values", "names": ["a"], "means": [0.0]}, "lacks 'deviations'"),
        ({"kind": "values", "names": ["a"], "means": ["0"], "deviations": [1]}, "'means' .* list of numbers"),
        (
            {"kind": "values", "names": ["a"], "means": [True], "deviations": [1]},
            "'means' .* list of numbers",
        ),
        ({"kind": "values", "names": ["a"], "means": [10**400], "deviations": [1]}, "'means' .* too large"),
        (
            {"kind": "values", "names": ["a"], "means": [0], "deviations": [0]},
            "deviations must be finite and pos",
        ),
        ({"kind": "values", "names": ["a"], "means": [math.nan], "deviations": [1]}, "means must be finite"),
        (
            {"kind": "values", "names": ["a"], "means": [0], "deviations": [1, 2]},
            "1 names, 1 means and 2 dev",
        ),
        (
            {"kind": "values", "names": ["a", "a"], "means": [0, 0], "deviations": [1, 2]},
            "names are one or more",
        ),
    ],
)
def test_records_that_are_no_target_are_refused_by_name(record, message):
    with pytest.raises(ValueError, match=message):
        target_from_json(record)


def test_whole_numbers_are_numbers_and_other_targets_are_refused():
    record = {"kind": "values", "names": ["a"], "means": [0], "deviations": [2]}
    assert target_from_json(record) == ValuesTarget(("a",), (0.0,), (2.0,))
    with pytest.raises(ValueError, match="a Emotion cannot be written as JSON"):
        target_to_json(Emotion(0.0, 0.0))
