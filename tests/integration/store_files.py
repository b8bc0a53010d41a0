"""What a build left in the store of a test, and what of it is promised to the byte."""

import hashlib

import fsspec

URL = "memory://bucket/web"


def stored(below=""):
    """Objects by their path in the dataset."""
    fs = fsspec.filesystem("memory")
    found = fs.find(f"/bucket/web/{below}")
    return {name.removeprefix("/bucket/web/"): fs.cat_file(name) for name in found}


def promised(files):
    """As `digests` of a folder; images have no tokenizer."""
    kept = (".tar", ".idx", ".gz", "manifest.json", "tokenizer.json")
    return {
        name.rsplit("/", 1)[-1]: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name.endswith(kept)
    }


def of_folder(folder):
    """What is promised of a dataset in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return promised({str(path): path.read_bytes() for path in paths})
