"""Output spaces: decode undoes encode, and the loss is torch's summed over the valid clips."""

import pytest
import torch
import torch.nn.functional as F

from audiation.annotations import Key, Label
from audiation.targets import ClassTarget, KeyTarget

CLASSES = ("blues", "jazz", "rock")
SPACES = [
    (ClassTarget(CLASSES), [Label(c) for c in CLASSES]),
    (KeyTarget(), [Key.from_index(i) for i in range(24)]),
]


@pytest.mark.parametrize(("target", "annotations"), SPACES, ids=["class", "key"])
def test_decode_undoes_encode_for_every_class(target, annotations):
    encoded = torch.stack([target.encode(a) for a in annotations])
    assert target.num_outputs == len(annotations) and not target.per_frame
    assert encoded.dtype == torch.int64 and encoded.tolist() == list(range(target.num_outputs))
    logits = F.one_hot(encoded, target.num_outputs).float() * 9 - 4
    assert [target.decode(row) for row in logits] == annotations


@pytest.mark.parametrize(("target", "annotations"), SPACES, ids=["class", "key"])
def test_loss_is_the_summed_cross_entropy_of_the_valid_clips_and_their_number(target, annotations):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, target.num_outputs, generator=generator, requires_grad=True)
    targets = torch.randint(target.num_outputs, (7,), generator=generator)
    loss = target.loss(logits, targets)
    torch.testing.assert_close(loss.sum, F.cross_entropy(logits, targets, reduction="sum"))
    assert int(loss.count) == 7
    valid = torch.tensor([True, False, True, True, False, False, True])
    masked = target.loss(logits, targets, valid)
    torch.testing.assert_close(masked.sum, F.cross_entropy(logits[valid], targets[valid], reduction="sum"))
    assert int(masked.count) == 4
    masked.sum.backward()
    assert (logits.grad[~valid] == 0).all() and (logits.grad[valid] != 0).all()


def test_a_batch_without_valid_clips_costs_nothing():
    loss = KeyTarget().loss(torch.zeros(2, 24), torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))
    assert float(loss.sum) == 0.0 and int(loss.count) == 0


def test_a_tie_goes_to_the_first_class():
    assert ClassTarget(CLASSES).decode(torch.tensor([0.0, 1.0, 1.0])) == Label("jazz")
    assert KeyTarget().decode(torch.zeros(24)) == Key(0, "major")


def test_a_label_outside_the_list_is_refused():
    with pytest.raises(ValueError, match="label 'polka' is not one of blues, jazz, rock"):
        ClassTarget(CLASSES).encode(Label("polka"))
