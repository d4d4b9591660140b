"""jukemir (Castellon, Donahue & Liang 2021), figure 2: linear probes on the layers of Jukebox, four questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from audiation.backbones import BACKBONES
from audiation.charts.layer_curves import check_matplotlib
from audiation.layer_choices import GreedyLayers, parse, parse_fixed
from audiation.profile_commands import profile_with_progress, show_profiles
from audiation.profile_layers import LINEAR, LayerProfile
from audiation.protocols import PROTOCOLS, Protocol
from audiation.recipes.base import RECIPES
from audiation.recipes.petl_table2 import names_in
from audiation.tasks import TASKS

TASKS_OF_FIGURE = ("mtt", "gtzan_genre", "giantsteps_key", "emomusic")
MIDDLE = "middle (best of Jukebox in the paper)"
PUBLISHED = (
    "The paper prints no numbers for this figure: it finds the highest mean in the middle of Jukebox, takes layer 36 "
    "of 72, and found several layers, sub-sampled or chosen per task, no better."
)


MOST_LAYERS = 10**6  # of any backbone: numbers are checked again when it is there


@RECIPES.register("jukemir_figure2")
@dataclass(frozen=True)
class JukemirFigure2:
    """Linear probes on layers of Jukebox for the four tasks of jukemir, normalised per task, and their mean (figure 2).

    Which layers, which hyper-parameters and which normalisation the figure has is not stated. Here: every ninth layer,
    the one configuration of `jukemir-single` with a linear head, the worst layer 0 and the best 1.

    backbones, tasks: joined by "+".
    layers: all, middle, every:k, or numbers joined by "+".
    choose: greedy:n looks for layers that are jointly best as well.
    protocol: that probes stored vectors; jukemir searches 108 linear probes on every layer.
    weights: None for the official ones, or "random".
    train: choices that depart from the protocol, joined by "+".
    """

    backbones: str = "jukebox-5b"
    tasks: str = "+".join(TASKS_OF_FIGURE)
    layers: str = "every:9"
    choose: str = ""
    protocol: str = "jukemir-single"
    weights: str | None = None
    train: str = LINEAR

    def __post_init__(self) -> None:
        for backbone in names_in(self.backbones, "backbones"):
            BACKBONES[backbone]
        for task in names_in(self.tasks, "tasks"):
            TASKS[task]
        if not isinstance(PROTOCOLS[self.protocol], Protocol):
            raise ValueError(f"protocol '{self.protocol}' does not probe stored vectors")
        if self.weights not in (None, "random"):
            raise ValueError(f"weights of the recipe are the official ones or random, got '{self.weights}'")
        parse_fixed(self.layers, MOST_LAYERS)  # typing errors are found before gigabytes are loaded
        if self.choose and not isinstance(parse(self.choose, MOST_LAYERS), GreedyLayers):
            raise ValueError(f"choose is greedy:n or nothing, got '{self.choose}'")

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """Profile one backbone after another; table and findings, then `layers.csv`, `.json`, `.png` and `.svg`, with a
        mark at the middle layer."""
        check_matplotlib()
        train = self.train.replace("+", ",")
        profiles: list[LayerProfile] = []
        for backbone in names_in(self.backbones, "backbones"):
            try:
                profile = profile_with_progress(
                    backbone, names_in(self.tasks, "tasks"), self.layers, console, choose=self.choose,
                    protocol=self.protocol, train=train, weights=self.weights, out=out, device=device,
                )  # fmt: skip
            except (ValueError, OSError, torch.OutOfMemoryError) as error:  # weights that are not there, say
                console.print(f"not profiled: {backbone}: {error}", style="red", markup=False, soft_wrap=True)
                continue
            profiles.append(profile)
        if not profiles:
            raise ValueError("no backbone has a profile, so there is no chart; the reasons are above")
        marked = {profile.backbone: (profile.num_layers // 2, MIDDLE) for profile in profiles}
        show_profiles(profiles, console, out, marked)
        for profile in profiles:
            console.print(verdict(profile), highlight=False)
        console.print(PUBLISHED, style="dim", highlight=False)


def verdict(profile: LayerProfile) -> str:
    """Where the mean is highest, and whether that is the middle third of the layers."""
    best = profile.best_layer
    if best is None:
        return f"{profile.backbone}: no task tells the layers apart, so the figure has no mean."
    if len(profile.layers) < 3:
        return f"{profile.backbone}: {len(profile.layers)} layers are too few to speak of their middle."
    depth = best / profile.num_layers
    where = "early" if depth < 1 / 3 else "late" if depth > 2 / 3 else "middle"
    agrees = "as published" if where == "middle" else "the paper finds the middle"
    tasks = f"{len(profile.counted)} task{'s' if len(profile.counted) > 1 else ''}"
    return (
        f"{profile.backbone}: the mean over {tasks} is highest at layer {best} of {profile.num_layers}, in the {where} "
        f"third ({agrees})."
    )
