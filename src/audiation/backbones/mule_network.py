"""The network of MULE (McCallum et al. 2022, "SF-NFNet-F0"): two paths of convolutions without norms, and the names of
its parameters in the published file. Written from baselines spec, section 9.

Shape letters: `N` slices, `C` channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.derived import DerivesWeights

GELU_GAIN = 1.7015043497085571  # makes unit variance of unit variance
ALPHA = 0.2  # weight of a block beside its shortcut
SMALLEST_VARIANCE = 1e-4
BLOCKS = (1, 2, 6, 3)  # of each stage
SLOW_WIDTHS, SLOW_GROUP = (256, 512, 1536, 1536), 128
FAST_WIDTHS, FAST_GROUP = (32, 64, 192, 192), 16
SLOW_STEM, FAST_STEM = (16, 32, 64, 128), (2, 4, 8, 16)  # channels
FUSION_TIME_WIDTHS, FUSION_WIDTHS = (32, 32, 64, 192), (128, 256, 512, 3072)


class SlowFast(nn.Module):
    """`(N, 1, 96, 300)` -> `(N, 1728)`.

    The slow path sees few frames with many channels, the fast one four times as many frames with few channels. What the
    fast one found goes to the slow one before each of four stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slow_stem = _stem(SLOW_STEM, ((3, 1),) * 3 + ((3, 3),), ((2, 8), (1, 1), (1, 1), (2, 2)))
        self.fast_stem = _stem(FAST_STEM, ((3, 3),) * 4, ((2, 2), (1, 1), (1, 1), (2, 2)))
        self.fusion, self.slow, self.fast = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        slow, fast = SLOW_STEM[-1], FAST_STEM[-1]
        for stage, blocks in enumerate(BLOCKS):
            self.fusion.append(Fusion(fast, FUSION_TIME_WIDTHS[stage], FUSION_WIDTHS[stage]))
            slow += FUSION_WIDTHS[stage]
            self.slow.append(_stage(stage, blocks, slow, SLOW_WIDTHS[stage], SLOW_GROUP))
            self.fast.append(_stage(stage, blocks, fast, FAST_WIDTHS[stage], FAST_GROUP))
            slow, fast = SLOW_WIDTHS[stage], FAST_WIDTHS[stage]

    def forward(self, x: Tensor) -> Tensor:
        slow, fast = self.slow_stem(x), self.fast_stem(x)
        for fusion, slow_stage, fast_stage in zip(self.fusion, self.slow, self.fast, strict=True):
            slow = slow_stage(torch.cat([slow, fusion(fast)], dim=1))
            fast = fast_stage(fast)
        pooled = torch.cat([slow.mean(dim=(2, 3)), fast.mean(dim=(2, 3))], dim=1)
        return GELU_GAIN * F.gelu(pooled)


class StandardisedConv(DerivesWeights):
    """A convolution whose kernels have mean 0 and variance 1 / fan-in, times a learned gain per output channel.

    "Same" padding as TensorFlow has it: the smaller half first. The standardised kernels are derived weights: made once
    for inference, stored nowhere.

    Args:
        input_scale: a constant by which the input is to be multiplied; the kernel is instead.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels_in // groups, *kernel))
        self.gain = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.stride, self.groups, self.input_scale = stride, groups, input_scale

    def kernels(self) -> Tensor:
        fan_in = self.weight[0].numel()
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = self.gain.view(-1, 1, 1, 1) * torch.rsqrt((variance * fan_in).clamp(min=SMALLEST_VARIANCE))
        return (self.weight - mean) * (scale * self.input_scale)

    def derive(self) -> tuple[Tensor, ...]:
        return (self.kernels(),)

    def forward(self, x: Tensor) -> Tensor:
        derived = self.derived()
        kernels = self.kernels() if derived is None else derived[0]
        above, below = _same_padding(x.shape[2], kernels.shape[2], self.stride[0])
        before, after = _same_padding(x.shape[3], kernels.shape[3], self.stride[1])
        padding = (above, before)
        if padding != (below, after):
            x, padding = F.pad(x, (before, after, above, below)), (0, 0)
        return F.conv2d(x, kernels, self.bias, self.stride, padding, groups=self.groups)


class Activation(nn.Module):
    """GELU times a constant that keeps the variance."""

    def forward(self, x: Tensor) -> Tensor:
        return GELU_GAIN * F.gelu(x)


class Fusion(nn.Module):
    """The fast path at the pace of the slow one, `(N, C, M, T)` -> `(N, C', M, ceil(T / 4))`."""

    def __init__(self, channels_in: int, channels: int, expanded: int) -> None:
        super().__init__()
        self.time = StandardisedConv(channels_in, channels, (1, 7), (1, 4))
        self.expand = StandardisedConv(channels, expanded)

    def forward(self, fast: Tensor) -> Tensor:
        return self.expand(self.time(fast))


class Block(nn.Module):
    """Shortcut + alpha * skipinit * gate * residual, after an activation that enters both.

    The constants of activation and alpha are not multiplied with maps: the convolutions behind take them into their
    kernels, the gate the rest.

    Args:
        beta: what brings the input to unit variance.
        first: of a stage: it has a convolution in its shortcut.
        halves: mel bands.
    """

    def __init__(
        self, channels_in: int, channels: int, group: int, beta: float, first: bool, halves: bool
    ) -> None:
        super().__init__()
        inner = channels // 2
        stride, groups = ((2, 1) if halves else (1, 1)), inner // group
        self.halves = halves
        self.conv0 = StandardisedConv(channels_in, inner, input_scale=GELU_GAIN * beta)
        self.conv1 = StandardisedConv(inner, inner, (1, 3), stride, groups, GELU_GAIN)
        self.conv2 = StandardisedConv(inner, inner, (3, 1), (1, 1), groups, GELU_GAIN)
        self.conv3 = StandardisedConv(inner, channels, input_scale=GELU_GAIN)
        self.shortcut = (
            StandardisedConv(channels_in, channels, input_scale=GELU_GAIN * beta) if first else None
        )
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.skipinit = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(x)
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(h, (2, 1)) if self.halves else h)
        h = self.conv1(F.gelu(self.conv0(h)))
        h = self.conv3(F.gelu(self.conv2(F.gelu(h))))
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(h.mean(dim=(2, 3))))))
        return torch.addcmul(x, h, (2 * ALPHA * self.skipinit * gate)[..., None, None])


def _stem(
    widths: tuple[int, ...], kernels: tuple[tuple[int, int], ...], strides: tuple[tuple[int, int], ...]
) -> nn.Sequential:
    """Convolutions with activations between them, none behind the last."""
    layers: list[nn.Module] = []
    for before, width, kernel, stride in zip((1, *widths[:-1]), widths, kernels, strides, strict=True):
        layers += [StandardisedConv(before, width, kernel, stride), Activation()]
    return nn.Sequential(*layers[:-1])


def _stage(stage: int, blocks: int, channels_in: int, channels: int, group: int) -> nn.Sequential:
    variance = 1.0 if stage == 0 else 1.0 + ALPHA**2  # of what enters; every block adds alpha squared
    return nn.Sequential(
        *(
            Block(
                channels_in if i == 0 else channels,
                channels,
                group,
                beta=1.0 / math.sqrt(variance + i * ALPHA**2),
                first=i == 0,
                halves=i == 0 and stage > 0,
            )
            for i in range(blocks)
        )
    )


def _same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


# Published names ------------------------------------------------------------------------------------------


def official_names() -> dict[str, str]:
    """Name of a parameter of `SlowFast` -> path in the published file.

    Keras numbers the layers of a class in the order of the graph, where slow and fast path take turns; and it counts
    each twice, and the multiplications by constants too.
    """
    names: dict[str, str] = {}
    for number, conv in enumerate(_convs_in_order()):
        path = _keras_path("weight_standardization", 2 * number)
        names[f"{conv}.weight"], names[f"{conv}.gain"] = f"{path}/vars/0", f"{path}/vars/1"
        names[f"{conv}.bias"] = f"{path}/layer/vars/0"
    for number, pair in enumerate(_blocks_in_order()):
        dense = [f"{block}.{fc}" for block in (pair.first, pair.second) for fc in ("fc1", "fc2")]
        if pair.slow_first:
            dense = [f"{block}.{fc}" for fc in ("fc1", "fc2") for block in (pair.first, pair.second)]
        for i, layer in enumerate(dense):
            path = _keras_path("dense", 8 * number + 2 * i)
            names[f"{layer}.weight"], names[f"{layer}.bias"] = f"{path}/vars/0", f"{path}/vars/1"
        for block, i in ((pair.first, 2), (pair.second, 4 if pair.slow_first else 5)):
            names[f"{block}.skipinit"] = _keras_path("scalar_multiply", 8 * number + i) + "/vars/0"
    return names


class _BlockPair(NamedTuple):
    """Two blocks at the same place of the slow and the fast path, in the order of the published graph."""

    first: str
    second: str
    slow_first: bool


def _blocks_in_order() -> list[_BlockPair]:
    pairs = []
    for stage, blocks in enumerate(BLOCKS):
        slow_first = stage == len(BLOCKS) - 1
        first, second = ("slow", "fast") if slow_first else ("fast", "slow")
        pairs += [
            _BlockPair(f"{first}.{stage}.{i}", f"{second}.{stage}.{i}", slow_first) for i in range(blocks)
        ]
    return pairs


def _convs_in_order() -> list[str]:
    """Names of all standardised convolutions, in the order of the published graph."""
    stem = [f"{path}_stem.{2 * i}" for i in range(len(SLOW_STEM)) for path in ("fast", "slow")]
    convs = [*stem[:-1], "fusion.0.time", stem[-1], "fusion.0.expand"]
    for pair in _blocks_in_order():
        _, stage, block = pair.first.split(".")
        starts = block == "0"
        if starts and stage != "0":
            convs += [f"fusion.{stage}.time", f"fusion.{stage}.expand"]
        within = ["conv0", "conv1", "conv2", "conv3", *(["shortcut"] if starts else [])]
        convs += [f"{path}.{conv}" for conv in within for path in (pair.first, pair.second)]
    return convs


def _keras_path(layer: str, number: int) -> str:
    return f"_layer_checkpoint_dependencies/{layer}{f'_{number}' if number else ''}"


def as_official(parameter: Tensor) -> Tensor:
    """A view of a parameter with its axes in the order of the published file."""
    if parameter.ndim == 4:
        return parameter.permute(2, 3, 1, 0)
    return parameter.t() if parameter.ndim == 2 else parameter
