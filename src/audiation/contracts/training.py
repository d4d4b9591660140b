"""Gradients, sockets, and every method that adapts a backbone."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiation.backbones import Backbone
from audiation.backbones.attention import Attention
from audiation.backbones.encoder import Block, Encoder
from audiation.contracts.subject import NotAskedError, Subject, contract, differ, require, run
from audiation.methods import METHODS, inject, merge, set_modes

TRAIN_STEPS = 2
NUM_CLASSES = 3


@contract("every parameter is used")
def _all_used(subject: Subject) -> str | None:
    backbone = copy.deepcopy(subject.backbone)
    parameters = dict(backbone.named_parameters())
    if not parameters:
        raise NotAskedError("it has no parameters")
    last = backbone(subject.clips[:1], layers=[backbone.num_layers]).layers[backbone.num_layers]
    if not last.requires_grad:
        require(
            backbone.encoder is None,
            "no gradient flows from the last layer. Is `forward` run without gradients?",
        )
        raise NotAskedError("no gradient flows, so it cannot be fine-tuned; probes need none")
    last.square().sum().backward()
    unused = [
        k
        for k, p in parameters.items()
        # the softmax cannot see what is added to every key alike
        if (p.grad is None or not bool(p.grad.any())) and not k.endswith("attention.key.bias")
    ]
    require(
        not unused,
        f"{len(unused)} parameters have no influence on the last layer: {', '.join(unused[:4])}. Leave them away, or "
        "use them.",
    )
    return f"{sum(p.numel() for p in parameters.values()):,} parameters"


@contract("blocks have sockets and roles")
def _sockets(subject: Subject) -> str | None:
    encoder = subject.backbone.encoder
    if encoder is None:
        raise NotAskedError("it has no encoder, so it is probed and not adapted")
    require(isinstance(encoder, Encoder), f"`self.encoder` is a {type(encoder).__name__}, and no `Encoder`.")
    require(
        len(encoder.blocks) == subject.backbone.num_layers,
        f"`num_layers` is {subject.backbone.num_layers}, and the encoder has {len(encoder.blocks)} blocks.",
    )
    for number, block in enumerate(encoder.blocks, start=1):
        require(isinstance(block, Block), f"block {number} is a {type(block).__name__}, and no `Block`.")
        assert isinstance(block, Block)
        roles = block.linears()
        lacking = {"query", "key", "value", "output"} - roles.keys()
        require(not lacking, f"`linears()` of block {number} has no {', '.join(sorted(lacking))}.")
        require(
            isinstance(block.attention, Attention),
            f"`attention` of block {number} is no `attention.Attention`.",
        )
        require(
            len(block.sockets) > 0, f"block {number} has no sockets (`nn.Identity` on the residual stream)."
        )
        require(
            not block.sockets.state_dict(), f"sockets of block {number} hold weights; they are `nn.Identity`."
        )
        for role, linears in roles.items():
            for linear in linears:
                require(
                    hasattr(linear, "adaptation"),
                    f"'{role}' of block {number} is a {type(linear).__name__}; use `backbones.encoder.Linear`.",
                )
    return f"{len(encoder.blocks)} blocks"


# Methods ------------------------------------------------------------------------------------------------


def method_title(method: str) -> str:
    return f"method '{method}' trains it"


def trains(subject: Subject, method: str) -> str | None:
    """Inject, take a few steps, look at what moved; fold where the method can be folded."""
    if subject.backbone.encoder is None and METHODS[method].trains_backbone:
        raise NotAskedError("it has no encoder")
    if not METHODS[method].trains_backbone:
        count = inject(copy.deepcopy(subject.backbone), method)
        require(
            count.trainable == 0,
            f"'{method}' trains {count.trainable} parameters of the backbone, and none should.",
        )
        return "nothing of it is trained"
    backbone = copy.deepcopy(subject.backbone)
    count = inject(backbone, method, torch.Generator().manual_seed(1))
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    without = _train(backbone, subject.clips)
    require(
        not without,
        f"{len(without)} of what '{method}' trains gets no gradient: {', '.join(without[:3])}. Does the block use its "
        "sockets, `Linear`s and `attention` in `forward`?",
    )
    backbone.eval()
    moved = {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    require(bool(moved), f"no parameter moved in {TRAIN_STEPS} steps of '{method}'.")
    require(moved <= trained, f"'{method}' moved what is frozen: {', '.join(sorted(moved - trained)[:3])}.")
    adapted = run(backbone, subject.clips).layers
    for i, x in adapted.items():
        require(
            bool(torch.isfinite(x).all()), f"layer {i} is not finite after {TRAIN_STEPS} steps of '{method}'."
        )
    if not hasattr(METHODS[method], "merge"):
        return f"{count.trainable:,} parameters"
    merged = merge(backbone)
    require(
        merged.state_dict().keys() == subject.backbone.state_dict().keys(),
        f"after folding '{method}' the weights have other names than those of the plain backbone.",
    )
    for i, x in run(merged, subject.clips).layers.items():
        problem = differ(x, adapted[i], 1e-4)
        require(not problem, f"folding '{method}' into the weights changes layer {i}: {problem}.")
    return f"{count.trainable:,} parameters, folded"


def _train(backbone: Backbone, clips: Tensor) -> list[str]:
    """A few steps of Adam on a linear head; names of trained parameters that got no gradient."""
    head = nn.Parameter(torch.randn(NUM_CLASSES, backbone.dim, generator=torch.Generator().manual_seed(7)))
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam([*parameters.values(), head], lr=1e-3)
    set_modes(backbone)
    last, labels = backbone.num_layers, torch.tensor([0, 2])
    without: list[str] = []
    for _ in range(TRAIN_STEPS):
        optimiser.zero_grad()
        pooled = backbone(clips, layers=[last], reduce="mean").layers[last]
        F.cross_entropy(pooled[:, 0] @ head.t(), labels).backward()
        without = [name for name, p in parameters.items() if p.grad is None]
        optimiser.step()
    return without
