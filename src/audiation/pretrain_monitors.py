"""What a pre-training run shows of itself: what looks wrong, its curves as text, events for TensorBoard."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audiation.pretrain_log import LOG, Curve, RunCurves, finite_mean, in_order, titled

# What looks wrong -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Beyond which a run looks ill. Means are over the last `recent_steps` values.

    min_targets_used: share of its codes that a micro-batch shows. Few frames show few codes, so it is low.
    min_prediction_perplexity: below, every frame is predicted to be about the same code.
    min_target_std, min_prediction_std: of data2vec, as its own guard has them (MERT spec, section 5.1).
    min_loss_scale: of fp16. It starts at 128; falling below 1 it is on its way to the least one that is allowed.
    spike_window, loss_spike, grad_norm_spike: a spike is so many times the median of the values before.
    loss_rise: by how much the recent mean may exceed the lowest mean over as many values.
    """

    recent_steps: int = 50
    min_targets_used: float = 0.01
    min_prediction_perplexity: float = 2.0
    min_target_std: float = 0.1
    min_prediction_std: float = 0.01
    min_loss_scale: float = 1.0
    spike_window: int = 50
    loss_spike: float = 1.5
    grad_norm_spike: float = 10.0
    loss_rise: float = 1.1


def warnings_of(run: RunCurves, limits: Limits | None = None) -> list[str]:
    """A line for everything that looks wrong: collapse, spikes, numbers that are none; empty for a healthy run."""
    limits = limits or Limits()
    lines = [
        *_too_low(run, "targets_used", limits.min_targets_used, limits,
                  "few codes are ever the target: the codebook has collapsed, or the music is all alike"),
        *_too_low(run, "prediction_perplexity", limits.min_prediction_perplexity, limits,
                  "every frame is predicted to be nearly the same: the predictions have collapsed"),
        *_too_low(run, "target_std", limits.min_target_std, limits, "targets have collapsed to a constant"),
        *_too_low(run, "prediction_std", limits.min_prediction_std, limits,
                  "predictions have collapsed to a constant"),
        *_too_low(run, "loss_scale", limits.min_loss_scale, limits,
                  "float16 overflows again and again; the run stops at the least scale. Use bf16, or clip_norm=1"),
    ]  # fmt: skip
    if "loss" in run.curves:
        lines += _risen(run.curves["loss"], limits)
    for name, times in (("loss", limits.loss_spike), ("grad_norm", limits.grad_norm_spike)):
        if name in run.curves and (found := spikes(run.curves[name], times, limits.spike_window)):
            last = found[-1]
            lines.append(
                f"{titled(name)}: {_counted(len(found), 'spike')}; the last at step {last.step:,}, "
                f"{_short(last.value)} where the median of the {limits.spike_window} values before is "
                f"{_short(last.median)}"
            )
    for name in in_order(list(run.curves)):
        curve = run.curves[name]
        if num_bad := int((~np.isfinite(curve.values)).sum()):
            first = int(curve.steps[~np.isfinite(curve.values)][0])
            lines.append(
                f"{titled(name)}: not a finite number at {_counted(num_bad, 'step')}, first at {first:,}"
            )
    return lines


@dataclass(frozen=True)
class Spike:
    step: int
    value: float
    median: float


def spikes(curve: Curve, times: float, window: int) -> list[Spike]:
    """Steps of positive values at which the curve is over `times` the median of the `window` steps before."""
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    if len(values) <= window:
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values[:-1], window), axis=-1)
    high = np.flatnonzero((values[window:] > times * medians) & (medians > 0))
    return [Spike(int(steps[window + i]), float(values[window + i]), float(medians[i])) for i in high]


def _too_low(run: RunCurves, quantity: str, least: float, limits: Limits, meaning: str) -> Iterator[str]:
    for name in in_order(list(run.curves)):
        if re.fullmatch(rf"(.*/)?{quantity}(_\w+)?", name):
            value = run.curves[name].recent(limits.recent_steps)
            if value < least:
                steps = min(limits.recent_steps, len(run.curves[name].steps))
                over = f"over the last {_counted(steps, 'value')}"
                yield f"{titled(name)}: {_short(value)} {over}, below {least:g}: {meaning}"


def _risen(loss: Curve, limits: Limits) -> Iterator[str]:
    finite = np.isfinite(loss.values)
    steps, values, num = loss.steps[finite], loss.values[finite], limits.recent_steps
    if len(values) < 2 * num:
        return
    means = np.convolve(values, np.full(num, 1.0 / num), mode="valid")
    lowest = int(means.argmin())
    if means[lowest] > 0 and means[-1] > limits.loss_rise * means[lowest]:
        yield (
            f"loss: it has risen to {_short(means[-1])}, mean of the last {num} values, from "
            f"{_short(means[lowest])} around step {int(steps[lowest + num // 2]):,}"
        )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# As text --------------------------------------------------------------------------------------------------

BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN_EVENTS = 10  # the latest


def summary(run: RunCurves, width: int = 32, recent_steps: int = 50) -> str:
    """A run as plain text: where it is, and a line with a small chart per quantity.

    width: of the charts, in characters. recent_steps: first and last are means over so many.
    """
    of = f" of {run.planned_steps:,}" if run.planned_steps else ""
    hours = "" if run.audio_hours is None else f", {run.audio_hours:,.2f} h of audio"
    lines = [f"{run.name}: step {run.last_step:,}{of}{hours}"]
    lines += [f"{name}: {value}" for name, value in run.identity.items()]
    names = in_order([name for name in run.curves if len(run.curves[name].steps)])
    if names:
        widest = max(len(titled(name)) for name in names)
        lines += ["", f"{'':{widest}}  {'first':>9} {'last':>9} {'lowest':>9} {'highest':>9}"]
    for name in names:
        curve = run.curves[name]
        finite = curve.values[np.isfinite(curve.values)]
        extremes = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
        numbers = (finite_mean(curve.values[:recent_steps]), curve.recent(recent_steps), *extremes)
        cells = " ".join(f"{_short(number):>9}" for number in numbers)
        lines.append(f"{titled(name):{widest}}  {cells}  {sparkline(curve.values, width)}")
    if names:
        lines += ["", f"first and last: means over {recent_steps} values, or all where there are fewer."]
    if len(run.events) > SHOWN_EVENTS:
        lines.append(f"{len(run.events) - SHOWN_EVENTS:,} earlier notes are in {run.directory / LOG}")
    lines += [f"step {event.step:,}: {event.name}: {event.text}" for event in run.events[-SHOWN_EVENTS:]]
    if run.num_cut:
        lines.append(
            "The last line is not whole: it is being written, or the run was killed. It is not counted."
        )
    return "\n".join(lines)


def sparkline(values: np.ndarray, width: int = 32) -> str:
    """Means of equal parts of `(N,)` values between the lowest and the highest of them, as blocks of eight heights; a
    dot where no value is finite."""
    means = (
        [finite_mean(part) for part in np.array_split(values, min(width, len(values)))] if len(values) else []
    )
    finite = [mean for mean in means if math.isfinite(mean)]
    if not finite:
        return "." * len(means)
    low, span = min(finite), max(finite) - min(finite)
    heights = [round((m - low) / span * 7) if span and math.isfinite(m) else 0 for m in means]
    return "".join(BLOCKS[h] if math.isfinite(m) else "." for m, h in zip(means, heights, strict=True))


def write_tensorboard(run: RunCurves, directory: Path) -> int:
    """Write every curve as TensorBoard events, throughput and probes as well; gives how many numbers.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("TensorBoard events need a package: pip install tensorboard") from None
    count = 0
    writer = SummaryWriter(str(directory))
    try:
        for name, curve in run.curves.items():
            for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
                writer.add_scalar(name.replace(" ", "/"), value, step)
                count += 1
    finally:
        writer.close()
    return count


def _short(number: float) -> str:
    """Four digits."""
    if not math.isfinite(number):
        return str(number)
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.4g}"
