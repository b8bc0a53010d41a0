"""Members of a tar, from the bytes of a chunk and without a copy."""

from collections.abc import Iterator

BLOCK = 512
"""Headers and contents start at multiples of this, bytes."""


def members(view: memoryview) -> Iterator[tuple[str, int, memoryview]]:
    """Name, offset and content of the regular USTAR members in a run of tar bytes.

    Raises:
        ValueError: the bytes are no whole members.
    """
    position = 0
    while position < len(view):
        header = bytes(view[position : position + BLOCK])
        start = position + BLOCK
        if header[257:262] != b"ustar" or header[156:157] not in (b"0", b"\0"):
            raise ValueError(f"no regular USTAR member at byte {position} of the chunk")
        size = int(header[124:136].rstrip(b"\0 "), 8)
        if start + size > len(view):
            raise ValueError(f"the member at byte {position} of the chunk is cut short")
        yield header[:100].rstrip(b"\0").decode("ascii"), start, view[start : start + size]
        position = start + -(-size // BLOCK) * BLOCK
