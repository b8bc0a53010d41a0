"""The class of each Unicode code point: space, letter, word character, joiner or symbol."""

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

SYMBOL, SPACE, JOINER, WORD, LETTER = range(5)
"""A symbol; white space; an apostrophe or hyphen, part of a word between two word characters; a
word character that is no letter (categories M, N, Cf); a letter (category L)."""

JOINERS = "'\u2019-\u2010\u2011"

PLANES = 0x40000
"""Code points below have a class of their own; in the planes above there are only symbols, but for
the tags and variation selectors from `TAGS` on, whose classes stand behind in the table."""
TAGS = 0xE0000
NUM_TAGS = 0x1000


@functools.cache
def class_table() -> npt.NDArray[np.uint8]:
    """The class of code points 0 to 0x3FFFF, then 0xE0000 to 0xE0FFF; made in 40 ms."""
    codes = [*range(PLANES), *range(TAGS, TAGS + NUM_TAGS)]
    by_category = {"L": LETTER, "M": WORD, "N": WORD}
    categories = map(unicodedata.category, map(chr, codes))
    classes = (WORD if name == "Cf" else by_category.get(name[0], SYMBOL) for name in categories)
    table = np.fromiter(classes, np.uint8, len(codes))
    table[[code for code in range(0x3001) if chr(code).isspace()]] = SPACE
    table[[ord(joiner) for joiner in JOINERS]] = JOINER
    table.flags.writeable = False
    return table
