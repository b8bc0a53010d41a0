"""Tables that hold or list images: Parquet, JSON Lines, csv and tsv; .gz and .zst of the lines.

A row is an image with what the other columns say of it: its class, its caption, metadata. A rerun
sees that an image which a table lists by its path has changed, but of one on a web server it does
not.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.images import table
from pipeline.images.beside import FORBIDDEN, Versions, container_versions, digest
from pipeline.images.named import Finder, find_image, images_root, name_of, place_of
from pipeline.images.rows import ImageRecord, as_metadata, image_documents, with_own
from pipeline.images.table import Layout, Row, cut_table, read_strings, read_table
from pipeline.meter import Meter
from pipeline.records import BadRecord, gather

KIND = "image"
EXTENSIONS = table.EXTENSIONS

_LOG = logging.getLogger(__name__)

_ANY = "*"
_Outcome = ImageRecord | BadRecord


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of tables."""

    image_column: str = "image"
    """Column of images: binary, Hugging Face's struct of bytes and path, or strings."""
    strings: Literal["path", "base64"] = "path"
    """What strings in it are."""
    image_root: str = ""
    """Folder or URL that paths begin at, as `tar://::images.tar`; empty: the table's folder."""
    allow_anywhere: bool = False
    """Paths may be absolute, leave `image_root` or be URLs: for tables that are trusted."""
    class_column: str = ""
    """Column of class names or numbers; empty for none."""
    caption_column: str = ""
    """Column of captions; of a list of them the first is the caption; empty for none."""
    metadata_columns: tuple[str, ...] = ()
    """Columns that are kept in the metadata; `*` for all others."""
    where: tuple[str, ...] = ()
    """`column=value`: rows that do not have all of these values are passed over."""
    rows_per_image: Literal["one", "group"] = "one"
    """group: rows of one file with equal `image_column` are one image, the first caption its
    own; metadata has `captions`, and lists of the other columns. A file is read into memory."""
    header: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files without a header line."""
    line_feeds: bool = False
    """Fields of csv in quotes may hold line feeds; each file is read by one worker then."""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        super().__post_init__()
        if not self.image_column:
            raise ValueError("image_column: is empty; name the column of images")
        wrong = next((one for one in self.where if "=" not in one), None)
        if wrong is not None:
            raise ValueError(f"where: is '{wrong}'; it must be column=value")
        if len(set(self.header)) < len(self.header):
            raise ValueError(f"header: has a name twice: {', '.join(self.header)}")

    @property
    def work_factor(self) -> int:
        """A line of 100 bytes lists an image of 25 KB, or of more."""
        return 256 if self.strings == "path" else 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that have to be there."""
        named = (self.image_column, self.class_column, self.caption_column)
        conditions = [one.partition("=")[0] for one in self.where]
        columns = (*named, *self.metadata_columns, *conditions)
        return tuple(dict.fromkeys(name for name in columns if name not in ("", _ANY)))

    @property
    def layout(self) -> Layout:
        """How the tables are read."""
        return Layout(self.header, self.line_feeds, self.max_record_mib << 20)

    def finder(self, table: CorpusFile) -> Finder:
        """Where the images of a table are.

        Raises:
            ValueError, OSError: see `images_root`.
        """
        max_bytes = self.max_record_mib << 20
        place = images_root(table, self.image_root)
        return Finder(*place, self.strings, self.allow_anywhere, max_bytes)


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """Runs of row groups, or byte ranges; the whole file where rows are grouped."""
    portion_bytes = config.portion_mib << 20
    if not file.url.lower().endswith(table.PARQUET):
        portion_bytes //= config.work_factor
    if config.rows_per_image == "group":
        portion_bytes = max(file.bytes, 1)
    return cut_table(file, config.layout, columns=config.columns, portion_bytes=portion_bytes)


def members(config: Config) -> tuple[str, ...]:
    """What samples hold beside the image and its json."""
    named = {"cls": config.class_column, "txt": config.caption_column}
    return tuple(name for name, column in named.items() if column)


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The images of the portion's rows; `position` as of the row, of a group as of its first."""
    meter = Meter(portion.bytes)
    return gather(portion, _records(portion, config, meter), meter, documents=image_documents)


def beside(portions: Sequence[Portion], config: Config) -> list[str]:
    """For each portion what changes when one of the images that its rows list does."""
    if config.strings != "path":
        return [""] * len(portions)
    versions = Versions()
    containers = container_versions(config.image_root, versions)
    finder = config.finder(portions[0].file)
    found = []
    for portion in portions:
        if not config.image_root:  # else it is the same for all, and an archive takes time to open
            finder = config.finder(portion.file)
        found.append(digest(chain(containers, _versions(portion, config, versions, finder))))
    return found


def _versions(
    portion: Portion, config: Config, versions: Versions, finder: Finder
) -> Iterator[str]:
    for path in read_strings(portion, config.layout, config.image_column):
        try:
            place = place_of(path, finder)
        except (ValueError, OSError):  # the reject tells
            place = None
        yield versions.of(*place) if place else FORBIDDEN


def _records(portion: Portion, config: Config, meter: Meter) -> Iterator[_Outcome]:
    if not portion.file.bytes:
        yield BadRecord("empty_file", 0, "0 bytes", 0, b"")
        return
    rows = _chosen(portion, config, meter)
    finder = config.finder(portion.file)
    if config.rows_per_image == "one":
        for row in rows:
            if isinstance(row, BadRecord):
                yield row
            else:
                yield _record(portion.file, [row], config, finder)
        return
    groups: dict[Any, list[Row] | BadRecord] = {}
    for row in rows:
        if isinstance(row, BadRecord):
            groups["bad", len(groups)] = row
        else:
            _member(groups, row, config).append(row)
    for group in groups.values():
        if isinstance(group, BadRecord):
            yield group
        else:
            yield _record(portion.file, group, config, finder)


def _member(groups: dict[Any, list[Row] | BadRecord], row: Row, config: Config) -> list[Row]:
    """The group of a row; rows without an image are not the same one."""
    value = row.values.get(config.image_column)
    if isinstance(value, dict):
        value = value.get("path") or value.get("bytes")
    key = value if value and isinstance(value, str | bytes) else row.position
    group = groups.setdefault(key, [])
    assert isinstance(group, list), "the key of a bad record is a pair"
    return group


def _chosen(portion: Portion, config: Config, meter: Meter) -> Iterator[Row | BadRecord]:
    others = 0
    wanted = [(column, value) for column, _, value in (one.partition("=") for one in config.where)]
    for row in read_table(portion, config.layout, columns=config.columns, meter=meter):
        if isinstance(row, BadRecord) or all(
            str(row.values[column]) == value for column, value in wanted
        ):
            yield row
        else:
            others += 1
    if others:
        asked = ", ".join(config.where)
        _LOG.info("%s: %d rows are not of %s, passed over", portion.file.source, others, asked)


def _record(file: CorpusFile, rows: list[Row], config: Config, finder: Finder) -> _Outcome:
    """The image of its rows, one or a group."""
    position = rows[0].position
    value = rows[0].values[config.image_column]
    said = _said(rows, config)
    if isinstance(said, BadRecord):
        return said
    image = find_image(value, position, finder)
    if isinstance(image, BadRecord):
        return image
    class_name, captions, tree = said
    caption = captions[0] if captions else None
    if len(captions) > 1 or (captions and config.rows_per_image == "group"):
        tree = with_own(tree, {"captions": captions})
    try:
        metadata = as_metadata(tree)
    except ValueError as error:
        return BadRecord("invalid_json", position, str(error), rows[0].bytes, b"")
    name = name_of(value, finder)
    return ImageRecord(file.source, position, image, class_name, caption, metadata, name)


def _said(
    rows: list[Row], config: Config
) -> tuple[str | None, list[str], dict[str, Any]] | BadRecord:
    """Class, captions and metadata of rows of one image."""
    position = rows[0].position
    classes = {_class_name(row.values.get(config.class_column)) for row in rows}
    if config.class_column and (None in classes or len(classes) > 1):
        found = ", ".join(sorted(str(one) for one in classes))
        detail = f"column '{config.class_column}' holds {found}; one name or integer is needed"
        return BadRecord("missing_class", position, detail, rows[0].bytes, b"")
    captions = [one for row in rows for one in _captions(row.values.get(config.caption_column))]
    if config.caption_column and (None in captions or not captions):
        detail = f"column '{config.caption_column}' holds no text"
        return BadRecord("missing_caption", position, detail, rows[0].bytes, b"")
    tree = {
        name: rows[0].values[name]
        if config.rows_per_image == "one"
        else [row.values.get(name) for row in rows]
        for name in _metadata_names(rows[0], config)
    }
    return classes.pop(), [one for one in captions if one is not None], tree


def _class_name(value: Any) -> str | None:
    """A name or an integer; nothing else names a class."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _captions(value: Any) -> list[str | None]:
    values = value if isinstance(value, list) else [value]
    return [one.strip() if isinstance(one, str) else None for one in values]


def _metadata_names(row: Row, config: Config) -> list[str]:
    if _ANY not in config.metadata_columns:
        return list(config.metadata_columns)
    shown = {config.image_column, config.class_column, config.caption_column}
    return [name for name in row.values if name not in shown or name in config.metadata_columns]
