"""Words in pictures: where they stand, and names that no font has."""

import pytest
import torch

from training.lettering import LINE, MOST_LETTERS, _shorten, entitle, fill_squares, label


def squares(rows, columns, *, side=LINE, value=255):
    return torch.full((rows * side, columns * side, 3), value, dtype=torch.uint8)


def ink(picture):
    """Darkness of each row of pixels."""
    return (255 - picture.int()).sum((1, 2))


def test_names_stand_at_their_rows_and_columns():
    picture = label(squares(3, 2), rows=["i", "wwww", ""], columns=["ww", ""])
    left, above = picture[-3 * LINE :, : -2 * LINE], picture[: -3 * LINE, -2 * LINE :]
    assert torch.equal(picture[-3 * LINE :, -2 * LINE :], squares(3, 2))
    first, second, third = (ink(left)[LINE * n : LINE * (n + 1)].sum() for n in range(3))
    assert second > first > third == 0
    assert ink(above.transpose(0, 1))[:LINE].sum() > 0 == ink(above.transpose(0, 1))[LINE:].sum()
    assert (picture[: -3 * LINE, : -2 * LINE] == 255).all()
    turned = label(squares(2, 3), rows=["ww", ""], columns=["i", "wwww", ""])
    assert ink(turned[: -2 * LINE]).sum() == ink(left.transpose(0, 1)).sum()


def test_a_title_stands_above_and_widens_what_is_narrow():
    dark = squares(1, 20, value=7)
    titled = entitle(dark, "head 1 of a layer, and no letter of it is cut")
    assert titled.shape == (2 * LINE, 20 * LINE, 3)
    assert torch.equal(titled[LINE:], dark)
    assert ink(titled[:LINE]).sum() > 0
    narrow = entitle(squares(1, 1, value=7), "head 1")
    assert narrow.shape[1] > LINE
    assert (narrow[LINE:, :LINE] == 7).all() and (narrow[LINE:, LINE:] == 255).all()


def test_words_in_squares_differ_from_their_ground():
    for value, colour in ((255, 0), (0, 255)):
        filled = fill_squares(squares(2, 2, side=40, value=value), [["8", ""], ["", "8"]])
        differs = (filled != value).any(dim=2).reshape(2, 40, 2, 40).any(dim=3).any(dim=1)
        assert differs.tolist() == [[True, False], [False, True]]
        assert (filled.int() - colour).abs().min() < 100  # a stroke, which its edges dilute


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb\t c", "a b c"),
        ("\ud800x", "?x"),
        ("k" * 24, "k" * 24),
        ("k" * 25, "k" * 23 + "\u2026"),
    ],
)
def test_names_that_no_font_draws(name, shown):
    assert _shorten(name) == shown
    assert len(shown) <= MOST_LETTERS
    label(squares(1, 1), rows=[name], columns=[name])
