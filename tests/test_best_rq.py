"""BEST-RQ against numbers of the published implementation (golden musicfm_tiny), and its edge cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audiation.backbones import BACKBONES
from audiation.backbones.attention import Attention
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.hubert_layout import build
from audiation.backbones.musicfm import MSD, MusicFM, fresh, from_published
from audiation.backbones.musicfm_checkpoint import our_name
from audiation.objectives import PretrainBatch, format_objective, parse_objective
from audiation.objectives.best_rq import BestRq, BestRqObjective
from audiation.objectives.quantisers import RandomProjectionQuantiser

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5
TINY = ConformerConfig(dim=16, num_heads=2, ffn_dim=24, num_layers=2, conv_kernel=5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "musicfm_tiny.safetensors")


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((GOLDEN / "musicfm_tiny.json").read_text())


@pytest.fixture
def backbone(golden: dict[str, Tensor]) -> MusicFM:
    return from_published({n: t for n, t in golden.items() if n.startswith("model.")}, {}).eval()


@pytest.fixture
def objective(backbone: MusicFM, golden: dict[str, Tensor]) -> BestRqObjective:
    made = BestRq(codebook_size=512).build(backbone)
    made.head.load_state_dict({"weight": golden["model.linear.weight"], "bias": golden["model.linear.bias"]})
    return made


def small() -> MusicFM:
    return fresh(MSD, TINY, conv_channels=4).eval()


def clips(batch: int, num_samples: int, seed: int = 0) -> PretrainBatch:
    return PretrainBatch(0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(seed)))


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach() - b.detach()).abs().max())


# Parity ----------------------------------------------------------------------------------------------


def test_tokens_are_the_published_ones(
    backbone: MusicFM, objective: BestRqObjective, golden: dict[str, Tensor], facts: dict
) -> None:
    wav = golden["io.wav"][:, : facts["config"]["train_samples"]]
    spectrum = objective.spectrum(backbone, wav)
    assert largest_difference(objective.stacked(spectrum)[:, :8], golden["io.stacked"]) < TOLERANCE
    assert torch.equal(objective.tokens(spectrum)[0], golden["io.tokens"].long())


def test_quantiser_is_the_one_inside_the_checkpoint(
    objective: BestRqObjective, golden: dict[str, Tensor]
) -> None:
    stored = RandomProjectionQuantiser.from_published(golden)
    assert torch.equal(stored.codebooks, objective.quantiser.codebooks)
    assert torch.equal(stored.projections, objective.quantiser.projections)


def test_quantiser_of_the_full_size_is_the_published_one() -> None:
    quantiser = RandomProjectionQuantiser(512)
    slices = load_file(GOLDEN / "musicfm_full_slices.safetensors")
    codebook = next(t for n, t in slices.items() if n.endswith("quantizer_melspec_2048_0.codebook"))
    assert torch.equal(quantiser.codebooks[0, : len(codebook)], codebook)
    first = torch.tensor([0.0676969, -0.0489321, -0.0975267, -0.0493857])  # MusicFM spec (c)
    assert largest_difference(quantiser.projections[0, 0, :4], first) < 1e-6


@pytest.mark.parametrize("training", [False, True])
def test_masks_loss_and_gradients_are_the_published_ones(
    backbone: MusicFM, objective: BestRqObjective, golden: dict[str, Tensor], facts: dict, training: bool
) -> None:
    """With the seed of the reference even the noise is the same."""
    backbone.train(training)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Attention):
            module.dropout = 0.0
    wav = golden["io.wav"][:, : facts["config"]["train_samples"]]
    generator = torch.Generator().manual_seed(facts["config"]["mask_seed"])
    loss = objective(backbone, PretrainBatch(wav), generator)
    mode = "train_nodropout" if training else "eval"
    assert int(loss.count) == facts["results"]["n_masked_tokens"]
    assert float(loss.mean.detach()) == pytest.approx(facts["results"][f"masked_loss_{mode}"], abs=TOLERANCE)
    assert float(loss.parts["masked_accuracy"]) == facts["results"][f"masked_acc_{mode}"]

    loss.mean.backward()
    prefix = "io.train.grad." if training else "io.masked.grad."
    checked = 0
    for name, expected in golden.items():
        if not name.startswith(prefix):
            continue
        official = name.removeprefix(prefix)
        if official.startswith("linear."):
            gradient = objective.head.get_parameter(official.removeprefix("linear.")).grad
        else:
            gradient = backbone.get_parameter(our_name(official)).grad
        assert gradient is not None
        assert largest_difference(gradient.view_as(expected), expected) < TOLERANCE
        checked += 1
    assert checked == (3 if training else 7)


def test_mask_windows_are_the_published_ones(
    objective: BestRqObjective, golden: dict[str, Tensor], facts: dict
) -> None:
    wav = golden["io.wav"][:, : facts["config"]["train_samples"]]
    generator = torch.Generator().manual_seed(facts["config"]["mask_seed"])
    masked = objective.draw_mask(wav, 75, 75, generator)
    assert torch.equal(masked.windows, golden["io.mask_start"].bool())
    assert torch.equal(masked.frames.nonzero().int(), golden["io.masked_token_indices"])


# Choices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mask_at"), [("conformer", "waveform"), ("conformer", "mel"), ("bert", "waveform")]
)
def test_every_part_gets_a_gradient(name: str, mask_at: str) -> None:
    if name == "bert":
        config = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
        model = build(config | {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4}, "bert", 24000)
    else:
        model = small()
    made = parse_objective(f"best_rq:codebook_size=64,num_codebooks=2,mask_at={mask_at}").build(model)
    loss = made(model, clips(2, 48000), torch.Generator().manual_seed(0))
    loss.sum.backward()
    missing = [n for n, p in [*model.named_parameters(), *made.named_parameters()] if p.grad is None]
    assert missing == []
    assert 0 < int(loss.count) <= 2 * model.num_frames(48000)
    assert 0.0 < float(loss.parts["target_perplexity"]) <= 64


def test_only_the_masked_windows_are_filled() -> None:
    """Frames that no masked window touches keep their spectrum; a masked one becomes quiet noise."""
    model = small()
    made = BestRq(mask_at="mel").build(model)
    batch = clips(1, 96000)
    spectrum = made.spectrum(model, batch.waveform)
    seen = []
    model.stem.project = lambda x: seen.append(x) or torch.zeros(1, model.num_frames(96000), model.dim)  # type: ignore[method-assign]
    made(model, batch, torch.Generator().manual_seed(3))
    masked = made.draw_mask(batch.waveform, 100, 100, torch.Generator().manual_seed(3)).windows
    covered = masked.repeat_interleave(made.window_frames * 4, dim=1)[0]
    assert bool(covered.any()) and not bool(covered.all())
    assert torch.equal(seen[0][0][:, ~covered], spectrum[0][:, ~covered])
    assert float(seen[0][0][:, covered].std()) == pytest.approx(0.1, rel=0.05)


def test_more_codebooks_are_drawn_from_seeds_that_follow() -> None:
    two, one = RandomProjectionQuantiser(8, 16, 2), RandomProjectionQuantiser(8, 16, 1, seed=143)
    assert torch.equal(two.codebooks[1], one.codebooks[0])


def test_standardised_bands_have_mean_0_and_deviation_1() -> None:
    """Of the crops that `prepare` measures; and more codes occur than with one scale for all."""
    model, settings = small(), "best_rq:codebook_size=256,standardise="
    plain, banded = (parse_objective(settings + how).build(model) for how in ("corpus", "bands"))
    crops = [
        0.01 * clips(2, 48000, seed).waveform.cumsum(1) for seed in range(3)
    ]  # spectra that fall, as music's do
    for objective in (plain, banded):
        objective.prepare(model, crops)
    stacked = torch.cat([banded.stacked(banded.spectrum(model, crop)).flatten(0, 1) for crop in crops])
    frames = stacked.unflatten(1, (4, -1)).flatten(0, 1)
    assert largest_difference(frames.mean(0), torch.zeros(128)) < 1e-3
    assert largest_difference(frames.std(0), torch.ones(128)) < 1e-3
    used = [len(o.tokens(o.spectrum(model, crops[0])).unique()) for o in (plain, banded)]
    assert used[1] > 2 * used[0]
    assert torch.equal(plain.band_std, torch.ones(128))


def test_building_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    BestRq().build(small())
    assert torch.equal(torch.rand(1), expected)


def test_short_form_and_back() -> None:
    settings = parse_objective("best_rq:codebook_size=8192,mask_at=mel")
    assert settings == BestRq(codebook_size=8192, mask_at="mel")
    assert format_objective(settings) == "best_rq:codebook_size=8192,mask_at=mel"
    assert format_objective(BestRq()) == "best_rq"


# What music can do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1025, 2400, 9599])
def test_a_crop_shorter_than_a_window_masks_nothing(num_samples: int) -> None:
    model, generator = small(), torch.Generator().manual_seed(0)
    loss = BestRq(codebook_size=16).build(model)(model, clips(1, num_samples), generator)
    assert float(loss.sum.detach()) == 0.0 and int(loss.count) == 0
    loss.sum.backward()
    assert all(bool(torch.as_tensor(value).isfinite().all()) for value in loss.parts.values())


def test_a_crop_that_fills_no_whole_frame_trains_on_what_is_whole() -> None:
    """9,600 + 240 samples: 41 mel frames, 11 frames of the encoder, of which the last has no target."""
    model = small()
    made = BestRq(codebook_size=16, mask_probability=1.0).build(model)
    loss = made(model, clips(1, 9840), torch.Generator().manual_seed(0))
    assert int(loss.count) == 10


@pytest.mark.parametrize("what", ["silence", "dc", "clipped"])
def test_degenerate_audio_gives_finite_losses(what: str) -> None:
    wave = {
        "silence": torch.zeros(2, 24000),
        "dc": torch.full((2, 24000), 0.5),
        "clipped": (10 * clips(2, 24000).waveform).clamp(-1, 1),
    }[what]
    model = small()
    made = BestRq(codebook_size=16).build(model)
    loss = made(model, PretrainBatch(wave), torch.Generator().manual_seed(0))
    loss.sum.backward()
    assert int(loss.count) > 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


# Refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best_rq:mask_probability=0", "mask_probability must be over 0"),
        ("best_rq:noise_std=-1", "noise_std not negative"),
        ("best_rq:codebook=3", "has no field 'codebook'"),
        ("best_rq:window_seconds=0.03", "must be a whole number"),
        ("best_rq:codebook_size=0", "codebook_size is from 2"),
        ("best_rq:codebook_size=99999999999", "codebook_size is from 2"),
        ("best_rq:codes=chekpoint", "codes"),
        ("best_rq:codes=checkpoint,standardise=bands", "cannot be chosen as well"),
        ("best_rq:codes=checkpoint,seed=7", "cannot be chosen as well"),
        ("bestrq", "unknown objective 'bestrq'"),
    ],
)
def test_bad_choices_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objective(text).build(small())


def test_a_backbone_without_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'chroma' has none"):
        BestRq().build(BACKBONES["chroma"].build())


def test_a_damaged_quantiser_is_refused(golden: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="holds no quantiser"):
        RandomProjectionQuantiser.from_published({})
    key = "model.quantizer_melspec_2048_0."
    with pytest.raises(ValueError, match="without its random_projection"):
        RandomProjectionQuantiser.from_published({key + "codebook": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match="do not fit"):
        RandomProjectionQuantiser.from_published(
            {key + "codebook": torch.zeros(4, 2), key + "random_projection": torch.zeros(3, 3)}
        )
