"""The parts of MusiCNN: its spectrum, the front end with its five kinds of filters, the dense layers, the tagger.

Everywhere the order is convolution, ReLU, batch norm (baselines spec, section 6.2).

Shape letters: `B` batch, `S` samples, `N` windows, `T` frames, `F` mel bands, `C` channels, `D` width of the
representation, `U` units of the tagger, `K` tags.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.derived import DerivesWeights

SAMPLE_RATE_HZ = 16_000
FFT_SAMPLES = 512
HOP_SAMPLES = 256
NUM_MEL_BANDS = 96
COMPRESSION = 10_000.0
NORM_EPS = 1e-3
TIMBRAL_FRAMES, TIMBRAL_BANDS, TIMBRAL_FILTERS = 7, (38, 67), 204  # 0.4 and 0.7 of the bands
TEMPORAL_FRAMES, TEMPORAL_FILTERS = (128, 64, 32), 51
MID_FRAMES, MID_LAYERS = 7, 3
HALF_MAX = 65_504.0  # largest number of IEEE half precision
# Of one matrix product of the temporal filters. Longer blocks multiply more zeros, shorter ones are slower products.
BLOCK_FRAMES = 16
BLOCK_BANDS = 4


class LogMelOfHalf(nn.Module):
    """`log10(10000 power + 1)` in mel bands: `(B, S)` -> `(B, T, F)` float32 with T = 1 + floor(S / 256).

    512-point spectra, periodic Hann window, centred, ends continued by reflection; 96 bands from 0 to 8 kHz on Slaney's
    mel scale, of equal area. The power is rounded to IEEE half precision on the way, because the published models were
    trained on spectra that were stored so; power beyond its range (no waveform within [-1, 1] has it) is its largest
    number. Always computed in float32: neither autocast nor a cast of the surrounding module reaches it.
    """

    keep_float32 = True

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        window, filters = self._tables()
        self.register_buffer("window", window, persistent=False)  # (FFT_SAMPLES,)
        self.register_buffer("filters", filters, persistent=False)  # (FFT_SAMPLES / 2 + 1, F)

    def num_frames(self, num_samples: int) -> int:
        return 1 + num_samples // HOP_SAMPLES

    def forward(self, waveform: Tensor) -> Tensor:
        return self.frames(self.continued(waveform), 0, self.num_frames(waveform.shape[-1]))

    def continued(self, waveform: Tensor) -> Tensor:
        """The waveform with what the spectra at its ends hear beyond it: `(B, S)` -> `(B, S + 512)` float32."""
        return F.pad(waveform.float(), (FFT_SAMPLES // 2, FFT_SAMPLES // 2), mode="reflect")

    def frames(self, continued: Tensor, first_frame: int, num_frames: int) -> Tensor:
        """Some frames of a `continued` waveform: `(B, S + 512)` -> `(B, num_frames, F)` float32."""
        start = first_frame * HOP_SAMPLES
        heard = continued[:, start : start + (num_frames - 1) * HOP_SAMPLES + FFT_SAMPLES]
        with torch.autocast(heard.device.type, enabled=False):
            spectrum = torch.stft(
                heard, FFT_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()
            mel = power.transpose(1, 2) @ self.filters
            return torch.log10(COMPRESSION * mel.clamp(max=HALF_MAX).half().float() + 1.0)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Window and filters on the CPU, whatever the default device."""
        with torch.device("cpu"):
            return torch.hann_window(FFT_SAMPLES, periodic=True), slaney_filters()

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda()
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            device = self.window.device
            self.window, self.filters = (table.to(device) for table in self._tables())
        return self


def slaney_filters() -> Tensor:
    """`(F of the spectrum, F)` float32: triangles of equal area, equally wide on Slaney's mel scale (linear to 1 kHz,
    then logarithmic, 27 steps to a factor 6.4) from 0 Hz to Nyquist."""
    linear_hz, break_hz, log_step = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0
    break_mel = break_hz / linear_hz
    top_mel = break_mel + math.log(SAMPLE_RATE_HZ / 2 / break_hz) / log_step
    edges_mel = torch.linspace(0.0, top_mel, NUM_MEL_BANDS + 2, dtype=torch.float64)
    above = break_hz * torch.exp(log_step * (edges_mel - break_mel))
    edges_hz = torch.where(edges_mel < break_mel, linear_hz * edges_mel, above)
    bins_hz = torch.linspace(0.0, SAMPLE_RATE_HZ / 2, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    width_hz = edges_hz.diff()
    distance_hz = edges_hz.unsqueeze(0) - bins_hz.unsqueeze(1)  # (bins, F + 2)
    rising = -distance_hz[:, :-2] / width_hz[:-1]
    falling = distance_hz[:, 2:] / width_hz[1:]
    heights = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return (torch.minimum(rising, falling).clamp(min=0) * heights).float()


# Front end --------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """Filters over time and bands, ReLU, batch norm, and the maximum over the bands: `(N, 1, T, F)` -> `(N, C, T)`.

    Time keeps its length; of an even number of frames the larger half comes behind.
    """

    def __init__(self, num_filters: int, num_frames: int, num_bands: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, num_filters, (num_frames, num_bands))
        self.norm = nn.BatchNorm2d(num_filters, eps=NORM_EPS)
        self.pads = ((num_frames - 1) // 2, num_frames // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(F.pad(x, (0, 0, *self.pads))))).amax(-1)

    def norm_as_affine(self) -> tuple[Tensor, Tensor]:
        """Scale and offset `(C,)` of the batch norm with running statistics."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        scale = self.norm.weight * torch.rsqrt(variance + NORM_EPS)
        return scale, self.norm.bias - mean * scale


class Front(DerivesWeights):
    """`(N, T, F)` -> `(N, 561, T)`: timbral filters (7 frames by 38 and 67 bands), then temporal ones (128, 64 and 32
    frames by one band).

    For inference, bias, ReLU and batch norm are applied after the maximum over the bands, to a small part of the
    numbers. Filters whose norm turns its input round are negated for that: the least of something is the negative of
    the greatest of its negative. Timbral filters are convolutions of half their bands, three instead of four. Temporal
    filters are products with matrices that hold each filter at every place of a block of frames.
    """

    num_channels = len(TIMBRAL_BANDS) * TIMBRAL_FILTERS + len(TEMPORAL_FRAMES) * TEMPORAL_FILTERS

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, eps=NORM_EPS)
        self.timbral = nn.ModuleList(
            Branch(TIMBRAL_FILTERS, TIMBRAL_FRAMES, num_bands) for num_bands in TIMBRAL_BANDS
        )
        self.temporal = nn.ModuleList(
            Branch(TEMPORAL_FILTERS, num_frames, 1) for num_frames in TEMPORAL_FRAMES
        )

    def forward(self, windows_NTF: Tensor) -> Tensor:
        derived = self.derived()
        x = self.norm(windows_NTF.unsqueeze(1))
        if derived is None:
            return torch.cat([branch(x) for branch in (*self.timbral, *self.temporal)], dim=1)
        signs, biases, scales, offsets, *weights = derived
        halves, blocks = weights[: 3 * len(TIMBRAL_BANDS)], weights[3 * len(TIMBRAL_BANDS) :]
        maxima = torch.cat([*_timbral_maxima(x, halves), *_temporal_maxima(x[:, 0], blocks)], dim=1)
        return maxima.add_(biases).mul_(signs).relu_().mul_(scales).add_(offsets)

    def derive(self) -> tuple[Tensor, ...]:
        """Signs, biases, scales and offsets `(561, 1)`, halved timbral filters, matrices of the temporal ones."""
        branches = [*self.timbral, *self.temporal]
        columns: list[list[Tensor]] = [[], [], [], []]
        filters = []
        for branch in branches:
            assert isinstance(branch, Branch)
            scale, offset = branch.norm_as_affine()
            sign = torch.where(scale < 0, -1.0, 1.0)
            assert branch.conv.bias is not None
            for column, values in zip(columns, (sign, sign * branch.conv.bias, scale, offset), strict=True):
                column.append(values)
            filters.append(sign.view(-1, 1, 1, 1) * branch.conv.weight)
        num_timbral = len(self.timbral)
        return (
            *(torch.cat(column)[:, None] for column in columns),
            *(half for f in filters[:num_timbral] for half in _halved(f)),
            *(_blocked(f[:, 0, :, 0]) for f in filters[num_timbral:]),
        )


def _timbral_maxima(x: Tensor, halves: list[Tensor]) -> list[Tensor]:
    """`(N, 1, T, F)` -> for each kind `(N, C, T)`, the largest product over the bands."""
    padded = F.pad(x, (0, 0, TIMBRAL_FRAMES // 2, TIMBRAL_FRAMES // 2)).transpose(2, 3).contiguous()
    # A window at a time on the CPU: its products just stay in the cache.
    parts = padded.split(1) if x.device.type == "cpu" else (padded,)
    return [
        torch.cat([_largest_product(part, halves[3 * i : 3 * i + 3], num_bands) for part in parts])
        for i, num_bands in enumerate(TIMBRAL_BANDS)
    ]


def _largest_product(x: Tensor, halves: list[Tensor], num_bands: int) -> Tensor:
    """`(N, 1, F, T + 6)` and the `_halved` filters -> `(N, C, T)`.

    With even and odd bands apart (x0, x1; h0, h1), products at even places are h0 x0 + h1 x1, at odd ones h0 x1 + h1 x0
    (x0 one band on). Both contain (h0 + h1) x1, which is computed once; what is left are h0 (x0 - x1) and h1 (x0 - x1).
    """
    both, even, odd = halves
    num_places, length = x.shape[2] - num_bands + 1, both.shape[2]
    num_even, num_odd = (num_places + 1) // 2, num_places // 2
    x0, x1 = x[:, :, 0::2], x[:, :, 1::2]
    if num_bands % 2:  # the filter has a band of zeros more, which may hear anything
        x0 = F.pad(x0, (0, 0, 0, 1))
    shared = F.conv2d(x1[:, :, : num_even + length - 1], both)
    at_even = F.conv2d(x0[:, :, : num_even + length - 1] - x1[:, :, : num_even + length - 1], even)
    at_odd = F.conv2d(x0[:, :, 1 : num_odd + length] - x1[:, :, : num_odd + length - 1], odd)
    last = shared[:, :, num_odd:] + at_even[:, :, num_odd:]  # an even place more, or none
    largest = torch.maximum(at_even[:, :, :num_odd], at_odd, out=at_odd).add_(shared[:, :, :num_odd]).amax(2)
    return largest if num_even == num_odd else torch.maximum(largest, last[:, :, 0])


def _halved(filters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Filters `(C, 1, frames, bands)` -> the sum of even and odd bands, the even ones, the odd ones, each
    `(C, 1, bands / 2, frames)`."""
    turned = filters.transpose(2, 3)
    if turned.shape[2] % 2:
        turned = F.pad(turned, (0, 0, 0, 1))
    even, odd = turned[:, :, 0::2].contiguous(), turned[:, :, 1::2].contiguous()
    return even + odd, even, odd


def _temporal_maxima(x: Tensor, blocks: list[Tensor]) -> list[Tensor]:
    """`(N, T, F)` -> for each kind `(N, C, T)`, the largest product over the bands."""
    num_windows, num_frames = x.shape[:2]
    num_blocks = math.ceil(num_frames / BLOCK_FRAMES)
    longest = max(TEMPORAL_FRAMES)
    before = (longest - 1) // 2
    reach = longest + BLOCK_FRAMES - 1  # frames that a block of outputs hears
    after = (num_blocks - 1) * BLOCK_FRAMES + reach - before - num_frames
    bands = F.pad(x, (0, 0, before, after)).permute(2, 0, 1)  # (F, N, T)
    maxima: list[Tensor] = []
    for some in bands.split(BLOCK_BANDS):
        heard = some.unfold(2, reach, BLOCK_FRAMES).reshape(-1, reach)  # (bands * N * blocks, reach)
        for i, (matrix, length) in enumerate(zip(blocks, TEMPORAL_FRAMES, strict=True)):
            first = before - (length - 1) // 2
            products = heard[:, first : first + length + BLOCK_FRAMES - 1] @ matrix
            largest = products.view(len(some), -1, matrix.shape[1]).amax(0)
            if len(maxima) <= i:
                maxima.append(largest)
            else:
                torch.maximum(maxima[i], largest, out=maxima[i])
    # (N * blocks, 16 C) -> (N, C, T)
    shaped = [m.view(num_windows, num_blocks * BLOCK_FRAMES, -1).transpose(1, 2) for m in maxima]
    return [m[..., :num_frames] for m in shaped]


def _blocked(filters: Tensor) -> Tensor:
    """Filters `(C, length)` -> matrix `(length + 15, 16 C)`: column `i C + c` has filter c from row i on."""
    count, length = filters.shape
    matrix = filters.new_zeros(length + BLOCK_FRAMES - 1, BLOCK_FRAMES, count)
    for i in range(BLOCK_FRAMES):
        matrix[i : i + length, i] = filters.t()
    return matrix.flatten(1)


# Behind the front end ---------------------------------------------------------------------------------------


class MidLayer(nn.Module):
    """Convolution over time, ReLU, batch norm: `(N, C, T)` -> `(N, C', T)`."""

    def __init__(self, num_inputs: int, num_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(num_inputs, num_channels, MID_FRAMES, padding=MID_FRAMES // 2)
        self.norm = nn.BatchNorm1d(num_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))


class Mid(nn.Module):
    """Three convolutions over time, the second and third with a way round them."""

    def __init__(self, num_inputs: int, num_channels: int) -> None:
        super().__init__()
        sizes = (num_inputs, *[num_channels] * (MID_LAYERS - 1))
        self.layers = nn.ModuleList(MidLayer(size, num_channels) for size in sizes)

    def forward(self, front: Tensor) -> list[Tensor]:
        """`(N, 561, T)` -> itself, and what leaves each convolution, `(N, C, T)`."""
        parts = [front]
        for number, layer in enumerate(self.layers):
            y = layer(parts[-1])
            parts.append(y if number == 0 else y + parts[-1])
        return parts


class Tagger(nn.Module):
    """Two dense layers from the representation to tags. Weights are buffers: nothing here is trained."""

    def __init__(self, dim: int, num_units: int, num_tags: int) -> None:
        super().__init__()
        self.pool_norm = FixedNorm(dim)
        self.fc = FixedLinear(dim, num_units)
        self.norm = FixedNorm(num_units)
        self.out = FixedLinear(num_units, num_tags)

    def penultimate(self, representation: Tensor) -> Tensor:
        """`(..., D)`, means and then maxima -> `(..., U)`."""
        means, maxima = representation.chunk(2, dim=-1)
        interleaved = torch.stack([maxima, means], dim=-1).flatten(-2)  # the published order
        return self.norm(F.relu(self.fc(self.pool_norm(interleaved))))

    def logits(self, penultimate: Tensor) -> Tensor:
        """`(..., U)` -> `(..., K)`."""
        return self.out(penultimate)


class FixedNorm(nn.Module):
    """A batch norm with running statistics whose weights are buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + NORM_EPS)
        return (x - self.running_mean) * scale + self.bias


class FixedLinear(nn.Module):
    """A linear map whose weights are buffers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(num_outputs, num_inputs))
        self.register_buffer("bias", torch.empty(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
