"""`audiation weights list|get|verify|where`, and `load_backbone` on formats that are converted first."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from audiation import fetching, loading
from audiation.backbones import BACKBONES, Backbone, BackboneSpec, HiddenStates
from audiation.loading import load_backbone
from audiation.registry import UnknownNameError
from audiation.weights import OfficialFile, OfficialWeights, WeightsError, check_tensors
from audiation.weights_commands import get, list_weights, verify, weights, where
from checkpoint_files import write

DIM = 4


class Line(Backbone):
    """Frames of 80 samples through one linear map, divided by a second checkpoint's number."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.sample_rate_hz, self.hop_samples, self.min_samples = "line", 8000, 80, 80
        self.frame_rate_hz, self.max_seconds, self.dim, self.num_layers = 100.0, None, DIM, 0
        self.normalisation, self.accepts_padding = "none", True
        self.map, self.scale = torch.nn.Linear(80, DIM), torch.nn.Parameter(torch.ones(()))

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None) -> HiddenStates:
        x = self.map(waveform.unflatten(1, (-1, 80))) / self.scale
        return HiddenStates({0: x}, torch.ones(x.shape[:2], dtype=torch.bool), self.frame_rate_hz, 0.0)


SEEN: list[list[str]] = []


def from_published(tensors, config, num_layers=None) -> Line:
    SEEN.append(sorted(tensors))
    line = Line()
    state = {
        "map.weight": tensors["line/kernel"],
        "map.bias": tensors["line/bias"],
        "scale": tensors["far.scale"],
    }
    known = {"line/kernel": state["map.weight"], "line/bias": torch.empty(DIM), "far.scale": torch.empty(())}
    check_tensors(tensors, known, "a line")
    line.load_state_dict(state)
    return line


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"line/kernel": torch.randn(DIM, 80, generator=generator), "line/bias": torch.zeros(DIM)}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackboneSpec:
    """Two legacy torch files at addresses; the first holds the state of an optimiser besides."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("AUDIATION_ALLOW_UNVERIFIED_HASH", raising=False)
    contents = {}
    for name, content in {
        "line.pth.tar": tensors() | {"line/kernel/Adam": torch.ones(DIM, 80)},
        "far.pth.tar": {"scale": torch.tensor(2.0)},
    }.items():
        contents[name] = write("torch legacy", tmp_path / "published" / name, content).read_bytes()

    def serve(request):
        content = contents[request.full_url.rpartition("/")[2]]
        body = io.BytesIO(content)
        body.status, body.headers = 200, {"Content-Length": str(len(content))}  # type: ignore[attr-defined]
        return body

    monkeypatch.setattr(fetching, "_open_https", serve)

    def file(name: str) -> OfficialFile:
        sha256 = hashlib.sha256(contents[name]).hexdigest()
        return OfficialFile("", name, len(contents[name]), sha256, "spec", url=f"https://example.org/{name}")

    official = OfficialWeights(
        file("line.pth.tar"), None, "CC-BY-NC-4.0", "Lines only.", further={"far.": file("far.pth.tar")},
        unneeded=".*/Adam$",
    )  # fmt: skip
    spec = BackboneSpec("line", "a line", lambda num_layers=None, generator=None: Line(), from_published, official,
                        commercial_use=False)  # fmt: skip
    BACKBONES.names()
    monkeypatch.setitem(BACKBONES._entries, "line", spec)
    SEEN.clear()
    return spec


def test_files_are_fetched_converted_once_merged_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = load_backbone("line")
    assert SEEN == [["far.scale", "line/bias", "line/kernel"]]  # without what `unneeded` names
    assert torch.equal(backbone.map.weight, tensors()["line/kernel"]) and backbone.scale.item() == 2.0
    assert backbone.weights_source == "https://example.org/line.pth.tar"
    assert len(list((tmp_path / "cache" / "converted").glob("*/model.safetensors"))) == 2

    def offline(request):
        raise AssertionError("asked again")

    monkeypatch.setattr(fetching, "_open_https", offline)
    assert load_backbone("line").weights_hash == backbone.weights_hash


def test_files_of_ones_own_are_read_with_what_lies_beside_them(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("line.pth.tar", "far.pth.tar"):
        (folder / name).write_bytes((tmp_path / "published" / name / "weights.bin").read_bytes())
    backbone = load_backbone("line", folder / "line.pth.tar")
    assert backbone.scale.item() == 2.0 and backbone.weights_source == "file:line.pth.tar"
    content = bytearray((folder / "far.pth.tar").read_bytes())
    content[-1] ^= 1
    (folder / "far.pth.tar").write_bytes(content)
    with pytest.raises(WeightsError, match=r"far\.pth\.tar is not the official far\.pth\.tar"):
        load_backbone("line", folder / "line.pth.tar")
    (folder / "far.pth.tar").unlink()
    with pytest.raises(WeightsError, match=r"no 'far\.scale'"):
        load_backbone("line", folder / "line.pth.tar")


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    def full(*arguments):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(loading, "cached_conversion", full)
    with (
        pytest.warns(UserWarning, match="cannot keep a conversion"),
        pytest.raises(WeightsError, match="1 unexpected: 'line/kernel/Adam'"),  # it is not left out then
    ):
        load_backbone("line")


def test_list_says_file_size_licence_use_and_whether_it_is_here(console: Console):
    list_weights(console)
    text = printed(console)
    assert (
        "line: a line\n    line.pth.tar, " in text and "not here (https://example.org/line.pth.tar)" in text
    )
    assert "CC-BY-NC-4.0 (no commercial use). Lines only." in text
    assert "chroma: " in text and "needs no weights" in text
    get("line", console=console)
    again = Console(file=io.StringIO(), width=200)
    list_weights(again)
    assert "bytes, here (https://example.org/line.pth.tar)" in printed(again)


def test_get_where_and_verify(console: Console):
    made = get("line", console=console)
    assert [p.name for p in made] == ["model.safetensors", "model.safetensors"]
    assert "commercial use NOT allowed. Lines only." in printed(console)
    assert [p.name for p in where("line", console)] == ["line.pth.tar", "far.pth.tar"]
    assert verify("line", console=console) == [] and "2 files, 325 parameters" in printed(console)
    assert printed(console).rstrip().endswith("all right")


def test_verify_finds_what_is_missing_or_differs(console: Console):
    assert verify("line", console=console) == [
        f"{name} is not here. Get it: audiation weights get line" for name in ("line.pth.tar", "far.pth.tar")
    ]
    get("line", console=console)
    (_, far) = where("line", console)
    content = bytearray(far.read_bytes())
    content[-1] ^= 1
    far.write_bytes(content)
    (problem,) = verify("line", console=console)
    assert "is not the official far.pth.tar" in problem
    assert "1 missing or different" in printed(console)


def test_the_command_has_the_exit_codes_and_errors_of_others(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        weights("verify", "line")
    assert end.value.code == 1
    with pytest.raises(WeightsError, match=r"no file of line is here.*weights get line.*line\.pth\.tar"):
        weights("where", "line")
    weights("get", "line")
    weights("where", "line")
    assert "line.pth.tar" in capsys.readouterr().out
    weights("verify", "line")
    weights("list")
    with pytest.raises(ValueError, match="weights get needs a name"):
        weights("get")
    with pytest.raises(ValueError, match="weights list takes neither a name"):
        weights("list", "line")
    with pytest.raises(WeightsError, match="'chroma' has no files: it is computed by a formula"):
        weights("get", "chroma")
    with pytest.raises(UnknownNameError, match="unknown backbone 'lime'"):
        weights("get", "lime")
