"""Source separation on frozen features: a mask for the spectrogram of a mixture from what a backbone hears in it.

The model of MARBLE (thesis, section 3.1; benchmark, section 6), which is that of the Music Demixing Challenge 2021 with
features in place of the spectrogram: the spectrogram is only what the mask is laid on. The thesis says that its LSTM
is bidirectional, the released code has a forward one (D26).

Shape letters: `B` clips, `S` samples, `T` frames of the spectrogram, `U` frames of the backbone, `D` model width, `H`
hidden width, `F` frequency bins, `N` stems, `L` blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.frames import FrameGrid
from audiation.magnitudes import SPECTROGRAM, MagnitudeTarget
from audiation.metrics_separation import STEMS
from audiation.training import Loss

Direction = Literal["forward", "both"]
LstmState = tuple[Tensor, Tensor]

NUM_LSTM_LAYERS = 3
LSTM_DROPOUT = 0.4


class Hidden(NamedTuple):
    """frames: `(B, T, 2 H)`, what a mask is read from. state: the LSTM's after the last frame."""

    frames: Tensor
    state: LstmState


class MaskModel(nn.Module):
    """Hidden states of a backbone -> the mask of one stem.

    Shift and scale of the features, linear D -> H, batch norm, tanh; LSTM; its input beside its output; linear
    2 H -> H, batch norm, ReLU; linear H -> F, batch norm, scale and shift, ReLU. No linear map has a bias. A mask
    value is not limited to 1.

    Args:
        dim: D.
        num_layers: layers of the backbone that it is handed; of more than one it takes a weighted sum, whose weights
            are a softmax of learned numbers, standard normal at first.
        hidden_size: H.
        direction: of the LSTM. "both" has half the width each way, so that H stays.
        generator: of the initial weights, which have the distributions of torch's defaults. None: one with seed 0.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 1,
        num_bins: int = SPECTROGRAM.num_bins,
        hidden_size: int = 512,
        direction: Direction = "forward",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if direction not in get_args(Direction):
            raise ValueError(f"direction is 'forward' or 'both', got {direction!r}")
        if min(dim, num_layers, num_bins, hidden_size) < 1 or (direction == "both" and hidden_size % 2):
            raise ValueError(
                f"sizes must be positive, and hidden_size even for both directions, got {dim} wide features of "
                f"{num_layers} layers, hidden_size={hidden_size}, {num_bins} bins"
            )
        self.hidden_size, self.direction = hidden_size, direction
        with torch.random.fork_rng(devices=[]):  # what the constructors draw is replaced
            self.input = nn.Linear(dim, hidden_size, bias=False)
            self.lstm = nn.LSTM(
                hidden_size,
                hidden_size if direction == "forward" else hidden_size // 2,
                NUM_LSTM_LAYERS,
                batch_first=True,
                dropout=LSTM_DROPOUT,
                bidirectional=direction == "both",
            )
            self.hidden = nn.Linear(2 * hidden_size, hidden_size, bias=False)
            self.output = nn.Linear(hidden_size, num_bins, bias=False)
        self.input_norm = nn.BatchNorm1d(hidden_size)
        self.hidden_norm = nn.BatchNorm1d(hidden_size)
        self.output_norm = nn.BatchNorm1d(num_bins)
        self.input_mean, self.input_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.ones(dim))
        self.output_mean, self.output_scale = (
            nn.Parameter(torch.ones(num_bins)),
            nn.Parameter(torch.ones(num_bins)),
        )
        self.layer_weights = nn.Parameter(torch.zeros(num_layers)) if num_layers > 1 else None
        self._draw(generator or torch.Generator().manual_seed(0))

    def forward(self, layers: Sequence[Tensor], frame_index: Tensor) -> Tensor:
        """Hidden states, `(B, U, D)` of each layer, and which of their frames each frame of the spectrogram takes,
        `(T,)` -> mask `(B, F, T)`, not negative."""
        return self.mask(self.encode(layers, frame_index).frames)

    def encode(self, layers: Sequence[Tensor], frame_index: Tensor, state: LstmState | None = None) -> Hidden:
        """As far as the LSTM. state: what it ended with on the frames before these; None: nothing was before."""
        x_BUD = layers[0]
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(0)
            x_BUD = sum(
                (w * layer for w, layer in zip(weights, layers, strict=True)), torch.zeros_like(x_BUD)
            )
        x_BTD = (x_BUD + self.input_mean).mul(self.input_scale)[:, frame_index]
        x_BTH = torch.tanh(_normalised(self.input_norm, self.input(x_BTD)))
        out_BTH, state = self.lstm(x_BTH, state)
        return Hidden(torch.cat([x_BTH, out_BTH], dim=-1), state)

    def mask(self, hidden: Tensor) -> Tensor:
        """`(B, T, 2 H)` -> `(B, F, T)`."""
        x_BTH = torch.relu(_normalised(self.hidden_norm, self.hidden(hidden)))
        x_BTF = _normalised(self.output_norm, self.output(x_BTH))
        return torch.relu(x_BTF * self.output_scale + self.output_mean).transpose(1, 2)

    def _draw(self, generator: torch.Generator) -> None:
        bounds = {part: part.in_features**-0.5 for part in (self.input, self.hidden, self.output)}
        with torch.no_grad():
            for part, bound in bounds.items():
                part.weight.uniform_(-bound, bound, generator=generator)
            for parameter in self.lstm.parameters():
                parameter.uniform_(
                    -(self.lstm.hidden_size**-0.5), self.lstm.hidden_size**-0.5, generator=generator
                )
            if self.layer_weights is not None:
                self.layer_weights.normal_(generator=generator)


class SeparationModel(nn.Module):
    """A frozen backbone and one `MaskModel` per stem. The masks are the root's only trained part.

    One model per stem, as published; here they share the features that they read. A model for some of the stems is a
    model of its own.

    Args:
        backbone: put into eval mode and frozen, in place. Its frames may have any rate: a frame of the spectrogram
            takes the backbone's frame of its number where the rates are equal, as in the released code, else the one
            that is nearest in time, so that slower frames are repeated and faster ones skipped.
        stems: names, in the order of the masks.
        layer: which hidden states the masks read; None: a weighted sum of layers 1..L (layer 0 is left out, as in
            the released code), or layer 0 of a backbone that has no other.
        hidden_size, direction, generator: as in `MaskModel`.

    Raises:
        ValueError: a backbone that gives one vector per clip, or that is adapted; no such layer; no stem, or one twice.
    """

    def __init__(
        self,
        backbone: Backbone,
        stems: Sequence[str] = STEMS,
        *,
        layer: int | None = None,
        hidden_size: int = 512,
        direction: Direction = "forward",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if backbone.frame_rate_hz is None:
            raise ValueError(
                f"{backbone.name} gives one vector per clip, and a mask needs frames. Use a backbone with frames, for "
                "example mert-v1-95m, musicfm-msd or logmel-frames."
            )
        if getattr(backbone.adapted_with, "trains_backbone", False):
            raise ValueError(
                f"{backbone.name} is adapted, and separation reads a frozen backbone. Load it again, or merge it."
            )
        if not stems or len(set(stems)) < len(stems):
            raise ValueError(f"name one stem or more, each once, got {', '.join(stems) or 'none'}")
        generator = generator or torch.Generator().manual_seed(0)
        if layer is None:
            self.layers = list(range(1, backbone.num_layers + 1)) or [0]
        else:
            self.layers = [backbone.resolve_layers([layer], None)[1]]
        self.backbone = backbone.requires_grad_(False).eval()
        self.stems, self.spectrogram = tuple(stems), SPECTROGRAM
        self.masks = nn.ModuleDict(
            {
                stem: MaskModel(
                    backbone.dim,
                    len(self.layers),
                    self.spectrogram.num_bins,
                    hidden_size,
                    direction,
                    generator,
                )
                for stem in self.stems
            }
        )
        held = next((t.device for t in [*backbone.parameters(), *backbone.buffers()]), torch.device("cpu"))
        self.masks.to(held)

    def forward(self, waveform: Tensor, num_frames: int) -> Tensor:
        """Masks `(B, N, F, num_frames)` for the spectrogram of a mixture.

        waveform: `(B, S)`, the mono mixture at the backbone's rate.
        """
        layers = self.features(waveform)
        index = self.frame_index(num_frames, layers[0].shape[1]).to(waveform.device)
        return torch.stack([model(layers, index) for model in self.mask_models], dim=1)

    @torch.no_grad()
    def features(self, waveform: Tensor) -> list[Tensor]:
        """`(B, S)` mono at the backbone's rate -> the layers that the masks read, each `(B, U, D)` float32."""
        states = self.backbone(waveform, layers=self.layers)
        return [states.layers[layer][:, states.num_prompts :].float() for layer in self.layers]

    def frame_index(self, num_frames: int, num_states: int) -> Tensor:
        """Which of `num_states` frames of the backbone each frame of a spectrogram takes, `(num_frames,)`.

        Beyond the last one that is the last one. (The released code puts a zero frame there.)
        """
        rate = self.backbone.frame_rate_hz
        assert rate is not None
        if math.isclose(rate, self.spectrogram.frame_rate_hz, rel_tol=1e-9):
            nearest = np.arange(num_frames)
        else:
            grid = FrameGrid(num_states, rate, self.backbone.first_frame_seconds)
            nearest = grid.positions(np.arange(num_frames) / self.spectrogram.frame_rate_hz)
        return torch.from_numpy(nearest.clip(0, num_states - 1))

    @property
    def mask_models(self) -> list[MaskModel]:
        """In the order of `stems`."""
        models = [self.masks[stem] for stem in self.stems]
        return [model for model in models if isinstance(model, MaskModel)]

    @property
    def min_seconds(self) -> float:
        """Shortest song: one that its spectrum and the backbone can take."""
        spectrum = (self.spectrogram.edge_samples + 1) / self.spectrogram.sample_rate_hz
        return max(spectrum, self.backbone.min_samples / self.backbone.sample_rate_hz)

    @property
    def direction(self) -> Direction:
        return self.mask_models[0].direction

    @property
    def device(self) -> torch.device:
        return self.mask_models[0].output.weight.device


def separation_loss(model: SeparationModel, waveform: Tensor, mixture: Tensor, stems: Tensor) -> Loss:
    """Squared error between estimated and true linear magnitudes, over all stems, bins and frames.

    Args:
        waveform: `(B, S)` mono mixture at the backbone's rate.
        mixture: `(B, 2, S)` at the rate of the spectrogram.
        stems: `(B, N, 2, S)`, in the order of `model.stems`.
    """
    mixed_BFT = model.spectrogram.magnitude(mixture)
    truth_BNFT = model.spectrogram.magnitude(stems)
    masks_BNFT = model(waveform, mixed_BFT.shape[-1]).float()
    estimated_BNFT = masks_BNFT * mixed_BFT[:, None]
    target = MagnitudeTarget(model.stems, model.spectrogram)
    per_stem = (estimated_BNFT - truth_BNFT).detach().square().mean((0, 2, 3)).tolist()
    loss = target.loss(estimated_BNFT, truth_BNFT)
    return Loss(loss.sum, loss.count, dict(zip(model.stems, per_stem, strict=True)))


def _normalised(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Batch norm over clips and frames: `(B, T, C)` -> the same."""
    return norm(x.flatten(0, 1)).view_as(x)
