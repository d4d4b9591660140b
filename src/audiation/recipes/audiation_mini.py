"""`audiation-mini`: music, renderings, corpus, pre-training, weights, and what they are worth; can be stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save
from torch import Tensor

from audiation.backbones import BACKBONES
from audiation.backbones.audiation_mini import FILE, NAME, build
from audiation.backbones.musicfm import Statistics
from audiation.cache import cache_dir, whole_file, write_text
from audiation.console import new_progress
from audiation.corpus import Corpus, CropBatches
from audiation.corpus_build import BuildSettings, build_corpus
from audiation.corpus_sources import find_sources
from audiation.mini_corpus import fetch_packages, render_scores
from audiation.pretrain_run import PretrainRun
from audiation.pretraining import pretrain
from audiation.pretraining_config import PretrainConfig
from audiation.ranking import Comparison, compare, compare_means
from audiation.recipes.base import RECIPES, carry_out_runs
from audiation.results import Result
from audiation.run import Run
from audiation.training import TrainingProgress
from audiation.weights import OWN_MARK

CORPUS = "audiation-mini"
CROP_SECONDS = 6.0
# (task, hand-crafted frames or vectors that it is compared with, protocol, what departs from it)
FRAMES = "steps=330,learning_rate=1e-3,validate_every_steps=110"
QUESTIONS = (
    ("scores-key", "chroma-mfcc", "marble-constrained", ""),
    ("scores-timbre", "chroma-mfcc", "marble-constrained", ""),
    ("scores-tempo", "chroma-mfcc", "marble-constrained", ""),
    ("scores-beats", "chroma-logmel-frames", "musicfm", FRAMES),
    ("scores-chords", "chroma-logmel-frames", "musicfm", FRAMES),
)


def pretrain_run(steps: int) -> PretrainRun:
    """The run whose weights come with this package."""
    train = PretrainConfig(
        steps=steps,
        batch_size=16,
        learning_rate=1e-3,
        schedule="linear",
        warmup_steps=min(300, steps // 4),
        weight_decay=0.01,
        clip_norm=1.0,
        precision="bf16",
        checkpoint_every_seconds=120.0,
    )
    objective = "best_rq:codebook_size=1024,num_codebooks=8,quantiser=mel-rvq,standardise=bands"
    return PretrainRun(NAME, objective, CORPUS, CROP_SECONDS, train)


@RECIPES.register("audiation_mini")
@dataclass(frozen=True)
class AudiationMini:
    """The backbone that comes with this package: from music to weights, beside a random twin and hand-crafted features.

    steps: of pre-training.
    corpus: a corpus that is there already; "": music of Debian packages is fetched, scores are rendered.
    workers: processes that render and decode.
    """

    steps: int = 2600
    corpus: str = ""
    workers: int = 2

    def carry_out(self, out: Path, device: str, console: Console) -> None:
        out.mkdir(parents=True, exist_ok=True)
        corpus = Path(self.corpus) if self.corpus else self._corpus(out, console)
        run = pretrain_run(self.steps)
        with new_progress(console) as bar:
            row = bar.add_task(f"{NAME}, {run.objective}", total=self.steps, detail="")

            def show(p: TrainingProgress) -> None:
                detail = f"step {p.step:,} of {p.steps:,}, loss {p.loss:.3f}, {p.seconds_left:,.0f} s left"
                bar.update(row, completed=p.step, detail=detail)

            report = pretrain(run, corpus, out / "run", device=device, progress=show)
        write_shipped(report.backbone_dir / "model.safetensors", out / FILE)
        console.print(f"Weights: {out / FILE} ({(out / FILE).stat().st_size / 1e6:.1f} MB)", highlight=False)
        judged = judge(out / FILE, out / "results", device, console)
        write_text(out / "judged.json", json.dumps(judged, indent=1) + "\n")

    def _corpus(self, out: Path, console: Console) -> Path:
        with new_progress(console) as bar:
            row = bar.add_task("music of Debian packages", total=None, detail="")
            failures = fetch_packages(out / "music")
            for failure in failures:
                console.print(f"  {failure.package}: {failure.reason}", markup=False, style="red")
            bar.update(row, description="renderings of scores")
            render_scores(out / "rendered", workers=self.workers)
            bar.update(row, description="corpus")
            sources = find_sources([out / "music" / "music", out / "rendered" / "clips"])
            made: Corpus = build_corpus(
                sources, out / "corpus", CORPUS, BuildSettings(24_000), workers=self.workers
            )
            bar.update(row, total=1, completed=1, detail=f"{made.hours:.1f} h")
        return out / "corpus"


def mel_statistics(corpus: Corpus, num_crops: int = 80) -> Statistics:
    """Mean and deviation in dB of random crops of a corpus: where `backbones.audiation_mini.STATISTICS` are from.

    Raises:
        ValueError: no recording is as long as a crop.
    """
    batches = CropBatches(corpus, CROP_SECONDS, 1, num_crops, seed=0)
    mel = build().stem.mel
    spectra = [mel(batches.micro_batch(0, i).waveform).double().flatten() for i in range(num_crops)]
    std_db, mean_db = torch.std_mean(torch.cat(spectra))
    return Statistics(mean_db.item(), std_db.item())


def write_shipped(source: Path, path: Path) -> None:
    """Weights as they come with this package: matrices in half precision, all else in float32."""
    tensors = load_file(source)
    small: dict[str, Tensor] = {
        n: t.half() if t.ndim > 1 and t.is_floating_point() else t for n, t in tensors.items()
    }
    if bad := [name for name, tensor in small.items() if not torch.isfinite(tensor.float()).all()]:
        raise ValueError(f"{bad[0]} does not fit into half precision")
    with whole_file(path) as stream:
        stream.write(save(small, metadata=dict([OWN_MARK])))


def judge(weights: Path, out: Path, device: str, console: Console) -> list[dict[str, object]]:
    """Score trained weights, random ones of the same model, and hand-crafted features on `scores`; print the table."""
    data_root = cache_dir("datasets")
    systems = {"trained": str(weights), "random": "random"}
    runs: dict[tuple[str, str], Run] = {}
    for task, handcrafted, protocol, train in QUESTIONS:
        layer = BACKBONES[NAME].recommended_layer if protocol == "musicfm" else None  # the other searches all
        for system, given in systems.items():
            runs[task, system] = Run(NAME, task, "probe", protocol, weights=given, layer=layer, train=train)
        runs[task, "hand-crafted"] = Run(handcrafted, task, "probe", protocol, train=train)
    carried = carry_out_runs(list(runs.values()), out, device, console, data_root=data_root)
    table = Table(title=f"{NAME} on `scores`", title_justify="left")
    for column in (
        "task",
        "metric",
        "trained",
        "random twin",
        "hand-crafted",
        "minus twin",
        "minus hand-crafted",
    ):
        table.add_column(column)
    rows: list[dict[str, object]] = []
    against: dict[str, list[tuple[Result, Result]]] = {"random": [], "hand-crafted": []}
    for task, *_ in QUESTIONS:
        results = {system: carried.results.get(runs[task, system]) for system in ("trained", *against)}
        if missing := [system for system, result in results.items() if result is None]:
            console.print(f"{task} is left out of the table and the mean: no result of {', '.join(missing)}")
            continue
        trained = results["trained"]
        assert trained is not None
        compared = {}
        for system, pairs in against.items():
            other = results[system]
            assert other is not None
            pairs.append((trained, other))
            compared[system] = compare(trained, other)
        rows.append(_row(task, compared))
    if rows:
        rows.append(_row("mean", {system: compare_means(pairs) for system, pairs in against.items()}))
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("task", "metric", *COLUMNS)))
    console.print(table)
    return rows


COLUMNS = ("trained", "random", "hand-crafted", "minus random", "minus hand-crafted")


def _row(task: str, compared: dict[str, Comparison]) -> dict[str, object]:
    twin, handcrafted = compared["random"], compared["hand-crafted"]
    return {
        "task": task,
        "metric": twin.metric,
        "trained": f"{twin.score_a:.3f}",
        "random": f"{twin.score_b:.3f}",
        "hand-crafted": f"{handcrafted.score_b:.3f}",
        "minus random": _difference(twin),
        "minus hand-crafted": _difference(handcrafted),
    }


def _difference(comparison: Comparison) -> str:
    if comparison.interval is None:
        return f"{comparison.difference:+.3f}"
    low, high = comparison.interval.low, comparison.interval.high
    return f"{comparison.difference:+.3f} [{low:+.3f}, {high:+.3f}] {comparison.verdict}"
