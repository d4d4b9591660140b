"""CHOI: five small convolutions trained to tag, of which every layer is kept (Choi, Fazekas, Sandler & Cho 2017).

The batch norms of the published model follow the batch at inference too: they have no statistics of their own. So a
vector depends on what its mean and deviation run over, and there are two conventions:

* "default": every clip by itself, whatever its batch; what the authors' own script for single files does.
* "jukemir": over the batch as it is given, the decibel reference too. Castellon, Donahue & Liang (2021) had batches of
  256 in the order of `python2_shuffle`, and a smaller last one.

In both, longer clips are cut to their first 29 s and shorter ones are repeated until they last as long (jukemir's
rule; the authors' script appends silence, over which the batch norms would then run).

Shape letters: `B` batch, `S` samples, `C` channels, `M` mel bands, `T` frames, `D` width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    HiddenStates,
    Pretraining,
    check_one_layer,
)
from audiation.weights import OfficialFile, OfficialWeights, WeightsError, check_tensors

Item = TypeVar("Item")

SAMPLE_RATE_HZ = 12_000
CLIP_SAMPLES = 348_000  # 29 s
FFT_SAMPLES = 512
HOP_SAMPLES = 256
NUM_FRAMES = 1360
NUM_MEL_BANDS = 96
POWER_FLOOR = 1e-10
RANGE_DB = 80.0
CHANNELS = 32
POOLS = ((2, 4), (3, 4), (2, 5), (2, 4), (4, 4))  # mel bands and frames that become one, block by block
NORM_EPS = 1e-3
CLIPS_AT_ONCE = 4  # in a convolution at inference: its output has 16 MB a clip in block 1
CONVENTIONS = ("default", "jukemir")
PUBLISHED_PARAMETERS = 37_632
PAPER = "Choi, Fazekas, Sandler & Cho: Transfer learning for music classification and regression tasks, ISMIR 2017"


class Choi(Backbone):
    """Waveform at 12 kHz -> layer 0 alone, `(B, 1, 160)`: the mean over time and frequency of each of five blocks.

    Clips of a batch may differ in length (`num_samples`): each is cut or repeated to 29 s from its own samples.

    Training mode changes nothing: the statistics are those of the clip, or the batch, in either. The biases of the
    published convolutions are no parameters here, for the batch norms behind them take them away again.
    """

    sample_rate_hz = SAMPLE_RATE_HZ
    frame_rate_hz = hop_samples = None
    num_layers, dim = 0, len(POOLS) * CHANNELS
    min_samples = FFT_SAMPLES
    hears_samples = CLIP_SAMPLES
    max_seconds = None  # clips of any length are taken, of which the first 29 s are heard
    normalisation = "none"
    accepts_padding = True
    unused_parameters = len(POOLS) * CHANNELS

    conventions = CONVENTIONS

    def __init__(self) -> None:
        super().__init__()
        self.name = "choi"
        self.mel = TheanoMel()
        self.blocks = nn.ModuleList(
            PooledBlock(1 if i == 0 else CHANNELS, pool) for i, pool in enumerate(POOLS)
        )

    def use_convention(self, convention: str) -> None:
        """ "default": statistics of every clip; "jukemir": of the batch as given. ValueError for another one."""
        super().use_convention(convention)
        self.mixes_batch = convention == "jukemir"

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, 1, 160)`; `reduce` changes nothing about one vector. Raises ValueError as every backbone."""
        lengths = self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        over_batch = self.convention == "jukemir"
        x = below_maximum(self.mel(cut_or_repeat(waveform, lengths)), over_batch).unsqueeze(1)
        pooled = []
        for block in self.blocks:
            x = block(x, over_batch)  # (B, C, M', T')
            pooled.append(x.mean(dim=(2, 3)))
        valid = torch.ones(len(waveform), 1, dtype=torch.bool, device=waveform.device)
        return HiddenStates({0: torch.cat(pooled, dim=1).float().unsqueeze(1)}, valid, None, 0.0)

    def num_frames(self, num_samples: int) -> int:
        return 1


def cut_or_repeat(waveform: Tensor, lengths: Tensor) -> Tensor:
    """`(B, S)` and true lengths `(B,)` -> `(B, 348000)`: the first 29 s, of shorter clips over and over."""
    if waveform.shape[1] >= CLIP_SAMPLES and bool((lengths >= CLIP_SAMPLES).all()):
        return waveform[:, :CLIP_SAMPLES]
    source = torch.arange(CLIP_SAMPLES, device=waveform.device) % lengths[:, None]
    return waveform.gather(1, source)


def below_maximum(decibels: Tensor, over_batch: bool) -> Tensor:
    """`(B, M, T)` -> decibels below the largest of the clip, or of the whole batch; no further down than 80."""
    largest = decibels.amax() if over_batch else decibels.amax(dim=(1, 2), keepdim=True)
    return (decibels - largest).clamp(min=-RANGE_DB)


class TheanoMel(nn.Module):
    """Mel power spectrum in decibels: `(B, 348000)` -> `(B, 96, 1360)` float32.

    96 Slaney bands of equal area from 0 to 6 kHz over 512-point spectra, hop 256, periodic Hann, zeros around the
    clip. Frame t holds samples 256 t - 257 ... 256 t + 254, one earlier than a centred one: the published layer is a
    convolution whose kernels are flipped (baselines spec, section 5.1).
    """

    keep_float32 = True

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.device("cpu"):
            self.register_buffer("window", torch.hann_window(FFT_SAMPLES, periodic=True), persistent=False)
            self.register_buffer("filters", slaney_filters(), persistent=False)  # (F, M)

    def forward(self, clips: Tensor) -> Tensor:
        with torch.autocast(clips.device.type, enabled=False):
            before = FFT_SAMPLES // 2 + 1
            needed = (NUM_FRAMES - 1) * HOP_SAMPLES + FFT_SAMPLES
            padded = F.pad(clips.float(), (before, needed - before - clips.shape[1]))
            spectrum = torch.stft(
                padded, FFT_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()
            return 10.0 * (self.filters.t() @ power).clamp(min=POWER_FLOOR).log10()


def slaney_filters() -> Tensor:
    """`(257, 96)` float32: triangles of area 1, linear in frequency below 1 kHz and logarithmic above."""
    mel_of_1_khz, mels_per_octave_e = 15.0, 27.0 / math.log(6.4)  # Slaney, Auditory Toolbox, 1998
    highest_hz = SAMPLE_RATE_HZ / 2
    highest_mel = mel_of_1_khz + math.log(highest_hz / 1000.0) * mels_per_octave_e
    mels = torch.linspace(0.0, highest_mel, NUM_MEL_BANDS + 2, dtype=torch.float64)
    logarithmic_hz = 1000.0 * torch.exp((mels - mel_of_1_khz) / mels_per_octave_e)
    edges_hz = torch.where(mels < mel_of_1_khz, mels * (200.0 / 3.0), logarithmic_hz)
    bins_hz = torch.linspace(0.0, highest_hz, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    distance_hz = edges_hz - bins_hz[:, None]  # (F, M + 2)
    width_hz = edges_hz.diff()
    triangles = torch.minimum(-distance_hz[:, :-2] / width_hz[:-1], distance_hz[:, 2:] / width_hz[1:])
    return (triangles.clamp(min=0.0) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))).float()


class PooledBlock(nn.Module):
    """3x3 convolution, batch norm with the statistics of what it is given, ELU, maximum over a rectangle.

    The maximum is taken first: ELU and norm are monotonic, and `sign` turns the channels in which the norm falls. So
    only a pooled map is kept of a clip, beside its mean and variance, and batches of hundreds fit.
    """

    def __init__(self, channels_in: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CHANNELS, channels_in, 3, 3))
        self.gamma = nn.Parameter(torch.empty(CHANNELS))
        self.beta = nn.Parameter(torch.empty(CHANNELS))
        self.pool = pool

    def forward(self, x: Tensor, over_batch: bool) -> Tensor:
        """`(B, C, M, T)` -> `(B, 32, M // pool, T // pool)`; statistics of every clip, or of all together."""
        sign = torch.where(self.gamma.detach() < 0, -1.0, 1.0)
        weight = self.weight * sign.view(-1, 1, 1, 1)
        parts = x.split(len(x) if torch.is_grad_enabled() else CLIPS_AT_ONCE)
        pooled, variances, means = [], [], []
        for part in parts:
            y = F.conv2d(part, weight, padding=1)
            variance, mean = torch.var_mean(y, dim=(2, 3), correction=0)  # (B, 32)
            variances.append(variance)
            means.append(mean)
            pooled.append(F.max_pool2d(y, self.pool))
        variance, mean = torch.cat(variances), torch.cat(means)
        if over_batch:  # maps of one size, so the parts weigh alike
            variance = variance.mean(0, keepdim=True) + mean.var(0, correction=0, keepdim=True)
            mean = mean.mean(0, keepdim=True)
        scale = self.gamma * sign * torch.rsqrt(variance + NORM_EPS)
        offset = self.beta - mean * scale
        return F.elu(torch.cat(pooled) * scale[..., None, None] + offset[..., None, None])


def python2_shuffle(items: Sequence[Item], seed: int) -> list[Item]:
    """`items` in the order in which `random.seed(seed); random.shuffle(items)` leaves them under Python 2.7.

    jukemir shuffled its sorted paths so, with seed 0, before it cut them into batches (baselines spec, section 5.3).
    Python 3 draws other numbers for a shuffle, from the same generator.
    """
    shuffled, generator = list(items), random.Random(seed)
    for i in range(len(shuffled) - 1, 0, -1):
        j = int(generator.random() * (i + 1))
        shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
    return shuffled


# Making one ------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Choi:
    """Fresh weights from the generator (None: one with seed 0): Kaiming for the convolutions, norms that do nothing."""
    check_one_layer("choi", num_layers)
    backbone = _without_values()
    generator = generator or torch.Generator().manual_seed(0)
    for block in backbone.blocks:
        assert isinstance(block, PooledBlock)
        nn.init.kaiming_normal_(block.weight, generator=generator)
        nn.init.ones_(block.gamma)
        nn.init.zeros_(block.beta)
    return backbone


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> Choi:
    """A Choi from the tensors of a Keras 1 file with Theano kernels (`weights_layer4_theano.hdf5`).

    Args:
        tensors: under their paths in the file, of which the last part counts ("ConvBNEluDr/convolution2d_1_W").
            Kernels are those of a true convolution and are flipped here.
        config: there is none; not read.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, or `num_layers` other than 0.
    """
    check_one_layer("choi", num_layers)
    paths: dict[str, str] = {}
    for path in tensors:
        leaf = path.rpartition("/")[2]
        if _is_unused(path):
            continue
        if leaf in paths:
            raise WeightsError(f"'{paths[leaf]}' and '{path}' are both there, expected one of them")
        paths[leaf] = path
    found = {leaf: tensors[path] for leaf, path in paths.items()}
    backbone = _without_values()
    names = _official_names()
    own = backbone.state_dict()
    check_tensors(found, {official: own[ours] for official, ours in names.items()}, "the weights of choi")
    values = {ours: found[official].float() for official, ours in names.items()}
    backbone.load_state_dict({k: v.flip(2, 3) if k.endswith("weight") else v for k, v in values.items()})
    return backbone


def outline() -> Choi:
    """A backbone whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Choi()


def _official_names() -> dict[str, str]:
    """Name in the official file -> name of the parameter here."""
    theirs = {"convolution2d_{}_W": "weight"}
    theirs |= {"batchnormalization_{}_gamma": "gamma", "batchnormalization_{}_beta": "beta"}
    return {
        official.format(i + 1): f"blocks.{i}.{ours}"
        for i in range(len(POOLS))
        for official, ours in theirs.items()
    }


def _is_unused(path: str) -> bool:
    """Of the official file: what is computed here, cancels in a batch norm, was never used, or is the tags' head."""
    group, _, leaf = path.rpartition("/")
    blocks = range(1, len(POOLS) + 1)
    unused = {"dense_1_W", "dense_1_b", *(f"convolution2d_{b}_b" for b in blocks)}
    unused |= {f"batchnormalization_{b}_{what}" for b in blocks for what in ("running_mean", "running_std")}
    spectrum = group.endswith("melgram") and leaf in ("param_0", "param_1", "param_2")
    return leaf in unused or spectrum


def _without_values() -> Choi:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    backbone = outline()
    for block in backbone.blocks:
        block.to_empty(device="cpu")
    return backbone


BACKBONES.add(
    "choi",
    BackboneSpec(
        "choi",
        "mel CNN trained to tag, the means of its five layers, one 160-d vector per clip",
        build,
        from_published,
        weights=OfficialWeights(
            checkpoint=OfficialFile(
                repo_id="",
                filename="weights_layer4_theano.hdf5",
                size_bytes=1_329_264,
                sha256="caf89f811415691fbb245be7eef394b9cebd787d7e3f78e29695972141cf2a08",
                hash_source="spec",
                mismatch_hint="weights_layer0 to weights_layer3 hold fewer blocks; keras2_model is another model.",
                url="https://raw.githubusercontent.com/keunwoochoi/transfer_learning_music/master/weights_transfer/"
                "weights_layer4_theano.hdf5",
            ),
            config=None,
            licence="none stated",
            licence_note="Its repository, keunwoochoi/transfer_learning_music, has no licence: ask its author.",
        ),
        weights_licence="none stated",
        commercial_use=False,
        published_parameters=PUBLISHED_PARAMETERS,
        recommended_layer=0,
        has_encoder=False,
        conventions=CONVENTIONS,
        published_names=("CHOI",),
        notes=(
            "Hears the first 29 s of a clip; shorter clips are repeated until they last 29 s.",
            "Its batch norms have no statistics of their own: those of the clip (default), or of the batch (jukemir).",
            "The published code has no licence either; none of it is here.",
        ),
        pretraining=Pretraining("tags of the Million Song Dataset", ("msd",)),
        paper=PAPER,
        outline=outline,
    ),
)
