"""Tables of the papers: every printed number is accounted for; plans; runs; ours beside published."""

import csv
import dataclasses
import importlib.resources
import io
import json
import os
from collections import Counter

import numpy as np
import pytest
import soundfile
from rich.console import Console

from audiation import console as console_module
from audiation.backbones import BACKBONES
from audiation.bootstrap import Interval
from audiation.probe import ProbeSchedule
from audiation.protocols import PROTOCOLS, AdaptProtocol, Protocol, SeparationProtocol
from audiation.recipes import table_plan
from audiation.recipes.reproduce import CellOutcome, carry_out_table, made_with
from audiation.recipes.table_plan import fetch_weights, find_folder, plan_runs
from audiation.recipes.tables import (
    TABLES,
    ByAverage,
    ByCount,
    ByRun,
    NoAnswer,
    runs_of,
    select_cells,
)
from audiation.registry import UnknownNameError
from audiation.reproduce_commands import list_tables, notes_on, render_outcomes, reproduce, reproduce_table
from audiation.results import Failure, Result
from audiation.run import Run
from audiation.splits import load_splits
from audiation.tasks import TASKS
from audiation.weights import WeightsError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
LISTS = {"train": range(2), "valid": range(2, 4), "test": range(4, 6)}
RECORDS = json.loads(
    importlib.resources.files("audiation").joinpath("data/published_results.json").read_text(encoding="utf-8")
)["records"]


def recorded(run):
    """What a result says of its run."""
    return dataclasses.asdict(run) | {"protocol_version": PROTOCOLS[run.protocol].version}


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    for name in ("AUDIATION_METADATA_ROOT", "AUDIATION_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), width=200)


def shown(screen):
    return " ".join(screen.file.getvalue().split())


def folders(root, *names):
    """Folders that look like data sets from afar."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "something").write_text("")
    return root


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# The tables --------------------------------------------------------------------------------------------------


def test_every_printed_number_is_one_cell():
    printed = Counter(
        (r["paper"], r["table"], r["system"], r["method"], r["task"], r["dataset"], r["metric"], r["note"],
         r.get("train_on") or "", round(r["value"] * (0.01 if r["unit"] == "percent" else 1), 6))
        for r in RECORDS
    )  # fmt: skip
    cells = [(name, cell) for name in TABLES for cell in TABLES[name].cells()]
    accounted = Counter()
    for name, cell in cells:
        row = cell.published
        if row is None:
            assert name == "petl/figure3"
            continue
        assert (row.paper, row.table) == (name.split("/")[0], name.split("/")[1].replace("table", "Table "))
        accounted[
            row.paper, row.table, row.system, row.method, row.task, row.dataset, row.metric, row.note, row.train_on,
            row.value,
        ] += 1  # fmt: skip
    assert sum(printed.values()) == 1150
    assert accounted == printed
    kinds = Counter(type(cell.answer) for _, cell in cells if cell.published is not None)
    assert kinds == {ByRun: 669, ByAverage: 24, ByCount: 16, NoAnswer: 441}


def test_the_tables_and_their_sizes():
    assert {name: len(TABLES[name].runs()) for name in TABLES} == {
        "jukemir/table3": 24, "musicfm/table1": 10, "petl/figure3": 64, "petl/table2": 116, "petl/table3": 0,
        "thesis/table4.1": 52, "thesis/table4.2": 18, "thesis/table4.3": 18, "thesis/table5.1": 68,
        "thesis/table5.2": 96, "thesis/table5.3": 4, "thesis/table5.4": 8, "thesis/table6.2": 77,
        "thesis/table6.3": 86,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(TABLES))
def test_a_run_can_be_asked_and_has_the_metric(name):
    """Task, protocol, data set, training data and metric of every run are those that its cell asks about."""
    for cell in TABLES[name].cells():
        for run in cell.answer.runs:
            task, protocol = TASKS[run.task], PROTOCOLS[run.protocol]
            if task.task_type == "separation":
                assert isinstance(protocol, SeparationProtocol)
            elif task.target.per_frame or run.method != "probe":
                assert isinstance(protocol, AdaptProtocol)
            else:
                assert isinstance(protocol, Protocol | AdaptProtocol)
        if isinstance(cell.answer, ByRun) and cell.published is not None:
            task, row = TASKS[cell.answer.run.task], cell.published
            assert row.metric in {m.printed_name for m in task.metrics}
            assert row.dataset == (task.published_as or task.compare_with)[1]
            assert row.train_on == task.published_train_on
        if isinstance(cell.answer, NoAnswer):
            assert cell.answer.reason


def test_reference_rows_belong_to_others():
    for name in TABLES:
        for cell in TABLES[name].cells():
            if cell.method == "reference" or cell.system in ("State-of-the-art", "Previous SOTA"):
                assert cell.answer == NoAnswer(
                    "published by others", "a number that the paper takes from other papers"
                )


def test_which_protocol_a_table_follows():
    protocols = {name: {run.protocol for run in TABLES[name].runs()} for name in TABLES}
    assert protocols["jukemir/table3"] == {"jukemir"}
    assert protocols["musicfm/table1"] == {"musicfm"}
    assert protocols["petl/table2"] == {"petl", "scratch"}
    assert protocols["thesis/table4.2"] == {"marble-weighted-sum", "marble-unconstrained"}
    assert protocols["thesis/table5.3"] == {"marble-constrained"}
    assert protocols["thesis/table6.3"] == {
        "marble-constrained", "marble-v1-separation", "marble-unconstrained",
    }  # fmt: skip


def test_ablations_that_print_a_released_model_are_answered_by_it():
    """Rows of tables 5.3 and 5.4 are answered where their numbers are those of table 5.1."""
    released = {
        (c.answer.backbone, c.column): c.published.value
        for c in TABLES["thesis/table5.1"].cells()
        if isinstance(c.answer, ByRun)
    }
    answered = [
        c for n in ("5.3", "5.4") for c in TABLES[f"thesis/table{n}"].cells() if isinstance(c.answer, ByRun)
    ]
    assert len(answered) == 18
    for cell in answered:
        assert cell.published.value == released[cell.answer.backbone, cell.column]


def test_choosing_cells():
    cells = TABLES["jukemir/table3"].cells()
    of_two = select_cells(cells, backbones=["chroma", "mfcc"])
    assert len(of_two) == 14 and {c.system for c in of_two} == {"CHROMA", "MFCC"}
    of_one = select_cells(cells, backbones=["chroma"], tasks=["gtzan_genre"])
    assert [c.answer for c in of_one] == [ByRun(Run("chroma", "gtzan_genre", protocol="jukemir"), "accuracy")]
    with_average = select_cells(
        cells, backbones=["chroma"], tasks=["gtzan_genre", "mtt", "giantsteps_key", "emomusic"]
    )
    assert sum(isinstance(c.answer, ByAverage) for c in with_average) == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'chroma'"):
        select_cells(cells, backbones=["chrome"])
    with pytest.raises(UnknownNameError, match="task 'nsynth_pitch'"):
        select_cells(cells, tasks=["nsynth_pitch"])
    with pytest.raises(ValueError, match="both a backbone out of key-cnn and a task out of mtt_clean"):
        select_cells(TABLES["petl/table2"].cells(), backbones=["key-cnn"], tasks=["mtt_clean"])


def test_random_weights_are_for_backbones_that_have_some():
    cells = [*TABLES["jukemir/table3"].cells(), *TABLES["petl/table2"].cells()]
    weights = {run.backbone: run.weights for run in runs_of(select_cells(cells, weights="random"))}
    assert (weights["chroma"], weights["musicfm-msd"], weights["key-cnn"]) == (None, "random", "random")
    assert {run.weights for run in runs_of(cells) if run.backbone == "musicfm-msd"} == {None}


# The plan ----------------------------------------------------------------------------------------------------


def test_where_a_data_set_is_looked_for(tmp_path):
    root = folders(tmp_path / "data", "giantsteps-key-dataset", "gtzan")
    assert find_folder("giantsteps_key", root) == root / "giantsteps-key-dataset"
    assert find_folder("gtzan_rhythm:split=all", root) == root / "gtzan"
    assert find_folder("gtzan", root / "gtzan") == root / "gtzan"
    assert find_folder("mtt", root) is None
    (root / "mtt").mkdir()
    assert find_folder("mtt", root) is None  # an empty folder is no data set
    folders(tmp_path / "cache" / "datasets", "scores")
    assert find_folder("scores", None) == tmp_path / "cache" / "datasets" / "scores"


def test_the_plan_of_jukemir(tmp_path, no_weights):
    plan = plan_runs(TABLES["jukemir/table3"].runs(), folders(tmp_path / "data", "gtzan"))
    fetched = ["choi", "musicnn-msd-big", "clmr", "jukebox-5b"]
    assert [(r.backbone, r.task) for r in plan.possible] == [
        (backbone, "gtzan_genre") for backbone in ("chroma", "mfcc", *fetched)
    ]
    assert plan.weights_to_fetch == fetched
    assert plan.num_trainings() == 24 * 216 and plan.num_trainings(possible_only=True) == 6 * 216
    missing = {(o.kind, o.what): len(runs) for o, runs in plan.runs_behind.items()}
    assert missing == {
        ("data set not found", "mtt"): 6, ("data set not found", "giantsteps_mtg_key"): 6,
        ("data set not found", "giantsteps_key"): 6, ("data set not found", "emomusic"): 6,
    }  # fmt: skip
    with pytest.raises(ValueError, match="is no folder"):
        plan_runs([], tmp_path / "nowhere")


def test_the_data_root_of_the_environment(tmp_path, monkeypatch):
    run = Run("mfcc", "gtzan_genre", protocol="jukemir")
    [planned] = plan_runs([run]).runs
    assert planned.obstacles[0].reason.startswith("no data root is given")
    monkeypatch.setenv("AUDIATION_DATA_ROOT", str(folders(tmp_path / "data", "gtzan")))
    assert plan_runs([run]).possible == [run]


@pytest.fixture
def no_weights(monkeypatch):
    """The cache of the Hub has nothing; keeps what was asked for, and whether the Hub was."""
    asked = []

    def fetch(file, revision=None, local_files_only=False):
        asked.append((file.repo_id, local_files_only))
        raise WeightsError(f"cannot get {file.filename}")

    monkeypatch.setattr(table_plan, "fetch_official", fetch)
    monkeypatch.setattr(table_plan, "show_licence_once", lambda spec: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return asked


PROBED = [Run("mert-v1-95m", task, protocol="marble-constrained") for task in ("gtzan_genre", "mtt")]


def test_a_plan_asks_the_cache_only_and_each_model_once(tmp_path, no_weights):
    plan = plan_runs(PROBED, folders(tmp_path / "data", "gtzan", "mtt"))
    assert plan.possible == PROBED and plan.weights_to_fetch == ["mert-v1-95m"]
    assert no_weights == [("m-a-p/MERT-v1-95M", True)]
    assert plan.num_trainings() == 2 * 84
    fetched = fetch_weights(plan)
    assert no_weights[1:] == [("m-a-p/MERT-v1-95M", False)]  # once for both runs
    assert fetched.possible == []
    assert [(o.kind, o.reason) for o in fetched.runs_behind] == [
        ("weights not at hand", "cannot get pytorch_model.bin")
    ]


def test_offline_weights_are_missing(tmp_path, no_weights, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = plan_runs(PROBED, folders(tmp_path / "data", "gtzan", "mtt"))
    [obstacle] = plan.runs_behind
    assert "hf download m-a-p/MERT-v1-95M pytorch_model.bin config.json" in obstacle.reason
    assert plan.possible == [] and fetch_weights(plan) == plan
    drawn = [dataclasses.replace(run, weights="random") for run in PROBED]
    assert plan_runs(drawn, tmp_path / "data").possible == drawn


# Carrying out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory):
    """Data root with 6 clips per genre, 2 in each split; genre k sounds at its own pitch; a test file is text."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names = {split: [] for split in LISTS}
    for k, genre in enumerate(GENRES):
        folder = root / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        for split, numbers in LISTS.items():
            for n in numbers:
                names[split].append(f"{genre}/{genre}.{n:05}.wav")
                seconds = np.arange(16000 + 500 * n) / 22050
                tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (k / 12) * seconds)
                noise = 0.01 * rng.standard_normal(len(seconds))
                soundfile.write(folder / f"{genre}.{n:05}.wav", tone + noise, 22050)
    (root / "gtzan" / "genres" / "rock" / "rock.00005.wav").write_text("not audio")
    for split, lines in names.items():
        (root / "gtzan" / f"{split}_filtered.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def small_grid(monkeypatch):
    """Two of the 216 probes, which end soon: the command is looked at, not the score."""
    whole = PROTOCOLS["jukemir"]
    chosen = tuple(
        p for p in whole.probes if (p.learning_rate, p.batch_size, p.hidden_size) == (1e-3, 64, None)
    )
    small = dataclasses.replace(whole, probes=chosen[-2:], schedule=ProbeSchedule(patience=30))
    known = {name: PROTOCOLS[name] for name in PROTOCOLS} | {"jukemir": small}
    monkeypatch.setattr("audiation.evaluation.PROTOCOLS", known)


def test_reproduce_runs_what_the_data_allow_and_prints_the_differences(gtzan, tmp_path, screen, small_grid):
    out = tmp_path / "runs"
    complete = reproduce_table("jukemir/table3", screen, data_root=gtzan, out=out, backbones="chroma+mfcc")
    assert complete is False
    text = shown(screen)
    assert "2 of 8 runs can be tried here, 432 of 1,728 trainings" in text
    assert "data set not found: mtt (2 runs): looked for" in text and "mirg.city.ac.uk" in text
    assert "2 of 14 cells have a number" in text
    rows = [row for row in rows_of(out / "jukemir-table3.csv") if row["ours"]]
    assert [(row["system"], row["column"]) for row in rows] == [
        ("CHROMA", "gtzan_genre, accuracy"),
        ("MFCC", "gtzan_genre, accuracy"),
    ]
    [_, split_hash] = load_splits(TASKS["gtzan_genre"], gtzan)
    for row, published in zip(rows, (0.328, 0.448), strict=True):
        ours = float(row["ours"])
        result = Result.load(out / row["results"])
        assert ours == result.scores["accuracy"] and ours > 0.1  # tones are easily told apart
        assert float(row["published"]) == published
        assert float(row["difference"]) == pytest.approx(ours - published, abs=1e-12)
        inside = result.intervals["accuracy"].low <= published <= result.intervals["accuracy"].high
        assert row["published_inside_interval"] == ("yes" if inside else "no")
        assert (row["tracks"], row["official_tracks"], row["split_hash"]) == ("19", "20", split_hash)
        assert row["marks"].startswith("partial: 19 of 20 tracks")
        assert result.run["protocol"] == "jukemir" and len(result.trials) == 2
        assert f"{ours:.3f}" in text and f"{ours - published:+.3f}" in text
    assert f"19 of 20 test tracks, split {split_hash[:16]}" in text
    record = json.loads((out / "jukemir-table3.json").read_text(encoding="utf-8"))
    assert len(record["cells"]) == 14 and sum(cell["ours"] is not None for cell in record["cells"]) == 2
    [made] = record["made_with"]
    assert made["runs"] == 2 and made["code"]["sources_sha256"][:12] in text and "lock" in made["code"]
    assert made["hardware"]["cpu"] in text
    assert "AUDIATION_DATA_ROOT" not in os.environ


def test_the_exit_code_and_the_folder_of_an_earlier_call(gtzan, tmp_path, capsys, small_grid, monkeypatch):
    out = tmp_path / "runs"
    reproduce("jukemir/table3", data_root=gtzan, out=out, backbones="mfcc", tasks="gtzan_genre")
    assert "1 of 1 cells have a number." in capsys.readouterr().out

    def evaluate(run, **options):
        raise AssertionError("carried out again")

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    reproduce("jukemir/table3", data_root=gtzan, out=out, backbones="mfcc", tasks="gtzan_genre")
    assert "1 of 1 cells have a number." in capsys.readouterr().out
    # Results of another machine count where the data are not at hand.
    elsewhere = folders(tmp_path / "elsewhere", "mtt")
    reproduce("jukemir/table3", data_root=elsewhere, out=out, backbones="mfcc", tasks="gtzan_genre")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 run can be tried here, 216 of 216 trainings, 1 of them done before." in said
    assert "1 of 1 cells have a number." in said
    with pytest.raises(SystemExit) as stopped:
        reproduce("jukemir/table3", data_root=gtzan, out=out, backbones="mfcc", tasks="mtt")
    assert stopped.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "0 of 2 cells have a number." in said
    assert "no number: MFCC, mtt, roc_auc; MFCC, mtt, ap: data set not found: mtt" in said


def test_a_dry_run_writes_nothing(gtzan, tmp_path, screen):
    choices = {"data_root": gtzan, "out": tmp_path / "runs", "dry_run": True}
    assert (
        reproduce_table("jukemir/table3", screen, tasks="gtzan_genre", backbones="chroma", **choices) is True
    )
    assert reproduce_table("jukemir/table3", screen, **choices) is False
    assert reproduce_table("petl/table3", screen, **choices) is True
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit) as stopped:
        reproduce("jukemir/table3", **choices)
    assert stopped.value.code == 1


def published_result(run, scale=1.0, **more):
    """What table 6.2 or 6.3 prints for a run, as a result."""
    scores = {
        metric.name: cell.published.value * scale
        for name in ("thesis/table6.2", "thesis/table6.3")
        for cell in TABLES[name].cells()
        if isinstance(cell.answer, ByRun)
        and (cell.answer.backbone, cell.answer.run.task) == (run.backbone, run.task)
        for metric in TASKS[run.task].metrics
        if metric.printed_name == cell.published.metric
    }
    intervals = {name: Interval(score - 0.01, score + 0.02) for name, score in scores.items()}
    return Result(recorded(run), scores, intervals, 9, 10, f"hash of {run.task}",
                  (Failure("bad", "unreadable"),), **more)  # fmt: skip


def test_every_cell_of_a_row_and_its_average(tmp_path, screen, monkeypatch):
    """Results that are the printed numbers of a model have no differences, and its average is the printed one."""
    evaluated = []

    def evaluate(run, **options):
        assert options["data_root"] == root
        evaluated.append(run)
        return published_result(run)

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    names = (
        "mtg_instrument mtg_moodtheme mtg_genre mtg_top50 musdb18 mtt giantsteps_mtg_key giantsteps_key gtzan"
    )
    root = folders(tmp_path / "data", *names.split(), "emomusic", "nsynth", "VocalSet")
    choices = {"data_root": root, "out": tmp_path / "runs", "weights": "random", "backbones": "mert-v0"}
    assert reproduce_table("thesis/table6.3", screen, **choices) is True
    assert len(evaluated) == 14 and {run.weights for run in evaluated} == {"random"}
    rows = rows_of(tmp_path / "runs" / "thesis-table6.3.csv")
    assert len(rows) == 13
    for row in rows[:-1]:
        assert float(row["difference"]) == 0 and row["published_inside_interval"] == "yes"
        assert "partial: 9 of 10 tracks; random weights, a dry trial" in row["marks"]
    average = rows[-1]
    assert average["answered_by"] == "average" and average["published"] == "0.623"
    assert abs(float(average["difference"])) < 0.0006  # as far as rounding goes
    assert "other rules: vocalset_technique, vocalset_singer" in average["marks"]
    # The runs of table 6.2 are those that the average of table 6.3 has asked for.
    assert reproduce_table("thesis/table6.2", screen, **choices) is True
    assert len(evaluated) == 14
    assert len(rows_of(tmp_path / "runs" / "thesis-table6.2.csv")) == 11


def test_a_run_that_fails_leaves_the_others_and_the_average_says_so(tmp_path, screen, monkeypatch):
    def evaluate(run, **options):
        if run.task == "gtzan_genre":
            raise ValueError("no genre today")
        scores = {m.name: 0.5 for m in TASKS[run.task].metrics}
        return Result(recorded(run), scores, {name: None for name in scores}, 4, 4, "ab")

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    root = folders(tmp_path / "data", "gtzan", "mtt", "giantsteps_mtg_key", "giantsteps_key", "emomusic")
    choices = {"data_root": root, "out": tmp_path / "runs", "backbones": "chroma"}
    assert reproduce_table("jukemir/table3", screen, **choices) is False
    reasons = {row["column"]: row["reason"] for row in rows_of(tmp_path / "runs" / "jukemir-table3.csv")}
    assert reasons["gtzan_genre, accuracy"] == "no genre today"
    assert reasons["all, average"] == "1 of 4 runs have no result: gtzan_genre"
    assert reasons["mtt, ap"] == ""
    assert "5 of 7 cells have a number." in shown(screen)


def test_a_score_that_is_not_defined_is_a_reason(tmp_path, screen, monkeypatch):
    def evaluate(run, **options):
        record = recorded(run) | {"not_defined": {"ap": "one tag only"}}
        return Result(record, {"roc_auc": 0.9}, {"roc_auc": None}, 4, 4, "ab", departures=("layer 3 only",))

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    root = folders(tmp_path / "data", "mtt")
    choices = {"data_root": root, "out": tmp_path / "runs", "backbones": "mfcc", "tasks": "mtt"}
    assert reproduce_table("jukemir/table3", screen, **choices) is False
    first, second = rows_of(tmp_path / "runs" / "jukemir-table3.csv")
    assert (first["ours"], first["low"], first["marks"]) == (
        "0.9", "", "departs from its protocol: layer 3 only",
    )  # fmt: skip
    assert (second["ours"], second["reason"]) == ("", "one tag only")


def test_parameters_are_counted_exactly(tmp_path, screen):
    choices = {"out": tmp_path / "runs", "backbones": "mert-v1-95m"}
    assert reproduce_table("petl/table3", screen, **choices) is True
    rows = {row["method"]: row for row in rows_of(tmp_path / "runs" / "petl-table3.csv")}
    assert len(rows) == 8
    assert {row["marks"] for row in rows.values()} == {"agrees as printed"}
    for method, row in rows.items():
        assert method == "FT" or float(row["difference"]) == 0
    assert float(rows["LoRA"]["ours"]) == 165_888
    assert "7,385,088" in shown(screen)
    assert not (tmp_path / "runs" / "results").exists()


def test_a_figure_without_printed_numbers(screen):
    cells = TABLES["petl/figure3"].cells()
    assert {cell.answer.run.num_layers for cell in cells} == {3, 6, 9, 12}
    outcome = CellOutcome(cells[0], 0.25, interval=Interval(0.2, 0.3))
    assert outcome.difference is None and outcome.published_inside is None and outcome.is_asked
    screen.print(render_outcomes("figure", [outcome]))
    assert "0.250 0.200 to 0.300 not printed -" in shown(screen)


def test_a_published_number_outside_of_our_interval(screen):
    [cell] = select_cells(TABLES["jukemir/table3"].cells(), backbones=["mfcc"], tasks=["gtzan_genre"])
    at = {low: CellOutcome(cell, 0.5, interval=Interval(low, 0.6)).published_inside for low in (0.448, 0.449)}
    assert at == {0.448: True, 0.449: False}
    screen.print(render_outcomes("table", [CellOutcome(cell, 0.5, interval=Interval(0.449, 0.6))]))
    assert "0.448 +0.052 published outside" in shown(screen)


def test_results_of_several_machines_are_told_apart(tmp_path):
    run = Run("mfcc", "gtzan_genre", protocol="jukemir")
    code = {
        "version": "1",
        "sources_sha256": "ab" * 32,
        "torch": "2",
        "lock": "matches",
        "lock_sha256": "cd" * 32,
    }
    results = [
        Result(recorded(run), {"accuracy": 0.5}, {"accuracy": None}, 4, 4, "ab" * 32, code=code,
               hardware={"device": device, "cpu": "a processor", "cores": 2})
        for device in ("cpu", "a GPU", "cpu")
    ]  # fmt: skip
    assert [(m.hardware["device"], m.num_runs) for m in made_with(results)] == [("cpu", 2), ("a GPU", 1)]
    table = TABLES["jukemir/table3"]
    [cell] = select_cells(table.cells(), backbones=["mfcc"], tasks=["gtzan_genre"])
    plan = plan_runs([run], folders(tmp_path / "data", "gtzan"))
    results[1].save(tmp_path / "results" / f"{run.task}.{run.backbone}.{run.key}.json")
    done = carry_out_table(table, [cell], plan, tmp_path, device="cpu", console=Console(file=io.StringIO()))
    assert done.is_complete and done.outcomes[0].ours == 0.5
    lines = notes_on(done)
    assert (
        "1 run on a GPU, 2 cores of a processor; audiation 1, sources abababababab, torch 2, lock cdcdcdcdcdcdcdcd."
        in lines
    )


# The command -------------------------------------------------------------------------------------------------


def test_an_unknown_table_suggests_the_nearest(screen):
    with pytest.raises(UnknownNameError, match="Did you mean 'jukemir/table3'"):
        reproduce_table("jukemir/tabel3", screen)


def test_the_list_of_tables(screen, capsys):
    list_tables(screen)
    text = shown(screen)
    for name in TABLES:
        assert f"{name} " in text
    in_zoo = sum(cell.answer.backbone in BACKBONES for cell in TABLES["jukemir/table3"].cells())
    assert f"six representations on four tasks │ 63 │ {in_zoo} │ {42 - in_zoo} │ 0 │ 21 │" in text
    reproduce()
    assert "jukemir/table3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--tasks, --dry-run need a table"):
        reproduce(tasks="mtt", dry_run=True)
