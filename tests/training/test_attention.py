"""`python -m training.attention` on a run."""

import PIL.Image
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(cli, write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    answer = cli("training", write_config(num_steps=1), f"run_dir={folder}")
    assert answer["code"] == 0, answer
    return folder


def test_pictures_of_a_prompt(cli, run_dir, tmp_path):
    out = tmp_path / "deep/maps"
    answer = cli("training.attention", run_dir, "--prompt", "the mill", "--out", out, "--rollout")
    assert answer["code"] == 0, answer
    assert answer["stdout"] == f"7 pictures in {out}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "layer-01-head-01.png",
        "layer-01-head-02.png",
        "layer-01.png",
        "layer-02-head-01.png",
        "layer-02-head-02.png",
        "layer-02.png",
        "rollout.png",
    ]
    with PIL.Image.open(out / "layer-01-head-01.png") as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) >= 8 * 14  # a token is a character, and 14 pixels


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompt", "the mill turns and turns"], "the prompt has 24 tokens, but the model was"),
        (["--prompt", "a", "--ema"], "holds no average of weights"),
    ],
)
def test_mistakes_are_one_line(cli, run_dir, tmp_path, words, part):
    answer = cli("training.attention", run_dir, "--out", tmp_path / "maps", *words)
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert part in line
    assert not (tmp_path / "maps").exists()
