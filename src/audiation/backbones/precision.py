"""bfloat16 inference: which parameters, by which path.

What runs in bfloat16 is stem and encoder. Their buffers (mel filters), batch norms and what comes before them
(waveform normalisation) stay float32, and so do the hidden states that a backbone returns.

Processors without bfloat16 instructions emulate every product and are several times slower in bfloat16 than
in float32. There the same rounding is applied, but float32 arithmetic multiplies.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiation.backbones.base import Backbone
from audiation.backbones.derived import DerivesWeights

Precision = Literal["fp32", "bf16"]


def set_precision(backbone: Backbone, precision: Precision, native: bool | None = None) -> None:
    """Make `backbone` infer in this precision, in place. Move it to its device first.

    Sets `backbone.precision` and `backbone.arithmetic`, which says what multiplies:
        "bf16": parameters and activations are bfloat16.
        "fp32": both are held as float32. For precision "bf16", parameters are rounded to bfloat16 once, and
            the input of every linear map and convolution at every call.

    One way: rounded weights do not come back.

    Args:
        native: bfloat16 arithmetic for precision "bf16"; None: where the device has instructions for it.

    Raises:
        ValueError: no such precision, a backbone without parameters, or back to fp32.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
    if precision == backbone.precision:
        return
    if precision == "fp32":
        raise ValueError(f"{backbone.name} has been rounded to bf16. Load it again for fp32.")
    parts = [part for part in (backbone.stem, backbone.encoder) if part is not None]
    if not any(True for part in parts for _ in part.parameters()):
        raise ValueError(f"'{backbone.name}' computes in float32 only, got precision={precision!r}")
    if native is None:
        native = has_native_bf16(next(backbone.parameters()).device)
    for module in (module for part in parts for module in part.modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            _round_parameters(module, torch.bfloat16 if native else torch.float32)
            if isinstance(module, DerivesWeights):
                module.rounds_to_bf16 = not native
                module.drop_derived()
            if not native and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, DerivesWeights)):
                module.register_forward_pre_hook(_round_input)
    backbone.precision = "bf16"
    backbone.arithmetic = "bf16" if native else "fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _round_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        rounded = parameter.detach().bfloat16().to(dtype)
        setattr(module, name, nn.Parameter(rounded, requires_grad=parameter.requires_grad))


def _round_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x: Tensor = inputs[0]
    return (x.bfloat16().to(x.dtype), *inputs[1:])
