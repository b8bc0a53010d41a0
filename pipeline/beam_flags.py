"""Beam's own flags: those that it does not know are refused where it would ignore them."""

import argparse
import difflib
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

OURS = ("--dry-run", "--help")
ALIKE = 0.9
"""By difflib: one or two letters of a flag are other ones or in other places."""
UNSUITABLE = tuple(f"{kind}DirectRunner" for kind in ("", "Switching", "BundleBased", "Test"))
"""Without internet they hold the corpus in memory; with it they download an engine, Prism."""


def check_flags(flags: Sequence[str]) -> None:
    """Refuse a flag that is no option of Beam; a misspelt --dry-run must not start a build.

    Raises:
        ValueError: names the flag and the nearest one that exists.
    """
    known = known_flags()
    for flag in flags:
        name = flag.split("=", 1)[0]
        if flag.startswith("-") and name not in known:
            close = difflib.get_close_matches(name, OURS, n=1, cutoff=ALIKE)
            close = close or difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}: neither an option of this command nor of Beam{meant}")


def check_spelling(flags: Sequence[str]) -> None:
    """Refuse `--flink-master`, `--Flink_Master` and `--flink_mastre`: Beam would go on with its
    default.

    An engine may know flags that Beam does not, so that those pass that are like none of Beam's.

    Raises:
        ValueError: names the flag and its right spelling.
    """
    known = [*known_flags(), *OURS]
    spelling = {_plain(name): name for name in known}
    for flag in flags:
        name = flag.split("=", 1)[0]
        if flag.startswith("-") and name not in known:
            for meant in difflib.get_close_matches(_plain(name), spelling, n=1, cutoff=ALIKE):
                told = f"{name}: Beam would ignore it; did you mean {spelling[meant]}?"
                raise ValueError(told)


def known_flags() -> list[str]:
    """Every option of Beam, of all runners: --flink_master, ..."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # noqa: SLF001  (there is no public way to ask)
    return [word for action in parser._actions for word in action.option_strings]  # noqa: SLF001


def runner_name(given: str) -> str:
    """A runner as Beam spells it, which takes any case, and a name without its end.

    >>> runner_name("flink")
    'FlinkRunner'

    Raises:
        ValueError: Beam knows no such runner, or it does not suit a build.
    """
    names = {name.lower(): name for name in StandardOptions.KNOWN_RUNNER_NAMES}
    names |= {path.lower(): path.rsplit(".", 1)[1] for path in StandardOptions.ALL_KNOWN_RUNNERS}
    found = names.get(given.lower()) or names.get(f"{given.lower()}runner")
    if found in UNSUITABLE:
        raise ValueError(
            f"--runner={given}: holds the corpus in memory; leave --runner out to build on this "
            "machine"
        )
    if not found and "." not in given:  # a dotted name is a class of the user's own
        close = difflib.get_close_matches(f"{given.lower()}runner", names, n=1)
        meant = f"; did you mean {names[close[0]]}?" if close else ""
        raise ValueError(f"--runner={given}: Beam has no such runner{meant}")
    return found or given


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
