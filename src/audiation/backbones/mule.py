"""MULE: a SlowFast network without norms on log-mel slices of 3 s (McCallum et al. 2022, "SF-NFNet-F0").

Every slice gives one vector; a clip is the mean over its slices. What goes in:

* Level. The published reader divides 16-bit integers by 65,536 and adds the channels up. So a mono file comes at half
  its amplitude, and a stereo file as the mean of its channels. A backbone hears the mean over channels and is not told
  how many there were, so one rule has to do: `forward` halves what it is given. This is the published input for mono
  files, which the benchmarks mostly have; of a stereo file, the published model hears twice as much (6 dB): give
  `2 * waveform` to have that. Slices are standardised, so little depends on it but how far quiet sounds stand out.
* Slices. Of 300 frames around frames 200, 400, ... as long as these exist (every 2 s; frame 0 is none of them), moved
  inwards where they would reach over the end. The published code works on 8,000 frames at a time and thereby leaves out
  the slice at every multiple of 80 s, stops after 30 min and starts anew after 15; that is not imitated.

A clip shorter than one slice (2.99 s) is refused, for the published code says nothing about it. Written from baselines
spec, section 9; nothing is dropped at random, in training mode neither.

Shape letters: `B` batch, `S` samples, `N` slices, `M` mel bands, `T` frames, `C` channels, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, HiddenStates, Pretraining
from audiation.backbones.derived import DerivesWeights
from audiation.features import MEL_BREAK_HZ, MEL_SCALE
from audiation.weights import OfficialFile, OfficialWeights, check_tensors

SAMPLE_RATE_HZ = 16_000
INPUT_GAIN = 0.5
FFT_SAMPLES = 2048
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
NUM_MEL_BANDS = 96
COMPRESSION = 10_000.0
FRAMES_AT_ONCE = 4096  # of a spectrum: those of half an hour would take 3 GB
SLICE_FRAMES = 300
SLICE_HOP_FRAMES = 200
SMALLEST_DEVIATION = 0.01
SLICES_AT_ONCE = 16  # at inference
GELU_GAIN = 1.7015043497085571  # makes unit variance of unit variance
ALPHA = 0.2  # weight of a block beside its shortcut
SMALLEST_VARIANCE = 1e-4
BLOCKS = (1, 2, 6, 3)  # of each stage
SLOW_WIDTHS, SLOW_GROUP = (256, 512, 1536, 1536), 128
FAST_WIDTHS, FAST_GROUP = (32, 64, 192, 192), 16
SLOW_STEM, FAST_STEM = (16, 32, 64, 128), (2, 4, 8, 16)  # channels
FUSION_TIME_WIDTHS, FUSION_WIDTHS = (32, 32, 64, 192), (128, 256, 512, 3072)
PUBLISHED_PARAMETERS = 62_345_742
PAPER = (
    "McCallum et al.: Supervised and unsupervised learning of audio representations for music understanding, "
    "ISMIR 2022"
)


class Mule(Backbone):
    """Waveform at 16 kHz -> layer 0 alone, `(B, N, 1728)`: one vector per slice, whose mean is the published one.

    Slice i is centred on second 2 (i + 1), but the last one where the clip ends within 1.5 s of that: it is moved
    inwards as far as it has to be, which `times_seconds` does not tell.
    """

    sample_rate_hz = SAMPLE_RATE_HZ
    hop_samples = SLICE_HOP_FRAMES * HOP_SAMPLES
    frame_rate_hz = sample_rate_hz / hop_samples
    first_frame_seconds = 1.0 / frame_rate_hz
    num_layers, dim = 0, SLOW_WIDTHS[-1] + FAST_WIDTHS[-1]
    min_samples = (SLICE_FRAMES - 1) * HOP_SAMPLES
    max_seconds = None
    normalisation = "none"
    accepts_padding = False  # the spectrum is continued by reflection behind the end of a clip

    def __init__(self) -> None:
        super().__init__()
        self.name = "mule"
        self.mel = CompressedMel()
        self.network = SlowFast()

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, N, 1728)`, or its mean over slices. Raises ValueError as every backbone."""
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        slices_BNMT = slices_of(self.mel(INPUT_GAIN * waveform))
        vectors = self.vectors(slices_BNMT.flatten(0, 1))
        hidden_BND = vectors.unflatten(0, slices_BNMT.shape[:2])
        valid = torch.ones(hidden_BND.shape[:2], dtype=torch.bool, device=waveform.device)
        states = HiddenStates({0: hidden_BND}, valid, self.frame_rate_hz, self.first_frame_seconds)
        return states.mean() if reduce == "mean" else states

    def vectors(self, slices: Tensor) -> Tensor:
        """`(N, 96, 300)` -> `(N, 1728)` float32."""
        at_once = len(slices) if torch.is_grad_enabled() else SLICES_AT_ONCE
        return torch.cat([self.network(part.unsqueeze(1)) for part in slices.split(at_once)]).float()

    def num_frames(self, num_samples: int) -> int:
        """Slices of a clip of `num_samples`."""
        return num_samples // self.hop_samples


# Front end -------------------------------------------------------------------------------------------


class CompressedMel(nn.Module):
    """`log10(10000 x + 1)` of the power x in 96 mel bands: `(B, S)` -> `(B, 96, 1 + S // 160)` float32.

    HTK bands from 0 to 8 kHz, each of unit L2 norm; 2048-point spectra of 400 samples under a periodic Hann window,
    centred on every 160th sample, continued by reflection.
    """

    keep_float32 = True

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):
            self.register_buffer("filters", unit_filters(), persistent=False)  # (F, M)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            padded = F.pad(waveform.float().unsqueeze(1), (FFT_SAMPLES // 2,) * 2, mode="reflect").squeeze(1)
            frames = 1 + waveform.shape[1] // HOP_SAMPLES
            return torch.cat(
                [self._frames(padded, first, frames) for first in range(0, frames, FRAMES_AT_ONCE)], 2
            )

    def _frames(self, padded: Tensor, first: int, frames: int) -> Tensor:
        """Frames `first` ... of `frames`, `FRAMES_AT_ONCE` at most."""
        count = min(FRAMES_AT_ONCE, frames - first)
        part = padded[:, first * HOP_SAMPLES : (first + count - 1) * HOP_SAMPLES + FFT_SAMPLES]
        # In float64 where there is: in float32, window or spectrum, the lowest bands are off by 2e-5.
        dtype = torch.float32 if part.device.type == "mps" else torch.float64
        window = torch.hann_window(WINDOW_SAMPLES, dtype=dtype, device=part.device)
        spectrum = torch.stft(
            part.to(dtype),
            FFT_SAMPLES,
            HOP_SAMPLES,
            WINDOW_SAMPLES,
            window,
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(COMPRESSION * (self.filters.t() @ power.float()) + 1.0)


def unit_filters() -> Tensor:
    """`(1025, 96)` float32: triangles of L2 norm 1, equally wide on the HTK mel scale from 0 Hz to 8 kHz.

    Made in float64, for in float32 they are off by 3e-6.
    """
    highest_hz = SAMPLE_RATE_HZ / 2
    highest_mel = MEL_SCALE * math.log10(1.0 + highest_hz / MEL_BREAK_HZ)
    mels = torch.linspace(0.0, highest_mel, NUM_MEL_BANDS + 2, dtype=torch.float64)
    edges_hz = MEL_BREAK_HZ * (10.0 ** (mels / MEL_SCALE) - 1.0)
    bins_hz = torch.linspace(0.0, highest_hz, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    distance_hz = edges_hz - bins_hz[:, None]  # (F, M + 2)
    width_hz = edges_hz.diff()
    triangles = torch.minimum(-distance_hz[:, :-2] / width_hz[:-1], distance_hz[:, 2:] / width_hz[1:])
    return F.normalize(triangles.clamp(min=0.0), dim=0).float()


def slices_of(logmel: Tensor) -> Tensor:
    """`(B, M, T)`, T >= 300 -> `(B, N, M, 300)`: slices every 200 frames, each of mean 0 and deviation 1.

    A deviation below 0.01 counts as 0.01, so that silence stays silence.
    """
    frames = logmel.shape[2]
    centres = torch.arange(SLICE_HOP_FRAMES, frames, SLICE_HOP_FRAMES, device=logmel.device)
    starts = centres.clamp(max=frames - SLICE_FRAMES // 2) - SLICE_FRAMES // 2
    index = starts[:, None] + torch.arange(SLICE_FRAMES, device=logmel.device)
    slices = logmel[:, :, index].transpose(1, 2)  # (B, N, M, 300)
    centred = slices - slices.mean(dim=(2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=SMALLEST_DEVIATION)


# Network ---------------------------------------------------------------------------------------------


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


# Making one ------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Mule:
    """Fresh weights from the generator (None: one with seed 0): normal kernels, gains and skip gains 1, biases 0.

    No source says how the published ones began. With skip gains of 1, blocks have the variance that beta assumes.
    """
    _check_depth(num_layers)
    backbone = _without_values()
    generator = generator or torch.Generator().manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
    return backbone


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> Mule:
    """A Mule from the tensors of the published Keras model (`model.weights.h5` in `model.keras`).

    Args:
        tensors: under their paths in that file, kernels as (frequency, time, in, out), dense ones as (in, out).
        config: nothing in it is needed; not read.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, or `num_layers` other than 0.
    """
    _check_depth(num_layers)
    backbone = _without_values()
    names = official_names()
    found = {path: tensors[path].float() for path in tensors}
    own = {path: _as_official(backbone.network.get_parameter(ours)) for ours, path in names.items()}
    check_tensors(found, own, "the weights of mule")
    for ours, path in names.items():
        parameter = backbone.network.get_parameter(ours)
        with torch.no_grad():
            _as_official(parameter).copy_(found.pop(path))
    return backbone


def outline() -> Mule:
    """A backbone whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Mule()


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


def _as_official(parameter: Tensor) -> Tensor:
    """A view of a parameter with its axes in the order of the published file."""
    if parameter.ndim == 4:
        return parameter.permute(2, 3, 1, 0)
    return parameter.t() if parameter.ndim == 2 else parameter


def _without_values() -> Mule:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    backbone = outline()
    backbone.network.to_empty(device="cpu")
    return backbone


def _check_depth(num_layers: int | None) -> None:
    if num_layers not in (None, 0):
        raise ValueError(f"mule has layer 0 only, so it cannot be cut to num_layers={num_layers}")


BACKBONES.add(
    "mule",
    BackboneSpec(
        "mule",
        "SlowFast network on log-mel, trained by contrast, one 1,728-d vector per 3 s, every 2 s",
        build,
        from_published,
        weights=OfficialWeights(
            checkpoint=OfficialFile(
                repo_id="",
                filename="model.keras",
                size_bytes=251_054_764,
                sha256="1da111d619bac0d422e41f153cbfb903f7ec3c5d3b2768f5d68f04452ed18180",
                mismatch_hint="A file of some hundred bytes is the Git LFS pointer to it.",
                url="https://media.githubusercontent.com/media/PandoraMedia/music-audio-representations/main/"
                "supporting_data/model/model.keras",
            ),
            config=None,
            licence="CC-BY-NC-4.0",
            licence_note="See https://github.com/PandoraMedia/music-audio-representations.",
        ),
        weights_licence="CC-BY-NC-4.0",
        commercial_use=False,
        published_parameters=PUBLISHED_PARAMETERS,
        recommended_layer=0,
        has_encoder=False,
        published_names=("MULE",),
        notes=(
            "Clips need 2.99 s. Slices of 3 s around every second one after the start; the last is moved inwards.",
            "Hears a mono file as the published model does; a stereo file 6 dB softer than it.",
            "Names in the file are those of a copy of the graph; a file whose names or shapes differ is refused.",
            "The published code is under GPL-3.0; none of it is here.",
        ),
        # Hours: table 6.1 of the thesis.
        pretraining=Pretraining("MusicSet, a private collection of music", (), 117_500),
        paper=PAPER,
        outline=outline,
    ),
)
