"""The engine against plain torch: every ZeRO stage, precision, accumulation and world size.

The cases run in `engine_worker.py`, on two gloo ranks and on one.
"""

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STAGES = (0, 1, 2, 3)
FP32 = [f"fp32 zero{stage} accumulation{count}" for stage in STAGES for count in (1, 4)]
ROUNDING = 2e-6
"""Losses of 2.9 nats: eight ulps of 2.4e-7, since ranks and micro batches sum in another order."""
WEIGHT_ROUNDING = 1e-3
"""Of the way that the weights went: Adam divides by gradients, some as small as rounding."""

every_stage = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(params=["one rank", "two ranks"])
def cases(request):
    return request.getfixturevalue(request.param.replace(" ", "_"))


def distance(ours, others):
    """L2, over all weights; a tied head has no name of its own in some."""
    names = ours.keys() & others.keys()
    return sum(float((ours[name] - others[name]).square().sum()) for name in names) ** 0.5


def assert_equal_weights(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", FP32)
def test_the_same_losses_and_norms_as_plain_torch(cases, name):
    ours, plain = cases[name], cases["reference"]
    assert ours["losses"] == pytest.approx(plain["losses"], abs=ROUNDING)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=1e-5)
    assert ours["targets"] == plain["targets"] == [36, 21, 36, 21, 36]
    assert ours["skipped"] == [False] * 5
    assert ours["scales"] == [1.0] * 5


@pytest.mark.parametrize("name", FP32)
def test_the_same_weights_as_plain_torch(cases, name):
    ours, plain = cases[name]["weights"], cases["reference"]["weights"]
    assert ours.keys() == plain.keys()
    way = distance(cases["reference"]["initial"], plain)
    assert way > 1
    assert distance(ours, plain) < WEIGHT_ROUNDING * way


@pytest.mark.parametrize("name", FP32)
def test_no_hidden_step_at_the_start(cases, name):
    initial, plain = cases[name]["initial"], cases["reference"]["initial"]
    assert all(torch.equal(initial[key], plain[key]) for key in initial)


@every_stage
def test_bf16_starts_from_the_rounded_weights_and_stays_close(two_ranks, stage):
    ours, plain = two_ranks[f"bf16 zero{stage}"], two_ranks["reference"]
    rounds = (lambda tensor: tensor) if stage == 0 else (lambda tensor: tensor.bfloat16().float())
    for name, tensor in ours["initial"].items():
        assert torch.equal(tensor, rounds(plain["initial"][name]))
    # bf16 has 8 bits: 0.4 % of an activation, far less of the mean over targets.
    assert ours["losses"] == pytest.approx(plain["losses"], abs=0.002)
    assert ours["norms"] == pytest.approx(plain["norms"], rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_stage
def test_small_gradients_are_not_lost_in_the_accumulation(cases, stage, precision):
    # 256 + 7 x 1 in eight micro batches over 8 targets; bf16 would add 256 + 1 = 256.
    assert cases[f"accumulate {precision} zero{stage}"]["norm"] == 32.875


@every_stage
def test_small_gradients_are_not_lost_between_the_ranks(two_ranks, stage):
    """The mean of 256 and 1; bf16 would add 256 + 1 = 256."""
    assert two_ranks[f"reduce True zero{stage}"]["norm"] == 128.5
    assert two_ranks[f"reduce False zero{stage}"]["norm"] == 128.0


@every_stage
def test_evaluation_is_exact_over_ranks_and_padding(two_ranks, stage):
    case = two_ranks[f"evaluate zero{stage}"]
    assert case["targets"] == case["expected_targets"] == 57
    assert case["loss"] == pytest.approx(case["expected"], abs=ROUNDING)
    assert case["again"] == case["loss"]  # without dropout
    assert case["training"] is True  # afterwards
    torch.testing.assert_close(case["shares"] * 57, case["expected_shares"].double())


@every_stage
def test_clipping(two_ranks, stage):
    clipped, whole = two_ranks[f"clip 0.5 zero{stage}"], two_ranks[f"clip 0.0 zero{stage}"]
    assert clipped["norm"] == whole["norm"] == 3.0  # before clipping
    assert clipped["moved"] == pytest.approx(0.5, rel=1e-5)
    assert whole["moved"] == 3.0


@pytest.mark.parametrize("value", ["nan", "1e+25"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_stage
def test_a_gradient_norm_that_is_not_finite_changes_nothing(cases, stage, precision, value):
    """On one rank of several, in the first of two micro batches; 1e25 overflows when squared."""
    case = cases[f"poison {value} {precision} zero{stage}"]
    assert case["poisoned"]["skipped"] is True
    assert case["poisoned"]["moved"] == 0.0
    assert case["poisoned"]["norm"] == float("inf")
    assert case["asked"] == []  # no made-up norm is judged, as if it were a spike
    assert case["healthy"]["skipped"] is False
    assert case["healthy"]["norm"] == 2.0
    # The weights, and with them the moments of AdamW, are those of a run without that step.
    assert case["healthy"]["moved"] > 0.5
    assert torch.equal(case["weights"], case["clean"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@every_stage
def test_a_refused_step_changes_nothing(request, stage, precision):
    """Neither weights nor masters nor moments, bitwise; the loss scale of fp16 stays, too."""
    if precision == "fp16" and not stage:
        pytest.skip("stage 0 computes fp16 under autocast, as bf16")
    worlds = ("two_ranks",) if precision == "fp16" else ("one_rank", "two_ranks")
    for world in worlds:
        case = request.getfixturevalue(world)[f"refuse {precision} zero{stage}"]
        healthy, refused, last = case["steps"]
        assert [step["skipped"] for step in case["steps"]] == [False, True, False]
        assert (refused["norm"], refused["moved"]) == (100.0, 0.0)
        assert healthy["moved"] > 0.5
        assert last["moved"] > 0.1
        assert [step["stop"] for step in case["steps"]] == [False, False, True]
        assert {step["scale"] for step in case["steps"]} == {8.0 if precision == "fp16" else 1.0}
        for rank in case["ranks"]:
            assert [norm for _, norm in rank["asked"]] == [1.0, 100.0, 2.0]
            assert rank["asked"] == case["ranks"][0]["asked"]
            assert len(rank["before"]) == len(rank["ends"]) >= 2
            assert_equal_weights(rank["after"], rank["before"])
        ends = [rank["ends"] for rank in case["ranks"]]
        assert any(
            not torch.equal(end[name], rank["after"][name])
            for end, rank in zip(ends, case["ranks"], strict=True)
            for name in end
            if name.startswith("moment") and end[name].ndim
        )


@every_stage
def test_an_overflow_of_fp16_is_skipped_and_reported(two_ranks, stage):
    steps = two_ranks[f"overflow zero{stage}"]
    # DeepSpeed's scaler lets one overflow pass before it halves (hysteresis 2), torch's does not.
    skips = 1 if stage == 0 else 2
    assert [step["skipped"] for step in steps] == [True] * skips + [False] * (4 - skips)
    assert [step["moved"] for step in steps[:skips]] == [0.0] * skips
    assert [step["moved"] for step in steps[skips:]] == pytest.approx([1.0] * (4 - skips), rel=1e-3)
    assert [step["norm"] for step in steps[skips:]] == [1.0] * (4 - skips)
    # Of each step the scale that it overflowed at, or was taken with.
    assert [step["scale"] for step in steps] == [2.0**16] * skips + [2.0**15] * (4 - skips)


@every_stage
def test_an_overflow_at_the_least_scale_is_skipped_too(two_ranks, stage):
    steps = two_ranks[f"least scale zero{stage}"]
    assert [step["skipped"] for step in steps] == [True] * 6
    assert [step["moved"] for step in steps] == [0.0] * 6
    assert steps[0]["scale"] == 2.0
    assert steps[-1]["scale"] <= 1


@every_stage
def test_a_step_in_which_the_scale_doubles_is_as_any_other(two_ranks, stage):
    steps = two_ranks[f"growing scale zero{stage}"]
    assert [step["moved"] for step in steps] == pytest.approx([1.0] * 7, rel=1e-3)
    assert [step["norm"] for step in steps] == [1.0] * 7
    # Two good steps at 2, two at 4, ...; DeepSpeed's scaler doubles first behind a third one.
    scales = {0: [2.0, 2.0, 4.0, 4.0, 8.0, 8.0, 16.0]}
    assert [step["scale"] for step in steps] == scales.get(stage, [2.0, 2.0, 2, 4, 4, 8, 8])


@every_stage
def test_the_loss_scale_goes_on_at_another_stage(two_ranks, stage):
    case = two_ranks[f"moved scale zero{stage}"]
    assert torch.equal(case["loaded"].half(), case["saved"].half())  # stage 0 keeps fp32
    assert case["moved"] == case["on"]
    assert case["on"]["scale"] == 2.0**15


def test_fp16_is_refused_where_the_device_does_not_compute_it(cases):
    autocast, *messages = cases["fp16 refused"]
    assert autocast == ""
    for message in messages:
        assert message.startswith("engine.precision=fp16: this device computes no fp16; use bf16")


@pytest.mark.parametrize("mode", ["full", "every_n", "selective", "offload"])
@every_stage
def test_activation_checkpointing_changes_no_number(two_ranks, stage, mode):
    kept, computed = (two_ranks[f"blocks {each} zero{stage}"] for each in ("none", mode))
    assert computed["losses"] == kept["losses"]  # with dropout: the same random numbers again
    assert computed["norms"] == kept["norms"]
    assert_equal_weights(computed["weights"], kept["weights"])
    assert computed["losses"] != two_ranks["reference"]["losses"]


@every_stage
def test_layers_have_rates_of_their_own(cases, stage):
    case, plain = cases[f"layer decay zero{stage}"], cases["layer decay reference"]
    assert case["losses"] == pytest.approx(plain["losses"], abs=ROUNDING)
    way = distance(plain["initial"], plain["weights"])
    assert distance(case["weights"], plain["weights"]) < WEIGHT_ROUNDING * way
    assert way < 0.8 * distance(plain["initial"], cases["reference"]["weights"])
    assert_equal_weights(case["resumed"].pop("weights"), case["on"].pop("weights"))
    assert case["resumed"] == case["on"]


AVERAGED = [f"{precision} zero{stage}" for stage in STAGES for precision in ("fp32", "bf16")]


@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_is_that_of_the_formula_in_fp64(cases, name):
    case = cases[f"average {name}"]
    (initial, first), *steps = case["history"]
    assert_equal_weights(first, initial)
    expected = {key: weight.double() for key, weight in initial.items()}
    for decay, (plain, mean) in zip((0.1, 2 / 11, 0.2, 0.2), steps, strict=True):
        assert mean.keys() == plain.keys() == expected.keys()
        for key, weight in plain.items():
            expected[key] = decay * expected[key] + (1 - decay) * weight.double()
            torch.testing.assert_close(mean[key].double(), expected[key], rtol=1e-6, atol=1e-8)
    assert distance(*steps[-1]) > 0.01 * distance(initial, steps[-1][0])


@pytest.mark.parametrize("name", AVERAGED)
def test_the_model_has_the_average_for_a_while(cases, name):
    case = cases[f"average {name}"]
    assert_equal_weights(case["after"], case["before"])
    rounds = name.startswith("bf16") and "zero0" not in name
    mean = case["history"][-1][1]
    for key, weight in case["inside"].items():
        assert torch.equal(mean[key].bfloat16().float() if rounds else mean[key], weight)
    margin = ROUNDING if name.startswith("fp32") else 0.01
    assert case["loss"] == pytest.approx(case["expected loss"], abs=margin)


@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_goes_on_bitwise_and_is_partitioned(cases, name):
    case = cases[f"average {name}"]
    assert_equal_weights(case["resumed"], case["inside"])
    alone = name.endswith("zero0") or "evaluate zero0" not in cases  # of two ranks
    assert case["files"] == ["ema-00000.pt"] + ([] if alone else ["ema-00001.pt"])


@every_stage
def test_a_skipped_step_does_not_move_the_average(cases, stage):
    poisoned, healthy = cases[f"skipped average zero{stage}"]
    assert poisoned == 0.0
    assert healthy == pytest.approx(-0.9, rel=1e-5)  # nine tenths of a step of 1


SAVED = [f"save {precision} zero{stage}" for stage in STAGES for precision in ("fp32", "bf16")]


@pytest.mark.parametrize("name", [*SAVED, "save fp16 zero0"])
def test_a_loaded_engine_goes_on_bitwise(cases, name):
    case = cases[name]
    assert_equal_weights(case["loaded"], case["saved"])
    on, resumed = case["on"], case["resumed"]
    back = case["back"]  # the same engine, three steps later
    weights = on.pop("weights")
    for other in (resumed, back):
        assert_equal_weights(other.pop("weights"), weights)
        assert other == on


@pytest.mark.parametrize("name", [*SAVED, "save fp16 zero0"])
def test_consolidated_weights_are_those_of_the_engine(cases, name):
    case = cases[name]
    rounds = name.startswith("save bf16") and "zero0" not in name
    assert case["consolidated"].keys() >= case["saved"].keys()
    for key, weight in case["saved"].items():
        master = case["consolidated"][key]
        assert master.dtype == torch.float32
        assert torch.equal(master.bfloat16().float() if rounds else master, weight)


@every_stage
def test_a_full_disk_of_one_rank_is_told_by_all_and_loses_nothing(cases, stage):
    case = cases[f"full disk zero{stage}"]
    first, second, third = case["messages"]
    assert not any(first + third)
    assert len(set(second)) == 1
    assert second[0].startswith("checkpoint of step 2 not written to ")
    assert case["found"] == ["latest", "step-00000001"]
    assert case["last good"] == "step-00000001"
    assert case["in the end"] == ["latest", "step-00000001", "step-00000003"]
    assert case["faults"] == []


@pytest.mark.parametrize("name", SAVED)
def test_deepspeed_writes_no_latest(cases, name):
    assert "latest" not in cases[name]["files"]
    assert "deepspeed" in cases[name]["files"]
