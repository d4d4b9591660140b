"""Shapes, values and times of what a backbone gives, and the ways of asking for less of it."""

from __future__ import annotations

import copy
import time

import torch

from audiation.contracts.subject import NotAskedError, Subject, contract, differ, require, run

SPEED_SECONDS = 5.0


@contract("layers 0..L have the declared shape")
def _shapes(subject: Subject) -> str | None:
    backbone, states = subject.backbone, subject.states
    asked, there = list(range(backbone.num_layers + 1)), sorted(states.layers)
    require(
        there == asked,
        f"`num_layers` is {backbone.num_layers}, so layers 0..{backbone.num_layers} are given unless others are asked "
        f"for (0 enters block 1, i leaves block i); got {there}.",
    )
    frames = next(iter(states.layers.values())).shape[1]
    for i, x in states.layers.items():
        require(
            tuple(x.shape) == (2, frames, backbone.dim),
            f"layer {i} is {tuple(x.shape)}; two clips give (2, frames, dim={backbone.dim}).",
        )
    valid = states.valid
    require(
        tuple(valid.shape) == (2, frames) and valid.dtype == torch.bool and bool(valid.all()),
        f"`valid` is {tuple(valid.shape)} {valid.dtype} with {int(valid.sum())} True; two whole clips give "
        f"(2, {frames}) bool, all True.",
    )
    return f"L = {backbone.num_layers}, T = {frames}, D = {backbone.dim}"


@contract("layers are float32, finite, and not constant")
def _values(subject: Subject) -> None:
    for i, x in subject.states.layers.items():
        require(
            x.dtype == torch.float32, f"layer {i} is {x.dtype} for a float32 waveform. End with `.float()`."
        )
        require(
            bool(torch.isfinite(x).all()),
            f"layer {i} has {int((~torch.isfinite(x)).sum())} NaN or infinite values.",
        )
        require(
            float(x.std()) > 0, f"every value of layer {i} is {float(x.flatten()[0]):g}, whatever is heard."
        )
        require(
            not torch.equal(x[0], x[1]),
            f"layer {i} is the same for two different clips, so it does not hear them.",
        )


@contract("`num_frames` and the frame rate agree with the output")
def _frames(subject: Subject) -> str | None:
    backbone, samples = subject.backbone, subject.clips.shape[1]
    hop = backbone.hop_samples
    require(
        subject.states.frame_rate_hz == backbone.frame_rate_hz,
        f"the states say frame_rate_hz={subject.states.frame_rate_hz}, the backbone {backbone.frame_rate_hz}.",
    )
    for num_samples in [samples] if hop is None else [samples - hop, samples - 1, samples]:
        if num_samples < backbone.min_samples:
            continue
        given = run(backbone, subject.clips[:, :num_samples]).valid.shape[1]
        said = backbone.num_frames(num_samples)
        require(
            given == said,
            f"`num_frames({num_samples})` is {said}, and a clip of {num_samples} samples gives {given}.",
        )
    if hop is None:
        return "one vector per clip"
    longer = samples + 10 * hop
    gained = backbone.num_frames(longer) - backbone.num_frames(samples)
    require(
        gained == 10,
        f"10 hops of {hop} samples more give {gained} frames more and not 10, so `hop_samples` or `num_frames` is off.",
    )
    return f"{backbone.frame_rate_hz:g} frames per second"


@contract("frames lie within the clip")
def _times(subject: Subject) -> str | None:
    backbone, states = subject.backbone, subject.states
    if backbone.frame_rate_hz is None or backbone.hop_samples is None:
        raise NotAskedError("it gives one vector per clip")
    require(
        states.first_frame_seconds == backbone.first_frame_seconds,
        f"the states say first_frame_seconds={states.first_frame_seconds:g}, the backbone "
        f"{backbone.first_frame_seconds:g}.",
    )
    seconds = subject.clips.shape[1] / backbone.sample_rate_hz
    hop_seconds = backbone.hop_samples / backbone.sample_rate_hz
    first, last = float(states.times_seconds[0]), float(states.times_seconds[-1])
    require(
        first >= 0 and last <= seconds + hop_seconds,
        f"frames lie from {first:.3f} to {last:.3f} s of a clip of {seconds:.3f} s. `first_frame_seconds` is the time "
        "of the centre of frame 0, in seconds.",
    )
    return f"{first:.4f} to {last:.4f} of {seconds:.4f} s"


@contract("the same clip gives the same numbers")
def _deterministic(subject: Subject) -> None:
    again = run(subject.backbone, subject.clips)
    for i, x in subject.states.layers.items():
        problem = differ(again.layers[i], x, 1e-6)
        require(
            not problem,
            f"layer {i} differs between two runs in eval mode: {problem}. Is dropout on, or anything drawn or counted "
            "in `forward`?",
        )


@contract("train() and eval() leave no trace")
def _modes(subject: Subject) -> None:
    backbone = copy.deepcopy(subject.backbone)
    backbone.train()
    backbone.eval()
    training = [name or "the backbone" for name, module in backbone.named_modules() if module.training]
    require(not training, f"after eval() these are still in training mode: {', '.join(training[:5])}.")
    again = run(backbone, subject.clips)
    for i, x in subject.states.layers.items():
        problem = differ(again.layers[i], x, 1e-6)
        require(not problem, f"layer {i} is not what it was before train() and eval(): {problem}.")


@contract("an early exit equals the full run")
def _early_exit(subject: Subject) -> None:
    backbone, clips, states = subject.backbone, subject.clips, subject.states
    for last in range(backbone.num_layers):
        early = run(backbone, clips, last_layer=last)
        require(
            sorted(early.layers) == list(range(last + 1)),
            f"`last_layer={last}` gives layers {sorted(early.layers)}, expected {list(range(last + 1))}.",
        )
        for i, x in early.layers.items():
            problem = differ(x, states.layers[i], 1e-6)
            require(
                not problem,
                f"layer {i} is another one with last_layer={last} than in the full run: {problem}.",
            )


@contract("layers that are asked for are those of the full run")
def _subset(subject: Subject) -> None:
    backbone, clips, states = subject.backbone, subject.clips, subject.states
    for wanted in {(0,), (backbone.num_layers,), (0, backbone.num_layers)}:
        some = run(backbone, clips, layers=list(wanted))
        require(
            sorted(some.layers) == sorted(set(wanted)),
            f"`layers={sorted(set(wanted))}` gives layers {sorted(some.layers)}. `wanted, stop = "
            "self.resolve_layers(layers, last_layer)` says what to return.",
        )
        for i, x in some.layers.items():
            problem = differ(x, states.layers[i], 1e-6)
            require(not problem, f"layer {i} is another one if it is asked for alone: {problem}.")


@contract('reduce="mean" is the mean of the frames')
def _reduced(subject: Subject) -> None:
    reduced = run(subject.backbone, subject.clips, reduce="mean")
    for i, x in subject.states.layers.items():
        problem = differ(reduced.layers[i], x.mean(1, keepdim=True), 1e-4)
        require(
            not problem,
            f"layer {i} is not the mean over time: {problem}. `states.mean()` makes it of the states of all frames.",
        )
    require(
        reduced.frame_rate_hz is None and tuple(reduced.valid.shape) == (2, 1),
        f"the mean has no frame rate and one position; got frame_rate_hz={reduced.frame_rate_hz} and `valid` "
        f"{tuple(reduced.valid.shape)}.",
    )


@contract("a clip does not depend on its batch")
def _batch(subject: Subject) -> None:
    alone = run(subject.backbone, subject.clips[1:])
    for i, x in subject.states.layers.items():
        problem = differ(alone.layers[i][0], x[1], 1e-4)
        require(
            not problem,
            f"layer {i} of a clip alone is not that of the clip beside another: {problem}. Is something normalised "
            "over the batch?",
        )


@contract("speed (for information)")
def _speed(subject: Subject) -> str | None:
    backbone = subject.backbone
    seconds = min(SPEED_SECONDS, backbone.max_seconds or SPEED_SECONDS)
    num_samples = max(round(seconds * backbone.sample_rate_hz), backbone.min_samples)
    clip = 0.1 * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0))
    run(backbone, clip)
    started = time.perf_counter()
    run(backbone, clip)
    took = time.perf_counter() - started
    heard = num_samples / backbone.sample_rate_hz
    rate = heard / max(took, 1e-9)
    return (
        f"{rate:,.0f} s of music per second, {backbone.num_layers} layers, {torch.get_num_threads()} threads"
    )
