"""What every registered backbone promises; a new file is tested the day it appears."""

import numpy as np
import pytest
import torch

from audiation.backbones import BACKBONES, Backbone

NUM_LAYERS = 2  # of models that have blocks: their first ones, at full width
CLIP_SECONDS = 0.5


def small(name: str, seed: int = 0) -> Backbone:
    spec = BACKBONES[name]
    if spec.from_published is None:
        built = spec.build()
    else:
        num_layers = NUM_LAYERS if spec.can_be_cut else None
        built = spec.build(num_layers=num_layers, generator=torch.Generator().manual_seed(seed))
    built.name = name  # as `load_backbone` does
    return built.eval()


TWINS = (
    "mert-v0",
    "mert-v0-public",
    "musicfm-fma",
    "muq-large-msd",
    "musichubert",
    "hubert-base-ls960",
    "data2vec-audio-base",
)  # of the same make as another one, except for weights
LARGE = ("jukebox-5b",)  # a minute even with two blocks


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in (*TWINS, *LARGE) else ()) for n in BACKBONES],
)
def backbone(request) -> Backbone:
    return small(request.param)


@pytest.fixture(scope="module")
def clips(backbone) -> torch.Tensor:
    """Two noisy tones, `(2, S)`."""
    samples = max(
        round(CLIP_SECONDS * backbone.sample_rate_hz), backbone.min_samples + (backbone.hop_samples or 0)
    )
    generator = np.random.default_rng(0)
    seconds = np.arange(samples) / backbone.sample_rate_hz
    tones = [np.sin(2 * np.pi * hz * seconds) + 0.1 * generator.normal(size=samples) for hz in (220, 523)]
    return torch.from_numpy(0.3 * np.stack(tones)).float()


@pytest.fixture(scope="module")
def states(backbone, clips):
    with torch.inference_mode():
        return backbone(clips)


def test_layers_have_the_declared_shape(backbone, clips, states):
    frames = backbone.num_frames(clips.shape[1])
    assert sorted(states.layers) == list(range(backbone.num_layers + 1))
    for x in states.layers.values():
        assert tuple(x.shape) == (2, frames, backbone.dim)
        assert x.dtype == torch.float32
        assert torch.isfinite(x).all()
        assert x.std() > 0
    assert tuple(states.valid.shape) == (2, frames)
    assert states.valid.all()
    if backbone.encoder is not None:
        assert backbone.num_layers == len(backbone.encoder.blocks) == NUM_LAYERS


def test_frame_times(backbone, clips, states):
    assert states.frame_rate_hz == backbone.frame_rate_hz
    if backbone.frame_rate_hz is None:
        assert backbone.hop_samples is None and backbone.num_frames(clips.shape[1]) == 1
        return
    times = states.times_seconds
    assert times[0] == states.first_frame_seconds
    hop_seconds = backbone.hop_samples / backbone.sample_rate_hz
    torch.testing.assert_close(times.diff(), torch.full_like(times[1:], hop_seconds), rtol=1e-9, atol=0)
    assert 0 <= times[0] and times[-1] <= clips.shape[1] / backbone.sample_rate_hz + hop_seconds
    longer = clips.shape[1] + 10 * backbone.hop_samples
    assert backbone.num_frames(longer) == backbone.num_frames(clips.shape[1]) + 10


def test_early_exit_equals_the_full_run_bit_for_bit(backbone, clips, states):
    for last in range(backbone.num_layers):
        with torch.inference_mode():
            early = backbone(clips, last_layer=last)
        assert sorted(early.layers) == list(range(last + 1))
        assert all(torch.equal(x, states.layers[i]) for i, x in early.layers.items())
    with torch.inference_mode():
        one = backbone(clips, layers=[0])
    assert sorted(one.layers) == [0] and torch.equal(one.layers[0], states.layers[0])


def test_reduced_layers_are_the_mean_of_the_frames(backbone, clips, states):
    with torch.inference_mode():
        reduced = backbone(clips, reduce="mean")
    for i, x in states.layers.items():
        torch.testing.assert_close(reduced.layers[i], x.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert tuple(reduced.valid.shape) == (2, 1)
    assert reduced.frame_rate_hz is None


def test_a_clip_does_not_depend_on_its_batch(backbone, clips, states):
    with torch.inference_mode():
        alone = backbone(clips[1:])
    for i, x in states.layers.items():
        scale = x.abs().max().item()
        torch.testing.assert_close(alone.layers[i][0], x[1], rtol=1e-4, atol=1e-4 * scale)


def test_padding_is_refused_or_harmless(backbone, clips, states):
    shorter = max(clips.shape[1] - 3 * (backbone.hop_samples or 1000), backbone.min_samples)
    lengths = torch.tensor([clips.shape[1], shorter])
    if not backbone.accepts_padding and shorter < clips.shape[1]:
        with pytest.raises(ValueError, match="cannot be padded"):
            backbone(clips, lengths)
        return
    with torch.inference_mode():
        padded, alone = backbone(clips, lengths), backbone(clips[1:, :shorter])
    assert torch.equal(padded.valid[0], states.valid[0])
    frames = backbone.num_frames(shorter)
    assert padded.valid[1].sum() == frames
    for i, x in padded.layers.items():
        torch.testing.assert_close(x[0], states.layers[i][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x[1, :frames], alone.layers[i][0], rtol=1e-4, atol=1e-4)


def test_wrong_input_is_refused(backbone, clips):
    for wrong in (clips[0], clips.short(), clips[:0]):
        with pytest.raises(ValueError, match=backbone.name):
            backbone(wrong)
    with pytest.raises(ValueError, match=f"at least {backbone.min_samples} samples"):
        backbone(clips[:, : backbone.min_samples - 1])
    with pytest.raises(ValueError, match=f"has layers 0..{backbone.num_layers}"):
        backbone(clips, layers=[backbone.num_layers + 1])
    if backbone.num_layers > 0:
        with pytest.raises(ValueError, match="stops before it"):
            backbone(clips, layers=[backbone.num_layers], last_layer=backbone.num_layers - 1)


def test_building_leaves_the_random_generators_alone(backbone):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = small(backbone.name)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    ours, theirs = backbone.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[k]) for k, x in ours.items())


def test_the_generator_decides_the_weights(backbone):
    if BACKBONES[backbone.name].from_published is None:
        return
    other = dict(small(backbone.name, seed=1).named_parameters())
    matrices = {k: p for k, p in backbone.named_parameters() if p.ndim > 1 and p.shape[0] > 1}
    assert matrices and not any(torch.equal(p, other[k]) for k, p in matrices.items())


def test_every_parameter_that_is_registered_is_used(backbone, clips):
    if backbone.encoder is None:
        return
    backbone.zero_grad()
    backbone(clips[:1]).layers[backbone.num_layers].square().sum().backward()
    unused = [k for k, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    backbone.zero_grad()
    # the softmax cannot see what is added to every key alike
    assert [k for k in unused if not k.endswith("attention.key.bias")] == []


def test_blocks_have_sockets_and_roles(backbone):
    if backbone.encoder is None:
        return
    for block in backbone.encoder.blocks:
        roles = block.linears()
        assert {"query", "key", "value", "output"} <= roles.keys()
        assert roles["query"] == [block.attention.query]
        assert len(block.sockets) > 0 and not block.sockets.state_dict()
        assert all(isinstance(norm, torch.nn.Module) for norms in block.norms().values() for norm in norms)
        assert all(linear.adaptation is None for linears in roles.values() for linear in linears)
        assert block.attention.prefix is None
    assert backbone.encoder.prompts is None and backbone.adapted_with is None
