"""MusicFM (Won, Hung & Le 2024), table 1: nine models that differ in encoder, tokens, input, rate, size and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from audiation.pretrain_run import PretrainRun
from audiation.pretraining_config import PretrainConfig
from audiation.recipes.base import RECIPES
from audiation.recipes.musicfm_tables import COLUMNS
from audiation.recipes.pretrain_base import PretrainTable, check_table, chosen_names
from audiation.recipes.pretrain_contrasts import PrintedTable, Question
from audiation.recipes.pretrain_differences import Contrast
from audiation.recipes.pretrain_rows import SMALL_BATCH_SECONDS, PretrainRow, Size, small_run
from audiation.recipes.tables import Column

# Printed: Adam at 1e-4 after a warm-up of 30,000 steps, in float16. Steps and batch are not; ours are what 8 GPUs take.
# Gradients are clipped at 1 and computed in bfloat16, also our choice.
TRAIN = PretrainConfig(
    steps=500_000,
    batch_size=64,
    micro_batch_size=4,
    learning_rate=1e-4,
    warmup_steps=30_000,
    betas=(0.9, 0.999),
    eps=1e-8,
    decoupled_weight_decay=False,
    precision="bf16",
)
# As MERT-330M was trained (MERT spec, section 3.6), 64 GPUs with 8 times 7 crops: what the row "K-means" stands for.
TRAIN_MERT = PretrainConfig(
    steps=400_000,
    batch_size=3584,
    micro_batch_size=7,
    learning_rate=1.5e-3,
    schedule="linear",
    warmup_steps=32_000,
    weight_decay=0.01,
    clip_norm=1.0,
    precision="bf16",
)
RANDOM = "best_rq:codebook_size=8192"
K_MEANS = "mert:teacher=kmeans,final_dim=128,conv_gradient=1.0,layer_drop=0.0,mixup_max_seconds=1.5"
SMALL_RANDOM = "best_rq:codebook_size=1024"
SMALL_K_MEANS = "mert:teacher=kmeans,conv_gradient=1.0,layer_drop=0.0"
_FM1 = "The paper calls it MERT and prints k-means for its tokens; the released MERT-330M has EnCodec's. Here it is "
# Of the paper's size, and of size mini.
NOTES: Mapping[str, tuple[str, str]] = {
    "FM1": (
        f"{_FM1}the encoder and recipe of MERT-330M with log-mel and chroma clusters, on crops of 5 s.",
        f"{_FM1}MERT's way of hearing waveforms, with log-mel and chroma clusters and its mixing and optimiser.",
    ),
    "FM8": (
        "24 blocks of 1,024, which count 0.61 billion parameters; the paper prints 660M and no widths.",
        "8 blocks for the 4 of FM7.",
    ),
    "FM9": ("FMA, 8,000 hours; the others have 160,000 hours of the authors' own.", "Hears fm9_corpus."),
}


@dataclass(frozen=True)
class _Model:
    """What the paper prints. is_random: whether its tokens are."""

    name: str
    encoder: Literal["bert", "conformer"]
    size: str
    rate_hz: int
    crop_seconds: float
    is_random: bool = True

    @property
    def backbone(self) -> str:
        if not self.is_random:  # MERT hears waveforms, and has no dropout at this size
            return f"bert:stem=waveform,size={self.size},frame_rate_hz={self.rate_hz},dropout=0.0,max_seconds=5.0"
        choices = f"size={self.size},frame_rate_hz={self.rate_hz},max_seconds={self.crop_seconds}"
        return f"{self.encoder}:{choices}"

    @property
    def small_backbone(self) -> str:
        depth = ",num_layers=8" if self.size == "660m" else ""
        return self.backbone.replace(f"size={self.size}", f"size=mini{depth}")

    def row(self, size: Size, batch_seconds: float) -> PretrainRow:
        train = TRAIN if self.is_random else TRAIN_MERT
        run = PretrainRun(
            self.backbone, RANDOM if self.is_random else K_MEANS, crop_seconds=self.crop_seconds, train=train
        )
        if size == "mini":
            objective = SMALL_RANDOM if self.is_random else SMALL_K_MEANS
            run = small_run(run, self.small_backbone, batch_seconds, objective)
        corpus = "fm9_corpus" if self.name == "FM9" else "corpus"
        paper, mini = NOTES.get(self.name, ("", ""))
        return PretrainRow(self.name, run, self.name, mini if size == "mini" else paper, corpus)


MODELS = (
    _Model("FM1", "bert", "330m", 75, 5.0, False),
    _Model("FM2", "bert", "330m", 75, 5.0),
    _Model("FM3", "bert", "330m", 75, 30.0),
    _Model("FM4", "conformer", "330m", 75, 5.0),
    _Model("FM5", "conformer", "330m", 75, 30.0),
    _Model("FM6", "conformer", "330m", 50, 30.0),
    _Model("FM7", "conformer", "330m", 25, 30.0),
    _Model("FM8", "conformer", "660m", 25, 30.0),
    _Model("FM9", "conformer", "330m", 25, 30.0),
)
# At one count of parameters BERT is twice as deep as a conformer, whose blocks hold more.
_ENCODER = ("backbone", "backbone.num_layers")
# At size mini batches of longer crops are smaller, so that a step hears as much.
_INPUT = ("crop_seconds", "backbone.max_seconds", "train.batch_size")
CONTRASTS = (
    Contrast("encoder: conformer, not BERT of twice the depth, 5 s", "FM4", "FM2", _ENCODER),
    Contrast("encoder: conformer, not BERT of twice the depth, 30 s", "FM5", "FM3", _ENCODER),
    Contrast("tokens, input and optimiser: BEST-RQ, not MERT", "FM2", "FM1", ("objective",)),
    Contrast("input: 30 s, not 5 s, BERT", "FM3", "FM2", _INPUT),
    Contrast("input: 30 s, not 5 s, conformer", "FM5", "FM4", _INPUT),
    Contrast("rate: 50 Hz, not 75", "FM6", "FM5", ("backbone.frame_rate_hz",)),
    Contrast("rate: 25 Hz, not 50", "FM7", "FM6", ("backbone.frame_rate_hz",)),
    Contrast("size: twice as deep", "FM8", "FM7", ("backbone.num_layers",)),
    Contrast("data: the smaller corpus", "FM9", "FM7", ("corpus",)),
)
PRINTED = PrintedTable("musicfm", "Table 1", "probing", COLUMNS)
# Nearest columns of the paper, on other music: chorales here, pop there.
QUESTIONS = {
    "scores-key": Question("scores-key", "musicfm", Column("key", "giantsteps_key", "key_weighted")),
    "scores-chords": Question(
        "scores-chords", "musicfm", Column("chord", "hooktheory_chord", "chord_majmin")
    ),
    "scores-beats": Question("scores-beats", "musicfm", Column("beat", "gtzan_rhythm", "f1_beat")),
    "scores-timbre": Question("scores-timbre", "musicfm"),
}


@RECIPES.register("musicfm_table1")
@dataclass(frozen=True)
class MusicFmTable1:
    """The nine models of the MusicFM paper as pre-training runs; at size mini they are trained, probed and compared.

    size: "paper": write the runs and print the paper's contrasts; nothing is trained. "mini": train small ones.
    models: joined by "+".
    corpus: folder of a corpus at 24 kHz, of FM1 to FM8. fm9_corpus: a smaller one, of FM9; "": it is left out.
    minutes_each: of training, per model. batch_seconds: of audio in a step, at size mini.
    tasks: that the trained models are probed on, joined by "+".
    train: choices that depart from the protocol of the probes, joined by "+".
    """

    size: Size = "paper"
    models: str = "+".join(model.name for model in MODELS)
    corpus: str = ""
    fm9_corpus: str = ""
    minutes_each: float = 30.0
    batch_seconds: float = SMALL_BATCH_SECONDS
    tasks: str = "+".join(QUESTIONS)
    train: str = ""

    def __post_init__(self) -> None:
        check_table(self.size, self.minutes_each, self.batch_seconds)
        self._chosen()
        self.questions()
        if self.size == "mini" and not self.corpus:
            raise ValueError(
                "size=mini trains: name a corpus at 24 kHz (corpus=FOLDER), see docs/pretraining-recipes.md"
            )

    def rows(self) -> list[PretrainRow]:
        """The models that were chosen, in the order of the paper."""
        chosen = self._chosen()
        return [model.row(self.size, self.batch_seconds) for model in MODELS if model.name in chosen]

    def runs(self) -> list[PretrainRun]:
        return [row.run for row in self.rows() if row.run is not None]

    def contrasts(self) -> list[Contrast]:
        """Those whose two models were chosen."""
        chosen = self._chosen()
        return [contrast for contrast in CONTRASTS if contrast.a in chosen and contrast.b in chosen]

    def questions(self) -> list[Question]:
        train = self.train.replace("+", ",")
        return [
            replace(QUESTIONS[name], train=train)
            for name in chosen_names(self.tasks, "tasks", list(QUESTIONS))
        ]

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """As `PretrainTable.carry_out`."""
        PretrainTable(
            "MusicFM, table 1",
            self.size,
            self.rows(),
            self.contrasts(),
            PRINTED,
            self.questions(),
            {"corpus": self.corpus, "fm9_corpus": self.fm9_corpus},
            self.minutes_each,
        ).carry_out(out, device, console)

    def _chosen(self) -> list[str]:
        return chosen_names(self.models, "models", [model.name for model in MODELS])
