"""LoRA to and from Hugging Face `peft`, by equal outputs of the published implementations in `transformers`."""

from __future__ import annotations

import functools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel, Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

from audiation.backbones import Backbone
from audiation.backbones.conformer import ConformerConfig
from audiation.backbones.mert import Mert, official_names, unit_variance
from audiation.backbones.mert import build as build_mert
from audiation.backbones.musicfm import MSD, MusicFM, fresh
from audiation.backbones.musicfm_checkpoint import our_name, published_layout
from audiation.loading import load_backbone
from audiation.methods import METHODS, inject
from audiation.methods.lora import LoRA
from audiation.peft_format import CONFIG, PICKLE, TENSORS, PeftFormatError, load_peft, save_peft

# Of transformers, about itself.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
CONFORMER = ConformerConfig(dim=32, num_heads=2, ffn_dim=48, num_layers=2, conv_kernel=5)
HUBERT_LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"]
CONFORMER_LINEARS = ["linear_q", "linear_k", "linear_v", "linear_out", "intermediate_dense", "output_dense"]
CONFORMER_LINEARS += ["pointwise_conv1", "pointwise_conv2"]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def mert(num_layers: int | None = None) -> Mert:
    return build_mert(SIZES | {"conv_dim": [16] * 7}, "tiny-mert", 16_000, num_layers)


def musicfm() -> MusicFM:
    backbone, generator = fresh(MSD, CONFORMER, conv_channels=4).eval(), torch.Generator().manual_seed(5)
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    backbone.name = "tiny-musicfm"
    return backbone


def hubert(backbone: Mert) -> HubertModel:
    """The published implementation with the weights of a backbone, which may have fewer blocks."""
    model = HubertModel(HubertConfig(**SIZES, conv_dim=[16] * 7, mask_time_prob=0.0)).eval()
    state = {official: backbone.get_parameter(own) for official, own in official_names(backbone)}
    conv, spelling = "encoder.pos_conv_embed.conv", "parametrizations.weight.original"
    state[f"{conv}.{spelling}0"] = state.pop(f"{conv}.weight_g")
    state[f"{conv}.{spelling}1"] = state.pop(f"{conv}.weight_v")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == [] and all(name.startswith("encoder.layers.") for name in missing)
    return model


class Conformer(nn.Module):
    """The encoder of the published MusicFM under its published name, with the weights of a backbone."""

    def __init__(self, backbone: MusicFM) -> None:
        super().__init__()
        config = Wav2Vec2ConformerConfig(
            **SIZES | {"num_hidden_layers": 2},
            conv_depthwise_kernel_size=5,
            position_embeddings_type="rotary",
            hidden_act="swish",
        )
        self.conformer = Wav2Vec2ConformerEncoder(config)
        own = backbone.state_dict()
        state = {
            name: our_name(name) for name in published_layout(CONFORMER) if name.startswith("conformer.")
        }
        shapes = self.state_dict()
        values = {
            name: own[ours].view(shapes[name].shape) for name, ours in state.items() if ours is not None
        }
        self.load_state_dict(values, strict=False)
        self.eval()

    def forward(self, projected_BTD: Tensor) -> Tensor:
        return self.conformer(projected_BTD).last_hidden_state


def shake(backbone: Backbone, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3, generator=generator)


@functools.cache
def clip() -> Tensor:
    return 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))


@functools.cache
def projected() -> Tensor:
    return torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def last_layer(backbone: Backbone) -> Tensor:
    """Of a clip (MERT), or of projected frames (MusicFM, whose stem no other package has)."""
    layer = backbone.num_layers
    if isinstance(backbone, Mert):
        return backbone(clip(), layers=[layer]).layers[layer]
    return backbone.encode(projected(), layers=[layer]).layers[layer]


@torch.inference_mode()
def peer_output(peer: nn.Module) -> Tensor:
    if isinstance(peer.get_base_model() if isinstance(peer, peft.PeftModel) else peer, Conformer):
        return peer(projected())
    return peer(unit_variance(clip())).last_hidden_state


def edit(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# Ours in theirs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "lora:rank=3,scale=0.7", "lora:roles=query+ffn_up,scale=-2.0"])
def test_our_lora_runs_in_stock_hubert(method, tmp_path):
    backbone = mert()
    peer = hubert(backbone)
    unadapted = last_layer(backbone)
    torch.testing.assert_close(peer_output(peer), unadapted, **TOLERANCE)
    inject(backbone, method)
    shake(backbone)
    assert save_peft(backbone, tmp_path / "peft") == tmp_path / "peft"
    adapted = peft.PeftModel.from_pretrained(peer, tmp_path / "peft").eval()
    ours = last_layer(backbone)
    assert difference(ours, unadapted) > 0.1
    torch.testing.assert_close(peer_output(adapted), ours, **TOLERANCE)


def test_our_lora_runs_in_the_stock_conformer(tmp_path):
    """Where the pointwise maps are convolutions."""
    backbone = musicfm()
    peer = Conformer(backbone)
    unadapted = last_layer(backbone)
    torch.testing.assert_close(peer_output(peer), unadapted, **TOLERANCE)
    inject(backbone, "lora:rank=3,scale=0.5")
    shake(backbone)
    save_peft(backbone, tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / TENSORS)
    pointwise = "base_model.model.conformer.layers.1.conv_module.pointwise_conv1"
    assert tensors[f"{pointwise}.lora_A.weight"].shape == (3, 32, 1)
    assert tensors[f"{pointwise}.lora_B.weight"].shape == (64, 3, 1)
    assert len(tensors) == 2 * 2 * 10
    adapted = peft.PeftModel.from_pretrained(peer, tmp_path).eval()
    ours = last_layer(backbone)
    assert difference(ours, unadapted) > 0.1
    torch.testing.assert_close(peer_output(adapted), ours, **TOLERANCE)


def test_a_cut_backbone_adapts_the_first_blocks_of_the_whole_model(tmp_path):
    backbone, whole = mert(num_layers=2), mert()
    inject(backbone, "lora")
    shake(backbone)
    save_peft(backbone, tmp_path)
    adapted = peft.PeftModel.from_pretrained(hubert(whole), tmp_path).eval()
    updated = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    assert len(updated) == 2 * 6 and not any(".layers.2." in name for name in updated)
    with torch.inference_mode():
        theirs = adapted(unit_variance(clip()), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(theirs, last_layer(backbone), **TOLERANCE)


def test_the_config_is_what_peft_writes(tmp_path):
    backbone = mert()
    backbone.weights_source = "hub:m-a-p/MERT-v1-95M"
    inject(backbone, "lora:rank=4,scale=0.5,roles=query")
    save_peft(backbone, tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.bias, config.peft_type) == (4, 2, "none", "LORA")
    assert config.base_model_name_or_path == "m-a-p/MERT-v1-95M"
    assert (config.use_rslora, config.use_dora, config.fan_in_fan_out, config.task_type) == (
        False,
        False,
        False,
        None,
    )
    assert config.target_modules == {f"encoder.layers.{i}.attention.q_proj" for i in range(3)}
    fields = json.loads((tmp_path / CONFIG).read_text())
    assert fields.keys() <= peft.LoraConfig(target_modules=["q_proj"]).to_dict().keys()
    backbone.weights_source = "random:seed=0"
    save_peft(backbone, tmp_path)  # replaced
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] is None


# Theirs in ours --------------------------------------------------------------------------------------------


def random_lora(peer: nn.Module, **options: Any) -> peft.PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return peft.get_peft_model(peer, peft.LoraConfig(init_lora_weights=False, **options)).eval()


@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"target_modules": HUBERT_LINEARS, "r": 4, "lora_alpha": 12}, LoRA(4, 3.0)),
        (
            {"target_modules": ["q_proj", "v_proj"], "r": 2, "lora_alpha": 1, "lora_dropout": 0.1},
            LoRA(2, 0.5, "query+value"),
        ),
        (
            {"target_modules": r".*\.(k|out)_proj", "r": 4, "lora_alpha": 8, "use_rslora": True},
            LoRA(4, 4.0, "key+output"),
        ),
    ],
)
def test_a_lora_of_peft_runs_in_our_mert(options, method, tmp_path):
    backbone = mert()
    unadapted = last_layer(backbone)
    adapted = random_lora(hubert(backbone), **options)
    adapted.save_pretrained(tmp_path)
    count = load_peft(backbone, tmp_path)
    assert backbone.adapted_with == method
    assert count.trainable == count.added == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    theirs = peer_output(adapted)
    assert difference(theirs, unadapted) > 0.01
    torch.testing.assert_close(last_layer(backbone), theirs, **TOLERANCE)


def test_a_lora_of_peft_runs_in_our_musicfm(tmp_path):
    backbone = musicfm()
    unadapted = last_layer(backbone)
    adapted = random_lora(Conformer(backbone), target_modules=CONFORMER_LINEARS, r=3, lora_alpha=6)
    adapted.save_pretrained(tmp_path)
    load_peft(backbone, tmp_path)
    assert backbone.adapted_with == LoRA(3, 2.0)
    theirs = peer_output(adapted)
    assert difference(theirs, unadapted) > 0.01
    torch.testing.assert_close(last_layer(backbone), theirs, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype, tmp_path):
    directory = written(tmp_path)
    tensors = {name: t.to(dtype) for name, t in safetensors.torch.load_file(directory / TENSORS).items()}
    safetensors.torch.save_file(tensors, directory / TENSORS)
    backbone = mert()
    load_peft(backbone, directory)
    update = backbone.encoder.blocks[0].attention.query.adaptation.A
    assert update.dtype == torch.float32
    expected = tensors["base_model.model.encoder.layers.0.attention.q_proj.lora_A.weight"].float()
    assert torch.equal(update.detach(), expected)


@pytest.mark.parametrize("make", [mert, musicfm])
@pytest.mark.parametrize("method", ["lora", "lora:rank=5,scale=0.3,roles=output+ffn_down"])
def test_there_and_back_to_the_bit(make, method, tmp_path):
    backbone, other = make(), make()
    inject(backbone, method)
    shake(backbone)
    save_peft(backbone, tmp_path)
    with torch.inference_mode():
        load_peft(other, tmp_path)
    assert other.adapted_with == backbone.adapted_with
    assert torch.equal(last_layer(other), last_layer(backbone))
    assert not any(p.is_inference() for p in other.parameters())


# Refusals --------------------------------------------------------------------------------------------------


def written(tmp_path: Path, method: str = "lora:roles=query+value") -> Path:
    backbone = mert()
    inject(backbone, method)
    shake(backbone)
    return save_peft(backbone, tmp_path / "peft")


def refused(directory: Path, reason: str, make: Any = mert) -> None:
    """With a message that names the file, and the backbone stays plain."""
    backbone = make()
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    with pytest.raises(PeftFormatError, match=reason) as caught:
        load_peft(backbone, directory)
    assert str(directory) in str(caught.value)
    after = dict(backbone.named_parameters())
    assert backbone.adapted_with is None and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layer_replication": [[0, 3]]}, "layer_replication"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"something_new": "x"}, "something_new = 'x'"),
        ({"peft_type": "IA3"}, "is about 'IA3'"),
        ({"r": 0}, "r = 0"),
        ({"r": 2.0}, "r = 2.0"),
        ({"r": None}, "r = None"),
        ({"r": 3}, "of another shape"),
        ({"lora_alpha": 0}, "lora_alpha = 0"),
        ({"lora_alpha": "8"}, "lora_alpha = '8'"),
        ({"lora_alpha": float("inf")}, "lora_alpha = inf"),
        ({"use_rslora": "yes"}, "use_rslora = 'yes'"),
    ],
)
def test_configs_that_ask_for_what_is_not_here(changes, reason, tmp_path):
    directory = written(tmp_path)
    edit(directory, **changes)
    refused(directory, reason)


def test_dora_of_peft_is_refused(tmp_path):
    adapted = random_lora(hubert(mert()), target_modules=["q_proj"], use_dora=True)
    adapted.save_pretrained(tmp_path)
    refused(tmp_path, "use_dora = True")
    edit(tmp_path, use_dora=False)  # the tensors give it away
    refused(tmp_path, "lora_magnitude_vector")


def test_updates_in_some_blocks_only_are_refused(tmp_path):
    adapted = random_lora(hubert(mert()), target_modules=["q_proj"], layers_to_transform=[0, 2])
    adapted.save_pretrained(tmp_path)
    refused(tmp_path, r"layers.1.attention.q_proj' has no update, but others with its role \(query\)")


def test_modules_that_are_not_here_are_refused(tmp_path):
    directory = written(tmp_path)
    refused(directory, "load the backbone with more layers", lambda: mert(num_layers=2))
    refused(directory, "Names look like 'base_model.model.conformer.layers.0.self_attn.linear_q", musicfm)
    adapted = random_lora(hubert(mert()), target_modules=["projection"])
    adapted.save_pretrained(tmp_path / "stem")
    refused(tmp_path / "stem", "feature_projection.projection.lora_A.weight' belongs to no linear map")


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    directory = written(tmp_path)
    good = safetensors.torch.load_file(directory / TENSORS)
    name = "base_model.model.encoder.layers.0.attention.q_proj.lora_A.weight"
    bad: dict[str, dict[str, Tensor]] = {
        "missing": {k: v for k, v in good.items() if k != name},
        "of another shape": good | {name: good[name][:, :-1].contiguous()},
        "is torch.float64": good | {name: good[name].double()},
        "is torch.int64": good | {name: good[name].long()},
        "not finite": good | {name: good[name] * float("nan")},
        "belongs to no linear map": good | {"base_model.model.encoder.layers.0.evil": torch.zeros(1)},
        "unexpected|belongs to": good | {name.removeprefix("base_model.model."): good[name].clone()},
        "holds no tensors": {},
    }
    for reason, tensors in bad.items():
        safetensors.torch.save_file(tensors, directory / TENSORS)
        refused(directory, reason)


class Touch:
    """What a pickle of a stranger may do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_not_opened(tmp_path):
    directory, trap = written(tmp_path), tmp_path / "executed"
    for save in (
        lambda path: path.write_bytes(pickle.dumps(Touch(trap))),
        lambda path: torch.save({"a": Touch(trap)}, path),
    ):
        save(directory / TENSORS)
        refused(directory, "cannot read")
        os.replace(directory / TENSORS, directory / PICKLE)
        refused(directory, "is a pickle, which may run code, and is not opened")
    assert not trap.exists()


def test_damaged_and_missing_files_are_refused(tmp_path):
    directory = written(tmp_path)
    good = (directory / TENSORS).read_bytes()
    (directory / TENSORS).write_bytes(good[:-1])
    refused(directory, "cannot read")
    (directory / TENSORS).unlink()
    os.symlink(directory / TENSORS, directory / TENSORS)
    refused(directory, f"has no file {TENSORS}")
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        (directory / CONFIG).write_bytes(content)
        refused(directory, "cannot read")
    (directory / CONFIG).unlink()
    os.mkfifo(directory / CONFIG)
    refused(directory, f"has no file {CONFIG}")
    refused(tmp_path / "nowhere", f"has no file {CONFIG}")


def test_what_cannot_be_written(tmp_path):
    backbone = mert()
    with pytest.raises(PeftFormatError, match="tiny-mert is not adapted"):
        save_peft(backbone, tmp_path / "a")
    for method in set(METHODS) - {"lora"}:
        backbone = mert()
        inject(backbone, method)
        with pytest.raises(
            PeftFormatError, match=f"is adapted with '{method}'; what has the format of peft is 'lora'"
        ):
            save_peft(backbone, tmp_path / "a")
    backbone = mert()
    inject(backbone, "lora")
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.wav").write_bytes(b"RIFF")
    with pytest.raises(PeftFormatError, match="holds something else"):
        save_peft(backbone, tmp_path / "music")
    with torch.no_grad():
        backbone.encoder.blocks[1].attention.key.adaptation.B[0, 0] = float("inf")
    with pytest.raises(PeftFormatError, match=r"layers.1.attention.k_proj.lora_B.weight' holds numbers"):
        save_peft(backbone, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_backbone_that_cannot_take_it(tmp_path):
    directory = written(tmp_path)
    backbone = mert()
    inject(backbone, "bitfit")
    with pytest.raises(ValueError, match="adapted with 'bitfit' already"):
        load_peft(backbone, directory)
    with pytest.raises(ValueError, match="'chroma' has no encoder to adapt with 'lora'"):
        load_peft(load_backbone("chroma"), directory)
    with pytest.raises(ValueError, match="no published implementation of 'new' is known"):
        new = mert()
        new.name, new.official_module = "new", functools.partial(Backbone.official_module, new)
        load_peft(new, directory)
