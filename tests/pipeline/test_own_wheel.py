"""The wheel of this installation that workers in containers install."""

import email
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.stager import Stager

from pipeline import own_wheel
from pipeline.own_wheel import PACKAGES, installs_packages, pack, staged

ROOT = Path(__file__).parent.parent.parent
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


def test_workers_get_what_the_pipeline_needs_and_the_stores_of_this_machine(tmp_path, monkeypatch):
    """Beam's containers install the wheel without extras, so without its requirements."""
    honest = own_wheel.find_spec
    monkeypatch.setattr(own_wheel, "find_spec", lambda name: name != "gcsfs" and honest(name))
    with zipfile.ZipFile(pack(tmp_path)) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        told = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
    plain = {line for line in told if ";" not in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert plain >= {line.replace(" ", "") for line in extras["pipeline"] + extras["s3"]}
    assert not [line for line in plain if line.startswith(("gcsfs", "torch", "pytest"))]


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
