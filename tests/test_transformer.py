"""Blocks against the formulas written out, positions against a direct convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audiation.backbones.attention import Attention, blockwise_attention
from audiation.backbones.transformer import PositionalConv, TransformerBlock, TransformerEncoder


def fresh(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, norms and gains included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, 0.3, generator=generator)
    return module.eval()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    heads = []
    q, k, v = attention.query(x), attention.key(x), attention.value(x)
    for part in range(attention.num_heads):
        width = x.shape[-1] // attention.num_heads
        one = slice(part * width, (part + 1) * width)
        weight = (q[..., one] @ k[..., one].transpose(1, 2) / width**0.5).softmax(-1)
        heads.append(weight @ v[..., one])
    return attention.output(torch.cat(heads, -1))


def plain_ffn(block: TransformerBlock, x: torch.Tensor) -> torch.Tensor:
    return block.ffn_down(F.gelu(block.ffn_up(x)))


@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_post_norm_block_is_the_formula(scale):
    block, x = fresh(TransformerBlock(16, 4, 32, skip_scale=scale)), draw(2, 11, 16)
    a = block.attention_norm(scale * x + plain_attention(block.attention, x))
    expected = block.ffn_norm(scale * a + plain_ffn(block, a))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_pre_norm_block_is_the_formula():
    block, x = fresh(TransformerBlock(16, 4, 32, pre_norm=True)), draw(2, 11, 16)
    a = x + plain_attention(block.attention, block.attention_norm(x))
    expected = a + plain_ffn(block, block.ffn_norm(a))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_deepnorm_is_for_post_norm_only():
    with pytest.raises(ValueError, match=r"skip_scale=1\.5"):
        TransformerBlock(16, 4, 32, pre_norm=True, skip_scale=1.5)


class Keep(nn.Module):
    """A socket that keeps what passes."""

    def forward(self, x):
        self.seen = x
        return x


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sockets_see_the_residual_sums(pre_norm):
    block, x = fresh(TransformerBlock(16, 4, 32, pre_norm=pre_norm)), draw(2, 11, 16)
    block.sockets["after_attention"], block.sockets["after_ffn"] = Keep(), Keep()
    out = block(x)
    first, second = block.sockets["after_attention"].seen, block.sockets["after_ffn"].seen
    normed = block.attention_norm(x) if pre_norm else x
    torch.testing.assert_close(first, x + plain_attention(block.attention, normed), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, second if pre_norm else block.ffn_norm(second), rtol=0, atol=0)


def test_roles_cover_every_parameter_of_a_block_once():
    block = TransformerBlock(16, 4, 32)
    assert list(block.linears()) == ["query", "key", "value", "output", "ffn_up", "ffn_down"]
    named = [m for roles in (block.linears(), block.norms()) for group in roles.values() for m in group]
    counted = sum(p.numel() for m in named for p in m.parameters())
    assert counted == sum(p.numel() for p in block.parameters())
    assert not block.sockets.state_dict()


def test_encoder_norm_is_in_front_or_behind():
    for pre_norm in (False, True):
        encoder = TransformerEncoder(
            32,
            3,
            PositionalConv(32, 8, 4),
            lambda p=pre_norm: TransformerBlock(32, 4, 64, pre_norm=p),
            pre_norm=pre_norm,
        )
        fresh(encoder)
        x = draw(1, 9, 32)
        layers = list(encoder.layers(x))
        start = x + encoder.positions(x)
        torch.testing.assert_close(layers[0], start if pre_norm else encoder.front_norm(start))
        raw = encoder.blocks[2](layers[2])
        torch.testing.assert_close(layers[3], encoder.final_norm(raw) if pre_norm else raw)
        assert len(list(encoder.layers(x, last=1))) == 2


def test_padding_of_keys_changes_nothing_else():
    block, x = fresh(TransformerBlock(16, 4, 32)), draw(2, 11, 16)
    valid = torch.arange(11) < torch.tensor([[11], [6]])
    changed = torch.where(valid[..., None], x, draw(2, 11, 16, seed=5))
    torch.testing.assert_close(block(x, valid)[valid], block(changed, valid)[valid])
    torch.testing.assert_close(block(x, valid)[1:, :6], block(x[1:, :6]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [40, 47])  # a prefix makes them more than the queries
def test_blockwise_attention_equals_torchs(masked, keys):
    q, k, v = draw(2, 4, 40, 8), draw(2, 4, keys, 8, seed=2), draw(2, 4, keys, 8, seed=3)
    mask = (torch.arange(keys) < torch.tensor([[keys], [21]]))[:, None, None] if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(blockwise_attention(q, k, v, mask, 16), expected, rtol=1e-5, atol=1e-6)
    low = blockwise_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, 16)
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).norm() / expected.norm() < 0.01


def direct_positions(conv: PositionalConv, x: torch.Tensor) -> torch.Tensor:
    v = conv.direction
    weight = torch.stack(
        [conv.gain[0, 0, k] * v[..., k] / v[..., k].norm() for k in range(v.shape[-1])], dim=-1
    )
    kernel = conv.kernel_size
    out = F.conv1d(x.transpose(1, 2), weight, conv.bias, padding=kernel // 2, groups=conv.num_groups)
    return F.gelu(out[..., : x.shape[1]]).transpose(1, 2)


@pytest.mark.parametrize(("kernel", "frames"), [(8, 1), (8, 9), (8, 100), (7, 30), (128, 130), (128, 374)])
def test_positions_equal_a_direct_convolution(kernel, frames):
    conv, x = fresh(PositionalConv(32, kernel, 4)), draw(2, frames, 32)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), direct_positions(conv, x), rtol=1e-5, atol=1e-5)


def test_positions_have_the_gradients_of_a_direct_convolution():
    conv, x = fresh(PositionalConv(32, 8, 4)), draw(2, 30, 32).requires_grad_()
    inputs = [x, *conv.parameters()]
    cotangent = draw(2, 30, 32, seed=4)
    ours = torch.autograd.grad(conv(x), inputs, cotangent)
    theirs = torch.autograd.grad(direct_positions(conv, x), inputs, cotangent)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_derived_spectrum_follows_its_weights_and_is_never_stored():
    conv, x = fresh(PositionalConv(32, 8, 4)), draw(1, 30, 32)
    with torch.inference_mode():
        conv(x)
    assert conv.derived() is None  # with gradients to the weights it must not stand in
    with torch.no_grad():
        assert conv.derived() is not None
        assert set(conv.state_dict()) == {"gain", "direction", "bias"}
        conv.gain.mul_(2)
        torch.testing.assert_close(conv(x), direct_positions(conv, x), rtol=1e-5, atol=1e-5)
        conv.load_state_dict(fresh(PositionalConv(32, 8, 4), seed=9).state_dict())
        torch.testing.assert_close(conv(x), direct_positions(conv, x), rtol=1e-5, atol=1e-5)
