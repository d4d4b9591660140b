"""The command line. Heavy imports happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from audiation import pretrain_commands, pretrain_view_commands
from audiation.check_backbone_commands import check_backbone
from audiation.compare_commands import compare_features
from audiation.corpus_commands import corpus
from audiation.leaderboard_commands import leaderboard
from audiation.profile_commands import profile_layers
from audiation.reproduce_commands import reproduce
from audiation.tag_commands import tag

DEFAULT_BACKBONE = "audiation-mini"  # a name only: its module loads torch
Kind = Literal["backbones", "tasks", "datasets", "methods", "protocols", "objectives"]


def list_(kind: tyro.conf.Positional[Kind], /, commercial: bool = False) -> None:
    """List what there is of one kind, one per row.

    Args:
        kind: backbones, tasks, datasets, methods, protocols or objectives.
        commercial: of backbones, only those whose weights may be used commercially.
    """
    from audiation.listing import render

    render(kind, commercial=commercial)


def extract(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    store: Path,
    backbone: str = DEFAULT_BACKBONE,
    weights: str | None = None,
    layers: tuple[str, ...] | None = None,
    last_layer: int | None = None,
    num_layers: int | None = None,
    pooling: Literal["mean", "frames"] = "mean",
    precision: Literal["fp32", "bf16"] = "fp32",
    convention: str = "default",
    clip_seconds: float = 30.0,
    chunk_seconds: float | None = None,
    whole_files: bool = False,
    device: str = "cpu",
    batch_size: int = 8,
    workers: int = 1,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Run a backbone over files and folders of music and store its hidden states.

    Folders are searched recursively. The command can be stopped at any moment and started again: rows that are
    in the store are not computed twice. Files that fail are listed at the end and in the store; the exit code
    is then 1.

    Args:
        paths: audio files and folders.
        store: folder of the feature store; made if it is not there.
        backbone: name as in `audiation list backbones`, or FILE.py:NAME of your own; default: a small one whose
            weights come with this package.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        layers: layers to store: numbers as in --layers 4 7, or middle, every:3, all; default: the model's recommended
            layer, else the last.
        last_layer: store every layer up to this one (instead of --layers).
        num_layers: cut the model to its first blocks.
        pooling: mean over time, or every frame (float16).
        precision: bf16 computes encoder and stem in bfloat16.
        convention: how the backbone cuts and normalises clips: default, or jukemir where it has that (docs/models.md).
        clip_seconds: length of the windows that become rows.
        chunk_seconds: length the model sees at once; default: what it was trained on.
        whole_files: one row per file instead of windows of --clip-seconds.
        device: torch device, for example cuda:0.
        batch_size: clips or chunks per forward pass.
        workers: processes that decode audio (or run models without parameters).
        threads: CPU threads of the model; default: what the workers leave.
        seed: of random weights.
    """
    from audiation.console import extract_with_progress

    if not paths:
        raise ValueError("nothing to extract: name at least one audio file or folder")
    if whole_files and clip_seconds != 30.0:
        raise ValueError("give --clip-seconds or --whole-files, not both")
    if layers == ():
        raise ValueError("--layers needs at least one number, for example --layers 4 7")
    if layers is not None and last_layer is not None:
        raise ValueError("give --layers or --last-layer, not both")
    failed = extract_with_progress(
        paths, backbone, store, weights=weights, layers=layers, last_layer=last_layer, num_layers=num_layers,
        pooling=pooling, precision=precision, convention=convention, clip_seconds=None if whole_files else clip_seconds,
        chunk_seconds=chunk_seconds, device=device, batch_size=batch_size, workers=workers, threads=threads,
        seed=seed,
    )  # fmt: skip
    if failed:
        sys.exit(1)


def evaluate(
    backbone: str | None = None,
    task: str | None = None,
    run: Path | None = None,
    method: str = "probe",
    protocol: str | None = None,
    weights: str | None = None,
    num_layers: int | None = None,
    layer: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    train: str = "",
    seed: int = 0,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    store: Path | None = None,
    out: Path | None = None,
    model_out: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
) -> None:
    """Score one backbone on one task: extract and train a probe, or adapt; test, with a 95 % interval.

    The result is written as JSON; `--run RESULT.json` repeats it.

    Args:
        backbone: name as in `audiation list backbones`, or FILE.py:NAME of your own.
        task: name as in `audiation list tasks`.
        run: repeat the run of this result file (then give no other choices of the run).
        method: how the backbone is adapted, as in `audiation list methods`.
        protocol: rules of training and selection, as in `audiation protocols list`; default: jukemir-single for
            probes, musicfm where every frame is asked about, marble-v1-separation for musdb18, petl for methods that
            adapt.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        num_layers: cut the model to its first blocks.
        layer: layer to probe; default: what the protocol searches, or the model's recommended layer, else the last.
        precision: bf16 computes encoder and stem in bfloat16.
        train: choices that depart from a protocol: of one that adapts, for example steps=500,precision=fp32; of one
            that searches a grid, what is not searched, for example batch_size=64,weight_decay=0,layer=weighted-sum.
        seed: of the probe, of the bootstrap and of random weights.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT); `scores` makes itself.
        metadata_root: folder with local copies of official split and annotation files.
        store: feature store (default: in the cache directory).
        out: where to write the result (default: in the cache directory, and said).
        model_out: folder to write the trained model into, for `audiation predict --run`.
        device: torch device.
        workers: processes that decode audio (or run models without parameters).
    """
    from audiation.console import evaluate_with_progress
    from audiation.evaluation import Run, default_protocol
    from audiation.own_backbones import load_recorded_backbone
    from audiation.results import Result

    if run is not None:
        choices = {
            "--backbone": (backbone, None), "--task": (task, None), "--weights": (weights, None),
            "--method": (method, "probe"), "--protocol": (protocol, None), "--seed": (seed, 0), "--train": (train, ""),
            "--num-layers": (num_layers, None), "--layer": (layer, None), "--precision": (precision, "fp32"),
        }  # fmt: skip
        given = [flag for flag, (value, default) in choices.items() if value != default]
        if given:
            raise ValueError(f"--run repeats a stored run, so {', '.join(given)} cannot be given as well")
        stored = Result.load(run)
        load_recorded_backbone(stored.run, lambda text: print(text, file=sys.stderr))
        chosen = Run.of(stored)
    elif backbone is None or task is None:
        raise ValueError("name a --backbone and a --task, or repeat a stored result with --run RESULT.json")
    else:
        chosen = Run(
            backbone=backbone, task=task, method=method, weights=weights, num_layers=num_layers, layer=layer,
            protocol=protocol or default_protocol(task, method),
            precision=precision, train=train, seed=seed,
        )  # fmt: skip
    evaluate_with_progress(
        chosen, data_root=data_root, metadata_root=metadata_root, store_dir=store, out=out, model_out=model_out,
        device=device, workers=workers,
    )  # fmt: skip


def parameters(
    backbones: tyro.conf.Positional[tuple[str, ...]] = ("musicfm-msd", "mert-v1-95m"),
    /,
    layers: int | None = 6,
    methods: tuple[str, ...] | None = None,
) -> None:
    """Count what each method trains, beside table 3 of the PETL paper where it has the same.

    Heads are never counted. "as published" counts the backbone as its authors laid it out, with parameters that no
    forward pass reads.

    Args:
        backbones: names as in `audiation list backbones`.
        layers: first blocks of every backbone; None: all.
        methods: like lora:rank=8; default: all, as in the table.
    """
    from audiation.console import show_parameters

    show_parameters(backbones, methods, layers)


def adapt(
    data: tyro.conf.Positional[Path],
    /,
    out: Path,
    backbone: str = DEFAULT_BACKBONE,
    method: str = "lora",
    kind: Literal["class", "tags", "regression", "key"] | None = None,
    audio_root: Path | None = None,
    ignore_columns: tuple[str, ...] = (),
    weights: str | None = None,
    num_layers: int | None = None,
    layer: int | None = None,
    epochs: int = 30,
    batch_size: int = 16,
    learning_rate: float | None = None,
    patience: int | None = 10,
    train: str = "",
    cache: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Adapt a backbone to your own labelled audio; write a small adapter directory.

    DATA is a CSV or JSONL file with a column path and one of label, labels, value or key, or a folder with one
    folder per class: docs/datasets/labelled.md. It is checked before anything is trained. The command can be
    stopped at any moment and started again. Several processes: torchrun --nproc-per-node N -m audiation adapt ...

    Args:
        data: CSV, JSONL or folder.
        out: directory of the adapter.
        backbone: name as in `audiation list backbones`, or FILE.py:NAME of your own; default: a small one whose
            weights come with this package.
        method: as in `audiation list methods`, with fields: lora:rank=4.
        kind: what the labels are; default: as the columns say.
        audio_root: what paths in DATA are relative to; default: its folder.
        ignore_columns: columns that are not read.
        weights: checkpoint file, directory or Hub id; "random" for untrained weights; default: the official ones.
        num_layers: cut the model to its first blocks.
        layer: hidden states that the head reads; default: the last.
        epochs: length of the training at most.
        batch_size: windows per step.
        learning_rate: default: 1e-4, for finetune 1e-5.
        patience: validations (one per epoch) without improvement before it ends; None: never.
        train: further choices, for example precision=bf16,micro_batch_size=4,crops=random,frozen_mode=published.
        cache: folder that keeps the outputs of the frozen part for later runs.
        seed: of split, initial weights, order and windows.
        device: torch device, for example cuda:0.
    """
    from audiation.console import adapt_with_progress

    adapt_with_progress(
        data, backbone, method, out, kind=kind, audio_root=audio_root, ignore_columns=ignore_columns,
        weights=weights, num_layers=num_layers, layer=layer, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, patience=patience, train=train, cache_directory=cache, seed=seed,
        device=device,
    )  # fmt: skip


def predict(
    files: tyro.conf.Positional[tuple[Path, ...]],
    /,
    adapter: tyro.conf.UseAppendAction[tuple[Path, ...]] = (),
    run: tuple[Path, ...] = (),
    tasks: str = "",
    merge: bool = False,
    format: Literal["timeline", "json", "csv", "jams", "lab", "beats"] | None = None,
    out: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int = 4,
    device: str = "cpu",
) -> None:
    """Ask trained models about audio files and folders: key, tempo, beats, chords, or whatever they were trained for.

    Several adapters of one backbone share it in memory. Files that cannot be read are in the answer with their
    reason, and the exit code is then 1.

    Args:
        files: audio files and folders.
        adapter: directory that `audiation adapt` wrote; give it several times for several.
        run: directories that `audiation evaluate --model-out` wrote (or adapters), several behind one flag.
        tasks: ask only the models that answer these, for example key,tempo,beats,chords; default: all.
        merge: fold the method into the weights first: the speed of the plain backbone. One adapter.
        format: timeline, json and csv: one document for all; jams, lab (chords and sections) and beats: files for each
            audio file, so they need --out. Default: timeline after --run, else json.
        out: file (timeline, json, csv) or folder (jams, lab, beats); default: the terminal.
        backbone: FILE.py:NAME that the models were made on, where it is your own; the file is executed.
        weights: of the backbone; default: the official ones, or the random ones the adapter was made on.
        precision: bf16 runs under autocast.
        batch_size: windows per forward pass.
        device: torch device.
    """
    from audiation.console import predict_with_progress
    from audiation.own_backbones import load_own_backbone

    if not files:
        raise ValueError("nothing to ask about: name at least one audio file or folder")
    if not (adapter or run):
        raise ValueError("name at least one trained model: --run DIR (or --adapter DIR)")
    if backbone is not None:
        load_own_backbone(backbone)
    failed = predict_with_progress(
        files, (*run, *adapter), questions=[t.strip() for t in tasks.split(",") if t.strip()], fold=merge,
        kind=format or ("timeline" if run else "json"), out=out, weights=weights, precision=precision,
        batch_size=batch_size, device=device,
    )  # fmt: skip
    if failed:
        sys.exit(1)


def export_peft(adapter: tyro.conf.Positional[Path], /, out: Path, weights: str | None = None) -> None:
    """Write the LoRA of an adapter in the directory format of Hugging Face peft. The head stays behind.

    Args:
        adapter: directory that `audiation adapt --method lora` wrote.
        out: directory to write.
        weights: of the backbone; default: the official ones, or the random ones the adapter was made on.
    """
    from audiation.adapters import load_adapter
    from audiation.peft_format import save_peft

    save_peft(load_adapter(adapter, weights=weights).backbone, out)
    print(f"Written: {out}")


def recipe(
    name: tyro.conf.Positional[str | None] = None, /, out: Path = Path("runs"), device: str = "cpu"
) -> None:
    """Carry out a table or figure of a paper, or list them.

    Runs whose result is in the folder already are not repeated, so a recipe can be stopped and started again.

    Args:
        name: with fields, like petl_sensitivity:task=scores-key,backbones=musicfm-mini,num_layers=4,weights=random.
            Without it, recipes are listed.
        out: folder for results, tables and figures.
        device: torch device.
    """
    from audiation.recipes import list_recipes, run_recipe

    if name is None:
        list_recipes()
    else:
        run_recipe(name, out, device=device)


def demo(workers: int = 2, full_grid: bool = False) -> None:
    """The main job end to end on real music: make `scores`, extract, probe, score, compare, write a site.

    Renders Bach chorales with exact truth into the cache directory, extracts `chroma` and `mfcc`, trains 36 of the 216
    configurations of jukemir's grid for key and for timbre on each, and prints one table; then adapts a small
    pre-trained backbone with LoRA and compares it with a probe on the same one; then finds beats and chords in frames.
    Where the package index answers, the real MusiCNN is a third representation. All results are a site that opens from
    disk. A second call reuses what is there.

    Args:
        workers: processes that render and extract.
        full_grid: train all 216 configurations.
    """
    from audiation.demo import run_demo

    run_demo(workers=workers, full_grid=full_grid)


def protocols(
    action: tyro.conf.Positional[Literal["list", "show"]],
    name: tyro.conf.Positional[str | None] = None,
    /,
) -> None:
    """Say what the evaluation protocols fix.

    Args:
        action: list, or show one of them as prose.
        name: protocol as in `audiation protocols list`.
    """
    from audiation.listing import render, show_protocol

    if action == "list":
        render("protocols")
    elif name is None:
        raise ValueError("protocols show needs a name from `audiation protocols list`")
    else:
        show_protocol(name)


def datasets(
    action: tyro.conf.Positional[Literal["list", "get", "verify", "match"]],
    name: tyro.conf.Positional[str | None] = None,
    /,
    data_root: Path | None = None,
    metadata_root: Path | None = None,
    audio: Path | None = None,
    yes: bool = False,
) -> None:
    """Say what data sets there are, fetch one, check one, or match your own files to its annotations.

    list: sizes, licences, and whether the files can be fetched. get: fetch from the official place, resumed after a
    stop and checked; size and licence are shown first. verify: what is missing or differs, the exit code is then 1.
    match: for data sets that come without audio (harmonix, hooktheory): estimate by onset correlation how far your
    recordings are shifted against the annotations; for harmonix also link them from --audio, and write offsets.csv,
    which the reader uses.

    Args:
        action: list, get, verify or match.
        name: data set as in `audiation datasets list`, with variants as in gtzan:jazz_00054=drop.
        data_root: folder with one folder per data set (default: $AUDIATION_DATA_ROOT).
        metadata_root: folder with local copies of official split and annotation files.
        audio: for match harmonix: folder with your files, called like the songs.
        yes: for get: do not ask.
    """
    from audiation import dataset_commands

    if action == "list":
        given = {"a name": name, "--data-root": data_root, "--metadata-root": metadata_root, "--audio": audio}
        if unused := [what for what, value in given.items() if value is not None]:
            raise ValueError(f"datasets list does not take {', '.join(unused)}")
        dataset_commands.list_datasets()
    elif name is None:
        raise ValueError(f"datasets {action} needs a name from `audiation datasets list`")
    elif action == "get":
        dataset_commands.get(name, data_root, agreed=yes)
    elif action == "verify":
        if dataset_commands.verify(name, data_root, metadata_root):
            sys.exit(1)
    else:
        dataset_commands.match(name, audio, data_root, metadata_root)


def weights(
    action: tyro.conf.Positional[Literal["list", "get", "verify", "where"]],
    name: tyro.conf.Positional[str | None] = None,
    /,
    allow_unverified_hash: bool = False,
) -> None:
    """Say where official weights are, fetch them, or check what is here.

    list: every backbone with its file, size and licence, and whether it is here. get: fetch, verify and convert; the
    command can be stopped and started again. verify: hash, names and shapes of what is here; the exit code is then 1 if
    something is wrong. where: the files in the cache.

    Args:
        action: list, get, verify or where.
        name: backbone as in `audiation list backbones`.
        allow_unverified_hash: accept a file that differs from a third party's record of it, with a warning.
    """
    from audiation import weights_commands

    weights_commands.weights(action, name, allow_unverified_hash)


PRETRAIN: dict[str, Callable[..., None]] = {
    "run": pretrain_commands.run,
    "show": pretrain_view_commands.show,
    "compare": pretrain_view_commands.compare,
}


def pretrain() -> None:
    """Pre-train a backbone on a corpus, look at a run, compare runs: `audiation pretrain run|show|compare --help`."""
    raise ValueError(f"say what to do: audiation pretrain {'|'.join(PRETRAIN)}, each with --help")


def main() -> None:
    """Entry point of `audiation`. User errors print one message and exit with 2."""
    if sys.argv[1:] == ["--version"]:
        from audiation import __version__

        print(f"audiation {__version__}")
        return
    try:
        if sys.argv[1:2] == ["pretrain"] and len(sys.argv) > 2:  # commands of its own
            arguments = sys.argv[2:]
            tyro.extras.subcommand_cli_from_dict(PRETRAIN, prog="audiation pretrain", args=arguments)
            return
        tyro.extras.subcommand_cli_from_dict(
            {
                "demo": demo,
                "list": list_,
                "datasets": datasets,
                "extract": extract,
                "evaluate": evaluate,
                "adapt": adapt,
                "predict": predict,
                "parameters": parameters,
                "recipe": recipe,
                "reproduce": reproduce,
                "compare-features": compare_features,
                "check-backbone": check_backbone,
                "leaderboard": leaderboard,
                "profile-layers": profile_layers,
                "tag": tag,
                "weights": weights,
                "protocols": protocols,
                "corpus": corpus,
                "pretrain": pretrain,
                "export-peft": export_peft,
            },
            prog="audiation",
            description="Load, extract from, adapt, judge and pre-train music foundation models.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except KeyboardInterrupt:
        print("\nStopped. Start the same command again to go on from here.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, KeyError, OSError) as error:
        print(f"audiation: {_in_words(error)}", file=sys.stderr)
        sys.exit(2)


def _in_words(error: Exception) -> str:
    """Errors of the system without their number: "nothere.json: No such file or directory"."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
