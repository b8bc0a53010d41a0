"""Flags of portable runners: completed, asked for, and refused before anything is started."""

import re
import socket

import pytest

from pipeline.engine_flags import check_places, complete_flags, name_runner, read_flag
from pipeline.runner import uses_local_runner

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
        ["--runner=PrismRunner", "--prism_location=/bin/prism"],
        ["--runner=some.module.OwnRunner", "--flag_of_its_own=1"],
    ],
)
def test_other_runners_keep_their_flags(flags):
    assert complete_flags(flags, num_workers=0) == tuple(flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=FlinkRunner", "--flink_master=[local]"],
        ["--runner", "SparkRunner", "--spark_master_url", "local[4]"],
        ["--runner=SparkRunner", "--spark_master_url=local"],
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


def test_an_address_of_ipv6():
    flags = ["--runner=PortableRunner", "--parallelism=2", LOOPBACK]
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    endpoint = f"--job_endpoint=[::1]:{server.getsockname()[1]}"
    with server:
        assert complete_flags([*flags, endpoint], num_workers=2)[3] == endpoint
    with pytest.raises(ValueError, match=r"--job_endpoint=\[::1\]:\d+: nothing answers there"):
        complete_flags([*flags, endpoint], num_workers=2)


def test_dataflow_sees_no_folder_of_this_machine():
    flags, near, far = ("--runner=DataflowRunner",), "datasets/web", "gs://b/web"
    check_places(flags, {"dataset_dir": (far,), "corpus.path": ("https://h/a.zst", far), "c": ()})
    check_places(("--runner=FlinkRunner",), {"dataset_dir": (near,)})
    check_places((), {"dataset_dir": (near,)})
    with pytest.raises(ValueError, match="^dataset_dir: datasets/web; workers of Dataflow see no"):
        check_places(flags, {"dataset_dir": (near,), "corpus.path": (far,)})
    with pytest.raises(ValueError, match=r"^corpus.path: /a/\*.txt; .* gs://BUCKET/PREFIX is need"):
        check_places(flags, {"dataset_dir": (far,), "corpus.path": (far, "/a/*.txt")})


@pytest.mark.parametrize(
    "flag", ["--flink-master=host:8081", "--Flink_Master", "--FLINK-MASTER", "--flink_mastre=a:1"]
)
@pytest.mark.parametrize("runner", [[], ["--runner=FlinkRunner"], ["--runner=DataflowRunner"]])
def test_a_flag_that_is_spelt_otherwise(flag, runner):
    name = flag.partition("=")[0]
    told = f"{name}: Beam would ignore it; did you mean --flink_master?"
    with pytest.raises(ValueError, match=re.escape(told)):
        complete_flags([*runner, flag], num_workers=2)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("flink", "FlinkRunner"),
        ("flinkrunner", "FlinkRunner"),
        ("FLINKRunner", "FlinkRunner"),
        ("apache_beam.runners.portability.flink_runner.FlinkRunner", "FlinkRunner"),
        ("Spark", "SparkRunner"),
        ("portable", "PortableRunner"),
    ],
)
def test_a_runner_is_known_however_beam_takes_it(given, name):
    with pytest.raises(ValueError, match=f"--parallelism: missing; {name} would use one worker"):
        complete_flags([f"--runner={given}"], num_workers=0)
    with pytest.raises(ValueError, match="--parallelism must be 1 or more, found 0"):
        complete_flags([f"--runner={given}", "--parallelism=0"], num_workers=0)


def test_the_runner_is_handed_on_as_beam_spells_it():
    assert read_flag(name_runner(["--runner", "fnapi", "--a=1"]), "runner") == "FnApiRunner"
    assert uses_local_runner(complete_flags(["--runner=fnapirunner"], num_workers=2))
    given = ["--runner=flink", "--flink_master=[local]"]
    assert read_flag(complete_flags(given, num_workers=2), "runner") == "FlinkRunner"


@pytest.mark.parametrize("given", ["DirectRunner", "direct", "SwitchingDirectRunner"])
def test_a_runner_that_would_hold_the_corpus_in_memory(given):
    with pytest.raises(ValueError, match=f"--runner={given}: .*; leave --runner out to build on"):
        complete_flags([f"--runner={given}"], num_workers=2)


@pytest.mark.parametrize(
    ("given", "told"),
    [("flnk", "; did you mean FlinkRunner?"), ("InMemoryRunner", ""), ("", "")],
)
def test_no_runner(given, told):
    told = f"--runner={given}: Beam has no such runner{told}"
    with pytest.raises(ValueError, match=re.escape(told)):
        complete_flags([f"--runner={given}"], num_workers=2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--runner=FlinkRunner"], "--flink_master: missing; for FlinkRunner it is HOST:PORT"),
        (["--runner=flink", "--flink_master=[auto]"], "--flink_master: missing"),
        (["--runner=SparkRunner"], "--spark_master_url: missing; .* it is spark://HOST:PORT"),
        (["--runner=PortableRunner"], "--job_endpoint: missing; .* HOST:PORT of the job server"),
    ],
)
def test_a_cluster_is_asked_for(flags, told):
    with pytest.raises(ValueError, match=told):
        complete_flags([*flags, LOOPBACK], num_workers=2)


def test_a_job_server_knows_its_cluster(listening):
    flags = ["--runner=FlinkRunner", f"--job_endpoint={listening}", LOOPBACK]
    assert complete_flags(flags, num_workers=2)[: len(flags)] == tuple(flags)


@pytest.mark.parametrize("kind", ["loopback", "Docker", "POOL"])
def test_an_environment_that_beam_does_not_know(kind):
    flags = ["--runner=SparkRunner", "--spark_master_url=local", f"--environment_type={kind}"]
    told = f"--environment_type is one of DOCKER, EXTERNAL, LOOPBACK, PROCESS, found {kind}"
    with pytest.raises(ValueError, match=told):
        complete_flags(flags, num_workers=2)


@pytest.mark.parametrize("master", ["yarn", "k8s://https://host:6443", "k8s://host"])
def test_a_master_that_is_no_address(master):
    flags = ["--runner=SparkRunner", f"--spark_master_url={master}"]
    with pytest.raises(ValueError, match="--environment_type: missing"):
        complete_flags(flags, num_workers=2)
    assert complete_flags([*flags, LOOPBACK], num_workers=2)[-1] == "--parallelism=2"


def test_one_of_several_masters_is_enough(listening, silent):
    flags = ["--runner=SparkRunner", f"--spark_master_url=spark://{silent},{listening}", LOOPBACK]
    assert complete_flags(flags, num_workers=2)[-1] == "--parallelism=2"
    flags[1] = f"--spark_master_url=spark://{silent},{silent}"
    with pytest.raises(ValueError, match="nothing answers there"):
        complete_flags(flags, num_workers=2)
    flags[1] = f"--spark_master_url=spark://{listening},cluster"
    with pytest.raises(ValueError, match="an address is HOST:PORT"):
        complete_flags(flags, num_workers=2)


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
    for kind, told in (("EXTERNAL", "HOST:PORT of"), ("DOCKER", "image of"), ("PROCESS", "JSON")):
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
