"""Backbone cards: what a model is, what it was trained on, and whether it may have heard the test data of a task.

Facts about a backbone stand in its own file, in its `BackboneSpec`; sizes are read off the model. What is not known
stays None, and is printed as unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from audiation.backbones import BACKBONES, Backbone, BackboneSpec
from audiation.backbones.base import Pretraining
from audiation.datasets import DATASETS
from audiation.tasks import TASKS

UNKNOWN = "unknown"


@dataclass(frozen=True)
class BackboneCard:
    """What a person should know before comparing a backbone with another.

    summary: one line.
    pretrain_data: what the official weights were trained on, for people; "none" where nothing was learnt.
    pretrain_datasets: ids of the data sets in it; () where there are none, or nobody published which.
    pretrain_hours: of audio; 0.0 where nothing was learnt; None: not known.
    context_seconds: what the model was trained to hear at once; None: any length.
    frame_rate_hz: of its output; None: one vector per clip.
    dim, num_layers: D, L; layers 0..L exist.
    parameters: of the published checkpoint, or of the model here where nothing is published.
    code_licence, weights_licence, commercial_use: no legal advice.
    paper: "" where none is known.
    notes: further facts for people.
    """

    name: str
    summary: str
    pretrain_data: str
    pretrain_datasets: tuple[str, ...]
    pretrain_hours: float | None
    context_seconds: float | None
    sample_rate_hz: int
    frame_rate_hz: float | None
    dim: int
    num_layers: int
    parameters: int
    code_licence: str
    weights_licence: str
    commercial_use: bool
    paper: str
    notes: tuple[str, ...] = ()

    @property
    def gives_frames(self) -> bool:
        """Whether it can answer questions about moments; otherwise there is one vector per clip."""
        return self.frame_rate_hz is not None

    def lines(self) -> tuple[CardLine, ...]:
        """The card for people, in order; what is not known says so."""
        return (
            CardLine("name", self.name),
            CardLine("what it is", self.summary),
            CardLine("pre-trained on", self.pretrain_data),
            CardLine(
                "hours of it", UNKNOWN if self.pretrain_hours is None else f"{self.pretrain_hours:,.0f}"
            ),
            CardLine("context", "any length" if self.context_seconds is None else f"{self.context_seconds:g} s"),
            CardLine("sample rate", f"{self.sample_rate_hz:,} Hz"),
            CardLine(
                "frames", "one vector per clip" if self.frame_rate_hz is None else f"{self.frame_rate_hz:.4g} Hz"
            ),
            CardLine("layers x width", f"{self.num_layers} x {self.dim}"),
            CardLine("parameters", f"{self.parameters:,}"),
            CardLine("licence of the code", self.code_licence),
            CardLine("licence of the weights", self.weights_licence),
            CardLine("commercial use", "yes" if self.commercial_use else "no"),
            CardLine("paper", self.paper or UNKNOWN),
            *(CardLine("note", note) for note in self.notes),
        )  # fmt: skip


@dataclass(frozen=True)
class CardLine:
    label: str
    text: str


def card_of(backbone_name: str) -> BackboneCard:
    """The card of a backbone. No weights are loaded or drawn.

    Raises:
        UnknownNameError: no such backbone.
        ValueError: its spec says that it was trained on a data set that nobody knows.
    """
    spec = BACKBONES[backbone_name]
    model: Backbone = spec.build() if spec.outline is None else spec.outline()
    registered = sum(p.numel() for p in model.parameters())
    heard = _pretraining(spec)
    return BackboneCard(
        name=spec.name,
        summary=spec.summary,
        pretrain_data=heard.data,
        pretrain_datasets=heard.datasets,
        pretrain_hours=heard.hours,
        context_seconds=model.max_seconds,
        sample_rate_hz=model.sample_rate_hz,
        frame_rate_hz=model.frame_rate_hz,
        dim=model.dim,
        num_layers=model.num_layers,
        parameters=registered if spec.published_parameters is None else spec.published_parameters,
        code_licence=spec.code_licence,
        weights_licence=spec.weights_licence,
        commercial_use=spec.commercial_use,
        paper=spec.paper,
        notes=spec.notes,
    )


# What it may have heard -----------------------------------------------------------------------------------

Mark = Literal["none", "cannot be excluded", "was"]


@dataclass(frozen=True)
class Exposure:
    """Whether test data of a task was in the pre-training data of a backbone.

    mark: "was": the data set of the test is part of it. "cannot be excluded": both hold music that was released, and
        nobody has published which recordings are in both, or even which are in the one. "none": nothing was learnt,
        the model heard speech alone, or the data set was recorded for itself and is no part of what it was trained on.
    reason: for people; "" for "none".
    """

    mark: Mark
    reason: str = ""


def seen_in_pretraining(backbone_name: str, task_name: str, weights: str | None = None) -> str:
    """ "" or, as a sentence that begins with its mark, how test data of a task can have been in the pre-training data.

    Args:
        weights: as in a `Run`: None for the official ones, "random", or the user's own.

    Raises:
        UnknownNameError: no such backbone or task.
        ValueError: as `card_of`.
    """
    found = exposure(backbone_name, task_name, weights)
    return "" if found.mark == "none" else f"{found.mark}: {found.reason}"


def exposure(backbone_name: str, task_name: str, weights: str | None = None) -> Exposure:
    """What `seen_in_pretraining` says, with the mark apart."""
    spec, task = BACKBONES[backbone_name], TASKS[task_name]
    dataset = task.test_dataset.partition(":")[0]
    collection = COLLECTIONS.get(dataset, dataset)
    if weights == "random":
        return Exposure("none")
    if collection in MADE_HERE:  # by whoever runs it, and published nowhere
        return Exposure("none")
    if weights is not None:
        return Exposure(
            "cannot be excluded", f"nothing is known of what the weights '{weights}' were trained on"
        )
    if spec.pretraining is None and spec.weights is None:
        return Exposure("none")
    heard = _pretraining(spec)
    corpus = heard.data.partition(";")[0]
    if {dataset, collection} & {*heard.datasets, *(COLLECTIONS.get(d, d) for d in heard.datasets)}:
        return Exposure("was", f"{backbone_name} was trained on {corpus}, of which {dataset} is a part")
    if not heard.datasets:
        return Exposure(
            "cannot be excluded",
            f"{backbone_name} was trained on {corpus}, and no list of its recordings is published",
        )
    if all(c in SPEECH for c in heard.datasets):
        return Exposure("none")
    shared = [c for c in heard.datasets if c in DRAWN_FROM.get(collection, ())]
    if shared:
        return Exposure(
            "cannot be excluded",
            f"{backbone_name} was trained on {corpus}, and the recordings of {dataset} come from the same place "
            f"({', '.join(CORPORA[c] for c in shared)}); which are in both is not known",
        )
    if collection in RECORDED_FOR_ITSELF:
        return Exposure("none")
    return Exposure(
        "cannot be excluded",
        f"{backbone_name} was trained on {corpus}, and which recordings of {dataset} are in it is not known",
    )


# Corpora that models are trained on and that are no data set of a task.
CORPORA = {
    "msd": "the Million Song Dataset",
    "fma": "the Free Music Archive",
    "music4all": "Music4All",
    "librispeech": "LibriSpeech",
    "audiation-mini": "soundtracks of free games and rendered scores",
}
SPEECH = ("librispeech",)  # read aloud, without music
# Data sets of one collection have the same recordings.
COLLECTIONS = {
    "gtzan_rhythm": "gtzan",
    "mtg_genre": "mtg_jamendo",
    "mtg_instrument": "mtg_jamendo",
    "mtg_moodtheme": "mtg_jamendo",
    "mtg_top50": "mtg_jamendo",
    "hooktheory_key_jsonl": "hooktheory",
    "hooktheory_structure": "hooktheory",
    "vocalset_singer": "vocalset",
    "vocalset_technique": "vocalset",
}
DRAWN_FROM = {"emomusic": ("fma",)}  # songs from the Free Music Archive, as its authors say
RECORDED_FOR_ITSELF = ("nsynth", "vocalset")  # single notes and singing that were made for the data set
MADE_HERE = ("scores",)


def check_datasets(backbone_name: str, datasets: Sequence[str]) -> None:
    """ValueError for an id that is neither a data set, nor a collection of them, nor a corpus known here."""
    known = sorted({*DATASETS, *COLLECTIONS.values(), *CORPORA})
    for name in datasets:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(
                f"backbone '{backbone_name}' says that it was trained on '{name}', which nobody knows.{hint} "
                f"Known: {', '.join(known)}."
            )


def _pretraining(spec: BackboneSpec) -> Pretraining:
    """Of the official weights, checked; where a spec says nothing, that there was none, or that it is not known."""
    if spec.pretraining is not None:
        check_datasets(spec.name, spec.pretraining.datasets)
        return spec.pretraining
    return Pretraining("none", (), 0.0) if spec.weights is None else Pretraining(UNKNOWN)
