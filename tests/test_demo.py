"""The demo: what it says with results at hand, and the pattern it has to find."""

import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from audiation import demo
from audiation.annotations import Key
from audiation.bootstrap import Interval
from audiation.datasets.scores import make_scores
from audiation.evaluation import evaluate
from audiation.results import Prediction, Result, Trial
from audiation.run import Run
from audiation.tasks import TASKS


def made_up(run, *_):
    """A result as an evaluation would give it; LoRA finds one key more than the probe."""
    names = [m.name for m in TASKS[run.task].metrics]
    wrong = 2 if run.method == "probe" else 1
    return Result(
        run=dataclasses.asdict(run)
        | {"metrics": [m.versioned_name for m in TASKS[run.task].metrics], "protocol_version": 1, "layer": 0},
        scores=dict.fromkeys(names, 0.75),
        intervals=dict.fromkeys(names, Interval(0.5, 0.9)),
        num_test_tracks=24,
        num_official_test_tracks=24,
        split_hash="0" * 64,
        predictions=tuple(
            Prediction(
                str(i), str(Key.from_index(i)), str(Key.from_index((i + 1) % 24 if i < wrong else i)), 0.9
            )
            for i in range(24)
        )
        if run.task == "scores-key"
        else (),
        trials=(Trial({"layer": "0", "learning_rate": 0.001}, 0.8, 8, 16),) * 36,
        curve=((0, 0.1), (8, 0.8)),
    )


@pytest.mark.parametrize("full_grid", [False, True])
def test_the_demo_shows_its_tables_and_writes_the_site(monkeypatch, tmp_path, full_grid):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(
        demo, "make_scores", lambda *_, **__: SimpleNamespace(counts={"train": 1}, tracks=[0])
    )
    monkeypatch.setattr(demo, "_new_result", lambda run, *_: asked.append(run) or made_up(run))
    monkeypatch.setattr(demo, "clip_maps", lambda run, data_root: [])
    out = io.StringIO()
    demo.run_demo(full_grid=full_grid, console=Console(file=out, width=120))
    shown = out.getvalue()
    grid = [r for r in asked if r.protocol == "jukemir"]
    assert [(r.backbone, r.task) for r in grid] == [
        ("chroma", "scores-key"), ("mfcc", "scores-key"), ("chroma", "scores-timbre"), ("mfcc", "scores-timbre")
    ]  # fmt: skip
    assert {r.train for r in grid} == {"" if full_grid else "batch_size=64,weight_decay=0"}
    assert "LoRA minus probe" in shown and "the best of 36" in shown
    site = Path(re.search(r"Site: (\S+)", shown)[1])
    assert site.name == "index.html" and "chroma" in site.read_text(encoding="utf-8")


@pytest.mark.slow
def test_chroma_hears_keys_and_not_timbre_and_mfcc_the_reverse(tmp_path, monkeypatch):
    """The blind spots of jukemir's table 3, on a part of the grid that is soon done."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path))
    make_scores(tmp_path / "datasets" / "scores")
    train = "batch_size=64,weight_decay=0,learning_rate=0.001,standardise=true,patience=64"
    score = {
        (task, backbone): next(
            iter(evaluate(Run(backbone, task, protocol="jukemir", train=train), workers=2).scores.values())
        )
        for task in demo.QUESTIONS
        for backbone in demo.BACKBONES
    }
    assert score["scores-key", "chroma"] > 2 * score["scores-key", "mfcc"]
    assert score["scores-timbre", "mfcc"] > 2 * score["scores-timbre", "chroma"]
