"""Methods against numbers of the published code and paper, where each of them acts, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from audiation.backbones import BACKBONES, Backbone
from audiation.backbones.attention import Attention
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.mert import Mert, MertConfig, official_names
from audiation.backbones.mert import build as build_mert
from audiation.backbones.musicfm import MSD, MusicFM, from_published
from audiation.backbones.precision import set_precision
from audiation.inference import ChunkPolicy, run_clip
from audiation.methods import METHODS, format_method, inject, merge, parse_method, set_modes
from audiation.methods.lora import LoRA
from audiation.methods.prefix import Prefix, PrefixNetwork
from audiation.methods.prompt import Prompt
from audiation.registry import UnknownNameError
from test_method_contracts import adapted, changed, clips, infer, plain, snapshot, tiny_mert, trainable

GOLDEN = Path(__file__).parent / "golden"
# The published code was met to 1.5e-6; what is folded or computed by FFT here rounds otherwise.
TOLERANCE = 5e-6


# Parity with the published code --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "petl_tiny.safetensors")


@pytest.fixture(scope="module")
def musicfm_golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "musicfm_tiny.safetensors")


def golden_config() -> dict[str, Any]:
    config = json.loads((GOLDEN / "petl_tiny.json").read_text())["config"]
    assert (config["adapter_bottleneck"], config["lora_rank"], config["lora_alpha"]) == (5, 2, 1)
    return config


def golden_musicfm(musicfm_golden: dict[str, Tensor]) -> MusicFM:
    return from_published({k: t for k, t in musicfm_golden.items() if k.startswith("model.")}, {}).eval()


def golden_mert(golden: dict[str, Tensor]) -> Mert:
    """Its encoder; the golden files have no stem for it."""
    mert = build_mert(golden_config()["mert_encoder"] | {"conv_dim": [8] * 7}, "golden", 24_000)
    base = {k.removeprefix("base.mert."): t for k, t in golden.items() if k.startswith("base.mert.")}
    ours = {own: official for official, own in official_names(mert) if own.startswith("encoder.")}
    assert set(ours.values()) == base.keys()
    for own, official in ours.items():
        mert.get_parameter(own).data.copy_(base[official])
    return mert.eval()


PLACES = {  # the published name of a module -> ours, where a method put something
    "musicfm": {
        "ffn1_adapter": "sockets.after_ffn1",
        "attn_adapter": "sockets.after_attention",
        "ffn2_adapter": "sockets.after_ffn2",
        "self_attn.linear_q": "attention.query.adaptation",
        "self_attn.linear_k": "attention.key.adaptation",
        "self_attn.linear_v": "attention.value.adaptation",
        "self_attn.linear_out": "attention.output.adaptation",
        "ffn1.intermediate_dense": "ffn1.up.adaptation",
        "ffn1.output_dense": "ffn1.down.adaptation",
        "ffn2.intermediate_dense": "ffn2.up.adaptation",
        "ffn2.output_dense": "ffn2.down.adaptation",
        "conv_module.pointwise_conv1": "conv.pointwise1.adaptation",
        "conv_module.pointwise_conv2": "conv.pointwise2.adaptation",
    },
    "mert": {
        "attn_adapter": "sockets.after_attention",
        "ffn_adapter": "sockets.after_ffn",
        "attention.q_proj": "attention.query.adaptation",
        "attention.k_proj": "attention.key.adaptation",
        "attention.v_proj": "attention.value.adaptation",
        "attention.out_proj": "attention.output.adaptation",
        "feed_forward.intermediate_dense": "ffn_up.adaptation",
        "feed_forward.output_dense": "ffn_down.adaptation",
    },
}
LEAVES = {"lora_A": "A", "lora_B": "B"}
SHORT = {"adapter": "adapter:bottleneck=5", "lora": "lora:rank=2", "ssf": "ssf"}


def load_petl(backbone: Backbone, golden: dict[str, Tensor], family: str, method: str) -> None:
    """The golden tensors of a method into what `inject` made; each exactly once."""
    prefix, state = f"petl.{family}.{method}.layers.", {}
    for name, tensor in golden.items():
        if name.startswith(prefix):
            layer, _, path = name.removeprefix(prefix).partition(".")
            place = next(place for place in PLACES[family] if path.startswith(f"{place}."))
            leaf = path.removeprefix(f"{place}.")
            state[f"encoder.blocks.{layer}.{PLACES[family][place]}.{LEAVES.get(leaf, leaf)}"] = tensor
    ours = {n for n in trainable(backbone) if "adaptation" in n or "sockets" in n}
    assert state.keys() == ours
    assert not backbone.load_state_dict(state, strict=False).unexpected_keys


@torch.inference_mode()
def encoded(backbone: Backbone, projected: Tensor) -> dict[int, Tensor]:
    return dict(backbone.encode(projected).layers)


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize("family", ["musicfm", "mert"])
def test_outputs_are_those_of_the_published_code(
    golden: dict[str, Tensor], musicfm_golden: dict[str, Tensor], family: str, method: str
) -> None:
    info = json.loads((GOLDEN / "petl_tiny.json").read_text())["info"]
    backbone: Backbone
    if family == "musicfm":
        backbone, x = golden_musicfm(musicfm_golden), musicfm_golden["io.hidden.0"]
    else:
        backbone, x = golden_mert(golden), golden["in.mert.projected_features"]
    base = encoded(backbone, x)
    inject(backbone, SHORT[method])
    load_petl(backbone, golden, family, method)
    added = [p for n, p in trainable(backbone).items() if "adaptation" in n or "sockets" in n]
    assert sum(p.numel() for p in added) == info[f"{family}.{method}.new_params"]

    last = backbone.num_layers
    for variant in [backbone] if method == "adapter" else [backbone, merge(backbone)]:
        layers = encoded(variant, x)
        assert largest_difference(layers[last], golden[f"out.{family}.{method}.last"]) < TOLERANCE
        if family == "musicfm":
            assert largest_difference(layers[1], golden[f"out.musicfm.{method}.hidden_1"]) < TOLERANCE
        effect = float((layers[last] - base[last]).abs().mean())
        assert effect == pytest.approx(info[f"{family}.effect"][method], abs=1e-6)


def test_the_encoder_under_the_methods_is_the_published_one(golden: dict[str, Tensor]) -> None:
    layers = encoded(golden_mert(golden), golden["in.mert.projected_features"])
    for i, x in layers.items():
        assert largest_difference(x, golden[f"out.mert.base.hidden_{i}"]) < TOLERANCE


# Parameters: table 3 of the PETL paper -------------------------------------------------------------------

TABLE3 = json.loads((GOLDEN / "petl_table3.json").read_text())
TABLE3_ROWS = {"finetune": "ft", "probe": "probing"}  # others are called as here
NUM_LAYERS = TABLE3["hyperparameters"]["layers"]


def without_memory(family: str) -> Backbone:
    """The first six blocks of the published size, on the meta device."""
    if family == "musicfm":
        with torch.device("meta"):
            return MusicFM(MSD, ConformerConfig(num_layers=NUM_LAYERS))
    config = MertConfig.from_published(BACKBONES["mert-v1-95m"].weights.default_config)
    return Mert(config, "mert-v1-95m", 24_000, NUM_LAYERS)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("family", ["musicfm", "mert"])
def test_parameters_are_those_of_table_3(family: str, method: str) -> None:
    backbone = without_memory(family)
    num_tokens = TABLE3["hyperparameters"]["prefix_tokens"][family]
    count = inject(backbone, f"prefix:num_tokens={num_tokens}" if method == "prefix" else method)
    assert count.published_layout == TABLE3[family][TABLE3_ROWS.get(method, method)]
    if method != "finetune":
        assert count.trainable == count.published_layout
    assert all(p.is_meta for p in backbone.parameters())


def test_parameters_where_the_paper_counts_otherwise() -> None:
    musicfm, mert = (inject(without_memory(family), "finetune") for family in ("musicfm", "mert"))
    assert (musicfm.trainable, musicfm.registered, musicfm.published_layout) == (
        171_289_600,
        171_289_600,
        179_679_360,
    )
    assert (mert.trainable, mert.published_layout, mert.added) == (51_843_712, 51_843_712, 0)
    assert (
        inject(without_memory("mert"), "prefix").trainable
        == TABLE3["mert"]["prefix_if_32_tokens"]
        == 7_237_632
    )
    unusual = inject(without_memory("musicfm"), "bitfit:norms=attention+ffn+final")
    assert unusual.trainable == 6 * 18 * 1024


def test_the_sizes_counted_are_those_of_the_registry() -> None:
    assert BACKBONES["musicfm-msd"].build.args == (MSD,)  # type: ignore[attr-defined]
    assert ConformerConfig().num_layers == 12
    assert parse_method("adapter").bottleneck == TABLE3["hyperparameters"]["adapter_bottleneck"]
    assert parse_method("prompt").num_tokens == TABLE3["hyperparameters"]["prompt_tokens"]
    assert parse_method("prefix").hidden_size == TABLE3["hyperparameters"]["prefix_mlp_hidden"]
    assert parse_method("lora") == LoRA(rank=TABLE3["hyperparameters"]["lora_rank"], scale=1.0)


# Where methods act ---------------------------------------------------------------------------------------


def trained_in_block(method: str, family: str) -> set[str]:
    """Names of the trained tensors of the first block; nothing else than blocks has any."""
    backbone = plain(family)
    inject(backbone, method)
    names = set(trainable(backbone))
    first = {n.removeprefix("encoder.blocks.0.") for n in names if n.startswith("encoder.blocks.0.")}
    second = {n.removeprefix("encoder.blocks.1.") for n in names if n.startswith("encoder.blocks.1.")}
    assert first == second and len(names) == 2 * len(first)
    return first


def both(*modules: str) -> set[str]:
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def bottlenecks(*sockets: str) -> set[str]:
    return both(*(f"sockets.{socket}.{part}" for socket in sockets for part in ("down", "up")))


CONFORMER_NORMS = ("ffn1.norm", "attention_norm", "ffn2.norm", "final_norm")
TRANSFORMER_NORMS = ("attention_norm", "ffn_norm")
ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
CONFORMER_LINEARS = (*ATTENTION, "ffn1.up", "ffn1.down", "ffn2.up", "ffn2.down")
POINTWISE = ("conv.pointwise1", "conv.pointwise2")
TRANSFORMER_LINEARS = (*ATTENTION, "ffn_up", "ffn_down")


def biases(*modules: str) -> set[str]:
    return {f"{module}.bias" for module in modules}


def adaptations(modules: tuple[str, ...], *leaves: str) -> set[str]:
    return {f"{module}.adaptation.{leaf}" for module in modules for leaf in leaves}


@pytest.mark.parametrize(
    ("method", "family", "expected"),
    [
        (
            "adapter",
            "conformer",
            bottlenecks("after_ffn1", "after_attention", "after_ffn2") | both(*CONFORMER_NORMS),
        ),
        ("adapter", "post-norm", bottlenecks("after_attention", "after_ffn") | both(*TRANSFORMER_NORMS)),
        (
            "adapter:sockets=all,norms=all",
            "conformer",
            bottlenecks("after_ffn1", "after_attention", "after_conv", "after_ffn2")
            | both(*CONFORMER_NORMS, "conv.norm", "conv.depthwise.norm"),
        ),
        ("adapter:sockets=conv,norms=none", "conformer", bottlenecks("after_conv")),
        ("bitfit", "conformer", biases(*CONFORMER_LINEARS, *CONFORMER_NORMS, "conv.depthwise.norm")),
        (
            "bitfit:roles=paper",
            "conformer",
            biases(*CONFORMER_LINEARS, *CONFORMER_NORMS, "conv.depthwise.norm"),
        ),
        ("bitfit", "pre-norm", biases(*TRANSFORMER_LINEARS, *TRANSFORMER_NORMS)),
        (
            "bitfit:roles=none,norms=all",
            "conformer",
            biases(*CONFORMER_NORMS, "conv.norm", "conv.depthwise.norm"),
        ),
        ("bitfit:roles=query+value,norms=none", "conformer", biases("attention.query", "attention.value")),
        ("lora", "conformer", adaptations((*CONFORMER_LINEARS, *POINTWISE), "A", "B")),
        ("lora", "post-norm", adaptations(TRANSFORMER_LINEARS, "A", "B")),
        ("lora:roles=ffn_up", "conformer", adaptations(("ffn1.up", "ffn2.up"), "A", "B")),
        (
            "ssf",
            "conformer",
            adaptations(CONFORMER_LINEARS, "scale", "shift") | adaptations(POINTWISE, "scale"),
        ),
        (
            "ssf:shift_without_bias=true,roles=pointwise",
            "conformer",
            adaptations(POINTWISE, "scale", "shift"),
        ),
        ("ssf", "deepnorm", adaptations(TRANSFORMER_LINEARS, "scale", "shift")),
        (
            "prefix",
            "conformer",
            {"attention.prefix.tokens"} | both("attention.prefix.hidden", "attention.prefix.output"),
        ),
    ],
)
def test_what_is_trained(method: str, family: str, expected: set[str]) -> None:
    assert trained_in_block(method, family) == expected


def plain_attention(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    width = q.shape[-1] // attention.num_heads
    heads = []
    for start in range(0, q.shape[-1], width):
        one = slice(start, start + width)
        weight = (q[..., one] @ k[..., one].transpose(1, 2) / width**0.5).softmax(-1)
        heads.append(weight @ v[..., one])
    return attention.output(torch.cat(heads, -1))


@torch.no_grad()
@pytest.mark.parametrize("order", ["key-value", "value-key"])
def test_prefixes_join_projected_keys_and_values_in_front(order: str) -> None:
    backbone = plain("post-norm")
    inject(backbone, f"prefix:num_tokens=3,hidden_size=7,order={order}")
    assert backbone.encoder is not None
    attention = backbone.encoder.blocks[0].attention
    assert isinstance(attention, Attention)
    network = attention.prefix
    assert isinstance(network, PrefixNetwork)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    first, second = network.output(torch.tanh(network.hidden(network.tokens))).split(32, dim=-1)
    keys, values = (first, second) if order == "key-value" else (second, first)
    k = torch.cat([keys.expand(2, 3, 32), attention.key(x)], dim=1)
    v = torch.cat([values.expand(2, 3, 32), attention.value(x)], dim=1)
    expected = plain_attention(attention, attention.query(x), k, v)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_low_rank_updates_are_scaled_by_the_field_itself() -> None:
    backbone = plain("conformer")
    inject(backbone, "lora:rank=3,scale=0.25,roles=pointwise")
    assert backbone.encoder is not None
    linear = backbone.encoder.blocks[1].linears()["pointwise"][0]  # type: ignore[operator]
    update, generator = linear.adaptation, torch.Generator().manual_seed(0)
    assert update.A.shape == (3, 32) and update.B.shape == (64, 3)
    assert update.B.count_nonzero() == 0 and update.A.abs().max() <= 32**-0.5
    update.B.normal_(generator=generator)
    x = torch.randn(2, 5, 32, generator=generator)
    expected = x @ linear.weight.t() + 0.25 * (x @ update.A.t() @ update.B.t())
    torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_initial_values_follow_the_published_code() -> None:
    backbone = plain("conformer")
    inject(backbone, "ssf")
    values = {
        leaf: [p for n, p in trainable(backbone).items() if n.endswith(leaf)] for leaf in ("scale", "shift")
    }
    for leaf, centre in (("scale", 1.0), ("shift", 0.0)):
        drawn = torch.cat([p.detach() for p in values[leaf]])
        assert abs(float(drawn.mean()) - centre) < 0.003
        assert float(drawn.std()) == pytest.approx(0.02, rel=0.1)

    backbone = plain("conformer")
    inject(backbone, "adapter")
    for name, p in trainable(backbone).items():
        if name.endswith("down.weight"):
            assert 0.9 * 32**-0.5 < p.abs().max() <= 32**-0.5
        elif "sockets" in name:
            assert p.count_nonzero() == 0


# Prompts -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", ["conformer", "post-norm"])
@pytest.mark.parametrize("position", ["after_embedding", "before_embedding"])
@pytest.mark.parametrize("pooled", [False, True])
def test_prompts_stay_in_the_stream_and_are_pooled_on_request(
    family: str, position: str, pooled: bool
) -> None:
    backbone = plain(family)
    inject(backbone, f"prompt:num_tokens=5,init_std=1.0,position={position},pooled={str(pooled).lower()}")
    x = clips(backbone)
    num_frames = backbone.num_frames(x.shape[1])
    states = backbone(x)
    assert states.num_prompts == 5
    assert states.valid.shape == (2, 5 + num_frames)
    assert states.valid[:, :5].tolist() == [[pooled] * 5] * 2 and bool(states.valid[:, 5:].all())
    assert len(states.times_seconds) == num_frames
    assert float(states.times_seconds[0]) == backbone.first_frame_seconds
    for h in states.layers.values():
        assert h.shape == (2, 5 + num_frames, backbone.dim)

    means = backbone(x, reduce="mean")
    assert means.num_prompts == 0 and means.frame_rate_hz is None and bool(means.valid.all())
    first = 0 if pooled else 5
    for i, h in states.layers.items():
        by_hand = torch.stack([row[first:].mean(0) for row in h])[:, None]
        torch.testing.assert_close(means.layers[i], by_hand, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states.mean().layers[i], by_hand, rtol=1e-5, atol=1e-5)
    tokens = trainable(backbone)["encoder.prompts.tokens"]
    enters = torch.equal(states.layers[0][0, :5], tokens)
    assert enters == (family == "conformer" or position == "after_embedding")


@torch.no_grad()
def test_where_prompts_enter_matters_to_mert_alone() -> None:
    layers: dict[tuple[str, str], Tensor] = {}
    for family in ("conformer", "post-norm", "pre-norm"):
        for position in ("after_embedding", "before_embedding"):
            backbone = plain(family)
            inject(backbone, f"prompt:num_tokens=5,init_std=1.0,position={position}")
            layers[family, position] = infer(backbone, clips(backbone))
    before, after = (layers["conformer", p] for p in ("before_embedding", "after_embedding"))
    assert torch.equal(before, after)
    for family in ("post-norm", "pre-norm"):
        before, after = (layers[family, p] for p in ("before_embedding", "after_embedding"))
        assert (before[0, :, 5:] - after[0, :, 5:]).abs().max() > 1e-2  # the convolution sees them


@torch.no_grad()
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("reduce", [None, "mean"])
def test_prompts_need_a_clip_in_one_piece(pooled: bool, reduce: typing.Literal["mean"] | None) -> None:
    backbone = plain("conformer")
    inject(backbone, Prompt(num_tokens=5, pooled=pooled))
    x = clips(backbone, num_clips=3, num_frames=6)
    whole, pieces = backbone(x, reduce=reduce), run_clip(backbone, x, reduce=reduce, batch_size=2)
    assert (pieces.num_prompts, pieces.frame_rate_hz) == (whole.num_prompts, whole.frame_rate_hz)
    assert torch.equal(pieces.valid, whole.valid)
    for i, h in whole.layers.items():
        torch.testing.assert_close(pieces.layers[i], h, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pieces.mean().layers[i], whole.mean().layers[i], rtol=1e-5, atol=1e-5)

    in_two = ChunkPolicy(x.shape[1] / 2 / backbone.sample_rate_hz)
    for clip_samples in (x.shape[1] // 2 * 2, x.shape[1] // 2 + 960):  # two whole chunks; one and a bit
        with pytest.raises(ValueError, match="learned prompts in its stream, so 2 chunks"):
            run_clip(backbone, x[:, :clip_samples], in_two, reduce=reduce)


@torch.no_grad()
@pytest.mark.parametrize(
    "method",
    [
        *METHODS,
        "prompt:position=before_embedding",
        "prompt:pooled=true",
        "prefix:order=value-key",
    ],
)
def test_padding_changes_no_valid_frame_of_an_adapted_model(method: str) -> None:
    backbone = tiny_mert(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)
    assert backbone.accepts_padding
    inject(backbone, method)
    x = clips(backbone, num_frames=9)
    shorter = x.shape[1] - 4 * 320
    garbage = torch.cat([x[:, :shorter], torch.full_like(x[:, shorter:], 0.7)], dim=1)
    batch = torch.stack([x[0], garbage[1]])
    padded = backbone(batch, torch.tensor([x.shape[1], shorter]))
    alone, full = backbone(x[1:, :shorter]), backbone(x[:1])
    length, whole = alone.valid.shape[1], full.valid.shape[1]
    assert torch.equal(padded.valid[1, :length], alone.valid[0]) and not bool(padded.valid[1, length:].any())
    assert whole == padded.valid.shape[1] == length + 4
    for i, h in padded.layers.items():
        torch.testing.assert_close(h[1, :length], alone.layers[i][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(h[0], full.layers[i][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            padded.mean().layers[i][1], alone.mean().layers[i][0], rtol=1e-4, atol=1e-5
        )


# Short form ----------------------------------------------------------------------------------------------


def fields_of(method: str) -> dict[str, Any]:
    """Field -> its type, for every field of a method."""
    hints = typing.get_type_hints(METHODS[method])
    return {field.name: hints[field.name] for field in dataclasses.fields(METHODS[method])}


ROLES = st.sampled_from(["all", "paper", "none", "query", "query+value", "ffn+attention"])


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    positive = st.floats(1e-8, 1e8, allow_nan=False)
    return {int: st.integers(1, 4096), float: positive, bool: st.booleans(), str: ROLES}[kind]


@pytest.mark.parametrize("method", list(METHODS))
@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_the_short_form_says_everything(method: str, data: st.DataObject) -> None:
    values = {name: data.draw(values_of(kind), label=name) for name, kind in fields_of(method).items()}
    made = METHODS[method](**values)
    text = format_method(made)
    assert parse_method(text) == made
    assert parse_method(f" {text.replace(',', ' , ').replace('=', ' = ')} ") == made
    defaults = {f.name: f.default for f in dataclasses.fields(made)}
    assert text.count("=") == sum(getattr(made, name) != default for name, default in defaults.items())
    assert format_method(METHODS[method]()) == method


def test_short_forms_written_out() -> None:
    assert (
        format_method(LoRA(rank=4, scale=0.5, roles="query+value"))
        == "lora:rank=4,scale=0.5,roles=query+value"
    )
    assert parse_method("prompt:pooled=True") == Prompt(pooled=True)
    assert format_method(Prompt(pooled=True, position="before_embedding")) == (
        "prompt:position=before_embedding,pooled=true"
    )
    assert parse_method("prefix:num_tokens=64,order=value-key") == Prefix(num_tokens=64, order="value-key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:rnk=2", "has no field 'rnk'. Did you mean 'rank'? Fields: rank, scale, roles"),
        ("lora:rank=two", "rank must be of type int, got 'two'"),
        ("lora:rank=2.5", "rank must be of type int, got '2.5'"),
        ("lora:rank=2,rank=4", "field 'rank' is given twice"),
        ("lora:rank", "'rank' in method 'lora' is not of the form field=value"),
        ("lora:rank=", "is not of the form field=value"),
        ("prompt:pooled=maybe", "pooled must be true or false, got 'maybe'"),
        ("prefix:order=value", "order must be one of key-value, value-key, got 'value'"),
        ("probe:rank=2", "has no field 'rank'. Fields: none"),
    ],
)
def test_short_forms_that_say_nothing(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_method(text)


def test_unknown_methods_are_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'lorra'\. Did you mean 'lora'\?"):
        inject(plain("post-norm"), "lorra:rank=2")


@pytest.mark.parametrize("method", list(METHODS))
def test_values_that_make_no_sense_are_refused(method: str) -> None:
    for name, kind in fields_of(method).items():
        nonsense: dict[Any, list[Any]] = {int: [0, -1], float: [math.nan, math.inf, -math.inf]}
        is_choice = typing.get_origin(kind) is typing.Literal
        for value in ["something-else"] if is_choice else nonsense.get(kind, []):
            with pytest.raises(ValueError, match=f"{method}: .*{name}"):
                METHODS[method](**{name: value})


@pytest.mark.parametrize("text", ["lora:scale=0", "prompt:init_std=-0.1", "ssf:init_std=-0.1"])
def test_more_values_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text.split('=')[0].replace(':', ': ')} must be"):
        parse_method(text)


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "family", "message"),
    [
        (
            "lora:roles=querry",
            "conformer",
            "lora: roles: these blocks have no linears 'querry'. Did you mean 'query'? "
            "There are: ffn_down, ffn_up, key, output, pointwise, query, value.",
        ),
        ("lora:roles=pointwise", "post-norm", "have no linears 'pointwise'"),
        ("lora:roles=query+valeu", "post-norm", "'valeu'. Did you mean 'value'?"),
        ("lora:roles=none", "conformer", "roles=none leaves no linear map to adapt"),
        ("lora:roles=query+query", "conformer", "lora: roles: 'query' is named twice in query+query"),
        ("ssf:roles=none", "conformer", "roles=none leaves no linear map to adapt"),
        ("ssf:roles=all+query", "conformer", "ssf: roles: these blocks have no linears 'all'"),
        ("adapter:sockets=none", "conformer", "sockets=none leaves no place for an adapter"),
        ("adapter:sockets=conv", "post-norm", "adapter: sockets: these blocks have no sockets 'conv'"),
        ("adapter:sockets=attention+attention", "conformer", "'attention' is named twice"),
        (
            "adapter:norms=finl",
            "conformer",
            "adapter: norms: these blocks have no norms 'finl'. Did you mean 'final'?",
        ),
        ("bitfit:roles=pointwise", "conformer", "the linear maps 'pointwise' have no bias here"),
        ("bitfit:roles=query+pointwise", "conformer", "the linear maps 'pointwise' have no bias here"),
        ("bitfit:roles=none,norms=none", "conformer", "roles=none and norms=none leave no bias to train"),
        ("bitfit:norms=conv", "pre-norm", "have no norms 'conv'"),
    ],
)
def test_a_refused_method_leaves_the_backbone_as_it_was(method: str, family: str, message: str) -> None:
    backbone = plain(family)
    untrained = backbone.get_parameter("encoder.blocks.0.attention.query.weight").requires_grad_(False)
    refused_injection(backbone, method, message, ValueError)
    assert not untrained.requires_grad
    assert inject(backbone, "lora").trainable > 0


def refused_injection(
    backbone: Backbone,
    method: Any,
    message: str,
    error: type[Exception],
    generator: torch.Generator | None = None,
) -> None:
    before, required = snapshot(backbone), set(trainable(backbone))
    modules = [(name, id(module)) for name, module in backbone.named_modules()]
    with pytest.raises(error, match=re.escape(message)):
        inject(backbone, method, generator)
    assert set(trainable(backbone)) == required
    assert [(name, id(module)) for name, module in backbone.named_modules()] == modules
    assert changed(before, snapshot(backbone)) == set()
    assert backbone.adapted_with is None


def test_an_error_inside_a_method_leaves_the_backbone_as_it_was_too() -> None:
    refused_injection(plain("conformer"), LoRA(rank=2.5), "empty()", TypeError)  # type: ignore[arg-type]


def test_a_backbone_without_encoder_takes_probing_only() -> None:
    chroma = BACKBONES["chroma"].build()
    for method in METHODS:
        if method == "probe":
            continue
        message = "Use method 'probe'" + ("." if METHODS[method].trains_stem else ", or a backbone from: ")
        refused_injection(chroma, method, message, ValueError)
    with pytest.raises(
        ValueError, match=r"'chroma' has no encoder to adapt with 'lora'.*mert-v1-95m.*musicfm-msd"
    ):
        inject(chroma, "lora")
    count = inject(chroma, "probe")
    assert dataclasses.astuple(count) == (0, 0, 0, 0)
    assert chroma.adapted_with == METHODS["probe"]()


def test_a_rounded_backbone_is_probed_and_not_adapted_or_merged() -> None:
    for method in METHODS:
        backbone = plain("post-norm")
        set_precision(backbone, "bf16", native=False)
        if METHODS[method].trains_backbone:
            refused_injection(backbone, method, "has been rounded to bf16; adapt it in fp32", ValueError)
        else:
            assert inject(backbone, method).trainable == 0
    rounded = adapted("post-norm", "lora")
    set_precision(rounded, "bf16", native=False)
    with pytest.raises(ValueError, match=r"rounded to bf16.*Merge first"):
        merge(rounded)


def test_a_shift_cannot_become_part_of_a_map_without_bias() -> None:
    backbone = adapted("conformer", "ssf:shift_without_bias=true")
    before, x = snapshot(backbone), clips(backbone)
    expected = infer(backbone, x)
    with pytest.raises(ValueError, match="cannot be merged into a map without bias"):
        merge(backbone)
    assert changed(before, snapshot(backbone)) == set()
    assert torch.equal(infer(backbone, x), expected)
    merged = merge(adapted("post-norm", "ssf:shift_without_bias=true"))  # all maps have one there
    assert merged.adapted_with is None


def test_a_plain_backbone_has_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="is not adapted, so there is nothing to merge"):
        merge(plain("post-norm"))


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen_mode is 'eval' or 'published', got 'train'"):
        set_modes(adapted("post-norm", "lora"), "train")  # type: ignore[arg-type]
