"""Several pre-training runs in one figure, as figure A.1 of the thesis draws the trials of its large model.

A panel per quantity, the runs over one another. The thesis shows the norm of the gradient, the scale of the loss, and
the losses of one codebook and of the CQT (`FIGURE_A1`); here whatever the runs have written can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from audiation.charts.pretrain_curves import CurvePanel, RunLine, check_kind, save_pretrain_curves
from audiation.charts.systems import apart
from audiation.pretrain_log import PROBE, Curve, RunCurves, family_of, in_order, member_of, read_log, titled

Axis = Literal["steps", "hours"]

FIGURE_A1 = ("grad_norm", "loss_scale", "cross_entropy_0", "cqt_mse")
EACH = "_each"  # behind the name that the members of a family share: all of them in a panel
# What is drawn if nobody says what, where a run has it.
USUAL = (
    "loss", "masked_accuracy", "accuracy_each", "cross_entropy", "cross_entropy_each", "cqt_mse", "target_perplexity",
    "prediction_perplexity", "target_std", "prediction_std", "grad_norm", "loss_scale",
)  # fmt: skip
LOGARITHMIC = ("grad_norm", "loss_scale", "learning_rate")
NUM_POINTS = 200  # of the longest run, where nobody says how many steps make a point


@dataclass(frozen=True)
class Comparison:
    """What was drawn. panels: titles. notes: of the figure. not_drawn: quantities that may be asked for."""

    path: Path
    panels: tuple[str, ...]
    notes: tuple[str, ...]
    not_drawn: tuple[str, ...]


def compare_runs(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    *,
    axis: Axis = "steps",
    quantities: Sequence[str] = (),
    smooth_steps: int | None = None,
) -> Comparison:
    """Draw runs into one figure. Runs may still be training.

    Every point is the mean of `smooth_steps` steps, and the shade reaches from the lowest to the highest of them, so
    that spikes are seen. Quantities that differ in a number at their end, or in the stream of codes that they are about
    ("cross_entropy_0" ...), share a panel, in which the line is their mean and the shade reaches over all of them.

    Args:
        out: `.png` or `.svg`.
        axis: "hours": of audio that the run has heard.
        quantities: names as in the log, like those of `FIGURE_A1`, or what several share ("cross_entropy_each");
            default: `USUAL`, and probes.
        smooth_steps: default: as many as make 200 points of the longest run.

    Raises:
        ValueError: no runs, a run named twice, a quantity that no run has, hours where a run has not noted them,
            another kind of file.
        FileNotFoundError, DamagedLinesError: as `read_log`.
    """
    path = Path(out)
    check_kind(path)
    if smooth_steps is not None and smooth_steps < 1:
        raise ValueError(f"smooth_steps must be at least 1, got {smooth_steps}")
    runs = _read(run_dirs)
    names = apart([run.name for run in runs])
    if axis == "hours" and (
        without := [n for n, r in zip(names, runs, strict=True) if not r.audio_seconds_per_step]
    ):
        raise ValueError(
            f"{without[0]} has not noted how much audio a step hears (machines.jsonl), so it has no axis in hours. Use "
            "axis='steps'."
        )
    steps = smooth_steps or max(1, -(-max(run.last_step for run in runs) // NUM_POINTS))
    present = in_order(list({_panel_of(name, quantities) for run in runs for name in run.curves}))
    wanted = _wanted(present, quantities)
    panels, notes = [], [_smoothing(steps, any(len(_members(r, q)) > 1 for r in runs for q in wanted))]
    for quantity in wanted:
        lines = [
            _line(name, run, quantity, steps, axis)
            for name, run in zip(names, runs, strict=True)
            if _members(run, quantity)
        ]
        panels.append(CurvePanel(_title(runs, quantity), tuple(lines), _is_logarithmic(quantity, lines)))
        if missing := [n for n, r in zip(names, runs, strict=True) if not _members(r, quantity)]:
            notes.append(f"No {_title(runs, quantity)}: {', '.join(missing)}.")
    if len({run.identity.get("objective") for run in runs}) > 1:
        notes.append("The objectives differ, so their losses cannot be compared.")
    save_pretrain_curves(
        panels, names, path, x_label="steps" if axis == "steps" else "hours of audio", notes=notes
    )
    left = tuple(name for name in present if name not in wanted)
    return Comparison(path, tuple(panel.title for panel in panels), tuple(notes), left)


def _read(run_dirs: Sequence[str | Path]) -> list[RunCurves]:
    if not run_dirs:
        raise ValueError("name at least one run: the folder that `audiation pretrain` writes into")
    places = [Path(run_dir).resolve() for run_dir in run_dirs]
    if twice := [
        str(given) for given, place in zip(run_dirs, places, strict=True) if places.count(place) > 1
    ]:
        raise ValueError(f"{twice[0]} is named twice")
    runs = [read_log(run_dir) for run_dir in run_dirs]
    if empty := [run.directory for run in runs if not run.last_step]:
        raise ValueError(f"{empty[0]} has no step in its log yet. Leave it out, or wait for the first one.")
    return runs


def _panel_of(name: str, quantities: Sequence[str]) -> str:
    """A quantity that was asked for by its own name has a panel of its own."""
    family = family_of(name)
    return name if family is None or name in quantities else family + EACH


def _wanted(present: Sequence[str], quantities: Sequence[str]) -> list[str]:
    if not quantities:
        return [name for name in present if name in USUAL or name.startswith(PROBE)]
    if unknown := [name for name in quantities if name not in present]:
        raise ValueError(f"no run has written '{unknown[0]}'. There are: {', '.join(present)}.")
    return list(dict.fromkeys(quantities))


def _members(run: RunCurves, quantity: str) -> list[str]:
    """Curves of a panel: the one of that name, or all of a family."""
    if quantity in run.curves:
        return [quantity]
    return in_order([name for name in run.curves if f"{family_of(name)}{EACH}" == quantity])


def _title(runs: Sequence[RunCurves], quantity: str) -> str:
    members = in_order(list({name for run in runs for name in _members(run, quantity)}))
    if len(members) == 1:
        return titled(members[0])
    streams = [member_of(name) for name in members]
    if all(stream.isdecimal() for stream in streams):
        return f"{titled(members[0])} to {streams[-1]}"
    return f"{titled(quantity.removesuffix(EACH))}, {', '.join(streams)}"


def _is_logarithmic(quantity: str, lines: Sequence[RunLine]) -> bool:
    """Zero has no place on such an axis."""
    return quantity in LOGARITHMIC and not any(bool((line.low <= 0).any()) for line in lines)


def _line(name: str, run: RunCurves, quantity: str, steps: int, axis: Axis) -> RunLine:
    binned = [_binned(run.curves[member], steps) for member in _members(run, quantity)]
    x = np.unique(np.concatenate([one.x for one in binned]))
    y, low, high = (np.full((len(binned), len(x)), np.nan) for _ in range(3))
    for row, one in enumerate(binned):
        at = np.searchsorted(x, one.x)
        y[row, at], low[row, at], high[row, at] = one.mean, one.low, one.high
    counts = np.isfinite(y).sum(0)
    mean = np.where(counts > 0, np.nansum(y, axis=0) / np.maximum(counts, 1), np.nan)
    low, high = np.fmin.reduce(low), np.fmax.reduce(high)
    if axis == "hours":
        assert run.audio_seconds_per_step is not None
        x = x * run.audio_seconds_per_step / 3600
    unfinished = run.planned_steps is not None and run.last_step < run.planned_steps
    return RunLine(name, x, mean, low, high, unfinished)


@dataclass(frozen=True, eq=False)
class _Binned:
    """x: mean step of every bin."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _binned(curve: Curve, steps: int) -> _Binned:
    """Of the finite values in steps 1 .. n, n + 1 .. 2 n, and so on; nan for a bin whose values are not finite."""
    numbers, starts, counts = np.unique((curve.steps - 1) // steps, return_index=True, return_counts=True)
    finite = np.isfinite(curve.values)
    num_finite = np.add.reduceat(finite.astype(np.int64), starts)
    total = np.add.reduceat(np.where(finite, curve.values, 0.0), starts)
    values = np.where(finite, curve.values, np.nan)
    mean = np.where(num_finite > 0, total / np.maximum(num_finite, 1), np.nan)
    x = np.add.reduceat(curve.steps, starts) / counts
    assert len(x) == len(numbers)
    return _Binned(x, mean, np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts))


def _smoothing(steps: int, has_families: bool) -> str:
    if steps == 1:
        text = "Every step is a point; nothing is smoothed."
    else:
        text = f"Points are means over {steps:,} steps; the shade reaches from their lowest to their highest."
    if has_families:
        text += " Where a panel has several streams of codes, the line is their mean and the shade reaches over all."
    return text
