"""Flags that nobody knows do not start a build, and those that files for engines show are known."""

import re
import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

import configs
from pipeline.beam_flags import check_flags, check_spelling, runner_name
from pipeline.config import PipelineConfig

ROOT = Path(__file__).parents[2]
COMPOSE = "launch/flink.compose.yaml"
ENGINES = [f"configs/pipeline/{name}.yaml" for name in ("flink", "spark", "dataflow")]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--runner=FnApiRunner",),
        ("--runner", "FnApiRunner"),
        ("--direct_running_mode=in_memory", "--direct_num_workers=3"),
        ("--temp_location=/tmp/x",),
    ],
)
def test_flags_of_beam_pass(flags):
    check_flags(flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--dryrun",
            "--dryrun: neither an option of this command nor of Beam; did you mean --dry-run?",
        ),
        ("--direct_num_worker=3", "; did you mean --direct_num_workers?"),
        ("--runnr=FlinkRunner", "; did you mean --runner?"),
        ("--zzzzqqqq", "--zzzzqqqq: neither an option of this command nor of Beam"),
    ],
)
def test_other_flags_are_refused(flag, message):
    with pytest.raises(ValueError, match="neither") as error:
        check_flags((flag,))
    assert message in str(error.value)


def commands(path):
    """Words of each `python -m pipeline` in the comments of a file, or in the blocks of a page."""
    lines = [line.lstrip("# ") for line in (ROOT / path).read_text().splitlines()]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        shlex.split(line)
        for line in whole.splitlines()
        if line.startswith("python -m pipeline ") and "--runner" in line
    ]


def flags_of(words):
    return [word for word in words if word.startswith("--")]


@pytest.mark.parametrize("path", [COMPOSE, *ENGINES, "docs/flink.md", "docs/spark.md"])
def test_beam_knows_each_flag_that_is_shown(path):
    shown = commands(path)
    assert shown
    for words in shown:
        flags = flags_of(words)
        check_flags(flags)
        check_spelling(flags)
        assert not [flag for flag in flags if "=" not in flag]
        found = PipelineOptions(flags).get_all_options()
        for name, value in (flag.removeprefix("--").split("=", 1) for flag in flags):
            assert str(found[name]) == value
        assert found["runner"] == runner_name(found["runner"])


@pytest.mark.parametrize("path", ENGINES)
def test_a_config_of_an_engine_loads_as_it_is_shown(path):
    (words,) = commands(path)
    assert words[3] == path
    overrides = [word for word in words[4:] if not word.startswith("--")]
    assert configs.load(PipelineConfig, ROOT / path, []).corpus.name == "jsonl"
    shown = configs.load(PipelineConfig, ROOT / path, overrides)
    assert shown.dataset_dir in "".join(words)


def versions_of_flink(path):
    return re.findall(r"--flink_version=([\d.]+)", (ROOT / path).read_text())


def test_flinks_version_is_the_same_everywhere():
    services = yaml.safe_load((ROOT / COMPOSE).read_text())["services"]
    images = {service["image"] for service in services.values()}
    (version,) = {image.removeprefix("flink:") for image in images if image.startswith("flink:")}
    assert version in FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS
    for path in (COMPOSE, ENGINES[0], "docs/flink.md"):
        assert set(versions_of_flink(path)) == {version}, path
    default = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1]
    assert f"Left out, Beam 2.77 takes {default}" in (ROOT / "docs/flink.md").read_text()


def test_the_image_of_workers_is_the_one_that_the_cluster_runs():
    text = (ROOT / "launch/worker.Dockerfile").read_text()
    (beam,) = re.findall(r"^FROM apache/beam_python3\.\d+_sdk:([\d.]+)$", text, re.MULTILINE)
    assert beam == metadata.version("apache-beam")
    services = yaml.safe_load((ROOT / COMPOSE).read_text())["services"]
    pools = {service["image"] for name, service in services.items() if name.startswith("pool")}
    for path in ("launch/worker.Dockerfile", COMPOSE):
        (built,) = re.findall(r"docker build \S+ \S+ -t (\S+) ", (ROOT / path).read_text())
        assert pools == {built}


def test_the_image_is_built_of_what_pip_needs_and_no_more():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = named["tool"]["setuptools"]["packages"]["find"]["include"]
    files = [named["project"]["readme"], *named["project"]["license-files"]]
    assert sent == {
        *(package.rstrip("*") for package in packages),
        *files,
        "constraints.txt",
        "pyproject.toml",
    }
