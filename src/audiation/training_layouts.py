"""How a module lies on the ranks that train it, and how their gradients become one sum.

`Replicas` is the layout of all training but large pre-training; docs/scale.md compares the three. What torch wraps is
a shell around the root module and the computation of its loss: it gives tensors alone, which hooks can be hung on, and
leaves the module itself as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from audiation.distributed import copy_from_first, sum_over_ranks, this_rank
from audiation.losses import ComputeLoss, Loss
from audiation.training_config import Engine


class Replicas:
    """A copy of the module on every rank. Gradients are added after the last micro-batch, in an order that depends on
    shapes only, so that the sum has the same bits again."""

    def __init__(self, module: nn.Module, compute_loss: ComputeLoss) -> None:
        self.module, self.compute_loss = module, compute_loss

    def loss(self, micro_batch: Any, generator: torch.Generator) -> Loss:
        return self.compute_loss(self.module, micro_batch, generator)

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward pass of a micro-batch. is_last: of this rank in this step."""
        return nullcontext()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the gradients those of all ranks' micro-batches; zero where no rank has one, if it gets one at all."""
        if this_rank().count > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            sum_over_ranks([p.grad for p in parameters if p.grad is not None])

    def held(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The part of each that lies on this rank, in place."""
        return list(tensors)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients together, of which these are held here."""
        return torch.nn.utils.get_total_norm(gradients)

    def close(self) -> None:
        """Give the module back as it was but for what training changes; all ranks together."""


class Ddp(Replicas):
    """torch's DistributedDataParallel, adding instead of averaging, while the backward pass goes on.

    It puts gradients into other groups after its first step. So the sums of more than two ranks, and a run that goes on
    from a checkpoint, are the same to the rounding only.
    """

    def __init__(self, module: nn.Module, compute_loss: ComputeLoss) -> None:
        super().__init__(module, compute_loss)
        with warnings.catch_warnings():
            # The argument gets another name in torch 2.13. Buffers are the loop's, and begin as those of rank 0.
            warnings.simplefilter("ignore", FutureWarning)
            # Without looking for unused parameters, a rank waits for ever for one that another does not use.
            self._ddp = DistributedDataParallel(
                _Shell(module), broadcast_buffers=False, find_unused_parameters=True
            )
        self._ddp.register_comm_hook(None, lambda _, bucket: _added(bucket))

    def loss(self, micro_batch: Any, generator: torch.Generator) -> Loss:
        return _called(self._ddp, partial(self.compute_loss, self.module, micro_batch, generator))

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self._ddp.no_sync()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        pass


class Shards(Replicas):
    """FSDP2: a rank holds its share of every parameter, gradient and average. Each block of an encoder, and what is
    outside of blocks, is put together for its computation, and its gradients are added into the shares.

    A teacher that is an encoder is split up the same way, so that it can be averaged share by share. A parameter that a
    micro-batch does not use gets zeros.
    """

    def __init__(
        self, module: nn.Module, compute_loss: ComputeLoss, device: torch.device, engine: Engine
    ) -> None:
        super().__init__(module, compute_loss)
        if missing := [name for name in _NEEDED if not hasattr(FSDPModule, name)]:
            raise ValueError(
                f"parallel='sharded' needs FSDPModule.{missing[0]}, which torch {torch.__version__} does not have. "
                "Upgrade torch, or use parallel='replicated'."
            )
        scalars = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
        if scalars:
            raise ValueError(
                f"parallel='sharded' cannot split {scalars[0]}, a single number. Give it the shape (1,)."
            )
        # What a shard is cut from has to be the same everywhere.
        copy_from_first([*module.parameters(), *module.buffers()])
        self._places = list(_block_places(module))
        self._plain = _Plain(module, self._places)
        self._shell = _Shell(module)
        mesh = init_device_mesh(device.type, (this_rank().count,))
        whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = rounded if engine.gather_precision == "bf16" else whole
        for block in (place.block for place in self._places):
            if policy is rounded:
                for norm in _norms(block):
                    fully_shard(norm, mesh=mesh, mp_policy=whole)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self._shell, mesh=mesh, mp_policy=whole)
        for part in self._shell.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # a sum
                part.set_force_sum_reduction_for_comms(True)
        self._shell.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
        self._plain.free()

    def loss(self, micro_batch: Any, generator: torch.Generator) -> Loss:
        return _called(self._shell, partial(self.compute_loss, self.module, micro_batch, generator))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        pass

    def held(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        squared = torch.nn.utils.get_total_norm(gradients).double().square().reshape(1)
        sum_over_ranks([squared])
        return squared.sqrt()

    def close(self) -> None:
        self._plain.put_back(self.module)


def make_layout(
    module: nn.Module, compute_loss: ComputeLoss, device: torch.device, engine: Engine
) -> Replicas:
    """The layout that `engine` names. Where there is one process, nothing is shared out."""
    if this_rank().count == 1 or engine.parallel == "replicated":
        return Replicas(module, compute_loss)
    if engine.parallel == "ddp":
        return Ddp(module, compute_loss)
    return Shards(module, compute_loss, device, engine)


class BlockChoices:
    """Recomputation and compilation of the blocks of encoders, until `close`.

    An encoder is what has `blocks` and `recompute_blocks`; see `backbones.encoder`.
    """

    def __init__(self, module: nn.Module, engine: Engine) -> None:
        self._before: list[tuple[nn.Module, bool]] = []
        self._compiled: list[nn.Module] = []
        if (engine.recompute_blocks or engine.compile) and not any(_encoders(module)):
            raise ValueError("recompute_blocks and compile are about blocks of an encoder, and there is none")
        for encoder in _encoders(module):
            if engine.recompute_blocks:
                self._before.append((encoder, bool(encoder.recompute_blocks)))
                encoder.recompute_blocks = True  # type: ignore[assignment]
            if engine.compile:
                for block in encoder.blocks:  # type: ignore[union-attr]
                    # Crops have one length, and random numbers stay those of a run that is not compiled.
                    block.compile(dynamic=False, options={"fallback_random": True})
                    self._compiled.append(block)

    def close(self) -> None:
        for encoder, before in self._before:
            encoder.recompute_blocks = before  # type: ignore[assignment]
        for block in self._compiled:
            block._compiled_call_impl = None  # what `Module.compile` has set


_NEEDED = (
    "set_gradient_divide_factor",
    "set_force_sum_reduction_for_comms",
    "set_reduce_scatter_unused_params",
)


class _Shell(nn.Module):
    """What torch wraps: its forward computes a loss of `module`, and gives what `Loss` has in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Loss]) -> tuple[Tensor, Tensor, dict[str, float | Tensor]]:
        loss = work()
        return loss.sum, loss.count, dict(loss.parts)


def _called(shell: nn.Module, work: Callable[[], Loss]) -> Loss:
    return Loss(*shell(work))


def _added(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


@dataclass(frozen=True, eq=False)
class _BlockPlace:
    """A block and where it stands."""

    blocks: nn.ModuleList
    index: int

    @property
    def block(self) -> nn.Module:
        return self.blocks[self.index]


class _Plain:
    """The parts of a module that sharding replaces: parameters and blocks, which are empty meanwhile."""

    def __init__(self, module: nn.Module, places: Sequence[_BlockPlace]) -> None:
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._blocks: list[tuple[_BlockPlace, nn.Module]] = []
        for place in places:
            block = place.block
            shared = {id(t): t for t in (*block.parameters(), *block.buffers())}
            self._blocks.append((place, copy.deepcopy(block, shared)))

    def free(self) -> None:
        for parameter in self._parameters.values():
            parameter.data = parameter.data.new_empty(0)

    def put_back(self, module: nn.Module) -> None:
        """Parameters with what their shares have become, and blocks."""
        for name, shares in list(module.named_parameters()):
            whole = shares.detach()
            self._parameters[name].data = whole.full_tensor() if isinstance(whole, DTensor) else whole
        for place, plain in self._blocks:
            for part, sharded in zip(plain.modules(), place.block.modules(), strict=True):
                part._buffers.update(sharded._buffers)
                part.training = sharded.training
            place.blocks[place.index] = plain
        for name, parameter in self._parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, parameter)


def _encoders(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        if isinstance(getattr(part, "blocks", None), nn.ModuleList) and hasattr(part, "recompute_blocks"):
            yield part


def _block_places(module: nn.Module) -> Iterator[_BlockPlace]:
    for encoder in _encoders(module):
        blocks = encoder.blocks
        assert isinstance(blocks, nn.ModuleList)
        for index in range(len(blocks)):
            yield _BlockPlace(blocks, index)


def _norms(block: nn.Module) -> Iterator[nn.Module]:
    """Batch norms with parameters, which compute with float32 ones only."""
    for part in block.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
            yield part
