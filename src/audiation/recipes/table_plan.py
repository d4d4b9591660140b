"""What can be run of a table with the data and weights at hand. Nothing is fetched, and no recording is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from audiation.backbones import BACKBONES, Backbone
from audiation.cache import cache_dir
from audiation.datasets import DATASETS
from audiation.loading import show_licence_once
from audiation.official_files import fetch_official
from audiation.probe_evaluation import plan_search
from audiation.protocols import PROTOCOLS, Protocol
from audiation.recipes.base import kept_result, result_name
from audiation.run import Run
from audiation.tasks import TASKS
from audiation.weights import OfficialWeights, WeightsError

ObstacleKind = Literal["backbone not in the zoo", "data set not found", "weights not at hand"]


@dataclass(frozen=True)
class Obstacle:
    """Why a run cannot be carried out here. what: name of the backbone or data set."""

    kind: ObstacleKind
    what: str
    reason: str


@dataclass(frozen=True)
class PlannedRun:
    """obstacles: none: it can be tried. num_trainings: configurations that it trains; None: not known, for a backbone
    that is not there. fetches_weights: whether its weights come from the Hub first. has_result: of these versions,
    from an earlier call, so that nothing stands in its way."""

    run: Run
    obstacles: tuple[Obstacle, ...]
    num_trainings: int | None
    fetches_weights: bool = False
    has_result: bool = False


@dataclass(frozen=True)
class Plan:
    runs: tuple[PlannedRun, ...]

    @property
    def possible(self) -> list[Run]:
        """Runs that nothing stands in the way of, as far as can be seen."""
        return [planned.run for planned in self.runs if not planned.obstacles]

    @property
    def runs_behind(self) -> dict[Obstacle, list[Run]]:
        """Obstacle -> the runs that it stops; a run may have several."""
        behind: dict[Obstacle, list[Run]] = {}
        for planned in self.runs:
            for obstacle in planned.obstacles:
                behind.setdefault(obstacle, []).append(planned.run)
        return behind

    @property
    def weights_to_fetch(self) -> list[str]:
        """Backbones whose weights the possible runs need and the cache lacks."""
        wanted = [p.run.backbone for p in self.runs if p.fetches_weights and not p.obstacles]
        return list(dict.fromkeys(wanted))

    def num_trainings(self, *, possible_only: bool = False) -> int:
        """Configurations over all runs that are known."""
        return sum(p.num_trainings or 0 for p in self.runs if not (possible_only and p.obstacles))


def plan_runs(runs: Sequence[Run], data_root: Path | None = None, results: Path | None = None) -> Plan:
    """Look whether backbones, folders of data sets and weights are there.

    A data set counts as there if its folder is: what lies in it shows when it is read. Small official lists may still
    be fetched then.

    Args:
        data_root: folder with one folder per data set; default `$AUDIATION_DATA_ROOT`.
        results: folder with results of earlier calls.

    Raises:
        ValueError: a data root that is no folder.
    """
    root = data_root or (Path(given) if (given := os.environ.get("AUDIATION_DATA_ROOT")) else None)
    if root is not None and not root.expanduser().is_dir():
        raise ValueError(
            f"data root {root} is no folder. Give the one that holds the folders of the data sets."
        )
    places = _Places(root)
    return Plan(tuple(_with_kept(places.plan(run), results) for run in runs))


def _with_kept(planned: PlannedRun, results: Path | None) -> PlannedRun:
    if results is None or kept_result(results / result_name(planned.run)) is None:
        return planned
    return replace(planned, obstacles=(), fetches_weights=False, has_result=True)


def fetch_weights(plan: Plan) -> Plan:
    """Get the weights that possible runs lack; runs whose weights cannot be had get that as an obstacle.

    Once for every backbone, and before the first run, so that no run waits for a network that is not there.
    """
    refused: dict[str, str] = {}
    for name in plan.weights_to_fetch:
        spec = BACKBONES[name]
        official: OfficialWeights = spec.weights
        show_licence_once(spec)
        try:
            for file in official.files:
                fetch_official(file, official.revision)
        except WeightsError as error:
            refused[name] = str(error)
    return Plan(
        tuple(
            replace(
                p,
                obstacles=(
                    *p.obstacles,
                    Obstacle("weights not at hand", p.run.backbone, refused[p.run.backbone]),
                ),
            )
            if p.fetches_weights and p.run.backbone in refused
            else p
            for p in plan.runs
        )
    )


def find_folder(dataset: str, root: Path | None) -> Path | None:
    """The folder of a data set below the data root, where `splits.load_dataset` looks for it; None: there is none.

    The root itself counts where it is called like the data set. dataset: may have a variant behind it.
    """
    return next((p for p in _candidates(dataset, root) if p.is_dir() and any(p.iterdir())), None)


def _candidates(dataset: str, root: Path | None) -> list[Path]:
    name = dataset.partition(":")[0]
    names = (name, *DATASETS[name].folders)
    places = []
    if root is not None:
        root = root.expanduser()
        places = [root / n for n in names]
        if root.resolve().name in names:
            places.append(root)
    return [*places, cache_dir("datasets", name)]


class _Places:
    """Looks at every folder, model and cache entry once."""

    def __init__(self, data_root: Path | None) -> None:
        self._root = data_root
        self._datasets: dict[str, Obstacle | None] = {}
        self._weights: dict[str, tuple[Obstacle | None, bool]] = {}
        self._outlines: dict[str, Backbone] = {}

    def plan(self, run: Run) -> PlannedRun:
        obstacles = []
        fetches = False
        if run.backbone not in BACKBONES:
            reason = "it has no file yet; `audiation list backbones` shows what there is"
            obstacles.append(Obstacle("backbone not in the zoo", run.backbone, reason))
        elif run.weights is None:
            lacking, fetches = self._look_for_weights(run.backbone)
            obstacles += [lacking] if lacking else []
        task = TASKS[run.task]
        for dataset in dict.fromkeys((task.train_dataset, task.test_dataset)):
            if (missing := self._look_for_data(dataset)) is not None:
                obstacles.append(missing)
        return PlannedRun(run, tuple(obstacles), self._num_trainings(run), fetches)

    def _look_for_data(self, dataset: str) -> Obstacle | None:
        name = dataset.partition(":")[0]
        if name not in self._datasets:
            found = find_folder(name, self._root)
            self._datasets[name] = None if found else self._missing(name)
        return self._datasets[name]

    def _missing(self, name: str) -> Obstacle:
        if self._root is None:
            looked = "no data root is given (--data-root or $AUDIATION_DATA_ROOT)"
        else:
            looked = f"looked for {', '.join(str(p) for p in _candidates(name, self._root)[:-1])}"
        where = DATASETS[name].info.where
        return Obstacle("data set not found", name, f"{looked}. From {where}; docs/datasets.md says more")

    def _look_for_weights(self, name: str) -> tuple[Obstacle | None, bool]:
        """What is in the way, and whether the Hub has to be asked."""
        if name not in self._weights:
            self._weights[name] = _look_for_weights(name)
        return self._weights[name]

    def _num_trainings(self, run: Run) -> int | None:
        protocol = PROTOCOLS[run.protocol]
        if not isinstance(protocol, Protocol):
            return 1
        if run.backbone not in BACKBONES:
            return None
        if run.backbone not in self._outlines:
            spec = BACKBONES[run.backbone]
            self._outlines[run.backbone] = (spec.outline or spec.build)()
        return len(plan_search(protocol, run.task, self._outlines[run.backbone], run).configs)


def _look_for_weights(name: str) -> tuple[Obstacle | None, bool]:
    from huggingface_hub import constants

    spec = BACKBONES[name]
    if spec.from_published is None:  # a formula
        return None, False
    if spec.weights is None:
        reason = f"no official weights of '{name}' are known; --weights random draws some, for a dry trial"
        return Obstacle("weights not at hand", name, reason), False
    official: OfficialWeights = spec.weights
    repository = official.checkpoint.repo_id
    try:
        for file in official.files:
            fetch_official(file, official.revision, local_files_only=True)
    except WeightsError:
        if not constants.HF_HUB_OFFLINE:
            return None, True
        reason = (
            f"HF_HUB_OFFLINE is set, and the cache lacks Hub repository {repository}. Where the Hub is in reach, run "
            f"`hf download {repository} {' '.join(f.filename for f in official.files)}`, and copy the folder "
            f"models--{repository.replace('/', '--')} into {constants.HF_HUB_CACHE}"
        )
        return Obstacle("weights not at hand", name, reason), False
    return None, False
