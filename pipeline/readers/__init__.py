"""Corpus formats; `corpus.format: jsonl` is the module `jsonl`. Each public module here is one.

A format has `Config` (extends `CorpusConfig`), `EXTENSIONS`, `cut(file, config)`, which lists the
portions of a file as (start, stop, bytes), and `read(portion, config)`, which yields the batches of
a portion; the last one has `last` set, whatever the portion holds. By choice it has
`beside(portions, config)`, a text for each portion that changes when what is read beside its files
does, and `ABSENT`, the reasons by which all records are rejects where the config names what is not
there.
"""
