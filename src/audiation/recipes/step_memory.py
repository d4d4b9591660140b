"""What memory a training step needs, counted without making it.

Stem and encoder run forward and backward on tensors that have shapes and no values (torch's fake tensors), so that the
largest model is counted in seconds on a machine that could not hold it.

Shape letters: `B` windows, `T` frames, `D` model width.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from audiation.adaptation import GIB
from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.attention import Attention
from audiation.methods import inject, parse_method, set_modes
from audiation.recipes.step_cost import Setting, peak_memory

RUNTIME_BYTES = GIB // 2  # process or context of the device, with its libraries loaded
# Gaps between allocations and workspaces of libraries: on a CPU, 6 % (MusicFM, all trained) to 33 % (MusicFM, LoRA, one
# window) more was measured than is counted.
MARGIN = 1.1
FLOAT_BYTES = 4  # parameters, gradients and moments are float32 under autocast as well
CHECKED_METHOD = "lora"


@dataclass(frozen=True)
class MemoryNeed:
    """What a training step needs at its largest.

    weight_bytes: of the backbone. moment_bytes: Adam's two, of what is trained. activation_bytes: what the forward
        pass keeps for the gradient. step_bytes: activations, gradients and what operations work on, when together they
        are largest.
    gib: of all, with a margin, and what a process needs without any model.
    """

    weight_bytes: int
    moment_bytes: int
    activation_bytes: int
    step_bytes: int

    @property
    def gib(self) -> float:
        counted = self.weight_bytes + self.moment_bytes + self.step_bytes
        return (MARGIN * counted + RUNTIME_BYTES) / GIB


def memory_need(
    backbone: Backbone, clip_seconds: float, batch_size: int, *, bf16: bool, fused_attention: bool
) -> MemoryNeed:
    """Run forward and backward of stem and encoder on tensors that have shapes and no values, and watch what lives.

    The head, which is small, is left out. `backbone` is adapted, in its mode of training, and on the meta device; it
    is of no use afterwards.
    """
    assert backbone.encoder is not None
    parameters = list(backbone.parameters())
    weight_bytes = FLOAT_BYTES * sum(p.numel() for p in parameters)
    moment_bytes = 2 * FLOAT_BYTES * sum(p.numel() for p in parameters if p.requires_grad)
    for module in backbone.modules():
        if fused_attention and isinstance(module, Attention):
            module.dropout = 0.0  # with dropout the kernels of a CPU keep the matrices
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # none is followed
        _give_storage(backbone)
        waveform = torch.empty(batch_size, round(clip_seconds * backbone.sample_rate_hz))
        with _LiveBytes([waveform, *backbone.parameters(), *backbone.buffers()]) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                projected_BTD = backbone.project(waveform)
                for layer_BTD in backbone.encoder.layers(projected_BTD):
                    last_BTD = layer_BTD
                total = last_BTD.float().mean()
            del projected_BTD, layer_BTD, last_BTD
            kept = live.now
            if total.requires_grad:
                total.backward()
    return MemoryNeed(weight_bytes, moment_bytes, kept, live.most)


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still alive. most: when they were most."""

    def __init__(self, apart_from: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in apart_from}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, out)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:  # a view, or changed in place
            return
        self._seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, address: int, num_bytes: int) -> None:
        self._seen.discard(address)
        self.now -= num_bytes


def _give_storage(backbone: nn.Module) -> None:
    """Parameters and buffers of the meta device become tensors of the mode that is active."""
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class Shapes:
    """Backbones of any depth on the meta device: what `memory_need` takes. Each is made once."""

    def __init__(self) -> None:
        self._whole: dict[str, Backbone] = {}

    def whole(self, name: str) -> Backbone:
        """With all blocks. ValueError for a backbone without."""
        if name not in self._whole:
            made = BACKBONES[name].build()
            if made.encoder is None:
                raise ValueError(f"'{name}' has no blocks to count. Backbones with blocks: {_with_blocks()}.")
            made = made.to("meta")
            made.name = name
            self._whole[name] = made
        return self._whole[name]

    def backbone(self, name: str, num_layers: int) -> Backbone:
        """A copy with its first blocks only."""
        cut = copy.deepcopy(self.whole(name))
        assert cut.encoder is not None and num_layers <= cut.num_layers
        cut.encoder.blocks = cut.encoder.blocks[:num_layers]
        cut.num_layers = num_layers
        return cut


def _with_blocks() -> str:
    return ", ".join(name for name in BACKBONES if BACKBONES[name].from_published is not None)


@dataclass(frozen=True)
class MemoryCheck:
    """One case estimated and measured: a step in float32 on one window, on the CPU, in a process of its own."""

    backbone: str
    num_layers: int
    clip_seconds: float
    estimated_gib: float
    measured_gib: float

    @property
    def sentence(self) -> str:
        off = self.estimated_gib / self.measured_gib - 1
        return (
            f"Check: {CHECKED_METHOD} on {self.backbone}, {self.num_layers} layers, one window of "
            f"{self.clip_seconds:.1f} s, fp32 on this CPU: estimated {self.estimated_gib:.2f} GiB, measured "
            f"{self.measured_gib:.2f} GiB (peak resident memory): the estimate is {abs(off):.0%} too "
            f"{'high' if off > 0 else 'low'}."
        )


def check_estimate(name: str, num_layers: int, shapes: Shapes) -> MemoryCheck:
    """Measure what `memory_need` estimates, in one cheap case."""
    backbone = shapes.backbone(name, num_layers)
    clip_seconds = backbone.max_seconds or 5.0
    inject(backbone, parse_method(CHECKED_METHOD))
    set_modes(backbone)
    need = memory_need(backbone, clip_seconds, 1, bf16=False, fused_attention=False)
    measured = peak_memory(Setting(name, CHECKED_METHOD, num_layers, clip_seconds))
    return MemoryCheck(name, num_layers, clip_seconds, need.gib, measured.peak_bytes / GIB)
