"""`check_backbone`: what is good passes, and every way of being wrong is caught by the contract that is about it."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from audiation.check_backbone import Finding, check_backbone, contract_titles, counts
from audiation.check_backbone_commands import check_backbone as command
from audiation.own_backbones import OwnBackboneError
from audiation.registry import UnknownNameError
from audiation.weights import WeightsError
from plain_backbone import PLAIN

DOCS = Path(__file__).parents[1] / "docs" / "own-backbones.md"
INIT = "        super().__init__()\n"


@pytest.fixture(scope="module")
def documented() -> str:
    """The example of the documentation."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "BackboneSpec(" in block)
    return example


def findings_of(source: str, name: str, folder: Path) -> list[Finding]:
    path = folder / "model.py"
    path.write_text(source)
    return check_backbone(f"{path}:{name}")


def failures(findings: list[Finding]) -> dict[str, str]:
    return {f.contract: f.text for f in findings if f.status == "fail"}


def changed(source: str, *replacements: tuple[str, str]) -> str:
    for old, new in replacements:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


def test_the_example_of_the_documentation_passes(documented, tmp_path):
    findings = findings_of(documented, "tiny", tmp_path)
    assert failures(findings) == {}
    assert [f.contract for f in findings] == contract_titles()
    assert [f.contract for f in findings if f.status == "skip"] == ["its weights load"]
    by_title = {f.contract: f.text for f in findings}
    assert by_title["layers 0..L have the declared shape"] == "L = 2, T = 25, D = 64"
    assert by_title["method 'lora' trains it"].endswith("parameters, folded")
    assert by_title["padding is harmless, or refused"] == "harmless"


def test_a_model_without_blocks_passes_and_is_told_what_it_cannot(tmp_path):
    findings = findings_of(PLAIN, "slices", tmp_path)
    assert failures(findings) == {}
    skipped = {f.contract: f.text for f in findings if f.status == "skip"}
    assert skipped["method 'lora' trains it"] == "it has no encoder"
    assert skipped["every parameter is used"] == "it has no parameters"
    assert counts(findings) == {"pass": 23, "fail": 0, "skip": 12}


@pytest.mark.parametrize("name", ["logmel-frames", "musicfm-mini"])
def test_backbones_that_come_with_the_package_pass(name):
    assert failures(check_backbone(name)) == {}


# What breaks, the contracts that catch it, and what the author is told.
BROKEN = {
    "no super().__init__": (
        [("        super().__init__()\n", "")],
        {"it can be built"},
        "AttributeError",
    ),
    "no Backbone": ([("    return Slices()", "    return torch.nn.Linear(1, 1)")], {"it can be built"}, "inherit"),
    "another signature": (
        [("def build(num_layers=None, generator=None)", "def build(size)")],
        {"it can be built"},
        "`build(num_layers=None, generator=None) -> Backbone`",
    ),
    "an attribute missing": ([(", self.max_seconds = 160, None", " = 160")], {"it says what it is"}, "`max_seconds`"),
    "an attribute of another kind": (
        [("self.min_samples, self.max_seconds = 160", "self.min_samples, self.max_seconds = 160.0")],
        {"it says what it is"},
        "`min_samples` is 160.0; it is int.",
    ),
    "another frame rate": (
        [("self.frame_rate_hz = self.sample_rate_hz / self.hop_samples", "self.frame_rate_hz = 49.0")],
        {"it says what it is"},
        "50 frames per second",
    ),
    "an encoder that is not there": (
        [("has_encoder=False", "has_encoder=True")],
        {"it says what it is"},
        "has_encoder=True",
    ),
    "a bare tensor": (
        [("return states.mean() if reduce == \"mean\" else states", "return x")],
        {"it runs on two clips"},
        "HiddenStates",
    ),
    "an error": (
        [("        frames = torch", "        waveform.no_such_thing\n        frames = torch")],
        {"it runs on two clips"},
        "(model.py, line ",
    ),
    "a layer missing": ([('"slices", 1, 8', '"slices", 2, 8')], {"it runs on two clips"}, "KeyError: 2"),
    "another width": ([('"slices", 1, 8', '"slices", 1, 9')], {"layers 0..L have the declared shape"}, "dim=9"),
    "float64": (
        [("found[i].float()", "found[i].double()")],
        {"layers are float32, finite, and not constant"},
        "End with `.float()`",
    ),
    "deaf": (
        [("{0: x, 1: torch.tanh(x)}", "{0: x, 1: torch.arange(8.0).expand_as(x)}")],
        {"layers are float32, finite, and not constant"},
        "does not hear",
    ),
    "one frame too few declared": (
        [("return num_samples // 160", "return num_samples // 160 - 1")],
        {
            "`num_frames` and the frame rate agree with the output",
            "layers 0..L have the declared shape",
            'reduce="mean" is the mean of the frames',
            "padding is harmless, or refused",
        },
        "a clip of 3840 samples gives 24",
    ),
    "another hop": (
        [("self.hop_samples = 8000, 160", "self.hop_samples = 8000, 80")],
        {"`num_frames` and the frame rate agree with the output"},
        "10 hops of 80 samples more give 5 frames more",
    ),
    "frames behind the clip": (
        [("self.first_frame_seconds = 80 / 8000", "self.first_frame_seconds = 80.0")],
        {"frames lie within the clip"},
        "`first_frame_seconds`",
    ),
    "random numbers in forward": (
        [(".square().mean(-1)", ".square().mean(-1)\n        x = x + 0.1 * torch.rand_like(x)")],
        {
            "the same clip gives the same numbers",
            "train() and eval() leave no trace",
            "an early exit equals the full run",
            "layers that are asked for are those of the full run",
            'reduce="mean" is the mean of the frames',
            "a clip does not depend on its batch",
            "padding is harmless, or refused",
            "running leaves everything else alone",
            "it can be sent to another process",
        },
        "Is dropout on",
    ),
    "counting in train()": (
        [
            (
                "    def num_frames",
                "    calls = 0\n\n    def train(self, mode=True):\n        self.calls += 1\n"
                "        return super().train(mode)\n\n    def num_frames",
            ),
            (".square().mean(-1)", ".square().mean(-1) * self.calls"),
        ],
        {"train() and eval() leave no trace"},
        "before train() and eval()",
    ),
    "everything is always returned": (
        [("for i in wanted}", "for i in found}")],
        {"an early exit equals the full run", "layers that are asked for are those of the full run"},
        "resolve_layers",
    ),
    "another layer when it is asked for alone": (
        [("found = {", "x = x if stop == 1 else 2 * x\n        found = {")],
        {"an early exit equals the full run", "layers that are asked for are those of the full run"},
        "another one if it is asked for alone",
    ),
    "no mean": (
        [('states.mean() if reduce == "mean" else states', "states")],
        {'reduce="mean" is the mean of the frames'},
        "`states.mean()`",
    ),
    "normalised over the batch": (
        [(".square().mean(-1)", ".square().mean(-1)\n        x = x - x.mean(0)")],
        {"a clip does not depend on its batch", "padding is harmless, or refused"},
        "normalised over the batch",
    ),
    "normalised over padding": (
        [(".square().mean(-1)", ".square().mean(-1)\n        x = x - x.mean(1, keepdim=True)")],
        {"padding is harmless, or refused"},
        "accepts_padding = False",
    ),
    "valid where there is padding": (
        [("< frames[:, None]", "< frames.max().expand(len(x), 1)")],
        {"padding is harmless, or refused"},
        "`valid` is True for 25 frames",
    ),
    "nothing is checked": (
        [("lengths = self.check_input(waveform, num_samples)", "lengths = torch.full((len(waveform),), "
          "waveform.shape[-1]) if num_samples is None else num_samples")],
        {"wrong input is refused in words", "clips of `min_samples` run, shorter ones are refused"},
        "check_input",
    ),
    "min_samples too small": (
        [("self.min_samples, self.max_seconds = 160", "self.min_samples, self.max_seconds = 100")],
        {"clips of `min_samples` run, shorter ones are refused"},
        "Raise `min_samples`",
    ),
    "divided by its own size": (
        [(".square().mean(-1)", ".square().mean(-1)\n        x = x / x.amax(-1, keepdim=True)")],
        {"silence and full-scale noise give finite numbers"},
        "silence gives",
    ),
    "written into the waveform": (
        [("        x = waveform.unfold", "        waveform *= 0.5\n        x = waveform.unfold")],
        {"the input is left as it was"},
        "x / y, not x /= y",
    ),
    "a global seed": (
        [(INIT, INIT + "        torch.manual_seed(3)\n")],
        {"building leaves everything else alone"},
        "torch.manual_seed",
    ),
    "a default dtype": (
        [(INIT, INIT + "        torch.set_default_dtype(torch.float64)\n")],
        {"building leaves everything else alone"},
        "torch.set_default_dtype",
    ),
    "numpy's random numbers while running": (
        [("        x = waveform.unfold", "        __import__('numpy').random.rand()\n        x = waveform.unfold")],
        {"running leaves everything else alone"},
        "numpy's random generator",
    ),
    "a lambda": (
        [(INIT, INIT + "        self.squash = lambda x: x\n")],
        {"it can be sent to another process"},
        "top level",
    ),
    "weights that nobody decides": (
        [(INIT, INIT + "        self.mix = torch.nn.Linear(8, 8)\n")],
        {"the generator decides the weights", "building leaves everything else alone"},
        "Weights that are drawn need `from_published`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_is_caught_by_the_contract_that_is_about_it(fault, tmp_path):
    replacements, expected, said = BROKEN[fault]
    findings = findings_of(changed(PLAIN, *replacements), "slices", tmp_path)
    failed = failures(findings)
    assert set(failed) == expected
    assert said in " ".join(failed.values())
    assert [f.contract for f in findings] == contract_titles()  # nothing is left out without a word
    if expected <= {"it can be built", "it says what it is", "it runs on two clips"}:
        assert all(f.status == "skip" for f in findings if f.contract == "method 'lora' trains it")


BROKEN_BLOCKS = {
    "a block that goes past its sockets": (
        [
            ("NUM_LAYERS = 4", "NUM_LAYERS = 4\n\n\nclass Deaf(TransformerBlock):\n    def forward(self, x_BTD, "
             "valid_BT=None):\n        return x_BTD + self.attention(x_BTD, valid_BT=valid_BT)\n"),
            ("partial(TransformerBlock, 64", "partial(Deaf, 64"),
        ],
        {"every parameter is used", "method 'adapter' trains it", "method 'bitfit' trains it",
         "method 'finetune' trains it", "method 'lora' trains it", "method 'ssf' trains it"},
        "Does the block use its sockets",
    ),
    "a parameter without influence": (
        [("        self.stem = ", "        self.spare = torch.nn.Linear(3, 3)\n        self.stem = ")],
        {"every parameter is used", "method 'finetune' trains it"},
        "spare.weight",
    ),
    "linear maps without a socket": (
        [("NUM_LAYERS = 4", "NUM_LAYERS = 4\n\n\nclass Plain(TransformerBlock):\n    def __init__(self, *a, **k):\n"
          "        super().__init__(*a, **k)\n        self.ffn_up = torch.nn.Linear(64, 128)\n"),
         ("partial(TransformerBlock, 64", "partial(Plain, 64")],
        {"blocks have sockets and roles"},
        "'ffn_up' of block 1 is a Linear",
    ),
    "num_layers is not heard": (
        [("NUM_LAYERS if num_layers is None else num_layers)", "2)")],
        {"it can be cut to its first blocks"},
        "num_layers=2 and 2 blocks",
    ),
    "the generator is not heard": (
        [("generator = generator or torch.Generator().manual_seed(0)", "generator = torch.Generator().manual_seed(0)")],
        {"the generator decides the weights"},
        "another generator gives the same weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN_BLOCKS)
def test_a_fault_of_blocks_is_caught(fault, documented, tmp_path):
    replacements, expected, said = BROKEN_BLOCKS[fault]
    failed = failures(findings_of(changed(documented, *replacements), "tiny", tmp_path))
    assert expected <= set(failed)
    assert said in " ".join(failed.values())


def test_whoever_asks_is_not_disturbed_by_a_model_that_changes_everything(tmp_path):
    rude = changed(
        PLAIN,
        (
            INIT,
            INIT + "        import os, random\n        import numpy\n        torch.manual_seed(0)\n"
            "        numpy.random.seed(0)\n        random.seed(0)\n        torch.set_grad_enabled(False)\n"
            "        os.environ['LOUD'] = '1'\n        os.chdir('/')\n",
        ),
    )
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), Path.cwd()
    failed = failures(findings_of(rude, "slices", tmp_path))
    said = failed["building leaves everything else alone"]
    for name in (
        "torch's random",
        "numpy's random",
        "Python's random",
        "environment",
        "working directory",
        "gradients",
    ):
        assert name in said
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(
        np.random.get_state()[1], before[1]
    )
    assert random.getstate() == before[2] and Path.cwd() == before[3] and torch.is_grad_enabled()


def test_weights_are_loaded_where_they_are_given(documented, tmp_path):
    path = tmp_path / "model.py"
    path.write_text(documented)
    namespace: dict = {}
    exec(compile(documented, str(path), "exec"), namespace)
    weights = tmp_path / "tiny.pt"
    torch.save(namespace["build"](generator=torch.Generator().manual_seed(4)).state_dict(), weights)
    (loads,) = (f for f in check_backbone(f"{path}:tiny", weights) if f.contract == "its weights load")
    assert (loads.status, loads.text) == ("pass", "4 layers from file:tiny.pt")
    torch.save({"stem.0.weight": torch.zeros(64, 320)}, weights)
    (refused,) = (f for f in check_backbone(f"{path}:tiny", weights) if f.contract == "its weights load")
    assert refused.status == "fail" and WeightsError.__name__ in refused.text


def test_names_that_nobody_has(tmp_path):
    with pytest.raises(UnknownNameError, match="chroma"):
        check_backbone("chromas")
    with pytest.raises(OwnBackboneError, match="there is no file"):
        check_backbone(f"{tmp_path}/none.py:x")


def test_the_command_prints_a_line_per_contract_and_exits_with_1_on_failures(tmp_path, capsys):
    path = tmp_path / "model.py"
    path.write_text(PLAIN)
    command(f"{path}:slices")
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(contract_titles()) + 1
    assert "pass  layers 0..L have the declared shape (L = 1, T = 25, D = 8)" in out
    assert out[-1].endswith("23 contracts hold, 0 do not, 12 were not asked.")
    path.write_text(PLAIN.replace("found[i].float()", "found[i].double()"))
    with pytest.raises(SystemExit) as stopped:
        command(f"{path}:slices")
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "fail  layers are float32, finite, and not constant\n      layer 0 is torch.float64" in out
