"""Jukebox against numbers of the published implementation, at reduced width."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

import detgen
from audiation.backbones import BACKBONES
from audiation.backbones.jukebox import Jukebox, build, from_published, outline
from audiation.backbones.jukebox_conditioning import (
    JukeboxConditioning,
    PriorConfig,
    label_tables,
    label_vector,
    time_bins,
)
from audiation.backbones.jukebox_vqvae import HOP_SAMPLES
from audiation.inference import run_clip
from audiation.loading import load_backbone
from audiation.weights import WeightsError, read_checkpoint

GOLDEN = Path(__file__).parent / "golden"
TINY = "jukebox_tiny_prior_a"
ONE_SECOND = 44_100
# The labels of the two clips of the tiny golden file. Half a sample more, for what follows is cut to whole codes.
FIRST: dict[str, Any] = {"total_seconds": 132_224.5 / 44_100}
SECOND: dict[str, Any] = {
    "total_seconds": 145_024.5 / 44_100,
    "offset_seconds": 12_800.5 / 44_100,
    "artist_id": 7,
    "genre_ids": [3, 11, 0],
}
BLOCK = "prior.transformer._attn_mods"


def facts(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def recipe_tensors(name: str) -> dict[str, torch.Tensor]:
    """Official name -> tensor, of the table of a golden file."""
    seed = facts(name)["recipe_seed"]
    tensors = {}
    for row in facts(name)["params"]:
        values = detgen.recipe(seed, row["name"], tuple(row["shape"]), row["mean"], row["std"])
        tensors[row["name"]] = torch.from_numpy(values)
        if row["transform"] == "half":
            tensors[row["name"]] = tensors[row["name"]].half()
    return tensors


@pytest.fixture(scope="module")
def vqvae_tensors() -> dict[str, torch.Tensor]:
    return {f"vqvae.{name}": t for name, t in recipe_tensors("jukebox_vqvae_a").items()}


@pytest.fixture(scope="module")
def tiny_tensors(vqvae_tensors) -> dict[str, torch.Tensor]:
    """The tiny prior as one file, with a codebook of its own size."""
    codebook = vqvae_tensors["vqvae.bottleneck.level_blocks.2.k"][:128]
    return recipe_tensors(TINY) | vqvae_tensors | {"vqvae.bottleneck.level_blocks.2.k": codebook}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{TINY}.safetensors")


def tiny(tensors: Mapping[str, torch.Tensor], num_layers: int | None = None, **config: Any) -> Jukebox:
    return from_published(tensors, facts(TINY)["config"] | FIRST | config, num_layers)


@pytest.fixture(scope="module")
def backbone(tiny_tensors) -> Jukebox:
    return tiny(tiny_tensors)


@pytest.fixture(scope="module")
def tones() -> torch.Tensor:
    """Two clips of the length that the tiny model was made for, `(2, 65536)`."""
    waves = [detgen.waveform(seed, 512 * HOP_SAMPLES) for seed in (1, 2)]
    return torch.stack([torch.from_numpy(wave) for wave in waves])


def layers_of(backbone: Jukebox, codes: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(backbone.prior.layers(codes, backbone.num_layers))


# Golden numbers --------------------------------------------------------------------------------------------


def test_the_codes_are_the_published_ones(vqvae_tensors, tiny_tensors):
    stored = load_file(GOLDEN / "jukebox_vqvae_a.safetensors")
    whole = facts(TINY)["config"] | FIRST | {"l_bins": 2048}
    prior = tiny_tensors | {
        "prior.x_emb.weight": torch.zeros(2048, 64),
        "prior.x_out.weight": torch.zeros(2048, 64),
    }
    encoder = from_published(prior | vqvae_tensors, whole, 1).vqvae
    wave = stored["wave_i16"].float() / 32768
    wave /= wave.abs().max()
    with torch.no_grad():
        latents = encoder.latents(wave[None])
        codes = encoder.nearest(latents)[0]
        assert torch.equal(encoder(wave[None, :1000])[0], stored["codes_first_1000"])
        assert torch.equal(encoder(wave[None, :99_999])[0], stored["codes_first_99999"])
        for num_samples, num_codes in facts("jukebox_vqvae_a")["code_lengths"]:
            assert encoder(wave[None, :num_samples]).shape == (1, num_codes)
    torch.testing.assert_close(latents[0], stored["latents"], rtol=0, atol=1e-4)
    clear = stored["margin"] > 1e-2
    assert clear.float().mean() > 0.95
    assert torch.equal(codes[clear], stored["codes"].long()[clear])


@pytest.mark.parametrize(("item", "config"), [(0, FIRST), (1, SECOND)])
def test_the_conditioning_is_the_published_one(tiny_tensors, golden, item, config):
    silent = {"prior.pos_emb.pos_emb": torch.zeros(512, 64)}
    model = tiny(tiny_tensors | silent, 1, **config)
    torch.testing.assert_close(model.prior.positions, golden["x_cond"][item], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.prior.start, golden["y_cond"][item, 0], rtol=0, atol=1e-6)
    sized = PriorConfig(
        n_ctx=512, prior_width=64, heads=4, blocks=16, y_bins=(12, 20), min_duration=1.0, max_duration=20.0
    )
    labels = label_vector(JukeboxConditioning.from_config(config), sized)
    assert [*labels[:4], *labels.genre_ids] == golden["y"][item].tolist()
    entering = layers_of(tiny(tiny_tensors, 1, **config), golden["tokens"][item : item + 1].long())[0]
    torch.testing.assert_close(entering[0], golden["transformer_in"][item], rtol=0, atol=1e-6)


def test_every_block_is_the_published_one(backbone, golden):
    layers = layers_of(backbone, golden["tokens"][:1].long())
    assert len(layers) == 8
    for i in range(1, 8):
        torch.testing.assert_close(layers[i], golden[f"layer{i}"], rtol=0, atol=2e-5)
    torch.testing.assert_close(layers[7].mean(1), golden["meanpool_layer7"][:1], rtol=0, atol=1e-5)


def test_the_second_clip_of_the_batch_has_labels_of_its_own(tiny_tensors, golden):
    last = layers_of(tiny(tiny_tensors, **SECOND), golden["tokens"][1:].long())[7]
    torch.testing.assert_close(last[0], golden["out_batch1"], rtol=0, atol=2e-5)
    torch.testing.assert_close(last.mean(1), golden["meanpool_layer7"][1:], rtol=0, atol=1e-5)


def test_all_three_patterns_attend_as_published(backbone, golden):
    layers = layers_of(backbone, golden["tokens"][:1].long())
    for i in (1, 2, 3):
        block = backbone.prior.blocks[i - 1]
        attended = block.attention(block.attention_norm(layers[i - 1]))
        torch.testing.assert_close(attended, golden[f"attn_out_layer{i}"], rtol=0, atol=2e-5)
    bias = backbone.prior.blocks[2].attention.output.bias
    assert torch.equal(attended[0, :32], bias.expand(32, -1))  # the first block has none before it


@pytest.mark.parametrize("num_codes", [31, 64, 300])
def test_a_short_clip_runs_the_first_positions(backbone, golden, num_codes):
    last = layers_of(backbone, golden["tokens"][:1, :num_codes].long())[7]
    torch.testing.assert_close(last, golden[f"short{num_codes}_layer7"], rtol=0, atol=2e-5)


def test_the_labels_and_bins_of_jukemir():
    expected = facts("jukebox_5b_conditioning")
    labels = label_vector(JukeboxConditioning(), PriorConfig())
    assert [*labels[:4], *labels.genre_ids] == expected["y"]
    bins = time_bins(labels, PriorConfig())
    assert [bins.total] == expected["total_length_bin"]
    for name in ("absolute", "relative"):
        of_position = getattr(bins, name)
        starts = [0, *(1 + (of_position.diff() != 0).nonzero()[:, 0]).tolist()]
        assert starts == expected[f"{name}_bin_starts"]
        assert of_position[starts].tolist() == expected[f"{name}_bins"]


def test_a_checkpoint_in_the_format_of_its_time(backbone, vqvae_tensors, tiny_tensors):
    prior = read_checkpoint(GOLDEN / f"{TINY}.pth.tar")
    vqvae = {name: tiny_tensors[name] for name in vqvae_tensors}
    ours, theirs = tiny(dict(prior) | vqvae).state_dict(), backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.mark.slow
def test_full_width_is_as_published(vqvae_tensors):
    """One block of each pattern at 4800 over all 8192 positions: 3.4 TFLOP, 2 GB."""
    name = "jukebox_fullwidth3_a"
    stored = load_file(GOLDEN / f"{name}.safetensors")
    model = from_published(recipe_tensors(name) | vqvae_tensors, {"prior_depth": 3})
    positions = stored["positions"].long()
    torch.testing.assert_close(model.prior.start, stored["y_cond"], rtol=0, atol=1e-6)
    with torch.no_grad():
        for i, x in enumerate(model.prior.layers(stored["tokens"].long()[None], 3)):
            if i > 0:
                torch.testing.assert_close(
                    x[0, positions], stored[f"layer{i}.at_positions"], rtol=0, atol=5e-5
                )
                torch.testing.assert_close(x[0].mean(0), stored[f"layer{i}.meanpool"], rtol=0, atol=1e-5)


# From a waveform -------------------------------------------------------------------------------------------


def test_a_frame_hears_what_came_before_it(backbone, tones):
    codes = backbone.codes(tones)
    states = backbone(tones)
    assert states.layers[7].shape == (2, 512, 64) and states.frame_rate_hz == 44_100 / 128
    assert torch.equal(states.layers[7], layers_of(backbone, codes)[7])
    same = int((codes[0] != codes[1]).nonzero()[0])  # the first code that differs is heard one frame later
    assert torch.equal(states.layers[0][0, : same + 1], states.layers[0][1, : same + 1])
    assert not torch.equal(states.layers[0][0, same + 1], states.layers[0][1, same + 1])
    assert torch.equal(states.layers[7][:, 0], states.layers[7][:1, 0].expand(2, -1))


def test_less_can_be_asked_for(backbone, tones):
    clips = tones[:, :20_000]  # 156 codes, not whole blocks
    whole = backbone(clips)
    assert sorted(whole.layers) == list(range(8)) and whole.valid.shape == (2, 156) and whole.valid.all()
    early, alone = backbone(clips, last_layer=4), backbone(clips[1:], layers=[2, 7], reduce="mean")
    assert sorted(early.layers) == [0, 1, 2, 3, 4] and sorted(alone.layers) == [2, 7]
    assert all(torch.equal(x, whole.layers[i]) for i, x in early.layers.items())
    for i, x in alone.layers.items():
        torch.testing.assert_close(x[0], whole.layers[i][1].mean(0, keepdim=True), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="reduce is 'mean' or None, got 'max'"):
        backbone(clips, reduce="max")


def test_each_clip_is_divided_by_its_own_peak(backbone, tones):
    louder = tones * torch.tensor([[0.25], [2.0]])  # powers of two: the same bits afterwards
    assert torch.equal(backbone.codes(louder), backbone.codes(tones))
    assert backbone.normalisation == "clip-peak"
    silence = backbone(torch.zeros(1, 2560)).layers[7]
    assert silence.shape == (1, 20, 64) and torch.isfinite(silence).all()


def test_lengths_that_are_heard_at_once(backbone, tones):
    assert backbone.max_seconds == 65_536 / 44_100 and backbone.min_samples == 256
    assert backbone.num_frames(65_536 + 127) == 512
    longer = torch.cat([tones, tones[:, :6400]], dim=1)
    with pytest.raises(ValueError, match=r"at most 65536 samples .*got 71936"):
        backbone(longer)
    with pytest.raises(ValueError, match="at least 256 samples"):
        backbone(tones[:, :255])
    states = run_clip(backbone, longer, layers=[3], reduce="mean")
    first, second = (backbone(x, layers=[3]).layers[3] for x in (longer[:, :65_536], longer[:, -65_536:]))
    expected = (first.sum(1) + second[:, -50:].sum(1)) / 562
    torch.testing.assert_close(states.layers[3][:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_convention_of_jukemir(tiny_tensors, tones):
    model = tiny(tiny_tensors)
    model.use_convention("jukemir")
    assert (model.normalisation, model.max_seconds, model.min_samples) == ("file-peak", None, 65_536)
    file = torch.cat([tones, tones.flip(0)], dim=1)
    quiet = file / 4  # of a file whose peak is elsewhere: nobody but its reader knows
    assert not torch.equal(model.codes(quiet), model.codes(file))
    assert torch.equal(model.codes(file), model.vqvae(file)[:, :512])
    assert model(file).layers[2].shape == (2, 512, 64) and model.num_frames(file.shape[1]) == 512
    with pytest.raises(ValueError, match="at least 65536 samples"):
        model(tones[:, :-1])
    lengths = []

    def shorten(module, arguments):
        lengths.append(arguments[0].shape[1])
        return (arguments[0][:, :65_536],)

    with model.vqvae.register_forward_pre_hook(shorten):
        model.codes(torch.zeros(1, 26 * ONE_SECOND))
    assert lengths == [25 * ONE_SECOND]
    model.use_convention("default")
    assert (model.convention, model.normalisation, model.min_samples) == ("default", "clip-peak", 256)
    with pytest.raises(ValueError, match="has the conventions default, jukemir, got 'marble'"):
        model.use_convention("marble")


# Loading ---------------------------------------------------------------------------------------------------


class Lazy(Mapping):
    """Tensors as a file gives them: when they are asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.reads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_only_what_is_needed_is_read_and_once(tiny_tensors, backbone, tones):
    others = {
        "vqvae.decoders.2.out.weight": torch.zeros(1),
        "vqvae.encoders.0.level_blocks.0.x": torch.zeros(1),
    }
    file = Lazy(tiny_tensors | others | {"vqvae.bottleneck.level_blocks.0.k": torch.zeros(1)})
    cut = tiny(file, num_layers=3)
    assert max(file.reads.values()) == 1
    unread = set(file) - set(file.reads)
    assert unread == set(cut.unused_tensors)
    assert {name for name in unread if name.startswith(BLOCK)} == {
        name for name in file if name.startswith(BLOCK) and int(name.split(".")[3]) >= 3
    }
    assert "prior.x_out.weight" in unread and "vqvae.decoders.2.out.weight" in unread
    assert not any(name in unread for name in label_tables(backbone.config))
    assert cut.num_layers == 3
    assert torch.equal(cut(tones).layers[3], backbone(tones, layers=[3]).layers[3])
    shorter_file = {name: t for name, t in tiny_tensors.items() if name not in unread}
    assert torch.equal(tiny(shorter_file, 3)(tones).layers[3], cut(tones).layers[3])


def test_weights_are_kept_in_half_precision(backbone, tiny_tensors):
    dtypes = Counter(p.dtype for name, p in backbone.named_parameters() if p.ndim == 2 and ".blocks." in name)
    assert dtypes == {torch.float16: 28}
    assert backbone.prior.positions.dtype == torch.float32
    single = {name: t.float() for name, t in tiny_tensors.items()}
    for name, x in tiny(single).state_dict().items():
        assert torch.equal(x, backbone.state_dict()[name])
    rounded = tiny_tensors | {f"{BLOCK}.1.mlp.c_fc.w": tiny_tensors[f"{BLOCK}.1.mlp.c_fc.w"].bfloat16()}
    with pytest.raises(ValueError, match=r"mods\.1\.mlp\.c_fc\.w' is torch.bfloat16; float16"):
        tiny(rounded)


def test_streamed_blocks_stay_in_the_file(tiny_tensors, backbone, tones, tmp_path):
    save_file({name: t.contiguous() for name, t in tiny_tensors.items()}, tmp_path / "tiny.safetensors")
    file = read_checkpoint(tmp_path / "tiny.safetensors")
    streamed = tiny(file, stream_blocks=True)
    kept = streamed.prior.get_parameter("blocks.4.down.weight")
    assert kept.data_ptr() == file[f"{BLOCK}.4.mlp.c_proj.w"].data_ptr()
    assert all(torch.equal(x, backbone.state_dict()[name]) for name, x in streamed.state_dict().items())
    states, expected = streamed(tones), backbone(tones)
    assert all(torch.equal(x, expected.layers[i]) for i, x in states.layers.items())
    moved = streamed.to("meta")  # another device: only the blocks' matrices stay behind
    left = {name for name, p in moved.named_parameters() if not p.is_meta}
    assert (
        left == {name for name, p in moved.named_parameters() if p.dtype == torch.float16} and len(left) == 28
    )
    with pytest.raises(ValueError, match=r"hold them in torch\.float16; 'prior.*' is torch\.float32"):
        tiny({name: t.float() for name, t in tiny_tensors.items()}, stream_blocks=True)


def test_load_backbone_takes_the_two_published_files(tiny_tensors, tmp_path, monkeypatch):
    """Twice as many positions, for a load listens to 2 s."""
    monkeypatch.setenv("AUDIATION_CACHE", str(tmp_path / "cache"))
    positions = tiny_tensors["prior.pos_emb.pos_emb"].repeat(2, 1)
    tensors = tiny_tensors | {"prior.pos_emb.pos_emb": positions}
    prior = {name: t for name, t in tensors.items() if not name.startswith("vqvae.")}
    vqvae = {name.removeprefix("vqvae."): t for name, t in tensors.items() if name not in prior}
    vqvae |= {"bottleneck.level_blocks.1.k": torch.zeros(1), "decoders.1.out.bias": torch.zeros(1)}
    for file, model in (("prior_level_2", prior), ("vqvae", vqvae)):
        torch.save(
            {"model": model, "step": 0, "opt": None},
            tmp_path / f"{file}.pth.tar",
            _use_new_zipfile_serialization=False,  # as torch up to 1.4 wrote
        )
    config = facts(TINY)["config"] | {"n_ctx": 1024, "blocks": 32, "sample_length": 131_072}
    first, second, streamed = (
        load_backbone("jukebox-5b", tmp_path / "prior_level_2.pth.tar", num_layers=2, config=config | given)
        for given in (FIRST, SECOND, FIRST | {"stream_blocks": True})
    )
    expected = from_published(tensors, config | FIRST, 2).state_dict()
    for loaded in (first, streamed):
        assert all(torch.equal(x, expected[name]) for name, x in loaded.state_dict().items())
    assert not torch.equal(second.state_dict()["prior.start"], expected["prior.start"])
    assert first.weights_hash != second.weights_hash
    with pytest.raises(WeightsError, match="artist_id is 0 to 19, got 20"):
        load_backbone(
            "jukebox-5b", tmp_path / "prior_level_2.pth.tar", config=config | FIRST | {"artist_id": 20}
        )
    with pytest.raises(ValueError, match="computes in float32 only"):
        load_backbone(
            "jukebox-5b",
            tmp_path / "prior_level_2.pth.tar",
            num_layers=1,
            config=config | FIRST,
            precision="bf16",
        )


def test_names_and_shapes_are_checked(tiny_tensors):
    prefixed = {
        name.replace("vqvae.", "vqvae.module.") if "vqvae" in name else f"module.{name}": t
        for name, t in tiny_tensors.items()
    }
    assert tiny(prefixed, 1).num_layers == 1
    with pytest.raises(ValueError, match=r"two files.*vqvae\.pth\.tar"):
        tiny({name: t for name, t in tiny_tensors.items() if "vqvae" not in name})
    with pytest.raises(ValueError, match=r"1 unexpected: 'prior\.lyrics'"):
        tiny(tiny_tensors | {"prior.lyrics": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 missing: 'prior\.transformer\._attn_mods\.6\.ln_1\.bias'"):
        tiny({name: t for name, t in tiny_tensors.items() if name != f"{BLOCK}.6.ln_1.bias"})
    with pytest.raises(ValueError, match=r"'prior\.x_emb\.weight' is \(127, 64\), expected \(128, 64\)"):
        tiny(tiny_tensors | {"prior.x_emb.weight": torch.zeros(127, 64)})
    with pytest.raises(ValueError, match="is there twice"):
        tiny(tiny_tensors | {"module.prior.x_emb.weight": torch.zeros(128, 64)})


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"artist": 3}, "the config has no artist; known are artist_id"),
        ({"artist_id": 20}, "artist_id is 0 to 19, got 20"),
        ({"artist_id": "3"}, "whole numbers >= 0, got '3'"),
        ({"genre_ids": [12]}, "genre_ids are 0 to 11"),
        ({"genre_ids": [1, 2, 3, 4, 5, 6]}, "1 to 5 genres"),
        ({"genre_ids": []}, "1 to 5 genres"),
        ({"genre_ids": [4, 4]}, "a genre is given twice"),
        ({"genre_ids": 4}, "genre_ids is a list"),
        ({"total_seconds": 1.0}, r"lies in \[1, 20\) s, got 1 s, which is 0.9985 s"),
        ({"total_seconds": 20.1}, r"lies in \[1, 20\) s"),
        ({"total_seconds": float("inf")}, "before total_seconds=inf"),
        ({"total_seconds": "20"}, "total_seconds is a number"),
        ({"offset_seconds": 3.5}, "before total_seconds=2.99"),
        ({"total_seconds": 19.9, "offset_seconds": 19.0}, "offset_seconds is at most 18.514"),
        ({"stream_blocks": 1}, "stream_blocks is true or false, got 1"),
        ({"attn_order": 12}, "attn_order = 12 is not supported, only 2"),
        ({"raw_to_tokens": 32}, "raw_to_tokens = 32 is not supported, only 128"),
        ({"blocks": 15}, "do not divide into 15 equal blocks"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(tiny_tensors, config, problem):
    with pytest.raises(ValueError, match=problem):
        tiny(tiny_tensors, **config)


def test_a_depth_that_there_is_not(tiny_tensors):
    for depth in (0, 8):
        with pytest.raises(ValueError, match=f"has 7 layers, got num_layers={depth}"):
            tiny(tiny_tensors, depth)


# What it is ------------------------------------------------------------------------------------------------


def test_sizes_of_the_published_model():
    whole = outline()
    assert all(p.is_meta for p in whole.parameters())
    assert (whole.num_layers, whole.dim, whole.sample_rate_hz, whole.hop_samples) == (72, 4800, 44_100, 128)
    assert whole.max_seconds == pytest.approx(23.777, abs=5e-4)
    assert sum(p.numel() for p in whole.prior.blocks[0].parameters()) == 69_157_200
    encoder = sum(p.numel() for name, p in whole.vqvae.named_parameters() if name != "codebook")
    assert encoder == 168_224
    tables = sum(rows * width for rows, width in label_tables(whole.config).values())
    prior = sum(p.numel() for p in whole.prior.parameters()) - whole.prior.start.numel()
    head = 2048 * 4800
    assert prior + tables + head == BACKBONES["jukebox-5b"].published_parameters == 5_060_452_800
    kept = sum(p.numel() * p.element_size() for p in Jukebox(PriorConfig(), "half", 36).parameters())
    assert kept == pytest.approx(5.18e9, rel=2e-3)


def test_the_cost_is_counted_from_shapes(backbone, tones):
    cut = Jukebox(PriorConfig(), "half", 36)
    cost = cut.forward_cost()
    assert cost.linear == pytest.approx(40.77e12, rel=1e-3)
    assert cost.attention == pytest.approx(0.12e12, rel=0.01)
    assert cost.encoder == pytest.approx(0.041e12, rel=0.03)
    assert cost.codebook == pytest.approx(0.002e12, rel=0.1)
    assert cost.gflop == pytest.approx(40.93e3, rel=1e-3)
    assert cut.forward_cost(3).total == 3 * cost.total
    assert outline().forward_cost(last_layer=36) == cost
    for clips, last in ((tones, 7), (tones[:, :40_000], 4)):
        with FlopCounterMode(display=False) as counter:
            backbone(clips, last_layer=last)
        ours = backbone.forward_cost(2, clips.shape[1], last)
        assert ours.total - ours.attention == counter.get_total_flops()  # which knows no attention on a CPU
    cut.use_convention("jukemir")
    assert cut.forward_cost(num_samples=60 * ONE_SECOND).linear == cost.linear
    assert cut.forward_cost(num_samples=60 * ONE_SECOND).encoder == pytest.approx(
        cost.encoder * 25 * ONE_SECOND / 1_048_576, rel=1e-3
    )


def test_fresh_weights_hear_something():
    config = PriorConfig(n_ctx=512, prior_width=64, prior_depth=3, heads=4, blocks=16)
    ours, again, other = (
        build(generator=torch.Generator().manual_seed(seed), config=config) for seed in (3, 3, 4)
    )
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in ours.state_dict().items())
    assert not torch.equal(ours.prior.codes, other.prior.codes)
    codes = ours.codes(torch.from_numpy(detgen.waveform(5, 65_536))[None])
    assert len(codes.unique()) > 20


def test_it_is_probed_and_not_trained(backbone, tones):
    assert not any(p.requires_grad for p in backbone.parameters())
    with pytest.raises(ValueError, match=r"cannot be trained.*Use method 'probe'"):
        backbone.requires_grad_(True)
    assert not backbone(tones, layers=[1]).layers[1].requires_grad
