"""Backbone + objective + corpus -> a pre-trained backbone, as a folder that `load_backbone` reads.

`Pretraining` is the root module: what several processes train, what a checkpoint holds. Its forward gives a `Loss`.

    run.json, checkpoint.pt, log.jsonl   of `training.fit`
    backbone/                            model.safetensors and config.json, under published names where there are any
    objective.safetensors                heads, codebooks, mask vector and teacher, to go on from
    pretraining.json                     the run, the corpus, what it cost
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.architecture import (
    build_architecture,
    parse_architecture,
)
from audiation.backbones.hubert_layout import HubertBackbone
from audiation.backbones.transformer import TransformerBlock
from audiation.cache import write_text
from audiation.corpus import Corpus, CropBatches
from audiation.distributed import this_rank
from audiation.folder_lock import locked
from audiation.loading import load_backbone, published_checkpoint
from audiation.methods import inject
from audiation.objectives import Objective, PretrainBatch, parse_objective
from audiation.objectives.best_rq import BestRqObjective
from audiation.pretrain_run import PretrainRun
from audiation.pretrain_throughput import note_machine
from audiation.pretrained_files import BACKBONE, go_on, published_form, save_pretrained
from audiation.probe_hook import ProbeHook
from audiation.provenance import current_hardware
from audiation.training import Loss, TrainingProgress, fit
from audiation.training_checkpoints import has_checkpoint
from audiation.weights import tensors_hash

PREPARE_CROPS = 256  # that an objective may be fitted to before the first step
RECORD = "pretraining.json"


class Pretraining(nn.Module):
    """A backbone and the objective it is trained with.

    What requires gradients is trained; a teacher inside the objective does not. is_prepared: the objective goes on from
    another run, so what it is fitted to is there (`Objective.prepare`).
    """

    def __init__(self, backbone: Backbone, objective: Objective, is_prepared: bool = False) -> None:
        super().__init__()
        self.backbone, self.objective, self.is_prepared = backbone, objective, is_prepared

    def forward(self, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        return self.objective(self.backbone, batch, generator)

    def after_step(self, step: int) -> None:
        """After optimiser step `step` (the first is 0): what no gradient moves, like the average of a teacher."""
        self.objective.after_step(self.backbone, step)


@dataclass(frozen=True)
class PretrainReport:
    """How a run ended. audio_hours: of crops that were heard, over all epochs. seconds: of training. not_heard:
    recordings that are shorter than a crop."""

    run_dir: Path
    backbone_dir: Path
    steps: int
    audio_hours: float
    seconds: float
    not_heard: int = 0


def pretrain(
    run: PretrainRun,
    corpus_dir: str | Path,
    run_dir: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    probe: str | None = None,
    probe_every_steps: int = 1000,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
) -> PretrainReport:
    """Train, and write the backbone. Can be killed at any moment and called again (`training.fit`).

    Several processes: inside `with process_group(device) as device:`, as for `fit`. The first one holds the folder
    (`folder_lock.locked`).

    Args:
        corpus_dir: what `audiation corpus build` made, at the rate of the backbone.
        run_dir: folder of this run alone.
        probe: task of the benchmark that is probed every `probe_every_steps` (`probe_hook.ProbeHook`), with its
            `data_root` and `metadata_root`; it changes nothing in the training.

    Raises:
        ValueError: a corpus of another name or rate, without crops long enough, or without the stored targets that the
            objective asks for; choices that do not go together.
        FolderLockedError: another process trains in the folder.
        DivergedError, RunFolderError: as `fit`.
    """
    run_dir, corpus, target = Path(run_dir), Corpus(corpus_dir), torch.device(device)
    model = assemble(run)
    check_corpus(run, model.backbone, corpus)
    model.objective.check_crops(run.crop_seconds, model.backbone.sample_rate_hz)
    batches = CropBatches(
        corpus,
        run.crop_seconds,
        run.train.micro_batch_size or run.train.batch_size,
        run.train.num_micro_batches,
        run.train.seed,
        targets=parse_objective(run.objective).targets,
    )
    if probe is not None and run.train.parallel == "sharded" and this_rank().count > 1:
        raise ValueError(
            "a sharded run on several processes cannot be probed. Probe its backbone when it has ended."
        )
    hook: ProbeHook | None = None
    if probe is not None and this_rank().is_first:
        hook = ProbeHook(
            model.backbone,
            run_dir,
            probe,
            probe_every_steps,
            data_root=data_root,
            metadata_root=metadata_root,
        )
        hook.prepare()

    def after(standing: TrainingProgress) -> None:
        if hook is not None:
            hook(standing.step)
        if progress is not None:
            progress(standing)

    with locked(run_dir, "pre-training") if this_rank().is_first else nullcontext():
        return _train(model, run, batches, run_dir, target, after)


def _train(
    model: Pretraining,
    run: PretrainRun,
    batches: CropBatches,
    run_dir: Path,
    device: torch.device,
    progress: Callable[[TrainingProgress], None],
) -> PretrainReport:
    """From the first step, or the last checkpoint, to the files of the backbone."""
    corpus = batches.corpus
    # The other ranks get what the first one has, and a checkpoint has it too.
    if this_rank().is_first and not model.is_prepared and not has_checkpoint(run_dir):
        model.objective.prepare(model.backbone, _crops(batches))

    def note_beginning() -> None:
        note_machine(
            run_dir,
            model.backbone,
            crop_seconds=run.crop_seconds,
            batch_size=run.train.batch_size,
            precision=run.train.precision,
            device=str(device),
            num_processes=this_rank().count,
        )

    report = fit(
        model,
        lambda module, batch, generator: module(batch.to(generator.device), generator),
        batches,
        run.train,
        run_dir,
        device=device,
        progress=progress,
        identity={
            # `fit` compares the training choices itself, as far as they decide anything.
            "run": json.dumps({k: v for k, v in asdict(run).items() if k != "train"}, sort_keys=True),
            "corpus": f"{corpus.name}, {corpus.hours:.2f} h, {corpus.hash}",
            "weights": model.backbone.weights_hash,
            "teachers": _teachers(corpus, parse_objective(run.objective).targets),
        },
        begun=note_beginning,
    )
    hours = report.last_step * run.train.batch_size * run.crop_seconds / 3600
    steps, seconds = report.last_step, report.train_seconds
    ended = PretrainReport(run_dir, run_dir / BACKBONE, steps, hours, seconds, batches.num_left_out)
    if this_rank().is_first:
        weights_hash = save_pretrained(model.backbone, model.objective, run, run_dir)
        record = {
            "run": json.loads(run.to_json()),
            "corpus": {"name": corpus.name, "hours": round(corpus.hours, 3), "hash": corpus.hash},
            "not_heard": {"recordings": batches.num_left_out, "hours": round(batches.left_out_hours, 3)},
            "steps": ended.steps,
            "audio_hours": round(hours, 3),
            "train_seconds": round(report.train_seconds, 1),
            "hardware": current_hardware(str(device)),
            "weights_hash": weights_hash,
        }
        write_text(run_dir / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return ended


def assemble(run: PretrainRun) -> Pretraining:
    """Backbone and objective of a run before its first step, in training mode; what is trained requires gradients.

    Raises:
        UnknownNameError, ValueError, WeightsError: choices that are not there or do not go together.
    """
    generator = torch.Generator().manual_seed(run.train.seed)
    backbone = _backbone(run, generator)
    objective = parse_objective(run.objective).build(backbone, generator)
    if isinstance(objective, BestRqObjective) and objective.settings.codes == "checkpoint":
        if run.weights == "random":
            raise ValueError(
                "best_rq:codes=checkpoint goes on with the codes of a checkpoint, and the weights are random"
            )
        objective.take_over(published_checkpoint(run.backbone, run.weights))
    is_prepared = run.weights != "random" and go_on(objective, run)
    published_form(backbone, objective, run)  # what could not be written in the end is refused now
    if run.method != "finetune":
        inject(backbone, run.method, generator)
    return Pretraining(backbone, objective, is_prepared).train()


def check_corpus(run: PretrainRun, backbone: Backbone, corpus: Corpus) -> None:
    """Raises ValueError where the corpus is not what the run and its backbone need."""
    if run.corpus and run.corpus != corpus.name:
        raise ValueError(f"the run is about corpus '{run.corpus}', and this is '{corpus.name}'")
    if corpus.sample_rate_hz != backbone.sample_rate_hz:
        raise ValueError(
            f"{run.backbone} hears {backbone.sample_rate_hz} Hz, and corpus '{corpus.name}' has "
            f"{corpus.sample_rate_hz} Hz. Build it with `audiation corpus build ... --rate {backbone.sample_rate_hz}`."
        )
    if run.crop_seconds * backbone.sample_rate_hz < backbone.min_samples:
        raise ValueError(
            f"crops of {run.crop_seconds:g} s are shorter than what {run.backbone} hears at least"
        )


def _backbone(run: PretrainRun, generator: torch.Generator) -> Backbone:
    if run.backbone not in BACKBONES:
        if run.weights != "random":
            raise ValueError(
                f"'{run.backbone}' is an architecture, of which there are no official weights. Take weights='random', "
                "or name a backbone."
            )
        built = build_architecture(parse_architecture(run.backbone), generator)
        built.weights_hash = tensors_hash(built.state_dict())
        built.weights_source = f"random:seed={run.train.seed}"
        return built
    if BACKBONES[run.backbone].from_published is None:
        raise ValueError(
            f"'{run.backbone}' is computed by a formula, so there is nothing to train. Take another backbone."
        )
    if run.weights == "random":
        backbone = load_backbone(run.backbone, "random", seed=run.train.seed)
    else:
        backbone = load_backbone(run.backbone, run.weights)
    if isinstance(backbone, HubertBackbone):
        # As all of them were pre-trained (MERT spec, section 3.6); published configs have 0.1, for fine-tuning.
        for block in backbone.encoder.blocks:
            assert isinstance(block, TransformerBlock)
            block.activation_dropout.p = 0.0
    return backbone


def _teachers(corpus: Corpus, names: Sequence[str]) -> str:
    """What the stored targets were computed with, as `audiation corpus targets` noted it."""
    noted = {name: corpus.open_targets(name).record or "not noted" for name in names}
    return json.dumps(noted, sort_keys=True)


def _crops(batches: CropBatches) -> Iterator[Tensor]:
    """The first crops of the corpus, which an objective may be fitted to."""
    given = 0
    for step in itertools.count():
        for index in range(batches.num_micro_batches):
            if given >= PREPARE_CROPS:
                return
            waveform = batches.micro_batch(step, index).waveform[: PREPARE_CROPS - given]
            given += len(waveform)
            yield waveform
