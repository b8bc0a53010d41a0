"""`Spread`: elements over the workers, before they are worked on."""

from dataclasses import dataclass
from typing import Any

import apache_beam as beam


@dataclass
class Spread(beam.PTransform):  # type: ignore[misc]
    """Elements in another bundle each, in turn over the workers: an orderly Reshuffle."""

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return (
            elements
            | "Number"
            >> beam.Map(lambda element: (element[0], element[1])).with_output_types(tuple[int, Any])
            | "Spread" >> beam.GroupByKey()
            | "Unnumber" >> beam.FlatMap(lambda group: group[1])
        )
