"""Flags of portable runners: completed, asked for, and refused before anything is started."""

import socket

import pytest

from pipeline.engine_flags import complete_flags, read_flag

SET = ["--environment_cache_millis=600000", "--sdk_worker_parallelism=0"]
LOOPBACK = "--environment_type=LOOPBACK"


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--runner=FnApiRunner"],
        ["--runner", "FnApiRunner"],
        ["--runner=DataflowRunner", "--project=p"],
    ],
)
def test_other_runners_keep_their_flags(flags):
    assert complete_flags(flags, num_workers=0) == tuple(flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=FlinkRunner"],
        ["--runner=FlinkRunner", "--flink_master=[local]"],
        ["--runner", "SparkRunner", "--spark_master_url", "local[4]"],
    ],
)
def test_an_engine_of_this_machine_needs_its_width_alone(flags):
    assert complete_flags(flags, num_workers=3) == (*flags, *SET, "--parallelism=3")
    with pytest.raises(ValueError, match="--parallelism: missing; .*Runner would use one worker"):
        complete_flags(flags, num_workers=0)


def test_what_is_given_counts(listening):
    flags = ["--runner=PortableRunner", f"--job_endpoint={listening}", "--parallelism", "8"]
    flags += ["--environment_type=EXTERNAL", "--environment_config=localhost:50000"]
    assert complete_flags(flags, num_workers=2) == (*flags, *SET)
    whole = [*flags, "--environment_cache_millis=5", "--sdk_worker_parallelism=2"]
    assert complete_flags(whole, num_workers=2) == tuple(whole)


@pytest.mark.parametrize("parallelism", ["0", "-1", "many", ""])
def test_no_width(parallelism):
    flags = ["--runner=FlinkRunner", f"--parallelism={parallelism}"]
    with pytest.raises(ValueError, match=f"--parallelism must be 1 or more, found {parallelism}"):
        complete_flags(flags, num_workers=2)


@pytest.mark.parametrize(
    ("runner", "name"),
    [
        ("FlinkRunner", "flink_master"),
        ("SparkRunner", "spark_master_url"),
        ("PortableRunner", "job_endpoint"),
    ],
)
def test_a_cluster_needs_workers_that_have_millrace(runner, name, listening, silent):
    scheme = "spark://" if runner == "SparkRunner" else ""
    flags = [f"--runner={runner}", f"--{name}={scheme}{listening}"]
    with pytest.raises(ValueError, match=f"--environment_type: missing; {runner} needs workers"):
        complete_flags(flags, num_workers=2)
    for kind, told in (("EXTERNAL", "HOST:PORT of"), ("DOCKER", "image of"), ("process", "JSON")):
        with pytest.raises(ValueError, match=f"--environment_config: missing; .*{kind}.* {told}"):
            complete_flags([*flags, f"--environment_type={kind}"], num_workers=2)
    assert complete_flags([*flags, LOOPBACK], num_workers=2)[-1] == "--parallelism=2"
    away = [flags[0], f"--{name}={scheme}{silent}", LOOPBACK]
    with pytest.raises(ValueError, match=f"--{name}={scheme}{silent}: nothing answers there"):
        complete_flags(away, num_workers=2)
    with pytest.raises(ValueError, match=f"--{name}: an address is HOST:PORT, found cluster"):
        complete_flags([flags[0], f"--{name}=cluster", LOOPBACK], num_workers=2)


def test_the_last_flag_counts():
    assert read_flag(["--a=1", "--a", "2", "--ab=3"], "a") == "2"
    assert read_flag(["--ab=3", "a"], "a") is None
