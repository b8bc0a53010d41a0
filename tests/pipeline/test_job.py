"""The job that an engine is sent, looked at as Beam's portable proto: what every engine needs of it
holds for each kind of build, and on those that cannot be run here, as Dataflow.
"""

from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.runners.pipeline_context import PipelineContext

import configs
from pipeline import build
from pipeline.config import PipelineConfig
from pipeline.corpus import CorpusFile, Portion, plan_portions
from pipeline.listing import listing_of, read_fingerprint, read_listing
from pipeline.refused import RefusedError
from pipeline.runner import Engine
from pipeline.stages import BuildShards
from pipeline.work import WorkFolder

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
def job(tmp_path):
    """The proto of a build of `num_portions` portions."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("To be or not to be, that is the question. " * 50)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"x")
    words = {
        "text": ["configs/pipeline/tiny_shakespeare.yaml", f"corpus.path=[{tmp_path}/text]"],
        "images": ["configs/pipeline/image_folder.yaml", f"corpus.path=[{tmp_path}/images]"],
        "near duplicates": [
            *("configs/pipeline/image_folder.yaml", f"corpus.path=[{tmp_path}/images]"),
            "near_duplicates.enabled=true",
        ],
    }

    def make(kind, *, spills, num_portions=1):
        path, *overrides = words[kind]
        config = configs.load(PipelineConfig, path, [*overrides, f"dataset_dir={tmp_path}/d"])
        (portion,) = plan_portions(config.corpus.module, config.corpus.config)
        portions = [replace(portion, index=index) for index in range(num_portions)]
        work = WorkFolder(str(tmp_path / "d/.work"))
        work.create()
        prepared = build._prepare(config, [portion], Engine(1, (), spills), work)
        terms, settings = build._settle(config, portions, prepared, work)
        pipeline = beam.Pipeline(options=PipelineOptions([]))
        compare = prepared.compare(work, num_portions)
        with listing_of(work, portions) as listing:
            encoded = pipeline | "EncodedDocuments" >> prepared.encoded(listing, work)
            _ = encoded | "BuildShards" >> BuildShards(
                listing, terms, settings, prepared.schema, spills, compare
            )
        return pipeline.to_runner_api()

    return make


every_kind = pytest.mark.parametrize("kind", ["text", "images", "near duplicates"])
every_way = pytest.mark.parametrize("spills", [False, True])


def leaves(job):
    """Transforms without others inside; a filter that is switched off hands its input on."""
    return {
        name: transform
        for name, transform in job.components.transforms.items()
        if not transform.subtransforms
        and set(transform.outputs.values()) != set(transform.inputs.values())
    }


@every_kind
@every_way
def test_keys_are_equal_where_their_bytes_are(job, kind, spills):
    components = job(kind, spills=spills).components
    grouped = 0
    for transform in components.transforms.values():
        if transform.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn:
            grouped += 1
            (input_id,) = transform.inputs.values()
            pair = components.coders[components.pcollections[input_id].coder_id]
            assert pair.spec.urn == "beam:coder:kv:v1"
            assert key_coders(components, pair.component_coder_ids[0]) <= ORDERED, (
                transform.unique_name
            )
    assert grouped >= 2


def key_coders(components, coder_id):
    coder = components.coders[coder_id]
    inner = [key_coders(components, one) for one in coder.component_coder_ids]
    return {coder.spec.urn}.union(*inner)


@every_kind
@every_way
def test_only_what_every_engine_has(job, kind, spills):
    made = job(kind, spills=spills)
    assert {transform.spec.urn for transform in leaves(made).values()} <= COMMON
    assert set(made.requirements) == set()  # no state, no timers, no splittable functions
    names = [transform.unique_name for transform in made.components.transforms.values()]
    assert len(set(names)) == len(names)


@every_kind
@every_way
def test_nothing_of_the_main_module_is_pickled(job, kind, spills):
    for transform in leaves(job(kind, spills=spills)).values():
        assert b"__main__" not in transform.spec.payload, transform.unique_name


PAYLOAD = {
    *("ReadPortion", "MarkValidation", "CleanText", "ApplyRules", "InSandbox", "AddKeys"),
    *("DropCopies", "CountBatch", "EncodeDocuments", "PackImages"),
}
"""Stages that hand on batches."""


@every_kind
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


@every_kind
@every_way
def test_the_job_does_not_grow_with_the_corpus(job, kind, spills):
    """Dataflow takes 10 MB; ours is far below, whatever the number of files."""
    one, many = (
        job(kind, spills=spills, num_portions=number).SerializeToString() for number in (1, 20_000)
    )
    assert len(one) < MIB
    # Pickles are compressed: the same job twice differs by some 80 bytes. 20,000 portions in it, or
    # only their fingerprints, would be tens of thousands.
    assert len(many) - len(one) < 1024


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
        match="a worker does not see .*nothere: dataset_dir, or scratch_dir .* must be",
    ):
        next(read_listing(str(tmp_path / "nothere")))
