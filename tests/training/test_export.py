"""`python -m training.export` on runs, as transformers loads them."""

import hashlib
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoTokenizer,
)

from training.run_dir import load_model
from training.text import load_codec

pytestmark = pytest.mark.slow

VIT = {"name": "vit", "num_classes": 4, "positions": "learned", "pooling": "class_token"}


@pytest.fixture(scope="module")
def text_run(cli, write_config, dataset_dir, tmp_path_factory):
    """With an average of its weights; its dataset is gone."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    dataset = shutil.copytree(dataset_dir, folder.with_name("dataset"))
    config = write_config(num_steps=3, ema="{decay: 0.5}")
    answer = cli("training", config, f"run_dir={folder}", f"data.dataset_dir={dataset}")
    shutil.rmtree(dataset)
    assert answer["code"] == 0, answer
    return folder


@pytest.fixture(scope="module")
def image_run(cli, write_image_config, image_dir, tmp_path_factory):
    """Its dataset is gone."""

    def build(model, task, **sections):
        folder = tmp_path_factory.mktemp("runs")
        dataset = shutil.copytree(image_dir, folder.with_name(f"{folder.name}-dataset"))
        config = write_image_config(model, task, run_dir=str(folder), num_steps=2, **sections)
        answer = cli("training", config, f"data.dataset_dir={dataset}")
        shutil.rmtree(dataset)
        assert answer["code"] == 0, answer
        return folder

    return build


@torch.no_grad()
def test_a_run_on_text(cli, text_run, dataset_dir, tmp_path):
    out = tmp_path / "deep/out"
    answer = cli("training.export", text_run, out, "--format", "huggingface")
    assert answer["code"] == 0, answer
    assert answer["stdout"] == (
        f"{out}: GPT2LMHeadModel of step 3, 7,360 numbers in fp32, read back and the same\n"
    )
    trained, codec = load_model(text_run), load_codec(dataset_dir)
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = "the mill"
    inputs = tokenizer(prompt, return_tensors="pt")
    (tokens,) = inputs["input_ids"].tolist()
    assert tokens == codec.encode(prompt)
    assert tokenizer.decode(tokens) == prompt
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == codec.end_of_document
    assert tokenizer.model_max_length == 16
    batch = torch.tensor([tokens])
    torch.testing.assert_close(theirs(batch).logits, trained.model(batch), rtol=1e-5, atol=1e-5)
    assert theirs.generation_config.suppress_tokens == list(range(codec.end_of_document + 1, 32))
    text = theirs.generate(**inputs, do_sample=False, max_new_tokens=8)
    assert text[0].tolist() == likeliest(trained.model, tokens, codec, num_tokens=8)


def likeliest(model, tokens, codec, *, num_tokens):
    """Up to the end of a document, among the tokens that the tokenizer has."""
    for _ in range(num_tokens):
        logits = model(torch.tensor([tokens]))[0, -1]
        tokens = [*tokens, int(logits[: codec.end_of_document + 1].argmax())]
        if tokens[-1] == codec.end_of_document:
            break
    return tokens


def test_the_average_of_the_weights(cli, text_run, tmp_path):
    assert cli("training.export", text_run, tmp_path / "out", "--ema")["code"] == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    average = load_model(text_run, averaged=True).model.state_dict()
    weight = theirs["transformer.h.0.mlp.c_fc.weight"].T
    assert torch.equal(weight, average["blocks.0.feed_forward.up.weight"])


def test_files_are_listed_and_an_export_is_replaced(cli, text_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    small = 2000 / 2**30
    assert cli("training.export", text_run, out, "--max-shard-gib", small)["code"] == 0
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert shards == [f"model-{n:05}-of-00014.safetensors" for n in range(1, 15)]
    assert cli("training.export", text_run, out, "--dtype", "bf16")["code"] == 0
    marker = json.loads((out / "millrace.json").read_text())
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "millrace.json"}
    assert marker.pop("files") == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    assert sorted(files) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert marker == {
        "format": "huggingface",
        "run": "text",
        "step": 3,
        "averaged": False,
        "dtype": "bf16",
    }
    assert list(tmp_path.iterdir()) == [out]


@torch.no_grad()
def test_a_classifier(cli, image_run, image_dir, tmp_path):
    run_dir = image_run(VIT, "image_classification", augment={"crop": "center", "crop_ratio": 0.8})
    answer = cli("training.export", run_dir, tmp_path / "out")
    assert answer["code"] == 0, answer
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.id2label == {0: "dark", 1: "bright", 2: "class 2", 3: "class 3"}
    images = torch.randn(4, 3, 8, 8)
    expected = load_model(run_dir).model(images)
    torch.testing.assert_close(theirs(images).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_masked_autoencoder(cli, image_run, tmp_path):
    run_dir = image_run({"name": "mae"}, "masked_autoencoding")
    answer = cli("training.export", run_dir, tmp_path / "out")
    assert answer["code"] == 0, answer
    theirs = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.norm_pix_loss is True
    images, noise = torch.randn(4, 3, 8, 8), torch.rand(4, 4)
    ours = load_model(run_dir).model
    expected = ours(images, ours.choose_visible(noise)).unflatten(2, (3, 16)).transpose(2, 3)
    actual = theirs(images, noise=noise).logits.unflatten(2, (16, 3))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_run_begins_with_an_export(cli, write_config, text_run, tmp_path):
    """The very weights of the run that was exported, and what differs is told."""
    out, second = tmp_path / "out", tmp_path / "second"
    assert cli("training.export", text_run, out)["code"] == 0
    config = write_config(num_steps=1, optimizer="{peak_learning_rate: 1.0e-30}", seed=7)
    text = (out / "tokenizer.json").read_text()
    (out / "tokenizer.json").write_text(text.replace('"e":', '"E":'))
    words = [f"run_dir={second}", f"init_from={out}", "model.norm_epsilon=1e-3"]
    answer = cli("training", config, *words)
    assert answer["code"] == 0, answer
    before, after = (load_model(folder).model.state_dict() for folder in (text_run, second))
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name
    report = json.loads((second / "init_from.json").read_text())
    assert report["init_from"] == str(out)
    assert sorted(report["loaded"]) == sorted(before)
    assert (report["missing"], report["unused"]) == ({}, [])
    assert report["differs"] == {"norm_epsilon": "1e-05 there, 0.001 here"}
    lines = [one for one in answer["stdout"].splitlines() if one.startswith("initial weights")]
    assert lines == [
        f"initial weights of {out}: 29 loaded, 7,360 of 7,360 parameters; "
        f"all names in {second}/init_from.json",
        f"initial weights of {out}: model.norm_epsilon is 1e-05 there, 0.001 here",
        f"initial weights of {out}: its tokenizer is not the dataset's: "
        "token 4 is 'E' there, 'e' in the dataset",
    ]


def test_a_classifier_begins_with_an_exported_autoencoder(cli, image_run, tmp_path):
    run_dir = image_run({"name": "mae"}, "masked_autoencoding")
    assert cli("training.export", run_dir, tmp_path / "out", "--dtype", "bf16")["code"] == 0
    second = image_run(
        {"name": "vit", "num_classes": 4, "pooling": "mean"},
        "image_classification",
        init_from=str(tmp_path / "out"),
    )
    report = json.loads((second / "init_from.json").read_text())
    assert set(report["missing"]) == {"head.weight", "head.bias"}
    assert all(name.startswith("decoder.") for name in report["unused"])
    assert "encoder.blocks.0.attention.query_key_value.weight" in report["loaded"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--max-shard-gib", "0"], "error: max_shard_gib is 0.0; it must be above 0"),
        (["--max-shard-gib", "nan"], "error: max_shard_gib is nan; it must be above 0"),
        ([], "error: {out}: holds mine, which no export wrote; choose another folder"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_read(cli, tmp_path, words, part):
    (tmp_path / "mine").write_text("")
    answer = cli("training.export", "/nowhere", tmp_path, *words)
    assert answer["code"] == 2
    assert answer["stderr"] == part.format(out=tmp_path) + "\n"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.num_heads=4"], "model.num_heads is 2 there, 4 here; the section that fits is mod"),
        (["model.d_model=32"], "embedding.weight is 32 x 16 there, 32 x 32 here; "),
        (["init_ema=true"], "init_ema asks for an average, which {out}, of Hugging Face, has not"),
    ],
)
def test_a_run_that_an_export_does_not_fit(cli, write_config, text_run, tmp_path, overrides, part):
    out = tmp_path / "out"
    assert cli("training.export", text_run, out)["code"] == 0
    words = [f"run_dir={tmp_path}/second", f"init_from={out}", *overrides]
    answer = cli("training", write_config(num_steps=1), *words)
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert part.format(out=out) in line
    assert line.endswith('"bias": true}') or "init_ema" in line


def test_help(cli):
    answer = cli("training.export", "--help")
    assert answer["code"] == 0
    for option in ("--format", "--dtype", "--max-shard-gib", "--ema"):
        assert option in answer["stdout"]
