"""CLMR: SampleCNN, eleven convolutions on the waveform, pre-trained by contrast (Spijkervet & Burgoyne 2021).

Every window of 59,049 samples (3^10) gives one vector; a clip is the mean over its windows. Two conventions:

* "default": windows of 59,049 samples, one after the other from the start. All that are complete count, and what is
  left behind the last is not heard.
* "jukemir": windows of 59,409 samples (the digits changed places), of which the last is always dropped, be it complete
  or not (Castellon, Donahue & Liang 2021; baselines spec, section 7).

A clip shorter than one window (jukemir: of no more than one window) is refused: the model gives nothing for less, and
padding is not in the published code.

Shape letters: `B` batch, `S` samples, `N` windows, `C` channels, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

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
from audiation.backbones.derived import DerivesWeights, fold_batch_norm
from audiation.weights import OfficialFile, OfficialWeights, WeightsError, check_tensors

SAMPLE_RATE_HZ = 22_050
WINDOW_SAMPLES = 59_049
JUKEMIR_WINDOW_SAMPLES = 59_409
WIDTHS = (128, 128, 128, 256, 256, 256, 256, 256, 256, 512, 512)  # channels of blocks 0 to 10
KERNEL = 3  # of every convolution; also the stride of the first and of the pools
# At inference; the output of block 0 has 10 MB a window, and more of them leave a processor's caches.
WINDOWS_AT_ONCE_CPU = 2
WINDOWS_AT_ONCE_OTHER = 64
CONVENTIONS = ("default", "jukemir")
PUBLISHED_PARAMETERS = 2_368_512
PAPER = "Spijkervet & Burgoyne: Contrastive learning of musical representations, ISMIR 2021"


class Clmr(Backbone):
    """Waveform at 22.05 kHz -> layer 0 alone, `(B, N, 512)`: one vector per window, whose mean is the published one.

    In training mode the batch norms follow the batch, all windows of it together.
    """

    sample_rate_hz = SAMPLE_RATE_HZ
    num_layers, dim = 0, WIDTHS[-1]
    normalisation = "none"
    accepts_padding = True
    window_samples: int

    conventions = CONVENTIONS

    def __init__(self) -> None:
        super().__init__()
        self.name = "clmr"
        self.blocks = nn.ModuleList(
            SampleBlock(before, width, first=i == 0, last=i == len(WIDTHS) - 1)
            for i, (before, width) in enumerate(zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        )
        self.use_convention("default")

    def use_convention(self, convention: str) -> None:
        """ "default" or "jukemir", as at the head of this file. ValueError for another one."""
        super().use_convention(convention)
        jukemir = convention == "jukemir"
        self.window_samples = self.hop_samples = JUKEMIR_WINDOW_SAMPLES if jukemir else WINDOW_SAMPLES
        self.frame_rate_hz = SAMPLE_RATE_HZ / self.window_samples
        self.first_frame_seconds = self.window_samples / 2 / SAMPLE_RATE_HZ
        self.min_samples = self.window_samples + 1 if jukemir else self.window_samples
        # Chunks of one window are the windows of the whole clip, unless its last one is to be dropped.
        self.max_seconds = None if jukemir else self.window_samples / SAMPLE_RATE_HZ

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        layers: Iterable[int] | None = None,
        last_layer: int | None = None,
        reduce: Literal["mean"] | None = None,
    ) -> HiddenStates:
        """Layer 0, `(B, N, 512)`, or its mean over the windows of each clip. Raises ValueError as every backbone."""
        lengths = self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce is 'mean' or None, got {reduce!r}")
        counts = torch.tensor([self.num_frames(n) for n in lengths.tolist()], device=waveform.device)
        most = int(counts.max())
        valid_BN = torch.arange(most, device=waveform.device) < counts[:, None]
        windows = waveform.unfold(1, self.window_samples, self.window_samples)[:, :most]
        vectors = self.vectors(windows[valid_BN])
        hidden_BND = vectors.new_zeros(*valid_BN.shape, self.dim).masked_scatter(
            valid_BN.unsqueeze(-1), vectors
        )
        states = HiddenStates({0: hidden_BND}, valid_BN, self.frame_rate_hz, self.first_frame_seconds)
        return states.mean() if reduce == "mean" else states

    def vectors(self, windows: Tensor) -> Tensor:
        """`(N, S)`, S = 59,049 or 59,409 -> `(N, 512)` float32."""
        at_once = WINDOWS_AT_ONCE_CPU if windows.device.type == "cpu" else WINDOWS_AT_ONCE_OTHER
        if torch.is_grad_enabled() or self.training:  # batch norms see all windows
            at_once = len(windows)
        given = []
        for part in windows.unsqueeze(1).split(at_once):
            for block in self.blocks:
                part = block(part)
            assert part.shape[2] == 1
            given.append(part.squeeze(2))
        return torch.cat(given).float()

    def num_frames(self, num_samples: int) -> int:
        """Windows of a clip of `num_samples`."""
        if self.convention == "jukemir":
            return -(-num_samples // self.window_samples) - 1
        return num_samples // self.window_samples


class SampleBlock(DerivesWeights):
    """Convolution of width 3, batch norm, ReLU, and the maximum of three steps: `(N, C, S)` -> `(N, C', S // 3)`.

    The first block has a stride of 3 in place of the maximum, the last has neither.
    """

    def __init__(self, channels_in: int, channels: int, first: bool = False, last: bool = False) -> None:
        super().__init__()
        self.stride, self.padding = (KERNEL, 0) if first else (1, KERNEL // 2)
        self.pools = not (first or last)
        self.conv = nn.Conv1d(channels_in, channels, KERNEL, self.stride, self.padding)
        self.norm = nn.BatchNorm1d(channels)

    def derive(self) -> tuple[Tensor, ...]:
        return fold_batch_norm(self.conv, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        if (derived := self.derived()) is None:
            x = self.norm(self.conv(x))
        else:
            weight, bias = derived
            x = F.conv1d(x, weight, bias, stride=self.stride, padding=self.padding)
        return F.relu(F.max_pool1d(x, KERNEL) if self.pools else x)  # in this order: on a third of the values


# Making one ------------------------------------------------------------------------------------------


@torch.inference_mode(mode=False)  # weights made in inference mode could not be trained, nor seen to change
def build(num_layers: int | None = None, generator: torch.Generator | None = None) -> Clmr:
    """Fresh weights from the generator (None: one with seed 0): Kaiming for the convolutions, norms that do nothing."""
    check_one_layer("clmr", num_layers)
    backbone = _without_values()
    generator = generator or torch.Generator().manual_seed(0)
    for block in backbone.blocks:
        assert isinstance(block, SampleBlock)
        nn.init.kaiming_normal_(block.conv.weight, nonlinearity="relu", generator=generator)
        assert block.conv.bias is not None
        nn.init.zeros_(block.conv.bias)
        block.norm.reset_parameters()
    return backbone


@torch.inference_mode(mode=False)
def from_published(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], num_layers: int | None = None
) -> Clmr:
    """A Clmr from a published checkpoint, of Lightning or before.

    Args:
        tensors: under official names. Those with "model.encoder." in them are the encoder's; where there are none,
            those with "encoder."; else all, as `sequential.0.0.weight`. The projector, the encoder's output layer
            (`fc`), and a second copy of the encoder are left out.
        config: there is none; not read.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape, or `num_layers` other than 0.
    """
    check_one_layer("clmr", num_layers)
    paths = _encoder_names(tensors)
    backbone = _without_values()
    names = {official: own for own, official in _official_names(backbone).items()}
    found = {official: tensors[path] for official, path in paths.items()}
    own = backbone.state_dict()
    for official in names:  # a count of batches that no forward pass reads; not every file has it
        if official.endswith("num_batches_tracked"):
            found.setdefault(official, torch.tensor(0))
    check_tensors(found, {official: own[ours] for official, ours in names.items()}, "the weights of clmr")
    backbone.load_state_dict({ours: found[official] for official, ours in names.items()})
    return backbone


def outline() -> Clmr:
    """A backbone whose parameters are on the meta device: nothing is drawn, nothing is stored."""
    with torch.device("meta"):
        return Clmr()


def _encoder_names(tensors: Iterable[str]) -> dict[str, str]:
    """Name within the encoder -> name in the file. Names that are no known part of a checkpoint keep their own."""
    paths = list(tensors)
    prefix = next((p for p in ("model.encoder.", "encoder.") if any(p in path for path in paths)), "")
    names: dict[str, str] = {}
    for path in paths:
        if prefix in path:
            name = path.partition(prefix)[2] if prefix else path
        elif "projector." in path or path.startswith("encoder."):
            continue  # what pre-training had on top, and the same weights once more
        else:
            name = path
        if name.startswith("fc."):
            continue
        if name in names:
            raise WeightsError(f"'{names[name]}' and '{path}' are both the encoder's '{name}'")
        names[name] = path
    return names


def _official_names(backbone: Clmr) -> dict[str, str]:
    """Name here -> name in the official encoder."""
    official = {}
    for own in backbone.state_dict():
        _, block, module, leaf = own.split(".")
        official[own] = f"sequential.{block}.{('conv', 'norm').index(module)}.{leaf}"
    return official


def _without_values() -> Clmr:
    """A backbone whose parameters have storage but no values yet: no random number is drawn."""
    return outline().to_empty(device="cpu")


BACKBONES.add(
    "clmr",
    BackboneSpec(
        "clmr",
        "SampleCNN on the waveform, trained by contrast, one 512-d vector per window of 2.7 s",
        build,
        from_published,
        weights=OfficialWeights(
            checkpoint=OfficialFile(
                repo_id="",
                filename="clmr_magnatagatune_mlp.zip",
                url="https://github.com/Spijkervet/CLMR/releases/download/2.1/clmr_magnatagatune_mlp.zip",
                member="clmr_magnatagatune_mlp/clmr_epoch=10000.ckpt",
            ),
            config=None,
            licence="Apache-2.0",
            licence_note="Published in a release of Spijkervet/CLMR, which is under Apache-2.0; the file says nothing.",
        ),
        weights_licence="Apache-2.0",
        published_parameters=PUBLISHED_PARAMETERS,
        recommended_layer=0,
        has_encoder=False,
        conventions=CONVENTIONS,
        published_names=("CLMR",),
        notes=(
            "Clips need one whole window: 59,049 samples, 2.678 s (jukemir: more than 59,409).",
            "Release 2.1 is what jukemir used; whether 2.0 (clmr_checkpoint_10000.zip) holds the same is not known.",
        ),
        pretraining=Pretraining(
            "MagnaTagATune; the thesis (table 6.1) says 1,700 hours, of it and the Million Song Dataset",
            ("mtt",),
        ),
        paper=PAPER,
        outline=outline,
    ),
)
