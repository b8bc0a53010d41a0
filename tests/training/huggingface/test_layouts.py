"""Our models in the layouts of transformers: written, loaded by it, and read back."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Dinov2ForImageClassification,
    ViTForImageClassification,
    ViTMAEForPreTraining,
)

from training.huggingface.initial import read_weights
from training.huggingface.layouts import find_layout
from training.huggingface.model_files import write_model
from training.models import mae, transformer, vit

SIZES = {"vocab_size": 101, "d_model": 32, "num_layers": 2, "num_heads": 4, "max_positions": 48}
LLAMA = SIZES | {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
IMAGES = {"image_size": 24, "patch_size": 8, "d_model": 32, "num_layers": 2, "num_heads": 4}
DECODER = {"decoder_d_model": 24, "decoder_num_layers": 1, "decoder_num_heads": 3}
TEXT_MODELS = [
    ("gpt2", SIZES),
    ("gpt2", SIZES | {"activation": "gelu", "tie_embeddings": False, "d_ff": 40}),
    ("gpt2", SIZES | {"norm_epsilon": 1e-3, "dropout": 0.2}),
    ("llama", LLAMA),
    ("llama", LLAMA | {"num_kv_heads": 2, "head_dim": 24, "rope_theta": 5e5, "dropout": 0.1}),
    ("llama", LLAMA | {"num_kv_heads": 1, "tie_embeddings": True, "bias": True, "d_ff": 40}),
]
ViT = (vit, ViTForImageClassification, "vit")
DINOV2 = (vit, Dinov2ForImageClassification, "dinov2")
MAE = (mae, ViTMAEForPreTraining, "vit_mae")
IMAGE_MODELS = [
    (*ViT, IMAGES | {"num_classes": 7}),
    (*ViT, IMAGES | {"num_classes": 7, "positions": "sincos", "d_ff": 40, "norm_epsilon": 1e-3}),
    (*DINOV2, IMAGES | {"num_classes": 7, "pooling": "mean"}),
    (*DINOV2, IMAGES | {"num_classes": 7, "layer_scale": 0.5, "positions": "sincos"}),
    (*DINOV2, IMAGES | {"num_classes": 7, "layer_scale": 0.5, "pooling": "mean", "d_ff": 64}),
    (*MAE, IMAGES | DECODER | {"mask_ratio": 0.5}),
    (*MAE, IMAGES | DECODER | {"positions": "learned", "pooling": "class_token"}),
]


@pytest.fixture
def write(tmp_path, roughen):
    """A model of a config with rough weights, and the folder that it is written to."""

    def build(module, config, *, dtype=torch.float32, max_shard_bytes=2**30, others=None):
        torch.manual_seed(0)
        model = module.Model(config).eval()
        roughen(model)
        name = module.__name__.rpartition(".")[2]
        folder = tmp_path / "folder"
        folder.mkdir()
        write_model(
            folder,
            find_layout(name, config),
            config,
            model.state_dict(),
            others=others or {},
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
        return model, folder

    return build


def load(architecture, folder):
    """By transformers, which finds all weights, and none that it has no use for."""
    model, told = architecture.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_read_back(model, folder):
    """Every weight bit by bit, and the keys of the config."""
    found = read_weights(folder, model.config)
    own = model.state_dict()
    assert found.weights.keys() == own.keys()
    for name, weight in own.items():
        assert torch.equal(found.weights[name], weight), name
    assert found.differs == {}
    section = json.loads(found.section.removeprefix("model: "))
    section.pop("name")
    rest = {
        key: getattr(model.config, key)
        for key in ("dropout", "attention_dropout", "init_std", "pooling")
        if hasattr(model.config, key)
    }
    assert type(model.config)(**(rest | section)) == model.config


def tokens(num_tokens=48):
    return torch.randint(101, (2, num_tokens), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "keys"), TEXT_MODELS)
def test_models_of_text(write, model_type, keys):
    ours, folder = write(transformer, transformer.Config(**keys))
    theirs = load(AutoModelForCausalLM, folder)
    assert theirs.config.model_type == model_type
    expected = ours(tokens())
    assert expected.std() > 0.3
    torch.testing.assert_close(theirs(tokens()).logits, expected, rtol=1e-5, atol=1e-5)
    assert_read_back(ours, folder)


@torch.no_grad()
def test_biases_that_our_model_has_not_are_zeros_in_gpt2(write):
    ours, folder = write(transformer, transformer.Config(**SIZES, bias=False))
    theirs = load(AutoModelForCausalLM, folder)
    torch.testing.assert_close(theirs(tokens()).logits, ours(tokens()), rtol=1e-5, atol=1e-5)
    assert_read_back(ours, folder)
    found = read_weights(folder, transformer.Config(**SIZES))
    assert found.differs == {"bias": "False there, True here"}
    again = transformer.Model(transformer.Config(**SIZES)).eval()
    lacks = again.load_state_dict(found.weights, strict=False).missing_keys
    assert all(name.endswith(".bias") for name in lacks)
    torch.testing.assert_close(again(tokens()), ours(tokens()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_tied_head_may_be_untied(write):
    ours, folder = write(transformer, transformer.Config(**SIZES))
    untied = transformer.Model(transformer.Config(**SIZES, tie_embeddings=False)).eval()
    untied.load_state_dict(read_weights(folder, untied.config).weights)
    torch.testing.assert_close(untied(tokens()), ours(tokens()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("module", "architecture", "model_type", "keys"), IMAGE_MODELS)
def test_models_of_images(write, module, architecture, model_type, keys):
    others = {"num_labels": 7} if module is vit else {}
    ours, folder = write(module, module.Config(**keys), others=others)
    theirs = load(architecture, folder)
    assert theirs.config.model_type == model_type
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    if module is vit:
        expected, actual = ours(images), theirs(images).logits
    else:
        noise = torch.rand(3, 9)
        expected = ours(images, ours.choose_visible(noise)).unflatten(2, (3, 64)).transpose(2, 3)
        actual = theirs(images, noise=noise).logits.unflatten(2, (64, 3))
    assert expected.std() > 0.3
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert_read_back(ours, folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("module", "keys"), [(transformer, LLAMA), (mae, IMAGES | DECODER)])
def test_narrow_dtypes(write, module, keys, dtype):
    ours, folder = write(module, module.Config(**keys), dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype)[6:]
    found = read_weights(folder, ours.config).weights
    for name, weight in ours.state_dict().items():
        assert torch.equal(found[name], weight.to(dtype).float()), name


@pytest.mark.parametrize(
    ("module", "keys", "message"),
    [
        (
            transformer,
            SIZES | {"positions": "sinusoidal", "norm": "rmsnorm"},
            "as GPT2LMHeadModel: model.positions=sinusoidal .needs learned., model.norm=rmsnorm "
            ".needs layernorm.; as LlamaForCausalLM: model.positions=sinusoidal .needs rotary., "
            "model.activation=gelu_tanh .needs swiglu.",
        ),
        (transformer, SIZES | {"activation": "swiglu"}, "activation=swiglu .needs gelu_tanh or"),
        (transformer, SIZES | {"num_kv_heads": 2}, "model.num_kv_heads=2 .needs 4."),
        (transformer, SIZES | {"head_dim": 16}, "head_dim=16 .needs d_model / num_heads."),
        (
            transformer,
            LLAMA | {"num_heads": 3, "head_dim": 8},
            "model.num_heads=3 .needs a divisor of model.d_model=32.",
        ),
        (
            vit,
            IMAGES | {"num_classes": 3, "pooling": "mean", "class_token": False},
            "what this vit does: as Dinov2ForImageClassification: model.class_token=False .needs "
            "True.; as ViTForImageClassification: model.class_token=False .needs True., "
            "model.pooling=mean .needs class_token.$",
        ),
        (
            vit,
            IMAGES | {"num_classes": 3, "layer_scale": 0.1, "d_ff": 80},
            "model.d_ff=80 .needs a multiple of model.d_model=32.; as ViT.*layer_scale=0.1 .needs",
        ),
        (mae, IMAGES | DECODER | {"layer_scale": 0.1}, "model.layer_scale=0.1 .needs 0.0."),
        (mae, IMAGES | DECODER | {"qk_norm": True}, "model.qk_norm=True .needs False."),
        (mae, IMAGES | DECODER | {"class_token": False}, "class_token=False .needs True."),
    ],
)
def test_what_has_no_counterpart_is_refused(module, keys, message):
    with pytest.raises(ValueError, match=message):
        find_layout(module.__name__.rpartition(".")[2], module.Config(**keys))
