"""Building and running change nothing for anybody else; weights come from the generator; workers can be sent it."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from audiation.contracts.subject import (
    ContractError,
    NotAskedError,
    Subject,
    build_small,
    contract,
    differ,
    require,
    run,
)


def _state_before() -> dict[str, Any]:
    """`global_state`, of generators that have moved on from any seed, so that setting the same one shows."""
    torch.rand(1)
    np.random.random()
    random.random()
    return global_state()


def global_state() -> dict[str, Any]:
    """Everything that a model could change for everybody else, by what it is called."""
    numpy_state = np.random.get_state()
    return {
        "torch's random generator (torch.manual_seed, or drawing without `generator=`)": bytes(
            torch.get_rng_state().numpy()
        ),
        "numpy's random generator (np.random)": (bytes(numpy_state[1]), numpy_state[2:]),  # type: ignore[index, arg-type]
        "Python's random generator (random)": random.getstate(),
        "the default dtype (torch.set_default_dtype)": torch.get_default_dtype(),
        "the default device (torch.set_default_device)": str(torch.get_default_device()),
        "whether gradients are on (torch.set_grad_enabled)": torch.is_grad_enabled(),
        "the number of threads (torch.set_num_threads)": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "the working directory": os.getcwd(),
        "environment variables": dict(os.environ),
    }


@contextmanager
def everything_as_it_was(stream: int) -> Iterator[None]:
    """A model that breaks the rules must not disturb whoever asked, nor the next contract.

    stream: of the global generators meanwhile, another one for every contract: what draws from them then differs.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    dtype, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    threads, precision, directory = (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        os.getcwd(),
    )
    deterministic, environment = torch.are_deterministic_algorithms_enabled(), dict(os.environ)
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(stream)
            np.random.seed(stream)
            random.seed(stream)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_default_dtype(dtype)
            if torch.get_default_device() != device:
                torch.set_default_device(device)
            torch.set_grad_enabled(gradients)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic)
            os.chdir(directory)
            if dict(os.environ) != environment:
                os.environ.clear()
                os.environ.update(environment)


def untouched(what: str, before: dict[str, Any]) -> None:
    after = global_state()
    changed = [name for name in before if before[name] != after[name]]
    require(not changed, f"{what} changes for everybody: {'; '.join(changed)}.")


@contract("building leaves everything else alone")
def _building_is_pure(subject: Subject) -> None:
    before = _state_before()
    build_small(subject.spec, num_layers=subject.backbone.num_layers if subject.spec.can_be_cut else None)
    untouched("building", before)


@contract("running leaves everything else alone")
def _running_is_pure(subject: Subject) -> None:
    before = _state_before()
    run(subject.backbone, subject.clips)
    untouched("a forward pass", before)


@contract("the generator decides the weights")
def _generator(subject: Subject) -> None:
    spec = subject.spec
    layers = subject.backbone.num_layers if spec.can_be_cut else None
    ours, again = subject.backbone.state_dict(), build_small(spec, 0, layers).state_dict()
    differing = [k for k in ours if k not in again or not torch.equal(ours[k], again[k])]
    if spec.from_published is None:
        require(
            not differing,
            f"two calls of `build()` give other weights ({', '.join(differing[:3])}). Weights that are drawn need "
            "`from_published` in the BackboneSpec, and `build(num_layers=None, generator=None)`, which draws from "
            "`generator`.",
        )
        raise NotAskedError("nothing is drawn: two calls of `build()` give the same")
    require(
        not differing,
        f"the same generator gives other weights in {', '.join(differing[:3])}. Draw with `generator=generator`.",
    )
    other = dict(build_small(spec, 1, layers).named_parameters())
    same = [
        k
        for k, p in subject.backbone.named_parameters()
        if p.ndim > 1 and p.shape[0] > 1 and torch.equal(p, other[k])
    ]
    require(
        not same,
        f"another generator gives the same weights in {', '.join(same[:3])}. Draw with `generator=generator`.",
    )


@contract("it can be cut to its first blocks")
def _cut(subject: Subject) -> str | None:
    spec = subject.spec
    if not spec.can_be_cut or spec.from_published is None:
        raise NotAskedError(
            "it has no blocks to cut" if not spec.can_be_cut else "it is always built as a whole"
        )
    one = build_small(spec, 0, 1).eval()
    blocks = 1 if one.encoder is None else len(one.encoder.blocks)
    require(
        one.num_layers == blocks == 1,
        f"`build(num_layers=1)` gives num_layers={one.num_layers} and {blocks} blocks.",
    )
    given = sorted(run(one, subject.clips).layers)
    require(given == [0, 1], f"cut to one block it gives layers {given}, expected [0, 1].")
    return None


@contract("it can be sent to another process")
def _pickles(subject: Subject) -> None:
    try:
        sent = pickle.loads(pickle.dumps(subject.backbone))  # of ours, just made
    except Exception as error:
        raise ContractError(
            f"workers cannot be given it: {error}. Define classes and functions at the top level of the file, and keep "
            "no lambdas, open files or inner functions in the backbone."
        ) from error
    for i, x in run(sent, subject.clips).layers.items():
        problem = differ(x, subject.states.layers[i], 1e-6)
        require(not problem, f"layer {i} is another one after the journey: {problem}.")
