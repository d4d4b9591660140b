"""PETL paper, figure 2: time of training and inference relative to full fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from audiation.backbones import BACKBONES
from audiation.console import new_progress
from audiation.methods import METHODS, format_method, parse_method
from audiation.recipes.base import RECIPES
from audiation.recipes.figures import BarPanel, Bars, check_matplotlib, save_bars, write_json
from audiation.recipes.petl_table2 import METHOD_TITLES, PETL_BACKBONES, PETL_LAYERS, names_in
from audiation.recipes.step_cost import Setting, Subject, fastest_seconds

Phase = Literal["training", "inference"]
PHASES: tuple[Phase, ...] = ("training", "inference")


@RECIPES.register("petl_figure2")
@dataclass(frozen=True)
class PetlFigure2:
    """Time of a training step and of an answer, relative to full fine-tuning, as bar charts (PETL paper, figure 2).

    Measured here, on the CPU, with random weights of the real sizes (they change no timing). Every method is timed in
    turn with full fine-tuning. Beside the paper's numbers, which compute everything anew: what is left where the
    output of the frozen part is kept, which full fine-tuning cannot do. Answers of methods that can be folded into the
    weights are timed folded, as in the paper.

    backbones, methods: names joined by "+".
    num_layers: first blocks of every backbone.
    clip_seconds: length of a window; None: what the backbone was trained on (MusicFM 30 s, MERT 5 s).
    step_seconds: audio per step; at least one window.
    turns: how often everything is timed; the fastest counts.
    """

    backbones: str = "+".join(PETL_BACKBONES)
    methods: str = "+".join(METHOD_TITLES)
    num_layers: int = PETL_LAYERS
    clip_seconds: float | None = None
    step_seconds: float = 30.0
    turns: int = 3

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        for method in names_in(self.methods, "methods"):
            parse_method(method)
        for name in ("clip_seconds", "step_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, got {value}")
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Measure, print a table, and write `figure2.png`, `.svg` and `.json`. What the JSON holds of an earlier call
        under the same conditions is not measured again.

        Raises:
            ValueError: another device than the CPU, or matplotlib is not installed.
        """
        if torch.device(device).type != "cpu":
            raise ValueError(f"petl_figure2 times the CPU, got device '{device}'. Leave the device out.")
        check_matplotlib()
        backbones, methods = names_in(self.backbones, "backbones"), names_in(self.methods, "methods")
        path = out / "figure2.json"
        timings = _read(path, self._conditions())
        with new_progress(console) as bar:
            row = bar.add_task("steps and answers", total=len(backbones) * len(methods), detail="")
            for backbone in backbones:
                stopwatch = Stopwatch(backbone, self)
                for method in methods:
                    bar.update(row, detail=f"{backbone}, {method}")
                    if not any((t.backbone, t.method) == (backbone, method) for t in timings):
                        timings += stopwatch.time(method)
                        _write(path, self._conditions(), timings)
                    bar.advance(row)
            bar.update(row, detail="")
        shown = [t for t in timings if t.backbone in backbones and t.method in methods]
        console.print(render_timings(shown))
        merged = ", ".join(name for name in METHOD_TITLES if hasattr(METHODS[name], "merge"))
        console.print(f"Answers of {merged} are timed folded into the weights.", style="dim", highlight=False)
        charts = save_bars(
            out, "figure2", [[bar_panel(shown, phase, b, methods) for b in backbones] for phase in PHASES]
        )
        written = ", ".join(map(str, [path, *charts]))
        console.print(f"Written: {written}", highlight=False, soft_wrap=True)

    def _conditions(self) -> dict[str, Any]:
        """What timings must have in common to stand in one chart."""
        return {
            "num_layers": self.num_layers,
            "clip_seconds": self.clip_seconds,
            "step_seconds": self.step_seconds,
            "turns": self.turns,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


@dataclass(frozen=True)
class Timing:
    """Seconds of a training step or an answer, and of the same with full fine-tuning, timed in turn.

    cached: it starts from what is kept of the frozen part. merged: the method was folded into the weights.
    """

    backbone: str
    method: str
    phase: Phase
    cached: bool
    merged: bool
    seconds: float
    finetune_seconds: float

    @property
    def relative(self) -> float:
        return self.seconds / self.finetune_seconds


class Stopwatch:
    """Times methods on one backbone against full fine-tuning of it, which it keeps ready."""

    def __init__(self, backbone: str, recipe: PetlFigure2) -> None:
        self.backbone, self.recipe = backbone, recipe
        self._finetuned: Subject | None = None
        clip_seconds = recipe.clip_seconds or BACKBONES[backbone].build(num_layers=1).max_seconds
        if clip_seconds is None:
            raise ValueError(f"'{backbone}' takes clips of any length; say clip_seconds=...")
        self.clip_seconds: float = clip_seconds
        self.batch_size = max(1, round(recipe.step_seconds / clip_seconds))

    def time(self, method: str) -> list[Timing]:
        """Training and inference, whole and from what is kept."""
        if self._finetuned is None:
            self._finetuned = Subject(self._setting("finetune"))
        return [timing for phase in PHASES for timing in self._time(method, phase, self._finetuned)]

    def _time(self, method: str, phase: Phase, finetuned: Subject) -> list[Timing]:
        kind = type(parse_method(method))
        merged = phase == "inference" and hasattr(kind, "merge")
        if format_method(parse_method(method)) == "finetune":
            others, settings = [], []
        else:
            settings = [self._setting(method, merged=merged)]
            if not kind.trains_stem:
                settings.append(self._setting(method, cached=True, merged=merged))
            others = [Subject(setting) for setting in settings]
        seconds = fastest_seconds([_call(s, phase) for s in (finetuned, *others)], self.recipe.turns)
        if not others:
            return [Timing(self.backbone, method, phase, False, False, seconds[0], seconds[0])]
        return [
            Timing(self.backbone, method, phase, setting.cached, merged, own, seconds[0])
            for setting, own in zip(settings, seconds[1:], strict=True)
        ]

    def _setting(self, method: str, cached: bool = False, merged: bool = False) -> Setting:
        return Setting(
            self.backbone, method, self.recipe.num_layers, self.clip_seconds, self.batch_size, cached, merged
        )


def _call(subject: Subject, phase: Phase) -> Callable[[], object]:
    if phase == "training":
        subject.prepare_training()
        return subject.train
    subject.model.eval()
    return subject.answer


def bar_panel(timings: Sequence[Timing], phase: Phase, backbone: str, methods: Sequence[str]) -> BarPanel:
    """One chart: a phase on a backbone, a place per method."""

    def bars(name: str, cached: bool) -> Bars:
        found = {
            t.method: t.relative
            for t in timings
            if (t.backbone, t.phase, t.cached) == (backbone, phase, cached)
        }
        return Bars(name, tuple(found.get(method) for method in methods))

    return BarPanel(
        title=f"{phase.capitalize()}, {backbone}",
        y_label="time, FT = 1",
        categories=tuple(METHOD_TITLES.get(method, method) for method in methods),
        bars=(bars("everything computed", False), bars("output of the frozen part kept", True)),
        reference=1.0,
    )


def render_timings(timings: Sequence[Timing]) -> Table:
    table = Table(
        title="PETL, figure 2: time relative to full fine-tuning", title_justify="left", box=box.HORIZONTALS
    )
    table.add_column("backbone")
    table.add_column("method", overflow="fold")
    for phase in PHASES:
        table.add_column(f"{phase}", justify="right")
        table.add_column("part kept", justify="right")
    previous = None
    for backbone, method in dict.fromkeys((t.backbone, t.method) for t in timings):
        if previous not in (None, backbone):
            table.add_section()
        previous = backbone
        cells = []
        for phase in PHASES:
            for cached in (False, True):
                wanted = (backbone, method, phase, cached)
                found = [t for t in timings if (t.backbone, t.method, t.phase, t.cached) == wanted]
                cells.append(f"{found[0].relative:.3f} ({found[0].seconds:.3g} s)" if found else "-")
        table.add_row(backbone, METHOD_TITLES.get(method, method), *cells)
    return table


# The numbers as a file -----------------------------------------------------------------------------------


def _write(path: Path, conditions: dict[str, Any], timings: Sequence[Timing]) -> None:
    rows = [asdict(timing) | {"relative": timing.relative} for timing in timings]
    write_json(path, {"conditions": conditions, "timings": rows})


def _read(path: Path, conditions: dict[str, Any]) -> list[Timing]:
    """Timings of an earlier call under the same conditions; none if there are no such."""
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["conditions"] != conditions:
            return []
        return [Timing(**{k: v for k, v in t.items() if k != "relative"}) for t in record["timings"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a file of this recipe ({error}). Remove it, or give another folder."
        ) from None
