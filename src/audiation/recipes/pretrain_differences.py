"""What two rows of a table about pre-training differ in, field by field: whether a contrast is about one thing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from audiation.backbones.architecture import Sizes, is_architecture, parse_architecture
from audiation.objectives import parse_objective
from audiation.pretrain_run import PretrainRun
from audiation.recipes.pretrain_rows import PretrainRow

# Rows have equal minutes; the steps that fit into them follow.
FOLLOWS_MINUTES = frozenset({"train.steps", "train.warmup_steps"})


@dataclass(frozen=True)
class Contrast:
    """Row `a` minus row `b`, which differ in `what`.

    about: the fields of a run (`run_fields`) that `what` stands for, with those that follow from it. What differs
        besides them is another factor.
    """

    what: str
    a: str
    b: str
    about: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A field of `run_fields` that two runs have otherwise."""

    field: str
    a: object
    b: object

    def __str__(self) -> str:
        name = self.field.rpartition(".")[2]
        return f"{name} {_text(self.a)}, not {_text(self.b)}"


@dataclass(frozen=True)
class RowPair:
    """A contrast, and all fields that its two runs have otherwise.

    equal_minutes: of training, so that the steps follow from the rest.
    """

    contrast: Contrast
    differences: tuple[Difference, ...]
    equal_minutes: bool = False

    @property
    def others(self) -> tuple[Difference, ...]:
        """Those that the contrast is not about."""
        about = {*self.contrast.about, *(FOLLOWS_MINUTES if self.equal_minutes else ())}
        return tuple(d for d in self.differences if d.field not in about)

    @property
    def is_single_factor(self) -> bool:
        return not self.others

    @property
    def text(self) -> str:
        return "; ".join(map(str, self.differences))


def pair_of(contrast: Contrast, a: PretrainRow, b: PretrainRow, equal_minutes: bool = False) -> RowPair:
    """A contrast with all that its two rows differ in: their runs, the music that they hear, their minutes."""
    first, second = _row_fields(a), _row_fields(b)
    # Fields that one kind of objective or backbone alone has belong to the kind, which is named.
    both = [name for name in first if name in second and first[name] != second[name]]
    equal_minutes = equal_minutes and a.share_of_minutes == b.share_of_minutes
    differences = tuple(Difference(name, first[name], second[name]) for name in both)
    return RowPair(contrast, differences, equal_minutes)


def run_fields(run: PretrainRun) -> dict[str, object]:
    """A run as single values by name: "backbone" is its kind, "backbone.norm" a choice of it, and so on.

    Sizes are numbers ("backbone.num_layers"), not the names that stand for them. A teacher of clusters is what is
    clustered, "objective.features", and how many there are, "objective.clusters".
    """
    values: dict[str, object] = {}
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if field.name == "backbone":
            values |= _backbone_fields(value)
        elif field.name == "objective":
            values |= _objective_fields(value)
        elif field.name == "train":
            values |= {f"train.{f.name}": getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            values[field.name] = value
    return values


def render_pairs(pairs: Sequence[RowPair]) -> Table:
    """All that the rows of every contrast differ in, and whether that is one factor."""
    table = Table(title="What the rows differ in", title_justify="left", box=box.HORIZONTALS)
    for column in ("contrast", "factors", "all that differs"):
        table.add_column(column, overflow="fold")
    for pair in pairs:
        contrast = pair.contrast
        factors = "one" if pair.is_single_factor else "several"
        table.add_row(f"{contrast.what}\n{contrast.a} minus {contrast.b}", factors, pair.text)
    return table


def _row_fields(row: PretrainRow) -> dict[str, object]:
    assert row.run is not None
    return run_fields(row.run) | {"corpus": row.corpus, "share_of_minutes": row.share_of_minutes}


def _backbone_fields(name: str) -> dict[str, object]:
    if not is_architecture(name):
        return {"backbone": name}
    architecture = parse_architecture(name)
    values = {f.name: getattr(architecture, f.name) for f in dataclasses.fields(architecture)}
    del values["size"]
    kind = values.pop("encoder")
    values |= {f.name: getattr(architecture.sizes, f.name) for f in dataclasses.fields(Sizes)}
    return {"backbone": kind} | {f"backbone.{name}": value for name, value in values.items()}


def _objective_fields(text: str) -> dict[str, object]:
    objective = parse_objective(text)
    values: dict[str, object] = {"objective": text.partition(":")[0]}
    for field in dataclasses.fields(objective):  # type: ignore[arg-type]
        value = getattr(objective, field.name)
        if field.name == "teacher" and "-km" in value:
            features, _, clusters = value.partition("-km")
            values |= {"objective.features": features, "objective.clusters": int(clusters)}
        elif field.name == "teacher":
            values["objective.features"] = value
        else:
            values[f"objective.{field.name}"] = value
    return values


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if type(value) is int else str(value)
