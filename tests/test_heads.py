import pytest
import torch

from audiation.heads import ProbeHead


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_parameter_counts_of_both_probes():
    assert sum(p.numel() for p in ProbeHead(72, 24).parameters()) == 72 * 24 + 24
    mlp = ProbeHead(72, 24, hidden_size=512)
    assert sum(p.numel() for p in mlp.parameters()) == 72 * 512 + 512 + 512 * 24 + 24


def test_initial_weights_are_those_of_nn_linear_and_of_the_generator():
    before = torch.get_rng_state()
    first = ProbeHead(100, 10, 64, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(
        first.parameters(), ProbeHead(100, 10, 64, generator=generator(1)).parameters(), strict=True
    ):
        assert torch.equal(a, b)
    for weight in (first.hidden.weight, first.hidden.bias):
        # nn.Linear: uniform in +- 1 / sqrt(100)
        assert 0.09 < weight.abs().max() <= 0.1
    assert first.output.weight.abs().max() <= 64**-0.5


def test_dropout_keeps_the_mean_in_training_and_is_off_in_eval():
    head = ProbeHead(1000, 1000, dropout=0.25)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(1000))
        head.output.bias.zero_()
    ones = torch.ones(100, 1000)
    assert torch.equal(head.eval()(ones), ones)
    dropped = head.train()(ones, generator())
    assert torch.equal(dropped, head(ones, generator()))  # the mask comes from the generator alone
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_the_mlp_drops_its_input_and_its_hidden_layer():
    head = ProbeHead(64, 64, hidden_size=64, dropout=0.5)
    with torch.no_grad():
        for layer in (head.hidden, head.output):
            layer.weight.copy_(torch.eye(64))
            layer.bias.zero_()
    ones = torch.ones(500, 64)
    kept = (head.train()(ones, generator()) > 0).float().mean().item()
    assert kept == pytest.approx(0.25, abs=0.02)
    head.input_dropout = False
    assert (head(ones, generator()) > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (head(-ones, generator()) == 0).all()  # ReLU


def test_what_is_refused():
    with pytest.raises(ValueError, match="dropout is a probability"):
        ProbeHead(4, 2, dropout=1.0)
    with pytest.raises(ValueError, match="sizes must be positive"):
        ProbeHead(4, 2, hidden_size=0)
