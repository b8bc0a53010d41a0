"""Seconds that each stage of a build took, summed over its workers, for the report.

Beam's own sampler counts them on the local runner; engines show them on pages of their own. A
killed run leaves none, so that a build in several runs tells less than it took.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from apache_beam.metrics import monitoring_infos

from pipeline.work import WorkFolder, read_json, write_json

COMPOSITES = frozenset(
    {"BuildShards", "EncodedDocuments", "EncodedImages", "GroupByShard", "ReadDocuments"}
)
"""Labels of what is made of stages."""


def stage_seconds(infos: Iterable[Any]) -> dict[str, float]:
    """Seconds by stage from Beam's monitoring infos, in the order of the pipeline.

    `BuildShards/GroupByShard/PlanShards` counts for PlanShards, and so does all below it.
    """
    sums: dict[str, float] = {}
    for info in infos:
        if info.urn == monitoring_infos.TOTAL_MSECS_URN:
            labels = info.labels["PTRANSFORM"].split("/")
            stage = next((label for label in labels if label not in COMPOSITES), labels[-1])
            seconds = monitoring_infos.extract_counter_value(info) / 1000
            sums[stage] = sums.get(stage, 0.0) + seconds
    return {stage: seconds for stage, seconds in sums.items() if seconds}


def add_seconds(work: WorkFolder, found: Mapping[str, float]) -> None:
    """Add to what earlier phases and runs of the build took."""
    sums = read_json(work.seconds) or {}
    for stage, seconds in found.items():
        sums[stage] = sums.get(stage, 0.0) + seconds
    write_json(work.seconds, sums)
