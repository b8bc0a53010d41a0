"""Stage: raw bytes -> clean Unicode text; what is no UTF-8, or holds nothing, is a reject.

Most text is clean already. A batch is scanned as one array for bytes that could need work, and only
the documents that hold such bytes are looked at one by one.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.batch import Batch, split_off, text_buffers, text_bytes

STAGE = "normalise"

Form = Literal["NFC", "NFKC", "none"]
Controls = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How raw text becomes clean text."""

    unicode: Form = "NFC"
    """Unicode normalization form; NFKC also folds ligatures, full-width letters and the like."""
    control_characters: Controls = "drop"
    """What happens to control characters that are neither line ends nor tabs."""


@dataclass(slots=True, kw_only=True)
class NormaliseText(beam.PTransform):  # type: ignore[misc]
    """Batches -> batches whose text is clean, valid UTF-8; see `normalise`."""

    unicode: Form
    """Unicode normalization form: NFC, NFKC or none."""
    control_characters: Controls
    """`drop` or `keep`."""

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        step = beam.Map(normalise, unicode=self.unicode, control_characters=self.control_characters)
        return batches | "CleanText" >> step.with_output_types(Batch)


def normalise(
    batch: Batch, *, unicode: Form = "NFC", control_characters: Controls = "drop"
) -> Batch:
    """Clean the text of every document, in this order.

    1. Bytes that are no UTF-8: reject `invalid_utf8`, with the offset in the text.
    2. U+FEFF is dropped everywhere: a byte order mark, also inside (files glued together).
    3. CRLF, CR, and the line ends VT, FF and U+0085 become LF. Dropping those would join words.
    4. Control characters (category Cc) but LF and tab are dropped, U+0000 with them. Zero-width
       and other format characters (Cf) stay: Persian, Indic scripts and emoji need them.
    5. The Unicode normalization form.
    6. Nothing left but white space: reject `empty`.
    """
    offsets, values = text_buffers(batch.documents)
    clean: dict[int, bytes] = {}
    errors: dict[int, str] = {}
    for row, is_dirty in _suspects(offsets, values):
        raw = values[offsets[row] : offsets[row + 1]].tobytes()
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            errors[row] = f"{error.reason} at byte {error.start} of the text"
            continue
        if is_dirty:
            text = _clean(raw, control_characters).decode()
        if unicode != "none" and not unicodedata.is_normalized(unicode, text):
            clean[row] = unicodedata.normalize(unicode, text).encode()
        elif is_dirty:
            clean[row] = text.encode()
    result = _without_faults(_with_texts(batch, clean), errors)
    counted = replace(result.counts[-1], bytes_in=text_bytes(batch.documents))
    return replace(result, counts=(*result.counts[:-1], counted))


_BLOCK_BYTES = 1 << 17  # scanned at a time: numpy's temporary arrays stay in the L2 cache


def _suspects(
    offsets: npt.NDArray[np.int64], values: npt.NDArray[np.uint8]
) -> list[tuple[int, bool]]:
    """Rows with a byte beyond ASCII (False), or one that step 2, 3 or 4 may change (True)."""
    beyond: list[int] = []
    dirty: list[int] = []
    for start in range(int(offsets[0]), int(offsets[-1]), _BLOCK_BYTES):
        text = values[start : min(start + _BLOCK_BYTES, int(offsets[-1]))]
        odd = (text < 0x20) & (text != 0x0A) & (text != 0x09) | (text == 0x7F)
        high = text >= 0x80
        if high.any():
            beyond += _rows_of(high, start, offsets)
            # The controls beyond ASCII are C2 80 to C2 9F, U+FEFF is EF BB BF.
            odd |= (text == 0xC2) | (text == 0xEF)
        if odd.any():
            dirty += _rows_of(odd, start, offsets)
    return list({**dict.fromkeys(beyond, False), **dict.fromkeys(dirty, True)}.items())


def _rows_of(
    marked: npt.NDArray[np.bool_], start: int, offsets: npt.NDArray[np.int64]
) -> list[int]:
    """The rows in which a byte is marked; `marked` begins at `start`."""
    places = np.flatnonzero(marked) + start
    rows: list[int] = np.unique(np.searchsorted(offsets, places, side="right") - 1).tolist()
    return rows


_LINE_ENDS = bytes.maketrans(b"\r\v\f", b"\n\n\n")
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09, 0x0A})
_C1_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")


def _clean(raw: bytes, control_characters: Controls) -> bytes:
    """Steps 2 to 4 on valid UTF-8, in which no part of a longer character looks like these."""
    text = raw.replace(b"\xef\xbb\xbf", b"").replace(b"\r\n", b"\n").replace(b"\xc2\x85", b"\n")
    text = text.translate(_LINE_ENDS)
    if control_characters == "keep":
        return text
    return _C1_CONTROLS.sub(b"", text.translate(None, _CONTROLS))


def _with_texts(batch: Batch, texts: dict[int, bytes]) -> Batch:
    """The batch with the texts of some rows replaced."""
    if not texts:
        return batch
    column = batch.documents.column("text").to_pylist()
    for row, text in texts.items():
        column[row] = text
    index = batch.documents.schema.get_field_index("text")
    documents = batch.documents.set_column(
        index, batch.documents.schema.field(index), pa.array(column, pa.large_binary())
    )
    return replace(batch, documents=documents)


def _without_faults(batch: Batch, errors: dict[int, str]) -> Batch:
    faults = {row: ("invalid_utf8", detail) for row, detail in errors.items()}
    for row in _blank_rows(batch.documents):
        faults.setdefault(row, ("empty", ""))
    keep = np.ones(batch.documents.num_rows, np.bool_)
    keep[list(faults)] = False
    rows = [faults[row] for row in sorted(faults)]
    return split_off(batch, STAGE, keep, [row[0] for row in rows], [row[1] for row in rows])


_HEAD_BYTES = 64  # nearly all documents show something else than white space in these


def _blank_rows(documents: pa.RecordBatch) -> list[int]:
    """Rows with nothing but white space."""
    offsets, values = text_buffers(documents)
    starts, stops = offsets[:-1], offsets[1:]
    unclear = starts == stops
    lead = values[starts[~unclear]]
    unclear[~unclear] = (lead <= 0x20) | (lead >= 0x7F)  # not a visible ASCII character
    blank = []
    for row in np.flatnonzero(unclear).tolist():
        start, stop = starts[row], stops[row]
        # The head may end inside a character, and not every text is valid UTF-8 here.
        head = values[start : min(stop, start + _HEAD_BYTES)].tobytes().decode(errors="ignore")
        if not head.strip() and not values[start:stop].tobytes().decode(errors="replace").strip():
            blank.append(row)
    return blank
