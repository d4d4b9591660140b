"""Jukebox: the first half of a model that composes, as a representation.

A VQ-VAE turns the waveform into one code per 128 samples, and a transformer of 5 billion parameters, trained to predict
every code from those before it, is run over them. Its hidden states, the 36th of 72 foremost, say what is heard
(Castellon, Donahue & Liang 2021). Frame p has heard what came before p: the codes 0 to p - 1, none of them at p = 0.

Layers: 0 is what enters block 1, i is the residual stream behind block i. There is no final norm.

It is probed, not trained: its weights are half precision, and no gradient flows.

Dhariwal et al. 2020, "Jukebox: A Generative Model for Music"; baselines spec, section 8. Shape letters: `B` batch, `S`
samples, `T` codes or frames, `D` model width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, HiddenStates, Pretraining
from audiation.backbones.jukebox_conditioning import (
    JukeboxConditioning,
    PriorConfig,
    constants,
    label_tables,
    label_vector,
)
from audiation.backbones.jukebox_cost import ForwardCost, forward_cost
from audiation.backbones.jukebox_prior import (
    OFFICIAL_CODES,
    OFFICIAL_HEAD,
    OFFICIAL_POSITIONS,
    Prior,
    official_block_names,
)
from audiation.backbones.jukebox_prior import draw as draw_prior
from audiation.backbones.jukebox_vqvae import HOP_SAMPLES, CodeEncoder
from audiation.backbones.jukebox_vqvae import draw as draw_encoder
from audiation.backbones.jukebox_vqvae import official_names as encoder_names
from audiation.weights import OfficialFile, OfficialWeights, check_tensors

NAME = "jukebox-5b"
VQVAE_PREFIX = "vqvae."
JUKEMIR_SECONDS = 25.0  # of a file, from its beginning; of their codes the first 8192 are used
MIN_CODES = 2  # the first frame has heard nothing
ATTENTION_ORDER = 2  # what the published code calls the three patterns in turn
CONVENTIONS = ("default", "jukemir")


class Jukebox(Backbone):
    """Waveform `(B, S)` -> layers 0..L, each `(B, T, D)` float32, one frame per 128 samples.

    Clips of at most 23.777 s (8192 codes) are heard at once; a shorter one runs the first positions only, and gives
    what the same positions of a longer one would, as far as its codes are the same. Two conventions:

    "default": each piece that is heard at once is divided by its own peak.
    "jukemir": as the published vectors were made. A clip is a whole file, divided by the peak of that file before
        `forward` sees it (`normalisation` is "file-peak": whoever reads the file does it); `forward` leaves the level
        alone, codes the first 25 s, keeps the first 8192 codes and ignores what follows. Files of less than
        23.777 s are refused. The mean over all frames, the first included, is the published vector.

    Building draws no random numbers: the parameters have shapes only. `build` and `from_published` fill them.

    Args:
        config: of the published model.
        num_layers: keep the first blocks only.
        streamed: leave the weights of the blocks where they are, for a device that does not hold them all.

    Raises ValueError for a depth that the model does not have.
    """

    conventions = CONVENTIONS

    def __init__(
        self, config: PriorConfig, name: str, num_layers: int | None = None, streamed: bool = False
    ) -> None:
        super().__init__()
        depth = config.prior_depth if num_layers is None else num_layers
        if not 0 < depth <= config.prior_depth:
            raise ValueError(f"{name} has {config.prior_depth} layers, got num_layers={num_layers}")
        self.config, self.name, self.sample_rate_hz = config, name, config.sr
        self.num_layers, self.dim = depth, config.prior_width
        self.hop_samples = config.raw_to_tokens
        self.frame_rate_hz = config.sr / config.raw_to_tokens
        self.accepts_padding = False
        self.unused_tensors: tuple[str, ...] = ()
        with torch.device("meta"):
            self.vqvae = CodeEncoder(config.l_bins).requires_grad_(False)
            self.prior = Prior(config, depth, streamed)
        self.use_convention("default")

    def use_convention(self, convention: str) -> None:
        super().use_convention(convention)
        longest = self.config.max_samples
        if convention == "jukemir":
            self.normalisation, self.min_samples, self.max_seconds = "file-peak", longest, None
            self._coded_samples: int | None = round(JUKEMIR_SECONDS * self.sample_rate_hz)
        else:
            self._coded_samples = None
            self.normalisation, self.min_samples = "clip-peak", MIN_CODES * self.config.raw_to_tokens
            self.max_seconds = longest / self.sample_rate_hz

    @torch.no_grad()
    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """As every backbone; a whole batch goes through a block before the next one's weights are touched.

        Raises ValueError also for a clip that is too long, where the convention does not cut it.
        """
        self.check_input(waveform, num_samples)
        wanted, stop = self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        codes_BT = self.codes(waveform)
        valid_BT = torch.ones(codes_BT.shape, dtype=torch.bool, device=codes_BT.device)
        kept: dict[int, Tensor] = {}
        for index, x_BTD in enumerate(self.prior.layers(codes_BT, stop)):
            if index in wanted:
                kept[index] = x_BTD.mean(1, keepdim=True) if reduce == "mean" else x_BTD
        if reduce == "mean":
            return HiddenStates(kept, valid_BT[:, :1], None, 0.0)
        return HiddenStates(kept, valid_BT, self.frame_rate_hz, self.first_frame_seconds)

    @torch.no_grad()
    def codes(self, waveform: Tensor) -> Tensor:
        """`(B, S)`, as `forward` takes it, -> `(B, T)` int64: what the transformer is run over."""
        if self.convention == "jukemir":
            return self.vqvae(waveform[:, : self._coded_samples])[:, : self.config.n_ctx]
        peak = waveform.abs().amax(1, keepdim=True)
        return self.vqvae(waveform / torch.where(peak > 0, peak, 1.0))

    def check_input(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        lengths = super().check_input(waveform, num_samples)
        if self.num_frames(waveform.shape[1]) > self.config.n_ctx:
            raise ValueError(
                f"{self.name} hears at most {self.config.max_samples} samples ({self.max_seconds:.3f} s) at once, got "
                f"{waveform.shape[1]}. Cut the clip, or call `audiation.inference.run_clip`, which does."
            )
        return lengths

    def num_frames(self, num_samples: int) -> int:
        codes = num_samples // self.config.raw_to_tokens
        return min(codes, self.config.n_ctx) if self.convention == "jukemir" else codes

    def forward_cost(
        self, num_clips: int = 1, num_samples: int | None = None, last_layer: int | None = None
    ) -> ForwardCost:
        """What a pass over clips costs. For the published model cut to 36 blocks 40.9 TFLOP per clip of 23.8 s.

        Args:
            num_samples: S of a clip; None: the longest.
            last_layer: the block after which the pass stops; None: the last one.
        """
        _, stop = self.resolve_layers(None, last_layer)
        num_samples = self.config.max_samples if num_samples is None else num_samples
        coded_samples = min(num_samples, self._coded_samples) if self._coded_samples else num_samples
        return forward_cost(
            self.vqvae, self.prior, num_clips, coded_samples, self.num_frames(num_samples), stop
        )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise ValueError(
                f"'{self.name}' cannot be trained: its weights are half precision, and a code is no smooth function of "
                "the waveform. Use method 'probe'."
            )
        return super().requires_grad_(False)


# Published weights -----------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_layers: int | None = None,
    *,
    name: str = NAME,
) -> Jukebox:
    """A backbone from tensors under their official names: those of the prior, and those of the VQ-VAE behind "vqvae.".

    What is needed is read once, one tensor after the other, and copied; of a mapping that reads when it is asked, the
    output head, later blocks, decoders and finer levels never leave the file. Weights of linear maps are rounded to
    half precision if they are not; the published ones are.

    Args:
        config: any of `artist_id`, `genre_ids`, `total_seconds`, `offset_seconds` (see `JukeboxConditioning`);
            `stream_blocks`: true leaves the blocks in the mapped file (see `Prior`), which must not change meanwhile;
            and hyper-parameters under their published names, where they are not those of "5b" (see `PriorConfig`).
        num_layers: read the first blocks only. A file may end with the last block that is asked for.

    Raises:
        ValueError: names the tensors that are unknown, missing or of another shape, or the config's problem.
    """
    parsed, conditioning, streamed = _read_config(config)
    backbone = Jukebox(parsed, name, num_layers, streamed)
    label_vector(conditioning, parsed)  # refused before anything is read
    reader = _Reader(tensors, backbone)
    start, timing = constants(conditioning, parsed, reader.read)
    state = {"prior.start": start, "prior.positions": reader.read(OFFICIAL_POSITIONS).float() + timing}
    own = backbone.state_dict()  # shapes and dtypes only
    for official, ours in reader.names.items():
        if ours not in state:
            stays = streamed and own[ours].dtype == torch.float16
            state[ours] = _as_kept(official, reader.read(official), own[ours].dtype, stays)
    backbone.load_state_dict(state, assign=True)
    backbone.unused_tensors = reader.unused
    return backbone.eval()


class _Reader:
    """Official tensors of one backbone: checked by name at once, by shape when read.

    names: official -> own, of all parameters but the constants. unused: names in the file that nothing is read of.
    """

    def __init__(self, tensors: Mapping[str, Tensor], backbone: Jukebox) -> None:
        self.tensors, self.what = tensors, backbone.name
        self.names = {
            VQVAE_PREFIX + official: f"vqvae.{own}" for official, own in encoder_names(backbone.vqvae)
        }
        self.names |= {OFFICIAL_CODES: "prior.codes", OFFICIAL_POSITIONS: "prior.positions"}
        self.names |= {k: f"prior.{own}" for k, own in official_block_names(backbone.num_layers)}
        own = backbone.state_dict()
        tables = label_tables(backbone.config)
        self.shapes = {k: tuple(own[ours].shape) for k, ours in self.names.items()} | tables
        self.spelled: dict[str, str] = {}  # official -> as in the file
        for key in tensors:
            inside = VQVAE_PREFIX if key.startswith(VQVAE_PREFIX) else ""
            plain = inside + key.removeprefix(inside).removeprefix("module.")
            if plain in self.spelled:
                raise ValueError(f"'{plain}' is there twice, with 'module.' and without")
            self.spelled[plain] = key
        if not any(key.startswith(VQVAE_PREFIX) for key in self.spelled):
            raise ValueError(
                f"{self.what} consists of two files, and the tensors of vqvae.pth.tar are not there. Put them "
                f"into the mapping with '{VQVAE_PREFIX}' before their names."
            )
        later = {k for k, _ in official_block_names(backbone.config.prior_depth)} - self.names.keys()
        unused = {k for k in self.spelled if k in later or k == OFFICIAL_HEAD or _OTHER_VQVAE.match(k)}
        self.unused = tuple(self.spelled[k] for k in self.spelled if k in unused - self.shapes.keys())
        nothing = torch.empty(0)
        expected = dict.fromkeys([*self.shapes, *unused], nothing)
        check_tensors(dict.fromkeys(self.spelled, nothing), expected, self.what)  # names alone: none is read

    def read(self, official: str) -> Tensor:
        tensor = self.tensors[self.spelled[official]].detach()
        expected = torch.empty(self.shapes[official], device="meta")
        check_tensors({official: tensor}, {official: expected}, self.what)
        if not tensor.is_floating_point() or tensor.dtype == torch.bfloat16:
            raise ValueError(
                f"'{official}' is {tensor.dtype}; float16 and float32 keep the published numbers. Convert the official "
                "file again."
            )
        return tensor


_OTHER_VQVAE = re.compile(r"vqvae\.((encoders|decoders)\.\d+\.|bottleneck\.level_blocks\.\d+\.k$)")


def _as_kept(official: str, tensor: Tensor, dtype: torch.dtype, stays: bool) -> Tensor:
    if not stays:
        return tensor.to(dtype, copy=True)
    if tensor.dtype != dtype:
        raise ValueError(
            f"stream_blocks leaves weights in their file, which has to hold them in {dtype}; '{official}' is "
            f"{tensor.dtype}. Leave stream_blocks away, or convert the file."
        )
    return tensor


def _read_config(config: Mapping[str, Any]) -> tuple[PriorConfig, JukeboxConditioning, bool]:
    published = {f.name for f in fields(PriorConfig)}
    allowed = (
        published
        | {f.name for f in fields(JukeboxConditioning)}
        | {"stream_blocks", "attn_order", "sample_length"}
    )
    if unknown := sorted(config.keys() - allowed):
        raise ValueError(f"the config has no {', '.join(unknown)}; known are {', '.join(sorted(allowed))}")
    streamed = config.get("stream_blocks", False)
    if not isinstance(streamed, bool):
        raise ValueError(f"stream_blocks is true or false, got {streamed!r}")
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in published
    }
    parsed = PriorConfig(**values)
    fixed = {"raw_to_tokens": HOP_SAMPLES, "sample_length": parsed.max_samples, "attn_order": ATTENTION_ORDER}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} = {config[key]!r} is not supported, only {value!r}")
    return parsed, JukeboxConditioning.from_config(config), streamed


# Fresh weights and the registry ----------------------------------------------------------------------------


@torch.inference_mode(mode=False)
def build(
    num_layers: int | None = None,
    generator: torch.Generator | None = None,
    *,
    config: PriorConfig | None = None,
    name: str = NAME,
) -> Jukebox:
    """A backbone with fresh weights, drawn from `generator` only (None: one with a fixed seed).

    138 MB per block at full width: 10 GB for all 72.
    """
    backbone = Jukebox(config or PriorConfig(), name, num_layers).to_empty(device="cpu")
    generator = torch.Generator() if generator is None else generator
    with torch.no_grad():
        draw_encoder(backbone.vqvae, generator)
        draw_prior(backbone.prior, generator)
    return backbone.eval()


def outline() -> Jukebox:
    """The whole model on the meta device: nothing is drawn, nothing is stored."""
    return Jukebox(PriorConfig(), NAME)


_ADDRESS = "https://openaipublic.azureedge.net/jukebox/models/5b"
_LICENCE = "OpenAI Noncommercial Use License"
VQVAE_FILE = OfficialFile("", "vqvae.pth.tar", url=f"{_ADDRESS}/vqvae.pth.tar")
PRIOR_FILE = OfficialFile("", "prior_level_2.pth.tar", url=f"{_ADDRESS}/prior_level_2.pth.tar")

BACKBONES.add(
    NAME,
    BackboneSpec(
        NAME,
        "music language model over VQ-VAE codes, 4800-d at 344.5 Hz; layer 36 needs half of 5 billion parameters",
        build=build,
        from_published=partial(from_published, name=NAME),
        weights=OfficialWeights(
            checkpoint=PRIOR_FILE,
            config=None,
            further={VQVAE_PREFIX: VQVAE_FILE},
            unneeded=r"(module\.)?(prior\.x_out|encoders\.[01]|decoders|bottleneck\.level_blocks\.[01])\.",
            not_in_hash=("stream_blocks",),
            licence=_LICENCE,
            licence_note="See https://github.com/openai/jukebox; the weights are not stated apart from the code.",
            default_config={
                "artist_id": 0,
                "genre_ids": [0],
                "total_seconds": 62.0,
                "offset_seconds": 0.0,
                "stream_blocks": False,
            },
        ),
        weights_licence=_LICENCE,
        commercial_use=False,
        published_parameters=5_060_452_800,
        recommended_layer=36,
        has_encoder=False,
        has_blocks=True,
        conventions=CONVENTIONS,
        published_names=("JUKEBOX", "Jukebox-5B"),
        notes=(
            "Two files: prior_level_2.pth.tar (10.3 GB) and vqvae.pth.tar (7.5 MB).",
            "Load with num_layers=36: half of the weights, 5.3 GB, and 40.9 TFLOP per clip of 23.8 s.",
            "Windows: at most 23.777 s (8192 codes) at once; longer clips are cut into such chunks, shorter ones run "
            "the first positions.",
            'Convention "jukemir": the first 25 s of a file that is divided by its peak, of their codes the first '
            "8192; less is refused.",
            "Frame p has heard the codes before p; the mean over all frames is the published vector.",
            "Probed only: no sockets, no gradients.",
        ),
        pretraining=Pretraining(
            "1.2 million songs that are not public; 60,000 to 120,000 hours by the estimate of the MARBLE thesis"
        ),
        paper="Dhariwal et al.: Jukebox: A generative model for music, arXiv 2005.00341, 2020",
        outline=outline,
    ),
)
