"""What a stage hands to the next is not pickled only to learn its size."""

import pickle

import apache_beam as beam
import pytest
from apache_beam.coders import registry
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type

from pipeline.sized_coder import SizedCoder, knows_its_size


@knows_its_size
class Payload:
    def __init__(self, nbytes, content=b""):
        self.nbytes, self.content = nbytes, content

    def __eq__(self, other):
        return (self.nbytes, self.content) == (other.nbytes, other.content)

    __hash__ = None


class Unread(Payload):
    def __reduce__(self):
        raise AssertionError("pickled")

    def __iter__(self):
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("hint", "value"),
    [(Payload, Unread(7)), (tuple[int, tuple[str, Payload]], (1, ("", Unread(5))))],
)
def test_a_hint_with_the_class_in_it_finds_the_coder(hint, value):
    assert registry.get_coder(convert_to_beam_type(hint)).estimate_size(value) == 7


def test_elements_come_back_and_size_is_their_own_word():
    coder, payload = SizedCoder(), Payload(5, b"x" * 1000)
    assert coder.decode(coder.encode(payload)) == payload
    assert coder.encode(payload) == pickle.dumps(payload, pickle.HIGHEST_PROTOCOL)
    assert coder.estimate_size(payload) == 5
    assert SizedCoder().get_impl().get_estimated_size_and_observables(payload) == (5, [])
    assert not coder.is_deterministic()


def test_between_fused_stages_nothing_is_pickled():
    """Beam asks for the sizes of the first ten of these."""
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create(range(20))
            | beam.Map(lambda n: (n, Unread(n))).with_output_types(tuple[int, Payload])
            | beam.Map(lambda pair: pair[1].nbytes)
        )
