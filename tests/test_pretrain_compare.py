"""Runs drawn over one another, from logs whose curves are known."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from audiation import pretrain_compare
from audiation.charts.pretrain_curves import CurvePanel
from audiation.pretrain_compare import FIGURE_A1, compare_runs
from audiation.pretrain_view_commands import compare

PNG_HEADER = b"\x89PNG\r\n\x1a\n"


def make_run(
    folder: Path, num_steps: int, planned: int = 400, loss_scale: bool = True, audio: float | None = 36.0
) -> Path:
    """Loss 1000 / step, eight codebooks that are 0.1 apart, a spike in the gradient at step 100."""
    folder.mkdir()
    lines = []
    for step in range(1, num_steps + 1):
        parts = {f"cross_entropy_{i}": 1000 / step + 0.1 * i for i in range(8)} | {
            "cqt_mse": 1 / step,
            "odd": 1.0,
        }
        line = {"step": step, "loss": 1000 / step, "grad_norm": 50.0 if step == 100 else 1.0, "seconds": 1.0}
        lines.append(line | ({"loss_scale": 128.0} if loss_scale else {}) | {"parts": parts})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "run.json").write_text(
        json.dumps({"config": {"steps": planned}, "identity": {"objective": "mert"}})
    )
    if audio is not None:
        machine = {
            "from_step": 1, "device": "x", "threads": 1, "precision": "fp32", "num_processes": 1, "peak_tflops": 1.0,
            "peak_source": "measured", "gflop_per_second": None, "audio_seconds_per_step": audio,
        }  # fmt: skip
        (folder / "machines.jsonl").write_text(json.dumps(machine) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        make_run(tmp_path / "crashed", 250), make_run(tmp_path / "whole", 400),
        make_run(tmp_path / "bf16", 400, loss_scale=False),
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, CurvePanel]]:
    """Panels by title, of every figure that is drawn."""
    seen: list[dict[str, CurvePanel]] = []
    save = pretrain_compare.save_pretrain_curves

    def watch(panels, names, path, **options):
        seen.append({panel.title: panel for panel in panels})
        save(panels, names, path, **options)

    monkeypatch.setattr(pretrain_compare, "save_pretrain_curves", watch)
    return seen


def test_three_runs_in_one_figure(
    runs: list[Path], tmp_path: Path, drawn: list[dict[str, CurvePanel]]
) -> None:
    found = compare_runs(runs, tmp_path / "out" / "all.svg")
    assert found.panels == (
        "loss",
        "cross-entropy, codebook 0 to 7",
        "CQT loss",
        "gradient norm",
        "loss scale",
    )
    assert found.not_drawn == ("seconds", "audio_per_second", "odd")
    assert found.notes[0].startswith("Points are means over 2 steps")
    assert found.notes[1:] == ("No loss scale: bf16.",)
    assert ElementTree.parse(found.path).getroot().tag.endswith("svg")
    panels = drawn[0]
    assert [line.name for line in panels["loss"].lines] == ["crashed", "whole", "bf16"]
    assert [line.ended_early for line in panels["loss"].lines] == [True, False, False]
    assert [line.name for line in panels["loss scale"].lines] == ["crashed", "whole"]
    assert (panels["gradient norm"].logarithmic, panels["loss"].logarithmic) == (True, False)


def test_points_are_means_and_the_shade_shows_the_spike(
    runs: list[Path], tmp_path: Path, drawn: list[dict[str, CurvePanel]]
) -> None:
    compare_runs(runs[1:2], tmp_path / "a.png", smooth_steps=100)
    (loss,) = drawn[0]["loss"].lines
    values = (1000 / np.arange(1, 401)).reshape(4, 100)
    assert loss.x.tolist() == [50.5, 150.5, 250.5, 350.5]
    assert loss.y == pytest.approx(values.mean(1))
    assert loss.low == pytest.approx(values.min(1)) and loss.high == pytest.approx(values.max(1))
    (norm,) = drawn[0]["gradient norm"].lines
    assert norm.high.tolist() == [50, 1, 1, 1] and norm.y.tolist() == pytest.approx([1.49, 1, 1, 1])
    (codebooks,) = drawn[0]["cross-entropy, codebook 0 to 7"].lines
    assert codebooks.y == pytest.approx(values.mean(1) + 0.35)
    assert codebooks.high == pytest.approx(values.max(1) + 0.7)


def test_the_panels_of_figure_a1_by_hours_of_audio(
    runs: list[Path], tmp_path: Path, drawn: list[dict[str, CurvePanel]], capsys: pytest.CaptureFixture[str]
) -> None:
    compare(tuple(runs), tmp_path / "a1.png", axis="hours", panels=FIGURE_A1, smooth_steps=1)
    assert list(drawn[0]) == ["gradient norm", "loss scale", "cross-entropy, codebook 0", "CQT loss"]
    assert drawn[0]["CQT loss"].lines[0].x[-1] == pytest.approx(2.5)  # 250 steps of 36 s
    assert (tmp_path / "a1.png").read_bytes().startswith(PNG_HEADER)
    said = capsys.readouterr().out
    assert (
        "nothing is smoothed" in said
        and "Not drawn, ask for them with --panels: loss, cross_entropy_each," in said
    )
    assert said.endswith(f"Written: {tmp_path / 'a1.png'}\n")


def test_the_same_logs_give_the_same_file(runs: list[Path], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        compare_runs(runs, tmp_path / name, quantities=("loss",))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_gaps_and_zeros(tmp_path: Path, drawn: list[dict[str, CurvePanel]]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [(1, 2.0, 0.0), (2, math.nan, 1.0), (3, math.inf, 1.0), (4, 4.0, 1.0)]
    lines = [{"step": step, "loss": loss, "grad_norm": norm} for step, loss, norm in rows]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    compare_runs([folder], tmp_path / "a.svg", smooth_steps=1)
    (line,) = drawn[0]["loss"].lines
    assert line.y == pytest.approx([2, math.nan, math.nan, 4], nan_ok=True)
    assert not line.ended_early  # nobody noted how long it was to be
    assert not drawn[0]["gradient norm"].logarithmic


def test_runs_of_one_name_and_of_two_objectives(tmp_path: Path, drawn: list[dict[str, CurvePanel]]) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
        make_run(tmp_path / parent / "run", 5)
    (tmp_path / "y" / "run" / "run.json").write_text(
        json.dumps({"config": {"steps": 5}, "identity": {"objective": "best_rq"}})
    )
    found = compare_runs([tmp_path / "x" / "run", tmp_path / "y" / "run"], tmp_path / "a.svg")
    assert [line.name for line in drawn[0]["loss"].lines] == ["run", "run (2)"]
    assert found.notes[-1] == "The objectives differ, so their losses cannot be compared."


def test_what_cannot_be_drawn_is_refused(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.svg"
    with pytest.raises(ValueError, match="name at least one run"):
        compare_runs([], out)
    with pytest.raises(ValueError, match="is named twice"):
        compare_runs([runs[0], runs[0]], out)
    with pytest.raises(ValueError, match="no run has written 'nothing'"):
        compare_runs(runs, out, quantities=("nothing",))
    with pytest.raises(ValueError, match=r"written as \.png or \.svg"):
        compare_runs(runs, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="smooth_steps must be at least 1"):
        compare_runs(runs, out, smooth_steps=0)
    with pytest.raises(ValueError, match="timeless has not noted"):
        compare_runs([make_run(tmp_path / "timeless", 3, audio=None)], out, axis="hours")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no step in its log yet"):
        compare_runs([empty], out)
    assert not out.exists()


def test_streams_have_a_panel_beside_their_sum(tmp_path: Path, drawn: list[dict[str, CurvePanel]]) -> None:
    folder = tmp_path / "kmeans"
    folder.mkdir()
    parts = {"cross_entropy": 5.0, "cross_entropy_logmel": 3.0, "cross_entropy_chroma": 2.0}
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "loss": 5.0, "parts": parts}) + "\n")
    compare_runs([folder], tmp_path / "a.svg")
    assert list(drawn[0]) == ["loss", "cross-entropy", "cross-entropy, chroma, logmel"]
    (line,) = drawn[0]["cross-entropy, chroma, logmel"].lines
    assert (line.y.tolist(), line.low.tolist(), line.high.tolist()) == ([2.5], [2.0], [3.0])
    (line,) = drawn[0]["cross-entropy"].lines
    assert line.y.tolist() == [5.0]
