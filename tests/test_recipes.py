"""Recipes: which runs they are made of, what they write, and that they go on where they stopped."""

import csv
import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from audiation import console as console_module
from audiation.bootstrap import Interval
from audiation.evaluation import Run
from audiation.methods import inject, parse_method, set_modes
from audiation.parameters import count_parameters
from audiation.protocols import PROTOCOLS
from audiation.recipes import RECIPES, list_recipes, run_recipe
from audiation.recipes import petl_figure2 as figure2
from audiation.recipes.base import Carried, FailedRun, parse_recipe
from audiation.recipes.figures import BarPanel, Bars, Gap, Line, LinePanel, Point, save_bars, save_lines
from audiation.recipes.petl_figure3 import PetlFigure3, estimate
from audiation.recipes.petl_sensitivity import PetlSensitivity
from audiation.recipes.petl_table2 import PetlTable2, beats_both, cells_of, names_in
from audiation.recipes.step_memory import (
    MARGIN,
    RUNTIME_BYTES,
    MemoryCheck,
    Shapes,
    check_estimate,
    memory_need,
)
from audiation.registry import UnknownNameError
from audiation.results import Prediction, Result

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
MIB, GIB = 1 << 20, 1 << 30


class Screen(Console):
    """A console that keeps what is printed."""

    def __init__(self):
        super().__init__(file=io.StringIO(), width=160)

    @property
    def text(self):
        """All of it, in one line."""
        return " ".join(self.file.getvalue().split())


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)
    monkeypatch.delenv("AUDIATION_DATA_ROOT", raising=False)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def a_result(run, score=0.5, predictions=(), **more):
    """As `evaluate` makes it: the layer is what the run's choice came to."""
    record = dataclasses.asdict(run) | {
        "layer": run.num_layers,
        "method_parameters": 12,
        "protocol_version": PROTOCOLS[run.protocol].version,
    }
    count = max(len(predictions), 4)
    scores = {"key_weighted" if "key" in run.task else "accuracy": score}
    intervals = {name: Interval(score - 0.1, score + 0.1) for name in scores}
    return Result(record, scores, intervals, count, count, "ab12", predictions=predictions, **more)


@pytest.fixture
def evaluated(monkeypatch):
    """Runs are not carried out but counted; the score follows from method and depth."""
    runs = []

    def evaluate(run, **options):
        if run.method == "bitfit":
            raise ValueError("no bits today")
        runs.append(run)
        return a_result(run, 0.3 + 0.01 * len(run.method) + 0.02 * run.num_layers)

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    return runs


# The registry ---------------------------------------------------------------------------------------------


def test_the_recipes_of_the_paper_are_there_and_listed(screen):
    names = [
        "petl_figure2",
        "petl_figure3",
        "petl_section5_3",
        "petl_sensitivity",
        "petl_table2",
        "petl_table3",
    ]
    assert [name for name in RECIPES if name.startswith("petl")] == names
    list_recipes(screen)
    assert all(name in screen.text for name in names)
    assert "memory_limit_gib=24.0" in screen.text


@pytest.mark.parametrize(
    "text, error, says",
    [
        ("petl_table4", UnknownNameError, "Did you mean 'petl_table"),
        ("petl_table2:methodes=lora", ValueError, "Did you mean 'methods'"),
        ("petl_table2:backbones=musicfm", UnknownNameError, "musicfm-msd"),
        ("petl_table2:methods=lora+lora", ValueError, "'lora' is named twice"),
        ("petl_table2:methods=lora+", ValueError, "methods=a+b"),
        ("petl_table2:methods=lora:rank=0", ValueError, "rank must be at least 1"),
        ("petl_figure2:turns=0", ValueError, "turns must be at least 1"),
        ("petl_figure2:clip_seconds=-1", ValueError, "clip_seconds must be a positive"),
        ("petl_figure3:layers=3+six", ValueError, "layers=3+6"),
        ("petl_figure3:memory_limit_gib=0", ValueError, "memory_limit_gib must be positive"),
        ("petl_sensitivity:ranks=0+1", ValueError, "whole numbers"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_done(text, error, says):
    with pytest.raises(error) as caught:
        parse_recipe(text)
    assert says in str(caught.value)


# Table 2 --------------------------------------------------------------------------------------------------


def test_table2_is_made_of_112_runs():
    runs = PetlTable2().runs()
    assert len(runs) == len({run.key for run in runs}) == 2 * 8 * 7
    assert {run.backbone for run in runs} == {"musicfm-msd", "mert-v1-95m"}
    assert {run.method for run in runs} == {
        "finetune", "probe", "adapter", "prompt", "prefix", "bitfit", "ssf", "lora",
    }  # fmt: skip
    assert {run.task for run in runs} == {
        "mtt_clean", "mtg_top50", "gtzan_genre", "gtzan_key", "giantsteps_key", "gtzan_tempo", "giantsteps_tempo",
    }  # fmt: skip
    assert {(run.protocol, run.num_layers, run.weights, run.train) for run in runs} == {("petl", 6, None, "")}


def test_table2_can_be_restricted():
    recipe = parse_recipe(
        "petl_table2:backbones=mert-v1-95m,methods=prefix+lora:rank=4,tasks=gtzan_key,mert_prefix_tokens=64,"
        "weights=random,train=steps=5+precision=fp32"
    )
    first, second = recipe.runs()
    assert (first.method, second.method) == ("prefix:num_tokens=64", "lora:rank=4")
    assert first.train == "steps=5,precision=fp32" and first.weights == "random"


def test_every_cell_of_table2_has_its_printed_number():
    runs = PetlTable2().runs()
    failed = tuple(FailedRun(run, "not here") for run in runs)
    cells = {(c.run.backbone, c.run.method, c.run.task): c for c in cells_of(runs, Carried({}, failed))}
    assert all(cell.printed is not None and cell.reason == "not here" for cell in cells.values())
    assert cells["musicfm-msd", "lora", "mtt_clean"].printed.value == 0.486
    assert "underlined" in cells["musicfm-msd", "lora", "mtt_clean"].printed.note
    assert cells["mert-v1-95m", "probe", "gtzan_tempo"].printed.value == 0.424
    assert cells["mert-v1-95m", "finetune", "giantsteps_key"].printed.value == 0.681


def test_only_the_paper_s_own_systems_have_printed_numbers():
    runs = parse_recipe("petl_table2:backbones=musicfm-mini,tasks=mtt_clean,methods=lora").runs()
    runs += parse_recipe("petl_table2:tasks=mtt_clean,methods=lora,num_layers=3").runs()
    failed = tuple(FailedRun(run, "") for run in runs)
    assert [cell.printed for cell in cells_of(runs, Carried({}, failed))] == [None, None, None]


def answers(num_right, num_tracks=60, right="C major", wrong="F# minor"):
    return tuple(Prediction(f"t{i}", right, right if i < num_right else wrong) for i in range(num_tracks))


def key_run(method):
    return Run("musicfm-msd", "gtzan_key", method, "petl", num_layers=6)


def test_a_mark_needs_both_differences_above_zero():
    lora, same_as_lora = (a_result(key_run("lora"), 0.8, answers(48)) for _ in range(2))
    poor = a_result(key_run("probe"), 0.5, answers(20))
    close = a_result(key_run("finetune"), 0.75, answers(47))
    assert beats_both(lora, poor, poor) is True
    assert beats_both(lora, close, poor) is False  # one track more: the interval holds 0
    assert beats_both(lora, poor, same_as_lora) is False
    assert beats_both(poor, lora, lora) is False


def test_no_mark_without_shared_tracks_or_answers_that_can_be_read():
    lora = a_result(key_run("lora"), 0.8, answers(48))
    other = tuple(dataclasses.replace(p, track_id=f"x{p.track_id}") for p in answers(3))
    assert beats_both(lora, a_result(key_run("probe"), 0.1, other), lora) is None


def test_cells_say_why_there_is_no_mark_and_which_is_best():
    runs = [key_run(method) for method in ("finetune", "probe", "lora", "ssf")]
    results = [
        a_result(run, s, answers(int(60 * s))) for run, s in zip(runs, (0.3, 0.4, 0.8, 0.4), strict=True)
    ]
    cells = cells_of(runs, Carried(dict(zip(runs, results, strict=True)), ()))
    assert [cell.beats_both for cell in cells] == [None, None, True, False]
    assert [cell.best for cell in cells] == [False, False, True, False]
    without_probe = cells_of(
        runs,
        Carried(
            {r: x for r, x in zip(runs, results, strict=True) if r != runs[1]},
            (FailedRun(runs[1], "no data"),),
        ),
    )
    assert without_probe[1].reason == "no data"
    assert without_probe[2].beats_both is None and "probing is missing" in without_probe[2].no_mark_because


@pytest.fixture
def gtzan(tmp_path, monkeypatch):
    """One second of one pitch per genre and split."""
    root = tmp_path / "data" / "gtzan"
    noise = np.random.default_rng(0)
    for number, split in enumerate(("train", "valid", "test")):
        lines = []
        for k, genre in enumerate(GENRES):
            name = f"{genre}.{number:05}.wav"
            (root / "genres" / genre).mkdir(parents=True, exist_ok=True)
            tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (k / 12) * np.arange(22050) / 22050)
            soundfile.write(root / "genres" / genre / name, tone + 0.01 * noise.standard_normal(22050), 22050)
            lines.append(f"{genre}/{name}\n")
        (root / f"{split}_filtered.txt").write_text("".join(lines))
    monkeypatch.setenv("AUDIATION_DATA_ROOT", str(root.parent))


def test_table2_end_to_end_on_a_small_backbone(gtzan, tmp_path, screen, monkeypatch):
    text = (
        "petl_table2:backbones=musicfm-mini,tasks=gtzan_genre+no_such_task,methods=finetune+probe+lora,num_layers=1,"
        "weights=random,train=steps=2+batch_size=4+precision=fp32+validate_every_steps=2"
    )
    run_recipe(text, tmp_path / "out", console=screen)
    folder = tmp_path / "out" / "petl_table2"
    rows = rows_of(folder / "table2.csv")
    done = [row for row in rows if row["task"] == "gtzan_genre"]
    assert [row["method"] for row in done] == ["finetune", "probe", "lora"]
    assert all(0 <= float(row["low"]) <= float(row["score"]) <= float(row["high"]) <= 1 for row in done)
    assert [row["better_than_ft_and_probing"] for row in done][:2] == ["", ""]
    assert done[2]["better_than_ft_and_probing"] in ("yes", "no")
    assert all("unknown task 'no_such_task'" in row["note"] for row in rows if row not in done)
    assert len(list(folder.glob("gtzan_genre.musicfm-mini.*.json"))) == 3
    assert "3 of 6 runs have a result" in screen.text

    def never(*arguments, **options):
        raise AssertionError("a run that has a result is not repeated")

    again = Screen()
    monkeypatch.setattr("audiation.evaluation.judge_adapted", never)
    run_recipe(text, tmp_path / "out", console=again)
    assert rows_of(folder / "table2.csv") == rows
    assert "3 of 6 runs have a result" in again.text


# Table 3 --------------------------------------------------------------------------------------------------


def test_table3_writes_what_is_counted(tmp_path, screen):
    run_recipe("petl_table3:backbones=mert-v1-95m", tmp_path, console=screen)
    rows = rows_of(tmp_path / "petl_table3" / "table3.csv")
    assert {row["method"]: int(row["trained"]) for row in rows} == {
        "finetune": 51_843_712, "probe": 0, "adapter": 322_752, "prompt": 49_152, "prefix:num_tokens=64": 7_385_088,
        "bitfit": 50_688, "ssf": 82_944, "lora": 165_888,
    }  # fmt: skip
    assert [row["agrees"] for row in rows] == ["yes"] * 8
    assert "8 of 8 cells agree" in screen.text


# Figure 2 -------------------------------------------------------------------------------------------------

SMALL_FIGURE2 = "petl_figure2:backbones=musicfm-mini,num_layers=1,clip_seconds=0.5,step_seconds=1,turns=1"


def test_figure2_measures_draws_and_goes_on(tmp_path, screen, monkeypatch):
    run_recipe(SMALL_FIGURE2 + ",methods=finetune+probe+lora", tmp_path, console=screen)
    folder = tmp_path / "petl_figure2"
    record = json.loads((folder / "figure2.json").read_text())
    found = {(t["method"], t["phase"], t["cached"], t["merged"]) for t in record["timings"]}
    assert found == {
        ("finetune", "training", False, False), ("finetune", "inference", False, False),
        ("probe", "training", False, False), ("probe", "training", True, False),
        ("probe", "inference", False, False), ("probe", "inference", True, False),
        ("lora", "training", False, False), ("lora", "training", True, False),
        ("lora", "inference", False, True), ("lora", "inference", True, True),
    }  # fmt: skip
    assert all(t["relative"] == t["seconds"] / t["finetune_seconds"] > 0 for t in record["timings"])
    assert {t["relative"] for t in record["timings"] if t["method"] == "finetune"} == {1.0}
    assert (folder / "figure2.png").read_bytes().startswith(b"\x89PNG")
    chart = (folder / "figure2.svg").read_text()
    assert all(f"<!-- {name} -->" in chart for name in ("FT", "Probing", "LoRA", "Training, musicfm-mini"))

    made = []
    real = figure2.Subject
    monkeypatch.setattr(figure2, "Subject", lambda setting: made.append(setting.method) or real(setting))
    run_recipe(SMALL_FIGURE2 + ",methods=finetune+probe+ssf+lora", tmp_path, console=screen)
    assert set(made) == {"finetune", "ssf"}  # the others are in the file
    record = json.loads((folder / "figure2.json").read_text())
    assert [t["method"] for t in record["timings"]].count("lora") == 4


def test_figure2_times_steps_of_the_audio_it_was_asked_for():
    watch = figure2.Stopwatch("musicfm-mini", parse_recipe(SMALL_FIGURE2))
    assert (watch.clip_seconds, watch.batch_size) == (0.5, 2)
    watch = figure2.Stopwatch("musicfm-mini", figure2.PetlFigure2(num_layers=1))
    assert (watch.clip_seconds, watch.batch_size) == (30.0, 1)


def test_timings_under_other_conditions_do_not_mix(tmp_path, screen):
    text = SMALL_FIGURE2 + ",methods=finetune"
    run_recipe(text, tmp_path, console=screen)
    path = tmp_path / "petl_figure2" / "figure2.json"
    record = json.loads(path.read_text())
    record["conditions"]["threads"] = 1000
    record["timings"][0]["method"] = "kept"
    path.write_text(json.dumps(record))
    run_recipe(text, tmp_path, console=screen)
    assert {t["method"] for t in json.loads(path.read_text())["timings"]} == {"finetune"}
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a file of this recipe"):
        run_recipe(text, tmp_path, console=screen)


def test_figure2_is_refused_where_it_cannot_be_made(tmp_path, screen, monkeypatch):
    with pytest.raises(ValueError, match="times the CPU"):
        run_recipe(SMALL_FIGURE2, tmp_path, device="cuda:0", console=screen)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in ("petl_figure2", "petl_figure3", "petl_sensitivity"):
        with pytest.raises(ValueError, match="pip install matplotlib"):
            run_recipe(name, tmp_path, console=screen)
    assert not list(tmp_path.glob("petl*"))


# Memory and figure 3 --------------------------------------------------------------------------------------


SHAPES = Shapes()


def need(method, *, layers=2, batch_size=2, bf16=False, checkpointing=False):
    backbone = SHAPES.backbone("musicfm-mini", layers)
    inject(backbone, parse_method(method))
    set_modes(backbone)
    backbone.encoder.recompute_blocks = checkpointing
    return memory_need(backbone, 2.0, batch_size, bf16=bf16, fused_attention=False)


def saved_bytes(method):
    """What a real forward pass of the same keeps for its gradient."""
    from audiation.loading import load_backbone

    backbone = load_backbone("musicfm-mini", "random", num_layers=2)
    inject(backbone, parse_method(method))
    set_modes(backbone)
    own = {t.untyped_storage().data_ptr() for t in [*backbone.parameters(), *backbone.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(torch.randn(8, 2 * 24_000), layers=[2])
    return sum(s.nbytes() for address, s in kept.items() if address not in own)


@pytest.mark.parametrize("method", ["finetune", "lora", "adapter"])
def test_counted_activations_are_those_of_a_real_step(method):
    assert need(method, batch_size=8).activation_bytes == pytest.approx(saved_bytes(method), rel=0.02)


def test_weights_gradients_and_moments_are_counted():
    (row,) = count_parameters(["musicfm-mini"], ["finetune"], 2)
    whole = need("finetune")
    assert whole.weight_bytes == 4 * row.count.registered
    assert whole.moment_bytes == 8 * row.count.trainable
    assert whole.step_bytes > whole.activation_bytes
    total = whole.weight_bytes + whole.moment_bytes + whole.step_bytes
    assert whole.gib == pytest.approx((MARGIN * total + RUNTIME_BYTES) / GIB)
    probe = need("probe")
    assert probe.moment_bytes == 0 and probe.activation_bytes < 2 * MIB
    assert probe.step_bytes > 2 * MIB  # the stem works on something


def test_memory_follows_batch_precision_and_checkpointing():
    one, four = (need("lora", layers=1, batch_size=n) for n in (4, 16))
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=0.05)
    rounded = need("lora", layers=1, batch_size=16, bf16=True)
    assert 0.45 < rounded.activation_bytes / four.activation_bytes < 0.65
    checkpointed = need("lora", layers=1, batch_size=16, checkpointing=True)
    assert checkpointed.activation_bytes < 0.25 * four.activation_bytes
    assert four.step_bytes < 0.7 * need("finetune", layers=1, batch_size=16).step_bytes


def test_full_fine_tuning_of_musicfm_outgrows_24_gib_between_6_and_9_layers():
    shapes = Shapes()
    gib = {
        n: estimate(
            Run("musicfm-msd", "mtt_clean", "finetune", "petl", num_layers=n), shapes, fused_attention=True
        ).need.gib
        for n in (6, 9)
    }
    assert gib[6] == pytest.approx(20.4, abs=0.3) and gib[9] == pytest.approx(24.9, abs=0.3)


def test_the_estimate_follows_the_choices_of_the_training():
    def of(train):
        run = Run("musicfm-mini", "scores-key", "lora", "petl", num_layers=1, train=train)
        return estimate(run, SHAPES, fused_attention=True).need

    whole, halved = of(""), of("micro_batch_size=8")
    assert halved.activation_bytes / whole.activation_bytes == pytest.approx(0.5, abs=0.02)
    assert of("precision=fp32,micro_batch_size=8").activation_bytes > 1.4 * halved.activation_bytes
    with pytest.raises(ValueError, match="no field 'stepps'"):
        of("stepps=3")
    with pytest.raises(ValueError, match="no blocks to count"):
        estimate(Run("chroma", "scores-key", "probe", "petl", num_layers=1), SHAPES, fused_attention=True)


def test_the_check_measures_what_is_estimated():
    check = check_estimate("musicfm-mini", 1, SHAPES)
    assert 0.5 < check.estimated_gib / check.measured_gib < 2
    assert "one window of 30.0 s" in check.sentence


@pytest.fixture
def unmeasured(monkeypatch):
    """The check is not measured but given."""
    given = MemoryCheck("musicfm-mini", 1, 30.0, 1.2, 1.0)
    monkeypatch.setattr("audiation.recipes.petl_figure3.check_estimate", lambda *_: given)


SMALL_FIGURE3 = "petl_figure3:task=scores-key,backbones=musicfm-mini,layers=1+2+6,weights=random"


def test_figure3_marks_cells_without_memory_or_layers(tmp_path, screen, evaluated, unmeasured, monkeypatch):
    text = SMALL_FIGURE3 + ",methods=finetune+lora+bitfit,memory_limit_gib=2"
    run_recipe(text, tmp_path, console=screen)
    folder = tmp_path / "petl_figure3"
    rows = {(row["method"], int(row["num_layers"])): row for row in rows_of(folder / "figure3.csv")}
    assert len(rows) == 9
    assert float(rows["finetune", 2]["memory_gib"]) > 2 > float(rows["lora", 2]["memory_gib"])
    assert rows["finetune", 2]["note"] == "needs more than 2 GiB" and rows["finetune", 2]["score"] == ""
    assert rows["lora", 6]["note"] == "has only 4 layers" and rows["lora", 6]["memory_gib"] == ""
    assert rows["bitfit", 1]["note"] == "no bits today"
    assert float(rows["lora", 2]["score"]) == pytest.approx(0.38)
    assert {(run.method, run.num_layers) for run in evaluated} == {("finetune", 1), ("lora", 1), ("lora", 2)}
    chart = (folder / "figure3.svg").read_text()
    for entry in (
        "FT",
        "LoRA",
        "missing: needs more than 2 GiB",
        "missing: has only 4 layers",
        "missing: failed",
    ):
        assert f"<!-- {entry} -->" in chart
    assert "the estimate is 20% too high" in screen.text

    def never(*arguments, **options):
        raise AssertionError("the estimate is in the file")

    monkeypatch.setattr("audiation.recipes.petl_figure3.estimate", never)
    run_recipe(text, tmp_path, console=screen)
    assert len(evaluated) == 3


def test_figure3_without_any_result_says_so(tmp_path, screen, unmeasured):
    run_recipe(
        SMALL_FIGURE3.replace("scores-key", "no_such_task") + ",methods=probe", tmp_path, console=screen
    )
    assert "No run has a result" in screen.text
    assert not list((tmp_path / "petl_figure3").glob("*.png"))
    with pytest.raises(ValueError, match="no backbone of musicfm-mini has as few layers"):
        run_recipe(SMALL_FIGURE3.replace("1+2+6", "5+6") + ",methods=probe", tmp_path, console=screen)


def test_figure3_is_made_of_64_runs():
    runs = PetlFigure3().runs()
    assert len({run.key for run in runs}) == 2 * 8 * 4
    assert {run.num_layers for run in runs} == {3, 6, 9, 12}


# Sensitivity ----------------------------------------------------------------------------------------------


def test_sensitivity_is_made_of_10_runs_per_backbone():
    runs = PetlSensitivity().runs()
    assert len({run.key for run in runs}) == 20
    assert [run.method for run in runs[:10]] == [
        "lora:rank=1", "lora", "lora:rank=4", "lora:rank=8", "lora:rank=16",
        "adapter:bottleneck=4", "adapter:bottleneck=8", "adapter", "adapter:bottleneck=32", "adapter:bottleneck=64",
    ]  # fmt: skip


def test_sensitivity_draws_what_was_scored(tmp_path, screen, evaluated):
    text = "petl_sensitivity:task=scores-key,backbones=musicfm-mini,ranks=1+2,bottlenecks=4,num_layers=2"
    run_recipe(text, tmp_path, console=screen)
    folder = tmp_path / "petl_sensitivity"
    rows = rows_of(folder / "sensitivity.csv")
    assert [(row["method"], row["size"]) for row in rows] == [
        ("lora:rank=1", "1"), ("lora", "2"), ("adapter:bottleneck=4", "4"),
    ]  # fmt: skip
    assert float(rows[0]["score"]) == pytest.approx(0.45) and float(rows[0]["low"]) == pytest.approx(0.35)
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert len(evaluated) == 3
    run_recipe(text, tmp_path, console=screen)
    assert len(evaluated) == 3


# Charts ---------------------------------------------------------------------------------------------------


def test_equal_numbers_give_equal_charts(tmp_path):
    panel = LinePanel(
        "a", "layers", "score", (3, 6), (Line("x", (Point(3, 0.5, 0.4, 0.6),), (Gap(6, "too large"),)),)
    )
    bars = BarPanel("b", "time", ("FT", "LoRA"), (Bars("whole", (1.0, 0.4)), Bars("kept", (None, 0.02))), 1.0)
    for folder in ("one", "two"):
        save_lines(tmp_path / folder, "lines", [panel])
        save_bars(tmp_path / folder, "bars", [[bars, bars], [bars]])
    for name in ("lines.svg", "bars.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "<!-- 0.02 -->" in (tmp_path / "one" / "bars.svg").read_text()
    assert "<!-- missing: too large -->" in (tmp_path / "one" / "lines.svg").read_text()


def test_names_in_a_field():
    assert names_in("a + b", "tasks") == ["a", "b"]
