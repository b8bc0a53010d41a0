"""`python -m training.embed` on runs."""

import pyarrow.parquet as pq
import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(cli, write_image_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = write_image_config(
        {"name": "mae"}, "masked_autoencoding", run_dir=str(folder), num_steps=2, ema={"decay": 0.9}
    )
    answer = cli("training", config)
    assert answer["code"] == 0, answer
    return folder


def test_a_vector_for_each_image(cli, run_dir, image_dir, tmp_path):
    out = tmp_path / "deep/vectors.parquet"
    answer = cli("training.embed", run_dir, image_dir, "--out", out, "--micro-batch-size", "7")
    assert answer["code"] == 0, answer
    assert answer["stdout"] == f"64 vectors in {out}\n"
    table = pq.read_table(out)
    assert table.column_names == ["key", "split", "class", "vector"]
    assert table["key"].to_pylist() == [f"train{n:02}" for n in range(48)] + [
        f"validation{n:02}" for n in range(16)
    ]
    assert table["split"].to_pylist() == ["train"] * 48 + ["validation"] * 16
    assert table["class"].to_pylist() == ["dark", "bright"] * 32
    assert list(out.parent.iterdir()) == [out]
    found = torch.tensor(table["vector"].to_pylist())
    torch.testing.assert_close(found, expected_vectors(run_dir, image_dir), atol=1e-6, rtol=0)


def expected_vectors(run_dir, image_dir):
    """Read by another path: that of training."""
    from training.data.config import DataConfig, open_images
    from training.data.shards import load_manifest
    from training.run_dir import load_model

    trained = load_model(run_dir)
    vectors = []
    for split in ("train", "validation"):
        images = open_images(
            DataConfig(dataset_dir=str(image_dir)),
            load_manifest(str(image_dir)),
            split=split,
            recipe=trained.config.augment.plain_recipe(8),
            seed=0,
        )
        pixels = images.read_in_file_order(torch.arange(len(images)).numpy()).pixels / 255
        mean, std = (torch.tensor(getattr(trained.config.augment, one)) for one in ("mean", "std"))
        normal = ((torch.from_numpy(pixels) - mean) / std).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            vectors.append(trained.model.embed(normal))
        images.close()
    return torch.cat(vectors)


def test_without_out_a_name_in_this_folder_that_is_free(cli, run_dir, image_dir, tmp_path):
    answer = cli("training.embed", run_dir, image_dir, folder=tmp_path)
    assert answer["code"] == 0, answer
    assert answer["stdout"] == "64 vectors in embeddings.parquet\n"
    before = (tmp_path / "embeddings.parquet").read_bytes()
    answer = cli("training.embed", run_dir, tmp_path, folder=tmp_path)
    assert answer["code"] == 2
    told = "embeddings.parquet: is there already; --out names another place, or this one"
    assert told in answer["stderr"]
    assert (tmp_path / "embeddings.parquet").read_bytes() == before
    answer = cli("training.embed", run_dir, image_dir, "--out", "embeddings.parquet",
                 folder=tmp_path)  # fmt: skip
    assert answer["code"] == 0, answer


def test_a_folder_in_the_place_of_the_file_is_told_before_anything_is_read(cli, tmp_path):
    answer = cli("training.embed", tmp_path / "no-run", tmp_path, "--out", tmp_path)
    assert answer["code"] == 2
    assert answer["stderr"].endswith(f"--out {tmp_path}: is a folder; name a file in it\n")


def test_the_limit_of_pixels_is_a_flag(cli, run_dir, tmp_path):
    import PIL.Image

    for name, side in (("20", 20), ("21", 21)):
        PIL.Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    out = tmp_path / "vectors.parquet"
    answer = cli("training.embed", run_dir, tmp_path, "--out", out, "--max-pixels", "400")
    assert answer["stdout"] == f"1 vectors in {out}; bad images skipped: 1\n"
    assert "21.png: ValueError: 21 x 21 pixels; max_pixels=400" in answer["stderr"]


def test_averaged_weights_give_other_vectors(cli, run_dir, image_dir, tmp_path):
    for name, words in (("last", []), ("average", ["--ema"])):
        answer = cli("training.embed", run_dir, image_dir, "--out", tmp_path / name, *words)
        assert answer["code"] == 0, answer
    last, average = (pq.read_table(tmp_path / name)["vector"] for name in ("last", "average"))
    assert last != average


def test_bad_images_are_told_and_left_out(cli, run_dir, tmp_path):
    import PIL.Image

    for n in range(3):
        PIL.Image.new("RGB", (20, 10), (80 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    out = tmp_path / "vectors.parquet"
    answer = cli("training.embed", run_dir, tmp_path, "--out", out)
    assert answer["code"] == 0, answer
    assert answer["stdout"] == f"2 vectors in {out}; bad images skipped: 1\n"
    (line,) = (line for line in answer["stderr"].splitlines() if "skipped" in line)
    assert line.startswith(f"skipped: {tmp_path}/1.png: UnidentifiedImageError")
    table = pq.read_table(out)
    assert table["key"].to_pylist() == [str(tmp_path / "0.png"), str(tmp_path / "2.png")]
    assert table["split"].to_pylist() == table["class"].to_pylist() == [None, None]


def test_mistakes_are_one_line_and_leave_no_file(cli, run_dir, tmp_path, image_dir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "vectors.parquet"
    for words, part in (
        ([run_dir, tmp_path / "missing"], "missing: no such file or folder"),
        ([run_dir, tmp_path / "empty"], "empty: no image there"),
        ([run_dir, tmp_path / "bad.png"], "none of 1 images can be decoded; nothing is written"),
        ([tmp_path / "empty", image_dir], "no complete checkpoint"),
        ([run_dir, image_dir, "--micro-batch-size", "0"], "at least 1 is allowed"),
    ):
        answer = cli("training.embed", *words, "--out", out)
        assert answer["code"] == 2, answer
        assert part in answer["stderr"].splitlines()[-1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "empty"]


def test_a_run_on_text_is_refused(cli, write_config, image_dir, tmp_path):
    assert cli("training", write_config(num_steps=1), f"run_dir={tmp_path}/run")["code"] == 0
    answer = cli("training.embed", tmp_path / "run", image_dir, "--out", tmp_path / "out")
    assert answer["code"] == 2
    assert "is a run of task causal_lm, which sees no images" in answer["stderr"]
