"""What every method promises on every family of blocks; a new method or family is tested the day it appears."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from audiation.backbones import Backbone
from audiation.backbones.attention import Attention
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.mert import Mert, unit_variance
from audiation.backbones.mert import build as build_mert
from audiation.backbones.musicfm import MSD, MusicFM, fresh
from audiation.methods import METHODS, FrozenMode, inject, merge, set_modes
from audiation.weights import tensors_hash
from detgen import waveform

# What the spec says; a method that is not named here has to start as an identity.
STARTS_ELSEWHERE = {"ssf", "prefix", "prompt"}
MERGEABLE = [name for name in METHODS if hasattr(METHODS[name], "merge")]
STEPS = 20
NUM_CLASSES = 3


# Families of blocks, as whole backbones ------------------------------------------------------------------

CONFORMER = ConformerConfig(dim=32, num_heads=2, ffn_dim=48, num_layers=2, conv_kernel=5, dropout=0.1)
TRANSFORMER = {  # all rates of dropout are 0.1 where nothing is said
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


def tiny_mert(**changes: Any) -> Mert:
    return build_mert(TRANSFORMER | changes, "tiny-mert", 24_000)


FAMILIES: dict[str, Callable[[], Backbone]] = {
    "conformer": lambda: fresh(MSD, CONFORMER, conv_channels=4),
    "post-norm": tiny_mert,
    "pre-norm": lambda: tiny_mert(do_stable_layer_norm=True),
    "deepnorm": lambda: tiny_mert(deepnorm=True),
}


@cache
@torch.inference_mode(mode=False)
def template(family: str) -> Backbone:
    """Weights and statistics at which nothing is small or zero by chance."""
    backbone, generator = FAMILIES[family](), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(float(name.endswith("weight")), 0.2, generator=generator)
        for name, buffer in backbone.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return backbone.eval()


def plain(family: str) -> Backbone:
    return copy.deepcopy(template(family))


def clips(backbone: Backbone, num_clips: int = 2, num_frames: int = 6) -> Tensor:
    """`(B, S)`."""
    hop = backbone.hop_samples
    assert hop is not None
    num_samples = num_frames * hop + backbone.min_samples % hop
    return torch.from_numpy(np.stack([waveform(seed, num_samples) for seed in range(num_clips)]))


def shake(backbone: Backbone, seed: int = 3) -> None:
    """What the method trains, moved away from where it starts (zeros, for one)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(backbone).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapted(family: str, method: str) -> Backbone:
    backbone = plain(family)
    inject(backbone, method, torch.Generator().manual_seed(1))
    shake(backbone)
    return backbone


def trainable(backbone: Backbone) -> dict[str, nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if p.requires_grad}


def snapshot(backbone: Backbone) -> dict[str, Tensor]:
    """Every parameter and buffer."""
    named = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same to the bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def last_layer(backbone: Backbone, x: Tensor) -> Tensor:
    return backbone(x, layers=[backbone.num_layers]).layers[backbone.num_layers]


@torch.inference_mode()
def infer(backbone: Backbone, x: Tensor) -> Tensor:
    """All layers, `(L + 1, B, T, D)`."""
    states = backbone(x)
    return torch.stack([states.layers[i] for i in sorted(states.layers)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout draws from the global stream; it is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def statistics_of(backbone: Backbone) -> set[str]:
    """Names of the buffers of batch norms."""
    return {name for name, _ in backbone.named_buffers() if "running" in name or "num_batches" in name}


def is_invisible(name: str) -> bool:
    """Whether a tensor has no influence, so that its gradient is rounding noise.

    What is added to every key alike adds the same to all scores of a query, which softmax cannot see: the bias of
    the key, and SSF's shift behind it. What a convolution adds to a channel is taken out again by the batch norm
    behind it, where that follows the batch (the stem of a MusicFM that is trained as a whole).
    """
    in_stem = name.startswith("stem.blocks.") and name.split(".")[3] in ("conv1", "conv2", "shortcut")
    return name.endswith(("attention.key.bias", "attention.key.adaptation.shift")) or (
        in_stem and name.endswith("bias")
    )


# Training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """A backbone after a few optimiser steps, and what it was before.

    largest_gradients: by name, the largest magnitude in the second step.
    """

    backbone: Backbone
    before: dict[str, Tensor]
    largest_gradients: dict[str, float]


def train(backbone: Backbone, num_steps: int, **modes: Any) -> dict[str, float]:
    """Adam on a linear head over the mean of the last layer; gives the largest gradients of the second step."""
    x, labels = clips(backbone), torch.tensor([0, 2])
    generator = torch.Generator().manual_seed(7)
    head = nn.Parameter(torch.randn(NUM_CLASSES, backbone.dim, generator=generator))
    parameters = trainable(backbone)
    optimiser = torch.optim.Adam([*parameters.values(), head], lr=1e-2)
    largest: dict[str, float] = {}
    set_modes(backbone, **modes)
    with seeded(0):
        for step in range(num_steps):
            optimiser.zero_grad()
            pooled = backbone(x, layers=[backbone.num_layers], reduce="mean").layers[backbone.num_layers]
            F.cross_entropy(pooled[:, 0] @ head.t(), labels).backward()
            if step == 1:
                largest = {
                    name: -1.0 if p.grad is None else float(p.grad.abs().max())
                    for name, p in parameters.items()
                }
            optimiser.step()
    return largest


@cache
def trained(family: str, method: str) -> Trained:
    """Not to be changed by a test."""
    backbone = plain(family)
    inject(backbone, method, torch.Generator().manual_seed(1))
    before = snapshot(backbone)
    largest = train(backbone, STEPS)
    backbone.eval()
    return Trained(backbone, before, largest)


every_method = pytest.mark.parametrize("method", list(METHODS))
every_family = pytest.mark.parametrize("family", list(FAMILIES))
# Where the scale of DeepNorm's skip branches could make no difference.
every_kind = pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deepnorm"])


@every_family
@every_method
def test_it_starts_as_an_identity_where_the_spec_says_so(family: str, method: str) -> None:
    backbone = plain(family)
    x = clips(backbone)
    before = infer(backbone, x)
    inject(backbone, method)
    assert not backbone.training
    after = infer(backbone, x)
    if method in STARTS_ELSEWHERE:
        assert torch.isfinite(after).all()
        frames = after[:, :, after.shape[2] - before.shape[2] :]
        assert (frames[-1] - before[-1]).abs().max() > 1e-4
    else:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@every_family
@every_method
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(family: str, method: str) -> None:
    run = trained(family, method)
    names = set(trainable(run.backbone))
    moved = changed(run.before, snapshot(run.backbone))
    visible = {name for name in names if not is_invisible(name)}
    noise = 1e-4 * max(run.largest_gradients.values(), default=0.0)
    assert {name for name in visible if not run.largest_gradients[name] > noise} == set()
    assert {name for name in names - visible if not 0 <= run.largest_gradients[name] < noise} == set()
    assert visible <= moved
    if METHODS[method].trains_stem:
        assert names == {name for name, _ in run.backbone.named_parameters()}
        assert moved - names == statistics_of(run.backbone)
    else:
        assert moved <= names


@every_kind
@every_method
def test_published_mode_drops_and_moves_the_statistics_of_frozen_batch_norms(
    family: str, method: str
) -> None:
    backbone = adapted(family, method)
    frozen = set(snapshot(backbone)) - set(trainable(backbone))
    before = snapshot(backbone)
    train(backbone, 2, frozen_mode="published")
    statistics = statistics_of(backbone)
    assert bool(statistics) == (family == "conformer")
    assert changed(before, snapshot(backbone)) & frozen == statistics
    assert not statistics or {name.split(".")[0] for name in statistics} == {"stem", "encoder"}
    x = clips(backbone)
    assert torch.equal(drawn(backbone, x, 1), drawn(backbone, x, 1))
    assert not torch.equal(drawn(backbone, x, 1), drawn(backbone, x, 2))


def drawn(backbone: Backbone, x: Tensor, seed: int) -> Tensor:
    with seeded(seed), torch.no_grad():
        return last_layer(backbone, x)


@every_kind
@every_method
def test_dropout_can_be_settled_apart_from_the_mode(family: str, method: str) -> None:
    backbone = adapted(family, method)
    x, statistics = clips(backbone), statistics_of(backbone)
    set_modes(backbone, "published", dropout=False)
    before = snapshot(backbone)
    assert torch.equal(drawn(backbone, x, 1), drawn(backbone, x, 2))
    assert changed(before, snapshot(backbone)) == statistics

    set_modes(backbone, "eval", dropout=True)
    before = snapshot(backbone)
    assert not torch.equal(drawn(backbone, x, 1), drawn(backbone, x, 2))
    moved = changed(before, snapshot(backbone))
    assert moved == (statistics if METHODS[method].trains_stem else set())

    set_modes(backbone)
    assert torch.equal(drawn(backbone, x, 1), drawn(backbone, x, 2)) != METHODS[method].trains_stem


@every_kind
@every_method
def test_nothing_hangs_on_when_train_or_eval_is_called(family: str, method: str) -> None:
    backbone = copy.deepcopy(trained(family, method).backbone)
    x, names, before = clips(backbone), set(trainable(backbone)), snapshot(backbone)
    without_dropout(backbone)
    expected = infer(backbone, x)
    switches: dict[str, Callable[[], object]] = {
        "train()": backbone.train,
        "eval()": backbone.eval,
        # what some trainers do to bring a mode back
        "flags on": lambda: set_flags(backbone, True),
        "flags off": lambda: set_flags(backbone, False),
    }
    for order in (["train()", "eval()"], ["flags on", "flags off"], ["train()", "flags off"], ["flags on"]):
        for switch in order:
            switches[switch]()
        for module in backbone.modules():  # those follow the batch in train mode, as they do without a method
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        torch.testing.assert_close(infer(backbone, x), expected, rtol=1e-5, atol=1e-5)
        assert set(trainable(backbone)) == names, order
        assert changed(before, snapshot(backbone)) == set(), order
        assert gradients(backbone, x).keys() == names, order


def set_flags(backbone: Backbone, training: bool) -> None:
    for module in backbone.modules():
        module.training = training


def without_dropout(backbone: Backbone) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Attention):
            module.dropout = 0.0


def gradients(backbone: Backbone, x: Tensor) -> dict[str, Tensor]:
    """Of the parameters that get one, for a smooth function of the last layer."""
    backbone.zero_grad()
    if trainable(backbone):
        last_layer(backbone, x).square().mean().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@every_family
@every_method
def test_gradients_are_those_of_finite_differences(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = adapted(family, method)
    set_modes(backbone, dropout=False)
    project = in_double(backbone, clips(backbone))
    # What is float32 by design would drown the differences.
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    generator = torch.Generator().manual_seed(11)
    projected = None if METHODS[method].trains_stem else project().detach()
    weights: dict[int, Tensor] = {}

    def loss() -> Tensor:
        layers = backbone.encode(project() if projected is None else projected).layers
        for i, x in layers.items():
            if i not in weights:
                weights[i] = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return torch.stack([(weights[i] * x).sum() for i, x in layers.items()]).sum()

    parameters = trainable(backbone)
    if not parameters:
        assert not loss().requires_grad
        return
    for p, gradient in zip(
        parameters.values(), torch.autograd.grad(loss(), list(parameters.values())), strict=True
    ):
        p.grad = gradient
    wrong = {}
    for name, p in parameters.items():
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        assert p.grad is not None
        known = float((p.grad * direction).sum())
        measured = slope(loss, p, direction)
        if not abs(measured - known) <= 1e-5 * float(p.grad.norm()) + 1e-8:
            wrong[name] = (measured, known)
    assert wrong == {}


@torch.no_grad()
def slope(
    loss: Callable[[], Tensor], parameter: nn.Parameter, direction: Tensor, step: float = 1e-5
) -> float:
    """Central difference."""
    start = parameter.clone()
    ends = []
    for sign in (1, -1):
        parameter.copy_(start + sign * step * direction)
        ends.append(float(loss()))
    parameter.copy_(start)
    return (ends[0] - ends[1]) / (2 * step)


def in_double(backbone: Backbone, x: Tensor) -> Callable[[], Tensor]:
    """The backbone in float64, and its stem from where parameters begin."""
    if isinstance(backbone, MusicFM):
        stem, features = backbone.stem, backbone.stem.features(x).double()
        backbone.double()
        return lambda: stem.project(features)
    assert isinstance(backbone, Mert)
    mert = backbone.double()
    return lambda: mert.stem(x.double()).projected


# Folding out ---------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Records the names of what is executed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(backbone: Backbone, x: Tensor) -> list[str]:
    with torch.no_grad():
        backbone(x)  # derived weights and tables are made
        with Operations() as recorded:
            backbone(x)
    return recorded.names


@every_family
@pytest.mark.parametrize("method", MERGEABLE)
def test_merging_gives_a_plain_backbone_with_the_same_outputs(family: str, method: str) -> None:
    original, base = trained(family, method).backbone, template(family)
    x, before = clips(original), snapshot(original)
    expected = infer(original, x)
    assert (expected - infer(base, x)).abs().max() > 1e-2
    merged = merge(original)

    scale = expected.abs().amax(dim=(1, 2, 3))
    assert ((infer(merged, x) - expected).abs().amax(dim=(1, 2, 3)) < 1e-5 * scale).all()
    state, base_state = merged.state_dict(), base.state_dict()
    assert [(n, t.shape, t.dtype) for n, t in state.items()] == [
        (n, t.shape, t.dtype) for n, t in base_state.items()
    ]
    assert [(n, type(m)) for n, m in merged.named_modules()] == [
        (n, type(m)) for n, m in base.named_modules()
    ]
    assert operations(merged, x) == operations(base, x)
    assert not merged.training
    assert all(p.requires_grad for p in merged.parameters())
    assert merged.weights_hash == tensors_hash(state) != tensors_hash(base_state)
    assert merged.weights_source.endswith(f"+ {method}")

    assert merged.adapted_with is None and original.adapted_with == METHODS[method]()
    assert changed(before, snapshot(original)) == set()
    assert torch.equal(infer(original, x), expected)
    ours = {t.data_ptr() for t in state.values() if t.numel()}
    assert ours.isdisjoint(t.data_ptr() for t in original.state_dict().values() if t.numel())


@pytest.mark.parametrize("method", MERGEABLE)
def test_what_was_merged_can_be_adapted_again(method: str) -> None:
    merged = merge(adapted("conformer", method))
    x = clips(merged)
    expected = infer(merged, x)
    count = inject(merged, "lora")
    assert count.trainable == count.added == sum(p.numel() for p in trainable(merged).values())
    torch.testing.assert_close(infer(merged, x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in MERGEABLE])
def test_other_methods_cannot_be_merged(method: str) -> None:
    backbone = adapted("post-norm", method)
    before = snapshot(backbone)
    able = ", ".join(MERGEABLE)
    with pytest.raises(ValueError, match=f"'{method}' cannot be folded .* Methods that can: {able}"):
        merge(backbone)
    assert changed(before, snapshot(backbone)) == set()


# Running blocks again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_mode", ["eval", "published"])
@pytest.mark.parametrize("family", ["conformer", "pre-norm"])
@every_method
def test_running_blocks_again_for_the_gradient_changes_nothing(
    family: str, method: str, frozen_mode: FrozenMode
) -> None:
    start = adapted(family, method)
    results = []
    for recompute in (False, True):
        backbone = copy.deepcopy(start)
        assert backbone.encoder is not None
        backbone.encoder.recompute_blocks = recompute
        set_modes(backbone, frozen_mode)
        runs: list[nn.Module] = []
        for block in backbone.encoder.blocks:
            block.register_forward_pre_hook(lambda module, _, runs=runs: runs.append(module))  # type: ignore[misc]
        with seeded(4):
            found = gradients(backbone, clips(backbone))
            output = last_layer(backbone, clips(backbone)).detach()
        results.append((found, output, snapshot(backbone), len(runs)))
    (found, output, after, runs_once), (found2, output2, after2, runs_twice) = results
    torch.testing.assert_close(output2, output, rtol=0, atol=1e-6)
    assert found2.keys() == found.keys() == trainable(start).keys()
    for name in found:
        torch.testing.assert_close(found2[name], found[name], rtol=1e-6, atol=1e-6)
    assert changed(after, after2) == set()  # statistics have not moved twice
    has_gradient = bool(found)
    assert runs_twice == runs_once + 2 * has_gradient


# Injecting -----------------------------------------------------------------------------------------------


@every_method
def test_a_second_method_is_refused(method: str) -> None:
    backbone = adapted("post-norm", method)
    before, names = snapshot(backbone), set(trainable(backbone))
    for second in METHODS:
        with pytest.raises(ValueError, match=f"adapted with '{method}' already"):
            inject(backbone, second)
    assert changed(before, snapshot(backbone)) == set()
    assert set(trainable(backbone)) == names


@pytest.mark.parametrize("family", ["conformer", "post-norm"])
@every_method
def test_the_count_is_that_of_the_tensors(family: str, method: str) -> None:
    backbone = plain(family)
    registered, plain_names = sum(p.numel() for p in backbone.parameters()), set(snapshot(backbone))
    count = inject(backbone, method)
    sizes = {name: p.numel() for name, p in trainable(backbone).items()}
    assert count.trainable == sum(sizes.values())
    assert count.added == sum(size for name, size in sizes.items() if name not in plain_names)
    assert count.registered == registered
    assert set(snapshot(backbone)) - plain_names <= sizes.keys()  # what is added is trained
    unused = backbone.unused_parameters if METHODS[method].trains_stem else 0
    assert count.published_layout == count.trainable + unused


@pytest.mark.parametrize("family", ["conformer", "post-norm"])
@every_method
def test_the_generator_decides_and_global_streams_stay(family: str, method: str) -> None:
    before = global_streams()
    backbones = [plain(family) for _ in range(4)]
    for backbone, seed in zip(backbones, (0, 0, 1, None), strict=True):
        inject(backbone, method, None if seed is None else torch.Generator().manual_seed(seed))
    assert global_streams() == before

    one, same, other, by_default = (snapshot(backbone) for backbone in backbones)
    assert changed(one, same) == changed(one, by_default) == set()
    added = one.keys() - snapshot(template(family)).keys()
    assert changed(one, other) == {name for name in added if one[name].min() < one[name].max()}
    assert bool(changed(one, other)) == bool(added)


def global_streams() -> tuple[bytes, object, object]:
    numpys = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state().numpy().tobytes(),
        (numpys["key"].tobytes(), numpys["pos"]),
        random.getstate(),
    )


@every_kind
@every_method
def test_trained_tensors_are_the_whole_difference(family: str, method: str) -> None:
    run = trained(family, method)
    other = plain(family)
    inject(other, method, torch.Generator().manual_seed(2))
    state = run.backbone.state_dict()
    kept = trainable(run.backbone).keys() | (statistics_of(other) if METHODS[method].trains_stem else set())
    assert not other.load_state_dict({name: state[name] for name in kept}, strict=False).unexpected_keys
    assert torch.equal(infer(other, clips(other)), infer(run.backbone, clips(other)))


@every_method
def test_injected_in_inference_mode_it_can_be_trained(method: str) -> None:
    backbone = plain("conformer")
    with torch.inference_mode():
        inject(backbone, method)
    assert not any(t.is_inference() for t in [*backbone.parameters(), *backbone.buffers()])
    assert gradients(backbone, clips(backbone)).keys() == trainable(backbone).keys()


def test_made_in_inference_mode_a_backbone_cannot_be_trained() -> None:
    with torch.inference_mode():
        backbone = plain("conformer")
    with pytest.raises(ValueError, match=r"made in inference mode.* Load it outside"):
        inject(backbone, "lora")
    assert inject(backbone, "probe").trainable == 0


def test_merged_in_inference_mode_it_can_be_trained() -> None:
    backbone = adapted("conformer", "lora")
    with torch.inference_mode():
        merged = merge(backbone)
    assert not any(t.is_inference() for t in [*merged.parameters(), *merged.buffers()])


# Autocast ------------------------------------------------------------------------------------------------


@every_kind
@every_method
def test_gradients_under_autocast_are_finite_and_point_the_same_way(family: str, method: str) -> None:
    backbone = adapted(family, method)
    x = clips(backbone)
    set_modes(backbone, dropout=False)
    exact = gradients(backbone, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert last_layer(backbone, x).dtype == torch.float32
        rounded = gradients(backbone, x)
    assert rounded.keys() == exact.keys() == trainable(backbone).keys()
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in rounded.values())
    for name in exact:
        if not is_invisible(name):
            cosine = F.cosine_similarity(rounded[name].flatten(), exact[name].flatten(), dim=0)
            assert cosine > 0.9, name


class Products(TorchDispatchMode):
    """Records the arguments of batched affine maps."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[tuple[Tensor, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.baddbmm.default:
            self.arguments.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"feat_extract_norm": "layer", "conv_bias": True}])
def test_the_first_convolution_of_mert_sees_the_waveform_unrounded_under_autocast(
    changes: dict[str, Any],
) -> None:
    backbone = tiny_mert(**changes)
    x = clips(backbone)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Products() as products:
        backbone(x)
    _, windows, kernel = products.arguments[0]
    assert windows.dtype == kernel.dtype == torch.float32
    assert torch.equal(windows, unit_variance(x).unfold(1, 10, 5))
    assert not torch.equal(windows, windows.bfloat16().float())


def test_the_mel_spectrum_is_not_rounded_under_autocast() -> None:
    backbone = plain("conformer")
    assert isinstance(backbone, MusicFM)
    x, seen = clips(backbone), list[Tensor]()
    backbone.stem.mel.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        backbone(x)
        with torch.autocast("cpu", torch.bfloat16):
            backbone(x)
    exact, under_autocast = seen
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, exact)
