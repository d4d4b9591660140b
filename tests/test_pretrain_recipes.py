"""Recipes of pre-training: every row is a run that can be made, budgets are kept, contrasts are the paper's."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import audiation.pretraining
from audiation import console as console_module
from audiation.backbones.architecture import BuiltBackbone, build_architecture, parse_architecture
from audiation.objectives import parse_objective
from audiation.pretrain_run import PretrainRun
from audiation.pretraining_config import PretrainConfig
from audiation.protocols import PROTOCOLS
from audiation.recipes import run_recipe
from audiation.recipes.base import parse_recipe
from audiation.recipes.musicfm_table1 import CONTRASTS, MODELS, PRINTED, MusicFmTable1
from audiation.recipes.pretrain_budget import Trained, train_rows
from audiation.recipes.pretrain_differences import Contrast, pair_of, run_fields
from audiation.recipes.pretrain_rows import (
    PretrainRow,
    backbone_outline,
    file_name,
    loads_as,
    small_run,
    with_steps,
)
from audiation.recipes.thesis_pretraining import CONTRASTS as THESIS_CONTRASTS
from audiation.recipes.thesis_pretraining import PRINTED as THESIS_PRINTED
from audiation.recipes.thesis_pretraining import ROWS, ThesisPretraining
from audiation.registry import UnknownNameError
from audiation.results import Prediction, Result, current_versions
from audiation.run import Run

SECONDS_PER_STEP = 0.5
RIGHT = {"FM4": 50, "FM2": 30}  # of 60 tracks; others 40


class Screen(Console):
    """A console that keeps what is printed."""

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=220)

    @property
    def text(self) -> str:
        return " ".join(self.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PretrainRun, str, Path]]:
    """Nothing is trained: every step takes half a second, and FM8 cannot be trained."""
    calls: list[tuple[PretrainRun, str, Path]] = []

    def pretrain(run: PretrainRun, corpus_dir: str, run_dir: Path, **options: Any) -> Any:
        if "num_layers=8" in run.backbone and run.backbone.startswith("conformer"):
            raise ValueError("too large for today")
        calls.append((run, str(corpus_dir), Path(run_dir)))
        run_dir.mkdir(parents=True, exist_ok=True)
        steps = run.train.steps
        hours = steps * run.train.batch_size * run.crop_seconds / 3600
        return audiation.pretraining.PretrainReport(
            run_dir, run_dir / "backbone", steps, hours, steps * SECONDS_PER_STEP
        )

    monkeypatch.setattr(audiation.pretraining, "pretrain", pretrain)
    return calls


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Sixty tracks each, of which the row decides how many are answered right."""
    runs: list[Run] = []

    def evaluate(run: Run, **options: Any) -> Result:
        runs.append(run)
        name = Path(run.weights or "").parts[-3]
        right = RIGHT.get(name, 40)
        predictions = tuple(
            Prediction(f"t{i}", "C major", "C major" if i < right else "F# minor") for i in range(60)
        )
        record = dataclasses.asdict(run) | {
            "protocol_version": PROTOCOLS[run.protocol].version,
            "metrics": ["key_weighted@1"],
            "weights_hash": name,
        }
        return Result(
            record, {"key_weighted": right / 60}, {"key_weighted": None}, 60, 60, "ab12",
            predictions=predictions, versions=current_versions(),
        )  # fmt: skip

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    return runs


# Rows ------------------------------------------------------------------------------------------------------


def all_rows() -> list:
    rows = [(f"musicfm {row.name}", row) for row in MusicFmTable1().rows()]
    rows += [(f"musicfm mini {r.name}", r) for r in MusicFmTable1(size="mini", corpus="x").rows()]
    for table in ROWS:
        rows += [(f"{table} {r.name}", r) for r in ThesisPretraining(table).rows()]
        small = ThesisPretraining(table, size="mini", corpus_16k="x", corpus_24k="y")
        rows += [(f"{table} mini {r.name}", r) for r in small.rows()]
    return [(name, row) for name, row in rows if row.run is not None]


@pytest.mark.parametrize(("name", "row"), all_rows(), ids=lambda v: v if isinstance(v, str) else "")
def test_every_row_is_a_run(name: str, row: Any) -> None:
    run = row.run
    assert PretrainRun.from_json(run.to_json()) == run
    backbone = backbone_outline(run)
    assert run.crop_seconds * backbone.sample_rate_hz >= backbone.min_samples
    assert row.corpus in ("corpus", "fm9_corpus") or backbone.sample_rate_hz == int(row.corpus[-3:-1]) * 1000
    parameters = sum(p.numel() for p in backbone.parameters())
    assert parameters < 4e6 if "mini" in name else parameters > 9e7


def small_rows() -> list:
    """Of MERT one alone: its transform takes seconds to make."""
    rows = [(name, row) for name, row in all_rows() if "mini" in name]
    return [(n, r) for n, r in rows if n.endswith("FM1") or not r.run.objective.startswith("mert")]


@pytest.mark.parametrize(("name", "row"), small_rows(), ids=lambda v: v if isinstance(v, str) else "")
def test_small_objectives_fit_their_backbones(name: str, row: Any) -> None:
    """Layers that teachers and objectives name are there, and objectives can be made."""
    generator = torch.Generator().manual_seed(0)
    backbone = build_architecture(parse_architecture(row.run.backbone), generator)
    objective = parse_objective(row.run.objective)
    objective.build(backbone, generator)
    for target in objective.targets:
        if target.startswith("layer"):
            assert int(target.partition("-")[0].removeprefix("layer")) <= backbone.num_layers
            assert row.features_of


def test_the_nine_models_are_those_of_the_paper() -> None:
    printed = {  # encoder, million parameters, Hz, seconds, tokens
        "FM1": ("bert", 330, 75, 5.0, "mert"),
        "FM2": ("bert", 330, 75, 5.0, "best_rq"),
        "FM3": ("bert", 330, 75, 30.0, "best_rq"),
        "FM4": ("conformer", 330, 75, 5.0, "best_rq"),
        "FM5": ("conformer", 330, 75, 30.0, "best_rq"),
        "FM6": ("conformer", 330, 50, 30.0, "best_rq"),
        "FM7": ("conformer", 330, 25, 30.0, "best_rq"),
        "FM8": ("conformer", 660, 25, 30.0, "best_rq"),
        "FM9": ("conformer", 330, 25, 30.0, "best_rq"),
    }
    for row in MusicFmTable1().rows():
        assert row.run is not None
        backbone = backbone_outline(row.run)
        assert isinstance(backbone, BuiltBackbone)
        encoder, millions, rate_hz, seconds, tokens = printed[row.name]
        assert backbone.architecture.encoder == encoder and backbone.frame_rate_hz == rate_hz
        count = sum(p.numel() for p in backbone.parameters())
        assert abs(count / 1e6 / millions - 1) < 0.1
        assert row.run.crop_seconds == seconds == backbone.max_seconds
        assert row.run.objective.partition(":")[0] == tokens
        if tokens == "best_rq":
            train = row.run.train
            assert (train.learning_rate, train.warmup_steps) == (1e-4, 30_000)
            assert parse_objective(row.run.objective).codebook_size == 8192  # type: ignore[attr-defined]
    assert [m.name for m in MODELS] == list(printed)


def test_a_step_hears_as_much_whatever_the_crop() -> None:
    rows = {r.name: r.run for r in MusicFmTable1(size="mini", corpus="x").rows()}
    heard = {n: run.train.batch_size * run.crop_seconds for n, run in rows.items() if run is not None}
    assert set(heard.values()) == {120.0}
    short = MusicFmTable1(size="mini", corpus="x", batch_seconds=30.0).runs()
    assert {run.train.batch_size * run.crop_seconds for run in short} == {30.0}
    four, five = (ROWS["4.3"][i].run for i in (1, 8))
    assert four is not None and five is not None
    assert four.train.batch_size * four.crop_seconds == five.train.batch_size * five.crop_seconds == 1920.0


def test_rows_of_the_thesis_say_what_they_change() -> None:
    objectives = {r.name: r.run.objective for rows in ROWS.values() for r in rows if r.run is not None}
    assert objectives["k=500 MFCC dim=60"] == "hubert:teacher=mfcc60-km500"
    assert parse_objective(objectives["span=15"]).mask_length == 15  # type: ignore[attr-defined]
    assert parse_objective(objectives["prob=80"]).mask_probability == 0.8  # type: ignore[attr-defined]
    assert parse_objective(objectives["target=12"]).top_layers == 12  # type: ignore[attr-defined]
    longer = next(r.run for r in ROWS["4.3"] if r.name == "step=800k")
    assert longer is not None and longer.train.steps == 800_000
    weights = [parse_objective(objectives[f"k-means, CQT {w}"]).cqt_weight for w in (1, 2, 5)]  # type: ignore[attr-defined]
    assert weights == [1.0, 2.0, 5.0]
    assert parse_objective(objectives["RVQ, mixup 0.5"]).mixup_probability == 0.5  # type: ignore[attr-defined]
    assert [len(ROWS[t]) for t in ROWS] == [5, 9, 11, 8]
    assert sum(r.run is None for rows in ROWS.values() for r in rows) == 2  # two speech models


def specs_of_training() -> dict[str, dict[str, Any]]:
    """By row, or table and row: what papers and specs print about the optimiser; what they leave open is not here."""
    musicfm = {  # paper, section 3.3: Adam at 1e-4 after a warm-up; no decay is named
        "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 30_000, "weight_decay": 0.0,
        "betas": (0.9, 0.999), "eps": 1e-8, "decoupled_weight_decay": False,
    }  # fmt: skip
    fairseq = {
        "steps": 400_000, "weight_decay": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "decoupled_weight_decay": True,
    }  # fmt: skip
    linear = {"schedule": "linear", "warmup_steps": 32_000, "min_learning_rate": 0.0}
    large = fairseq | linear | {"learning_rate": 1.5e-3, "clip_norm": 1.0}  # MERT spec, 3.6: 330M
    base = fairseq | linear | {"learning_rate": 5e-4, "clip_norm": 10.0}  # 95M, and section 4: HuBERT base
    data2vec = fairseq | {  # section 5.2: 3 % up, 90 % flat, 7 % down to a hundredth
        "learning_rate": 5e-4, "min_learning_rate": 5e-6, "schedule": "tri-stage", "warmup_steps": 12_000,
        "decay_fraction": 0.07, "clip_norm": None,
    }  # fmt: skip
    printed = {f"FM{number}": musicfm for number in range(2, 10)} | {"FM1": large}
    for table, rows in ROWS.items():
        for row in rows:
            if row.run is not None:
                printed[f"{table} {row.name}"] = data2vec if table == "4.3" else base
    return printed | {"4.3 step=800k": data2vec | {"steps": 800_000, "warmup_steps": 24_000}}


def paper_rows() -> dict[str, PretrainRow]:
    rows = {row.name: row for row in MusicFmTable1().rows()}
    return rows | {f"{table} {row.name}": row for table in ROWS for row in ROWS[table] if row.run is not None}


def test_the_optimisers_are_those_of_papers_and_specs() -> None:
    rows, printed = paper_rows(), specs_of_training()
    assert rows.keys() == printed.keys() and len(rows) == 9 + 4 + 8 + 11 + 8
    for name, row in rows.items():
        assert row.run is not None
        assert {f: getattr(row.run.train, f) for f in printed[name]} == printed[name], name


@pytest.mark.parametrize(
    ("name", "seconds", "printed_seconds", "tolerance"),
    [
        ("FM1", 17_920.0, 5.33 * 3600, 0.07),  # MERT spec, 3.6: crops of 5 s for 5.12 s
        (
            "4.2 k=500 MFCC dim=39",
            625.0,
            8 * 1.4e6 / 16_000,
            0.11,
        ),  # section 4: 1.4 million samples hold 5 crops
        ("4.3 vanilla", 1920.0, 8 * 3.8e6 / 16_000, 0.02),  # section 5.2
        ("4.3 crop5s", 1920.0, 1920.0, 0.0),  # thesis, section 4.3.2: as much audio
        ("5.3 RVQ all", 5120.0, 1.48 * 3600, 0.04),
        ("5.4 k-means, CQT 1", 5120.0, 1.48 * 3600, 0.04),
    ],
)
def test_a_step_hears_what_is_printed(
    name: str, seconds: float, printed_seconds: float, tolerance: float
) -> None:
    run = paper_rows()[name].run
    assert run is not None and run.train.batch_size * run.crop_seconds == seconds
    assert abs(seconds / printed_seconds - 1) <= tolerance
    assert run.train.batch_size % (run.train.micro_batch_size or 1) == 0


def test_objectives_are_those_of_the_specs() -> None:
    """MERT spec, 3.3, 3.6, 4 and 5: masks, widths, left-out layers, gradients of the convolutions."""
    of_codes = ("mask_probability", "mask_length", "min_spans", "final_dim", "conv_gradient", "layer_drop")
    printed = {
        "FM1": (of_codes, (0.8, 5, 2, 128, 1.0, 0.0)),
        "4.2 k=500 MFCC dim=39": (of_codes, (0.8, 10, 2, 256, 0.1, 0.05)),
        "5.3 RVQ all": (of_codes, (0.8, 5, 2, 64, 0.1, 0.05)),
        "4.3 vanilla": (
            ("mask_probability", "mask_length", "min_spans", "top_layers", "layer_drop", "ema_steps"),
            (0.65, 10, 1, 8, 0.05, 30_000),
        ),
    }
    for name, (fields, values) in printed.items():
        run = paper_rows()[name].run
        assert run is not None
        objective = parse_objective(run.objective)
        assert tuple(getattr(objective, f) for f in fields) == values, name


def dropouts_of(row: PretrainRow) -> dict[str, set[float]]:
    """The rates in the modules of the backbone."""
    assert row.run is not None
    backbone = backbone_outline(row.run)
    assert backbone.encoder is not None
    attention: set[Any] = {block.attention.dropout for block in backbone.encoder.blocks}  # type: ignore[union-attr]
    rates: dict[str, set[float]] = {"attention": attention}
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Dropout):
            kind = "stem" if name.startswith("stem") else name.rpartition(".")[2]
            rates.setdefault(kind, set()).add(module.p)
    return rates


def test_dropouts_are_those_of_papers_and_specs() -> None:
    rows = paper_rows()
    everywhere = {"attention": {0.1}, "dropout": {0.1}}
    base = everywhere | {"activation_dropout": {0.0}, "stem": {0.1}}  # MERT spec, 3.6 and 4
    for name, row in rows.items():
        rates = dropouts_of(row)
        if name == "FM1":  # MERT spec, 3.6: none at 330M
            assert rates == {k: {0.0} for k in ("attention", "dropout", "activation_dropout", "stem")}
        elif name in ("FM2", "FM3"):
            assert rates == everywhere | {"activation_dropout": {0.0}}
        elif name.startswith("FM"):  # MusicFM spec, (b)
            assert rates == everywhere
        elif name.startswith("4.3"):  # MERT spec, 5.2; it says nothing of activations
            assert (rates["stem"], rates["attention"], rates["dropout"]) == ({0.0}, {0.1}, {0.1})
        else:
            assert rates == base, name


# Contrasts -------------------------------------------------------------------------------------------------


def all_contrasts() -> list[tuple[str, Contrast, PretrainRow, PretrainRow]]:
    found = []
    for size in ("paper", "mini"):
        musicfm = MusicFmTable1(size=size, corpus="x")  # type: ignore[arg-type]
        tables: list[tuple[str, list[PretrainRow], tuple[Contrast, ...]]] = [
            ("musicfm", musicfm.rows(), CONTRASTS)
        ]
        for number, printed in THESIS_CONTRASTS.items():
            thesis = ThesisPretraining(number, size=size, corpus_16k="x", corpus_24k="y")  # type: ignore[arg-type]
            tables.append((number, thesis.rows(), printed))
        for table, rows, contrasts in tables:
            by_name = {row.name: row for row in rows}
            found += [(f"{size} {table}", c, by_name[c.a], by_name[c.b]) for c in contrasts]
    return found


@pytest.mark.parametrize(
    ("place", "contrast", "a", "b"), all_contrasts(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_contrast_names_every_field_that_differs(
    place: str, contrast: Contrast, a: PretrainRow, b: PretrainRow
) -> None:
    """The two runs as plain values, field by field, against what is printed."""
    assert a.run is not None and b.run is not None
    pair = pair_of(contrast, a, b)
    named = {d.field.partition(".")[0] for d in pair.differences}
    first, second = dataclasses.asdict(a.run), dataclasses.asdict(b.run)
    trains = first.pop("train"), second.pop("train")
    differ = {f for f in first if first[f] != second[f]}
    differ |= {f"train.{f}" for f in trains[0] if trains[0][f] != trains[1][f]}
    assert differ <= named | {d.field for d in pair.differences}, place
    assert pair.differences
    for field in (f for f in differ if f.startswith("train.")):
        name = field.partition(".")[2]
        assert f"{name} " in pair.text
    for difference in pair.differences:
        assert difference.a != difference.b and str(difference) in pair.text
    # Nothing differs inside the short forms but what is named.
    mine, theirs = run_fields(a.run), run_fields(b.run)
    of_both = {f for f in mine.keys() & theirs.keys() if mine[f] != theirs[f]}
    assert of_both <= {d.field for d in pair.differences}
    if mine["backbone"] == theirs["backbone"] and mine["objective"] == theirs["objective"]:
        assert mine.keys() == theirs.keys()
    assert (a.corpus != b.corpus) == any(d.field == "corpus" for d in pair.differences)


def test_contrasts_of_several_factors_are_known() -> None:
    """All others are about one thing alone; nothing that a contrast claims to be about stays equal at both sizes."""
    several = {(c.what, c.a, c.b) for _, c, a, b in all_contrasts() if not pair_of(c, a, b).is_single_factor}
    assert {(a, b) for _, a, b in several} == {
        ("FM2", "FM1"),
        ("MFCC 500", "MFCC 100"),
        ("MFCC 2000", "MFCC 500"),
        ("log-mel and chroma", "MFCC 2000"),
        ("RVQ all", "log-mel and chroma, CQT"),
    }
    differ: dict[Contrast, set[str]] = {}
    for _, contrast, a, b in all_contrasts():
        differ.setdefault(contrast, set()).update(d.field for d in pair_of(contrast, a, b).differences)
    for contrast, fields in differ.items():
        assert set(contrast.about) <= fields, contrast


def test_contrasts_say_what_differs_by_hand() -> None:
    found = {(place, c.a, c.b): pair_of(c, a, b) for place, c, a, b in all_contrasts()}
    assert found["paper musicfm", "FM4", "FM2"].text == "backbone conformer, not bert; num_layers 12, not 24"
    assert found["mini musicfm", "FM3", "FM2"].text == (
        "max_seconds 30, not 5; crop_seconds 30, not 5; batch_size 4, not 24"
    )
    assert found["paper musicfm", "FM9", "FM7"].text == "corpus fm9_corpus, not corpus"
    assert (
        found["paper 5.3", "MFCC 500", "MFCC 100"].text
        == "features mfcc60, not mfcc39; clusters 500, not 100"
    )
    encodec = found["paper 5.3", "RVQ all", "log-mel and chroma, CQT"]
    assert "sample_rate_hz 24,000, not 16,000; frame_rate_hz 75, not 50" in encodec.text
    assert (
        "features encodec, not kmeans" in encodec.text and "corpus corpus_24k, not corpus_16k" in encodec.text
    )
    mert = found["mini musicfm", "FM2", "FM1"]
    for said in ("stem mel, not waveform", "dropout 0.1, not 0", "schedule constant, not linear",
                 "weight_decay 0, not 0.01", "objective best_rq, not mert"):  # fmt: skip
        assert said in mert.text


def test_steps_that_follow_from_equal_minutes_are_named_and_no_factor() -> None:
    _, contrast, a, b = next(c for c in all_contrasts() if c[0] == "mini musicfm" and c[1].a == "FM9")
    assert a.run is not None and b.run is not None
    a, b = (dataclasses.replace(r, run=with_steps(r.run, n)) for r, n in ((a, 100), (b, 60)) if r.run)
    pair = pair_of(contrast, a, b, equal_minutes=True)
    assert "steps 100, not 60; warmup_steps 5, not 3" in pair.text and pair.is_single_factor
    assert not pair_of(contrast, a, b).is_single_factor
    longer = dataclasses.replace(a, share_of_minutes=2.0)
    assert not pair_of(contrast, longer, b, equal_minutes=True).is_single_factor


def test_every_contrast_has_its_printed_differences() -> None:
    """All rows are found under their printed names; some numbers by hand."""
    by_name = {row.name: row for row in MusicFmTable1().rows()}
    for contrast in CONTRASTS:
        for column in PRINTED.columns:
            assert PRINTED.difference(by_name[contrast.a], by_name[contrast.b], column) is not None
    downbeat = PRINTED.columns[1]
    assert PRINTED.difference(by_name["FM4"], by_name["FM2"], downbeat) == pytest.approx(0.771 - 0.669)
    for table, contrasts in THESIS_CONTRASTS.items():
        rows, printed = {row.name: row for row in ROWS[table]}, THESIS_PRINTED[table]
        for contrast in contrasts:
            for column in printed.columns:
                assert printed.difference(rows[contrast.a], rows[contrast.b], column) is not None
    rows, printed = {row.name: row for row in ROWS["5.3"]}, THESIS_PRINTED["5.3"]
    key = next(c for c in printed.columns if c.task == "key")
    difference = printed.difference(rows["log-mel and chroma, CQT"], rows["log-mel and chroma"], key)
    assert difference == pytest.approx(0.650 - 0.551)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("musicfm_table1:size=mini", ValueError, "name a corpus at 24 kHz"),
        ("musicfm_table1:size=large", ValueError, "one of paper, mini"),
        ("musicfm_table1:models=FM1+FM10", ValueError, "got 'FM10'"),
        ("musicfm_table1:tasks=mtt", ValueError, "tasks are scores-key"),
        ("musicfm_table1:minutes_each=0", ValueError, "minutes_each must be a positive number"),
        ("thesis_pretraining:batch_seconds=-1", ValueError, "batch_seconds must be a positive number"),
        ("thesis_pretraining:table=4.4", ValueError, "one of 4.2, 4.3, 5.3, 5.4"),
        ("thesis_pretraining:size=mini", ValueError, "corpus_16k=FOLDER"),
        ("thesis_pretraining:tasks=scores-beats", ValueError, "tasks are scores-key"),
    ],
)
def test_wrong_choices_are_refused(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_recipe(text)


def test_a_run_says_what_is_wrong_with_it() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'musicfm-mini'"):
        PretrainRun("musicfm-mni")
    with pytest.raises(ValueError, match="has no field 'width'"):
        PretrainRun("conformer:width=3")
    with pytest.raises(ValueError, match="load weights of your own as 'conformer'"):
        PretrainRun("conformer:size=95m", weights=None)
    with pytest.raises(UnknownNameError, match="unknown method"):
        PretrainRun("musicfm-msd", weights=None, method="lora2")
    assert loads_as(PretrainRun("bert:size=95m")) == "bert"
    assert loads_as(PretrainRun("musicfm-mini")) == "musicfm-mini"


# At the paper's size ---------------------------------------------------------------------------------------


def test_paper_size_writes_runs_and_prints_the_contrasts(
    tmp_path: Path, screen: Screen, pretrained: list
) -> None:
    run_recipe("musicfm_table1", tmp_path, console=screen)
    run_recipe("thesis_pretraining:table=5.4", tmp_path, console=screen)
    assert pretrained == []
    runs = tmp_path / "musicfm_table1" / "runs"
    assert sorted(p.stem for p in runs.iterdir()) == [m.name for m in MODELS]
    held = PretrainRun.from_json((runs / "FM8.json").read_text())
    assert held == MusicFmTable1(models="FM8").runs()[0]
    assert "606,450,688" in screen.text and "240 x 4" in screen.text and "160 x 2" in screen.text
    assert "the paper prints 660M and no widths" in screen.text and "the released code mixes" in screen.text
    assert "tokens, input and optimiser: BEST-RQ, not MERT several" in screen.text
    assert "num_layers 24, not 12" in screen.text and "corpus fm9_corpus, not corpus" in screen.text
    with (tmp_path / "musicfm_table1" / "contrasts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(CONTRASTS) * len(PRINTED.columns)
    size = [r for r in rows if r["a"] == "FM8" and r["printed_column"] == "giantsteps_key, key_weighted"]
    assert float(size[0]["printed_difference"]) == pytest.approx(0.649 - 0.674)
    assert (size[0]["factors"], size[0]["differs_in"]) == ("one", "num_layers 24, not 12")


# At size mini ----------------------------------------------------------------------------------------------


MINI = "musicfm_table1:size=mini,models=FM2+FM4+FM7+FM8+FM9,corpus=music,minutes_each=2,tasks=scores-key"


def test_small_models_are_trained_probed_and_compared(
    tmp_path: Path, screen: Screen, pretrained: list, evaluated: list[Run]
) -> None:
    run_recipe(MINI, tmp_path, console=screen)
    out = tmp_path / "musicfm_table1"
    steps = {call[2].parent.name: call[0].train.steps for call in pretrained if call[2].name == "run"}
    assert steps == {"FM2": 240, "FM4": 240, "FM7": 240}  # two minutes of half seconds
    assert {call[1] for call in pretrained} == {"music"}
    warmup = {call[0].train.warmup_steps for call in pretrained if call[2].name == "run"}
    assert warmup == {12}
    assert not (out / "FM2" / "timing").exists()
    assert json.loads((out / "FM2" / "budget.json").read_text()) == {
        "minutes": 2.0, "step_seconds": SECONDS_PER_STEP, "steps": 240,
    }  # fmt: skip
    assert [(run.backbone, Path(run.weights or "").parts[-3:]) for run in evaluated] == [
        ("bert", ("FM2", "run", "backbone")),
        ("conformer", ("FM4", "run", "backbone")),
        ("conformer", ("FM7", "run", "backbone")),
    ]
    assert {(run.task, run.protocol, run.method) for run in evaluated} == {("scores-key", "musicfm", "probe")}
    # 20 of 60 tracks more are answered right
    with (out / "contrasts.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["task"]]
    [found] = [r for r in rows if r["difference"]]
    assert (found["a"], found["b"], found["verdict"]) == ("FM4", "FM2", "better")
    assert float(found["difference"]) == pytest.approx(20 / 60)
    assert 0.2 < float(found["low"]) < 20 / 60 < float(found["high"]) < 0.5
    assert float(found["printed_difference"]) == pytest.approx(0.660 - 0.636)
    assert {(r["a"], r["b"]) for r in rows} == {("FM4", "FM2"), ("FM8", "FM7"), ("FM9", "FM7")}
    for said in ("proves nothing", "too large for today", "no corpus was given for it (fm9_corpus=FOLDER)"):
        assert said in screen.text
    for said in ("FM8 not trained: too large for today", "0.833", "equal minutes", "Hears fm9_corpus"):
        assert said in screen.text
    for of_the_paper in (
        "660M",
        "160,000 hours",
        "8 x 4",
    ):  # no notes about the paper's sizes, no steps of the trial
        assert of_the_paper not in screen.text
    assert "2.0 of 2" in screen.text and "+0.333*" in screen.text and "(+0.024)" in screen.text


def test_what_cannot_be_probed_is_listed(
    tmp_path: Path, screen: Screen, pretrained: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(run: Run, **options: Any) -> Result:
        raise ValueError("scores is not there")

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    run_recipe(MINI, tmp_path, console=screen)
    assert "FM4, scores-key not probed: scores is not there" in screen.text
    with (tmp_path / "musicfm_table1" / "contrasts.csv").open() as file:
        assert not any(row["difference"] for row in csv.DictReader(file))


def test_started_again_it_keeps_the_steps_it_began_with(
    tmp_path: Path, screen: Screen, pretrained: list, evaluated: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(MINI, tmp_path, console=screen)
    first = [call for call in pretrained if call[2].name == "run"]
    pretrained.clear()
    evaluated.clear()
    monkeypatch.setitem(globals(), "SECONDS_PER_STEP", 0.1)  # the machine is idle today
    run_recipe(MINI, tmp_path, console=screen)
    assert [call for call in pretrained if call[2].name == "run"] == first
    assert [call[2].parent.name for call in pretrained if call[2].name == "timing"] == []
    run_recipe(MINI.replace("minutes_each=2", "minutes_each=3"), tmp_path, console=screen)
    assert "was begun with 2 minutes, and 3 are asked for" in screen.text


def test_a_damaged_budget_is_said(tmp_path: Path, screen: Screen, pretrained: list) -> None:
    row = MusicFmTable1(models="FM7").rows()[0]
    (tmp_path / "FM7").mkdir()
    (tmp_path / "FM7" / "budget.json").write_text("{")
    done = train_rows([row], {"corpus": "music"}, tmp_path, 1.0, "cpu", screen)
    assert "is no budget" in done.failed["FM7"] and pretrained == []


def test_a_second_iteration_takes_its_teacher_from_the_first(
    tmp_path: Path, screen: Screen, pretrained: list, evaluated: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets are made before a row is trained; without the first model there is no second."""
    opened: list[tuple] = []

    class Held:
        name, targets = "music", ()

        def __init__(self, directory: str) -> None:
            assert directory == "music16"

    def open_teacher(
        name: str, corpus: object, backbone: str | None, weights: str | None, device: str
    ) -> str:
        opened.append((name, backbone, None if weights is None else Path(weights).parts[-3:]))
        if name == "mfcc60-km500":
            raise ValueError("a larger share, please")
        return name

    monkeypatch.setattr("audiation.corpus.Corpus", Held)
    monkeypatch.setattr("audiation.teachers.targets.open_teacher", open_teacher)
    monkeypatch.setattr("audiation.teachers.targets.compute_targets", lambda corpus, name, teacher: None)
    recipe = "thesis_pretraining:size=mini,corpus_16k=music16,minutes_each=1,tasks=scores-key"
    run_recipe(recipe, tmp_path, console=screen)
    assert opened == [
        ("mfcc39-km2000", None, None),
        ("layer4-km2000", "bert", ("k-2000-MFCC-dim-39", "run", "backbone")),
        ("mfcc39-km500", None, None),
        ("mfcc60-km500", None, None),
    ]
    trained = [call[2].parent.name for call in pretrained if call[2].name == "run"]
    assert trained == ["k-2000-MFCC-dim-39", "k-2000-iter2", "k-500-MFCC-dim-39"]
    assert "a larger share, please" in screen.text
    assert {run.protocol for run in evaluated} == {"marble-weighted-sum"}


def test_targets_that_cannot_be_made_here_are_asked_for(
    tmp_path: Path, screen: Screen, pretrained: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Held:
        name, targets = "music", ()

        def __init__(self, directory: str) -> None: ...

    monkeypatch.setattr("audiation.corpus.Corpus", Held)
    recipe = ThesisPretraining("5.4", size="mini", corpus_24k="music24")
    rows = [row for row in recipe.rows() if row.name in ("RVQ, no mixup", "k-means, CQT 1")]
    done = train_rows(rows, {"corpus_16k": "", "corpus_24k": "music24"}, tmp_path, 1.0, "cpu", screen)
    assert "audiation corpus targets music24 --teacher encodec" in done.failed["RVQ, no mixup"]
    assert "no corpus was given for it (corpus_16k=FOLDER)" in done.failed["k-means, CQT 1"]
    assert pretrained == []


def test_twice_the_steps_have_twice_the_minutes(tmp_path: Path, screen: Screen, pretrained: list) -> None:
    recipe = ThesisPretraining("4.3", size="mini", corpus_16k="music16")
    rows = [row for row in recipe.rows() if row.name in ("vanilla", "step=800k")]
    done = train_rows(rows, {"corpus_16k": "music16"}, tmp_path, 1.0, "cpu", screen)
    assert {name: one.budget.steps for name, one in done.trained.items()} == {
        "vanilla": 120,
        "step=800k": 240,
    }
    assert isinstance(done.trained["vanilla"], Trained)


def test_small_parts() -> None:
    assert (
        file_name("k=2000 MFCC dim=39") == "k-2000-MFCC-dim-39" and file_name("log-mel, CQT") == "log-mel-CQT"
    )
    run = PretrainRun("musicfm-mini", train=PretrainConfig(steps=10, batch_size=3))
    assert small_run(run, "conformer", 61.0).train.batch_size == 2
    assert with_steps(run, 2).train.warmup_steps == 1
