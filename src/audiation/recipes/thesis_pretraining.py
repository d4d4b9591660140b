"""MARBLE and MERT (thesis of Yuan, 2023), tables 4.2, 4.3, 5.3, 5.4: what MusicHuBERT, Music2Vec and MERT learn from.

Rows of the paper's size are our own backbones with fresh weights and the settings of the MERT spec, sections 3 to 5.
The thesis prints neither optimiser nor batch of chapter 4; those of the recipes that it took over stand in for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from audiation.pretrain_run import PretrainRun
from audiation.pretraining_config import PretrainConfig
from audiation.recipes.base import RECIPES
from audiation.recipes.pretrain_base import PretrainTable, check_table, chosen_names
from audiation.recipes.pretrain_contrasts import PrintedTable, Question
from audiation.recipes.pretrain_differences import Contrast
from audiation.recipes.pretrain_rows import SMALL_BATCH_SECONDS, PretrainRow, Size, small_run
from audiation.recipes.tables import AVERAGE, Column
from audiation.recipes.thesis_tables import FOUR_TASKS, NINE_TASKS

TableNumber = Literal["4.2", "4.3", "5.3", "5.4"]

# HuBERT base (MERT spec, section 4). Eight GPUs as in the thesis, with as many crops of 250,000 samples as fit the
# recipe's 1.4 million samples on each. In float16 there, in bfloat16 here, as everywhere below.
TRAIN_HUBERT = PretrainConfig(
    steps=400_000,
    batch_size=40,
    micro_batch_size=5,
    learning_rate=5e-4,
    schedule="linear",
    warmup_steps=32_000,
    weight_decay=0.01,
    clip_norm=10.0,
    precision="bf16",
)
# data2vec-audio base (section 5.2): 3 % up, 90 % flat, 7 % down. Its 3.8 million samples on each of eight GPUs are 8
# crops of 30 s.
TRAIN_DATA2VEC = PretrainConfig(
    steps=400_000,
    batch_size=64,
    micro_batch_size=8,
    learning_rate=5e-4,
    min_learning_rate=5e-6,
    schedule="tri-stage",
    warmup_steps=12_000,
    weight_decay=0.01,
    clip_norm=None,
    precision="bf16",
)
# MERT-95M (section 3.6): 64 GPUs with 16 crops of 5 s each, 1.4 hours.
TRAIN_MERT = replace(TRAIN_HUBERT, batch_size=1024, micro_batch_size=16)
HUBERT_CROP_SECONDS = 15.625
# HuBERT base, which is also MERT-95M's encoder, with the dropout that it was pre-trained with (section 3.6).
BERT_16K = "bert:stem=waveform,size=95m,sample_rate_hz=16000,frame_rate_hz=50,norm=post"
BERT_24K = "bert:stem=waveform,size=95m,frame_rate_hz=75,norm=post"
SMALL_16K = "bert:stem=waveform,size=mini,sample_rate_hz=16000,frame_rate_hz=50,norm=post"
SMALL_24K = "bert:stem=waveform,size=mini,frame_rate_hz=75,norm=post"
# The small encoder has 8 blocks where the thesis' has 12.
SMALL_LAYERS = {"layer6": "layer4", "top_layers=12": "top_layers=8", "top_layers=8": "top_layers=5"}
# A few hundred steps are too few for a teacher that forgets within 1,000 and more.
SMALL_EMA = "ema_decay=0.99,ema_end_decay=0.999,ema_steps=500"
_SPEECH = "trained on speech by others; it is only probed"
_LAYER = "which layer is clustered is not stated; 6 as in HuBERT base"
_TWICE = "twice the steps"
# What a note becomes at size mini; others hold at both sizes.
SMALL_NOTES = {
    _LAYER: "which layer is clustered is not stated; layer 4 of 8 stands for layer 6 of 12, HuBERT base's",
    _TWICE: "twice the minutes",
}
_MFCC = "the row of table 4.2 with nearly the same scores"
_ABLATION = "MERT-95M ablation: "
_K_MEANS = "acoustic_teacher=K-means^Logmel+Chroma, acoustic_target_class=300 + 200"


def _hubert(name: str, printed: str, teacher: str, note: str = "", features_of: str = "") -> PretrainRow:
    run = PretrainRun(
        f"{BERT_16K},max_seconds={HUBERT_CROP_SECONDS}", f"hubert:teacher={teacher}",
        crop_seconds=HUBERT_CROP_SECONDS, train=TRAIN_HUBERT,
    )  # fmt: skip
    return PretrainRow(name, run, printed, note, "corpus_16k", features_of)


def _music2vec(
    name: str, choices: str = "top_layers=8", crop_seconds: float = 30.0, times: int = 1
) -> PretrainRow:
    train = replace(
        TRAIN_DATA2VEC,
        steps=TRAIN_DATA2VEC.steps * times,
        warmup_steps=TRAIN_DATA2VEC.warmup_steps * times,
        batch_size=round(TRAIN_DATA2VEC.batch_size * 30.0 / crop_seconds),  # as much audio in a step
        micro_batch_size=round(8 * 30.0 / crop_seconds),
    )
    run = PretrainRun("music2vec", f"data2vec:{choices}", crop_seconds=crop_seconds, train=train)
    return PretrainRow(name, run, name, _TWICE if times > 1 else "", "corpus_16k")


def _mert(
    name: str, printed: str, objective: str, backbone: str = BERT_16K, note: str = "", features_of: str = ""
) -> PretrainRow:
    run = PretrainRun(f"{backbone},max_seconds=5.0", objective, crop_seconds=5.0, train=TRAIN_MERT)
    corpus = "corpus_16k" if backbone == BERT_16K else "corpus_24k"
    return PretrainRow(name, run, _ABLATION + printed, note, corpus, features_of)


def _rvq(name: str, classes: str, codebooks: str) -> PretrainRow:
    printed = f"acoustic_teacher=RVQ-VAE, acoustic_target_class=1024 {classes}, musical_teacher=CQT"
    return _mert(name, printed, f"mert:codebooks={codebooks},mixup_probability=0.0", BERT_24K)


def _weighted(name: str, weight: str, mixup: str, objective: str, note: str = "") -> PretrainRow:
    printed = (
        f"parameter_size=95M, {_K_MEANS}, musical_loss_weight={weight}, in_batch_mixup_probability={mixup}"
    )
    return _mert(name, printed, f"mert:teacher=kmeans,{objective}", note=note)


def _encodec(name: str, mixup: str, probability: float) -> PretrainRow:
    printed = (
        "parameter_size=95M, acoustic_teacher=RVQ-VAE, acoustic_target_class=1024×8 all codebook, "
        f"musical_loss_weight=1, in_batch_mixup_probability={mixup}"
    )
    return _mert(name, printed, f"mert:mixup_probability={probability}", BERT_24K)


def _mfcc_53(name: str, classes: str, teacher: str, note: str, features_of: str = "") -> PretrainRow:
    printed = (
        f"{_ABLATION}acoustic_teacher=K-means^MFCC, acoustic_target_class={classes}, musical_teacher=N/A"
    )
    return _hubert(name, printed, teacher, note, features_of)


_RAISED = "\\blacktriangle"
ROWS: Mapping[TableNumber, tuple[PretrainRow, ...]] = {
    "4.2": (
        PretrainRow("Hubert", None, "Hubert", _SPEECH),
        _hubert("k=2000 MFCC dim=39", "k=2000 MFCC dim=39", "mfcc39-km2000"),
        _hubert("k=2000 iter2", "k=2000 iter2", "layer6-km2000", _LAYER, "k=2000 MFCC dim=39"),
        _hubert("k=500 MFCC dim=39", "k=500 MFCC dim=39", "mfcc39-km500"),
        _hubert("k=500 MFCC dim=60", "k=500 MFCC dim=60", "mfcc60-km500"),
    ),
    "4.3": (
        PretrainRow("data2vec", None, "data2vec", _SPEECH),
        _music2vec("vanilla"),
        _music2vec("span=5", "top_layers=8,mask_length=5"),
        _music2vec("span=15", "top_layers=8,mask_length=15"),
        _music2vec("prob=50", "top_layers=8,mask_probability=0.5"),
        _music2vec("prob=80", "top_layers=8,mask_probability=0.8"),
        _music2vec("step=800k", times=2),
        _music2vec("target=12", "top_layers=12"),
        _music2vec("crop5s", crop_seconds=5.0),
    ),
    "5.3": (
        _mfcc_53("MFCC 100", "100", "mfcc39-km100", "the width of its MFCC is not stated; 39"),
        _mfcc_53("MFCC 500", "500", "mfcc60-km500", f"k=500, dim=60: {_MFCC}"),
        _mfcc_53("MFCC 2000", "2000 Δ^1", "mfcc39-km2000", f"k=2000, dim=39: {_MFCC}"),
        _mert(
            "log-mel and chroma",
            f"{_K_MEANS} {_RAISED}^1, musical_teacher=N/A",
            "mert:teacher=kmeans,cqt_weight=0.0,mixup_probability=0.0",
        ),
        _mfcc_53("MFCC 2000, second", "2000 Δ^2", "layer6-km2000", _LAYER, "MFCC 2000"),
        _mert(
            "log-mel and chroma, second",
            f"acoustic_teacher=K-means^Logmel+Chroma, acoustic_target_class=500 {_RAISED}^2, musical_teacher=N/A",
            "hubert:teacher=layer6-km500,mask_length=5,final_dim=64",
            note=_LAYER,
            features_of="log-mel and chroma",
        ),
        _mert(
            "log-mel and chroma, CQT",
            f"{_K_MEANS}, musical_teacher=CQT",
            "mert:teacher=kmeans,mixup_probability=0.0",
        ),
        _rvq("RVQ all", "\\times 8 all codebook", "all"),
        _rvq("RVQ 7", "codebook7", "7"),
        _rvq("RVQ 0", "codebook0", "0"),
        _rvq("RVQ random", "\\times 8 random codebook", "random"),
    ),
    "5.4": (
        _weighted("k-means, no CQT", "N/A", "N/A", "cqt_weight=0.0,mixup_probability=0.0"),
        _weighted("k-means, CQT 1", "1", "N/A", "mixup_probability=0.0"),
        _weighted("k-means, CQT 2", "2", "N/A", "cqt_weight=2.0,mixup_probability=0.0"),
        _weighted("k-means, CQT 5", "5", "N/A", "cqt_weight=5.0,mixup_probability=0.0"),
        _weighted(
            "k-means, mixup 0.25",
            "1",
            "0.25",
            "mixup_probability=0.25",
            "the released code mixes with 1 - p: 0.75",
        ),
        _weighted("k-means, mixup 0.5", "1", "0.5", "mixup_probability=0.5"),
        _encodec("RVQ, no mixup", "N/A", 0.0),
        _encodec("RVQ, mixup 0.5", "0.5", 0.5),
    ),
}
_CLUSTERS, _FEATURES = "objective.clusters", "objective.features"
_BOOKS, _WEIGHT, _MIXUP = "objective.codebooks", "objective.cqt_weight", "objective.mixup_probability"
_SPAN, _PROBABILITY = ("objective.mask_length",), ("objective.mask_probability",)
_STEPS = ("train.steps", "train.warmup_steps", "share_of_minutes")
# As much audio in a step: more crops where they are shorter.
_CROP = ("crop_seconds", "backbone.max_seconds", "train.batch_size", "train.micro_batch_size")
CONTRASTS: Mapping[TableNumber, tuple[Contrast, ...]] = {
    "4.2": (
        Contrast("clusters: 2,000, not 500", "k=2000 MFCC dim=39", "k=500 MFCC dim=39", (_CLUSTERS,)),
        Contrast("MFCC: 60 dimensions, not 39", "k=500 MFCC dim=60", "k=500 MFCC dim=39", (_FEATURES,)),
        Contrast(
            "teacher: a layer of the first model, not MFCC", "k=2000 iter2", "k=2000 MFCC dim=39", (_FEATURES,)
        ),
    ),
    "4.3": (
        Contrast("mask: spans of 5, not 10", "span=5", "vanilla", _SPAN),
        Contrast("mask: spans of 15, not 10", "span=15", "vanilla", _SPAN),
        Contrast("mask: probability 0.5, not 0.65", "prob=50", "vanilla", _PROBABILITY),
        Contrast("mask: probability 0.8, not 0.65", "prob=80", "vanilla", _PROBABILITY),
        Contrast("training: twice as long", "step=800k", "vanilla", _STEPS),
        Contrast("target: all layers, not the top two thirds", "target=12", "vanilla", ("objective.top_layers",)),
        Contrast("input: crops of 5 s, not 30", "crop5s", "vanilla", _CROP),
    ),
    "5.3": (
        Contrast(
            "clusters 500, not 100, and 60 dimensions, not 39", "MFCC 500", "MFCC 100", (_CLUSTERS,)
        ),
        Contrast(
            "clusters 2,000, not 500, and 39 dimensions, not 60", "MFCC 2000", "MFCC 500", (_CLUSTERS,)
        ),
        Contrast(
            "MERT's recipe with log-mel and chroma, not HuBERT's with MFCC", "log-mel and chroma", "MFCC 2000",
            (_FEATURES,),
        ),
        Contrast(
            "teacher: a layer of the first model, not MFCC", "MFCC 2000, second", "MFCC 2000", (_FEATURES,)
        ),
        Contrast(
            "teacher: one stream of a layer of the first model, not two of log-mel and chroma",
            "log-mel and chroma, second", "log-mel and chroma", ("objective", _FEATURES),
        ),
        Contrast("with CQT", "log-mel and chroma, CQT", "log-mel and chroma", (_WEIGHT,)),
        Contrast(
            "teacher: EnCodec at 24 kHz and 75 Hz, not k-means at 16 kHz and 50 Hz", "RVQ all",
            "log-mel and chroma, CQT", (_FEATURES,),
        ),
        Contrast("codebooks: the last alone, not all", "RVQ 7", "RVQ all", (_BOOKS,)),
        Contrast("codebooks: the first alone, not all", "RVQ 0", "RVQ all", (_BOOKS,)),
        Contrast("codebooks: a random one, not all", "RVQ random", "RVQ all", (_BOOKS,)),
    ),
    "5.4": (
        Contrast("with CQT", "k-means, CQT 1", "k-means, no CQT", (_WEIGHT,)),
        Contrast("weight of CQT: 2, not 1", "k-means, CQT 2", "k-means, CQT 1", (_WEIGHT,)),
        Contrast("weight of CQT: 5, not 1", "k-means, CQT 5", "k-means, CQT 1", (_WEIGHT,)),
        Contrast("mixup: 0.25, not none, k-means", "k-means, mixup 0.25", "k-means, CQT 1", (_MIXUP,)),
        Contrast("mixup: 0.5, not none, k-means", "k-means, mixup 0.5", "k-means, CQT 1", (_MIXUP,)),
        Contrast("mixup: 0.5, not none, EnCodec", "RVQ, mixup 0.5", "RVQ, no mixup", (_MIXUP,)),
    ),
}  # fmt: skip
PRINTED: Mapping[TableNumber, PrintedTable] = {
    "4.2": PrintedTable("thesis", "Table 4.2", "probing, weighted sum of all layers", (*NINE_TASKS, AVERAGE)),
    "4.3": PrintedTable("thesis", "Table 4.3", "probing, weighted sum of all layers", (*NINE_TASKS, AVERAGE)),
    "5.3": PrintedTable("thesis", "Table 5.3", "probing", (*FOUR_TASKS, AVERAGE)),
    "5.4": PrintedTable("thesis", "Table 5.4", "probing", (*FOUR_TASKS, AVERAGE)),
}
KEY = Column("key", "giantsteps_key", "key_weighted")
TIMBRE = {"4": Column("instrument", "nsynth_instrument", "accuracy"), "5": None}  # by chapter


@RECIPES.register("thesis_pretraining")
@dataclass(frozen=True)
class ThesisPretraining:
    """An ablation of the thesis as pre-training runs; at size mini they are trained, probed and compared.

    table: "4.2" targets of MusicHuBERT, "4.3" masks, lengths and targets of Music2Vec, "5.3" teachers of MERT, "5.4"
        loss weight and mixing of MERT.
    size: "paper": write the runs and print the paper's contrasts; nothing is trained. "mini": train small ones.
    corpus_16k, corpus_24k: folders of corpora; rows with EnCodec as teacher take the second. "": those rows are left
        out.
    minutes_each: of training, per row. batch_seconds: of audio in a step, at size mini.
    tasks: that the trained models are probed on, joined by "+": scores-key, scores-timbre, scores-tempo.
    """

    table: TableNumber = "4.2"
    size: Size = "paper"
    corpus_16k: str = ""
    corpus_24k: str = ""
    minutes_each: float = 30.0
    batch_seconds: float = SMALL_BATCH_SECONDS
    tasks: str = "scores-key+scores-timbre"

    def __post_init__(self) -> None:
        if self.table not in get_args(TableNumber):
            raise ValueError(f"table is one of {', '.join(get_args(TableNumber))}, got '{self.table}'")
        check_table(self.size, self.minutes_each, self.batch_seconds)
        self.questions()
        if self.size == "mini" and not (self.corpus_16k or self.corpus_24k):
            raise ValueError(
                "size=mini trains: name a corpus (corpus_16k=FOLDER, for EnCodec corpus_24k=FOLDER), see "
                "docs/pretraining-recipes.md"
            )

    def rows(self) -> list[PretrainRow]:
        """All rows of the table, also those that nothing is trained for."""
        if self.size == "paper":
            return list(ROWS[self.table])
        return [_small(row, self.batch_seconds) for row in ROWS[self.table]]

    def runs(self) -> list[PretrainRun]:
        return [row.run for row in self.rows() if row.run is not None]

    def questions(self) -> list[Question]:
        protocol = "marble-weighted-sum" if self.table.startswith("4") else "marble-constrained"
        known = {"scores-key": KEY, "scores-timbre": TIMBRE[self.table[0]], "scores-tempo": None}
        return [
            Question(name, protocol, known[name]) for name in chosen_names(self.tasks, "tasks", list(known))
        ]

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        """As `PretrainTable.carry_out`, in a folder of the table."""
        PretrainTable(
            f"Thesis, table {self.table}",
            self.size,
            self.rows(),
            CONTRASTS[self.table],
            PRINTED[self.table],
            self.questions(),
            {"corpus_16k": self.corpus_16k, "corpus_24k": self.corpus_24k},
            self.minutes_each,
        ).carry_out(out / f"table{self.table}", device, console)


def _small(row: PretrainRow, batch_seconds: float) -> PretrainRow:
    if row.run is None:
        return row
    backbone = SMALL_24K if row.corpus == "corpus_24k" else SMALL_16K
    objective = row.run.objective
    for printed, small in SMALL_LAYERS.items():
        if printed in objective:
            objective = objective.replace(printed, small)
            break
    if row.run.backbone == "music2vec":
        backbone += ",conv_norm=layer"
        objective += f",{SMALL_EMA}"
    backbone += f",max_seconds={row.run.crop_seconds}"
    return replace(
        row,
        run=small_run(row.run, backbone, batch_seconds, objective),
        note=SMALL_NOTES.get(row.note, row.note),
        share_of_minutes=row.run.train.steps / TRAIN_DATA2VEC.steps,
    )
