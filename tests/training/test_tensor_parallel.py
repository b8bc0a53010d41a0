"""Ranks that share weights train as one that has all: losses, norms, checkpoints, whole weights.

The cases run in `tensor_parallel_worker.py`: one group of two gloo ranks, and two groups.
"""

import re
import shutil

import pytest
import torch
import yaml

import configs
from training.config import TrainingConfig
from training.deepspeed_config import Config
from training.engine import load_weights
from training.models import transformer
from training.tensor_parallel import Cut, cut_heads, join, layer_specs, of_place

MODEL = (
    "{name: transformer, vocab_size: 32, d_model: 16, num_layers: 2, num_heads: 4,"
    " max_positions: 16, dropout: 0.1}"
)
RUN = {
    "num_steps": 4,
    "engine": "{zero_stage: 1, precision: fp32, tensor_parallel_size: 2}",
    "samples": "{every_steps: 4, num_tokens: 10}",
}
ROUNDING = {"fp32": 2e-6, "bf16": 0.005}
"""Of losses near 3: ranks sum up in another order; bf16 has 8 bits, in which they sum, too."""
stages = pytest.mark.parametrize("stage", [0, 1, 2, 3])
precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture(scope="module")
def run_cases(tmp_path_factory, run_ranks, write_config):
    """Runs the cases; gives them by name, and the config and the folder of the run."""

    def run(*sources, world_size):
        out = tmp_path_factory.mktemp("tensor-parallel") / "results.pt"
        config = write_config(run_dir=out.with_name("run"), model=MODEL, ema="{decay: 0.9}", **RUN)
        shutil.copy(config, out.with_name("train.yaml"))
        run_ranks("tensor_parallel_worker.py", out, *sources, world_size=world_size)
        results = torch.load(out, weights_only=False)
        errors = [f"{name}: {case['error']}" for name, case in results.items() if "error" in case]
        assert not errors, "\n".join(errors)
        return results | {"run": out.with_name("run"), "config": config}

    return run


@pytest.fixture(scope="module")
def one_group(run_cases):
    return run_cases(world_size=2)


@pytest.fixture(scope="module")
def two_groups(run_cases, one_group):
    """They go on with what one has written, too."""
    return run_cases(one_group["run"].parent, world_size=4)


@pytest.fixture(params=["one_group", "two_groups"])
def ranks(request):
    return request.getfixturevalue(request.param)


def assert_same_steps(ours, others, precision):
    assert ours["losses"] == pytest.approx(others["losses"], abs=ROUNDING[precision])
    assert ours["norms"] == pytest.approx(others["norms"], rel=max(1e-5, 4 * ROUNDING[precision]))
    assert ours["targets"] == others["targets"]


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestOnRanks:
    @stages
    def test_steps_are_those_of_a_whole_model(self, ranks, stage):
        for kind in ("gpt", "llama"):
            ours, whole = ranks[f"{kind} fp32 zero{stage}"], ranks[f"reference {kind}"]
            assert_same_steps(ours, whole, "fp32")
            assert ours["held"] < 0.6 * whole["held"]
        assert_same_steps(ranks[f"llama bf16 zero{stage}"], ranks["reference llama"], "bf16")

    @stages
    @precisions
    def test_weights_of_a_checkpoint_are_whole(self, ranks, stage, precision):
        case, whole = ranks[f"save {precision} zero{stage}"], ranks["reference llama"]
        assert case["initial"].keys() == whole["weights"].keys()
        for name, weight in whole["initial"].items():
            if precision == "bf16" and stage > 0:  # where DeepSpeed's masters begin at the model's
                weight = weight.bfloat16().float()
            assert torch.equal(case["initial"][name], weight), name
            assert torch.equal(case["average"][name], weight), name
            # AdamW moves a weight whose gradient is rounding by its sign: a few learning rates.
            gap = (case["weights"][0][name] - whole["weights"][name]).abs()
            assert gap.mean() < {"fp32": 1e-6, "bf16": 0.01}[precision], name

    @stages
    @precisions
    def test_a_resume_is_bitwise(self, ranks, stage, precision):
        case = ranks[f"save {precision} zero{stage}"]
        assert case["again"] == case["on"]
        for weights, again in (case["weights"], case["averages"]):
            assert weights.keys() == again.keys()
            for name, weight in weights.items():
                assert torch.equal(again[name], weight), name
        assert "mp_rank_01_model_states.pt" in " ".join(case["files"])

    @stages
    def test_a_resume_at_another_zero_stage(self, ranks, stage):
        case = ranks[f"moved zero{stage}"]
        assert_same_steps(case["again"], case["on"], "fp32")
        for weights, again in (case["weights"], case["averages"]):
            for name, weight in weights.items():
                assert torch.equal(again[name], weight), name

    @stages
    def test_more_groups_go_on(self, one_group, two_groups, stage):
        ours, others = two_groups[f"more groups zero{stage}"], one_group[f"moved zero{stage}"]
        assert_same_steps(ours["on"], others["on"], "fp32")
        for weights, again in (ours["weights"], ours["averages"]):
            for name, weight in weights.items():
                assert torch.equal(again[name], weight), name

    def test_evaluation(self, ranks):
        case = ranks["evaluate"]
        assert case["loss"] == pytest.approx(case["expected"], abs=1e-6)
        assert case["averaged"] == case["loss"]  # no step is taken
        assert case["targets"] == case["expected targets"]

    def test_a_group_drops_the_same_features(self, ranks):
        states = ranks["dropout"]["states"]
        assert states[0::2] == states[1::2]
        assert len(set(states)) == len(states) // 2
        assert ranks["dropout"]["losses"] != ranks["gpt fp32 zero2"]["losses"]

    def test_with_other_options(self, ranks):
        plain, options = ranks["gpt fp32 zero2"], ("full", "every_n", "offload", "compiled")
        for name in {*options, "offloaded", "offloaded zero3"} & ranks.keys():
            assert_same_steps(ranks[name], plain, "fp32")
        if "bf16 states" in ranks:
            assert_same_steps(ranks["bf16 states"], plain, "bf16")

    def test_a_run_goes_on_with_the_same_dropout(self, ranks):
        again = ranks["run"].with_name("run-again")
        first, second = (folder / "checkpoints/step-00000004" for folder in (ranks["run"], again))
        weights, others = load_weights(first), load_weights(second)
        for name, weight in weights.items():
            assert torch.equal(others[name], weight), name

    def test_what_comes_behind_a_run_takes_whole_weights(self, ranks, cli, tmp_path):
        answer = cli("training.generate", ranks["run"], "--num-tokens", "8")
        assert answer["code"] == 0, answer
        answer = cli("training.export", ranks["run"], tmp_path / "out", "--ema")
        assert answer["code"] == 0, answer
        assert (tmp_path / "out/model.safetensors").exists()

    def test_another_size_is_refused_in_a_line(self, ranks, cli):
        answer = cli("training", ranks["config"], "engine.tensor_parallel_size=1")
        assert answer["code"] != 0
        message = (
            "written with engine.tensor_parallel_size 2, this run has 1; continue with 2, or "
            "begin a new run with init_from"
        )
        assert message in answer["stderr"].splitlines()[-1]
        assert "Traceback" not in answer["stderr"]


def build_model(**changes):
    sizes = {"vocab_size": 5, "d_model": 8, "num_layers": 2, "num_heads": 4, "max_positions": 4}
    return transformer.Model(transformer.Config(**sizes | changes))


def test_what_is_cut_and_what_stays_whole():
    model = build_model(num_kv_heads=2, activation="swiglu", d_ff=6)
    cuts = cut_heads(model, 2)
    first = {name: cut for name, cut in cuts.items() if name.startswith("blocks.0.")}
    columns = {"query_key_value": [8, 4, 4], "gate": [6], "up": [6]}
    expected = {
        f"{layer}.{kind}": Cut(0, widths)
        for layer, widths in columns.items()
        for kind in ("weight", "bias")
    } | {"output.weight": Cut(1, [8]), "down.weight": Cut(1, [6])}
    assert {name.split(".", 3)[-1]: cut for name, cut in first.items()} == expected
    assert {name.split(".")[0] for name in cuts} == {"blocks"}
    assert model.blocks[1].attention.groups == (2, 1, 1)


def test_one_spec_for_all_blocks():
    cuts = cut_heads(build_model(num_kv_heads=2), 2)
    specs = layer_specs(cuts, prefix="model.")
    assert len(specs) == 4
    kinds = {}
    for spec in specs:
        (pattern,) = spec["patterns"]
        matched = [name for name in cuts if re.match(pattern, f"model.{name}")]
        assert len(matched) == 2  # of both blocks, weights alone
        kinds[matched[0].removeprefix("blocks.0.")] = (spec["partition_type"], spec.get("shape"))
    assert kinds == {
        "attention.query_key_value.weight": ("column", [[8, 4, 4], -1]),
        "attention.output.weight": ("row", None),
        "feed_forward.up.weight": ("column", None),
        "feed_forward.down.weight": ("row", None),
    }


def test_slices_are_joined_part_by_part():
    whole = {"a": torch.arange(24).view(12, 2), "b": torch.arange(8).view(2, 4), "c": torch.ones(3)}
    cuts = {"a": Cut(0, [8, 2, 2]), "b": Cut(1, [4])}
    rows = ([0, 1, 2, 3, 8, 10], [4, 5, 6, 7, 9, 11])
    slices = [
        {"a": whole["a"][own], "b": whole["b"][:, 2 * n : 2 * n + 2], "c": whole["c"]}
        for n, own in enumerate(rows)
    ]
    joined = join(slices, cuts)
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in whole.items())


def test_a_place_has_the_files_of_a_run_of_its_own(tmp_path):
    (tmp_path / "deepspeed").mkdir()
    for rank in range(4):
        share, place = divmod(rank, 2)
        names = (f"layout-{rank:05d}.json", f"ema-{rank:05d}.pt", f"rank-{rank:05d}.pt")
        own = f"deepspeed/zero_pp_rank_{share}_mp_rank_{place:02d}_optim_states.pt"
        for name in (*names, own):
            (tmp_path / name).write_text(f"{name} of {rank}")
    with of_place(tmp_path, 1, 2) as folder:
        found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.*")}
    assert {name: text.split()[-1] for name, text in found.items()} == {
        "layout-00000.json": "1",
        "layout-00001.json": "3",
        "ema-00000.pt": "1",
        "ema-00001.pt": "3",
        "deepspeed/zero_pp_rank_0_mp_rank_00_optim_states.pt": "1",
        "deepspeed/zero_pp_rank_1_mp_rank_00_optim_states.pt": "3",
    }
    with of_place(tmp_path, 0, 1) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3, "num_kv_heads": 1, "head_dim": 4}, "model.num_heads 3; use one of 1, 3$"),
        ({"num_kv_heads": 1}, "4 does not divide model.num_kv_heads 1; use one of 1$"),
        ({"d_ff": 6}, "4 does not divide model.d_ff 6; use one of 1, 2, 3, 6$"),
    ],
)
def test_uneven_slices_are_refused(write_config, changes, message):
    model = yaml.safe_load(MODEL) | {"num_kv_heads": 4} | changes
    engine = "{tensor_parallel_size: 4}"
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(TrainingConfig, write_config(run_dir="x", model=model, engine=engine))


def test_other_models_and_pictures_of_all_heads_are_refused(write_config, write_image_config):
    sizes = ["run_dir=x", "engine.tensor_parallel_size=2"]
    with pytest.raises(configs.ConfigError, match="cut the weights of model.name vit; use 1"):
        path = write_image_config({"name": "vit"}, "image_classification")
        configs.load(TrainingConfig, path, sizes)
    with pytest.raises(configs.ConfigError, match=r"attention.every_steps draws all heads"):
        configs.load(TrainingConfig, write_config(), [*sizes, "attention.every_steps=2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_parallel_size": 2}, "sequence_parallel_size=2; use 1"),
        ({"precision": "fp16"}, "precision=fp16; use bf16, fp32"),
        ({"activation_checkpointing": "selective"}, "selective; use none, full, every_n, offload"),
        ({"compile": "deepcompile"}, "compile=deepcompile; use none, blocks"),
        ({"zero_init": True}, "zero_init=True; use False"),
        ({"hpz_partition_size": 2}, "hpz_partition_size=2; use 1"),
        ({"quantize_weights": True}, "quantize_weights=True; use False"),
        ({"offload_optimizer": "nvme", "nvme_dir": "/x"}, "offload_optimizer=nvme; use none, cpu"),
    ],
)
def test_options_that_do_not_go_with_it(settings, message):
    with pytest.raises(ValueError, match=f"tensor_parallel_size=2 does not go with .*{message}$"):
        Config(zero_stage=3, tensor_parallel_size=2, **settings)
