"""Beam's own flags: those that it does not know are refused where it would ignore them."""

import argparse
import difflib
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

OURS = ("--dry-run", "--help")


def check_flags(flags: Sequence[str]) -> None:
    """Refuse a flag that is no option of Beam; a misspelt --dry-run must not start a build.

    Raises:
        ValueError: names the flag and the nearest one that exists.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # noqa: SLF001  (there is no public way to ask)
    known = [word for action in parser._actions for word in action.option_strings]  # noqa: SLF001
    for flag in flags:
        name = flag.split("=", 1)[0]
        if flag.startswith("-") and name not in known:
            close = difflib.get_close_matches(name, OURS, n=1)
            close = close or difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}: neither an option of this command nor of Beam{meant}")
