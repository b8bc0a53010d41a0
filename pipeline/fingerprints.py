"""Fingerprints: what finished work was made from, so that a rerun knows what still holds."""

import dataclasses
import hashlib
import importlib.metadata
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from pipeline.config import PipelineConfig, byte_config
from pipeline.corpus import Portion
from pipeline.portions import Placement
from pipeline.urls import read_url

STAGES_VERSION = 7
"""Raised when a stage makes other bytes of the same input."""

LIBRARIES = ("numpy", "orjson", "pyarrow", "xxhash")
"""Libraries in whose hands the bytes of every build are."""


def library_versions(config: PipelineConfig) -> dict[str, str]:
    """Versions of what decides bytes."""
    names = sorted([*LIBRARIES, *config.libraries])
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"stages": str(STAGES_VERSION), "unicode": unicodedata.unidata_version, **versions}


def request_fingerprint(config: PipelineConfig, portions: Sequence[Portion]) -> str:
    """Of what a build was asked for: config, corpus, libraries."""
    resources = _versions(config)
    return _hash([byte_config(config), library_versions(config), resources, _rows(portions)])


def resources_fingerprint(config: PipelineConfig) -> str:
    """Of the files that decide bytes beside the corpus; nothing where there are none."""
    return _hash(_versions(config)) if config.resources else ""


def portion_fingerprints(
    config: PipelineConfig, portions: Sequence[Portion], placement: Placement, tokenizer: str
) -> dict[int, str]:
    """Of everything that decides the encoded documents of each portion, by index."""
    common = byte_config(config)
    del common["shards"]
    shared = _hash([common, library_versions(config), dataclasses.asdict(placement), tokenizer])
    return {
        portion.index: _hash([shared, row])
        for portion, row in zip(portions, _rows(portions), strict=True)
    }


def reading_fingerprint(config: PipelineConfig, portions: Sequence[Portion]) -> str:
    """Of everything that decides a tokenizer made from the corpus."""
    common = byte_config(config)
    for key in ("shards", "split"):
        del common[key]
    return _hash([common, library_versions(config), _rows(portions)])


def _rows(portions: Sequence[Portion]) -> list[Any]:
    return [
        [one.index, [[f.source, f.bytes, f.version] for f in one.files], one.start, one.stop]
        + ([one.beside] if one.beside else [])
        for one in portions
    ]


def _versions(config: PipelineConfig) -> list[str]:
    return [hashlib.sha256(read_url(path)).hexdigest() for path in config.resources]


def _hash(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
