"""What adaptation changes: measures against their definitions, models against the backbones they were made of."""

import csv
import dataclasses
import gc
import io
import json
import weakref

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from audiation import compare_features as module
from audiation import console as console_module
from audiation.adapted import AdaptedModel
from audiation.adapter_files import AdapterError, save_adapter
from audiation.audio import load_audio
from audiation.compare_commands import (
    by_system,
    compare_features,
    notes_on,
    render_comparisons,
    show_comparisons,
    shown,
    write_comparisons,
)
from audiation.compare_features import (
    OWN_AUDIO,
    Comparisons,
    FailedModel,
    FeatureComparison,
    Similarity,
    compare_models,
    compare_vectors,
    linear_cka,
    pearson_per_dimension,
    window_features,
)
from audiation.frame_targets import BeatTarget
from audiation.loading import load_backbone
from audiation.methods import inject
from audiation.protocols import PROTOCOLS
from audiation.recipes.base import parse_recipe
from audiation.recipes.petl_section5_3 import PetlSection53, means_over_methods
from audiation.results import Result
from audiation.run import Run
from audiation.targets import ClassTarget
from audiation.windows import window_policy

# A clip that is text is left out by the reader, which warns.
pytestmark = pytest.mark.filterwarnings("ignore:gtzan. 1 of 10 listed recordings:UserWarning")
GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Measures -------------------------------------------------------------------------------------------------


def test_correlation_is_numpys_dimension_by_dimension():
    plain, adapted = draw(40, 7), draw(40, 7, seed=1) + 0.5 * draw(40, 7)
    expected = [np.corrcoef(plain[:, d].numpy(), adapted[:, d].numpy())[0, 1] for d in range(7)]
    assert pearson_per_dimension(plain, adapted).numpy() == pytest.approx(expected, abs=1e-6)
    assert compare_vectors(plain, adapted).correlation == pytest.approx(np.mean(expected), abs=1e-6)


def test_equal_features_give_one_by_computing_and_exactly_when_reported():
    features = 3 + 5 * draw(30, 200)
    assert pearson_per_dimension(features, features).numpy() == pytest.approx(np.ones(200), abs=1e-12)
    assert linear_cka(features, features) == pytest.approx(1, abs=1e-12)
    found = compare_vectors(features, features.clone())
    assert (found.correlation, found.cka) == (1.0, 1.0)


def test_signs_scales_and_offsets():
    features = draw(25, 6)
    assert compare_vectors(features, 7 - 2 * features).correlation == pytest.approx(-1, abs=1e-6)
    assert compare_vectors(features, 7 - 2 * features).cka == pytest.approx(1, abs=1e-6)
    mixed = features.clone()
    mixed[:, :3] *= -1
    assert compare_vectors(features, mixed).correlation == pytest.approx(0, abs=1e-6)


def test_cka_is_that_of_centred_gram_matrices_and_forgives_a_rotation():
    x, y = draw(20, 9).double(), draw(20, 5, seed=1).double() + draw(20, 9).double()[:, :5]
    centre = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = float((k * m).sum() / (k.norm() * m.norm()))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-12) and 0.1 < expected < 0.95
    rotation = torch.linalg.qr(draw(9, 9, seed=2).double()).Q
    assert linear_cka(x, 0.3 * x @ rotation + 4) == pytest.approx(1, abs=1e-12)
    assert abs(compare_vectors(x, x @ rotation).correlation) < 0.9


def test_unrelated_features_with_fewer_clips_than_dimensions_have_a_high_cka():
    """Which is why the notes say so."""
    few, many = (compare_vectors(draw(n, 64), draw(n, 64, seed=1)) for n in (16, 2048))
    assert few.cka == pytest.approx(64 / (16 + 64), abs=0.05)
    assert many.cka == pytest.approx(64 / (2048 + 64), abs=0.01)
    assert abs(few.correlation) < 0.15 and abs(many.correlation) < 0.05


def test_dimensions_without_variance_are_left_out_and_counted():
    plain, adapted = draw(30, 5), draw(30, 5, seed=1)
    whole = pearson_per_dimension(plain, adapted)
    plain[:, 1], adapted[:, 3] = 0.0, 1.7
    adapted[:, 3] += 1e-7 * draw(30)  # rounding is no variance
    found = compare_vectors(plain, adapted)
    assert (found.num_dims, found.num_constant_dims) == (5, 2)
    assert found.correlation == pytest.approx(float(whole[[0, 2, 4]].mean()), abs=1e-12)


@pytest.mark.parametrize(
    "plain, adapted, says",
    [
        (draw(4, 3), draw(4, 2), "two \\(clips, dimensions\\), got \\(4, 3\\) and \\(4, 2\\)"),
        (draw(4), draw(4), "two \\(clips, dimensions\\)"),
        (draw(2, 3), draw(2, 3), "at least 3 clips, got 2"),
        (torch.ones(4, 3), draw(4, 3), "none of the 3 dimensions varies over the 4 clips"),
        (draw(4, 3), torch.full((4, 3), torch.nan), "of the adapted backbone hold NaN"),
    ],
)
def test_what_cannot_be_correlated_is_refused(plain, adapted, says):
    with pytest.raises(ValueError, match=says):
        compare_vectors(plain, adapted)


# Models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory):
    """Data root with a test clip per genre, a sine at a pitch of its own, of 2.4 or 3.1 s; the last one is text."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for k, genre in enumerate(GENRES):
        folder = root / "gtzan" / "genres" / genre
        folder.mkdir(parents=True)
        time = np.arange((53_000, 68_000)[k % 2]) / 22_050
        tone = 0.4 * np.sin(2 * np.pi * 220 * 2 ** (k / 12) * time)
        soundfile.write(folder / f"{genre}.00000.wav", tone + 0.02 * noise.standard_normal(len(time)), 22_050)
    (root / "gtzan" / "genres" / "rock" / "rock.00000.wav").write_text("not audio")
    lists = {"test": [f"{g}/{g}.00000.wav" for g in GENRES], "train": [], "valid": []}
    for split, lines in lists.items():
        (root / "gtzan" / f"{split}_filtered.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def adapted_model(method, target=None, seed=3, **options):
    """musicfm-mini with 2 blocks and seed 4, adapted as if it had been trained."""
    backbone, generator = load_backbone("musicfm-mini", "random", num_layers=2, seed=4), torch.Generator()
    inject(backbone, method, generator.manual_seed(seed))
    model = AdaptedModel(
        backbone, target or ClassTarget(GENRES), generator=generator, **({"crop_seconds": 1.0} | options)
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of models of one backbone, in an order in which the fine-tuned one is not last."""
    root = tmp_path_factory.mktemp("models")
    return {
        method: save_adapter(adapted_model(method), root / method, info={"task": "gtzan_genre"})
        for method in ("probe", "finetune", "lora", "prompt")
    }


@pytest.fixture(scope="module")
def compared(saved, gtzan):
    seen = []
    return compare_models(list(saved.values()), data_root=gtzan, layers=[1, 2], progress=seen.append), seen


def test_probing_gives_exactly_one_and_other_methods_do_not(compared, saved):
    comparisons, _ = compared
    assert not comparisons.failed
    assert [(row.method, row.layer) for row in comparisons.rows] == [
        (method, layer) for method in saved for layer in (1, 2)
    ]
    for row in comparisons.rows:
        found = row.similarity
        assert (found.num_clips, row.num_official_clips, found.num_dims) == (9, 10, 128)
        assert [name for name, _ in row.unread] == ["rock.00000"]
        if row.method == "probe":
            assert (found.correlation, found.cka) == (1.0, 1.0)
        else:
            assert -1 < found.correlation < 1 - 1e-6 and 0 < found.cka < 1 - 1e-9
    assert {row.weights_source for row in comparisons.rows} == {"random:seed=4"}
    assert {(row.window_seconds, row.windows, row.precision) for row in comparisons.rows} == {
        (1.0, "petl", "fp32")
    }


def test_untouched_features_are_made_once_for_models_that_hear_alike(compared, saved):
    _, seen = compared
    made = [(p.model, p.side) for p in seen if p.num_clips == 0]
    # Probes hear long windows in pieces, so theirs are made apart.
    assert [side for _, side in made].count("untouched") == 2
    assert {model for model, side in made if side == "adapted"} == {str(d) for d in saved.values()}
    assert {p.total_clips for p in seen} == {9}  # the one that is text is left out by the reader


def test_features_are_the_means_over_windows_and_time(saved, gtzan, compared):
    """By hand: windows of 1 s, a rest dropped, each through the backbone alone."""
    plain, adapted = (
        load_backbone("musicfm-mini", "random", num_layers=2, seed=4),
        adapted_model("lora").backbone,
    )
    vectors = []
    for backbone in (plain, adapted):
        rows = []
        for genre in GENRES[:-1]:
            samples = load_audio(gtzan / f"gtzan/genres/{genre}/{genre}.00000.wav", 24_000).samples
            windows = samples[: len(samples) // 24_000 * 24_000].reshape(-1, 24_000)
            with torch.inference_mode():
                rows.append(
                    torch.cat([backbone(w[None], layers=[2]).layers[2].mean(1) for w in windows]).mean(0)
                )
        vectors.append(torch.stack(rows))
    expected = compare_vectors(*vectors)
    (row,) = (r for r in compared[0].rows if r.method.startswith("lora") and r.layer == 2)
    assert row.similarity.correlation == pytest.approx(expected.correlation, abs=1e-4)
    assert row.similarity.cka == pytest.approx(expected.cka, abs=1e-4)


@pytest.mark.parametrize(
    "method, seconds",
    [
        ("probe", 1.0),
        ("lora", 1.0),
        ("prompt", 1.0),
        ("probe", 31.0),
        ("lora", 31.0),
    ],  # 30 s are taken at once
)
def test_compared_is_what_the_head_reads(method, seconds):
    model = adapted_model(method)
    x_BS = 0.1 * draw(1, int(24_000 * seconds))
    with torch.inference_mode():
        ours = window_features(model, x_BS, [2], in_chunks=not model.backbone.adapted_with.trains_backbone)[2]
        assert torch.equal(ours, model.pool(x_BS)[:, 0])


def test_prompts_are_left_out_where_the_head_reads_frames():
    model = adapted_model("prompt", BeatTarget(), policy=window_policy("whole-track"))
    x_BS = 0.1 * draw(1, 48_000)
    with torch.inference_mode():
        found = window_features(model, x_BS, [2], in_chunks=False)[2]
        states = model.backbone(x_BS, layers=[2])
    assert states.num_prompts > 0
    assert torch.allclose(found, states.layers[2][:, -50:].mean(1), atol=1e-6)


def test_no_second_backbone_is_loaded_beside_the_first(saved, gtzan, monkeypatch):
    alive, most = [], []

    def counting(*args, **kwargs):
        gc.collect()
        backbone = load_backbone(*args, **kwargs)
        alive.append(weakref.ref(backbone))
        most.append(sum(ref() is not None for ref in alive))
        return backbone

    monkeypatch.setattr(module, "load_backbone", counting)
    monkeypatch.setattr("audiation.adapters.load_backbone", counting)
    compare_models([saved["finetune"], saved["probe"]], data_root=gtzan)
    assert most == [1, 1]


def test_bf16_and_batches_are_said_and_change_little(saved, gtzan, compared):
    (half,) = compare_models([saved["lora"]], data_root=gtzan, precision="bf16", batch_size=2).rows
    (full,) = (r for r in compared[0].rows if r.model == str(saved["lora"]) and r.layer == 2)
    assert half.precision == "bf16" and half.similarity != full.similarity
    assert half.similarity.correlation == pytest.approx(full.similarity.correlation, abs=0.05)
    (probe,) = compare_models([saved["probe"]], data_root=gtzan, precision="bf16").rows
    assert probe.similarity.correlation == 1.0


def test_a_model_of_own_labels_takes_audio(gtzan, tmp_path):
    own = save_adapter(adapted_model("bitfit"), tmp_path / "own", info={})
    refused = compare_models([own], data_root=gtzan)
    assert not refused.rows and "--audio" in refused.failed[0].reason
    (row,) = compare_models([own], audio=[gtzan / "gtzan"]).rows
    assert (row.task, row.layer, row.similarity.num_clips, row.num_official_clips) == (OWN_AUDIO, 2, 9, 10)


def test_what_fails_does_not_stop_the_others(saved, gtzan, tmp_path):
    lost = save_adapter(adapted_model("ssf"), tmp_path / "lost", info={"task": "emomusic"})
    deep = compare_models([lost, saved["probe"]], data_root=gtzan)
    assert [row.method for row in deep.rows] == ["probe"]
    assert [one.model for one in deep.failed] == [str(lost)] and "emomusic" in deep.failed[0].reason
    layers = compare_models([saved["probe"]], data_root=gtzan, layers=[3])
    assert not layers.rows and "layers 0..2, got 3" in layers.failed[0].reason
    weights = compare_models([saved["probe"]], data_root=gtzan, weights=str(tmp_path / "nowhere.pt"))
    assert not weights.rows and "nowhere.pt" in weights.failed[0].reason


def test_calls_that_mean_nothing_are_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="at least one adapted model"):
        compare_models([])
    with pytest.raises(ValueError, match="named twice"):
        compare_models([saved["probe"], saved["probe"]])
    with pytest.raises(ValueError, match="layers are numbers"):
        compare_models([saved["probe"]], layers=[])
    with pytest.raises(AdapterError, match=r"no file adapter\.json"):
        compare_models([tmp_path])


def test_a_result_is_refused_with_the_command_that_makes_its_model(tmp_path):
    result = Result(
        dataclasses.asdict(Run("chroma", "gtzan_key")), {"accuracy": 0.5}, {"accuracy": None}, 4, 4, "ab"
    )
    path = tmp_path / "one.json"
    result.save(path)
    with pytest.raises(ValueError, match=f"--run {path} --model-out {tmp_path / 'one.model'}"):
        compare_models([path])
    path.write_text("{}")
    with pytest.raises(ValueError, match="is a file"):
        compare_models([path])


# What is shown --------------------------------------------------------------------------------------------


def a_row(method="lora", task="gtzan_key", correlation=0.5, **more):
    found = Similarity(correlation, 0.75, 290, 1024, more.pop("num_constant_dims", 0))
    row = FeatureComparison(
        "models/m", "musicfm-msd", "official", "ab", 6, 6, method, task, found, 30.0, "petl", "fp32", 290
    )
    return dataclasses.replace(row, **more)


ROWS = (
    a_row("probe", correlation=1.0),
    a_row("probe", "gtzan_genre", 1.0),
    a_row("lora", correlation=-0.25, num_constant_dims=3),
    a_row("lora", correlation=0.9996, model="models/again"),
    a_row("lora", "gtzan_genre", 0.8, backbone="mert-v1-95m"),
)


def screen():
    return Console(file=io.StringIO(), width=140)


def test_one_is_printed_for_one_only():
    assert [shown(v) for v in (1.0, 0.9999999, 0.9991, 0.5, -0.25)] == [
        "1.000",
        "0.999",
        "0.999",
        "0.500",
        "-0.250",
    ]


def test_the_table_is_method_by_task_and_models_that_are_alike_have_rows_of_their_own():
    systems = by_system(ROWS)
    assert [(s.backbone, s.title, sorted(cells)) for s, cells in systems.items()] == [
        ("musicfm-msd", "probe", ["gtzan_genre", "gtzan_key"]),
        ("musicfm-msd", "lora", ["gtzan_key"]),
        ("musicfm-msd", "lora (2)", ["gtzan_key"]),
        ("mert-v1-95m", "lora", ["gtzan_genre"]),
    ]
    console = screen()
    console.print(render_comparisons(ROWS))
    text = console.file.getvalue()
    assert "1.000 (0.750)" in text and "-0.250 (0.750)" in text and "musicfm-msd, layer 6 of 6" in text


def test_notes_say_what_was_left_out():
    notes = "\n".join(
        notes_on([*ROWS, a_row("ssf", unread=(("jazz.00003", "no audio"),), num_official_clips=291)])
    )
    assert "3 of 1024 dimensions do not vary" in notes and "not debiased" in notes
    assert "290 of 290 clips, 290 of 291 clips; fewer than dimensions, which raises CKA" in notes
    assert "not read: jazz.00003: no audio" in notes


def test_files(tmp_path):
    comparisons = Comparisons(ROWS, (FailedModel("models/x", "no such data"),))
    written = write_comparisons(comparisons, tmp_path / "out")
    assert [p.name for p in written] == [f"comparison.{kind}" for kind in ("csv", "json", "png", "svg")]
    rows = list(csv.DictReader(written[0].open(newline="")))
    assert [row["correlation"] for row in rows] == ["1.0", "1.0", "-0.25", "0.9996", "0.8", ""]
    assert (rows[5]["model"], rows[5]["note"]) == ("models/x", "not compared: no such data")
    record = json.loads(written[1].read_text())
    assert record["rows"][2]["similarity"]["num_constant_dims"] == 3 and len(record["failed"]) == 1
    assert written[2].read_bytes()[:4] == b"\x89PNG"
    svg = written[3].read_text()
    again = write_comparisons(comparisons, tmp_path / "again")
    assert svg == again[3].read_text()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in written)


def test_where_nothing_was_compared_there_is_no_heat_map(tmp_path):
    console = screen()
    written = show_comparisons(Comparisons((), (FailedModel("m", "[no] data"),)), console, tmp_path)
    assert [p.name for p in written] == ["comparison.csv", "comparison.json"]
    assert "not compared: m: [no] data" in console.file.getvalue()


def test_the_command(saved, gtzan, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    compare_features((saved["probe"], saved["lora"]), data_root=gtzan, out=tmp_path / "out")
    text = capsys.readouterr().out
    assert "1.000 (1.000)" in text and "gtzan_genre: 9 of 10 clips" in text and "comparison.png" in text
    lost = save_adapter(adapted_model("ssf"), tmp_path / "lost", info={"task": "emomusic"})
    with pytest.raises(SystemExit) as ended:
        compare_features((lost,), data_root=gtzan)
    assert ended.value.code == 1 and "not compared" in capsys.readouterr().out


# The recipe -----------------------------------------------------------------------------------------------


def test_the_recipe_of_section_5_3_keeps_models_and_goes_on(gtzan, saved, tmp_path, monkeypatch):
    assert len(PetlSection53().runs()) == 2 * 8 * 3
    recipe = parse_recipe(
        "petl_section5_3:backbones=musicfm-mini,tasks=gtzan_genre,methods=probe+lora+bitfit,num_layers=2,weights=random"
    )
    monkeypatch.setenv("AUDIATION_DATA_ROOT", str(gtzan))
    carried = []

    def evaluate(run, *, model_out, **options):
        if run.method == "bitfit":
            raise ValueError("no bits today")
        carried.append(run.method)
        model = adapted_model(run.method)
        save_adapter(model, model_out, info={"task": run.task})
        version = PROTOCOLS[run.protocol].version
        record = dataclasses.asdict(run) | {"layer": 2, "method_parameters": 1, "protocol_version": version}
        return Result(record, {"accuracy": 0.5}, {"accuracy": None}, 9, 9, "ab")

    monkeypatch.setattr(console_module, "evaluate", evaluate)
    console = screen()
    recipe.carry_out(tmp_path, "cpu", console)
    text = console.file.getvalue()
    assert "no bits today" in text and "2 of 3 runs were compared" in text and "1.000 (1.000)" in text
    assert "musicfm-mini, mean over methods that change features: gtzan_genre 0." in text
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open(newline="")))
    assert [row["correlation"] == "1.0" for row in rows] == [True, False]
    recipe.carry_out(tmp_path, "cpu", screen())
    assert [name.partition(":")[0] for name in carried] == ["probe", "lora"]  # neither of them again
    of_paper = [a_row("lora", task) for task in ("gtzan_genre", "gtzan_key", "gtzan_tempo")]
    assert "prints no numbers" in means_over_methods(of_paper)[-1]
    assert means_over_methods([a_row("probe")]) == []
