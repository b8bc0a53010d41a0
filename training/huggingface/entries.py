"""How one weight of ours lies in a file of theirs, both ways."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Read = Callable[[str], Tensor]
"""Gives a weight of theirs by its name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A weight of ours, and those of theirs that hold it."""

    ours: str
    """Its name here; empty where only they have it."""
    theirs: tuple[str, ...]
    """Names there, of what `back` reads."""
    out: Callable[[Tensor], Sequence[Tensor]]
    """Ours to theirs, one for each name; none where another entry writes them."""
    back: Callable[[Sequence[Tensor]], Tensor]
    """Theirs to ours."""


def same(ours: str, theirs: str) -> Entry:
    """Under another name."""
    return Entry(ours, (theirs,), lambda own: (own,), lambda parts: parts[0])


def transposed(ours: str, theirs: str) -> Entry:
    """A projection (out, in) here, (in, out) there."""
    return Entry(ours, (theirs,), lambda own: (own.T,), lambda parts: parts[0].T)


def reshaped(ours: str, theirs: str, *, here: Sequence[int], there: Sequence[int]) -> Entry:
    """The same numbers in the same order."""
    return Entry(
        ours,
        (theirs,),
        lambda own: (own.reshape(*there),),
        lambda parts: parts[0].reshape(*here),
    )


def divided(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Entry:
    """Rows of one weight here, several weights there."""
    return Entry(ours, tuple(theirs), lambda own: torch.split(own, list(sizes)), _joined)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def tied(ours: str, theirs: str) -> Entry:
    """A second name of a weight that another entry writes."""
    return Entry(ours, (theirs,), lambda _: (), lambda parts: parts[0])


def derived(theirs: str, weight: Tensor) -> Entry:
    """A weight there that is no weight here: it follows from the config."""
    return Entry("", (theirs,), lambda _: (weight,), lambda parts: parts[0])


def linear(ours: str, theirs: str) -> tuple[Entry, Entry]:
    """Weight and bias of a layer."""
    return same(f"{ours}.weight", f"{theirs}.weight"), same(f"{ours}.bias", f"{theirs}.bias")


def to_theirs(entries: Iterable[Entry], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights as theirs, by their names; mostly views."""
    nothing = torch.empty(0)
    result: dict[str, Tensor] = {}
    for entry in entries:
        parts = entry.out(state[entry.ours] if entry.ours else nothing)
        result |= zip(entry.theirs, parts, strict=False)
    return result


def to_ours(
    entries: Iterable[Entry], read: Read, *, without: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Their weights as ours, but those that need one of `without`, which is not there."""
    missing = set(without)
    return {
        entry.ours: entry.back([read(name) for name in entry.theirs])
        for entry in entries
        if entry.ours and not missing.intersection(entry.theirs)
    }
