"""Folders that transformers writes, read for `init_from`: whole, in pieces, and refused."""

import json
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from training.huggingface.initial import read_weights
from training.models import mae, transformer, vit

TEXT = {"vocab_size": 101, "d_model": 32, "num_layers": 2, "num_heads": 4, "max_positions": 48}
IMAGES = {"image_size": 24, "patch_size": 8, "d_model": 32, "num_layers": 1, "num_heads": 4}
THEIR_IMAGES = {
    "image_size": 24,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
GPT2 = {"vocab_size": 101, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def gpt2():
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(**GPT2))
    with torch.no_grad():
        theirs.transformer.h[0].ln_1.bias.fill_(0.1)  # all others are 0
    return theirs


def scaled_dinov2():
    theirs = Dinov2Model(Dinov2Config(**THEIR_IMAGES, use_mask_token=False))
    with torch.no_grad():
        theirs.encoder.layer[0].layer_scale1.lambda1.fill_(0.1)
    return theirs


def vit_mae_without_waves():
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**THEIR_IMAGES)).vit
    with torch.no_grad():
        theirs.embeddings.position_embeddings.fill_(0.5)
    return theirs


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | changes)))


@pytest.fixture
def gpt2_dir(tmp_path):
    gpt2().save_pretrained(tmp_path)
    return tmp_path


def change(folder, name, **keys):
    tree = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(tree | keys))


@pytest.mark.parametrize(
    ("build", "config", "lacks"),
    [
        (lambda: gpt2().transformer, transformer.Config(**TEXT), set()),
        (
            lambda: llama().model,
            transformer.Config(
                **TEXT | {"max_positions": 2048, "num_kv_heads": 2, "d_ff": 72},
                positions="rotary",
                norm="rmsnorm",
                activation="swiglu",
                bias=False,
                tie_embeddings=False,
                norm_epsilon=1e-6,
            ),
            {"head.weight"},
        ),
        (
            lambda: ViTForImageClassification(ViTConfig(**THEIR_IMAGES)).vit,
            vit.Config(**IMAGES, num_classes=2, norm_epsilon=1e-12),
            {"head.weight", "head.bias"},
        ),
        (
            scaled_dinov2,
            vit.Config(**IMAGES, num_classes=2, layer_scale=1.0),
            {"head.weight", "head.bias"},
        ),
        (
            vit_mae_without_waves,
            mae.Config(**IMAGES, norm_epsilon=1e-12, positions="learned"),
            {
                name
                for name in mae.Model(mae.Config(**IMAGES)).state_dict()
                if name.startswith("decoder.")
            },
        ),
    ],
    ids=["gpt2", "llama", "vit", "dinov2", "vit_mae"],
)
def test_a_model_without_its_head(tmp_path, build, config, lacks):
    """Its files have no prefix, as openai-community/gpt2 has not."""
    build().save_pretrained(tmp_path)
    module = {transformer.Config: transformer, vit.Config: vit, mae.Config: mae}[type(config)]
    found = read_weights(tmp_path, config)
    own = module.Model(config)
    assert own.load_state_dict(found.weights, strict=False).unexpected_keys == []
    assert own.state_dict().keys() - found.weights.keys() == lacks
    assert found.differs == {}
    assert found.unused == ()


def test_several_files(tmp_path):
    theirs = llama()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    keys = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
    config = transformer.Config(
        **TEXT | {"max_positions": 512}, num_kv_heads=2, d_ff=72, tie_embeddings=False, **keys
    )
    one, many = (read_weights(tmp_path / name, config) for name in ("one", "many"))
    assert one.weights.keys() == many.weights.keys()
    assert all(torch.equal(one.weights[name], many.weights[name]) for name in one.weights)
    told = {"max_positions": "2048 there, 512 here", "norm_epsilon": "1e-06 there, 1e-05 here"}
    assert one.differs == many.differs == told


def test_a_larger_vocabulary_has_the_mean_in_its_last_rows(gpt2_dir):
    found = read_weights(gpt2_dir, transformer.Config(**TEXT | {"vocab_size": 128})).weights
    own = read_weights(gpt2_dir, transformer.Config(**TEXT)).weights["embedding.weight"]
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(found[name][:101], own)
        assert torch.equal(found[name][101:], own.mean(dim=0).expand(27, -1))


def test_names_that_no_model_of_ours_has_are_unused(tmp_path):
    """As a pooler is, or the causal masks of old GPT-2 files."""
    gpt2().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {**weights, "transformer.h.0.attn.bias": torch.ones(1)}, tmp_path / "model.safetensors"
    )
    found = read_weights(tmp_path, transformer.Config(**TEXT))
    assert found.unused == ("transformer.h.0.attn.bias",)


def test_the_section_that_fits_is_told(gpt2_dir):
    with pytest.raises(ValueError, match="model.num_heads is 4 there, 8 here, model.positions is"
                       " learned there, rotary here") as refused:  # fmt: skip
        read_weights(gpt2_dir, transformer.Config(**TEXT | {"num_heads": 8}, positions="rotary"))
    text = str(refused.value)
    section = json.loads(text[text.index('{"name"') :])
    assert section.pop("name") == "transformer"
    config = transformer.Config(**section)
    assert config == transformer.Config(**TEXT)
    assert read_weights(gpt2_dir, config).differs == {}


def test_an_untied_head_is_not_lost(tmp_path):
    theirs = GPT2LMHeadModel(GPT2Config(**GPT2, tie_word_embeddings=False))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^model.tie_embeddings is False there, True here; the"):
        read_weights(tmp_path, transformer.Config(**TEXT))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"class_token": False, "pooling": "mean"}, "model.class_token is True there, False here;"),
        ({"qk_norm": True}, "model.qk_norm is False there, True here;"),
        ({"layer_scale": 0.1}, "model.layer_scale is 0.0 there, 0.1 here;"),
        ({"positions": "sincos"}, "model.positions is learned there, sincos here;"),
    ],
)
def test_encoders_that_compute_something_else(tmp_path, keys, told):
    ViTForImageClassification(ViTConfig(**THEIR_IMAGES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{told} the section that fits is model: "):
        read_weights(tmp_path, vit.Config(**IMAGES | keys, num_classes=2, norm_epsilon=1e-12))


def test_layer_scale_may_have_begun_elsewhere(tmp_path):
    scaled_dinov2().save_pretrained(tmp_path)
    config = vit.Config(**IMAGES, num_classes=2, layer_scale=1e-4)
    found = read_weights(tmp_path, config)
    assert found.differs == {"layer_scale": "1.0 there, 0.0001 here"}
    scale = found.weights["encoder.blocks.0.attention_join.scale.weight"]
    assert torch.equal(scale, torch.full((32,), 0.1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model_type": "bert"},
            "model_type is bert; layouts that are read: dinov2, gpt2, llama, t5, vi",
        ),
        ({"model_type": "../gpt2"}, "model_type is ../gpt2; layouts"),
        ({"activation_function": "relu"}, "activation_function is relu; only gelu_new, gelu_pyt"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; only True is read"),
        ({"quantization_config": {}}, "quantized; only fp32, bf16 and fp16 are read"),
        ({"n_embd": "many"}, "config.json makes no sense"),
        ({"n_head": 5}, "d_model 32 is no multiple of num_heads 5"),
        ({"n_layer": 3}, "its files lack transformer.h.2.ln_1.weight and 11 more; is the folder"),
        ({"vocab_size": 100}, r"transformer.wte.weight is \[101, 32\], but config.json means \[1"),
    ],
)
def test_a_config_that_is_refused(gpt2_dir, keys, message):
    change(gpt2_dir, "config.json", **keys)
    with pytest.raises(ValueError, match=message):
        read_weights(gpt2_dir, transformer.Config(**TEXT))


def test_a_config_without_a_key(gpt2_dir):
    (gpt2_dir / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 101}')
    with pytest.raises(ValueError, match=r"^config.json has no n_embd$"):
        read_weights(gpt2_dir, transformer.Config(**TEXT))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rotary positions are scaled .llama3.; only plain ones",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is gelu; only silu is read"),
        ({"mlp_bias": True}, "mlp_bias is True; only False is read"),
    ],
)
def test_a_llama_that_is_refused(tmp_path, keys, message):
    llama().save_pretrained(tmp_path)
    change(tmp_path, "config.json", rope_parameters=None, **keys)
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path, transformer.Config(**TEXT))


def test_theta_of_an_older_file(tmp_path):
    llama().save_pretrained(tmp_path)
    change(tmp_path, "config.json", rope_parameters=None, rope_theta=123.0)
    with pytest.raises(ValueError, match=re.escape('"rope_theta": 123.0')):
        read_weights(tmp_path, transformer.Config(**TEXT))


def test_a_classifier_on_two_things_is_refused(tmp_path):
    theirs = Dinov2ForImageClassification(Dinov2Config(**THEIR_IMAGES))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its classifier reads the class token and the mean"):
        read_weights(tmp_path, vit.Config(**IMAGES, num_classes=2))


def test_a_dtype_that_is_not_read(gpt2_dir):
    path = gpt2_dir / "model.safetensors"
    save_file({name: one.to(torch.int8) for name, one in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"is of torch.int8; only fp32, bf16 and fp16 are read"):
        read_weights(gpt2_dir, transformer.Config(**TEXT))


def test_pickle_files_are_not_read(gpt2_dir):
    (gpt2_dir / "model.safetensors").rename(gpt2_dir / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"^it holds pytorch_model.bin, but no model.safetensors;"):
        read_weights(gpt2_dir, transformer.Config(**TEXT))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": None}, "neither model.safetensors nor model.safetensors.index.json"),
        ({"model.safetensors": b"\x00" * 20}, "model.safetensors is damaged or no safetensors"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": b"[]"}, "config.json is no JSON object"),
        ({"model.safetensors.index.json": b"{}"}, "index.json has no weight_map to files in this"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            "has no weight_map to files in this folder",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'},
            "x.safetensors, which model.safetensors.index.json names, is missing",
        ),
    ],
)
def test_damaged_folders(gpt2_dir, files, message):
    for name, content in files.items():
        if content is None:
            (gpt2_dir / name).unlink()
        else:
            (gpt2_dir / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weights(gpt2_dir, transformer.Config(**TEXT))


def test_a_cut_file(gpt2_dir):
    path = gpt2_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"^model.safetensors is damaged"):
        read_weights(gpt2_dir, transformer.Config(**TEXT))
