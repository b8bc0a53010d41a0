"""The command line of every verb with a config: CONFIG, `key=value`, `--dry-run`, `--help`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from configs import ConfigError, describe, load, to_yaml
from configs.redact import redact

Schema = TypeVar("Schema")
AGAIN = 1
"""The exit code of what another start may mend."""
MISTAKE = 2
"""That of what no start does: a mistake, a refusal, a run that was to stop."""
MISTAKES = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Of paths and values that the user gave; other faults of a system are not his."""


def parse(
    schema: type[Schema], argv: Sequence[str], *, prog: str, doc: str, passes_flags_on: bool = False
) -> tuple[Schema, list[str]]:
    """Parse `CONFIG [key=value ...] [--dry-run] [--flags]` into a config and flags to pass on.

    `--help`, `--dry-run` and a user's mistake end the process here, with exit code 0, 0 and 2.
    """
    parser = _parser(schema, argv, prog=prog, doc=doc)
    arguments, rest = parser.parse_known_intermixed_args(list(argv))
    flags = [word for word in rest if word.startswith("-")]
    if flags and not passes_flags_on:
        parser.error(f"unknown option {flags[0]}")
    return _load(schema, parser, arguments), rest


def parse_with_flags(
    schema: type[Schema],
    argv: Sequence[str],
    *,
    prog: str,
    doc: str,
    add_flags: Callable[[argparse.ArgumentParser], None],
) -> tuple[Schema, argparse.Namespace]:
    """As `parse`, with flags of the verb's own."""
    parser = _parser(schema, argv, prog=prog, doc=doc)
    add_flags(parser)
    arguments = parser.parse_intermixed_args(list(argv))
    return _load(schema, parser, arguments), arguments


def _parser(
    schema: type[Any], argv: Sequence[str], *, prog: str, doc: str
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=f"Every key, its type, default and meaning:\n{describe(schema)}"
        if _asks_help(argv)
        else None,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides of single keys, as a.b=1"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    return parser


def _load(
    schema: type[Schema], parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> Schema:
    if arguments.config is None:
        parser.error("CONFIG is missing, as configs/... .yaml")
    try:
        config = load(schema, find(arguments.config), arguments.overrides)
    except ConfigError as error:
        fail(f"{parser.prog}: {error}")
    if arguments.dry_run:
        sys.stdout.write(to_yaml(config))
        sys.exit(0)
    return config


def run(main: Callable[[], None], *, who: str = "") -> None:
    """Run a verb: a mistake of the user is one line on stderr and exit code 2, a fault of a disk, a
    store or the network, behind which the same command may go on, one line and `AGAIN`.

    `who` stands before it, where several processes may say the same.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        fail(f"{who}error: {error}", code=exit_code(error))
    except ImportError as error:  # of a store's package, which fsspec imports when it is asked for
        extras = "pip install 'millrace[s3]', 'millrace[gcs]' or 'millrace[http]'"
        fail(f"{who}error: {' '.join(str(error).split())}; see {extras}")
    except KeyboardInterrupt:
        fail("interrupted", code=130)


def exit_code(error: BaseException) -> int:
    """That of a program which ends with this error."""
    return MISTAKE if isinstance(error, (*MISTAKES, ImportError)) else AGAIN


def find(path: str) -> Path:
    """A path as given, or of a config that the wheel carries: works from any folder."""
    given = Path(path)
    carried = Path(__file__).parent.parent / path
    return carried if not given.exists() and carried.is_file() else given


def fail(message: str, *, code: int = MISTAKE) -> NoReturn:
    """Print one line to stderr, without credentials, and exit."""
    sys.stderr.write(f"{redact(message)}\n")
    sys.exit(code)


def _asks_help(argv: Sequence[str]) -> bool:
    return "-h" in argv or "--help" in argv
