"""How payload is coded between stages: pickled, its size told without pickling it.

Beam asks the size of the first ten elements between any two stages, later of fewer
(opcounters.py, 2.77), and its own coders find it by encoding: batches would be pickled behind each
stage, and the documents of a shard read and pickled before they are written, 0.5 s for 256 MiB.
"""

import pickle
from typing import Any

from apache_beam.coders import coder_impl, registry
from apache_beam.coders.coders import FastCoder


class SizedCoder(FastCoder):  # type: ignore[misc]
    """Of classes with a property `nbytes`."""

    def is_deterministic(self) -> bool:
        """Not for keys."""
        return False

    def _create_impl(self) -> coder_impl.CallbackCoderImpl:
        return coder_impl.CallbackCoderImpl(_encode, pickle.loads, _size)


def knows_its_size(cls: type) -> type:
    """Class decorator: between stages that declare this class as output, `SizedCoder` codes it."""
    registry.register_coder(cls, SizedCoder)
    return cls


def _encode(value: Any) -> bytes:
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _size(value: Any, nested: bool = False) -> int:  # noqa: ARG001, FBT001, FBT002 - Beam's call
    return int(value.nbytes)
