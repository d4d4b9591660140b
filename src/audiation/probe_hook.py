"""A probe while a backbone is pre-trained: how well a small task of the benchmark can be read from its layers by now.

The score is for watching a run, not for a table: one window per recording, few recordings, the validation split. The
test split is not heard. `audiation evaluate` judges the finished model.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from audiation.audio import AudioError, TooShortAudioError, audio_info
from audiation.backbones import Backbone
from audiation.datasets import Track
from audiation.distributed import this_rank
from audiation.grid import GridFit, train_grid
from audiation.inference import run_clip
from audiation.json_lines import append_line, read_lines
from audiation.layer_choices import format_layers, parse_fixed
from audiation.micro_batches import random_stream
from audiation.pretrain_log import PROBES
from audiation.probe_evaluation import aggregation_rules, plan_search
from audiation.probe_scores import ValidationScorer
from audiation.protocols import PROTOCOLS, Protocol
from audiation.run import Run
from audiation.splits import load_splits
from audiation.targets import clip_target
from audiation.tasks import TASKS

LINEAR = "hidden_size=none"
LONGEST_SECONDS = 30.0  # of a window, where the task asks about whole recordings


@dataclass(frozen=True)
class ProbeScore:
    """step: optimiser steps done. score: of the task's first metric on validation, of the best layer; as the metric has
    it. by_layer: layer -> the same."""

    step: int
    score: float
    best_layer: int
    by_layer: dict[int, float]


@dataclass(frozen=True, eq=False)
class ProbeData:
    """What a hook listens to: `(S,)` windows at the backbone's rate, and the answers. failures: (track id, reason)."""

    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    train_answers: tuple[Any, ...]
    valid_answers: tuple[Any, ...]
    clips_hash: str
    failures: tuple[tuple[str, str], ...]


class ProbeHook:
    """Call it after every step, with the number of steps done; it probes every `every_steps`, into `probe.jsonl`.

    The weights are copied into a backbone of its own in eval mode, on the first rank, which so needs the memory of the
    backbone once more; training goes on to the same bits as without it: modes, statistics, gradients and random
    streams are not touched. A step that is made again, after a run was killed or put back, is probed again, and its
    line is replaced together with those behind it.

    All ranks call it where parameters are sharded, because they gather the weights together; else one is enough. The
    first rank alone probes and writes.

    Args:
        backbone: that is going to be trained, before it is sharded; it may be moved to another device afterwards.
        run_dir: folder of the run.
        task: of the benchmark, that asks about clips.
        layers: middle, all, every:k, or numbers like 3+7; the best on validation counts.
        protocol, train: whose probes are trained, and what departs from it, as in `profile_layers`.
        train_clips, valid_clips: recordings at most, the same ones each time; the audio is held in memory.
        data_root, metadata_root: as in `evaluate`.
        batch_size: windows per forward pass.

    Raises:
        UnknownNameError, ValueError: a task or protocol that there is not, or that has no probe of clips; layers that
            the backbone does not have; numbers below 1; a backbone that is sharded already.
    """

    def __init__(
        self,
        backbone: Backbone,
        run_dir: str | Path,
        task: str,
        every_steps: int,
        *,
        layers: str = "middle",
        protocol: str = "jukemir-single",
        train: str = LINEAR,
        train_clips: int = 128,
        valid_clips: int = 64,
        data_root: str | Path | None = None,
        metadata_root: str | Path | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        numbers = {
            "every_steps": every_steps, "train_clips": train_clips, "valid_clips": valid_clips, "batch_size": batch_size
        }  # fmt: skip
        if bad := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
            raise ValueError(f"a probe hook needs whole numbers from 1, got {', '.join(bad)}")
        self.task, self.every_steps, self.batch_size, self.seed = TASKS[task], every_steps, batch_size, seed
        if self.task.target.per_frame or self.task.task_type == "separation":
            raise ValueError(
                f"'{task}' asks about every frame, and a probe while training has one vector per window. Take a task "
                "that asks about clips."
            )
        rules = PROTOCOLS[protocol]
        if not isinstance(rules, Protocol):
            able = ", ".join(name for name in PROTOCOLS if isinstance(PROTOCOLS[name], Protocol))
            raise ValueError(f"protocol '{protocol}' does not probe vectors. Use one of: {able}.")
        self.backbone, self.path = backbone, Path(run_dir) / PROBES
        self.layers = parse_fixed(layers, backbone.num_layers)
        self.rules = aggregation_rules(rules, self.task)
        run = Run(backbone.name, task, protocol=protocol, train=train, seed=seed, layer=self.layers[0])
        search = plan_search(rules, task, backbone, run)
        probes = dict.fromkeys(dataclasses.replace(config, layer=0) for config in search.configs)
        self.configs = tuple(dataclasses.replace(p, layer=layer) for layer in self.layers for p in probes)
        self.schedule = search.schedule
        self.num_clips = {"train": train_clips, "valid": valid_clips}
        self.data_root, self.metadata_root = data_root, metadata_root
        self._twin = _twin(backbone) if this_rank().is_first else None
        self._data: ProbeData | None = None

    def __call__(self, step: int) -> ProbeScore | None:
        """Probe where it is due after so many steps; None elsewhere, and on other ranks than the first.

        Raises:
            ValueError, FileNotFoundError: as `prepare`; a probe that has no score.
        """
        if step % self.every_steps:
            return None
        state = {name: _whole(tensor) for name, tensor in self.backbone.state_dict().items()}
        if self._twin is None:
            return None
        started = time.monotonic()
        data = self.prepare()
        device = next(iter(state.values())).device
        model = self._twin.to(device)
        model.load_state_dict(state)
        with random_stream(device, self.seed, step, "probe"):
            fit = self._trained(model, data)
        sign = 1.0 if self.task.metrics[0].higher_is_better else -1.0
        by_layer: dict[int, float] = {}
        for trial in fit.trials:
            assert isinstance(trial.config.layer, int)
            score = trial.best_score
            by_layer[trial.config.layer] = max(score, by_layer.get(trial.config.layer, score))
        best = fit.best.layers[0]
        found = ProbeScore(step, sign * by_layer[best], best, {i: sign * s for i, s in by_layer.items()})
        self._write(found, data, time.monotonic() - started)
        return found

    def prepare(self) -> ProbeData:
        """Load the recordings, once, and check that the file goes on with these. Called before a long run, it says at
        once what is wrong.

        Raises:
            FileNotFoundError: the data set is not where it was looked for.
            ValueError: a split without recordings that can be used, or a `probe.jsonl` of other probes.
        """
        if self._data is None:
            data = self._load()
            self._kept_bytes(None, data)
            self._data = data
        return self._data

    # Recordings -----------------------------------------------------------------------------------------------

    def _load(self) -> ProbeData:
        splits, _ = load_splits(self.task, self.data_root, self.metadata_root)
        windows: dict[str, list[Tensor]] = {"train": [], "valid": []}
        tracks: dict[str, list[Track]] = {"train": [], "valid": []}
        failures = [left_out for name in windows for left_out in splits[name].left_out]
        for name in windows:
            for track in sorted(splits[name].tracks, key=lambda t: _digest(t.track_id)):
                if len(tracks[name]) == self.num_clips[name]:
                    break
                try:
                    windows[name].append(self._window(track))
                except AudioError as error:
                    failures.append((track.track_id, str(error)))
                    continue
                tracks[name].append(track)
            if not tracks[name]:
                reason = f", the first: {failures[0][1]}" if failures else ""
                raise ValueError(f"no {name} track of {self.task.name} could be used{reason}")
        ids = [[t.track_id for t in tracks[name]] for name in tracks]
        return ProbeData(
            tuple(windows["train"]),
            tuple(windows["valid"]),
            tuple(self.task.annotation(t) for t in tracks["train"]),
            tuple(self.task.annotation(t) for t in tracks["valid"]),
            _digest(json.dumps(ids))[:12],
            tuple(failures),
        )

    def _window(self, track: Track) -> Tensor:
        """The middle of a recording, as long as the task's windows; all of a shorter one."""
        span = track.span_seconds
        length = audio_info(track.audio_path).duration_seconds if span is None else span[1] - span[0]
        seconds = min(self.task.clip_seconds or LONGEST_SECONDS, LONGEST_SECONDS)
        rate = self.backbone.sample_rate_hz
        samples = track.load(rate, max(0.0, (length - seconds) / 2), seconds)
        if len(samples) < self.backbone.min_samples:
            raise TooShortAudioError(
                track.audio_path, f"has {len(samples)} samples at {rate} Hz, too few to hear"
            )
        return samples

    # Vectors and probes ---------------------------------------------------------------------------------------

    def _trained(self, model: Backbone, data: ProbeData) -> GridFit:
        target = clip_target(self.task.target)
        scorer = ValidationScorer(
            target, self.task.metrics[0], data.valid_answers, torch.arange(len(data.valid)), self.rules
        )
        return train_grid(
            self.configs,
            self.schedule,
            target,
            self._vectors(model, data.train),
            data.train_answers,
            self._vectors(model, data.valid),
            scorer,
            allow_missing_classes=True,
        )

    @torch.no_grad()
    def _vectors(self, model: Backbone, windows: Sequence[Tensor]) -> dict[int, Tensor]:
        """Layer -> `(N, D)` means over frames, on the CPU, in the order of the windows."""
        found: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        for _, alike in groupby(windows, key=len):
            for batch in torch.stack(list(alike)).split(self.batch_size):
                states = run_clip(model, batch, layers=self.layers, reduce="mean")
                for layer, x in states.layers.items():
                    found[layer].append(x[:, 0].float().cpu())
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    # File -----------------------------------------------------------------------------------------------------

    def _write(self, found: ProbeScore, data: ProbeData, seconds: float) -> None:
        scores = {self.task.metrics[0].name: found.score}
        line = {
            "step": found.step, "probe": scores, "best_layer": found.best_layer,
            "by_layer": {str(layer): score for layer, score in found.by_layer.items()},
            **self._identity(data), "failures": len(data.failures), "seconds": round(seconds, 3),
        }  # fmt: skip
        append_line(self.path, line, self._kept_bytes(found.step, data))

    def _identity(self, data: ProbeData) -> dict[str, Any]:
        return {
            "task": self.task.name, "layers": format_layers(self.layers), "train_clips": len(data.train),
            "valid_clips": len(data.valid), "clips": data.clips_hash, "probes": _digest(repr(self.configs))[:12],
        }  # fmt: skip

    def _kept_bytes(self, step: int | None, data: ProbeData) -> int:
        """Of the lines before a step (None: all); ValueError where they are of other probes."""
        identity, end = self._identity(data), 0
        for line in read_lines(self.path, "step"):
            if differing := [n for n, value in identity.items() if line.values.get(n) != value]:
                raise ValueError(
                    f"{self.path} holds other probes ({differing[0]} was {line.values.get(differing[0])}, is "
                    f"{identity[differing[0]]}). Probe as before, or move the file away."
                )
            if step is not None and line.values["step"] >= step:
                break
            end = line.end_byte
        return end


def _whole(tensor: Tensor) -> Tensor:
    """Of a sharded one, gathered from all ranks, which must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _twin(backbone: Backbone) -> Backbone:
    """A copy in eval mode that is not trained."""
    if any(isinstance(parameter, DTensor) for parameter in backbone.parameters()):
        raise ValueError(
            "the backbone is sharded already. Make the probe hook before, and `fit` shards it afterwards."
        )
    return copy.deepcopy(backbone).requires_grad_(False).eval()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
