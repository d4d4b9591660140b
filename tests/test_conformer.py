"""The conformer block: where sockets lie, how positions are rotated, what is derived."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.backbones.conformer import ConformerConfig, ConformerEncoder, Rotary
from audiation.backbones.musicfm import MSD, fresh, from_published

GOLDEN = Path(__file__).parent / "golden"
CONFIG = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "musicfm_tiny.safetensors")


@pytest.fixture
def encoder() -> ConformerEncoder:
    return fresh(MSD, CONFIG, conv_channels=1).encoder.eval()


@pytest.fixture
def x_BTD() -> Tensor:
    return torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(2))


def run(encoder: ConformerEncoder, x: Tensor, valid: Tensor | None = None) -> Tensor:
    return list(encoder.layers(x, valid))[-1]


@torch.inference_mode()
def test_sockets_lie_after_each_residual_sum(golden: dict[str, Tensor]) -> None:
    tensors = {name: tensor for name, tensor in golden.items() if name.startswith("model.")}
    block = from_published(tensors, {}).eval().encoder.blocks[0]
    published = {
        "after_ffn1": "after_ffn1",
        "after_attention": "after_attn",
        "after_conv": "after_conv",
        "after_ffn2": "after_ffn2",
    }
    assert list(block.sockets) == list(published)
    seen: dict[str, Tensor] = {}
    for name, socket in block.sockets.items():
        assert list(socket.parameters()) == []
        socket.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    out = block(golden["io.hidden.0"])
    for ours, theirs in published.items():
        assert float((seen[ours] - golden[f"io.layer0.{theirs}"]).abs().max()) < 2e-5
    assert torch.equal(out, block.final_norm(seen["after_ffn2"]))


def test_roles_name_every_linear_map_and_norm(encoder: ConformerEncoder) -> None:
    for block in encoder.blocks:
        roles = block.linears()
        assert {role: [tuple(m.weight.shape) for m in maps] for role, maps in roles.items()} == {
            **{role: [(16, 16)] for role in ("query", "key", "value", "output")},
            "ffn_up": [(24, 16)] * 2,
            "ffn_down": [(16, 24)] * 2,
            "pointwise": [(32, 16), (16, 16)],
        }
        named = {id(m) for modules in roles.values() for m in modules}
        assert named == {id(m) for m in block.modules() if isinstance(m, nn.Linear)}
        norms = (nn.LayerNorm, nn.BatchNorm1d)
        assert {id(m) for group in block.norms().values() for m in group} == {
            id(m) for m in block.modules() if isinstance(m, norms)
        }
        assert [type(m) for m in block.norms()["conv_batch"]] == [nn.BatchNorm1d]
        assert block.sockets_after("ffn") == ["after_ffn1", "after_ffn2"]


def test_positions_are_the_published_ones(golden: dict[str, Tensor]) -> None:
    cos, signed_sin = Rotary(head_dim=16).tables(75, torch.float32, torch.device("cpu"))
    assert float((cos.flatten(1).repeat(1, 2) - golden["io.rotary_cos"]).abs().max()) < 1e-6
    sin = golden["io.rotary_sin"].unflatten(1, (2, 8)) * torch.tensor([-1.0, 1.0]).view(1, 2, 1)
    assert float((signed_sin[:, 0] - sin).abs().max()) < 1e-6


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rotary = Rotary(head_dim=4)
    vector = torch.randn(8, generator=torch.Generator().manual_seed(3))
    turned = rotary(vector.expand(1, 9, 8))[0].unflatten(-1, (2, 4))  # (T, heads, 4)
    assert torch.allclose(turned.norm(dim=-1), vector.view(2, 4).norm(dim=-1).expand(9, 2))
    assert torch.allclose(turned[0].flatten(), vector)
    products = torch.einsum("thd,uhd->hut", turned, turned)
    assert torch.allclose(products[:, 0, 3], products[:, 5, 8], atol=1e-5)
    assert float((products[:, 0, 3] - products[:, 0, 4]).abs().max()) > 1e-2


def test_rotary_tables_follow_length_and_type_and_are_not_stored(
    encoder: ConformerEncoder, x_BTD: Tensor
) -> None:
    with torch.inference_mode():
        full = run(encoder, x_BTD)
        assert run(encoder, x_BTD[:, :7]).shape == (2, 7, 16)
        assert torch.equal(run(encoder, x_BTD), full)
    assert not any("rotary" in name for name in encoder.state_dict())
    doubled = run(encoder.double(), x_BTD.double())
    assert doubled.dtype == torch.float64
    assert torch.allclose(doubled.float(), full, atol=1e-5)
    run(encoder.float(), x_BTD).sum().backward()  # tables first made in inference mode
    assert encoder.blocks[0].attention.query.weight.grad is not None
    assert encoder.blocks[0].rotary is encoder.blocks[1].rotary


@torch.inference_mode()
def test_padding_changes_no_valid_frame(encoder: ConformerEncoder, x_BTD: Tensor) -> None:
    valid = torch.arange(11) < torch.tensor([[11], [6]])
    padded = run(encoder, x_BTD, valid)
    assert torch.allclose(padded[1, :6], run(encoder, x_BTD[1:, :6])[0], atol=1e-5)
    assert not torch.allclose(padded[1, :6], run(encoder, x_BTD)[1, :6], atol=1e-3)


def test_dropout_and_batch_statistics_act_in_training_only(encoder: ConformerEncoder, x_BTD: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(run(encoder, x_BTD), run(encoder, x_BTD))
        encoder.train()
        assert not torch.equal(run(encoder, x_BTD), run(encoder, x_BTD))
    assert int(encoder.blocks[0].conv.depthwise.norm.num_batches_tracked) == 2


def test_folded_depthwise_convolution_equals_both_steps(encoder: ConformerEncoder, x_BTD: Tensor) -> None:
    depthwise = encoder.blocks[0].conv.depthwise
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in (depthwise.norm.weight, depthwise.norm.bias, depthwise.norm.running_mean):
            tensor.uniform_(-1, 1, generator=generator)
        depthwise.norm.running_var.uniform_(0.5, 2, generator=generator)
    both_steps = depthwise(x_BTD)
    assert both_steps.requires_grad
    with torch.inference_mode():
        folded = depthwise(x_BTD)
    assert float((folded - both_steps.detach()).abs().max()) < 1e-6


def test_a_trained_batch_norm_bias_gets_its_gradient_in_eval_mode(
    encoder: ConformerEncoder, x_BTD: Tensor
) -> None:
    encoder.requires_grad_(False)
    bias = encoder.blocks[0].norms()["conv_batch"][0].bias.requires_grad_(True)
    run(encoder, x_BTD).square().sum().backward()
    assert float(bias.grad.abs().min()) > 0


def test_odd_head_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="even head size, got 3"):
        ConformerEncoder(ConformerConfig(dim=6, num_heads=2, ffn_dim=8, num_layers=1))
