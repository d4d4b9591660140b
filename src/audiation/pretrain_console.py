"""What `audiation pretrain run` shows while it trains."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from audiation.choices import parse_choices
from audiation.console import new_progress
from audiation.corpus import Corpus
from audiation.distributed import process_group, this_rank
from audiation.pretrain_run import PretrainRun
from audiation.pretraining import RECORD, PretrainReport, pretrain
from audiation.pretraining_config import PretrainConfig
from audiation.training import TrainingProgress

STEPS = 10_000  # where none are asked for


def given_run(
    again: Path | None,
    backbone: str,
    objective: str,
    crop_seconds: float,
    train: str,
    weights: str,
    method: str,
) -> PretrainRun:
    """The run that the command line describes.

    Raises:
        ValueError: choices that there are not, or a file that describes no run.
    """
    if again is not None:
        try:
            return PretrainRun.from_json(json.dumps(json.loads(again.read_text(encoding="utf-8"))["run"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot read a run from {again}: {error}. Give the {RECORD} of a run."
            ) from error
    choices = {"steps": STEPS} | parse_choices(PretrainConfig, train, "train", complete=False)
    return PretrainRun(
        backbone,
        objective,
        "",
        crop_seconds,
        PretrainConfig(**choices),
        None if weights == "official" else weights,
        method,
    )


def check_same_corpus(again: Path, corpus: str) -> None:
    """ValueError where a corpus is not the one that the run of this record heard: it could not be repeated."""
    try:
        heard = dict(json.loads(again.read_text(encoding="utf-8"))["corpus"])
        name, held = str(heard["name"]), str(heard["hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{again} does not say which corpus its run heard ({type(error).__name__}: {error}). Give the {RECORD} of "
            "a run."
        ) from error
    if (given := Corpus(corpus)).hash != held:
        raise ValueError(
            f"the run of {again} heard corpus '{name}' with the hash {held}, and {corpus} is '{given.name}' with the "
            f"hash {given.hash}. Give that corpus, or name the choices of the run instead of --again."
        )


def pretrain_with_progress(
    run: PretrainRun,
    corpus: str,
    out: Path,
    *,
    device: str,
    probe: str,
    probe_every_steps: int,
    data_root: Path | None,
    metadata_root: Path | None,
) -> PretrainReport:
    """Train, and say how it goes. Under torchrun the first process speaks."""
    with process_group(device) as own_device:
        console = Console(quiet=not this_rank().is_first)
        with new_progress(console) as bar:
            row = bar.add_task(f"{run.backbone}, {run.objective}", total=run.train.steps, detail="")

            def show(p: TrainingProgress) -> None:
                detail = f"step {p.step:,} of {p.steps:,}, loss {p.loss:.4f}, {p.seconds_left:,.0f} s left"
                bar.update(row, completed=p.step, detail=detail)

            report = pretrain(
                run, corpus, out, device=own_device, progress=show, probe=probe or None,
                probe_every_steps=probe_every_steps, data_root=data_root, metadata_root=metadata_root,
            )  # fmt: skip
        console.print(
            f"{report.steps:,} steps on {report.audio_hours:,.1f} hours of audio in {report.seconds:,.0f} s.\n"
            f"Shorter than a crop and not heard: {report.not_heard:,} recordings.\n"
            f"Backbone: {report.backbone_dir}\n"
            f"Look at it: audiation pretrain show {out}",
            highlight=False,
            soft_wrap=True,
        )
    return report
