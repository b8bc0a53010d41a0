"""Encoder-decoders by the engine on two ranks, and whole runs with what is made of them."""

import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECTIONS = {
    "num_steps": 8,
    "model": "{name: encoder_decoder, vocab_size: 32, d_model: 16, num_layers: 2, num_heads: 4,"
    " num_decoder_layers: 1, dropout: 0.1}",
    "task": "{name: span_corruption}",
    "samples": "{every_steps: 4, prompt: 'the <extra_id_0>l turns', num_tokens: 5}",
    "checkpoints": "{every_steps: 4, keep: 2}",
    "evaluation": "{every_steps: 4}",
}


@pytest.fixture(scope="module")
def results(run_ranks, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoder_decoder") / "results.pt"
    run_ranks("encoder_decoder_worker.py", out, world_size=2)
    return torch.load(out)


def test_every_stage_and_mode_takes_the_steps_of_torch_alone(results):
    expected = {tied: results[f"torch tied {tied}"] for tied in (False, True)}
    cases = {case: losses for case, losses in results.items() if isinstance(case, tuple)}
    assert len(cases) == 24
    assert expected[False][-1] < expected[False][0]
    for case, losses in cases.items():
        assert losses == pytest.approx(expected["tied" in case], abs=1e-5), case


@pytest.fixture(scope="module")
def train(cli, write_config):
    def run(folder, *overrides, **sections):
        return cli(
            "training", write_config(**(SECTIONS | sections)), f"run_dir={folder}", *overrides
        )

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    answer = train(folder)
    assert answer["code"] == 0, answer
    assert "sample at step 4:\n" in answer["stdout"]
    return folder


def weights(folder):
    from training.engine import load_weights

    return load_weights(folder / "checkpoints" / "step-00000008")


def test_a_resumed_run_is_the_same_bit_by_bit(train, whole, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000008")
    answer = train(copy)
    assert f"resumed from {copy}/checkpoints/step-00000004" in answer["stdout"]
    ours, others = weights(copy), weights(whole)
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in others.items())


def test_another_seed_takes_out_other_spans(train, whole, tmp_path):
    """Of the same sequences."""
    import configs
    from training.config import TrainingConfig
    from training.data.shards import load_manifest
    from training.kinds.text import build_task, open_split

    sources = {}
    for seed in (0, 1):
        config = configs.load(
            TrainingConfig, whole / "config.yaml", [f"seed={seed}", "task.mean_span_length=1"]
        )
        manifest = load_manifest(config.data.dataset_dir)
        split = open_split(config, manifest, split="train")
        rows = split.read(split.order.global_batch(0, 4))
        sources[seed] = rows.tokens, build_task(config, manifest).collate(rows)["source"]
        split.close()
    assert (sources[0][0] == sources[1][0]).all()
    assert not torch.equal(sources[0][1], sources[1][1])


def test_text_fills_gaps(cli, whole):
    words = ("training.generate", whole, "--num-tokens", "12", "--temperature", "0")
    one = cli(*words, "--prompt", "the <extra_id_0>l turns")
    assert one["code"] == 0, one
    assert cli(*words, "--prompt", "the <extra_id_0>l turns")["stdout"] == one["stdout"]
    assert cli(*words, "--prompt", "the ")["code"] == 0
    too_long = cli(*words, "--prompt", "the mill turns " * 3)
    assert "trained on sequences of 16" in too_long["stderr"]


def test_what_it_cannot_do_is_one_line(cli, train, whole, tmp_path):
    answer = cli("training.attention", whole, "--prompt", "the", "--out", tmp_path / "maps")
    assert answer["code"] != 0
    assert "is a run of encoder_decoder; of text what a decoder alone" in answer["stderr"]
    for override, message in (
        ("attention.every_steps=2", "draws what a decoder looks at, and model.name encoder_dec"),
        ("engine.sequence_parallel_size=2", "span_corruption has no way to share its sequences"),
        ("model.vocab_size=16", "model.vocab_size is 16, but the dataset's tokenizer has"),
    ):
        answer = train(tmp_path / "run", override)
        assert answer["code"] != 0
        assert message in answer["stderr"], answer
        assert "Traceback" not in answer["stderr"]
    answer = train(tmp_path / "run", task="{name: causal_lm}")
    assert "gives target tokens, but task.name causal_lm needs a model" in answer["stderr"]


@torch.no_grad()
def test_export_for_transformers(cli, whole, tmp_path):
    from transformers import T5ForConditionalGeneration

    from training.run_dir import load_model

    answer = cli("training.export", whole, tmp_path / "out")
    assert answer["code"] == 0, answer
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    ours = load_model(whole).model
    source, tokens = torch.randint(32, (2, 9)), torch.randint(32, (2, 7))
    expected = ours(source, tokens)
    actual = theirs(input_ids=source, decoder_input_ids=tokens).logits
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    end = tree["eos_token_id"]
    assert (tree["decoder_start_token_id"], tree["pad_token_id"]) == (end, end)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == end
