"""Which layer? Probes on every layer of a frozen backbone, from features that are stored in one pass.

As figure 2 of jukemir (Castellon, Donahue & Liang 2021): validation scores of a linear probe per layer, brought to one
scale per task, and their mean over the tasks. The paper does not say how it normalised; here the worst of the layers
that were probed is 0 on each task, and the best is 1.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audiation.adapted_evaluation import EvaluationProgress
from audiation.backbones import Backbone
from audiation.cache import cache_dir, keep_text
from audiation.layer_choices import (
    SAME_SCORE,
    GreedyLayers,
    GreedySelection,
    GreedyStep,
    JointProbes,
    LayerVectors,
    parse,
    parse_fixed,
    select_greedily,
)
from audiation.probe import check_classes
from audiation.probe_evaluation import aggregation_rules, plan_search
from audiation.probe_scores import ValidationScorer
from audiation.protocols import PROTOCOLS, Protocol
from audiation.results import current_versions
from audiation.run import Run
from audiation.splits import Split, load_splits
from audiation.stored_vectors import SplitVectors, StoredFeatures, extract_features, load_for_run
from audiation.targets import clip_target
from audiation.tasks import TASKS, Task

LINEAR = "hidden_size=none"  # the head that the figure is about


@dataclass(frozen=True)
class TaskProfile:
    """Probes on the layers of a backbone, for one task.

    metric: the task's first. higher_is_better: of the metric itself.
    scores: layer -> best validation score, larger is better (the sign of a metric that is better when small is turned);
        None where every probe has diverged.
    num_probes: that were tried on each layer.
    num_train_windows, num_valid_tracks: behind the scores.
    failures: (track id, reason) of recordings of the two splits that could not be used.
    selection: layers that are good together, where they were asked for.
    """

    task: str
    metric: str
    higher_is_better: bool
    scores: dict[int, float | None]
    num_probes: int
    num_train_windows: int
    num_valid_tracks: int
    failures: tuple[tuple[str, str], ...] = ()
    selection: GreedySelection | None = None

    @property
    def normalised(self) -> dict[int, float | None]:
        """Layer -> 0 for the worst layer .. 1 for the best; None without a score, and everywhere if all are alike."""
        return normalise(self.scores)

    @property
    def best_layer(self) -> int | None:
        """The lowest of the best; None where all layers are alike, or only one was probed."""
        return _best(self.normalised)


@dataclass(frozen=True)
class FailedTask:
    task: str
    reason: str


@dataclass(frozen=True)
class LayerProfile:
    """A backbone's layers on several tasks.

    num_layers: L of the backbone; layers: those that were probed.
    probes: protocol and what of it was changed, for people.
    failed: tasks without a profile.
    """

    backbone: str
    num_layers: int
    layers: tuple[int, ...]
    probes: str
    weights_source: str
    tasks: tuple[TaskProfile, ...]
    failed: tuple[FailedTask, ...] = ()

    @property
    def counted(self) -> tuple[TaskProfile, ...]:
        """Tasks that tell layers apart."""
        return tuple(profile for profile in self.tasks if profile.best_layer is not None)

    @property
    def mean(self) -> dict[int, float | None]:
        """Layer -> mean of the normalised scores over the counted tasks; None where one has no score."""
        counted = [profile.normalised for profile in self.counted]
        means: dict[int, float | None] = {}
        for layer in self.layers:
            values = [profile[layer] for profile in counted]
            known = [v for v in values if v is not None]
            means[layer] = sum(known) / len(known) if known and len(known) == len(values) else None
        return means

    @property
    def best_layer(self) -> int | None:
        """The layer with the highest mean, the lowest of equals; None where no task tells layers apart."""
        return _best(self.mean)


def normalise(scores: Mapping[int, float | None]) -> dict[int, float | None]:
    """(score - worst) / (best - worst); None where there is no score, and everywhere if all scores are equal."""
    known = [score for score in scores.values() if score is not None]
    if not known or max(known) - min(known) < SAME_SCORE:
        return dict.fromkeys(scores)
    low, span = min(known), max(known) - min(known)
    return {layer: None if score is None else (score - low) / span for layer, score in scores.items()}


def _best(scores: Mapping[int, float | None]) -> int | None:
    known = {layer: score for layer, score in scores.items() if score is not None}
    return min(known, key=lambda layer: (-known[layer], layer)) if known else None


def profile_layers(
    backbone: str,
    tasks: Sequence[str],
    layers: str = "all",
    *,
    choose: str = "",
    protocol: str = "jukemir-single",
    train: str = LINEAR,
    weights: str | None = None,
    num_layers: int | None = None,
    precision: Any = "fp32",
    seed: int = 0,
    out: Path | None = None,
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    store_dir: str | Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "cpu",
    progress: Callable[[str, EvaluationProgress], None] | None = None,
) -> LayerProfile:
    """Probe layers of a frozen backbone on tasks, by their training and validation splits. The test split is not heard.

    All layers that are asked for are stored in one pass over the recordings; what is stored is not computed again. A
    task whose profile lies in `out`, of the same weights, rules and versions, is not repeated, and one that was stopped
    goes on. A task that cannot be profiled does not stop the others.

    Args:
        layers: `layer_choices.parse_fixed`: all, middle, every:k, or 3+7.
        choose: "greedy:n" looks for up to n of these layers that are jointly best for each task
            (`layer_choices.select_greedily`); "": none.
        protocol: that trains probes; its probes are tried on every layer, whichever it searches itself.
        train: what departs from the protocol, as in `Run.train`; by default the head is linear. "": the protocol's.
        out: folder of the profiles; default: in the cache directory.
        progress: called with the name of the task.
        others: as in `evaluate`.

    Raises:
        UnknownNameError: a name that nothing has.
        ValueError: layers that there are not, no task, one that is named twice, or a protocol that does not probe.
    """
    rules = _check(tasks, protocol)
    if workers < 0 or batch_size < 1:
        raise ValueError(f"workers must be >= 0 and batch_size >= 1, got {workers} and {batch_size}")
    run = Run(
        backbone=backbone, task=tasks[0], protocol=protocol, weights=weights, num_layers=num_layers,
        precision=precision, train=train, seed=seed,
    )  # fmt: skip
    model = load_for_run(run, device)
    wanted = parse_fixed(layers, model.num_layers)
    selection = _selection(choose, model)
    plan_search(
        rules, tasks[0], model, replace(run, layer=wanted[0])
    )  # choices that do not exist are refused at once
    work = _Work(
        model, rules, wanted, selection, out or cache_dir("profiles"), data_root, metadata_root, store_dir,
        batch_size, workers, device,
    )  # fmt: skip
    done: list[TaskProfile] = []
    failed: list[FailedTask] = []
    for name in tasks:
        report = _reporter(name, progress)
        try:
            done.append(work.profile(replace(run, task=name), report))
        except (ValueError, KeyError, OSError) as error:
            failed.append(FailedTask(name, str(error)))
            report(EvaluationProgress("data", detail=f"{name} is not profiled: {error}"))
    return LayerProfile(
        backbone, model.num_layers, wanted, f"{protocol}{f', {train}' if train else ''}", model.weights_source,
        tuple(done), tuple(failed),
    )  # fmt: skip


def _check(tasks: Sequence[str], protocol: str) -> Protocol:
    if not tasks:
        raise ValueError("name at least one task, as in `audiation list tasks`")
    for name in tasks:
        TASKS[name]
        if list(tasks).count(name) > 1:
            raise ValueError(f"task '{name}' is named twice")
    rules = PROTOCOLS[protocol]
    if not isinstance(rules, Protocol):
        able = ", ".join(name for name in PROTOCOLS if isinstance(PROTOCOLS[name], Protocol))
        raise ValueError(f"protocol '{protocol}' does not probe stored vectors. Use one of: {able}.")
    return rules


def _selection(choose: str, model: Backbone) -> GreedyLayers | None:
    if not choose:
        return None
    choice = parse(choose, model.num_layers)
    if not isinstance(choice, GreedyLayers):
        raise ValueError(f"choose is greedy:n, like greedy:3, got '{choose}'")
    return choice


def _reporter(
    task: str, progress: Callable[[str, EvaluationProgress], None] | None
) -> Callable[[EvaluationProgress], None]:
    return lambda state: progress(task, state) if progress is not None else None


# One task -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Work:
    """What all tasks of a call share."""

    model: Backbone
    protocol: Protocol
    layers: tuple[int, ...]
    greedy: GreedyLayers | None
    out: Path
    data_root: str | Path | None
    metadata_root: str | Path | None
    store_dir: str | Path | None
    batch_size: int
    workers: int
    device: str

    def profile(self, run: Run, report: Callable[[EvaluationProgress], None]) -> TaskProfile:
        """From the file of an earlier call, or anew."""
        task = TASKS[run.task]
        if task.target.per_frame or task.task_type == "separation":
            raise ValueError(
                f"'{task.name}' asks about every frame, and a profile has one vector per window. Take a task that asks "
                "about clips."
            )
        report(EvaluationProgress("data"))
        splits, split_hash = load_splits(task, self.data_root, self.metadata_root)
        conditions = {
            "run": asdict(run), "layers": list(self.layers), "greedy": self.greedy.most if self.greedy else None,
            "protocol_version": self.protocol.version, "weights_hash": self.model.weights_hash,
            "split_hash": split_hash, "metric": task.metrics[0].versioned_name, "versions": current_versions(),
        }  # fmt: skip
        digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        path = self.out / f"layers.{task.name}.{Path(run.backbone).name}.{digest[:10]}.json"
        kept = _read(path, conditions)
        if kept is not None:
            return kept
        profile = self._measure(
            run, task, {name: splits[name] for name in ("train", "valid")}, digest, report
        )
        record = {"conditions": conditions, "profile": asdict(profile)}
        keep_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
        return profile

    def _measure(
        self,
        run: Run,
        task: Task,
        splits: dict[str, Split],
        digest: str,
        report: Callable[[EvaluationProgress], None],
    ) -> TaskProfile:
        if splits["train"].tracks:  # before anything is computed in vain
            check_classes(task.target, [task.annotation(t) for t in splits["train"].tracks])
        search = plan_search(self.protocol, task.name, self.model, replace(run, layer=self.layers[0]))
        features = extract_features(
            self.model, task, splits, self.layers, keep_remainders=self.protocol.keep_remainders,
            store_dir=self.store_dir, batch_size=self.batch_size, workers=self.workers,
            progress=lambda p: report(EvaluationProgress("features", extraction=p)),
        )  # fmt: skip
        train, valid = (features.read(splits[name], self.layers[:1]) for name in ("train", "valid"))
        for name, vectors in (("train", train), ("valid", valid)):
            if not vectors.tracks:
                reasons = "; ".join(f"{t}: {why}" for t, why in vectors.failures[:3]) or "the split is empty"
                raise ValueError(f"no {name} track of {task.name} could be used: {reasons}")
        target, metric = clip_target(task.target), task.metrics[0]
        annotations = [task.annotation(t) for t in train.tracks]
        references = [task.annotation(t) for t in valid.tracks]
        probes = JointProbes(
            read=lambda layers: _vectors(features, splits, layers),
            probes=search.configs,
            schedule=search.schedule,
            target=target,
            annotations=[annotations[i] for i in train.track_of_window.tolist()],
            score=ValidationScorer(
                target, metric, references, valid.track_of_window, aggregation_rules(self.protocol, task)
            ),
            bytes_per_layer=sum(x.nbytes for v in (train, valid) for x in v.vectors.values()),
            run_dir=cache_dir("runs"),
            run_key=f"{digest} {[str(r) for r in references]} {valid.track_of_window.tolist()}",
            device=self.device,
            progress=lambda p: report(
                EvaluationProgress("probe", validation_score=p.best_score, step=p.step, grid=p)
            ),
        )
        found = probes.scores([(layer,) for layer in self.layers])
        scores = dict(zip(self.layers, found, strict=True))
        selection = select_greedily(self.greedy.most, scores, probes) if self.greedy else None
        return TaskProfile(
            task=task.name,
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            scores={layer: score if math.isfinite(score) else None for layer, score in scores.items()},
            num_probes=len(search.configs),
            num_train_windows=len(train.track_of_window),
            num_valid_tracks=len(valid.tracks),
            failures=tuple(
                (track_id, why)
                for name, vectors in (("train", train), ("valid", valid))
                for track_id, why in (*splits[name].left_out, *vectors.failures)
            ),
            selection=selection,
        )


def _vectors(features: StoredFeatures, splits: dict[str, Split], layers: Sequence[int]) -> LayerVectors:
    read: dict[str, SplitVectors] = {name: features.read(splits[name], layers) for name in ("train", "valid")}
    return LayerVectors(read["train"].vectors, read["valid"].vectors)


def _read(path: Path, conditions: dict[str, Any]) -> TaskProfile | None:
    """A profile that was made under the same conditions; None where there is none, or nothing that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["conditions"] != json.loads(json.dumps(conditions)):
            return None
        profile = dict(record["profile"])
        selection = profile.pop("selection")
        profile["scores"] = {int(layer): score for layer, score in profile["scores"].items()}
        profile["failures"] = tuple((track_id, why) for track_id, why in profile["failures"])
        return TaskProfile(**profile, selection=None if selection is None else _selection_of(selection))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _selection_of(record: dict[str, Any]) -> GreedySelection:
    over = record["passed_over"]
    return GreedySelection(
        tuple(GreedyStep(**step) for step in record["steps"]), None if over is None else GreedyStep(**over)
    )
