"""`python -m training.generate` on a run of each ZeRO stage and precision."""

import shutil

import pytest

pytestmark = pytest.mark.slow

ENGINES = [(1, "bf16"), (0, "fp32"), (3, "fp32"), (3, "bf16")]


@pytest.fixture(scope="module")
def run_dir(cli, write_config, dataset_dir, tmp_path_factory):
    """A short run, whose dataset is gone; the engine does not matter to most tests."""
    made = {}

    def build(zero_stage, precision):
        if (zero_stage, precision) not in made:
            folder = tmp_path_factory.mktemp("run")
            config = write_config(
                engine=f"{{zero_stage: {zero_stage}, precision: {precision}}}",
                num_steps=2,
                evaluation="{every_steps: 0}",
                samples="{every_steps: 2, prompt: 'the ', num_tokens: 5}",
            )
            dataset = shutil.copytree(dataset_dir, folder.with_name(f"{folder.name}-dataset"))
            answer = cli("training", config, f"run_dir={folder}", f"data.dataset_dir={dataset}")
            shutil.rmtree(dataset)
            assert answer["code"] == 0, answer
            assert answer["stdout"].startswith(
                "transformer of 7,360 parameters on 1 cpu ranks, ZeRO"
            )
            assert "sample at step 2:\nthe " in answer["stdout"]
            made[zero_stage, precision] = folder
        return made[zero_stage, precision]

    return build


@pytest.fixture
def generate(cli):
    def run(folder, *arguments):
        return cli("training.generate", folder, "--num-tokens", "30", *arguments)

    return run


@pytest.mark.parametrize(("zero_stage", "precision"), ENGINES)
def test_text_from_every_engine(run_dir, generate, zero_stage, precision):
    answer = generate(run_dir(zero_stage, precision), "--prompt", "the mill")
    assert answer["code"] == 0, answer
    text = answer["stdout"]
    assert text.startswith("the mill")
    assert answer["stderr"] == ""
    # 30 characters, of which an end of document shows as two line ends or not at all.
    assert len(text.replace("\n", "")) <= len("the mill") + 30


def test_the_seed_decides(run_dir, generate):
    folder = run_dir(*ENGINES[0])
    texts = [generate(folder, "--seed", seed)["stdout"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_several_samples_count_their_seeds_up(run_dir, generate):
    folder = run_dir(*ENGINES[0])
    both = generate(folder, "--num-samples", "2", "--seed", "7")["stdout"]
    each = [generate(folder, "--seed", seed)["stdout"] for seed in ("7", "8")]
    assert both == ("-" * 20 + "\n").join(each)


def test_a_single_checkpoint(run_dir, generate):
    folder = run_dir(*ENGINES[0])
    checkpoint = folder / "checkpoints/step-00000002"
    assert generate(checkpoint)["stdout"] == generate(folder)["stdout"]


def test_no_run(generate, tmp_path):
    answer = generate(tmp_path / "nothing")
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert line == (
        f"error: {tmp_path}/nothing: no complete checkpoint; give a run folder or a checkpoint"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--top-p", "1.5"), "top_p is 1.5; it must be above 0 and at most 1"),
        (("--top-p", "0"), "top_p is 0.0; it must be above 0 and at most 1"),
        (("--top-p", "nan"), "top_p is nan; it must be above 0 and at most 1"),
        (("--top-k", "-1"), "top_k is -1; it must be at least 1, or 0 for all tokens"),
        (("--temperature", "-1"), "temperature is -1.0; it must be at least 0 and finite"),
        (("--temperature", "inf"), "temperature is inf; it must be at least 0 and finite"),
        (("--num-tokens", "-1"), "num_tokens is -1; it must be at least 0"),
        (("--num-samples", "0"), "num_samples is 0; it must be at least 1"),
        (("--num-samples", "-3"), "num_samples is -3; it must be at least 1"),
        (("--seed", "-1"), f"seed is -1; it must be at least 0 and at most {2**64 - 1}"),
        (
            ("--num-samples", "2", "--seed", f"{2**64 - 1}"),
            f"seed is {2**64}; it must be at least 0 and at most {2**64 - 1}",
        ),
    ],
)
def test_numbers_without_a_meaning_are_one_line_before_anything_is_read(generate, arguments, part):
    answer = generate("/nowhere", *arguments)
    assert answer["code"] == 2
    assert answer["stderr"] == f"error: {part}\n"
    assert answer["stdout"] == ""


def test_the_largest_seed_and_number_of_likeliest_tokens(run_dir, generate):
    answer = generate(run_dir(*ENGINES[0]), "--seed", 2**64 - 1, "--top-k", 10**30)
    assert answer["code"] == 0, answer


def test_a_prompt_that_the_model_would_not_see_whole(run_dir, generate):
    longest = ("the mill turns " * 2)[:16]  # a token is a character
    assert generate(run_dir(*ENGINES[0]), "--prompt", longest)["code"] == 0
    answer = generate(run_dir(*ENGINES[0]), "--prompt", longest + "t")
    assert answer["code"] == 2
    assert answer["stderr"] == (
        "error: the prompt has 17 tokens, but the model was trained on sequences of 16 "
        "(data.sequence_length); shorten the prompt\n"
    )


def test_help(cli):
    answer = cli("training.generate", "--help")
    assert answer["code"] == 0
    for option in ("--prompt", "--num-tokens", "--temperature", "--top-k", "--top-p", "--seed"):
        assert option in answer["stdout"]
