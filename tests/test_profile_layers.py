"""Profiles of layers on a GTZAN folder made of sines, with a backbone whose layers are known to be good or bad."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
from rich.console import Console

from audiation import profile_commands
from audiation.charts.layer_curves import LayerCurve, LayerPanel, save_layer_curves
from audiation.layer_choices import GreedySelection, GreedyStep
from audiation.own_backbones import load_own_backbone
from audiation.profile_commands import (
    CSV_HEADER,
    findings_of,
    notes_on,
    render_profile,
    show_profiles,
    write_profiles,
)
from audiation.profile_layers import FailedTask, LayerProfile, TaskProfile, normalise, profile_layers
from audiation.recipes import jukemir_figure2, run_recipe
from audiation.recipes.base import parse_recipe
from audiation.recipes.jukemir_figure2 import JukemirFigure2, verdict
from audiation.registry import UnknownNameError

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
LISTS = {"train": range(3), "valid": range(3, 5), "test": range(5, 6)}
QUICK = "hidden_size=none,patience=8,learning_rate=0.03,dropout=0"

# Genre k has one of two pitches (k // 5) and one of five loudnesses (k % 5). Layer 0 hears neither, layer 1 the pitch,
# layer 2 the loudness, and layer 3 nothing but what of the pitch is left beside a much louder constant.
BANDS = """
import torch
from audiation.backbones.base import Backbone, BackboneSpec, HiddenStates


class Bands(Backbone):
    def __init__(self):
        super().__init__()
        self.name, self.num_layers, self.dim = "bands", 3, 4
        self.sample_rate_hz, self.hop_samples = 8000, 4000
        self.frame_rate_hz = 2.0
        self.min_samples, self.max_seconds = 4000, None
        self.first_frame_seconds = 0.25
        self.normalisation, self.accepts_padding = "none", False

    def forward(self, waveform, num_samples=None, layers=None, last_layer=None, reduce=None):
        self.check_input(waveform, num_samples)
        wanted, _ = self.resolve_layers(layers, last_layer)
        frames = waveform.unfold(1, 4000, 4000)
        power = torch.fft.rfft(frames).abs().square()
        low, high = power[..., 90:150].sum(-1), power[..., 150:400].sum(-1)
        pitch = (low / (low + high)).unsqueeze(-1)
        loud = frames.square().mean(-1, keepdim=True).log() / 2
        zero = torch.zeros_like(pitch)
        noise = torch.sin(1e4 * frames[..., :1])
        found = {
            0: torch.cat([noise, zero, zero, zero], -1),
            1: torch.cat([pitch, noise, zero, zero], -1),
            2: torch.cat([loud, loud.square(), loud**3, noise], -1),
            3: torch.cat([noise, zero, zero, noise.square()], -1),
        }
        valid = torch.ones(frames.shape[:2], dtype=torch.bool)
        states = HiddenStates({i: found[i].float() for i in wanted}, valid, 2.0, 0.25)
        return states.mean() if reduce == "mean" else states

    def num_frames(self, num_samples):
        return num_samples // 4000


bands = BackboneSpec("bands", "two bands", lambda num_layers=None, generator=None: Bands(), has_encoder=False)
"""


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    names = {split: [] for split in LISTS}
    time = np.arange(22050) / 22050
    for k, genre in enumerate(GENRES):
        folder = root / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        for split, numbers in LISTS.items():
            for n in numbers:
                name = f"{genre}.{n:05}.wav"
                names[split].append(f"{genre}/{name}")
                tone = 0.5 ** (k % 5) * np.sin(2 * np.pi * (220 + 440 * (k // 5)) * time + 6 * rng.random())
                soundfile.write(folder / name, 0.5 * tone, 22050, subtype="FLOAT")
    for split, lines in names.items():
        (root / "gtzan" / f"{split}_filtered.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "bands.py"
    path.write_text(BANDS)
    load_own_backbone(f"{path}:bands")
    return f"{path}:bands"


@pytest.fixture
def places(gtzan, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AUDIATION_METADATA_ROOT", raising=False)
    return {"data_root": gtzan, "store_dir": tmp_path / "store", "out": tmp_path / "out"}


def a_task(task="gtzan_genre", scores=None, **more):
    numbers = {"higher_is_better": True, "num_probes": 1, "num_train_windows": 30, "num_valid_tracks": 20}
    return TaskProfile(
        task=task, metric="accuracy", scores=scores or {0: 0.2, 1: 0.6, 2: 0.4}, **numbers | more
    )


def a_profile(*tasks, layers=(0, 1, 2), failed=()):
    return LayerProfile("some-model", max(layers), layers, "jukemir-single", "random:seed=0", tasks, failed)


class Screen(Console):
    def __init__(self):
        super().__init__(file=io.StringIO(), width=160)

    @property
    def text(self):
        return " ".join(self.file.getvalue().split())


# The numbers ----------------------------------------------------------------------------------------------


def test_the_worst_layer_is_0_and_the_best_is_1():
    assert normalise({0: 0.2, 3: 0.6, 6: 0.3}) == pytest.approx({0: 0.0, 3: 1.0, 6: 0.25})
    assert normalise({0: -3.0, 1: None, 2: -1.0}) == {0: 0.0, 1: None, 2: 1.0}
    assert normalise({0: 0.5, 1: 0.5}) == {0: None, 1: None}
    assert normalise({0: None}) == {0: None}
    assert normalise({0: 0.3, 1: 0.1 + 0.2}) == {0: None, 1: None}  # they differ in the last bit


def test_what_an_earlier_call_wrote_stays_where_nothing_was_profiled(tmp_path):
    written = write_profiles([a_profile(a_task())], tmp_path)
    assert {path.name for path in written} == {"layers.csv", "layers.json", "layers.png", "layers.svg"}
    before = {path: path.read_bytes() for path in written}
    assert write_profiles([a_profile(failed=(FailedTask("mtt", "not there"),))], tmp_path) == []
    assert {path: path.read_bytes() for path in written} == before
    with pytest.raises(ValueError, match="workers must be >= 0"):
        profile_layers("mfcc", ["gtzan_genre"], workers=-1)


def test_one_layer_has_no_curve(tmp_path):
    write_profiles([a_profile(a_task())], tmp_path)
    one = a_profile(a_task(scores={0: 0.5}), layers=(0,))
    assert {path.name for path in write_profiles([one], tmp_path)} == {"layers.csv", "layers.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"layers.csv", "layers.json"}


def test_the_mean_is_over_tasks_that_tell_layers_apart():
    one, two = a_task(), a_task("mtt", {0: 0.9, 1: 0.7, 2: 0.9})
    flat = a_task("emomusic", {0: 0.1, 1: 0.1, 2: 0.1})
    profile = a_profile(one, two, flat)
    assert profile.mean == pytest.approx({0: 0.5, 1: 0.5, 2: 0.75})
    assert profile.best_layer == 2
    assert (one.best_layer, two.best_layer, flat.best_layer) == (1, 0, None)
    assert profile.counted == (one, two)
    assert a_profile(flat).best_layer is None


def test_a_layer_that_diverged_on_one_task_has_no_mean():
    profile = a_profile(a_task(), a_task("mtt", {0: 0.9, 1: None, 2: 0.7}))
    assert profile.mean[1] is None
    assert (profile.mean[0], profile.mean[2]) == pytest.approx((0.5, 0.25))
    assert profile.best_layer == 0


# From recordings ------------------------------------------------------------------------------------------


def test_layers_that_hear_something_are_better_and_two_together_are_best(bands, places):
    stages = []
    profile = profile_layers(
        bands, ["gtzan_genre"], choose="greedy:3", train=QUICK,
        progress=lambda task, state: stages.append((task, state.stage)), **places,
    )  # fmt: skip
    (one,) = profile.tasks
    assert profile.layers == (0, 1, 2, 3) and profile.num_layers == 3 and not profile.failed
    assert (one.num_train_windows, one.num_valid_tracks, one.failures) == (30, 20, ())
    assert (
        one.best_layer == 2 and max(one.scores[0], one.scores[3]) < one.scores[2] <= 0.5
    )  # one of two pitches
    assert one.selection.layers == (1, 2) and one.selection.score > one.scores[2] + 0.3
    assert {stage for _, stage in stages} == {"data", "features", "probe"}


def test_what_was_profiled_is_read_again(bands, places, monkeypatch):
    first = profile_layers(bands, ["gtzan_genre"], "1+2", train=QUICK, choose="greedy:2", **places)
    assert len(list(places["out"].glob("layers.gtzan_genre.*.json"))) == 1
    with monkeypatch.context() as patched:
        patched.setattr("audiation.profile_layers.extract_features", None)  # would be called in vain
        assert (
            profile_layers(bands, ["gtzan_genre"], "2+1", train=QUICK, choose="greedy:2", **places) == first
        )
    other = profile_layers(bands, ["gtzan_genre"], "2+3", train=QUICK, **places)
    assert other.layers == (2, 3) and other.tasks[0].selection is None
    assert other.tasks[0].scores[2] == first.tasks[0].scores[2]


def test_a_file_that_somebody_edited_is_made_anew(bands, places):
    first = profile_layers(bands, ["gtzan_genre"], "1+2", train=QUICK, **places)
    (path,) = places["out"].glob("layers.gtzan_genre.*.json")
    path.write_text(path.read_text()[:100])
    assert profile_layers(bands, ["gtzan_genre"], "1+2", train=QUICK, **places) == first
    assert json.loads(path.read_text())["profile"]["task"] == "gtzan_genre"


def test_all_layers_are_stored_in_one_pass(bands, places, monkeypatch):
    asked = []
    from audiation import profile_layers as module

    real = module.extract_features
    monkeypatch.setattr(
        module,
        "extract_features",
        lambda m, t, s, layers, **o: asked.append(layers) or real(m, t, s, layers, **o),
    )
    profile_layers(bands, ["gtzan_genre"], train=QUICK, choose="greedy:2", **places)
    assert asked == [(0, 1, 2, 3)]


def test_a_task_that_cannot_be_profiled_does_not_stop_the_others(bands, places):
    profile = profile_layers(bands, ["mtt", "gtzan_rhythm", "gtzan_genre"], "1+2", train=QUICK, **places)
    assert [one.task for one in profile.tasks] == ["gtzan_genre"]
    assert [one.task for one in profile.failed] == ["mtt", "gtzan_rhythm"]
    assert "every frame" in profile.failed[1].reason


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"tasks": []}, ValueError, "at least one task"),
        ({"tasks": ["mtt", "mtt"]}, ValueError, "named twice"),
        ({"tasks": ["gtzan_genra"]}, UnknownNameError, "gtzan_genre"),
        ({"protocol": "petl"}, ValueError, "does not probe stored vectors"),
        ({"layers": "4"}, ValueError, r"layers 0\.\.3"),
        ({"layers": "greedy:2"}, ValueError, "needs a task"),
        ({"choose": "all"}, ValueError, "greedy:n"),
        ({"train": "hidden=3"}, ValueError, "has no field 'hidden'"),
        ({"train": "layer=2"}, ValueError, "named twice"),
    ],
)
def test_choices_that_there_are_not(bands, places, options, error, message):
    given = {"tasks": ["gtzan_genre"]} | options
    with pytest.raises(error, match=message):
        profile_layers(bands, given.pop("tasks"), **given, **places)
    assert not places["store_dir"].exists()


# Table and files ------------------------------------------------------------------------------------------


def test_the_table_has_scores_and_marks_the_best():
    screen = Screen()
    screen.print(render_profile(a_profile(a_task(), a_task("mtt", {0: 0.9, 1: None, 2: 0.7}))))
    assert "0.600 (1.00)*" in screen.text and "diverged" in screen.text and "0.400 (0.50)" in screen.text


def test_findings_are_said():
    selection = GreedySelection((GreedyStep(1, 0.6), GreedyStep(2, 0.7)), GreedyStep(0, 0.65))
    profile = a_profile(a_task(selection=selection), a_task("mtt", {0: 0.1, 1: 0.3, 2: 0.2}))
    assert findings_of(profile) == [
        "gtzan_genre: layer 1 (accuracy 0.600)",
        "gtzan_genre: together, in this order: 1 (0.600), 2 (0.700); 0 would not raise it (0.650)",
        "mtt: layer 1 (accuracy 0.300)",
        "Mean over 2 tasks: layer 1 of 2, 50% of the depth.",
    ]
    flat = a_profile(a_task(scores={0: 0.5, 1: 0.5}, failures=(("x", "not audio"),)), layers=(0, 1))
    assert notes_on(flat)[1:] == [
        "gtzan_genre: 30 windows to train, 20 tracks to validate; 1 recordings were not used, the first: x: not audio; "
        "best and worst layer differ by 0.000.",
        "gtzan_genre does not tell these layers apart, and is not in the mean.",
    ]


def test_files_hold_what_the_table_holds(tmp_path):
    selection = GreedySelection((GreedyStep(1, 0.6), GreedyStep(2, 0.7)))
    small = a_task("mtt", {0: -0.1, 1: -0.3, 2: None}, higher_is_better=False)
    profile = a_profile(a_task(selection=selection), small, failed=(FailedTask("emomusic", "not there"),))
    screen = Screen()
    written = show_profiles([profile], screen, tmp_path, {"some-model": (1, "the middle")})
    assert [p.name for p in written] == ["layers.csv", "layers.json", "layers.png", "layers.svg"]
    assert "not profiled: emomusic: not there" in screen.text
    with written[0].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CSV_HEADER and all(None not in row for row in rows)
    assert [row["task"] for row in rows] == ["gtzan_genre"] * 3 + ["mtt"] * 3 + ["mean"] * 3 + ["emomusic"]
    assert rows[1]["score"] == "0.6" and rows[1]["normalised"] == "1.0" and rows[1]["selected_with"] == "1+2"
    assert rows[3]["score"] == "0.1" and rows[3]["normalised"] == "1.0"  # small is good
    assert rows[5]["score"] == "" and rows[9]["note"] == "not profiled: not there"
    (record,) = json.loads(written[1].read_text())
    assert record["mean"] == {"0": 0.5, "1": 0.5, "2": None} and record["best_layer"] == 0
    assert record["tasks"][0]["selection"]["layers"] == [1, 2]
    assert written[2].read_bytes()[:4] == b"\x89PNG"
    svg = written[3].read_text()
    assert "<svg" in svg


def test_the_same_numbers_are_the_same_chart(tmp_path):
    panel = LayerPanel(
        "a $model$", 12, (LayerCurve("x", {0: 0.0, 6: 1.0, 12: None}),), {0: 0.0, 6: 1.0}, (6, "mid")
    )
    first = save_layer_curves([panel, panel], tmp_path / "a", "layers")[1].read_bytes()
    assert save_layer_curves([panel, panel], tmp_path / "b", "layers")[1].read_bytes() == first


def test_the_command_writes_and_ends_with_1_where_a_task_failed(bands, places, capsys):
    options = {
        "layers": "1+2",
        "train": QUICK,
        "data_root": places["data_root"],
        "store": places["store_dir"],
    }
    profile_commands.profile_layers(bands, ("gtzan_genre",), out=places["out"], **options)
    assert (places["out"] / "layers.svg").is_file()
    assert "gtzan_genre: layer 2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        profile_commands.profile_layers(bands, ("mtt",), **options)
    assert stopped.value.code == 1


# The recipe -----------------------------------------------------------------------------------------------


def test_the_recipe_is_the_figure_by_default():
    recipe = parse_recipe("jukemir_figure2:layers=every:18,train=hidden_size=none+patience=4")
    assert recipe == JukemirFigure2(layers="every:18", train="hidden_size=none+patience=4")
    assert recipe.tasks == "mtt+gtzan_genre+giantsteps_key+emomusic" and recipe.protocol == "jukemir-single"
    with pytest.raises(UnknownNameError):
        parse_recipe("jukemir_figure2:backbones=jukebox-6b")
    with pytest.raises(ValueError, match="does not probe"):
        parse_recipe("jukemir_figure2:protocol=petl")
    for choices, reason in (
        ("layers=nix", "names no layers"),
        ("layers=greedy:2", "needs a task"),
        ("choose=middle", "choose is greedy:n"),
        ("weights=nix", "official ones or random"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_recipe(f"jukemir_figure2:{choices}")


def test_the_recipe_says_what_is_not_there_and_goes_on(tmp_path, monkeypatch):
    seen = []

    def profile(backbone, tasks, layers, console, **options):
        if backbone == "mert-v0":
            raise ValueError("no weights today")
        seen.append((backbone, tasks, layers, options["train"]))
        return a_profile(a_task(), a_task("mtt", {0: 0.1, 1: 0.3, 2: 0.2}))

    monkeypatch.setattr(jukemir_figure2, "profile_with_progress", profile)
    screen = Screen()
    text = "jukemir_figure2:backbones=mert-v0+musicfm-mini,tasks=gtzan_genre+mtt,train=hidden_size=none+patience=4"
    run_recipe(text, tmp_path, console=screen)
    assert seen == [("musicfm-mini", ["gtzan_genre", "mtt"], "every:9", "hidden_size=none,patience=4")]
    assert "not profiled: mert-v0: no weights today" in screen.text
    assert "highest at layer 1 of 2, in the middle third (as published)" in screen.text
    assert (tmp_path / "jukemir_figure2" / "layers.png").is_file()


def test_verdicts():
    late = a_profile(a_task(scores={0: 0.1, 1: 0.2, 2: 0.4}))
    assert verdict(late).endswith("in the late third (the paper finds the middle).")
    assert "no task tells" in verdict(a_profile(a_task(scores={0: 0.1, 1: 0.1, 2: 0.1})))
    assert "too few" in verdict(a_profile(a_task(scores={0: 0.1, 2: 0.4}), layers=(0, 2)))
