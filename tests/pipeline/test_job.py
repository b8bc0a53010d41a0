"""The job that an engine is sent, looked at as Beam's portable proto: what every engine needs of it
holds for each kind of build, and on those that cannot be run here, as Dataflow.
"""

from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.pipeline_context import PipelineContext

import configs
from pipeline import build
from pipeline.config import PipelineConfig
from pipeline.corpus import CorpusFile, Portion, plan_portions
from pipeline.listing import listing_of, read_fingerprint, read_listing
from pipeline.own_wheel import staged
from pipeline.refused import RefusedError
from pipeline.runner import Engine
from pipeline.stages import BuildShards
from pipeline.tokenizer_pass import read_for_tokenizer
from pipeline.work import WorkFolder
from pipeline.worker_versions import check_workers

MIB = 2**20
COMMON = {
    common_urns.primitives.IMPULSE.urn,
    common_urns.primitives.PAR_DO.urn,
    common_urns.primitives.GROUP_BY_KEY.urn,
    common_urns.primitives.FLATTEN.urn,
    common_urns.composites.RESHUFFLE.urn,
}
"""Transforms that Flink, Spark, Prism and Dataflow all have."""
ORDERED = {
    "beam:coder:varint:v1",
    "beam:coder:string_utf8:v1",
    "beam:coder:bytes:v1",
    "beam:coder:kv:v1",
}
"""Coders that give equal keys equal bytes."""


@pytest.fixture
def constructed(tmp_path):
    """The Beam pipeline of a build of `num_portions` portions, or of what goes before it."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("To be or not to be, that is the question. " * 50)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"x")
    text = ["configs/pipeline/tiny_shakespeare.yaml", f"corpus.path=[{tmp_path}/text]"]
    images = ["configs/pipeline/image_folder.yaml", f"corpus.path=[{tmp_path}/images]"]
    words = {
        "text": text,
        "images": images,
        "near duplicates": [*images, "near_duplicates.enabled=true"],
        "tokenizer of characters": [*text, "tokenizer.kind=characters"],
        "tokenizer to train": [*text, "tokenizer.kind=train", "tokenizer.vocab_size=300"],
        "versions": text,
    }

    def make(kind, *, spills, num_portions=1, flags=(), work=None):
        work = work or WorkFolder(str(tmp_path / "d/.work"))
        path, *overrides = words[kind]
        config = configs.load(PipelineConfig, path, [*overrides, f"dataset_dir={tmp_path}/d"])
        (portion,) = plan_portions(config.corpus.module, config.corpus.config)
        portions = [replace(portion, index=index) for index in range(num_portions)]
        work.create()
        pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
        if kind == "versions":
            check_workers(lambda construct: construct(pipeline), {"numpy": "1"})
        elif kind.startswith("tokenizer"):
            total = sum(one.bytes for one in portions)
            with listing_of(work, portions) as listing:
                read_for_tokenizer(
                    pipeline,
                    config=config,
                    listing=listing,
                    total_bytes=total,
                    work=work,
                    folder=work.samples,
                    in_order=spills,
                )
        else:
            add_main_job(pipeline, config, portions, work=work, spills=spills)
        return pipeline

    return make


@pytest.fixture
def job(constructed):
    """Its proto."""
    return lambda *words, **named: constructed(*words, **named).to_runner_api()


def add_main_job(pipeline, config, portions, *, work, spills):
    prepared = build._prepare(config, portions[:1], Engine(1, (), spills), work)
    terms, settings = build._settle(config, portions, prepared, work)
    compare = prepared.compare(work, len(portions))
    with listing_of(work, portions) as listing:
        encoded = pipeline | "EncodedDocuments" >> prepared.encoded(listing, work)
        _ = encoded | "BuildShards" >> BuildShards(
            listing, terms, settings, prepared.schema, spills, compare
        )


BUILDS = ("text", "images", "near duplicates")
BEFORE = ("tokenizer of characters", "tokenizer to train", "versions")
every_build = pytest.mark.parametrize("kind", BUILDS)
every_way = pytest.mark.parametrize("spills", [False, True])
every_job = pytest.mark.parametrize(
    ("kind", "spills"),
    [*((kind, spills) for kind in BUILDS for spills in (False, True))]
    + [(kind, False) for kind in BEFORE],
)


def leaves(job):
    """Transforms without others inside; a filter that is switched off hands its input on."""
    return {
        name: transform
        for name, transform in job.components.transforms.items()
        if not transform.subtransforms
        and set(transform.outputs.values()) != set(transform.inputs.values())
    }


@every_job
def test_keys_are_equal_where_their_bytes_are(job, kind, spills):
    components = job(kind, spills=spills).components
    grouped = 0
    for transform in components.transforms.values():
        if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn:
            grouped += 1
            (input_id,) = transform.inputs.values()
            pair = components.coders[components.pcollections[input_id].coder_id]
            assert pair.spec.urn == "beam:coder:kv:v1"
            key_coder = pair.component_coder_ids[0]
            if is_void(components, input_id):
                assert encoded_void(components, key_coder) == b"\0"
            else:
                assert key_coders(components, key_coder) <= ORDERED, transform.unique_name
    assert grouped >= 1 if kind == "versions" else grouped >= 2


def is_void(components, pcollection):
    """Whether Beam's CombineGlobally makes it, whose only key is None."""
    return any(
        transform.unique_name.endswith("/KeyWithVoid")
        for transform in components.transforms.values()
        if pcollection in transform.outputs.values()
    )


def encoded_void(components, coder_id):
    """None by the key's coder: its type alone, in a byte, and no pickle."""
    return PipelineContext(components).coders.get_by_id(coder_id).encode(None)


def key_coders(components, coder_id):
    coder = components.coders[coder_id]
    inner = [key_coders(components, one) for one in coder.component_coder_ids]
    return {coder.spec.urn}.union(*inner)


@every_job
def test_only_what_every_engine_has(job, kind, spills):
    made = job(kind, spills=spills)
    assert {transform.spec.urn for transform in leaves(made).values()} <= COMMON
    assert set(made.requirements) == set()  # no state, no timers, no splittable functions
    names = [transform.unique_name for transform in made.components.transforms.values()]
    assert len(set(names)) == len(names)


@every_job
def test_nothing_of_the_main_module_is_pickled(job, kind, spills):
    for transform in leaves(job(kind, spills=spills)).values():
        assert b"__main__" not in transform.spec.payload, transform.unique_name


PAYLOAD = {
    *("ReadPortion", "MarkValidation", "CleanText", "ApplyRules", "InSandbox", "AddKeys"),
    *("DropCopies", "CountBatch", "EncodeDocuments", "PackImages"),
}
"""Stages that hand on batches."""


@every_build
@every_way
def test_payload_is_not_pickled_for_its_size(job, kind, spills):
    made = job(kind, spills=spills)
    coders, named = PipelineContext(made.components).coders, {}
    for transform in leaves(made).values():
        for output in transform.outputs.values():
            coder = coders.get_by_id(made.components.pcollections[output].coder_id)
            named[transform.unique_name.rsplit("/", 1)[-1]] = str(coder)
    found = {name: coder for name, coder in named.items() if name in PAYLOAD}
    assert len(found) >= 5
    assert set(found.values()) == {"SizedCoder"}
    grouped = named["OpenSpills" if spills else "NameShards"]
    assert grouped == "TupleCoder[FastPrimitivesCoder, SizedCoder]"


@every_job
def test_the_job_does_not_grow_with_the_corpus(job, kind, spills):
    """Dataflow takes 10 MB; ours is far below, whatever the number of files."""
    one, many = (
        job(kind, spills=spills, num_portions=number).SerializeToString() for number in (1, 20_000)
    )
    assert len(one) < MIB
    # Pickles are compressed: the same job twice differs by some 80 bytes. 20,000 portions in it, or
    # only their fingerprints, would be tens of thousands.
    assert len(many) - len(one) < 1024


BOUNDED = {
    "PlanShards": "a path",
    "ComparePairs": "names of files, 9 x 128 at most",
    "UnKey": "a sum over everything",
    "Create": "constants",
}
"""What workers may get whole, by the stage that makes it."""


@every_job
def test_no_side_input_grows_with_the_corpus(job, kind, spills):
    components = job(kind, spills=spills).components
    makers = {
        output: transform.unique_name
        for transform in components.transforms.values()
        if not transform.subtransforms
        for output in transform.outputs.values()
    }
    given = set()
    for transform in components.transforms.values():
        for name in side_inputs(transform):
            maker = makers[transform.inputs[name]]
            given |= {stage for stage in BOUNDED if stage in maker} or {maker}
    assert given <= set(BOUNDED)
    assert kind in BEFORE or "PlanShards" in given


def side_inputs(transform):
    if transform.spec.urn != common_urns.primitives.PAR_DO.urn:
        return []
    return beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload).side_inputs


@pytest.mark.usefixtures("memory_store")
@pytest.mark.parametrize("kind", [*BUILDS, *BEFORE[:2]])
def test_dataflow_takes_the_job(kind, constructed, tmp_path):
    """Its own translation of a build into a store, all but sending it: `make cluster-test` installs
    what that needs.
    """
    pytest.importorskip("apitools", reason="needs apache-beam[gcp]")
    work = WorkFolder(str(tmp_path / "far/.work"), store="memory://b/d", request="r" * 64)
    flags = ["--runner=DataflowRunner", "--dry_run=true", "--project=some-project"]
    flags += ["--region=europe-west1", "--temp_location=gs://bucket/temp"]
    with staged([*flags, "--sdk_container_image=an/image:1"]) as flags:
        built = constructed(kind, spills=False, flags=flags, work=work.between_machines())
        job = built.run().job.proto_pipeline
    (environment,) = job.components.environments.values()
    assert environment.urn == common_urns.environments.DOCKER.urn
    assert b"an/image:1" in environment.payload
    assert any(b"millrace-" in one.role_payload for one in environment.dependencies)
    assert job.ByteSize() < MIB


def test_a_listing_is_read_as_it_was_written(tmp_path):
    file = CorpusFile(url="/a/é\udc80.txt", source="é\udc80.txt", bytes=5, version="v")
    portions = [Portion(3, file, 0, 5, 5, beside="b"), Portion(1, file, 5, 9, 4, more=(file, file))]
    work = WorkFolder(str(tmp_path))
    with listing_of(work, portions, {3: "three", 1: "one"}) as path:
        assert list(read_listing(path)) == list(enumerate(portions))
        assert [read_fingerprint(path, index) for index in (1, 3)] == ["one", "three"]
        with listing_of(work, portions[:1], {3: "three"}) as other:
            assert other != path
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(
        RefusedError,
        match="a worker does not see .*nothere: dataset_dir must be a folder .* or lie in a store",
    ):
        next(read_listing(str(tmp_path / "nothere")))
