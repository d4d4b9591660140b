"""A user's file as a backbone: found by its path, executed only when the user says so, never mixed with its past."""

import dataclasses
import importlib
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiation import load_backbone
from audiation.backbones import BACKBONES
from audiation.extraction import extract
from audiation.loading import show_licence_once
from audiation.own_backbones import (
    OwnBackboneError,
    is_own_backbone,
    load_own_backbone,
    load_recorded_backbone,
    name_in_file,
    own_file_sha256,
    recorded_file,
    refuse_unloaded,
)
from audiation.registry import UnknownNameError
from audiation.store import FeatureStore

SOURCE = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from audiation.backbones.base import BACKBONES, Backbone, BackboneSpec, HiddenStates

with Path(__file__).with_suffix(".log").open("a") as log:
    log.write("executed\\n")


@dataclass
class Config:  # dataclasses look for their module by its name
    gain: float = 1.0


class Powers(Backbone):
    """Mean square of four parts of each frame."""

    def __init__(self, config: Config):
        super().__init__()
        self.name, self.num_layers, self.dim, self.gain = "powers", 0, 4, config.gain
        self.sample_rate_hz, self.hop_samples = 8000, 160
        self.frame_rate_hz = 50.0
        self.min_samples, self.max_seconds = 160, None
        self.normalisation, self.accepts_padding = "none", False

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        self.check_input(waveform, num_samples)
        self.resolve_layers(layers, last_layer)
        x = self.gain * waveform.unfold(1, 160, 160).unflatten(2, (4, 40)).square().mean(-1)
        states = HiddenStates({0: x}, torch.ones(x.shape[:2], dtype=torch.bool), self.frame_rate_hz, 0.0)
        return states.mean() if reduce == "mean" else states

    def num_frames(self, num_samples):
        return num_samples // 160


def build(num_layers=None, generator=None):
    return Powers(Config())


powers = BackboneSpec("powers", "mean squares", build, has_encoder=False)
other = BackboneSpec("other-powers", "the same again", build, has_encoder=False)
not_a_spec = 3
BACKBONES.add("registered", BackboneSpec("registered", "the same once more", build, has_encoder=False))
'''


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "powers.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def music(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", 0.1 * generator.standard_normal(8000), 8000)
    return folder


def executions(path) -> int:
    log = path.with_suffix(".log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_a_file_gives_a_backbone_by_variable_by_name_and_by_registration(model):
    for name in ("powers", "other", "other-powers", "registered"):
        backbone = load_backbone(f"{model}:{name}")
        assert backbone.name == f"{model}:{name}" and not backbone.training
        assert backbone(torch.ones(1, 320)).layers[0].tolist() == [[[1.0] * 4] * 2]
        assert BACKBONES[f"{model}:{name}"].name == f"{model}:{name}" and f"{model}:{name}" in BACKBONES
    assert executions(model) == 1
    # it is found, and is none of those that come with the package
    assert "registered" not in BACKBONES and not [n for n in BACKBONES if is_own_backbone(n)]


def test_a_relative_path_is_seen_from_the_working_directory(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert load_backbone("powers.py:powers").name == "powers.py:powers"
    assert load_backbone("./powers.py:powers").weights_hash == load_backbone("powers.py:powers").weights_hash
    assert name_in_file("powers.py:powers") == "powers" and name_in_file("chroma") == "chroma"


def test_a_lookup_executes_nothing(model):
    name = f"{model}:powers"
    assert name not in BACKBONES
    with pytest.raises(UnknownNameError, match="Files are executed only where you name them yourself"):
        BACKBONES[name]
    with pytest.raises(OwnBackboneError, match="not executed because a result names it"):
        refuse_unloaded(name)
    refuse_unloaded("chroma")
    assert executions(model) == 0
    load_own_backbone(name)
    refuse_unloaded(name)
    assert executions(model) == 1


# The hash -------------------------------------------------------------------------------------------------


def test_the_hash_of_weights_is_that_of_the_file_too(model, tmp_path):
    first = load_backbone(f"{model}:powers").weights_hash
    assert load_backbone(f"{model}:powers").weights_hash == first and len(first) == 64
    assert load_backbone(f"{model}:other").weights_hash != first
    moved = tmp_path / "elsewhere" / "renamed.py"
    moved.parent.mkdir()
    shutil.copy(model, moved)
    assert load_backbone(f"{moved}:powers").weights_hash == first  # the same bytes are the same model

    old_file = own_file_sha256(f"{model}:powers")
    model.write_text(SOURCE.replace("gain: float = 1.0", "gain: float = 2.0"))
    edited = load_backbone(f"{model}:powers")
    assert edited.weights_hash != first and own_file_sha256(f"{model}:powers") != old_file
    assert edited(torch.ones(1, 160)).layers[0].tolist() == [[[2.0] * 4]]
    assert own_file_sha256("chroma") is None and recorded_file("chroma") == {}
    assert load_backbone("chroma").weights_hash.startswith("handcrafted-1+librosa")


def test_tensors_that_build_reads_from_somewhere_are_part_of_the_hash(model):
    table = model.with_suffix(".pt")
    model.write_text(
        SOURCE.replace(
            'self.normalisation, self.accepts_padding = "none", False',
            'self.normalisation, self.accepts_padding = "none", False\n'
            f"        self.register_buffer('table', torch.load({str(table)!r}, weights_only=True))",
        )
    )
    torch.save(torch.zeros(3), table)
    first = load_backbone(f"{model}:powers").weights_hash
    torch.save(torch.ones(3), table)
    assert load_backbone(f"{model}:powers").weights_hash != first


def test_random_and_loaded_weights_of_a_file_have_its_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    source = (
        SOURCE.replace("self.gain = config.gain", "self.gain = 1.0").replace(
            'self.normalisation, self.accepts_padding = "none", False',
            'self.normalisation, self.accepts_padding = "none", False\n'
            "        self.scale = torch.nn.Parameter(torch.ones(4))",
        )
        + """

def drawn(num_layers=None, generator=None):
    backbone = Powers(Config())
    with torch.no_grad():
        backbone.scale.normal_(generator=generator)
    return backbone


def loaded(tensors, config, num_layers=None):
    backbone = Powers(Config())
    backbone.load_state_dict(dict(tensors))
    return backbone


trained = BackboneSpec("trained", "with weights", drawn, loaded, has_encoder=False)
"""
    )
    path, copy = tmp_path / "powers.py", tmp_path / "copy.py"
    path.write_text(source)
    copy.write_text(source + "# another file\n")
    weights = tmp_path / "scale.pt"
    torch.save({"scale": torch.arange(4.0)}, weights)
    seen = set()
    for file in (path, copy):
        for given, seed in (("random", 0), ("random", 1), (weights, 0)):
            seen.add(load_backbone(f"{file}:trained", given, seed=seed).weights_hash)
    assert len(seen) == 6
    assert load_backbone(f"{path}:trained", weights).scale.tolist() == [0.0, 1.0, 2.0, 3.0]
    moved = tmp_path / "moved.py"  # and the fingerprint of these weights is found again, and agrees
    shutil.copy(path, moved)
    assert load_backbone(f"{moved}:trained", weights).weights_hash in seen


def test_features_of_an_edited_file_lie_elsewhere(model, music, tmp_path):
    store, name = tmp_path / "store", f"{model}:powers"
    first = extract([music], load_backbone(name), store, clip_seconds=0.5)
    again = extract([music], load_backbone(name), store, clip_seconds=0.5)
    assert (first.num_done, again.num_done, again.num_resumed) == (2, 0, 2)
    model.write_text(SOURCE.replace("gain: float = 1.0", "gain: float = 2.0"))
    edited = extract([music], load_backbone(name), store, clip_seconds=0.5)
    assert (edited.num_done, edited.num_resumed) == (2, 0) and edited.table != first.table


def test_workers_find_the_file(model, music, tmp_path):
    """The model has no parameters, so it runs in the spawned process, which has never heard of the file."""
    backbone = load_backbone(f"{model}:powers")
    here = extract([music], backbone, tmp_path / "here", clip_seconds=0.5)
    there = extract([music], backbone, tmp_path / "there", clip_seconds=0.5, workers=1, threads=1)
    assert (there.num_done, there.num_rows, there.failures) == (2, 4, ())
    vectors = []
    for report in (here, there):
        with FeatureStore.open(report.table) as store:
            keys = sorted(key for keys in store.keys_by_file(0.5).values() for key in keys)
            vectors.append(store.read(0, keys))
    np.testing.assert_array_equal(*vectors)
    assert executions(model) == 2  # once here, once there


def test_a_file_that_changes_while_it_is_in_use_is_noticed(model):
    sent = pickle.dumps(load_backbone(f"{model}:powers"))
    module = type(load_backbone(f"{model}:powers")).__module__
    assert isinstance(pickle.loads(sent), torch.nn.Module)
    del sys.modules[module]  # as in a process that begins
    model.write_text(SOURCE + "\n# edited\n")
    with pytest.raises(ImportError, match="was changed while it was in use"):
        importlib.import_module(module)


# Results and adapters -------------------------------------------------------------------------------------


def test_a_recorded_file_is_executed_if_it_is_the_one_and_only_after_saying_so(model):
    name = f"{model}:powers"
    load_own_backbone(name)
    run = {"backbone": name} | recorded_file(name)
    assert set(run) == {"backbone", "backbone_file_sha256"} and len(run["backbone_file_sha256"]) == 64
    said: list[str] = []
    load_recorded_backbone(run, said.append)
    assert said == [
        f"{model} is executed: the result was made with it (SHA-256 {run['backbone_file_sha256'][:12]}..., the same "
        "as now)."
    ]
    load_recorded_backbone({"backbone": "chroma"}, said.append)
    assert len(said) == 1

    model.write_text(SOURCE + "\n# edited\n")
    before = executions(model)
    with pytest.raises(OwnBackboneError, match=r"has changed: .* It was not executed"):
        load_recorded_backbone(run, said.append)
    with pytest.raises(OwnBackboneError, match="does not say which version"):
        load_recorded_backbone({"backbone": name}, said.append)
    model.unlink()
    with pytest.raises(OwnBackboneError, match="there is no file"):
        load_recorded_backbone(run, said.append)
    assert executions(model) == before and len(said) == 1


def test_an_adapter_that_names_a_file_executes_nothing(model, tmp_path, monkeypatch):
    from audiation.adapters import AdapterError, load_adapter
    from audiation.own_audio import adapt

    labelled = tmp_path / "labelled"
    generator = np.random.default_rng(0)
    for i in range(8):
        path = labelled / "ab"[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * (1 + i % 2) * generator.standard_normal(8000), 8000)
    name = f"{model}:powers"
    report = adapt(labelled, name, "probe", tmp_path / "adapter", epochs=1, batch_size=4)
    record = json.loads((report.directory / "adapter.json").read_text())
    assert record["backbone"] == name and record["trunk_hash"] == load_backbone(name).weights_hash
    assert load_adapter(report.directory).backbone.name == name  # loaded by this user already

    monkeypatch.delitem(BACKBONES._unlisted, name)  # as in another process
    before = executions(model)
    with pytest.raises(
        AdapterError, match=r"cannot load the backbone of .*Files are executed only where you name"
    ):
        load_adapter(report.directory)
    assert executions(model) == before


def test_the_licence_of_a_file_s_weights_is_remembered_within_the_cache(model, tmp_path, monkeypatch, capsys):
    from audiation.weights import OfficialFile, OfficialWeights

    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    official = OfficialWeights(OfficialFile("owner/name", "model.pt"), None, licence="MIT")
    spec = dataclasses.replace(load_own_backbone(f"{model}:powers"), weights=official)
    show_licence_once(spec)
    show_licence_once(spec)
    assert capsys.readouterr().err.count("weights under MIT") == 1
    assert (tmp_path / "cache" / "licences" / "powers.py:powers.txt").is_file()


# What is wrong with a file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("x = 1\ndef broken(:\n", "x", r"model\.py is not valid Python, line 2: .*: def broken\(:"),
        ("\n\nraise TypeError('dimension')\n", "x", r"fails when it is executed, line 3: TypeError: dimension"),
        ("import no_such_module\n", "x", r"line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\nsys.exit(3)\n", "x", r"line 2: SystemExit: 3"),
        ("x = 1\n", "y", r"defines no backbone 'y'\. It defines none\."),
        ("x = 1\n", "", r"names no backbone\. Write FILE\.py:NAME"),
        (SOURCE, "power", r"defines no backbone 'power'\. It has: other, other-powers, powers, registered\."),
        (SOURCE, "not_a_spec", r"'not_a_spec' in .* is of type int, not a BackboneSpec\. Write not_a_spec = Backb"),
        (SOURCE, "Powers", r"'Powers' in .* is the class Powers, not a BackboneSpec"),
        (SOURCE.replace('"powers", "mean', '"chroma", "mean'), "powers", r"'chroma' in .* comes with audiation"),
        (SOURCE.replace('BACKBONES.add("registered"', 'BACKBONES.add("mfcc"'), "mfcc", "'mfcc' in .* comes with audi"),
        (SOURCE + "BACKBONES.add('seven', 7)\n", "seven", r"registers 'seven' as of type int"),
        (SOURCE + "BACKBONES.add('registered', powers)\n", "powers", "backbone 'registered' is registered twice"),
    ],
)  # fmt: skip
def test_faults_are_told_with_their_place(tmp_path, source, name, said):
    path = tmp_path / "model.py"
    path.write_text(source)
    with pytest.raises(OwnBackboneError, match=said):
        load_backbone(f"{path}:{name}")
    assert f"{path}:{name}" not in BACKBONES and load_backbone("chroma").dim == 72


def test_a_file_that_is_not_there_or_not_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        OwnBackboneError, match=rf"there is no file none\.py \(looked for at {tmp_path}/none\.py\)"
    ):
        load_backbone("none.py:x")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(OwnBackboneError, match=r"folder\.py cannot be read: Is a directory"):
        load_backbone("folder.py:x")
    (tmp_path / "bytes.py").write_bytes(b"x = 1\x00\n")
    with pytest.raises(OwnBackboneError, match=r"bytes\.py is not"):
        load_backbone("bytes.py:x")


def test_a_file_is_repaired_and_loaded_in_the_same_process(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("raise ValueError('not yet')\n")
    with pytest.raises(OwnBackboneError, match="not yet"):
        load_backbone(f"{path}:powers")
    path.write_text(SOURCE)
    assert load_backbone(f"{path}:powers").dim == 4


def test_an_import_of_ours_that_registers_is_not_taken_for_the_user_s(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("from audiation.backbones import musicfm, mert, handcrafted\n" + SOURCE.lstrip().replace(
        "from __future__ import annotations\n", ""))  # fmt: skip
    load_backbone(f"{path}:registered")
    with pytest.raises(OwnBackboneError, match="It has: other, other-powers, powers, registered"):
        load_backbone(f"{path}:no-such")
    assert "musicfm-msd" in BACKBONES.names()
