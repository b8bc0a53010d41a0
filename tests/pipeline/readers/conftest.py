"""What every reader's tests look at: batches as documents and rejects."""

import pytest


@pytest.fixture(scope="session")
def read_range():
    """`read_range(reader, path, start, stop, key=value)`: the batches of a byte range of a file."""
    from pipeline.corpus import Portion, list_files

    def read(reader, path, start=0, stop=None, **fields):
        config = reader.Config(path=(str(path),), **fields)
        file = list_files(config.path, reader.EXTENSIONS)[0]
        stop = file.bytes if stop is None else stop
        batches = list(reader.read(Portion(0, file, start, stop, stop - start), config))
        assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
        return batches

    return read


@pytest.fixture(scope="session")
def documents_in():
    """`documents_in(batches)`: position and text of each."""

    def rows(batches):
        found = [row for batch in batches for row in batch.documents.to_pylist()]
        return [(row["position"], row["text"]) for row in found]

    return rows


@pytest.fixture(scope="session")
def rejects_in():
    """`rejects_in(batches)`: reason, position, detail, bytes and excerpt of each."""

    def rows(batches):
        found = [row for batch in batches for row in batch.rejects.to_pylist()]
        assert {row["stage"] for row in found} <= {"read"}
        names = ("reason", "position", "detail", "bytes", "excerpt")
        return [tuple(row[name] for name in names) for row in found]

    return rows
