"""What adaptation changes: the features that an adapted model's head reads, beside those of the untouched backbone.

PETL paper, section 5.3: how much the output features on the test clips correlate before and after. The paper does not
say how it correlated; ours is Pearson's coefficient over clips, per dimension, and its mean; linear CKA stands beside
it, which forgives a rotation of the features.

Shape letters: `N` clips, `B` windows, `S` samples, `D` model width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from audiation.adapted import AdaptedModel, windows_of
from audiation.adapter_files import AdapterRecord, read_adapter_record
from audiation.adapters import AdapterBank, load_adapter
from audiation.audio import AudioError
from audiation.backbones import BACKBONES, Backbone
from audiation.inference import ChunkPolicy, run_clip
from audiation.loading import convention_of, load_backbone
from audiation.methods import format_method
from audiation.music_files import find_music
from audiation.results import Result, ResultError
from audiation.splits import load_dataset
from audiation.tasks import TASKS
from audiation.windows import window_policy

OWN_AUDIO = "own audio"
MIN_CLIPS = 3  # any two points lie on a line
# A deviation below this share of the largest value is float32's rounding, and its correlation is noise.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of features of the same clips are.

    correlation: mean over dimensions of Pearson's coefficient over clips, from -1 to 1.
    cka: linear CKA of the centred features, from 0 to 1. Not debiased: with fewer clips than dimensions even
        unrelated features come well above 0; independent random ones at about D / (N + D).
    num_clips: N. num_dims: D.
    num_constant_dims: dimensions that do not vary over the clips on one side or the other, left out of the mean.
    """

    correlation: float
    cka: float
    num_clips: int
    num_dims: int
    num_constant_dims: int


@dataclass(frozen=True)
class FeatureComparison:
    """An adapted model beside the backbone that it was made of, at one layer.

    model: directory of the adapted model.
    weights_source, weights_hash: of the untouched backbone.
    num_layers: blocks of both. layer: whose hidden states are compared.
    task: whose test clips; `OWN_AUDIO` where files were given.
    window_seconds, windows: how clips were cut (None: not at all); a clip's features are the mean over its windows.
    precision: what both were computed in.
    num_official_clips: what the test split has by its lists, readable or not.
    unread: (clip, reason) of those that could not be read.
    """

    model: str
    backbone: str
    weights_source: str
    weights_hash: str
    num_layers: int
    layer: int
    method: str
    task: str
    similarity: Similarity
    window_seconds: float | None
    windows: str
    precision: str
    num_official_clips: int
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class FailedModel:
    model: str
    reason: str


@dataclass(frozen=True)
class Comparisons:
    """rows: in the order of the models, then of layers. failed: the other models, with their reasons."""

    rows: tuple[FeatureComparison, ...]
    failed: tuple[FailedModel, ...]


@dataclass(frozen=True)
class CompareProgress:
    """side: whose features are made. num_clips: of `total_clips` that are done."""

    model: str
    side: Literal["untouched", "adapted"]
    num_clips: int
    total_clips: int


def compare_models(
    models: Sequence[str | Path],
    *,
    data_root: str | Path | None = None,
    metadata_root: str | Path | None = None,
    audio: Sequence[str | Path] = (),
    layers: Sequence[int] | None = None,
    weights: str | None = None,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 4,
    progress: Callable[[CompareProgress], None] | None = None,
) -> Comparisons:
    """Compare the features of adapted models with those of their untouched backbones, on the test clips of their tasks.

    No more than one backbone is in memory at a time: methods that leave the trunk alone take turns on it, and a
    fine-tuned one is loaded when the plain one is gone. What cannot be compared is in `failed` with its reason, and
    the others go on.

    Args:
        models: directories that `audiation evaluate --model-out` or `audiation adapt` wrote.
        data_root, metadata_root: as in `evaluate`.
        audio: files and folders to compare on, instead of test clips.
        layers: whose hidden states; None: the layer that each model's head reads.
        weights: of the backbones; None: the official ones, or the random ones that a model was made on.
        precision: "bf16" runs under autocast.
        batch_size: windows per forward pass.
        progress: called before every clip.

    Raises:
        AdapterError: a directory that is no adapted model, or a damaged one.
        ValueError: no model, one that is named twice, a result file (it holds no weights), or no layer.
    """
    directories = [Path(model) for model in models]
    _check(directories, layers, batch_size)
    records = {directory: read_adapter_record(directory) for directory in directories}
    trunks: dict[tuple[str, int, str], list[Path]] = {}
    for directory, record in records.items():
        trunks.setdefault((record.backbone, record.num_layers, record.trunk_hash), []).append(directory)
    shelf = _Clips(data_root, metadata_root, tuple(Path(path) for path in audio))
    work = _Work(shelf, layers, weights, device, precision, batch_size, progress or (lambda _: None))
    found: dict[Path, list[FeatureComparison] | str] = {}
    for together in trunks.values():
        found |= work.compare({directory: records[directory] for directory in together})
    outcomes = [(directory, found[directory]) for directory in directories]
    return Comparisons(
        tuple(row for _, outcome in outcomes if not isinstance(outcome, str) for row in outcome),
        tuple(FailedModel(str(directory), why) for directory, why in outcomes if isinstance(why, str)),
    )


def compare_vectors(plain_ND: Tensor, adapted_ND: Tensor) -> Similarity:
    """How alike features of the same clips are. Features that are equal to the bit give 1 exactly.

    Raises:
        ValueError: other shapes, fewer than 3 clips, numbers that are not finite, or no dimension that varies.
    """
    if plain_ND.ndim != 2 or plain_ND.shape != adapted_ND.shape:
        raise ValueError(
            f"features of the same clips are two (clips, dimensions), got {tuple(plain_ND.shape)} and "
            f"{tuple(adapted_ND.shape)}"
        )
    num_clips, num_dims = plain_ND.shape
    if num_clips < MIN_CLIPS:
        raise ValueError(f"a correlation needs at least {MIN_CLIPS} clips, got {num_clips}")
    for name, features in (("untouched", plain_ND), ("adapted", adapted_ND)):
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"the features of the {name} backbone hold NaN or infinite values")
    correlations = pearson_per_dimension(plain_ND, adapted_ND)
    varies = ~torch.isnan(correlations)
    if not bool(varies.any()):
        raise ValueError(
            f"none of the {num_dims} dimensions varies over the {num_clips} clips on both sides, so nothing can be "
            "correlated: the clips are equal, or the features have collapsed"
        )
    equal = torch.equal(plain_ND, adapted_ND)
    return Similarity(
        correlation=1.0 if equal else float(correlations[varies].mean()),
        cka=1.0 if equal else linear_cka(plain_ND, adapted_ND),
        num_clips=num_clips,
        num_dims=num_dims,
        num_constant_dims=num_dims - int(varies.sum()),
    )


def pearson_per_dimension(plain_ND: Tensor, adapted_ND: Tensor) -> Tensor:
    """Pearson's coefficient over clips, `(D,)` float64; NaN where a dimension does not vary on one side."""
    centred = [_centred(x) for x in (plain_ND, adapted_ND)]
    norms = [x.norm(dim=0) for x in centred]
    correlations = (centred[0] * centred[1]).sum(0) / (norms[0] * norms[1])
    for features, norm in zip((plain_ND, adapted_ND), norms, strict=True):
        deviation = norm / len(features) ** 0.5
        constant = deviation <= ROUNDING * features.double().abs().amax(0)
        correlations = correlations.masked_fill(constant, torch.nan)
    return correlations


def linear_cka(plain_ND: Tensor, adapted_ND: Tensor) -> float:
    """Linear CKA, `|Y'X|^2 / (|X'X| |Y'Y|)` of centred features (Kornblith et al. 2019), in the form that needs D x D
    numbers. Rotations and a common scale of either side change nothing. NaN where a side does not vary."""
    x, y = _centred(plain_ND), _centred(adapted_ND)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def _centred(features_ND: Tensor) -> Tensor:
    features = features_ND.double()
    return features - features.mean(0)


# Which clips ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clip:
    name: str
    path: Path
    span_seconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class _ClipList:
    """task: what the list is called. num_official: of the split, with recordings that are missing."""

    task: str
    clips: tuple[_Clip, ...]
    num_official: int
    missing: tuple[tuple[str, str], ...] = ()


class _Clips:
    """The clips of tasks, each list read once."""

    def __init__(
        self, data_root: str | Path | None, metadata_root: str | Path | None, audio: tuple[Path, ...]
    ) -> None:
        self._data_root, self._metadata_root, self._audio = data_root, metadata_root, audio
        self._known: dict[str, _ClipList] = {}

    def of(self, record: AdapterRecord) -> _ClipList:
        task = OWN_AUDIO if self._audio else record.info.get("task")
        if task is None:
            raise ValueError(
                "this model was trained on labels of your own and names no task whose test clips could be compared. "
                "Give files or folders with --audio."
            )
        if task not in self._known:
            self._known[task] = self._own() if self._audio else self._test_clips(str(task))
        return self._known[task]

    def _own(self) -> _ClipList:
        found = find_music(self._audio)
        missing = tuple((str(path), reason) for path, reason in found.problems)
        clips = tuple(_Clip(str(path), path) for path in found.files)
        return _ClipList(OWN_AUDIO, clips, len(clips) + len(missing), missing)

    def _test_clips(self, name: str) -> _ClipList:
        task = TASKS[name]
        data = load_dataset(task.test_dataset, self._data_root, self._metadata_root)
        tracks = [t for t in data.split("test") if task.annotation(t) is not None]
        missing = tuple((s.track_id, s.reason) for s in data.skipped if s.split == "test")
        clips = tuple(_Clip(t.track_id, t.audio_path, t.span_seconds) for t in tracks)
        return _ClipList(name, clips, len(clips) + len(missing), missing)


# Features -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Features:
    """vectors: layer -> `(N, D)` float32 on the CPU, of the clips that could be read; unread: the others."""

    vectors: dict[int, Tensor]
    unread: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Work:
    shelf: _Clips
    layers: Sequence[int] | None
    weights: str | None
    device: str
    precision: Literal["fp32", "bf16"]
    batch_size: int
    report: Callable[[CompareProgress], None]

    def compare(self, records: dict[Path, AdapterRecord]) -> dict[Path, list[FeatureComparison] | str]:
        """Models of one trunk: rows, or the reason why there are none."""
        untouched: dict[Any, _Features] = {}  # models that cut clips alike share them
        found = self._on_one_trunk(records, untouched)
        for directory, record in records.items():  # the plain trunk is gone: these need its memory
            if directory not in found:
                found[directory] = self._alone(directory, record, untouched)
        return found

    def _on_one_trunk(
        self, records: dict[Path, AdapterRecord], untouched: dict[Any, _Features]
    ) -> dict[Path, list[FeatureComparison] | str]:
        """Fills `untouched` for all models, and compares those that leave the trunk alone."""
        found: dict[Path, list[FeatureComparison] | str] = {}
        try:
            bank = AdapterBank(self._plain(next(iter(records.values()))))
        except _REASONS as error:
            return dict.fromkeys(records, str(error))
        for directory, record in records.items():
            try:
                self._untouched(directory, record, bank, untouched)
                if not record.method.trains_stem:
                    bank.add("adapted", directory)
                    found[directory] = self._rows(directory, record, bank.use("adapted"), untouched)
            except _REASONS as error:
                found[directory] = str(error)
            bank.use(None)
            if bank.names:
                bank.remove("adapted")
        return found

    def _alone(
        self, directory: Path, record: AdapterRecord, untouched: dict[Any, _Features]
    ) -> list[FeatureComparison] | str:
        try:
            model = load_adapter(directory, weights=self.weights, device=self.device)
            return self._rows(directory, record, model, untouched)
        except _REASONS as error:
            return str(error)

    def _plain(self, record: AdapterRecord) -> Backbone:
        """The untouched backbone, as `load_adapter` would load it."""
        seed = re.fullmatch(r"random:seed=(-?\d{1,18})", record.weights_source)
        drawn = self.weights is None and seed is not None
        return load_backbone(
            record.backbone,
            "random" if drawn else self.weights,
            num_layers=None if BACKBONES[record.backbone].from_published is None else record.num_layers,
            seed=int(seed[1]) if seed is not None else 0,
            device=self.device,
            convention=convention_of(record.trunk_hash),
        )

    def _untouched(
        self, directory: Path, record: AdapterRecord, bank: AdapterBank, known: dict[Any, _Features]
    ) -> None:
        key = self._key(record)
        if key in known:
            return
        plain = AdaptedModel(  # for its windows; its head is not asked
            bank.use(None),
            record.target,
            layer=record.layer,
            head=record.head,
            crop_seconds=record.crop_seconds,
            policy=window_policy(record.windows),
        ).eval()
        known[key] = self._features(directory, record, plain, "untouched")

    def _key(self, record: AdapterRecord) -> Any:
        """What decides the features of the untouched backbone."""
        return (
            self.shelf.of(record).task,
            tuple(self._layers(record)),
            record.crop_seconds,
            record.windows,
            record.target.per_frame,
            record.method.trains_backbone,
        )

    def _layers(self, record: AdapterRecord) -> Sequence[int]:
        return [record.layer] if self.layers is None else self.layers

    def _rows(
        self, directory: Path, record: AdapterRecord, model: AdaptedModel, untouched: dict[Any, _Features]
    ) -> list[FeatureComparison]:
        listed = self.shelf.of(record)
        plain = untouched[self._key(record)]
        adapted = self._features(directory, record, model, "adapted")
        if adapted.unread != plain.unread:
            raise ValueError("audio files changed while they were read. Compare again.")
        return [
            FeatureComparison(
                model=str(directory),
                backbone=record.backbone,
                weights_source=record.weights_source,
                weights_hash=record.trunk_hash,
                num_layers=record.num_layers,
                layer=layer,
                method=format_method(record.method),
                task=listed.task,
                similarity=compare_vectors(plain.vectors[layer], adapted.vectors[layer]),
                window_seconds=record.crop_seconds,
                windows=record.windows,
                precision=self.precision,
                num_official_clips=listed.num_official,
                unread=(*listed.missing, *adapted.unread),
            )
            for layer in self._layers(record)
        ]

    @torch.inference_mode()
    def _features(
        self,
        directory: Path,
        record: AdapterRecord,
        model: AdaptedModel,
        side: Literal["untouched", "adapted"],
    ) -> _Features:
        layers = self._layers(record)
        model.backbone.resolve_layers(layers, None)  # refused before anything is decoded
        clips = self.shelf.of(record).clips
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        unread: list[tuple[str, str]] = []
        for number, clip in enumerate(clips):
            self.report(CompareProgress(str(directory), side, number, len(clips)))
            try:
                vectors = self._clip_features(record, model, clip, layers)
            except AudioError as error:
                unread.append((clip.name, str(error)))
                continue
            for layer in layers:
                kept[layer].append(vectors[layer])
        if len(clips) - len(unread) < MIN_CLIPS:
            why = f": {unread[0][0]}: {unread[0][1]}" if unread else ""
            raise ValueError(
                f"{len(clips) - len(unread)} of {len(clips)} clips can be read, and a correlation needs at least "
                f"{MIN_CLIPS}{why}"
            )
        return _Features({layer: torch.stack(rows) for layer, rows in kept.items()}, tuple(unread))

    def _clip_features(
        self, record: AdapterRecord, model: AdaptedModel, clip: _Clip, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """Layer -> `(D,)`: the mean over the windows of a clip."""
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for x_BS in _batches(model, clip, self.batch_size):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                pooled = window_features(
                    model, x_BS.to(model.device), layers, in_chunks=not record.method.trains_backbone
                )
            for layer, x_BD in pooled.items():
                kept[layer].append(x_BD.double().cpu())
        if not kept[layers[0]]:
            raise AudioError(clip.path, f"no window is long enough for the rule '{model.policy.name}'")
        return {layer: torch.cat(rows).mean(0).float() for layer, rows in kept.items()}


_REASONS = (ValueError, KeyError, OSError, torch.OutOfMemoryError)


def window_features(
    model: AdaptedModel, x_BS: Tensor, layers: Sequence[int], *, in_chunks: bool
) -> dict[int, Tensor]:
    """Layer -> `(B, D)` float32: the mean over time of what a model's head reads of windows `(B, S)`.

    Learned prompts count where the head pools them, and do not where it reads frames.

    in_chunks: hear long windows in pieces of what the backbone takes at once, as probes do.
    """
    backbone = model.backbone
    if model.frames is not None:
        states = backbone(x_BS, layers=layers)
        return {i: x[:, states.num_prompts :].float().mean(1) for i, x in states.layers.items()}
    if in_chunks:
        states = run_clip(backbone, x_BS, ChunkPolicy.of(backbone), layers, reduce="mean")
    else:
        states = backbone(x_BS, layers=layers, reduce="mean")
    return {i: x[:, 0] for i, x in states.layers.items()}


def _batches(model: AdaptedModel, clip: _Clip, batch_size: int) -> Iterator[Tensor]:
    """The windows of a clip that the model would be asked about, `(B, S)`, neighbours of one length together."""
    windows = (samples for _, samples in windows_of(model, clip.path, clip.span_seconds))
    for _, alike in itertools.groupby(windows, key=len):
        while batch := list(itertools.islice(alike, batch_size)):
            yield torch.stack(batch)


# What is refused at once ----------------------------------------------------------------------------------


def _check(directories: Sequence[Path], layers: Sequence[int] | None, batch_size: int) -> None:
    if not directories:
        raise ValueError("name at least one adapted model: a directory that `evaluate --model-out` wrote")
    for directory in directories:
        if directories.count(directory) > 1:
            raise ValueError(f"{directory} is named twice")
        if directory.is_file():
            raise ValueError(_no_model(directory))
    if layers is not None and (not layers or len(set(layers)) < len(layers)):
        raise ValueError(f"layers are numbers, each once, like 3 6; got {list(layers)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _no_model(path: Path) -> str:
    try:
        Result.load(path)
    except (ResultError, OSError):
        return (
            f"{path} is a file. Name the directory of an adapted model, as `evaluate --model-out` writes it."
        )
    return (
        f"{path} is a result, which keeps no weights. Name the directory of its model; one is made by\n"
        f"  audiation evaluate --run {path} --model-out {path.with_suffix('.model')}"
    )
