"""What a protocol fixes before a number may be compared with another. `protocols.py` has the values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from audiation.adaptation import AdaptConfig, Augment, copies_of, epoch_steps
from audiation.methods import Method
from audiation.methods.finetune import FineTune
from audiation.methods.probe import Probe
from audiation.output_cache import Crops
from audiation.probe import ProbeConfig, ProbeSchedule
from audiation.separation_mixes import SAMPLES_PER_TRACK
from audiation.separation_mixes import epoch_steps as mix_epoch_steps
from audiation.separation_training import SeparationConfig

PETL_EPOCH_BATCHES = 2000  # of MTG-Jamendo, as in the configurations that were released


JUKEMIR_SCHEDULE = ProbeSchedule()

Layers = Literal["one", "every", "weighted-sum", "every and weighted-sum"]


@dataclass(frozen=True)
class Protocol:
    """How a frozen backbone is judged by probes on its stored vectors.

    version: raised whenever numbers made before and after a change cannot be compared.
    source: who published the rules.
    caveat: what these numbers must not be mistaken for; "" where there is nothing to say.
    probes: the configurations that are trained, on each of the layers; the best on validation is tested once.
    layers: which layers are searched; "one": that which the run names, or the task's in `task_layers`.
    pooling: over the frames of a window.
    schedule: when training ends and which state is kept. task_schedules: (tasks, schedule) where it differs.
    task_probes: (task, configurations) where they differ.
    task_layers: (backbone, task, layer) of the one layer, as published; other models take their recommended one.
    keep_remainders: whether what is left of a track behind its last full window is a window as well.
    search_key_aggregation: whether the rule by which the windows of a track become one key is chosen on validation,
        out of four (benchmark, 4.4; D15). Other questions average outputs.
    convention: how backbones that have a convention of this name cut and normalise clips (`BackboneSpec.conventions`).
    free: any choice is within the rules, so that none is a departure.
    wall_hours: training and extraction that take longer are beyond the rules, and are starred.
    """

    name: str
    version: int
    source: str
    probes: tuple[ProbeConfig, ...]
    caveat: str = ""
    layers: Layers = "one"
    pooling: Literal["mean"] = "mean"
    schedule: ProbeSchedule = JUKEMIR_SCHEDULE
    task_schedules: tuple[tuple[tuple[str, ...], ProbeSchedule], ...] = ()
    task_probes: tuple[tuple[str, tuple[ProbeConfig, ...]], ...] = ()
    task_layers: tuple[tuple[str, str, int], ...] = ()
    keep_remainders: bool = False
    search_key_aggregation: bool = False
    convention: str = "default"
    free: bool = False
    wall_hours: float | None = None

    def schedule_for(self, task: str) -> ProbeSchedule:
        """The schedule of one task."""
        return next((s for tasks, s in self.task_schedules if task in tasks), self.schedule)

    def probes_for(self, task: str) -> tuple[ProbeConfig, ...]:
        """The configurations of one task."""
        return dict(self.task_probes).get(task, self.probes)

    def describe(self) -> str:
        """A paragraph for people."""
        return " ".join(
            filter(
                None,
                (
                    f"Frozen backbone, {_LAYERS[self.layers]}, {self.pooling} over the frames of a window; "
                    f"{_describe_grid(self)}.",
                    _describe_schedule(self.schedule)
                    + (", or as the task's table says." if self.task_schedules else "."),
                    "Windows of a track are examples of their own in training, and their outputs are averaged for its "
                    f"answer{_KEYS if self.search_key_aggregation else ''}.",
                    "The best on the task's first metric on validation is tested once."
                    if self.schedule.keep == "best"
                    else "The state of the last look is tested once.",
                    f"Clips are cut and normalised as {self.convention} does, where a backbone has that convention."
                    if self.convention != "default"
                    else "",
                    f"More than {self.wall_hours:g} hours are beyond the rules, and are starred."
                    if self.wall_hours
                    else "",
                    f"Rules of {self.source}.",
                    self.caveat,
                ),
            )
        )


_LAYERS = {
    "one": "one layer, named by the run",
    "every": "every layer",
    "weighted-sum": "a learned weighted sum of the layers from 1 on",
    "every and weighted-sum": "every layer and a learned weighted sum of the layers from 1 on",
}
_KEYS = " (keys: vote, largest, mean output or mean probability, whichever is best on validation)"


def _describe_grid(protocol: Protocol) -> str:
    """What varies with its values, what is fixed."""
    fixed, varied = [], []
    for name, (title, describe) in _CHOICES.items():
        texts = list(dict.fromkeys(describe(getattr(p, name)) for p in protocol.probes))
        if len(texts) == 1:
            fixed.append(f"{title} {texts[0]}".strip())
        else:
            varied.append(f"{title} {', '.join(texts[:-1])} or {texts[-1]}".strip())
    count = len(protocol.probes)
    if count == 1:
        return f"one probe with Adam: {', '.join(fixed)}"
    per_layer = "" if protocol.layers == "one" else " on each layer"
    return (
        f"{count} probes{per_layer}, all combinations of {'; '.join(varied)}; with Adam, {', '.join(fixed)}"
    )


_CHOICES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "standardise": ("vectors", lambda v: "standardised" if v else "as they are"),
    "hidden_size": ("head", lambda v: "linear" if v is None else f"with a hidden layer of {v} units"),
    "batch_size": ("batch", str),
    "learning_rate": ("learning rate", lambda v: f"{v:g}"),
    "dropout": ("dropout", lambda v: f"{v:g}"),
    "input_dropout": ("", lambda v: "dropped at the input as well" if v else "not dropped at the input"),
    "weight_decay": ("L2", lambda v: f"{v:g}"),
}


def _describe_schedule(schedule: ProbeSchedule) -> str:
    looks = (
        "after every epoch"
        if schedule.look_every_steps is None
        else f"every {schedule.look_every_steps} steps"
    )
    parts = [f"The validation split is looked at {looks}"]
    if schedule.halve_patience is not None:
        parts.append(
            f"the learning rate is multiplied by {schedule.factor:g} after more than {schedule.halve_patience} looks "
            "without improvement"
        )
    if schedule.patience is not None:
        parts.append(f"training ends after {schedule.patience} looks without improvement")
    if schedule.max_epochs is not None:
        parts.append(f"or after {schedule.max_epochs} epochs")
    return ", ".join(parts)


@dataclass(frozen=True)
class AdaptProtocol:
    """How adapted backbones are judged: one training recipe for every method, the test by windows of a track.

    steps: (task, backbone, published number of optimiser steps).
    epochs: length of the training where no number of steps was published.
    crop_seconds: (task, windows), where they are neither what the backbone takes at once nor the task's.
    learning_rate, finetune_learning_rate: of everything that is trained, head included unless it has its own.
    head_learning_rate: of the head while the whole backbone is trained; None: the same.
    schedule: of everything but probing, which has a constant rate.
    augment: (task, what its training recordings are augmented by), as in `adaptation.AdaptConfig`.
    task_windows: whether tasks that name a window are heard in it, where they ask about whole clips; questions about
        frames always are.
    free: any choice is within the rules, so that none is a departure.
    crops, precision, head_size, head_dropout, patience, windows: as in `adaptation.AdaptConfig`.
    """

    name: str
    version: int
    source: str
    steps: tuple[tuple[str, str, int], ...]
    crop_seconds: tuple[tuple[str, float], ...]
    epochs: int
    learning_rate: float
    finetune_learning_rate: float
    min_learning_rate: float
    batch_size: int
    clip_norm: float
    caveat: str = ""
    head_learning_rate: float | None = None
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    crops: Crops = "random"
    precision: Literal["fp32", "bf16"] = "bf16"
    head_size: int | None = None
    head_dropout: float = 0.5
    patience: int | None = None
    windows: str = ""
    augment: tuple[tuple[str, Augment], ...] = ()
    task_windows: bool = True
    free: bool = False

    def config(
        self,
        method: Method,
        backbone: str,
        max_seconds: float | None,
        task: str,
        num_train_tracks: int,
        seed: int,
        clip_seconds: float | None = None,
    ) -> AdaptConfig:
        """The recipe for one run.

        max_seconds: what the backbone takes at once. clip_seconds: windows of the task, where the protocol has none.
        """
        augment: Augment = dict(self.augment).get(task, "none")
        copies = len(copies_of(augment))
        epoch = epoch_steps(num_train_tracks * (1 + copies), self.batch_size)
        tuned = isinstance(method, FineTune)
        rate = self.finetune_learning_rate if tuned else self.learning_rate
        constant = isinstance(method, Probe) and self.schedule == "cosine"
        crop = dict(self.crop_seconds).get(task, clip_seconds)
        published = {(of_task, of_backbone): steps for of_task, of_backbone, steps in self.steps}
        return AdaptConfig(
            steps=published.get((task, backbone), self.epochs * epoch),
            batch_size=self.batch_size,
            learning_rate=rate,
            group_learning_rates=(("head.", self.head_learning_rate),)
            if tuned and self.head_learning_rate
            else (),
            schedule="constant" if constant else self.schedule,
            min_learning_rate=rate if constant else min(self.min_learning_rate, rate),
            clip_norm=self.clip_norm,
            precision=self.precision,
            validate_every_steps=min(epoch, PETL_EPOCH_BATCHES) if task == "mtg_top50" else epoch,
            patience=self.patience,
            keep="best",
            seed=seed,
            crops=self.crops,
            # A backbone with shorter inputs gets what it takes.
            crop_seconds=crop if crop is None or max_seconds is None or crop < max_seconds else None,
            head_size=self.head_size,
            head_dropout=self.head_dropout,
            windows=self.windows,
            augment=augment,
        )

    def describe(self) -> str:
        """A paragraph for people."""
        head = "as wide as the features" if self.head_size is None else f"of {self.head_size} units"
        rates = f"{self.finetune_learning_rate:g} for full fine-tuning"
        if self.head_learning_rate is not None:
            rates += f", its head {self.head_learning_rate:g}"
        falls = {
            "cosine": f"cosine to {self.min_learning_rate:g} (constant for probing)",
            "constant": "constant",
            "plateau": "halved on a plateau of the validation score",
        }[self.schedule]
        changed = f" Augmented: {', '.join(f'{t} by {a}' for t, a in self.augment)}." if self.augment else ""
        ends = f", ended after {self.patience} epochs without improvement" if self.patience else ""
        text = (
            f"One recipe for every method: Adam, batch {self.batch_size}, learning rate {self.learning_rate:g} "
            f"({rates}), {falls}, no warm-up, no decay, gradient norm {self.clip_norm:g}, {self.precision}; "
            f"{self.crops} windows of what the backbone takes at once, or what the task says; one layer, its mean over "
            f"time or its frames as the task asks, one hidden layer {head} with dropout {self.head_dropout:g}; "
            "validation after each epoch on all windows, best state tested once. Windows of a track are combined by "
            f"the rule '{self.windows or 'petl, or whole-track for frames'}'. Steps as published, else {self.epochs} "
            f"epochs{ends}.{changed} Rules of {self.source}."
        )
        return f"{text} {self.caveat}".strip()


@dataclass(frozen=True)
class SeparationProtocol:
    """How frozen backbones are judged by the masks that can be read from them.

    version: raised whenever numbers made before and after a change cannot be compared.
    epochs: at most; an epoch is `separation_mixes.SAMPLES_PER_TRACK` mixes per training track.
    plateau_patience: validations without improvement after which the learning rate is halved.
    patience: after which training ends.
    """

    name: str
    version: int
    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    plateau_patience: int
    patience: int
    caveat: str = ""

    def config(self, num_train_tracks: int, seed: int) -> SeparationConfig:
        """The recipe for one run."""
        epoch = mix_epoch_steps(num_train_tracks, self.batch_size)
        return SeparationConfig(
            steps=self.epochs * epoch,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="plateau",
            plateau_patience=self.plateau_patience,
            clip_norm=None,
            validate_every_steps=epoch,
            patience=self.patience,
            keep="best",
            seed=seed,
        )

    def describe(self) -> str:
        """A paragraph for people."""
        text = (
            f"Frozen backbone, weighted sum of its layers, or one that the run names; a 3-layer LSTM of 512 units per "
            f"stem that masks the mixture's spectrogram; random mixes of 6 s, {SAMPLES_PER_TRACK} per track and epoch; "
            f"Adam, batch {self.batch_size}, learning rate {self.learning_rate:g}, halved after "
            f"{self.plateau_patience} validations without improvement, at most {self.epochs} epochs, ended after "
            f"{self.patience} without improvement; best state by validation SDR, tested once on whole songs after one "
            f"iteration of a Wiener filter. Rules of {self.source}."
        )
        return f"{text} {self.caveat}".strip()


AnyProtocol = Protocol | AdaptProtocol | SeparationProtocol
