"""What a backbone computes for some seconds of audio, counted from shapes: no weights are drawn, no value is computed.

Counted are matrix products, convolutions and attention, a multiplication with its addition as 2, by
`torch.utils.flop_counter`. Element-wise work, norms and Fourier transforms are not; they are a few per cent of a
transformer or a CNN. Attention that is causal counts as a whole square.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from audiation.backbones.base import Backbone
from audiation.inference import ChunkPolicy


@dataclass(frozen=True)
class Cost:
    """What one clip costs.

    seconds: of audio. Where the model takes less at once it is cut as extraction does it; for a model of one vector per
        clip into clips of what it takes, and what is left.
    gflop: 1e9 multiplications and additions.
    num_chunks: how often the model is run.
    """

    seconds: float
    gflop: float
    num_chunks: int

    @property
    def gflop_per_second(self) -> float:
        """Per second of audio."""
        return self.gflop / self.seconds


def count_gflop(backbone: Backbone, seconds: float = 30.0, last_layer: int | None = None) -> Cost | None:
    """What the forward passes over one clip of `seconds` compute.

    None for a backbone without parameters (chroma, MFCC): its work is in other libraries, and none of it is seen here.

    Args:
        backbone: on the meta device, as `BackboneSpec.outline` gives it, or with weights, which are not read; in eval
            mode, because training computes other things.
        last_layer: the model is left after this one; None: the last.

    Raises:
        ValueError: a length that the backbone cannot hear, a layer that it does not have, a backbone in training mode,
            or one whose forward pass cannot run on shapes alone.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"seconds must be positive and finite, got {seconds}")
    if next(backbone.parameters(), None) is None:
        return None
    if backbone.training:
        raise ValueError(f"{backbone.name} is in training mode; call eval() first")
    num_samples = round(seconds * backbone.sample_rate_hz)
    backbone.resolve_layers(None, last_layer)
    pieces = _pieces(backbone, num_samples)
    counted = {length: _count(backbone, length, last_layer) for length in set(pieces)}
    return Cost(seconds, sum(counted[length] for length in pieces) / 1e9, len(pieces))


def cost_line(backbone: Backbone, last_layer: int, at_least_gflop: float = 0.0) -> str:
    """A sentence about what is going to be computed; "" where nothing can be counted, or less than that for a clip."""
    seconds = backbone.max_seconds or 30.0
    try:
        cost = count_gflop(backbone, seconds, last_layer)
    except ValueError:  # a model of somebody's own that cannot be counted is run all the same
        return ""
    if cost is None or cost.gflop < at_least_gflop:
        return ""
    return (
        f"{backbone.name} up to layer {last_layer}: {cost.gflop / 1e3:.3g} TFLOP for {seconds:.3g} s of audio, "
        f"{_three_digits(cost.gflop_per_second * 3.6)} TFLOP for an hour."
    )


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def new_counter() -> FlopCounterMode:
    """torch's counter, which lacks the fused attention of CPUs."""
    return FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop},
    )


def _attention_flop(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _pieces(backbone: Backbone, num_samples: int) -> list[int]:
    """Lengths in samples of what the backbone hears one after another."""
    most = (
        num_samples if backbone.max_seconds is None else round(backbone.max_seconds * backbone.sample_rate_hz)
    )
    if backbone.hop_samples is not None or num_samples <= most:
        return [chunk.num_samples for chunk in ChunkPolicy.of(backbone).chunks(backbone, num_samples)]
    whole, rest = divmod(num_samples, most)
    return [most] * whole + ([rest] if rest >= backbone.min_samples else [])


def _count(backbone: Backbone, num_samples: int, last_layer: int | None) -> int:
    """FLOP of one forward pass of one chunk.

    Tensors of the weights and the waveform have shapes and no values, and so has what is computed from them. Lengths
    and masks, which forward passes ask about, come from neither: they are real.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True)
    with shapes:
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
        }
        waveform = torch.empty(1, num_samples)
    counter = new_counter()
    try:
        with torch.no_grad(), warnings.catch_warnings(), counter, _KnownMasks():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # none is followed
            functional_call(backbone, weights, (waveform,), {"last_layer": last_layer})
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"the forward pass of {backbone.name} cannot run on shapes alone ({reason}), so its cost is not known"
        ) from error
    finally:
        backbone.train().eval()  # drops weights that were derived from shapes
    return counter.get_total_flops()


class _KnownMasks(TorchDispatchMode):
    """What a mask selects has a known length where the mask is real: it becomes the numbers of what it selects."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [part for index in args[1] for part in _numbers(index)])
        return func(*args, **(kwargs or {}))


def _numbers(index: Tensor | None) -> tuple[Tensor | None, ...]:
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    return index.nonzero(as_tuple=True)
