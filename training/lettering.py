"""Words in pictures: names at rows and columns, numbers in squares, titles.

Pictures are 8-bit colours (Y, X, 3). The font is the one that Pillow brings.
"""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor

LINE = 14
"""Height of a line, pixels: the least that a row with a name has."""
MOST_LETTERS = 24
"""Of a name; longer ones are cut."""
_MARGIN = 4


def label(squares: Tensor, *, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Names left of the rows of a picture of squares, and above its columns, read upwards."""
    sides = squares.shape[0] // len(rows), squares.shape[1] // len(columns)
    left = _lines([_shorten(name) for name in rows], height=sides[0], at_end=True)
    above = _lines([_shorten(name) for name in columns], height=sides[1]).rot90()  # (margin, X, 3)
    corner = squares.new_full((above.shape[0], left.shape[1], 3), 255)
    upper, lower = torch.cat((corner, above), dim=1), torch.cat((left, squares), dim=1)
    return torch.cat((upper, lower))  # (margin + Y, margin + X, 3)


def entitle(picture: Tensor, title: str) -> Tensor:
    """A line of words above a picture, which is widened where they are longer."""
    words = _lines([title], height=LINE)
    width = max(words.shape[1], picture.shape[1])
    parts = [_widened(one, width) for one in (words, picture)]
    return torch.cat(parts)  # (LINE + Y, width, 3)


def fill_squares(squares: Tensor, words: Sequence[Sequence[str]]) -> Tensor:
    """A word in the middle of each square, black on light ones and white on dark ones."""
    canvas = PIL.Image.fromarray(squares.numpy())
    pen, font = PIL.ImageDraw.Draw(canvas), _font()
    height, width = squares.shape[0] // len(words), squares.shape[1] // len(words[0])
    for row, of_row in enumerate(words):
        for column, word in enumerate(of_row):
            y, x = row * height + height // 2, column * width + width // 2
            is_light = squares[y, x].float().mean() > 127
            colour = "black" if is_light else "white"
            pen.text((x, y), word, fill=colour, font=font, anchor="mm")
    return torch.from_numpy(np.array(canvas))


def _lines(lines: Sequence[str], *, height: int, at_end: bool = False) -> Tensor:
    """Lines below one another on white (N height, width, 3), flush left, or right `at_end`."""
    font = _font()
    width = max(math.ceil(font.getlength(line)) for line in lines) + 2 * _MARGIN
    canvas = PIL.Image.new("RGB", (width, len(lines) * height), "white")
    pen = PIL.ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        place = (width - _MARGIN if at_end else _MARGIN, number * height + height // 2)
        pen.text(place, line, fill="black", font=font, anchor="rm" if at_end else "lm")
    return torch.from_numpy(np.array(canvas))


def _shorten(name: str) -> str:
    """A name as one line that a font can draw: white space is a space, and no surrogate is left."""
    line = " ".join(name.encode("utf-8", "replace").decode().split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}\u2026"


def _widened(picture: Tensor, width: int) -> Tensor:
    white = picture.new_full((picture.shape[0], width - picture.shape[1], 3), 255)
    return torch.cat((picture, white), dim=1)  # (Y, width, 3)


def _font() -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.load_default(size=10)
