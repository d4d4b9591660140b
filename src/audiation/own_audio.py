"""`adapt`: a user's own labelled audio -> an adapter directory. `predict`: audio files and adapters -> answers."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from audiation.adaptation import AdaptConfig, epoch_steps, train_adaptation
from audiation.adapted import AdaptedModel, TrackAnswer, answer_track
from audiation.adapted_evaluation import answer_examples, with_choices
from audiation.adapter_files import read_adapter_record
from audiation.adapters import AdapterBank, check_place, load_adapter, save_adapter
from audiation.audio import AudioError
from audiation.bootstrap import Interval, bootstrap_interval
from audiation.choices import parse_choices
from audiation.datasets.labelled import read_labelled
from audiation.distributed import this_rank
from audiation.loading import load_backbone
from audiation.methods import ParameterCount, format_method, inject, parse_method
from audiation.methods.finetune import FineTune
from audiation.results import current_versions
from audiation.target_files import question_of
from audiation.targets import clip_target
from audiation.tasks.labelled import labelled_task
from audiation.track_windows import Example, Unused
from audiation.training import TrainingProgress

DEFAULT_LEARNING_RATE, FINETUNE_LEARNING_RATE = 1e-4, 1e-5  # PETL protocol
MIN_LEARNING_RATE = 1e-7


@dataclass(frozen=True)
class AdaptReport:
    """What `adapt` made.

    directory: the adapter. parameters: of the method; head_parameters: of the head.
    scores, intervals: on the test split, empty where there is none. valid_score: of the first metric.
    unused: recordings of any split that could not be read.
    """

    directory: Path
    parameters: ParameterCount
    head_parameters: int
    metric: str
    valid_score: float
    best_step: int
    scores: dict[str, float]
    intervals: dict[str, Interval | None]
    num_test_tracks: int
    unused: tuple[Unused, ...]
    caching: str
    train_seconds: float


def adapt(
    data: str | os.PathLike[str],
    backbone: str,
    method: str = "lora",
    out: str | os.PathLike[str] = "adapter",
    *,
    kind: str | None = None,
    audio_root: str | os.PathLike[str] | None = None,
    ignore_columns: Sequence[str] = (),
    weights: str | None = None,
    num_layers: int | None = None,
    layer: int | None = None,
    epochs: int = 30,
    batch_size: int = 16,
    learning_rate: float | None = None,
    patience: int | None = 10,
    train: str = "",
    seed: int = 0,
    device: str = "cpu",
    cache_directory: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> AdaptReport:
    """Train a method and a head on labelled recordings, and write what was trained.

    Called again with the same arguments after it was killed, it goes on from its last checkpoint.

    Args:
        data: CSV, JSONL or folder (docs/datasets/labelled.md).
        backbone: name as in `audiation list backbones`.
        method: like "lora:rank=4".
        out: directory of the adapter; log and checkpoints lie in `training` below it.
        kind: "class", "tags", "regression" or "key"; None: as the columns say.
        audio_root: what the paths in the file are relative to; None: the folder of the file.
        ignore_columns: columns of the file that are not read.
        layer: which hidden states the head reads; None: the last.
        epochs: length of the training at most. patience: validations without improvement before it ends; None: never.
        learning_rate: None: 1e-4, and 1e-5 for "finetune".
        train: further choices, "field=value,field=value" of `adaptation.AdaptConfig`.
        seed: of the split, random weights, the method's and the head's initial weights, order and windows.
        cache_directory: keep the outputs of what is frozen on disk as well.
        say: called with lines for people.
        progress: called after every step.

    Raises:
        LabelError, ValueError: data that cannot be trained on, or choices that do not exist; before training.
        DivergedError: the loss is not a number any more.
    """
    say = say or (lambda _: None)
    parsed = parse_method(method)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    given = parse_choices(AdaptConfig, train, "train", complete=False)
    if both := sorted({"batch_size", "learning_rate", "patience", "seed"} & given.keys()):
        raise ValueError(f"train: {both[0]} is an argument of its own: --{both[0].replace('_', '-')}")
    directory = Path(out)
    check_place(directory)
    labelled = read_labelled(
        data, kind=kind, audio_root=audio_root, ignore_columns=tuple(ignore_columns), seed=seed
    )
    task = labelled_task(labelled)
    for line in labelled.report():
        say(line)
    examples = {
        split: [Example(t.track_id, t.audio_path, task.annotation(t)) for t in labelled.split(split)]
        for split in ("train", "valid", "test")
    }
    epoch = epoch_steps(len(examples["train"]), batch_size)
    default_rate = FINETUNE_LEARNING_RATE if isinstance(parsed, FineTune) else DEFAULT_LEARNING_RATE
    rate = default_rate if learning_rate is None else learning_rate
    config = with_choices(
        AdaptConfig(
            steps=epochs * epoch,
            batch_size=batch_size,
            learning_rate=rate,
            schedule="cosine",
            min_learning_rate=min(MIN_LEARNING_RATE, rate),
            validate_every_steps=epoch,
            patience=patience,
            seed=seed,
        ),
        train,
        "train",
    )
    trunk = load_backbone(backbone, weights, num_layers=num_layers, seed=seed, device=device)
    parameters = inject(trunk, parsed, torch.Generator().manual_seed(seed))
    say(
        f"{backbone} with {format_method(parsed)}: {parameters.trainable:,} of {parameters.registered:,} parameters "
        "are trained, and a head"
    )
    said: set[Unused] = set()

    def say_unused(unused: Iterable[Unused]) -> None:
        for one in unused:
            if one not in said:
                said.add(one)
                say(f"not used ({one.split}): {one.reason}")

    def ready(sentence: str, unused: tuple[Unused, ...]) -> None:
        say(sentence)
        say_unused(unused)

    adaptation = train_adaptation(
        trunk,
        task.target,
        examples["train"],
        examples["valid"],
        task.metrics[0],
        config,
        directory / "training",
        layer=layer,
        cache_directory=None if cache_directory is None else Path(cache_directory),
        device=device,
        progress=progress,
        on_ready=ready,
    )
    model, training = adaptation.model, adaptation.report
    scores: dict[str, float] = {}
    intervals: dict[str, Interval | None] = {}
    unused = list(adaptation.unused)
    answers = answer_examples(model, examples["test"], config.precision)
    unused += [Unused(track_id, "test", reason) for track_id, reason in answers.failures]
    say_unused(unused)
    if answers.estimates:
        references = [e.annotation for e in examples["test"] if e.track_id in answers.estimates]
        pairs = references, list(answers.estimates.values())
        for metric in task.metrics:
            try:
                scores[metric.name] = metric.compute(*pairs)
            except (
                ValueError
            ) as error:  # too few recordings for this metric; the adapter is good all the same
                say(f"{metric.name} is not defined on the test split: {error}")
                continue
            try:
                intervals[metric.name] = bootstrap_interval(metric, *pairs, seed=seed)
            except ValueError as error:
                intervals[metric.name] = None
                say(f"{metric.name} has no interval: {error}")
    assert training.best_score is not None and training.best_step is not None
    sign = 1 if task.metrics[0].higher_is_better else -1
    report = AdaptReport(
        directory,
        parameters,
        sum(p.numel() for p in model.head.parameters()),
        task.metrics[0].name,
        sign * training.best_score,
        training.best_step,
        scores,
        intervals,
        len(answers.estimates),
        tuple(unused),
        adaptation.caching,
        training.train_seconds,
    )
    if this_rank().is_first:
        info = _info(report, labelled.split_hash, labelled.counts, config)
        save_adapter(model, directory, info=info, moved_statistics=config.frozen_mode == "published")
    return report


def _info(
    report: AdaptReport, split_hash: str, counts: dict[str, int], config: AdaptConfig
) -> dict[str, Any]:
    return {
        "metric": report.metric,
        "valid_score": report.valid_score,
        "best_step": report.best_step,
        "test_scores": report.scores,
        "test_intervals": {k: None if v is None else list(v) for k, v in report.intervals.items()},
        "num_test_tracks": report.num_test_tracks,
        "unused": len(report.unused),
        "split_hash": split_hash,
        "counts": counts,
        "caching": report.caching,
        "train_seconds": report.train_seconds,
        "config": dataclasses.asdict(config),
        "versions": current_versions(),
    }


# Asking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prediction:
    """An adapter's answer about a file, or the reason why there is none.

    scores: named numbers behind the answer: probabilities of classes or tags, or values.
    window_scores: the same for every window.
    """

    path: Path
    adapter: str
    answer: TrackAnswer | None
    scores: dict[str, float]
    window_scores: tuple[dict[str, float], ...]
    failure: str = ""
    question: str = ""


def predict(
    paths: Sequence[str | os.PathLike[str]],
    adapters: Sequence[str | os.PathLike[str]],
    *,
    questions: Sequence[str] = (),
    weights: str | None = None,
    fold: bool = False,
    device: str = "cpu",
    batch_size: int = 4,
    precision: str = "fp32",
) -> Iterator[Prediction]:
    """Ask adapters about audio files: every file by every adapter, in order. One that cannot be read is a failure.

    Adapters of one trunk share it in memory.

    Args:
        questions: "key", "tempo", "beats", "chords", "sections", "tags", "class", ...: only the adapters that answer
            one of them are asked. (): all.
        fold: fold the method into the weights first (`methods.merge`); takes one adapter.
        weights: of the trunk; None: the official ones, or the random ones the adapter was made on.

    Raises:
        AdapterError: a directory that is no adapter, is damaged, or belongs to another trunk.
        ValueError: no adapter, or `fold` with several adapters or a method that cannot be folded.
    """
    directories = [Path(a) for a in adapters]
    if not directories:
        raise ValueError("name at least one adapter directory")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(set(directories)) < len(directories):
        raise ValueError("an adapter is named twice")
    asks = {d: question_of(read_adapter_record(d).target) for d in directories}
    if idle := [q for q in questions if q not in asks.values()]:
        raise ValueError(
            f"none of these adapters answers {', '.join(idle)}. They answer {', '.join(dict.fromkeys(asks.values()))}."
        )
    directories = [d for d in directories if not questions or asks[d] in questions]
    if fold and len(directories) > 1:
        raise ValueError(f"merging changes the weights, so it takes one adapter, got {len(directories)}")
    if len(directories) == 1:
        model = load_adapter(directories[0], weights=weights, device=device, merge=fold)
        models: dict[str, Callable[[], AdaptedModel]] = {str(directories[0]): lambda: model}
    else:
        models = _models(directories, weights, device)
    for path in map(Path, paths):
        for name, at_work in models.items():
            asked = at_work()
            try:
                answer = answer_track(asked, path, batch_size=batch_size, precision=precision)
            except AudioError as error:
                yield Prediction(path, name, None, {}, (), str(error), asks[Path(name)])
                continue
            if answer.grid is not None:  # frames have no scores that would be one answer's
                rows: tuple[dict[str, float], ...] = ({},) * len(answer.window_logits)
                yield Prediction(path, name, answer, {}, rows, question=asks[Path(name)])
                continue
            scores = clip_target(asked.target).scores
            windows = tuple(scores(row) for row in answer.window_logits)
            yield Prediction(path, name, answer, scores(answer.logits), windows, question=asks[Path(name)])


def _models(
    directories: Sequence[Path], weights: str | None, device: str
) -> dict[str, Callable[[], AdaptedModel]]:
    """Adapters of one trunk share it; there is a trunk per kind."""
    trunks: dict[tuple[str, int, str], dict[str, Path]] = {}
    for directory in directories:
        record = read_adapter_record(directory)
        trunk = (record.backbone, record.num_layers, record.trunk_hash)
        trunks.setdefault(trunk, {})[str(directory)] = directory
    models: dict[str, Callable[[], AdaptedModel]] = {}
    for held in trunks.values():
        bank = AdapterBank.load(held, weights=weights, device=device)
        models |= {name: functools.partial(bank.use, name) for name in bank.names}
    return {str(d): models[str(d)] for d in directories}
