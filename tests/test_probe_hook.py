"""A probe while training: it learns what can be heard, and training goes on as if it were not there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from torch import nn

from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.musicfm import MSD, MusicFM, fresh
from audiation.json_lines import read_lines
from audiation.objectives import PretrainBatch
from audiation.objectives.best_rq import BestRq
from audiation.pretrain_log import read_log
from audiation.pretraining_config import PretrainConfig
from audiation.probe_hook import ProbeHook
from audiation.registry import UnknownNameError
from audiation.training import Loss, TrainingProgress, fit, trainable_state

pytestmark = pytest.mark.filterwarnings("ignore:gtzan. 1 of 60 listed recordings left out")
TINY = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)
GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
LISTS = {"train": range(3), "valid": range(3, 5), "test": range(5, 6)}
QUICK = "hidden_size=none,patience=8,learning_rate=0.03,dropout=0"
CONFIG = PretrainConfig(
    steps=4, batch_size=4, micro_batch_size=2, learning_rate=1e-3, checkpoint_every_steps=2
)


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten genres of one second, each at its own pitch; one training file is text, and one is too short to be heard."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names: dict[str, list[str]] = {split: [] for split in LISTS}
    time = np.arange(22050) / 22050
    for k, genre in enumerate(GENRES):
        folder = root / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        for split, numbers in LISTS.items():
            for n in numbers:
                names[split].append(f"{genre}/{genre}.{n:05}.wav")
                tone = 0.4 * np.sin(2 * np.pi * 150 * 2 ** (k / 2) * time + 6 * rng.random())
                soundfile.write(folder / f"{genre}.{n:05}.wav", tone, 22050)
    (root / "gtzan" / "genres" / "rock" / "rock.00000.wav").write_text("not audio")
    soundfile.write(root / "gtzan" / "genres" / "jazz" / "jazz.00000.wav", np.zeros(100) + 0.1, 22050)
    for split, lines in names.items():
        (root / "gtzan" / f"{split}_filtered.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(autouse=True)
def no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)


@dataclasses.dataclass(frozen=True)
class Noise:
    def micro_batch(self, step: int, index: int) -> PretrainBatch:
        generator = torch.Generator().manual_seed(1000 * step + index)
        return PretrainBatch(0.1 * torch.randn(2, 24000, generator=generator))


def tiny() -> MusicFM:
    return fresh(MSD, TINY, conv_channels=4, generator=torch.Generator().manual_seed(0))


def a_hook(backbone: MusicFM, run_dir: Path, data: Path, every: int = 2, **changes: object) -> ProbeHook:
    options = {"layers": "all", "train": QUICK} | changes
    return ProbeHook(backbone, run_dir, "gtzan_genre", every, data_root=data, **options)  # type: ignore[arg-type]


class KilledError(Exception):
    pass


def pretrained(
    run_dir: Path, hook_of: Callable[[MusicFM], ProbeHook] | None = None, killed_after: int | None = None
) -> dict[str, torch.Tensor]:
    """Four steps of BEST-RQ, with dropout and batch norms, from the same weights each time."""
    backbone = tiny()
    objective = BestRq(codebook_size=32).build(backbone)
    module = nn.ModuleDict({"backbone": backbone, "objective": objective}).train()
    hook = None if hook_of is None else hook_of(backbone)

    def step(module: nn.Module, batch: PretrainBatch, generator: torch.Generator) -> Loss:
        return objective(backbone, batch, generator)

    def after(progress: TrainingProgress) -> None:
        if hook is not None:
            hook(progress.step)
        if progress.step == killed_after:
            raise KilledError

    fit(module, step, Noise(), CONFIG, run_dir, progress=after)
    return trainable_state(module)


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    lines = read_lines(run_dir / "log.jsonl", "step")
    return [(line.values["step"], line.values["loss"], line.values["grad_norm"]) for line in lines]


def probes(run_dir: Path) -> list[dict]:
    """Lines without how long they took."""
    return [
        {k: v for k, v in line.values.items() if k != "seconds"}
        for line in read_lines(run_dir / "probe.jsonl", "step")
    ]


def test_training_has_the_same_bits_with_and_without_it(tmp_path: Path, gtzan: Path) -> None:
    torch.manual_seed(5)
    global_stream = torch.get_rng_state()
    alone = pretrained(tmp_path / "alone")
    watched = pretrained(tmp_path / "watched", lambda b: a_hook(b, tmp_path / "watched", gtzan, every=1))
    assert torch.equal(torch.get_rng_state(), global_stream)
    assert alone.keys() == watched.keys() and any("running_mean" in name for name in alone)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    assert losses(tmp_path / "alone") == losses(tmp_path / "watched")
    assert [p["step"] for p in probes(tmp_path / "watched")] == [1, 2, 3, 4]
    assert read_log(tmp_path / "watched").curves["probe/gtzan_genre accuracy"].steps.tolist() == [1, 2, 3, 4]


def test_a_killed_run_has_the_lines_of_one_that_was_not(tmp_path: Path, gtzan: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrained(whole, lambda b: a_hook(b, whole, gtzan, every=1))
    with pytest.raises(KilledError):  # step 3 is in the log, and not in a checkpoint
        pretrained(killed, lambda b: a_hook(b, killed, gtzan, every=1), killed_after=3)
    with (killed / "probe.jsonl").open("a") as stream:
        stream.write('{"step": 4, "pro')
    assert [p["step"] for p in probes(killed)] == [1, 2, 3]
    pretrained(killed, lambda b: a_hook(b, killed, gtzan, every=1))
    assert probes(killed) == probes(whole)


def test_what_it_finds_and_writes(tmp_path: Path, gtzan: Path) -> None:
    backbone = tiny().train()
    modes = [part.training for part in backbone.modules()]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    hook = a_hook(backbone, tmp_path, gtzan, train_clips=40)
    assert hook(1) is None and not (tmp_path / "probe.jsonl").exists()
    found = hook(2)
    assert found is not None and (found.step, sorted(found.by_layer)) == (2, [0, 1, 2])
    assert found.score == max(found.by_layer.values()) == found.by_layer[found.best_layer]
    assert found.score >= 0.5  # of ten pitches; a guess has 0.1
    (line,) = probes(tmp_path)
    assert (
        line["probe"] == {"accuracy": found.score} and line["by_layer"][str(found.best_layer)] == found.score
    )
    assert (line["task"], line["layers"]) == ("gtzan_genre", "0+1+2")
    assert (line["train_clips"], line["valid_clips"], line["failures"]) == (28, 20, 2)
    assert {track for track, _ in hook.prepare().failures} == {"rock.00000", "jazz.00000"}
    assert [part.training for part in backbone.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_it_hears_the_weights_of_the_moment_in_eval_mode(tmp_path: Path, gtzan: Path) -> None:
    backbone = tiny().train()
    hook = a_hook(backbone, tmp_path, gtzan, layers="2")
    data = hook.prepare()
    hook(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
        for _ in range(3):
            backbone(torch.stack(data.train[:4]))  # moves statistics of batch norms
    hook(4)
    assert hook._twin is not None
    expected = tiny().eval()
    expected.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        states = expected(data.train[0][None], layers=[2], reduce="mean").layers[2][:, 0]
    assert torch.equal(hook._vectors(hook._twin, data.train[:1])[2], states)
    assert not any(part.training for part in hook._twin.modules())
    assert not {p.data_ptr() for p in hook._twin.parameters()} & {p.data_ptr() for p in backbone.parameters()}


def test_the_same_recordings_every_time(tmp_path: Path, gtzan: Path) -> None:
    few = [a_hook(tiny(), tmp_path / name, gtzan, train_clips=7, valid_clips=3).prepare() for name in "ab"]
    assert (len(few[0].train), len(few[0].valid)) == (7, 3)
    assert few[0].clips_hash == few[1].clips_hash
    assert all(torch.equal(x, y) for x, y in zip(few[0].train, few[1].train, strict=True))
    more = a_hook(tiny(), tmp_path, gtzan, train_clips=8, valid_clips=3).prepare()
    assert more.clips_hash != few[0].clips_hash
    assert all(torch.equal(x, y) for x, y in zip(few[0].train, more.train, strict=False))


def test_other_probes_in_the_file_are_refused_before_the_run(tmp_path: Path, gtzan: Path) -> None:
    a_hook(tiny(), tmp_path, gtzan)(2)
    with pytest.raises(ValueError, match=r"holds other probes \(layers was 0\+1\+2, is 1\)"):
        a_hook(tiny(), tmp_path, gtzan, layers="middle").prepare()
    with pytest.raises(ValueError, match=r"holds other probes \(probes was"):
        a_hook(tiny(), tmp_path, gtzan, train=QUICK.replace("0.03", "0.01")).prepare()
    with pytest.raises(ValueError, match=r"holds other probes \(train_clips was 28, is 5\)"):
        a_hook(tiny(), tmp_path, gtzan, train_clips=5).prepare()


def test_what_cannot_be_probed_is_refused(tmp_path: Path, gtzan: Path) -> None:
    with pytest.raises(ValueError, match="from 1, got every_steps=0"):
        a_hook(tiny(), tmp_path, gtzan, every=0)
    with pytest.raises(UnknownNameError):
        ProbeHook(tiny(), tmp_path, "gtzan_gender", 1)
    with pytest.raises(ValueError, match="asks about every frame"):
        ProbeHook(tiny(), tmp_path, "scores-beats", 1)
    with pytest.raises(ValueError, match="does not probe vectors"):
        a_hook(tiny(), tmp_path, gtzan, protocol="petl")
    with pytest.raises(ValueError, match=r"there are layers 0\.\.2, got 7"):
        a_hook(tiny(), tmp_path, gtzan, layers="7")
    with pytest.raises(FileNotFoundError):
        a_hook(tiny(), tmp_path, tmp_path / "nowhere").prepare()
    assert json.dumps(list(tmp_path.iterdir())) == "[]"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_weights_are_gathered(tmp_path: Path, gtzan: Path, one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, sharded = tiny(), tiny()
    hooks = [a_hook(plain, tmp_path / "plain", gtzan), a_hook(sharded, tmp_path / "sharded", gtzan)]
    mesh = init_device_mesh("cpu", (1,))
    assert sharded.encoder is not None
    for block in sharded.encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    with torch.no_grad():
        for backbone in (plain, sharded):
            for parameter in backbone.parameters():
                parameter.mul_(1.25)
    found = [hook(2) for hook in hooks]
    assert found[0] == found[1] is not None
    with pytest.raises(ValueError, match="sharded already"):
        a_hook(sharded, tmp_path, gtzan)
