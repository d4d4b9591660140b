"""MusiCNN: log-mel spectra of 3 s, filters shaped after what they listen for, dense convolutions over time.

Pons & Serra 2019, "musicnn: Pre-trained convolutional neural networks for music audio tagging"; the layout is that of
Pons et al., ISMIR 2018. Three published models: trained on MagnaTagATune, on the Million Song Dataset, and a larger one
on the latter, which is the representation of the published comparisons (baselines spec, section 6).

Each window of 187 frames gives one vector, the mean over its frames of everything behind the front end and then the
maximum: layer 0, one frame per window. The vector of a clip is the mean over its windows.

Shape letters: `B` batch, `S` samples, `W` windows, `N` windows of all clips, `T` frames of a window, `F` mel bands,
`C` channels, `D` width of the representation, `U` units of the tagger, `K` tags.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiation.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneSpec,
    HiddenStates,
    Pretraining,
    check_one_layer,
)
from audiation.backbones.musicnn_layers import HOP_SAMPLES, SAMPLE_RATE_HZ, Front, LogMelOfHalf, Mid, Tagger
from audiation.weights import OfficialFile, OfficialWeights, check_tensors

WINDOW_FRAMES = 187
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES  # from window to window; 2.992 s
MIN_WINDOW_SAMPLES = (WINDOW_FRAMES - 1) * HOP_SAMPLES  # the fewest with 187 frames
MIN_SAMPLES = 512  # one spectrum, 32 ms: the default convention repeats it
# Windows at a time, so that memory does not grow with the length of a clip.
BLOCK_WINDOWS_CPU = 16
BLOCK_WINDOWS_OTHER = 128

MTT_TAGS = (
    *("guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano"),
    *("ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing"),
    *("vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal"),
    *("pop", "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice"),
    *("female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice"),
    "choral",
)
MSD_TAGS = (
    *("rock", "pop", "alternative", "indie", "electronic", "female vocalists", "dance", "00s"),
    *("alternative rock", "jazz", "beautiful", "metal", "chillout", "male vocalists", "classic rock", "soul"),
    *("indie rock", "Mellow", "electronica", "80s", "folk", "90s", "chill", "instrumental", "punk"),
    *("oldies", "blues", "hard rock", "ambient", "acoustic", "experimental", "female vocalist", "guitar"),
    *("Hip-Hop", "70s", "party", "country", "easy listening", "sexy", "catchy", "funk", "electro"),
    *("heavy metal", "Progressive rock", "60s", "rnb", "indie pop", "sad", "House", "happy"),
)

CONVENTIONS = ("default", "jukemir")


@dataclass(frozen=True)
class MusicnnSize:
    """mid_channels: C of the dense convolutions. tagger_units: U. tag_names: in the order of the outputs."""

    mid_channels: int
    tagger_units: int
    tag_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MusicnnOutputs:
    """What MusiCNN hears in each window.

    representation: `(B, W, D)`, mean over the window's frames, then maximum. penultimate: `(B, W, U)`.
    logits: `(B, W, K)`, tags before the sigmoid.
    """

    representation: Tensor
    penultimate: Tensor
    logits: Tensor


class Musicnn(Backbone):
    """Layer 0 alone, `(B, W, D)` float32: a vector per window of 187 frames (2.992 s), without overlap.

    Conventions, for clips shorter than a window (47,616 samples, 2.976 s):
        "default": they are repeated up to one window. (In training the published models had short clips repeated.)
        "jukemir": they are refused with a ValueError; the published extractor fails on them.
    In both, what is left behind the last whole window is dropped. Nothing is done to the level of the input.

    The tagger behind the representation comes along: see `outputs` and `tags`. It is not trained, for the
    representation does not depend on it: its weights are buffers. After fine-tuning its answers mean nothing.

    In training mode batch norms follow the windows of the batch.

    Args:
        name: registry name.
        size: of the published model.
    """

    conventions = CONVENTIONS

    def __init__(self, name: str, size: MusicnnSize) -> None:
        super().__init__()
        self.name, self.size, self.tag_names = name, size, size.tag_names
        self.sample_rate_hz, self.hop_samples = SAMPLE_RATE_HZ, WINDOW_SAMPLES
        self.frame_rate_hz = SAMPLE_RATE_HZ / WINDOW_SAMPLES
        self.first_frame_seconds = (WINDOW_FRAMES - 1) / 2 * HOP_SAMPLES / SAMPLE_RATE_HZ
        self.num_layers, self.min_samples, self.max_seconds = 0, MIN_SAMPLES, None
        self.normalisation, self.accepts_padding = "none", False
        self.front_end = LogMelOfHalf()
        self.front = Front()
        self.mid = Mid(self.front.num_channels, size.mid_channels)
        self.dim = 2 * (self.front.num_channels + len(self.mid.layers) * size.mid_channels)
        self.head = Tagger(self.dim, size.tagger_units, len(size.tag_names))

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, W, D)`. Raises ValueError as every backbone."""
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        vectors_BWD = self._represent(waveform)
        valid = torch.ones(vectors_BWD.shape[:2], dtype=torch.bool, device=waveform.device)
        states = HiddenStates({0: vectors_BWD}, valid, self.frame_rate_hz, self.first_frame_seconds)
        return states.mean() if reduce == "mean" else states

    def outputs(self, waveform: Tensor) -> MusicnnOutputs:
        """Everything about every window of clips `(B, S)`. Raises ValueError as `forward`."""
        self.check_input(waveform, None)
        vectors_BWD = self._represent(waveform)
        penultimate = self.head.penultimate(vectors_BWD)
        return MusicnnOutputs(vectors_BWD, penultimate, self.head.logits(penultimate))

    def tags(self, waveform: Tensor) -> Tensor:
        """Probabilities `(B, W, K)` of `tag_names` in every window of clips `(B, S)`. ValueError as `forward`."""
        return self.outputs(waveform).logits.sigmoid()

    def use_convention(self, convention: str) -> None:
        """ "default" or "jukemir"; ValueError for others."""
        super().use_convention(convention)
        self.min_samples = MIN_WINDOW_SAMPLES if convention == "jukemir" else MIN_SAMPLES

    def num_frames(self, num_samples: int) -> int:
        """Whole windows, and one for a clip that is shorter."""
        return max(1, self.front_end.num_frames(num_samples) // WINDOW_FRAMES)

    def _represent(self, waveform: Tensor) -> Tensor:
        """`(B, S)` -> `(B, W, D)` float32."""
        if waveform.shape[-1] < MIN_WINDOW_SAMPLES:  # only ever in the default convention
            times = math.ceil(MIN_WINDOW_SAMPLES / waveform.shape[-1])
            waveform = waveform.repeat(1, times)[:, :MIN_WINDOW_SAMPLES]
        num_clips, num_windows = len(waveform), self.num_frames(waveform.shape[-1])
        size = BLOCK_WINDOWS_CPU if waveform.device.type == "cpu" else BLOCK_WINDOWS_OTHER
        # Batch norms of a model in training look at all windows at once.
        step = num_windows if self.training else max(1, size // num_clips)
        continued = self.front_end.continued(waveform)
        vectors = []
        for first in range(0, num_windows, step):
            count = min(step, num_windows - first)
            frames_BTF = self.front_end.frames(continued, first * WINDOW_FRAMES, count * WINDOW_FRAMES)
            windows_NTF = frames_BTF.reshape(num_clips * count, WINDOW_FRAMES, -1)
            vectors.append(self._pooled(windows_NTF).unflatten(0, (num_clips, count)))
        return torch.cat(vectors, dim=1).float()

    def _pooled(self, windows_NTF: Tensor) -> Tensor:
        """`(N, T, F)` -> `(N, D)`. Pooled part by part: the parts are never put together in time."""
        parts = self.mid(self.front(windows_NTF))
        return torch.cat([p.mean(-1) for p in parts] + [p.amax(-1) for p in parts], dim=-1)


# Published names ------------------------------------------------------------------------------------------

_CONVOLUTIONS = (
    *("front.timbral.0.conv", "front.timbral.1.conv"),
    *("front.temporal.0.conv", "front.temporal.1.conv", "front.temporal.2.conv"),
    *("mid.layers.0.conv", "mid.layers.1.conv", "mid.layers.2.conv"),
)
_NORMS = (
    "front.norm",
    *(name.replace(".conv", ".norm") for name in _CONVOLUTIONS),
    "head.pool_norm",
    "head.norm",
)
_DENSE = ("head.fc", "head.out")
_NORM_FIELDS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Steps of the optimiser, which the published files hold as well.
_OPTIMISER_NAMES, _OPTIMISER_ENDINGS = ("beta1_power", "beta2_power"), ("/Adam", "/Adam_1")


def official_names() -> dict[str, str]:
    """Published name -> own one: of the graph's variables, numbered in the order in which they were made."""
    names: dict[str, str] = {}
    for number, own in enumerate(_NORMS):
        prefix = "batch_normalization" if number == 0 else f"batch_normalization_{number}"
        names |= {f"{prefix}/{theirs}": f"{own}.{ours}" for theirs, ours in _NORM_FIELDS.items()}
    for kind, modules in (("conv2d", _CONVOLUTIONS), ("dense", _DENSE)):
        for number, own in enumerate(modules):
            prefix = kind if number == 0 else f"{kind}_{number}"
            names |= {f"{prefix}/kernel": f"{own}.weight", f"{prefix}/bias": f"{own}.bias"}
    return names


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    *,
    name: str,
    size: MusicnnSize,
) -> Musicnn:
    """A backbone from the variables of the published TensorFlow graph, under their names there.

    What the optimiser left in the file is passed over. There is no config that a forward pass depends on.

    Raises:
        WeightsError: a variable that is missing, unknown, or of another shape (of the other size, for example).
        ValueError: `num_layers`.
    """
    check_one_layer(name, num_layers)
    given = {key: tensors[key] for key in tensors if not _of_optimiser(key)}  # each is read once
    backbone = _without_values(name, size)
    own = backbone.state_dict()
    names = official_names()
    expected = {key: _to_published(own[ours].to("meta"), ours) for key, ours in names.items()}
    check_tensors(given, expected, f"the published {name}")
    values = {ours: _from_published(given[key].float(), ours) for key, ours in names.items()}
    values |= {key: torch.zeros_like(t) for key, t in own.items() if key.endswith(".num_batches_tracked")}
    backbone.load_state_dict(values, strict=True)
    return backbone.eval()


def _of_optimiser(name: str) -> bool:
    return name in _OPTIMISER_NAMES or name.endswith(_OPTIMISER_ENDINGS)


def _from_published(tensor: Tensor, own: str) -> Tensor:
    """TensorFlow's axes (time, bands, in, out) as torch's; the dense convolutions lose their axis of one band."""
    if tensor.ndim == 2:
        return tensor.t().contiguous()
    if tensor.ndim == 4 and own.startswith("mid."):
        return tensor.squeeze(2).permute(2, 1, 0).contiguous()
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor


def _to_published(tensor: Tensor, own: str) -> Tensor:
    """The inverse of `_from_published`."""
    if tensor.ndim == 3:
        return tensor.permute(2, 1, 0).unsqueeze(2)
    if tensor.ndim == 2:
        return tensor.t()
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor


# Fresh weights and the registry -----------------------------------------------------------------------------


@torch.inference_mode(mode=False)
def build(
    num_layers: int | None = None,
    generator: torch.Generator | None = None,
    *,
    name: str,
    size: MusicnnSize,
) -> Musicnn:
    """A backbone with fresh weights, drawn from `generator` only (None: one with seed 0).

    As TensorFlow's layers begin: Glorot's uniform weights, zero biases, norms that change nothing.
    """
    check_one_layer(name, num_layers)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    backbone = _without_values(name, size)
    with torch.no_grad():
        for key, tensor in backbone.state_dict().items():
            if tensor.ndim > 1:
                nn.init.xavier_uniform_(tensor, generator=generator)
            else:
                tensor.fill_(1.0 if key.endswith("running_var") or key.endswith("weight") else 0.0)
    return backbone.eval()


def outline(*, name: str, size: MusicnnSize) -> Musicnn:
    """A backbone of this size whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Musicnn(name, size)


def _without_values(name: str, size: MusicnnSize) -> Musicnn:
    backbone = outline(name=name, size=size)
    for module in backbone.modules():
        if any(t.is_meta for t in module.state_dict(keep_vars=True).values()):
            module.to_empty(device="cpu", recurse=False)
    return backbone


PAPER = "Pons & Serra: musicnn: Pre-trained convolutional neural networks for music audio tagging, ISMIR 2019"
WHEEL = "musicnn-0.1.0-py3-none-any.whl"
WHEEL_BYTES = 29_292_476
WHEEL_SHA256 = "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa"
LICENCE_NOTE = "The weights come with the code, whose licence is all that is said of them."
MTT = Pretraining("MagnaTagATune, 50 tags", ("mtt",))
MSD = Pretraining("the Million Song Dataset, 50 tags of last.fm", ("msd",))
NOTES = (
    "A vector per 2.992 s; a rest shorter than that is dropped. Clips shorter than 2.976 s are repeated "
    "(convention 'jukemir': refused).",
    "The published parameters include those of the tagger, which is there (`tags`) and not trained.",
)


def _in_wheel(folder: str) -> OfficialFile:
    return OfficialFile(
        "",
        WHEEL,
        size_bytes=WHEEL_BYTES,
        sha256=WHEEL_SHA256,
        hash_source="spec",
        package="musicnn==0.1.0",
        member=f"musicnn/{folder}/",
    )


def _register(
    name: str,
    summary: str,
    size: MusicnnSize,
    checkpoint: OfficialFile,
    parameters: int,
    pretraining: Pretraining,
    published_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> None:
    BACKBONES.add(
        name,
        BackboneSpec(
            name,
            summary,
            build=partial(build, name=name, size=size),
            from_published=partial(from_published, name=name, size=size),
            weights=OfficialWeights(
                checkpoint,
                config=None,
                licence="ISC",
                licence_note=LICENCE_NOTE,
                unneeded=r".*/Adam(_1)?$|beta[12]_power$",
            ),
            weights_licence="ISC",
            commercial_use=True,
            published_parameters=parameters,
            recommended_layer=0,
            has_encoder=False,
            conventions=CONVENTIONS,
            published_names=published_names,
            notes=(*NOTES, *notes),
            pretraining=pretraining,
            paper=PAPER,
            outline=partial(outline, name=name, size=size),
        ),
    )


_register(
    "musicnn-mtt",
    "tagging CNN trained on MagnaTagATune, a 1,506-d vector per 3 s",
    MusicnnSize(64, 200, MTT_TAGS),
    _in_wheel("MTT_musicnn"),
    787_159,
    MTT,
)
_register(
    "musicnn-msd",
    "tagging CNN trained on the Million Song Dataset, a 1,506-d vector per 3 s",
    MusicnnSize(64, 200, MSD_TAGS),
    _in_wheel("MSD_musicnn"),
    787_159,
    MSD,
)
_register(
    "musicnn-msd-big",
    "the larger tagging CNN trained on the Million Song Dataset, a 4,194-d vector per 3 s",
    MusicnnSize(512, 500, MSD_TAGS),
    OfficialFile(
        "",
        "master.zip",
        url="https://github.com/jordipons/musicnn/archive/refs/heads/master.zip",
        member="musicnn-master/musicnn/MSD_musicnn_big/",
    ),
    7_980_235,
    MSD,
    # jukemir and the thesis write the name in these two ways.
    published_names=("MUSICNN", "MusiCNN"),
    notes=(
        "Not in the Python package; its data file in the repository has 95,817,164 bytes and the git blob id "
        "8797b12a184750ac483685d294a715259922b1b4.",
    ),
)
