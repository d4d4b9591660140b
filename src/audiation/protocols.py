"""Evaluation protocols as values: everything that is fixed before a number may be compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from audiation.adaptation import AdaptConfig, Augment, copies_of, epoch_steps
from audiation.methods import Method
from audiation.methods.finetune import FineTune
from audiation.methods.probe import Probe
from audiation.output_cache import Crops
from audiation.probe import EVALUATE_EVERY_STEPS, PATIENCE_EVALUATIONS, ProbeConfig
from audiation.registry import Registry
from audiation.separation_mixes import SAMPLES_PER_TRACK
from audiation.separation_mixes import epoch_steps as mix_epoch_steps
from audiation.separation_training import SeparationConfig

# MusicFM's windows in samples at 24 kHz, and the epoch of MTG-Jamendo, as in the configurations that were released.
PETL_EPOCH_BATCHES = 2000
MTT_SECONDS = 698_976 / 24_000
MTG_SECONDS = 719_725 / 24_000


@dataclass(frozen=True)
class Protocol:
    """How one backbone is judged on one task.

    version: raised whenever numbers made before and after a change cannot be compared.
    source: who published the rules.
    caveat: what these numbers must not be mistaken for; "" where there is nothing to say.
    pooling: over the frames of a window.
    probes: the configurations that are trained; the best on the validation split is tested once.
    search_layers: whether the layer is searched as well, or is one that the run names.
    search_key_aggregation: whether the rule by which the windows of a track become one key is chosen on validation,
        out of four (benchmark, 4.4; D15). Other questions average outputs.
    selection: what decides when training ends and which state is kept.
    """

    name: str
    version: int
    source: str
    probes: tuple[ProbeConfig, ...]
    caveat: str = ""
    pooling: Literal["mean"] = "mean"
    search_layers: bool = False
    search_key_aggregation: bool = False
    selection: Literal["validation-metric"] = "validation-metric"

    def describe(self) -> str:
        """A paragraph for people."""
        layer = "layers are searched" if self.search_layers else "one layer, named by the run"
        if len(self.probes) == 1:
            probes = f"one probe ({_describe_probe(self.probes[0])})"
        else:
            probes = f"best of {len(self.probes)} probes on validation"
        keys = " (keys: vote, largest, mean output or mean probability, whichever is best on validation)"
        keys = keys if self.search_key_aggregation else ""
        text = (
            f"Frozen backbone, {layer}, {self.pooling} over the frames of a window; {probes}; Adam; "
            f"the task's first metric on validation every {EVALUATE_EVERY_STEPS} steps, "
            f"best state after {PATIENCE_EVALUATIONS} looks without improvement, tested once. "
            "Windows of a track are examples of their own in training, and their outputs are averaged for its answer"
            f"{keys}. Rules of {self.source}."
        )
        return f"{text} {self.caveat}".strip()


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
PROTOCOLS: Registry[AnyProtocol] = Registry("protocol", "audiation.protocols")


def _describe_probe(probe: ProbeConfig) -> str:
    head = "linear" if probe.hidden_size is None else f"MLP with {probe.hidden_size} hidden units"
    inputs = "standardised vectors" if probe.standardise else "vectors as they are"
    decay = f"weight decay {probe.weight_decay:g}" if probe.weight_decay else "no weight decay"
    return (
        f"{inputs}, {head}, dropout {probe.dropout:g} on input and hidden layer, batch {probe.batch_size}, "
        f"learning rate {probe.learning_rate:g}, {decay}"
    )


def _add(protocol: AnyProtocol) -> None:
    PROTOCOLS.add(protocol.name, protocol)


_add(
    Protocol(
        name="jukemir-single",
        version=1,
        source="jukemir (Castellon, Donahue & Liang 2021)",
        probes=(ProbeConfig(),),
        search_key_aggregation=True,
        caveat=(
            "This is one of the 216 configurations of that paper's grid, so its numbers are not the paper's, "
            "which are the best of all 216 on validation."
        ),
    )
)

_add(
    AdaptProtocol(
        name="petl",
        version=2,  # keys and tempi are augmented
        source="PETL for music foundation models (Ding & Lerch)",
        steps=(
            ("mtt_clean", "musicfm-msd", 20_000),
            ("mtt_clean", "mert-v1-95m", 60_000),
            ("mtt", "musicfm-msd", 25_000),
            ("mtt", "mert-v1-95m", 75_000),
            ("mtg_top50", "musicfm-msd", 30_000),
            ("mtg_top50", "mert-v1-95m", 100_000),
        ),
        crop_seconds=(("mtt", MTT_SECONDS), ("mtt_clean", MTT_SECONDS), ("mtg_top50", MTG_SECONDS)),
        epochs=100,
        learning_rate=1e-4,
        finetune_learning_rate=1e-5,
        min_learning_rate=1e-7,
        batch_size=16,
        clip_norm=1.0,
        augment=(
            ("giantsteps_key", "pitch_shift"),
            ("gtzan_key", "pitch_shift"),
            ("gtzan_tempo", "time_stretch"),
            ("giantsteps_tempo", "time_stretch"),
        ),
        task_windows=False,
        caveat=(
            "The frozen part stays in eval mode; the paper's code had it in train mode, which "
            "train='frozen_mode=published' does. Validation there used a new random window each time. Settings for "
            "genre, key and tempo were not released; the number of epochs is our choice."
        ),
    )
)

_add(
    AdaptProtocol(
        name="musicfm",
        version=1,
        source="MusicFM (Won, Hung & Le 2024)",
        steps=(),
        crop_seconds=(("mtt_clean", 29.1),),
        epochs=100,
        learning_rate=1e-4,
        finetune_learning_rate=1e-5,
        head_learning_rate=1e-4,
        min_learning_rate=0.0,
        batch_size=16,
        clip_norm=1.0,
        schedule="constant",
        crops="fixed",
        precision="fp32",
        head_size=512,
        head_dropout=0.0,
        patience=20,
        caveat=(
            "The paper states the head of 512 units and its README the lengths of inputs and both learning rates. "
            "Layer, batch size, epochs, dropout and validation sets are not stated and are our choice."
        ),
    )
)

_add(
    AdaptProtocol(
        name="scratch",
        version=1,
        source="audiation",
        steps=(),
        crop_seconds=(("mtt", MTT_SECONDS), ("mtt_clean", MTT_SECONDS), ("mtg_top50", MTG_SECONDS)),
        epochs=200,
        learning_rate=1e-3,
        finetune_learning_rate=1e-3,
        min_learning_rate=1e-6,
        batch_size=16,
        clip_norm=1.0,
        schedule="plateau",
        precision="fp32",
        head_dropout=0.0,
        augment=(
            ("giantsteps_key", "pitch_shift"),
            ("gtzan_key", "pitch_shift"),
            ("scores-key", "pitch_shift"),
            ("gtzan_tempo", "time_stretch"),
            ("giantsteps_tempo", "time_stretch"),
            ("scores-tempo", "time_stretch"),
        ),
        patience=30,
        caveat="For small models without pre-training (method 'finetune', random weights); no paper's recipe.",
    )
)

_add(
    SeparationProtocol(
        name="marble-v1-separation",
        version=1,
        source="MARBLE v1, the released code",
        epochs=50,
        batch_size=32,
        learning_rate=1e-3,
        # Lightning reduces after more than 2 validations in a row, which is after the third.
        plateau_patience=3,
        patience=5,
        caveat=(
            "The released script used 8 GPUs with 32 mixes each, an automatic learning-rate search, half precision and "
            "one run per stem; here one run trains the four models, which share learning rate and moment of stopping. "
            "The thesis's constrained track has batch 64 and searches the learning rate: train='batch_size=64,...'."
        ),
    )
)
