"""Options of the engine on memory: their effect, and the numbers of a run without them.

The cases run in `engine_options.py`, on two gloo ranks.
"""

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDING = 2e-6
"""Of losses: ranks sum up in another order."""

stages_with_zero = pytest.mark.parametrize("stage", [1, 2, 3])


def assert_same_steps(ours, others, rounding=ROUNDING):
    assert ours["losses"] == pytest.approx(others["losses"], abs=rounding)
    assert ours["norms"] == pytest.approx(others["norms"], rel=max(rounding, 1e-5))
    assert ours["targets"] == others["targets"]
    assert ours["skipped"] == [False] * len(ours["losses"])


@stages_with_zero
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_offloaded_optimizer_takes_the_same_steps(two_ranks, stage, precision):
    ours = two_ranks[f"offload {precision} zero{stage}"]
    assert ours["offloads_optimizer"]
    assert ours["moments"] == ours["masters"] == {torch.float32}
    if precision == "fp32":
        assert_same_steps(ours, two_ranks["reference"])
    else:  # bf16 has 8 bits; the same bound as without offload
        assert_same_steps(ours, two_ranks["reference"], rounding=0.002)


@stages_with_zero
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_nothing_is_left_on_the_host_of_a_step_that_is_refused(two_ranks, stage, precision):
    """DeepSpeed kept the sum of its gradients, and the next step was taken with both."""
    case = two_ranks[f"refuse offload {precision} zero{stage}"]
    assert [step["skipped"] for step in case["steps"]] == [False, True, False]
    for rank in case["ranks"]:
        assert [norm for _, norm in rank["asked"]] == [1.0, 100.0, 2.0]
        for place, tensor in rank["before"].items():
            assert torch.equal(rank["after"][place], tensor), place


@stages_with_zero
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_left_on_the_host_of_a_gradient_that_is_not_finite(two_ranks, stage, precision):
    case = two_ranks[f"poison offload {precision} zero{stage}"]
    assert (case["poisoned"]["skipped"], case["healthy"]["skipped"]) == (True, False)
    assert case["healthy"]["norm"] == 2.0
    assert torch.equal(case["weights"], case["clean"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_offloaded_weights_are_the_same(two_ranks, precision):
    ours, others = two_ranks[f"offload all {precision}"], two_ranks[f"offload {precision} zero3"]
    assert ours["offloads_parameters"]
    assert not others["offloads_parameters"]
    assert ours["losses"] == others["losses"]
    for name, weight in others["weights"].items():
        assert torch.equal(ours["weights"][name], weight), name


@stages_with_zero
@pytest.mark.parametrize("option", ["offload", "bf16 states"])
def test_checkpoints_with_it(two_ranks, stage, option):
    case = two_ranks[f"save {option} zero{stage}"]
    rounded = []
    for name, weight in case["saved"].items():
        assert torch.equal(case["loaded"][name], weight), name
        # The model computes with bf16; what is consolidated is the optimizer's, fp32 by default.
        master = case["consolidated"][name]
        assert torch.equal(weight, master.bfloat16().to(weight.dtype)), name
        rounded.append(torch.equal(master, master.bfloat16().to(master.dtype)))
    assert all(rounded) == (option == "bf16 states")
    assert case["resumed"]["losses"] == case["on"]["losses"]
    assert case["resumed"]["norms"] == case["on"]["norms"]


@stages_with_zero
def test_bf16_states_are_bf16_and_stay_close(two_ranks, stage):
    ours = two_ranks[f"bf16 states zero{stage}"]
    assert ours["moments"] == ours["masters"] == {torch.bfloat16}
    assert ours["losses"] == pytest.approx(two_ranks["reference"]["losses"], abs=0.005)
    assert ours["losses"] != two_ranks[f"bf16 zero{stage}"]["losses"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_init_never_holds_the_weights_and_trains_the_same(two_ranks, precision):
    ours = two_ranks[f"zero init {precision}"]
    assert ours["held"] == 0
    name = "fp32 zero3 accumulation4" if precision == "fp32" else "bf16 zero3"
    assert_same_steps(ours, two_ranks[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("world", ["one_rank", "two_ranks"])
def test_zero_init_draws_the_same_weights_on_a_cpu(request, world, precision):
    """With the generator of the CPU, as without; on a GPU it draws with the GPU's."""
    without, ours = request.getfixturevalue(world)[f"drawn {precision}"]
    assert without.keys() == ours.keys()
    for name, weight in without.items():
        assert torch.equal(ours[name], weight), name
    assert ours["embedding.weight"].std() > 0


def test_a_secondary_partition_changes_no_number(two_ranks):
    ours, others = two_ranks["secondary partition"], two_ranks["bf16 zero3"]
    assert ours["losses"] == others["losses"]
    assert ours["secondary"] is not None


def test_compiled_blocks_under_zero(two_ranks):
    assert_same_steps(two_ranks["compiled"], two_ranks["fp32 zero2 accumulation4"])


def test_a_model_compiled_as_one(two_ranks):
    assert_same_steps(two_ranks["compiled model"], two_ranks["fp32 zero0 accumulation4"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ranks_that_share_sequences_train_as_ranks_that_do_not(two_ranks, stage, masked):
    case = two_ranks[f"shared sequences masked {masked} zero{stage}"]
    alone, shared = case[1], case[2]
    assert shared["losses"] == pytest.approx(alone["losses"], abs=ROUNDING)
    assert shared["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    assert shared["targets"] == alone["targets"]
    assert shared["evaluation"] == pytest.approx(alone["evaluation"], abs=ROUNDING)
    assert shared["shape"] == (8, 4)  # all rows, half of the positions


def test_masks_reach_over_the_shared_positions(two_ranks):
    masked, plain = (two_ranks[f"shared sequences masked {m} zero2"][2] for m in (True, False))
    assert masked["losses"] != plain["losses"]


def test_what_ranks_cannot_share_is_refused(two_ranks):
    refusals = two_ranks["not to be shared"]
    assert refusals["ranks"] == (
        "engine.sequence_parallel_size=3 does not divide the world size 2; use one of 1, 2"
    )
    assert "does not divide the 3 heads" in refusals["heads"]
