"""The wheel of this installation that workers in containers install."""

import subprocess
import sys

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.stager import Stager

from pipeline.own_wheel import PACKAGES, installs_packages, pack, staged

DATAFLOW = ("--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t")
DOCKER = ("--runner=FlinkRunner", "--environment_type=DOCKER", "--environment_config=image")


def test_pip_installs_it_and_it_runs(tmp_path):
    wheel = pack(tmp_path)
    site = tmp_path / "site"
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([sys.executable, *command], check=True)
    code = "import pipeline, sys; print(pipeline.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(site / "pipeline/__init__.py")
    told = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--path", site],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "millrace" in told.stdout
    for package in PACKAGES:
        assert (site / package / "__init__.py").exists()


def test_equal_installations_are_equal_wheels(tmp_path):
    (tmp_path / "again").mkdir()
    assert pack(tmp_path).read_bytes() == pack(tmp_path / "again").read_bytes()


@pytest.mark.parametrize("flags", [DATAFLOW, DOCKER])
def test_beam_stages_it_for_containers(flags, tmp_path):
    with staged(flags) as complete:
        options = PipelineOptions(list(complete))
        resources = Stager.create_job_resources(options, str(tmp_path))
        names = [resource.role_payload for resource in resources]
    assert any(b"millrace-" in name and b".whl" in name for name in names)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--runner=FlinkRunner", "--environment_type=EXTERNAL", "--environment_config=h:50000"),
        ("--runner=FlinkRunner", "--environment_type=LOOPBACK"),
        (*DATAFLOW, "--setup_file=./setup.py"),
        (*DATAFLOW, "--extra_package=dist/millrace-9.9-py3-none-any.whl"),
        (*DATAFLOW, "--extra_package", "millrace-9.9-py3-none-any.whl", "--extra_package=b.whl"),
    ],
)
def test_elsewhere_flags_stay_as_they_are(flags):
    with staged(flags) as complete:
        assert complete == tuple(flags)


def test_what_installs_packages():
    assert installs_packages(DATAFLOW)
    assert installs_packages(DOCKER)
    assert not installs_packages(("--runner=FlinkRunner", "--environment_type=PROCESS"))
