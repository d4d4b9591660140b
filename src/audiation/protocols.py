"""Evaluation protocols as values. To add one, add a value; `protocol_kinds.py` says what it fixes."""

from __future__ import annotations

import itertools
from dataclasses import replace

from audiation.probe import ProbeConfig, ProbeSchedule
from audiation.protocol_kinds import AdaptProtocol, AnyProtocol, Protocol, SeparationProtocol
from audiation.registry import Registry

__all__ = ["PROTOCOLS", "AdaptProtocol", "AnyProtocol", "Protocol", "SeparationProtocol"]

# MusicFM's windows in samples at 24 kHz.
MTT_SECONDS = 698_976 / 24_000
MTG_SECONDS = 719_725 / 24_000

PROTOCOLS: Registry[AnyProtocol] = Registry("protocol", "audiation.protocols")


def _add(protocol: AnyProtocol) -> None:
    PROTOCOLS.add(protocol.name, protocol)


# jukemir ------------------------------------------------------------------------------------------------

JUKEMIR_GRID = tuple(
    ProbeConfig(
        standardise=standardise,
        hidden_size=hidden_size,
        batch_size=batch_size,
        learning_rate=learning_rate,
        dropout=dropout,
        weight_decay=weight_decay,
    )
    for standardise, hidden_size, batch_size, learning_rate, dropout, weight_decay in itertools.product(
        (False, True), (None, 512), (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3)
    )
)

_add(
    Protocol(
        name="jukemir",
        version=1,
        source="jukemir (Castellon, Donahue & Liang 2021)",
        probes=JUKEMIR_GRID,
        convention="jukemir",
        search_key_aggregation=True,
        caveat="Equal validation scores keep the configuration that comes first here; there, in the order of a folder.",
    )
)

_add(
    Protocol(
        name="jukemir-single",
        version=2,  # batches and dropout are drawn from the streams of the grid
        source="jukemir (Castellon, Donahue & Liang 2021)",
        probes=(ProbeConfig(),),
        convention="jukemir",
        search_key_aggregation=True,
        caveat=(
            "This is one of the 216 configurations of that paper's grid, so its numbers are not the paper's, "
            "which are the best of all 216 on validation."
        ),
    )
)

# MARBLE -------------------------------------------------------------------------------------------------

MARBLE_LEARNING_RATES = (5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
MARBLE_PROBE = ProbeConfig(
    standardise=False, hidden_size=512, batch_size=64, learning_rate=1e-3, dropout=0.2, input_dropout=False
)
MARBLE_WALL_HOURS = 7 * 24.0


def _marble(max_epochs: int, halve_patience: int, patience: int) -> ProbeSchedule:
    return ProbeSchedule("epochs", None, patience, max_epochs, halve_patience)


# Thesis and MARBLE v1 (protocols, 2.2); tasks of ours and of other papers take the first.
MARBLE_SCHEDULES = (
    (("emomusic", "giantsteps_key", "vocalset_singer"), _marble(100, 5, 20)),
    (("gtzan_genre",), _marble(100, 6, 20)),
    (("mtg_genre", "mtg_instrument", "mtg_moodtheme", "mtg_top50", "mtt"), _marble(100, 3, 10)),
    (("nsynth_instrument", "nsynth_pitch"), _marble(50, 3, 10)),
    (("vocalset_technique",), _marble(100, 5, 10)),
)
_HALF_PRECISION = (
    "The released code computes in half precision, here it is float32; it fills the last short window of a track with "
    "what comes before it, here it stays short."
)

_add(
    Protocol(
        name="marble-constrained",
        version=1,
        source="MARBLE, constrained track (Yuan 2023, section 3.2)",
        probes=tuple(replace(MARBLE_PROBE, learning_rate=rate) for rate in MARBLE_LEARNING_RATES),
        layers="every and weighted-sum",
        schedule=_marble(100, 5, 20),
        task_schedules=MARBLE_SCHEDULES,
        keep_remainders=True,
        search_key_aggregation=True,
        wall_hours=MARBLE_WALL_HOURS,
        caveat=(
            "The wall of the thesis is one week on one RTX 3090; hours on other devices are recorded with the device "
            f"and are never equated. {_HALF_PRECISION}"
        ),
    )
)

_add(
    Protocol(
        name="marble-weighted-sum",
        version=1,
        source="MARBLE, tables 4.1 to 4.3 of the thesis (Yuan 2023)",
        probes=(MARBLE_PROBE,),
        layers="weighted-sum",
        schedule=_marble(100, 5, 20),
        task_schedules=MARBLE_SCHEDULES,
        task_probes=(("gtzan_genre", (replace(MARBLE_PROBE, learning_rate=5e-3),)),),
        keep_remainders=True,
        search_key_aggregation=True,
        caveat=(
            "Learning rates are those of the released base configurations: 1e-3, for GTZAN genre 5e-3. "
            f"{_HALF_PRECISION}"
        ),
    )
)

_add(
    Protocol(
        name="marble-semi-constrained",
        version=1,
        source="MARBLE, semi-constrained track (Yuan 2023, section 3.2)",
        probes=tuple(
            replace(MARBLE_PROBE, standardise=True, hidden_size=hidden_size, learning_rate=rate)
            for hidden_size in (None, 512)
            for rate in (1e-4, 1e-3, 1e-2)
        ),
        layers="every and weighted-sum",
        schedule=_marble(100, 5, 20),
        task_schedules=MARBLE_SCHEDULES,
        keep_remainders=True,
        search_key_aggregation=True,
        free=True,
        caveat="The backbone is frozen and everything else is free; the search is our choice, and may be changed.",
    )
)

_add(
    AdaptProtocol(
        name="marble-unconstrained",
        version=1,
        source="MARBLE, unconstrained track (Yuan 2023, section 3.2)",
        steps=(),
        crop_seconds=(),
        epochs=100,
        learning_rate=1e-3,
        finetune_learning_rate=1e-5,
        head_learning_rate=1e-3,
        min_learning_rate=1e-7,
        batch_size=16,
        clip_norm=1.0,
        schedule="plateau",
        precision="fp32",
        head_size=512,
        head_dropout=0.2,
        patience=20,
        free=True,
        caveat="Anything is allowed, training the backbone as well; this recipe is our choice.",
    )
)

# Epochs and patience of MARBLE v2 (protocols, 2.3): (max epochs, halve patience, patience, factor).
_V2 = {
    ("emomusic_5s", "emomusic"): (100, 5, 20, 0.5),
    ("giantsteps_key",): (50, 5, 20, 0.1),
    ("hooktheory_key",): (50, 5, 10, 0.1),
    ("hooktheory_structure",): (50, 5, 10, 0.5),
    ("gtzan_genre",): (100, 6, 20, 0.5),
    ("mtg_genre", "mtg_instrument", "mtg_moodtheme", "mtg_top50"): (20, 3, 10, 0.5),
    ("mtt",): (50, 3, 10, 0.5),
}

_add(
    Protocol(
        name="marble-v2",
        version=1,
        source="MARBLE v2, the released code (2025)",
        probes=(MARBLE_PROBE,),
        layers="one",
        schedule=ProbeSchedule("epochs", None, 20, 100, 5, keep="last"),
        task_schedules=tuple(
            (tasks, ProbeSchedule("epochs", None, patience, epochs, halve, factor, "last"))
            for tasks, (epochs, halve, patience, factor) in _V2.items()
        ),
        task_probes=(
            ("gtzan_genre", (replace(MARBLE_PROBE, learning_rate=5e-3),)),
            *(
                (task, (replace(MARBLE_PROBE, batch_size=32),))
                for task in ("mtg_genre", "mtg_instrument", "mtg_moodtheme", "mtg_top50", "mtt")
            ),
        ),
        task_layers=tuple(
            ("mert-v1-95m", task, layer)
            for task, layer in (
                ("emomusic", 5),
                ("emomusic_5s", 5),
                ("giantsteps_key", 8),
                ("gtzan_genre", 7),
                ("hooktheory_key", 8),
                ("mtg_genre", 6),
                ("mtg_instrument", 6),
                ("mtg_moodtheme", 6),
                ("mtg_top50", 6),
                ("mtt", 6),
            )
        ),
        keep_remainders=True,
        caveat=(
            "For explaining the numbers of that code, not for new ones: it tests the weights of the last epoch, up to "
            "`patience` epochs after the best (D35), while the thesis tests the best. Layers are those published for "
            "MERT-v1-95M; windows are cut as the task says, and computed in float32 where they have bfloat16."
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
