import time

import apache_beam as beam
from apache_beam.metrics import monitoring_infos

from pipeline.runner import Engine, run_beam
from pipeline.stage_seconds import add_seconds, stage_seconds
from pipeline.work import WorkFolder, read_json


def info(label, milliseconds, urn=monitoring_infos.TOTAL_MSECS_URN):
    return monitoring_infos.int64_counter(urn, milliseconds, labels={"PTRANSFORM": label})


def test_what_a_stage_is_made_of_is_added_up():
    found = stage_seconds(
        [
            info("EncodedDocuments/ReadDocuments/ReadCorpus/ReadPortion", 1500),
            info("BuildShards/GroupByShard/SpreadShards/Number", 200),
            info("BuildShards/GroupByShard/SpreadShards/Spread/Write", 50),
            info("BuildShards/WriteShards/WriteShard", 9000),
            info("BuildShards/WriteShards/WriteShard", 7, urn="another"),
            info("BuildShards/GroupByShard/OpenSpills", 0),
        ]
    )
    assert found == {"ReadCorpus": 1.5, "SpreadShards": 0.25, "WriteShards": 9.0}
    assert list(found) == ["ReadCorpus", "SpreadShards", "WriteShards"]


def test_phases_add_up(tmp_path):
    work = WorkFolder(str(tmp_path))
    add_seconds(work, {"ReadCorpus": 1.0})
    add_seconds(work, {"ReadCorpus": 2.0, "WriteShards": 4.0})
    assert read_json(work.seconds) == {"ReadCorpus": 3.0, "WriteShards": 4.0}


def test_a_run_tells_what_its_stages_took(tmp_path):
    found = run_beam(
        lambda p: p | beam.Create([1]) | "Sleep" >> beam.Map(lambda _: time.sleep(0.6)),
        Engine(1, (), spills=True),
        tmp_path / "log",
    )
    assert 0.3 < found["Sleep"] < 3
