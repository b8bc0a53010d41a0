"""One build, the same bytes: on this machine's runner, on Flink, on Spark and on Prism.

Workers are Beam's worker pools (EXTERNAL), as in a cluster.
"""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from configs import load
from pipeline.config import PipelineConfig
from pipeline.corpus import plan_portions
from pipeline.fingerprints import request_fingerprint
from tests.cluster.conftest import ROOT
from tests.cluster.engines import HERE_ADDRESS, Flink, Prism, Spark, started
from tests.cluster.object_store import ObjectStore
from tests.cluster.services import wait_until

OTHER_BEAM = "2.70.0"
ENGINES = {"flink": Flink, "spark": Spark, "prism": Prism}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory, cpu_env):
    with started(ENGINES[request.param], tmp_path_factory.mktemp(request.param), cpu_env) as made:
        yield made


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A build of text with many stages, and one of images: the words of each command."""
    folder = tmp_path_factory.mktemp("corpora")
    text = ROOT / "configs/corpora/tiny_shakespeare.txt"
    speeches = text.read_text().split("\n\n")
    for number in range(4):
        part = folder / f"text/{number}.txt"
        part.parent.mkdir(exist_ok=True)
        # so much that the main job takes seconds, in which a fault can strike
        told = [f"{copy}. {speech}" for copy in range(8) for speech in speeches[number::4]]
        part.write_text("\n\n".join(told + speeches[:200]))
    for number in range(120):
        values = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / f"images/{'cat' if number % 3 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(values).resize((80, 60)).save(path)
    (folder / "images/dog/broken.jpg").write_bytes(b"nothing")
    tiny = ["configs/pipeline/tiny_shakespeare.yaml", f"corpus.path=[{folder}/text/*.txt]"]
    images = ["configs/pipeline/image_folder.yaml", f"corpus.path=[{folder}/images]"]
    shape = ["images.resize.size=48", "shards.target_mib=0.05", "max_bad_fraction=0.5"]
    return {
        "text": [*tiny, "deduplicate=true", "shards.target_mib=0.2", "tokenizer.kind=train"]
        + ["tokenizer.vocab_size=500"],
        "images": [*images, *shape, "split.fraction=0.2", "near_duplicates.enabled=true"],
    }


def build(words, dataset_dir, env, *flags):
    words = [sys.executable, "-m", "pipeline", *words, f"dataset_dir={dataset_dir}", *flags]
    return subprocess.Popen(
        list(map(str, words)),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=400):
    text, _ = process.communicate(timeout=seconds)
    return process.returncode, text


def hashes(dataset_dir):
    paths = [*dataset_dir.glob("*.tar"), *dataset_dir.glob("*.idx"), dataset_dir / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


@pytest.fixture(scope="module")
def local(tmp_path_factory, corpora, cpu_env):
    """What this machine's runner makes of each corpus."""
    made = {}
    for kind, words in corpora.items():
        folder = tmp_path_factory.mktemp("local") / kind
        code, text = finish(build(words, folder, cpu_env))
        assert code == 0, text
        made[kind] = hashes(folder)
        assert len(tars(made[kind])) > 4
    return made


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_same_bytes(engine, corpora, local, cpu_env, tmp_path, kind):
    env = {**cpu_env, **engine.env}
    process = build(corpora[kind], tmp_path / kind, env, *engine.flags())
    code, text = finish(process)
    assert code == 0, text + engine.logs()
    assert hashes(tmp_path / kind) == local[kind]
    assert not (tmp_path / kind / ".work").exists()
    verify = [sys.executable, "-m", "pipeline.verify", tmp_path / kind]
    subprocess.run(verify, check=True, env=cpu_env, cwd=ROOT, capture_output=True)


BLOCKED = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pipeline":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Without())
"""


def test_workers_without_millrace(corpora, cpu_env, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(BLOCKED)
    env = {**cpu_env, "PYTHONPATH": str(tmp_path / "without")}
    with started(Prism, tmp_path, env) as prism:
        code, text = finish(build(corpora["images"], tmp_path / "d", cpu_env, *prism.flags()))
    assert code == 1
    assert "error: workers have no Millrace: their Python needs `pip install" in text
    assert "Traceback" not in text


def test_a_folder_that_workers_do_not_share(corpora, cpu_env, tmp_path):
    """The pool sees an empty folder in the place of the dataset's."""
    (tmp_path / "here").mkdir()
    hidden = f'mount -t tmpfs none {tmp_path}/here && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", hidden, "pool")
    with started(partial(Prism, before=before), tmp_path, cpu_env) as prism:
        words = [*corpora["images"], "num_workers=1"]
        code, text = finish(build(words, tmp_path / "here/d", cpu_env, *prism.flags()))
    assert code == 2
    assert f"error: a worker does not see {tmp_path}/here/d/.work/listing-" in text
    assert "must be a folder that all workers share" in text
    assert not (tmp_path / "here/d/manifest.json").exists()


@pytest.mark.parametrize("name", ENGINES)
def test_workers_that_share_no_folder_build_into_a_store(
    name, corpora, local, cpu_env, tmp_path, tmp_path_factory
):
    """They see nothing of what this machine and the others write, nor do they write here."""
    for folder in ("here", "far"):
        (tmp_path / folder).mkdir()
    hidden = f'mount -t tmpfs none {tmp_path}/here && exec "$@"'
    before = ("unshare", "--mount", "sh", "-c", hidden, "pool")
    host = "127.0.0.1" if name == "prism" else HERE_ADDRESS
    store = ObjectStore(tmp_path_factory.mktemp("store"), host=host).start()
    env = cpu_env | {key: text for key, text in store.env().items() if key.startswith("AWS_")}
    try:
        far = {**env, "TMPDIR": f"{tmp_path}/far"}
        with started(partial(ENGINES[name], before=before), tmp_path, far) as engine:
            bucket = store.new_bucket()
            for kind, words in corpora.items():
                scratch = f"scratch_dir={tmp_path}/here/scratch"
                flags = [scratch, *engine.flags()]
                process = build(words, f"{bucket}/{kind}", {**engine.env, **env}, *flags)
                code, text = finish(process)
                assert code == 0, text + engine.logs()
                files = stored(store, f"{bucket}/{kind}")
                assert {path: files.get(path) for path in local[kind]} == local[kind]
                assert not [path for path in files if path.startswith(".work")]
                assert not (tmp_path / "here/scratch").exists()
    finally:
        store.stop()
    assert not list((tmp_path / "far").glob("millrace-*"))


@pytest.mark.parametrize("victim", ["worker pool", "build"])
def test_a_fault_of_a_build_into_a_store(victim, corpora, local, cpu_env, object_store, tmp_path):
    """A worker dies, or the machine that submits, with its scratch folder: another one finishes."""
    bucket, words = object_store.new_bucket(), corpora["text"]
    keys = {key: text for key, text in object_store.env().items() if key.startswith("AWS_")}
    folder = object_store.buckets / bucket.removeprefix("s3://") / "d/.work"
    env = {**cpu_env, **keys, "TMPDIR": str(tmp_path)}
    with started(Prism, tmp_path, env) as prism:
        flags = [f"scratch_dir={tmp_path}/one", *prism.flags()]
        process = build(words, f"{bucket}/d", env, *flags)
        wait_until(lambda: has_begun(process, folder), seconds=300, why=prism.logs)
        strike(victim, process, prism)
        code, text = finish(process)
        assert code, "nothing outlives these"
        assert "manifest.json" not in stored(object_store, f"{bucket}/d")
        assert "Traceback" not in text
        flags = [f"scratch_dir={tmp_path}/two", *prism.flags()]
        code, text = finish(build(words, f"{bucket}/d", env, *flags))
        assert code == 0, text + prism.logs()
    files = stored(object_store, f"{bucket}/d")
    assert {path: files.get(path) for path in local["text"]} == local["text"]
    assert not [path for path in files if path.startswith((".work", "upload"))]


def has_begun(process, folder):
    """As `is_in_its_main_job`, of a build whose store keeps its objects in a folder."""
    assert process.poll() is None, process.communicate(timeout=10)
    return any(folder.glob("*/portions/*.json"))


def stored(store, url):
    fs, root = store.file_system(), url.removeprefix("s3://") + "/"
    found = {path.removeprefix(root): fs.cat_file(path) for path in fs.find(root)}
    return {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}


WITHOUT_ROOM = {
    "No space left on device": "mount -t tmpfs -o size=64k none {shards}",
    "Read-only file system": "mount -t tmpfs -o ro none {shards}",
}


@pytest.mark.parametrize("fault", WITHOUT_ROOM)
def test_one_worker_that_cannot_write_is_named(corpora, local, cpu_env, tmp_path, fault):
    """The shards' folder of one machine is full, or mounted read-only; a rerun elsewhere ends."""
    folder, env = tmp_path / "d", cpu_env
    path, *words = corpora["text"]
    config = load(PipelineConfig, ROOT / path, [*words, f"dataset_dir={folder}"])
    portions = plan_portions(config.corpus.module, config.corpus.config)
    shards = folder / ".work/shards" / request_fingerprint(config, portions)[:16]
    for path in (shards, folder / ".work/portions"):
        path.mkdir(parents=True)
    script = f'hostname mill-full && {WITHOUT_ROOM[fault].format(shards=shards)} && exec "$@"'
    before = ("unshare", "--mount", "--uts", "sh", "-c", script, "pool")
    with started(partial(Prism, before=before), tmp_path, env) as prism:
        code, text = finish(build(corpora["text"], folder, env, *prism.flags()))
    assert code == 1
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert f"{fault} (machine mill-full): '{shards}/" in line
    assert "Traceback" not in text
    assert not (folder / "manifest.json").exists()
    code, text = finish(build(corpora["text"], folder, env))
    assert code == 0, text
    assert hashes(folder) == local["text"]


def test_workers_of_another_library_are_refused(corpora, cpu_env, tmp_path):
    (tmp_path / "other/orjson-0.0.1.dist-info").mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: orjson\nVersion: 0.0.1\n"
    (tmp_path / "other/orjson-0.0.1.dist-info/METADATA").write_text(text)
    assert_refused("orjson 0.0.1 instead of", corpora, cpu_env, tmp_path)


def test_workers_of_another_beam_are_refused(corpora, cpu_env, tmp_path):
    """A real one, over that of the tests."""
    uv = Path(sys.executable).parent / "uv"
    words = [uv, "pip", "install", "-q", "--no-deps", "--target", tmp_path / "other"]
    answer = subprocess.run([*words, f"apache-beam=={OTHER_BEAM}"], capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"apache-beam {OTHER_BEAM} was not to be had: {answer.stderr[-200:]}")
    assert_refused(f"apache-beam {OTHER_BEAM} instead of", corpora, cpu_env, tmp_path)


def assert_refused(told, corpora, cpu_env, folder):
    """Workers that find `folder/other` first."""
    env = {**cpu_env, "PYTHONPATH": f"{folder}/other:{ROOT}"}
    with started(Prism, folder, env) as prism:
        code, text = finish(build(corpora["text"], folder / "d", cpu_env, *prism.flags()))
    assert code == 2, text
    assert "error: a worker on " in text
    assert told in text
    assert "workers need the versions of the machine that submits" in text
    assert "Traceback" not in text
    assert not (folder / "d/manifest.json").exists()


FAULTS = [
    *((name, one, "text") for name in ("flink", "spark") for one in ("worker", "worker pool")),
    *((name, one, "text") for name in ("flink", "spark") for one in ("job", "job server", "build")),
    *(("prism", one, "text") for one in ("server", "worker pool", "build")),
    *((name, one, "images") for name in ("flink", "spark") for one in ("worker", "build")),
    ("prism", "worker pool", "images"),
]


@pytest.mark.parametrize(("engine", "victim", "kind"), FAULTS, indirect=["engine"])
def test_a_fault_is_survived_or_a_rerun_finishes(
    engine, corpora, local, cpu_env, tmp_path, victim, kind
):
    """The job finishes with the same bytes, or fails in a line and a rerun finishes it."""
    folder, env = tmp_path / kind, {**cpu_env, **engine.env}
    process = build(corpora[kind], folder, env, *engine.flags())
    try:
        wait_until(lambda: is_in_its_main_job(process, folder), seconds=500, why=engine.logs)
        assert len(shard_rows(folder)) < len(tars(local[kind])), "too late"
        strike(victim, process, engine)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    code, text = finish(process)
    assert code or victim not in ("build", "server"), "nothing can outlive these"
    if code:
        assert not (folder / "manifest.json").exists()
        assert "error: " in text or victim == "build", text
        assert "Traceback" not in text, text
        code, text = finish(build(corpora[kind], folder, env, *engine.flags()))
    assert code == 0, text + engine.logs()
    assert hashes(folder) == local[kind]


def is_in_its_main_job(process, folder):
    """The first portion is counted: the check of versions and the tokenizer's pass are over."""
    assert process.poll() is None, process.communicate(timeout=10)
    return any((folder / ".work/portions").rglob("*.json"))


def shard_rows(folder):
    return list((folder / ".work/shards").rglob("*.json"))


def tars(made):
    return [name for name in made if name.endswith(".tar")]


def strike(victim, process, engine):
    """Kill it, or cancel it, while the build runs."""
    if victim == "build":  # with the job server that it has started
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "job server":
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid), "java"], check=True)
    else:
        engine.fault(victim)
